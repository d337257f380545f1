"""What the host, the fork server and its workers say to each other: messages on sockets that keep their borders.

A message is a head, a struct in MessagePack, and sometimes bytes behind it, such as a guest's output. What is large
goes by way of a sealed file in memory. The host takes every message from a worker for hostile: sizes are bounded before
anything is read, only the types below come out of it, and whoever says anything else is told `Garbled` and ended.
"""

from __future__ import annotations

import os
import socket
import struct
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar, get_origin

import msgspec

from stockade.errors import EngineError, IsolationError, LinkError, SnapshotError, StockadeError, UsageError
from stockade.execution import StringCall  # noqa: TC001 - msgspec looks it up
from stockade.guard import Woven  # noqa: TC001 - likewise
from stockade.host import Signature  # noqa: TC001 - likewise
from stockade.policy import Features, Policy
from stockade.report import Progress, Report, Violation  # noqa: TC001 - likewise
from stockade.system import is_sealed, open_memory_file, seal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "FAILURES",
    "FRAME_VERSION",
    "FROM_SERVER",
    "FROM_WORKER",
    "MOST_BLOB_BYTES",
    "MOST_DESCRIPTORS",
    "MOST_MESSAGE_BYTES",
    "TO_SERVER",
    "TO_WORKER",
    "Answer",
    "Called",
    "Cancel",
    "Conclude",
    "Ended",
    "Enter",
    "Entered",
    "Failed",
    "Finished",
    "Forget",
    "FromServer",
    "FromWorker",
    "Garbled",
    "Gone",
    "Input",
    "Leave",
    "Looked",
    "MemoryTold",
    "Open",
    "Order",
    "Output",
    "Peek",
    "Poke",
    "Register",
    "Request",
    "Rest",
    "Spawn",
    "Spawned",
    "Started",
    "StateTold",
    "Take",
    "Taken",
    "Told",
    "Turn",
    "Wants",
    "receive",
    "sealed_file",
    "send",
]

FRAME_VERSION: Final = 1
"""What both sides must have; the first byte of each message."""

MOST_INLINE_BYTES: Final = 64 << 10
"""What a message has in the socket; more goes by way of a file in memory."""

MOST_MESSAGE_BYTES: Final = 1 << 20
"""What the struct of a message from a worker may have: numbers and short texts."""

MOST_ORDER_BYTES: Final = 256 << 20
"""What the struct of a message to a worker or to the fork server may have: a module has many functions."""

MOST_BLOB_BYTES: Final = 4 << 30
"""What may stand behind the struct of any message."""

MOST_DESCRIPTORS: Final = 200
"""Descriptors that come with one message; the kernel takes 253."""

_HEAD: Final = struct.Struct("<B?IQ")
_NO_SIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)
_CLOEXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Garbled(Exception):  # noqa: N818 - it says what was found
    """That is no message of ours."""


class Gone(Exception):  # noqa: N818 - it says what was found
    """There is nobody at the other end any more."""


# -- to the fork server ----------------------------------------------------------------------------------------------


class Register(msgspec.Struct, frozen=True, tag=True):
    """A module under a policy, for workers to come.

    With it come files with the module and with its machine code, unless it has these, and folders of mounts.

    Attributes:
        program: The number by which the host calls it.
        name: The module's name.
        sha256: Of the module.
        policy: The policy; its mounts say what the folders are called, and not where they are.
        config: What it was compiled for.
        woven: What the weaver told of it.
        figures: Figures of its code.
        features: Proposals under which it is valid.
        units: The units of fuel that the time in the policy comes to; None where it does not say.
        functions: Functions of the embedder that it imports.
        removed: System calls and categories of them that no worker may make.
        like: The number of the same module and machine code under another policy.
    """

    program: int
    name: str
    sha256: str
    policy: Policy
    config: dict[str, bool | int]
    woven: Woven
    figures: dict[str, int]
    features: Features
    units: int | None = None
    functions: tuple[Signature, ...] = ()
    removed: tuple[str, ...] = ()
    like: int | None = None


class Forget(msgspec.Struct, frozen=True, tag=True):
    """There are no workers to come for it.

    Attributes:
        program: Its number.
    """

    program: int


class Spawn(msgspec.Struct, frozen=True, tag=True):
    """A worker is wanted. With it comes its socket.

    Attributes:
        worker: The number by which the host calls it.
        program: What it is to run.
        keeps: Whether its guest is called any number of times: the worker lives until it is ended.
    """

    worker: int
    program: int
    keeps: bool = False


# -- from the fork server --------------------------------------------------------------------------------------------


