"""Host functions that call the guest that calls them: in the same budget, on the same stack, and never a second call.

Holds P-HOST-4.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from stockade import F32, F64, I64, HostCall, Outcome, Policy, Sandbox, Scheduler, Session, Task, UsageError
from stockade.errors import GuestExit, GuestTrap, LimitExceeded, LinkError
from stockade.guard import guard, weave
from tests._processes import live_instances
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade import AsyncSession, Module, Report

pytestmark = pytest.mark.usefixtures("everywhere")


def lending(function: Callable[..., object], **changes: object) -> Sandbox:
    """A sandbox that lends one function, as env.f."""
    sandbox = Sandbox(Policy().replace(**changes))
    sandbox.host_function("env", "f")(function)
    return sandbox


GUEST = wat("""
(module
  (import "env" "f" (func $f (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "\\28\\00\\00\\00\\03\\00\\00\\00")
  (data (i32.const 40) "ab\\n")
  (export "again" (func $f))
  (func (export "go") (param i32) (result i32) (call $f (local.get 0)))
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "all") (param i32 i64 f32 f64 v128) (result v128 f64 f32 i64 i32)
    (local.get 4) (local.get 3) (local.get 2) (local.get 1) (local.get 0))
  (func (export "trap") unreachable)
  (func (export "exit") (param i32) (call $exit (local.get 0)))
  (func (export "spin") (loop $again (br $again)))
  (func $dive (export "dive") (call $dive))
  (func (export "grow") (result i32) (memory.grow (i32.const 1)))
  (func (export "write") (result i32) (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 32)))
  (func (export "sleep") (param i64) (result i32)
    (i64.store (i32.const 1048) (local.get 0))
    (i32.store (i32.const 1040) (i32.const 1))
    (i64.store (i32.const 1056) (i64.const 0))
    (i32.store16 (i32.const 1064) (i32.const 0))
    (i64.store (i32.const 1048) (local.get 0))
    (call $poll (i32.const 1024) (i32.const 2048) (i32.const 1) (i32.const 3000)))
  (func (export "malloc") (param i32) (result i32) (i32.const 4096))
  (func (export "free") (param i32))
  (func (export "echo") (param i32 i32) (result i32 i32) (local.get 0) (local.get 1)))
""")


# -- plain functions ------------------------------------------------------------------------------------------------


def test_it_calls_the_guest_that_calls_it() -> None:
    """Three deep; each level has the value of the one within. One call of the session is told, with all host calls."""

    def f(call: HostCall, number: int) -> int:
        if not number:
            return 0
        value = call.call("go", number - 1)
        assert isinstance(value, int)
        total = call.call("add", value, number)
        assert isinstance(total, int)
        return total

    sandbox = lending(f)
    report = sandbox.call(GUEST, "go", 3)
    assert (report.value, report.usage.host_calls) == (6, 4)
    with Scheduler(sandbox) as scheduler:
        assert scheduler.submit(Task(module=GUEST, export="go", args=[3])).result().value == 6
    assert asyncio.run(sandbox.call_async(GUEST, "go", 3)).value == 6
    with sandbox.open(GUEST) as session:
        assert [session.call("go", number).value for number in range(5)] == [0, 1, 3, 6, 10]


def test_the_session_itself_can_be_called_on_its_thread() -> None:
    """`Session.call` within the function returns a report on that call; the next call of the session is its own."""
    reports: list[Report] = []

    def f(number: int) -> int:
        reports.append(session.call("add", number, 1))
        value = reports[-1].value
        assert isinstance(value, int)
        return value

    with lending(f).open(GUEST) as session:
        for number in (4, 5):
            report = session.call("go", number)
            assert (report.value, report.usage.host_calls) == (number + 1, 1)
    assert [(report.outcome, report.value) for report in reports] == [(Outcome.OK, 5), (Outcome.OK, 6)]


def test_every_type_of_value_crosses() -> None:
    """All at once, as the guest has them; integers come back signed, as from any call."""
    seen: list[object] = []

    def f(call: HostCall, number: int) -> int:
        seen.append(call.call("all", 2**32 - 1, -5, 1.5, -2.5, bytes(range(16))))
        seen.append(call.call("all", 7, 2**64 - 1, float("inf"), 1, 1))
        return number

    assert lending(f).call(GUEST, "go", 1).ok
    assert seen == [
        [bytes(range(16)), -2.5, 1.5, -5, -1],
        [(1).to_bytes(16, "little"), 1.0, float("inf"), -1, 7],
    ]


def test_texts_cross() -> None:
    """By the guest's own allocator, as in any call."""
    seen: list[object] = []

    def f(call: HostCall, number: int) -> int:
        seen.extend((call.call("echo", "héllo", returns="text"), call.call("echo", b"\xff", returns="bytes")))
        return number

    assert lending(f).call(GUEST, "go", 1).ok
    assert seen == ["héllo", b"\xff"]


