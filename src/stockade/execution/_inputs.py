"""What a run is given: arguments, environment, standard input, and callbacks for its output."""

from __future__ import annotations

import inspect
import queue
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, NamedTuple, TypeAlias, cast

from stockade._text import printable
from stockade.errors import UsageError
from stockade.execution._pipe import Pipe
from stockade.execution._streams import Streams

if TYPE_CHECKING:
    import asyncio

    from stockade.report import Progress
    from stockade.runner import RunControl

__all__ = ["AsyncStdin", "Inputs", "OnOutput", "OnOutputAsync", "OnProgress", "Stdin", "environment"]

Fetch: TypeAlias = Callable[[int], bytes | None]

Stdin: TypeAlias = "bytes | str | Fetch | Pipe | queue.Queue[bytes | None] | IO[bytes]"
"""A guest's standard input: all of it; a function that is called with a number of bytes and returns at most so many
(none at the end, None where there are none yet); a pipe; a queue, in which None is the end; or an open binary file."""

AsyncStdin: TypeAlias = (
    "Stdin | Callable[[int], Awaitable[bytes | None]] | AsyncIterator[bytes] | asyncio.Queue[bytes | None]"
    " | asyncio.StreamReader"
)
"""The same, or what an event loop can wait for."""

OnOutput: TypeAlias = Callable[[bytes], object]
"""Is given a piece of output."""

OnOutputAsync: TypeAlias = Callable[[bytes], Awaitable[object] | object]
"""The same; what it returns is awaited, if it can be."""

OnProgress: TypeAlias = "Callable[[Progress], object]"
"""Is told how far a run is."""


class Inputs(NamedTuple):
    """What a run is given, as callers say it.

    Attributes:
        args: Arguments, after the guest's own name.
        stdin: Its standard input.
        env: Its environment, beside what the policy passes on.
        on_stdout: Is given stdout in pieces as they are written.
        on_stderr: The same for stderr.
        on_progress: Is told how far the run is.
    """

    args: Sequence[str | bytes] = ()
    stdin: AsyncStdin = b""
    env: Mapping[str, str] | None = None
    on_stdout: OnOutput | None = None
    on_stderr: OnOutput | None = None
    on_progress: OnProgress | None = None

    def arguments(self) -> list[bytes]:
        """Returns the arguments as a guest gets them.

        Raises:
            UsageError: One cannot be passed.
        """
        if isinstance(self.args, str | bytes):
            raise UsageError("args is a single text: give a list of arguments")
        return [_c_string(arg, "an argument") for arg in self.args]

    def input(self) -> bytes:
        """Returns the standard input, as far as it is there; what has to be fetched is not."""
        if isinstance(self.stdin, str):
            return self.stdin.encode()
        return bytes(self.stdin) if isinstance(self.stdin, bytes | bytearray | memoryview) else b""

    @property
    def served(self) -> bool:
        """Whether somebody has to serve the run while it is under way."""
        return not (
            self.on_stdout is None
            and self.on_stderr is None
            and self.on_progress is None
            and isinstance(self.stdin, bytes | str | bytearray | memoryview)
        )

    def fetcher(self, control: RunControl) -> tuple[Fetch | None, bool]:
        """Returns what fetches the standard input, and whether it wakes the run when there is more.

        Args:
            control: The control of the run.

        Raises:
            UsageError: Nothing can be read from that, or not here.
        """
        source = self.stdin
        if isinstance(source, str | bytes | bytearray | memoryview):
            return None, False
        if isinstance(source, Pipe):
            source.attach(control.wake)
            return source.take, True
        if isinstance(source, queue.Queue):
            return _Taker(source).take, False
        if callable(source) and not inspect.iscoroutinefunction(source):
            return cast("Fetch", source), False
        if hasattr(source, "read") and not hasattr(source, "at_eof"):
            return _reader(cast("IO[bytes]", source)), False
        raise UsageError(
            f"stdin is {type(source).__name__}: give bytes, text, a function, a stockade.Pipe, a queue.Queue or a "
            "binary file; what only an event loop can wait for is for run_async"
        )

    def streams(self, control: RunControl) -> Streams | None:
        """Returns the callbacks; None where there are none.

        Args:
            control: The control of the run.

        Raises:
            UsageError: Nothing can be read from what stdin is.
        """
        if not self.served:
            return None
        fetch, wakes = self.fetcher(control)
        return Streams(fetch, self.on_stdout, self.on_stderr, self.on_progress, wakes=wakes)


class _Taker:
    """Takes pieces out of a queue, as large as they are wanted."""

    def __init__(self, source: queue.Queue[bytes | None]) -> None:
        self._source = source
        # A view, so that taking a little of much copies only that.
        self._rest = memoryview(b"")

    def take(self, size: int) -> bytes | None:
        while not self._rest:
            try:
                piece = self._source.get_nowait()
            except queue.Empty:
                return None
            if piece is None:
                return b""
            self._rest = memoryview(piece)
        taken, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return taken


def _reader(source: IO[bytes]) -> Fetch:
    """Reads a file, without waiting for one that can make us wait: a pipe, a terminal, a socket.

    What was read into the file's own buffer before is not seen until more comes.
    """
    read = getattr(source, "read1", source.read)
    try:
        descriptor = source.fileno()
    except (AttributeError, OSError):
        return read

    # Not select(), which cannot look at descriptors from 1024 on. What has come to its end, or is closed, can be read,
    # too: reading tells.
    look = select.poll()
    look.register(descriptor, select.POLLIN)

    def fetch(size: int) -> bytes | None:
        return read(size) if look.poll(0) else None

    return fetch


def environment(variables: Mapping[str, str]) -> dict[bytes, bytes]:
    """Returns an environment as a guest gets it.

    Raises:
        UsageError: A variable cannot be passed.
    """
    return {_variable(name): _c_string(value, "a variable's value") for name, value in variables.items()}


def _c_string(text: str | bytes, what: str) -> bytes:
    data = text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise UsageError(f"{what} contains a zero byte, which no WASI guest can receive: {printable(data)}")
    return data


def _variable(name: str) -> bytes:
    if not name or "=" in name:
        raise UsageError(f"{printable(name) or 'an empty text'} cannot be the name of a variable")
    return _c_string(name, "a variable's name")
