"""Each run is told, whoever takes its steps; and hooks may refuse it. Holds P-AUDIT-6 and P-AUDIT-7."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import AuditLog, Denied, Limits, Outcome, Policy, Report, Sandbox, Scheduler, Task, UsageError
from stockade.audit import AuditEvent, EventName, RunHook, RunInfo
from stockade.policy import Wasi
from tests.audit._logs import GUEST

if TYPE_CHECKING:
    from collections.abc import Callable


class Told:
    """A log whose events are kept."""

    def __init__(self, *hooks: RunHook, **options: object) -> None:
        self.events: list[AuditEvent] = []
        self.log = AuditLog(sinks=[self.events.append], hooks=hooks, **options)  # type: ignore[arg-type]

    def names(self) -> list[str]:
        """What was told, without what is told once."""
        self.log.flush()
        once = {"configuration", "policy_used", "module_loaded"}
        return [event.event.value for event in self.events if event.event.value not in once]

    def one(self, name: EventName) -> AuditEvent:
        """The one event of a name."""
        self.log.flush()
        (found,) = [event for event in self.events if event.event is name]
        return found


def by_run(box: Sandbox) -> Outcome:
    return box.run(GUEST).outcome


def by_run_with_inputs(box: Sandbox) -> Outcome:
    return box.run(GUEST, ["a"], stdin=b"b", env={"C": "d"}).outcome


def by_run_from_bytes(box: Sandbox) -> Outcome:
    return box.run(GUEST.data).outcome


def by_call(box: Sandbox) -> Outcome:
    return box.call(GUEST, "add", 1, 2).outcome


def by_run_async(box: Sandbox) -> Outcome:
    return asyncio.run(box.run_async(GUEST)).outcome


def by_run_async_with_inputs(box: Sandbox) -> Outcome:
    return asyncio.run(box.run_async(GUEST, ["a"], stdin=b"b", on_stdout=print)).outcome


def by_call_async(box: Sandbox) -> Outcome:
    return asyncio.run(box.call_async(GUEST, "add", 1, 2)).outcome


def by_call_async_on_the_loop(box: Sandbox) -> Outcome:
    async def main() -> Outcome:
        box.prepare(GUEST)
        return (await box.call_async(GUEST, "add", 1, 2)).outcome

    return asyncio.run(main())


def by_scheduler(box: Sandbox) -> Outcome:
    with Scheduler(box) as scheduler:
        return scheduler.submit(Task(module=GUEST)).result().outcome


WAYS: list[Callable[[Sandbox], Outcome]] = [
    by_run,
    by_run_with_inputs,
    by_run_from_bytes,
    by_call,
    by_run_async,
    by_run_async_with_inputs,
    by_call_async,
    by_call_async_on_the_loop,
    by_scheduler,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_each_way_to_run_is_told_from_begin_to_end(way: Callable[[Sandbox], Outcome]) -> None:
    """With one name for both, the tenant, the digest of the policy and the figures."""
    told = Told()
    with told.log, Sandbox("strict", audit=told.log) as box:
        assert way(box) is Outcome.OK

    assert told.names() == ["run_started", "run_ended"]
    start, end = told.one(EventName.RUN_STARTED), told.one(EventName.RUN_ENDED)
    assert start.run == end.run != ""
    assert start.policy == end.policy == box.policy.digest
    assert start.module == GUEST.sha256
    assert end.outcome == "ok"
    assert end.figures is not None
    assert end.figures.memory_bytes == 65536
    assert end.figures.fuel
    assert start.time <= end.time
    assert told.one(EventName.POLICY_USED).name == "strict"
    assert told.one(EventName.MODULE_LOADED).count == len(GUEST.data)
    assert told.one(EventName.CONFIGURATION).reason.startswith("wasmtime ")
    assert len({event.seq for event in told.events}) == len(told.events)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_hook_may_refuse_each(way: Callable[[Sandbox], Outcome]) -> None:
    """The guest does not get to run; the report says why."""

    class No(RunHook):
        def before_run(self, run: RunInfo) -> str:
            return f"not today\n{run.policy_name}"

    told = Told(No())
    with told.log, Sandbox("strict", audit=told.log) as box:
        assert way(box) is Outcome.DENIED

    assert told.names() == ["run_started", "run_refused", "denied", "run_ended"]
    refused = told.one(EventName.RUN_REFUSED)
    assert (refused.subject, refused.reason) == ("No", r"not today\x0astrict")
    assert told.one(EventName.RUN_ENDED).outcome == "denied"


def test_a_refused_run_reports_and_check_raises() -> None:
    """As of whatever else the policy does not allow."""

    class No(RunHook):
        def before_run(self, _run: RunInfo) -> str:
            return "over budget"

    with AuditLog(hooks=[No()]) as log, Sandbox(audit=log) as box:
        report = box.call(GUEST, "add", 1, 2)
        with pytest.raises(Denied):
            report.check()
        with box.open(GUEST) as session:
            assert session.call("add", 1, 2).outcome is Outcome.DENIED

    (violation,) = report.violations
    assert (violation.kind, violation.subject, violation.call, violation.action) == (
        "hook",
        "over budget",
        "No",
        "stop",
    )
    assert report.value is None
    assert "over budget" in report.summary()


def test_hooks_see_the_run_and_its_report() -> None:
    """In their order, before and after."""
    seen: list[object] = []

    class Watching(RunHook):
        def __init__(self, name: str) -> None:
            self.name = name

        def before_run(self, run: RunInfo) -> None:
            seen.append((self.name, run.export, run.module_name, run.tenant, run.run_name))

        def after_run(self, run: RunInfo, report: Report) -> None:
            seen.append((self.name, run.run, report.value))

    told = Told(Watching("first"), Watching("second"))
    with told.log, Sandbox(audit=told.log) as box:
        box.call(GUEST, "add", 1, 2, run_id="mine")

    run = told.one(EventName.RUN_ENDED).run
    assert seen == [
        ("first", "add", "<bytes>", "", "mine"),
        ("second", "add", "<bytes>", "", "mine"),
        ("first", run, 3),
        ("second", run, 3),
    ]


@pytest.mark.parametrize("method", ["before_run", "after_run"])
def test_what_a_hook_raises_is_raised_and_told(method: str) -> None:
    """It is the embedder's own mistake: nothing runs behind it, and its text, which may hold a secret, is not told."""

    class Broken(RunHook):
        pass

    def broken(self: object, *_: object) -> None:
        raise ValueError("password")

    setattr(Broken, method, broken)
    told = Told(Broken())
    with told.log, Sandbox(audit=told.log) as box, pytest.raises(ValueError, match="password"):
        box.call(GUEST, "add", 1, 2)

    failed = told.one(EventName.HOOK_FAILED)
    assert (failed.subject, failed.reason) == (f"Broken.{method}", "ValueError")
    assert told.one(EventName.RUN_ENDED).outcome == ("error" if method == "before_run" else "ok")
    assert "password" not in repr(told.events)


