"""A guest that never waits is lent nothing; where one comes to wait, its guard asks for what halts it."""

from __future__ import annotations

import ctypes
import dis
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from stockade import Mount, Outcome, Policy, Sandbox
from stockade.engine import ASKING, _asking
from stockade.engine._callbacks import skip_signal_check
from stockade.engine._capi import capi
from tests.conftest import wat

if TYPE_CHECKING:
    from pathlib import Path

    from stockade import Module, Report

_RATE = 200
_POLICY = Policy().replace(call_rate=_RATE, wall_time=30.0)


def _writer(name: str = "fd_write") -> Module:
    """A guest that calls one function of WASI so many times, and adds up what that returns. It imports no waits."""
    return wat(f"""
      (module
        (import "wasi_snapshot_preview1" "{name}" (func $call (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "\\08\\00\\00\\00\\01\\00\\00\\00.")
        (func (export "go") (param $fd i32) (param $times i32) (result i32)
          (local $sum i32)
          (loop $next
            (local.set $sum
              (i32.add (local.get $sum) (call $call (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 32))))
            (br_if $next (local.tee $times (i32.sub (local.get $times) (i32.const 1)))))
          (local.get $sum)))
    """)


WRITER = _writer()
# Nothing that it imports is a read or a write.
CLOCKS = wat("""
  (module
    (import "wasi_snapshot_preview1" "sched_yield" (func $call (result i32)))
    (memory (export "memory") 1)
    (func (export "go") (param i32) (param $times i32) (result i32)
      (loop $next
        (drop (call $call))
        (br_if $next (local.tee $times (i32.sub (local.get $times) (i32.const 1)))))
      (i32.const 0)))
""")


def _has_waited(report: Report) -> bool:
    """Whether it came to its end, and was kept waiting by the rate of calls before."""
    return report.ok and [(found.field, found.action) for found in report.violations] == [("limits.call_rate", "audit")]


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The names of natives that instances are lent before they run."""
    found: list[bytes] = []
    api = capi()
    # What is made once asks the library itself.
    _asking._callback(api)
    real = api.linker_get

    def counted(*args: Any) -> object:
        found.append(args[4])
        return real(*args)

    monkeypatch.setattr(api, "linker_get", counted)
    return found


@pytest.mark.parametrize("name", ASKING)
def test_nothing_is_lent_to_a_guest_before_it_waits(name: str, lookups: list[bytes]) -> None:
    """With a rate that it may come to exceed; and where it does, it waits."""
    sandbox, module = Sandbox(_POLICY), _writer(name)

    brief = sandbox.call(module, "go", 1, 3)
    long = sandbox.call(module, "go", 1, _RATE + 20)

    assert lookups == []
    assert brief.ok
    assert not brief.violations
    assert _has_waited(long)


def test_what_has_no_import_to_ask_by_is_lent_to_before(lookups: list[bytes]) -> None:
    """The twin: it waits, too."""
    report = Sandbox(_POLICY).call(CLOCKS, "go", 0, _RATE + 20)

    assert _has_waited(report)
    assert b"poll_oneoff" in lookups


def test_where_something_is_mounted_reads_and_writes_are_native(tmp_path: Path, lookups: list[bytes]) -> None:
    """What the guard would ask by has another use there; so it is lent before, and the guest waits."""
    report = Sandbox(_POLICY.replace(mounts=[Mount(tmp_path, "/data", "rw")])).call(WRITER, "go", 1, _RATE + 20)

    assert _has_waited(report)
    assert b"poll_oneoff" in lookups


def test_one_guest_waits_again_and_again() -> None:
    """Also in later calls of a session, in a snapshot's guests, and in a fork of it: each with a table of its own."""
    with Sandbox(_POLICY).open(WRITER, forks=True) as session:
        for _ in range(2):
            assert _has_waited(session.call("go", 1, _RATE + 10))
        with session.fork() as fork:
            forked = fork.call("go", 1, _RATE + 10)
        saved = session.snapshot()
    restored = Sandbox(_POLICY).call(saved, "go", 1, _RATE + 10)

    assert _has_waited(forked)
    assert _has_waited(restored)


def test_a_run_with_callbacks_waits_for_input_and_for_room() -> None:
    """A guest that imports no waits waits for stdin, which nobody has yet."""
    pieces = iter([None, None, b"ab", b""])

    with Sandbox().open(_writer("fd_read"), stdin=lambda _: next(pieces, b"")) as session:
        report = session.call("go", 0, 3)

    assert (report.outcome, report.value) == (Outcome.OK, 0)
    assert list(pieces) == []


