"""The one way to a terminal: whatever is written to stdout or stderr is made harmless there, whoever wrote it.

Text comes from many places: reports, policies, names of files, messages of libraries. So it is not escaped where it is
made, but where it leaves: on a terminal, stdout and stderr are streams that let ordinary text, newlines and tabs
through, and nothing else. Only what draws tables and progress goes past them, and it is given harmless text.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from stockade._text import document_safe, terminal_safe

if TYPE_CHECKING:
    from typing import Literal, TextIO

__all__ = ["drawing", "guard_standard_streams", "pass_on", "say_document"]

_STDERR = 2


class _Stream(io.TextIOBase):
    """A standard stream: harmless to terminals, and able to write all text, in whatever encoding.

    It has no `buffer`, so that nobody writes past it without knowing.

    Args:
        beneath: The stream as Python has opened it.
        failing: Whether what cannot be written is told; else it is lost. What is told on stderr is beside the exit
            status, and must not change it.
    """

    def __init__(self, beneath: TextIO, *, failing: bool) -> None:
        self._beneath = beneath
        self._failing = failing
        if isinstance(beneath, io.TextIOWrapper):
            beneath.reconfigure(errors="backslashreplace")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._beneath.encoding

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def isatty(self) -> bool:
        return self._beneath.isatty()

    def fileno(self) -> int:
        return self._beneath.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        return self.draw(terminal_safe(text.encode("utf-8", "surrogateescape")) if self.isatty() else text)

    def draw(self, text: str) -> int:
        """Writes text that may steer a terminal."""
        try:
            self._beneath.write(text)
        except OSError:
            self._fail()
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        """Writes bytes as they are, after what was written before."""
        self.flush()
        try:
            self._beneath.buffer.write(data)
        except OSError:
            self._fail()

    def flush(self) -> None:
        try:
            self._beneath.flush()
        except OSError:
            self._fail()

    def _fail(self) -> None:
        """While an error of the system is handled: raises it, or sees to it that there is no other one."""
        if self._failing:
            raise
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, self._beneath.fileno())
            os.close(nowhere)


class _Drawing(io.TextIOBase):
    """A stream for what draws tables and progress with control sequences of its own."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self.write = stream.draw  # type: ignore[method-assign]
        self.flush = stream.flush  # type: ignore[method-assign]
        self.isatty = stream.isatty  # type: ignore[method-assign]
        self.fileno = stream.fileno  # type: ignore[method-assign]

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def writable(self) -> bool:
        return True


def guard_standard_streams() -> None:
    """Puts streams that are harmless to terminals in the place of stdout and stderr.

    Those that are closed are opened: their numbers would go to the next files that are opened.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = cast("TextIO", _Stream(sys.stdout or os.fdopen(1, "w"), failing=True))
    sys.stderr = cast("TextIO", _Stream(sys.stderr or os.fdopen(_STDERR, "w"), failing=False))


def drawing(stream: TextIO) -> TextIO:
    """Returns a stream for what draws on a terminal; whoever uses it must give it harmless text.

    Args:
        stream: stdout or stderr.
    """
    return cast("TextIO", _Drawing(stream)) if isinstance(stream, _Stream) else stream


def pass_on(stream: TextIO, data: bytes) -> None:
    """Passes bytes of a guest on: as they are to files and pipes, made harmless to terminals.

    Args:
        stream: stdout or stderr.
        data: What the guest wrote.
    """
    if stream.isatty():
        stream.write(terminal_safe(data))
    elif isinstance(stream, _Stream):
        stream.write_bytes(data)
    else:
        stream.buffer.write(data)
    stream.flush()


def say_document(text: str, kind: Literal["json", "toml"] = "json") -> None:
    """Prints a document on stdout: on a terminal with escapes of its own, so that it stays what it is.

    Args:
        text: The document.
        kind: What it is.
    """
    sys.stdout.write(document_safe(text, kind) if sys.stdout.isatty() else text)
    sys.stdout.write("" if text.endswith("\n") else "\n")
    sys.stdout.flush()
