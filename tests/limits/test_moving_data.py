"""What one call moves, where it may stand, and what it counts as: quotas cannot be passed by choosing addresses.

Holds P-GUARD-4 and P-GUARD-5.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade.guard import guard
from stockade.policy import Limits, Policy
from tests._examples import part
from tests.conftest import wat
from tests.limits._guests import (
    ALL_RIGHTS,
    CREAT,
    EDQUOT,
    EFBIG,
    FOLLOW,
    MOUNT,
    SUCCESS,
    TRUNC,
    Script,
    files_policy,
    kinds,
    tree,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("everywhere")

_IO_MAX = guard().layout.constants["IO_MAX"]
_END = 128 << 16
"""Where the script player's memory ends."""


def at_zero(size: int) -> Script:
    """A script in whose memory an array of one buffer stands at address 0."""
    return Script(low=struct.pack("<II", 256, size))


# -- no address means something else ---------------------------------------------


@pytest.mark.parametrize("call", ["fd_write", "fd_pwrite"])
def test_buffers_at_address_zero_are_held_to_every_limit(tmp_path: Path, call: str) -> None:
    """The attack: the array of buffers stands at address 0, which a guard might take for "there is none"."""
    script = at_zero(100)
    fd = script.open("new", CREAT)
    offset = () if call == "fd_write" else (0,)
    for _ in range(3):
        script.call(call, fd, 0, 1, *offset, script.cell().address)
    played = script.play(files_policy(tmp_path, write_bytes=150, file_size=1000))

    assert played.errnos == [SUCCESS, SUCCESS, EDQUOT, EDQUOT]
    assert played.report.usage.written_bytes == 100
    assert kinds(played.report.violations) == ["write_bytes"]
    assert (tmp_path / "new").stat().st_size == 100


def test_buffers_at_address_zero_cannot_make_a_file_too_large(tmp_path: Path) -> None:
    """The attack: the same far behind the end of the file, for a sparse giant."""
    script = at_zero(1)
    fd = script.open("new", CREAT)
    script.call("fd_pwrite", fd, 0, 1, 10**11, script.cell().address)
    played = script.play(files_policy(tmp_path, file_size=100))

    assert played.errnos == [SUCCESS, EFBIG]
    assert (tmp_path / "new").stat().st_size == 0


def test_reading_into_buffers_at_address_zero_is_counted(tmp_path: Path) -> None:
    """The attack: the same for reading."""
    (tmp_path / "data").write_bytes(bytes(1000))
    script = at_zero(100)
    fd = script.open("data")
    for _ in range(3):
        script.call("fd_read", fd, 0, 1, script.cell().address)
    played = script.play(files_policy(tmp_path, read_bytes=150))

    assert played.errnos == [SUCCESS, SUCCESS, SUCCESS, EDQUOT]
    assert played.report.usage.read_bytes == 150


@pytest.mark.parametrize("offset", [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1])
def test_no_offset_stands_for_the_files_own_position(tmp_path: Path, offset: int) -> None:
    """The attack: an offset that a guard might take for "where the file is"."""
    (tmp_path / "data").write_bytes(b"0123456789")
    script = Script()
    fd = script.open("data", rights=1 << 1 | 1 << 6)
    script.seek(fd, 5)
    taken = script.pread(fd, 3, offset)
    script.pwrite(fd, b"x", offset)
    position = script.cell()
    script.call("fd_tell", fd, position.address)
    played = script.play(files_policy(tmp_path, file_size=20, read_bytes=100))

    assert played.number(position, 8) == 5
    assert played.number(taken) == (3 if offset < 10 else 0)
    assert (tmp_path / "data").stat().st_size == 10


# -- one call moves a bounded amount ---------------------------------------------


def test_one_call_moves_at_most_so_much(tmp_path: Path) -> None:
    """The attack: one read or write of all memory, which no deadline interrupts. It is short, as POSIX allows."""
    (tmp_path / "data").write_bytes(bytes(2 * _IO_MAX))
    script = Script()
    fd = script.open("data", rights=1 << 1 | 1 << 6)
    buffer = 1 << 20
    iovec = script.iovec((buffer, 4 * _IO_MAX))
    counts = [script.cell() for _ in range(4)]
    for count in counts[:2]:
        script.call("fd_read", fd, iovec, 1, count.address)
    script.seek(fd, 0)
    for count in counts[2:]:
        script.call("fd_write", fd, iovec, 1, count.address)
    played = script.play(files_policy(tmp_path))

    assert played.errnos == [SUCCESS] * 6
    assert [played.number(count) for count in counts] == [_IO_MAX] * 4
    assert (played.report.usage.read_bytes, played.report.usage.written_bytes) == (2 * _IO_MAX, 2 * _IO_MAX)


