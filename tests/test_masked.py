"""Word pieces, hidden words, documents and labelled sentences."""

import functools
from functools import partial
from pydoc_data.topics import topics

import jax
import numpy as np
import pytest
from conftest import needs

from jaxhist import UserError, devices, packed
from jaxhist.data import documents, masked, sentences, wordpiece

# Word pieces.


def vocabulary(folder, *pieces):
    path = folder / "vocab.txt"
    path.write_text("".join(f"{piece}\n" for piece in (*wordpiece.SPECIAL, *pieces)))
    return str(path)


def test_the_longest_piece_comes_first(tmp_path):
    pieces = ["un", "##aff", "##able", "want", "##want", "##ed", "runn", "##ing", "wa"]
    tokenizer = wordpiece.read(vocabulary(tmp_path, *pieces, *"a##a"), cased=False)
    cut = lambda text: tokenizer.encode(text).tokens
    assert cut("unwanted running") == ["un", "##want", "##ed", "runn", "##ing"]
    assert cut("Unaffable") == ["un", "##aff", "##able"]
    assert cut("unwantedX unaff") == ["[UNK]", "un", "##aff"]
    assert cut("un [MASK]") == ["un", "[MASK]"]
    assert wordpiece.special(tokenizer) == (0, 1, 2, 3, 4)


def test_capitals_and_accents_matter_in_a_cased_vocabulary(tmp_path):
    path = vocabulary(tmp_path, "ete", "Été")
    for cased, want in ((False, ["ete", "ete"]), (True, ["Été", "ete"])):
        assert wordpiece.read(path, cased).encode("Été ete").tokens == want


def test_a_word_of_more_than_100_characters_is_unknown(tmp_path):
    tokenizer = wordpiece.read(vocabulary(tmp_path, "a", "##a"), cased=False)
    assert tokenizer.encode("a" * 100).tokens == ["a"] + ["##a"] * 99
    assert tokenizer.encode("a" * 101).tokens == ["[UNK]"]


def test_the_same_texts_give_the_same_pieces():
    texts = [text[:1500] for text in list(topics.values())[:8]]
    vocabularies = [wordpiece.trained(texts, 400, cased=False).get_vocab() for _ in range(3)]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2] and len(vocabularies[0]) == 400
    assert sorted(vocabularies[0], key=vocabularies[0].get)[:5] == list(wordpiece.SPECIAL)


def test_a_vocabulary_that_does_not_fit_is_one_line(tmp_path):
    make = partial(wordpiece.kept, "", texts=list, cased=False)
    with pytest.raises(UserError, match="no vocabulary can be read"):
        make(words=str(tmp_path / "nowhere.txt"), size=7)()
    path = vocabulary(tmp_path, "a", "b")
    assert make(words=path, size=7)().get_vocab_size() == 7
    with pytest.raises(UserError, match="has 7 pieces, and the configuration asks for 8"):
        make(words=path, size=8)()
    (tmp_path / "vocab.txt").write_text("[UNK]\n[PAD]\n")
    with pytest.raises(UserError, match="is not a vocabulary of BERT"):
        make(words=path, size=7)()
    with pytest.raises(UserError, match=r"no vocabulary in .*another"):
        wordpiece.kept(str(tmp_path / "run"), "another", list, 7, False)()
    with pytest.raises(UserError, match=r"the alphabet of the texts has .* asks for 7"):
        make(words="", size=7, texts=lambda: ["the quick brown fox"])()


# Words that are hidden, segments that follow.

SPECIAL = wordpiece.Special(0, 1, 2, 3, 4)
MARKS = "[CLS]", "[SEP]"


def hidden(rows, length=100, words=97, **options):
    """Rows [CLS] words [SEP] [PAD] ..., and what becomes of them."""
    random = np.random.default_rng(0)
    tokens = np.full((rows, length), packed.PAD, np.int32)
    tokens[:, 0], tokens[:, words + 1] = SPECIAL.begin, SPECIAL.end
    tokens[:, 1 : words + 1] = random.integers(5, 1000, (rows, words))
    hide = jax.jit(partial(masked.hide, special=SPECIAL, vocabulary=1000, **options))
    return tokens, jax.device_get(hide(tokens, jax.random.key(0)))


