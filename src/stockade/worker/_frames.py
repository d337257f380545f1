"""What this process and the compiling one hand each other: files with a head in JSON and a body of bytes."""

from __future__ import annotations

import fcntl
import os
from typing import IO, Final, Literal

import msgspec

from stockade.engine import wasmtime_version
from stockade.errors import EngineError, InvalidModule, LinkError, StockadeError
from stockade.guard import Woven, guard
from stockade.policy import Features, ModuleLimits
from stockade.system import has_memory_files, open_memory_file, seal
from stockade.worker._server_process import FIRST_FREE

__all__ = [
    "FAILURES",
    "MOST_ANSWER_BYTES",
    "UNREADABLE",
    "Answer",
    "Request",
    "failure_from",
    "failure_of",
    "read_head",
    "release",
    "scratch",
    "write_frame",
]

FAILURES: Final[tuple[type[StockadeError], ...]] = (EngineError, InvalidModule, LinkError)
"""The kinds of errors that are handed over."""

MOST_ANSWER_BYTES = 4 << 30
"""What machine code can have, at most."""

UNREADABLE = "the compiling process left nothing that can be read"


class Request(msgspec.Struct, frozen=True):
    """What the other process is to do. The body is the module, or the text.

    Attributes:
        task: `compile` a module, `weave` it only, `validate` it, tell the `features` it uses, or `translate` text.
        name: The module's name, for messages.
        release: What says that both processes are of the same release.
        cpu_seconds: CPU time that it may use.
        memory_bytes: Memory that it may use.
        features: Proposals that the module may use.
        structure: What it may be made of.
        config: What to compile for.
        traced: Whether calls are written into the guard's trace.
    """

    task: Literal["compile", "weave", "validate", "features", "translate"]
    name: str
    release: str
    cpu_seconds: int
    memory_bytes: int
    features: Features = Features()
    structure: ModuleLimits = ModuleLimits()
    config: dict[str, bool | int] = {}
    traced: bool = False


class Answer(msgspec.Struct, frozen=True):
    """What came of it. The body is machine code, or a module.

    Attributes:
        woven: What the weaver tells of a module, without its bytes.
        figures: Figures of the original's code.
        features: Proposals that a module uses.
        failure: The kind of error, and its message, where it did not come to that.
    """

    woven: Woven | None = None
    figures: dict[str, int] = {}
    features: tuple[str, ...] = ()
    failure: tuple[str, str] | None = None


def failure_of(problem: StockadeError) -> tuple[str, str]:
    """Says what went wrong as an answer has it: by the kind of error that everybody knows, whatever kind of that it is.

    Args:
        problem: An error of one of the kinds that are told.
    """
    return next(kind.__name__ for kind in FAILURES if isinstance(problem, kind)), str(problem)


def failure_from(told: tuple[str, str]) -> StockadeError:
    """Returns the error that an answer says there was."""
    name, message = told
    return next((kind for kind in FAILURES if kind.__name__ == name), EngineError)(message)


def write_frame(file: IO[bytes], head: Request | Answer, body: bytes) -> None:
    """Writes a head and a body to the beginning of an empty file."""
    encoded = msgspec.json.encode(head)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    file.write(body)
    file.flush()


def read_head(file: IO[bytes]) -> tuple[bytes, int]:
    """Reads the head of what `write_frame` wrote; the body is read next.

    Returns:
        The head, not decoded, and how many bytes the body has.

    Raises:
        EngineError: It is not that.
    """
    size = os.fstat(file.fileno()).st_size
    if size > MOST_ANSWER_BYTES:
        raise EngineError(f"the compiling process left {size:,} bytes, more than machine code can have")
    file.seek(0)
    head = int.from_bytes(file.read(8), "little")
    if head > size - 8:
        raise EngineError(UNREADABLE)
    return file.read(head), size - 8 - head


def release() -> str:
    """Says of which release this process is: both have to be of the same one."""
    return f"{guard().digest} {wasmtime_version()}"


def scratch(*, content: tuple[Request, bytes] | None = None) -> IO[bytes]:
    """Makes an unnamed file, never under the number of a standard stream, which something may write to.

    Args:
        content: What it is to hold; where there is something, nobody can change the file any more.
    """
    file = _unnamed()
    if file.fileno() < FIRST_FREE:
        # The host has closed a standard stream.
        with file:
            file = os.fdopen(fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, FIRST_FREE), "w+b")
    if content is not None:
        try:
            write_frame(file, *content)
            _seal(file)
        except BaseException:
            # Not through the buffer, which would try to write once more.
            file.raw.close()  # type: ignore[attr-defined]
            raise
    return file


def _unnamed() -> IO[bytes]:
    """An unnamed file, in memory where the system has such."""
    if has_memory_files():
        return os.fdopen(open_memory_file("stockade"), "w+b")
    from tempfile import TemporaryFile

    return TemporaryFile()


def _seal(file: IO[bytes]) -> None:
    if has_memory_files():
        seal(file.fileno())
