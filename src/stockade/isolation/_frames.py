"""How the host, the fork server and its workers speak with each other: messages on sockets that keep their borders.

A message is a head, a struct in MessagePack, and sometimes bytes behind it, such as a guest's output. What is large
goes by way of a sealed file in memory. The host takes every message from a worker for hostile: sizes are bounded before
anything is read, only what its decoder knows comes out of it, and whoever says anything else is `Garbled` and ended.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from array import array
from contextlib import suppress
from errno import ETOOMANYREFS
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from stockade.system import is_sealed, open_memory_file, seal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "FRAME_VERSION",
    "MOST_BLOB_BYTES",
    "MOST_DESCRIPTORS",
    "MOST_INLINE_BYTES",
    "MOST_MESSAGE_BYTES",
    "Full",
    "Garbled",
    "Gone",
    "packed",
    "receive",
    "sealed_file",
    "send",
    "send_packed",
    "unpacked",
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

_RETRY_SECONDS: Final = 0.001

_MOST_RETRIES: Final = 2000
"""How often a message is tried again while its user has more descriptors under way than it may have open: those are
received meanwhile, unless somebody never does."""

_HEAD: Final = struct.Struct("<B?IQ")
# Numbers: to put members of enumerations together takes longer than to send.
_NO_SIGNAL: Final = int(getattr(socket, "MSG_NOSIGNAL", 0))
_CLOEXEC: Final = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_DONT_WAIT: Final = int(getattr(socket, "MSG_DONTWAIT", 0))
_CUT_OFF: Final = int(getattr(socket, "MSG_TRUNC", 0)) | int(getattr(socket, "MSG_CTRUNC", 0))


class Garbled(Exception):  # noqa: N818 - it says what was found
    """That is no message of ours."""


class Gone(Exception):  # noqa: N818 - it says what was found
    """There is nobody at the other end any more."""


class Full(Gone):
    """There is no room for it now, and whoever sends it does not wait for that."""


_encode = msgspec.msgpack.Encoder().encode

_Message = TypeVar("_Message")


def packed(message: msgspec.Struct, blob: bytes | memoryview = b"") -> tuple[bytes, bytes]:
    """Returns the head of a message and its struct, behind which the blob comes.

    Args:
        message: The message.
        blob: What stands behind it.
    """
    body = _encode(message)
    return _HEAD.pack(FRAME_VERSION, len(body) + len(blob) > MOST_INLINE_BYTES, len(body), len(blob)), body


def send(
    line: socket.socket,
    message: msgspec.Struct,
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
        Full: There is no room for it, and it is not to be waited for.
        Gone: There is nobody to take it, or nobody takes it; or the kernel lets this user send no descriptors.
    """
    head, body = packed(message, blob)
    flags = _NO_SIGNAL if waits else _NO_SIGNAL | _DONT_WAIT
    try:
        if len(body) + len(blob) <= MOST_INLINE_BYTES:
            _send(line, [head, body, blob], descriptors, flags)
            return
        file = sealed_file(body, blob)
        try:
            _send(line, [head], [file, *descriptors], flags)
        finally:
            os.close(file)
    except BlockingIOError:
        raise Full from None
    except (BrokenPipeError, ConnectionResetError, TimeoutError):
        raise Gone from None


def send_packed(line: socket.socket, message: bytes) -> None:
    """Sends a message that `packed` has made, which is small, and behind which nothing stands.

    Args:
        line: The socket.
        message: Its head and its struct.

    Raises:
        Gone: There is nobody to take it.
    """
    try:
        line.send(message, _NO_SIGNAL)
    except (BrokenPipeError, ConnectionResetError, BlockingIOError, TimeoutError):
        raise Gone from None


# Not by `socket.send_fds` and `recv_fds`, which pass no flags on.


def _send(line: socket.socket, parts: Sequence[bytes | memoryview], descriptors: Sequence[int], flags: int) -> None:
    if not descriptors:
        line.sendmsg(parts, (), flags)
        return
    with_it = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]
    for _ in range(_MOST_RETRIES):
        try:
            line.sendmsg(parts, with_it, flags)
        except OSError as problem:
            if problem.errno != ETOOMANYREFS:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return
    raise Gone


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
    flags = _CLOEXEC if waits else _CLOEXEC | _DONT_WAIT
    try:
        data, descriptors, told = _receive(line, _HEAD.size + MOST_INLINE_BYTES, most_descriptors + 1, flags)
    except BlockingIOError:
        return None
    except (ConnectionResetError, TimeoutError):
        raise Gone from None
    if not data and not descriptors:
        raise Gone
    return _unpacked(data, descriptors, told, decoder, (most_bytes, most_blob, most_descriptors))


def unpacked(data: bytes, decoder: msgspec.msgpack.Decoder[_Message]) -> _Message:
    """Returns what a message says, behind which nothing stands, and with which nothing comes.

    Args:
        data: The message.
        decoder: What messages there may be.

    Raises:
        Garbled: It is none.
    """
    return _unpacked(data, [], 0, decoder, (MOST_ORDER_BYTES, 0, 0))[0]


def _unpacked(
    data: bytes,
    descriptors: list[int],
    told: int,
    decoder: msgspec.msgpack.Decoder[_Message],
    most: tuple[int, int, int],
) -> tuple[_Message, bytes, tuple[int, ...]]:
    """Takes a message apart; what came with it is closed where that raises.

    Args:
        data: What was received.
        descriptors: What came with it.
        told: What the system says of it.
        decoder: What messages there may be.
        most: How many bytes a struct may have, how many may stand behind it, and how many descriptors come with it.
    """
    most_bytes, most_blob, most_descriptors = most
    taken = list(descriptors)
    try:
        if told & _CUT_OFF or len(data) < _HEAD.size:
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
