"""Text as tokens, rows of sentences, and the parallel corpora."""

import gzip
import itertools
import sys
from functools import partial

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import needs

from jaxhist import UserError, devices, evaluate
from jaxhist.data import multi30k, prepare, prepared, text, translation, wordpiece
from jaxhist.packed import EOS, PAD, SPECIAL, UNK

GERMAN = ["Ein Mann fährt (schnell) Fahrrad.", "Zwei Männer: ein Rad!", "Ein Rad, zwei Räder."] * 3


def test_sub_words_begin_with_letters_and_merge_the_most_frequent_pair():
    """Sennrich's example. A tie may be broken otherwise, but `es` and `est` are the first."""
    texts = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
    letters = 3 + len(set("lowernewestwidest")) + 1  # with [PAD], [EOS], [UNK] and the space
    of_size = lambda size: set(text.subwords(texts, size).get_vocab())
    assert of_size(letters + 2) - of_size(letters) == {"es", "est"}
    assert text.subwords(texts, 1000).token_to_id("▁newest") is not None


def test_sub_words_are_decoded_with_all_spaces():
    vocabulary = text.subwords(GERMAN, 60)
    tokens = text.padded(text.encode(vocabulary, GERMAN))
    assert text.decode(vocabulary, tokens) == GERMAN
    assert vocabulary.get_vocab_size() <= 60 and (tokens != UNK).all()
    assert [vocabulary.token_to_id(name) for name in ("[PAD]", "[EOS]", "[UNK]")] == [0, 1, 2]
    (unknown,) = text.encode(vocabulary, ["Ein Ω"])
    assert unknown.count(UNK) == 1 and unknown[-1] == EOS


def test_words_are_the_most_frequent_ones():
    vocabulary = text.words(GERMAN, 8)
    assert vocabulary.get_vocab_size() == 8
    (tokens,) = text.encode(vocabulary, ["Ein Fahrrad ."])
    assert tokens[0] not in (UNK, EOS) and tokens[1] == UNK and tokens[2] > UNK


def test_a_reversed_sentence_still_ends_with_eos():
    vocabulary = text.words(GERMAN, 100)
    (one,), (other,) = (text.encode(vocabulary, GERMAN[1:2], reverse) for reverse in (False, True))
    assert other == [*one[-2::-1], EOS] and one != other


