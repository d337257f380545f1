"""Letting another thread by that waits for the interpreter lock.

Calls of guests let go of that lock for a moment, and have it back before a thread that waits for it is awake. Each of
them would wake that thread in vain, which takes as long as half a short run, until Python makes them hand the lock over
after 5 ms. So a thread that has short runs waits, once, for whoever has something to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade._bell import Bell

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Rendezvous"]


class Rendezvous:
    """Where one thread lets another one by."""

    __slots__ = ("_is_awaited", "_over")

    def __init__(self) -> None:
        self._is_awaited = False
        self._over = Bell()

    def let_by(self, seconds: float, wake: Callable[[], object] | None = None) -> None:
        """Waits until the other thread has said that it is done, or for so long.

        Args:
            seconds: The longest to wait.
            wake: Wakes the other thread, where it does not come on its own.
        """
        # It may have rung for somebody who did not wait for so long.
        self._over.wait(0)
        self._is_awaited = True
        if wake is not None:
            wake()
        self._over.wait(seconds)
        self._is_awaited = False

    def is_done(self) -> None:
        """Lets whoever waits here go on."""
        if self._is_awaited:
            self._is_awaited = False
            self._over.ring()
