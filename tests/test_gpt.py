"""GPT's parameters, what a token may depend on, and the loop over its layers."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gpt
from jaxhist import UserError, cli
from jaxhist.models.gpt import GPT, GPT2, GPT3, VOCABULARY, Attention, Block, Size

V, T, SIZE = 11, 8, Size(layers=4, width=8, heads=2)
MODEL = GPT(V, SIZE, T)
TOKENS = np.random.default_rng(0).integers(3, V, (2, T), np.int32)


def shapes(model):
    init = lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32), train=False)
    return jax.eval_shape(init, jax.random.key(0))["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def filled(tree, seed=1):
    """Parameters far enough from zero to matter."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda a: random.normal(size=a.shape, scale=0.5).astype(np.float32), tree)


@pytest.fixture(scope="module")
def params():
    return filled(shapes(MODEL))


@pytest.fixture(scope="module")
def logits(params):
    """tokens -> logits [B, T, V]."""
    apply = jax.jit(lambda tokens: MODEL.apply({"params": params}, tokens, train=False))
    return lambda tokens: jax.device_get(apply(tokens))


# Parameters: name -> all, and those without embeddings.
PARAMETERS = {
    "gpt2": (124_439_808, 85_056_000),
    "gpt2-medium": (354_823_168, 302_311_424),
    "gpt2-large": (774_030_080, 708_390_400),
    "gpt2-xl": (1_557_611_200, 1_475_561_600),
    "gpt3-125m": (125_226_240, 85_056_000),
    "gpt3-350m": (355_871_744, 302_311_424),
    "gpt3-760m": (760_300_032, 679_959_552),
    "gpt3-1.3b": (1_315_723_264, 1_208_602_624),
    "gpt3-2.7b": (2_651_553_280, 2_517_652_480),
    "gpt3-6.7b": (6_658_404_352, 6_444_163_072),
    "gpt3-13b": (12_853_386_240, 12_585_584_640),
    "gpt3-175b": (174_604_259_328, 173_961_535_488),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_papers_to_the_digit(name):
    config = gpt.PRESETS[name]
    size = Size(config.layers, config.width, config.heads)
    assert size == (GPT2 | GPT3)[name] and config.vocabulary == VOCABULARY
    tree = shapes(GPT(config.vocabulary, size, config.length))
    embeddings = count(tree["embedding"]), count(tree["position"])
    assert (count(tree), count(tree) - sum(embeddings)) == PARAMETERS[name]


def test_gpt_1_has_its_parameters():
    assert count(shapes(GPT(40_478, Size(12, 768, 12), 512, norm="post"))) == 116_534_784


def test_the_largest_is_described_at_once(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpt", "describe", "gpt3-175b"])
    begin = time.process_time()
    with pytest.raises(SystemExit) as stop:
        cli.main(gpt.build, gpt.PRESETS, gpt.CLAIMS)
    assert stop.value.code == 0 and time.process_time() - begin < 10
    assert "174,604,259,328" in capsys.readouterr().out


def test_weights_begin_as_in_the_paper():
    size = Size(layers=8, width=64, heads=4)
    init = lambda norm: jax.jit(GPT(500, size, T, norm).init, static_argnames="train")(
        jax.random.key(0), TOKENS, train=False
    )
    std = lambda leaf: np.std(np.asarray(leaf)).item()
    layers = init("pre")["params"]["layers"]
    for part, inner in (("attention", "qkv"), ("feed_forward", "expand")):
        assert std(layers[part][inner]["kernel"]) == pytest.approx(0.02, rel=0.02)
        assert std(layers[part]["project"]["kernel"]) == pytest.approx(0.02 / 4, rel=0.02)
        assert not np.any(layers[part]["project"]["bias"])
    post = init("post")["params"]
    assert std(post["layers"]["attention"]["project"]["kernel"]) == pytest.approx(0.02, rel=0.02)
    assert std(post["embedding"]["embedding"]) == pytest.approx(0.02, rel=0.02)
    assert "norm" not in post  # there is no last one


# What a token may depend on


def test_nothing_depends_on_what_comes_later(logits):
    """And all on everything before."""
    before = logits(TOKENS)
    for place in range(T):
        other = TOKENS.copy()
        other[:, place] = (TOKENS[:, place] + 1) % V
        moved = np.abs(logits(other) - before).max((0, 2))
        np.testing.assert_array_equal(moved[:place], 0)
        assert (moved[place:] > 1e-4).all()


def test_a_banded_layer_looks_at_few_tokens():
    attention = Attention(SIZE, 0.02, band=3, dtype=None)
    x = np.random.default_rng(0).normal(size=(1, T, 8)).astype(np.float32)
    tree = jax.eval_shape(lambda x: attention.init(jax.random.key(0), x, None, True, 0), x)
    variables = filled(tree)

    @jax.jit
    def seen(banded):
        """[T, T], which tokens the one at a place depends on."""
        read = lambda x: attention.apply(variables, x, None, banded, 0)[0][0].sum(-1)
        return jnp.abs(jax.jacobian(read)(x)[:, 0]).sum(-1) > 1e-6

    places = np.arange(T)
    distance = places[:, None] - places[None]
    np.testing.assert_array_equal(seen(False), distance >= 0)
    np.testing.assert_array_equal(seen(True), (distance >= 0) & (distance < 3))


def test_every_other_layer_is_banded(params):
    """Beside the blocks one by one, without the loop."""
    banded, block = GPT(V, SIZE, T, band=1), Block(SIZE, "pre", 1, 0.0, None, False)
    apply = jax.jit(lambda variables, x, i: block.apply(variables, x, None, i % 2 == 1, 0)[0])
    embedding, norm = params["embedding"]["embedding"], params["norm"]
    x = embedding[TOKENS] + params["position"]["embedding"][None]
    for i in range(SIZE.layers):
        x = apply({"params": jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])}, x, i)
    x = np.asarray(x)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    want = (x * norm["scale"] + norm["bias"]) @ embedding.T
    got = jax.jit(lambda tokens: banded.apply({"params": params}, tokens, train=False))(TOKENS)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def gradient():
    """(parameters, model) -> a loss, and its gradient."""

    def loss(params, model):
        logits = model.apply({"params": params}, TOKENS, train=False)
        return jnp.mean(jax.nn.log_softmax(logits)[..., 0])

    return jax.jit(jax.value_and_grad(loss), static_argnums=1)


