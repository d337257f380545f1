"""Numbers and vectors of the WebAssembly binary format, read with bounds checks and written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from stockade.errors import InvalidModule

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "MOST_NAME_BYTES",
    "NUMBER",
    "NUMBERS",
    "Excess",
    "Reader",
    "Unsupported",
    "excess",
    "sleb",
    "uleb",
    "vector",
]

MOST_NAME_BYTES: Final = 100_000
"""Bytes of a name: the engine takes no more either."""


class Excess(InvalidModule):
    """A module, sound as far as it was read, has more of something than is read."""


def excess(found: str, most: int, mend: str = "Build it with fewer, or as several modules") -> Excess:
    """Returns the error for a module that has too much of something.

    Args:
        found: What it has, and where.
        most: How much is read.
        mend: What to do about it.
    """
    return Excess(f"{found}: no more than {most:,} are read. {mend}")


class TooManyTypes(Excess):
    """A module, sound as far as it was read, has more types than are to be read.

    Attributes:
        found: How many it has, as far as it was read.
    """

    def __init__(self, found: int, most: int) -> None:
        super().__init__(*excess(f"{found:,} types", most).args)
        self.found = found

    def __reduce__(self) -> tuple[type[Excess], tuple[str]]:
        return Excess, (str(self),)


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


def sleb(value: int) -> bytes:
    """Encodes a signed number in LEB128, as short as it gets."""
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)


class _Numbers(dict[bytes, int]):
    """Unsigned numbers of at most 32 bits by their encodings: the same few occur again and again."""

    def __missing__(self, encoded: bytes) -> int:
        value = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(encoded))
        if len(self) < _MOST_REMEMBERED:
            self[encoded] = value
        return value


_MOST_REMEMBERED: Final = 1 << 16
_PART: Final = 1 << 16
NUMBERS: Final = _Numbers()
NUMBER: Final = re.compile(rb"(?:[\x80-\xff]{0,3}[\x00-\x7f]|[\x80-\xff]{4}[\x00-\x0f])")
"""An unsigned number of at most 32 bits."""


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
        # In one piece, for most of what is read are these.
        data, start = self.data, self.position
        value = shift = 0
        for position in range(start, min(start + 5, self.end)):
            byte = data[position]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                self.position = position + 1
                if value >> 32:
                    raise self.damaged("number too large")
                return value
            shift += 7
        self.position = min(start + 5, self.end)
        raise self.damaged("number too long" if self.position == start + 5 else "unexpected end")

    def u64(self) -> int:
        """Reads an unsigned number of at most 64 bits."""
        value = self._leb(10)
        if value >> 64:
            raise self.damaged("number too large")
        return value

    def leb(self) -> None:
        """Skips a number of at most 64 bits, signed or not."""
        self._leb(10)

    def u32s(self, count: int) -> list[int]:
        """Reads this many unsigned numbers of at most 32 bits."""
        start = self.position
        plain = self.data[start : min(start + count, self.end)]
        if len(plain) == count and plain.isascii():
            # A byte for each.
            self.position += count
            return list(plain)
        found: list[int] = []
        while len(found) < count:
            # A part at a time, so that what is made on the way does not grow with the file.
            wanted = min(count - len(found), _PART)
            part = self.data[self.position : min(self.position + 5 * wanted, self.end)]
            encoded = NUMBER.findall(part)[:wanted]
            size = sum(map(len, encoded))
            if len(encoded) == wanted and b"".join(encoded) == part[:size]:
                found += [NUMBERS[number] for number in encoded]
                self.position += size
                continue
            # Something is wrong in this part: one by one, to say where.
            found += [self.u32() for _ in range(wanted)]
        return found

    def skip_u32s(self, count: int) -> None:
        """Steps over this many unsigned numbers of at most 32 bits."""
        start = self.position
        plain = self.data[start : min(start + count, self.end)]
        if len(plain) == count and plain.isascii():
            self.position += count
        else:
            for _ in range(count):
                self.u32()

    def s32(self) -> int:
        """Reads a signed number of at most 32 bits."""
        return self._signed(32)

    def s33(self) -> int:
        """Reads a signed number of at most 33 bits: how indices of types stand where other types may stand, too."""
        return self._signed(33)

    def s64(self) -> int:
        """Reads a signed number of at most 64 bits."""
        return self._signed(64)

    def _signed(self, bits: int) -> int:
        start = self.position
        value = self._leb(-(-bits // 7))
        size = 7 * (self.position - start)
        if value >> size - 1:
            value -= 1 << size
        if not -(1 << bits - 1) <= value < 1 << bits - 1:
            raise self.damaged("number too large")
        return value

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
        position = self.position
        if position < self.end and (size := self.data[position]) < 0x80:
            start, end = position + 1, position + 1 + size
            if end <= self.end:
                self.position = end
                return self.data[start:end]
        size = self.u32()
        if MOST_NAME_BYTES < size <= self.end - self.position:
            raise excess(f"a name of {size:,} bytes in the {self.what}", MOST_NAME_BYTES, "Give it a shorter one")
        return self.take(size)

    def count(self, most: int = 2**32) -> int:
        """Reads how many items follow; each takes at least a byte, so a false count is caught here.

        Args:
            most: More than these are refused.
        """
        count = self.u32()
        if count > self.end - self.position:
            raise self.damaged(f"{count:,} items announced in {self.end - self.position:,} bytes")
        if count > most:
            raise excess(f"{count:,} items in the {self.what}", most)
        return count

    def finish(self) -> None:
        """Checks that nothing is left over."""
        if self.position != self.end:
            raise self.damaged("bytes left over")
