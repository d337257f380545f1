"""The forms in which a secret comes out: one table, for all that looks for secrets.

Separators and the case of letters are gone where these are looked for (`_views.py`), and escapes are read before
(`_escapes.py`); so a secret has few forms: itself, its digits, and base64 and base32 wherever their groups begin.
"""

from __future__ import annotations

import base64
import codecs
import json
import quopri
import unicodedata
from contextlib import suppress
from operator import sub
from typing import TYPE_CHECKING, Final, NamedTuple

from stockade._text import is_utf8
from stockade.gate._views import LETTERS, MARKS, RAW, WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.gate._views import View

__all__ = ["LEAST_CHARACTERS", "Form", "edges_of", "forms_of", "longest_gap", "plain_forms_of"]

LEAST_CHARACTERS: Final = 7
"""A form that is shorter would be found where it is none, and by no aligned word of four bytes."""

_MOST_OWN_GAP: Final = 100
"""How much may stand between two characters that are kept of a form."""

_MOST_CHARACTERS: Final = 64
"""Of a longer form, each piece of so many characters at most is looked for by itself."""

_GROUPS: Final = ((6, 3, base64.b64encode), (5, 5, base64.b32encode))
"""Encodings of so many bits a character, in groups of so many bytes."""

_CHARSETS: Final = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "latin-1")
"""In which text other than ASCII is looked for, too. In ASCII, they add but zeros, which are dropped."""


_DECIMAL: Final = tuple(map(str, range(256)))
_THREE_DECIMAL: Final = tuple(f"{byte:03}" for byte in range(256))
_THREE_OCTAL: Final = tuple(f"{byte:03o}" for byte in range(256))
"""Each byte as lists of programs show it."""


class Form(NamedTuple):
    """A form of a secret.

    Attributes:
        view: What is kept of what is looked through.
        text: What stands there.
        is_piece: Whether it is a piece of something longer.
    """

    view: View
    text: bytes
    is_piece: bool


def _view_of(text: bytes) -> View | None:
    """Returns what must be kept of text for a form to be found in it, and in as many writings as can be.

    Args:
        text: The form.

    Returns:
        The view; None where so little is left of it that it is looked for in none.
    """
    if is_utf8(text):
        for view in (LETTERS if WORDS.of(text).isascii() else WORDS, MARKS):
            if len(view.of(text)) >= LEAST_CHARACTERS and _longest_gap(view, text) <= _MOST_OWN_GAP:
                return view
    return RAW if len(text) >= LEAST_CHARACTERS else None


def forms_of(secret: bytes) -> Iterator[Form]:
    """Yields the forms of a secret, each in pieces that are short enough.

    Args:
        secret: The secret.
    """
    for text in (*_written(secret), *_digits(secret), *_encoded(secret)):
        yield from _pieces_of(text)
    if is_utf8(secret) and not secret.isascii():
        for charset in _CHARSETS:
            with suppress(UnicodeEncodeError):
                yield from _looked_for(RAW, secret.decode().encode(charset))


def _pieces_of(text: bytes) -> Iterator[Form]:
    kept = LETTERS.of(text)
    if len(kept) == len(text) >= LEAST_CHARACTERS:
        # As most forms are: nothing of them is dropped.
        return _pieces(LETTERS, kept)
    return _looked_for(_view_of(text), text)


def plain_forms_of(secret: bytes) -> list[Form]:
    """Returns the forms of a secret as it is: its pieces, in their order.

    Args:
        secret: The secret.
    """
    return list(_pieces_of(secret))


def edges_of(secret: bytes) -> tuple[bytes, bytes]:
    """Returns what stands before the first and behind the last byte of a secret by which it is found.

    Args:
        secret: The secret.
    """
    view = _view_of(secret)
    places = view.places_of(secret) if view else []
    return (secret[: places[0]], secret[places[-1] + 1 :]) if places else (b"", b"")


def longest_gap(secret: bytes) -> int:
    """Returns how much stands between two bytes of a secret by which it is found, at most.

    Args:
        secret: The secret.
    """
    view = _view_of(secret)
    return _longest_gap(view, secret) if view else 0


def _longest_gap(view: View, text: bytes) -> int:
    places = view.places_of(text)
    if not places or places[-1] - places[0] == len(places) - 1:
        return 0
    longest: int = max(map(sub, places[1:], places))
    return longest - 1


def _looked_for(view: View | None, text: bytes) -> Iterator[Form]:
    return iter(()) if view is None else _pieces(view, view.of(text))


def _pieces(view: View, kept: bytes) -> Iterator[Form]:
    if len(kept) <= _MOST_CHARACTERS:
        if len(kept) >= LEAST_CHARACTERS:
            yield Form(view, kept, False)
        return
    count = -(-len(kept) // _MOST_CHARACTERS)
    size = -(-len(kept) // count)
    for at in range(0, len(kept), size):
        piece = kept[at : at + size]
        if len(piece) >= LEAST_CHARACTERS:
            yield Form(view, piece, True)


def _written(secret: bytes) -> set[bytes]:
    """Returns a secret as it is, and as it is when texts are quoted, turned round, or shifted by half the alphabet."""
    shown = repr(secret)[2:-1].encode()
    if not is_utf8(secret):
        return {secret, shown}
    text = secret.decode()
    texts = {text, text[::-1], codecs.encode(text, "rot13")}
    texts |= {unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)}
    escaped = json.dumps(text, ensure_ascii=False)[1:-1]
    texts |= {escaped, escaped.replace("/", "\\/"), text.replace(" ", "+")}
    if not text.isascii() and "\\" in text:
        # Both, what is escaped and what looks like an escape, are in it.
        texts.add(json.dumps(text)[1:-1])
    return {each.encode() for each in texts} | {shown, quopri.encodestring(secret, quotetabs=False)}


def _digits(secret: bytes) -> set[bytes]:
    """Returns the digits of a secret: in hexadecimal, also of words of two bytes; decimal, and octal."""
    texts = {"".join(map(digits.__getitem__, secret)) for digits in (_DECIMAL, _THREE_DECIMAL, _THREE_OCTAL)}
    texts.add(secret.hex())
    for before in range(2):
        # What touches its neighbours in a word is left out.
        words = bytearray(secret[before : before + (len(secret) - before) // 2 * 2])
        words[::2], words[1::2] = words[1::2], words[::2]
        texts.add(words.hex())
    return {text.encode() for text in texts}


def _encoded(secret: bytes) -> set[bytes]:
    """Returns a secret in base64 and base32, and in the base64 of UTF-16."""
    found = set()
    for bits, group, encode in _GROUPS:
        for before in range(group):
            found.add(_within(secret, bits, before, encode(b"\0" * before + secret)))
    if is_utf8(secret):
        wide = secret.decode().encode("utf-16-le")
        for before in range(3):
            found.add(_within(wide, 6, before, base64.b64encode(b"\0" * before + wide)))
    return found


def _within(secret: bytes, bits: int, before: int, encoded: bytes) -> bytes:
    # What stands before it decides where groups begin; what touches its neighbours is left out.
    return encoded[-(-before * 8 // bits) : (before + len(secret)) * 8 // bits]
