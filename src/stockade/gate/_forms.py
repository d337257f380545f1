"""Secrets in the forms in which they come out: what is left of text when its encoding is taken away.

All that separates is dropped, and capitals are made small. So `se cr-et`, a text that is wrapped, digits of bytes with
colons between them, and both alphabets of base64 come to one form, and a secret has few forms to be looked for: plain,
hex, decimal, and base64 in its three alignments. What is written in escapes (of URLs, JSON, HTML, and of programs) is
read first, each escape in a place as long as itself, so that each byte stays where it is.
"""

from __future__ import annotations

import base64
import html
import json
import re
from functools import cache
from itertools import compress, pairwise
from typing import Final
from urllib.parse import quote, quote_plus

__all__ = [
    "LEAST_CHARACTERS",
    "MOST_CHARACTERS",
    "PARTIAL_ESCAPE",
    "canonical",
    "edges_of",
    "exact_forms",
    "forms_of",
    "longest_gap",
    "places_of",
    "without_escapes",
]

LEAST_CHARACTERS: Final = 7
"""A form that is shorter would be found where it is none, and by no aligned word of four bytes."""

MOST_CHARACTERS: Final = 64
"""Of a longer form, each piece of so many characters at most is looked for by itself."""

_KEPT: Final = bytes(byte for byte in range(256) if byte >= 128 or chr(byte).isalnum())
_DROPPED: Final = bytes(byte for byte in range(256) if byte not in _KEPT)
_SMALL: Final = bytes(range(256)).lower()
_IS_KEPT: Final = bytes(byte in _KEPT for byte in range(256))


def canonical(data: bytes) -> bytes:
    """Returns the letters and digits of bytes, small, and what is no ASCII.

    Args:
        data: The bytes.
    """
    return data.translate(_SMALL, _DROPPED)


def places_of(data: bytes) -> list[int]:
    """Returns where each byte of the canonical form stands in the bytes.

    Args:
        data: The bytes.
    """
    return list(compress(range(len(data)), data.translate(_IS_KEPT)))


def forms_of(secret: bytes) -> dict[bytes, bool]:
    """Returns the canonical forms of a secret, each in pieces that are short enough; and whether it is such a piece.

    Args:
        secret: The secret.
    """
    texts = {secret, secret.hex().encode(), "".join(map(str, secret)).encode()}
    for before in range(3):
        # What stands before it decides where groups of three bytes begin; what touches its neighbours is left out.
        encoded = base64.b64encode(b"\0" * before + secret)
        texts.add(encoded[-(-before * 8 // 6) : (before + len(secret)) * 8 // 6])
    found: dict[bytes, bool] = {}
    for text in texts:
        pieces = _pieces(canonical(text))
        found |= {piece: len(pieces) > 1 for piece in pieces if len(piece) >= LEAST_CHARACTERS}
    return found


def edges_of(secret: bytes) -> tuple[bytes, bytes]:
    """Returns what stands before the first and behind the last letter or digit of a secret.

    Args:
        secret: The secret.
    """
    places = places_of(secret)
    return (secret[: places[0]], secret[places[-1] + 1 :]) if places else (b"", b"")


def longest_gap(secret: bytes) -> int:
    """Returns how much stands between two letters or digits of a secret, at most.

    Args:
        secret: The secret.
    """
    places = places_of(secret)
    return max((after - before - 1 for before, after in pairwise(places)), default=0)


def exact_forms(secret: bytes) -> frozenset[bytes]:
    """Returns the forms of a secret with too few letters and digits, which is looked for as it is; none for others.

    Args:
        secret: The secret.
    """
    if len(canonical(secret)) >= LEAST_CHARACTERS:
        return frozenset()
    text = secret.decode("utf-8", "surrogateescape")
    written = json.dumps(text)[1:-1]
    texts = {text, written, written.replace("/", "\\/"), html.escape(text), html.escape(text, quote=False)}
    every = "".join(f"%{byte:02X}" for byte in secret)
    for percent in (quote(secret, safe=""), quote(secret), quote_plus(secret), every):
        texts |= {percent, re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), percent)}
    return frozenset(form.encode("utf-8", "surrogateescape") for form in texts)


def _pieces(text: bytes) -> list[bytes]:
    count = -(-len(text) // MOST_CHARACTERS)
    size = -(-len(text) // count) if count else 1
    return [text[at : at + size] for at in range(0, len(text), size)]


_ESCAPES: Final = (
    rb"%[0-9A-Fa-f]{2}",
    rb"\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\u\{[0-9A-Fa-f]{1,6}\}|\\[0-3][0-7]{2}|\\[nrt]",
    rb"&#[0-9]{2,7};|&#[xX][0-9A-Fa-f]{2,6};|&(?:amp|lt|gt|quot|apos|nbsp);",
)
"""Of URLs; of programs and JSON; of HTML."""

_OF_ONE_KIND: Final = tuple(map(re.compile, _ESCAPES))
_OF_ANY_KIND: Final = re.compile(b"|".join(_ESCAPES))

PARTIAL_ESCAPE: Final = re.compile(
    rb"(?:%[0-9A-Fa-f]?|\\(?:x[0-9A-Fa-f]?|u[0-9A-Fa-f]{0,3}|u\{[0-9A-Fa-f]{0,6}|[0-3][0-7]?)?"
    rb"|&(?:\#(?:[0-9]{0,7}|[xX][0-9A-Fa-f]{0,6})|[a-z]{0,4})|)\Z"
)
"""What may be the beginning of an escape, at the end."""

_BEGINS_ESCAPE: Final = re.compile(rb"%[0-9A-Fa-f]|\\[0-3xunrt]|&[#algqn]")


def without_escapes(data: bytes) -> list[bytes]:
    """Returns bytes in which each escape is what it stands for, and zeros up to its length; none where there is none.

    Where there are escapes of several kinds, those of one kind alone may be meant, and the others be in the secret.

    Args:
        data: The bytes.
    """
    if not (b"%" in data or b"\\" in data or b"&" in data) or _BEGINS_ESCAPE.search(data) is None:
        return []
    whole, count = _OF_ANY_KIND.subn(_replaced, data)
    if not count:
        return []
    alone = [read for kind in _OF_ONE_KIND if (read := kind.sub(_replaced, data)) not in (data, whole)]
    return [whole, *alone]


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
    return found


def _read(escape: bytes) -> bytes:
    introducer, digits = escape[:2], escape.strip(b"\\%u{}&#xX;")
    text = b""
    if introducer == b"&#":
        text = _character(int(digits, 16 if escape[2:3] in b"xX" else 10))
    elif introducer == b"\\u":
        text = _character(int(digits, 16))
    elif introducer == b"\\x" or escape[:1] == b"%":
        text = bytes((int(digits, 16),))
    elif escape[:1] == b"\\" and digits.isdigit():
        text = bytes((int(digits, 8),))
    # What is left are separators.
    return text.ljust(len(escape), b"\0")


def _character(number: int) -> bytes:
    return chr(number).encode("utf-8", "surrogatepass") if number < 0x11_0000 else b""
