"""Signals that have come, and that Python has not looked for: their handlers raise at the next place where it does."""

from __future__ import annotations

import ctypes
import signal
from contextlib import contextmanager
from functools import partial
from itertools import starmap
from operator import call
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["Interruption", "after_a_signal", "interrupted", "raised_in"]

_RAISE = ctypes.CDLL(None)["raise"]
"""Unlike functions of Python's, it does not look for signals before it returns; and it returns 0."""


class Interruption(Exception):  # noqa: N818 - of no error
    """As a handler of a signal raises."""


@contextmanager
def interrupted() -> Iterator[None]:
    """Has handlers of signals raise, and expects what they raise to come out of what is done here."""

    def handler(_: int, __: FrameType | None) -> None:
        raise Interruption

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(Interruption):
            yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def after_a_signal(function: Callable[..., int], *arguments: object) -> Callable[[], int]:
    """Returns a function in C that makes a call after a signal has come, and returns what that returns.

    Args:
        function: What it calls, in C.
        *arguments: With what.
    """
    return partial(sum, starmap(call, ((_RAISE, signal.SIGUSR1), (function, *arguments))))


def raised_in(last: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls a function in C while a signal has come, and checks that what its handler raises is not lost.

    Args:
        last: The function, which drops something.
        monkeypatch: Keeps what Python says of what is lost.
    """
    lost: list[Any] = []
    with monkeypatch.context() as patch, interrupted():
        patch.setattr("sys.unraisablehook", lost.append)
        sent = starmap(_RAISE, ((signal.SIGUSR1,),))
        # Python does not look for signals before the call is over.
        _ = [*sent], last()
    assert not lost
