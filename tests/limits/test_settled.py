"""Wherever a run ends, its report tells at least what was done.

A run can end at any instruction: out of fuel, out of stack at a depth that the guest chose, cancelled. Each of these
tests ends one at every place there is within a call, and compares the report with what then stands in the folder.
"""

from __future__ import annotations

import os
import struct
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stockade
from stockade import Outcome
from tests._examples import examples, part
from tests.conftest import wat
from tests.limits._guests import (
    ALL_RIGHTS,
    APPEND,
    CREAT,
    DIRECTORY,
    EXCL,
    MOUNT,
    TRUNC,
    Script,
    files_policy,
    player_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stockade.policy import Policy
    from stockade.report import Report

THOROUGH = "STOCKADE_EXAMPLES" in os.environ
"""Whether every place is tried, as `make thorough` asks for; otherwise, some of them."""

_FILLED = 300
"""Bytes of the file that every script finds."""


@cache
def guest() -> stockade.Module:
    """A guest that plays a script at any depth of its stack, and grows its memory and table."""
    player = player_text().replace('(func (export "play")', '(func $play (export "play")').rstrip().removesuffix(")")
    return wat(
        f"""{player}
      (table $grown 1 funcref)
      ;; Wide and narrow frames, so that every depth can be had, not only multiples of one frame.
      (func $wide (export "dive") (param $frames i32) (param $depth i32) (param $entry i32) (param $errno i32)
        (param $count i32) (local $room v128)
        (local.set $room (i32x4.splat (local.get $frames)))
        (if (local.get $frames)
          (then
            (call $wide (i32.sub (local.get $frames) (i32.const 1)) (local.get $depth) (local.get $entry)
              (local.get $errno) (local.get $count))
            (i64.store (i32.const 8) (i64x2.extract_lane 0 (local.get $room))))
          (else (call $dive (local.get $depth) (local.get $entry) (local.get $errno) (local.get $count)))))
      (func $dive (param $depth i32) (param $entry i32) (param $errno i32) (param $count i32)
        (if (local.get $depth)
          (then
            (call $dive (i32.sub (local.get $depth) (i32.const 1)) (local.get $entry) (local.get $errno)
              (local.get $count)))
          (else (call $play (local.get $entry) (local.get $errno) (local.get $count)))))
      (func (export "grow") (param $frames i32) (param $depth i32) (param $entry i32) (param $errno i32)
        (param $count i32)
        (call $grow (local.get $depth) (local.get $entry) (local.get $errno) (local.get $count)))
      (func $grow (param $depth i32) (param $entry i32) (param $errno i32) (param $count i32)
        (if (local.get $depth)
          (then
            (call $grow (i32.sub (local.get $depth) (i32.const 1)) (local.get $entry) (local.get $errno)
              (local.get $count)))
          (else
            (drop (memory.grow (i32.const 3)))
            (i32.store (local.get $errno) (i32.const 1))
            (drop (table.grow $grown (ref.null func) (i32.const 11)))
            (i32.store (local.get $errno) (i32.const 2)))))
    )
    """
    )


class Seen(NamedTuple):
    """What stands in a folder.

    Attributes:
        names: How many names each inode has.
        sizes: How many bytes.
    """

    names: dict[int, int]
    sizes: dict[int, int]


def look(folder: Path) -> Seen:
    """Looks at a folder."""
    names: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        names[stat.st_ino] = names.get(stat.st_ino, 0) + 1
        if path.is_file() and not path.is_symlink():
            sizes[stat.st_ino] = stat.st_size
    return Seen(names, sizes)


def furnish(folder: Path) -> None:
    """What every script finds. Made anew for each run, from nothing."""
    (folder / "a").write_bytes(b"a" * _FILLED)
    (folder / "b").write_bytes(b"b" * 20)
    (folder / "d").mkdir()


def clear(folder: Path) -> None:
    """Removes everything from a folder."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


class GuestStopped(NamedTuple):
    """What became of a run.

    Attributes:
        report: Its report.
        memory: Its memory, where the script's data stand.
        memory_bytes: How large that really is.
        mark: How far the growing of memory and table came; of a script, its first errno.
    """

    report: Report
    memory: bytes
    memory_bytes: int
    mark: int


def run(
    script: Script,
    policy: Policy,
    *,
    frames: int = 0,
    depth: int = 0,
    export: str = "dive",
) -> GuestStopped:
    """Plays a script, at a depth of the stack."""
    image, start, errnos, count = script.image()
    with stockade.Sandbox(policy).open(guest()) as session:
        session.write_memory(0, image)
        report = session.call(export, frames, depth, start, errnos, count)
        instance = session._guest._instance
        assert instance is not None
        memory = instance.memory(b"memory")
        (mark,) = struct.unpack("<I", memory.read(errnos, 4))
        return GuestStopped(report, memory.read(0, start), memory.size_bytes, mark)


def check(before: Seen, after: Seen, ended: GuestStopped) -> None:
    """The report tells at least what was done."""
    usage = ended.report.usage
    grown = sum(max(size - before.sizes.get(inode, 0), 0) for inode, size in after.sizes.items())
    made = sum(max(count - before.names.get(inode, 0), 0) for inode, count in after.names.items())
    gone = sum(max(count - after.names.get(inode, 0), 0) for inode, count in before.names.items())
    assert usage.written_bytes >= grown
    assert usage.files_created >= made
    assert usage.files_deleted >= gone
    # What is read from the file, and random bytes that are not zero.
    assert usage.read_bytes >= ended.memory.count(b"a" * 16) * 16
    assert usage.memory_bytes >= ended.memory_bytes
    assert usage.files_open_peak <= usage.files_opened
    if ended.mark == 2 and "path_open" not in usage.calls:
        assert usage.table_elements >= 12


def _create(script: Script) -> None:
    script.open("new", CREAT)


def _create_only(script: Script) -> None:
    script.open("new", CREAT | EXCL)


def _create_folder(script: Script) -> None:
    script.call("path_create_directory", MOUNT, "e")


def _write(script: Script) -> None:
    script.write(script.open("new", CREAT), b"x" * 600)


def _append(script: Script) -> None:
    script.write(script.open("a", fdflags=APPEND), b"x" * 600)


def _write_beyond_the_end(script: Script) -> None:
    fd = script.open("a")
    script.pwrite(fd, b"x", 5000)
    script.pwrite(fd, b"x", 4000)


def _set_size(script: Script) -> None:
    fd = script.open("a")
    script.call("fd_filestat_set_size", fd, 7000)
    script.call("fd_filestat_set_size", fd, 3)
    script.call("fd_filestat_set_size", fd, 9000)


def _truncate_and_write(script: Script) -> None:
    fd = script.open("a", CREAT | TRUNC)
    script.write(fd, b"x" * 700)


def _unlink(script: Script) -> None:
    script.call("path_unlink_file", MOUNT, "a")


def _remove_folder(script: Script) -> None:
    script.call("path_remove_directory", MOUNT, "d")


def _rename_over(script: Script) -> None:
    script.call("path_rename", MOUNT, "a", MOUNT, "b")


def _link(script: Script) -> None:
    script.call("path_link", MOUNT, 0, "a", MOUNT, "again")


def _symlink(script: Script) -> None:
    script.call("path_symlink", "a", MOUNT, "pointer")


def _open(script: Script) -> None:
    script.open("a")
    script.open("d", DIRECTORY)
    script.open("no", rights=ALL_RIGHTS)


def _read(script: Script) -> None:
    fd = script.open("a")
    script.read(fd, 128)
    script.pread(fd, 1000, 64)


def _random(script: Script) -> None:
    script.call("random_get", script.room(9000), 9000)


SCRIPTS = (
    _create, _create_only, _create_folder, _write, _append, _write_beyond_the_end, _set_size, _truncate_and_write,
    _unlink, _remove_folder, _rename_over, _link, _symlink, _open, _read, _random,
)  # fmt: skip


def scripted(make: Callable[[Script], None]) -> Script:
    """A script."""
    script = Script()
    make(script)
    return script


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is made and emptied quickly."""
    quick = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=quick if quick.is_dir() else None) as name:
        yield Path(name)


