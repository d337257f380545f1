"""`stockade run`: the guest's streams are those of the command, whole, in order and as they come, however it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests._commands import begun
from tests.cli.test_run import CAT, LOOP, SPEAK_THEN_SLEEP, large_module, save, stockade
from tests.conftest import HELLO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests._commands import Forked, Stream

FLOOD = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start") (local $left i32)
    (memory.fill (i32.const 1024) (i32.const 120) (i32.const 50000))
    (i32.store (i32.const 0) (i32.const 1024))
    (i32.store (i32.const 4) (i32.const 50000))
    (local.set $left (i32.const 100))
    (loop $more
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))
"""
"""Writes 5,000,000 bytes: more than a report keeps."""

SPEAK_THEN_LOOP = SPEAK_THEN_SLEEP.replace("(call $say)", "(call $say) (loop $on (br $on))")
SPEAK_THEN_TRAP = SPEAK_THEN_SLEEP.replace("(call $say)", "(call $say) unreachable")

ALTERNATE = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "o\\0ae\\0a")
  (func $say (param $stream i32)
    (i32.store (i32.const 0) (i32.add (i32.const 14) (i32.mul (i32.const 2) (local.get $stream))))
    (i32.store (i32.const 4) (i32.const 2))
    (drop (call $write (local.get $stream) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "_start") (local $left i32)
    (local.set $left (i32.const 1000))
    (loop $more
      (call $say (i32.const 1)) (call $say (i32.const 2))
      (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))
"""
"""Writes a line to stdout and one to stderr, a thousand times."""

ENVIRONMENT_AND_STDIN = """
(module
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func $say (param $from i32) (param $size i32)
    (i32.store (i32.const 0) (local.get $from))
    (i32.store (i32.const 4) (local.get $size))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "tell") (result i32)
    (drop (call $sizes (i32.const 16) (i32.const 20)))
    (drop (call $get (i32.const 64) (i32.const 1024)))
    (call $say (i32.const 1024) (i32.load (i32.const 20)))
    (i32.store (i32.const 0) (i32.const 4096))
    (i32.store (i32.const 4) (i32.const 100))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (call $say (i32.const 4096) (i32.load (i32.const 8)))
    (i32.const 7)))
"""

NUMBERS = """
(module
  (memory (export "memory") 1)
  (func (export "malloc") (param i32) (result i32) i32.const 1024)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "half") (param f64) (result f64) (f64.div (local.get 0) (f64.const 2)))
  (func (export "wide") (param i64) (result i64) (local.get 0)))
"""


@contextmanager
def running(*args: str | Path, **streams: Stream) -> Iterator[subprocess.Popen[bytes] | Forked]:
    """Starts the command, and ends it whatever happens. Its children can be interrupted."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = begun(args, **streams)
    finally:
        signal.signal(signal.SIGINT, previous)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until_listening(process: subprocess.Popen[bytes] | Forked) -> None:
    """Waits until the command handles signals itself."""
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1]
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)


def read_first(process: subprocess.Popen[bytes] | Forked, size: int = 100) -> bytes:
    """Waits for output."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 60)[0]
    return os.read(process.stdout.fileno(), size)


@pytest.mark.parametrize("target", ["pipe", "file"])
def test_output_has_no_cap(tmp_path: Path, target: str) -> None:
    """Whatever a guest writes arrives; the policy's limits of output say what a report keeps."""
    guest = save(tmp_path, FLOOD)
    if target == "pipe":
        done = stockade("run", guest)
        assert (done.returncode, done.stdout == b"x" * 5_000_000, done.stderr) == (0, True, b"")
        return
    with (tmp_path / "out").open("wb") as out, running("run", guest, stdout=out) as process:
        assert process.wait(60) == 0
    assert (tmp_path / "out").read_bytes() == b"x" * 5_000_000


def test_output_is_capped_in_a_report(tmp_path: Path) -> None:
    """The twin of the above: JSON has what the report keeps, and says what it does not."""
    report = json.loads(stockade("run", "--json", save(tmp_path, FLOOD)).stdout)

    assert report["usage"]["stdout_bytes"] == 5_000_000
    assert len(report["stdout"]) == 1 << 20
    assert report["truncated"]["stdout"] == 5_000_000 - (1 << 20)


