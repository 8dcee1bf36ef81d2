"""Eight virtual CPU devices, strict shapes, and commands run as a user runs them."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile

import jax
import pytest
import tensorflow_datasets as tfds

# Most of the time goes into compiling: all processes of a test session share what they compile.
# (pytest-xdist's workers and the commands find the directory in the environment, which this process
# has read before.)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache = tempfile.mkdtemp(prefix="jaxhist-test-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# Not on other devices that may be here.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Programs that run for so short a time are not worth optimizing, unless the environment says "0".
OPTIMIZED = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "0"
FAST = {"JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(not OPTIMIZED))}  # for commands

# A residual network so small that a run takes seconds.
TINY = ["train", "small", "--depth=8", "--batch=8", "--steps=40", "--evaluate-every=10"]


@pytest.fixture
def command(tmp_path):
    """Run `python -m experiments.resnet ...` and wait, with one CPU device and the run's directory
    in a temporary one. Returns the finished process, its output as text."""

    def run(*arguments, check=None, **environment):
        process = subprocess.run(**popen_arguments(arguments, environment), timeout=300)
        if check is not None:
            assert process.returncode == check, process.stderr
        return process

    return run


@pytest.fixture(scope="module")
def compiled_fast():
    """As `FAST`, for the programs of a test module."""
    jax.config.update("jax_disable_most_optimizations", not OPTIMIZED)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def popen_arguments(arguments, environment=None) -> dict:
    return {
        "args": [sys.executable, "-m", "experiments.resnet", *map(str, arguments)],
        "env": {**os.environ, **(environment or {})},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


def needs(name):
    """Skip where a TFDS data set is not prepared."""
    folder = os.path.join(tfds.core.constants.DATA_DIR, name)
    return pytest.mark.skipif(
        not os.path.isdir(os.path.expanduser(folder)), reason=f"data set {name} is not in {folder}"
    )
