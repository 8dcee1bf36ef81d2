"""A run that is killed at any moment and started again ends bit for bit as one that was not."""

import dataclasses
import importlib
import random
import signal
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import TINY
from forked import Command

import experiments
from jaxhist import log
from jaxhist.checkpoint import Checkpoints


class Plan(NamedTuple):
    """A run, and when something happens in it."""

    module: str
    arguments: list[str]
    steps: int
    evaluate_every: int
    save_every: int

    def start(self, workdir, compiled=True, **environment):
        """Start it; if not `compiled`, without the programs that other tests have compiled."""
        environment |= {} if compiled else {"JAX_COMPILATION_CACHE_DIR": ""}
        arguments = [*self.arguments, "--run.workdir", workdir]
        return Command(self.module, *arguments, environment=environment)


RUN = [*TINY, "--steps=20", "--run.log-every=1", "--run.save-every=4"]
BRIEF = Plan("experiments.resnet", RUN, 20, 10, 4)


def logged(workdir):
    try:
        return [{k: v for k, v in line.items() if k != "speed"} for line in log.read(workdir)[1:]]
    except Exception:  # not there yet
        return []


def arrays(workdir):
    """Every array of the last checkpoint, by its path."""
    checkpoints = Checkpoints(workdir)
    step = checkpoints.steps()[0]
    assert not checkpoints.damage(step)
    checkpoints.close()
    folder = checkpoints.folder / str(step)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:  # as they are, from any machine
        there = orbax.metadata(folder).item_metadata.tree
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), there)
        tree = orbax.restore(folder, ocp.args.PyTreeRestore(restore_args=numpy))
    return {
        jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(tree)
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    process = BRIEF.start(workdir, compiled=False).ended()
    assert process.returncode == 0, process.stderr
    return workdir


def assert_same(workdir, undisturbed):
    assert logged(workdir) == logged(undisturbed)
    got, want = arrays(workdir), arrays(undisturbed)
    assert got.keys() == want.keys() and len(want) > 5
    for name in want:
        assert got[name].tobytes() == want[name].tobytes(), name


def wait_for(process, happened):
    """Return when it happened, or when the run has ended."""
    while process.runs() and not happened():
        time.sleep(0.001)


def reached(workdir):
    """The last step in the log."""
    return (logged(workdir) or [{"step": 0}])[-1]["step"]


def following(workdir, every, last):
    """The next step that is a multiple of `every`."""
    return min((reached(workdir) // every + 1) * every, last)


# The moments are seen from outside, in the run's directory and its output.


def during_compilation(plan, process, workdir, rng):
    wait_for(process, lambda: "compiling" in process.output.read_text())
    time.sleep(rng.uniform(0, 0.5))  # it takes a second or more


def during_an_evaluation(plan, process, workdir, rng):
    step = following(workdir, plan.evaluate_every, plan.steps)
    wait_for(process, lambda: reached(workdir) >= step)
    time.sleep(rng.uniform(0, rng.choice([0.02, 0.2, 2])))  # some are over at once


def during_a_save(plan, process, workdir, rng):
    step = following(workdir, plan.save_every, plan.steps)
    folder = Path(workdir) / "checkpoints"
    wait_for(process, lambda: list(folder.glob(f"{step}*.orbax-checkpoint-tmp*")))
    time.sleep(rng.uniform(0, 0.1))


def at_any_time(plan, process, workdir, rng):
    step = following(workdir, 1, plan.steps) + rng.randrange(plan.save_every)
    wait_for(process, lambda: reached(workdir) >= step)
    time.sleep(rng.uniform(0, 1))


MOMENTS = [during_compilation, during_an_evaluation, during_a_save, at_any_time]


def disturb(plan, workdir, moments, sent, rng, compiled=True):
    """Start the run and send it a signal at each of the moments, spread over its length; then let
    it end, if not `compiled` with programs of its own."""
    codes = []
    for number, moment in enumerate(moments):
        process = plan.start(workdir, compiled or moment is not during_compilation)
        if moment is not during_compilation:
            least = plan.steps * number // (len(moments) + 1)
            wait_for(process, lambda least=least: reached(workdir) >= least)
        moment(plan, process, workdir, rng)
        print(f"{moment.__name__}, at step {reached(workdir)}", end=" ")
        process.send_signal(sent)
        codes.append(process.ended(3600).returncode)
        print(f"-> {codes[-1]}")
    process = plan.start(workdir, compiled).ended(3600)
    assert process.returncode == 0, process.stderr
    return codes


def test_killed(undisturbed, tmp_path):
    """Three times, one after the other."""
    moments = [during_compilation, during_an_evaluation, during_a_save]
    rng = random.Random(0)
    codes = disturb(BRIEF, tmp_path / "run", moments, signal.SIGKILL, rng, compiled=False)
    assert codes == [-signal.SIGKILL] * 3
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(sent, undisturbed, tmp_path):
    moments = [during_compilation, during_a_save]
    codes = disturb(BRIEF, tmp_path / "run", moments, sent, random.Random(0))
    assert codes == [75, 75]
    assert_same(tmp_path / "run", undisturbed)


def test_a_second_signal_ends_at_once(tmp_path):
    """Also while the main thread is busy where no Python handler runs: it compiles."""
    slowly = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
    process = BRIEF.start(tmp_path / "run", compiled=False, **slowly)
    during_compilation(BRIEF, process, tmp_path / "run", random.Random(0))
    process.send_signal(signal.SIGTERM)
    wait_for(process, lambda: process.errors.read_text().endswith("\n"))
    process.send_signal(signal.SIGTERM)
    ended = process.ended()
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stderr == "SIGTERM: finishing the step, then saving; once more to leave at once\n"
    assert ended.stdout == "compiling for 1 x cpu\n"  # it has not come to its first step


SMALL = sorted(
    path.stem
    for path in Path(experiments.__path__[0]).glob("*.py")
    if "small" in getattr(importlib.import_module(f"experiments.{path.stem}"), "PRESETS", {})
)


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_disturbed_again_and_again(name, tmp_path, capsys):
    """Twelve times one after the other, one run by kill -9 and another one by SIGTERM. What is
    printed says how to repeat it."""
    config = importlib.import_module(f"experiments.{name}").PRESETS["small"]
    if name == "regression":  # else it is over within a second
        config = dataclasses.replace(config, steps=50_000, evaluate_every=5000)
    steps, every, save_every = config.steps, config.evaluate_every, config.steps // 20
    log_every = next(count for count in range(every // 10, 0, -1) if every % count == 0)
    arguments = ["train", "small", f"--steps={steps}", f"--evaluate-every={every}"]
    arguments += [f"--run.log-every={log_every}", f"--run.save-every={save_every}"]
    plan = Plan(f"experiments.{name}", arguments, steps, every, save_every)
    begin, disturbed = time.monotonic(), 0
    with capsys.disabled():
        process = plan.start(tmp_path / "undisturbed", compiled=False).ended(3600)
        assert process.returncode == 0, process.stderr
        for seed, sent in enumerate([signal.SIGKILL, signal.SIGTERM]):
            print(f"\n{name}, {sent.name}, seed {seed}:")
            rng = random.Random(f"{name} {seed}")
            moments = [*MOMENTS, *rng.choices(MOMENTS, k=8)]
            rng.shuffle(moments)
            codes = disturb(plan, tmp_path / sent.name, moments, sent, rng)
            # One that had not started yet to listen ends by the signal.
            disturbed += sum(code in (-sent, 75) for code in codes)
            assert set(codes) <= {-sent, 75, 0}
            assert_same(tmp_path / sent.name, tmp_path / "undisturbed")
        minutes = (time.monotonic() - begin) / 60
        print(f"{name}: disturbed {disturbed} times, {minutes:.1f} minutes")
    assert disturbed >= 20
