"""Bytes as callers give them: text is UTF-8, wherever bytes are taken."""

from __future__ import annotations

from typing import TypeAlias

from stockade.errors import UsageError

__all__ = ["BytesLike", "bytes_of"]

BytesLike: TypeAlias = "bytes | bytearray | memoryview | str"
"""Bytes, or a text, which is passed on as UTF-8."""


def bytes_of(given: object, what: str) -> bytes:
    """Returns bytes, or a text in UTF-8.

    Text that came from the system (`os.fsdecode`, `surrogateescape`) becomes the bytes that it was made of.

    Args:
        given: What somebody gave.
        what: What it is called in messages, such as `stdin`.

    Raises:
        UsageError: It is neither bytes nor a text that UTF-8 can express.
    """
    if isinstance(given, bytes):
        return given
    if isinstance(given, str):
        try:
            return given.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as problem:
            raise UsageError(
                f"{what} has a character at {problem.start:,} that UTF-8 cannot encode, half of a surrogate pair: "
                "mend the text, or give bytes"
            ) from None
    if isinstance(given, bytearray | memoryview):
        return bytes(given)
    raise UsageError(f"{what} is {type(given).__name__}: give bytes, or text, which is passed on as UTF-8")
