"""What is told can be returned from a web framework's route as it is, and whoever is told of a failure sees why."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest

import stockade
from stockade import GuestExit, GuestTrap, Module, Policy, Sandbox, TaskResult
from tests.conftest import HELLO, wat

WRITER = r"""
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "\20\00\00\00\00\00\01\00")
  (func (export "_start")
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 4)))
    (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
    (if (i32.eqz (i32.load8_u (i32.const 32))) (then unreachable))
    (call $exit (i32.const 3))))
"""
"""Writes to stderr what it reads, and leaves with 3; traps where that begins with a zero byte."""


def jsonable(value: Any) -> Any:
    """What FastAPI's `jsonable_encoder` makes of a value without a model, in the order in which it looks."""
    if dataclasses.is_dataclass(value):
        return jsonable(dataclasses.asdict(value))  # type: ignore[arg-type]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, dict):
        return {jsonable(key): jsonable(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set):
        return [jsonable(part) for part in value]
    if isinstance(value, bytes):
        return value.decode()  # fails where it is not UTF-8
    return jsonable(dict(value))


def as_response(value: object) -> Any:
    """What arrives: Starlette refuses infinities and NaN."""
    return json.loads(json.dumps(jsonable(value), allow_nan=False))


@pytest.mark.parametrize(
    "report",
    [
        lambda: stockade.run(wat(HELLO)),
        lambda: Sandbox().run(wat(WRITER), stdin=b"\xff\xfe"),
        lambda: Sandbox().call(wat('(module (func (export "f") (result f64) (f64.const inf)))'), "f"),
        lambda: Sandbox().call(wat('(module (func (export "f") (result v128) (v128.const i64x2 -1 7)))'), "f"),
        lambda: Sandbox().call(wat('(module (func (export "f") (result f32 i64) (f32.const nan) (i64.const 1)))'), "f"),
    ],
)
def test_a_report_can_be_returned_from_a_route(report: Any) -> None:
    """It says what `to_json` says, also where output is not UTF-8 and numbers are infinite."""
    told = report()
    assert as_response(told) == told.to_dict() == json.loads(told.to_json())
    assert list(told) == list(told.to_dict().items())


def test_an_inspection_and_a_result_can_be_returned_from_a_route() -> None:
    """The same."""
    inspection = wat(HELLO).inspect()
    result = TaskResult.of("one", stockade.run(wat(HELLO)), datetime.now(UTC))
    for told in (inspection, result):
        assert as_response(told) == told.to_dict() == json.loads(told.to_json())
    assert as_response(inspection)["kind"] == "command"
    assert as_response(result)["output"] == "hello world\n"


def failure(stderr: bytes) -> stockade.GuestError:
    """How a guest is told that says this and fails."""
    with pytest.raises(stockade.GuestError) as caught:
        Sandbox(Policy().replace(fuel=None)).run(Module.load(wat(WRITER)), stdin=stderr).check()
    return caught.value


def test_an_exit_shows_the_end_of_stderr() -> None:
    """What a program says last is why it failed."""
    problem = failure(b"one\ntwo\n\nthree\nfour\nfive\nValueError: no such thing\n")
    assert isinstance(problem, GuestExit)
    assert str(problem) == (
        "<bytes>: exited with code 3\n"
        "  stderr: two\n  stderr: three\n  stderr: four\n  stderr: five\n  stderr: ValueError: no such thing"
    )
    assert str(failure(b"")) == "<bytes>: trapped: unreachable instruction executed"
    assert str(failure(b" \n\n")) == "<bytes>: exited with code 3"


def test_a_trap_shows_the_end_of_stderr() -> None:
    """Where programs panic, that is all there is to tell."""
    problem = failure(b"\0 panicked\n")
    assert isinstance(problem, GuestTrap)
    assert str(problem) == "<bytes>: trapped: unreachable instruction executed\n  stderr: \\x00 panicked"


def test_stderr_forges_no_line_and_floods_no_log() -> None:
    """The attack: a guest whose stderr steers the terminal, or looks like a message of the host's, or is endless."""
    text = str(failure(b"x" * 5000 + b"\n\x1b[31m\r\xe2\x80\xae\x85 ERROR root: all is lost\x0b\x0cmore"))
    assert text == (
        "<bytes>: exited with code 3\n"
        f"  stderr: {'x' * 200}… (4,055 long)\n"
        "  stderr: \\x1b[31m\n"
        "  stderr: \\u202e\\x85 ERROR root: all is lost\\x0b\\x0cmore"
    )
