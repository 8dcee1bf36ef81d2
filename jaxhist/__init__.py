"""The papers that made deep learning, runnable in JAX."""

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import track

__version__ = "0.1.0"


class UserError(Exception):
    """Something that the person at the keyboard can mend.

    Its text is one line: what is wrong, and what to do. The command line prints it
    and leaves with exit code 1; nothing that was saved is touched.
    """


# A command that is started from a notebook's cell inherits the name of the notebook's way to show
# pictures, and matplotlib does not start where that is not installed. Nothing here shows any.
_backend = os.environ.get("MPLBACKEND", "").removeprefix("module://").split(".")[0]
if "module://" in os.environ.get("MPLBACKEND", "") and not importlib.util.find_spec(_backend):
    del os.environ["MPLBACKEND"]


def console() -> Console:
    """For progress bars, which are for terminals, whatever colours are asked for."""
    return Console(highlight=False, force_terminal=None if sys.stdout.isatty() else False)


def progress(items: Iterable, says: str, total: int | None = None) -> Iterable:
    """The items, with a bar for what is done once and takes long."""
    return track(items, f"{says}, once", total, transient=True, console=console())


def tell(text: str):
    """Print a line; where nobody reads any more (`| head`), the run goes on in silence."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def typed() -> list[str]:
    """The lines of standard input, each without the blanks around it.

    Raises:
      UserError: one is not UTF-8.
    """
    lines = []
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            lines.append(line.decode().strip())
        except UnicodeDecodeError as error:
            raise UserError(
                f"line {number} of standard input is not UTF-8 ({error.reason} at byte "
                f"{error.start}); convert it"
            ) from error
    return lines


@contextlib.contextmanager
def quiet(package: str) -> Iterator[None]:
    """Inside, nothing of what a package tells absl's logger is shown."""
    absl, others = logging.getLogger("absl"), lambda record: f"/{package}/" not in record.pathname
    absl.addFilter(others)
    try:
        yield
    finally:
        absl.removeFilter(others)


def warn(text: str):
    """Tell the person at the keyboard about something that does not end the run."""
    print(f"warning: {text}", file=sys.stderr)
