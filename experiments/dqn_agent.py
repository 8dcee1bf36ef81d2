"""Deep Q-learning, as one algorithm: to act, to remember and to learn from what is remembered.

`descend` makes the part that learns; to it the memory is the data and the target network a constant
that comes along. The games, the memory and the target network are in the state, so a checkpoint has
them all.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxhist import losses, replay
from jaxhist.algorithm import Algorithm, State, descend
from jaxhist.data import play
from jaxhist.data.play import Game, Games
from jaxhist.replay import Ring, Transitions


class Extra(struct.PyTreeNode):
    """What is moved without a gradient."""

    target: Any  # parameters as they were some updates ago
    updates: jax.Array  # [] int32, so far
    games: Games
    memory: Ring


def q_learning(
    network: Any,
    game: Game,
    optimizer: optax.GradientTransformation,
    discount: float,
    epsilon: Callable[[jax.Array], jax.Array],
    games: int,
    memory: int,
    begin: int,
    every: int,
    target_every: int,
    rounds: int,
) -> Algorithm:
    """Algorithm 1 of 2015, with some games side by side.

    A round plays as many actions in all games as it takes to come to whole updates: of one game
    four, then one update; of four games one each, then one update; of eight one each, then two.

    Args:
      network: gives the values of actions [B, actions] of what is seen [B, H, W, history * C].
      game: which.
      optimizer: of the network.
      discount: gamma.
      epsilon: actions so far -> how often one is taken at random.
      games: side by side.
      memory: steps to draw from, of all games together.
      begin: actions before the first update.
      every: actions to an update.
      target_every: updates from one copy of the parameters to the target network to the next; 1:
        the network is its own target.
      rounds: in a step of the algorithm, one behind the other.

    Returns:
      The Algorithm. Its batches are the numbers that choose what is drawn from the memory: `number`
      uint32 [B, rounds, updates], the updates being those of a round.
    """
    common = math.gcd(games, every)
    plays, updates = every // common, games // common
    history, shape = game.history, game.frame.shape
    value = lambda params, seen: network.apply({"params": params}, seen)

    def init_model(key):
        seen = jnp.zeros((1, *shape[:2], history * shape[2]), game.frame.dtype)
        params = network.init(key, seen)["params"]
        return params, params

    def loss(params, target, batch: Transitions, key):
        q_tm1 = value(params, batch.seen_tm1)
        q_t = value(target, batch.seen_t)
        error = losses.q_learning_error(
            q_tm1, batch.action_tm1, batch.reward_t, batch.terminal_t, q_t, discount
        )
        return losses.huber(error), (target, {})

    learner = descend(init_model, loss, optimizer)

    def init(key):
        model_key, game_key = jax.random.split(key)
        state = learner.init(model_key)
        extra = Extra(
            state.extra,
            state.step,
            play.begin(game, game_key, games),
            replay.empty(games, memory // games + history, game.frame),
        )
        return state.replace(extra=extra)

    def act(state: State, taken: jax.Array, key):
        """One action in each game, remembered."""
        choose, chance = jax.random.split(key)
        of_action = lambda seen: value(state.params, seen)
        player = play.sometimes_at_random(of_action, game.actions, epsilon(taken))
        before = state.extra.games
        action = player(play.seen(before.recent), choose)
        after, reward, over = play.advance(game, before, action, chance)
        # "fixing all positive rewards at 1 and all negative rewards at -1".
        reward = jnp.clip(reward, -1, 1)
        kept = replay.add(state.extra.memory, before.recent[:, -1], action, reward, over)
        return state.replace(extra=state.extra.replace(games=after, memory=kept))

    def update(state: State, number: jax.Array):
        """A step of the learner on what the numbers draw."""
        extra = state.extra
        drawn = replay.draw(extra.memory, number, history)
        unflat = lambda frames: play.seen(frames.reshape(len(number), history, *shape))
        drawn = drawn.replace(seen_tm1=unflat(drawn.seen_tm1), seen_t=unflat(drawn.seen_t))
        before = State(extra.updates, state.params, state.opt_state, extra.target)
        after, metrics = learner.step(before, drawn, None)
        copies = after.step % target_every == 0
        target = jax.tree.map(
            lambda new, old: jnp.where(copies, new, old), after.params, extra.target
        )
        return (after.params, after.opt_state, target, after.step), metrics["loss"]

    def step(state: State, batch, key):
        def one_round(state: State, inputs):
            index, number, key = inputs
            for i in range(plays):
                taken = (index * plays + i) * games
                state = act(state, taken, jax.random.fold_in(key, i))
            waits = (index + 1) * plays * games < begin
            total = 0.0
            for i in range(updates):
                moved = state.params, state.opt_state, state.extra.target, state.extra.updates
                moved, value = jax.lax.cond(
                    waits,
                    lambda state, number, moved=moved: (moved, jnp.float32(0)),
                    update,
                    state,
                    number[:, i],
                )
                params, opt_state, target, count = moved
                extra = state.extra.replace(target=target, updates=count)
                state = state.replace(params=params, opt_state=opt_state, extra=extra)
                total += value / updates
            return state, total

        indices = state.step * rounds + jnp.arange(rounds)
        numbers = jnp.moveaxis(batch["number"], 1, 0)  # [rounds, B, updates]
        keys = jax.random.split(key, rounds)
        state, values = jax.lax.scan(one_round, state, (indices, numbers, keys))
        metrics = {
            "loss": values.mean(),
            "score": state.extra.games.final.mean(),  # of the last game that ended, in each place
            "epsilon": epsilon(indices[-1] * plays * games),
            "count/actions": rounds * plays * games,
        }
        return state.replace(step=state.step + 1), metrics

    return Algorithm(init, step)