def test_moving_bytes_uses_fuel(tmp_path: Path) -> None:
    """The attack: work that the host does for nothing. Reading a megabyte costs more than reading a byte."""
    (tmp_path / "data").write_bytes(bytes(_IO_MAX))
    spent = []
    for size in (1, _IO_MAX):
        script = Script()
        fd = script.open("data")
        script.call("fd_read", fd, script.iovec((1 << 20, size)), 1, script.cell().address)
        spent.append(script.play(files_policy(tmp_path, fuel=10_000_000)).report.usage.fuel or 0)

    assert spent[1] - spent[0] >= _IO_MAX // 256


def test_a_large_folder_is_listed_whole_by_a_large_buffer(tmp_path: Path) -> None:
    """A buffer beyond what one native call fills is filled in pieces, and no entry is lost or told twice."""
    names = {f"{number:04}" + "n" * 200 for number in range(6000)}
    for name in names:
        (tmp_path / name).touch()
    script = Script()
    used, buffer = script.cell(), 1 << 20
    script.call("fd_readdir", MOUNT, buffer, 3 << 20, 0, used.address)
    image, start, errnos, count = script.image()
    with stockade.Sandbox(files_policy(tmp_path)).open(_player()) as session:
        session.write_memory(0, image)
        session.call("play", start, errnos, count).check()
        size = int.from_bytes(session.read_memory(used.address, 4), "little")
        listing = session.read_memory(buffer, size)

    found, at = [], 0
    while at < size:
        length, _, padding = struct.unpack_from("<IB3s", listing, at + 16)
        assert padding == bytes(3)
        found.append(listing[at + 24 : at + 24 + length].decode())
        at += 24 + length
    assert _IO_MAX < size < 3 << 20
    assert len(found) == len(set(found)) == 6002
    assert set(found) == {".", "..", *names}


def _player() -> stockade.Module:
    from tests.limits._guests import player

    return player()


# -- what a file grows by is written ---------------------------------------------


def test_gaps_count_as_written(tmp_path: Path) -> None:
    """The attack: one byte in every 4,096 takes as much of the disk as all of them."""
    script = Script()
    fd = script.open("new", CREAT)
    for block in range(50):
        script.pwrite(fd, b"x", block * 4096 + 4095)
    played = script.play(files_policy(tmp_path, write_bytes=10 * 4096, file_size=1 << 30))

    assert played.errnos == [SUCCESS] * 11 + [EDQUOT] * 40
    assert played.report.usage.written_bytes == 10 * 4096
    assert (tmp_path / "new").stat().st_size == 10 * 4096


def test_a_size_that_is_set_counts_as_written(tmp_path: Path) -> None:
    """The attack: a file that is made long without being written."""
    script = Script()
    fd = script.open("new", CREAT)
    script.call("fd_filestat_set_size", fd, 1000)
    script.call("fd_filestat_set_size", fd, 400)
    script.call("fd_filestat_set_size", fd, 900)
    script.call("fd_filestat_set_size", fd, 2000)
    played = script.play(files_policy(tmp_path, write_bytes=1500))

    assert played.errnos == [SUCCESS] * 4 + [EDQUOT]
    assert played.report.usage.written_bytes == 1500
    assert (tmp_path / "new").stat().st_size == 900


def test_what_is_written_within_a_file_counts_once(tmp_path: Path) -> None:
    """The twin: no gap is charged where there is none."""
    (tmp_path / "data").write_bytes(bytes(10_000))
    script = Script()
    fd = script.open("data")
    for offset in (9_000, 5_000, 9_999, 0):
        script.pwrite(fd, b"x", offset)
    played = script.play(files_policy(tmp_path, write_bytes=4))

    assert played.errnos == [SUCCESS] * 5
    assert played.report.usage.written_bytes == 4


@pytest.mark.parametrize("way", ["fd_filestat_set_size", "path_open"])
def test_what_was_cut_short_counts_when_it_grows_again(tmp_path: Path, way: str) -> None:
    """The attack: a file is cut short through one descriptor, and grows through another that knew how large it was."""
    (tmp_path / "file").write_bytes(bytes(1000))
    script = Script()
    fd = script.open("file")
    script.pwrite(fd, b"x", 999)
    if way == "path_open":
        script.open("file", TRUNC)
    else:
        script.call(way, script.open("file"), 0)
    script.pwrite(fd, b"x", 999)
    played = script.play(files_policy(tmp_path, write_bytes=1000))

    assert played.errnos[-1] == EDQUOT
    assert set(played.errnos[:-1]) == {SUCCESS}
    assert played.report.usage.written_bytes == 1
    assert (tmp_path / "file").stat().st_size == 0


