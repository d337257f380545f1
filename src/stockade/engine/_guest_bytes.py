"""A guest's memory as others see it, wherever the guest lives."""

from __future__ import annotations

from typing import Protocol

__all__ = ["GuestBytes"]


class GuestBytes(Protocol):
    """A linear memory, read and written from outside with bounds checks: of this process, or of another."""

    @property
    def size_bytes(self) -> int:
        """Its present size."""

    def read(self, address: int, size: int) -> bytes:
        """Copies bytes out.

        Raises:
            IndexError: They are not all inside the memory.
        """

    def write(self, address: int, data: bytes) -> None:
        """Copies bytes in.

        Raises:
            IndexError: They do not all fit inside the memory.
        """
