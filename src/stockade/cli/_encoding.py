"""Output in whatever encoding the terminal has: what it cannot say is replaced, never a reason to fail."""

from __future__ import annotations

import codecs
import sys
from typing import Final

__all__ = ["write_what_can_be_written"]

_PLAIN: Final = {"→": "->", "…": "...", "×": "x", "≤": "<=", "µ": "u", "█": "#", "░": ".", "–": "-"}
"""Our own characters in ASCII."""

_REPLACE: Final = "stockade_replace"
_ASCII: Final = "stockade_ascii"


def write_what_can_be_written() -> None:
    """Has stdout and stderr replace characters that their encoding does not have."""
    codecs.register_error(_REPLACE, _replace)
    codecs.register(_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream.encoding, str) and hasattr(stream, "reconfigure"):
            # Click takes ASCII for a mistake and writes UTF-8 in its place, unless it has another name.
            name = codecs.lookup(stream.encoding).name
            stream.reconfigure(encoding=_ASCII if name == "ascii" else None, errors=_REPLACE)


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
