"""Coroutine functions of the embedder: on which loop they are awaited, and what ends them.

Holds P-HOST-3.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest

from stockade import HostCall, Outcome, Policy, Sandbox, Scheduler, Task, UsageError
from stockade.errors import LimitExceeded
from tests._processes import wait_for
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from stockade import Module, Report

pytestmark = pytest.mark.usefixtures("everywhere")


def lending(function: Callable[..., object], **changes: object) -> Sandbox:
    """A sandbox that lends one function, as env.f."""
    sandbox = Sandbox(Policy().replace(**changes))
    sandbox.host_function("env", "f")(function)
    return sandbox


CALLER = wat("""
(module
  (import "env" "f" (func $f (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (drop (call $f (i32.const 0))))
  (func (export "twice") (param i32) (result i32) (call $f (call $f (local.get 0))))
  (func (export "go") (param i32) (result i32) (call $f (local.get 0))))
""")


def scheduled(sandbox: Sandbox, module: Module, export: str, *args: int) -> Report:
    """The report of a call that a scheduler has made, for who has no loop."""
    with Scheduler(sandbox) as scheduler:
        return scheduler.submit(Task(module=module, export=export, args=args)).result()


async def _in_session(sandbox: Sandbox, module: Module, export: str, *args: int) -> Report:
    async with await sandbox.open_async(module) as session:
        return await session.call(export, *args)


async def _scheduled_here(sandbox: Sandbox, module: Module, export: str, *args: int) -> Report:
    async with Scheduler(sandbox) as scheduler:
        return await scheduler.submit(Task(module=module, export=export, args=args))


WAYS: dict[str, Callable[..., Report]] = {
    "call": lambda sandbox, *rest: sandbox.call(*rest),
    "open": lambda sandbox, module, *rest: _with_session(sandbox, module, *rest),
    "call_async": lambda sandbox, *rest: asyncio.run(sandbox.call_async(*rest)),
    "open_async": lambda sandbox, *rest: asyncio.run(_in_session(sandbox, *rest)),
    "Scheduler": scheduled,
    "async Scheduler": lambda sandbox, *rest: asyncio.run(_scheduled_here(sandbox, *rest)),
}


def _with_session(sandbox: Sandbox, module: Module, *rest: Any) -> Report:
    with sandbox.open(module) as session:
        return session.call(*rest)


@pytest.fixture(params=WAYS)
def call(request: pytest.FixtureRequest) -> Callable[..., Report]:
    """Each way to call a function of a guest."""
    return WAYS[request.param]


# -- who awaits them --------------------------------------------------------------------------------------------------


def test_it_is_awaited_by_every_entry_point(call: Callable[..., Report]) -> None:
    """The result is there when the coroutine is done, and each call is counted."""

    async def f(number: int) -> int:
        await asyncio.sleep(0)
        return number * 2

    report = call(lending(f), CALLER, "twice", 10)
    assert (report.outcome, report.value, report.usage.host_calls) == (Outcome.OK, 40, 2)


def test_it_runs_on_the_loop_of_who_awaits() -> None:
    """On the caller's loop where there is one, whatever awaits the run; else on the thread of the caller."""
    seen: list[tuple[int, asyncio.AbstractEventLoop]] = []

    async def f(number: int) -> int:
        seen.append((threading.get_ident(), asyncio.get_running_loop()))
        return number

    sandbox = lending(f)

    async def main() -> asyncio.AbstractEventLoop:
        await sandbox.call_async(CALLER, "go", 1)
        await _in_session(sandbox, CALLER, "go", 1)
        await _scheduled_here(sandbox, CALLER, "go", 1)
        return asyncio.get_running_loop()

    loop = asyncio.run(main())
    assert seen == [(threading.get_ident(), loop)] * 3
    sandbox.call(CALLER, "go", 1)
    assert seen[3][0] == threading.get_ident()
    assert scheduled(sandbox, CALLER, "go", 1).ok
    assert seen[4][0] != threading.get_ident()


def test_a_session_has_one_loop_for_all_its_calls() -> None:
    """What belongs to a loop, such as a queue, can be kept from one call to the next; it is closed with the session."""
    loops: list[asyncio.AbstractEventLoop] = []

    async def f(number: int) -> int:
        loops.append(asyncio.get_running_loop())
        return number

    with lending(f).open(CALLER) as session:
        session.call("twice", 1)
        session.call("go", 1)
        assert not loops[0].is_closed()
    assert len({id(loop) for loop in loops}) == 1
    assert loops[0].is_closed()


def test_guests_that_wait_for_one_hold_no_thread() -> None:
    """All are in the function at once, which returns when the last one is there; and fewer than 20 threads."""
    many = 200
    threads: set[int] = set()
    # Some may be there that other tests have left lingering.
    before = threading.active_count()

    async def main() -> None:
        there, all_there = 0, asyncio.Event()

        async def f(number: int) -> int:
            nonlocal there
            there += 1
            if there == many:
                threads.add(threading.active_count())
                all_there.set()
            await all_there.wait()
            return number + 1

        sandbox = lending(f, wall_time=None)
        reports = await asyncio.gather(*(sandbox.call_async(CALLER, "go", number) for number in range(many)))
        assert [report.value for report in reports] == [*range(1, many + 1)]

    asyncio.run(main())
    assert max(threads) - before < 20


_place: ContextVar[str] = ContextVar("_place", default="nowhere")


def test_it_sees_the_context_of_the_caller(call: Callable[..., Report]) -> None:
    """Context variables are those of whoever asked for the run; what it sets is its own."""
    seen: list[str] = []

    async def f(number: int) -> int:
        seen.append(_place.get())
        _place.set("in the function")
        await asyncio.sleep(0)
        return number

    token = _place.set("here")
    try:
        call(lending(f), CALLER, "twice", 1)
        assert seen == ["here", "here"]
        assert _place.get() == "here"
    finally:
        _place.reset(token)


def test_a_bound_method_is_awaited() -> None:
    """As with plain functions."""

    class Doubling:
        async def f(self, number: int) -> int:
            return number * 2

    assert lending(Doubling().f).call(CALLER, "go", 4).value == 8


def test_a_plain_function_that_returns_a_coroutine_is_a_mistake() -> None:
    """It is told what it returned; Python has no coroutine to warn of."""

    async def later(number: int) -> int:
        return number

    def f(number: int) -> int:
        return later(number)  # type: ignore[return-value]

    with pytest.raises(UsageError) as caught:
        lending(f).call(CALLER, "go", 4)
    assert str(caught.value) == "env.f returned a coroutine, which is no whole number (i32)"


def test_what_blocks_a_loop_cannot_await_on_it() -> None:
    """`run` in a coroutine: the loop of the thread waits for the guest. It is said what to do instead."""

    async def f(number: int) -> int:
        return number

    sandbox = lending(f)

    async def main() -> None:
        with pytest.raises(UsageError) as caught:
            sandbox.call(CALLER, "go", 4)
        assert str(caught.value) == (
            "the guest calls a coroutine function, and the event loop of this thread waits for the guest: await "
            "run_async, call_async or open_async, or call what blocks by asyncio.to_thread"
        )
        assert (await asyncio.to_thread(sandbox.call, CALLER, "go", 4)).value == 4

    asyncio.run(main())


# -- limits ------------------------------------------------------------------------------------------------------------


async def never(number: int) -> int:
    """Waits for what does not come."""
    await asyncio.get_running_loop().create_future()
    return number


def test_the_deadline_holds_inside_it(call: Callable[..., Report]) -> None:
    """The attack: a guest calls what never ends. The run ends as a timeout, and the coroutine is cancelled."""
    ended: list[str] = []

    async def f(number: int) -> int:
        try:
            return await never(number)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    report = call(lending(f, wall_time=1.0), CALLER, "go", 4)
    assert (report.outcome, report.value, report.usage.host_calls) == (Outcome.TIMEOUT, None, 1)
    assert [found.kind for found in report.violations] == ["timeout"]
    assert ended == ["cancelled"]


def test_what_it_waits_is_not_the_guests_idle_time(call: Callable[..., Report]) -> None:
    """The guest is kept waiting by the host."""

    async def f(number: int) -> int:
        await asyncio.sleep(0.05)
        return number

    report = call(lending(f, idle_time=0.01), CALLER, "go", 4)
    assert (report.outcome, report.usage.idle_seconds) == (Outcome.OK, 0.0)


def test_a_cancelled_task_cancels_it_and_no_other() -> None:
    """Two guests are in the function; one is cancelled, and the other one gets its answer."""
    ended: list[int] = []

    async def main() -> None:
        there, go = asyncio.Semaphore(0), asyncio.Event()

        async def f(number: int) -> int:
            there.release()
            try:
                await go.wait()
            except asyncio.CancelledError:
                ended.append(number)
                raise
            return number

        sandbox = lending(f)
        one, other = (asyncio.ensure_future(sandbox.call_async(CALLER, "go", number)) for number in (1, 2))
        for _ in range(2):
            await there.acquire()
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        assert ended == [1]
        go.set()
        assert (await other).value == 2

    asyncio.run(main())


def test_a_run_is_cancelled_inside_it(call: Callable[..., Report]) -> None:
    """By its name or by the session, from another thread, while the coroutine waits."""
    there = threading.Event()

    async def f(number: int) -> int:
        there.set()
        return await never(number)

    sandbox = lending(f)

    def cancel() -> None:
        there.wait()
        for name in sandbox.monitor():
            sandbox.cancel(name)

    if call in (WAYS["open"], WAYS["open_async"]):
        # Sessions have no names: their calls are cancelled by the session.
        with sandbox.open(CALLER) as session:
            thread = threading.Thread(target=lambda: (there.wait(), session.cancel()))
            thread.start()
            report = session.call("go", 4)
    else:
        thread = threading.Thread(target=cancel)
        thread.start()
        report = call(sandbox, CALLER, "go", 4)
    thread.join()
    assert report.outcome is Outcome.CANCELLED


def test_who_does_not_end_when_cancelled_is_left_behind(call: Callable[..., Report]) -> None:
    """Attack on the host by its own function: it swallows each cancellation. The run is over all the same."""
    may_end: list[asyncio.AbstractEventLoop] = []
    ended = False

    async def f(number: int) -> int:
        may_end.append(asyncio.get_running_loop())
        while not ended:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue
        return number

    def end() -> None:
        nonlocal ended
        ended = True

    async def awaited(sandbox: Sandbox) -> Report:
        report = await sandbox.call_async(CALLER, "go", 4)
        end()
        await asyncio.sleep(0.05)
        return report

    sandbox = lending(f, wall_time=1.0)
    if call in (WAYS["call"], WAYS["Scheduler"]):
        report = call(sandbox, CALLER, "go", 4)
        end()
    else:
        report = asyncio.run(awaited(sandbox))
    assert report.outcome is Outcome.TIMEOUT


# -- failures ----------------------------------------------------------------------------------------------------------


def test_its_exception_ends_that_run_only() -> None:
    """As with a plain function; the other runs of the same loop go on."""

    async def f(number: int) -> int:
        await asyncio.sleep(0)
        if number == 3:
            raise ValueError("three")
        return number

    sandbox = lending(f)

    async def main() -> list[Report]:
        return await asyncio.gather(*(sandbox.call_async(CALLER, "go", number) for number in range(6)))

    reports = asyncio.run(main())
    assert [report.value for report in reports] == [0, 1, 2, None, 4, 5]
    assert reports[3].outcome is Outcome.TRAP
    assert reports[3].trap is not None
    assert (reports[3].trap.code, reports[3].trap.message) == ("host", "env.f raised ValueError: three")
    names = [frame.function for frame in reports[3].trap.frames]
    assert names[:3] == ["guard: host_park", "guard: host_ask", "guard: host_call"]


class Own(BaseException):
    """One that nobody knows."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Own])
def test_what_is_no_exception_reaches_the_caller(call: Callable[..., Report], kind: type[BaseException]) -> None:
    """It is raised where the run began, and not in the event loop."""

    async def f(number: int) -> int:
        await asyncio.sleep(0)
        raise kind

    sandbox = lending(f)
    with pytest.raises(kind):
        call(sandbox, CALLER, "go", 4)


def test_a_cancellation_of_its_own_is_blamed_on_it(call: Callable[..., Report]) -> None:
    """A coroutine that raises CancelledError would cancel the task that awaits the run, and nobody would know why."""

    async def f(number: int) -> int:
        raise asyncio.CancelledError

    with pytest.raises(UsageError, match=r"^a callback or a host function raised CancelledError, which ended the run"):
        call(lending(f), CALLER, "go", 4)


def test_a_result_that_does_not_fit_is_the_embedders_mistake(call: Callable[..., Report]) -> None:
    """As with a plain function."""

    async def f(number: int) -> int:
        return 1 << 40

    with pytest.raises(UsageError, match=r"^env\.f returned a number that does not fit i32$"):
        call(lending(f), CALLER, "go", 4)


def test_a_capability_may_be_missing(call: Callable[..., Report]) -> None:
    """Before it is called, or when it asks."""
    called: list[int] = []

    async def f(call: HostCall, number: int) -> int:
        await asyncio.sleep(0)
        called.append(number)
        call.require("gpu")
        return number

    assert call(lending(f), CALLER, "go", 4).outcome is Outcome.DENIED
    assert called == [4]
    sandbox = Sandbox()
    sandbox.host_function("env", "f", requires="gpu")(f)
    report = call(sandbox, CALLER, "go", 4)
    assert [(found.kind, found.subject, found.call) for found in report.violations] == [("capability", "gpu", "env.f")]
    assert called == [4]


def test_calls_over_a_limit_are_not_made(call: Callable[..., Report]) -> None:
    """Nothing of the function runs, and it is given no coroutine."""
    called: list[int] = []

    async def f(number: int) -> int:
        called.append(number)
        return number

    report = call(lending(f, calls=1), CALLER, "twice", 4)
    assert (report.outcome, report.usage.host_calls, called) == (Outcome.DENIED, 2, [4])


# -- memory ------------------------------------------------------------------------------------------------------------


def test_the_memory_is_there_until_it_returns(call: Callable[..., Report]) -> None:
    """Also after it has waited, and on another thread that it asks."""

    async def f(call: HostCall, number: int) -> int:
        call.memory.write(number, b"abc")
        await asyncio.sleep(0)
        assert await asyncio.to_thread(call.memory.read, number, 3) == b"abc"
        return call.memory.size_bytes

    assert call(lending(f), CALLER, "go", 65_533).value == 65_536
    report = call(lending(f), CALLER, "go", 65_534)
    assert report.trap is not None
    assert report.trap.message == "env.f raised IndexError: bytes 65,534 to 65,537 are not inside 65,536"


def test_the_memory_is_gone_when_the_run_is(call: Callable[..., Report]) -> None:
    """Attack on freed memory: a coroutine that is cancelled, or goes on, looks at memory of a guest that is gone."""
    problems: list[str] = []

    async def f(call: HostCall, number: int) -> int:
        memory = call.memory
        memory.read(0, 1)
        try:
            await never(number)
        finally:
            for look in (lambda: memory.read(0, 1), lambda: call.memory.read(0, 1), lambda: memory.write(0, b"x")):
                try:
                    look()
                except UsageError as problem:
                    problems.append(str(problem))
        return number

    assert call(lending(f, wall_time=1.0), CALLER, "go", 4).outcome is Outcome.TIMEOUT
    # With a loop of its own, the guest is halted until the coroutine has ended, and its memory is there.
    gone = "the guest's memory is only there while the host function runs: copy what you need"
    assert problems in ([gone] * 3, [])


# -- what a guest makes the host keep ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "error", "outside", "its own"])
def test_a_call_keeps_nothing_alive(call: Callable[..., Report], kind: str) -> None:
    """The attack: calls, most of them failing, each of which is kept until the cyclic collector comes."""

    async def f(call: HostCall, number: int) -> int:
        await asyncio.sleep(0)
        if kind == "error":
            raise ValueError(number)
        if kind == "outside":
            call.memory.read(-1, 8)
        if kind == "its own":
            try:
                raise ValueError(number)
            except ValueError as problem:
                raise KeyError(number) from problem
        return number

    def alive() -> int:
        kinds = ("AwaitedCall", "Guest", "HostCall", "Instance", "Memory", "Report")
        return sum(type(thing).__name__ in kinds for thing in gc.get_objects())

    sandbox = lending(f)
    call(sandbox, CALLER, "go", 4)
    gc.collect()
    gc.disable()
    try:
        before = alive()
        for _ in range(5):
            call(sandbox, CALLER, "go", 4)
        after = alive()
    finally:
        gc.enable()

    # Threads may still hold what is left of the last.
    assert after < before + 5


# -- loops that go -----------------------------------------------------------------------------------------------------


def test_a_loop_that_is_closed_meanwhile() -> None:
    """Attack: the loop stops in the middle of the call, and is closed. The guest's time ends all the same."""

    async def f(number: int) -> int:
        loop.stop()
        return await never(number)

    loop = asyncio.new_event_loop()
    sandbox = lending(f, wall_time=1.0)
    task = loop.create_task(sandbox.call_async(CALLER, "go", 4))
    loop.run_forever()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    for other in asyncio.all_tasks(loop):
        other._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    del task, other
    gc.collect()
    wait_for(lambda: not sandbox.monitor())


def test_it_is_called_from_start_functions_and_initializers(call: Callable[..., Report]) -> None:
    """Also those run under the limits, and can wait."""
    seen: list[int] = []

    async def f(number: int) -> int:
        await asyncio.sleep(0)
        seen.append(number)
        return number

    module = wat("""
    (module (import "env" "f" (func $f (param i32) (result i32)))
      (func $begin (drop (call $f (i32.const 1)))) (start $begin)
      (func (export "_initialize") (drop (call $f (i32.const 2))))
      (func (export "go") (param i32) (result i32) (call $f (local.get 0))))
    """)
    assert call(lending(f), module, "go", 3).value == 3
    assert seen == [1, 2, 3]
    with pytest.raises(LimitExceeded):
        lending(never, wall_time=1.0).open(module)


def test_it_may_run_other_guests() -> None:
    """In the same sandbox, awaited on the same loop, three deep."""

    async def f(number: int) -> int:
        if not number:
            return 0
        value = (await sandbox.call_async(CALLER, "go", number - 1)).check().value
        assert isinstance(value, int)
        return value + number

    sandbox = lending(f)
    assert asyncio.run(sandbox.call_async(CALLER, "go", 3)).value == 6


def test_a_policy_for_the_run_holds_inside_it() -> None:
    """The narrower of the two: its deadline, and its capabilities."""

    async def f(call: HostCall, number: int) -> int:
        assert call.policy.limits.wall_time == 1.0
        return await never(number)

    report = asyncio.run(lending(f).call_async(CALLER, "go", 4, policy=Policy().replace(wall_time=1.0)))
    assert report.outcome is Outcome.TIMEOUT