def test_the_guest_may_wait_and_write_within() -> None:
    """Waits of its own are no calls of host functions; what it writes is in the one report."""

    def f(call: HostCall, number: int) -> int:
        assert call.call("sleep", 1_000_000) == 0
        assert call.call("write") == 0
        return number

    report = lending(f).call(GUEST, "go", 9)
    assert (report.value, report.stdout, report.usage.calls) == (9, b"ab\n", {"fd_write": 1, "poll_oneoff": 1})
    assert report.usage.idle_seconds > 0


def test_the_memory_is_as_large_as_the_guest_has_made_it_within() -> None:
    """It grows in the call of the export."""
    sizes: list[int] = []

    def f(call: HostCall, number: int) -> int:
        memory = call.memory
        sizes.append(memory.size_bytes)
        call.call("grow")
        sizes.append(memory.size_bytes)
        memory.write(2 * 65_536 - 1, b"x")
        return number

    assert lending(f).call(GUEST, "go", 1).ok
    assert sizes == [65_536, 2 * 65_536]


def test_an_import_that_is_exported_again_is_called_like_any_export() -> None:
    """It goes by the guard, and is counted."""

    def f(call: HostCall, number: int) -> int:
        value = call.call("again", number - 1) if number else 0
        assert isinstance(value, int)
        return value + 1

    report = lending(f).call(GUEST, "go", 2)
    assert (report.value, report.usage.host_calls) == (3, 3)
    assert lending(f, calls=2).call(GUEST, "go", 2).outcome is Outcome.DENIED


def test_start_functions_and_initializers() -> None:
    """Attack: what they call calls the guest back, which is not initialized yet. It is the guest's own doing."""

    def f(call: HostCall, number: int) -> int:
        seen.append((number, call.call("count")))
        return number

    seen: list[object] = []
    module = wat("""
    (module (import "env" "f" (func $f (param i32) (result i32)))
      (global $count (mut i32) (i32.const 0))
      (func $count (export "count") (result i32)
        (global.set $count (i32.add (global.get $count) (i32.const 1))) (global.get $count))
      (func $start (drop (call $f (i32.const 1)))) (start $start)
      (func (export "_initialize") (drop (call $f (i32.const 2))))
      (func (export "go") (result i32) (call $f (i32.const 3))))
    """)
    with lending(f).open(module) as session:
        assert session.call("go").value == 3
    assert seen == [(1, 1), (2, 2), (3, 3)]


# -- what cannot be called -------------------------------------------------------------------------------------------


def test_what_there_is_not_is_told() -> None:
    """The function goes on, for nothing of the guest has run."""
    problems: list[str] = []

    def f(call: HostCall, number: int) -> int:
        for export, arguments in (("nothing", ()), ("add", (1,)), ("add", ("x", 1)), ("memory", ())):
            with pytest.raises((LinkError, UsageError)) as caught:
                call.call(export, *arguments)
            problems.append(str(caught.value).partition(";")[0])
        return number

    assert lending(f).call(GUEST, "go", 4).value == 4
    assert len(problems) == 4
    assert problems[1].startswith("add(i32, i32) -> (i32)") or "add" in problems[1]


