"""Deep Q-learning on games of the Atari 2600: the presets `breakout`, `pong` and `paper` of dqn.py.

The games are played on the host. While the devices learn from the memory, the emulators play the
actions that were chosen before; nothing is done further ahead, so what is chosen does not depend on
who is faster. A resumed run begins new games; all else is as it was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.dqn_agent import q_learning_outside
from experiments.dqn_learner import Practice, learn, rmsprop
from jaxhist import UserError
from jaxhist.algorithm import State
from jaxhist.data import atari
from jaxhist.fields import AtLeast, NonNegativeInt, PositiveInt
from jaxhist.models import dqn
from jaxhist.train import Experiment, Run

NETWORKS = {"nature": dqn.Nature, "workshop": dqn.Workshop, "linear": dqn.Linear}


@dataclass(frozen=True)
class Atari:
    """The paper's, for any game (2015, Extended Data Table 1)."""

    rom: str = "breakout"  # the game, such as "space_invaders"
    network: Literal[tuple(NETWORKS)] = "nature"  # of 2015, of 2013, or linear
    games: PositiveInt = 1  # side by side
    memory: PositiveInt = 1_000_000  # the last actions, from which batches are drawn; 7 kB each
    begin: PositiveInt = 50_000  # actions before the first update
    # Actions then, while those at random become a tenth. The paper says frames; its code counts
    # actions, as here, and its 50 million frames are actions too.
    explore: PositiveInt = 1_000_000
    every: PositiveInt = 4  # actions to an update
    # Updates to a copy for the target network, as in the table; its code has 10,000 actions.
    target_every: PositiveInt = 10_000
    rate: float = 0.00025
    batch: PositiveInt = 32
    steps: NonNegativeInt = 12_500_000  # updates
    evaluate_every: PositiveInt = 62_500  # 250,000 actions
    measured: Annotated[int, AtLeast(2)] = 30  # games to measure a player by
    most: PositiveInt = atari.FIVE_MINUTES  # frames, after which such a game counts as it stands


def build(config: Atari, run: Run) -> Experiment:
    # Data. The emulators make them.
    if jax.process_count() > 1:
        raise UserError("the games of the Atari are played in one process; run it without a job")
    practice = Practice(config.games, config.every, config.begin, config.explore, config.memory)
    practice.check(atari.HISTORY)
    actions = atari.actions(config.rom)
    network = NETWORKS[config.network](actions)
    value = jax.jit(lambda params, seen: network.apply({"params": params}, seen))
    games = cache(lambda: atari.Games(config.rom, config.games, run.seed, lives=True))

    def epsilon(taken: int) -> float:
        """As `Practice.epsilon`, without a device."""
        return float(np.interp(taken, [config.begin, config.begin + config.explore], [1, 0.1]))

    def act(step: int, turn: int, state: State):
        """Choose, and send."""
        taken = step * practice.actions + turn * config.games
        of_action = lambda seen: value(state.params, seen)
        player = atari.sometimes_at_random(of_action, actions, epsilon(taken))
        games().send(player(games().seen(), np.random.default_rng([run.seed, step, turn])))

    def data(step: int, state: State) -> dict[str, np.ndarray]:
        """What came of the actions that were sent, and then the next ones. Each call plays: asked
        twice for a step, it gives what came next."""
        rows = []
        if games().sent is None:  # new games
            act(step, 0, state)
        for turn in range(practice.plays):
            rows.append(games().receive()[0]._asdict())
            act(step, turn + 1, state)
        random = np.random.default_rng([run.seed, step])
        return {
            "number": random.integers(0, 2**32, (config.batch, practice.updates), np.uint32),
            "played": {name: np.stack([row[name] for row in rows], 1) for name in rows[0]},
            "epsilon": np.full(config.games, epsilon(step * practice.actions), np.float32),
            "score": games().final,
        }

    G = config.games, practice.plays
    shapes = {
        "number": jax.ShapeDtypeStruct((config.batch, practice.updates), np.uint32),
        "played": {
            "frame": jax.ShapeDtypeStruct((*G, *atari.FRAME.shape), np.uint8),
            "action": jax.ShapeDtypeStruct(G, np.int32),
            "reward": jax.ShapeDtypeStruct(G, np.float32),
            **{name: jax.ShapeDtypeStruct(G, np.bool) for name in ("terminal", "keep", "begins")},
        },
        **{name: jax.ShapeDtypeStruct(G[:1], np.float32) for name in ("epsilon", "score")},
    }

    # Model: above, since who plays is part of the data.

    # Loss: equation 2 of 2015, with the error clipped, in `learn`.

    # Algorithm.
    optimizer = rmsprop(config.rate, config.batch)
    learner = learn(network, atari.FRAME, atari.HISTORY, optimizer, 0.99, config.target_every)
    algorithm = q_learning_outside(learner, practice)

    # Whole games, in which one action of twenty is taken at random, and what they are worth beside
    # those of a person. And the values that are predicted in 500 states, which a player who knows
    # nothing has seen.
    held_out = cache(lambda: atari.states(config.rom, run.seed, 500))
    film = filming(config)

    def measure(state: State, seed: int):
        player = atari.sometimes_at_random(partial(value, state.params), actions, 0.05)
        scores = atari.whole_games(config.rom, player, seed, config.measured, config.most)
        human = atari.of_human(config.rom, scores.mean())
        return {
            "score": scores.mean(),
            "standard error": scores.std(ddof=1) / len(scores) ** 0.5,
            **({} if human is None else {"percent of human": human}),
            "predicted": float(jnp.mean(value(state.params, held_out()).max(-1))),
            "film": film(state),
        }

    return Experiment(
        data=data,
        batch=shapes,
        init=algorithm.init,
        step=algorithm.step,
        measured=lambda state: state.params,
        evaluate=lambda state: measure(state, int(state.step)),
        # Other games than those by which the best player is chosen.
        test=lambda state: measure(state, config.steps + 1),
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        score="score",
        save_every=20_000,  # gigabytes of memory
    )


def filming(config: Atari) -> Callable[..., np.ndarray]:
    """(state, seed of the game, share of actions taken at random) -> [T, H, W, 1] uint8, a film of
    one game as the network sees it, of 300 actions at most.

    Of twenty actions one is random: in some games nothing begins before a button is pressed.
    """
    network = NETWORKS[config.network](atari.actions(config.rom))
    value = jax.jit(lambda params, seen: network.apply({"params": params}, seen))

    def film(state: State, seed: int = 0, epsilon: float = 0.05):
        of_action = partial(value, state.params)
        player = atari.sometimes_at_random(of_action, network.actions, epsilon)
        return atari.screens(config.rom, player, seed, 300).repeat(2, 1).repeat(2, 2)

    return film
