"""Text that a guest chose, made safe to show.

A guest names its functions, imports, exports and files. Such a name can be megabytes long, carry terminal escape
sequences, or turn the reading direction of the line it is printed in. Every message, report and table shows it
through `printable`; raw output that goes to a terminal passes `terminal_safe`.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Literal

__all__ = ["NAME_LIMIT", "document_safe", "is_utf8", "leads_out", "printable", "quoted", "terminal_safe"]

NAME_LIMIT = 120
"""How many characters of a guest-chosen name are shown: enough to know it, too few to flood a log."""

_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def _escape(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN_CATEGORIES:
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str | bytes, limit: int = NAME_LIMIT) -> str:
    """Shortens and escapes text from an untrusted source, so that it fits in one line of a message.

    Args:
        text: The text, or its bytes (taken as UTF-8; other bytes are escaped).
        limit: How many characters are kept; the rest is told as a count.

    Returns:
        One line without control, format or direction-changing characters.
    """
    length = len(text)
    # Cut before anything else: the cost must not depend on what the guest chose.
    if isinstance(text, bytes):
        whole = length <= limit * 4
        text = text[: limit * 4].decode("utf-8", "backslashreplace")
    else:
        whole = True
    kept = text[:limit]
    if not kept.isprintable():
        kept = "".join(map(_escape, kept))
    return kept if whole and len(text) <= limit else f"{kept}… ({length:,} long)"


def leads_out(path: bytes | str) -> bool:
    """Whether a path that a guest gave leads out of the folder that it begins at, links aside.

    Args:
        path: The path.
    """
    text = path.decode("utf-8", "backslashreplace") if isinstance(path, bytes) else path
    depth = 0
    for part in text.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return text.startswith("/")


def document_safe(text: str, kind: Literal["json", "toml"]) -> str:
    """Escapes what could steer a terminal in a document, as its strings can say it.

    Args:
        text: The document, in which control characters stand in strings only.
        kind: What it is.

    Returns:
        A document that says the same.
    """
    escape = _json_escape if kind == "json" else _toml_escape
    return "".join(escape(c) if c not in "\n\t" and unicodedata.category(c) in _HIDDEN_CATEGORIES else c for c in text)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _toml_escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def terminal_safe(output: bytes) -> str:
    """Escapes what could steer a terminal in a guest's output; lines, tabs and ordinary text stay as they are.

    Args:
        output: Bytes that a guest wrote to its stdout or stderr.

    Returns:
        Text in which every control character but newline, carriage return before newline, and tab is escaped.
    """
    text = output.decode("utf-8", "backslashreplace").replace("\r\n", "\n")
    return "".join(c if c in "\n\t" else _escape(c) for c in text)


def quoted(text: str, limit: int = NAME_LIMIT, quotes: str = '"') -> str:
    """Shows text from an untrusted source in quotes, in one line, so that it cannot be taken for anything else.

    Args:
        text: The text.
        limit: How many characters are kept; three dots stand for the rest.
        quotes: What stands before and behind it.
    """
    kept = text[:limit].replace("\\", "\\\\")
    if quotes:
        kept = kept.replace(quotes, "\\" + quotes)
    kept = kept.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    if not kept.isprintable():
        kept = "".join(map(_escape, kept))
    return f"{quotes}{kept}{quotes}{'...' if len(text) > limit else ''}"


def is_utf8(data: bytes) -> bool:
    """Whether bytes are text in UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
