"""What fails anyway fails as under native WASI, whatever the policy would say of it; and is no violation."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade.policy import Limits, Policy
from tests.conftest import wat
from tests.limits._guests import (
    CREAT,
    DIRECTORY,
    EBADF,
    EEXIST,
    EINVAL,
    ENOENT,
    EPERM,
    EXCL,
    MOUNT,
    SUCCESS,
    Script,
    clock_subscription,
    files_policy,
    kinds,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("everywhere")

EISDIR, ENOTDIR = 31, 54
NOWHERE = 99

NOTHING_ALLOWED = {
    "create": False,
    "delete": False,
    "symlinks": False,
    "files_created": 0,
    "file_size": 0,
    "write_bytes": 0,
    "read_bytes": 0,
    "open_files": 0,
}


def call(name: str, *arguments: int | str) -> Callable[[Script], object]:
    return lambda script: script.call(name, *arguments)


def wrote(fd: int, call: str = "fd_write") -> Callable[[Script], object]:
    return lambda script: script.write(fd, b"x") if call == "fd_write" else script.pwrite(fd, b"x", 1 << 40)


FAILS: dict[str, tuple[Callable[[Script], object], int]] = {
    "make what is there": (call("path_create_directory", MOUNT, "file"), EEXIST),
    "make where nothing is": (call("path_create_directory", MOUNT, "no/where"), ENOENT),
    "make below a file": (call("path_create_directory", MOUNT, "file/where"), ENOTDIR),
    "make below what is not open": (call("path_create_directory", NOWHERE, "new"), EBADF),
    "open anew what is there": (lambda script: script.open("file", CREAT | EXCL), EEXIST),
    "open a file as a folder": (lambda script: script.open("file", DIRECTORY), ENOTDIR),
    "open what is not there": (lambda script: script.open("missing"), ENOENT),
    "open to create where nothing is": (lambda script: script.open("no/where", CREAT), ENOENT),
    "open below what is not open": (lambda script: script.open("file", fd=NOWHERE), EBADF),
    "link from what is not there": (call("path_link", MOUNT, 0, "missing", MOUNT, "new"), ENOENT),
    "link to what is there": (call("path_link", MOUNT, 0, "file", MOUNT, "file"), EEXIST),
    "link by a name that is there": (call("path_symlink", "file", MOUNT, "folder"), EEXIST),
    "link where nothing is": (call("path_symlink", "file", MOUNT, "no/where"), ENOENT),
    "remove what is not there": (call("path_unlink_file", MOUNT, "missing"), ENOENT),
    "remove a folder as a file": (call("path_unlink_file", MOUNT, "folder"), EISDIR),
    "remove a file as a folder": (call("path_remove_directory", MOUNT, "file"), ENOTDIR),
    "rename what is not there": (call("path_rename", MOUNT, "missing", MOUNT, "new"), ENOENT),
    "rename to where nothing is": (call("path_rename", MOUNT, "file", MOUNT, "no/where"), ENOENT),
    "write to what is not open": (wrote(NOWHERE), EBADF),
    "write to a folder": (wrote(MOUNT), EBADF),
    "write far behind what is no file": (wrote(MOUNT, "fd_pwrite"), EBADF),
    "read what is not open": (lambda script: script.read(NOWHERE, 1), EBADF),
    "read a folder": (lambda script: script.read(MOUNT, 1), EBADF),
    "set the size of what is not open": (call("fd_filestat_set_size", NOWHERE, 1 << 40), EBADF),
    "set the size of a folder": (call("fd_filestat_set_size", MOUNT, 1 << 40), EBADF),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file and a folder."""
    (tmp_path / "file").write_bytes(b"hello")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize("what", FAILS)
def test_what_fails_anyway_is_no_violation(folder: Path, what: str) -> None:
    """Where nothing is allowed, it fails as where everything is; even a policy that stops at violations goes on."""
    write, errno = FAILS[what]
    for limits in ({}, NOTHING_ALLOWED, {**NOTHING_ALLOWED, "on_violation": "stop"}):
        script = Script()
        write(script)
        played = script.play(files_policy(folder, **limits))  # type: ignore[arg-type]
        assert (played.errnos, played.report.violations) == ([errno], ())


@pytest.mark.parametrize("call", ["fd_write", "fd_pwrite"])
def test_writing_to_what_is_open_for_reading_is_no_violation(folder: Path, call: str) -> None:
    """It is no matter of limits, however far behind the end it would be."""
    script = Script()
    fd = script.open("file", rights=1 << 1)
    if call == "fd_write":
        script.seek(fd, 1 << 40)
        script.write(fd, b"x")
    else:
        script.pwrite(fd, b"x", 1 << 40)
    script.call("fd_filestat_set_size", fd, 1 << 40)
    played = script.play(files_policy(folder, file_size=10, write_bytes=10, on_violation="stop"))

    assert played.errnos[-2:] == [EBADF, EINVAL]
    assert played.report.violations == ()


