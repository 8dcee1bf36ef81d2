"""The part of deep Q-learning that learns from what is remembered.

To it the memory is the data, and the target network a constant that comes along, so `descend` makes
it. The memory and the target network are in the state, and a checkpoint has them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxhist import UserError, losses, replay
from jaxhist.algorithm import State, descend
from jaxhist.data import play
from jaxhist.replay import Ring, Transitions


class Extra(struct.PyTreeNode):
    """What is moved without a gradient."""

    target: Any  # parameters as they were some updates ago
    updates: jax.Array  # [] int32, so far
    games: Any  # those that are written in JAX
    memory: Ring


class Practice(NamedTuple):
    """How acting and learning take turns, in whole rounds: of one game four actions, then one
    update; of four games one each, then one update; of eight one each, then two updates."""

    games: int  # side by side
    every: int  # actions to an update
    begin: int  # actions before the first update
    explore: int  # actions then, while those at random become a tenth
    memory: int  # steps to draw from, of all games together

    @property
    def plays(self) -> int:
        """Actions of each game in a round."""
        return self.every // math.gcd(self.games, self.every)

    @property
    def updates(self) -> int:
        """Behind the actions of a round."""
        return self.games // math.gcd(self.games, self.every)

    @property
    def actions(self) -> int:
        """Of all games in a round."""
        return self.games * self.plays

    def epsilon(self, taken: jax.Array) -> jax.Array:
        """How often an action is taken at random, after so many."""
        return optax.linear_schedule(1.0, 0.1, self.explore, self.begin)(taken)

    def check(self, history: int):
        """Raise UserError if a player who sees so many frames would have nothing to learn from."""
        if self.memory < self.games:
            raise UserError(f"a memory of {self.memory} is too small for {self.games} games")
        if self.begin < self.games * (history + 1):
            raise UserError(
                f"before the first update, each of {self.games} games wants some actions; "
                f"begin must be at least {self.games * (history + 1)}, not {self.begin}"
            )


class Learner(NamedTuple):
    """The part that learns."""

    init: Callable  # key, games, Practice -> State
    # state, numbers [B] uint32, whether to wait -> state, loss
    update: Callable[[State, jax.Array, jax.Array], tuple[State, jax.Array]]


def learn(
    network: Any,
    frame: jax.ShapeDtypeStruct,
    history: int,
    optimizer: optax.GradientTransformation,
    discount: float,
    target_every: int,
) -> Learner:
    """Learn from what is remembered.

    Args:
      network: gives the values of actions [B, actions] of what is seen [B, H, W, history * C].
      frame: [H, W, C].
      history: frames that are seen.
      optimizer: of the network; one that stays where it is while the gradient is 0.
      discount: gamma.
      target_every: updates from one copy of the parameters to the target network to the next; 1:
        the network is its own target.
    """
    value = lambda params, seen: network.apply({"params": params}, seen)

    def init_model(key):
        H, W, C = frame.shape
        params = network.init(key, jnp.zeros((1, H, W, history * C), frame.dtype))["params"]
        return params, params

    def loss(params, target, batch: Transitions, key):
        q_tm1 = value(params, batch.seen_tm1)
        q_t = value(target, batch.seen_t)
        error = losses.q_learning_error(
            q_tm1, batch.action_tm1, batch.reward_t, batch.terminal_t, q_t, discount
        )
        return batch.weight * losses.huber(error), (target, {})

    learner = descend(init_model, loss, optimizer)

    def init(key, games, practice: Practice):
        state = learner.init(key)
        size = practice.memory // practice.games + history
        ring = replay.empty(practice.games, size, frame)
        return state.replace(extra=Extra(state.extra, state.step, games, ring))

    def update(state: State, number: jax.Array, waits: jax.Array):
        extra = state.extra
        drawn = replay.draw(extra.memory, number, history)
        unflat = lambda frames: play.seen(frames.reshape(len(number), history, *frame.shape))
        drawn = drawn.replace(
            seen_tm1=unflat(drawn.seen_tm1),
            seen_t=unflat(drawn.seen_t),
            # Without a gradient this optimizer moves nothing. A branch (`lax.cond`) would skip the
            # work too, but XLA's CPU backend is twenty times slower at convolutions inside one.
            weight=jnp.where(waits, 0, drawn.weight),
        )
        before = State(extra.updates, state.params, state.opt_state, extra.target)
        after, metrics = learner.step(before, drawn, None)
        updates = extra.updates + ~waits
        copies = updates % target_every == 0
        target = jax.tree.map(
            lambda new, old: jnp.where(copies, new, old), after.params, extra.target
        )
        extra = extra.replace(target=target, updates=updates)
        return after.replace(step=state.step, extra=extra), metrics["loss"]

    return Learner(init, update)


def rmsprop(rate: float, batch: int) -> optax.GradientTransformation:
    """That of the published code: centred, without momentum ("gradient momentum" is the decay of
    the mean gradient), and 0.01 in the root. There it is for the sum over a batch, here for the
    mean."""
    return optax.rmsprop(rate, decay=0.95, eps=0.01 / batch**2, centered=True)
