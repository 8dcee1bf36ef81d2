"""Measures over a whole data set."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxhist import devices
from jaxhist.algorithm import Batch, State


def means(measure: Callable, mesh: Mesh, size: int = 500) -> Callable[[State, Batch], dict]:
    """The means of measures over a data set, each example counted once.

    Args:
      measure: (state, batch) -> {name: [B]}, one value per example.
      mesh: the devices that share each batch.
      size: the most examples to measure at once.

    Returns:
      (state, arrays) -> {name: float}. `arrays` is a pytree of numpy arrays with the same first
      axis. The last batch is padded and the padding masked, so that one program measures all.
    """
    size = -(-size // mesh.size) * mesh.size

    @jax.jit
    def sums(state: State, batch: Batch, mask: jax.Array):
        return jax.tree.map(
            lambda values: jnp.sum(jnp.where(mask, values, 0)), measure(state, batch)
        )

    def mean(state: State, arrays: Batch) -> dict[str, float]:
        count = len(jax.tree.leaves(arrays)[0])
        parts = []
        for begin in range(0, count, size):
            part = jax.tree.map(functools.partial(_part, begin=begin, size=size), arrays)
            mask = np.arange(begin, begin + size) < count
            parts.append(sums(state, *jax.device_put((part, mask), devices.split(mesh))))
        parts = jax.device_get(parts)
        return {name: float(sum(part[name] for part in parts) / count) for name in parts[0]}

    return mean


def _part(array: np.ndarray, begin: int, size: int) -> np.ndarray:
    """[N, ...] -> [size, ...], from `begin`, zeros behind the end."""
    part = array[begin : begin + size]
    return np.pad(part, [(0, size - len(part))] + [(0, 0)] * (array.ndim - 1))
