"""Deep Q-learning, as one algorithm: to act, to remember and to learn from what is remembered.

Where games are written in JAX they are in the state, and all is one program (`q_learning`). Games
outside, in an emulator, are played by the data: what came of the actions is the batch
(`q_learning_outside`).
"""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.dqn_learner import Learner, Practice
from jaxhist import replay
from jaxhist.algorithm import Algorithm, State
from jaxhist.data import play
from jaxhist.data.play import Game


def q_learning(
    network: Any,
    game: Game,
    learner: Learner,
    practice: Practice,
    rounds: int,
) -> Algorithm:
    """Algorithm 1 of 2015, with some games side by side.

    Args:
      network: of the player.
      game: which.
      learner: of the same network.
      practice: how acting and learning take turns.
      rounds: in a step of the algorithm, one behind the other.

    Returns:
      The Algorithm. Its batches are the numbers that choose what is drawn from the memory: `number`
      uint32 [B, rounds, updates], the updates being those of a round.
    """

    def init(key):
        model_key, game_key = jax.random.split(key)
        return learner.init(model_key, play.begin(game, game_key, practice.games), practice)

    def act(state: State, taken: jax.Array, key):
        """One action in each game, remembered."""
        choose, chance = jax.random.split(key)
        of_action = lambda seen: network.apply({"params": state.params}, seen)
        player = play.sometimes_at_random(of_action, game.actions, practice.epsilon(taken))
        before = state.extra.games
        action = player(play.seen(before.recent), choose)
        after, reward, over = play.advance(game, before, action, chance)
        memory = replay.add(state.extra.memory, before.recent[:, -1], action, clip(reward), over)
        return state.replace(extra=state.extra.replace(games=after, memory=memory))

    def step(state: State, batch, key):
        def one_round(state: State, inputs):
            index, number, key = inputs
            for i in range(practice.plays):
                taken = index * practice.actions + i * practice.games
                state = act(state, taken, jax.random.fold_in(key, i))
            return learn_of_round(learner, practice, state, index, number)

        indices = state.step * rounds + jnp.arange(rounds)
        numbers = jnp.moveaxis(batch["number"], 1, 0)  # [rounds, B, updates]
        keys = jax.random.split(key, rounds)
        state, values = jax.lax.scan(one_round, state, (indices, numbers, keys))
        metrics = {
            "loss": values.mean(),
            "score": state.extra.games.final.mean(),  # of the last game that ended, in each place
            "epsilon": practice.epsilon(indices[-1] * practice.actions),
            "count/actions": rounds * practice.actions,
            "count/examples": numbers.size,  # that are drawn from the memory
        }
        return state.replace(step=state.step + 1), metrics

    return Algorithm(init, step)


def q_learning_outside(learner: Learner, practice: Practice) -> Algorithm:
    """The same, of games that are played outside; a step is one round.

    Args:
      learner: of the player's network.
      practice: how acting and learning take turns.

    Returns:
      The Algorithm. Its batches are the numbers, `number` [B, updates]; what came of a round's
      actions, `played`: of each game `frame` [G, plays, H, W, C], `action`, `reward`, `terminal`,
      `keep` and `begins` [G, plays] as `replay.add` takes them; and of each game, for the log,
      `epsilon` [G], and `score` [G] of the last one that ended in its place, NaN before.
    """

    def step(state: State, batch, key):
        memory = state.extra.memory
        for i in range(practice.plays):
            one = {name: values[:, i] for name, values in batch["played"].items()}
            memory = replay.add(memory, **one | {"reward": clip(one["reward"])})
        state = state.replace(extra=state.extra.replace(memory=memory))
        state, value = learn_of_round(learner, practice, state, state.step, batch["number"])
        metrics = {
            "loss": value,
            "score": jnp.nanmean(batch["score"]),
            "epsilon": batch["epsilon"].mean(),
            "count/actions": practice.actions,
            "count/frames": 4 * practice.actions,
            "count/examples": batch["number"].size,  # that are drawn from the memory
        }
        return state.replace(step=state.step + 1), metrics

    return Algorithm(lambda key: learner.init(key, (), practice), step)


def learn_of_round(
    learner: Learner, practice: Practice, state: State, index: jax.Array, number: jax.Array
) -> tuple[State, jax.Array]:
    """The updates of a round, behind its actions, by the numbers [B, updates]; their mean loss."""
    waits = (index + 1) * practice.actions < practice.begin
    total = 0.0
    for i in range(practice.updates):
        state, value = learner.update(state, number[:, i], waits)
        total += value / practice.updates
    return state, total


def clip(reward: jax.Array) -> jax.Array:
    """ "fixing all positive rewards at 1 and all negative rewards at -1"."""
    return jnp.clip(reward, -1, 1)
