from functools import partial

import jax
import numpy as np
import pytest
from counts import filled, multiply_adds, parameters, shapes

from jaxhist import UserError
from jaxhist.models.resnet import SmallResNet
from jaxhist.models.resnet_v2 import AlteredResNet, PreResNet, SmallPreResNet


@pytest.mark.parametrize(("depth", "count"), [(164, 1_703_258), (1001, 10_327_706)])
def test_parameters_with_bottlenecks_are_the_papers(depth, count):
    assert parameters(SmallPreResNet(depth, 10, bottleneck=True), 32) == count


# Counts that are quoted elsewhere (25,549,480 for 50 layers) have a second normalization between
# the one behind the stem and the first convolution, 2 x 64 numbers; the paper has one: "we adopt
# the first activation right after conv1 and before splitting into two paths" (section 4).
@pytest.mark.parametrize(
    ("depth", "count"),
    [(50, 25_549_480), (101, 44_541_608), (152, 60_185_256), (200, 64_666_280)],
)
def test_parameters_for_imagenet(depth, count):
    assert parameters(PreResNet(depth, 1000), 224) == count - 2 * 64


def test_basic_units_cost_what_those_of_2015_do():
    """The normalization behind a unit's second convolution moves to the front of the next unit,
    and that of the last unit to the end."""
    old, new = SmallResNet(20, 10), SmallPreResNet(20, 10)
    assert multiply_adds(new, 32) == multiply_adds(old, 32)
    assert parameters(new, 32) == parameters(old, 32)


IMAGES = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)


def inside(model, variables):
    """What the parts of a model make of images in a test."""
    apply = jax.jit(partial(model.apply, train=False, capture_intermediates=True))
    return jax.device_get(apply(variables, IMAGES))[1]["intermediates"]


def zeros(variables, ending):
    """The variables with every leaf whose path ends so set to 0."""
    silence = lambda path, leaf: (
        np.zeros(leaf.shape, leaf.dtype)
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith(ending)
        else leaf
    )
    return jax.tree_util.tree_map_with_path(silence, variables)


def test_the_output_is_the_input_plus_all_residual_functions():
    """Equation 4. With every F 0, the last unit's output is the first one's input."""
    model = SmallPreResNet(20, 10)
    caught = inside(model, zeros(filled(shapes(model, 8)), "Conv_1/kernel"))
    first, last = (caught[f"Preactivation_{i}"]["__call__"][0] for i in (0, 8))
    assert np.abs(first).max() > 0
    np.testing.assert_array_equal(last[..., :16], first[:, ::4, ::4])


def test_nothing_is_behind_the_sum():
    """Unlike a unit of 2015, whose output is never negative."""
    model = SmallPreResNet(8, 10)
    caught = inside(model, filled(shapes(model, 8)))
    assert caught["Preactivation_0"]["__call__"][0].min() < 0


def test_the_identity_is_the_network_of_2015():
    old, new = SmallResNet(14, 10), AlteredResNet(14, 10, "identity")
    variables = filled(shapes(new, 8))
    renamed = {
        kind: {name.replace("AlteredBlock", "Block"): leaf for name, leaf in tree.items()}
        for kind, tree in variables.items()
    }
    logits = lambda model: jax.jit(partial(model.apply, train=False))
    np.testing.assert_array_equal(logits(old)(renamed, IMAGES), logits(new)(variables, IMAGES))


@pytest.mark.parametrize(
    ("altered", "more"),
    [
        ("scaling", 0),
        ("dropout", 0),
        # A 1x1 convolution with bias in each of the 3 units.
        ("gating", 16 * 16 + 16 + 16 * 32 + 32 + 32 * 64 + 64),
        ("exclusive gating", 16 * 16 + 16 + 16 * 32 + 32 + 32 * 64 + 64),
        # One without, and its normalization.
        ("convolution", 16 * 16 + 32 + 16 * 32 + 64 + 32 * 64 + 128),
    ],
)
def test_altered_shortcuts_add_what_they_say(altered, more):
    identity = parameters(SmallResNet(8, 10), 32)
    assert parameters(AlteredResNet(8, 10, altered), 32) == identity + more


def test_altered_shortcuts_pass_what_they_say():
    """With F 0, and so 0 from a shortcut with dropout or 1/2 of it."""

    @partial(jax.jit, static_argnums=0)
    def made(altered, key, image):
        model = AlteredResNet(8, 10, altered)
        variables = model.init(key, image, train=False)
        variables = zeros(variables, "AlteredBlock_0/BatchNorm_1/scale")
        _, caught = model.apply(
            variables,
            image,
            train=True,
            capture_intermediates=True,
            mutable=True,
            rngs={"dropout": key},
        )
        return caught["intermediates"]["AlteredBlock_0"]["__call__"][0]

    first_unit = lambda altered: np.asarray(made(altered, jax.random.key(1), IMAGES))
    whole = first_unit("identity")
    np.testing.assert_array_equal(first_unit("scaling"), whole / 2)
    dropped = first_unit("dropout")
    kept = dropped != 0
    np.testing.assert_array_equal(dropped[kept], 2 * whole[kept])
    assert 0.45 < kept.sum() / (whole != 0).sum() < 0.55
    # Bias -6: the gate 1 - g is nearly open at first.
    ratio = first_unit("exclusive gating").sum() / whole.sum()
    assert 0.9 < ratio < 1


@pytest.mark.parametrize("model", [SmallPreResNet(21, 10), SmallPreResNet(26, 10, True)])
def test_wrong_depths_are_refused(model):
    with pytest.raises(UserError, match=r"is not [69]n \+ 2"):
        shapes(model, 32)


def test_wrong_depths_for_imagenet_and_altered_are_refused():
    with pytest.raises(UserError, match="none of 18, 34, 50, 101, 152, 200"):
        shapes(PreResNet(20, 10), 224)
    with pytest.raises(UserError, match="6n"):
        shapes(AlteredResNet(10, 10, "gating"), 32)
