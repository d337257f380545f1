"""Large reads and writes, whose data native WASI moves in the guest's memory: no address and no size makes it do more.

Each is done natively, too: memory and file must be as they are there. Holds P-GUARD-4.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import pytest
import wasmtime

import stockade
from stockade._wasi import MODULE
from stockade.engine import OUT_OF_FUEL, EngineFrame, Failure
from stockade.guard import guard
from stockade.policy import Mount, Policy
from tests.conftest import wat

if TYPE_CHECKING:
    from pathlib import Path

_LEAST = guard().layout.constants["FORWARD_MIN"]
_IO_MAX = guard().layout.constants["IO_MAX"]
_PAGES = 34
_END = _PAGES << 16
_FILE = bytes(range(1, 251)) * (_IO_MAX // 250 + 1)
_BUFFER = 1 << 17
_IOVEC = 4096
_CELL = 8192

_GUEST = f"""
(module
  (import "{MODULE}" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "{MODULE}" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "{MODULE}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") {_PAGES})
  (data (i32.const 16) "file")
  (func (export "open") (result i32)
    (if (call $open (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 4) (i32.const 0)
          (i64.const 0x1fffffff) (i64.const 0x1fffffff) (i32.const 0) (i32.const 32))
      (then (unreachable)))
    (i32.load (i32.const 32)))
  (func (export "read") (param i32 i32 i32 i32) (result i32)
    (call $read (local.get 0) (local.get 1) (local.get 2) (local.get 3)))
  (func (export "write") (param i32 i32 i32 i32) (result i32)
    (call $write (local.get 0) (local.get 1) (local.get 2) (local.get 3))))
"""

_GUARD_BYTES = guard().memory_bytes
"""How large the guard's memory is before a large copy."""

_PATTERN = b"what the guest has there: "


class _Told(NamedTuple):
    """What has become of a call: its errno, or None where it has trapped; the guest's memory; and the file."""

    errno: int | None
    memory: bytes
    file: bytes


