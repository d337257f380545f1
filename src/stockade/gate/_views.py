"""What is left of text when what separates is taken out of it, and capitals are made small.

So `se cr-et`, a text that is wrapped, digits of bytes with colons between them, and both alphabets of base64 come to
one form. What counts as separating depends on what a secret is made of.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import compress
from typing import Final

__all__ = ["LETTERS", "MARKS", "RAW", "WORDS", "View"]

_SMALL: Final = bytes(range(256)).lower()
_OTHER: Final = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
"""A character that is no ASCII."""


class View:
    """What is kept of text.

    Args:
        kept: The bytes that are kept.
        separates: Which characters are dropped that are no ASCII, by the first letters of their categories in Unicode;
            of the others, capitals are made small. Without, they are taken as bytes.
        is_exact: Whether bytes are left as they are.
    """

    def __init__(self, kept: bytes, *, separates: str = "", is_exact: bool = False) -> None:
        self._dropped = bytes(byte for byte in range(256) if byte not in kept)
        self._is_kept = bytes(byte in kept for byte in range(256))
        self._separates = separates
        self._is_exact = is_exact

    def of(self, data: bytes) -> bytes:
        """Returns what is kept of bytes.

        Args:
            data: The bytes.
        """
        if self._is_exact:
            return data
        return (self._folded(data) if self._separates else data).translate(_SMALL, self._dropped)

    def places_of(self, data: bytes) -> list[int]:
        """Returns where each byte that is kept stands in the bytes.

        Args:
            data: The bytes.
        """
        folded = self._folded(data)
        return list(compress(range(len(folded)), folded.translate(self._is_kept)))

    def _folded(self, data: bytes) -> bytes:
        if not self._separates or data.isascii():
            return data
        separates = self._separates
        return _OTHER.sub(lambda match: _folded(match[0], separates), data)


@lru_cache(8192)
def _folded(character: bytes, separates: str) -> bytes:
    try:
        text = character.decode()
    except UnicodeDecodeError:
        return character
    if unicodedata.category(text)[0] in separates:
        return b"\0" * len(character)
    small = text.lower().encode()
    return small if len(small) == len(character) else character


_ASCII_LETTERS: Final = bytes(byte for byte in range(128) if chr(byte).isalnum())
_NO_ASCII: Final = bytes(range(128, 256))

LETTERS: Final = View(_ASCII_LETTERS)
"""The letters and digits of ASCII: for nearly all secrets, and for all encodings."""

WORDS: Final = View(_ASCII_LETTERS + _NO_ASCII, separates="CPSZ")
"""Letters and digits of all scripts: for secrets that have others than those of ASCII."""

MARKS: Final = View(bytes(range(33, 127)) + _NO_ASCII, separates="CZ")
"""All that is seen: for secrets with few letters and digits."""

RAW: Final = View(bytes(range(256)), is_exact=True)
"""All bytes as they are: for secrets that are no text."""
