"""Output in whatever encoding the terminal has: what it cannot say is replaced, never a reason to fail."""

from __future__ import annotations

import codecs
import sys
from io import TextIOWrapper
from typing import Final

__all__ = ["encoded", "plain_json", "replace_what_cannot_be_written"]

_PLAIN: Final = {"→": "->", "…": "...", "×": "x", "≤": "<=", "µ": "u", "█": "#", "░": ".", "–": "-"}
"""Our own characters in ASCII."""

_REPLACE: Final = "stockade_replace"
_ASCII: Final = "stockade_ascii"


def replace_what_cannot_be_written() -> None:
    """Has stdout and stderr replace characters that their encoding does not have."""
    codecs.register_error(_REPLACE, _replace)
    codecs.register(_ascii)
    for stream in (sys.__stdout__, sys.__stderr__):
        if isinstance(stream, TextIOWrapper):
            # Click takes ASCII for a mistake and writes UTF-8 in its place, unless it has another name.
            name = codecs.lookup(stream.encoding).name
            stream.reconfigure(encoding=_ASCII if name == "ascii" else None, errors=_REPLACE)


def encoded(text: str, encoding: str) -> bytes:
    """Returns text as it is written in an encoding."""
    return text.encode(encoding, _REPLACE)


def plain_json(text: str) -> str:
    """Returns JSON in characters that stdout has; what it says stays the same.

    Args:
        text: The document.
    """
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        # Outside of strings JSON has only such characters; inside, each can be written by its number.
        data = text.encode("utf-16-be", "surrogatepass")
        units = (int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2))
        return "".join(chr(unit) if unit < _DEL else f"\\u{unit:04x}" for unit in units)
    return text


_DEL: Final = 0x7F
"""The first character that is written by its number."""


def _replace(problem: UnicodeError) -> tuple[str, int]:
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    missing = problem.object[problem.start : problem.end]
    return "".join(_PLAIN.get(character, "?") for character in missing), problem.end


def _ascii(name: str) -> codecs.CodecInfo | None:
    if name != _ASCII:
        return None
    found = codecs.lookup("ascii")
    return codecs.CodecInfo(
        found.encode,
        found.decode,
        streamreader=found.streamreader,
        streamwriter=found.streamwriter,
        incrementalencoder=found.incrementalencoder,
        incrementaldecoder=found.incrementaldecoder,
        name=_ASCII,
    )