def test_a_module_with_very_many_exports() -> None:
    """Attack: the weaver writes code for each export. It is bounded, and what is beyond it is told."""
    names = " ".join(f'(func (export "e{number}") (result i32) (i32.const {number}))' for number in range(3000))
    many = wat(
        f'(module (import "env" "f" (func $f (result i32))) (func (export "go") (result i32) (call $f)) {names})'
    )
    wide = wat(
        f'(module (import "env" "f" (func $f)) (func $wide (param {"i64 " * 1000}))'
        + " ".join(f'(export "e{number}" (func $wide))' for number in range(500))
        + " ".join(f'(func (export "w{number}") (param {"i64 " * 1000}))' for number in range(100))
        + ")"
    )
    for module, added in ((many, 60_000), (wide, 60_000)):
        assert len(weave(module.data, guard()).wasm) - len(module.data) < added

    def f(call: HostCall) -> int:
        value = call.call("e100")
        with pytest.raises(UsageError) as caught:
            call.call("e2000")
        assert str(caught.value) == (
            "e2000 cannot be called while the guest is halted in a host function: the module exports too many "
            "functions, or this one takes or returns too many values"
        )
        assert isinstance(value, int)
        return value

    assert lending(f).call(many, "go").value == 100


def test_the_depth_is_bounded() -> None:
    """Attack: guest and host call one another for ever. It ends in words, long before either stack does."""

    def f(call: HostCall, number: int) -> int:
        call.call("go", number + 1)
        return number

    report = lending(f).call(GUEST, "go", 0)
    assert report.outcome is Outcome.TRAP
    assert report.trap is not None
    assert report.trap.message == (
        "env.f raised UsageError: host functions and exports of the guest call one another 32 deep, and may go no "
        "deeper"
    )
    assert report.usage.host_calls == 33


def test_a_guest_that_dives_within_has_the_stack_of_the_whole() -> None:
    """Attack: each level of calls begins with a stack of its own."""

    def f(call: HostCall, number: int) -> int:
        call.call("dive")
        return number

    assert lending(f).call(GUEST, "go", 0).outcome is Outcome.STACK


def test_who_keeps_the_call_cannot_call_later() -> None:
    """When the function has returned, and when the guest is gone; nor from another thread while it runs."""
    kept: list[HostCall] = []
    problems: list[str] = []

    def f(call: HostCall, number: int) -> int:
        kept.append(call)

        def elsewhere() -> None:
            with pytest.raises(UsageError) as caught:
                call.call("add", 1, 1)
            problems.append(str(caught.value))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return number

    with lending(f).open(GUEST) as session:
        session.call("go", 1)
        with pytest.raises(UsageError) as caught:
            kept[0].call("add", 1, 1)
    assert str(caught.value) == "the call of the host function is over, and its guest is not halted in it any more"
    assert problems == ["the guest's memory is for the thread that the guest runs on: copy what you need"]


def test_a_session_is_not_called_by_another_thread_meanwhile() -> None:
    """Only the function that the guest waits for may call it."""
    problems: list[str] = []

    def f(number: int) -> int:
        def elsewhere() -> None:
            with pytest.raises(UsageError) as caught:
                session.call("add", 1, 1)
            problems.append(str(caught.value))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return number

    with lending(f).open(GUEST) as session:
        assert session.call("go", 1).ok
    assert problems == ["the session is in use by another thread: give each thread a session of its own"]


# -- how it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_session", [False, True])
def test_a_guest_that_ends_within_has_ended(by_session: bool) -> None:
    """Whatever the function makes of it: its result is for nobody. The report tells how the guest has ended."""
    seen: list[Outcome | type[Exception]] = []
    sessions: list[Session] = []

    def f(call: HostCall, number: int) -> int:
        export, arguments = (("trap", ()), ("exit", (0,)), ("exit", (3,)), ("dive", ()))[number]
        if by_session:
            seen.append(sessions[0].call(export, *arguments).outcome)
        else:
            with pytest.raises((GuestTrap, GuestExit, LimitExceeded)) if number != 1 else pytest.MonkeyPatch.context():
                call.call(export, *arguments)
        return 77

    sandbox = lending(f)
    outcomes = [Outcome.TRAP, Outcome.OK, Outcome.EXIT, Outcome.STACK]
    for number, outcome in enumerate(outcomes):
        with sandbox.open(GUEST) as session:
            sessions[:] = [session]
            report = session.call("go", number)
            assert (report.outcome, report.value) == (outcome, None)
            assert report.exit_code == {1: 0, 2: 3}.get(number)
            with pytest.raises(UsageError, match="the guest has ended, so the session is over"):
                session.call("add", 1, 1)
    assert seen == (outcomes if by_session else [])
    assert live_instances() == 0


