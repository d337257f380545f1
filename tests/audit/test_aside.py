"""Large batches of an audit log, which a process beside the runs writes: all of it, once. Holds P-AUDIT-9."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from stockade import AuditLog, Sandbox
from stockade.audit import EventName, _aside, _log, verify
from stockade.audit import _chain_file as chain
from stockade.audit import _outlet as outlets
from stockade.audit._packed import join
from stockade.audit._writer import Answer, begin_to_send, is_readable, receive
from tests._processes import until
from tests.audit._logs import GUEST, KEY, events, names

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def own_writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[_aside._Writer]:
    """A process that writes for this test alone, which takes logs already, and each batch."""
    writer = _aside._Writer()
    monkeypatch.setattr(_aside, "_writer", writer)
    monkeypatch.setattr(_log, "_MANY", 1)
    monkeypatch.setattr(outlets, "_RETRY_SECONDS", 0.01)
    end = time.monotonic() + 60
    while (line := writer.connect()) is None:
        assert time.monotonic() < end
        # On a machine that is very busy, one may not come to begin: another is started at once.
        writer._not_before = 0.0
        time.sleep(0.01)
    line.close()
    yield writer
    if writer._process is not None:
        writer._process.close()


def process_of(writer: _aside._Writer) -> int:
    """The number of the process."""
    assert writer._process is not None
    return writer._process.popen.pid


def forbid_writing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, this process writes no log."""

    def write(_descriptor: int, _data: object) -> int:
        raise AssertionError("a log is written here")

    monkeypatch.setattr(chain.os, "write", write)


def test_what_another_process_writes_is_what_this_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events in their order, with the same fields; and the log is as it was written."""
    told: list[list[dict[str, object]]] = []
    for name in ("aside", "here"):
        path = tmp_path / name
        with monkeypatch.context() as patch:
            if name == "aside":
                forbid_writing_here(patch)
            else:
                patch.setattr(_log, "_MANY", 1 << 30)
            with AuditLog(path, key=KEY) as log, Sandbox("strict", audit=log) as box:
                for number in range(100):
                    box.call(GUEST, "add", number, 1)
                box.run(GUEST)
                box.call(GUEST, "trap")
                box.call(GUEST, "add", 1, 2, run_id="é\n")
                with box.open(GUEST) as session:
                    session.call("add", 1, 2)
        assert verify(path, key=KEY).ok
        told.append(events(path))

    for one, other in zip(*told, strict=True):
        for event in (one, other):
            for field in ("time", "writer", "run", "session"):
                event.pop(field, None)
            figures = event.get("figures")
            if isinstance(figures, dict):
                for field in ("wall_seconds", "cpu_seconds"):
                    figures.pop(field)
        assert one == other


def test_a_writer_that_is_killed_loses_nothing(tmp_path: Path, own_writer: _aside._Writer) -> None:
    """Again and again, in the middle of what it does: each event is in the log, once, and the chain is whole."""
    path = tmp_path / "log"
    with AuditLog(path, key=KEY, required=True) as log, Sandbox(audit=log) as box:
        for number in range(2000):
            box.call(GUEST, "add", number, 1)
            if number % 100 == 50 and own_writer._process is not None:
                os.kill(process_of(own_writer), signal.SIGKILL)
    numbers = [event["seq"] for event in events(path) if event["writer"] == log.writer]

    assert len(numbers) == len(set(numbers))
    assert names(path).count("run_started") == names(path).count("run_ended") == 2000
    assert log.failures == log.dropped == 0
    assert verify(path, key=KEY).ok


@pytest.mark.parametrize("before", [True, False])
def test_a_writer_that_is_gone_before_it_has_answered(
    before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it has written its batch or not: what is in the log already is not written again."""
    path = tmp_path / "log"
    real_send, real_receive = _aside.begin_to_send, _aside.receive
    lost: list[int] = []

    def send(line: socket.socket, message: bytes) -> memoryview:
        if before:
            lost.append(1)
            line.shutdown(socket.SHUT_RDWR)
        return real_send(line, message)

    def receive(line: object) -> object:
        answer = real_receive(line)  # type: ignore[arg-type]
        if answer is None or not msgspec.msgpack.decode(answer, type=Answer).written:
            return answer
        lost.append(1)
        return None

    monkeypatch.setattr(_aside, "begin_to_send", send)
    if not before:
        monkeypatch.setattr(_aside, "receive", receive)
    with AuditLog(path, key=KEY) as log:
        for number in range(300):
            log.tell(EventName.DENIED, count=number, subject='"seq":7,"writer":"x')
            if number % 50 == 0:
                log.flush()

    assert lost
    assert sorted(event.get("count", 0) for event in events(path)) == list(range(300))
    assert log.failures == 0
    assert verify(path, key=KEY).ok


