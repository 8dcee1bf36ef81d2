"""Eight virtual CPU devices, strict shapes, and commands as a user gives them."""

import atexit
import gc
import importlib.util
import os
import shutil
import tempfile
import time
from types import SimpleNamespace

import flax
import forked
import jax
import pytest
import tensorflow_datasets as tfds

from jaxhist import log, plots

# Most of the time goes into compiling: all processes of a test session share what they compile.
# (pytest-xdist's workers and the commands find the directory in the environment, which this process
# has read before.)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache = tempfile.mkdtemp(prefix="jaxhist-test-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

# The compiler's new way to write loops takes three times as long as the one before.
QUICKLY = "xla_cpu_disable_new_fusion_emitters --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", f"--xla_backend_extra_options={QUICKLY}")

# More threads of scikit-learn's would keep the others' cores busy with waiting. (It is for workers
# and commands: this process has imported numpy.)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# On some processors jaxlib 0.10.1 says of every program that it finds in the directory that it may
# not run there, for want of features that are no instructions (`prefer-no-gather`).
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # JAX has set it already

# Not on other devices that may be here.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Programs that run for so short a time are not worth optimizing, which takes twice as long as to
# compile them (`JAX_DISABLE_MOST_OPTIMIZATIONS=0` before the command optimizes them).
QUICK = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
jax.config.update("jax_disable_most_optimizations", QUICK)

# Then a worker of pytest-xdist keeps to one core, too, and so does what it starts: threads that
# wander take a tenth longer.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if QUICK and WORKER and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(WORKER.removeprefix("gw")) % len(cores)]})

# What takes a tenth of the time to trace and no test looks at: garbage as often as Python looks for
# it, the lines of Python behind each operation, and names for a profiler.
gc.set_threshold(100_000)
for name in ("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "FLAX_PROFILE"):
    os.environ[name] = "0"
jax.config.update("jax_traceback_in_locations_limit", 0)
flax.config.update("flax_profile", False)

# A residual network so small that a run takes seconds.
TINY = ["train", "small", "--depth=8", "--batch=8", "--steps=40", "--evaluate-every=10"]


def pytest_collection_finish():
    """What is imported by now stays: no collection of garbage looks through it."""
    gc.freeze()


@pytest.fixture
def command():
    """Run `python -m experiments.resnet ...`, or another experiment, and wait, with one CPU device.
    Returns the finished process, its output as text."""

    def run(*arguments, check=None, experiment="resnet", folder=".", drawn=False, **environment):
        options = {"environment": environment, "folder": folder, "drawn": drawn}
        process = forked.run(f"experiments.{experiment}", *arguments, **options)
        if check is not None:
            assert process.returncode == check, process.stderr
        return process

    return run


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """A run in a test draws no curves, which takes a second, unless the test asks for `drawn`."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(plots, "curves", lambda workdir: None)


@pytest.fixture
def drawn():
    """The curves of a run are drawn."""


@pytest.fixture
def clock(monkeypatch):
    """Stands for the clock of a run's log: time passes where a test says so, in seconds."""
    clock = SimpleNamespace(now=0.0, time=time.time, monotonic=lambda: clock.now)
    monkeypatch.setattr(log, "time", clock)
    return clock


@pytest.fixture
def data_sets(tmp_path, monkeypatch):
    """Where TFDS finds data sets, an empty folder, and none is decoded yet."""
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


PLAYS = pytest.mark.skipif(
    importlib.util.find_spec("gymnax") is None, reason="the games of gymnax are not installed"
)


def needs(name):
    """Skip where a TFDS data set is not prepared."""
    folder = os.path.join(tfds.core.constants.DATA_DIR, name)
    return pytest.mark.skipif(
        not os.path.isdir(os.path.expanduser(folder)), reason=f"data set {name} is not in {folder}"
    )
