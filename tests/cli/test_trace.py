"""`stockade trace`: lines as strace writes them, a table, JSON lines; and nothing that could steer a terminal.

Holds P-TRACE-1 and P-TRACE-4.
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests._commands import ran
from tests.conftest import program_path

if TYPE_CHECKING:
    from pathlib import Path

GUEST = rb"""(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\08\00\00\00\06\00\00\00hello\n")
  (data (i32.const 64) "\1b[2J")
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))
    (drop (call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 4) (i32.const 1) (i64.const 64)
      (i64.const 0) (i32.const 0) (i32.const 32)))
    (call $exit (i32.const 3))))"""


def traced(*args: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """The command, done."""
    done = ran(["trace", *args], timeout=timeout)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def plain(text: str) -> list[str]:
    """Lines without durations."""
    return re.sub(r" <[0-9.]+>$", "", text, flags=re.MULTILINE).splitlines()


@pytest.fixture(params=["inprocess", "process"])
def isolation(request: pytest.FixtureRequest) -> str:
    """Where the guest runs."""
    name: str = request.param
    return name


@pytest.fixture
def guest(tmp_path: Path) -> str:
    """The path of a guest that writes, opens and leaves."""
    path = tmp_path / "guest.wat"
    path.write_bytes(GUEST)
    return str(path)


def test_lines(guest: str, isolation: str) -> None:
    """On stderr, and the guest's output and exit status as they are."""
    done = traced("--isolation", isolation, guest)
    assert done.stdout == "hello\n"
    assert done.returncode == 3
    assert plain(done.stderr) == [
        r'fd_write(1, "hello\n") = 6',
        r'path_open(3, 0, "\x1b[2J", CREAT, 0x40, 0x0, 0, 0x20) = -1 EBADF',
        "proc_exit(3) = ?",
        "+++ exited with 3 +++",
    ]


def test_filters_files_and_sizes(guest: str, tmp_path: Path) -> None:
    """-e, -o and -s."""
    out = tmp_path / "out"
    done = traced("-e", "trace=fd_write,proc", "-s", "2", "-o", str(out), guest)
    assert done.stderr == ""
    assert plain(out.read_text()) == ['fd_write(1, "he"...) = 6', "proc_exit(3) = ?", "+++ exited with 3 +++"]


def test_a_table(guest: str) -> None:
    """-c counts calls and errors."""
    done = traced("-c", guest)
    rows = [line.split() for line in done.stderr.splitlines()]
    assert rows[0] == ["%", "time", "seconds", "usecs/call", "calls", "errors", "call"]
    counted = {row[-1]: row[3:-1] for row in rows[2:] if len(row) > 3 and "-" not in row[0]}
    assert counted == {"fd_write": ["1"], "path_open": ["1", "1"], "proc_exit": ["1"], "total": ["3", "1"]}


def test_lines_of_json(guest: str) -> None:
    """One object for each call, and nothing else."""
    done = traced("--json", guest)
    calls = [json.loads(line) for line in done.stderr.splitlines()]
    assert [call["call"] for call in calls] == ["fd_write", "path_open", "proc_exit"]
    assert calls[1]["arguments"]["path"] == "\x1b[2J"
    assert calls[1]["arguments"]["oflags"] == ["CREAT"]
    assert calls[1]["errno"] == "EBADF"
    assert not calls[2]["has_returned"]
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-e", "fd_wirte"], "Trace.calls has 'fd_wirte', which is no WASI call, group or pattern of calls"),
        (["-c", "--json"], "-c prints a table, and --json calls: give one of them"),
        (["-o", "/nowhere/at/all"], "/nowhere/at/all cannot be written: No such file or directory"),
        (["-s", "5000"], "5000 is not in the range 0<=x<=4096"),
    ],
)
def test_mistakes(args: list[str], message: str, guest: str) -> None:
    """They are told before anything runs."""
    done = traced(*args, guest)
    assert done.returncode == 125
    assert message in done.stderr
    assert done.stdout == ""


def test_a_file_that_runs_full_ends_the_run(guest: str) -> None:
    """What cannot be written is told, and the guest is not left running."""
    done = traced("-o", "/dev/full", guest)
    assert done.returncode == 125
    assert "cannot be written: No space left on device" in done.stderr


CPYTHON_READS = """\
path_open(3, SYMLINK_FOLLOW, "a.txt", 0, 0xfb7febe, 0xff7ffff, 0) = 4
fd_filestat_get(4, {REGULAR_FILE, size=13}) = 0
fd_fdstat_get(4, {REGULAR_FILE, 0}) = 0
fd_seek(4, 0, SEEK_CUR) = 0
fd_tell(4) = 0
fd_filestat_get(4, {REGULAR_FILE, size=13}) = 0
fd_read(4, "content of a\\n") = 13
fd_read(4, "") = 0
fd_close(4) = 0
fd_fdstat_get(3, {DIRECTORY, 0}) = 0
path_open(3, SYMLINK_FOLLOW, "none", 0, 0xfb7febe, 0xff7ffff, 0, ADDRESS) = -1 ENOENT
fd_write(1, "content of a\\n\\n") = 14
+++ exited with 0 +++
"""


@pytest.mark.slow
def test_cpython_opens_a_file(tmp_path: Path) -> None:
    """As strace would tell it of a native one. Holds P-TRACE-4."""
    (tmp_path / "a.txt").write_text("content of a\n")
    code = """
print(open('/data/a.txt').read())
try: open('/data/none')
except FileNotFoundError: pass
"""
    done = traced(
        *("-e", "fd,path,proc", "-v", f"{tmp_path}:/data", str(program_path("python")), "-c", code), timeout=600
    )
    assert done.returncode == 0, done.stderr
    lines = plain(done.stderr)
    told = lines[next(place for place, line in enumerate(lines) if line.startswith("path_open")) :]
    assert re.sub(r"0x[0-9a-f]+(?=\) = -1)", "ADDRESS", "\n".join(told) + "\n") == CPYTHON_READS
