"""Each report says where its run happened, and so does the audit log; nobody but the host says it. Holds P-REPORT-8."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from stockade import AuditLog, Outcome, Policy, Report, Sandbox
from stockade.audit import AuditEvent, EventName, RunHook, RunInfo
from stockade.isolation import _messages
from stockade.runner import RunControl
from tests.conftest import HELLO, wat
from tests.isolation.test_hostile import whole

if TYPE_CHECKING:
    import pytest

    from stockade.execution import Isolation

ADD = '(module (memory (export "memory") 1) (func (export "five") (result i32) (i32.const 5)))'
LOOP = '(module (func (export "_start") (loop $more (br $more))))'


def test_reports_say_it(isolation: Isolation) -> None:
    """Of commands, calls, sessions, and what is awaited; for people, programs and browsers."""
    box = Sandbox(isolation=isolation)
    with box.open(wat(ADD)) as session:
        reports = [
            box.run(wat(HELLO)),
            box.call(wat(ADD), "five"),
            session.call("five"),
            asyncio.run(box.run_async(wat(HELLO))),
        ]

    for report in reports:
        assert (report.outcome, report.isolation) == (Outcome.OK, isolation)
        assert f"isolation  {isolation}\n" in report.render()
        assert msgspec.json.decode(report.to_json())["isolation"] == isolation
        assert f'<th scope="row">isolation</th><td><p>{isolation}</p>' in report.to_html()


def test_a_run_is_told_where_its_own_policy_had_it() -> None:
    """Not where the sandbox has others."""
    box = Sandbox()

    assert box.run(wat(HELLO), policy=Policy(isolation="process")).isolation == "process"
    assert box.run(wat(HELLO)).isolation == "inprocess"


def test_runs_that_never_began_say_where_they_were_to(isolation: Isolation) -> None:
    """Cancelled before, or refused by a hook."""

    class No(RunHook):
        def before_run(self, _run: RunInfo) -> str:
            return "not today"

    events: list[AuditEvent] = []
    with AuditLog(sinks=[events.append], hooks=[No()]) as log:
        refused = Sandbox(isolation=isolation, audit=log).run(wat(HELLO))
    control = RunControl()
    control.cancel()
    context = Sandbox(isolation=isolation)._contexts.under()

    assert (refused.outcome, refused.isolation) == (Outcome.DENIED, isolation)
    assert [event.isolation for event in events if event.event is EventName.RUN_ENDED] == [isolation]
    assert context.cancelled(wat(HELLO)).isolation == isolation


def test_a_worker_cannot_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: a worker that says that its guest has run somewhere else; what it says of that is not looked at."""
    finished = _messages.FROM_WORKER.decode
    lies: list[Report] = []

    class Lying:
        def decode(self, data: bytes) -> object:
            message: object = finished(data)
            if isinstance(message, _messages.Returned):
                message = whole(message, b"hello world\n")
            if isinstance(message, _messages.Finished):
                report = msgspec.structs.replace(message.report, isolation="bubblewrap")
                lies.append(report)
                return msgspec.structs.replace(message, report=report)
            return message

    monkeypatch.setattr("stockade.isolation._handle.FROM_WORKER", Lying())
    report = Sandbox(isolation="process").run(wat(HELLO))

    assert [lie.isolation for lie in lies] == ["bubblewrap"]
    assert report.isolation == "process"


def test_the_audit_log_says_it(isolation: Isolation) -> None:
    """At the end of each run: of those that are noted as bytes, and of those that are told as events."""
    events: list[AuditEvent] = []
    with AuditLog(sinks=[events.append]) as log:
        box = Sandbox(Policy().replace(fuel=100_000), isolation=isolation, audit=log)
        for module in (wat(HELLO), wat(HELLO), wat(LOOP)):
            box.run(module)
        with box.open(wat(ADD)) as session:
            session.call("five")
        box.run(wat(HELLO), policy=Policy(isolation="process"))

    ended = [(event.outcome, event.isolation) for event in events if event.event is EventName.RUN_ENDED]
    assert ended == [
        *[("ok", isolation), ("ok", isolation), ("fuel", isolation), ("ok", isolation)],
        ("ok", "process"),
    ]
