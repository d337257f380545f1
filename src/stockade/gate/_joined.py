"""stdout and stderr as whoever reads both of them sees them: one after the other, as they were written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from stockade.gate._finder import Span
from stockade.gate._stream import FEW_BYTES, PIECE_BYTES, placeholder
from stockade.report import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.gate._finder import Finder

__all__ = ["JoinedStreams"]

_MOST_SPLIT: Final = 10_000
"""Secrets that lie in both streams, of which it is remembered where."""


class _Written(NamedTuple):
    """What was written to one stream, until something was written to the other one.

    Attributes:
        stream: Which.
        end: Where it ends, among all that was written.
        shift: How far what was written to the other stream puts its bytes behind their places in their own.
    """

    stream: str
    end: int
    shift: int


class JoinedStreams:
    """Looks for what lies in both streams, and returns the rest of them. For one thread at a time.

    What lies in one of them alone is left to what looks at that. It holds no more than a window, as `GateStream` does.

    Args:
        finders: What is looked for.
        judge: Is told what was found: its channel, its span of all that was written, and its bytes; says what becomes
            of it.

    Attributes:
        split: Where parts of what was replaced lie, as spans of each stream.
        has_more: Whether there were more of them than are remembered.
    """

    def __init__(self, finders: Sequence[Finder], judge: Callable[[str, Span, bytes], Verdict]) -> None:
        self._finders = finders
        self._judge = judge
        self._written: list[_Written] = []
        # How much was written to each, and to both.
        self._sizes = {"stdout": 0, "stderr": 0}
        self._size = 0
        # What may belong to something that comes: as far as `_released` it has left already.
        self._kept = b""
        self._offset = self._released = 0
        self._looked = 0
        self._closed = self._is_over = False
        self.split: dict[str, list[Span]] = {"stdout": [], "stderr": []}
        self.has_more = False

    def feed(self, stream: str, data: bytes) -> list[tuple[str, bytes]]:
        """Takes more, and returns what may leave of what has come, by its streams.

        Args:
            stream: `stdout` or `stderr`.
            data: What was written to it.
        """
        found: list[tuple[str, bytes]] = []
        for at in range(0, len(data), PIECE_BYTES):
            piece = data[at : at + PIECE_BYTES]
            before = self._size - self._sizes[stream]
            self._sizes[stream] += len(piece)
            self._size += len(piece)
            if self._written and self._written[-1].stream == stream:
                self._written[-1] = self._written[-1]._replace(end=self._size)
            else:
                self._written.append(_Written(stream, self._size, before))
            found += self._take(piece, is_last=False)
        return found

    def finish(self) -> list[tuple[str, bytes]]:
        """Returns what may leave of the rest, by its streams: no more comes."""
        return self._take(b"", is_last=True)

    def _take(self, piece: bytes, *, is_last: bool) -> list[tuple[str, bytes]]:
        if self._is_over:
            return []
        data = self._kept + piece
        if not is_last and len(self._kept) > FEW_BYTES and len(data) - self._looked < len(data) >> 3:
            self._kept = data
            return []
        keep_from = release_to = self._size
        if not is_last:
            for finder in self._finders:
                hold = finder.hold(data)
                keep_from = min(keep_from, self._offset + hold.keep_from)
                release_to = min(release_to, self._offset + hold.release_to)
        release_to = max(release_to, self._released)
        out: list[tuple[str, bytes]] = []
        passed: list[tuple[str, bytes]] | None = [] if self._closed else None
        # One stream alone has nothing that lies in both.
        found = self._found(data, is_last=is_last) if len(self._written) > 1 else []
        for place, parts in found:
            if place.start >= release_to:
                break
            if place.end <= self._released:
                continue
            verdict = self._judge(
                " and ".join(parts), place, data[place.start - self._offset : place.end - self._offset]
            )
            if verdict.withholds and passed is None:
                self._closed = True
                passed = [*out, *self._between(data, max(self._released, place.start))]
            if verdict is Verdict.BLOCK:
                self._is_over = True
                self._kept = b""
                return passed or []
            if verdict is Verdict.REDACT:
                out += self._between(data, place.start)
                self._remember(place, parts)
                out += [(stream, placeholder(place.detector)) for stream in parts]
                self._released = max(self._released, place.end)
            else:
                out += self._between(data, place.end)
            release_to, keep_from = max(release_to, self._released), max(keep_from, self._released)
        out += self._between(data, release_to)
        keep_from = min(keep_from, release_to)
        self._kept = data[keep_from - self._offset :]
        self._looked = len(self._kept)
        self._offset = keep_from
        while len(self._written) > 1 and self._written[0].end <= keep_from:
            del self._written[0]
        return out if passed is None else passed

    def _found(self, data: bytes, *, is_last: bool) -> list[tuple[Span, list[str]]]:
        """Returns what lies in both streams, as spans of all that was written, and the streams of each."""
        found: list[tuple[Span, list[str]]] = []
        spans = sorted(span for finder in self._finders for span in finder.find(data, is_last=is_last))
        for span in spans:
            there = span._replace(start=self._offset + span.start, end=self._offset + span.end)
            parts = list(dict.fromkeys(each.stream for each, _, _ in self._within(there.start, there.end)))
            if len(parts) < 2:
                continue
            if found and there.start < found[-1][0].end:
                # The same in two writings, or two that overlap: one place.
                before, streams = found[-1]
                there = before._replace(end=max(before.end, there.end))
                found[-1] = there, list(dict.fromkeys([*streams, *parts]))
            else:
                found.append((there, parts))
        return found

    def _within(self, start: int, end: int) -> list[tuple[_Written, int, int]]:
        """Returns what was written between two places, and where each of it begins and ends."""
        found = []
        begin = 0
        for each in self._written:
            if max(begin, start) < min(each.end, end):
                found.append((each, max(begin, start), min(each.end, end)))
            begin = each.end
        return found

    def _between(self, data: bytes, end: int) -> list[tuple[str, bytes]]:
        """Returns what has not left, up to a place, by its streams."""
        start, self._released = self._released, max(self._released, end)
        return [
            (each.stream, data[begin - self._offset : until - self._offset])
            for each, begin, until in self._within(start, self._released)
        ]

    def _remember(self, place: Span, parts: Sequence[str]) -> None:
        """Remembers where the parts of something lie in their streams."""
        within = self._within(place.start, place.end)
        for stream in parts:
            spans = self.split[stream]
            if len(spans) >= _MOST_SPLIT:
                self.has_more = True
                return
            own = [(begin - each.shift, until - each.shift) for each, begin, until in within if each.stream == stream]
            # Nothing else of this stream lies between them.
            spans.append(Span(own[0][0], own[-1][1], place.kind, place.detector))
