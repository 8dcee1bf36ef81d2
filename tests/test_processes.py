"""Several processes on one machine are one run, over the collectives of CPUs."""

import contextlib
import json
import signal
import socket
import time

import forked
import grain
import numpy as np
import pytest
from conftest import TINY
from every import EXPERIMENTS
from forked import Command
from test_kill import arrays, logged

from jaxhist.checkpoint import Checkpoints
from jaxhist.data import batches

WORKER = "worker"
EXPERIMENT = ["experiments.resnet", *TINY, "--steps=30"]
EXPERIMENT += ["--run.distributed", "--run.log-every=1", "--run.save-every=4"]


def start(count, devices, *arguments, **environment):
    """Start a job of `count` processes, each with its own devices."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
    }
    return [
        Command(*arguments, environment=environment | {"JAX_PROCESS_ID": str(number)})
        for number in range(count)
    ]


def finish(job):
    """The exit codes, and what was written to stderr."""
    ended = [process.ended() for process in job]
    return [process.returncode for process in ended], [process.stderr for process in ended]


def go(*arguments, **environment):
    codes, errors = finish(start(*arguments, **environment))
    assert not any(codes), errors


def wait_for_step(workdir, step):
    begin = time.monotonic()
    while not logged(workdir) or logged(workdir)[-1]["step"] < step:
        assert time.monotonic() - begin < 200
        time.sleep(0.01)


def same_in_float64(tmp_path, count):
    go(1, 2 * count, WORKER, tmp_path / "one")
    go(count, 2, WORKER, tmp_path / "[many]")
    one, many = logged(tmp_path / "one"), logged(tmp_path / "[many]")
    assert len(one) == len(many) == 20 + 2
    for a, b in zip(one, many, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-9)
    a, b = arrays(tmp_path / "one"), arrays(tmp_path / "[many]")
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-8, atol=1e-12, err_msg=name)


def killed_and_started_again(tmp_path, count):
    """Bit for bit as a run that nobody disturbs, with as many processes."""
    go(count, 2, *EXPERIMENT, "--run.workdir", tmp_path / "undisturbed")
    again = [*EXPERIMENT, "--run.workdir", tmp_path / "killed"]
    job = start(count, 2, *again)
    wait_for_step(tmp_path / "killed", 10)
    job[-1].send_signal(signal.SIGKILL)
    codes, errors = finish(job)
    assert codes.pop() == -signal.SIGKILL
    for code, text in zip(codes, errors[:-1], strict=True):
        if code == -signal.SIGABRT:  # JAX's runtime noticed first
            assert "another task died" in text
        else:
            (line,) = [line for line in text.splitlines() if line.startswith("error")]
            assert "another process of this job has ended" in line and "start all of them" in line
            assert code == 1
    go(count, 2, *again)
    assert logged(tmp_path / "killed") == logged(tmp_path / "undisturbed")
    got, want = arrays(tmp_path / "killed"), arrays(tmp_path / "undisturbed")
    assert all(got[name].tobytes() == want[name].tobytes() for name in want)


@pytest.mark.parametrize("count", [2, 4])
def test_each_process_sums_up_its_share(count, tmp_path):
    """Of a save what it wrote, and of a verification no more than its part and a file. All find
    the byte that has turned over in a file of one of them."""
    go(count, 1, "sums", tmp_path)
    said = [json.loads((tmp_path / f"said-{i}.json").read_text()) for i in range(count)]
    files = said[0]["files"]
    del files["SHA256SUMS"]
    for one in said:
        assert one["summed"] > 100_000 and one["newest"] == 1
        assert 0 < one["verified"] <= sum(files.values()) / count + max(files.values())
        assert one["damage"] == f"{one['damaged']} changed since it was saved"
    assert sum(one["summed"] for one in said) == sum(files.values())
    assert sum(one["verified"] for one in said) == sum(files.values())
    assert [one["summed"] for one in said[1:]] == [one["wrote"] for one in said[1:]]


def test_two_processes_are_as_one_in_float64(tmp_path):
    same_in_float64(tmp_path, 2)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, *_ in EXPERIMENTS])
def test_two_processes_are_as_one_in_every_experiment(name, tmp_path):
    go(1, 4, WORKER, tmp_path / "one", name)
    go(2, 2, WORKER, tmp_path / "two", name)
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert len(one) == len(two) == 6 + 2 + 1
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"phase"}:
            tolerance = 1e-3 if "loss" in key else 0.05  # one example of few may count otherwise
            message = f"{key} {a}"
            np.testing.assert_allclose(a[key], b[key], tolerance, tolerance, err_msg=message)


@pytest.mark.long
def test_two_processes_of_which_one_is_killed(tmp_path):
    killed_and_started_again(tmp_path, 2)


@pytest.mark.long
def test_four_processes_are_as_one_in_float64(tmp_path):
    same_in_float64(tmp_path, 4)


@pytest.mark.long
def test_four_processes_of_which_one_is_killed(tmp_path):
    killed_and_started_again(tmp_path, 4)


@pytest.mark.long
def test_one_is_asked_to_stop_and_all_stop_at_the_same_step(tmp_path):
    """Then one process goes on, and then two."""
    again = [*EXPERIMENT, "--run.workdir", tmp_path]
    for count, devices, step in ((4, 2, 5), (1, 2, 15)):
        job = start(count, devices, *again)
        wait_for_step(tmp_path, step)
        job[-1].send_signal(signal.SIGTERM)
        assert finish(job)[0] == [75] * count
        (last,) = {line["step"] for line in logged(tmp_path)[-1:]}
        assert Checkpoints(tmp_path).steps()[0] >= last >= step
    go(2, 2, *again)
    assert [line["step"] for line in logged(tmp_path) if line["phase"] == "train"] == [
        *range(1, 31)
    ]


def test_a_process_that_finds_no_job():
    process = forked.run(*EXPERIMENT, "--run.workdir", "nowhere")
    assert process.returncode == 1
    assert process.stderr.startswith("error: this process cannot join a job")
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("step", [0, 3])
def test_a_process_reads_its_rows_of_each_batch_alone(step):
    views = grain.MapDataset.source(range(40)).seed(0).shuffle().repeat()
    whole = [list(views[batch * 8 : batch * 8 + 8]) for batch in range(step, step + 3)]
    parts = []
    for begin, end in ((0, 4), (4, 8)):
        rows = batches._Rows(views, 8, begin, end)
        stream = batches._read_ahead(rows[step * 4 :], 4, 2)
        parts.append([next(stream).tolist() for _ in range(3)])
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
