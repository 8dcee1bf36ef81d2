from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import needs
from counts import filled, image, multiply_adds, parameters, shapes
from scipy.special import comb, logsumexp
from test_photographs import encode, scene

from experiments import googlenet
from jaxhist import devices, flops
from jaxhist.algorithm import keys
from jaxhist.claims import Trained
from jaxhist.data import photographs
from jaxhist.models.alexnet import SmallAlexNet
from jaxhist.models.googlenet import (
    MODULES,
    GoogLeNet,
    Inception,
    NaiveInception,
    SmallGoogLeNet,
    max_pool,
)
from jaxhist.train import Run

# Table 1. Module -> pixels on a side, channels in and out, parameters with biases, millions of
# multiply-adds.
TABLE = {
    "3a": (28, 192, 256, 163_696, 128.0),
    "3b": (28, 256, 480, 388_736, 304.3),
    "4a": (14, 480, 512, 376_176, 73.6),
    "4b": (14, 512, 512, 449_160, 87.9),
    "4c": (14, 512, 512, 510_104, 99.9),
    "4d": (14, 512, 528, 605_376, 118.5),
    "4e": (14, 528, 832, 868_352, 170.0),
    "5a": (7, 832, 832, 1_043_456, 51.1),
    "5b": (7, 832, 1024, 1_444_080, 70.7),
}


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def cost(module, shape):
    """Parameters and multiply-adds of a module on [1, H, W, C], and the shape of its output."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    program, out = jax.make_jaxpr(module.apply, return_shape=True)(variables, x)
    return size(variables), flops.count(program.jaxpr) / 2, out.shape


@pytest.mark.parametrize("name", TABLE)
def test_modules_are_those_of_table_1(name):
    side, channels, out, params, millions = TABLE[name]
    got = cost(Inception(MODULES[name][0]), (1, side, side, channels))
    assert got[0] == params and round(got[1] / 1e6, 1) == millions
    assert got[2] == (1, side, side, out)


def test_without_reductions_channels_and_products_explode():
    """Fig. 2a in the place of 3a and 3b."""
    _, products, out = cost(NaiveInception(MODULES["3a"][0]), (1, 28, 28, 192))
    assert products == 303_464_448 and out == (1, 28, 28, 416)
    _, products, out = cost(NaiveInception(MODULES["3b"][0]), out)
    assert products == 1_388_068_864 and out == (1, 28, 28, 832)


def test_the_networks_parameters_and_products_are_the_papers():
    model = GoogLeNet(1000)
    params = shapes(model, 224)["params"]
    assert {name: size(params[name]) for name in TABLE} == {n: row[3] for n, row in TABLE.items()}
    stem = {name: size(params[name]) for name in params if name.startswith("Convolution")}
    assert list(stem.values()) == [9_472, 4_160, 114_944 - 4_160]
    assert size(params["Dense_0"]) == 1_025_000
    heads = size(params["head-4a"]), size(params["head-4d"])
    assert heads == (3_188_840, 3_190_888)
    assert size(params) == 13_378_280 and size(params) - sum(heads) == 6_998_552
    assert multiply_adds(model, 224) == 1_582_671_872


def test_the_small_network_has_an_eighth_of_small_alexnets_parameters():
    small, large = SmallGoogLeNet(10, auxiliary=False), SmallAlexNet(10, 32, (512, 512))
    assert parameters(small, 16) == 57_034 and parameters(large, 16) == 478_698


def test_the_stages_have_the_papers_sizes():
    """Table 1: 112-56-28-14-7."""
    _, caught = jax.eval_shape(
        lambda key, image: GoogLeNet(1000).init_with_output(
            key, image, train=False, capture_intermediates=True, mutable=True
        ),
        jax.random.key(0),
        image(224),
    )
    caught = caught["intermediates"]
    shape = lambda name: caught[name]["__call__"][0].shape
    assert shape("Convolution_0") == (1, 112, 112, 64)
    assert shape("Convolution_1") == (1, 56, 56, 64) and shape("Convolution_2") == (1, 56, 56, 192)
    for name, (side, _, out, _, _) in TABLE.items():
        assert shape(name) == (1, side, side, out)
    head = caught["head-4a"]["Convolution_0"]["__call__"][0]
    assert head.shape == (1, 4, 4, 128)


@pytest.mark.parametrize("model", [GoogLeNet(1000), SmallGoogLeNet(10)])
def test_heads_are_in_training_alone_and_have_parameters_from_the_start(model):
    pixels = 224 if isinstance(model, GoogLeNet) else 16
    heads = 2 if isinstance(model, GoogLeNet) else 1
    variables = shapes(model, pixels)
    apply = lambda train: jax.eval_shape(
        lambda v, x: model.apply(v, x, train=train, rngs={"dropout": jax.random.key(0)}),
        variables,
        image(pixels),
    )
    assert apply(False).shape == (1, model.classes)
    assert [logits.shape for logits in apply(True)] == [(1, model.classes)] * (1 + heads)
    # An initialisation in training makes the same.
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    train = jax.eval_shape(lambda x: model.init(keys, x, train=True), image(pixels))
    assert jax.tree.structure(train) == jax.tree.structure(variables)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 7, 9, 2), (1, 112, 112, 1), (1, 2, 1, 4)])
def test_max_pool_is_flaxs_and_so_is_its_gradient(shape, strides):
    draw = np.random.default_rng(0).normal
    x = draw(size=shape).astype(np.float32)

    ours = lambda x: max_pool(x, strides)
    flaxs = lambda x: nn.max_pool(x, (3, 3), (strides, strides), "SAME")
    gradient = draw(size=jax.eval_shape(flaxs, x).shape).astype(np.float32)

    def of(pool, x, gradient):
        y, pull_back = jax.vjp(pool, x)
        return y, pull_back(gradient)[0]

    ours, theirs = (jax.jit(of, static_argnums=0)(pool, x, gradient) for pool in (ours, flaxs))
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)


def test_a_modules_branches_are_convolutions_of_the_input_and_of_what_is_pooled():
    """Beside XLA's own convolutions and Flax's pooling."""
    widths = (3, 4, 5, 2, 6, 7)
    module = Inception(MODULES["3a"][0]._make(widths))
    x = np.random.default_rng(0).normal(size=(2, 9, 9, 8)).astype(np.float32)
    params = filled(jax.eval_shape(module.init, jax.random.key(1), x)["params"])
    params = jax.tree.map(lambda leaf: leaf + np.float32(0.1), params)  # biases too

    @jax.jit
    def by_hand(params, x):
        by_shape = {p["Conv_0"]["kernel"].shape: p["Conv_0"] for p in params.values()}

        def conv(x, *shape):
            kernel, bias = by_shape[shape]["kernel"], by_shape[shape]["bias"]
            images = ("NHWC", "HWIO", "NHWC")
            same = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=images)
            return jnp.maximum(same + bias[None, None, None], 0)

        branches = [
            conv(x, 1, 1, 8, 3),
            conv(conv(x, 1, 1, 8, 4), 3, 3, 4, 5),
            conv(conv(x, 1, 1, 8, 2), 5, 5, 2, 6),
            conv(nn.max_pool(x, (3, 3), (1, 1), "SAME"), 1, 1, 8, 7),
        ]
        return jnp.concatenate(branches, -1)

    got = jax.jit(module.apply)({"params": params}, x)
    np.testing.assert_allclose(got, by_hand(params, x), rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_activations_keep_their_scale_through_all_modules():
    """The initialisation is ours; with LeCun's the signal would fall by 2^(22 / 2)."""
    model = GoogLeNet(1000)
    x = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    variables = jax.jit(lambda x: model.init(jax.random.key(1), x, train=False))(
        jnp.zeros((1, 224, 224, 3))
    )
    _, caught = jax.jit(lambda v, x: model.apply(v, x, train=False, capture_intermediates=True))(
        variables, x
    )
    caught = caught["intermediates"]
    scale = [np.sqrt(np.mean(caught[name]["__call__"][0] ** 2)) for name in TABLE]
    assert min(scale) > 0.2 and max(scale) < 5, scale


