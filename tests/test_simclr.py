"""A Simple Framework for Contrastive Learning of Visual Representations, arXiv:2002.05709."""

import contextlib
import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import needs
from counts import image, shapes
from tiny import begun

from experiments import simclr, simclr_imagenet
from jaxhist import UserError, devices, evaluate, losses
from jaxhist.algorithm import keys
from jaxhist.checkpoint import Checkpoints, Progress
from jaxhist.claims import Trained
from jaxhist.data import images
from jaxhist.evaluate import Features
from jaxhist.models.simclr import Encoder, EncoderAndHead, Head, SmallEncoder, squares
from jaxhist.train import Run

# Loss.

nt_xent = jax.jit(losses.nt_xent, static_argnums=(1, 2))
VIEWS = np.array([[1, 0], [0, 1], [1, 1], [-1, 1]], np.float32)


def test_nt_xent_is_equation_1():
    want = [1.6782859679, 2.2220798604, 2.2220798604, 1.6782859679]
    got = nt_xent(VIEWS, 0.5)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(np.mean(got), 1.9501829142, rtol=1e-7)


def test_nt_xent_is_numpys_and_its_mean_is_optaxs():
    z, tau = np.random.default_rng(0).normal(size=(12, 5)), 0.3
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    want = []
    for i in range(12):
        j = i + 1 if i % 2 == 0 else i - 1
        total = sum(np.exp(unit[i] @ unit[k] / tau) for k in range(12) if k != i)
        want.append(-np.log(np.exp(unit[i] @ unit[j] / tau) / total))
    z = z.astype(np.float32)
    got = np.asarray(nt_xent(z, tau))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    optaxs = jax.jit(optax.losses.ntxent)(z, np.arange(12) // 2, tau)
    np.testing.assert_allclose(np.mean(got), optaxs, rtol=1e-5)


def test_nt_xent_does_not_see_the_length_of_z_unless_it_is_asked_to():
    scaled = VIEWS * np.array([[1], [2], [3], [4]], np.float32)
    same = nt_xent(scaled, 0.5)
    np.testing.assert_allclose(same, nt_xent(VIEWS, 0.5), rtol=1e-6)
    products = jax.jit(losses.view_logits, static_argnums=(1, 2))(scaled, 10.0, False)
    want = scaled @ scaled.T / 10
    np.testing.assert_allclose(products, np.where(np.eye(4) > 0, -np.inf, want), rtol=1e-6)


def test_nt_xents_limits():
    equal = nt_xent(np.ones((8, 3), np.float32), 0.1)
    np.testing.assert_allclose(equal, np.full(8, np.log(7)), rtol=1e-6)
    matched = np.repeat(np.eye(4, dtype=np.float32), 2, axis=0)  # and orthogonal to all others
    np.testing.assert_allclose(nt_xent(matched, 0.01), np.zeros(8), atol=1e-6)
    gradient = jax.jit(jax.grad(lambda z: nt_xent(z, 0.1).mean()))(np.zeros((4, 2), np.float32))
    assert np.isfinite(gradient).all()


def test_nt_xent_and_its_gradient_are_those_of_the_whole_batch_on_8_devices():
    """Negatives of a view lie on all devices, and the gradient flows to all of them."""
    z = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)

    def of(mesh):
        value = jax.value_and_grad(lambda z: nt_xent(z, 0.5).mean())
        jitted = jax.jit(value, in_shardings=devices.split(mesh))
        return jitted(jax.device_put(z, devices.split(mesh)))

    (one, gradient_1), (eight, gradient_8) = of(devices.mesh(1)), of(devices.mesh(8))
    np.testing.assert_allclose(one, eight, rtol=1e-6)
    np.testing.assert_allclose(gradient_1, gradient_8, atol=1e-7)
    # Of each half alone it is another one.
    halves = [np.mean(nt_xent(half, 0.5)) for half in (z[:16], z[16:])]
    assert abs(np.mean(halves) - one) > 0.1


# Model.


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_parameters_are_the_papers():
    """Section 2.2: ResNet-50, and a head of 2048 and 128."""
    params = shapes(EncoderAndHead(Encoder(50), Head("nonlinear")), 224)["params"]
    assert size(params["encoder"]) == 23_508_032 and size(params["head"]) == 4_458_624
    experiment = simclr.build(simclr.PRESETS["cifar10"], Run(devices=1))
    params = jax.eval_shape(experiment.init, jax.random.key(0)).params
    assert size(params["encoder"]) == 23_508_032 - (49 - 9) * 3 * 64  # a smaller first kernel
    assert size(params["head"]) == 4_458_624


