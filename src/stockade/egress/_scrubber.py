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


def forms_of(secret: str) -> frozenset[bytes]:
    """Returns the forms in which a secret is looked for: plain, as JSON, HTML and URLs have it, base64, hex, UTF-16.

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
        "".join(f"\\u{ord(character):04x}" for character in secret),
        "".join(f"%{byte:02x}" for byte in data),
        "".join(f"\\x{byte:02x}" for byte in data),
    }
    # Escapes and digits may come in capitals.
    texts |= {re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), text) for text in texts}
    texts |= {data.hex().upper(), data.hex(" "), data.hex(":"), "".join(f"%{byte:02X}" for byte in data)}
    texts |= {"".join(f"\\u{ord(character):04X}" for character in secret)}
    forms = {text.encode() for text in texts} | {secret.encode("utf-16-le"), secret.encode("utf-16-be")}
    for before in range(3):
        # What stands before it decides where groups of three bytes begin; what touches its neighbours is left out.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"\0" * before + data)
            begin = -(-before * 8 // 6)
            end = (before + len(data)) * 8 // 6
            forms.add(encoded[begin:end])
    return frozenset(form for form in forms if len(form) >= _LEAST_BYTES)


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
        self._pattern = re.compile(b"|".join(map(re.escape, longest_first)))
        self._most = len(longest_first[0])
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
            found += [data[at : match.start()], self._places[match[0]]]
            at = match.end()
        # A secret may have begun.
        end = max(at, len(data) - keep)
        self._kept = data[end:]
        return b"".join([*found, data[at:end]])

    def text(self, text: str) -> str:
        """Returns a text without secrets.

        Args:
            text: The text, of characters that stand for bytes or not.
        """
        data = text.encode("utf-8", "surrogateescape")
        return self._pattern.sub(lambda match: self._places[match[0]], data).decode("utf-8", "surrogateescape")

    def headers(self, headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Returns headers without secrets, and without the length of the body, which would tell theirs."""
        return tuple((self.text(name), self.text(value)) for name, value in headers if name.lower() != "content-length")