def test_output_keeps_its_order(tmp_path: Path) -> None:
    """Lines of stdout and stderr that go to one place come as they were written."""
    with running("run", save(tmp_path, ALTERNATE), stderr=subprocess.STDOUT) as process:
        out, _ = process.communicate(timeout=60)

    assert out == b"o\ne\n" * 1000


def test_output_waits_for_a_slow_reader(tmp_path: Path) -> None:
    """A guest that came to its end loses nothing, whenever its output is read."""
    small = save(tmp_path, FLOOD.replace("(i32.const 100)\n", "(i32.const 3)\n").replace("100))", "3))"))
    with running("run", "--timeout", "2s", small) as process:
        first = read_first(process, 10)
        time.sleep(3.5)  # longer than the guest may take, and than patience lasts
        out, err = process.communicate(timeout=60)

    assert (process.returncode, len(first + out), err) == (0, 150_000, b"")


def test_deadline_holds_while_nobody_reads(tmp_path: Path) -> None:
    """The attack: a guest fills a pipe that nobody reads, to stay beyond its deadline."""
    with running("run", "--timeout", "300ms", save(tmp_path, FLOOD)) as process:
        assert process.wait(60) == 124
        _, err = process.communicate()

    assert b"bytes of the output\n" in err
    assert b"stopped: " in err


@pytest.mark.parametrize("kind", ["SPEAK_THEN_SLEEP", "SPEAK_THEN_LOOP", "SPEAK_THEN_TRAP"])
def test_output_comes_while_the_guest_runs(tmp_path: Path, kind: str) -> None:
    """What was said is there before the guest ends; and once, however it ends."""
    guest = save(tmp_path, globals()[kind])
    if kind != "SPEAK_THEN_TRAP":
        with running("run", "--timeout", "60s", "--fuel", "unlimited", guest) as process:
            assert read_first(process) == b"said\n"
            assert process.poll() is None

    ended = stockade("run", "--timeout", "2s", "--fuel", "unlimited", guest)
    assert (ended.returncode, ended.stdout) == (134 if kind == "SPEAK_THEN_TRAP" else 124, b"said\n")


def test_live_does_nothing(tmp_path: Path) -> None:
    """Scripts that give it go on as they did."""
    done = stockade("run", "--live", save(tmp_path, HELLO))
    told = stockade("run", "--live", "--json", save(tmp_path, HELLO))

    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello world\n", b"")
    assert json.loads(told.stdout)["stdout"] == "hello world\n"
    assert b"--live" not in stockade("run", "--help").stdout


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, b"interrupted"), (signal.SIGTERM, 143, b"terminated")]
)
@pytest.mark.parametrize("kind", ["SPEAK_THEN_SLEEP", "SPEAK_THEN_LOOP"])
def test_signals_lose_nothing(tmp_path: Path, number: signal.Signals, status: int, word: bytes, kind: str) -> None:
    """Ctrl-C and SIGTERM end a guest that computes or sleeps; what it said before is there, and so is the report."""
    guest = save(tmp_path, globals()[kind])
    options = ("--timeout", "60s", "--fuel", "unlimited")
    with running("run", *options, guest) as process:
        first = read_first(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, first + out, err) == (status, b"said\n", b"stockade: " + word + b"\n")

    with running("run", "--report", *options, guest) as process:
        read_first(process)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert b"outcome  cancelled" in err
    assert re.search(rb"^ +stdout +5 B of 1\.0 MiB ", err, re.MULTILINE)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_json_whole(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """The report is one JSON document, with what the guest said."""
    # The guest lets us know that it runs by reading a pipe to its end, as only it does.
    guest = save(tmp_path, CAT)
    reading, writing = os.pipe()
    with running("run", "--json", "--timeout", "60s", guest, stdin=reading) as process:
        os.close(reading)
        os.write(writing, b"ready")
        while _unread(writing):
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    os.close(writing)

    report = json.loads(out)
    assert (process.returncode, report["outcome"], report["stdout"], err) == (status, "cancelled", "ready", b"")


def _unread(pipe: int) -> int:
    """How many bytes of a pipe wait to be read."""
    import fcntl
    import struct
    import termios

    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    "option", ["--json", *(pytest.param(option, marks=pytest.mark.slow) for option in ("--quiet", "--report"))]
)
def test_signals_while_compiling_are_reported(tmp_path: Path, option: str, number: signal.Signals, status: int) -> None:
    """A module that takes long to load and compile can be given up; the run that never began is reported on, too."""
    path = tmp_path / "large.wasm"
    path.write_bytes(large_module(400_000))
    policy = tmp_path / "p.toml"
    policy.write_text("[structure]\nfunctions = 1_000_000\n")
    with running("run", option, "--policy", policy, path) as process:
        wait_until_listening(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)

    assert process.returncode == status, (out, err)
    assert b"Traceback" not in err
    word = b"interrupted" if number is signal.SIGINT else b"terminated"
    if err == b"stockade: " + word + b"\n":  # nothing was known of the module yet
        assert out == b""
    elif option == "--json":
        assert (json.loads(out)["outcome"], err) == ("cancelled", b"")
    elif option == "--report":
        assert b"outcome  cancelled" in err
    else:
        assert (out, err) == (b"", b"")


