"""Every bad input: one clear line, a non-zero exit, and what was saved is still there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from conftest import TINY, needs
from forked import Command

from jaxhist import log


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a short finished run."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    arguments = [*TINY, "--steps=20", "--run.workdir", workdir, "--run.save-every=5"]
    process = forked.run("experiments.resnet", *arguments)
    assert process.returncode == 0, process.stderr
    return workdir


@pytest.fixture
def saved(finished, tmp_path):
    """A copy of it, to be damaged."""
    return untested(Path(shutil.copytree(finished, tmp_path / "run")))


def untested(workdir):
    """As if the run had been stopped before its test."""
    *lines, _ = (workdir / log.FILE).read_text().splitlines(keepends=True)
    (workdir / log.FILE).write_text("".join(lines))
    return workdir


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_one_line(process, *words, code=1):
    assert process.returncode == code, (process.stdout, process.stderr)
    lines = process.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), process.stderr
    for word in words:
        assert str(word) in lines[0], lines[0]


def test_alone_it_says_what_it_can_do(command):
    for arguments in ([], ["--help"]):
        text = command(*arguments, check=0).stdout
        for word in (
            "1512.03385",
            "small ",
            "cifar10 ",
            "train [PRESET]",
            "describe",
            "evaluate DIR",
        ):
            assert word in text


def test_help_comes_from_the_configuration(command):
    text = " ".join(command("train", "cifar10", "--help", check=0).stdout.split())
    assert "6n + 2 layers" in text and "--run.workdir" in text and "64000" in text


def test_describe_tells_without_data_and_without_training(command, tmp_path):
    text = command("describe", "cifar10", check=0, TFDS_DATA_DIR=str(tmp_path)).stdout
    assert "269,722" in text  # parameters, table 6
    assert f"{2 * 40_551_040:,}  forward" in text
    assert "1,078,888  bytes, params" in text
    assert f"{128 * (32 * 32 * 3 + 1) * 4:,}  bytes, a batch of 128" in text


def test_evaluate_repeats_the_figures_of_the_run(command, finished):
    said = json.loads(command("evaluate", finished, check=0).stdout)
    lines = log.read(finished)
    (test,) = [line for line in lines if line.get("phase") == "test"]
    assert said["step"] == test["step"]
    assert said["test"] == {name: test[name] for name in ("loss", "accuracy")}


def test_the_default_directory_is_below_the_present_one(command, tmp_path):
    """`train`, the same again, and `evaluate` with a relative path, through a link and where
    it was moved to. No character of a path is special."""
    folder = tmp_path / "work [old] #1 100% {seed}?*"
    folder.mkdir()
    here = {"experiment": "regression", "folder": folder, "drawn": True}
    run, training = folder / "runs" / "regression-small", ["train", "small", "--steps=100"]
    link, moved = folder / "link", tmp_path / "lr[0.1]"
    link.symlink_to(run)
    assert command(*training, check=0, **here).stderr == ""
    untested(run)
    assert command(*training, check=0, **here).stderr == ""
    said = [command("evaluate", path, check=0, **here).stdout for path in (run, link, "link")]
    run.rename(moved)
    assert {*said, command("evaluate", moved, check=0, **here).stdout} == {said[0]}
    assert (moved / "curves.png").exists()
    assert len(log.read(moved)[0]["starts"]) == 2


def test_unknown_command(command):
    assert_one_line(
        command("trian"), "no command 'trian'", "train, evaluate, describe, plan, claims", code=2
    )


def test_unknown_preset(command):
    assert_one_line(command("train", "smal"), "no preset 'smal'", "small, cifar10, paper", code=2)


def test_unknown_option(command):
    process = command("train", "small", "--depht", 8)
    assert process.returncode == 2 and "--depth" in process.stderr


@pytest.mark.parametrize("name", ["cifar10", "no_such_set"])
def test_missing_data_set(command, tmp_path, name):
    process = command(
        "train",
        "cifar10",
        "--data",
        name,
        "--run.workdir",
        tmp_path / "run",
        TFDS_DATA_DIR=str(tmp_path),
    )
    assert_one_line(process, name, tmp_path, f"python -m jaxhist.data.prepare {name}")


@pytest.mark.parametrize(
    "option",
    [
        "--depth=21",
        "--batch=0",
        "--batch=5000",
        "--validation=5",
        "--validation=2000",
        "--run.save-every=-1",
    ],
)
def test_impossible_values(command, tmp_path, option):
    name, value = option.removeprefix("--").removeprefix("run.").split("=")
    process = command(*TINY, option, "--run.workdir", tmp_path / "run")
    assert_one_line(process)
    assert value in process.stderr or name.replace("-", "_") in process.stderr


def test_no_such_device(command, tmp_path):
    run = [*TINY, "--run.workdir", tmp_path / "run"]
    assert_one_line(command(*run, "--run.devices", 8), "no such device: 8")
    assert_one_line(command(*run, JAX_PLATFORMS="cuda"), "no such device", "JAX_PLATFORMS")


def test_batch_that_does_not_divide(command, tmp_path):
    process = command(
        *TINY, "--batch=33", "--run.workdir", tmp_path / "run", JAX_NUM_CPU_DEVICES="2"
    )
    assert_one_line(process, "33 cannot be split over 2 devices")


@pytest.mark.parametrize(
    "change, words",
    [
        (["--depth=14"], "depth is 8 there, 14 here"),
        (["--run.seed=1"], "seed is 0 there, 1 here"),
        (["--rate=0.2", "--steps=20"], "rate is 0.1 there, 0.2 here"),
    ],
)
def test_directory_of_another_run(command, saved, change, words):
    before = contents(saved)
    process = command(*TINY, "--steps=20", *change, "--run.workdir", saved)
    assert_one_line(process, words, saved)
    assert contents(saved) == before


@needs("imagenet_sample")
def test_wrong_shape_of_the_data(command, tmp_path):
    run = ["--run.workdir", tmp_path / "run"]
    process = command("train", "cifar10", "--data", "imagenet_sample", *run)
    assert_one_line(process, "'imagenet_sample' differ in size")


def test_wrong_shape_of_a_checkpoint(command, saved):
    """The log says that the run is this one, but its states are those of another network."""
    path = saved / log.FILE
    path.write_text(path.read_text().replace('"depth": 8', '"depth": 14'))
    before = contents(saved)
    process = command(*TINY, "--steps=20", "--depth=14", "--run.workdir", saved)
    assert_one_line(process, "is of another program: state.", "there,", "here")
    assert contents(saved) == before


def test_file_in_place_of_a_directory(command, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_one_line(command(*TINY, "--run.workdir", tmp_path / "file"), "cannot be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_truncated_checkpoint(command, finished, saved):
    """It is named, and the run goes on from the one before; what it then saves is the same."""
    newest = max(int(p.name) for p in (saved / "checkpoints").iterdir())
    largest = max((saved / "checkpoints" / str(newest)).rglob("*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    before = log.read(finished)[1:]
    process = command(*TINY, "--steps=20", "--run.save-every=5", "--run.workdir", saved, check=0)
    assert f"warning: checkpoint {saved}/checkpoints/{newest} is damaged" in process.stderr
    assert log.read(saved)[0]["starts"][-1]["step"] == newest - 5
    strip = lambda lines: [{k: v for k, v in line.items() if k != "speed"} for line in lines]
    assert strip(log.read(saved)[1:]) == strip(before)


def test_all_checkpoints_truncated(command, saved):
    for sums in saved.glob("checkpoints/*/SHA256SUMS"):
        (sums.parent / "_METADATA").write_text("")
    before = contents(saved)
    process = command(*TINY, "--steps=20", "--run.workdir", saved)
    assert_one_line(process, "every checkpoint", "damaged")
    assert contents(saved) == before


@pytest.mark.parametrize("arguments", [["evaluate"], ["evaluate", "a", "b"]])
def test_evaluate_wants_one_directory(command, arguments):
    assert_one_line(command(*arguments), "evaluate DIR", code=2)


def test_evaluate_where_there_is_no_run(command, tmp_path):
    assert_one_line(command("evaluate", tmp_path), f"no run in {tmp_path}")


def test_evaluate_of_a_damaged_checkpoint(command, saved):
    for sums in saved.glob("checkpoints/*/SHA256SUMS"):
        sums.write_text(sums.read_text().replace("0", "1", 1))
    assert_one_line(command("evaluate", saved), "is damaged", "changed since it was saved")


def test_loss_that_is_not_finite(command, tmp_path):
    """A learning rate far too high. The last good checkpoint and the batch are there."""
    run = ["--run.workdir", tmp_path / "run", "--run.save-every=1"]
    process = command("train", "small", "--rate=1e8", *run, experiment="regression")
    assert_one_line(process, "is not finite", "its batch is in", "last good checkpoint is", "lower")
    step = int(process.stderr.split("of step ")[1].split()[0])
    (batch,) = (tmp_path / "run").glob("batch-*.npz")
    assert batch.name == f"batch-{step}.npz" and str(batch) in process.stderr
    good = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert good[-1] <= step
    again = command("evaluate", tmp_path / "run", check=0, experiment="regression")
    assert again.stdout.count("NaN") == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for two checkpoints and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1600k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path):
    """`train | head -1`: the first line is read, and then nothing."""
    os.mkfifo(tmp_path / "pipe")
    arguments = ["train", "small", "--steps=100", "--run.workdir", tmp_path / "run"]
    started = Command("experiments.regression", *arguments, output=tmp_path / "pipe")
    with (tmp_path / "pipe").open() as pipe:
        assert pipe.readline() == "compiling for 1 x cpu\n"
    process = started.ended()
    assert (process.returncode, process.stderr) == (0, "")
    assert log.read(tmp_path / "run")[-1]["phase"] == "test"


def python(*arguments, **environment):
    """A command in an interpreter of its own, where it matters how that starts."""
    environment = dict(os.environ) | environment
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_what_a_notebook_leaves_in_the_environment():
    """It names its own way to show pictures, which is not installed here."""
    process = python(
        "-c", "import jaxhist, matplotlib", MPLBACKEND="module://matplotlib_inline.backend_inline"
    )
    assert (process.returncode, process.stderr) == (0, "")
    kept = "import jaxhist, matplotlib; print(matplotlib.rcParams['backend'])"
    assert python("-c", kept, MPLBACKEND="svg").stdout == "svg\n"


def test_without_docstrings_there_is_no_help():
    process = python("-OO", "-m", "experiments.regression", "train")
    assert_one_line(process, "python -OO drops the texts that help is made of", code=2)


def test_a_bar_is_for_terminals(command, tmp_path):
    """In a file there are lines, whatever colours are asked for."""
    run = ["train", "small", "--steps=100", "--run.workdir"]
    said = [
        command(*run, tmp_path / name, check=0, experiment="regression", **environment).stdout
        for name, environment in (("plain", {}), ("colours", {"FORCE_COLOR": "1"}))
    ]
    assert "\x1b" not in said[1] and len(said[1].splitlines()) == len(said[0].splitlines())
    assert said[1].startswith("compiling for 1 x cpu\ntrain ")


def test_characters_that_cannot_be_shown(tmp_path):
    run = ["-m", "experiments.regression", "train", "--steps=20", "--run.workdir", tmp_path / "ü"]
    process = python(*run, PYTHONIOENCODING="ascii")
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.endswith("?/curves.png\n")


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_is_none(command, tmp_path, seed):
    run = ["train", "small", "--run.seed", seed, "--run.workdir", tmp_path / "run"]
    assert_one_line(command(*run, experiment="regression"), f"there is no seed {seed}")


def test_bytes_that_are_no_text(command):
    process = command("evaluate", os.fsdecode(b"runs/\xff"), experiment="regression")
    assert_one_line(process, "is not UTF-8", code=2)


def test_full_disk(command, small_disk):
    """The run ends in one line, and goes on from the last good checkpoint when there is room."""
    run = [*TINY, "--run.workdir", small_disk / "run", "--run.save-every=5"]
    process = command(*run)
    assert_one_line(process, "no space left on device", "run the same command again")
    good = [int(p.parent.name) for p in small_disk.glob("run/checkpoints/*/SHA256SUMS")]
    assert good
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    command(*run, check=0)
    assert log.read(small_disk / "run")[0]["starts"][-1]["step"] == max(good)