def test_bfloat16_leaves_parameters_and_logits_in_float32():
    model = SmallGoogLeNet(10, dtype=jnp.bfloat16)
    variables = shapes(model, 8)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    apply = partial(model.apply, train=True, rngs={"dropout": jax.random.key(2)})
    logits = jax.eval_shape(apply, variables, image(8))
    assert {one.dtype for one in logits} == {jnp.dtype("float32")}
    jaxpr = jax.make_jaxpr(partial(model.apply, train=False))(variables, image(8))
    products = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    assert products and {e.outvars[0].aval.dtype for e in products} == {jnp.dtype("bfloat16")}


@pytest.fixture(scope="module")
def trained():
    """Three steps on digits: the experiment, and the states and metrics before and after each."""
    experiment = googlenet.build(googlenet.Config(batch=64), Run(devices=1))
    key = keys(0)
    first = jax.eval_shape(experiment.init, key.init)
    params = filled(first.params)
    nothing = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), first)
    state = nothing.replace(params=params, extra=params)
    state = jax.device_put(state, devices.whole(devices.mesh(1)))
    step, states, metrics = jax.jit(experiment.step), [state], []
    for i in range(3):
        state, measured = step(state, experiment.data(i, state), key.step)
        states.append(state)
        metrics.append(measured)
    return experiment, states, jax.device_get(metrics)


