"""Writing files: durably, and in one line where it fails."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxhist import UserError


@contextlib.contextmanager
def failing_in_one_line(
    workdir: epath.PathLike,
    advice: str = "make room or choose another directory, and run the same command again",
) -> Iterator[None]:
    """Turn the errors of writing a file into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{workdir} cannot be written: {(error.strerror or str(error)).lower()}; {advice}"
        ) from error


def write_durably(path: epath.Path, text: str):
    """Write a file that survives the loss of the machine right afterwards."""
    with path.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def write_arrays(workdir: epath.Path, step: int, batch: Any) -> epath.Path:
    """Write a batch as `batch-STEP.npz`, each array under its path in the pytree."""
    path = workdir / f"batch-{step}.npz"
    leaves = jax.tree.leaves_with_path(batch)
    with failing_in_one_line(workdir), path.open("wb") as file:
        np.savez(
            file, **{jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in leaves}
        )
    return path
