"""A worker in the hands of its guest, that says what it likes: its run has crashed, and nothing else becomes of it.

Holds P-GATE-5: its words pass the gate.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from stockade import AuditLog, EngineError, HostCall, Outcome, Policy, Sandbox, UsageError
from stockade.gate import GateRules
from stockade.isolation import _handle
from stockade.isolation._messages import Failed, Finished, Looked, Ready, Returned, Started, Taken
from stockade.report import FuelStatistics, ModuleInfo, PolicyInfo, Report, TrapInfo, Usage, Violation
from tests._processes import descriptors, until
from tests.conftest import wat
from tests.isolation.test_workers import all_gone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SUM = wat("""
(module
  (memory (export "memory") 1)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "none"))
  (func (export "half") (result f64) (f64.const 0.5))
  (func (export "two") (result i64 f32) (i64.const -1) (f32.const 0.5))
  (func (export "_start")))
""")

LOOKS = wat('(module (import "env" "look" (func $f)) (memory (export "memory") 1) (func (export "_start") (call $f)))')


def whole(told: Returned, output: bytes) -> Finished:
    """Says all that a report has of a run of which a worker has told little."""
    usage = Usage(
        wall_seconds=told.wall_seconds,
        cpu_seconds=told.cpu_seconds,
        memory_bytes=told.memory_bytes,
        calls=told.calls,
        fuel=None if told.fuel is None else told.fuel[0],
    )
    fuel = None if told.fuel is None else FuelStatistics(sum(told.fuel[:2]), *told.fuel, told.wall_seconds, 0.0)
    report: Report = Report(
        outcome=Outcome.EXIT if told.exit_code else Outcome.OK,
        exit_code=told.exit_code,
        value=told.values[0] if len(told.values) == 1 else list(told.values) or None,
        usage=usage,
        fuel=fuel,
        module=ModuleInfo("", ""),
        policy=PolicyInfo("", ""),
    )
    assert len(output) == told.stdout + told.stderr
    return Finished(report, told.stdout, told.stderr)


def lies(monkeypatch: pytest.MonkeyPatch, told: Callable[[Any, bytes], tuple[Any, bytes]], kind: type) -> None:
    """Has workers say something else than they do."""
    receive = _handle.WorkerHandle.receive

    def lying(handle: _handle.WorkerHandle, most_blob: int) -> object:
        found = receive(handle, most_blob)
        if found is not None and kind is Finished and isinstance(found[0], Returned):
            found = whole(found[0], found[1]), found[1], found[2]
        if found is not None and isinstance(found[0], kind):
            return *told(found[0], found[1]), found[2]
        return found

    monkeypatch.setattr(_handle.WorkerHandle, "receive", lying)


@pytest.mark.parametrize("behind", [b"\xff\xfe\xff", b"\xed\xa0\x80", b"cut off \xe2\x82"])
def test_a_text_that_is_none(monkeypatch: pytest.MonkeyPatch, behind: bytes) -> None:
    """Attack: bytes that no text has, for which whoever decodes them raises something of its own."""
    lies(
        monkeypatch,
        lambda told, _: (
            msgspec.structs.replace(
                told, value=len(behind), kind="text", report=msgspec.structs.replace(told.report, value=None)
            ),
            behind,
        ),
        Finished,
    )
    with Sandbox(isolation="process") as box:
        report = box.call(SUM, "add", 1, 2)

    assert (report.outcome, report.value) == (Outcome.CRASHED, None)
    assert report.trap is not None
    assert "makes no sense" in report.trap.message


@pytest.mark.parametrize(
    ("export", "value"),
    [
        ("add", True),
        ("add", 3.0),
        ("add", float("nan")),
        ("add", 1 << 32),
        ("add", -(1 << 31) - 1),
        ("add", [1, 2]),
        ("add", [True, float("nan"), 2**64 - 1]),
        ("add", bytes(16)),
        ("add", "I am no i32"),
        ("none", 1),
        ("half", 1),
        ("half", "text"),
        ("two", 1),
        ("two", [1, 2]),
        ("two", [1 << 64, 1.5]),
        ("two", [1, 1.5, 2]),
    ],
)
def test_a_value_of_another_type(monkeypatch: pytest.MonkeyPatch, export: str, value: object) -> None:
    """Attack: a value that whoever called the function relies on never to see."""
    behind = value.encode() if isinstance(value, str) else b""

    def told(finished: Finished, _: bytes) -> tuple[Finished, bytes]:
        report = msgspec.structs.replace(finished.report, value=None if behind else value)
        kind = "text" if behind else ""
        return msgspec.structs.replace(finished, report=report, value=len(behind), kind=kind), behind

    lies(monkeypatch, told, Finished)
    with Sandbox(isolation="process") as box:
        report = box.call(SUM, export, *((1, 2) if export == "add" else ()))

    assert (report.outcome, report.value) == (Outcome.CRASHED, None)


def test_values_are_as_they_are() -> None:
    """The twin: those of a worker that tells the truth."""
    with Sandbox(isolation="process") as box:
        assert box.call(SUM, "add", 1, 2).value == 3
        assert box.call(SUM, "none").value is None
        assert box.call(SUM, "half").value == 0.5
        assert box.call(SUM, "two").value == [-1, 0.5]
        assert box.run(SUM).value is None


@pytest.mark.parametrize("kind", ["UsageError", "LinkError", "SnapshotError", "IsolationError"])
def test_a_failure_of_somebody_else(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    """Attack: a guest that has begun, and blames its embedder, in words of its own."""
    lies(monkeypatch, lambda told, _: (Failed(kind, "your key is wrong"), b""), Finished)
    with Sandbox(isolation="process") as box:
        report = box.call(SUM, "add", 1, 2)

    assert report.outcome is Outcome.CRASHED
    assert report.trap is not None
    assert "key" not in report.trap.message


@pytest.mark.parametrize("told", [Ready(("landlock",)), Started(("landlock",))])
def test_a_worker_that_is_ready_again(monkeypatch: pytest.MonkeyPatch, told: Any) -> None:
    """Attack: a guest that has its time begin anew, and says which walls stand around it."""
    lies(monkeypatch, lambda _told, _: (told, b""), Finished)
    with Sandbox(isolation="process") as box:
        report = box.call(SUM, "add", 1, 2)

    assert report.outcome is Outcome.CRASHED
    assert report.trap is not None
    assert report.trap.message.endswith("twice")


def test_descriptors_of_a_snapshot_with_something_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: filling the host's table of descriptors, one snapshot at a time."""
    with Sandbox(isolation="process") as box:
        assert box.call(SUM, "add", 1, 2).ok
        assert until(all_gone)
        before = descriptors()
        lies(monkeypatch, lambda told, _: (told, b"x"), Taken)
        for _ in range(3):
            with box.open(SUM) as session:
                session.write_memory(0, b"x")
                with pytest.raises(UsageError):
                    session.snapshot()
        assert until(all_gone)
        assert until(lambda: descriptors() <= before)