def test_what_is_hidden_of_100_000_tokens():
    tokens, batch = hidden(1000, words=98)
    there = np.take_along_axis(tokens, batch["position"], 1)
    instead = np.take_along_axis(batch["tokens"], batch["position"], 1)
    np.testing.assert_array_equal(batch["label"], there)  # 15 of 100 everywhere
    assert abs((batch["label"] > 0).sum() / 1e5 - 0.15) < 0.003
    assert abs((instead == SPECIAL.mask).mean() - 0.8) < 0.01
    other = (instead != SPECIAL.mask) & (instead != there)
    assert abs(other.mean() - 0.1) < 0.007 and abs((instead == there).mean() - 0.1) < 0.007
    assert len(np.unique(instead[other])) > 700 and instead.max() < 1000
    assert (there > SPECIAL.mask).all()  # none is special
    assert all(len(set(row)) == 15 for row in batch["position"].tolist())
    places = np.bincount(batch["position"].ravel(), minlength=100)[1:99]
    assert places.min() > 100 and places.max() < 210  # all as often, 153 times
    unchanged = np.ones(tokens.shape, bool)
    np.put_along_axis(unchanged, batch["position"], False, 1)
    np.testing.assert_array_equal(batch["tokens"][unchanged], tokens[unchanged])


def test_of_a_short_row_at_least_one_is_hidden():
    for words, count in ((1, 1), (2, 1), (12, 2), (40, 6)):
        tokens, batch = hidden(50, words=words)
        assert ((batch["label"] != packed.PAD).sum(1) == count).all()
        np.testing.assert_array_equal((batch["tokens"] == packed.PAD), tokens == packed.PAD)


def test_one_word_alone():
    _, batch = hidden(50, share=0, kept=0, random=0)
    assert batch["position"].shape == (50, 1) and (batch["label"] != packed.PAD).all()
    assert ((batch["tokens"] == SPECIAL.mask).sum(1) == 1).all()


def test_windows_have_whole_sentences():
    documents = [[[5, 6], [7, 8, 9], [10]], [[11]], [[12] * 7 + [13], [14]]]
    found = [list(masked.windows(document, 5)) for document in documents]
    tokens = [[window["tokens"].tolist() for window in windows] for windows in found]
    assert tokens == [[[5, 6, 7, 8, 9]], [], [[12] * 5, [12, 12, 13, 14, 0]]]
    begins = [window["begins"].astype(int).tolist() for window in found[0] + found[2]]
    assert begins == [[1, 0, 1, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 1, 0]]


