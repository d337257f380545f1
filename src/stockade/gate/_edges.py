"""What stands before the first letter of a secret and behind its last one, which are what it is found by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stockade.gate._escapes import PARTIAL_ESCAPE
from stockade.gate._forms import edges_of, plain_forms_of

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Edges"]

_MOST_BYTES: Final = 32
"""How much of an edge is known."""


class Edges:
    """The edges of secrets. Safe to share between threads.

    Args:
        secrets: The secrets.
    """

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._of: dict[bytes, tuple[bytes, bytes]] = {}
        for secret in secrets:
            pieces, (before, behind) = plain_forms_of(secret), edges_of(secret)
            if before and pieces:
                first = pieces[0].text
                self._of[first] = before[-_MOST_BYTES:], self._of.get(first, (b"", b""))[1]
            if behind and pieces:
                last = pieces[-1].text
                self._of[last] = self._of.get(last, (b"", b""))[0], behind[:_MOST_BYTES]
        self._beginnings = frozenset(
            before[:length] for before, _ in self._of.values() for length in range(1, len(before) + 1)
        )

    def __bool__(self) -> bool:
        return bool(self._of)

    def around(self, form: bytes, data: bytes, start: int, end: int) -> tuple[int, int]:
        """Returns where a secret begins and ends with its edges, where they are there.

        Args:
            form: What it was found by.
            data: Where it was found.
            start: Where that begins.
            end: Where it ends.
        """
        before, behind = self._of.get(form, (b"", b""))
        return self.before(form, data, start) if before else start, _after(behind, data, end)[0] if behind else end

    def before(self, form: bytes, data: bytes, start: int) -> int:
        """Returns where a secret begins with its edge, where that is there.

        Args:
            form: What it was found by.
            data: Where it was found.
            start: Where that begins.
        """
        at = start
        for byte in reversed(self._of.get(form, (b"", b""))[0]):
            at -= 1
            while at > 0 and not data[at]:
                at -= 1
            if at < 0 or data[at] != byte:
                return start
        return at

    def goes_on(self, form: bytes, data: bytes, end: int) -> bool:
        """Whether it is not there yet how a secret ends.

        Args:
            form: What it was found by.
            data: What there is.
            end: Where that ends.
        """
        return _after(self._of.get(form, (b"", b""))[1], data, end)[1]

    def begun_at(self, data: bytes, least: int) -> int | None:
        """Returns where at the end of data an edge has begun before which there is nothing of a secret.

        Args:
            data: The data.
            least: Of how much it is told.
        """
        if not self._beginnings:
            return None
        places = [at for at in range(max(0, len(data) - 12 * _MOST_BYTES), len(data)) if data[at]][-_MOST_BYTES:]
        tail = bytes(data[at] for at in places)
        for length in range(len(tail), least - 1, -1):
            if tail[len(tail) - length :] in self._beginnings:
                return places[len(tail) - length]
        return None


def _after(behind: bytes, data: bytes, end: int) -> tuple[int, bool]:
    """Returns where an edge ends, where it is there, and whether data ends before it is known."""
    at = end
    for byte in behind:
        while at < len(data) and not data[at]:
            at += 1
        if data[at : at + 1] != bytes((byte,)):
            # What may become an escape may be that.
            return end, PARTIAL_ESCAPE.match(data, at) is not None
        at += 1
    return at, False
