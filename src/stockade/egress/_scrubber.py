"""Secrets found in what servers answer, as the gate finds them, and replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.gate import GateStream
from stockade.report import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stockade.gate import SecretFinder, Span

__all__ = ["Scrubber"]


class Scrubber:
    """Replaces secrets in a stream of bytes, also where they lie across pieces. Nothing of one leaves before its end.

    Args:
        finder: What looks for them, by the names that are put in their place.
    """

    def __init__(self, finder: SecretFinder) -> None:
        self._finder = finder
        self._stream = self._new()

    def _new(self) -> GateStream:
        return GateStream([self._finder], _replaced, written=str.encode)

    def feed(self, piece: bytes) -> bytes:
        """Takes a piece, and returns what is certain of what has come so far.

        Args:
            piece: The piece.
        """
        return self._stream.feed(piece)

    def finish(self) -> bytes:
        """Returns what is left, when there is no more."""
        return self._stream.finish()

    def text(self, text: str) -> str:
        """Returns a text without secrets.

        Args:
            text: The text, of characters that stand for bytes or not.
        """
        data = text.encode("utf-8", "surrogateescape")
        found = self._new().whole(data)
        return text if found == data else found.decode("utf-8", "surrogateescape")

    def headers(self, headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Returns headers without secrets, and without the length of the body, which would tell theirs."""
        return tuple((self.text(name), self.text(value)) for name, value in headers if name.lower() != "content-length")


def _replaced(span: Span, data: bytes) -> Verdict:  # noqa: ARG001 - each one is
    return Verdict.REDACT