@pytest.mark.parametrize("guest", [LOOP, SPEAK_THEN_TRAP, HELLO], ids=["timeout", "trap", "ok"])
def test_report_comes_on_every_ending(tmp_path: Path, guest: str) -> None:
    """Whoever asks for a report gets one."""
    path = save(tmp_path, guest)
    options = ("--timeout", "300ms", "--fuel", "unlimited")

    assert b"outcome  " in stockade("run", "--report", *options, path).stderr
    assert json.loads(stockade("run", "--json", *options, path).stdout)["outcome"] in ("timeout", "trap", "ok")


def test_report_comes_when_the_reader_leaves(tmp_path: Path) -> None:
    """`stockade run --report flood.wasm | head -1` ends the guest, and tells of it."""
    with running("run", "--report", "--timeout", "60s", save(tmp_path, FLOOD)) as process:
        read_first(process, 5)
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=60)

    assert b"outcome  cancelled" in err
    assert b"Traceback" not in err


def test_stdin_is_forwarded_as_it_comes(tmp_path: Path) -> None:
    """Each line that is written to a pipe is answered before the next one is."""
    with running("run", "--timeout", "60s", save(tmp_path, CAT), stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for line in (b"one\n", b"two\n", b"three\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert read_first(process) == line
        process.stdin.close()
        assert process.wait(60) == 0
        process.stdin = None


def test_stdin_of_a_file_is_passed_on(tmp_path: Path) -> None:
    """A file is read to its end."""
    data = bytes(range(256)) * 4000
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open("rb") as file, running("run", save(tmp_path, CAT), stdin=file) as process:
        out, err = process.communicate(timeout=60)

    assert (process.returncode, out == data, err) == (0, True, b"")


def test_stdin_of_a_terminal_is_passed_on(tmp_path: Path) -> None:
    """What is typed reaches the guest line by line, until Ctrl-D."""
    ours, theirs = pty.openpty()
    with running("run", "--timeout", "60s", save(tmp_path, CAT), stdin=theirs) as process:
        os.close(theirs)
        os.write(ours, b"one\n")
        assert read_first(process) == b"one\n"
        os.write(ours, b"two\n")
        assert read_first(process) == b"two\n"
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
    os.close(ours)


def test_policy_is_given_once(tmp_path: Path) -> None:
    """Two policies are a mistake: which of them should hold?"""
    guest = save(tmp_path, HELLO)
    twice = stockade("run", "--policy", "strict", "--policy", "minimal", guest)
    once = stockade("run", "--policy", "strict", guest)

    assert twice.returncode == 125
    assert b"Error: --policy is given more than once: there is one policy for a run\n" in twice.stderr
    assert (once.returncode, once.stdout) == (0, b"hello world\n")


def test_invoke_has_environment_and_stdin(tmp_path: Path) -> None:
    """A function that is called reads both, and what it writes comes before its value."""
    guest = save(tmp_path, ENVIRONMENT_AND_STDIN)

    done = stockade("run", "--invoke", "tell", "--env", "A=1", guest, stdin=b"typed")

    assert (done.returncode, done.stdout, done.stderr) == (0, b"A=1\0typed7\n", b"")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "1.5", "2"], "argument 1 of add is an i32: 1.5 is not a whole number"),
        (["add", "1", "two"], "argument 2 of add is an i32: two is not a whole number"),
        (["add", "1", ""], "argument 2 of add is an i32: '' is not a whole number"),
        (["add", "1.5"], "argument 1 of add is an i32: 1.5 is not a whole number"),
        (["half", "many"], "argument 1 of half is an f64: many is not a number"),
        (["wide", "0.5"], "argument 1 of wide is an i64: 0.5 is not a whole number"),
    ],
    ids=" ".join,
)
def test_invoke_names_the_argument_that_does_not_fit(tmp_path: Path, arguments: list[str], message: str) -> None:
    """It says which argument, what is wanted, and what was given."""
    name, *numbers = arguments

    done = stockade("run", "--invoke", name, save(tmp_path, NUMBERS), *numbers)

    assert (done.returncode, done.stdout) == (125, b"")
    assert f"Error: {message}\n" in done.stderr.decode()


