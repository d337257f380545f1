"""What a run is given: arguments, environment, standard input, and callbacks for its output."""

from __future__ import annotations

import codecs
import inspect
import os
import queue
import select
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

from stockade._bytes import bytes_of
from stockade._text import printable
from stockade.errors import UsageError
from stockade.execution._pipe import Pipe
from stockade.execution._streams import Streams

if TYPE_CHECKING:
    import asyncio

    from stockade._bytes import BytesLike
    from stockade.report import Progress
    from stockade.runner import RunControl

__all__ = [
    "NO_INPUTS",
    "AsyncStdin",
    "Inputs",
    "OnOutput",
    "OnOutputAsync",
    "OnProgress",
    "Stdin",
    "check_arguments",
    "environment",
]

Fetch: TypeAlias = Callable[[int], bytes | None]

Stdin: TypeAlias = (
    "BytesLike | Callable[[int], BytesLike | None] | Pipe | IO[bytes] | IO[str]"
    # Queues are invariant: one of texts is none of texts and bytes.
    " | queue.Queue[bytes | None] | queue.Queue[str | None] | queue.Queue[BytesLike | None]"
)
"""A guest's standard input: all of it; a function that is called with a number of bytes and returns at most so many
(none at the end, None where there are none yet); a pipe; a queue, in which None is the end; or an open file. Text, from
wherever it comes, is passed on as UTF-8."""

AsyncStdin: TypeAlias = (
    "Stdin | Callable[[int], Awaitable[BytesLike | None]] | AsyncIterator[BytesLike]"
    " | asyncio.Queue[bytes | None] | asyncio.Queue[str | None] | asyncio.Queue[BytesLike | None]"
    " | asyncio.StreamReader"
)
"""The same, or what an event loop can wait for."""

OnOutput: TypeAlias = Callable[[bytes], object]
"""Is given a piece of output."""

OnOutputAsync: TypeAlias = Callable[[bytes], Awaitable[object] | object]
"""The same; what it returns is awaited, if it can be."""

OnProgress: TypeAlias = "Callable[[Progress], object]"
"""Is told how far a run is."""


def check_arguments(args: object) -> Iterable[Any]:
    """Returns arguments, if they are several things and not one.

    Args:
        args: What was given as `args`.

    Raises:
        UsageError: It is a single text, which would be taken for its characters; or nothing that holds arguments.
    """
    if type(args) is tuple or type(args) is list:
        # As most are: to ask of abstract types takes longer.
        return args
    if isinstance(args, str | bytes):
        raise UsageError("args is a single text: give a list of arguments")
    if isinstance(args, Mapping) or not isinstance(args, Iterable):
        raise UsageError(f"args is {type(args).__name__}: give a list of arguments")
    return args


class Inputs(NamedTuple):
    """What a run is given, as callers say it.

    Attributes:
        args: Arguments, after the guest's own name.
        stdin: Its standard input.
        env: Its environment, beside what the policy passes on.
        on_stdout: Is given stdout in pieces as they are written.
        on_stderr: The same for stderr.
        on_progress: Is told how far the run is.
        forks: Whether a session keeps its memory so that forks of it copy next to nothing.
    """

    args: Sequence[str | bytes] = ()
    stdin: AsyncStdin = b""
    env: Mapping[str, str] | None = None
    on_stdout: OnOutput | None = None
    on_stderr: OnOutput | None = None
    on_progress: OnProgress | None = None
    forks: bool = False

    def arguments(self) -> list[bytes]:
        """Returns the arguments as a guest gets them.

        Raises:
            UsageError: One cannot be passed.
        """
        return [_c_string(arg, "an argument") for arg in check_arguments(self.args)]

    def variables(self) -> Mapping[str, str]:
        """Returns the environment, beside what the policy passes on.

        Raises:
            UsageError: It is none.
        """
        if self.env is None:
            return {}
        if not isinstance(self.env, Mapping):
            raise UsageError(f"env is {type(self.env).__name__}: give a dict of variables, names and values as text")
        return self.env

    def check_callbacks(self) -> None:
        """Checks that callbacks can be called.

        Raises:
            UsageError: One cannot.
        """
        for name in ("on_stdout", "on_stderr", "on_progress"):
            callback = getattr(self, name)
            if callback is not None and not callable(callback):
                raise UsageError(f"{name} is {type(callback).__name__}: give a function, or None")

    def input(self) -> bytes:
        """Returns the standard input, as far as it is there; what has to be fetched is not."""
        return bytes_of(self.stdin, "stdin") if isinstance(self.stdin, _ALL_OF_IT) else b""

    @property
    def served(self) -> bool:
        """Whether somebody has to serve the run while it is under way."""
        return self is not NO_INPUTS and not (
            self.on_stdout is None
            and self.on_stderr is None
            and self.on_progress is None
            and isinstance(self.stdin, _ALL_OF_IT)
        )

    def fetcher(self, control: RunControl) -> tuple[Fetch | None, bool]:
        """Returns what fetches the standard input, and whether it wakes the run when there is more.

        Args:
            control: The control of the run.

        Raises:
            UsageError: Nothing can be read from that, or not here.
        """
        source = self.stdin
        if isinstance(source, _ALL_OF_IT):
            return None, False
        if isinstance(source, Pipe):
            source.attach(control.wake)
            return source.take, True
        if isinstance(source, queue.Queue):
            return _Taker(source).take, False
        if callable(source) and not inspect.iscoroutinefunction(source):
            return _Asker(cast("Callable[[int], object]", source), "the stdin callback returned").take, False
        if hasattr(source, "read") and not hasattr(source, "at_eof"):
            return _Asker(_reader(cast("IO[bytes]", source)), "the stdin file gave").take, False
        raise UsageError(
            f"stdin is {type(source).__name__}: give bytes, text, a function, a stockade.Pipe, a queue.Queue or an "
            "open file; what only an event loop can wait for is for run_async"
        )

    def streams(self, control: RunControl) -> Streams | None:
        """Returns the callbacks; None where there are none.

        Args:
            control: The control of the run.

        Raises:
            UsageError: Nothing can be read from what stdin is, or a callback would have to be awaited.
        """
        if not self.served:
            return None
        self.check_callbacks()
        for name in ("on_stdout", "on_stderr", "on_progress"):
            if inspect.iscoroutinefunction(getattr(self, name)):
                raise UsageError(
                    f"{name} is a coroutine function, and only an event loop can await it: give a plain function, or "
                    "await run_async"
                )
        fetch, wakes = self.fetcher(control)
        return Streams(fetch, self.on_stdout, self.on_stderr, self.on_progress, wakes=wakes)


