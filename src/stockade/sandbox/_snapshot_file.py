"""Snapshots as files: written whole or not at all, and believed only where we have written them.

What a snapshot holds becomes a guest's memory as it is, so a file carries a keyed MAC under a secret of the user, as an
entry of the cache does, and is believed only after that was checked over a copy that nobody can change any more.
Whatever else lies at its path is refused in words.

A file is a line that says what it is, two MACs, the sizes of three parts, and these: what is told of the snapshot, the
contents of its memories, and the module. The first MAC is of the sizes and of what is told, the second of all. So of a
file that was written by somebody else, nothing is copied, however large it says that it is.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from mmap import PROT_READ, mmap
from typing import TYPE_CHECKING, Final

import msgspec

from stockade._text import printable
from stockade.engine import Extent, InstanceState, MemoryImage, SealedFile, wasmtime_version
from stockade.errors import EngineError, SnapshotError
from stockade.execution import GuestState
from stockade.guard import WEAVER_VERSION, guard
from stockade.modules import Module
from stockade.sandbox._snapshot import SNAPSHOT_MARK
from stockade.system import new_file, open_file, state_folder, user_secret

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

__all__ = ["read_snapshot", "write_snapshot"]

_MAGIC: Final = SNAPSHOT_MARK + b"2\n"
_MAC_BYTES: Final = 32
_SIZES: Final = struct.Struct("<QQQ")
_HEAD_BYTES: Final = len(_MAGIC) + 2 * _MAC_BYTES + _SIZES.size

_MOST_TOLD_BYTES: Final = 64 << 20
_PIECE_BYTES: Final = 1 << 20


class _Memory(msgspec.Struct, frozen=True):
    """A memory: its size; and of each stretch its start, its size and its place among all contents."""

    size_bytes: int
    extents: list[tuple[int, int, int]]


class _Told(msgspec.Struct, frozen=True):
    """What is told of a snapshot."""

    made_by: str
    module_name: str
    module_sha256: str
    started: bool
    globals: list[bytes]
    memories: list[_Memory]


def _made_by() -> str:
    """What a snapshot has to be taken and opened by: the guard, the weaver and the engine."""
    return f"guard {guard().digest}, weaver {WEAVER_VERSION}, wasmtime {wasmtime_version()}"


def write_snapshot(state: GuestState, path: Path, dir_fd: int | None = None) -> None:
    """Writes a snapshot, all or nothing; what was at the path is replaced.

    Args:
        state: What a guest held.
        path: Where to.
        dir_fd: An open folder that a relative path begins at; None for the current one.

    Raises:
        SnapshotError: It cannot be written there, or there is no secret to sign it by.
    """
    memories, offset = [], 0
    for image in state.instance.memories:
        extents = []
        for part in image.extents:
            extents.append((part.start, part.size, offset))
            offset += part.size
        memories.append(_Memory(image.size_bytes, extents))
    module = state.module
    told = msgspec.msgpack.encode(
        _Told(_made_by(), module.name, module.sha256, state.started, [*state.instance.globals], memories)
    )
    sizes = _SIZES.pack(len(told), offset, len(module.data))
    mac = hmac.new(_secret(), _MAGIC + sizes + told, hashlib.sha256)
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            with new_file(folder) as (temporary, file):
                file.write(_MAGIC + mac.digest() + bytes(_MAC_BYTES) + sizes + told)
                for piece in _contents(state.instance):
                    mac.update(piece)
                    file.write(piece)
                mac.update(module.data)
                file.write(module.data)
                file.seek(len(_MAGIC) + _MAC_BYTES)
                file.write(mac.digest())
                file.flush()
                os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as problem:
        raise SnapshotError(f"the snapshot cannot be written to {_shown(path)}: {problem.strerror}") from None


def _contents(state: InstanceState) -> Iterator[bytes]:
    """What is in the memories, in pieces."""
    for image in state.memories:
        for part in image.extents:
            for at in range(0, part.size, _PIECE_BYTES):
                yield os.pread(part.file.descriptor, min(_PIECE_BYTES, part.size - at), part.offset + at)


def read_snapshot(path: Path, module: Module | None) -> GuestState:
    """Reads a snapshot.

    Args:
        path: Where it is.
        module: The module that it has to be of; None for any.

    Raises:
        SnapshotError: There is none that can be believed, or it is of another module or release.
    """
    secret = _secret()
    try:
        with open_file(str(path)) as file:
            told, contents, wasm = _believed(file, secret, path)
    except SnapshotError:
        raise
    except (OSError, EngineError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise SnapshotError(f"the snapshot {_shown(path)} cannot be read: {reason}") from None
    if told.made_by != _made_by():
        raise SnapshotError(
            f"the snapshot {_shown(path)} was taken by another release ({told.made_by}; this is {_made_by()}): "
            "take it anew"
        )
    if module is not None and module.sha256 != told.module_sha256:
        raise SnapshotError(
            f"the snapshot {_shown(path)} is of another module ({told.module_name}, sha256 {told.module_sha256[:16]}…; "
            f"{module.name} is {module.sha256[:16]}…): take one of this module"
        )
    images = tuple(
        MemoryImage(
            memory.size_bytes,
            tuple(Extent(start, size, contents, offset) for start, size, offset in memory.extents),
        )
        for memory in told.memories
    )
    instance = InstanceState(images, tuple(told.globals))
    try:
        instance.check()
    except EngineError as problem:
        raise SnapshotError(f"the snapshot {_shown(path)} cannot be used: {problem}") from None
    return GuestState(module or Module(wasm, told.module_name, told.module_sha256), instance, told.started)


def _believed(file: FileIO, secret: bytes, path: Path) -> tuple[_Told, SealedFile, bytes]:
    """Returns what we have written: what is told, the contents of memories, and the module."""
    head = file.read(_HEAD_BYTES) or b""
    if not head.startswith(SNAPSHOT_MARK):
        raise SnapshotError(f"{_shown(path)} is not a snapshot of Stockade's")
    if not head.startswith(_MAGIC):
        raise SnapshotError(f"the snapshot {_shown(path)} is in a format that this release does not read: take it anew")
    sizes = head[-_SIZES.size :]
    status = os.fstat(file.fileno())
    if len(head) < _HEAD_BYTES or sum(_SIZES.unpack(sizes)) != status.st_size - _HEAD_BYTES:
        raise SnapshotError(f"the snapshot {_shown(path)} is not whole: it was cut short, or added to")
    told_size, size, module_size = _SIZES.unpack(sizes)
    if status.st_uid != os.geteuid() or told_size > _MOST_TOLD_BYTES:
        raise _not_ours(path)
    told = file.read(told_size) or b""
    macs = head[len(_MAGIC) : -_SIZES.size]
    mac = hmac.new(secret, _MAGIC + sizes + told, hashlib.sha256)
    if not hmac.compare_digest(mac.digest(), macs[:_MAC_BYTES]):
        raise _not_ours(path)
    contents = _copied(file, size)
    wasm = file.read(module_size) or b""
    if size:
        with mmap(contents.descriptor, size, prot=PROT_READ) as mapped, memoryview(mapped) as view:
            mac.update(view)
    mac.update(wasm)
    if not hmac.compare_digest(mac.digest(), macs[_MAC_BYTES:]):
        raise _not_ours(path)
    return msgspec.msgpack.decode(told, type=_Told), contents, wasm


def _copied(file: FileIO, size: int) -> SealedFile:
    """Copies a part of a file to where nobody can change it."""
    copy, left = SealedFile.new(), size
    while left > 0 and (copied := os.sendfile(copy.number, file.fileno(), None, left)):
        left -= copied
    os.ftruncate(copy.number, size)
    return SealedFile(copy)


def _not_ours(path: Path) -> SnapshotError:
    return SnapshotError(
        f"the snapshot {_shown(path)} is not believed: it was changed, or written by another user or on another "
        "machine. Take it anew"
    )


def _secret() -> bytes:
    folder = state_folder()
    if folder is None:
        raise SnapshotError("snapshots are signed by a secret, and there is no folder for it: set STOCKADE_STATE")
    try:
        return user_secret(folder)
    except EngineError as problem:
        raise SnapshotError(f"snapshots are signed by a secret, and there is none: {problem}") from None
    except OSError as problem:
        raise SnapshotError(
            f"snapshots are signed by a secret, and {folder} cannot be used: {problem.strerror}"
        ) from None


def _shown(path: Path) -> str:
    return printable(str(path))