@pytest.mark.parametrize("export", ["trap", "exit", "dive"])
@pytest.mark.parametrize("then", ["returns", "raises", "requires"])
def test_a_guest_that_has_ended_within_is_not_called_again(export: str, then: str) -> None:
    """Attack: it ends within a host function that tries again, as functions with retries do.

    There is no call that could go on, so none is made; and the report is of how the guest has ended, whatever the
    function does then.
    """
    problems: list[str] = []

    def f(call: HostCall, number: int) -> int:
        for _ in range(3):
            with pytest.raises((GuestTrap, GuestExit, LimitExceeded, UsageError)) as caught:
                call.call(export, *((3,) if export == "exit" else ()))
            problems.append(f"{type(caught.value).__name__}: {caught.value}")
        if then == "raises":
            raise ValueError("no more")
        if then == "requires":
            call.require("more.tries")
        return number

    report = lending(f).call(GUEST, "go", 1)
    assert report.outcome is {"trap": Outcome.TRAP, "exit": Outcome.EXIT, "dive": Outcome.STACK}[export]
    assert "no more" not in report.summary()
    assert "more.tries" not in {violation.subject for violation in report.violations}
    again = "UsageError: the guest has ended in a call that this host function made, and cannot be called again"
    assert problems[1:] == [again, again]


def test_fuel_and_time_are_those_of_the_call_around() -> None:
    """Attack: a guest gets a new budget with each call that the host makes."""

    def f(call: HostCall, number: int) -> int:
        call.call("spin")
        return number

    report = lending(f, fuel=5_000_000).call(GUEST, "go", 1)
    assert (report.outcome, report.usage.fuel) == (Outcome.FUEL, 5_000_000)
    report = lending(f, fuel=None, wall_time=1.0).call(GUEST, "go", 1)
    assert report.outcome is Outcome.TIMEOUT
    report = asyncio.run(lending(f, fuel=None, wall_time=1.0).call_async(GUEST, "go", 1))
    assert report.outcome is Outcome.TIMEOUT


def test_a_cancelled_session_calls_nothing_any_more() -> None:
    """Cancelled by the function itself: the guest does not run within, nor after it."""

    def f(call: HostCall, number: int) -> int:
        session.cancel()
        with pytest.raises(Exception, match="cancelled"):
            call.call("spin")
        return number

    with lending(f).open(GUEST) as session:
        assert session.call("go", 1).outcome is Outcome.CANCELLED


def test_the_session_cannot_be_closed_or_forked_within() -> None:
    """Its guest is halted in the call."""

    def f(call: HostCall, number: int) -> int:
        for what in (session.close, session.fork, session.snapshot, lambda: session.read_memory(0, 1)):
            with pytest.raises(UsageError):
                what()
        value = call.call("add", number, 1)
        assert isinstance(value, int)
        return value

    with lending(f).open(GUEST) as session:
        assert session.call("go", 1).value == 2


def test_an_exception_within_ends_all_of_it() -> None:
    """The inner function raises; the outer one does not hear of it as of one of its own, and cannot save the guest."""
    outer: list[str] = []

    def f(call: HostCall, number: int) -> int:
        if number == 0:
            raise ValueError("inner")
        try:
            call.call("go", 0)
        except GuestTrap as problem:
            outer.append(problem.report.trap.message if problem.report.trap else "")
        return 5

    report = lending(f).call(GUEST, "go", 1)
    assert outer == ["env.f raised ValueError: inner"]
    assert report.trap is not None
    assert report.trap.message == "env.f raised ValueError: inner"


@pytest.mark.parametrize("swallowed", [False, True])
def test_what_is_no_exception_goes_through_all_of_it(swallowed: bool) -> None:
    """Attack on the host by itself: a function swallows KeyboardInterrupt, and answers in the place of another."""

    def f(call: HostCall, number: int) -> int:
        if number == 0:
            raise KeyboardInterrupt
        try:
            call.call("go", number - 1)
        except KeyboardInterrupt:
            if not swallowed:
                raise
        return 5

    sandbox = lending(f)
    with pytest.raises(KeyboardInterrupt):
        sandbox.call(GUEST, "go", 3)
    assert live_instances() == 0


