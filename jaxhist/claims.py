"""Claims as programs: what a paper says, as an inequality between runs that anybody can repeat.

A claim compares arms. Every arm is trained over the same seeds, and seed i is the same data and the
same initialisation in each, so that the arms are compared in pairs. The verdict is

    reproduced      a one-sided paired t-test gives p < 0.05; of several inequalities the largest p
                    counts
    direction only  the means over the seeds agree with the claim
    not reproduced  they do not
    exact           the claim is an equation, and it holds; else: not exact

A run whose loss is not finite has diverged: it ends there, and is not trained again. Its figures
are those that the claim gives for it, as bad as can be, such as an infinite loss; so an inequality
may hold by infinity. Then there is no t-test, and to leave these seeds out would be to compare the
survivors; a sign test, one-sided and paired, asks instead in how many seeds it holds: in five of
five for p < 0.05. Where it is the better side that diverges, or both, or where the claim gives no
figures, the inequality does not hold in that seed, and no mean outweighs that: p = 1.

The inequality and its margin are written down before the first full run. Runs live in a directory
and go on where they stopped; figures, verdicts, versions and times are written to NAME.json, and a
picture for each claim beside it. In the file what is not finite is null; `diverged` has the step
where each run of an arm did, and `holds` in which seeds an inequality with such an excess does.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath, epy
from matplotlib.figure import Figure

from jaxhist import UserError, checkpoint, devices, log, plots, tell, warn
from jaxhist.algorithm import State, keys
from jaxhist.files import failing_in_one_line, write_durably
from jaxhist.finite import Diverged
from jaxhist.stopping import asking
from jaxhist.train import Experiment, Run, train

with epy.lazy_imports():  # they take a second
    import scipy.stats

Figures = dict[str, float]


class Trained(NamedTuple):
    """A run that has come to its end."""

    config: Any
    run: Run
    lines: list[dict]  # of its log; what was not finite is NaN
    state: Callable[[], State]  # the one that was tested
    diverged: int | None = None  # at which step, counted from 0, if that was the end


class Claim(NamedTuple):
    """An inequality between trained networks."""

    says: str  # in a sentence
    paper: str  # its own figures, and where they stand
    arms: dict[str, Any]  # name -> config; claims that share an arm share its runs
    figures: Callable[[Trained], Figures]  # of one run, which has not diverged
    # In words -> by how much it holds for one seed, given {arm: figures}; it holds if positive.
    inequalities: dict[str, Callable[[dict[str, Figures]], float]]
    picture: Callable[[dict[str, list[Trained]], Figure], None]
    log_every: int = 5  # steps
    diverged: Figures | None = None  # all figures of a run that diverges, {"loss": math.inf}


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
    agree = all(_mean(excess) > 0 for excess in excesses)
    return "direction only" if agree else "not reproduced", p


def _p_value(excess: list[float]) -> float:
    """Of excesses this far above 0, were the truth 0."""
    if min(excess) == -math.inf:
        return 1.0
    if max(excess) == math.inf:
        holds = sum(_holds(excess))
        return float(scipy.stats.binomtest(holds, len(excess), alternative="greater").pvalue)
    if len(excess) < 2 or np.ptp(excess) == 0:
        return 1.0  # one value, or one many times, says nothing of the scatter
    return float(scipy.stats.ttest_1samp(excess, 0, alternative="greater").pvalue)


def _holds(excess: list[float]) -> list[bool]:
    return [value > 0 for value in excess]


def _mean(values: list[float]) -> float:
    """Not finite where a value is not."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(values))


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
      UserError: a run failed otherwise than by diverging, or something cannot be written.
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
            with asking(interrupted):
                result = _inequalities(claim, trained)
                figure = Figure(layout="constrained", dpi=110)
                if "diverged" in result:
                    runs = {arm: [one.lines for one in of_arm] for arm, of_arm in trained.items()}
                    plots.until_diverged(figure.subplots(), runs)
                else:
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
            write_durably(path, json.dumps(_json(results), indent=1) + "\n")
        show(key, result)


def _train(name, build, config, run: Run, interrupted) -> Trained:
    """Train one arm with one seed, unless that is done."""
    experiment = build(config, run)
    identity = log.identity(name, config)
    log_file = epath.Path(run.workdir) / log.FILE
    last = log.read(run.workdir)[-1] if log_file.exists() else {}
    diverged = last["step"] if last.get("phase") == "diverged" else None
    if last.get("phase") in ("test", "diverged"):
        with log.claim(run.workdir, {**identity, "seed": run.seed}):
            pass  # it is this run, and not one of another configuration
    else:
        tell(f"training {run.workdir}")
        try:
            train(experiment, run, identity, interrupted)
        except Diverged as error:
            warn(f"{run.workdir} has diverged: {error}")
            diverged = error.step
    lines = _lines(run.workdir) if log_file.exists() else []  # what it begins with has diverged
    return Trained(config, run, lines, lambda: tested(experiment, run), diverged)


