"""Human-level control through deep reinforcement learning.

Volodymyr Mnih, Koray Kavukcuoglu, David Silver and 16 others, 2015. doi:10.1038/nature14236. And
its first version, Playing Atari with Deep Reinforcement Learning, 2013. arXiv:1312.5602.

What changed: the data. A player makes them while it learns, so what it sees next depends on what it
has learned. Two things keep that from running in a circle: batches are drawn from a memory of what
was seen long ago too, and the value that is aimed at is that of an older copy of the network.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath, epy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import dqn_atari
from experiments.dqn_agent import q_learning
from experiments.dqn_atari import Atari
from experiments.dqn_learner import Practice, learn, rmsprop
from jaxhist import UserError, devices, log, plots, stopping, tell
from jaxhist.algorithm import State, keys, seeded
from jaxhist.claims import Claim, Figures, Trained
from jaxhist.cli import main
from jaxhist.data import play
from jaxhist.fields import NonNegativeInt, PositiveInt, check
from jaxhist.models import dqn
from jaxhist.train import Experiment, Run

with epy.lazy_imports():  # they take a second
    import scipy.stats

NETWORKS = {"minatar": dqn.MinAtar, "control": dqn.Control, "linear": dqn.Linear}


@dataclass(frozen=True)
class Config:
    """Not in the paper: games of 10x10 cells, and so the sizes of all but the algorithm."""

    game: Literal[*play.MINATAR, *play.CONTROL] = "breakout"
    network: Literal[tuple(NETWORKS)] = "minatar"
    games: PositiveInt = 4  # side by side; the paper has one
    memory: PositiveInt = 100_000  # the last actions, from which batches are drawn
    begin: PositiveInt = 5000  # actions before the first update
    explore: PositiveInt = 100_000  # actions then, while those at random become a tenth
    every: PositiveInt = 4  # actions to an update
    target_every: PositiveInt = 1000  # updates to a copy for the target network; 1: there is none
    rate: float = 0.00025
    batch: PositiveInt = 32
    rounds: PositiveInt = 25  # updates to a step of the trainer, where `every` is `games`
    steps: NonNegativeInt = 4000
    evaluate_every: PositiveInt = 200
    most: PositiveInt = 1000  # actions after which a measured game counts as it stands


BRIEF = Atari(games=4, memory=250_000, begin=10_000, steps=625_000, target_every=2500)
PRESETS = {
    "small": Config(),
    "cart_pole": Config(
        game="cart_pole",
        network="control",
        memory=10_000,
        begin=1000,
        explore=10_000,
        target_every=250,
        steps=1000,
        evaluate_every=50,
        most=500,
    ),
    # As long as the games' authors train, arXiv:1903.03176: five million actions.
    "minatar": Config(steps=50_000, evaluate_every=1000),
    # Not in the paper: four games, so that they are played while the network learns; a quarter of
    # its memory, a fifth of its time before the first update, ten million frames of its 200, and
    # the target network of its code.
    "breakout": BRIEF,
    "pong": replace(BRIEF, rom="pong"),
    "paper": Atari(),
}


def build(config: Config | Atari, run: Run) -> Experiment:
    check(config)
    if isinstance(config, Atari):
        return dqn_atari.build(config, run)
    # Data. The game makes them. From outside come numbers, which choose what is remembered.
    game, mesh, key = play.named(config.game), devices.mesh(run.devices, run.mesh), keys(run.seed)
    practice = Practice(config.games, config.every, config.begin, config.explore, config.memory)
    practice.check(game.history)
    shape = config.batch, config.rounds, practice.updates

    @jax.jit(out_shardings=devices.split(mesh))
    def numbers(step):
        return {"number": jax.random.bits(jax.random.fold_in(key.order, step), shape, jnp.uint32)}

    # Model.
    network = NETWORKS[config.network](game.actions)
    value = lambda state, seen: network.apply({"params": state.params}, seen)

    # Loss: equation 2 of 2015, with the error clipped, in `learn`.

    # Algorithm.
    optimizer = rmsprop(config.rate, config.batch)
    learner = learn(network, game.frame, game.history, optimizer, 0.99, config.target_every)
    algorithm = q_learning(network, game, learner, practice, config.rounds)

    # Thirty games, in which one action of twenty is taken at random. And the values that are
    # predicted in 500 states, which a player who knows nothing has seen.
    held_out = cache(lambda: jax.jit(lambda key: play.states(game, key, 500))(key.draw))
    scores = lambda player, key: play.whole_games(game, player, key, 30, config.most)
    predict = jax.jit(lambda state, seen: value(state, seen).max(-1).mean())
    at_random = cache(lambda: jax.jit(lambda k: scores(play.at_random(game.actions), k))(key.draw))
    film = filming(config)

    @jax.jit
    def learned(state, key):
        player = play.sometimes_at_random(lambda seen: value(state, seen), game.actions, 0.05)
        return scores(player, key)

    def measure(state: State, games: int):
        values = learned(state, jax.random.fold_in(key.draw, games))
        stopping.check()
        return {
            "score": float(values.mean()),
            "standard error": float(values.std(ddof=1) / len(values) ** 0.5),
            "predicted": float(predict(state, held_out())),
            "film": film(state),
        }

    return Experiment(
        data=lambda step, state: numbers(step),
        batch={"number": jax.ShapeDtypeStruct(shape, jnp.uint32)},
        init=algorithm.init,
        step=algorithm.step,
        measured=lambda state: state.params,
        evaluate=lambda state: measure(state, int(state.step)),
        # Other games than those by which the best player is chosen.
        test=lambda state: (
            measure(state, config.steps + 1) | {"score random": float(at_random().mean())}
        ),
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        score="score",
    )


# Claims
FULL = Config(games=1, steps=3000, evaluate_every=150)
ABLATION = {  # Extended Data Table 3
    "replay and target": FULL,
    "replay only": replace(FULL, target_every=1),
    # To learn from what has just happened: the last 32 actions.
    "target only": replace(FULL, memory=32),
    "neither": replace(FULL, memory=32, target_every=1),
}


def evaluations(trained: Trained) -> list[dict]:
    return [line for line in trained.lines if line.get("phase") == "evaluate"]


def late(trained: Trained) -> Figures:
    """Means over the last fifth of the evaluations, each of thirty games; and of a player who acts
    at random."""
    lines = evaluations(trained)
    last = lines[-len(lines) // 5 :]
    return {
        "score": float(np.mean([line["score"] for line in last])),
        "standard error": float(
            np.sqrt(np.sum([line["standard error"] ** 2 for line in last])) / len(last)
        ),
        "random": trained.lines[-1]["score random"],
    }


def predictions(trained: Trained) -> Figures:
    """How the value that is predicted in the states held out grows: its rank correlation with the
    step, its largest size, and the standard deviation of its changes from one evaluation to the
    next, as a share of its mean size."""
    values = np.array([line["predicted"] for line in evaluations(trained)])
    return {
        "trend": float(scipy.stats.spearmanr(np.arange(len(values)), values).statistic),
        "largest": float(np.abs(values).max()),
        "unsteadiness": float(np.std(np.diff(values)) / np.abs(values).mean()),
    }


def draw_scores(trained: dict[str, list[Trained]], figure: Figure):
    """The scores over the actions, and at the end, one point for each seed."""
    figure.set_size_inches(10, 4)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_evaluations(left, trained, "score", "score, mean of thirty games")
    for place, of_arm in enumerate(trained.values()):
        scores = [late(one)["score"] for one in of_arm]
        right.plot(scores, [place] * len(scores), "o", alpha=0.5, color=f"C{place}")
        right.plot(np.mean(scores), place, "|", markersize=22, markeredgewidth=2, color="black")
    random = np.mean([late(one)["random"] for of_arm in trained.values() for one in of_arm])
    right.axvline(random, color="gray", linestyle="--", linewidth=0.8)
    right.set_yticks(range(len(trained)), list(trained))
    right.set(ylim=(len(trained) - 0.5, -0.5), xlabel="mean score of the last four evaluations")
    right.set(xlim=(0, None), title="a bar: the mean; broken: at random")
    right.grid(alpha=0.3)


def draw_predictions(trained: dict[str, list[Trained]], figure: Figure):
    """The score and the predicted value over the actions, as in Fig. 2 of 2013."""
    figure.set_size_inches(10, 4)
    left, right = figure.subplots(1, 2)
    draw_evaluations(left, trained, "score", "score, mean of thirty games")
    draw_evaluations(right, trained, "predicted", "predicted value, mean of 500 states")


def draw_evaluations(axes: Axes, trained: dict[str, list[Trained]], name: str, label: str):
    runs = {arm: [one.lines for one in of_arm] for arm, of_arm in trained.items()}
    plots.compare(axes, runs, lambda line: line[name], phase="evaluate")
    actions = FULL.rounds * FULL.every / 1000
    axes.xaxis.set_major_formatter(lambda step, _: f"{step * actions:g}")
    axes.set(xlabel="thousands of actions", ylabel=label, title=f"MinAtar {FULL.game}")


def more(metric: str, larger: str, smaller: str, factor: float = 1.0):
    """{larger} > factor x {smaller}."""
    return lambda by: by[larger][metric] - factor * by[smaller][metric]


CLAIMS = {
    "Q1": Claim(
        says="Replay and a target network are each needed, and replay matters most.",
        paper="Breakout, 10 M frames: both 316.8, replay only 240.7, target only 10.2, neither "
        "3.2; four other games alike (2015, Extended Data Table 3)",
        arms=ABLATION,
        figures=late,
        inequalities={
            "both > replay only": more("score", "replay and target", "replay only"),
            "both > target only": more("score", "replay and target", "target only"),
            "both > 2 x neither": more("score", "replay and target", "neither", 2),
            "replay only > target only": more("score", "replay only", "target only"),
            "replay only > neither": more("score", "replay only", "neither"),
            "target only > neither - a standard error of its games": lambda by: (
                by["target only"]["score"]
                + by["target only"]["standard error"]
                - by["neither"]["score"]
            ),
        },
        picture=draw_scores,
        log_every=20,
    ),
    "Q2": Claim(
        says="A convolutional network plays better than a linear one with the same algorithm.",
        paper="Breakout 316.8 against 3.00, four other games alike (2015, Extended Data Table 4)",
        arms={
            "convolutional": FULL,
            "linear": replace(FULL, network="linear"),
        },
        figures=late,
        inequalities={
            "convolutional > 1.5 x linear": more("score", "convolutional", "linear", 1.5)
        },
        picture=draw_scores,
        log_every=20,
    ),
    "Q3": Claim(
        says="The predicted values grow smoothly, and do not diverge.",
        paper="the average predicted Q on a held-out set of states, 2013, Fig. 2, without figures",
        arms={arm: ABLATION[arm] for arm in ("replay and target", "neither")},
        figures=predictions,
        inequalities={
            "both: rank correlation with the step > 0.8": lambda by: (
                by["replay and target"]["trend"] - 0.8
            ),
            "both: no value above 1 / (1 - 0.99)": lambda by: (
                100 - by["replay and target"]["largest"]
            ),
            "changes, as a share of the mean: neither > both": more(
                "unsteadiness", "neither", "replay and target"
            ),
        },
        picture=draw_predictions,
        log_every=20,
        diverged={"trend": -1.0, "largest": np.inf, "unsteadiness": np.inf},
    ),
    "Q4": Claim(
        says="It plays far better than at random.",
        paper="better than any method before on 43 of 49 games, 75 % of a human's score on 29",
        arms={"replay and target": FULL},
        figures=late,
        inequalities={
            "score > 5 x random": lambda by: (
                by["replay and target"]["score"] - 5 * by["replay and target"]["random"]
            )
        },
        picture=draw_scores,
        log_every=20,
    ),
}


# Films
def filming(config: Config | Atari) -> Callable[..., np.ndarray]:
    """(state, seed of the game, share of actions taken at random) -> [T, H, W, C] uint8, a film of
    one game, of 300 actions at most."""
    if isinstance(config, Atari):
        return dqn_atari.filming(config)
    game = play.named(config.game)
    network = NETWORKS[config.network](game.actions)

    @jax.jit
    def whole(params, key, epsilon):
        values = lambda seen: network.apply({"params": params}, seen)
        player = play.sometimes_at_random(values, game.actions, epsilon)
        return play.frames(game, player, key, min(config.most, 300))

    def film(state: State, seed: int = 0, epsilon: float = 0.0):
        frames, count = jax.device_get(whole(state.params, seeded(seed), epsilon))
        return play.film(frames[:count])

    return film


def watch(
    config: Config | Atari,
    run: Run,
    state: State,
    film: str = "film.gif",
    seed: int = 0,
    epsilon: float = 0.0,
):
    """Film a game that a trained network plays.

    Args:
      config: of the run.
      run: the run.
      state: that was tested.
      film: the file to write.
      seed: of the game.
      epsilon: how often it acts at random.
    """
    seeded(seed)  # of the Atari, too, there are no others
    if not film.endswith(".gif"):
        raise UserError(f"a film is a .gif, not {film}")
    log.write_picture(epath.Path(film), filming(config)(state, seed, epsilon))
    tell(f"film      {film}")


if __name__ == "__main__":
    main(build, PRESETS, CLAIMS, {"play": watch})
