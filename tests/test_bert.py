"""BERT: its parameters, what a token may depend on, and its data."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhist.models import bert
from jaxhist.models.bert import BASE, LARGE, PreTraining, Size

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


def test_gelu_is_that_of_the_error_function():
    x = jnp.array([-2, -1, -0.5, 0, 0.5, 1, 2])
    want = [-0.0455002639, -0.1586552539, -0.1542687694, 0]
    want += [0.3457312306, 0.8413447461, 1.9544997361]
    np.testing.assert_allclose(bert.gelu(x), want, rtol=1e-5, atol=1e-7)
