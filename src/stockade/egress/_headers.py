"""Headers as guests give them, and as they are told."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from stockade.egress._failure import FailureCode, RequestFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stockade.egress._url import Target

__all__ = ["Headers", "checked_headers", "for_another_origin", "headers_sent", "read_headers", "told_headers"]

Headers = tuple[tuple[str, str], ...]

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_MOST: Final = 100
_MOST_BYTES: Final = 64 << 10
_OURS: Final = frozenset(
    {
        *("connection", "content-length", "expect", "keep-alive", "proxy-authenticate", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"),
    }
)
"""Headers that say how a message is sent, which is ours to say."""

_OF_THE_ORIGIN: Final = frozenset({"authorization", "cookie"})
"""Headers that are for the host that they were written for."""


def read_headers(text: str) -> Headers:
    """Reads headers from lines of `name: value`.

    Raises:
        RequestFailed: A line is none.
    """
    found = []
    for line in filter(None, re.split(r"\r?\n", text)):
        name, colon, value = line.partition(":")
        if not colon:
            raise RequestFailed(FailureCode.INVALID, "a header has no colon: write name: value, one to a line")
        found.append((name, value))
    return tuple(found)


def checked_headers(headers: Iterable[tuple[str, str]]) -> Headers:
    """Checks headers of a guest's, and leaves out those that say how a message is sent.

    Raises:
        RequestFailed: One is none: it could end the header, or begin another.
    """
    kept = []
    size = 0
    for name, given in headers:
        value = given.strip(" \t")
        if not _NAME.fullmatch(name):
            raise RequestFailed(FailureCode.INVALID, "the name of a header has a character that no name has")
        if not _VALUE.fullmatch(value):
            raise RequestFailed(FailureCode.INVALID, f"the header {name} has a character that no header has")
        size += len(name) + len(value) + 4
        if name.lower() not in _OURS:
            kept.append((name, value))
    if len(kept) > _MOST or size > _MOST_BYTES:
        raise RequestFailed(
            FailureCode.INVALID, f"the headers are more than {_MOST}, or larger than {_MOST_BYTES:,} bytes"
        )
    return tuple(kept)


def headers_sent(headers: Headers, target: Target, body: bytes, *, has_body: bool) -> list[tuple[str, str]]:
    """Returns all headers of a request.

    Raises:
        RequestFailed: The guest names another host than the one that it asks.
    """
    sent = [("Host", target.authority)]
    given = set()
    for name, value in headers:
        lower = name.lower()
        if lower == "host":
            if value.strip().lower().removesuffix(".") not in (target.authority, f"{target.host}:{target.port}"):
                raise RequestFailed(
                    FailureCode.INVALID, "the header Host names another host than the URL: leave it out"
                )
            continue
        given.add(lower)
        sent.append((name, value))
    if "accept-encoding" not in given:
        sent.append(("Accept-Encoding", "identity"))
    if "user-agent" not in given:
        sent.append(("User-Agent", "stockade"))
    if body or has_body:
        sent.append(("Content-Length", str(len(body))))
    return [*sent, ("Connection", "close")]


def for_another_origin(headers: Headers) -> Headers:
    """Returns the headers that a redirect takes along to another host, port or scheme."""
    return tuple((name, value) for name, value in headers if name.lower() not in (*_OF_THE_ORIGIN, "host"))


def told_headers(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """Returns headers of an answer for a guest: those of the message, without those of how it was sent."""
    return tuple(
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in headers
        if name.decode("latin-1").lower() not in (_OURS - {"content-length", "trailer"})
    )
