"""States that are split over devices: the same numbers, less memory on each."""

import contextlib
import dataclasses
import functools
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every import brief

from experiments import bert, gpt, resnet, simclr, transformer
from jaxhist import UserError, devices
from jaxhist.algorithm import keys
from jaxhist.checkpoint import Checkpoints, Progress
from jaxhist.devices import Axes
from jaxhist.stopping import Interrupted
from jaxhist.train import Run, train

KEY = keys(0)
BRIEF = {"batch": 16, "steps": 20}
LANGUAGE = {"layers": 2, "width": 16, "heads": 4, "length": 32, "dropout": 0.1, "warmup": 2}
CONFIGS = {
    resnet: dataclasses.replace(resnet.PRESETS["small"], depth=8, **(BRIEF | {"batch": 8})),
    transformer: dataclasses.replace(
        transformer.PRESETS["small"],
        vocabulary=(64,),
        hidden=32,
        **(LANGUAGE | {"layers": 1}),
        **BRIEF,
    ),
    gpt: dataclasses.replace(
        gpt.PRESETS["small"], data="letters", vocabulary=264, parts=2, **LANGUAGE, **BRIEF
    ),
    bert: dataclasses.replace(
        bert.PRESETS["small"], vocabulary=300, **(LANGUAGE | {"layers": 1}), **BRIEF
    ),
    simclr: dataclasses.replace(
        simclr.PRESETS["small"], examples=64, widths=(4, 8), warmup=2, **BRIEF
    ),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    brief(monkeypatch.setattr)


def placed(mesh, state, rules):
    """A state on a mesh, and its layout there."""
    layout = devices.layout(mesh, jax.eval_shape(lambda: state), rules)
    return jax.device_put(state, devices.shardings(layout)), layout


@functools.cache
def beginning(module):
    """The first state, and the batches of 20 steps: made on one device and in float32, lest they
    are rounded in another way."""
    experiment = module.build(CONFIGS[module], Run(devices=1))
    with jax.enable_x64(False):
        state = jax.jit(experiment.init)(KEY.init)
        return jax.device_get((state, [experiment.data(step, None) for step in range(20)]))


@functools.cache
def compiled(module, axes):
    """Of the experiment on a mesh in float64: its step, its first state, and its batches."""
    run = Run(devices=axes.data * axes.fsdp * axes.tensor, mesh=axes)
    mesh = devices.mesh(run.devices, run.mesh)
    experiment = module.build(dataclasses.replace(CONFIGS[module], dtype="float64"), run)
    cast = lambda x: x.astype("float64") if jnp.issubdtype(x.dtype, jnp.floating) else x
    state, batches = beginning(module)
    with jax.enable_x64(True), jax.set_mesh(mesh):
        batches = [devices.put(mesh, batch, experiment.batch) for batch in batches]
        state, layout = placed(mesh, jax.tree.map(cast, state), experiment.tensor)
        out = devices.shardings(layout), devices.whole(mesh)
        step = jax.jit(experiment.step, out_shardings=out)
        return step.lower(state, batches[0], KEY.step).compile(), state, batches


def trained(module, axes):
    """The losses, parameters and statistics of a short run, in float64."""
    step, state, batches = compiled(module, axes)
    losses = []
    for s, batch in enumerate(batches):
        state, metrics = step(state, batch, jax.random.fold_in(KEY.step, s))
        losses.append(metrics["loss"])
    return jax.device_get((losses, (state.params, state.extra)))


def norm(tree):
    return math.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def check_agrees(module, meshes):
    with jax.enable_x64(True):
        losses, one = trained(module, Axes(1, 1, 1))
        for axes in meshes:
            losses_8, eight = trained(module, axes)
            np.testing.assert_allclose(losses, losses_8, rtol=1e-9, err_msg=str(axes))
            same = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9, err_msg=str(axes))
            jax.tree.map(same, one, eight)
            apart = jax.tree.map(np.subtract, one, eight)
            assert norm(apart[0]) < 1e-9 * norm(one[0])
            assert norm(apart[1]) <= 1e-9 * norm(one[1])


EVERY = pytest.mark.parametrize("module", CONFIGS, ids=lambda module: module.__name__.split(".")[1])
LANGUAGE_MODELS = transformer, bert, gpt
SHORT = {module: [Axes(2, 2, 2)] for module in LANGUAGE_MODELS} | {
    resnet: [Axes(8), Axes(2, 4)],
    simclr: [Axes(2, 4)],
}


@EVERY
def test_20_steps_on_one_device_and_on_a_mesh_agree_in_float64(module):
    check_agrees(module, SHORT[module])


@pytest.mark.long
@EVERY
def test_20_steps_on_every_mesh_agree_in_float64(module):
    meshes = [(8, 1, 1), (1, 8, 1), (4, 2, 1)]
    if module in LANGUAGE_MODELS:
        meshes += [(2, 1, 4), (1, 2, 4), (4, 1, 2)]
    check_agrees(module, [Axes(*sizes) for sizes in meshes])


