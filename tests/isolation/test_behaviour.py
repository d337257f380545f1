"""The same sandbox, the same report, wherever runs happen."""

from __future__ import annotations

import asyncio
import math
import os
from typing import TYPE_CHECKING

import msgspec
import pytest

from stockade import (
    GuestTrap,
    HostCall,
    InvalidModule,
    IsolationError,
    JavaScript,
    LinkError,
    Outcome,
    Pipe,
    Policy,
    PolicyError,
    Python,
    Report,
    Sandbox,
    UsageError,
)
from stockade.host import I64  # noqa: TC001 - host functions are annotated with it
from stockade.policy import Mount
from tests.conftest import ECHO, HELLO, wat
from tests.execution.test_outcomes import imports

if TYPE_CHECKING:
    from pathlib import Path

    from stockade.execution import Isolation


def plain(report: Report) -> Report:
    """A report without what differs from one run to the next."""
    usage = msgspec.structs.replace(report.usage, wall_seconds=0.0, cpu_seconds=0.0)
    told = msgspec.structs.replace(report, usage=usage, timings=type(report.timings)(), fuel=None)
    return msgspec.structs.replace(told, isolation="inprocess")


ENDINGS = {
    "returns": "(nop)",
    "exits": "(call $proc_exit (i32.const 7))",
    "exits with 0": "(call $proc_exit (i32.const 0))",
    "exits with the largest code": "(call $proc_exit (i32.const -1))",
    "traps": "(unreachable)",
    "divides by zero": "(drop (i32.div_s (i32.const 1) (i32.const 0)))",
    "uses up its fuel": "(loop $l (br $l))",
    "recurses": "(call $again)",
    "grows too much": "(drop (memory.grow (i32.const 30000)))",
}


@pytest.mark.parametrize("body", ENDINGS.values(), ids=list(ENDINGS))
def test_reports_are_equal_wherever_a_module_runs(body: str) -> None:
    """Outcome, exit code, trap, usage, violations, limits: P-ISO-1."""
    module = wat(
        f'(module {imports("proc_exit")} (memory (export "memory") 1)'
        f'(func $again (export "again") (call $again)) (func (export "_start") {body}))'
    )
    policy = Policy().replace(fuel=1_000_000, memory="64MiB")

    here, there = (Sandbox(policy, isolation).run(module) for isolation in ("inprocess", "process"))

    assert plain(there) == plain(here)
    assert (there.fuel is None) == (here.fuel is None)


def test_what_a_guest_is_given(isolation: Isolation) -> None:
    """Arguments, environment and standard input arrive; output comes back, large ones too."""
    data = bytes(range(256)) * 2000
    report = Sandbox(Policy().replace(stdout="1MiB"), isolation).run(wat(ECHO), ["a", "b"], stdin=data, env={"A": "ä"})

    assert (report.outcome, report.stdout) == (Outcome.OK, data)


def test_output_beyond_the_limit_is_told(isolation: Isolation) -> None:
    """What is kept is what the policy says, and what was dropped is counted."""
    report = Sandbox(Policy().replace(stdout="1KiB"), isolation).run(wat(ECHO), stdin=b"x" * 100_000)

    assert len(report.stdout) <= 1024
    assert report.truncated.stdout == 100_000 - len(report.stdout)


ADD = """
(module
  (memory (export "memory") 1)
  (func (export "add") (param i32 i64 f64) (result f64)
    (f64.add (local.get 2) (f64.add (f64.convert_i32_s (local.get 0)) (f64.convert_i64_s (local.get 1)))))
  (func (export "two") (result i32 i64) (i32.const -1) (i64.const -2))
  (func (export "nan") (result f64) (f64.const nan))
  (func (export "infinite") (result f32) (f32.const inf))
  (func (export "vector") (param v128) (result v128) (local.get 0)))
"""


def test_values_cross(isolation: Isolation) -> None:
    """Numbers of all types, several at once, those that are none, and vectors."""
    box, module = Sandbox(isolation=isolation), wat(ADD)

    assert box.call(module, "add", -1, 2**40, 0.5).value == 2**40 - 0.5
    assert box.call(module, "two").value == [-1, -2]
    assert math.isnan(box.call(module, "nan").check().value)  # type: ignore[arg-type]
    assert box.call(module, "infinite").value == math.inf
    assert box.call(module, "vector", 2**127 + 5).value == (2**127 + 5).to_bytes(16, "little")
    assert box.call(module, "vector", b"0123456789abcdef").value == b"0123456789abcdef"