@pytest.mark.parametrize("small, side", [(False, 56), (True, 32)])
def test_for_cifar10_the_first_convolution_keeps_the_size(small, side):
    init = lambda key, image: Encoder(50, small=small).init_with_output(
        key, image, train=False, capture_intermediates=True, mutable=True
    )
    pixels = 32 if small else 224
    (h, caught) = jax.eval_shape(init, jax.random.key(0), image(pixels))
    assert caught["intermediates"]["Bottleneck_0"]["__call__"][0].shape == (1, side, side, 256)
    assert h.shape == (1, 2048)


def test_heads_are_two_layers_one_or_none():
    h = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    for kind, kernels in (("nonlinear", 2), ("linear", 1), ("none", 0)):
        head = Head(kind, 4)
        variables = jax.device_get(jax.jit(head.init)(jax.random.key(1), h))
        params = list(variables.get("params", {}).values())
        want = h
        for i, layer in enumerate(params):
            want = want @ layer["kernel"] + layer["bias"][None]
            want = np.maximum(want, 0) if kind == "nonlinear" and i == 0 else want
        got = jax.jit(head.apply)(variables, h)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        assert len(params) == kernels and want.shape == (3, 4 if kernels else 6)


def test_the_small_encoder_sees_squares_and_halves():
    found = np.asarray(jax.jit(squares)(np.arange(32, dtype=np.float32).reshape(1, 4, 4, 2)))
    np.testing.assert_array_equal(found[0, 0, 1, :, 0], [4, 6, 12, 14])
    variables = shapes(SmallEncoder((4, 8)), 16)
    kernels = [variables["params"][f"Conv_{i}"]["kernel"].shape for i in range(2)]
    assert kernels == [(3, 3, 12, 4), (3, 3, 4, 8)]
    with pytest.raises(UserError, match="1 x 1 pixels cannot be halved"):
        shapes(SmallEncoder((4, 4, 4)), 4)


# Data and measures.


def test_pieces_are_parts_of_ten_photographs():
    data = images.pieces(400)
    splits = data.load()
    assert {name: len(split["label"]) for name, split in splits.items()} == {
        "train": 2800,
        "validation": 400,
        "test": 800,
    }
    for split in splits.values():
        assert (np.bincount(split["label"]) == len(split["label"]) // 10).all()
    astronaut = images.PHOTOGRAPHS["astronaut"]()
    whole = {
        astronaut[i : i + 16, j : j + 16].tobytes()
        for i in range(0, 512, 16)
        for j in range(0, 512, 16)
    }
    test = splits["test"]
    assert data.names[0] == "astronaut"
    assert all(piece.tobytes() in whole for piece in test["image"][test["label"] == 0])


def test_outputs_are_of_every_example_once_and_in_order():
    outputs = evaluate.outputs(lambda state, batch: state * batch, devices.mesh(), size=5)
    parts = [np.arange(5.0), np.arange(5.0, 8.0)]
    np.testing.assert_array_equal(outputs(jnp.float32(2), parts), 2 * np.arange(8))


def test_probes_and_neighbours_find_what_is_there():
    random = np.random.default_rng(0)
    label = random.integers(3, size=400)
    centres = 4 * np.eye(3)[label]
    near = Features((centres + random.normal(size=(400, 3))).astype(np.float32), label)
    noise = Features(random.normal(size=(400, 3)).astype(np.float32), label)
    halves = lambda features: [
        Features(*(x[part] for x in features)) for part in (slice(0, 200), slice(200, 400))
    ]
    for measure in (evaluate.probe, evaluate.nearest):
        assert measure(*halves(near)) > 0.95 and measure(*halves(noise)) < 0.5
    places = evaluate.neighbours(near.values, near.values[:4], 2)
    np.testing.assert_array_equal(places[:, 0], range(4))


# Experiment.

TINY = replace(
    simclr.PRESETS["small"],
    examples=100,
    strength=0.0,
    widths=(4,),
    warmup=0,
    batch=16,
    steps=2,
    evaluate_every=2,
)


@pytest.fixture(scope="module")
def stepped():
    """States before and after a step."""
    experiment, key = simclr.build(TINY, Run(devices=1)), keys(0)
    state = jax.jit(experiment.init)(key.init)
    after, _ = jax.jit(experiment.step)(state, experiment.data(0, state), key.step)
    return jax.device_get((state, after))


@pytest.fixture(scope="module")
def pretrained(stepped, tmp_path_factory):
    """A directory with a run of one step."""
    folder = tmp_path_factory.mktemp("runs")
    workdir = folder / "views-seed0"
    workdir.mkdir()
    header = {"experiment": "simclr", "config": asdict(TINY), "seed": 0, "starts": [{}]}
    (workdir / "log.jsonl").write_text(json.dumps(header) + "\n")
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        checkpoints.save(1, stepped[1], Progress())
    return folder


def test_lars_leaves_out_biases_and_batch_normalization(stepped):
    """The first step moves a kernel by a thousandth of the rate times its norm."""
    norm = np.linalg.norm
    moved = jax.tree.map(
        lambda a, b: (a.ndim > 1, norm(b - a) / max(norm(a), 1e-9)),
        *(state.params for state in stepped),
    )
    ratios = jax.tree.leaves(moved, is_leaf=lambda x: isinstance(x, tuple))
    kernels = [ratio for kernel, ratio in ratios if kernel]
    others = [ratio for kernel, ratio in ratios if not kernel]
    np.testing.assert_allclose(kernels, 1e-3 * TINY.rate, rtol=1e-3)
    assert len(others) == 4 and min(others) > 2e-3


@pytest.mark.parametrize("learn", ["labels", "linear"])
def test_labels_are_learned_from_the_encoder_of_another_run(stepped, pretrained, learn):
    config = replace(TINY, learn=learn, start="views-seed{seed}", labels=20, rate=0.1)
    run = Run(workdir=str(pretrained / learn), devices=1)
    experiment = simclr.build(config, run)
    state = jax.device_get(begun(experiment))
    there = stepped[1]
    same = lambda a, b: all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))
    assert same(state.params["encoder"], there.params["encoder"]) and same(state.extra, there.extra)
    batch = experiment.data(0, state)
    assert batch["image"].shape == (16, 1, 16, 16, 3)
    after, _ = jax.device_get(jax.jit(experiment.step)(state, batch, keys(0).step))
    frozen = learn == "linear"
    assert same(after.params["encoder"], state.params["encoder"]) == frozen
    assert same(after.extra, state.extra) == frozen
    assert not same(after.params["head"], state.params["head"])
    assert experiment.test(after).keys() == {"loss", "accuracy"}


