"""An algorithm is a pair of pure functions: `init` makes a state, `step` moves it by one batch.

`descend` makes such a pair from a model, a loss and an optimizer. An algorithm with two players,
a target network or a memory writes its own pair; the trainer never sees the difference.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

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


def descend(init_model: Callable, loss: Callable, optimizer: optax.GradientTransformation):
    """Descend the gradient of a loss.

    Args:
      init_model: key -> (params, extra).
      loss: (params, extra, batch, key) -> (values, (extra, metrics)). `values` is one value per
        example (or token); what is descended is their mean, taken here and nowhere else.
      optimizer: of optax. `optax.MultiSteps(optimizer, k)` accumulates the gradients of k batches.

    Returns:
      The Algorithm. Its metrics are those of the loss and `loss`, the mean.
    """

    def init(key: Key) -> State:
        params, extra = init_model(key)
        return State(jnp.zeros([], jnp.int32), params, optimizer.init(params), extra)

    def step(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        def mean_loss(params):
            values, (extra, metrics) = loss(params, state.extra, batch, key)
            return jnp.mean(values), (extra, metrics)

        (value, (extra, metrics)), gradient = jax.value_and_grad(mean_loss, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, opt_state, extra), {"loss": value, **metrics}

    return Algorithm(init, step)


class Keys(NamedTuple):
    """A stream of keys for each purpose; `fold_in(key, step)` gives those of a step."""

    init: Key  # of the parameters
    step: Key  # of what a step draws: dropout, noise
    order: Key  # of the examples
    draw: Key  # of the augmentation


def keys(seed: int) -> Keys:
    """The keys of a run."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))