UPPER = """
(module
  (memory (export "memory") 1)
  (global $top (mut i32) (i32.const 1024))
  (func (export "malloc") (param i32) (result i32)
    (global.get $top) (global.set $top (i32.add (global.get $top) (local.get 0))))
  (func (export "free") (param i32))
  (func (export "same") (param i32 i32) (result i32 i32) (local.get 0) (local.get 1)))
"""


def test_texts_cross(isolation: Isolation) -> None:
    """Texts and bytes are passed and returned."""
    box, module = Sandbox(isolation=isolation), wat(UPPER)

    assert box.call(module, "same", "grün", returns="text").value == "grün"
    assert box.call(module, "same", b"\xff\0", returns="bytes").value == b"\xff\0"


def test_mistakes_of_the_caller_raise(isolation: Isolation) -> None:
    """In the same words, before anything runs."""
    box, module = Sandbox(isolation=isolation), wat(ADD)

    for kind, words, mistake in (
        (LinkError, "exports neither _start nor main", lambda: box.run(module)),
        (LinkError, "exports no function nope", lambda: box.call(module, "nope")),
        (UsageError, "add", lambda: box.call(module, "add", 1)),
        (UsageError, "zero byte", lambda: box.run(wat(HELLO), ["a\0b"])),
        (UsageError, "env is list", lambda: box.run(wat(HELLO), env=["A"])),  # type: ignore[arg-type]
        (InvalidModule, "not WebAssembly", lambda: box.run(b"nothing")),
        (LinkError, "env.f", lambda: box.run(wat('(module (import "env" "f" (func)) (func (export "_start")))'))),
    ):
        with pytest.raises(kind, match=words):
            mistake()


WRITER = f"""
(module
  {imports("path_open", "fd_write", "fd_close")}
  (memory (export "memory") 1)
  (data (i32.const 100) "made")
  (func (export "make") (result i32)
    (local $e i32)
    (local.set $e (call $path_open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 4)
      (i32.const 9) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 200)))
    (if (local.get $e) (then (return (local.get $e))))
    (i32.store (i32.const 0) (i32.const 100)) (i32.store (i32.const 4) (i32.const 4))
    (call $fd_write (i32.load (i32.const 200)) (i32.const 0) (i32.const 1) (i32.const 8))))
"""


def test_mounts_are_the_folders_that_were_opened(isolation: Isolation, tmp_path: Path) -> None:
    """A guest writes into its folder, and not where another one was put in its place. P-ISO-3."""
    folder = tmp_path / "folder"
    folder.mkdir()
    policy = Policy().replace(mounts=[Mount(folder, "/folder", "rw")], create=True)
    box = Sandbox(policy, isolation)
    folder.rename(tmp_path / "moved")
    folder.mkdir()

    report = box.call(wat(WRITER), "make")

    assert (report.value, report.usage.files_created, report.usage.written_bytes) == (0, 1, 4)
    assert (tmp_path / "moved" / "made").read_bytes() == b"made"
    assert list(folder.iterdir()) == []


def test_a_read_only_mount_stays_so(isolation: Isolation, tmp_path: Path) -> None:
    """The same guest, without the right to write."""
    report = Sandbox(Policy().replace(mounts=[Mount(tmp_path, "/folder")]), isolation).call(wat(WRITER), "make")

    assert report.value != 0
    assert list(tmp_path.iterdir()) == []


def test_a_policy_of_the_run_narrows(isolation: Isolation) -> None:
    """Both must permit, and the report names the two together."""
    box = Sandbox(Policy().replace(fuel=1_000_000), isolation)
    spin = wat('(module (func (export "_start") (loop $l (br $l))))')

    report = box.run(spin, policy=Policy().replace(fuel=1_000))

    assert (report.outcome, report.limits.fuel) == (Outcome.FUEL, 1_000)
    assert box.run(spin).limits.fuel == 1_000_000


def test_output_is_streamed_and_input_is_asked_for(isolation: Isolation) -> None:
    """Callbacks are called on this thread, with all that the guest wrote in its order."""
    given, taken = iter([b"one ", b"two ", b""]), []

    report = Sandbox(isolation=isolation).run(wat(ECHO), stdin=lambda _: next(given), on_stdout=taken.append)

    assert report.ok
    assert b"".join(taken) == b"one two "


def test_what_a_callback_raises_is_raised(isolation: Isolation) -> None:
    """And it ends the run, however long that would take."""
    endless = wat(
        HELLO.replace("(drop (call", "(loop $l (drop (call").replace("(i32.const 32)))", "(i32.const 32))) (br $l))")
    )

    def refuse(piece: bytes) -> None:
        raise ValueError(piece[:5])

    with pytest.raises(ValueError, match="hello"):
        Sandbox(isolation=isolation).run(endless, on_stdout=refuse)


