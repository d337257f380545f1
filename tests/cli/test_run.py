"""The command line, as people and scripts use it: the real command in a process of its own.

Holds P-TIME-3 and P-TEXT-1.
"""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from functools import cache
from typing import TYPE_CHECKING

import pytest

from stockade.cli._run import run as run_command
from tests._commands import COMMAND, begun, ran
from tests._processes import children, gone, threads, until
from tests._small_guests import ENVIRONMENT, SLEEP
from tests.conftest import HELLO

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOOP = '(module (func (export "_start") (loop br 0)))'

CAT = """
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 1024))
    (loop $more
      (i32.store (i32.const 4) (i32.const 65536))
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (i32.store (i32.const 4) (i32.load (i32.const 8)))
      (if (i32.load (i32.const 8))
        (then
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))
          (br $more))))))
"""

NUMBERS = """
(module
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "half") (param f64) (result f64) (f64.div (local.get 0) (f64.const 2)))
  (func (export "swap") (param i64 f32) (result f32 i64) (local.get 1) (local.get 0))
  (func (export "nothing")))
"""

# Tries to create the file "new" in the first granted folder; its exit code is the errno.
CREATE = """
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "new")
  (func (export "_start")
    (call $exit (call $open
      (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 3) (i32.const 1)
      (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 16)))))
"""


def quoted(data: bytes) -> str:
    """Bytes as a string of the text format."""
    return "".join(f"\\{byte:02x}" for byte in data)


def speaker(data: bytes, stream: int = 1, exit_code: int = 0) -> str:
    """A guest that writes these bytes and leaves."""
    return f"""
    (module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (memory (export "memory") {len(data) // 65536 + 1})
      (data (i32.const 16) "{quoted(data)}")
      (func (export "_start")
        (i32.store (i32.const 0) (i32.const 16))
        (i32.store (i32.const 4) (i32.const {len(data)}))
        (drop (call $write (i32.const {stream}) (i32.const 0) (i32.const 1) (i32.const 8)))
        (call $exit (i32.const {exit_code}))))
    """


def leb(number: int) -> bytes:
    """An unsigned number in LEB128."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def section(number: int, content: bytes) -> bytes:
    """A section of a module."""
    return bytes([number]) + leb(len(content)) + content


@cache
def large_module(functions: int) -> bytes:
    """A module that takes a while to compile; `_start` is its first function and does nothing."""
    bodies = b"".join(
        leb(len(body) + 2) + b"\0" + body + b"\x0b"
        for body in (b"\x41" + leb(number % 60) + b"\x1a" for number in range(functions))
    )
    return (
        b"\0asm\x01\0\0\0"
        + section(1, b"\x01\x60\0\0")
        + section(3, leb(functions) + b"\0" * functions)
        + section(7, b"\x01\x06_start\0\0")
        + section(10, leb(functions) + bodies)
    )


def save(folder: Path, text: str, name: str = "guest.wat") -> Path:
    """Writes a guest to a file."""
    path = folder / name
    path.write_text(text)
    return path


def stockade(
    *args: str | Path, stdin: bytes | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs the command with pipes for its output."""
    return ran(args, stdin, cwd)


def in_terminal(streams: Sequence[str], *args: str | Path) -> tuple[int, bytes, dict[str, bytes]]:
    """Runs the command with some of its output streams on a terminal.

    Returns:
        The exit status, what the terminal was sent, and what the other streams were.
    """
    ours, theirs = pty.openpty()
    process = begun(
        args,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        stdout=theirs if "stdout" in streams else subprocess.PIPE,
        stderr=theirs if "stderr" in streams else subprocess.PIPE,
    )
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline and select.select([ours], [], [], 60)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError as problem:
                if problem.errno == errno.EIO:  # the other end is closed
                    break
                raise
            if not piece:
                break
            shown += piece
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return process.returncode, shown, {"stdout": out or b"", "stderr": err or b""}


def test_output_passes_through_byte_for_byte(tmp_path: Path) -> None:
    """A pipe gets every byte that the guest wrote, escape sequences and invalid UTF-8 included."""
    every_byte = bytes(range(256)) + b"\x1b[31m\r\n"

    out = stockade("run", save(tmp_path, speaker(every_byte)))
    err = stockade("run", save(tmp_path, speaker(every_byte, stream=2)))

    assert (out.returncode, out.stdout, out.stderr) == (0, every_byte, b"")
    assert (err.returncode, err.stdout, err.stderr) == (0, b"", every_byte)