def test_what_is_not_known_to_be_written_is_looked_for_until_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log cannot be read when the writer has gone: it fails, and is written once all the same."""
    path = tmp_path / "log"
    real_receive, real_written = _aside.receive, chain.ChainFile.written
    tries: list[int] = []

    def receive(line: object) -> object:
        answer = real_receive(line)  # type: ignore[arg-type]
        return None if answer and msgspec.msgpack.decode(answer, type=Answer).written else answer

    def written(file: chain.ChainFile[object], start: int, writer: str) -> set[int]:
        tries.append(start)
        if len(tries) < 3:
            raise OSError(5, "Input/output error")
        return real_written(file, start, writer)

    monkeypatch.setattr(_aside, "receive", receive)
    monkeypatch.setattr(chain.ChainFile, "written", written)
    with AuditLog(path, key=KEY) as log:
        log.tell(EventName.DENIED)
        while not log.flush():
            assert len(tries) < 3
        assert log.failures == 2

    assert names(path) == ["denied"]
    assert verify(path, key=KEY).ok


def test_what_the_writer_cannot_write_is_told_as_ever(tmp_path: Path) -> None:
    """A link is put into the place of the log: nothing runs where it is required, and all is there when it is gone."""
    path, aside = tmp_path / "log", tmp_path / "moved"
    with AuditLog(path, key=KEY, required=True) as log, Sandbox(audit=log) as box:
        box.call(GUEST, "add", 1, 2)
        assert log.flush()
        path.rename(aside)
        path.symlink_to(tmp_path / "elsewhere")
        log.tell(EventName.DENIED)
        assert not log.flush(5)
        assert (
            log.last_error == f"AuditError: the audit log {path} is a link: give another path, or remove what is there"
        )
        path.unlink()
        assert log.flush()
        assert not log.failing
        assert box.call(GUEST, "add", 1, 2).value == 3

    assert not (tmp_path / "elsewhere").exists()
    assert names(path)[:2] == ["log_continued", "denied"]
    assert verify([aside, path], key=KEY).ok


_KILLED = """
import os, signal, sys, time
from tests.audit._logs import GUEST, KEY
from stockade import AuditLog, Sandbox
from stockade.audit import EventName, _aside, _log
_log._MANY = 1
while (line := _aside._writer.connect()) is None:
    time.sleep(0.01)
line.close()
send, _aside.sent = _aside.begin_to_send, []
def sending(line, message):
    if b"denied" in message:
        _aside.sent.append(message)
    return send(line, message)
_aside.begin_to_send = sending
def killed(_line):
    os.kill(os.getpid(), signal.SIGKILL)
real = _aside.receive
_aside.receive = lambda line: killed(line) if _aside.sent else real(line)
log = AuditLog(sys.argv[1], key=KEY)
for number in range(5000):
    log.tell(EventName.DENIED, count=number)
