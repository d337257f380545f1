"""What is written in escapes (of URLs, JSON, HTML, programs), read: each escape in a place as long as itself."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from html.entities import html5
from typing import Final

__all__ = ["LONGEST_ESCAPE", "PARTIAL_ESCAPE", "without_escapes"]

_IN_URLS: Final = rb"%[0-9A-Fa-f]{2}"
_IN_PROGRAMS: Final = (
    rb"\\(?:x[0-9A-Fa-f]{2}|u[dD][89abAB][0-9A-Fa-f]{2}\\u[dD][c-fC-F][0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}"
    rb"|u\{[0-9A-Fa-f]{1,6}\}|U[0-9A-Fa-f]{8}|[0-7]{1,3}|[nrt])"
)
_IN_HTML: Final = rb"&#[0-9]{1,7};|&#[xX][0-9A-Fa-f]{1,6};|&[A-Za-z]{2,8}[0-9]{0,2};"
_WIDE: Final = rb"\xef(?:\xbc[\x81-\xbf]|\xbd[\x80-\x9e])"
"""Letters and marks of ASCII, as wide as those of East Asia."""

_ESCAPES: Final = (_IN_URLS, _IN_PROGRAMS, _IN_HTML, _WIDE)
_OF_ONE_KIND: Final = tuple(map(re.compile, _ESCAPES))
_OF_ANY_KIND: Final = re.compile(b"|".join(_ESCAPES))
_BEGINS_ESCAPE: Final = re.compile(rb"%[0-9A-Fa-f]|\\[0-7xunrtU]|&#|&[A-Za-z]{2,8}[0-9]{0,2};|\xef[\xbc\xbd]")

_APART: Final = re.compile(rb"[\xc2-\xf4](?:\0{2,3}[\x80-\xbf]){1,3}")

_IS_LIST: Final = re.compile(rb"0[xX][0-9A-Fa-f]{1,2}[^0-9A-Za-z]{1,8}0[xX][0-9A-Fa-f]")
_IN_LIST: Final = re.compile(rb"0[xX](?:([0-9A-Fa-f])(?![0-9A-Fa-f]))?")

LONGEST_ESCAPE: Final = 12
"""How long a character may be in an escape."""

PARTIAL_ESCAPE: Final = re.compile(
    rb"(?:(?:(?:%|\\x)[c-fC-F][0-9A-Fa-f]|\\3[0-7]{2})(?:(?:%|\\x)[89abAB][0-9A-Fa-f]|\\2[0-7]{2}){0,2})?"
    rb"(?:%[0-9A-Fa-f]?|\\(?:x[0-9A-Fa-f]?|u[0-9A-Fa-f]{0,3}|u[dD][89abAB][0-9A-Fa-f]{2}(?:\\(?:u[0-9A-Fa-f]{0,3})?)?"
    rb"|u\{[0-9A-Fa-f]{0,6}|U[0-9A-Fa-f]{0,7}|[0-7]{1,2})?"
    rb"|&(?:\#(?:[0-9]{0,7}|[xX][0-9A-Fa-f]{0,6})|[A-Za-z]{0,8}[0-9]{0,2})|\xef[\xbc\xbd]?"
    rb"|(?<![0-9A-Za-z])0(?:[xX][0-9A-Fa-f]?)?|[\xc2-\xf4][\x80-\xbf]{0,2}|)\Z"
)
"""What may be the beginning of an escape, or of a character, at the end."""


def without_escapes(data: bytes, *, is_begun: bool = False) -> list[bytes]:
    """Returns bytes in which each escape is what it stands for, and zeros up to its length; none where there is none.

    Where there are escapes of several kinds, those of one kind alone may be meant, and the others be in the secret.

    Args:
        data: The bytes.
        is_begun: Whether more may come, so that one number of a list makes it one.
    """
    listed = _without_marks(data, is_begun=is_begun)
    if not (b"%" in data or b"\\" in data or b"&" in data or b"\xef" in data) or _BEGINS_ESCAPE.search(data) is None:
        return listed
    whole, count = _OF_ANY_KIND.subn(_replaced, data)
    if not count:
        return listed
    alone = [read for kind in _OF_ONE_KIND if (read := kind.sub(_replaced, data)) not in (data, whole)]
    return [*map(_joined, (whole, *alone)), *listed]


def _joined(read: bytes) -> bytes:
    """Returns bytes in which the bytes of a character stand together."""
    if read.isascii():
        return read
    return _APART.sub(lambda match: match[0].replace(b"\0", b"").ljust(len(match[0]), b"\0"), read)


def _without_marks(data: bytes, *, is_begun: bool) -> list[bytes]:
    """Returns bytes in which nothing says of hexadecimal digits that they are some, as in a list of a program."""
    # Of a single character, it is known at once that it is not there.
    if not ((b"x" in data and b"0x" in data) or (b"X" in data and b"0X" in data)):
        return []
    if not is_begun and _IS_LIST.search(data) is None:
        return []
    # Of a single digit, two are made.
    return [_IN_LIST.sub(lambda match: bytes(2) if match[1] is None else bytes(1) + b"0" + match[1], data)]


def _replaced(match: re.Match[bytes]) -> bytes:
    escape = match[0]
    found = _usual_escapes().get(escape)
    return _read(escape) if found is None else found


@cache
def _usual_escapes() -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for byte in range(256):
        for text in (f"{byte:02x}", f"{byte:02X}"):
            found[b"%" + text.encode()] = bytes((byte, 0, 0))
            found[b"\\x" + text.encode()] = bytes((byte, 0, 0, 0))
    for name, meant in html5.items():
        escape, character = f"&{name}".encode(), meant.encode()
        if escape.endswith(b";") and len(character) <= len(escape) <= LONGEST_ESCAPE:
            found[escape] = character.ljust(len(escape), b"\0")
    return found


@lru_cache(8192)
def _read(escape: bytes) -> bytes:
    introducer, digits = escape[:2], escape.strip(b"\\%u{}&#xXU;")
    text = b""
    if introducer == b"&#":
        text = _character(int(digits, 16 if escape[2:3] in b"xX" else 10))
    elif introducer == b"\\u" and b"\\" in digits:
        high, _, low = digits.partition(b"\\u")
        text = _character(0x1_0000 + ((int(high, 16) & 0x3FF) << 10) + (int(low, 16) & 0x3FF))
    elif introducer in (b"\\u", b"\\U"):
        text = _character(int(digits, 16))
    elif introducer == b"\\x" or escape[:1] == b"%":
        text = bytes((int(digits, 16),))
    elif escape[:1] == b"\\" and digits.isdigit():
        text = bytes((int(digits, 8) & 0xFF,))
    elif escape[:1] == b"&":
        # There is no such name.
        return escape
    elif escape[:1] == b"\xef":
        text = _character(ord(escape.decode()) - 0xFEE0)
    # What is left are separators.
    return text.ljust(len(escape), b"\0")


def _character(number: int) -> bytes:
    return chr(number).encode("utf-8", "surrogatepass") if number < 0x11_0000 else b""