class Spawned(msgspec.Struct, frozen=True, tag=True):
    """There is a worker, and a descriptor of its process comes with this; or there can be none.

    Attributes:
        worker: Its number.
        errno: Why there is none; 0 where there is one.
    """

    worker: int
    errno: int = 0


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A worker has ended.

    Attributes:
        worker: Its number.
        status: Its exit status; negative for the signal that ended it.
    """

    worker: int
    status: int


# -- to a worker -----------------------------------------------------------------------------------------------------


class MemoryTold(msgspec.Struct, frozen=True):
    """What a memory of a guest holds: zeros wherever there is no extent.

    Attributes:
        size_bytes: How large it is.
        extents: Of each stretch its start, its size, its file by its number, and where it begins there.
    """

    size_bytes: int
    extents: tuple[tuple[int, int, int, int], ...]


class StateTold(msgspec.Struct, frozen=True):
    """What a guest holds between two calls. The contents of its memories are in sealed files.

    Attributes:
        memories: Its memories.
        globals: Its mutable globals.
        started: Whether what was the module's start function has run.
    """

    memories: tuple[MemoryTold, ...]
    globals: tuple[bytes, ...]
    started: bool


class Open(msgspec.Struct, frozen=True, tag=True):
    """What the guest is given, the first thing that a worker is told. What is behind it is the standard input.

    With it come the files of what it begins with.

    Attributes:
        args: Its arguments.
        env: Its whole environment.
        listens: Whether output is passed on as it comes.
        asks: Whether the standard input is asked for.
        watched: Whether somebody looks at how far it is in its course.
        saved: What it begins with, where that is not what the module begins with.
    """

    args: tuple[bytes, ...] = ()
    env: dict[bytes, bytes] = {}
    listens: bool = False
    asks: bool = False
    watched: bool = False
    saved: StateTold | None = None


_Number: TypeAlias = int | float | bytes
"""A number that a function takes; a vector is bytes."""


class Request(msgspec.Struct, frozen=True, tag=True):
    """A call of an exported function.

    Attributes:
        export: The function.
        params: The types of what it takes.
        results: The types of what it returns.
        numbers: What it is passed.
        exchange: What else is passed and returned.
        is_driven: Whether the host says, function by function, what is called.
        is_command: Whether its result is an exit code.
        initializes: Whether a reactor is initialized before.
        renews: Whether its budget and its counters are fresh.
        depth: How many calls of functions of the embedder's it is made in.
    """

    export: bytes
    params: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    numbers: tuple[_Number, ...] = ()
    exchange: StringCall | None = None
    is_driven: bool = False
    is_command: bool = False
    initializes: bool = False
    renews: bool = False
    depth: int = 0


class Enter(msgspec.Struct, frozen=True, tag=True):
    """A function is called, of those that a driven call is made of.

    Attributes:
        export: The function.
        arguments: Type and value of each argument.
        results: The types of what it returns.
    """

    export: bytes
    arguments: tuple[tuple[str, _Number], ...]
    results: tuple[str, ...]


class Leave(msgspec.Struct, frozen=True, tag=True):
    """A driven call is over."""


class Peek(msgspec.Struct, frozen=True, tag=True):
    """Bytes of the guest's memory are wanted, while it is halted or between two calls.

    Attributes:
        address: Where they begin.
        size: How many there are.
    """

    address: int
    size: int


class Poke(msgspec.Struct, frozen=True, tag=True):
    """Bytes are put into the guest's memory, likewise. They are behind it.

    Attributes:
        address: Where they begin.
    """

    address: int


class Take(msgspec.Struct, frozen=True, tag=True):
    """A snapshot is wanted of what the guest holds between two calls."""


class Conclude(msgspec.Struct, frozen=True, tag=True):
    """The report is wanted on a guest that had ended before anything of it was called."""


class Rest(msgspec.Struct, frozen=True, tag=True):
    """A turn is over, of a call that goes on later: the guest waits for its standard input."""


class Turn(msgspec.Struct, frozen=True, tag=True):
    """Another turn begins, with a fresh budget."""


class Input(msgspec.Struct, frozen=True, tag=True):
    """More of the standard input, which is behind it; nothing is its end."""


class Answer(msgspec.Struct, frozen=True, tag=True):
    """What came of a call of a function of the embedder's.

    Attributes:
        values: What it has returned, a number for each result.
        problem: What it has raised, in words; "" where it has returned.
        capability: The capability that it has missed.
        refused: What it has refused, where the policy ends the run for that.
    """

    values: tuple[int | float, ...] = ()
    problem: str = ""
    capability: str = ""
    refused: Violation | None = None


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """The run is to end."""


# -- from a worker ---------------------------------------------------------------------------------------------------


class Started(msgspec.Struct, frozen=True, tag=True):
    """All is ready: the guest's time begins with its call.

    Attributes:
        walls: What stands between the worker and the host.
        over: Whether the guest has ended already, for it needs more than it may have.
    """

    walls: tuple[str, ...] = ()
    over: bool = False


class Output(msgspec.Struct, frozen=True, tag=True):
    """A piece of output, which is behind it.

    Attributes:
        stream: Which.
    """

    stream: Literal["stdout", "stderr"]


class Wants(msgspec.Struct, frozen=True, tag=True):
    """The guest waits for more of its standard input."""


class Called(msgspec.Struct, frozen=True, tag=True):
    """The guest calls a function of the embedder's.

    Attributes:
        function: Its number.
        values: What it is called with.
    """

    function: int
    values: tuple[Any, ...] = ()


class Told(msgspec.Struct, frozen=True, tag=True):
    """How far the run is.

    Attributes:
        progress: That.
    """

    progress: Progress


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The run is over. What is behind it is stdout, stderr, and the value where that is a text or bytes.

    Attributes:
        report: What happened, without these.
        stdout: How many bytes stdout has.
        stderr: The same of stderr.
        value: The same of the value.
        kind: What the value is.
        over: Whether the guest has ended with it.
        depth: How many calls of functions of the embedder's the call was made in.
    """

    report: Report
    stdout: int = 0
    stderr: int = 0
    value: int = 0
    kind: Literal["", "text", "bytes"] = ""
    over: bool = False
    depth: int = 0


