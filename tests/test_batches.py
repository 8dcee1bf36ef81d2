import time

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


class Slow:
    """N numbers; some take longer to read than the following."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        time.sleep(0.002 * (i % 3))
        return int(i)


def stream(seed=0, mesh=None, workers=2, prepare=noisy):
    view = lambda number, random: {"number": np.int32(number), "crop": random.uniform()}
    return batches.streamed(Slow, view, SIZE, seed, mesh or devices.mesh(), prepare, workers)


def test_a_stream_does_not_depend_on_the_workers():
    one, four = stream(workers=1), stream(workers=4)
    for step in range(8):
        jax.tree.map(np.testing.assert_array_equal, one(step, None), four(step, None))


def test_a_stream_goes_on_at_any_step():
    data = stream()
    straight = [data(step, None) for step in range(6)]
    for start in (4, 0, 2):
        again = stream()
        resumed = [again(step, None) for step in range(start, 6)]
        jax.tree.map(np.testing.assert_array_equal, straight[start:], resumed)
    wandering = [data(step, None) for step in (3, 1, 1, 2)]
    jax.tree.map(np.testing.assert_array_equal, [straight[i] for i in (3, 1, 1, 2)], wandering)


def test_every_epoch_of_a_stream_is_a_permutation():
    data = stream()
    numbers = np.concatenate([data(step, None)["number"] for step in range(10)])
    epochs = numbers[: 3 * N].reshape(3, N)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(N))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_a_stream_draws_anew_for_every_example_and_step_and_seed():
    drawn = []
    for seed in (0, 1):
        data = stream(seed)
        drawn += [data(step, None) for step in range(4)]
    assert len(set(np.concatenate([batch["crop"] for batch in drawn]).tolist())) == 8 * SIZE
    assert len({tuple(batch["noise"].tolist()) for batch in drawn}) == 8
    assert (drawn[0]["number"] != drawn[4]["number"]).any()


def test_a_stream_and_a_data_set_on_the_devices_prepare_with_the_same_keys():
    noise = [data(5, None)["noise"] for data in (make(), stream())]
    np.testing.assert_array_equal(*noise)


def test_a_stream_lies_on_the_devices_and_does_not_depend_on_them():
    one, eight = (stream(mesh=devices.mesh(count))(1, None) for count in (1, 8))
    jax.tree.map(np.testing.assert_array_equal, one, eight)
    assert eight["number"].sharding.is_equivalent_to(devices.split(devices.mesh(8)), 1)


def test_a_stream_reads_only_a_few_batches_ahead():
    read = []

    class Counted(Slow):
        def __getitem__(self, i):
            read.append(i)
            return int(i)

    view = lambda number, random: np.int32(number)
    data = batches.streamed(Counted, view, SIZE, 0, devices.mesh(), lambda batch, key: batch)
    assert not read
    for step in range(1, 9):
        data(step - 1, None)
        assert len(read) <= (step + 3) * SIZE
    while len(read) <= 8 * SIZE:  # threads read on, in their own time
        time.sleep(0.01)


def test_batches_of_a_stream_are_made_by_one_program():
    traced = []

    def prepare(batch, key):
        traced.append(None)
        return batch

    data = stream(prepare=prepare)
    for step in (0, 1, 2, 5, 0):
        data(step, None)
    assert len(traced) == 1


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("size, last", [(16, 2), (50, 50), (64, 50)])
def test_in_order_gives_every_example_once(workers, size, last):
    parts = list(batches.in_order(Slow(), np.int32, size, workers))
    assert len(parts[-1]) == last
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(N))


def test_slices_give_every_example_once():
    parts = list(batches.slices(ARRAYS, 16))
    assert [len(part["image"]) for part in parts] == [16, 16, 16, 2]
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    jax.tree.map(np.testing.assert_array_equal, joined, ARRAYS)