@pytest.mark.parametrize("changes", [{"unroll": 4}, {"unroll": 2}, {"remat": True}])
def test_the_loop_changes_nothing(changes, params, gradient):
    """Whether it is unrolled, and what it keeps."""
    one, other = gradient(params, MODEL), gradient(params, MODEL.clone(**changes))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), one, other)


@pytest.mark.parametrize("band", [0, 2])
def test_reading_in_pieces_is_reading_at_once(band, params):
    model = MODEL.clone(band=band)
    variables = {"params": params}
    want = jax.jit(lambda tokens: model.apply(variables, tokens, train=False))(TOKENS)
    extend = jax.jit(
        lambda cache, tokens, index: model.apply(
            variables, cache, tokens, index, method=model.extend
        )
    )
    # Three at once with padding behind them, then the others one by one.
    want, empty, padded = np.asarray(want), jax.device_get(model.empty(2)), TOKENS.copy()
    padded[:, 3:] = 0
    got, cache = extend(empty, padded, 0)
    np.testing.assert_allclose(np.asarray(got)[:, :3], want[:, :3], rtol=1e-4, atol=1e-5)
    for index in range(3, T):
        got, cache = extend(cache, TOKENS[:, index : index + 1], index)
        np.testing.assert_allclose(np.asarray(got)[:, 0], want[:, index], rtol=1e-4, atol=1e-5)


def test_dropout_is_for_training_alone(params):
    model = MODEL.clone(dropout=0.5)

    @partial(jax.jit, static_argnums=0)
    def apply(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply({"params": params}, TOKENS, train=train, rngs=rngs)

    np.testing.assert_array_equal(apply(False, 0), apply(False, 1))
    assert np.any(np.asarray(apply(True, 0)) != apply(True, 1))


def test_bfloat16_leaves_the_logits_wide(params):
    model = MODEL.clone(dtype=jnp.bfloat16)
    got = jax.eval_shape(lambda: model.apply({"params": params}, TOKENS, train=False))
    assert got.dtype == jnp.float32 and model.empty(1)[0].dtype == jnp.bfloat16


def test_sizes_that_make_no_sense_are_one_line():
    with pytest.raises(UserError, match="cannot be divided among 3 heads"):
        shapes(GPT(V, Size(1, 8, 3), T))
    with pytest.raises(UserError, match="9 tokens are more than 8"):
        jax.eval_shape(
            lambda: MODEL.init(jax.random.key(0), jnp.zeros((1, 9), jnp.int32), train=False)
        )
