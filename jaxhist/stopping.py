"""A stop that is asked for in the middle of something long, such as an evaluation.

What takes many batches goes through them with `between`, or calls `check` in its own loop. Who can
stop it then says with `asking` where to ask; nobody else is asked.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar

_asked: ContextVar[Callable[[], bool]] = ContextVar("asked", default=lambda: False)


class Interrupted(Exception):
    """Asked to stop. Whoever trains has saved everything; the same call goes on from there."""


@contextlib.contextmanager
def asking(interrupted: Callable[[], bool]) -> Iterator[None]:
    """Inside, `check` asks this."""
    token = _asked.set(interrupted)
    try:
        yield
    finally:
        _asked.reset(token)


def check():
    """Of several processes, all call it equally often: they agree on the answer.

    Raises:
      Interrupted: to be called where nothing is lost by that.
    """
    if _asked.get()():
        raise Interrupted


def between(items: Iterable) -> Iterator:
    """The items; before each of them `check`."""
    for item in items:
        check()
        yield item
