"""Exports of a guest, called while it is halted in a call of a function of the embedder's.

They run on the stack on which the guest is halted, in the budget and the time of the call around them: the mailbox says
which one is to be called, and the guest halts again when it has returned. So the engine never has a second call of an
instance whose call is halted. What ends the guest meanwhile ends the call around it, too: that is kept here until the
embedder's function has returned, whatever it has made of it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from stockade.engine import INTEGER_BITS
from stockade.errors import UsageError
from stockade.execution._classify import GuestStopped, StopReason
from stockade.guard import mailbox_words, values_format

if TYPE_CHECKING:
    import struct
    from collections.abc import Sequence

    from stockade.engine import Number
    from stockade.guard import Mailbox, Woven

__all__ = ["Reentry"]

_MOST_DEPTH: Final = 32
"""How deep calls of exports from within host functions may be nested: each takes a dozen levels of Python's stack."""

_VALUES: Final = 8
"""Where values stand in a mailbox."""


class Reentry:
    """What is known of such calls of one guest.

    Args:
        woven: What the weaver tells of the module.
        mailbox: The guest's mailbox.

    Attributes:
        depth: How many of them are under way.
        here: Whether a plain function of the embedder's is called just now, on the thread that drives the guest.
        ended: Why the call around them cannot go on: how the guest has ended, or what was raised.
    """

    __slots__ = ("_entered", "_mailbox", "_numbers", "depth", "ended", "here")

    def __init__(self, woven: Woven, mailbox: Mailbox) -> None:
        self._numbers = woven.host_exports
        self._mailbox = mailbox
        # Exports that were called and have not returned.
        self._entered = 0
        self.depth = 0
        self.here = False
        self.ended: StopReason | BaseException | None = None

    def begin(self) -> tuple[bool, int]:
        """Begins a call, and returns what is given to `over`.

        Raises:
            UsageError: The guest has ended in such a call, or they are nested too deep.
        """
        if self.ended is not None:
            # There is no call any more that could go on.
            raise UsageError("the guest has ended in a call that this host function made, and cannot be called again")
        if self.depth >= _MOST_DEPTH:
            raise UsageError(
                f"host functions and exports of the guest call one another {_MOST_DEPTH} deep, and may go no deeper"
            )
        before = self.here, self._entered
        self.depth += 1
        self.here = False
        return before

    def over(self, before: tuple[bool, int], problem: BaseException | None = None) -> None:
        """Ends it.

        Args:
            before: What `begin` has returned.
            problem: What was raised, if anything was.
        """
        self.depth -= 1
        self.here, entered = before
        if problem is not None and self._entered != entered and self.ended is None:
            # The guest is halted somewhere else than where its call is answered.
            self.ended = problem

    def say(self, export: bytes, arguments: Sequence[tuple[str, Number]]) -> None:
        """Puts a call of an export into the mailbox.

        Raises:
            UsageError: It cannot be called like that.
        """
        number = self._numbers.get(export)
        if number is None:
            raise UsageError(
                f"{export.decode(errors='replace')} cannot be called while the guest is halted in a host function: the "
                "module exports too many functions, or this one takes or returns too many values"
            )
        types = tuple(type_ for type_, _ in arguments)
        _format(types, True).pack_into(
            self._mailbox.bytes, _VALUES, *(_unsigned(type_, value) for type_, value in arguments)
        )
        self._mailbox.say(mailbox_words().export + number)
        self._entered += 1

    def returned(self, types: Sequence[str]) -> list[Number]:
        """Returns what the export has put into the mailbox, after it has returned."""
        self._entered -= 1
        return list(_format(tuple(types), False).unpack_from(self._mailbox.bytes, _VALUES))

    def check(self) -> None:
        """Checks that the call around them can go on, after a function of the embedder's is done.

        Raises:
            Ended: It cannot.
        """
        ended, self.ended = self.ended, None
        if isinstance(ended, StopReason):
            raise GuestStopped(ended)
        if ended is not None:
            try:
                raise ended
            finally:
                # This frame is in its traceback: the two would keep each other.
                del ended


@cache
def _format(types: tuple[str, ...], unsigned: bool) -> struct.Struct:
    found = values_format(types, (unsigned,) * len(types))
    assert found is not None, "such exports have no number"
    return found


def _unsigned(type_: str, value: Number) -> Number:
    bits = INTEGER_BITS.get(type_)
    return value if bits is None else int(value) & ((1 << bits) - 1)
