"""Calls of the embedder's functions as the host sees them: what a halted guest has put into the guard's mailbox.

`rest.wat` tells what stands there. The guard writes it, in memory that no guest can reach; the host reads it once, and
takes it for what it has to be: numbers out of range are errors of the product, and end the run.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from stockade._pages import PAGE_BYTES
from stockade.guard._host_calls import MAILBOX_HEAD_BYTES, slots_of
from stockade.guard._source import guard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.engine import Memory

__all__ = ["MOST_VALUES", "Mailbox", "mailbox_words", "values_format"]

MOST_VALUES: Final = 1000
"""Values that a function may take, and return: as many as the engine allows for any."""

_CODES: Final = {"i32": "i4x", "i64": "q", "f32": "f4x", "f64": "d", "v128": "16s"}
_UNSIGNED: Final = {"i32": "I4x", "i64": "Q"}

_WORD: Final = struct.Struct("<i")
_PAGES: Final = struct.Struct("<I")


class Words(NamedTuple):
    """What is said in a mailbox, beside the numbers of functions.

    Attributes:
        returned: By the guest: an export has returned.
        end: By the host: the run is over.
        export: By the host, with the number of an export: call that.
    """

    returned: int
    end: int
    export: int


@cache
def mailbox_words() -> Words:
    """Returns what is said in a mailbox."""
    constants = guard().layout.constants
    return Words(constants["HOST_RETURNED"], constants["HOST_END"], constants["HOST_EXPORT"])


def values_format(types: Sequence[str], unsigned: Sequence[bool] = (), *, said: bool = False) -> struct.Struct | None:
    """Returns how values stand in a mailbox; None where there is no room for them.

    Args:
        types: Their types.
        unsigned: For each, whether its numbers are unsigned; by default, none is.
        said: Whether what is said stands before them, at the mailbox's beginning.
    """
    if slots_of(types, guard().layout.constants["MAILBOX_VALUES"]) is None:
        return None
    signs = unsigned or (False,) * len(types)
    codes = [
        _UNSIGNED.get(type_, _CODES[type_]) if sign else _CODES[type_] for type_, sign in zip(types, signs, strict=True)
    ]
    return struct.Struct("<" + ("i4x" if said else "") + "".join(codes))


class Mailbox:
    """The mailbox of one instance, to be looked at while its guest is halted.

    Args:
        memory: The guard's memory.

    Attributes:
        bytes: All of it, in place.
    """

    __slots__ = ("bytes",)

    def __init__(self, memory: Memory) -> None:
        layout = guard().layout
        size = MAILBOX_HEAD_BYTES + 8 * layout.constants["MAILBOX_VALUES"]
        self.bytes = memory.view(layout.offsets["mailbox"], size)

    @property
    def said(self) -> int:
        """What the guest has said; 0 where it is halted for something else."""
        said: int = _WORD.unpack_from(self.bytes)[0]
        return said

    def say(self, word: int) -> None:
        """Says something to the guest, for when it is woken."""
        _WORD.pack_into(self.bytes, 0, word)

    def memory_bytes(self) -> int:
        """How large the guest's memory is, as of when it halted."""
        pages: int = _PAGES.unpack_from(self.bytes, 4)[0]
        return pages * PAGE_BYTES
