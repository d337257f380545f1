"""Requests as they are written, and what there is to answers beside their events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from stockade._text import printable
from stockade.egress._failure import FailureCode, RequestFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import h11

    from stockade.egress._url import Target

__all__ = ["Gathered", "redirect_of", "told", "written"]

_MOST_HEAD_BYTES: Final = 64 << 10
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MOST_PIECES: Final = 10_000
_LEAST_PIECE_BYTES: Final = 8
"""How many chunks a body may be sent in whatever is in them, and how much must be in those of a longer one."""

_PIECES_A_TURN: Final = 100


class Gathered:
    """Pieces of a body that have come, gathered, so that a server that sends single bytes costs no more than others.

    Args:
        put: What is given what they come to.
    """

    def __init__(self, put: Callable[[bytes], Awaitable[None]]) -> None:
        self._put = put
        self._pieces: list[bytes] = []
        self._count = self._size = 0

    async def add(self, piece: bytes) -> None:
        """Takes a piece.

        Args:
            piece: The piece.

        Raises:
            RequestFailed: There are too many for what is in them.
        """
        self._pieces.append(piece)
        self._count += 1
        self._size += len(piece)
        if self._count > _MOST_PIECES and self._size < self._count * _LEAST_PIECE_BYTES:
            raise RequestFailed(FailureCode.PROTOCOL, "the answer comes in too many pieces of next to nothing")
        if not self._count % _PIECES_A_TURN:
            # Requests of others are served on the same thread.
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """Gives away what has come."""
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            await self._put(b"".join(pieces))


def written(method: str, target: Target, headers: list[tuple[str, str]], body: bytes) -> tuple[h11.Connection, bytes]:
    """Returns a request as it is sent, and what reads its answer.

    Args:
        method: The method.
        target: What it asks for.
        headers: All of its headers.
        body: Its body.

    Raises:
        RequestFailed: It cannot be sent.
    """
    import h11

    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD_BYTES)
    lines = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    try:
        events = [
            h11.Request(method=method, target=target.path + target.query, headers=lines),
            *([h11.Data(data=body)] if body else []),
            h11.EndOfMessage(),
        ]
        return connection, b"".join(connection.send(event) or b"" for event in events)
    except h11.LocalProtocolError as problem:
        raise RequestFailed(FailureCode.INVALID, f"the request cannot be sent: {told(problem)}") from None


def redirect_of(event: h11.Response) -> str | None:
    """Returns where an answer redirects to; None where it does not.

    Args:
        event: The head of the answer.
    """
    if event.status_code not in _REDIRECTS:
        return None
    place = next((value for name, value in event.headers if name == b"location"), None)
    return None if place is None else place.decode("latin-1")


def told(problem: Exception) -> str:
    """Returns what a problem says, made safe to show.

    Args:
        problem: The problem.
    """
    text = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    return printable(text or type(problem).__name__, 200)