def test_a_start_that_is_not_there_is_one_line(tmp_path):
    config = replace(TINY, learn="labels", start="nowhere")
    experiment = simclr.build(config, Run(workdir=str(tmp_path / "run"), devices=1))
    with pytest.raises(UserError, match=r"no run in .*nowhere"):
        begun(experiment)


def test_a_start_with_another_network_is_one_line(pretrained):
    config = replace(TINY, learn="labels", start="views-seed0", widths=(8,))
    experiment = simclr.build(config, Run(workdir=str(pretrained / "run"), devices=1))
    with pytest.raises(UserError, match="another network"):
        begun(experiment)


def test_the_few_labels_are_of_all_classes():
    config = replace(TINY, examples=0, learn="labels", labels=20, batch=20)
    labels = simclr.small_images(config, Run(devices=1)).train(0, None)["label"]
    assert (np.bincount(labels) == 2).all()


# Claims.


def test_the_figures_of_a_claim_are_those_of_the_test_and_the_last_quarter():
    lines = [{"phase": "train", "contrastive": value} for value in (0.0, 0.1, 0.2, 0.3)]
    test = {"phase": "test", "step": 4, "accuracy probe": 0.5, "accuracy pixels": 0.25}
    figures = simclr.accuracies(Trained(TINY, None, [{}, *lines, test], None))
    assert figures == {"probe": 50, "pixels": 25, "contrastive": 30}
    config = replace(TINY, learn="labels")
    figures = simclr.accuracies(
        Trained(config, None, [{}, {"phase": "test", "accuracy": 0.5}], None)
    )
    assert figures == {"accuracy": 50}


def test_claims_compare_what_they_say():
    by = {
        "tuned 100": {"accuracy": 30.0},
        "scratch 100": {"accuracy": 25.0},
        "tuned 1000": {"accuracy": 40.0},
        "scratch 1000": {"accuracy": 39.0},
    }
    assert [excess(by) for excess in simclr.CLAIMS["L5"].inequalities.values()] == [2, 4]
    by = {"simclr": 50.0, "tau 0.5": 48.0, "tau 0.05": 49.0, "tau 1": 30.0, "products": 45.0}
    by = {arm: {"probe": probe, "contrastive": 100 - probe} for arm, probe in by.items()}
    assert [excess(by) for excess in simclr.CLAIMS["L3"].inequalities.values()] == [1, 5, 5]


# On real photographs.


@pytest.mark.long
@needs("imagenet_sample")
def test_two_views_of_each_photograph():
    config = replace(simclr_imagenet.ImageNet(), data="imagenet_sample", batch=4)
    batch = simclr.build(config, Run(devices=1)).data(0, None)
    assert batch["image"].shape == (4, 2, 224, 224, 3)
    assert batch["image"].min() >= 0 and batch["image"].max() <= 1
    first, second = batch["image"][:, 0], batch["image"][:, 1]
    assert (jnp.abs(first - second).mean((1, 2, 3)) > 0.01).all()
