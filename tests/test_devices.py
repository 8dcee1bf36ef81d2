"""One path for one device and for eight: the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.resnet import PRESETS, build
from jaxhist import UserError, devices
from jaxhist.algorithm import keys
from jaxhist.train import Run

CONFIG = dataclasses.replace(PRESETS["small"], depth=8, batch=32, steps=20)
KEY = keys(0)


def on(count, dtype="float32", steps=1):
    """Train on `count` devices; the losses, the first state and the last one, as numpy."""
    mesh = devices.mesh(count)
    experiment = build(dataclasses.replace(CONFIG, dtype=dtype), Run(devices=count))
    init = jax.jit(experiment.init, out_shardings=devices.whole(mesh))
    cast = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
    first = state = jax.tree.map(cast, init(KEY.init))
    step = jax.jit(experiment.step, out_shardings=devices.whole(mesh))
    losses = []
    for s in range(steps):
        batch = devices.put(mesh, experiment.data(s, state), experiment.batch)
        state, metrics = step(state, batch, jax.random.fold_in(KEY.step, s))
        losses.append(metrics["loss"])
    return jax.device_get((losses, first, state))


def relative_error(a, b):
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    a, b = flat(a), flat(b)
    return np.linalg.norm(a - b) / np.linalg.norm(a)


def gradient(first, after):
    """The gradient of the first step: its momentum, less the weight decay."""
    is_trace = lambda node: isinstance(node, optax.TraceState)
    leaves = jax.tree.leaves(after.opt_state, is_leaf=is_trace)
    (momentum,) = (leaf.trace for leaf in leaves if is_trace(leaf))
    return jax.tree.map(lambda m, p: m - 1e-4 * p, momentum, first.params)


def test_one_step_on_1_and_8_devices_agrees_in_float32():
    (losses_1, first_1, one), (losses_8, first_8, eight) = on(1), on(8)
    jax.tree.map(np.testing.assert_array_equal, first_1, first_8)
    np.testing.assert_allclose(losses_1, losses_8, rtol=1e-5)
    assert relative_error(gradient(first_1, one), gradient(first_8, eight)) < 1e-5
    assert relative_error(one.extra, eight.extra) < 1e-5  # statistics of the whole batch


def test_20_steps_on_1_and_8_devices_agree_in_float64():
    with jax.enable_x64(True):
        (losses_1, _, one), (losses_8, _, eight) = on(1, "float64", 20), on(8, "float64", 20)
    assert one.params["Conv_0"]["kernel"].dtype == np.float64
    np.testing.assert_allclose(losses_1, losses_8, rtol=1e-9)
    assert relative_error(one.params, eight.params) < 1e-9
    assert relative_error(one.extra, eight.extra) < 1e-9


@pytest.mark.parametrize("count", [-1, 9])
def test_devices_that_are_not_there(count):
    with pytest.raises(UserError, match=f"no such device: {count} asked for .* there are 8"):
        devices.mesh(count)


def test_a_batch_lies_in_equal_parts_on_all_devices():
    mesh = devices.mesh()
    shapes = jax.ShapeDtypeStruct((16, 3), jnp.float32)
    batch = devices.put(mesh, np.ones((16, 3), np.float32), shapes)
    assert [shard.data.shape for shard in batch.addressable_shards] == [(2, 3)] * 8
    assert devices.put(mesh, batch, shapes) is batch
