"""Human-level control through deep reinforcement learning.

Volodymyr Mnih, Koray Kavukcuoglu, David Silver and 16 others, 2015. doi:10.1038/nature14236. And
its first version, Playing Atari with Deep Reinforcement Learning, 2013. arXiv:1312.5602.

What changed: the data. A player makes them while it learns, so what it sees next depends on what it
has learned. Two things keep that from running in a circle: batches are drawn from a memory of what
was seen long ago too, and the value that is aimed at is that of an older copy of the network.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from experiments.dqn_agent import q_learning
from jaxhist import UserError, devices, log, tell
from jaxhist.algorithm import State, keys
from jaxhist.claims import Claim
from jaxhist.cli import main
from jaxhist.data import play
from jaxhist.models import dqn
from jaxhist.train import Experiment, Run

NETWORKS = {"minatar": dqn.MinAtar, "linear": dqn.Linear}


@dataclass(frozen=True)
class Config:
    """Not in the paper: games of 10x10 cells, and so the sizes of all but the algorithm."""

    game: Literal[play.MINATAR] = "breakout"
    network: Literal[tuple(NETWORKS)] = "minatar"
    games: int = 4  # side by side; the paper has one
    memory: int = 100_000  # the last actions, from which batches are drawn
    begin: int = 5000  # actions before the first update
    explore: int = 100_000  # actions then, while those at random become a tenth
    every: int = 4  # actions to an update
    target_every: int = 1000  # updates to a copy for the target network; 1: there is none
    rate: float = 0.00025
    batch: int = 32
    rounds: int = 25  # updates to a step of the trainer, where `every` is `games`
    steps: int = 4000
    evaluate_every: int = 200
    most: int = 1000  # actions after which a measured game counts as it stands


PRESETS = {
    "small": Config(),
    # As long as the games' authors train, arXiv:1903.03176: five million actions.
    "minatar": Config(steps=50_000, evaluate_every=1000),
}


def build(config: Config, run: Run) -> Experiment:
    # Data. The game makes them. From outside come numbers, which choose what is remembered.
    game, mesh, key = play.named(config.game), devices.mesh(run.devices), keys(run.seed)
    updates = config.games // np.gcd(config.games, config.every)  # in a round
    shape = config.batch, config.rounds, updates

    @jax.jit(out_shardings=devices.split(mesh))
    def numbers(step):
        return {"number": jax.random.bits(jax.random.fold_in(key.order, step), shape, jnp.uint32)}

    # Model.
    network = NETWORKS[config.network](game.actions)
    value = lambda state, seen: network.apply({"params": state.params}, seen)

    # Loss: equation 2 of 2015, with the error clipped, in `q_learning`.

    # Algorithm.
    if config.begin < config.games * (game.history + 1):
        raise UserError(f"before the first update, each of {config.games} games wants some actions")
    epsilon = optax.linear_schedule(1.0, 0.1, config.explore, config.begin)
    algorithm = q_learning(
        network,
        game,
        rmsprop(config.rate, config.batch),
        discount=0.99,
        epsilon=epsilon,
        games=config.games,
        memory=config.memory,
        begin=config.begin,
        every=config.every,
        target_every=config.target_every,
        rounds=config.rounds,
    )

    # Thirty games, in which one action of twenty is taken at random. And the values that are
    # predicted in 500 states, which a player who knows nothing has seen.
    held_out = cache(lambda: jax.jit(lambda key: play.states(game, key, 500))(key.draw))
    scores = lambda player, key: play.whole_games(game, player, key, 30, config.most)[0]
    predict = jax.jit(lambda state, seen: value(state, seen).max(-1).mean())
    at_random = cache(lambda: jax.jit(lambda k: scores(play.at_random(game.actions), k))(key.draw))

    @jax.jit
    def learned(state, key):
        player = play.sometimes_at_random(lambda seen: value(state, seen), game.actions, 0.05)
        return scores(player, key)

    def evaluate(state: State):
        values = learned(state, jax.random.fold_in(key.draw, state.step))
        return {
            "score": float(values.mean()),
            "standard error": float(values.std(ddof=1) / len(values) ** 0.5),
            "predicted": float(predict(state, held_out())),
        }

    def test(state: State):
        film = record(config, state)
        return evaluate(state) | {"score random": float(at_random().mean()), "film": film}

    return Experiment(
        data=lambda step, state: numbers(step),
        batch={"number": jax.ShapeDtypeStruct(shape, jnp.uint32)},
        init=algorithm.init,
        step=algorithm.step,
        evaluate=evaluate,
        test=test,
        steps=config.steps,
        evaluate_every=config.evaluate_every,
    )


def rmsprop(rate: float, batch: int) -> optax.GradientTransformation:
    """That of the published code: centred, without momentum ("gradient momentum" is the decay of
    the mean gradient), and 0.01 in the root. There it is for the sum over a batch, here for the
    mean."""
    return optax.rmsprop(rate, decay=0.95, eps=0.01 / batch**2, centered=True)


def record(config: Config, state: State, seed: int = 0, epsilon: float = 0.0) -> np.ndarray:
    """A film of one game. [T, H, W, 3] uint8"""
    game = play.named(config.game)
    network = NETWORKS[config.network](game.actions)

    @jax.jit
    def whole(params, key):
        values = lambda seen: network.apply({"params": params}, seen)
        player = play.sometimes_at_random(values, game.actions, epsilon)
        return play.frames(game, player, key, min(config.most, 300))

    frames, count = jax.device_get(whole(state.params, jax.random.key(seed)))
    return play.film(frames[:count])


def watch(
    config: Config, state: State, film: str = "film.gif", seed: int = 0, epsilon: float = 0.0
):
    """Film a game that a trained network plays.

    Args:
      config: of the run.
      state: that was tested.
      film: the file to write.
      seed: of the game.
      epsilon: how often it acts at random.
    """
    if not film.endswith(".gif"):
        raise UserError(f"a film is a .gif, not {film}")
    log.write_picture(epath.Path(film), record(config, state, seed, epsilon))
    tell(f"film      {film}")


# Claims
CLAIMS: dict[str, Claim] = {}


if __name__ == "__main__":
    main(build, PRESETS, CLAIMS, {"play": watch})
