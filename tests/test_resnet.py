from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counts import filled, image, multiply_adds, parameters, shapes

from jaxhist import UserError
from jaxhist.models.resnet import ResNet, SmallResNet, padded_identity

# Depth -> parameters with shortcuts A (and of the plain twin) and B, multiply-adds of the forward
# pass of one image (A): section 4.2, table 6.
SMALL = {
    20: (269_722, 272_474, 40_551_040),
    32: (464_154, 466_906, 68_862_592),
    44: (658_586, 661_338, 97_174_144),
    56: (853_018, 855_770, 125_485_696),
    110: (1_727_962, 1_730_714, 252_887_680),
    1202: (19_421_274, 19_424_026, 2_829_238_912),
}
# The same for ImageNet (B), and the multiply-adds with the stride in the 3x3: table 1.
LARGE = {
    18: (11_689_512, 1_814_073_344, 1_814_073_344),
    34: (21_797_672, 3_663_761_408, 3_663_761_408),
    50: (25_557_032, 3_857_973_248, 4_089_184_256),
    101: (44_549_160, 7_570_194_432, 7_801_405_440),
    152: (60_192_808, 11_282_415_616, 11_513_626_624),
}


DEPTHS = [20, 32, 44, 56, 110, pytest.param(1202, marks=pytest.mark.long)]  # which traces for 10 s


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("shortcut", "column"), [("A", 0), ("none", 0), ("B", 1)])
def test_parameters_for_cifar_are_the_papers(depth, shortcut, column):
    assert parameters(SmallResNet(depth, 10, shortcut), 32) == SMALL[depth][column]


@pytest.mark.parametrize("depth", DEPTHS)
def test_multiply_adds_for_cifar_are_the_papers(depth):
    assert multiply_adds(SmallResNet(depth, 10), 32) == SMALL[depth][2]


@pytest.mark.parametrize("depth", LARGE)
def test_counts_for_imagenet_are_the_papers(depth):
    model = ResNet(depth, 1000)
    assert parameters(model, 224) == LARGE[depth][0]
    assert multiply_adds(model, 224) == LARGE[depth][1]


@pytest.mark.parametrize("depth", LARGE)
def test_v1_5_has_other_multiply_adds_and_the_same_parameters(depth):
    model = ResNet(depth, 1000, v1_5=True)
    assert parameters(model, 224) == LARGE[depth][0]
    assert multiply_adds(model, 224) == LARGE[depth][2]


@pytest.mark.parametrize(
    ("depth", "shortcut", "count"),
    [
        (18, "A", 11_515_688),
        (18, "none", 11_515_688),
        (34, "A", 21_623_848),
        (34, "none", 21_623_848),
        (34, "C", 22_716_840),
    ],
)
def test_parameters_of_other_shortcuts_are_the_papers(depth, shortcut, count):
    assert parameters(ResNet(depth, 1000, shortcut), 224) == count


def test_the_stages_for_imagenet_have_the_papers_sizes():
    """Table 1: 56, 28, 14, 7 pixels behind a stem of 112."""
    _, caught = jax.eval_shape(
        lambda key, image: ResNet(50, 1000).init_with_output(
            key, image, train=False, capture_intermediates=True, mutable=True
        ),
        jax.random.key(0),
        image(224),
    )
    caught = caught["intermediates"]
    assert caught["Conv_0"]["__call__"][0].shape == (1, 112, 112, 64)
    sizes = [caught[f"Bottleneck_{i}"]["__call__"][0].shape for i in (2, 6, 12, 15)]
    assert sizes == [(1, 56, 56, 256), (1, 28, 28, 512), (1, 14, 14, 1024), (1, 7, 7, 2048)]


def test_the_shortcut_is_option_a():
    x = np.arange(2 * 4 * 4 * 3.0, dtype=np.float32).reshape(2, 4, 4, 3)
    y = padded_identity(x, 5, 2)
    assert y.shape == (2, 2, 2, 5)
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    assert not y[..., 3:].any()


# A small network, and what it sees.

MODEL = SmallResNet(8, 10)
PICTURES = np.random.default_rng(0).normal(3, 2, (16, 8, 8, 3)).astype(np.float32)


def test_blocks_without_residual_function_pass_their_input_on():
    """With the last scale of every block 0, each block is its shortcut: 18 layers do nothing."""
    model = SmallResNet(20, 10)
    variables = filled(shapes(model, 8))

    def silence(path, leaf):
        names = jax.tree_util.keystr(path)
        return np.zeros_like(leaf) if "BatchNorm_1" in names and "Block" in names else leaf

    params = jax.tree_util.tree_map_with_path(silence, variables["params"])
    apply = jax.jit(partial(model.apply, train=False, capture_intermediates=True))
    _, caught = apply({**variables, "params": params}, PICTURES[:2])
    caught = caught["intermediates"]
    stem, last = (np.asarray(caught[f"Block_{i}"]["__call__"][0]) for i in (0, 8))
    assert stem.any()
    np.testing.assert_array_equal(last[..., :16], stem[:, ::4, ::4])


@pytest.fixture(scope="module")
def initialised():
    init = jax.jit(partial(MODEL.init, train=False))
    return jax.device_get(init(jax.random.key(0), PICTURES[:1]))


def test_initialisation_is_he_normal(initialised):
    kernel = initialised["params"]["Block_2"]["Conv_1"]["kernel"]
    assert np.isclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
    assert abs(kernel).max() > 3 * kernel.std()  # not a truncated one


def test_the_last_layer_begins_as_in_the_code_of_the_first_author(initialised):
    last = initialised["params"]["Dense_0"]
    assert 0.95 / 8 < np.abs(last["kernel"]).max() <= 1 / 8  # 64 inputs
    assert np.isclose(last["kernel"].std(), 1 / 8 / 3**0.5, rtol=0.05) and not last["bias"].any()


def test_statistics_are_those_of_the_batch_and_decay_by_a_tenth(initialised):
    apply = jax.jit(partial(MODEL.apply, train=True, mutable=["batch_stats"]))
    _, new = jax.device_get(apply(initialised, PICTURES))
    kernel = initialised["params"]["Conv_0"]["kernel"]
    convolved = np.asarray(
        jax.lax.conv_general_dilated(
            PICTURES, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    statistics = new["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(
        statistics["mean"], 0.1 * convolved.mean((0, 1, 2)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * convolved.var((0, 1, 2)), rtol=1e-4)


def test_bfloat16_leaves_parameters_statistics_and_logits_in_float32():
    model = SmallResNet(8, 10, dtype=jnp.bfloat16)
    variables = shapes(model, 8)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    apply = partial(model.apply, train=True, mutable=["batch_stats"])
    logits, new = jax.eval_shape(apply, variables, image(8))
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("float32")}
    jaxpr = jax.make_jaxpr(partial(model.apply, train=False))(variables, image(8))
    products = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    assert products and {e.outvars[0].aval.dtype for e in products} == {jnp.dtype("bfloat16")}


def test_logits_at_evaluation_do_not_depend_on_the_rest_of_the_batch(initialised):
    apply = jax.jit(partial(MODEL.apply, train=False))
    both, one = apply(initialised, PICTURES), apply(initialised, PICTURES[:1])
    np.testing.assert_allclose(both[:1], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [7, 21, 2, 0])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(UserError, match="6n \\+ 2"):
        shapes(SmallResNet(depth, 10), 32)


def test_an_unknown_depth_for_imagenet_is_refused():
    with pytest.raises(UserError, match="depth 56 is none of 18, 34, 50, 101, 152"):
        shapes(ResNet(56, 1000), 224)