def test_a_hook_that_returns_something_else_refuses_in_words() -> None:
    """False may have meant either."""

    class Wrong(RunHook):
        def before_run(self, _run: RunInfo) -> str | None:
            return False  # type: ignore[return-value]

    with AuditLog(hooks=[Wrong()]) as log, Sandbox(audit=log) as box, pytest.raises(UsageError) as told:
        box.call(GUEST, "add", 1, 2)
    assert str(told.value) == (
        "Wrong.before_run returned bool: it must return the reason why the run is refused, or None"
    )


def test_a_hook_that_blocks_holds_up_no_event_loop() -> None:
    """It is called on another thread, where runs that call no hook are not held up either."""
    threads: list[int] = []

    class Slow(RunHook):
        def before_run(self, _run: RunInfo) -> None:
            threads.append(threading.get_ident())

    async def main() -> None:
        with AuditLog(hooks=[Slow()]) as log:
            async with Sandbox(audit=log) as box:
                box.prepare(GUEST)
                await box.call_async(GUEST, "add", 1, 2)
                await box.run_async(GUEST)

    asyncio.run(main())

    assert len(threads) == 2
    assert threading.get_ident() not in threads


def test_sessions_and_snapshots_are_told() -> None:
    """Each call of a session is a run of its own, which names it."""
    told = Told()
    with told.log, Sandbox(audit=told.log) as box:
        with box.open(GUEST) as session:
            session.call("add", 1, 2)
            with session.fork() as fork:
                fork.call("add", 1, 2)
            session.call("add", 1, 2)
        box.call(session_snapshot(box), "add", 1, 2)

    assert told.names()[:12] == [
        "session_opened",
        "run_started",
        "run_ended",
        "snapshot_taken",
        "snapshot_opened",
        "session_opened",
        "run_started",
        "run_ended",
        "session_closed",
        "run_started",
        "run_ended",
        "session_closed",
    ]
    assert told.names()[-3:] == ["snapshot_opened", "run_started", "run_ended"]
    first, second, _ = [event.session for event in told.events if event.event is EventName.SESSION_OPENED]
    assert first != second
    runs = [event.session for event in told.events if event.event is EventName.RUN_STARTED]
    assert runs == [first, second, first, ""]


