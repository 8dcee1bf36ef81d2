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


def on(count):
    """One step on `count` devices; its loss, the state before and after it, as numpy."""
    mesh = devices.mesh(count)
    experiment = build(CONFIG, Run(devices=count))
    first = jax.jit(experiment.init, out_shardings=devices.whole(mesh))(KEY.init)
    step = jax.jit(experiment.step, out_shardings=devices.whole(mesh))
    batch = devices.put(mesh, experiment.data(0, first), experiment.batch)
    after, metrics = step(first, batch, KEY.step)
    return jax.device_get((metrics["loss"], first, after))


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
    (loss_1, first_1, one), (loss_8, first_8, eight) = on(1), on(8)
    jax.tree.map(np.testing.assert_array_equal, first_1, first_8)
    np.testing.assert_allclose(loss_1, loss_8, rtol=1e-5)
    assert relative_error(gradient(first_1, one), gradient(first_8, eight)) < 1e-5
    assert relative_error(one.extra, eight.extra) < 1e-5  # statistics of the whole batch


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


def test_a_memory_that_is_full_is_one_line():
    with (
        pytest.raises(UserError, match=r"is full \(Out of memory allocating \d+ bytes.*--batch"),
        devices.failing_in_one_line(),
    ):
        jnp.zeros(2**50)  # more than there are addresses


def test_what_else_fails_on_a_device_is_no_such_line():
    with pytest.raises(jax.errors.JaxRuntimeError, match="lost"), devices.failing_in_one_line():
        raise jax.errors.JaxRuntimeError("INTERNAL: the device is lost")