def largest(step):
    """The bytes of the largest array in a compiled program, on each device."""
    sizes = {"f64": 8, "f32": 4, "s32": 4, "u32": 4}
    found = re.findall(rf"\b({'|'.join(sizes)})\[([\d,]+)\]", step.as_text())
    return max(sizes[dtype] * math.prod(map(int, dims.split(","))) for dtype, dims in set(found))


def on_the_first_device(state):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))


def test_a_mesh_takes_less_of_each_device():
    """Of the state, and of what the step makes on the way, the largest of which are logits."""
    one, eight = (compiled(gpt, axes) for axes in (Axes(1, 1, 1), Axes(1, 4, 2)))
    assert on_the_first_device(eight[1]) < 0.25 * on_the_first_device(one[1])
    assert largest(eight[0]) <= largest(one[0]) / 4


def test_what_is_split_over_what():
    mesh = devices.mesh(8, Axes(2, 2, 2))
    shapes = {
        "layers": {"W_1": {"kernel": (3, 4, 8), "bias": (3, 8)}, "norm": (3, 4)},
        "embedding": (7, 4),
        "odd": (3, 5),
        "step": (),
    }
    is_shape = lambda node: isinstance(node, tuple)
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, float), shapes, is_leaf=is_shape)
    rules = {"W_1/kernel": (None, "tensor"), "W_1/bias": ("tensor",)}
    layout = devices.layout(mesh, shapes, rules)
    found = jax.tree.map(lambda leaf: tuple(leaf.sharding.spec), layout)
    assert found == {
        "layers": {
            "W_1": {"kernel": (None, "fsdp", "tensor"), "bias": (None, "tensor")},
            "norm": (None, "fsdp"),
        },
        "embedding": (None, "fsdp"),
        "odd": (),
        "step": (),
    }
    with pytest.raises(UserError, match=r"no products to split over --run\.mesh\.tensor"):
        devices.layout(mesh, shapes)
    with pytest.raises(UserError, match=r"odd of \(3, 5\) cannot be split over 2 along axis 1"):
        devices.layout(mesh, shapes, {"odd": (None, "tensor")})


@pytest.mark.parametrize("axes", [Axes(3), Axes(fsdp=3), Axes(2, 2), Axes(tensor=0), Axes(-1, -8)])
def test_a_mesh_of_other_devices_than_there_are(axes):
    with pytest.raises(UserError, match="8 devices are not a mesh of data"):
        devices.mesh(8, axes)


def test_a_name_is_nothing_without_a_mesh_and_for_what_cannot_be_split():
    mesh, x = devices.mesh(8, Axes(2, 2, 2)), jnp.ones((4, 6, 3))
    assert devices.named(x, devices.BATCH, "tensor", None) is x
    with jax.set_mesh(mesh):
        name = jax.jit(lambda x: devices.named(x, devices.BATCH, "tensor", "tensor"))
        assert name(x).addressable_shards[0].data.shape == (1, 3, 3)


def test_a_checkpoint_goes_on_under_any_mesh(tmp_path):
    state, _ = beginning(gpt)
    first, _ = placed(devices.mesh(8, Axes(1, 4, 2)), state, gpt.TENSOR)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(0, first, Progress())
        checkpoints.wait()
        for axes in (Axes(1, 1, 1), Axes(2, 2, 2), Axes(8, 1, 1)):
            mesh = devices.mesh(axes.data * axes.fsdp * axes.tensor, axes)
            layout = devices.layout(mesh, jax.eval_shape(lambda: state), gpt.TENSOR)
            restored, _ = checkpoints.restore(0, layout)
            assert devices.shardings(restored) == devices.shardings(layout)
            jax.tree.map(np.testing.assert_array_equal, state, jax.device_get(restored))


def test_a_run_goes_on_under_another_mesh(tmp_path):
    """With the trainer, from half of the steps to the end."""
    identity = {"experiment": "gpt", "config": {}}
    changes = {"steps": 4, "evaluate_every": 4, "layers": 1, "parts": 1, "dropout": 0.0}
    config = dataclasses.replace(CONFIGS[gpt], **changes)

    def go(name, axes, interrupted=lambda: False):
        devices = axes.data * axes.fsdp * axes.tensor
        run = Run(str(tmp_path / name), devices=devices, mesh=axes, save_every=2)
        return train(gpt.build(config, run), run, identity, interrupted)

    undisturbed = go("one", Axes(1, 1, 1))
    with pytest.raises(Interrupted):
        go("two", Axes(2, 2, 2), iter([False, False, True]).__next__)  # after two steps
    moved = go("two", Axes(1, 8, 1))
    assert undisturbed.keys() == moved.keys()
    np.testing.assert_allclose(undisturbed["loss"], moved["loss"], rtol=1e-4)