def test_awaited_runs(isolation: Isolation) -> None:
    """Many at once; what is written to a pipe reaches the guest that waits for it."""

    async def both() -> list[Report]:
        async with Sandbox(isolation=isolation) as box:
            pipe = Pipe()
            waiting = asyncio.ensure_future(box.run_async(wat(ECHO), stdin=pipe))
            others = await asyncio.gather(*(box.run_async(wat(HELLO)) for _ in range(5)))
            pipe.write("late")
            pipe.close()
            return [*others, await waiting]

    *others, last = asyncio.run(both())

    assert all(report.stdout == b"hello world\n" for report in others)
    assert last.stdout == b"late"


SLEEPER = f"""
(module
  {imports("poll_oneoff")}
  (memory (export "memory") 1)
  (func (export "sleep") (param i64)
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (local.get 0))
    (drop (call $poll_oneoff (i32.const 0) (i32.const 1024) (i32.const 1) (i32.const 2048)))))
"""


def test_a_run_is_cancelled_while_it_sleeps(isolation: Isolation) -> None:
    """At once, and its report says so."""

    async def cancel() -> Report:
        box = Sandbox(isolation=isolation)
        sleeping = asyncio.ensure_future(box.call_async(wat(SLEEPER), "sleep", 3_600_000_000_000, run_id="it"))
        while not box.monitor():
            await asyncio.sleep(0.01)
        assert box.cancel("it")
        return await sleeping

    report = asyncio.run(asyncio.wait_for(cancel(), 60))

    assert report.outcome is Outcome.CANCELLED


def test_a_deadline_ends_what_sleeps(isolation: Isolation) -> None:
    """It is a timeout, and the time asleep is told."""
    report = Sandbox(Policy().replace(wall_time=0.2), isolation).call(wat(SLEEPER), "sleep", 3_600_000_000_000)

    assert report.outcome is Outcome.TIMEOUT
    assert report.usage.wall_seconds >= 0.2
    assert [violation.field for violation in report.violations] == ["limits.wall_time"]


@pytest.mark.parametrize("language", [Python, JavaScript])
def test_a_language_refuses_it_when_it_is_made(language: type[Python | JavaScript]) -> None:
    """Before there is anything to run; the twins are the tests of languages."""
    with pytest.raises(IsolationError, match="there is no isolation 'procss'"):
        language(isolation="procss")  # type: ignore[arg-type]
    with pytest.raises(IsolationError, match="is weaker"):
        language(Policy(isolation="process"), isolation="inprocess")


TOO_LARGE = """
(module (memory (export "memory") 40) (func (export "_start"))
  (func (export "f") (result i32) (i32.const 1)))
"""


def test_a_module_with_more_memory_than_the_policy_allows(isolation: Isolation) -> None:
    """It ends before it begins, and is the guest's doing, not a failure of the worker's."""
    box = Sandbox(Policy().replace(memory="1MiB"), isolation)

    for report in (box.run(wat(TOO_LARGE)), box.call(wat(TOO_LARGE), "f")):
        assert report.outcome is Outcome.MEMORY
        assert [violation.field for violation in report.violations] == ["limits.memory"]
        assert report.usage.wall_seconds < 10
    assert Sandbox(Policy().replace(memory="4MiB"), isolation).run(wat(TOO_LARGE)).ok


@pytest.mark.slow
@pytest.mark.parametrize(("language", "runtime"), [(Python, "cpython-3.12"), (JavaScript, "quickjs-ng")])
def test_an_interpreter_with_more_memory_than_the_policy_allows(
    isolation: Isolation, language: type[Python | JavaScript], runtime: str
) -> None:
    """The same for the module of an interpreter, whose code has not begun."""
    with language(Policy().replace(memory="1MiB"), isolation=isolation, runtime=runtime) as interpreter:
        try:
            told = interpreter.run("1").report.summary()
        except UsageError as problem:
            told = str(problem)
    assert "memory limit exceeded: initial memory of " in told
    assert "limits.memory allows 1.0 MiB" in told


def test_an_unknown_isolation_is_refused() -> None:
    """And the two that there are are named."""
    with pytest.raises(
        IsolationError, match='there is no isolation \'none\': use "inprocess", "process" or "bubblewrap"'
    ):
        Sandbox(isolation="none")  # type: ignore[arg-type]


