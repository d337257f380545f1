"""A channel through which something leaves, looked at piece by piece."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from stockade.report import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.gate._finder import Finder, Span

__all__ = ["FEW_BYTES", "PIECE_BYTES", "GateStream", "placeholder"]

PIECE_BYTES: Final = 64 << 10

FEW_BYTES: Final = 2048
"""Where more than that is kept, it is not looked at anew for each byte that comes."""

_MOST_BETWEEN_BYTES: Final = 33
_LETTER: Final = re.compile(rb"[0-9A-Za-z\x80-\xff]")


def placeholder(detector: str) -> bytes:
    """Returns what stands where something was.

    Args:
        detector: What has found it.
    """
    return f"[redacted:{detector}]".encode()


class GateStream:
    """Looks at what leaves through one channel, and returns what may. For one thread at a time.

    It holds no more than a window: as much as the longest form of what is looked for may take.

    Args:
        finders: What is looked for.
        judge: Is told what was found, as a span of the whole channel, and the bytes of it; says what becomes of it.
        known: What was found before, as spans of the whole channel.
        written: Returns what stands in the place of what a detector has found.

    Attributes:
        closed: Whether nothing leaves any more. What comes is looked at until nothing can be found that is worse.
    """

    def __init__(
        self,
        finders: Sequence[Finder],
        judge: Callable[[Span, bytes], Verdict],
        known: Sequence[Span] = (),
        written: Callable[[str], bytes] = placeholder,
    ) -> None:
        self._known = known
        self._written = written
        # Of what the last piece was that was replaced, where nothing has come behind it.
        self._replaced = ""
        self._finders = finders
        self._judge = judge
        # What may belong to something that comes: its first `_released` bytes have left already.
        self._kept = b""
        self._released = 0
        self._looked = 0
        self._offset = 0
        self._is_over = False
        self.closed = False

    @property
    def held_bytes(self) -> int:
        """How much has come and has not left."""
        return len(self._kept) - self._released

    def feed(self, data: bytes) -> bytes:
        """Takes more, and returns what may leave of what has come.

        Args:
            data: What comes.
        """
        if len(data) <= PIECE_BYTES:
            return self._take(data, is_last=False)
        pieces = (data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES))
        return b"".join([self._take(piece, is_last=False) for piece in pieces])

    def finish(self) -> bytes:
        """Returns what may leave of the rest: no more comes."""
        return self._take(b"", is_last=True)

    def whole(self, data: bytes) -> bytes:
        """Returns what may leave of bytes that are all that comes.

        Args:
            data: The bytes.
        """
        return self.feed(data) + self.finish()

    def let_go(self) -> bool:
        """Drops what has come and has not left: it is still known when more comes. Says whether there was something."""
        had = self.held_bytes > 0
        self._released = len(self._kept)
        return had

    def _take(self, piece: bytes, *, is_last: bool) -> bytes:
        if self._is_over:
            return b""
        data = self._kept + piece
        if not is_last and len(self._kept) > FEW_BYTES and len(data) - self._looked < len(data) >> 3:
            self._kept = data
            return b""
        known = [span._replace(start=span.start - self._offset, end=span.end - self._offset) for span in self._known]
        found = [span for finder in self._finders for span in finder.find(data, is_last=is_last)]
        found += [span for span in known if span.end <= len(data)]
        found = sorted(span for span in found if span.end > self._released)
        keep_from = release_to = len(data)
        for span in known:
            if span.start < len(data) < span.end:
                keep_from = release_to = min(keep_from, span.start)
        if not is_last:
            for finder in self._finders:
                hold = finder.hold(data)
                keep_from, release_to = min(keep_from, hold.keep_from), min(release_to, hold.release_to)
        out: list[bytes] = []
        passed = b"" if self.closed else None
        at = self._released
        release_to = max(release_to, at)
        for start, end, spans in _grouped(found, data):
            if start >= release_to:
                break
            verdict = max((self._told(span, data) for span in spans), key=lambda each: each.severity)
            if verdict.withholds and passed is None:
                self.closed = True
                passed = b"".join([*out, data[at : max(at, start)]])
            if verdict is Verdict.BLOCK:
                self._is_over = True
                self._kept, self._released = b"", 0
                return passed or b""
            if verdict is Verdict.REDACT:
                between = data[at : max(at, start)]
                first = spans[0]
                goes_on = first.is_piece and first.detector == self._replaced and _separates(between)
                out += [] if goes_on else [between, self._written(first.detector)]
                self._replaced = spans[-1].detector if spans[-1].is_piece else ""
            else:
                out.append(data[at:end])
                self._replaced = ""
            at = end
            release_to, keep_from = max(release_to, at), max(keep_from, at)
        if not _separates(data[at:release_to]):
            self._replaced = ""
        out.append(data[at:release_to])
        keep_from = min(keep_from, release_to)
        self._kept = data[keep_from:]
        self._released = release_to - keep_from
        self._offset += keep_from
        self._looked = len(self._kept)
        return b"".join(out) if passed is None else passed

    def _told(self, span: Span, data: bytes) -> Verdict:
        there = span._replace(start=self._offset + span.start, end=self._offset + span.end)
        return self._judge(there, data[span.start : span.end])


_KINDS: Final = ("secret", "key", "personal", "entropy")
"""Of several that are in the same place, the first one gives it its name."""


class _Place:
    """Where something is.

    Attributes:
        start: Where it begins.
        end: Where it ends.
        spans: All that is there.
    """

    def __init__(self, span: Span) -> None:
        self.start = self.end = span.start
        self.spans: list[Span] = []
        self._in_pieces: set[str] = set()
        self.add(span)

    def add(self, span: Span) -> None:
        """Adds something that is there, too."""
        self.end = max(self.end, span.end)
        self.spans.append(span)
        if span.is_piece:
            self._in_pieces.add(span.detector)

    def reaches(self, span: Span, data: bytes) -> bool:
        """Whether something belongs here: it overlaps, or is the next piece of a secret of which one is here."""
        if span.start < self.end:
            return True
        return span.is_piece and span.detector in self._in_pieces and _separates(data[self.end : span.start])


def _separates(data: bytes) -> bool:
    """Whether something may stand between two pieces of a secret."""
    return len(data) <= _MOST_BETWEEN_BYTES and _LETTER.search(data) is None


def _grouped(found: list[Span], data: bytes) -> list[tuple[int, int, list[Span]]]:
    """Returns the places where something is, with all that is there; the pieces of one secret are one."""
    places: list[_Place] = []
    for span in found:
        if places and places[-1].reaches(span, data):
            places[-1].add(span)
        else:
            places.append(_Place(span))
    return [(place.start, place.end, _distinct(place.spans)) for place in places]


def _distinct(spans: list[Span]) -> list[Span]:
    """Returns what is in one place, each of it once."""
    if len(spans) == 1:
        return spans
    found: dict[tuple[str, str], Span] = {}
    for span in spans:
        other = found.setdefault((span.kind, span.detector), span)
        found[span.kind, span.detector] = other._replace(end=max(other.end, span.end))
    return sorted(found.values(), key=lambda span: (_KINDS.index(span.kind), span))