@pytest.fixture(scope="module")
def outputs(trained):
    """Images -> logits and head's logits in training, in the first state, and what is inside."""
    _, states, _ = trained
    model = SmallGoogLeNet(10, dtype=jnp.float32)
    apply = jax.jit(partial(model.apply, train=True, capture_intermediates=True))
    variables, rngs = {"params": states[0].params}, {"dropout": keys(0).step}
    return lambda image: jax.device_get(apply(variables, image, rngs=rngs))


def test_dropout_is_40_per_cent_and_70_in_a_head(outputs):
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype(np.float32)
    _, caught = outputs(x)
    caught = caught["intermediates"]
    features = caught["third"]["__call__"][0].mean((1, 2))
    dropped = caught["Dropout_0"]["__call__"][0]
    assert np.isclose(np.mean(dropped[features > 0] == 0), 0.4, atol=0.02)
    np.testing.assert_allclose(dropped[dropped > 0], (features / 0.6)[dropped > 0], rtol=1e-5)
    hidden = np.maximum(caught["head"]["Dense_0"]["__call__"][0], 0)
    dropped = caught["head"]["Dropout_0"]["__call__"][0]
    assert np.isclose(np.mean(dropped[hidden > 0] == 0), 0.7, atol=0.02)
    np.testing.assert_allclose(dropped[dropped > 0], (hidden / 0.3)[dropped > 0], rtol=1e-5)


def test_the_loss_is_the_networks_and_three_tenths_of_the_heads(trained, outputs):
    experiment, states, metrics = trained
    batch = jax.device_get(experiment.data(0, states[0]))
    both, _ = outputs(batch["image"])
    main, head = (
        np.mean(logsumexp(logits, -1) - logits[np.arange(64), batch["label"]]) for logits in both
    )
    assert np.isclose(metrics[0]["loss"], main + 0.3 * head, rtol=1e-5)


def test_what_is_kept_is_the_average_of_the_weights(trained):
    """Each step weighted by the polynomial of its number, (s + 1) ... (s + 8) / 8! in full."""
    _, states, _ = trained
    weights = np.array([comb(s + 7, 8) for s in (1, 2, 3)])
    weights /= weights.sum()
    for average, *steps in zip(
        *(jax.tree.leaves(tree) for tree in (states[-1].extra, *(s.params for s in states[1:]))),
        strict=True,
    ):
        want = sum(w * np.float64(step) for w, step in zip(weights, steps, strict=True))
        np.testing.assert_allclose(average, want, rtol=1e-5, atol=1e-6)


