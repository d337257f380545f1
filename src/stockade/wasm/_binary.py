"""Numbers and vectors of the WebAssembly binary format, read with bounds checks and written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.errors import InvalidModule

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Reader", "Unsupported", "uleb", "vector"]


class Unsupported(InvalidModule):
    """A module that is sound, as far as it was read, has something of a proposal that the reader does not know.

    Attributes:
        what: What it has.
    """

    def __init__(self, message: str, what: str) -> None:
        super().__init__(message)
        self.what = what

    def __reduce__(self) -> tuple[type[Unsupported], tuple[str, str]]:
        return type(self), (str(self), self.what)


def uleb(value: int) -> bytes:
    """Encodes an unsigned number in LEB128, as short as it gets."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def vector(items: Iterable[bytes]) -> bytes:
    """Encodes a vector: how many items, then the items."""
    items = list(items)
    return uleb(len(items)) + b"".join(items)


class Reader:
    """Reads a part of a module from front to back and never past its end.

    Args:
        data: The whole module.
        position: Where to begin.
        end: Where the part ends.
        what: What is being read, for messages.
    """

    __slots__ = ("data", "end", "position", "what")

    def __init__(self, data: bytes, position: int, end: int, what: str) -> None:
        self.data = data
        self.position = position
        self.end = end
        self.what = what

    def damaged(self, problem: str) -> InvalidModule:
        """Returns the error that says what is wrong and where."""
        return InvalidModule(
            f"damaged module: {problem} at byte {self.position:,}, in the {self.what}. "
            "The file is cut short or corrupt: build or fetch it again"
        )

    def forbidden(self, what: str) -> Unsupported:
        """Returns the error for a sound module that needs what guests do not get."""
        return Unsupported(
            f"the module needs {what}, at byte {self.position:,}, in the {self.what}: "
            "that belongs to a proposal that guests may not use. Build it without",
            what,
        )

    def byte(self) -> int:
        """Reads one byte."""
        position = self.position
        if position >= self.end:
            raise self.damaged("unexpected end")
        self.position = position + 1
        return self.data[position]

    def u32(self) -> int:
        """Reads an unsigned number of at most 32 bits."""
        value = self._leb(5)
        if value >> 32:
            raise self.damaged("number too large")
        return value

    def u64(self) -> int:
        """Reads an unsigned number of at most 64 bits."""
        value = self._leb(10)
        if value >> 64:
            raise self.damaged("number too large")
        return value

    def leb(self) -> None:
        """Skips a number of at most 64 bits, signed or not."""
        self._leb(10)

    def _leb(self, most: int) -> int:
        value = shift = 0
        for _ in range(most):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise self.damaged("number too long")

    def take(self, size: int) -> bytes:
        """Reads this many bytes."""
        start = self.position
        if size > self.end - start:
            raise self.damaged("unexpected end")
        self.position = start + size
        return self.data[start : start + size]

    def name(self) -> bytes:
        """Reads a name: a length, then UTF-8."""
        return self.take(self.u32())

    def count(self, most: int = 2**32) -> int:
        """Reads how many items follow; each takes at least a byte, so a false count is caught here.

        Args:
            most: More than these are refused.
        """
        count = self.u32()
        if count > self.end - self.position:
            raise self.damaged(f"{count:,} items announced in {self.end - self.position:,} bytes")
        if count > most:
            raise InvalidModule(f"{count:,} items in the {self.what}: the engine takes no more than {most:,}")
        return count

    def finish(self) -> None:
        """Checks that nothing is left over."""
        if self.position != self.end:
            raise self.damaged("bytes left over")
