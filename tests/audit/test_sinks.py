"""Sinks of an audit log: those that fail, block, raise or call back, and floods. Holds P-AUDIT-4 and P-AUDIT-5."""

from __future__ import annotations

import json
import logging
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import AuditError, AuditLog, Sandbox, UsageError
from stockade.audit import AuditEvent, EventName, LoggingSink, SyslogSink, verify
from stockade.audit import _chain_file as chain
from stockade.audit import _outlet as outlets
from stockade.audit._events import Severity
from tests._processes import open_descriptors
from tests.audit._logs import GUEST, KEY, names

if TYPE_CHECKING:
    from pathlib import Path


class Gate:
    """A sink that takes nothing until it is let."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.events: list[AuditEvent] = []

    def __call__(self, event: AuditEvent) -> None:
        self.entered.set()
        assert self.open.wait(60)
        self.events.append(event)


def test_a_flood_pushes_out_nothing_that_matters_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest calls a host function again and again, while the sink takes nothing, to hide what it was refused."""
    monkeypatch.setitem(outlets._ROOM, Severity.DETAIL, 100)
    gate = Gate()
    with AuditLog(sinks=[gate]) as log:
        log.tell(EventName.RUN_STARTED)
        assert gate.entered.wait(60)
        for number in range(1000):
            log.tell(EventName.HOST_FUNCTION_CALLED, count=number)
            if number % 100 == 0:
                log.tell(EventName.DENIED, count=number)
        assert log.dropped == 900
        gate.open.set()
    told = [event.event for event in gate.events]

    assert told.count(EventName.DENIED) == 10
    assert told.count(EventName.RUN_STARTED) == 1
    assert told.count(EventName.HOST_FUNCTION_CALLED) == 100
    # What was lost is told in its turn, and counted to the last.
    assert [event.count for event in gate.events if event.event is EventName.EVENTS_DROPPED] == [900]
    numbers = [event.seq for event in gate.events if event.event is not EventName.EVENTS_DROPPED]
    assert numbers == sorted(numbers)


def test_what_matters_most_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of refusals takes no more memory than its queue."""
    monkeypatch.setitem(outlets._ROOM, Severity.CRITICAL, 50)
    gate = Gate()
    with AuditLog(sinks=[gate]) as log:
        log.tell(EventName.RUN_STARTED)
        assert gate.entered.wait(60)
        for number in range(80):
            log.tell(EventName.DENIED, count=number)
        assert (log.lost, log.dropped) == (51, 30)
        gate.open.set()

    assert [event.count for event in gate.events if event.event is EventName.DENIED] == list(range(50))


def test_runs_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of runs while the sink takes nothing: what there is no room for is counted to the last, and told."""
    monkeypatch.setattr(outlets, "_NOTICES", 50)
    gate = Gate()
    with AuditLog(sinks=[gate]) as log, Sandbox(audit=log) as box:
        box.call(GUEST, "add", 0, 1)
        assert gate.entered.wait(60)
        taken = log.lost
        for number in range(100):
            assert box.call(GUEST, "add", number, 1).value == number + 1
        dropped = log.dropped
        assert dropped >= 150
        assert log.lost - taken + dropped == 200
        gate.open.set()

    runs = [event for event in gate.events if event.event in (EventName.RUN_STARTED, EventName.RUN_ENDED)]
    assert len(runs) + dropped == 202
    assert sum(event.count for event in gate.events if event.event is EventName.EVENTS_DROPPED) == dropped


def test_where_nothing_may_be_lost_runs_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """`required`: a slow sink slows runs down, and gets every event."""
    monkeypatch.setitem(outlets._ROOM, Severity.NOTICE, 10)
    monkeypatch.setattr(outlets, "_NOTICES", 10)
    told: list[AuditEvent] = []

    def slow(event: AuditEvent) -> None:
        time.sleep(0.001)
        told.append(event)

    with AuditLog(sinks=[slow], required=True) as log, Sandbox(audit=log) as box:
        for number in range(50):
            box.call(GUEST, "add", number, 1)

    assert log.dropped == 0
    assert [event.event for event in told].count(EventName.RUN_ENDED) == 50