def test_the_average_never_loses_sight_of_the_weights():
    """In float32, at the last of the paper's steps: it would not move by 3e-7 of a difference."""
    average = jax.jit(googlenet.polyak)(jnp.float32(0.1), jnp.float32(0.101), 31_000_000)
    assert np.isclose(average, 0.1 + 1e-7, rtol=0, atol=1e-8)


def test_the_average_looks_back_over_a_tenth_of_the_steps():
    average = jnp.zeros(())
    for step in range(1, 1001):
        average = googlenet.polyak(average, jnp.float32(step), step)
    assert np.isclose(1000 - average, 100, rtol=0.02)


def test_a_test_measures_the_average(trained):
    experiment, states, _ = trained
    zeros = lambda leaf: jax.device_put(np.zeros_like(leaf), leaf.sharding)
    nothing = jax.tree.map(zeros, states[-1].params)
    measured = experiment.test(states[-1])
    assert measured == experiment.test(states[-1].replace(params=nothing))
    assert measured != experiment.test(states[-1].replace(extra=nothing))


def test_the_gradient_logged_is_that_of_the_first_module(trained):
    """The first step of SGD is the rate times it."""
    _, states, metrics = trained
    before, after = (jax.device_get(state.params["first"]) for state in states[:2])
    moved = jax.tree.map(np.subtract, before, after)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(moved)))
    assert np.isclose(metrics[0]["gradient"], norm / googlenet.Config().rate, rtol=1e-3)


# Claims.


def test_g1_is_about_error_where_the_parameters_are_few_enough():
    figures = lambda error, count: {"test error": error, "parameters": count}
    by = lambda *small: {"alexnet": figures(40.0, 80.0), "inception": figures(*small)}
    assert googlenet.as_accurate(by(40.5, 10.0)) == 0.5
    assert googlenet.as_accurate(by(42.0, 10.0)) == -1
    assert googlenet.as_accurate(by(30.0, 11.0)) == -1
    assert googlenet.as_accurate(by(50.0, 11.0)) == -9


def test_g2_is_exact_and_reductions_save_half_and_then_three_quarters():
    sides = googlenet.products()
    assert all(counted == by_hand for counted, by_hand in sides.values())
    ratio = lambda name: sides[f"{name} NaiveInception"][0] / sides[f"{name} Inception"][0]
    assert np.isclose(ratio("3a"), 2.37, atol=0.005) and np.isclose(ratio("3b"), 4.56, atol=0.005)


def test_g3_reads_the_first_steps_alone():
    lines = [{"phase": "train", "step": step, "gradient": float(step)} for step in (5, 200, 205)]
    trained = Trained(None, None, [{}, *lines, {"phase": "test"}], None)
    assert googlenet.first_gradient(trained) == {"gradient": 102.5}


# Views.


def test_random_parts_have_the_papers_areas_and_ratios():
    random = np.random.default_rng(0)
    parts = [photographs.random_part((4000, 3500), random) for _ in range(4000)]
    corner, part = (np.array(x) for x in zip(*parts, strict=True))
    assert (corner >= 0).all() and (corner + part <= (4000, 3500)).all()
    area, ratio = part.prod(1) / (4000 * 3500), part[:, 0] / part[:, 1]
    assert area.min() + 1e-3 >= 0.08 and area.min() < 0.09 and 0.97 < area.max() <= 1
    assert ratio.min() + 1e-3 >= 0.75 and ratio.min() < 0.76
    assert 1.32 < ratio.max() <= 1.334
    # Below half of the area almost everything fits, and so it is evenly distributed.
    share = np.mean(area[area < 0.5] < 0.29)
    assert np.isclose(share, 0.5, atol=3 * 0.5 / 40)
    assert np.isclose(np.mean(ratio[area < 0.5] < 1), 0.5, atol=3 * 0.5 / 40)


