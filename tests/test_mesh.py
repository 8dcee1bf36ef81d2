"""States that are split over devices: the same numbers, less memory on each."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gpt, resnet, simclr, transformer
from jaxhist import UserError, devices
from jaxhist.algorithm import keys
from jaxhist.checkpoint import Checkpoints, Progress
from jaxhist.devices import Axes
from jaxhist.train import Run

pytestmark = pytest.mark.usefixtures("compiled_fast")

KEY = keys(0)
BRIEF = {"batch": 16, "steps": 20, "dtype": "float64"}
LANGUAGE = {"layers": 2, "width": 16, "heads": 4, "length": 16, "dropout": 0.1, "warmup": 2}
CONFIGS = {
    resnet: dataclasses.replace(resnet.PRESETS["small"], depth=8, **BRIEF),
    transformer: dataclasses.replace(
        transformer.PRESETS["small"],
        vocabulary=(64,),
        hidden=32,
        **(LANGUAGE | {"layers": 1}),
        **BRIEF,
    ),
    gpt: dataclasses.replace(
        gpt.PRESETS["small"], data="letters", vocabulary=264, **LANGUAGE, **BRIEF
    ),
    simclr: dataclasses.replace(
        simclr.PRESETS["small"], examples=64, widths=(4, 8), warmup=2, **(BRIEF | {"batch": 16})
    ),
}


def on(module, axes, steps=20):
    """Train over a mesh; the losses, and the last state as numpy, in float64."""
    run = Run(devices=max(1, axes.fsdp * axes.tensor * axes.data), mesh=axes)
    mesh = devices.mesh(run.devices, run.mesh)
    experiment = module.build(CONFIGS[module], run)
    cast = lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x
    init = lambda key: jax.tree.map(cast, experiment.init(key))
    with jax.set_mesh(mesh):
        layout = devices.layout(mesh, jax.eval_shape(init, KEY.init), experiment.tensor)
        placed = devices.shardings(layout)
        state = jax.jit(init, out_shardings=placed)(KEY.init)
        step = jax.jit(experiment.step, out_shardings=(placed, devices.whole(mesh)))
        losses = []
        for s in range(steps):
            batch = devices.put(mesh, experiment.data(s, state), experiment.batch)
            state, metrics = step(state, batch, jax.random.fold_in(KEY.step, s))
            losses.append(metrics["loss"])
    return jax.device_get((losses, state))


MESHES = [Axes(8, 1, 1), Axes(1, 8, 1), Axes(2, 4, 1)]
TENSOR = [Axes(2, 1, 4), Axes(2, 2, 2), Axes(1, 2, 4)]


@pytest.mark.parametrize("module", CONFIGS, ids=lambda module: module.__name__.split(".")[1])
def test_20_steps_on_every_mesh_agree_in_float64(module):
    with jax.enable_x64(True):
        losses, one = on(module, Axes(1, 1, 1))
        for axes in MESHES + (TENSOR if module in (transformer, gpt) else []):
            losses_8, eight = on(module, axes)
            np.testing.assert_allclose(losses, losses_8, rtol=1e-9, err_msg=str(axes))
            jax.tree.map(
                lambda a, b, axes=axes: np.testing.assert_allclose(
                    a, b, rtol=1e-6, atol=1e-9, err_msg=str(axes)
                ),
                one.params,
                eight.params,
            )
