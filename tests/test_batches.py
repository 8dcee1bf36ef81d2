import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhist import UserError, devices
from jaxhist.data import batches

N, SIZE = 50, 16  # three batches and a rest of two
ARRAYS = {"number": np.arange(N), "image": np.arange(N * 4, dtype=np.uint8).reshape(N, 2, 2)}


def noisy(batch, key):
    return batch | {"noise": jax.random.normal(key, (SIZE,))}


def make(seed=0, mesh=None, size=SIZE):
    return batches.on_device(lambda: ARRAYS, size, seed, mesh or devices.mesh(), noisy)


def test_a_batch_is_a_function_of_the_step():
    """Of nothing that was read before."""
    straight = [make()(step, None) for step in [7]]
    data = make()
    wandering = [data(step, None) for step in (0, 11, 3, 7)][-1:]
    jax.tree.map(np.testing.assert_array_equal, straight, wandering)


def test_a_batch_does_not_depend_on_the_devices():
    one, eight = make(mesh=devices.mesh(1)), make(mesh=devices.mesh(8))
    for step in (0, 5):
        jax.tree.map(np.testing.assert_array_equal, one(step, None), eight(step, None))
    assert eight(0, None)["number"].sharding.is_equivalent_to(devices.split(devices.mesh(8)), 1)


def test_every_epoch_is_another_order_without_repetition():
    data = make()
    epochs = [
        np.concatenate([data(epoch * 3 + i, None)["number"] for i in range(3)]) for epoch in (0, 1)
    ]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 48
    assert (epochs[0] != epochs[1]).any()
    seen = {int(n) for step in range(60) for n in data(step, None)["number"]}
    assert seen == set(range(N))  # the rest of an epoch is not always the same


def test_the_parts_of_an_example_stay_together():
    batch = make()(4, None)
    np.testing.assert_array_equal(batch["image"][:, 0, 0], (batch["number"] * 4).astype(np.uint8))


def test_noise_differs_from_step_to_step_and_from_seed_to_seed():
    noise = [make(seed)(step, None)["noise"] for seed, step in [(0, 0), (0, 1), (0, 3), (1, 0)]]
    assert len({tuple(n.tolist()) for n in noise}) == 4


def test_the_seed_changes_the_order():
    assert (make(0)(0, None)["number"] != make(1)(0, None)["number"]).any()


def test_no_data_is_read_before_the_first_batch():
    def load():
        raise UserError("read")

    data = batches.on_device(load, SIZE, 0, devices.mesh(), noisy)
    with pytest.raises(UserError, match="read"):
        data(0, None)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="64 is more than the 50"):
        make(size=64)(0, None)


def test_batches_are_made_by_one_program():
    traced = []

    def prepare(batch, key):
        traced.append(None)
        return jax.tree.map(jnp.asarray, batch)

    data = batches.on_device(lambda: ARRAYS, SIZE, 0, devices.mesh(), prepare)
    for step in range(7):
        data(step, None)
    assert len(traced) == 1
