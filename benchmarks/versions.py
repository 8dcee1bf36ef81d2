"""Do figures stand that were measured on jax 0.10.2, whose compiler computes wrong sums on a CPU?

The fault (jax-ml/jax 39103) is in a fusion that a flag turns off. So the programs behind every log
and every arm of a claim in `results/` are run both ways on the same inputs: the first state, the
first batch, one step, and an evaluation and the test of the state after it.

    python -m benchmarks.versions run FOLDER    # with jax 0.10.2, which nothing here installs
    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= python -m benchmarks.versions run FOLDER
    (the same) --nudged
    python -m benchmarks.versions compare FOLDER    # with any version, into results/versions.json

The first run keeps the inputs in FOLDER, the others take them from there. The third one says what
rounding alone does where the first two differ: it is the second one with another last bit of every
weight, ten times. All go on where they were stopped, and what results/versions.json has is not run
again.
"""

import dataclasses
import importlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from jaxhist import devices, finite, tell
from jaxhist.algorithm import keys
from jaxhist.files import write_durably
from jaxhist.train import Experiment, Run, train

FUSION = "xla_cpu_experimental_ynn_fusion_type"
VERSION = "0.10.2"
ROUNDING = 1e-5  # of its norm: what differs by less is the same
DIFFERENCES = Path("results/versions.json")  # by what was measured, and part


class Measured(NamedTuple):
    """What a file in `results/` says was trained."""

    name: str  # the log, or the file, the claim and the arm
    experiment: str  # of the script
    config: dict[str, Any]


def measured() -> Iterator[Measured]:
    """Every log, and every arm of a claim with another configuration than those before."""
    for path in sorted(Path("results").glob("*.jsonl")):
        header = json.loads(path.open().readline())
        if header["starts"][0]["versions"]["jax"] == VERSION:
            yield Measured(path.stem, header["experiment"], header["config"])
    seen = []
    for path in sorted(Path("results").glob("*.json")):
        for key, claim in json.loads(path.read_text()).items():
            if not isinstance(claim, dict) or "arms" not in claim:
                continue
            if claim["versions"]["jax"] != VERSION:
                continue
            experiment = claim["command"].split()[2].removeprefix("experiments.")
            for arm, config in claim["arms"].items():
                if (experiment, config) not in seen:
                    seen.append((experiment, config))
                    yield Measured(f"{path.stem}-{key}-{arm}", experiment, config)


def run(folder: tyro.conf.Positional[Path], only: str = "", nudged: bool = False) -> None:
    """Run what was measured, as this process compiles it.

    Args:
      folder: for inputs and figures.
      only: a pattern that the names are to match.
      nudged: by how much the gradients change with the last bits of the weights, of what has other
        gradients with the fusion than without it.
    """
    if jax.__version__ != VERSION:
        sys.exit(f"error: this is jax {jax.__version__}; the question is about {VERSION}")
    fused = FUSION not in os.environ.get("XLA_FLAGS", "")
    if fused and nudged:
        sys.exit("error: it is nudged without the fusion; set XLA_FLAGS")
    how = "nudged" if nudged else "fused" if fused else "unfused"
    every = {one.name: one for one in measured()}
    for name, one in every.items():
        here = folder.absolute() / re.sub(r"[^\w-]", "_", name)
        output = here / f"{how}.npz"
        if output.exists() or name in _known() or not re.search(only, name):
            continue
        if not fused and not (here / "fused.npz").exists():
            continue
        if nudged and not _moved(here):
            continue
        here.mkdir(parents=True, exist_ok=True)
        tell(f"{name}, {how}")
        _begin_with(one, every, here)
        experiment = _built(one, here / "run")[0]
        figures = _figures(experiment, here, how)
        draft = output.with_suffix(".draft.npz")
        np.savez(draft, **figures)
        draft.rename(output)
        jax.clear_caches()


