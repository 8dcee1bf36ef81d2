"""Commands without the seconds that it takes to import: each is a process of its own, forked from
one that has imported what they need and has not started JAX yet."""

import contextlib
import gc
import json
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import tensorflow_datasets as tfds

from jaxhist import plots

FORKS = multiprocessing.get_context("forkserver")
NEEDED = ["experiments.gpt", "experiments.resnet"]
LATER = ["matplotlib.backends.backend_agg", "scipy.stats", "sklearn.datasets"]
FORKS.set_forkserver_preload([*NEEDED, *LATER, "sklearn.model_selection"])


class Command:
    """`python -m module ...`, which has been started.

    Args:
      module: such as "experiments.resnet".
      arguments: of the command.
      environment: what is to differ from the present one.
      folder: where it runs.
      said: on its standard input.
      output: a named pipe, in place of a file, for what it says.
      drawn: whether curves are drawn, which takes a second.
    """

    def __init__(
        self, module, *arguments, environment=None, folder=".", said="", output=None, drawn=False
    ):
        self._there = Path(tempfile.mkdtemp())
        (self._there / "stdin").write_text(said)
        self.output, self.errors = output or self._there / "stdout", self._there / "stderr"
        for path in (self.output, self.errors):
            path.touch()
        self._arguments = [module, *map(str, arguments)]
        environment = dict(os.environ) | (environment or {})
        streams = self._there / "stdin", self.output, self.errors
        given = self._arguments, environment, str(folder), streams, drawn
        # It is ended where a test fails and leaves it alone.
        self._process = FORKS.Process(target=_main, args=given, daemon=True)
        self._process.start()

    def runs(self):
        return self._process.exitcode is None

    def send_signal(self, number):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self._process.pid, number)

    def ended(self, timeout=300):
        """Wait for its end. Returns a `subprocess.CompletedProcess`, its output as text.

        Raises:
          TimeoutExpired: it did not end in so many seconds, and has been killed.
        """
        self._process.join(timeout)
        if self.runs():
            self._process.kill()
            raise subprocess.TimeoutExpired(self._arguments, timeout)
        texts = [p.read_text() if p.is_file() else "" for p in (self.output, self.errors)]
        shutil.rmtree(self._there)
        return subprocess.CompletedProcess(self._arguments, self._process.exitcode, *texts)


def run(module, *arguments, **options):
    """Start a command, and wait for its end."""
    return Command(module, *arguments, **options).ended()


def _main(arguments, environment, folder, streams, drawn):
    """In the new process."""
    for number, path in enumerate(streams):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY
        os.dup2(os.open(path, flags), number)
    sys.stdin = os.fdopen(0)  # multiprocessing has closed it
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # What was read from the environment when it was imported.
    for name in [name for name in environment if name.startswith("JAX_")]:
        with contextlib.suppress(AttributeError):  # not an option
            _configure(name.lower(), environment[name])
    tfds.core.constants.DATA_DIR = environment.get("TFDS_DATA_DIR", tfds.core.constants.DATA_DIR)
    gc.freeze()  # what was imported is no garbage; looking through it is a tenth of a command
    if not drawn:
        plots.curves = lambda workdir: None
    sys.argv = arguments
    sys.modules.pop(arguments[0], None)  # so that it is run, and not only found
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def _configure(name, value):
    before = getattr(jax.config, name)
    number = isinstance(before, bool | int | float)
    jax.config.update(name, type(before)(json.loads(value.lower())) if number else value)