def test_docker_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-v`, `-e` and `-m` mean what they mean there; but a folder is read-only unless asked for."""
    from tests._small_guests import ENVIRONMENT
    from tests.cli.test_run import CREATE

    guest = save(tmp_path, CREATE)
    data = tmp_path / "data:1"
    data.mkdir()
    assert stockade("run", "-v", f"{data}:/data", guest).returncode == 63  # errno perm
    assert stockade("run", "-v", f"{data}:/data:ro", guest).returncode == 63
    assert list(data.iterdir()) == []
    assert stockade("run", "-v", f"{data}:/data:rw", guest).returncode == 0
    assert [path.name for path in data.iterdir()] == ["new"]

    monkeypatch.setenv("MINE", "x=1")
    assert stockade("run", "-e", "A=1", "-e", "MINE", save(tmp_path, ENVIRONMENT)).stdout == b"A=1\0MINE=x=1\0"

    hungry = save(tmp_path, '(module (memory 17) (func (export "_start")))')
    assert stockade("run", "-m", "1m", hungry).returncode == 137
    assert stockade("run", "-m", "2m", hungry).returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-v", "data"], "-v data: write HOST:GUEST, such as ./data:/data, or HOST:GUEST:rw"),
        (["-v", "./data:data"], "-v ./data:data: the path in the guest must be absolute, as in ./data:/data"),
        (["-v", "./data:data:rw"], "-v ./data:data:rw: the path in the guest must be absolute, as in ./data:/data"),
        (["-v", "data:rw"], "-v data:rw: write HOST:GUEST, such as ./data:/data, or HOST:GUEST:rw"),
        (["-v", ".:/data:z"], "-v .:/data:z: the rights are ro or rw, not z"),
        (["-e", "NOT_SET_ANYWHERE"], "--env NOT_SET_ANYWHERE: NOT_SET_ANYWHERE is not set in the environment"),
        (["-m", "64q"], "--memory: '64q' is not a quantity such as \"128MiB\""),
    ],
)
def test_wrong_docker_spellings(tmp_path: Path, options: list[str], message: str) -> None:
    """What is wrong is said with the option that it is in."""
    done = stockade("run", *options, save(tmp_path, HELLO))

    assert done.returncode == 125
    assert message in done.stderr.decode()


def test_module_from_stdin(tmp_path: Path) -> None:
    """A module that comes by stdin runs; there is nothing left of stdin for the guest."""
    from stockade import Module

    binary = Module.load(save(tmp_path, CAT)).data

    assert stockade("run", "-", stdin=HELLO.encode()).stdout == b"hello world\n"
    done = stockade("run", "-", stdin=binary)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_empty_stdin_is_no_module() -> None:
    """It is told what was read."""
    done = stockade("run", "-", stdin=b"")

    assert done.returncode == 126
    assert b"Traceback" not in done.stderr