def session_snapshot(box: Sandbox) -> stockade.Snapshot:
    with box.open(GUEST) as session:
        return session.snapshot()


def test_sessions_that_are_awaited_are_told() -> None:
    """As the others."""
    told = Told()

    async def main() -> None:
        async with Sandbox(audit=told.log) as box, await box.open_async(GUEST) as session:
            await session.call("add", 1, 2)

    asyncio.run(main())

    assert told.names() == ["session_opened", "run_started", "run_ended", "session_closed"]


@pytest.mark.parametrize(
    ("export", "changes", "name", "outcome"),
    [
        ("spin", {"fuel": 1000}, "fuel", "fuel"),
        ("spin", {"wall_time": 0.05}, "timeout", "timeout"),
        ("trap", {}, None, "trap"),
    ],
)
def test_a_limit_is_told_and_how_the_run_ended(
    export: str, changes: dict[str, object], name: str, outcome: str
) -> None:
    """With what was allowed and what was reached."""
    told = Told()
    with told.log, Sandbox(Policy(limits=Limits(**changes)), audit=told.log) as box:  # type: ignore[arg-type]
        box.call(GUEST, export)

    assert told.one(EventName.RUN_ENDED).outcome == outcome
    if name is None:
        assert told.names() == ["run_started", "run_ended"]
    else:
        reached = told.one(EventName.LIMIT_REACHED)
        assert reached.name == name
        assert reached.run == told.one(EventName.RUN_ENDED).run
        assert reached.limit == next(iter(changes.values()))


@pytest.mark.parametrize("on_violation", ["deny", "stop"])
def test_what_a_guest_was_denied_is_told(on_violation: str) -> None:
    """The right, the field of the policy that decides it, and how often."""
    told = Told()
    policy = Policy(wasi=Wasi(deny=("random_get",)), on_violation=on_violation)
    with told.log, Sandbox(policy, audit=told.log) as box:
        outcome = box.run(GUEST).outcome

    assert outcome is (Outcome.DENIED if on_violation == "stop" else Outcome.OK)
    denied = told.one(EventName.DENIED)
    assert (denied.name, denied.subject, denied.count) == ("call", "random_get", 1)
    assert denied.policy == policy.digest


def test_a_module_that_cannot_be_run_is_told() -> None:
    """Whether it is no module at all, or asks for what is not there."""
    told = Told()
    missing = stockade.Module.load(b'(module (import "env" "gone" (func)) (func (export "_start")))', text=True)
    with told.log, Sandbox(audit=told.log) as box:
        for do in (lambda: box.run(b"\0asm\1\0\0\0\xff"), lambda: box.run(missing), lambda: box.prepare(missing)):
            with pytest.raises(stockade.ModuleError):
                do()

    assert told.names() == ["module_refused", "run_started", "module_refused", "run_ended", "module_refused"]
    refused = [event for event in told.events if event.event is EventName.MODULE_REFUSED]
    assert [event.subject for event in refused] == ["InvalidModule", "LinkError", "LinkError"]
    assert "gone" in refused[1].reason


def test_host_functions_are_told_as_they_are_called() -> None:
    """Up to a thousand of each run; the rest is counted."""
    told = Told()
    module = stockade.Module.load(
        b'(module (import "env" "tick" (func $tick)) (func (export "go") (param i32)'
        b" (loop (call $tick) (br_if 0 (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))))",
        text=True,
    )
    with told.log, Sandbox(audit=told.log) as box:

        @box.host_function("env", "tick")
        def tick() -> None:
            pass

        box.call(module, "go", 3)
        box.call(module, "go", 1500)

    called = [event for event in told.events if event.event is EventName.HOST_FUNCTION_CALLED]
    assert {event.name for event in called} == {"env.tick"}
    assert len(called) == 1003
    ended = [event.figures for event in told.events if event.event is EventName.RUN_ENDED]
    assert [figures and figures.host_calls for figures in ended] == [3, 1500]