def test_an_exception_of_the_guests_does_not_leave_a_call_of_the_host() -> None:
    """Attack: an export that the host calls throws, and the guest catches that around its call of the host function.

    The host would wait for the export to return, and take whatever the guest calls next for a call within.
    """
    seen: list[int] = []

    def f(call: HostCall, number: int) -> int:
        seen.append(number)
        if number == 1:
            with pytest.raises(GuestTrap, match="unreachable"):
                call.call("throw")
        return number

    module = wat("""
    (module
      (import "env" "f" (func $f (param i32) (result i32)))
      (tag $tag)
      (func (export "throw") (throw $tag))
      (func (export "go") (param i32) (result i32)
        (block $caught
          (drop (try_table (result i32) (catch $tag $caught) (call $f (local.get 0)))))
        (call $f (i32.const 2))))
    """)
    sandbox = lending(f)
    report = sandbox.call(module, "go", 1)
    assert (report.outcome, report.value, seen) == (Outcome.TRAP, None, [1])
    assert sandbox.call(module, "go", 3).value == 2


def test_a_capability_may_be_missing_within() -> None:
    """It ends the run as denied, also where the outer function goes on."""

    def f(call: HostCall, number: int) -> int:
        if number == 0:
            call.require("gpu")
        with pytest.raises(Exception, match="gpu"):
            call.call("go", 0)
        return 5

    report = lending(f).call(GUEST, "go", 1)
    assert report.outcome is Outcome.DENIED
    assert [(found.kind, found.subject) for found in report.violations] == [("capability", "gpu")]


def test_it_may_also_run_other_guests() -> None:
    """Of the same sandbox and module, between two calls of its own."""

    def f(call: HostCall, number: int) -> int:
        if number == 0:
            return 1
        mine, other = call.call("add", number, 0), sandbox.call(GUEST, "go", 0).value
        again = call.call("add", number, 0)
        assert isinstance(mine, int)
        assert isinstance(other, int)
        assert mine == again
        return mine + other

    sandbox = lending(f)
    assert sandbox.call(GUEST, "go", 41).value == 42


# -- coroutine functions -----------------------------------------------------------------------------------------------


def test_a_coroutine_function_calls_the_guest_back() -> None:
    """By every entry point, three deep."""

    async def f(call: HostCall, number: int) -> int:
        await asyncio.sleep(0)
        if not number:
            return 0
        value = await call.call_async("go", number - 1)
        total = await call.call_async("add", value, number)  # type: ignore[arg-type]
        assert isinstance(total, int)
        return total

    sandbox = lending(f)
    assert sandbox.call(GUEST, "go", 3).value == 6
    assert asyncio.run(sandbox.call_async(GUEST, "go", 3)).value == 6
    with Scheduler(sandbox) as scheduler:
        assert scheduler.submit(Task(module=GUEST, export="go", args=[3])).result().value == 6


def test_an_awaited_session_can_be_called_in_the_coroutine() -> None:
    """Also by tasks that it has made, one after the other; a task that outlives it finds a session like any other."""
    reports: list[Report] = []
    sessions: list[AsyncSession] = []

    async def f(number: int) -> int:
        session = sessions[0]
        reports.extend(await asyncio.gather(*(session.call("add", number, place) for place in range(5))))
        late.append(asyncio.ensure_future(later(session)))
        return number

    async def later(session: AsyncSession) -> Report:
        await go.wait()
        return await session.call("add", 40, 2)

    late: list[asyncio.Task[Report]] = []

    async def main() -> None:
        nonlocal go
        go = asyncio.Event()
        async with await lending(f).open_async(GUEST) as session:
            sessions.append(session)
            assert (await session.call("go", 10)).value == 10
            go.set()
            report = await late[0]
            assert (report.value, report.usage.wall_seconds > 0) == (42, True)

    go = asyncio.Event()
    asyncio.run(main())
    assert [report.value for report in reports] == [10, 11, 12, 13, 14]


def test_other_tasks_do_not_call_a_session_that_is_in_a_call() -> None:
    """Only who is in the context of the host function may."""

    async def f(number: int) -> int:
        there.set()
        await go.wait()
        return number

    there = go = asyncio.Event()

    async def main() -> None:
        nonlocal there, go
        there, go = asyncio.Event(), asyncio.Event()
        async with await lending(f).open_async(GUEST) as session:
            call = asyncio.ensure_future(session.call("go", 1))
            await there.wait()
            with pytest.raises(UsageError, match="in use by another thread"):
                await session.call("add", 1, 1)
            go.set()
            assert (await call).ok

    asyncio.run(main())


