"""Several processes as one run: each sees all devices, and runs the same program on its own.

JAX's runtime joins them, and does all that passes between them. They share the run's directory. The
first process writes the log and the pictures; all write checkpoints.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxhist import UserError, devices
from jaxhist.log import FILE

HEARTBEAT = 10  # seconds without a sign of life, after which a process is dead to the others
START = 300  # seconds in which all processes must have come


@contextlib.contextmanager
def joined(wanted: bool) -> Iterator[None]:
    """Inside, this process is one of a job, if that is wanted or JAX_COORDINATOR_ADDRESS is set.

    The job of SLURM, Open MPI, Kubernetes or a TPU slice is found; elsewhere
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID name it.

    Raises:
      UserError: there is no job, or the others do not come.
    """
    if not (wanted or "JAX_COORDINATOR_ADDRESS" in os.environ):
        yield
        return
    # Its handler of SIGTERM would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    number = lambda name: int(os.environ[name]) if name in os.environ else None
    try:
        jax.distributed.initialize(
            num_processes=number("JAX_NUM_PROCESSES"),
            process_id=number("JAX_PROCESS_ID"),
            initialization_timeout=START,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"this process cannot join a job ({' '.join(str(error).split())}); start it with "
            "srun, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error
    try:
        with contextlib.ExitStack() as stack:
            if not first():
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(devices.failing_in_one_line())
            yield
    except UserError as error:
        _leave(str(error))
    except jax.errors.JaxRuntimeError as error:
        _leave(
            "another process of this job has ended, or a device has failed "
            f"({str(error).splitlines()[0][:200]}); start all of them again"
        )


def _leave(reason: str):
    """At once: an orderly end would wait for processes that will not come."""
    print(f"error: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


def first() -> bool:
    """Whether this is the process that writes, as is the only one."""
    return jax.process_index() == 0


def from_first(value: Callable[[], int]) -> int:
    """What the first process finds; the others do not look."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value() if first() else 0)))


def of_each(value: int) -> list[int]:
    """What every process finds."""
    return multihost_utils.process_allgather(np.int32(value)).reshape(-1).tolist()


@contextlib.contextmanager
def home(workdir: epath.Path) -> Iterator[epath.Path]:
    """Where a process writes its log: the run's directory; for all but the first one that is
    thrown away, with a copy of the log in it."""
    if first():
        yield workdir
        return
    with tempfile.TemporaryDirectory() as folder:
        if (workdir / FILE).exists():
            (workdir / FILE).copy(epath.Path(folder) / FILE)
        yield epath.Path(folder)


class Agreement:
    """Whether any process says yes, known to all of them at the same step."""

    def __init__(self, mesh: Mesh, mine: Callable[[], bool]):
        """`mine` is what this process says."""
        self._mine = mine
        self._parts = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.any, out_shardings=devices.whole(mesh))
        self._shape = (mesh.size,)
        self._asked: jax.Array | None = None

    def __call__(self) -> bool:
        """Of several processes it is the answer to the last call, so that nobody waits for the
        step that runs."""
        if jax.process_count() == 1:
            return self._mine()
        before = self._asked
        self._asked = self._any(devices.place(np.full(self._shape, self._mine()), self._parts))
        return before is not None and bool(before)
