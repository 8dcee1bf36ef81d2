"""The papers that made deep learning, runnable in JAX."""

__version__ = "0.1.0"


class UserError(Exception):
    """Something that the person at the keyboard can mend.

    Its text is one line: what is wrong, and what to do. The command line prints it
    and leaves with exit code 1; nothing that was saved is touched.
    """