def tested(experiment: Experiment, run: Run) -> State:
    """The state that a run's test measures, split over the devices as when it was trained. What
    neither `evaluate` nor `test` looks at is None.

    Raises:
      UserError: there is no checkpoint yet, or it is of another program.
    """
    shapes = jax.eval_shape(experiment.init, keys(0).init)
    layout = devices.layout(devices.mesh(run.devices, run.mesh), shapes, experiment.tensor)
    return checkpoint.tested(run.workdir, checkpoint.only(layout, experiment.measured))


def _lines(workdir: str) -> list[dict]:
    """Of a log, where what was not finite is null."""
    known = lambda value: math.nan if value is None else value
    return [{name: known(value) for name, value in line.items()} for line in log.read(workdir)]


def _equation(claim: Equation) -> dict:
    sides = claim.sides()
    exact = all(np.isclose(a, b, rtol=1e-6, atol=0) for a, b in sides.values())
    return {
        "says": claim.says,
        "paper": claim.paper,
        "sides": sides,
        "verdict": "exact" if exact else "not exact",
    }


class _Incomparable(Exception):
    """A figure of a run that has diverged, where the claim gives none."""


class _Seed(dict):
    """{arm: figures} of the runs with one seed."""

    def __getitem__(self, arm: str) -> Figures:
        figures = super().__getitem__(arm)
        if figures is None:
            raise _Incomparable
        return figures


def _excess(inequality: Callable, by: _Seed) -> float:
    """By how much it holds for one seed; -inf where that cannot be said."""
    try:
        with np.errstate(invalid="ignore"):
            excess = float(inequality(by))
    except _Incomparable:
        return -math.inf
    return -math.inf if math.isnan(excess) else excess


def _inequalities(claim: Claim, trained: dict[str, list[Trained]]) -> dict:
    of = lambda run: claim.figures(run) if run.diverged is None else claim.diverged
    figures = {arm: [of(run) for run in runs] for arm, runs in trained.items()}
    by_seed = [
        _Seed(zip(figures, values, strict=True)) for values in zip(*figures.values(), strict=True)
    ]
    excess = {
        text: [_excess(inequality, by) for by in by_seed]
        for text, inequality in claim.inequalities.items()
    }
    verdict, p = judge(list(excess.values()))
    seconds = sum(_seconds(run) for runs in trained.values() for run in runs)
    ends = {arm: [run.diverged for run in runs] for arm, runs in trained.items()}
    ends = {arm: steps for arm, steps in ends.items() if any(step is not None for step in steps)}
    return {
        "says": claim.says,
        "paper": claim.paper,
        "arms": {arm: asdict(config) for arm, config in claim.arms.items()},
        "seeds": len(by_seed),
        "figures": {arm: _by_name(runs) for arm, runs in figures.items()},
        **({"diverged": ends} if ends else {}),
        "inequalities": {
            text: {"excess": values, "mean": _mean(values), "p": _p_value(values)}
            | ({} if np.isfinite(values).all() else {"holds": _holds(values)})
            for text, values in excess.items()
        },
        "verdict": verdict,
        "p": p,
        "seconds": round(seconds, 3),
    }


def _by_name(figures: list[Figures | None]) -> dict[str, list[float]]:
    """The figures of an arm's runs, NaN where a run has none."""
    names = dict.fromkeys(name for of_run in figures for name in of_run or {})
    return {name: [(of_run or {}).get(name, math.nan) for of_run in figures] for name in names}


def _json(value: Any) -> Any:
    """As JSON has it, which knows neither NaN nor infinity: null."""
    if isinstance(value, dict):
        return {name: _json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
        texts = [f"{name} {_over_seeds(values)}" for name, values in figures.items()]
        steps = enumerate(result.get("diverged", {}).get(arm, []))
        ends = [f"{step} (seed {seed})" for seed, step in steps if step is not None]
        texts += [f"diverged at step {', '.join(ends)}"] if ends else []
        tell(f"    {arm:16}  {'   '.join(texts)}")
    for text, of in result["inequalities"].items():
        excess = f"by {_over_seeds(of['excess'])}"
        if "holds" in of:
            excess = f"in {sum(of['holds'])} of {result['seeds']} seeds"
        tell(f"    {text}: {excess}, p = {of['p']:.2g}")
    tell(f"    {result['verdict']}, p = {result['p']:.2g}, {result['seeds']} seeds\n")


def _over_seeds(values: list[float]) -> str:
    """Mean and standard deviation, such as `2.73 ± 0.41`; each, if one is not finite."""
    if not np.isfinite(values).all():
        return ", ".join(f"{value:.4g}" for value in values)
    scatter = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.4g}{scatter}"