@pytest.mark.parametrize("code", [0, 1, 2, 42, 124, 126, 127, 128, 137, 255])
def test_exit_code_of_the_guest_is_that_of_the_command(tmp_path: Path, code: int) -> None:
    """Codes from 126 on are codes, not errors."""
    done = stockade("run", save(tmp_path, speaker(b"bye\n", exit_code=code)))

    assert (done.returncode, done.stdout, done.stderr) == (code, b"bye\n", b"")


@pytest.mark.parametrize(("code", "status"), [(256, 1), (2**31, 1), (257, 1), (2**32 - 1, 255), (0x1FF00 + 42, 42)])
def test_failure_is_never_told_as_success(tmp_path: Path, code: int, status: int) -> None:
    """A guest that leaves with 256 failed, though a shell would see 0: the command leaves 1."""
    assert stockade("run", save(tmp_path, speaker(b"", exit_code=code))).returncode == status


@pytest.mark.parametrize(("guest", "what"), [(LOOP, "loop"), (SLEEP, "sleep")])
def test_timeout_leaves_124(tmp_path: Path, guest: str, what: str) -> None:
    """A deadline stops computing and sleeping guests alike."""
    done = stockade("run", "--timeout", "300ms", "--fuel", "unlimited", save(tmp_path, guest, f"{what}.wat"))

    assert done.returncode == 124
    assert done.stdout == b""
    assert re.fullmatch(
        rf"stockade: timeout: ran for [\d.]+ m?s, limits.wall_time allows 300.0 ms → stop\n"
        rf"stockade: {what}.wat: stopped: time limit reached\n",
        done.stderr.decode(),
    )


def test_no_timeout_without_need(tmp_path: Path) -> None:
    """The twin of the above: a guest within its limits is left alone."""
    done = stockade("run", "--timeout", "5s", "--fuel", "1_000", "--memory", "64KiB", save(tmp_path, HELLO))

    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello world\n", b"")


@pytest.mark.parametrize(
    ("options", "guest", "violation", "ending"),
    [
        (
            ["--fuel", "1000"],
            LOOP,
            "fuel: used 1,000, limits.fuel allows 1,000 → stop",
            "out of fuel",
        ),
        (
            ["--memory", "1MiB"],
            '(module (memory 17) (func (export "_start")))',
            "",
            "memory limit exceeded: initial memory of 1.1 MiB, limits.memory allows 1.0 MiB",
        ),
        (
            ["--memory", "1MiB"],
            '(module (memory 16) (table 3 funcref) (func (export "_start")))',
            "",
            "memory limit exceeded: initial memory of 1,048,600 B, limits.memory allows 1,048,576 B",
        ),
        (
            [],
            '(module (func $deep (export "_start") call $deep))',
            "stack: used up limits.stack (512.0 KiB) → stop",
            "stack overflow",
        ),
    ],
    ids=["fuel", "memory", "memory by a little", "stack"],
)
def test_limits_leave_137(tmp_path: Path, options: list[str], guest: str, violation: str, ending: str) -> None:
    """Each limit is named with its figures."""
    done = stockade("run", *options, save(tmp_path, guest))

    assert done.returncode == 137
    lines = [f"stockade: {violation}"] * bool(violation) + [f"stockade: guest.wat: stopped: {ending}"]
    assert done.stderr.decode().splitlines()[: len(lines)] == lines


def test_trap_leaves_134(tmp_path: Path) -> None:
    """A trap is told as one, with where it happened."""
    done = stockade("run", save(tmp_path, '(module (func $boom (export "_start") unreachable))'))

    assert done.returncode == 134
    assert done.stderr.decode() == ("stockade: guest.wat: trapped: unreachable instruction executed\n  at boom + 0x0\n")


