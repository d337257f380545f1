"""What is in a file, read in pieces: however large it is, little of it is in memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from stockade.errors import AuditError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Content"]

_PIECE_BYTES: Final = 1 << 20


class Content:
    """What is in an open file, as far as it went when this was made. Near places are asked for one after another.

    Args:
        descriptor: The file.
        size: How far it is looked at.
        name: What it is called in messages.

    Attributes:
        size: How far it is looked at.
    """

    def __init__(self, descriptor: int, size: int, name: str) -> None:
        self._descriptor = descriptor
        self._name = name
        self.size = size
        # What was read last, and where it stands.
        self._piece = b""
        self._start = 0

    def read(self, start: int, end: int) -> bytes:
        """Returns what stands between two places; to its end, where there is less.

        Raises:
            AuditError: The file has become shorter, or cannot be read.
        """
        return b"".join(map(bytes, self.pieces(start, min(end, self.size))))

    def pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """Yields what stands between two places, in pieces that are good until the next one.

        Raises:
            AuditError: The file has become shorter, or cannot be read.
        """
        while start < end:
            offset = self._around(start)
            piece = memoryview(self._piece)[offset : offset + end - start]
            yield piece
            start += len(piece)

    def find(self, pattern: bytes, start: int) -> int:
        """Returns where a pattern stands next, from a place on; -1 where it does not.

        Raises:
            AuditError: The file has become shorter, or cannot be read.
        """
        before = b""
        while start < self.size:
            offset = self._around(start)
            if before and (at := (before + self._piece[offset : offset + len(pattern) - 1]).find(pattern)) >= 0:
                return start - len(before) + at
            if (at := self._piece.find(pattern, offset)) >= 0:
                return self._start + at
            start = self._start + len(self._piece)
            before = (before + self._piece[offset:])[-(len(pattern) - 1) :] if len(pattern) > 1 else b""
        return -1

    def newlines(self, start: int, end: int) -> int:
        """Returns how many lines end between two places.

        Raises:
            AuditError: The file has become shorter, or cannot be read.
        """
        count = 0
        while start < end:
            offset = self._around(start)
            until = min(len(self._piece), offset + end - start)
            count += self._piece.count(b"\n", offset, until)
            start += until - offset
        return count

    def newlines_within(self, start: int) -> int:
        """Returns how many lines end from a place on, without those at the very end.

        Raises:
            AuditError: The file has become shorter, or cannot be read.
        """
        within = all_ = 0
        for piece in self.pieces(start, self.size):
            data = bytes(piece)
            if kept := len(data.rstrip(b"\n")):
                within = all_ + data.count(b"\n", 0, kept)
            all_ += data.count(b"\n")
        return within

    def _around(self, place: int) -> int:
        """Reads the piece that a place is in; returns where it is in that."""
        if not self._start <= place < self._start + len(self._piece):
            start = place - place % _PIECE_BYTES
            self._piece = self._read(start, min(_PIECE_BYTES, self.size - start))
            self._start = start
        return place - self._start

    def _read(self, start: int, size: int) -> bytes:
        try:
            data = _read_all(self._descriptor, start, size)
        except OSError as problem:
            raise AuditError(f"{self._name} cannot be read: {problem.strerror}") from None
        if len(data) < size:
            raise AuditError(f"{self._name} has become shorter while it was checked: check it again")
        return data


def _read_all(descriptor: int, start: int, size: int) -> bytes:
    data = os.pread(descriptor, size, start)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), start + len(data))):
        data += more
    return data
