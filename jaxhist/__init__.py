"""The papers that made deep learning, runnable in JAX."""

import os
import sys

__version__ = "0.1.0"


class UserError(Exception):
    """Something that the person at the keyboard can mend.

    Its text is one line: what is wrong, and what to do. The command line prints it
    and leaves with exit code 1; nothing that was saved is touched.
    """


def tell(text: str):
    """Print a line; where nobody reads any more (`| head`), the run goes on in silence."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(text: str):
    """Tell the person at the keyboard about something that does not end the run."""
    print(f"warning: {text}", file=sys.stderr)
