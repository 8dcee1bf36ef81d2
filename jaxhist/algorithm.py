"""An algorithm is a pair of pure functions: `init` makes a state, `step` moves it by one batch.

`descend` makes such a pair from a model, a loss and an optimizer. An algorithm with two players,
a target network or a memory writes its own pair; the trainer never sees the difference.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxhist import UserError
from jaxhist.devices import BATCH, named

Batch = Any  # a pytree of arrays whose first axis is the example
Key = jax.Array
Metrics = dict[str, jax.Array]


class State(struct.PyTreeNode):
    """Everything that training changes, and so everything that a checkpoint holds."""

    step: jax.Array  # [] int32, the number of steps taken
    params: Any  # moved by the gradient
    opt_state: Any  # the optimizer's memory
    extra: Any  # moved without a gradient: batch statistics, target networks, replay


class Algorithm(NamedTuple):
    """init: key -> state; step: (state, batch, key) -> (state, metrics)."""

    init: Callable[[Key], State]
    step: Callable[[State, Batch, Key], tuple[State, Metrics]]


def descend(
    init_model: Callable, loss: Callable, optimizer: optax.GradientTransformation, parts: int = 1
) -> Algorithm:
    """Descend the gradient of a loss.

    Args:
      init_model: key -> (params, extra).
      loss: (params, extra, batch, key) -> (values, (extra, metrics)). `values` is one value per
        example (or token); what is descended is their mean, taken here and nowhere else.
      optimizer: of optax. `optax.MultiSteps(optimizer, k)` accumulates the gradients of k batches.
      parts: of a batch that are taken one after the other, which needs less memory. All must have
        as many values; each has noise of its own.

    Returns:
      The Algorithm. Its metrics are those of the loss and `loss`, the mean.
    """

    def init(key: Key) -> State:
        params, extra = init_model(key)
        return State(jnp.zeros([], jnp.int32), params, optimizer.init(params), extra)

    def slope(params: Any, extra: Any, batch: Batch, key: Key):
        def mean_loss(params):
            values, (after, metrics) = loss(params, extra, batch, key)
            return jnp.mean(values), (after, metrics)

        (value, (after, metrics)), gradient = jax.value_and_grad(mean_loss, has_aux=True)(params)
        return gradient, after, {"loss": value, **metrics}

    def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        of = slope if parts == 1 else partial(_in_parts, slope, parts)
        gradient, extra, metrics = of(state.params, state.extra, batch, key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, opt_state, extra), metrics

    return Algorithm(init, step)


def _in_parts(slope: Callable, parts: int, params: Any, extra: Any, batch: Batch, key: Key):
    """The mean slope of the parts of a batch. Of each device's examples some are in each part."""

    def divided(x):
        x = x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
        return named(x, None, BATCH, *[None] * (x.ndim - 2))

    def add(carry, part):
        total, extra = carry
        gradient, extra, metrics = slope(params, extra, *part)
        return (jax.tree.map(jnp.add, total, gradient), extra), metrics

    start = jax.tree.map(jnp.zeros_like, params), extra
    each = jax.tree.map(divided, batch), jax.random.split(key, parts)
    (total, extra), metrics = jax.lax.scan(add, start, each)
    gradient = jax.tree.map(lambda x: x / parts, total)
    whole = lambda name, x: x.sum() if name.startswith("count/") else x.mean(0)
    return gradient, extra, {name: whole(name, x) for name, x in metrics.items()}


DIVERGED = 1e3  # a loss above this, in `side_by_side`


def side_by_side(
    algorithm_of: Callable[[jax.Array], Algorithm], settings: Sequence[float]
) -> Algorithm:
    """Algorithms that differ in one number, such as the learning rate, as one program.

    All begin with the same parameters and see the same batches and keys. One that diverges, that is
    whose loss is not finite or above `DIVERGED`, stays where it was; its loss is `DIVERGED` from
    then on. For products of matrices: convolutions with many kernels at once are slow on CPU.

    Args:
      algorithm_of: setting, a float32 [], -> Algorithm.
      settings: one for each.

    Returns:
      The Algorithm. Its params, opt_state and extra have a first axis for the settings. Its metrics
      are those of each, as `by_setting` names them, and `diverged`, how many did.
    """
    values = jnp.array(settings, jnp.float32)
    axes = State(step=None, params=0, opt_state=0, extra=0)

    def init(key: Key) -> State:
        state = jax.vmap(lambda value: algorithm_of(value).init(key), out_axes=axes)(values)
        return state.replace(extra=(state.extra, jnp.zeros(len(values), bool)))

    def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        extra, diverged = state.extra
        before = state.replace(extra=extra)
        step_of = lambda value, state: algorithm_of(value).step(state, batch, key)
        after, metrics = jax.vmap(step_of, in_axes=(0, axes), out_axes=(axes, 0))(values, before)
        moved = lambda state: (state.params, state.opt_state, state.extra)
        finite = [
            jnp.isfinite(x).reshape(len(values), -1).all(1) for x in jax.tree.leaves(moved(after))
        ]
        diverged |= ~(metrics["loss"] < DIVERGED) | ~jnp.stack(finite).all(0)
        chosen = lambda new, old: jax.vmap(jnp.where)(diverged, old, new)
        params, opt_state, extra = jax.tree.map(chosen, moved(after), moved(before))
        metrics["loss"] = jnp.where(diverged, DIVERGED, metrics["loss"])
        counts = {name: metrics.pop(name)[0] for name in list(metrics) if name.startswith("count/")}
        metrics = by_setting(settings, metrics) | counts | {"diverged": diverged.sum()}
        return State(after.step, params, opt_state, (extra, diverged)), metrics

    return Algorithm(init, step)


def by_setting(settings: Sequence[float], metrics: Metrics) -> Metrics:
    """Metrics whose first axis is the setting, as one of each: `loss` -> `loss 0.01`, ..."""
    return {
        f"{name} {setting:g}": value[i]
        for name, value in metrics.items()
        for i, setting in enumerate(settings)
    }


class Keys(NamedTuple):
    """A stream of keys for each purpose; `fold_in(key, step)` gives those of a step."""

    init: Key  # of the parameters
    step: Key  # of what a step draws: dropout, noise
    order: Key  # of the examples
    draw: Key  # of the augmentation


def seeded(seed: int) -> Key:
    """A stream.

    Raises:
      UserError: there is none of this number.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"there is no seed {seed}; one is from 0 to 2^63 - 1")
    return jax.random.key(seed)


def keys(seed: int) -> Keys:
    """The keys of a run. Raises as `seeded`."""
    return Keys(*jax.random.split(seeded(seed), len(Keys._fields)))