log.flush()
"""


def test_what_was_handed_over_is_written_though_its_process_is_killed(tmp_path: Path) -> None:
    """`kill -9` of the process that runs guests: the other one has its batch, and brings it to its end."""
    path = tmp_path / "log"

    done = subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False)

    assert done.returncode == -signal.SIGKILL
    end = time.monotonic() + 60
    while not (path.exists() and names(path) and verify(path, key=KEY).events):
        assert time.monotonic() < end
        time.sleep(0.01)
    told = [event.get("count", 0) for event in events(path)]
    assert told == list(range(len(told)))
    assert verify(path, key=KEY).ok


_MANY_PROCESSES = """
import sys
from tests.audit._logs import GUEST, KEY
from stockade import AuditLog, Sandbox
with AuditLog(sys.argv[1], key=KEY) as log, Sandbox(audit=log) as box:
    for number in range(1000):
        box.call(GUEST, "add", number, 1)
assert log.dropped == log.failures == 0
"""


@pytest.mark.slow
def test_eight_processes_with_writers_of_their_own_write_one_chain(tmp_path: Path) -> None:
    """And those that write beside them: sixteen that take turns."""
    path = tmp_path / "log"
    started = [subprocess.Popen([sys.executable, "-c", _MANY_PROCESSES, str(path)]) for _ in range(8)]

    assert [process.wait() for process in started] == [0] * 8
    assert names(path).count("run_ended") == 8000
    assert len({(event["writer"], event["seq"]) for event in events(path)}) == len(events(path))
    assert verify(path, key=KEY).ok


_FORKED = """
import os, sys, time
from tests.audit._logs import GUEST, KEY
from stockade import AuditLog, Sandbox
from stockade.audit import _aside, _log
_log._MANY = 1
while (line := _aside._writer.connect()) is None:
    time.sleep(0.01)
line.close()
log = AuditLog(sys.argv[1], key=KEY)
box = Sandbox("strict", audit=log)
def work():
    for number in range(500):
        box.call(GUEST, "add", number, 1)
work()
child = os.fork()
work()
log.close()
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_has_a_writer_of_its_own(tmp_path: Path) -> None:
    """The parent's goes on with what is the parent's."""
    path = tmp_path / "log"

    subprocess.run([sys.executable, "-W", "ignore", "-c", _FORKED, str(path)], check=True)

    assert names(path).count("run_ended") == 1500
    assert len({(event["writer"], event["seq"]) for event in events(path)}) == len(events(path))
    assert verify(path, key=KEY).ok


def test_where_there_can_be_no_other_process_the_log_is_written_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Python to start: nothing depends on it."""
    monkeypatch.setattr(_aside, "_writer", _aside._Writer())
    monkeypatch.setattr(sys, "executable", "")
    path = tmp_path / "log"

    with AuditLog(path, key=KEY) as log, Sandbox(audit=log) as box:
        for number in range(300):
            box.call(GUEST, "add", number, 1)

    assert names(path).count("run_ended") == 300
    assert log.failures == 0
    assert verify(path, key=KEY).ok


def test_a_writer_ends_with_the_process_that_has_it(own_writer: _aside._Writer) -> None:
    """It needs no order."""
    assert own_writer._process is not None
    popen = own_writer._process.popen
    own_writer._process.control.close()

    assert popen.wait(60) == 0
    own_writer._process = None


def test_a_writer_has_nothing_that_its_process_was_given(own_writer: _aside._Writer) -> None:
    """The key of a log is in no argument and in no variable that others could read."""
    pid = process_of(own_writer)
    variables, words = (Path("/proc", str(pid), name).read_bytes() for name in ("environ", "cmdline"))

    assert KEY not in variables + words
    assert b"HOME=" not in variables


def test_runs_let_by_whoever_hands_events_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it never comes on its own: the thread of the runs lets it by, and does not wait for the writing."""
    path = tmp_path / "log"
    monkeypatch.setattr(outlets, "_MEET_SECONDS", 60.0)
    with AuditLog(path, key=KEY) as log, Sandbox("strict", audit=log) as box:
        box.call(GUEST, "add", 1, 1)
        # From here on the other process takes batches.
        assert log.flush()
        monkeypatch.setattr(outlets, "_GATHER_SECONDS", 60.0)
        monkeypatch.setattr(outlets, "_MET_SECONDS", 60.0)
        forbid_writing_here(monkeypatch)
        end = time.monotonic() + 300
        while names(path).count("run_ended") < 2000:
            assert time.monotonic() < end
            for _ in range(500):
                box.call(GUEST, "add", 1, 1)
        assert log.flush()
    numbers = [event["seq"] for event in events(path) if event["writer"] == log.writer]

    assert numbers == list(range(1, len(numbers) + 1))
    assert log.failures == log.dropped == 0
    assert verify(path, key=KEY).ok