NO_INPUTS: Final = Inputs()
"""Nothing: what most runs are given."""

_ALL_OF_IT: Final = (bytes, str, bytearray, memoryview)
"""What is the whole input, and there from the beginning."""


class _Pieces:
    """Hands out pieces of input as large as they are wanted."""

    def __init__(self) -> None:
        # A view, so that taking a little of much copies only that.
        self._rest = memoryview(b"")

    def keep(self, piece: bytes) -> None:
        self._rest = memoryview(piece)

    def some(self, size: int) -> bytes:
        taken, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return taken


class _Taker(_Pieces):
    """Takes pieces out of a queue."""

    def __init__(self, source: queue.Queue[Any]) -> None:
        super().__init__()
        self._source = source

    def take(self, size: int) -> bytes | None:
        while not self._rest:
            try:
                piece = self._source.get_nowait()
            except queue.Empty:
                return None
            if piece is None:
                return b""
            self.keep(bytes_of(piece, "a piece in the stdin queue"))
        return self.some(size)


class _Asker(_Pieces):
    """Asks a function for pieces. It counts text in characters, so what is beyond the bytes that are wanted is kept.

    Args:
        ask: The function.
        who: What it is called in messages, with what it did.
    """

    def __init__(self, ask: Callable[[int], object], who: str) -> None:
        super().__init__()
        self._ask = ask
        self._who = who

    def take(self, size: int) -> bytes | None:
        if self._rest:
            return self.some(size)
        piece = self._ask(size)
        if piece is None or isinstance(piece, bytes):
            return piece
        if isinstance(piece, str | bytearray | memoryview):
            found = bytes_of(piece, "stdin")
            if not isinstance(piece, str) or len(piece) > size:
                # More than was asked for is told as for bytes.
                return found
            self.keep(found)
            return self.some(size)
        raise UsageError(
            f"{self._who} {type(piece).__name__}: it must be bytes, text, or None where there are none yet"
        )


def _reader(source: IO[bytes] | IO[str]) -> Callable[[int], object]:
    """Reads a file, without waiting for one that can make us wait: a pipe, a terminal, a socket.

    What was read into the file's own buffer before is not seen until more comes.
    """
    read = getattr(source, "read1", source.read)
    try:
        descriptor = source.fileno()
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except (AttributeError, OSError):
        return read
    if not is_regular and isinstance(encoding := getattr(source, "encoding", None), str):
        read = _text_reader(source, encoding)

    # Not select(), which cannot look at descriptors from 1024 on. What has come to its end, or is closed, can be read,
    # too: reading tells.
    look = select.poll()
    look.register(descriptor, select.POLLIN)

    def fetch(size: int) -> object:
        return read(size) if look.poll(0) else None

    return fetch


def _text_reader(source: object, encoding: str) -> Callable[[int], object]:
    """Reads text from a file whose own `read` would wait until all that was asked for is there."""
    read = source.buffer.read1  # type: ignore[attr-defined]
    decoder = codecs.getincrementaldecoder(encoding)(getattr(source, "errors", None) or "strict")

    def fetch(size: int) -> str | None:
        data = read(size)
        # The first bytes of a character are not the end.
        return decoder.decode(data, final=not data) or (None if data else "")

    return fetch


def environment(variables: Mapping[str, str]) -> dict[bytes, bytes]:
    """Returns an environment as a guest gets it.

    Raises:
        UsageError: A variable cannot be passed.
    """
    found = {}
    for name, value in variables.items():
        key = _variable(name)
        found[key] = _c_string(value, f"the variable {printable(name)}")
    return found


def _c_string(text: object, what: str) -> bytes:
    data = bytes_of(text, what)
    if b"\0" in data:
        raise UsageError(f"{what} contains a zero byte, which no WASI guest can receive: {printable(data)}")
    return data


def _variable(name: object) -> bytes:
    if not isinstance(name, str):
        raise UsageError(f"the name of a variable is {type(name).__name__}: it must be text")
    if not name or "=" in name:
        raise UsageError(f"{printable(name) or 'an empty text'} cannot be the name of a variable")
    return _c_string(name, "a variable's name")