@pytest.mark.parametrize("cancels", [False, True])
def test_a_worker_that_does_not_answer_in_a_call(monkeypatch: pytest.MonkeyPatch, *, cancels: bool) -> None:
    """Attack: a worker that keeps the host waiting for a piece of memory, beyond the deadline of its run."""
    receive = _handle.WorkerHandle.receive

    def silent(handle: _handle.WorkerHandle, most_blob: int) -> object:
        found = receive(handle, most_blob)
        return None if found is not None and isinstance(found[0], Looked) else found

    monkeypatch.setattr(_handle.WorkerHandle, "receive", silent)
    policy = Policy().replace(wall_time="100s" if cancels else "300ms")
    box = Sandbox(policy, isolation="process")

    @box.host_function("env", "look")
    def look(call: HostCall) -> None:
        if cancels:
            box.cancel("it")
        call.memory.read(0, 1)

    with box:
        begun = time.monotonic()
        report = box.run(LOOKS, run_id="it")

    assert report.outcome is (Outcome.CANCELLED if cancels else Outcome.TIMEOUT)
    assert time.monotonic() - begun < 90


SECRET = "notarealkey4711"


def guarded(verdict: str, audit: AuditLog | None = None) -> Sandbox:
    """A sandbox whose runs are looked through for a secret."""
    rules = GateRules(registered=verdict)  # type: ignore[arg-type]
    return Sandbox(Policy(gate=rules), "process", secrets={"api": SECRET}, audit=audit)


