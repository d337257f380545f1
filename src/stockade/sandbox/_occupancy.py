"""Who has a session: one at a time, and whoever comes second is told so instead of waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade._locks import new_lock
from stockade.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.runner import RunControl

__all__ = ["Occupancy"]


class Occupancy:
    """Whose a session is.

    Take it and leave it by one `try` of one frame, for the handler of a signal may raise anywhere between. Leave it by
    no call: where a function begins, a handler may raise, too, and it would be left by nobody.

        holder = object()
        try:
            occupancy.take(holder)
            ...
        finally:
            if occupancy.holder is holder:
                occupancy.holder = None

    Attributes:
        holder: Whoever has it; only who has it leaves it, so that needs no lock.
    """

    __slots__ = ("_lock", "holder")

    def __init__(self) -> None:
        self.holder: object = None
        self._lock = new_lock()

    def take(
        self,
        holder: object,
        check: Callable[[], None] | None = None,
        begin: Callable[[], None] | None = None,
        otherwise: str = "the session is in use by another thread: give each thread a session of its own",
    ) -> None:
        """Takes it.

        Args:
            holder: Who takes it.
            check: Is called first; where it raises, it is not taken.
            begin: Is called where nobody has it, before anybody can cancel what this holder does.
            otherwise: What is said where somebody has it.

        Raises:
            UsageError: Somebody has it.
        """
        with self._lock:
            if check is not None:
                check()
            if self.holder is not None:
                raise UsageError(otherwise)
            if begin is not None:
                begin()
            self.holder = holder

    def cancel(self, control: Callable[[], RunControl]) -> None:
        """Cancels what whoever has it is doing; where nobody has it, nothing.

        Args:
            control: Tells the control of that.
        """
        with self._lock:
            # A cancellation is for what is under way, from its very beginning.
            if self.holder is None:
                return
            cancelled = control()
            cancelled.cancelled = True
        cancelled.wake()
