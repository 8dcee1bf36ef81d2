"""Models of translation: their parameters, their cells, and what a token may depend on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhist import packed
from jaxhist.models import attention, seq2seq, transformer
from jaxhist.models.attention import RNNsearch
from jaxhist.models.seq2seq import RNNencdec, Seq2Seq
from jaxhist.models.transformer import BASE, BIG, Size, Transformer

V = 13
SIZE = Size(layers=1, width=8, hidden=16, heads=2, dropout=0.1)
MODELS = {
    "seq2seq": Seq2Seq((V, V), n=6, layers=2),
    "encdec": RNNencdec((V, V), n=6, m=5, l=4),
    "search": RNNsearch((V, V), n=6, m=5, l=4),
    "transformer": Transformer(V, SIZE),
    "learned": Transformer(V, SIZE, "learned", length=16),
}
EVERY = pytest.mark.parametrize("name", ["seq2seq", "encdec", "search", "transformer"])

# Three pairs; EOS is 1.
SOURCES = [[3, 4, 5, 1], [6, 1], [7, 8, 9, 10, 1]]
TARGETS = [[4, 4, 1], [5, 6, 7, 1], [8, 9, 1]]


def rows(sentences, length):
    """Each of the lists of sentences is a row. -> [B, length]"""
    joined = [[token for sentence in row for token in sentence] for row in sentences]
    return np.array([row + [packed.PAD] * (length - len(row)) for row in joined], np.int32)


@pytest.fixture(scope="module")
def params():
    """Of every model, far enough from zero to matter."""
    found = {}
    for name, model in MODELS.items():
        init = partial(model.init, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), *[rows([[[1]]], 12)] * 2)
        leaves, tree = jax.tree.flatten(shapes)
        random = np.random.default_rng(0)
        values = [random.normal(size=leaf.shape, scale=0.5).astype(np.float32) for leaf in leaves]
        found[name] = jax.tree.unflatten(tree, values)
    return found


@pytest.fixture(scope="module")
def logits(params):
    """name, source, target -> logits."""
    apply = {
        name: jax.jit(lambda p, s, t, model=model: model.apply(p, s, t, train=False))
        for name, model in MODELS.items()
    }
    return lambda name, *tokens: jax.device_get(apply[name](params[name], *tokens))


def counts(model):
    """Of the parameters: those in matrices (and v_a), and all."""
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    init = lambda key, s, t: model.init(key, s, t, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), tokens, tokens)
    leaves = jax.tree.leaves_with_path(shapes)
    bias = lambda path: jax.tree_util.keystr(path, simple=True).endswith("bias")
    return (
        sum(leaf.size for path, leaf in leaves if not bias(path)),
        sum(leaf.size for _, leaf in leaves),
    )


def test_parameters_are_the_papers_to_the_digit():
    assert counts(Seq2Seq((160_000, 80_000))) == (384_000_000, 384_112_000)
    assert counts(RNNsearch((30_000, 30_000))) == (80_401_000, 80_443_000)
    assert counts(RNNencdec((30_000, 30_000)))[0] == 68_540_000
    assert counts(Transformer(37_000, BASE))[1] == 63_045_632
    assert counts(Transformer(37_000, BIG))[1] == 214_171_648
    assert counts(Transformer(33_708, BASE))[1] == 61_360_128


def test_cells_are_the_papers():
    """All weights 1/2, no biases, x = 1, h = 0.2, c = 0.3."""
    full = lambda value, size=1: np.full((1, size), value, np.float32)
    half, h, c, lstm = full(0.5), full(0.2), full(0.3), jax.jit(seq2seq.lstm)
    new_c, new_h = lstm(full(0.5, 4), (c, h), full(0.5, 4))
    np.testing.assert_allclose(np.ravel([new_c, new_h]), [0.5404463316, 0.3185188807], rtol=1e-6)
    # A forget bias of 1: the gates are in the order i, f, g, o.
    new_c, _ = lstm(np.array([[0.5, 1.5, 0.5, 0.5]], np.float32), (c, h), full(0.5, 4))
    np.testing.assert_allclose(new_c, 0.5963549552, rtol=1e-6)
    weights = full(0.5, 3), h, half, half, half
    for unit, want in ((seq2seq.gated_unit, 0.3103274184), (attention.gated_unit, 0.4010296632)):
        np.testing.assert_allclose(jax.jit(unit)(*weights), want, rtol=1e-6)


def test_sinusoids_are_the_papers():
    (got,) = jax.jit(transformer.sinusoids, static_argnums=1)(np.array([3]), 8)
    want = [0.1411200081, -0.9899924966, 0.2955202067, 0.9553364891]
    want += [0.0299955002, 0.9995500337, 0.0029999955, 0.9999955000]
    np.testing.assert_allclose(got, want, atol=1e-7)


def test_attention_is_that_of_numpy():
    random = np.random.default_rng(0)
    q, k, v = (random.normal(size=(2, n, 3, 4)).astype(np.float32) for n in (5, 6, 6))
    mask = random.random((2, 5, 6)) < 0.7
    mask[:, :, 0] = True
    out, weights = jax.device_get(jax.jit(transformer.attend)(q, k, v, mask))
    for b, h, t in np.ndindex(2, 3, 5):
        e = np.exp(k[b, :, h] @ q[b, t, h] / 2) * mask[b, t]
        np.testing.assert_allclose(weights[b, h, t], e / e.sum(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(out[b, t, h], (e / e.sum()) @ v[b, :, h], rtol=1e-4, atol=1e-5)


def test_places():
    tokens = rows([[[3, 4, 1], [5, 1]], [[1], [6, 1]]], 6)
    numbers = np.array([[1, 2, 0]] * 2)
    of = lambda t, n: (packed.places(t), packed.shifted(t), packed.last(t, n), packed.first(t, n))
    (sentence, position), shifted, last, first = jax.device_get(jax.jit(of)(tokens, numbers))
    np.testing.assert_array_equal(sentence, [[1, 1, 1, 2, 2, 0], [1, 2, 2, 0, 0, 0]])
    np.testing.assert_array_equal(position[:, :3], [[0, 1, 2], [0, 0, 1]])
    np.testing.assert_array_equal(shifted[0], [1, 3, 4, 1, 5, 1])
    np.testing.assert_array_equal(last[:, :2], [[2, 4], [0, 2]])
    np.testing.assert_array_equal(first[:, :2], [[0, 3], [0, 1]])


@pytest.mark.parametrize("name", MODELS)
def test_a_sentence_does_not_depend_on_what_it_is_batched_with(name, logits):
    """Alone in its row, or behind and before others, or with another much padding."""
    together = logits(name, rows([SOURCES], 12), rows([TARGETS], 12))
    begin = 0
    for source, target in zip(SOURCES, TARGETS, strict=True):
        alone = logits(name, rows([[source]], 12), rows([[target]], 12))[0, : len(target)]
        np.testing.assert_allclose(
            together[0, begin : begin + len(target)], alone, rtol=1e-4, atol=1e-5
        )
        begin += len(target)
    short = logits(name, rows([[s] for s in SOURCES], 5), rows([[t] for t in TARGETS], 4))
    np.testing.assert_allclose(short[2, : len(alone)], alone, rtol=1e-4, atol=1e-5)


@EVERY
def test_a_logit_depends_on_the_source_and_on_what_is_before_it(name, logits):
    source, target = rows([SOURCES], 12), rows([TARGETS], 12)
    same = logits(name, source, target)
    other = target.copy()
    other[0, 5] = 11  # the third word of the second sentence
    changed = logits(name, source, other)
    moved = np.abs(same - changed)[0].max(-1) > 1e-6
    np.testing.assert_array_equal(moved[:10], [False] * 6 + [True] + [False] * 3)
    other = source.copy()
    other[0, 4] = 11  # of the second source
    changed = logits(name, other, target)
    moved = np.abs(same - changed)[0].max(-1) > 1e-6
    np.testing.assert_array_equal(moved[:10], [False] * 3 + [True] * 4 + [False] * 3)


@EVERY
def test_one_token_after_the_other_is_all_at_once(name, params, logits):
    model = MODELS[name]
    source, target = rows([[s] for s in SOURCES], 5), rows([[t] for t in TARGETS], 4)
    begin = jax.jit(lambda source: model.apply(params[name], source, 4, method=model.begin))
    memory, cache = begin(source)
    step = jax.jit(lambda *inputs: model.apply(params[name], *inputs, method=model.next))
    token, got = np.full(3, packed.EOS, np.int32), []
    for index in range(4):
        one, cache = step(memory, cache, token, index)
        got.append(one)
        token = target[:, index]
    want = logits(name, source, target)
    real = target != packed.PAD
    np.testing.assert_allclose(np.stack(got, 1)[real], want[real], rtol=1e-4, atol=1e-5)


def test_without_positions_the_order_of_the_source_is_not_seen(params):
    model = Transformer(V, SIZE, "none")
    target = rows([TARGETS[:1]] * 2, 3)
    source = np.array([[3, 4, 5, 1], [5, 3, 4, 1]], np.int32)
    one, other = jax.jit(partial(model.apply, train=False))(params["transformer"], source, target)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_alignments_and_heads_can_be_seen(params):
    source, target = rows([SOURCES], 12), rows([TARGETS], 12)

    def see(name):
        apply = jax.jit(partial(MODELS[name].apply, train=False, mutable="intermediates"))
        return jax.device_get(apply(params[name], source, target)[1]["intermediates"])

    (a,) = see("search")["alignment"]
    assert a.shape == (1, 12, 12)
    np.testing.assert_allclose(a[0, 3:7, 4:6].sum(-1), 1, rtol=1e-5)  # the second pair
    (weights,) = see("transformer")["decoder_0"]["source_attention"]["weights"]
    assert weights.shape == (1, 2, 12, 12)
    np.testing.assert_allclose(weights[0, :, 3:7, 4:6].sum(-1), 1, rtol=1e-5)


def test_bfloat16_leaves_parameters_and_logits_in_float32():
    model = Transformer(V, SIZE, dtype=jnp.bfloat16)
    tokens = jax.ShapeDtypeStruct((2, 4), jnp.int32)
    init = partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), tokens, tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    program = jax.make_jaxpr(lambda v, t: model.apply(v, t, t, train=False))(variables, tokens)
    assert program.out_avals[0].dtype == jnp.float32
    products = [e for e in program.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert {e.outvars[0].aval.dtype for e in products} == {jnp.dtype("bfloat16")}