def _built(one: Measured, workdir: Path) -> tuple[Experiment, dict[str, Any]]:
    """The experiment and its whole configuration, by the script whose configuration has these
    fields, and the fewest that are younger: a claim also compares with networks of other scripts.
    """
    names = [one.experiment, *sorted(path.stem for path in Path("experiments").glob("*.py"))]
    scripts = [importlib.import_module(f"experiments.{name}") for name in names]
    known = [
        (kind, script)
        for script in scripts
        if hasattr(script, "build")
        for kind in vars(script).values()
        if isinstance(kind, type)
        and dataclasses.is_dataclass(kind)
        and one.config.keys() <= {field.name for field in dataclasses.fields(kind)}
    ]
    kind, script = min(known, key=lambda pair: len(dataclasses.fields(pair[0])))
    # So that the first step learns: what LARS keeps is the gradient times the rate.
    changes = {"begin": 64} if "begin" in one.config else {}
    changes |= {"warmup": 0} if one.experiment == "simclr" else {}
    fields = {**one.config, **changes}
    config = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    return script.build(config, Run(workdir=str(workdir), devices=1)), dataclasses.asdict(config)


def _begin_with(one: Measured, every: dict[str, Measured], here: Path) -> None:
    """The run that it begins with is one step long."""
    other = (one.config.get("start") or one.config.get("words") or "").format(seed=0)
    if other and not (here / other / "checkpoints").exists():
        arm = other.removesuffix("-seed0")
        (first,) = [
            m
            for m in every.values()
            if m.name.split("-")[-1] == arm and m.experiment == one.experiment
        ][:1]
        experiment, config = _built(first, here / other)
        nothing = lambda state: {}
        brief = {"steps": 1, "evaluate_every": 1, "evaluate": nothing, "test": nothing, "score": ""}
        identity = {"experiment": first.experiment, "config": config}
        run = Run(workdir=str(here / other), devices=1, log_every=1)
        train(experiment._replace(**brief), run, identity)


def _figures(experiment: Experiment, here: Path, how: str) -> dict[str, np.ndarray]:
    """Every array that the programs give, by a name; nudged, how far these parts are off."""
    mesh, key = devices.mesh(1), keys(0)
    with jax.set_mesh(mesh):
        layout = devices.layout(mesh, jax.eval_shape(experiment.init, key.init))
        state = jax.jit(experiment.init, out_shardings=devices.shardings(layout))(key.init)
        batch = devices.put(mesh, experiment.data(0, state), experiment.batch)
        figures = _flat(state, "init") | _flat(batch, "batch")
        update = finite.traced(experiment.step, key.step, mesh, layout, experiment.batch)
        update = update.lower().compile()
        never = devices.place(np.int32(finite.NEVER), devices.whole(mesh))

        def stepped(state):
            before = _flat(state, "step")
            after, metrics = update(state, batch, never)
            found = _flat(metrics, "metrics")
            # What comes into the optimizer's memory is the gradient, times a factor.
            for name, array in _flat(after, "step").items():
                moved = np.issubdtype(array.dtype, np.floating)
                found[name] = np.float32(np.float64(array) - before[name]) if moved else array
            return after, found

        if how == "fused":
            after, found = stepped(state)
            figures |= found
            np.savez(here / "inputs.npz", **figures | _flat(after, "after"))
        else:
            saved = np.load(here / "inputs.npz")
            state, batch = _filled(state, saved, "init"), _filled(batch, saved, "batch")
        if how == "nudged":
            with np.load(here / "unfused.npz") as unfused:
                wanted = {name: unfused[name] for name in unfused.files if _part(name) in NUDGED}
            off = {part: np.zeros(NUDGES) for part in NUDGED}
            for seed in range(NUDGES):
                state = _filled(state, saved, "init")
                _, found = stepped(state.replace(params=_nudged(state.params, seed)))
                for name in wanted:
                    of_part = off[_part(name)]
                    of_part[seed] = max(of_part[seed], _apart(found[name], wanted[name]))
            return off
        if how == "unfused":
            after, found = stepped(state)
            figures |= found
            after = _filled(after, saved, "after")
        for phase in ("evaluate", "test"):
            found = getattr(experiment, phase)(after)
            figures |= _flat({k: v for k, v in found.items() if np.ndim(v) == 0}, phase)
    return figures


def _nudged(params: Any, seed: int) -> Any:
    """Every number one up or down."""
    rng = np.random.default_rng(seed)

    def nudge(x):
        towards = np.where(rng.random(x.shape) < 0.5, -np.inf, np.inf).astype(x.dtype)
        return jax.device_put(np.nextafter(x, towards), x.sharding)

    return jax.tree.map(nudge, params)


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _flat(tree: Any, name: str) -> dict[str, np.ndarray]:
    """A copy of every array of a tree, by its path; of keys the numbers."""
    numbers = jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)
    leaves = jax.tree.leaves_with_path(numbers)
    return {f"{name}{jax.tree_util.keystr(path)}": np.array(leaf) for path, leaf in leaves}


