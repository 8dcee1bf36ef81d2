"""Deep Q-learning, as one algorithm: to act, to remember and to learn from what is remembered.

Where games are written in JAX they are in the state, and all is one program (`q_learning`). Games
outside, in an emulator, are played by the data: what came of the actions is the batch
(`q_learning_outside`).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.dqn_learner import Learner
from jaxhist import replay
from jaxhist.algorithm import Algorithm, State
from jaxhist.data import play
from jaxhist.data.play import Game


def whole_round(games: int, every: int) -> tuple[int, int]:
    """Actions of each game, and updates behind them, in a round: of one game four actions, then one
    update; of four games one each, then one update; of eight one each, then two updates."""
    common = math.gcd(games, every)
    return every // common, games // common


def q_learning(
    network: Any,
    game: Game,
    learner: Learner,
    epsilon: Callable[[jax.Array], jax.Array],
    games: int,
    memory: int,
    begin: int,
    every: int,
    rounds: int,
) -> Algorithm:
    """Algorithm 1 of 2015, with some games side by side, in whole rounds.

    Args:
      network: of the player.
      game: which.
      learner: of the same network.
      epsilon: actions so far -> how often one is taken at random.
      games: side by side.
      memory: steps to draw from, of all games together.
      begin: actions before the first update.
      every: actions to an update.
      rounds: in a step of the algorithm, one behind the other.

    Returns:
      The Algorithm. Its batches are the numbers that choose what is drawn from the memory: `number`
      uint32 [B, rounds, updates], the updates being those of a round.
    """
    plays, updates = whole_round(games, every)

    def init(key):
        model_key, game_key = jax.random.split(key)
        return learner.init(model_key, play.begin(game, game_key, games), games, memory)

    def act(state: State, taken: jax.Array, key):
        """One action in each game, remembered."""
        choose, chance = jax.random.split(key)
        of_action = lambda seen: network.apply({"params": state.params}, seen)
        player = play.sometimes_at_random(of_action, game.actions, epsilon(taken))
        before = state.extra.games
        action = player(play.seen(before.recent), choose)
        after, reward, over = play.advance(game, before, action, chance)
        memory = replay.add(state.extra.memory, before.recent[:, -1], action, clip(reward), over)
        return state.replace(extra=state.extra.replace(games=after, memory=memory))

    def step(state: State, batch, key):
        def one_round(state: State, inputs):
            index, number, key = inputs
            for i in range(plays):
                taken = (index * plays + i) * games
                state = act(state, taken, jax.random.fold_in(key, i))
            waits = (index + 1) * plays * games < begin
            total = 0.0
            for i in range(updates):
                state, value = learner.update(state, number[:, i], waits)
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


def q_learning_outside(
    learner: Learner,
    epsilon: Callable[[jax.Array], jax.Array],
    games: int,
    memory: int,
    begin: int,
    every: int,
) -> Algorithm:
    """The same, of games that are played outside; a step is one round.

    Args:
      learner: of the player's network.
      epsilon: actions so far -> how often one is taken at random, for the log.
      games: side by side.
      memory: steps to draw from, of all games together.
      begin: actions before the first update.
      every: actions to an update.

    Returns:
      The Algorithm. Its batches are the numbers, `number` [B, updates]; what came of a round's
      actions, `played`: of each game `frame` [G, plays, H, W, C], `action`, `reward`, `terminal`,
      `keep` and `begins` [G, plays] as `replay.add` takes them; and `score` [G] of the last game
      that ended in each place, NaN before.
    """
    plays, updates = whole_round(games, every)

    def step(state: State, batch, key):
        ring = state.extra.memory
        for i in range(plays):
            of_play = lambda name, i=i: batch["played"][name][:, i]
            ring = replay.add(
                ring,
                of_play("frame"),
                of_play("action"),
                clip(of_play("reward")),
                of_play("terminal"),
                of_play("keep"),
                of_play("begins"),
            )
        taken = (state.step + 1) * plays * games
        state = state.replace(extra=state.extra.replace(memory=ring))
        total = 0.0
        for i in range(updates):
            state, value = learner.update(state, batch["number"][:, i], taken < begin)
            total += value / updates
        metrics = {
            "loss": total,
            "score": jnp.nanmean(batch["score"]),
            "epsilon": epsilon(taken),
            "count/actions": plays * games,
            "count/frames": 4 * plays * games,
        }
        return state.replace(step=state.step + 1), metrics

    return Algorithm(lambda key: learner.init(key, (), games, memory), step)


def clip(reward: jax.Array) -> jax.Array:
    """ "fixing all positive rewards at 1 and all negative rewards at -1"."""
    return jnp.clip(reward, -1, 1)