def test_a_sink_that_blocks_holds_up_no_run_and_no_other_sink(tmp_path: Path) -> None:
    """Each has a thread of its own."""
    gate = Gate()
    log = AuditLog(tmp_path / "log", sinks=[gate], key=KEY)
    with Sandbox(audit=log) as box:
        for number in range(20):
            assert box.call(GUEST, "add", number, 1).value == number + 1
    assert not log.flush(0.2)
    assert names(tmp_path / "log").count("run_ended") == 20
    gate.open.set()
    log.close()

    assert [event.event for event in gate.events].count(EventName.RUN_ENDED) == 20


def test_a_sink_that_raises_is_visible_and_others_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By a count, the last error, and a warning; no run is touched."""

    def broken(event: AuditEvent) -> None:
        raise ValueError(f"no\n{event.event}")

    with AuditLog(tmp_path / "log", sinks=[broken], key=KEY) as log, Sandbox(audit=log) as box:
        assert box.call(GUEST, "add", 1, 2).value == 3
        log.flush()
        assert log.failing
        assert log.failures >= 1
        assert log.last_error.startswith(r"ValueError: no\x0a")

    assert names(tmp_path / "log")[-1] == "run_ended"
    warning = next(record for record in caplog.records if record.levelno == logging.WARNING)
    assert warning.name == "stockade.audit"
    assert "fails: ValueError" in warning.getMessage()


def test_a_sink_that_ends_its_thread_does_not_end_the_log() -> None:
    """SystemExit ends a thread in silence."""
    told: list[AuditEvent] = []

    def leaving(event: AuditEvent) -> None:
        told.append(event)
        raise SystemExit

    with AuditLog(sinks=[leaving]) as log:
        for _ in range(3):
            log.tell(EventName.DENIED)
            log.flush()
        assert log.last_error == "RuntimeError: the sink raised SystemExit"

    assert len(told) == 3


def test_a_sink_may_run_guests_and_flush_and_close_the_log() -> None:
    """It is called on the thread that brings events: what it tells comes after them, and it waits for nobody."""
    told: list[str] = []

    def calling(event: AuditEvent) -> None:
        told.append(event.event)
        if event.event is EventName.RUN_ENDED and told.count("run_ended") == 1:
            assert box.call(GUEST, "add", 1, 2).value == 3
            assert not log.flush(60)
        if told.count("run_ended") == 2:
            log.close(60)

    log = AuditLog(sinks=[calling])
    box = Sandbox(audit=log)
    box.call(GUEST, "add", 1, 2)
    log.flush()

    assert told.count("run_ended") == 2
    assert log.closed


def test_where_a_log_is_required_nothing_runs_while_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail closed; and runs go on as soon as it can be written again, with all that was told meanwhile."""

    def full(_descriptor: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outlets, "_RETRY_SECONDS", 0.01)
    with AuditLog(tmp_path / "log", key=KEY, required=True) as log, Sandbox(audit=log) as box:
        assert box.call(GUEST, "add", 1, 2).value == 3
        log.flush()
        with monkeypatch.context() as patch:
            patch.setattr(chain.os, "write", full)
            box.call(GUEST, "add", 1, 2)
            assert not log.flush(0.2)
            for run in (
                lambda: box.call(GUEST, "add", 1, 2),
                lambda: box.run(GUEST),
                lambda: box.open(GUEST),
            ):
                with pytest.raises(AuditError, match="nothing runs, for the audit log cannot be written and is requ"):
                    run()
            assert log.last_error == "No space left on device"
        assert log.flush()
        assert box.call(GUEST, "add", 1, 2).value == 3

    assert names(tmp_path / "log").count("run_ended") == 3
    assert verify(tmp_path / "log", key=KEY).ok