@pytest.mark.parametrize("verdict", ["warn", "redact", "block", "quarantine"])
def test_words_of_a_worker_that_fails_pass_the_gate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verdict: str
) -> None:
    """Attack: a worker ends its run by an error of its own making that has the secret, for the caller and the log."""
    lies(monkeypatch, lambda told, _: (Failed("EngineError", f"no room for {SECRET} here"), b""), Finished)
    with AuditLog(tmp_path / "log") as log, guarded(verdict, log) as box, pytest.raises(EngineError) as caught:
        box.call(SUM, "add", 1, 2)

    said = {
        "warn": "no room for [redacted:api] here",
        "redact": "no room for [redacted:api] here",
        "block": "what it says is kept back by gate.registered",
        "quarantine": "what it says is kept back by gate.registered",
    }[verdict]
    assert str(caught.value) == said
    assert said in (tmp_path / "log").read_text()
    assert SECRET not in (tmp_path / "log").read_text()


def test_words_of_a_worker_without_a_secret_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    lies(monkeypatch, lambda told, _: (Failed("EngineError", "no room for it here"), b""), Finished)
    with guarded("block") as box, pytest.raises(EngineError, match=r"^no room for it here$"):
        box.call(SUM, "add", 1, 2)


def test_words_about_memory_pass_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    lies(monkeypatch, lambda told, behind: (Looked(65536, f"{SECRET} is not inside"), b""), Looked)
    with guarded("redact") as box, box.open(SUM) as session, pytest.raises(UsageError) as caught:
        session.read_memory(0, 8)

    assert str(caught.value) == "outside the guest's memory: [redacted:api] is not inside"


@pytest.mark.parametrize(
    "told",
    [
        {"usage": Usage(calls={SECRET: 1})},
        {"usage": Usage(denied={SECRET: 1})},
        {"violations": (Violation(kind=SECRET, subject="x"),)},
        {"violations": (Violation(kind="path", subject="x", call=SECRET),)},
        {"violations": (Violation(kind="path", subject="x", field=SECRET),)},
        {"violations": (Violation(kind="path", subject="x", mount=SECRET),)},
        {"outcome": Outcome.TRAP, "exit_code": None, "trap": TrapInfo(SECRET, "it trapped")},
    ],
    ids=str,
)
def test_all_words_of_a_report_pass_the_gate(monkeypatch: pytest.MonkeyPatch, told: dict[str, Any]) -> None:
    """Attack: names of calls, fields and traps, which a worker chooses that is in the hands of its guest."""

    def lying(finished: Finished, behind: bytes) -> tuple[Finished, bytes]:
        given = dict(told)
        if "usage" in given:
            given["usage"] = msgspec.structs.replace(
                finished.report.usage, calls=given["usage"].calls, denied=given["usage"].denied
            )
        return msgspec.structs.replace(finished, report=msgspec.structs.replace(finished.report, **given)), behind

    lies(monkeypatch, lying, Finished)
    with guarded("redact") as box:
        report = box.run(SUM)

    assert SECRET not in report.to_json()
    assert "[redacted:api]" in report.to_json()


@pytest.mark.parametrize("value", [5, [1, 2], 0.5, "a text", b"bytes"])
def test_a_value_of_a_turn(monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    """Attack: the report on a call that is not over, or was never made, has a value, which nobody has looked at."""
    behind = value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else b""
    kind = "text" if isinstance(value, str) else "bytes" if behind else ""

    heard: list[Finished] = []

    def told(finished: Finished, _: bytes) -> tuple[Finished, bytes]:
        heard.append(finished)
        return finished, b""

    lies(monkeypatch, told, Finished)
    with Sandbox(isolation="process") as box:
        assert box.call(SUM, "none").ok
        lie = msgspec.structs.replace(
            heard[0],
            report=msgspec.structs.replace(heard[0].report, value=None if behind else value),
            value=len(behind),
            kind=kind,
        )
        guest, _ = box.live(SUM)
        monkeypatch.setattr(_handle.WorkerHandle, "receive", lambda handle, most: (lie, behind, ()))
        report = guest.final_report()
        guest.close()

    assert (report.outcome, report.value) == (Outcome.CRASHED, None)
    assert report.trap is not None
    assert report.trap.message == "the worker reports what makes no sense: it has a value where no call is over"