def test_runs_hand_events_over_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once there is somebody to take them, no thread has to come: what was written is seen, and the next follows."""
    path = tmp_path / "log"
    handed: list[int] = []
    with AuditLog(path, key=KEY) as log, Sandbox("strict", audit=log) as box:
        box.call(GUEST, "add", 1, 1)
        assert log.flush()
        aside, outlet = log._aside, log._outlets[0]
        assert aside is not None
        monkeypatch.setattr(outlets, "_GATHER_SECONDS", 60.0)
        monkeypatch.setattr(outlets, "_MET_SECONDS", 60.0)
        box.call(GUEST, "add", 1, 1)
        assert until(lambda: outlet._meets)
        outlet._meet()
        assert until(lambda: outlet._meets)
        # Nobody is let by.
        monkeypatch.setattr(outlet, "_rendezvous", None)
        forbid_writing_here(monkeypatch)
        for number in range(5):
            box.call(GUEST, "add", 1, 1)
            assert until(lambda: aside._line is not None and is_readable(aside._line.socket))
            outlet._meet()
            handed.append(aside.waiting)
            assert not outlet._notices, number
        assert log.flush()

    assert handed == [2] * 5
    assert [event["seq"] for event in events(path)] == list(range(1, len(events(path)) + 1))
    assert verify(path, key=KEY).ok


@pytest.mark.parametrize("does", ["raises", "waits"])
@pytest.mark.parametrize("where", ["before", "taken", "sent", "answered"])
def test_who_is_interrupted_while_he_hands_events_over(
    where: str, does: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: the handler of a signal raises there, or waits until all is written. Each event is told once."""
    path = tmp_path / "log"
    me = threading.get_ident()
    times = 0
    monkeypatch.setattr(outlets, "_TURN_SECONDS", 0.01)

    def interrupt() -> None:
        nonlocal times
        if threading.get_ident() != me or sys._getframe(2).f_code.co_name not in {"hand_over", "_send", "_answer_of"}:
            return
        times += 1
        if times % 3 == 2:
            if does == "raises":
                raise InterruptedError_
            assert log.flush()

    class InterruptedError_(BaseException):  # noqa: N801 - what a handler raises
        pass

    def before(line: object) -> bool:
        interrupt()
        return is_readable(line)  # type: ignore[arg-type]

    def taken(*given: Any) -> bytes:
        interrupt()
        return join(*given)

    def sent(*given: Any) -> memoryview:
        rest = begin_to_send(*given)
        interrupt()
        return rest

    def answered(line: Any) -> Any:
        answer = receive(line)
        interrupt()
        return answer

    name, do = {
        "before": ("is_readable", before),
        "taken": ("join", taken),
        "sent": ("begin_to_send", sent),
        "answered": ("receive", answered),
    }[where]
    runs = 0
    with AuditLog(path, key=KEY) as log, Sandbox("strict", audit=log) as box:
        box.call(GUEST, "add", 1, 1)
        assert log.flush()
        monkeypatch.setattr(_aside, name, do)
        end = time.monotonic() + 60
        while times < 8:
            assert time.monotonic() < end
            with suppress(InterruptedError_):
                for _ in range(100):
                    runs += 1
                    box.call(GUEST, "add", 1, 1)
        assert log.flush()
        assert log.failures == log.dropped == 0
    numbers = [event["seq"] for event in events(path) if event["writer"] == log.writer]

    assert len(numbers) == len(set(numbers))
    assert set(numbers) == set(range(1, max(numbers) + 1))
    assert names(path).count("run_started") == names(path).count("run_ended") == runs + 1
    assert verify(path, key=KEY).ok