def test_half_of_the_segments_follow():
    """Token 100 d + p is at the place p of a document d."""
    random = np.random.default_rng(0)
    B, R = 2000, 20
    document = random.integers(1, 200, B).astype(np.int32)
    length = random.integers(2, R + 1, B)
    place = np.arange(R)
    batch = {
        "tokens": np.where(place < length[:, None], 100 * document[:, None] + place, 0),
        "begins": np.broadcast_to(place % 6 == 0, (B, R)),
        "document": document,
    }
    pair = jax.jit(partial(masked.pair, special=SPECIAL, together=0.5))
    found = jax.device_get(pair(batch, jax.random.key(0)))
    assert abs(found["follows"].mean() - 0.5) < 0.035
    cuts = []
    arrays = found["tokens"], found["segment"], found["follows"], document
    for row, segment, follows, d in zip(*arrays, strict=True):
        real = row[row != packed.PAD]
        end, last = np.flatnonzero(real == SPECIAL.end)
        a, b = real[1:end], real[end + 1 : last]
        assert real[0] == SPECIAL.begin and last == len(real) - 1 and len(a) and len(b)
        np.testing.assert_array_equal(segment[: len(real)], np.arange(len(real)) > end)
        np.testing.assert_array_equal(a, 100 * d + np.arange(len(a)))
        start = 100 * d + len(a) if follows else 100 * (b[0] // 100)
        np.testing.assert_array_equal(b, start + np.arange(len(b)))
        assert follows or b[0] // 100 != d
        cuts += [len(a)] if len(a) + len(b) > 6 and follows else []
    assert np.mean(np.array(cuts) % 6 == 0) == 1  # where a sentence begins


def test_alone_in_a_batch_every_segment_follows():
    batch = {"tokens": np.arange(5, 25).reshape(2, 10), "begins": np.zeros((2, 10), bool)}
    batch["document"] = np.zeros(2, np.int32)
    pair = jax.jit(partial(masked.pair, special=SPECIAL, together=0.0))
    found = jax.device_get(pair(batch, jax.random.key(0)))
    assert (found["follows"] == 1).all()


def test_longer_texts_are_cut_first():
    tokens, segment = sentences.row([[5, 6, 7], [8] * 9], 10, 2, 3)
    assert tokens.tolist() == [2, 5, 6, 7, 3, 8, 8, 8, 8, 3]
    assert segment.tolist() == [0] * 5 + [1] * 5
    tokens, segment = sentences.row([[5]], 5, 2, 3)
    assert tokens.tolist() == [2, 5, 3, 0, 0] and not segment.any()


# Documents and sentences.


def test_documents_are_of_one_split_alone():
    parts = [documents._part(120, split) for split in ("train", "validation", "test")]
    train, *others = parts
    assert others == [[0, 50, 100], [1, 51, 101]]
    assert train == [i for i in range(120) if i not in (*others[0], *others[1])]
    with pytest.raises(UserError, match="3 documents are too few"):
        documents._part(3, "train")


def test_docstrings_of_a_module_are_one_document(tmp_path):
    path = tmp_path / "some.py"
    path.write_text('"""The module."""\nraise RuntimeError\ndef f():\n    """Does it."""\n')
    assert documents._docstrings(path) == "The module.\n\nDoes it."
    assert any(path.name == "textwrap.py" for path in documents._modules())


@needs("english_documents")
def test_documents_of_tfds():
    texts = documents.named("english_documents")("validation")
    others = documents.named("english_documents")("test")
    assert len(texts) == len(others) == 34 and texts != others  # it has one split for both
    assert all(isinstance(text, str) and text for text in texts)


@needs("english_documents")
def test_a_large_set_is_not_read_whole(monkeypatch):
    monkeypatch.setattr(documents, "LARGE", 0)
    texts = documents.named("english_documents")
    make = functools.cache(lambda: wordpiece.trained(texts("validation"), 300, cased=False))

    def batch():
        corpus = masked.corpus(texts, make, 300, 8, 32, True, False, 0, devices.mesh(1))
        return jax.device_get(corpus.train(5, None))

    one, other = batch(), batch()
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert (one["tokens"][:, 0] == SPECIAL.begin).all() and len(np.unique(one["tokens"])) > 50


@needs("mnist")
def test_a_set_without_documents_is_refused():
    with pytest.raises(UserError, match="'mnist' has no texts text"):
        documents.named("mnist")("train")


@pytest.mark.parametrize(
    "name, counts",
    [
        pytest.param("sst_binary", (872, 1821), marks=needs("sst_binary")),
        pytest.param("glue/cola", (855, 1043), marks=needs("glue/cola")),  # its test has no labels
    ],
)
def test_labelled_sentences(tmp_path, name, counts):
    tokenizer = lambda: wordpiece.read(vocabulary(tmp_path, "the", "a", "film"), cased=False)
    data = sentences.from_tfds(name, tokenizer, MARKS, 50, 50, 16, 0, devices.mesh(1))
    batch = jax.device_get(data.train(0, None))
    again = jax.device_get(data.train(7, None))  # all 50, in another order
    sort = lambda batch: sorted(map(tuple, np.c_[batch["tokens"], batch["label"]].tolist()))
    assert sort(batch) == sort(again) and not np.array_equal(batch["tokens"], again["tokens"])
    assert set(batch["label"].tolist()) == {0, 1} and len(data.names) == 2
    found = [np.concatenate([b["label"] for b in data.held_out(s)]) for s in ("validation", "test")]
    assert tuple(map(len, found)) == counts and all(set(label) == {0, 1} for label in found)


@needs("mnist")
def test_a_set_without_sentences_is_refused():
    with pytest.raises(UserError, match="'mnist' has no text with a label"):
        sentences.from_tfds("mnist", list, MARKS, 0, 8, 16, 0, devices.mesh(1))