def run_checked(script: Script, folder: Path, policy: Policy, **place: Any) -> Report:
    """Plays a script in a folder that holds what it finds, and compares."""
    furnish(folder)
    before = look(folder)
    try:
        ended = run(script, policy, **place)
        check(before, look(folder), ended)
    finally:
        clear(folder)
    return ended.report


@pytest.mark.parametrize("make", SCRIPTS, ids=lambda make: make.__name__.strip("_"))
def test_out_of_fuel_anywhere(folder: Path, make: Callable[[Script], None]) -> None:
    """Whatever unit of fuel is the last one: what was made, written, read or removed is in the report."""
    script = scripted(make)
    needed = run_checked(script, folder, files_policy(folder, fuel=10_000_000)).usage.fuel
    assert needed is not None
    for fuel in range(1, needed, 1 if THOROUGH else 1 + needed // examples(40)):
        report = run_checked(script, folder, files_policy(folder, fuel=fuel))
        assert report.outcome is Outcome.FUEL
    assert run_checked(script, folder, files_policy(folder, fuel=needed + 20)).ok


@pytest.mark.parametrize(
    "sizes", [(4,), pytest.param(range(6) if THOROUGH else (1, 4), marks=pytest.mark.slow)], ids=["one", "more"]
)
@pytest.mark.parametrize("make", part(SCRIPTS), ids=lambda make: make.__name__.strip("_"))
def test_out_of_stack_anywhere(folder: Path, make: Callable[[Script], None], sizes: Sequence[int]) -> None:
    """The attack: a guest goes so deep that the stack ends within the call that it makes then."""
    script, policy = scripted(make), files_policy(folder)
    outcomes = set()
    for frames in sizes:
        fits, does_not = 0, 1 << 18
        while does_not - fits > 1:
            middle = (fits + does_not) // 2
            if run_checked(script, folder, policy, frames=frames, depth=middle).ok:
                fits = middle
            else:
                does_not = middle
        for depth in range(fits, fits + 20):
            report = run_checked(script, folder, policy, frames=frames, depth=depth)
            outcomes.add((report.outcome, bool(report.usage.calls)))
    # From where all fits to where the guest does not come to its first call. Some frames are too large to end in
    # between, where the call needs little more than to be counted.
    assert outcomes >= {(Outcome.OK, True), (Outcome.STACK, True), (Outcome.STACK, False)}


def test_out_of_fuel_while_growing(folder: Path) -> None:
    """Memory and tables that have grown are in the report, whatever unit of fuel is the last one."""
    script = scripted(lambda script: script.call("sched_yield"))
    policy = files_policy(folder, fuel=10_000_000)
    needed = run(script, policy, export="grow").report.usage.fuel
    assert needed is not None
    marks = set()
    for fuel in part(range(1, needed + 20)):
        ended = run(script, files_policy(folder, fuel=fuel), export="grow")
        check(Seen({}, {}), Seen({}, {}), ended)
        marks.add((ended.report.outcome, ended.mark))
    assert marks == {(Outcome.FUEL, 0), (Outcome.FUEL, 1), (Outcome.FUEL, 2), (Outcome.OK, 2)}


@settings(max_examples=200 if THOROUGH else examples(25), suppress_health_check=[HealthCheck.too_slow])
@given(seconds=st.floats(0, 0.004), by_deadline=st.booleans())
def test_ended_at_any_moment(seconds: float, by_deadline: bool) -> None:
    """However a run is ended, and at whatever moment, its report tells at least what was done."""
    script = Script()
    for number in range(60):
        fd = script.open(f"new{number}", CREAT)
        script.write(fd, b"x" * 500)
        script.close(fd)
        script.call("path_link", MOUNT, 0, f"new{number}", MOUNT, f"again{number}")
    script.call("path_unlink_file", MOUNT, "a")
    image, start, errnos, count = script.image()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        furnish(folder)
        before = look(folder)
        policy = files_policy(folder, **({"wall_time": seconds + 0.001} if by_deadline else {}))
        with stockade.Sandbox(policy).open(guest()) as session:
            session.write_memory(0, image)
            canceller = threading.Timer(seconds, session.cancel)
            if not by_deadline:
                canceller.start()
            report = session.call("dive", 0, 0, start, errnos, count)
            canceller.cancel()
            instance = session._guest._instance
            assert instance is not None
            ended = GuestStopped(report, b"", instance.memory(b"memory").size_bytes, 0)
        assert report.outcome in (Outcome.OK, Outcome.CANCELLED, Outcome.TIMEOUT)
        check(before, look(folder), ended)