def test_a_sink_that_is_required_gets_what_it_has_failed_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing would run any more: with no run, there would be no event to show that it works."""
    monkeypatch.setattr(outlets, "_RETRY_SECONDS", 0.01)
    broken, told = threading.Event(), list[AuditEvent]()

    def sink(event: AuditEvent) -> None:
        if broken.is_set():
            raise ValueError("no")
        told.append(event)

    with AuditLog(sinks=[sink], required=True) as log, Sandbox(audit=log) as box:
        box.call(GUEST, "add", 1, 2)
        assert log.flush()
        broken.set()
        box.call(GUEST, "add", 1, 2)
        assert not log.flush(0.1)
        with pytest.raises(AuditError, match="is required: ValueError: no"):
            box.call(GUEST, "add", 1, 2)
        broken.clear()
        assert log.flush()
        assert box.call(GUEST, "add", 1, 2).value == 3

    assert [event.event for event in told].count(EventName.RUN_ENDED) == 3
    assert [event.seq for event in told] == list(range(1, len(told) + 1))


def test_a_log_that_is_not_required_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""

    def full(_descriptor: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chain.os, "write", full)
    log = AuditLog(tmp_path / "log", key=KEY)
    with Sandbox(audit=log) as box:
        for number in range(3):
            assert box.call(GUEST, "add", number, 1).value == number + 1
            log.flush(0.1)
    log.close(0.1)

    assert log.failing
    assert log.lost >= 6
    # Else its thread would try for ever.
    monkeypatch.undo()
    assert log.flush()


def test_a_closed_log_runs_nothing(tmp_path: Path) -> None:
    """What cannot be told does not happen."""
    log = AuditLog(tmp_path / "log", key=KEY)
    box = Sandbox(audit=log)
    log.close()
    log.close()

    with pytest.raises(UsageError, match="the audit log is closed: make a new one"):
        box.call(GUEST, "add", 1, 2)
    with pytest.raises(UsageError, match="the audit log is closed: make a new one"):
        Sandbox(audit=log)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"fsync": "always"}, 'fsync is \'always\': it must be "never", "second" or "run"'),
        ({"sinks": ["text"]}, "a sink of an audit log is str: it must be callable"),
        ({"sinks": print}, "sinks is builtin_function_or_method: it must be a list, as in sinks=[...]"),
        ({"hooks": "text"}, "hooks is str: it must be a list, as in hooks=[...]"),
        ({"path": 3}, "path is int: give the path of the audit log"),
        ({}, "an audit log needs a file, a sink or a hook, as in AuditLog('audit.jsonl')"),
        ({"hooks": [print]}, "a hook of an audit log is builtin_function_or_method: it must be a RunHook"),
    ],
)
def test_what_a_log_cannot_use_is_told(options: dict[str, object], told: str) -> None:
    """Before anything runs."""
    with pytest.raises(UsageError) as problem:
        AuditLog(**options)  # type: ignore[arg-type]
    assert str(problem.value) == told
    with pytest.raises(UsageError, match="audit is str: it must be an AuditLog"):
        Sandbox(audit="log")  # type: ignore[arg-type]


def test_logging_is_told_with_levels_and_fields(caplog: pytest.LogCaptureFixture) -> None:
    """Configuration, start and end as information, what was refused as warnings, host functions for debugging."""
    with caplog.at_level(logging.DEBUG, "stockade"), AuditLog(sinks=[LoggingSink()]) as log, Sandbox(audit=log) as box:
        box.call(GUEST, "spin", policy=stockade.Policy().replace(fuel=1000))
        log.tell(EventName.HOST_FUNCTION_CALLED, name="env.f\n")
        log.flush()
    told = {record.audit.event.value: record for record in caplog.records if hasattr(record, "audit")}

    assert {name: record.levelname for name, record in told.items()} == {
        "configuration": "INFO",
        "policy_used": "INFO",
        "module_loaded": "INFO",
        "run_started": "INFO",
        "limit_reached": "WARNING",
        "run_ended": "INFO",
        "host_function_called": "DEBUG",
    }
    assert told["run_ended"].audit.outcome == "fuel"
    assert told["limit_reached"].audit.name == "fuel"
    assert told["run_ended"].getMessage().startswith("run_ended run=")
    assert "outcome=fuel" in told["run_ended"].getMessage()


def test_a_name_does_not_pass_for_other_fields(caplog: pytest.LogCaptureFixture) -> None:
    """A guest names what it is refused: spaces and equal signs stand in quotes; what is plain does not."""
    with caplog.at_level(logging.DEBUG, "stockade"), AuditLog(sinks=[LoggingSink()]) as log:
        log.tell(EventName.DENIED, subject='a" outcome=ok run=1', name="path", reason="")

    told = caplog.records[-1].getMessage()
    assert told == 'denied name=path subject="a\\" outcome=ok run=1"'


def test_syslog_is_told_a_line_of_json(tmp_path: Path) -> None:
    """Over a socket, as syslog has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "socket"))
        sink = SyslogSink(str(tmp_path / "socket"), "local0")
        with AuditLog(sinks=[sink]) as log:
            log.tell(EventName.DENIED, subject="é\n")
            log.flush()
        text = syslog.recv(10_000).decode()
        sink.close()

    # local0 is 16, a warning is 4.
    assert text.startswith('<132>stockade: {"event":"denied"')
    assert "\n" not in text
    assert text.isascii()
    assert json.loads(text.partition(" ")[2])["subject"] == "é\n"