def test_a_removed_mount_is_an_error(isolation: Isolation, tmp_path: Path) -> None:
    """In the same words."""
    folder = tmp_path / "folder"
    folder.mkdir()
    box = Sandbox(Policy().replace(mounts=[Mount(folder, "/folder")]), isolation)
    folder.rmdir()

    with pytest.raises(PolicyError, match="has lost its folder"):
        box.run(wat(HELLO))


CALLER = """
(module
  (import "env" "greet" (func $greet (param i32 i32 i32) (result i64)))
  (memory (export "memory") 1)
  (data (i32.const 8) "w\\c3\\b6rld")
  (func (export "ask") (param i32) (result i64) (call $greet (i32.const 8) (i32.const 6) (local.get 0))))
"""


@pytest.mark.parametrize("waits", [False, True], ids=["plain", "coroutine"])
def test_host_functions_are_called_here(isolation: Isolation, waits: bool) -> None:
    """With texts and numbers, as annotated; what they return reaches the guest."""
    box = Sandbox(isolation=isolation)
    seen: list[object] = []

    def note(name: str, number: int) -> int:
        seen.append((name, number))
        return -5

    if waits:

        @box.host_function("env", "greet")
        async def greet(name: str, number: int) -> I64:
            await asyncio.sleep(0)
            return note(name, number)

        report = asyncio.run(box.call_async(wat(CALLER), "ask", 7))
    else:

        @box.host_function("env", "greet")
        def greet_at_once(name: str, number: int) -> I64:
            return note(name, number)

        report = box.call(wat(CALLER), "ask", 7)

    assert (report.value, seen, report.usage.host_calls) == (-5, [("wörld", 7)], 1)


def test_a_coroutine_function_has_a_loop_of_its_own(isolation: Isolation) -> None:
    """Where no loop awaits the run."""
    box = Sandbox(isolation=isolation)

    @box.host_function("env", "greet")
    async def greet(name: str, number: int) -> I64:
        await asyncio.sleep(0.01)
        return len(name) + number

    assert box.call(wat(CALLER), "ask", 7).value == 12


def test_what_a_host_function_raises_ends_that_run_only(isolation: Isolation) -> None:
    """As a trap, whose cause the embedder gets; the next run goes well."""
    box = Sandbox(isolation=isolation)

    @box.host_function("env", "greet")
    def greet(name: str, number: int) -> I64:
        if number == 1:
            raise ValueError(f"no {name}")
        return number

    report = box.call(wat(CALLER), "ask", 1)

    assert (report.outcome, report.trap and report.trap.message) == (
        Outcome.TRAP,
        "env.greet raised ValueError: no wörld",
    )
    with pytest.raises(GuestTrap) as failure:
        report.check()
    assert isinstance(failure.value.__cause__, ValueError)
    assert box.call(wat(CALLER), "ask", 2).value == 2


def test_a_capability_that_is_not_granted_is_denied(isolation: Isolation) -> None:
    """The function is not called."""
    called = []
    for granted in (False, True):
        box = Sandbox(Policy().replace(custom={"greeting": granted}), isolation)

        @box.host_function("env", "greet", requires="greeting")
        def greet(name: str, number: int) -> I64:
            called.append(name)
            return number

        report = box.call(wat(CALLER), "ask", 3)

        assert report.outcome is (Outcome.OK if granted else Outcome.DENIED)
    assert called == ["wörld"]


def test_a_host_function_that_outlasts_the_deadline(isolation: Isolation) -> None:
    """Whatever it comes to, it is too late."""
    box = Sandbox(Policy().replace(wall_time=0.3), isolation)

    @box.host_function("env", "greet")
    async def greet(name: str, number: int) -> I64:
        await asyncio.sleep(3600)
        return number

    report = asyncio.run(box.call_async(wat(CALLER), "ask", 3))

    assert report.outcome is Outcome.TIMEOUT


CALLED_BACK = CALLER.replace(
    '(func (export "ask")',
    """(global $depth (mut i32) (i32.const 0))
    (func (export "twice") (param i32) (result i32) (i32.mul (i32.const 2) (local.get 0)))
    (func (export "again") (param i32) (result i64)
      (call $greet (i32.const 8) (i32.const 6) (i32.sub (local.get 0) (i32.const 1))))
    (func (export "trap") (unreachable))
    (func (export "ask")""",
)


