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
    """Train on `count` devices; the losses and the final state, as numpy."""
    mesh = devices.mesh(count)
    experiment = build(dataclasses.replace(CONFIG, dtype=dtype), Run(devices=count))
    init = jax.jit(experiment.init, out_shardings=devices.whole(mesh))
    cast = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
    state = jax.tree.map(cast, init(KEY.init))
    step = jax.jit(experiment.step, out_shardings=devices.whole(mesh))
    losses = []
    for s in range(steps):
        batch = devices.put(mesh, experiment.data(s, state), experiment.batch)
        state, metrics = step(state, batch, jax.random.fold_in(KEY.step, s))
        losses.append(metrics["loss"])
    return jax.device_get((losses, state))


def relative_error(a, b):
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    a, b = flat(a), flat(b)
    return np.linalg.norm(a - b) / np.linalg.norm(a)


def test_one_step_on_1_and_8_devices_agrees_in_float32():
    (losses_1, one), (losses_8, eight) = on(1), on(8)
    np.testing.assert_allclose(losses_1, losses_8, rtol=1e-5)
    (momentum_1,), (momentum_8,) = (
        [s.trace for s in jax.tree.leaves(state.opt_state, is_leaf=is_trace) if is_trace(s)]
        for state in (one, eight)
    )
    # After one step the momentum is the gradient.
    assert relative_error(momentum_1, momentum_8) < 1e-5
    assert relative_error(one.extra, eight.extra) < 1e-5  # statistics of the whole batch


def is_trace(node):
    return isinstance(node, optax.TraceState)


def test_20_steps_on_1_and_8_devices_agree_in_float64():
    with jax.enable_x64(True):
        (losses_1, one), (losses_8, eight) = on(1, "float64", 20), on(8, "float64", 20)
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
