"""BERT: its parameters, what a token may depend on, and its data."""

import dataclasses
import functools
import re
from functools import partial
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import needs

from experiments import bert as experiment
from experiments import bert_tuning, bert_words
from jaxhist import UserError, checkpoint, cli, devices, packed
from jaxhist.algorithm import keys
from jaxhist.data import documents, masked, sentences, wordpiece
from jaxhist.models import bert
from jaxhist.models.bert import BASE, LARGE, PreTraining, Size
from jaxhist.train import Run, train

pytestmark = pytest.mark.usefixtures("compiled_fast")

# Model.


def shapes(model, *inputs):
    init = partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), *inputs)["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


TOKENS = jnp.zeros((1, 8), jnp.int32)


# Encoder with pooler, without, with the head of words and without the pooler, and with both heads.
@pytest.mark.parametrize(
    "size, vocabulary, parameters",
    [
        (Size(2, 128, 2), 30_522, (4_385_920, 4_369_408, 4_416_698, 4_433_468)),
        (Size(4, 256, 4), 30_522, (11_170_560, 11_104_768, 11_201_594, 11_267_900)),
        (Size(4, 512, 8), 30_522, (28_763_648, 28_500_992, 28_795_194, 29_058_876)),
        (Size(8, 512, 8), 30_522, (41_373_184, 41_110_528, 41_404_730, 41_668_412)),
        (BASE, 30_522, (109_482_240, 108_891_648, 109_514_298, 110_106_428)),
        (BASE, 28_996, (108_310_272, 107_719_680, 108_340_804, 108_932_934)),
        (LARGE, 30_522, (335_141_888, 334_092_288, 335_174_458, 336_226_108)),
        (LARGE, 28_996, (333_579_264, 332_529_664, 333_610_308, 334_661_958)),
    ],
    ids=["tiny", "mini", "small", "medium", "base", "base cased", "large", "large cased"],
)
def test_parameters(size, vocabulary, parameters):
    params = shapes(PreTraining(vocabulary, size), TOKENS, TOKENS, TOKENS)
    of = {name: count(tree) for name, tree in params.items()}
    encoder, words = of["encoder"], of["words"] + of["bias"]
    found = encoder + of["pooler"], encoder, encoder + words, sum(of.values())
    assert found == parameters


def test_weights_begin_as_wide_as_the_size_says():
    for deviation in (0.02, 0.05):
        model = PreTraining(500, Size(1, 64, 1, deviation=deviation))
        init = jax.jit(model.init, static_argnames="train")
        params = init(jax.random.key(0), TOKENS, TOKENS, TOKENS, train=False)["params"]
        layer = params["encoder"]["layers_0"]
        for kernel in (
            params["encoder"]["words"]["embedding"],
            layer["attention"]["W_q"]["kernel"],
            layer["W_1"]["kernel"],
            params["words"]["W"]["kernel"],
            params["pooler"]["W"]["kernel"],
        ):
            # A normal distribution that is cut at two deviations has 0.88 of its deviation left.
            assert np.std(kernel) == pytest.approx(0.8796 * deviation, rel=0.05)
            assert deviation < np.abs(kernel).max() <= 2 * deviation


def test_gelu_is_that_of_the_error_function():
    x = jnp.array([-2, -1, -0.5, 0, 0.5, 1, 2])
    want = [-0.0455002639, -0.1586552539, -0.1542687694, 0]
    want += [0.3457312306, 0.8413447461, 1.9544997361]
    np.testing.assert_allclose(bert.gelu(x), want, rtol=1e-5, atol=1e-7)


V = 40
MODEL = PreTraining(V, Size(2, 8, 2))
LEFT = PreTraining(V, Size(2, 8, 2), left_to_right=True)
ROWS = jnp.array([[2, 10, 11, 3, 12, 13, 14, 3], [2, 20, 3, 21, 3, 0, 0, 0]])
SEGMENT = jnp.array([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0]])


@pytest.fixture(scope="module")
def params():
    """Far enough from zero to matter."""
    leaves, tree = jax.tree.flatten(shapes(MODEL, TOKENS, TOKENS, TOKENS))
    random = np.random.default_rng(0)
    values = [random.normal(size=leaf.shape, scale=0.5).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, values)


