"""The trace of a run: what is asked for, and each call as frozen data."""

from __future__ import annotations

from collections.abc import Callable  # noqa: TC003 - the documentation looks it up
from typing import Literal, TypeAlias

import msgspec

from stockade._json import JsonRecord

__all__ = ["Trace", "TraceArgument", "TracedCall"]

TraceArgument: TypeAlias = "int | float | str | tuple[str, ...]"
"""A number, a text or the name of one of several, or the names of flags."""


class TracedCall(msgspec.Struct, JsonRecord, frozen=True, kw_only=True):
    """One call of a guest: of WASI, or of a host function.

    Texts are as the guest gave them, decoded as UTF-8, with escapes for bytes that are none: make them safe before they
    go to a terminal, as `render` does.

    Attributes:
        sequence: Its place in the order in which calls began, from 0 on.
        call: The WASI call, such as `path_open`; or a host function, such as `env.fetch`.
        arguments: What was passed, by the names of the WASI specification: numbers, names such as `MONOTONIC`, tuples
            of flags such as `("CREAT", "TRUNC")`; paths, and data that is written, as far as they were kept. Where the
            call answers something, and where a text is not in the guest's memory, it is the address.
        results: What the call answered, by those names.
        has_returned: Whether it has: not where the guest ended in it.
        errno: The name of the error, such as `ENOENT`; None where it went well, or has not returned.
        duration_seconds: How long it took; None where that was not measured.
        at: When it began, in seconds since the guest was made; exact where the duration was measured, else as of the
            last time that anybody looked at a clock. No call begins before the one before it.
        cut: Names of arguments and results of which only the beginning was kept.
    """

    sequence: int
    call: str
    arguments: dict[str, TraceArgument] = {}
    results: dict[str, TraceArgument] = {}
    has_returned: bool = True
    errno: str | None = None
    duration_seconds: float | None = None
    at: float = 0.0
    cut: tuple[str, ...] = ()

    def render(self, string_chars: int = 120) -> str:
        """Returns it as one line for people, as `strace` writes it; what the guest chose is escaped.

        Args:
            string_chars: How many characters of data are shown; of paths, 256 at least.
        """
        from stockade.report._trace_text import line

        return line(self, string_chars)

    def to_json(self) -> str:
        """Returns it as JSON, on one line."""
        return msgspec.json.encode(self).decode()


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """What of a guest's calls is traced, and who is told.

    Attributes:
        calls: The calls: by name (`fd_write`), pattern (`path_*`), group (`clock`), or the name of the POSIX system
            call that they stand for (`READ`); `host` for host functions, `*` for all.
        string_bytes: How many bytes are kept of a path, and of data that is read or written: 0 to 4096.
        durations: Of which calls the duration is measured: `io`, those that can wait or go to the file system, and host
            functions; `all`, which adds about 0.2 µs to each; or `none`.
        on_overflow: What becomes of calls for which there is no room until the host looks: the guest waits (`wait`), or
            they are counted (`count`).
        sink: Is given each call when it has returned, on the thread that drives the run; what it raises ends the run,
            and is raised there. None: calls are kept for the report.
        most_calls: How many are kept for a report; further ones are counted.
    """

    calls: tuple[str, ...] = ("*",)
    string_bytes: int = 256
    durations: Literal["io", "all", "none"] = "io"
    on_overflow: Literal["wait", "count"] = "wait"
    sink: Callable[[TracedCall], object] | None = None
    most_calls: int = 100_000