def test_of_a_photograph_that_no_part_fits_the_central_square_is_taken():
    for size in ((4000, 100), (100, 4000)):
        for seed in range(20):
            corner, part = photographs.random_part(size, np.random.default_rng(seed))
            assert part == (100, 100)
            assert corner == ((1950, 0) if size[0] == 4000 else (0, 1950))


@pytest.mark.parametrize("form, tolerance", [("PNG", 1.0), ("JPEG", 3.0)])
def test_a_view_is_the_part_scaled(form, tolerance):
    """Also where the photograph is decoded at half its size (JPEG, 1200 pixels)."""
    size = (1200, 900) if form == "JPEG" else (600, 450)
    whole = scene(*size)
    photograph = encode(whole, form)
    used = set()
    for seed in range(24):
        got = photographs.inception_crop(photograph, np.random.default_rng(seed))
        assert got.shape == (224, 224, 3) and got.dtype == np.uint8
        random = np.random.default_rng(seed)
        (left, top), (width, height) = photographs.random_part(size, random)
        interpolation = photographs.INTERPOLATIONS[random.integers(4)]
        used.add(interpolation)
        part = photographs.Image.fromarray(whole[top : top + height, left : left + width])
        want = np.asarray(part.resize((224, 224), interpolation))
        assert np.abs(got.astype(int) - want).mean() < tolerance
    assert used == set(photographs.INTERPOLATIONS)


@pytest.mark.parametrize("width, height", [(320, 256), (256, 320)])
def test_views_for_testing_are_4_scales_of_3_squares_of_6_crops(width, height):
    whole = scene(width, height)
    views = photographs.inception_crops(encode(whole, "PNG"))  # nothing is lost
    assert views.shape == (72, 224, 224, 3) and views.dtype == np.uint8
    views = views.reshape(4, 3, 6, 224, 224, 3)
    for scale, side in enumerate((256, 288, 320, 352)):
        size = tuple(round(length * side / 256) for length in (width, height))
        scaled = np.asarray(photographs.Image.fromarray(whole).resize(size, 2))
        for place in range(3):
            shift = (max(size) - side) * place // 2
            left, top = (shift, 0) if width > height else (0, shift)
            square = scaled[top : top + side, left : left + side]
            want = [square[:224, :224], square[:224, -224:], square[-224:, :224]]
            middle = slice((side - 224) // 2, (side - 224) // 2 + 224)
            want += [square[-224:, -224:], square[middle, middle]]
            np.testing.assert_array_equal(views[scale, place, :5], want)
            small = np.asarray(photographs.Image.fromarray(square).resize((224, 224), 2))
            np.testing.assert_array_equal(views[scale, place, 5], small)


# On real photographs.

SAMPLE = replace(googlenet.PRESETS["paper"], data="imagenet_sample", batch=16, rate=0.01)


@needs("imagenet_sample")
def test_training_sees_centred_parts_and_a_test_144_crops():
    data = googlenet.large_photographs(replace(SAMPLE, batch=4), Run(devices=1))
    batch = data.train(0, None)
    assert batch["image"].shape == (4, 224, 224, 3) and batch["image"].dtype == np.float32
    assert -1.5 < batch["image"].min() < -0.2 and 0.2 < batch["image"].max() < 1.5
    views = jax.eval_shape(data.views, jax.ShapeDtypeStruct((4, 72, 224, 224, 3), np.uint8))
    assert views.shape == (144, 4, 224, 224, 3)


@pytest.mark.long
@needs("imagenet_sample")
def test_the_loss_falls_over_20_steps_on_one_batch():
    """About two minutes on one core."""
    experiment = googlenet.build(SAMPLE, Run(devices=1))
    key = keys(0)
    state = jax.jit(experiment.init)(key.init)
    batch = experiment.data(0, state)
    assert batch["image"].shape == (16, 224, 224, 3)
    step = jax.jit(experiment.step, donate_argnums=0)
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch, key.step)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert 9 < losses[0] < 15  # 1.6 log(1000) = 11.1, and the scatter of the first logits
    assert np.mean(losses[-3:]) < losses[0] / 2, losses
