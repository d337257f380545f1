"""What a file is that is no core module: told by how it begins."""

from __future__ import annotations

import re
from typing import Final

from stockade.errors import InvalidModule

__all__ = ["CORE_HEADER", "MAGIC", "is_component", "is_text_format", "refuse_other_format"]

MAGIC: Final = b"\0asm"
CORE_HEADER: Final = MAGIC + b"\x01\0\0\0"
"""How core modules begin."""

_COMPONENT_LAYER: Final = b"\x01\0"

_TEXT_FORMAT: Final = rb"\s*+(?:\((?!\xb5/\xfd)|;;)"
"""How the text format begins: a parenthesis or a comment. No binary module does; what zstd has compressed might."""

_COMPILE: Final = "compile the program for the target wasm32-wasip1"
_UNPACK: Final = "unpack it first"

_FORMATS: Final = (
    (rb"(?i)\s*+(?:<!doctype html|<html)", "an HTML page", "check the address it was downloaded from"),
    (rb"\s*+<\?xml", "an XML document", "check the address it was downloaded from"),
    (
        rb"PK(?:\x03\x04|\x05\x06)",
        "a ZIP archive, such as a wheel",
        "unpack it and take the .wasm file",
    ),
    (rb"\x1f\x8b", "compressed with gzip", _UNPACK),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (rb"\xfd7zXZ\0", "compressed with xz", _UNPACK),
    (rb"BZh[1-9]", "compressed with bzip2", _UNPACK),
    (rb"\x7fELF", "an ELF file, a program for Linux", _COMPILE),
    (rb"(?:\xfe\xed\xfa[\xce\xcf]|[\xce\xcf]\xfa\xed\xfe)", "a Mach-O file, a program for macOS", _COMPILE),
    (rb"\xca\xfe\xba\xbe", "a Mach-O file for several processors, or a Java class", _COMPILE),
    (rb"MZ", "a program for Windows", _COMPILE),
    (rb"!<arch>\n", "a static library", "link it to a module"),
    (rb"BC\xc0\xde", "LLVM bitcode", "link it to a module"),
    (rb"#!", "a script", "run its interpreter, built for WebAssembly, with the script as an argument"),
    (rb"version https://git-lfs", "a Git LFS pointer", "run git lfs pull to get the file itself"),
)
"""How a file begins, as patterns, what it then is, and what to do about it. The first that fits counts."""

_LOOKED_AT_BYTES: Final = 512
"""How much must be text for a file to be called text."""


def is_component(data: bytes) -> bool:
    """Whether bytes are a component, as far as their beginning says.

    Args:
        data: The file.
    """
    return data.startswith(MAGIC) and data[6:8] == _COMPONENT_LAYER


def is_text_format(data: bytes) -> bool:
    """Whether bytes are WebAssembly text, as far as their beginning says.

    Args:
        data: The file.
    """
    return re.match(_TEXT_FORMAT, data) is not None


def refuse_other_format(data: bytes, name: str = "the module") -> None:
    """Refuses a file that is no core module, saying what it is.

    Args:
        data: The file.
        name: What the file is called in the message.

    Raises:
        InvalidModule: It is not.
    """
    if data.startswith(CORE_HEADER):
        return
    if not data.startswith(MAGIC):
        raise InvalidModule(f"{name} is {_format(data, name)}")
    if len(data) < len(CORE_HEADER):
        raise InvalidModule(f"{name} is not a WebAssembly module: it has only {len(data)} bytes")
    if is_component(data):
        raise InvalidModule(
            f"{name} is a WebAssembly component, and Stockade runs core modules: build it for the target "
            "wasm32-wasip1 instead of wasm32-wasip2"
        )
    raise InvalidModule(f"{name} has WebAssembly version {data[4:8].hex()}, which is not known; core modules have 1")


_LANGUAGES: Final = {
    "py": "Python code: run it by stockade.Python, or `stockade python`",
    "js": "JavaScript code: run it by stockade.JavaScript, or `stockade js`",
    "mjs": "JavaScript code: run it by stockade.JavaScript, or `stockade js`",
}
"""What a text is by the end of its name, where an interpreter for it is to be had."""


def _format(data: bytes, name: str) -> str:
    """Says what a file is, and what to do about it."""
    if not data:
        return "empty"
    if is_text_format(data):
        return "WebAssembly text, not a binary module: name the file .wat, or load it with text=True"
    language = _LANGUAGES.get(name.rpartition(".")[2].lower())
    if language is not None and data.startswith(b"#!"):
        return f"not WebAssembly but {language}"
    for pattern, kind, hint in _FORMATS:
        if re.match(pattern, data):
            return f"not WebAssembly but {kind}: {hint}"
    begin = data[:_LOOKED_AT_BYTES]
    if _is_utf8(begin) and begin.decode("utf-8", "ignore").translate(_LINES).isprintable():
        return f"not WebAssembly but {language or 'text: compile source code to WebAssembly first'}"
    return "not WebAssembly: it does not begin with \\0asm"


_LINES: Final = {ord(character): " " for character in "\t\n\r\f"}


def _is_utf8(begin: bytes) -> bool:
    """Whether the beginning of a file is UTF-8; its last character may be cut."""
    try:
        begin.decode()
    except UnicodeDecodeError as problem:
        return problem.start > len(begin) - 4 and len(begin) == _LOOKED_AT_BYTES
    return True