# -- places for answers are looked at first ---------------------------------------------


@pytest.mark.parametrize("place", [_END - 3, _END, 0xFFFF_FFFC, 0xFFFF_FFFF, 4097, 4098], ids=hex)
def test_nothing_is_done_where_the_answer_has_no_place(tmp_path: Path, place: int) -> None:
    """The attack: an answer that has no place, so that the run ends after it was done and before it was counted."""
    (tmp_path / "data").write_bytes(b"0123456789")
    before = tree(tmp_path)
    for attack in ("open", "write", "pwrite"):
        script = Script()
        if attack == "open":
            script.call("path_open", MOUNT, FOLLOW, "new", CREAT, ALL_RIGHTS, ALL_RIGHTS, 0, place)
        else:
            fd = script.open("data", rights=1 << 1 | 1 << 6)
            offset = () if attack == "write" else (0,)
            script.call(f"fd_{attack}", fd, script.iovec((script.put(b"x"), 1)), 1, *offset, place)
        report = script.play(files_policy(tmp_path)).report
        assert report.outcome is stockade.Outcome.TRAP
        assert (report.usage.files_created, report.usage.written_bytes) == (0, 0)
        assert tree(tmp_path) == before


# -- waits ---------------------------------------------


WAITS = wat(
    """
    (module
      (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 0) "\\40\\00\\00\\00\\01\\00\\00\\00")
      (func (export "_start") (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 32)))))
    """
)


def test_a_wait_that_is_woken_again_and_again_ends() -> None:
    """The attack: a wait that is woken for nothing shortly before its limit, so that what is left of it wraps round."""
    report = stockade.Sandbox(Policy(limits=Limits(idle_time=0.05, wall_time=20))).run(WAITS, stdin=lambda _: None)

    assert report.outcome is stockade.Outcome.IDLE
    (violation,) = report.violations
    assert (violation.kind, violation.subject, violation.limit, violation.action) == ("idle", "fd_read", 0.05, "stop")
    assert violation.observed is not None
    assert violation.observed >= 0.05
    assert report.usage.idle_seconds >= 0.05


# -- output that is counted is there ---------------------------------------------


OUTPUT = wat(
    """
    (module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 16)
      (data (i32.const 0) "\\40\\00\\00\\00\\a0\\bb\\0d\\00")
      (func $down (param $depth i32) (result i32)
        (if (result i32) (local.get $depth)
          (then (i32.add (i32.const 1) (call $down (i32.sub (local.get $depth) (i32.const 1)))))
          (else (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))))
      (func (export "print") (param $letter i32) (param $depth i32)
        (memory.fill (i32.const 64) (local.get $letter) (i32.const 900000))
        (drop (call $down (local.get $depth)))))
    """
)
"""Prints 900,000 equal letters at any depth of its stack."""


def test_output_of_a_run_that_ends_while_it_is_captured_is_what_was_captured() -> None:
    """The attack: a run that ends between counting output and keeping it makes the host read what is not there."""
    metered = Policy(limits=Limits(fuel=10_000_000))
    enough = stockade.Sandbox(metered).call(OUTPUT, "print", 65, 0).usage.fuel or 0
    for fuel in (*part(range(max(1, enough - 500), enough)), enough):
        report = stockade.Sandbox(Policy(limits=Limits(fuel=fuel))).call(OUTPUT, "print", 65, 0)
        assert report.stdout == b"A" * report.usage.stdout_bytes
    assert report.usage.stdout_bytes == 900_000


def test_output_of_an_earlier_call_is_never_told_for_a_later_one() -> None:
    """The attack: the same by a stack that is full, in a session whose earlier call has printed something else."""

    def told(depth: int) -> stockade.Report:
        with stockade.Sandbox().open(OUTPUT) as session:
            assert session.call("print", 65, 0).stdout == b"A" * 900_000
            return session.call("print", 66, depth)

    low, high = 1, 200_000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if told(middle).ok else (low, middle)
    for depth in range(low - 5, low + 15):
        report = told(depth)
        assert report.stdout == b"B" * report.usage.stdout_bytes