def test_a_policy_of_a_run_is_told_as_its_own() -> None:
    """Both narrowed, as the report has it."""
    told = Told()
    with told.log, Sandbox(audit=told.log) as box:
        report = box.run(GUEST, policy=Policy(limits=Limits(fuel=10_000)))

    assert told.one(EventName.RUN_STARTED).policy == report.policy.digest != box.policy.digest


def test_a_cancelled_run_is_told() -> None:
    """Whoever drops its steps, too."""
    told = Told()
    with told.log, Sandbox(audit=told.log) as box:
        steps, control = box.steps(GUEST, export="spin")
        next(steps)
        control.cancel()
        steps.close()

    assert told.names() == ["run_started", "run_ended"]
    assert told.one(EventName.RUN_ENDED).outcome == "cancelled"


def test_text_that_others_choose_is_short_and_in_one_line() -> None:
    """Tenants, names of runs, of functions and of modules may be megabytes long, and steer terminals."""
    told = Told()
    bad = "x\n\x1b[2J\u202e" + "y" * 1_000_000
    with told.log, Sandbox(audit=told.log) as box:
        steps, control = box.steps(GUEST, run_id=bad, tenant=bad)
        from stockade.runner import run_blocking

        run_blocking(steps, control)
        with pytest.raises(stockade.LinkError):
            box.call(GUEST, bad)

    for event in told.events:
        for text in (event.tenant, event.run_name, event.subject, event.reason, event.name):
            assert text.isprintable()
            assert len(text) < 500


def test_a_sandbox_that_is_closed_in_a_run_is_told_to_the_end() -> None:
    """Its runs are cancelled, and each has its end in the log."""
    told = Told()
    with told.log:
        box = Sandbox(audit=told.log)
        box.prepare(GUEST)
        threads = [threading.Thread(target=lambda: box.call(GUEST, "spin")) for _ in range(4)]
        for thread in threads:
            thread.start()
        while told.names().count("run_started") < 4:
            pass
        box.close()
        for thread in threads:
            thread.join()

    assert told.names().count("run_ended") == 4
    assert {event.outcome for event in told.events if event.event is EventName.RUN_ENDED} == {"cancelled"}


def test_languages_tell_the_policy_of_their_caller_and_tools() -> None:
    """Not the folders of their own, nor the functions by which an interpreter asks."""
    told = Told()
    with told.log, stockade.JavaScript("strict", audit=told.log) as language:
        assert language.run("6 * 7").value == 42
        with language.session() as session:
            session.run("1")

    assert told.names() == [
        "run_started",
        "run_ended",
        "session_opened",
        "run_started",
        "run_ended",
        "session_closed",
    ]
    assert {event.policy for event in told.events if event.run} == {Policy.preset("strict").digest}


def test_tools_are_told() -> None:
    """By their names."""
    told = Told()
    with told.log, stockade.JavaScript(audit=told.log) as language:

        @language.tool
        def price(item: str) -> float:
            return 2.5

        assert language.run("tools.price('a') + tools.price('b')").value == 5

    called = [event for event in told.events if event.event is EventName.HOST_FUNCTION_CALLED]
    assert [(event.name, event.count) for event in called] == [("price", 1), ("price", 2)]
    assert {event.run for event in called} == {told.one(EventName.RUN_STARTED).run}


@pytest.mark.parametrize(
    "run",
    [
        lambda log: stockade.run(GUEST, audit=log).outcome,
        lambda log: stockade.call(GUEST, "add", 5, 3, audit=log),
        lambda log: stockade.run_python("print(5)", audit=log).ok,
        lambda log: stockade.run_javascript("console.log(5)", audit=log).ok,
    ],
)
def test_functions_of_one_call_tell_a_log(run: Callable[[AuditLog], object]) -> None:
    """As what they stand for does."""
    told = Told()

    run(told.log)

    assert told.names() == ["run_started", "run_ended"]


def test_runs_in_processes_of_their_own_are_told() -> None:
    """By the process that asked for them, with what they used and what stopped them."""
    told = Told()

    with Sandbox(isolation="process", audit=told.log) as box:
        box.call(GUEST, "add", 5, 3)
        box.call(GUEST, "spin", policy=Policy().replace(fuel=1000))

    assert told.names() == ["run_started", "run_ended", "run_started", "limit_reached", "run_ended"]
    ended = [event for event in told.events if event.event is EventName.RUN_ENDED]
    assert [event.outcome for event in ended] == ["ok", "fuel"]
    assert all(event.figures is not None and event.figures.memory_bytes == 65_536 for event in ended)
