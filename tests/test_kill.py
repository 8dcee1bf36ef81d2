"""A run that is killed at any moment and started again ends bit for bit as one that was not."""

import random
import signal
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import TINY
from forked import Command

from jaxhist import log
from jaxhist.checkpoint import Checkpoints

RUN = [*TINY, "--steps=20", "--run.log-every=1", "--run.save-every=4"]


def start(workdir, compiled=True, **environment):
    """Start the run; if not `compiled`, without the programs that other tests have compiled."""
    environment |= {} if compiled else {"JAX_COMPILATION_CACHE_DIR": ""}
    arguments = [*RUN, "--run.workdir", workdir]
    return Command("experiments.resnet", *arguments, environment=environment)


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
    process = start(workdir, compiled=False).ended()
    assert process.returncode == 0, process.stderr
    return workdir


def assert_same(workdir, undisturbed):
    assert logged(workdir) == logged(undisturbed)
    got, want = arrays(workdir), arrays(undisturbed)
    assert got.keys() == want.keys() and len(want) > 40
    for name in want:
        assert got[name].tobytes() == want[name].tobytes(), name


def wait_for(process, happened):
    """Return when it happened, or when the run has ended."""
    while process.runs() and not happened():
        time.sleep(0.001)


def reached(workdir):
    """The last step in the log."""
    return (logged(workdir) or [{"step": 0}])[-1]["step"]


# The moments are seen from outside, in the run's directory and its output.


def during_compilation(process, workdir, rng):
    wait_for(process, lambda: "compiling" in process.output.read_text())
    time.sleep(rng.uniform(0, 0.5))  # it takes a second or more


def during_an_evaluation(process, workdir, rng):
    step = rng.choice([10, 20])
    wait_for(process, lambda: reached(workdir) >= step)
    time.sleep(rng.uniform(0, 0.02))


def during_a_save(process, workdir, rng):
    step = rng.choice([step for step in (4, 12, 16) if step > reached(workdir)] or [20])
    folder = Path(workdir) / "checkpoints"
    wait_for(process, lambda: list(folder.glob(f"{step}.orbax-checkpoint-tmp*")))
    time.sleep(rng.uniform(0, 0.1))


def at_any_time(process, workdir, rng):
    time.sleep(rng.uniform(0, 5))


def disturb(workdir, moments, sent, rng, compiled=True):
    """Start the run and send it a signal at each of the moments; then let it end, if not `compiled`
    with programs of its own."""
    codes = []
    for moment in moments:
        process = start(workdir, compiled or moment is not during_compilation)
        moment(process, workdir, rng)
        process.send_signal(sent)
        codes.append(process.ended().returncode)
    process = start(workdir, compiled).ended()
    assert process.returncode == 0, process.stderr
    return codes


def test_killed(undisturbed, tmp_path):
    """Three times, one after the other."""
    moments = [during_compilation, during_an_evaluation, during_a_save]
    rng = random.Random(0)
    codes = disturb(tmp_path / "run", moments, signal.SIGKILL, rng, compiled=False)
    assert codes == [-signal.SIGKILL] * 3
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(sent, undisturbed, tmp_path):
    moments = [during_compilation, during_a_save]
    codes = disturb(tmp_path / "run", moments, sent, random.Random(0))
    assert codes == [75, 75]
    assert_same(tmp_path / "run", undisturbed)


def test_a_second_signal_ends_at_once(tmp_path):
    """Also while the main thread is busy where no Python handler runs: it compiles."""
    slowly = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
    process = start(tmp_path / "run", compiled=False, **slowly)
    during_compilation(process, tmp_path / "run", random.Random(0))
    process.send_signal(signal.SIGTERM)
    wait_for(process, lambda: process.errors.read_text().endswith("\n"))
    process.send_signal(signal.SIGTERM)
    ended = process.ended()
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stderr == "SIGTERM: finishing the step, then saving; once more to leave at once\n"
    assert ended.stdout == "compiling for 1 x cpu\n"  # it has not come to its first step


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_disturbed_again_and_again(sent, seed, undisturbed, tmp_path):
    """Three moments a run, 24 in all for each signal."""
    rng = random.Random(seed)
    every = [during_compilation, during_an_evaluation, during_a_save, at_any_time]
    moments = [rng.choice(every) for _ in range(3)]
    codes = disturb(tmp_path / "run", moments, sent, rng)
    # A run that has ended before its moment came has ended well; one that had not started yet to
    # listen ends by the signal.
    assert set(codes) <= {-sent, 75, 0}
    assert_same(tmp_path / "run", undisturbed)
