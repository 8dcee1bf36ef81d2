"""BERT's networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhist import UserError, packed
from jaxhist.models import bert
from jaxhist.models.bert import BASE, LARGE, PreTraining, Size


def shapes(model, *inputs):
    init = partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), *inputs)["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


TOKENS = np.zeros((1, 8), np.int32)


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

    @jax.jit
    def init(deviation):
        model = PreTraining(500, Size(1, 64, 1, deviation=deviation))
        return model.init(jax.random.key(0), TOKENS, TOKENS, TOKENS, train=False)["params"]

    for deviation in (0.02, 0.05):
        params = jax.device_get(init(deviation))
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
    x = np.array([-2, -1, -0.5, 0, 0.5, 1, 2], np.float32)
    want = [-0.0455002639, -0.1586552539, -0.1542687694, 0]
    want += [0.3457312306, 0.8413447461, 1.9544997361]
    np.testing.assert_allclose(jax.jit(bert.gelu)(x), want, rtol=1e-5, atol=1e-7)


V = 40
MODEL = PreTraining(V, Size(2, 8, 2))
LEFT = PreTraining(V, Size(2, 8, 2), left_to_right=True)
ROWS = np.array([[2, 10, 11, 3, 12, 13, 14, 3], [2, 20, 3, 21, 3, 0, 0, 0]])
SEGMENT = np.array([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0]])


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
    longer = [np.pad(array, ((0, 0), (0, 4))) for array in (ROWS, SEGMENT)]
    for model in (MODEL, LEFT):
        (words, follows), (more, same) = logits(ROWS, model=model), logits(*longer, model=model)
        real = ROWS != packed.PAD
        np.testing.assert_allclose(more[:, :8][real], words[real], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(same, follows, rtol=1e-4, atol=1e-4)


def test_every_token_sees_both_sides_or_those_before_it(logits):
    changed = ROWS.copy()
    changed[0, 5] = 30
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
    both = np.array([ROWS[0], ROWS[0, order]]), np.array([SEGMENT[0], SEGMENT[0, order]])
    words = logits(*both)[0]
    assert np.abs(words[0, order] - words[1]).max() > 0.1
    encoder = params["encoder"]
    nowhere = jax.tree.map(np.zeros_like, encoder["positions"])
    without = params | {"encoder": encoder | {"positions": nowhere}}
    words = logits(*both, params=without)[0]
    np.testing.assert_allclose(words[0, order], words[1], rtol=1e-3, atol=1e-3)


def test_segments_are_told_apart(logits):
    assert np.abs(logits(ROWS)[1] - logits(ROWS, 1 - SEGMENT)[1]).max() > 1e-3


def test_rows_are_no_longer_than_the_positions():
    with pytest.raises(UserError, match="512 tokens at most, not 513"):
        shapes(MODEL, *[jnp.zeros((1, 513), jnp.int32)] * 3)
