"""One process of a job that saves a checkpoint and verifies it: `python sums.py WORKDIR`.

It writes, as JSON, how many bytes it has summed up of a save, and of a verification, how large the
files are that it wrote, and what is found of a checkpoint in which a byte of a file of the last
process has turned over.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from jaxhist import checkpoint, devices, processes
from jaxhist.algorithm import State
from jaxhist.checkpoint import Checkpoints, Progress
from jaxhist.devices import Axes


def state(key):
    sizes = [400_000, 4_000, 200_000, 80_000]
    arrays = [jax.random.normal(jax.random.fold_in(key, size), (size,)) for size in sizes]
    return State(jnp.int32(1), arrays, (), ())


def counted(read):
    """A `_line` that counts the bytes."""

    def line(folder, file):
        read.append((folder / file).stat().length)
        return LINE(folder, file)

    return line


LINE = checkpoint._line


def main(workdir):
    number, count, read = jax.process_index(), jax.process_count(), []
    checkpoint._line = counted(read)
    mesh = devices.mesh(0, Axes(fsdp=jax.device_count()))
    layout = devices.layout(mesh, jax.eval_shape(state, jax.random.key(0)))
    made = jax.jit(state, out_shardings=devices.shardings(layout))(jax.random.key(0))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(1, made, Progress())
    checkpoints.wait()
    multihost_utils.sync_global_devices("saved")
    folder = Path(workdir) / "checkpoints" / "1"
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    said = {"summed": sum(read)}
    said["wrote"] = sum(
        path.stat().st_size for name, path in files.items() if checkpoint._writer(name) == number
    )
    said["files"] = {name: path.stat().st_size for name, path in files.items()}
    read.clear()
    said["newest"], said["verified"] = checkpoints.newest(), sum(read)
    last = max(
        (path for name, path in files.items() if checkpoint._writer(name) == count - 1),
        key=lambda path: path.stat().st_size,
    )
    multihost_utils.sync_global_devices("verified")
    if number == 0:
        raw = last.read_bytes()
        last.write_bytes(raw[:1000] + bytes([raw[1000] ^ 1]) + raw[1001:])
    multihost_utils.sync_global_devices("damaged")
    said["damage"], said["damaged"] = checkpoints.damage(1), str(last.relative_to(folder))
    checkpoints.close()
    Path(workdir, f"said-{number}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    with processes.joined(wanted=False):
        main(sys.argv[1])