def test_a_vocabulary_is_kept_and_not_made_again(tmp_path):
    made = []
    make = lambda: made.append(1) or text.subwords(GERMAN, 50)
    first = text.kept(str(tmp_path), "vocabulary.json", make)
    assert not made and first() is first()
    second = text.kept(str(tmp_path), "vocabulary.json", lambda: text.subwords(["a b"], 50))
    assert second().to_str() == first().to_str() and len(made) == 1
    (tmp_path / "vocabulary.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        text.kept(str(tmp_path), "vocabulary.json", make)()


@pytest.mark.parametrize(
    "make",
    [text.subwords, text.byte_pairs, text.characters, text.words, wordpiece.trained],
    ids=lambda make: make.__name__,
)
def test_text_that_spells_a_special_token_is_text(make, tmp_path):
    """When the vocabulary is made, and when it is read again."""
    marks = [*SPECIAL, *wordpiece.SPECIAL, "<|endoftext|>"]
    texts = [f"press {mark} to go on" for mark in marks] * 9
    trained = (texts, 300, True) if make is wordpiece.trained else (texts, 300)
    for _ in range(2):
        tokenizer = text.kept(str(tmp_path), "vocabulary.json", lambda: make(*trained))()
        for mark, found in zip(marks, text.ids(tokenizer, texts), strict=False):
            pieces = [tokenizer.id_to_token(number) for number in found]
            assert not set(pieces) & {*SPECIAL, *wordpiece.SPECIAL}, mark
            assert tokenizer.decode(found).replace(" ", "") == f"press{mark}togoon"


def test_packing_keeps_every_pair_that_fits_and_pads_little():
    random = np.random.default_rng(0)
    pair = lambda: [[*random.integers(3, 9, random.integers(1, 20)).tolist(), EOS] for _ in "st"]
    pairs = [pair() for _ in range(500)] + [[[3] * 40 + [EOS], [EOS]]]
    arrays, longer = text.pack(*zip(*pairs, strict=True), length=40)
    found = {"source": [], "target": []}
    for name, rows in arrays.items():
        for row in rows:
            sentences = np.split(row, np.nonzero(row == EOS)[0] + 1)
            assert (sentences[-1] == PAD).all()
            found[name] += [tuple(sentence) for sentence in sentences[:-1]]
        assert (rows == PAD).mean() < 0.15
    want = sorted((tuple(s), tuple(t)) for s, t in pairs[:-1])
    assert sorted(zip(found["source"], found["target"], strict=True)) == want and longer == 1
    with pytest.raises(UserError, match="as short as"):
        text.pack([[3, EOS]], [[3, EOS]], length=1)


@pytest.fixture(autouse=True, scope="module")
def few():
    """Few pairs are held out, and few drawn to make a vocabulary from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translation, "HELD_OUT", 150)
        yield


def corpus(name="numbers", languages=("en", "de"), seed=0, **changes):
    options = {"vocabulary": (120,), "batch": 8, "length": 48, "reverse": False, "workdir": ""}
    options |= changes
    return translation.named(name, languages, seed=seed, mesh=devices.mesh(1), **options)


@pytest.fixture(scope="module")
def numbers():
    return corpus()


def test_numbers_are_in_words_and_held_out(numbers):
    test, validation = numbers.pairs("test"), numbers.pairs("validation")
    assert not set(test.source) & set(validation.source)
    assert len(set(test.source)) == len(test.target) == translation.HELD_OUT
    assert translation.spell(421, "en") == "four hundred and twenty-one"
    assert translation.spell(421, "de") == "vierhunderteinundzwanzig"
    assert translation.spell(421, "fr") == "quatre cent vingt et un"
    source, target = numbers.vocabularies()
    batch = jax.device_get(numbers.train(0, None))
    assert source is target and (batch["source"] != UNK).all()
    row, other = batch["source"][0], batch["target"][0]
    ends, other_ends = (np.nonzero(r == EOS)[0] + 1 for r in (row, other))
    assert len(ends) == len(other_ends) > 1
    spelled = text.decode(source, row[None])[0], text.decode(target, other[None])[0]
    held_out = set(test.source) | set(validation.source)
    assert spelled[0] not in held_out and spelled[1]
    shares = np.mean([(batch[name] == PAD).mean() for name in batch])
    assert shares < 0.25


def test_the_first_of_many_letters_is_to_be_recalled():
    letters = corpus("recall", vocabulary=(60,), length=64)
    source, target = letters.pairs("test")
    assert all(one.split()[0] == first for one, first in zip(source, target, strict=True))
    assert not set(source) & set(letters.pairs("validation").source)
    lengths = [len(one.split()) for one in source]
    assert min(lengths) < 8 and max(lengths) > 57
    assert [len(one) for one in letters.encode(source)] == [length + 1 for length in lengths]


def test_a_batch_is_a_function_of_the_seed_and_the_step(numbers):
    batch = lambda corpus, step: jax.device_get(corpus.train(step, None))
    want = batch(numbers, 3)
    jax.tree.map(np.testing.assert_array_equal, batch(corpus(), 3), want)
    assert (batch(numbers, 4)["source"] != want["source"]).any()
    assert (batch(corpus(seed=1), 3)["source"] != want["source"]).any()


def test_what_cannot_be_translated_is_said_in_one_line():
    with pytest.raises(UserError, match="does not know the language 'xx'"):
        corpus(languages=("en", "xx"))
    with pytest.raises(UserError, match="sub-words, or two"):
        corpus(vocabulary=(1, 2, 3))
    with pytest.raises(UserError, match="prepare it"):
        corpus("no_such_texts").train(0, None)


@needs("multi30k")
def test_multi30k_is_read_and_packed(monkeypatch):
    """The words of the vocabularies are those of the first pairs."""
    examples = prepared.examples
    some = {"train": 2000, "validation": None, "test": None}
    monkeypatch.setattr(
        prepared, "examples", lambda of, split: itertools.islice(examples(of, split), some[split])
    )
    with pytest.raises(UserError, match="has no texts en and fr; it has de, en"):
        corpus("multi30k/de-en", ("en", "fr")).pairs("test")
    multi30k = corpus("multi30k/de-en", length=24, vocabulary=(1000, 1000))  # some are longer
    source, target = multi30k.pairs("validation")
    assert len(source) == len(target) == 1014
    rows = list(multi30k.rows("validation"))
    for name in ("source", "target"):
        tokens = np.concatenate([batch[name] for batch in rows])
        assert (tokens == EOS).sum() == 1014 and (tokens == PAD).mean() < 0.15


def test_bleu_is_sacrebleus_and_says_so():
    translations = ["the cat sat on the mat today", "a dog runs in the green park"]
    references = ["the cat sat on the mat", "a dog is running in the green park now"]
    found = evaluate.bleu(translations, references)
    np.testing.assert_allclose(found.score, 61.7003883682, rtol=1e-9)
    assert "tok:13a" in found.signature and "version:2" in found.signature
    measure = lambda *texts: evaluate.bleu(*texts).score
    by_length = evaluate.by_length(measure, references, translations, references, parts=2)
    assert list(by_length) == ["6", "7 to 9"] and by_length["6"] > by_length["7 to 9"] > 0
    assert evaluate.exact(["a b", "c"], ["a b", "d"]) == 0.5


def test_multi30k_is_prepared_without_tensorflow(tmp_path, monkeypatch):
    texts = {"de": "Ein Mann .\nZwei Männer .\n", "en": "A man .\nTwo men .\n"}

    def download(self, urls):
        found = {}
        for split, of_split in urls.items():
            found[split] = {}
            for language, url in of_split.items():
                path = tmp_path / url.rpartition("/")[2]
                path.write_bytes(gzip.compress(texts[language].encode()))
                found[split][language] = path
        return found

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    builder = partial(multi30k.Multi30k, data_dir=tmp_path / "data")
    monkeypatch.setattr(tfds, "builder", lambda name, **options: builder(**options))
    assert prepare.main(["multi30k/de-en"]) == 0 and "tensorflow" not in sys.modules
    read = builder(file_format="array_record").as_data_source("validation")
    assert {one["de"].decode() for one in read} == {"Ein Mann .", "Zwei Männer ."}
