"""Handlers of signals that raise at chosen places, again and again the same ones."""

from __future__ import annotations

import threading
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Signal", "Signals"]


class Signal(BaseException):
    """What a handler raises."""


class Signals:
    """Handlers that raise at some of the places where Python looks for signals: not by a tracing function, which Python
    takes off where it raises.
    """

    def __init__(self) -> None:
        self.places = 0
        self._at: set[int] = set()

    def come(self, at: int, apart: int) -> None:
        """Begins anew.

        Args:
            at: The number of the first place; 0: never.
            apart: So many places later it raises again; 0: never.
        """
        self.places, self._at = 0, {at, at + apart}

    def end(self) -> None:
        """No more come."""
        self._at = set()

    def place(self, where: str) -> None:
        """Is told that Python looks for signals, which only the main thread does."""
        if threading.current_thread() is threading.main_thread():
            self.places += 1
            if self.places in self._at:
                raise Signal(where)

    def within(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function with the places at its beginning and its end."""

        @wraps(function)
        def interrupted(*given: Any, **named: Any) -> Any:
            self.place(f"{function.__qualname__} begins")
            result = function(*given, **named)
            self.place(f"{function.__qualname__} ends")
            return result

        return interrupted
