"""Numbers that are not finite end a run: found without waiting for the devices, named exactly.

Each step carries along the number of the first step whose loss was NaN or infinite. Whoever fetches
metrics anyway sees it; a state is looked at in full before it is saved.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxhist import UserError, devices
from jaxhist.algorithm import Batch, Key, State

NEVER = np.iinfo(np.int32).max  # the first bad step, where there is none


class NonFinite(Exception):
    """A number became NaN or infinite; `step` is the first such step, counted from 0."""

    def __init__(self, step: int, what: str = "loss"):
        super().__init__(f"the {what} of step {step} is not finite")
        self.step = step


class Diverged(UserError):
    """That has ended a run, as its log says; `step` is as above."""

    def __init__(self, step: int, text: str):
        super().__init__(text)
        self.step = step


def watched(step: Callable, key: Key) -> Callable:
    """(state, batch, first) -> (state, metrics), where metrics["nonfinite"] is the first bad step.

    Args:
      step: of an algorithm; its metrics whose names begin with `loss` are watched.
      key: from which each step gets its own.
    """

    def update(state: State, batch: Batch, first: jax.Array):
        after, metrics = step(state, batch, jax.random.fold_in(key, state.step))
        losses = [value for name, value in metrics.items() if name.startswith("loss")]
        finite = jnp.isfinite(jnp.stack(losses)).all()
        first = jnp.minimum(first, jnp.where(finite, NEVER, state.step))
        return after, metrics | {"nonfinite": first}

    return update


def traced(
    step: Callable, key: Key, mesh: Mesh | AbstractMesh, layout: State, batch: Batch
) -> jax.stages.Traced:
    """The program that the trainer runs: a watched step, which takes over the state's memory.

    Args:
      step: of an algorithm.
      key: from which each step gets its own.
      mesh: on which it runs.
      layout: of the state there.
      batch: its shapes.
    """
    placed = devices.shardings(layout), devices.whole(mesh)
    update = jax.jit(watched(step, key), donate_argnums=0, out_shardings=placed)
    first = jax.ShapeDtypeStruct((), np.int32, sharding=devices.whole(mesh))
    return update.trace(layout, devices.spread(mesh, batch), first)


@jax.jit
def _all_finite(state: State) -> jax.Array:
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def check(step: int, state: State, first: jax.Array):
    """Wait for step number `step`, counted from 0, and the state that it left.

    Raises:
      NonFinite: a loss until then, or the state, is not finite.
    """
    finite, first = jax.device_get((_all_finite(state), first))
    if first != NEVER:
        raise NonFinite(int(first))
    if not finite:
        raise NonFinite(step, "state at the end")