def test_backtrace_of_an_exhausted_stack_shows_offsets_that_exist(tmp_path: Path) -> None:
    """An offset lies within its function, or is left out: it is never a wrapped -1."""
    done = stockade("run", save(tmp_path, '(module (func $deep (export "_start") call $deep))'))

    assert "at deep" in done.stderr.decode()
    assert "0xffffffffffffffff" not in done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dir", "data", "GUEST"], "Error: --dir data: write HOST::GUEST, such as ./data::/data, or HOST::GUEST::rw"),
        (
            ["--dir", "data::/data:rw", "GUEST"],
            "Error: --dir data::/data:rw: write the rights after two colons, as in HOST::GUEST::rw",
        ),
        (["--dir", "::/data", "GUEST"], "Error: --dir ::/data: write HOST::GUEST, such as ./data::/data, or "),
        (["--dir", ".::/data::write", "GUEST"], "Error: --dir .::/data::write: the rights are ro or rw, not write"),
        (["--dir", ".::/a::rw::x", "GUEST"], "Error: --dir .::/a::rw::x: the rights are ro or rw, not rw::x"),
        (
            ["--dir", ".::data", "GUEST"],
            "stockade: mount.guest is 'data': it must be an absolute path without . or .., such as \"/data\"",
        ),
        (
            ["--dir", "missing::/data", "GUEST"],
            "stockade: the mount /data cannot be made: missing does not exist",
        ),
        (
            ["--env", "NOT_SET", "GUEST"],
            "Error: --env NOT_SET: NOT_SET is not set in the environment: write NAME=VALUE",
        ),
        (["--env", "=value", "GUEST"], "stockade: an empty text cannot be the name of a variable"),
        (["--memory", "5x", "GUEST"], "Error: --memory: '5x' is not a quantity such as \"128MiB\""),
        (["--memory", "-1", "GUEST"], "Error: --memory: '-1' is not a quantity such as \"128MiB\""),
        (
            ["--memory", "5GiB", "GUEST"],
            "stockade: limits.memory is 5,368,709,120: it must be between 65,536 and 4,294,967,296",
        ),
        (["--timeout", "soon", "GUEST"], "Error: --timeout: 'soon' is not a quantity such as \"5s\""),
        (["--timeout", "0", "GUEST"], "stockade: limits.wall_time is 0.0: it must be between 0.001 and 315,360,000.0"),
        (["--fuel", "1.5", "GUEST"], "Error: --fuel: 1.5 is not a whole number"),
        (["--fuel", "0", "GUEST"], "stockade: limits.fuel is 0: it must be between 1 and 9,223,372,036,854,775,807"),
        (
            ["--policy", "strct", "GUEST"],
            (
                "stockade: there is no preset 'strct': choose default, minimal, strict, basic, development, "
                "permissive; did you mean strict?"
            ),
        ),
        (["--policy", "missing.toml", "GUEST"], "stockade: the policy file missing.toml cannot be read: "),
        (["--policy", "./missing", "GUEST"], "stockade: the policy file missing cannot be read: "),
        (["--no-such-option", "GUEST"], "No such option"),
        (["--isolation", "none", "GUEST"], "Invalid value for '--isolation'"),
        ([], "Error: Missing argument 'MODULE'."),
        (
            ["--invoke", "add", "NUMBERS", "5", "1.5"],
            "Error: argument 2 of add is an i32: 1.5 is not a whole number",
        ),
        (
            ["--invoke", "add", "NUMBERS", "five", "3"],
            "Error: argument 1 of add is an i32: five is not a whole number",
        ),
        (
            ["--invoke", "add", "NUMBERS", "five"],
            "stockade: add: (i32, i32) -> (i32): text is passed and returned through memory, but the module",
        ),
        (
            ["--invoke", "half", "NUMBERS", ""],
            "Error: argument 1 of half is an f64: '' is not a number",
        ),
        (
            ["--invoke", "add", "NUMBERS", "5"],
            "stockade: add: (i32, i32) -> (i32) has 2 parameters, and 1 argument is given. Give a number for each",
        ),
        (
            ["--invoke", "add", "NUMBERS", "4294967296", "0"],
            "stockade: add: (i32, i32) -> (i32): argument 1 is 4294967296; i32 takes a whole number from -2**31",
        ),
        (["--invoke", "add", "--returns", "json", "NUMBERS", "5", "6"], "Invalid value for '--returns'"),
        (
            ["--returns", "text", "GUEST"],
            "Error: --returns says how to read the value of a function: name",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_leaves_125(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Nothing runs, and the message says which option is wrong and what would be right."""
    files = {"GUEST": save(tmp_path, HELLO), "NUMBERS": save(tmp_path, NUMBERS, "numbers.wat")}

    done = stockade("run", *(files.get(argument, argument) for argument in arguments), cwd=tmp_path)

    assert done.returncode == 125
    assert done.stdout == b""
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_unlimited_memory_is_refused_in_words(tmp_path: Path) -> None:
    """Every run has a memory limit; who writes "unlimited" is told so and what may be written."""
    done = stockade("run", "--memory", "unlimited", save(tmp_path, HELLO))

    assert done.returncode == 125
    assert b"None" not in done.stderr
    assert b"memory" in done.stderr


@pytest.mark.parametrize("option", ["--dir", "--env"])
def test_wrong_options_are_shown_escaped(tmp_path: Path, option: str) -> None:
    """The attack: a script is tricked into an option with escape sequences, which the complaint would replay."""
    done = stockade("run", option, "\x1b]0;pwned\x07", save(tmp_path, HELLO))

    assert done.returncode == 125
    assert b"\x1b" not in done.stderr
    assert rb"\x1b]0;pwned\x07" in done.stderr


@pytest.mark.slow
def test_modules_that_cannot_be_run_leave_126(tmp_path: Path) -> None:
    """Modules that cannot be run leave 126."""
    wasm = tmp_path / "bad.wasm"
    wasm.write_bytes(b"echo hello")
    plain = stockade("run", save(tmp_path, NUMBERS, "numbers.wat"))
    unlinked = stockade("run", save(tmp_path, '(module (import "env" "f" (func)) (func (export "_start")))'))
    unexported = stockade("run", "--invoke", "subtract", tmp_path / "numbers.wat")

    assert stockade("run", wasm).returncode == 126
    assert plain.returncode == unlinked.returncode == unexported.returncode == 126
    assert plain.stderr.decode() == (
        "stockade: numbers.wat exports neither _start nor main, so there is nothing to run. "
        "Call one of its functions instead: add, half, swap, nothing\n"
    )
    assert unexported.stderr.decode() == (
        "stockade: numbers.wat exports no function subtract; it has add, half, swap, nothing\n"
    )


def test_missing_file_leaves_127(tmp_path: Path) -> None:
    """A near miss is suggested."""
    save(tmp_path, HELLO, "hello.wat")

    done = stockade("run", "helo.wat", cwd=tmp_path)

    assert done.returncode == 127
    assert done.stderr == b"stockade: no file at helo.wat; did you mean hello.wat?\n"


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["add", "5", "3"], b"8\n"),
        (["add", "0x10", "-1"], b"15\n"),
        (["add", "-5", "3"], b"-2\n"),
        (["half", "5"], b"2.5\n"),
        (["half", "-inf"], b"-inf\n"),
        (["swap", "9007199254740993", "0.5"], b"0.5 9007199254740993\n"),
        (["nothing"], b""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invoke_prints_values(tmp_path: Path, arguments: list[str], output: bytes) -> None:
    """Integers, floats, several results and none."""
    name, *numbers = arguments

    done = stockade("run", "--invoke", name, save(tmp_path, NUMBERS), *numbers)

    assert (done.returncode, done.stdout, done.stderr) == (0, output, b"")


TEXTS = """
(module
  (memory (export "memory") 1)
  (func (export "malloc") (param i32) (result i32) i32.const 1024)
  (func (export "echo") (param i32 i32) (result i32 i32) local.get 0 local.get 1)
  (func (export "lanes") (param v128 f64) (result v128 f64) local.get 0 local.get 1))
"""


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["echo", "--returns", "text", "GUEST", "wörld"], "wörld\n".encode()),
        (["echo", "--returns", "text", "GUEST", "text:5"], b"5\n"),
        (["echo", "--returns", "text", "GUEST", "text:text:"], b"text:\n"),
        (["echo", "--returns", "text", "GUEST", ""], b"\n"),
        (["echo", "--returns", "bytes", "GUEST", "a\x1b[2J"], b"a\x1b[2J"),
        (["echo", "GUEST", "hello"], b"1024 5\n"),
        (["echo", "GUEST", "1024", "0x5"], b"1024 5\n"),
        (["lanes", "GUEST", "0x1f", "1e3"], b"0x0000000000000000000000000000001f 1000.0\n"),
        (["lanes", "GUEST", "0x000102030405060708090a0b0c0d0e0f", "nan"], b"0x000102030405060708090a0b0c0d0e0f nan\n"),
    ],
    ids=lambda value: " ".join(value[2:]).encode("unicode_escape").decode() if isinstance(value, list) else "",
)
def test_invoke_passes_and_prints_text_and_vectors(tmp_path: Path, arguments: list[str], output: bytes) -> None:
    """Arguments are read as the parameters want them; text is what is not a number, or is said to be text."""
    path = save(tmp_path, TEXTS)

    done = stockade("run", "--invoke", *(path if argument == "GUEST" else argument for argument in arguments))

    assert (done.returncode, done.stdout, done.stderr) == (0, output, b"")


def test_what_invoke_cannot_read_leaves_the_status_of_its_kind(tmp_path: Path) -> None:
    """A result outside the memory is the guest's trap, one beyond the limit a limit; neither prints a value."""
    path = save(tmp_path, TEXTS)

    outside = stockade("run", "--invoke", "echo", "--returns", "bytes", path, "65536", "1")
    beyond = stockade("run", "--invoke", "echo", "--returns", "bytes", path, "0", "-1")

    assert (outside.returncode, outside.stdout) == (134, b"")
    assert outside.stderr.endswith(b"trapped: echo returned 1 byte at 65,536: not inside its memory of 65,536\n")
    assert (beyond.returncode, beyond.stdout) == (137, b"")
    assert b"value: returned 4.0 GiB, limits.stdout allows 1.0 MiB \xe2\x86\x92 stop\n" in beyond.stderr


def test_json_is_the_report_and_nothing_else(tmp_path: Path) -> None:
    """Stdout is one JSON document, whatever the guest wrote or did."""
    good = stockade("run", "--json", save(tmp_path, speaker(b"\xff\x1b[31m{", exit_code=3)))
    bad = stockade("run", "--json", "--fuel", "1000", save(tmp_path, LOOP))
    value = stockade("run", "--json", "--invoke", "add", save(tmp_path, NUMBERS), "5", "3")

    report = json.loads(good.stdout)
    assert (good.returncode, good.stderr) == (3, b"")
    assert report["outcome"] == "exit"
    assert report["exit_code"] == 3
    assert report["ok"] is False
    assert report["stdout"] == "\ufffd\x1b[31m{"
    assert report["stdout_base64"] == "/xtbMzFtew=="
    assert report["usage"]["calls"] == {"fd_write": 1, "proc_exit": 1}
    assert b"\x1b" not in good.stdout
    assert bad.returncode == 137
    assert json.loads(bad.stdout)["outcome"] == "fuel"
    assert json.loads(bad.stdout)["violations"][0]["subject"] == "limits.fuel"
    assert json.loads(value.stdout)["value"] == 8


def test_report_is_plain_when_piped(tmp_path: Path) -> None:
    """The report goes to stderr, without escape sequences, and leaves stdout to the guest."""
    done = stockade("run", "--report", save(tmp_path, HELLO))

    assert (done.returncode, done.stdout) == (0, b"hello world\n")
    assert b"\x1b" not in done.stderr
    lines = [line.split(maxsplit=1) for line in done.stderr.decode().splitlines()]
    assert ["outcome", "ok - finished"] in lines
    assert ["WASI", "calls  1: fd_write ×1"] in lines


def test_report_on_a_terminal_has_colour(tmp_path: Path) -> None:
    """The twin of the above: people get a table in colour."""
    status, shown, others = in_terminal(["stderr"], "run", "--report", save(tmp_path, HELLO))

    assert (status, others["stdout"]) == (0, b"hello world\n")
    assert b"\x1b[32mok - finished" in shown


@pytest.mark.parametrize("options", [["--fuel", "1000"], ["--timeout", "100ms"]], ids=" ".join)
def test_quiet_says_nothing(tmp_path: Path, options: list[str]) -> None:
    """The exit status alone tells."""
    loud = stockade("run", *options, save(tmp_path, LOOP))
    quiet = stockade("run", "--quiet", *options, save(tmp_path, LOOP))

    assert quiet.returncode == loud.returncode != 0
    assert loud.stderr
    assert (quiet.stdout, quiet.stderr) == (b"", b"")


def test_quiet_is_no_word_against_a_report_that_is_asked_for(tmp_path: Path) -> None:
    """Who asks for the report gets it, however the run ends."""
    done = stockade("run", "--quiet", "--report", "--fuel", "1000", save(tmp_path, LOOP))
    assert done.returncode == 137
    assert b"outcome  fuel" in done.stderr


def test_the_report_goes_into_a_file(tmp_path: Path) -> None:
    """As text, or as JSON by its name; stderr has what it has without it. The guest's own outcome is left alone."""
    guest = save(tmp_path, speaker(b"bye\n", exit_code=3))
    text, document = tmp_path / "report.txt", tmp_path / "report.json"

    for path in (text, document):
        done = stockade("run", f"--report={path}", guest)
        assert (done.returncode, done.stdout, done.stderr) == (3, b"bye\n", b"")

    assert text.read_text().splitlines()[3].strip() == "outcome  exit - exited with code 3"
    assert json.loads(document.read_text())["exit_code"] == 3


def test_a_report_file_with_another_ending_is_told(tmp_path: Path) -> None:
    """It would be taken for the module, and said to be missing; a module that is missing is told as ever."""
    guest = save(tmp_path, speaker(b"bye\n"))

    for words in ((tmp_path / "out.pdf", guest), (tmp_path / "out.pdf",)):
        done = stockade("run", "--report", *words)
        assert (done.returncode, done.stdout) == (125, b"")
        assert done.stderr.decode().endswith(
            f"Error: --report {tmp_path}/out.pdf: a file for the report ends in .html, .htm, .json, .txt, and there is "
            "no file of this name to run. For text under any other name, write --report=FILE\n"
        )
    done = stockade("run", "--report", tmp_path / "none.wasm", guest)
    assert done.returncode == 127
    assert b"no file" in done.stderr

    odd = tmp_path / "guest.v2"
    odd.write_bytes(guest.read_bytes())
    assert b"guest.v2 is WebAssembly text" in stockade("run", "--report", odd).stderr


def test_the_report_goes_into_a_file_however_the_run_ends(tmp_path: Path) -> None:
    """Also where a limit stops it; what was in the file before is gone."""
    path = tmp_path / "report.json"
    path.write_text("x" * 100_000)

    done = stockade("run", "--fuel", "1000", f"--report={path}", save(tmp_path, LOOP))

    assert done.returncode == 137
    assert json.loads(path.read_text())["outcome"] == "fuel"


def test_a_report_file_that_cannot_be_written_is_told_before_the_run(tmp_path: Path) -> None:
    """Nothing runs then."""
    path = tmp_path / "none" / "report.json"

    done = stockade("run", f"--report={path}", save(tmp_path, speaker(b"bye\n")))

    assert (done.returncode, done.stdout) == (125, b"")
    assert f"{path} cannot be written: No such file or directory" in done.stderr.decode()


def test_quiet_leaves_the_guest_its_voice(tmp_path: Path) -> None:
    """The twin of the above."""
    done = stockade("run", "--quiet", save(tmp_path, speaker(b"psst\n", stream=2)))

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"psst\n")


def test_granted_folder_is_read_only_unless_asked(tmp_path: Path) -> None:
    """The attack: a guest creates a file in a folder that it may only read."""
    guest = save(tmp_path, CREATE)
    data = tmp_path / "data"
    data.mkdir()

    read_only = [stockade("run", "--dir", f"{data}::/data{mode}", guest).returncode for mode in ("", "::ro")]
    assert read_only == [63, 63]  # errno perm
    assert list(data.iterdir()) == []

    assert stockade("run", "--dir", f"{data}::/data::rw", guest).returncode == 0
    assert [path.name for path in data.iterdir()] == ["new"]


def test_no_folder_unless_granted(tmp_path: Path) -> None:
    """The attack: a guest uses the first folder, which is none of its own."""
    assert stockade("run", save(tmp_path, CREATE), cwd=tmp_path).returncode == 8  # errno badf
    assert [path.name for path in tmp_path.iterdir()] == ["guest.wat"]


def test_environment_is_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a guest reads a secret from the host's environment."""
    monkeypatch.setenv("SECRET", "hunter2")
    guest = save(tmp_path, ENVIRONMENT)

    assert stockade("run", guest).stdout == b""
    assert stockade("run", "--env", "A=1", "--env", "B=x=y", guest).stdout == b"A=1\0B=x=y\0"


@pytest.mark.parametrize("data", [b"", b"one line\n", bytes(range(256)) * 2000], ids=["empty", "line", "512 kB"])
def test_stdin_is_passed_on(tmp_path: Path, data: bytes) -> None:
    """A pipe into the command is the guest's stdin."""
    done = stockade("run", save(tmp_path, CAT), stdin=data)

    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


def test_stdin_is_left_alone_where_the_guest_cannot_read(tmp_path: Path) -> None:
    """A guest that does not read does not wait for a pipe that nobody closes."""
    reading, writing = os.pipe()
    try:
        process = begun(["run", save(tmp_path, HELLO)], stdin=reading)
        out, _ = process.communicate(timeout=60)
    finally:
        os.close(reading)
        os.close(writing)

    assert (process.returncode, out) == (0, b"hello world\n")


@pytest.mark.parametrize(("guest", "what"), [(LOOP, "loop"), (SLEEP, "sleep")])
def test_interrupt_ends_the_command_at_once(tmp_path: Path, interrupts: None, guest: str, what: str) -> None:
    """Ctrl-C stops computing and sleeping guests, which would go on for hours, and leaves 130, without a traceback."""
    path = save(tmp_path, guest, f"{what}.wat")
    process = begun(["run", "--timeout", "1h", "--fuel", "unlimited", path])
    try:
        # The thread beside the main one looks after signals.
        assert until(lambda: threads(process.pid) > 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 130
    assert out == b""
    assert b"Traceback" not in err
    assert b"interrupted" in err or b"cancelled" in err


def test_interrupt_ends_compiling_at_once(tmp_path: Path, interrupts: None) -> None:
    """A module that takes long to compile, for ever here, can be given up."""
    path = tmp_path / "large.wasm"
    path.write_bytes(large_module(100_000))
    process = begun(["run", path])
    try:
        # The process that compiles is there, and so is the child that it has forked.
        assert until(lambda: any(children(child) for child in children(process.pid)))
        compiling = {found for child in children(process.pid) for found in children(child)}
        for child in compiling:
            os.kill(child, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()

    assert (process.returncode, err) == (130, b"stockade: interrupted\n")
    assert until(lambda: all(map(gone, compiling)))


def test_escape_sequences_reach_pipes_but_not_terminals(tmp_path: Path) -> None:
    """The attack: a guest retitles, repaints or remaps the terminal of whoever looks at its output."""
    attack = b"\x1b]0;pwned\x07 \x1b[2J \x9b31m \xe2\x80\xae plain\ttext\n"
    guest = save(tmp_path, speaker(attack, stream=1))
    status, shown, others = in_terminal(["stdout"], "run", guest)

    assert (status, others["stderr"]) == (0, b"")
    assert shown == rb"\x1b]0;pwned\x07 \x1b[2J \x9b31m \u202e plain" + b"\ttext\r\n"
    assert stockade("run", guest).stdout == attack


def test_escape_sequences_on_stderr_do_not_reach_terminals(tmp_path: Path) -> None:
    """The same on stderr."""
    guest = save(tmp_path, speaker(b"\x1b]0;pwned\x07\n", stream=2))
    status, shown, others = in_terminal(["stderr"], "run", guest)

    assert (status, others["stdout"]) == (0, b"")
    assert rb"\x1b]0;pwned\x07" in shown
    assert b"\x1b]0;pwned" not in shown


def test_escape_sequences_in_names_do_not_reach_terminals(tmp_path: Path) -> None:
    """The attack: the names of a file, of a function that traps, and of an export steer the terminal."""
    trap = save(
        tmp_path, '(module (func $f (export "_start") unreachable) (func (export "\\1b]0;b\\07")))', "\x1b]0;a.wat"
    )

    for options in ([], ["--report"], ["--invoke", "x"]):
        _, shown, _ = in_terminal(["stdout", "stderr"], "run", *options, trap)
        assert rb"\x1b]0;" in shown
        assert b"\x1b]0;" not in shown


def test_progress_is_shown_on_terminals_only(tmp_path: Path) -> None:
    """Compiling a large module is told on a terminal while it lasts; a pipe gets nothing of it."""
    path = tmp_path / "large.wasm"
    path.write_bytes(large_module(20_000))

    status, shown, others = in_terminal(["stderr"], "run", path)
    piped = stockade("run", path)

    assert (status, others["stdout"]) == (0, b"")
    assert b"compiling large.wasm" in shown
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, b"", b"")


def test_closed_pipe_is_no_reason_for_a_traceback(tmp_path: Path) -> None:
    """Whoever reads our output, such as `head`, may stop at any time."""
    data = b"line\n" * 100_000
    guest = save(tmp_path, speaker(data))
    process = begun(["run", guest])
    try:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 5) == b"line\n"
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()

    assert err == b""
    assert stockade("run", guest).stdout == data


def test_closed_stdout_is_no_reason_for_a_traceback(tmp_path: Path) -> None:
    """A daemon may start the command with stdout closed."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "run", str(save(tmp_path, HELLO))],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )

    assert b"Traceback" not in done.stderr


def test_full_disk_is_no_reason_for_a_traceback(tmp_path: Path) -> None:
    """What the guest wrote may not fit where it should go: that is our failure, told in one line."""
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        done = ran(["run", save(tmp_path, HELLO)], stdout=full)

    assert b"Traceback" not in done.stderr
    assert b"No space left on device" in done.stderr
    assert done.returncode == 125


def test_help_mentions_every_option() -> None:
    """What `stockade run` understands, its help explains; statuses too."""
    shown = stockade("run", "--help").stdout.decode()

    promised = ["--dir", "--env", "--invoke", "--policy", "--fuel", "--memory", "--timeout", "--isolation", "--json"]
    options = [name for parameter in run_command.params for name in parameter.opts if name.startswith("--")]
    options.remove("--live")  # does nothing
    assert set(promised) <= set(options)
    for name in options:
        assert name in shown
    for status in ("124", "125", "126", "127", "134", "137"):
        assert status in shown


def test_version_is_told() -> None:
    """`--version` says which release this is."""
    from importlib.metadata import version

    done = stockade("--version")

    assert (done.returncode, done.stdout.decode()) == (0, f"stockade, version {version('stockade')}\n")


def test_policy_file_holds(tmp_path: Path) -> None:
    """A policy is a preset or a file; options change it."""
    (tmp_path / "p.toml").write_text('name = "mine"\n[limits]\nfuel = 1_000\n')
    guest = save(tmp_path, LOOP)

    from_file = stockade("run", "--json", "--policy", tmp_path / "p.toml", guest)
    changed = stockade("run", "--json", "--policy", "strict", "--fuel", "500", guest)

    assert json.loads(from_file.stdout)["policy"]["name"] == "mine"
    assert json.loads(from_file.stdout)["usage"]["fuel"] == 1000
    assert json.loads(changed.stdout)["policy"]["name"] == "strict"
    assert json.loads(changed.stdout)["usage"]["fuel"] == 500


# -- output as it is written ------------------------------------------------------------------------------------------

SPEAK_THEN_SLEEP = SLEEP.replace(
    '(memory (export "memory") 1)',
    """(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 200) "\\d8\\00\\00\\00\\05\\00\\00\\00")
  (data (i32.const 216) "said\\0a")
  (func $say (drop (call $write (i32.const 1) (i32.const 200) (i32.const 1) (i32.const 208))))""",
).replace('(func (export "_start")', '(func (export "_start") (call $say)')
"""Says something, and then sleeps for an hour."""


def test_output_in_pieces_cannot_steer_a_terminal(tmp_path: Path) -> None:
    """Attack: an escape sequence, and a character cut in two by the border between two writes."""
    pieces = [b"\x1b", b"]0;pwned\x07 \xc3", b"\xa9 \x9b31m\n"]
    text = "".join(f'(data (i32.const {1000 + 100 * number}) "{quoted(piece)}")' for number, piece in enumerate(pieces))
    writes = "".join(
        f"(i32.store (i32.const 0) (i32.const {1000 + 100 * number}))"
        f"(i32.store (i32.const 4) (i32.const {len(piece)}))"
        "(drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))"
        for number, piece in enumerate(pieces)
    )
    guest = save(
        tmp_path,
        f"""
        (module
          (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1) {text}
          (func (export "_start") {writes}))
        """,
    )

    status, shown, _ = in_terminal(["stdout"], "run", guest)

    assert (status, shown.decode()) == (0, "\\x1b]0;pwned\\x07 é \\x9b31m\r\n")
    assert stockade("run", guest).stdout == b"".join(pieces)


def test_fuel_for_a_time(tmp_path: Path) -> None:
    """An estimate, measured here; what is none is told."""
    guest = save(tmp_path, LOOP)
    ended = stockade("run", "--fuel", "~50ms", guest)
    wrong = stockade("run", "--fuel", "~2 parsecs", guest)

    assert ended.returncode == 137
    assert b", limits.fuel_time allows " in ended.stderr
    assert wrong.returncode == 125
    assert b'write "~2s"' in wrong.stderr