@pytest.mark.parametrize("waits", [False, True], ids=["plain", "coroutine"])
def test_a_function_that_takes_the_call_reaches_the_guest(isolation: Isolation, waits: bool) -> None:
    """It reads and writes the guest's memory, and calls its exports, these the function again. P-ISO-1."""
    box = Sandbox(isolation=isolation)
    seen: list[object] = []

    def begin(call: HostCall, address: int, size: int, number: int) -> None:
        seen.append((call.memory.read_text(address, size), number))
        assert call.memory.size_bytes == 65_536
        call.memory.write(address, b"W")
        with pytest.raises(IndexError, match="not inside 65,536"):
            call.memory.read(65_530, 7)

    if waits:

        @box.host_function("env", "greet")
        async def greet(call: HostCall, address: int, size: int, number: int) -> I64:
            begin(call, address, size, number)
            if number:
                value = await call.call_async("again", number)
                assert isinstance(value, int)
                return value + 1
            twice = await call.call_async("twice", 21)
            assert isinstance(twice, int)
            return twice

        report = asyncio.run(box.call_async(wat(CALLED_BACK), "ask", 2))
    else:

        @box.host_function("env", "greet")
        def greet_at_once(call: HostCall, address: int, size: int, number: int) -> I64:
            begin(call, address, size, number)
            value = call.call("again", number) if number else call.call("twice", 21)
            assert isinstance(value, int)
            return value + 1 if number else value

        report = box.call(wat(CALLED_BACK), "ask", 2)

    assert (report.value, report.usage.host_calls) == (44, 3)
    assert seen == [("wörld", 2), ("Wörld", 1), ("Wörld", 0)]


def test_a_guest_that_ends_while_it_is_called_back_has_ended(isolation: Isolation) -> None:
    """Whatever the function makes of that; and its memory is gone with the call."""
    box = Sandbox(isolation=isolation)
    kept: list[HostCall] = []

    @box.host_function("env", "greet")
    def greet(call: HostCall, address: int, size: int, number: int) -> I64:
        kept.append(call)
        with pytest.raises(GuestTrap):
            call.call("trap")
        with pytest.raises(UsageError, match="has ended in a call that this host function made"):
            call.call("twice", 1)
        return number

    report = box.call(wat(CALLED_BACK), "ask", 2)

    assert (report.outcome, report.trap and report.trap.code) == (Outcome.TRAP, "unreachable")
    with pytest.raises(UsageError, match="while the host function runs"):
        assert kept[0].memory


@pytest.mark.parametrize("swallowed", [False, True])
def test_what_is_no_exception_goes_through_a_call_within(isolation: Isolation, swallowed: bool) -> None:
    """Attack on the host by itself: a function swallows KeyboardInterrupt, and answers in the place of another."""
    box = Sandbox(isolation=isolation)

    @box.host_function("env", "greet")
    def greet(call: HostCall, address: int, size: int, number: int) -> I64:
        if number == 0:
            raise KeyboardInterrupt
        try:
            call.call("again", number)
        except KeyboardInterrupt:
            if not swallowed:
                raise
        return 5

    with pytest.raises(KeyboardInterrupt):
        box.call(wat(CALLED_BACK), "ask", 2)


def test_a_policy_that_only_takes_note_lets_calls_through(isolation: Isolation) -> None:
    """Attack on the host by itself: it ends a worker that does what it may."""
    box = Sandbox(Policy(on_violation="audit").replace(calls=1), isolation)

    @box.host_function("env", "greet")
    def greet(call: HostCall, address: int, size: int, number: int) -> I64:
        value = call.call("again", number) if number else 0
        assert isinstance(value, int)
        return value

    report = box.call(wat(CALLED_BACK), "ask", 3)

    assert (report.outcome, report.usage.host_calls) == (Outcome.OK, 4)
    assert [(violation.kind, violation.action) for violation in report.violations] == [("calls", "audit")]


@pytest.mark.parametrize("by", ["stdin", "function"])
def test_a_run_that_is_cancelled_by_what_it_waits_for_is_cancelled(isolation: Isolation, by: str) -> None:
    """The guest, which would be over at once, has no part in what comes after."""
    box = Sandbox(isolation=isolation)

    def stdin(size: int) -> bytes:
        assert box.cancel("it")
        return b""

    @box.host_function("env", "greet")
    def greet(name: str, number: int) -> I64:
        assert box.cancel("it")
        return number

    if by == "stdin":
        report = box.run(wat(ECHO), stdin=stdin, run_id="it")
    else:
        report = box.call(wat(CALLER), "ask", 1, run_id="it")

    assert (report.outcome, report.exit_code, report.violations) == (Outcome.CANCELLED, None, ())


def test_variables_that_are_no_utf8_arrive(isolation: Isolation) -> None:
    """What came from the system goes back as it was."""
    odd = os.fsdecode(b"\xff")

    assert Sandbox(isolation=isolation).run(wat(ECHO), args=[odd, b"\xff"], env={"A": odd, odd: "b"}).ok
