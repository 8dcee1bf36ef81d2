"""Batches as a function of the step: batch s depends on the seed and s, and on nothing else.

So a checkpoint holds no iterator: a resumed run sees the batches that it would have seen.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from jaxhist import UserError, devices
from jaxhist.algorithm import Batch, Key, State, keys


def on_device(
    load: Callable[[], Batch],
    size: int,
    seed: int,
    mesh: Mesh,
    prepare: Callable[[Batch, Key], Batch],
) -> Callable[[int, State], Batch]:
    """Batches of a data set that lies on the devices, whole on each.

    Every epoch has an order of its own and as many full batches as there are; the examples that are
    left over are others in each epoch.

    Args:
      load: -> arrays with the same first axis, N examples. Called once, before the first batch.
      size: examples per batch.
      seed: of the order and of what `prepare` draws.
      mesh: the devices; a batch is split over them.
      prepare: (batch, key) -> batch, traceable: augmentation, normalisation.

    Returns:
      (step, state) -> batch.

    Raises:
      UserError (at the first batch): the data set is smaller than a batch.
    """
    key = keys(seed)

    @functools.cache
    def arrays() -> Batch:
        loaded = load()
        if count(loaded) < size:
            raise UserError(f"a batch of {size} is more than the {count(loaded)} training examples")
        return devices.place(loaded, devices.whole(mesh))

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> jax.Array:
        shuffled = jax.random.permutation(jax.random.fold_in(key.order, epoch), count(arrays()))
        return devices.place(shuffled, devices.whole(mesh))

    @functools.partial(jax.jit, out_shardings=devices.split(mesh))
    def gather(arrays: Batch, order: jax.Array, batch: jax.Array, step: jax.Array) -> Batch:
        chosen = jax.lax.dynamic_slice_in_dim(order, batch * size, size)
        return prepare(
            jax.tree.map(lambda a: a[chosen], arrays), jax.random.fold_in(key.draw, step)
        )

    def data(step: int, state: State) -> Batch:
        epoch, batch = divmod(step, count(arrays()) // size)
        return gather(arrays(), order(epoch), batch, step)

    return data


def streamed(
    load: Callable[[], Sequence[Any]],
    view: Callable[[Any, np.random.Generator], Batch],
    size: int,
    seed: int,
    mesh: Mesh,
    prepare: Callable[[Batch, Key], Batch],
    workers: int = 0,
) -> Callable[[int, State], Batch]:
    """Batches of a data set that is read while the devices compute.

    Every epoch has an order of its own and all examples; a batch may end one and begin the next.
    Threads read ahead of the step that is asked for; any other step may be asked for at any time.

    Args:
      load: -> the examples, each read when it is asked for. Called once, before the first batch.
      view: (example, random) -> arrays of the same shapes for every example. Called on the host.
      size: examples per batch.
      seed: of the order and of what `view` and `prepare` draw.
      mesh: the devices; a batch is split over them.
      prepare: (batch, key) -> batch, traceable: what is left to do on the device.
      workers: threads, 0 for one to a core. The batches are the same with any number.

    Returns:
      (step, state) -> batch.
    """
    key = keys(seed)

    # An endless sequence, of which batch s is the views from s * size on.
    @functools.cache
    def views() -> grain.MapDataset:
        shuffled = grain.MapDataset.source(load()).seed(int(jax.random.bits(key.order))).shuffle()
        return shuffled.repeat().random_map(view)

    @functools.partial(jax.jit, out_shardings=devices.split(mesh))
    def finish(batch: Batch, step: jax.Array) -> Batch:
        return prepare(batch, jax.random.fold_in(key.draw, step))

    def joined(rows: np.ndarray) -> jax.Array:
        """Those of all processes."""
        shape = size, *rows.shape[1:]
        return jax.make_array_from_process_local_data(devices.split(mesh), rows, shape)

    stream: Iterator[Batch] = iter(())
    following = None  # the step whose batch the stream gives next

    def data(step: int, state: State) -> Batch:
        nonlocal stream, following
        if step != following:
            begin, end = devices.rows(mesh, size)
            mine = _Rows(views(), size, begin, end)
            stream = _read_ahead(mine[step * (end - begin) :], end - begin, workers)
        batch = jax.tree.map(joined, next(stream))
        following = step + 1
        return finish(batch, step)

    return data


class _Rows(grain.MapDataset):
    """Of every batch of views those from `begin` to `end`, which a process has."""

    def __init__(self, views: grain.MapDataset, size: int, begin: int, end: int):
        super().__init__(views)
        self._size, self._begin, self._count = size, begin, end - begin

    def __len__(self) -> int:
        return len(self._parent) // self._size * self._count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._count)
        return self._parent[batch * self._size + self._begin + row]


def in_order(
    examples: Sequence[Any], view: Callable[[Any], Batch], size: int, workers: int = 0
) -> Iterator[Batch]:
    """Batches of views of all examples, each once, read ahead. The last one may be smaller.

    Args:
      examples: each is read when it is asked for.
      view: example -> arrays of the same shapes for every example.
      size: examples per batch.
      workers: threads, 0 for one to a core.
    """
    return _read_ahead(grain.MapDataset.source(examples).map(view), size, workers)


def slices(arrays: Batch, size: int = 500) -> Iterator[Batch]:
    """Batches of all examples of arrays with the same first axis. The last one may be smaller."""
    for begin in range(0, count(arrays), size):
        yield jax.tree.map(lambda array, begin=begin: array[begin : begin + size], arrays)


def _read_ahead(views: grain.MapDataset, size: int, workers: int) -> Iterator[Batch]:
    """Batches of views that threads make, up to three batches ahead.

    Threads, not processes, which start slowly and copy: Pillow decodes and scales without Python's
    lock. Of the 1.4 ms that a photograph of 320 x 270 takes, 0.2 hold it, so about seven cores are
    kept busy; more of them need larger photographs, or processes.
    """
    threads = workers or devices.cores()
    options = grain.ReadOptions(threads, prefetch_buffer_size=max(3 * size, threads))
    return iter(views.to_iter_dataset(options).batch(size))


def count(arrays: Batch) -> int:
    """The number of examples."""
    return len(jax.tree.leaves(arrays)[0])