def _iovecs(*buffers: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<II", address, size) for address, size in buffers)


def _folder(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "file").write_bytes(_FILE)
    return folder


def _policy(folder: Path, **limits: object) -> Policy:
    return Policy().replace(mounts=[Mount(str(folder), "/data", "rw")], **limits)


def _started() -> bytes:
    return (_PATTERN * (_END // len(_PATTERN) + 1))[:_END]


def _natively(tmp_path: Path, call: str, blocks: dict[int, bytes], args: tuple[int, int, int], fd: int | None) -> _Told:
    folder = _folder(tmp_path, "native")
    engine = wasmtime.Engine()
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    store = wasmtime.Store(engine)
    wasi = wasmtime.WasiConfig()
    wasi.preopen_dir(str(folder), "/data")
    store.set_wasi(wasi)
    exports = linker.instantiate(store, wasmtime.Module(engine, wasmtime.wat2wasm(_GUEST))).exports(store)
    memory, opened, function = exports["memory"], exports["open"], exports[call]
    assert isinstance(memory, wasmtime.Memory)
    assert isinstance(opened, wasmtime.Func)
    assert isinstance(function, wasmtime.Func)
    found = opened(store)
    memory.write(store, _started(), 0)
    for address, content in blocks.items():
        memory.write(store, content, address)
    errno: int | None = None
    try:
        errno = function(store, found if fd is None else fd, *args)
    except wasmtime.Trap:
        pass
    except wasmtime.WasmtimeError:
        # What native WASI finds out of bounds.
        pass
    return _Told(errno, bytes(memory.read(store, 0, _END)), (folder / "file").read_bytes())


def _guarded(
    tmp_path: Path,
    call: str,
    blocks: dict[int, bytes],
    args: tuple[int, int, int],
    fd: int | None = None,
    *,
    copies: bool = False,
    **limits: object,
) -> tuple[_Told, stockade.Report]:
    folder = _folder(tmp_path, "guarded")
    with stockade.Sandbox(_policy(folder, **limits)) as box, box.open(wat(_GUEST)) as session:
        guest = session._guest
        found = session.call("open").check().value
        memory = guest.memory(b"memory")
        memory.write(0, _started())
        for address, content in blocks.items():
            memory.write(address, content)
        state = guest._state
        assert state is not None
        assert state.get("forwards", "<I") == 1
        seen = memory.view(0, _END)
        report = session.call(call, found if fd is None else fd, *args)
        errno = report.value if report.ok else None
        assert errno is None or isinstance(errno, int)
        copied = report.ok and state.memory.size_bytes > _GUARD_BYTES
        assert copied == copies
        return _Told(errno, bytes(seen) if report.ok else b"", (folder / "file").read_bytes()), report


_ALIKE: dict[str, tuple[dict[int, bytes], tuple[int, int, int]]] = {
    "plain": ({_IOVEC: _iovecs((_BUFFER, _IO_MAX))}, (_IOVEC, 1, _CELL)),
    "least": ({_IOVEC: _iovecs((_BUFFER, _LEAST))}, (_IOVEC, 1, _CELL)),
    "one less": ({_IOVEC: _iovecs((_BUFFER, _LEAST - 1))}, (_IOVEC, 1, _CELL)),
    "the buffer covers its iovec": ({_BUFFER + 4096: _iovecs((_BUFFER, _IO_MAX))}, (_BUFFER + 4096, 1, _CELL)),
    "the buffer covers the count": ({_IOVEC: _iovecs((_BUFFER, _IO_MAX))}, (_IOVEC, 1, _BUFFER + 40_000)),
    "the buffer begins at the count": ({_IOVEC: _iovecs((_BUFFER, _IO_MAX))}, (_IOVEC, 1, _BUFFER)),
    "it covers both, and they are one": (
        {_BUFFER + 4096: _iovecs((_BUFFER, _IO_MAX))},
        (_BUFFER + 4096, 1, _BUFFER + 4096),
    ),
    "the count is the address of the iovec": ({_IOVEC: _iovecs((_BUFFER, _IO_MAX))}, (_IOVEC, 1, _IOVEC)),
    "the count is the length of the iovec": ({_IOVEC: _iovecs((_BUFFER, _IO_MAX))}, (_IOVEC, 1, _IOVEC + 4)),
    "empty buffers come first": (
        {_IOVEC: _iovecs((0, 0), (_END - 1, 0), (_BUFFER, _IO_MAX))},
        (_IOVEC, 3, _CELL),
    ),
    "larger ones come behind": (
        {_IOVEC: _iovecs((_BUFFER, _LEAST), (_BUFFER, _IO_MAX), (0, _IO_MAX))},
        (_IOVEC, 3, _CELL),
    ),
    "nothing but empty buffers": ({_IOVEC: _iovecs((_BUFFER, 0), (_BUFFER, 0))}, (_IOVEC, 2, _CELL)),
    "no buffers": ({}, (_IOVEC, 0, _CELL)),
    "an iovec at address zero": ({0: _iovecs((_BUFFER, _IO_MAX))}, (0, 1, _CELL)),
    "a buffer at address zero": ({_BUFFER: _iovecs((0, _LEAST))}, (_BUFFER, 1, _END - 4)),
    "a buffer up to the end": ({_IOVEC: _iovecs((_END - _IO_MAX, _IO_MAX))}, (_IOVEC, 1, _CELL)),
    "an iovec at the end": ({_END - 8: _iovecs((_BUFFER, _LEAST))}, (_END - 8, 1, _CELL)),
    "a count at the end": ({_IOVEC: _iovecs((_BUFFER, _IO_MAX))}, (_IOVEC, 1, _END - 4)),
}


@pytest.mark.parametrize("call", ["read", "write"])
@pytest.mark.parametrize("case", _ALIKE)
def test_memory_and_file_are_as_they_are_natively(tmp_path: Path, call: str, case: str) -> None:
    """The attack: buffers, iovecs and counts that lie in each other, or at the ends of memory."""
    blocks, args = _ALIKE[case]
    guarded, _ = _guarded(tmp_path, call, blocks, args, copies=case == "one less")

    assert guarded == _natively(tmp_path, call, blocks, args, None)


@pytest.mark.parametrize("call", ["read", "write"])
@pytest.mark.parametrize(
    ("blocks", "args"),
    [
        ({_IOVEC: _iovecs((_END - _IO_MAX + 1, _IO_MAX))}, (_IOVEC, 1, _CELL)),
        ({_IOVEC: _iovecs((0xFFFF_FFFF, _LEAST))}, (_IOVEC, 1, _CELL)),
        ({_IOVEC: _iovecs((_BUFFER, 0xFFFF_FFFF))}, (_IOVEC, 1, _CELL)),
        ({_IOVEC: _iovecs((_BUFFER, _LEAST))}, (_IOVEC, 1, _END - 3)),
        ({_IOVEC: _iovecs((_BUFFER, _LEAST))}, (_IOVEC, 1, _CELL + 1)),
        ({_IOVEC: _iovecs((_BUFFER, _LEAST))}, (_IOVEC, 1, 0xFFFF_FFFC)),
        ({_END - 4: struct.pack("<I", _BUFFER)}, (_END - 4, 1, _CELL)),
        ({_IOVEC + 1: _iovecs((_BUFFER, _LEAST))}, (_IOVEC + 1, 1, _CELL)),
    ],
)
def test_what_leads_out_of_memory_traps_and_nothing_is_moved(
    tmp_path: Path, call: str, blocks: dict[int, bytes], args: tuple[int, int, int]
) -> None:
    """The attack: a buffer, an iovec or a count that is not inside the guest's memory, or not aligned."""
    guarded, report = _guarded(tmp_path, call, blocks, args)

    assert report.outcome == "trap"
    assert report.trap is not None
    assert report.trap.code == "memory_out_of_bounds"
    assert (report.usage.read_bytes, report.usage.written_bytes) == (0, 0)
    assert guarded.file == _FILE
    # Native WASI says ENOMEM of what nobody can have.
    assert _natively(tmp_path, call, blocks, args, None).errno in (None, 48)


@pytest.mark.parametrize(
    ("call", "fd"), [("write", 0), *((call, fd) for call in ("read", "write") for fd in (3, 99, -1))]
)
def test_what_is_no_file_is_left_alone(tmp_path: Path, call: str, fd: int) -> None:
    """The attack: large buffers for a folder, and for descriptors that are nobody's."""
    blocks, args = {_IOVEC: _iovecs((_BUFFER, _IO_MAX))}, (_IOVEC, 1, _CELL)
    guarded, _ = _guarded(tmp_path, call, blocks, args, fd)

    assert guarded == _natively(tmp_path, call, blocks, args, fd)
    assert guarded.errno == 8


def test_more_than_one_call_moves_is_still_cut(tmp_path: Path) -> None:
    """The attack: a buffer of two MiB, which native WASI would fill."""
    guarded, report = _guarded(
        tmp_path, "read", {_IOVEC: _iovecs((65_536, 2 * _IO_MAX))}, (_IOVEC, 1, _CELL), copies=True
    )

    assert report.usage.read_bytes == _IO_MAX
    assert struct.unpack_from("<I", guarded.memory, _CELL) == (_IO_MAX,)
    assert guarded.memory[65_536 : 65_536 + _IO_MAX] == _FILE[:_IO_MAX]
    assert guarded.memory[65_536 + _IO_MAX :] == _started()[65_536 + _IO_MAX :]


@pytest.mark.parametrize(
    "limits", [{"read_bytes": _LEAST + 1000}, {"read_rate": _LEAST + 1000}], ids=["read_bytes", "read_rate"]
)
def test_reads_keep_to_quota_and_rate(tmp_path: Path, limits: dict[str, int]) -> None:
    """The attack: a buffer that is larger than what may be read is filled as far as that, and not beyond."""
    blocks = {_IOVEC: _iovecs((_BUFFER, _IO_MAX))}
    guarded, report = _guarded(tmp_path, "read", blocks, (_IOVEC, 1, _CELL), copies=True, **limits)

    most = _LEAST + 1000
    assert report.usage.read_bytes == most
    assert guarded.memory[_BUFFER : _BUFFER + most] == _FILE[:most]
    assert guarded.memory[_BUFFER + most :] == _started()[_BUFFER + most :]


@pytest.mark.parametrize(
    ("limits", "errno"), [({"write_bytes": _LEAST}, 0), ({"file_size": _LEAST}, 22)], ids=["write_bytes", "file_size"]
)
def test_writes_keep_to_quota_and_size(tmp_path: Path, limits: dict[str, int], errno: int) -> None:
    """The attack: a write of more than a file may have, or than may be written."""
    blocks = {_IOVEC: _iovecs((_BUFFER, _LEAST + 1))}
    guarded, report = _guarded(tmp_path, "write", blocks, (_IOVEC, 1, _CELL), **limits)

    assert guarded.errno == errno or (errno == 0 and guarded.errno == 19)
    assert guarded.file == _FILE
    assert report.usage.written_bytes == 0
    assert [violation.kind for violation in report.violations] == list(limits)


def test_a_read_at_the_end_moves_nothing(tmp_path: Path) -> None:
    """Its twin reads all of the file before."""
    folder = _folder(tmp_path, "guarded")
    with stockade.Sandbox(_policy(folder)) as box, box.open(wat(_GUEST)) as session:
        fd = session.call("open").check().value
        memory = session._guest.memory(b"memory")
        memory.write(_IOVEC, _iovecs((_BUFFER, _IO_MAX)))
        taken = []
        for _ in range(3):
            session.call("read", fd, _IOVEC, 1, _CELL).check()
            taken.append(struct.unpack("<I", memory.read(_CELL, 4))[0])
            memory.write(_BUFFER, bytes(1000))

        assert taken == [_IO_MAX, len(_FILE) - _IO_MAX, 0]
        assert memory.read(_BUFFER, 1000) == bytes(1000)


def test_moving_bytes_uses_fuel_where_it_is_metered(tmp_path: Path) -> None:
    """The attack: a limit of fuel is passed by way of native WASI. So nothing is forwarded under one."""
    folder = _folder(tmp_path, "guarded")
    with stockade.Sandbox(_policy(folder, fuel=10**9)) as box, box.open(wat(_GUEST)) as session:
        fd = session.call("open").check().value
        session._guest.memory(b"memory").write(_IOVEC, _iovecs((_BUFFER, _IO_MAX)))
        report = session.call("read", fd, _IOVEC, 1, _CELL).check()
        state = session._guest._state
        assert state is not None
        assert state.get("forwards", "<I") == 0
        assert report.usage.fuel is not None
        assert report.usage.fuel > _IO_MAX


def test_frames_of_the_forwarder_are_left_out_and_no_others(tmp_path: Path) -> None:
    """Its functions have numbers that mean functions of the guest in the guest's module."""
    folder = _folder(tmp_path, "guarded")
    with stockade.Sandbox(_policy(folder)) as box, box.open(wat(_GUEST)) as session:
        instance = session._guest._instance
        assert instance is not None
        caller = min(session._guest._plan.program.woven.forwarding_functions)
        its, thunk, own = EngineFrame(2, "read", 0), EngineFrame(caller, None, 0), EngineFrame(3, "read", 0)

        told = instance._told(Failure(OUT_OF_FUEL, "", (its, thunk, own)))
        assert told.frames == (thunk, own)
        for frames in ((), (thunk,), (own, own), (thunk, own), (own,)):
            assert instance._told(Failure(OUT_OF_FUEL, "", frames)).frames == frames


def test_other_guests_have_no_forwarder(tmp_path: Path) -> None:
    """Runs, and sessions without a mount: an empty slot is never called."""
    folder = _folder(tmp_path, "guarded")
    with stockade.Sandbox() as box, box.open(wat(_GUEST)) as session:
        state = session._guest._state
        assert state is not None
        assert state.get("forwards", "<I") == 0
    with stockade.Sandbox(_policy(folder)) as box:
        report = box.call(wat(_GUEST), "open")
        assert report.ok
