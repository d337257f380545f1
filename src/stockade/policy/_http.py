"""What HTTP calls things: methods, and paths in the one form in which they are compared."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["METHODS", "is_ambiguous", "is_below", "is_path_prefix", "normal_path", "percent_encoded"]

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""The methods that a guest may come to use: `CONNECT` and `TRACE` are none of them."""

_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PLAIN: Final = _UNRESERVED | frozenset("!$&'()*+,;=:@/")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})?")
_AMBIGUOUS: Final = re.compile(r"%2F|%5C|%25|(^|/)\.{1,2};")


def normal_path(path: str) -> str | None:
    """Returns the path of a URL in the one form in which paths are compared, and sent.

    Escapes of letters, digits and `-._~` are undone, all others are written in capitals, what needs one gets one, and
    `.` and `..` are gone.

    Args:
        path: The path, which begins with a slash.

    Returns:
        The path; None where it is none: no slash begins it, an escape is broken, or it has a control character or a
        backslash, escaped or not.
    """
    if not path.startswith("/") or _CONTROL.search(path):
        return None
    try:
        pieces = [_escaped(path[begin:end]) for begin, end in _between_escapes(path)]
    except (ValueError, UnicodeEncodeError):
        return None
    kept: list[str] = []
    *folders, last = "".join(pieces)[1:].split("/")
    for segment in folders:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if last == "..":
        del kept[-1:]
    return "/" + "/".join([*kept, "" if last in (".", "..") else last])


def _between_escapes(path: str) -> list[tuple[int, int]]:
    """Returns where the pieces of a path begin and end: each an escape, or all that is between two of them."""
    found, at = [], 0
    for match in _ESCAPE.finditer(path):
        found += [(at, match.start()), match.span()]
        at = match.end()
    return [*found, (at, len(path))]


def _escaped(piece: str) -> str:
    if piece.startswith("%"):
        # A broken one is no number.
        code = int(piece[1:] or "?", 16)
        if code < 0x20 or code == 0x7F:
            raise ValueError(piece)
        return chr(code) if chr(code) in _UNRESERVED else piece.upper()
    return percent_encoded(piece)


def percent_encoded(text: str, beside: str = "") -> str:
    """Returns a text with escapes for all that does not stand in a path as it is.

    Not by `urllib.parse`, which would be loaded with every policy.

    Args:
        text: The text.
        beside: What else stays as it is.

    Raises:
        UnicodeEncodeError: It is none that UTF-8 can hold.
    """
    return "".join(
        character
        if character in _PLAIN or character in beside
        else "".join(f"%{byte:02X}" for byte in character.encode())
        for character in text
    )


def is_path_prefix(text: str) -> bool:
    """Whether a text is a path in its normal form, as rules have them."""
    return normal_path(text) == text and not is_ambiguous(text)


def is_ambiguous(path: str) -> bool:
    """Whether servers differ in what a path in its normal form leads to: it escapes a slash, or an escape."""
    return _AMBIGUOUS.search(path) is not None


def is_below(path: str, prefix: str) -> bool:
    """Whether a path is another one, or below it, segment by segment; both in their normal form."""
    folder = prefix.removesuffix("/")
    return path == folder or path.startswith(folder + "/")
