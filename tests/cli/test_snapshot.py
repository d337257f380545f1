"""`stockade snapshot`, and `stockade run` of what it has written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from stockade import Snapshot
from stockade.cli._commands import stockade as command_line
from tests.cli.test_run import stockade as real_process

if TYPE_CHECKING:
    from pathlib import Path

COUNTER = """
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 2)
  (global $count (mut i32) (i32.const 0))
  (func (export "add") (param i32) (result i32)
    (global.set $count (i32.add (global.get $count) (local.get 0)))
    (global.get $count))
  (func (export "fail") unreachable)
  (func (export "_start")
    (drop (call $args (i32.const 0) (i32.const 4)))
    (call $exit (i32.add (global.get $count) (i32.load (i32.const 0))))))
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "counter.wat"
    path.write_text(COUNTER)
    return path


def process(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command in a process of its own."""
    done = real_process(*arguments)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command_line, [*map(str, arguments)], standalone_mode=False)


def test_a_snapshot_is_taken_and_run(module: Path, tmp_path: Path) -> None:
    file = tmp_path / "counter.snapshot"
    taken = process("snapshot", "--invoke", "add", str(module), str(file), "5")
    assert taken == (0, f"{file}: counter.wat, 131,072 bytes of memory, 0 of them kept\n", "")
    assert process("run", "--invoke", "add", str(file), "1")[1] == "6\n"
    # A command, with arguments of its own.
    assert process("run", str(file), "a", "b")[0] == 5 + 3
    # And of a snapshot, another one.
    assert process("snapshot", "--invoke", "add", str(file), str(file), "100")[0] == 0
    assert process("run", "--invoke", "add", str(file), "1")[1] == "106\n"


def test_what_cannot_be_taken_is_told(module: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.snapshot"
    status, _, told = process("snapshot", "--invoke", "fail", str(module), str(file))
    assert status == 125
    assert "unreachable" in told
    assert process("snapshot", str(module), str(file), "5")[2].endswith(
        "ARGS are for a function: name it with --invoke\n"
    )
    assert not file.exists()
    status, _, told = process("snapshot", str(module), str(tmp_path / "missing" / "x"))
    assert status == 125
    assert told.endswith(f"Error: {tmp_path / 'missing' / 'x'} cannot be written: No such file or directory\n")


def test_a_file_that_is_not_believed_is_not_run(module: Path, tmp_path: Path) -> None:
    file = tmp_path / "counter.snapshot"
    assert run("snapshot", module, file).exit_code == 0
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    status, _, told = process("run", str(file))
    assert status == 125
    assert "is not believed: it was changed" in told
    file.write_bytes(whole)
    assert Snapshot.load(file).memory_bytes == 131_072