def _filled(tree: Any, saved: Any, name: str) -> Any:
    """The tree with the arrays that were saved in the place of its own."""

    def leaf(path, x):
        array = saved[f"{name}{jax.tree_util.keystr(path)}"]
        if _is_key(x):
            return jax.random.wrap_key_data(array)
        return jax.device_put(array, x.sharding)

    return jax.tree.map_with_path(leaf, tree)


# What an array is part of: the first of these that its name begins with. The gradient of a bias of
# keys is rounding alone, as softmax takes the bias away again. How far a step moves a parameter
# follows from the gradient; Adam's first step is its sign, also where it is rounding.
PARTS = {
    "inputs": r"init|batch",
    "metrics": r"metrics",
    "biases of keys": r"step\.opt_state.*W_k.*bias",
    "gradients": r"step\.opt_state",
    "parameters": r"step\.params",
    "other state": r"step\.",
    "decoded": r"(evaluate|test)\['(BLEU|exact|lengths)",
    "evaluation": r"evaluate",
    "test": r"test",
}
NUDGED = {"metrics": "metrics, nudged", "gradients": "gradients, nudged"}
NUDGES = 10


def _known() -> dict[str, dict[str, float]]:
    return json.loads(DIFFERENCES.read_text()) if DIFFERENCES.exists() else {}


def compare(folder: tyro.conf.Positional[Path]) -> None:
    """Write down by how much the figures differ with and without the fusion, and print a table.

    The difference of an array is the norm of what differs over the norm of the array; that of a
    part is the largest of its arrays'. By how much a step moves a parameter is known up to the
    rounding of the parameter itself, which is taken off.

    Args:
      folder: of the runs.
    """
    differences, missing = _known(), 0
    for one in measured():
        here = folder / re.sub(r"[^\w-]", "_", one.name)
        if (here / "nudged.npz").exists():
            nudged = np.load(here / "nudged.npz")
            most = {column: float(nudged[part].max()) for part, column in NUDGED.items()}
            differences[one.name] = _differences(here) | most
        elif (here / "unfused.npz").exists() and not _moved(here):
            differences[one.name] = _differences(here)
        missing += one.name not in differences
    write_durably(DIFFERENCES, json.dumps(differences, indent=1) + "\n")
    kinds = {}  # of runs: by the file of the claim, or the name of the log
    for name, found in differences.items():
        file, *claim = re.split(r"-(?=[A-Z])", name, maxsplit=1)
        kinds.setdefault(f"{file}, claims" if claim else file, []).append(found)
    columns = [*PARTS, *NUDGED.values()]
    tell(f"| | programs | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for kind, found in kinds.items():
        most = [max((each[part] for each in found if part in each), default=-1) for part in columns]
        texts = ["" if x < 0 else f"{x:.0e}" if x else "0" for x in most]
        tell(f"| {kind} | {len(found)} | {' | '.join(texts)} |")
    tell(f"{missing} programs are missing")


def _moved(here: Path) -> bool:
    """Whether the fusion changes the gradients, as far as that has been run."""
    return (here / "unfused.npz").exists() and _differences(here)["gradients"] > ROUNDING


def _differences(here: Path) -> dict[str, float]:
    """With the fusion from without it, by part."""
    found = dict.fromkeys(PARTS, 0.0)
    inputs, fused, unfused = (
        np.load(here / f"{name}.npz") for name in ("inputs", "fused", "unfused")
    )
    for name in unfused.files:
        part = _part(name)
        moved = inputs[f"after{name.removeprefix('step')}"] if part == "parameters" else 0.0
        rounding = np.finfo(np.float32).eps * np.linalg.norm(moved)
        found[part] = max(found[part], _apart(fused[name], unfused[name], rounding))
    return found


def _part(name: str) -> str:
    return next(part for part, names in PARTS.items() if re.match(names, name))


def _apart(a: np.ndarray, b: np.ndarray, rounding: float = 0.0) -> float:
    """The norm of the difference beyond rounding, over that of `b`; 0 where both are the same, and
    infinite where one alone is not a number."""
    if np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
        return 0.0
    a, b = np.float64(a), np.float64(b)
    apart = np.linalg.norm(a - b)
    if not np.isfinite(apart):
        return float("inf")
    return float(max(apart - rounding, 0) / max(np.linalg.norm(b), np.finfo(np.float32).tiny))


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"run": run, "compare": compare})
