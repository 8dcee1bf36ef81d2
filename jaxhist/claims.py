"""Claims as programs: what a paper says, as an inequality between runs that anybody can repeat.

A claim compares arms. Every arm is trained over the same seeds, and seed i is the same data and the
same initialisation in each, so that the arms are compared in pairs. The verdict is

    reproduced      a one-sided paired t-test gives p < 0.05; of several inequalities the largest p
                    counts
    direction only  the means over the seeds agree with the claim
    not reproduced  they do not
    exact           the claim is an equation, and it holds; else: not exact

The inequality and its margin are written down before the first full run. Runs live in a directory
and go on where they stopped; figures, verdicts, versions and times are written to NAME.json, and a
picture for each claim beside it.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath, epy
from matplotlib.figure import Figure

from jaxhist import UserError, devices, log, tell
from jaxhist.algorithm import State
from jaxhist.checkpoint import tested
from jaxhist.files import failing_in_one_line, write_durably
from jaxhist.train import Experiment, Run, train

with epy.lazy_imports():  # they take a second
    import scipy.stats

Figures = dict[str, float]


class Trained(NamedTuple):
    """A run that has come to its end."""

    config: Any
    run: Run
    lines: list[dict]  # of its log
    state: Callable[[], State]  # the one that was tested


class Claim(NamedTuple):
    """An inequality between trained networks."""

    says: str  # in a sentence
    paper: str  # its own figures, and where they stand
    arms: dict[str, Any]  # name -> config; claims that share an arm share its runs
    figures: Callable[[Trained], Figures]  # of one run
    # In words -> by how much it holds for one seed, given {arm: figures}; it holds if positive.
    inequalities: dict[str, Callable[[dict[str, Figures]], float]]
    picture: Callable[[dict[str, list[Trained]], Figure], None]
    log_every: int = 5  # steps


class Equation(NamedTuple):
    """A claim that is exact."""

    says: str
    paper: str
    sides: Callable[[], dict[str, tuple[float, float]]]  # name -> its two sides


def judge(excesses: list[list[float]]) -> tuple[str, float]:
    """The verdict on inequalities that hold by `excesses[inequality][seed]`, and its p-value."""
    p = max(map(_p_value, excesses))
    if p < 0.05:
        return "reproduced", p
    return "direction only" if min(map(np.mean, excesses)) > 0 else "not reproduced", p


def _p_value(excess: list[float]) -> float:
    """Of a mean this far above 0, were the true mean 0."""
    if len(excess) < 2 or np.ptp(excess) == 0:
        return 1.0  # one value, or one many times, says nothing of the scatter
    return float(scipy.stats.ttest_1samp(excess, 0, alternative="greater").pvalue)


@dataclass(frozen=True)
class Check:
    """How to check claims."""

    only: tuple[str, ...] = ()  # which ones; all if not given
    seeds: int = 5  # 0 .. seeds - 1 are trained
    workdir: str = ""  # where the runs live, runs/NAME-claims if not given
    output: str = "results"  # the directory of NAME.json and the pictures


def check(
    name: str,
    claims: dict[str, Claim | Equation],
    build: Callable[[Any, Run], Experiment],
    options: Check,
    command: str,
    interrupted: Callable[[], bool],
):
    """Train what the claims compare, print the verdicts, and write them to NAME.json.

    Args:
      name: of the experiment.
      claims: those to check; others that are in the file stay there.
      build: the experiment's.
      options: `only` has been seen to.
      command: what was typed, to be written down.
      interrupted: as in `train`.

    Raises:
      UserError: a run failed, or something cannot be written.
      Interrupted: asked to stop; the same call goes on.
    """
    folder, path = epath.Path(options.output), epath.Path(options.output) / f"{name}.json"
    try:  # before anything is trained
        results = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it") from error
    # One program per arm, compiled once for all seeds.
    jax.config.update("jax_compilation_cache_dir", str(epath.Path(options.workdir) / "compiled"))
    for key, claim in claims.items():
        tell(f"{key}: {claim.says}")
        if isinstance(claim, Equation):
            result = _equation(claim)
        else:
            trained = {arm: [] for arm in claim.arms}
            for seed in range(options.seeds):
                for arm, config in claim.arms.items():
                    workdir = f"{options.workdir}/{arm}-seed{seed}"
                    run = Run(workdir=workdir, seed=seed, log_every=claim.log_every)
                    trained[arm].append(_train(name, build, config, run, interrupted))
            result = _inequalities(claim, trained)
            figure = Figure(layout="constrained", dpi=110)
            claim.picture(trained, figure)
            with failing_in_one_line(folder):
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / f"{name}-{key}.png").open("wb") as file:
                    figure.savefig(file, format="png")
        about = {
            "command": command,
            "date": time.strftime("%F"),
            **devices.machine(devices.mesh()),
        }
        with failing_in_one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)
            results[key] = {**result, **about}
            write_durably(path, json.dumps(results, indent=1) + "\n")
        show(key, result)


def _train(name, build, config, run: Run, interrupted) -> Trained:
    """Train one arm with one seed, unless that is done."""
    experiment = build(config, run)
    identity = log.identity(name, config)
    log_file = epath.Path(run.workdir) / log.FILE
    if log_file.exists() and log.read(run.workdir)[-1].get("phase") == "test":
        with log.claim(run.workdir, {**identity, "seed": run.seed}):
            pass  # it is this run, and not one of another configuration
    else:
        tell(f"training {run.workdir}")
        train(experiment, run, identity, interrupted)
    return Trained(config, run, log.read(run.workdir), lambda: tested(run.workdir, experiment.init))


def _equation(claim: Equation) -> dict:
    sides = claim.sides()
    exact = all(np.isclose(a, b, rtol=1e-6, atol=0) for a, b in sides.values())
    return {
        "says": claim.says,
        "paper": claim.paper,
        "sides": sides,
        "verdict": "exact" if exact else "not exact",
    }


def _inequalities(claim: Claim, trained: dict[str, list[Trained]]) -> dict:
    figures = {arm: [claim.figures(run) for run in runs] for arm, runs in trained.items()}
    by_seed = [
        dict(zip(figures, values, strict=True)) for values in zip(*figures.values(), strict=True)
    ]
    excess = {text: list(map(f, by_seed)) for text, f in claim.inequalities.items()}
    verdict, p = judge(list(excess.values()))
    seconds = sum(_seconds(run) for runs in trained.values() for run in runs)
    return {
        "says": claim.says,
        "paper": claim.paper,
        "arms": {arm: asdict(config) for arm, config in claim.arms.items()},
        "seeds": len(by_seed),
        "figures": {
            arm: {name: [values[name] for values in runs] for name in runs[0]}
            for arm, runs in figures.items()
        },
        "inequalities": {
            text: {"excess": values, "mean": float(np.mean(values)), "p": _p_value(values)}
            for text, values in excess.items()
        },
        "verdict": verdict,
        "p": p,
        "seconds": round(seconds, 3),
    }


def _seconds(trained: Trained) -> float:
    """Of the training, as logged."""
    lines = [line for line in trained.lines if line.get("phase") == "train"]
    return sum(trained.run.log_every * line["speed"]["seconds/step"] for line in lines)


def show(key: str, result: dict):
    """Print the figures and the verdict of a claim."""
    tell(f"\n{key}  {result['says']}")
    tell(f"    the paper: {result['paper']}")
    if "sides" in result:
        for name, (left, right) in result["sides"].items():
            tell(f"    {name:16}  {left:.6g} = {right:.6g}")
        tell(f"    {result['verdict']}\n")
        return
    for arm, figures in result["figures"].items():
        texts = [f"{name} {_mean(values)}" for name, values in figures.items()]
        tell(f"    {arm:16}  {'   '.join(texts)}")
    for text, of in result["inequalities"].items():
        tell(f"    {text}: by {_mean(of['excess'])}, p = {of['p']:.2g}")
    tell(f"    {result['verdict']}, p = {result['p']:.2g}, {result['seeds']} seeds\n")


def _mean(values: list[float]) -> str:
    """Mean and standard deviation over the seeds, such as `2.73 ± 0.41`."""
    scatter = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.4g}{scatter}"