_FORKED_WITHIN = """
import os, sys, threading, time
from tests.audit._logs import GUEST, KEY
from stockade import AuditLog, Sandbox
from stockade.audit import _aside, _log, _outlet
while (line := _aside._writer.connect()) is None:
    time.sleep(0.01)
line.close()
where, join, send, children, times = sys.argv[2], _aside.join, _aside.begin_to_send, [], 0
def fork():
    global times
    times += threading.current_thread() is threading.main_thread()
    if times == 3:
        times += 1
        children.append(os.fork())
def joining(*given):
    if where == "taken":
        fork()
    return join(*given)
def sending(*given):
    rest = send(*given)
    if where == "sent":
        fork()
    return rest
_aside.join, _aside.begin_to_send = joining, sending
log = AuditLog(sys.argv[1], key=KEY)
box = Sandbox("strict", audit=log)
end = time.monotonic() + 60
while not children and time.monotonic() < end:
    box.call(GUEST, "add", 1, 1)
for number in range(1000):
    box.call(GUEST, "add", 1, 1)
log.close()
assert log.failures == log.dropped == 0
child, = children
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("where", ["taken", "sent"])
def test_who_is_forked_while_he_hands_events_over(where: str, tmp_path: Path) -> None:
    """By the handler of a signal: what was to be handed over is the parent's, and each goes on with its own."""
    path = tmp_path / "log"

    subprocess.run([sys.executable, "-W", "ignore", "-c", _FORKED_WITHIN, str(path), where], check=True)

    numbers: dict[str, list[int]] = {}
    for event in events(path):
        numbers.setdefault(event["writer"], []).append(event["seq"])
    assert len(numbers) == 2
    for told in numbers.values():
        # The child goes on where the parent was.
        assert sorted(told) == list(range(min(told), max(told) + 1))
    assert verify(path, key=KEY).ok


def test_what_the_writer_cannot_write_is_told_where_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link comes into the place of the log while runs hand events over: that is told, and nothing is lost."""
    path, aside = tmp_path / "log", tmp_path / "moved"
    with AuditLog(path, key=KEY) as log, Sandbox("strict", audit=log) as box:
        box.call(GUEST, "add", 1, 1)
        assert log.flush()
        monkeypatch.setattr(outlets, "_GATHER_SECONDS", 60.0)
        monkeypatch.setattr(outlets, "_MET_SECONDS", 60.0)
        path.rename(aside)
        path.symlink_to(tmp_path / "elsewhere")
        end = time.monotonic() + 60
        runs = 1
        while not log.failing:
            assert time.monotonic() < end
            box.call(GUEST, "add", 1, 1)
            runs += 1
        assert (
            log.last_error == f"AuditError: the audit log {path} is a link: give another path, or remove what is there"
        )
        path.unlink()
        assert log.flush()

    told = [*events(aside), *events(path)]
    assert log.dropped == 0
    assert [event["event"] for event in told].count("run_ended") == runs
    assert len({(event["writer"], event["seq"]) for event in told}) == len(told)
    assert verify([aside, path], key=KEY).ok


def test_events_wait_for_a_writer_that_is_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first batch is written here: those that come while the process starts are for that one."""
    path = tmp_path / "log"
    monkeypatch.setattr(_aside, "_writer", _aside._Writer())
    monkeypatch.setattr(_aside, "_START_SECONDS", 60.0)
    with AuditLog(path, key=KEY) as log:
        log.tell(EventName.CONFIGURATION)
        end = time.monotonic() + 60
        while not names(path):
            assert time.monotonic() < end
            time.sleep(0.001)
        forbid_writing_here(monkeypatch)
        while names(path).count("configuration") < 20:
            assert time.monotonic() < end
            log.tell(EventName.CONFIGURATION)
            time.sleep(0.001)
        _aside._writer.leave()

    assert log.failures == log.dropped == 0
    assert verify(path, key=KEY).ok
