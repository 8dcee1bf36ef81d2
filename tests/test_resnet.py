import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhist import UserError, flops
from jaxhist.models.resnet import SmallResNet, identity_shortcut

# Parameters and multiply-adds of the forward pass of one CIFAR-10 image: section 4.2, table 6.
COUNTS = {
    20: (269_722, 40_551_040),
    32: (464_154, 68_862_592),
    44: (658_586, 97_174_144),
    56: (853_018, 125_485_696),
    110: (1_727_962, 252_887_680),
    1202: (19_421_274, 2_829_238_912),
}
IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


def shapes(model):
    init = lambda key, image: model.init(key, image, train=False)
    return jax.eval_shape(init, jax.random.key(0), IMAGE)


@pytest.mark.parametrize("depth", COUNTS)
@pytest.mark.parametrize("residual", [True, False])
def test_parameters_are_the_papers(depth, residual):
    params = shapes(SmallResNet(depth, 10, residual))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[depth][0]


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_multiply_adds_are_the_papers(depth):
    model = SmallResNet(depth, 10)
    forward = lambda variables, image: model.apply(variables, image, train=False)
    jaxpr = jax.make_jaxpr(forward)(shapes(model), IMAGE).jaxpr
    assert flops.count(jaxpr) == 2 * COUNTS[depth][1]


def test_the_shortcut_is_option_a():
    x = jnp.arange(2 * 4 * 4 * 3.0).reshape(2, 4, 4, 3)
    y = identity_shortcut(x, 5, 2)
    assert y.shape == (2, 2, 2, 5)
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    assert not y[..., 3:].any()


def test_blocks_without_residual_function_pass_their_input_on():
    """With the last scale of every block 0, each block is its shortcut: 54 layers do nothing."""
    model = SmallResNet(56, 10)
    image = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = model.init(jax.random.key(1), image, train=False)

    def silence(path, leaf):
        names = jax.tree_util.keystr(path)
        return jnp.zeros_like(leaf) if "BatchNorm_1" in names and "Block" in names else leaf

    params = jax.tree_util.tree_map_with_path(silence, variables["params"])
    _, caught = model.apply(
        {**variables, "params": params}, image, train=False, capture_intermediates=True
    )
    caught = caught["intermediates"]
    stem, last = caught["Block_0"]["__call__"][0], caught["Block_26"]["__call__"][0]
    np.testing.assert_array_equal(last[..., :16], stem[:, ::4, ::4])


def test_initialisation_is_he_normal():
    params = SmallResNet(20, 10).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)[
        "params"
    ]
    kernel = params["Block_8"]["Conv_1"]["kernel"]
    assert np.isclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
    assert abs(kernel).max() > 3 * kernel.std()  # not a truncated one


def test_statistics_are_those_of_the_batch_and_decay_by_a_tenth():
    model = SmallResNet(8, 10)
    image = 3 + 2 * jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
    variables = model.init(jax.random.key(1), image, train=False)
    _, new = model.apply(variables, image, train=True, mutable=["batch_stats"])
    kernel = variables["params"]["Conv_0"]["kernel"]
    convolved = jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    statistics = new["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(
        statistics["mean"], 0.1 * convolved.mean((0, 1, 2)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * convolved.var((0, 1, 2)), rtol=1e-4)


def test_bfloat16_leaves_parameters_statistics_and_logits_in_float32():
    model = SmallResNet(8, 10, dtype=jnp.bfloat16)
    image = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = model.init(jax.random.key(1), image, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, new = model.apply(variables, image, train=True, mutable=["batch_stats"])
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("float32")}
    jaxpr = jax.make_jaxpr(lambda v: model.apply(v, image, train=False))(variables)
    products = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    assert products and {e.outvars[0].aval.dtype for e in products} == {jnp.dtype("bfloat16")}


def test_logits_at_evaluation_do_not_depend_on_the_rest_of_the_batch():
    model = SmallResNet(8, 10)
    image = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = model.init(jax.random.key(1), image, train=False)
    both = model.apply(variables, image, train=False)
    one = model.apply(variables, image[:1], train=False)
    np.testing.assert_allclose(both[:1], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [7, 21, 2, 0])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(UserError, match="6n \\+ 2"):
        shapes(SmallResNet(depth, 10))
