"""P-GATE-4: what looking costs grows with what there is to look at, and not faster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from stockade.gate._finder import Hold, Span
from stockade.gate._stream import GateStream
from stockade.report import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Everywhere:
    """Finds something at every second byte.

    Args:
        length: How long each of it is: what is longer than two bytes overlaps the next.
        pieces: Whether all but the first are pieces of something longer.
    """

    def __init__(self, length: int, *, pieces: bool) -> None:
        self._length = length
        self._pieces = pieces

    def find(self, data: bytes, *, is_last: bool) -> Iterator[Span]:  # noqa: ARG002 - as a finder has it
        for at in range(0, len(data) - self._length, 2):
            yield Span(at, at + self._length, "key", "some", self._pieces)

    def hold(self, data: bytes) -> Hold:
        return Hold(len(data), len(data))


def _seconds(finder: _Everywhere, size: int) -> float:
    """Returns how long it takes to look at a piece, at best."""
    best = float("inf")
    for _ in range(5):
        stream = GateStream([finder], lambda span, data: Verdict.REDACT)
        begun = time.process_time()
        passed = stream.feed(b" " * size)
        best = min(best, time.process_time() - begun)
        assert passed.startswith(b"[redacted:some]")
        assert passed.count(b"[") == 1
    return best


@pytest.mark.parametrize(("length", "pieces"), [(3, False), (1, True)], ids=["overlapping", "pieces"])
def test_what_is_found_in_one_place_takes_time_as_it_is_long(length: int, *, pieces: bool) -> None:
    """The attack: `password=a1password=a1...`, of which all overlaps, so that a guest's output holds up its host."""
    finder = _Everywhere(length, pieces=pieces)

    # Eight times as much: 64 times as long where each is compared with, or copied with, all before it.
    assert _seconds(finder, 64 << 10) < 24 * _seconds(finder, 8 << 10)