def test_a_syslog_that_goes_away_is_a_sink_that_fails(tmp_path: Path) -> None:
    """Its handler keeps nothing to itself."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "socket"))
        sink = SyslogSink(str(tmp_path / "socket"))
    (tmp_path / "socket").unlink()
    with AuditLog(sinks=[sink]) as log:
        log.tell(EventName.DENIED)
        log.flush()
        assert log.failures == 1
    sink.close()


def test_a_syslog_that_is_not_there_is_told(tmp_path: Path) -> None:
    """When it is made."""
    with pytest.raises(AuditError, match=r"syslog at .* cannot be reached"):
        SyslogSink(str(tmp_path / "none"))
    with pytest.raises(AuditError, match="there is no facility 'mine' of syslog"):
        SyslogSink(facility="mine")


class _RaisedError(Exception):
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_handlers_of_signals_that_raise_between_any_two_lines_leave_a_log_that_works(tmp_path: Path) -> None:
    """They come in the middle of what is told, of starting the thread, and of waiting for it."""

    def handler(_number: int, _frame: object) -> None:
        raise _RaisedError

    before = signal.signal(signal.SIGALRM, handler)
    log = AuditLog(tmp_path / "log", key=KEY)
    box = Sandbox(audit=log)
    try:
        for number in range(200):
            # It may come as it is called off, too.
            with suppress(_RaisedError):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0002 + number * 0.00002)
                    for _ in range(100):
                        box.call(GUEST, "add", 1, 2)
                    log.flush()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert box.call(GUEST, "add", 1, 2).value == 3
    box.close()
    log.close()

    assert log.lost == 0
    assert names(tmp_path / "log")[-1] == "run_ended"
    assert verify(tmp_path / "log", key=KEY).ok


def test_a_log_that_is_dropped_keeps_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    """Nobody has to close it."""
    import gc

    before = open_descriptors()
    for number in range(5):
        log = AuditLog(tmp_path / f"log{number}", key=KEY)
        log.tell(EventName.DENIED)
        log.flush()
        del log
    end = time.monotonic() + 30
    while time.monotonic() < end:
        gc.collect()
        left = [thread for thread in threading.enumerate() if thread.name == "stockade-audit"]
        if not left and open_descriptors() <= before:
            break
        time.sleep(0.05)

    assert left == []
    assert open_descriptors() <= before