@pytest.mark.parametrize(("name", "fds"), [("fd_write", (0, 99)), ("fd_read", (1, 2, 99))])
@pytest.mark.parametrize("is_mounted", [False, True])
def test_what_is_not_open_is_told_as_native_wasi_does(
    name: str, fds: tuple[int, ...], is_mounted: bool, tmp_path: Path
) -> None:
    """Attack: to have the host lend again and again, by writing to what is not there, where the guard asks by writing.

    A guard never asks for that. The twin has a mount, by which native WASI is asked.
    """
    mounts = [Mount(tmp_path, "/data")] if is_mounted else []

    for fd in fds:
        with Sandbox(_POLICY.replace(call_rate=None, mounts=mounts)).open(_writer(name)) as session:
            report = session.call("go", fd, 1_000)
        # EBADF.
        assert (report.outcome, report.value, report.stdout) == (Outcome.OK, 8 * 1_000, b"")


def test_a_guard_is_lent_to_once() -> None:
    """However often it should ask: each time takes room in the store."""
    with Sandbox(_POLICY).open(WRITER) as session:
        bed = session._guest._instance.bed
        assert bed.asks_of == session._guest._instance._context
        assert session.call("go", 1, _RATE).ok
        assert bed.asks_of != 0
        assert session.call("go", 1, 1).ok
        assert bed.asks_of == 0


def test_another_store_is_given_nothing() -> None:
    """Attack: a guard that asks for a guest which is not the one that runs. Its table stays empty, and it traps."""
    sandbox = Sandbox(_POLICY)
    with sandbox.open(WRITER) as session, sandbox.open(WRITER) as other:
        bed = session._guest._instance.bed
        bed.asks_of = other._guest._instance._context

        report = session.call("go", 1, _RATE + 1)
        unharmed = other.call("go", 1, _RATE + 1)

    assert report.outcome is Outcome.TRAP
    assert report.trap is not None
    assert report.trap.code == "indirect_call_to_null"
    assert report.stdout == b"." * _RATE
    assert unharmed.ok


def test_what_is_asked_makes_no_calls_and_begins_no_handler() -> None:
    """Attack: waiting for the first time while signals arrive. What a handler raised there would be lost."""
    steps = list(dis.get_instructions(_asking._lender(capi())))

    assert not [step.opname for step in steps if step.opname.startswith(("CALL", "PRECALL", "SEND", "YIELD"))]
    assert not [step.opname for step in steps if "BACKWARD" in step.opname]
    (resume,) = (step for step in steps if step.opname == "RESUME")
    assert resume.arg == 2


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="signals are POSIX's")
def test_no_handler_begins_where_the_library_is_called() -> None:
    """A signal that arrives in the call is handled when the function is over."""
    heard: list[int] = []
    kill = _asking._quiet(ctypes.PyDLL(None).kill)
    to, number = os.getpid(), signal.SIGUSR1.value

    def work() -> list[int]:
        (_,) = kill[((to, number),)]
        return heard[:]

    skip_signal_check(work)
    previous = signal.signal(signal.SIGUSR1, lambda *_: heard.append(number))
    try:
        during = work()
    finally:
        signal.signal(signal.SIGUSR1, previous)

    assert during == []
    assert heard == [number]


_AT_THE_LIMIT = """
import ctypes, gc, sys
from collections import Counter
import stockade
from stockade.engine import Instance

box = stockade.Sandbox(stockade.Policy().replace(wall_time=60.0, call_rate=1))
module = stockade.Module.load(bytes.fromhex(sys.argv[1]))
deepest = 0

def here(depth):
    if not sessions:
        global deepest
        deepest = max(deepest, depth)
    elif depth > deepest - len(instances):
        # Each asks once.
        instance = instances[depth - deepest]
        try:
            instance.begin(b"go", [("i32", 1), ("i32", 2)], ["i32"])
            instance.poll()
            became["waits" if instance.is_parked else "has ended" if instance.failure else "yields"] += 1
        except (RecursionError, ctypes.ArgumentError):
            became["does not run"] += 1

def through_python(depth):
    here(depth)
    through_python(depth + 1)

def through_c(depth):
    here(depth)
    min((depth,), key=through_c_again)

def through_c_again(depth):
    through_c(depth + 1)

for recurse in (through_python, through_c):
    deepest, sessions = 0, []
    for again in (False, True):
        if again:
            sessions = [box.open(module) for _ in range(60)]
            instances = [session._guest._instance for session in sessions]
        became = Counter()
        try:
            recurse(1)
        except (RecursionError, ctypes.ArgumentError):
            pass
    for session in sessions:
        session._guest._instance.abandon()
        session.close()
    # A tick may come before it waits.
    assert became["waits"] > 20 and not became["has ended"], became
print("over")
"""


def test_a_guard_may_ask_at_the_limit_of_recursion() -> None:
    """Attack: coming to wait where Python has no room left for what the guard asks, so that it is not answered.

    At each depth up to the limit the guest waits, or does not begin to run.
    """
    command = [sys.executable, "-X", "faulthandler", "-c", _AT_THE_LIMIT, WRITER.data.hex()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    assert (result.returncode, result.stdout, result.stderr) == (0, "over\n", "")
