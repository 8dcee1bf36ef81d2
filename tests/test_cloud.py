"""The files of docs/cloud, with stand-ins for what only a cloud has."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_kill import logged

from experiments import gpt
from jaxhist import chips, cli, plan
from jaxhist.chips import Slice
from jaxhist.devices import Axes
from jaxhist.train import Run

CLOUD = Path(__file__).parent.parent / "docs" / "cloud"

# It starts `python -m MODULE ...` twice, forked from one process that has imported what it needs.
SRUN = f"""\
#!{sys.executable}
import importlib, os, runpy, signal, sys

from jaxhist import plots

command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
_, _, module, *arguments = command
for name in (module, "sklearn.datasets", "sklearn.model_selection"):
    importlib.import_module(name)
plots.curves = lambda workdir: None  # which takes seconds
tasks = []
for number in ("0", "1"):
    tasks.append(os.fork())
    if not tasks[-1]:
        os.environ |= {{"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}}
        os.environ |= {{"SLURM_PROCID": number, "SLURM_LOCALID": number}}
        sys.argv[1:] = arguments
        del sys.modules[module]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
signal.signal(signal.SIGTERM, lambda *_: [os.kill(task, signal.SIGTERM) for task in tasks])
print(os.getpid(), flush=True)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(task, 0)[1]) for task in tasks))
"""
# It writes down what it is asked for, and answers from a list.
RECORDED = """\
#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$RECORD"
"""


@pytest.fixture
def stand_ins(tmp_path):
    """Puts programs into a directory that is searched first; returns the environment for it."""

    def put(**programs):
        for name, text in programs.items():
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        return os.environ | {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "RECORD": str(tmp_path / "record"),
            "JAX_PLATFORMS": "cpu",
        }

    return put


def test_a_job_of_slurm_is_queued_again_until_it_is_done(tmp_path, stand_ins):
    port = os.getpid() % 4096  # JAX makes the port from the job's number
    environment = stand_ins(srun=SRUN, scontrol=RECORDED) | {
        "SLURM_JOB_ID": str(port),
        "TFDS_DATA_DIR": str(tmp_path),
        "PYTHON": sys.executable,
    }
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    run = tmp_path / "run"
    arguments = ["regression", "train", "--steps=400", f"--run.workdir={run}"]

    def start():
        return subprocess.Popen(
            ["bash", CLOUD / "slurm.sh", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    job = start()
    tasks = int(job.stdout.readline())
    begin = time.monotonic()
    while not logged(run):
        assert time.monotonic() - begin < 200
        time.sleep(0.05)
    os.kill(tasks, signal.SIGTERM)
    _, errors = job.communicate(timeout=200)
    assert job.returncode == 75, errors
    assert (tmp_path / "record").read_text() == f"scontrol requeue {port}\n"
    assert 0 < logged(run)[-1]["step"] < 400

    job = start()
    said, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    assert said.count("\ncurves ") == 1, said
    assert logged(run)[-1]["phase"] == "test" and logged(run)[-1]["step"] == 400
    assert (tmp_path / "record").read_text().count("\n") == 1


GCLOUD = """\
#!/usr/bin/env bash
# The files that STATES, COPIES and CODES name have a line for each time that one asks.
echo "$4 ${*: -1}" >> "$RECORD"
next() { head -n 1 "$1"; sed -i 1d "$1"; }
case "$4 $*" in
    describe*) next "$STATES" ;;
    scp*) exit "$(next "$COPIES")" ;;
    *"cat ~/code"*) next "$CODES" ;;
esac
"""


@pytest.mark.parametrize(
    ("states", "copies", "codes", "result", "trainings"),
    [
        # There is none; it trains to the end.
        (["", "READY"], [0], [0], 0, 1),
        # It is taken away while it trains, then one is stopped and saved, then all is done.
        (["", "PREEMPTED", "READY", "READY"], [0, 0], ["", 75, 0], 0, 3),
        # It is taken away just when it has been made.
        (["", "READY", "READY"], [1, 0], [0], 0, 1),
        # The connection is lost for a moment.
        (["", "READY", "READY"], [0], ["", 0], 0, 2),
        # Training ends with an error.
        (["", "READY"], [0], [1], 1, 1),
    ],
)
def test_a_slice_is_rented_until_training_is_done(
    tmp_path, stand_ins, states, copies, codes, result, trainings
):
    answers = {"STATES": states, "COPIES": copies, "CODES": codes}
    for name, lines in answers.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    environment = stand_ins(gcloud=GCLOUD) | {
        "NAME": "slice",
        "ZONE": "here",
        "TYPE": "v5litepod-16",
        "VERSION": "v2",
        "SETUP": "true",
        "TFDS_DATA_DIR": "/data",
        "WAIT": "0",
        **{name: str(tmp_path / name) for name in answers},
    }
    process = subprocess.run(
        ["bash", CLOUD / "tpu-vm.sh", "gpt", "train", "gpt2", "--data", "a b"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=CLOUD.parent.parent,
    )
    assert process.returncode == result, process.stderr
    asked = (tmp_path / "record").read_text().splitlines()
    assert sum(line.startswith("create") for line in asked) == len(copies)
    assert not any((tmp_path / name).read_text() for name in answers)
    training = [line for line in asked if "experiments.gpt" in line]
    assert len(training) == trainings
    assert "experiments.gpt 'train' 'gpt2' '--data' 'a b' --run.distributed" in training[0]
    assert asked[-1].startswith("delete")


def test_the_numbers_of_the_jobset_agree():
    (jobset,) = [part for part in yaml.safe_load_all((CLOUD / "jobset.yaml").read_text()) if part]
    name = jobset["metadata"]["name"]
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert job["completions"] == job["parallelism"] == int(environment["JAX_NUM_PROCESSES"])
    host, _ = environment["JAX_COORDINATOR_ADDRESS"].split(":")
    assert host == f"{name}-{workers['name']}-0-0.{name}"
    rules = job["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [cli.RESUME_ME]
    assert rules[0]["onExitCodes"]["containerName"] == container["name"]

    # The slice has as many chips as all machines, and the preset goes with the mesh.
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    where = Slice(chips.CHIPS["v5e"], math.prod(map(int, topology.split("x"))), None)
    assert where.count == job["completions"] * container["resources"]["limits"]["google.com/tpu"]
    *module, verb, preset, mesh, _, _ = container["command"]
    assert [*module, verb] == ["python", "-m", "experiments.gpt", "train"]
    fsdp = int(mesh.removeprefix("--run.mesh.fsdp="))
    made = plan.make(gpt.build, gpt.PRESETS[preset], Run(mesh=Axes(fsdp=fsdp)), where)
    assert not made.refused
