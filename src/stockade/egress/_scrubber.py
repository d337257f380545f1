"""Secrets found in what servers answer, in the forms in which servers write them, and replaced."""

from __future__ import annotations

import base64
import html
import json
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Scrubber", "forms_of"]

_LEAST_BYTES: Final = 6
"""A form that is shorter would be found where it is none."""

_EACH: Final = ("\\u{:04x}", "\\u{:04X}", "%{:02x}", "%{:02X}", "\\x{:02x}", "\\x{:02X}", "&#x{:x};", "&#x{:X};")
"""How a character is written where each one is escaped."""

_WIDE: Final = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_GROUPS: Final = ((6, 3, (base64.b64encode, base64.urlsafe_b64encode)), (5, 5, (base64.b32encode,)))
"""Encodings of so many bits a character, in groups of so many bytes."""

_WRAPPED: Final = re.compile(rb"[A-Za-z0-9+/_=-]+")
_LEAST_WRAPPED: Final = 8
"""What is shorter stays on its line, or is found by the form that is longer."""

_BREAK: Final = rb"(?:\r?\n|(?:\\r)?\\n)?"
"""The end of a line, or the same as JSON has it."""

_BREAKS: Final = re.compile(rb"\r|\n|\\[rn]")


def forms_of(secret: str) -> frozenset[bytes]:
    """Returns the forms in which a secret is looked for: plain, as JSON, HTML and URLs have it, in digits, and wide.

    Args:
        secret: The secret.
    """
    data = secret.encode()
    texts = {
        secret,
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        html.escape(secret),
        html.escape(secret, quote=False),
        json.dumps(secret)[1:-1],
        json.dumps(secret)[1:-1].replace("/", "\\/"),
        data.hex(),
        "".join(f"&#{byte};" for byte in data),
        *("".join(form.format(byte) for byte in data) for form in _EACH),
    }
    # Escapes and digits may come in capitals.
    texts |= {re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), text) for text in texts}
    texts |= {data.hex().upper(), data.hex(" "), data.hex(":")}
    forms = {text.encode() for text in texts} | {secret.encode(name) for name in _WIDE}
    # What stands before it decides where groups of three or five bytes begin; what touches its neighbours is left out.
    for bits, group, encodings in _GROUPS:
        for before in range(group):
            begin = -(-before * 8 // bits)
            end = (before + len(data)) * 8 // bits
            forms |= {encode(b"\0" * before + data)[begin:end] for encode in encodings}
    return frozenset(form for form in forms if len(form) >= _LEAST_BYTES)


def _pattern(form: bytes) -> bytes:
    """Returns what finds a form, also where it is wrapped into lines, as base64 in mail is."""
    if len(form) < _LEAST_WRAPPED or not _WRAPPED.fullmatch(form):
        return re.escape(form)
    return _BREAK.join(re.escape(form[at : at + 1]) for at in range(len(form)))


class Scrubber:
    """Replaces secrets in a stream of bytes, also where they lie across pieces.

    Args:
        secrets: The secrets, by what is put in their place.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._places: dict[bytes, bytes] = {}
        for placeholder, secret in secrets.items():
            for form in forms_of(secret):
                self._places.setdefault(form, placeholder.encode())
        longest_first = sorted(self._places, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(_pattern, longest_first)))
        # Lines are longer than their ends by far.
        self._most = 2 * len(longest_first[0]) + 8
        self._kept = b""

    def feed(self, piece: bytes) -> bytes:
        """Takes a piece, and returns what is certain of what has come so far.

        Args:
            piece: The piece.
        """
        return self._take(self._kept + piece, self._most - 1)

    def finish(self) -> bytes:
        """Returns what is left, when there is no more."""
        return self._take(self._kept, 0)

    def _take(self, data: bytes, keep: int) -> bytes:
        found, at = [], 0
        for match in self._pattern.finditer(data):
            found += [data[at : match.start()], self._placeholder(match)]
            at = match.end()
        # A secret may have begun.
        end = max(at, len(data) - keep)
        self._kept = data[end:]
        return b"".join([*found, data[at:end]])

    def _placeholder(self, match: re.Match[bytes]) -> bytes:
        found = self._places.get(match[0])
        return self._places[_BREAKS.sub(b"", match[0])] if found is None else found

    def text(self, text: str) -> str:
        """Returns a text without secrets.

        Args:
            text: The text, of characters that stand for bytes or not.
        """
        data = text.encode("utf-8", "surrogateescape")
        return self._pattern.sub(self._placeholder, data).decode("utf-8", "surrogateescape")

    def headers(self, headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Returns headers without secrets, and without the length of the body, which would tell theirs."""
        return tuple((self.text(name), self.text(value)) for name, value in headers if name.lower() != "content-length")