class Entered(msgspec.Struct, frozen=True, tag=True):
    """A function has returned, of those that a driven call is made of; or such a call has begun.

    Attributes:
        values: What it has returned.
    """

    values: tuple[_Number, ...] = ()


class Looked(msgspec.Struct, frozen=True, tag=True):
    """The guest's memory was looked at, or written to. What was read is behind it.

    Attributes:
        size_bytes: How large the memory is; None where there is none.
        problem: Why that cannot be; "" where it was.
    """

    size_bytes: int | None
    problem: str = ""


class Taken(msgspec.Struct, frozen=True, tag=True):
    """A snapshot. With it comes the file of what is new in it; files of earlier ones are known by their numbers.

    Attributes:
        state: What the guest holds.
        keeps: The files that count for the next one, by their numbers.
    """

    state: StateTold
    keeps: tuple[int, ...] = ()


FAILURES: Final[dict[str, type[StockadeError]]] = {
    kind.__name__: kind for kind in (EngineError, UsageError, LinkError, IsolationError, SnapshotError)
}
"""The kinds of errors that a worker hands over."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """There is no report, or no snapshot, for something went wrong that is not the guest's doing.

    Attributes:
        kind: The kind of error.
        message: What went wrong.
    """

    kind: Literal["EngineError", "UsageError", "LinkError", "IsolationError", "SnapshotError"]
    message: str


ToServer: TypeAlias = Register | Forget | Spawn
FromServer: TypeAlias = Spawned | Ended
Order: TypeAlias = Request | Enter | Leave | Take | Conclude | Rest | Turn
ToWorker: TypeAlias = Open | Order | Input | Answer | Cancel | Peek | Poke
FromWorker: TypeAlias = Started | Output | Wants | Called | Told | Finished | Failed | Entered | Looked | Taken


def _frozen(kind: type, value: object) -> object:
    # Policies have dicts that cannot be changed.
    if (get_origin(kind) or kind) is _FROZEN_DICT and isinstance(value, dict):
        return _FROZEN_DICT(value)
    raise NotImplementedError


_FROZEN_DICT: Final = type(Policy().custom)


_encode = msgspec.msgpack.Encoder().encode

TO_SERVER: Final = msgspec.msgpack.Decoder(ToServer, dec_hook=_frozen)
FROM_SERVER: Final = msgspec.msgpack.Decoder(FromServer)
TO_WORKER: Final = msgspec.msgpack.Decoder(ToWorker)
FROM_WORKER: Final = msgspec.msgpack.Decoder(FromWorker)

_Message = TypeVar("_Message")


def send(
    line: socket.socket,
    message: ToServer | FromServer | ToWorker | FromWorker,
    blob: bytes | memoryview = b"",
    descriptors: Sequence[int] = (),
    *,
    waits: bool = True,
) -> None:
    """Sends a message.

    Args:
        line: The socket.
        message: The message.
        blob: What stands behind it.
        descriptors: What goes with it.
        waits: Whether to wait until there is room for it.

    Raises:
        Gone: There is nobody to take it, or nobody takes it.
    """
    body = _encode(message)
    head = _HEAD.pack(FRAME_VERSION, len(body) + len(blob) > MOST_INLINE_BYTES, len(body), len(blob))
    flags = _NO_SIGNAL if waits else _NO_SIGNAL | socket.MSG_DONTWAIT
    try:
        if len(body) + len(blob) <= MOST_INLINE_BYTES:
            _send(line, [head, body, blob], descriptors, flags)
            return
        file = sealed_file(body, blob)
        try:
            _send(line, [head], [file, *descriptors], flags)
        finally:
            os.close(file)
    except (BrokenPipeError, ConnectionResetError, BlockingIOError, TimeoutError):
        raise Gone from None


# Not by `socket.send_fds` and `recv_fds`, which pass no flags on.


def _send(line: socket.socket, parts: Sequence[bytes | memoryview], descriptors: Sequence[int], flags: int) -> None:
    with_it = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
    line.sendmsg(parts, with_it, flags)


def _receive(line: socket.socket, most: int, most_descriptors: int, flags: int) -> tuple[bytes, list[int], int]:
    descriptors = array("i")
    room = socket.CMSG_LEN(most_descriptors * descriptors.itemsize)
    data, with_it, told, _ = line.recvmsg(most, room, flags)
    for level, kind, content in with_it:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, list(descriptors), told


def sealed_file(*parts: bytes | memoryview) -> int:
    """Makes a file in memory that nobody can change any more.

    Args:
        *parts: What is in it, one after the other.

    Returns:
        Its descriptor.
    """
    file = open_memory_file("stockade")
    try:
        _write(file, parts)
        seal(file)
    except BaseException:
        os.close(file)
        raise
    return file


def _write(file: int, parts: Sequence[bytes | memoryview]) -> None:
    for part in parts:
        left = memoryview(part)
        while left:
            left = left[os.write(file, left) :]


def receive(
    line: socket.socket,
    decoder: msgspec.msgpack.Decoder[_Message],
    *,
    most_bytes: int = MOST_ORDER_BYTES,
    most_blob: int = MOST_BLOB_BYTES,
    most_descriptors: int = 0,
    waits: bool = True,
) -> tuple[_Message, bytes, tuple[int, ...]] | None:
    """Receives a message.

    Args:
        line: The socket.
        decoder: What messages there may be.
        most_bytes: How many bytes a struct may have.
        most_blob: How many may stand behind it.
        most_descriptors: How many descriptors may come with it.
        waits: Whether to wait until there is one.

    Returns:
        The message, what stood behind it, and what came with it, which the caller closes; None where there is none yet.

    Raises:
        Garbled: It is none.
        Gone: There is nobody at the other end any more.
    """
    flags = _CLOEXEC if waits else _CLOEXEC | socket.MSG_DONTWAIT
    try:
        data, descriptors, told = _receive(line, _HEAD.size + MOST_INLINE_BYTES, most_descriptors + 1, flags)
    except BlockingIOError:
        return None
    except (ConnectionResetError, TimeoutError):
        raise Gone from None
    if not data and not descriptors:
        raise Gone
    taken = list(descriptors)
    try:
        if told & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(data) < _HEAD.size:
            raise Garbled("it is cut off")
        version, in_file, size, behind = _HEAD.unpack_from(data)
        if version != FRAME_VERSION:
            raise Garbled(f"its version is {version}, and not {FRAME_VERSION}")
        if size > most_bytes or behind > most_blob:
            raise Garbled(f"it has {size:,} and {behind:,} bytes, where {most_bytes:,} and {most_blob:,} may be")
        if in_file:
            if not taken or len(data) != _HEAD.size:
                raise Garbled("it lacks the file with its content")
            body, blob = _content(taken[0], size, behind)
            os.close(taken.pop(0))
        else:
            if len(data) != _HEAD.size + size + behind:
                raise Garbled(f"it has {len(data):,} bytes, and says otherwise")
            body, blob = data[_HEAD.size : _HEAD.size + size], data[_HEAD.size + size :]
        if len(taken) > most_descriptors:
            raise Garbled(f"{len(taken)} descriptors came with it")
        try:
            message = decoder.decode(body)
        except (msgspec.MsgspecError, RecursionError, ValueError, TypeError, OverflowError):
            raise Garbled("it says nothing that is known") from None
        found, taken = tuple(taken), []
        return message, blob, found
    finally:
        for descriptor in taken:
            with suppress(OSError):
                os.close(descriptor)


def _content(file: int, size: int, behind: int) -> tuple[bytes, bytes]:
    """Reads a file that nobody can change any more; any other could make us wait, or be another a moment later."""
    try:
        if not is_sealed(file) or os.fstat(file).st_size != size + behind:
            raise Garbled("its file is not sealed, or of another size")
    except OSError:
        raise Garbled("its file is none in memory") from None
    return _read(file, 0, size), _read(file, size, behind)


def _read(file: int, at: int, size: int) -> bytes:
    pieces = []
    while size:
        piece = os.pread(file, min(size, 1 << 30), at)
        if not piece:
            raise Garbled("its file ends too early")
        pieces.append(piece)
        at, size = at + len(piece), size - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