def test_a_guest_that_ends_within_a_coroutine_has_ended() -> None:
    """The coroutine is told, and what it makes of it is for nobody; or it is cancelled with the run."""
    seen: list[str] = []

    async def f(call: HostCall, number: int) -> int:
        try:
            await call.call_async("trap" if number == 0 else "spin")
        except (GuestTrap, LimitExceeded) as problem:
            seen.append(type(problem).__name__)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return 5

    for call in (
        lambda sandbox, number: sandbox.call(GUEST, "go", number),
        lambda sandbox, number: asyncio.run(sandbox.call_async(GUEST, "go", number)),
    ):
        seen.clear()
        assert call(lending(f), 0).outcome is Outcome.TRAP
        assert call(lending(f, fuel=1_000_000), 1).outcome is Outcome.FUEL
        assert call(lending(f, fuel=None, wall_time=1.0), 1).outcome is Outcome.TIMEOUT
        assert len(seen) <= 3
    assert live_instances() == 0


def test_each_kind_of_function_has_its_own_way() -> None:
    """What the other one would need is told."""

    def plain(call: HostCall, number: int) -> int:
        with pytest.raises(UsageError) as caught:
            call.call_async("add", 1, 1).send(None)
        problems.append(str(caught.value))
        return number

    async def awaited(call: HostCall, number: int) -> int:
        with pytest.raises(UsageError) as caught:
            call.call("add", 1, 1)
        problems.append(str(caught.value))
        return number

    problems: list[str] = []
    for function in (plain, awaited):
        assert lending(function).call(GUEST, "go", 1).ok
    assert problems == [
        "only a coroutine function can await the guest's functions: call HostCall.call",
        "a coroutine function awaits the guest's functions: await HostCall.call_async",
    ]


def test_types_of_a_function_called_by_its_own_results() -> None:
    """Attack: the values of a call within lie where those of the call around will; each is written last."""

    def f(call: HostCall, a: int, b: I64, c: F32, d: F64) -> tuple[F64, F32, I64, int]:
        for _ in range(3):
            call.call("noise", 2**63 - 1, 0.1, 7)
        return d, c, b, a

    module: Module = wat("""
    (module (import "env" "f" (func $f (param i32 i64 f32 f64) (result f64 f32 i64 i32)))
      (func (export "noise") (param i64 f64 i32) (result i32 f64 i64) (local.get 2) (local.get 1) (local.get 0))
      (func (export "go") (param i32 i64 f32 f64) (result f64 f32 i64 i32)
        (call $f (local.get 0) (local.get 1) (local.get 2) (local.get 3))))
    """)
    assert lending(f).call(module, "go", 1, -2, 0.5, -0.25).value == [-0.25, 0.5, -2, 1]


# -- exceptions of the guest ------------------------------------------------------------------------------------------

_THROWING = wat("""
(module
  (import "env" "f" (func $f (param i32) (result i32)))
  (tag $e)
  (func (export "throw") (throw $e))
  (func (export "caught") (result i32)
    (block $caught (try_table (catch_all $caught) (throw $e)) (return (i32.const 0)))
    (i32.const 7))
  (func (export "go") (param i32) (result i32)
    (block $caught (result i32)
      (block $outer
        (br $caught (try_table (result i32) (catch_all $outer) (call $f (local.get 0)))))
      (i32.const 42))))
""")


def test_what_an_export_throws_does_not_pass_through_a_host_function() -> None:
    """The attack: a guest that catches, around its call of a host function, what an export throws within that call.

    The function would wait for ever for an export that is over. The run ends; what is caught within is no matter.
    """
    values: list[object] = []

    def f(call: HostCall, number: int) -> int:
        values.append(call.call("caught"))
        if number:
            call.call("throw")
        return 5

    sandbox = lending(f)

    assert sandbox.call(_THROWING, "go", 0).value == 5
    report = sandbox.call(_THROWING, "go", 1)

    assert (report.outcome, report.value) == (Outcome.TRAP, None)
    assert report.trap is not None
    assert report.trap.code == "unreachable"
    assert values == [7, 7]