@pytest.fixture(scope="module")
def logits(params):
    """(tokens, segment) -> logits of all words [B, T, V], and of what follows [B, 2]."""

    @partial(jax.jit, static_argnums=0)
    def apply(model, params, tokens, segment):
        position = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        return model.apply({"params": params}, tokens, segment, position, train=False)

    def of(tokens, segment=SEGMENT, model=MODEL, params=params):
        return jax.device_get(apply(model, params, tokens, segment))

    return of


def test_padding_changes_nothing(logits):
    longer = [jnp.pad(array, ((0, 0), (0, 4))) for array in (ROWS, SEGMENT)]
    for model in (MODEL, LEFT):
        (words, follows), (more, same) = logits(ROWS, model=model), logits(*longer, model=model)
        real = ROWS != packed.PAD
        np.testing.assert_allclose(more[:, :8][real], words[real], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(same, follows, rtol=1e-4, atol=1e-4)


def test_every_token_sees_both_sides_or_those_before_it(logits):
    changed = ROWS.at[0, 5].set(30)
    differs = lambda model: np.abs(
        logits(ROWS, model=model)[0] - logits(changed, model=model)[0]
    ).max(-1)
    assert (differs(MODEL)[0] > 1e-4).all() and (differs(MODEL)[1] == 0).all()
    assert (differs(LEFT)[0, :5] == 0).all() and (differs(LEFT)[0, 5:] > 1e-4).all()
    for model in (MODEL, LEFT):  # what stands for the row sees all of it
        moved = logits(ROWS, model=model)[1] - logits(changed, model=model)[1]
        assert np.abs(moved[0]).max() > 1e-4 and (moved[1] == 0).all()


def test_order_is_known_from_the_positions_alone(logits, params):
    order = np.array([0, 4, 2, 3, 6, 5, 1, 7])
    both = jnp.array([ROWS[0], ROWS[0, order]]), jnp.array([SEGMENT[0], SEGMENT[0, order]])
    words = logits(*both)[0]
    assert np.abs(words[0, order] - words[1]).max() > 0.1
    encoder = params["encoder"]
    nowhere = jax.tree.map(jnp.zeros_like, encoder["positions"])
    without = params | {"encoder": encoder | {"positions": nowhere}}
    words = logits(*both, params=without)[0]
    np.testing.assert_allclose(words[0, order], words[1], rtol=1e-3, atol=1e-3)


def test_segments_are_told_apart(logits):
    assert np.abs(logits(ROWS)[1] - logits(ROWS, 1 - SEGMENT)[1]).max() > 1e-3


def test_rows_are_no_longer_than_the_positions():
    with pytest.raises(UserError, match="512 tokens at most, not 513"):
        shapes(MODEL, *[jnp.zeros((1, 513), jnp.int32)] * 3)


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
    texts = documents.python("train")
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
    found = masked.pair(batch, jax.random.key(0), SPECIAL, 0.0)
    assert (found["follows"] == 1).all()


def test_longer_texts_are_cut_first():
    tokens, segment = sentences.row([[5, 6, 7], [8] * 9], 10, 2, 3)
    assert tokens.tolist() == [2, 5, 6, 7, 3, 8, 8, 8, 8, 3]
    assert segment.tolist() == [0] * 5 + [1] * 5
    tokens, segment = sentences.row([[5]], 5, 2, 3)
    assert tokens.tolist() == [2, 5, 3, 0, 0] and not segment.any()


# Experiment.

TINY = dataclasses.replace(
    experiment.PRESETS["small"],
    vocabulary=300,
    layers=1,
    width=8,
    length=32,
    batch=8,
    steps=2,
    evaluate_every=2,
    warmup=0,
)
TUNED = dataclasses.replace(TINY, learn="labels", data="sst_binary", start="words-seed{seed}")


@pytest.fixture(autouse=True, scope="module")
def few_documents():
    with pytest.MonkeyPatch.context() as patch:
        texts = [text[:1500] for text in list(topics.values())[:8]]
        patch.setattr(documents, "python", lambda split: texts)
        patch.setattr(masked, "TESTED", 16)
        yield


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A directory with a run of two steps."""
    folder = tmp_path_factory.mktemp("runs")
    run = Run(workdir=str(folder / "words-seed0"), devices=1)
    identity = {"experiment": "bert", "config": dataclasses.asdict(TINY)}
    train(experiment.build(TINY, run), run, identity)
    return folder


def batch_of(step, seed=0, **changes):
    run = Run(devices=1, seed=seed)
    data = experiment.build(dataclasses.replace(TINY, **changes), run).data
    return jax.device_get(data(step, None))


def test_a_batch_depends_on_the_seed_and_the_step_alone():
    run = Run(devices=1)
    data = experiment.build(TINY, run).data
    batches = [jax.device_get(data(step, None)) for step in (0, 1, 500)]
    jax.tree.map(np.testing.assert_array_equal, batches[2], batch_of(500))
    same = lambda a, b: np.array_equal(a["tokens"], b["tokens"])
    assert not same(batches[0], batches[1]) and not same(batches[0], batch_of(0, seed=1))


def test_left_to_right_nothing_is_hidden():
    batch = batch_of(0, left_to_right=True)
    assert (batch["tokens"] != SPECIAL.mask).all()
    np.testing.assert_array_equal(batch["label"], batch["tokens"][:, 1:])
    np.testing.assert_array_equal(batch["position"][0], np.arange(31))


def test_without_pairs_every_segment_follows():
    assert (batch_of(0, pairs=False)["follows"] == 1).all()
    assert 0 < np.mean([batch_of(0)["follows"], batch_of(1)["follows"]]) < 1


@pytest.mark.parametrize("left_to_right", [False, True])
def test_of_what_is_held_out_one_word_is_hidden_alone(left_to_right):
    make = lambda: wordpiece.trained(documents.python("train"), 300, cased=False)
    corpus = masked.corpus(
        documents.python, make, 300, 8, 32, True, left_to_right, 0, devices.mesh(1)
    )
    first, second = corpus.held_out("validation")
    assert {name: array.shape for name, array in first.items() if name != "alone"} == {
        name: array.shape for name, array in corpus.batch.items()
    }
    for batch in (first["alone"], second["alone"]):
        rows, places = np.nonzero(batch["tokens"] == SPECIAL.mask)
        np.testing.assert_array_equal(rows, np.arange(8))
        np.testing.assert_array_equal(places, batch["position"][:, 0] + left_to_right)
        assert (batch["label"] > SPECIAL.mask).any() and (batch["label"] != packed.PAD).all()


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


def test_the_rate_rises_then_falls_to_nothing():
    rate = bert_tuning.warmed(1e-4, 10_000, 1_000_000)
    np.testing.assert_allclose(rate(jnp.array([0, 5000, 500_000, 10**6])), [0, 5e-5, 5e-5, 0])
    assert bert_tuning.warmed(1.0, 0, 4)(jnp.array(0)) == 1


def test_decay_is_for_matrices_alone():
    params = shapes(MODEL, TOKENS, TOKENS, TOKENS)
    mask = jax.tree.leaves_with_path(bert_tuning.matrices(params))
    decayed = {jax.tree_util.keystr(path[-1:]) for path, chosen in mask if chosen}
    others = {jax.tree_util.keystr(path[-1:]) for path, chosen in mask if not chosen}
    assert decayed == {"['kernel']", "['embedding']"} and others == {"['bias']", "['scale']"}


@pytest.mark.parametrize("corrected, first", [(False, 0.1 / 0.001**0.5), (True, 1.0)])
def test_the_first_step_without_and_with_correction(corrected, first):
    """In the direction of -sign of the gradient, and 0.01 of the weight."""
    config = dataclasses.replace(TINY, corrected=corrected, rate=0.5, warmup=0, steps=10**6)
    optimizer = bert_tuning.optimizer(config)
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    gradient = {"kernel": jnp.full((2, 2), 0.3), "bias": jnp.full(2, -0.3)}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5 * (first + 0.03), rtol=1e-3)
    np.testing.assert_allclose(updates["bias"], 0.5 * first, rtol=1e-3)


@needs("sst_binary")
def test_labels_are_learned_from_what_was_learned_before(pretrained):
    run = Run(workdir=str(pretrained / "tuned"), devices=1)
    build = lambda **changes: experiment.build(dataclasses.replace(TUNED, **changes), run)
    init = lambda tuned: jax.jit(tuned.init)(keys(0).init)
    tuned, before = build(examples=100), experiment.build(TINY, Run(devices=1))
    found = checkpoint.tested(pretrained / "words-seed0", before.init).params
    state, scratch = init(tuned), init(build(start="", words="words-seed{seed}"))
    same = lambda a, b: all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))
    for part in ("encoder", "pooler"):
        assert same(state.params[part], found[part])
        assert not same(scratch.params[part], found[part])
    assert same(scratch.params["output"], state.params["output"])
    batch = tuned.data(0, state)
    assert batch["tokens"].shape == (8, 32) and (batch["tokens"][:, 0] == SPECIAL.begin).all()
    names = [(pretrained / run / "vocabulary.json").read_text() for run in ("words-seed0", "tuned")]
    assert names[0] == names[1]  # its own copy
    after, _ = jax.jit(tuned.step)(state, batch, keys(0).step)
    assert not same(after.params["encoder"], state.params["encoder"])
    assert tuned.test(after).keys() == {"loss", "accuracy", "correlation"}


def test_what_goes_on_has_the_moments_and_the_place_in_the_schedule(pretrained):
    config = dataclasses.replace(TINY, start="words-seed0", length=64, decay=100)
    run = Run(workdir=str(pretrained / "longer"), devices=1)
    state = jax.jit(experiment.build(config, run).init)(keys(0).init)
    found = checkpoint.tested(
        pretrained / "words-seed0", experiment.build(TINY, Run(devices=1)).init
    )
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, found.opt_state)
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.int32]
    assert state.step == 0 and counts and all(count == 2 for count in counts)


@pytest.mark.parametrize(
    "changes, says",
    [({"start": "nowhere"}, "no run in .*nowhere"), ({"width": 16}, "another network")],
    ids=["missing", "another size"],
)
@needs("sst_binary")
def test_a_start_that_does_not_fit_is_one_line(pretrained, changes, says):
    run = Run(workdir=str(pretrained / "bad"), devices=1)
    with pytest.raises(UserError, match=says):
        jax.eval_shape(
            experiment.build(dataclasses.replace(TUNED, **changes), run).init, keys(0).init
        )


# The command `fill`.


def fill(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["bert", "fill", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main(experiment.build, experiment.PRESETS, {}, {"fill": bert_words.fill})
    return stop.value.code


def test_every_mask_is_filled(pretrained, monkeypatch, capsys):
    sentence = "The [MASK] of a [MASK]."
    assert fill(monkeypatch, pretrained / "words-seed0", sentence, "--top", 3) == 0
    first, second = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    for lines in (first, second):
        chances = [float(line.split()[0]) for line in lines]
        assert len(lines) == 3 and chances == sorted(chances)[::-1] and 0 < sum(chances) <= 1


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["nothing is hidden"], r"write \[MASK\] in the place of a word"),
        (["[MASK]", "--top", "0"], "there are no 0 guesses"),
    ],
)
def test_what_cannot_be_filled_is_one_line(pretrained, monkeypatch, capsys, arguments, says):
    assert fill(monkeypatch, pretrained / "words-seed0", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and re.search(says, error)


# Claims.


def test_claims_compare_what_they_say():
    by = {"both": 50.0, "left": 40.0, "tiny": 60.0, "english": 45.0}
    by = {arm: {"alone": value, "perplexity": value} for arm, value in by.items()}
    accuracies = {"both tuned": 80.0, "left tuned": 79.0, "scratch all": 78.0, "tiny tuned": 80.0}
    accuracies |= {"pre-trained 100": 70.0, "scratch 100": 60.0, "pre-trained 1000": 75.0}
    accuracies |= {"scratch 1000": 70.0, "pre-trained all": 79.5}
    by |= {arm: {"accuracy": value} for arm, value in accuracies.items()}
    of = lambda key: [excess(by) for excess in experiment.CLAIMS[key].inequalities.values()]
    assert of("E1") == [7, 1] and of("E2") == [9, 4, 8.5]
    error = 100 * (0.8 * 0.2 / 1821) ** 0.5
    np.testing.assert_allclose(of("E3"), [10, 5, error, error - 0.5])
