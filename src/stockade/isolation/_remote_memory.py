"""The memory of a guest in a worker, which is looked at by messages while the guest is halted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stockade.isolation._messages import Peek, Poke

if TYPE_CHECKING:
    from stockade.isolation._remote import RemoteGuest

__all__ = ["ENDED", "RemoteMemory"]

ENDED: Final = "the guest has ended: its memory is gone. Open a new session"
"""What is said where there is no guest any more."""


class RemoteMemory:
    """The memory of a guest that is halted, or between two calls.

    Args:
        guest: The guest.
        gone: What is said where it is not there any more.
    """

    def __init__(self, guest: RemoteGuest, gone: str = ENDED) -> None:
        self._guest = guest
        self._gone = gone

    @property
    def size_bytes(self) -> int:
        """Its present size."""
        return self._guest.look(Peek(0, 0), self._gone)[0]

    def read(self, address: int, size: int) -> bytes:
        """Copies bytes out.

        Raises:
            IndexError: They are not all inside the memory.
        """
        _check_place(address, size)
        return self._guest.look(Peek(address, size), self._gone)[1]

    def write(self, address: int, data: bytes) -> None:
        """Copies bytes in.

        Raises:
            IndexError: They do not all fit inside the memory.
        """
        _check_place(address, len(data))
        self._guest.look(Poke(address), self._gone, data)


_MOST_ADDRESS: Final = 1 << 48


def _check_place(address: int, size: int) -> None:
    # What is further away is in no memory, and in no message.
    if not (0 <= address < _MOST_ADDRESS and 0 <= size < _MOST_ADDRESS):
        raise IndexError(f"bytes {address:,} to {address + size:,} are in no memory")