def test_renaming_onto_itself_removes_nothing(folder: Path) -> None:
    """Neither by the same name nor by another one of the same file; over another file it does."""
    (folder / "again").hardlink_to(folder / "file")
    (folder / "other").write_bytes(b"other")
    script = Script()
    script.call("path_rename", MOUNT, "file", MOUNT, "file")
    script.call("path_rename", MOUNT, "file", MOUNT, "again")
    script.call("path_rename", MOUNT, "folder", MOUNT, "folder")
    played = script.play(files_policy(folder))
    assert (played.errnos, played.report.usage.files_deleted) == ([SUCCESS] * 3, 0)

    script.call("path_rename", MOUNT, "file", MOUNT, "other")
    played = script.play(files_policy(folder))
    assert (played.errnos, played.report.usage.files_deleted) == ([SUCCESS] * 4, 1)


@pytest.mark.parametrize(
    ("rights", "refused"),
    [
        pytest.param({"create": False, "delete": False}, "create", id="neither right"),
        pytest.param({"create": False}, "create", id="no right to create"),
        pytest.param({"delete": False}, "delete", id="no right to delete"),
        pytest.param({}, None, id="both rights"),
    ],
)
def test_renaming_needs_both_rights(folder: Path, rights: dict[str, bool], refused: str | None) -> None:
    """The attack: a guest that may neither make nor remove anything moves all of it to another name."""
    script = Script()
    script.call("path_rename", MOUNT, "file", MOUNT, "folder/file")
    played = script.play(files_policy(folder, **rights))  # type: ignore[arg-type]

    assert kinds(played.report.violations) == ([refused] if refused else [])
    assert (folder / "file").exists() == (refused is not None)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("fd_filestat_set_size", (0,)), ("fd_filestat_set_size", (1 << 40,)), ("fd_filestat_set_times", (1, 1, 1 | 4))],
)
@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_what_a_read_only_mount_refuses_is_a_violation(
    folder: Path, mode: str, name: str, arguments: tuple[int, ...]
) -> None:
    """By a descriptor as by a path. The twin: in another mount it is done, or fails for want of a right to write."""
    script = Script()
    fd = script.open("file", rights=1 << 1)
    script.call(name, fd, *arguments)
    script.call("path_filestat_set_times", MOUNT, 0, "file", 1, 1, 1 | 4)
    played = script.play(files_policy(folder, mode=mode))

    if mode == "ro":
        assert played.errnos == [SUCCESS, EPERM, EPERM]
        assert [(found.kind, found.call) for found in played.report.violations] == [
            ("path", name),
            ("path", "path_filestat_set_times"),
        ]
    else:
        assert played.errnos == [SUCCESS, EINVAL if name == "fd_filestat_set_size" else SUCCESS, SUCCESS]
        assert played.report.violations == ()


@pytest.mark.parametrize("to_write", [False, True])
def test_polling_what_is_read_only_for_writing_is_a_violation(folder: Path, to_write: bool) -> None:
    """It is refused as native WASI does it; for reading, it is ready."""
    script = Script()
    fd = script.open("file", rights=1 << 1)
    events = script.cell()
    subscription = script.put(struct.pack("<QB7xI28x", 7, 1 + to_write, 4))
    script.call("poll_oneoff", subscription, script.room(32), 1, events.address)
    script.close(fd)
    played = script.play(files_policy(folder, mode="ro"))

    assert played.errnos == [SUCCESS, EPERM if to_write else SUCCESS, SUCCESS]
    assert kinds(played.report.violations) == (["path"] if to_write else [])


WAITS = wat(
    """
    (module
      (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 8) "\\40\\00\\00\\00\\00\\00\\00\\00")
      (func (export "_start")
        (if (call $read (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 32)) (then (unreachable)))
        (if (call $read (i32.const 0) (i32.const 8) (i32.const 1) (i32.const 32)) (then (unreachable)))
        (if (i32.load (i32.const 32)) (then (unreachable)))))
    """
)


def test_reading_no_bytes_of_stdin_does_not_wait() -> None:
    """Of no buffer, and of one that is empty: there is nothing to wait for, though nothing is there yet."""
    report = stockade.Sandbox(Policy(limits=Limits(idle_time=0.1, wall_time=20.0))).run(WAITS, stdin=lambda _: None)
    assert report.outcome is stockade.Outcome.OK


@pytest.mark.parametrize("flags", [2, 3, 0x8000, 0xFFFF])
@pytest.mark.parametrize("clock", ["real", "coarse", "virtual", "none"])
def test_flags_of_a_wait_that_there_are_not_are_an_error(flags: int, clock: str) -> None:
    """Taken for a time or for how long, they would be a wait that nobody has asked for."""
    subscription = bytearray(clock_subscription(0))
    struct.pack_into("<H", subscription, 40, flags)
    script = Script()
    script.call("poll_oneoff", script.put(bytes(subscription)), script.room(32), 1, script.cell().address)
    played = script.play(Policy(clock=stockade.Clock(mode=clock)))  # type: ignore[arg-type]
    assert played.errnos == [EINVAL]
