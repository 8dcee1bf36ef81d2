"""Batches as a function of the step: batch s depends on the seed and s, and on nothing else.

So a checkpoint holds no iterator: a resumed run sees the batches that it would have seen.
"""

import functools
from collections.abc import Callable

import jax
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
        return jax.device_put(loaded, devices.whole(mesh))

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> jax.Array:
        shuffled = jax.random.permutation(jax.random.fold_in(key.order, epoch), count(arrays()))
        return jax.device_put(shuffled, devices.whole(mesh))

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


def count(arrays: Batch) -> int:
    """The number of examples."""
    return len(jax.tree.leaves(arrays)[0])
