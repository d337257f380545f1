"""The trace of a guest in a worker: entries as the guard wrote them, of which nothing is believed that it cannot have.

Holds P-ISO-15. That it is told as in this process is held by `tests/execution/test_tracing.py`, which runs here, too.
"""

from __future__ import annotations

import os
import signal
import struct
import threading
from typing import TYPE_CHECKING

import msgspec
import pytest

from stockade import HostCall, Limits, Outcome, Policy, Report, Sandbox, Trace
from stockade.isolation import _handle
from stockade.isolation._messages import Finished, Traced
from stockade.isolation._worker import _TRACED_BYTES
from tests._processes import until
from tests.conftest import HELLO, wat
from tests.isolation.test_hostile import lies
from tests.isolation.test_workers import all_gone, number_of, started

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.report import TracedCall

CALLS = """(module
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (memory (export "memory") 1)
  (func (export "times") (param $n i32)
    (loop $more
      (drop (call $yield))
      (br_if $more (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))))"""

SLEEPS = """(module
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "\\01\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\ff\\ff\\ff")
  (func (export "_start")
    (drop (call $yield))
    (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))"""

ASKS = '(module (import "env" "ask" (func $f)) (memory (export "memory") 1) (func (export "_start") (call $f)))'


def crashed(report: Report) -> str:
    """Why a run has crashed."""
    assert (report.outcome, report.isolation) == (Outcome.CRASHED, "process")
    assert report.trap is not None
    return report.trap.message


@pytest.mark.parametrize("on_overflow", ["wait", "count"])
def test_more_calls_than_there_is_room_for(on_overflow: str) -> None:
    """They are handed over in pieces whenever the guest halts, or counted; none is told twice, and none is missed."""
    count = 40_000
    with Sandbox(Policy(limits=Limits(wall_time=None)), "process", trace=Trace(on_overflow=on_overflow)) as box:  # type: ignore[arg-type]
        report = box.call(wat(CALLS), "times", count)

    assert report.ok
    assert len(report.trace_calls) + report.trace_lost == report.usage.calls["sched_yield"] == count
    assert [call.sequence for call in report.trace_calls] == list(range(len(report.trace_calls)))
    assert bool(report.trace_lost) == (on_overflow == "count")


def test_pieces_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the ring holds."""
    sizes: list[int] = []

    def told(message: Traced, blob: bytes) -> tuple[Traced, bytes]:
        sizes.append(len(blob))
        return message, blob

    lies(monkeypatch, told, Traced)
    with Sandbox(isolation="process", trace=Trace(string_bytes=0)) as box:
        assert box.call(wat(CALLS), "times", 3_000).ok

    assert sizes.pop() == 0
    assert len(sizes) > 3
    assert max(sizes) <= _TRACED_BYTES


def test_a_sink_is_told_here() -> None:
    """In the host's process, on the thread that drives the run, while the guest waits."""
    told: list[tuple[int, int, TracedCall]] = []

    with Sandbox(
        isolation="process", trace=Trace(sink=lambda call: told.append((os.getpid(), threading.get_ident(), call)))
    ) as box:
        report = box.run(wat(HELLO))

    assert [(process, thread) for process, thread, _ in told] == [(os.getpid(), threading.get_ident())]
    assert told[0][2].call == "fd_write"
    assert report.trace_calls == ()


def test_what_a_lost_worker_did_is_told() -> None:
    """Until it was lost: the report has the calls that were handed over, and the one that had not returned."""

    def kill(_call: object = None) -> None:
        os.kill(number_of(started(1)[0]), signal.SIGKILL)

    with Sandbox(isolation="process", trace=True) as box:
        timer = threading.Timer(0.0, lambda: until(lambda: bool(box.monitor())) and until(kills))

        def kills() -> bool:
            progress = next(iter(box.monitor().values()), None)
            if progress is None or progress.calls < 2:
                return False
            kill()
            return True

        timer.start()
        report = box.run(wat(SLEEPS))
        timer.join()

    assert crashed(report) == "the worker was ended by SIGKILL"
    assert [(call.call, call.has_returned) for call in report.trace_calls] == [
        ("sched_yield", True),
        ("poll_oneoff", False),
    ]


def _number(slot: bytes, number: int) -> bytes:
    return bytes([number]) + slot[1:]


def _began(slot: bytes, nanoseconds: int) -> bytes:
    return slot[:16] + struct.pack("<Q", nanoseconds) + slot[24:]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda slots: slots[:-1], "what it tells of calls is no number of entries"),
        (lambda slots: slots + b"x", "what it tells of calls is no number of entries"),
        (lambda _: b"", "what it tells of calls is no number of entries"),
        (lambda slots: _number(slots, 200), "it tells of a call that is not traced"),
        (lambda slots: _number(slots, 9), "it tells of a call that is not traced"),
        (lambda slots: _began(slots, (1 << 64) - 1), "it tells of a call that is yet to come"),
    ],
    ids=["cut", "longer", "nothing", "no call", "another call", "later"],
)
def test_entries_that_the_guard_cannot_have_written(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes], why: str
) -> None:
    """Attack: a worker in the hands of its guest, that has the host read what is no entry."""
    lies(monkeypatch, lambda told, blob: (told, blob if told.ended else change(blob)), Traced)
    told: list[TracedCall] = []
    with Sandbox(isolation="process", trace=Trace(calls=("fd_write",), sink=told.append)) as box:
        report = box.run(wat(HELLO))

    assert crashed(report) == f"the worker says what makes no sense: {why}"
    assert told == []
    assert until(all_gone)


def test_a_function_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: the number of a function of the embedder's beyond those that there are; of its own, it is told."""

    def ask() -> None:
        pass

    def run(function: int) -> Report:
        def told(message: Traced, blob: bytes) -> tuple[Traced, bytes]:
            return message, blob[:112] + struct.pack("<Q", function) + blob[120:] if blob else blob

        with monkeypatch.context() as patch, Sandbox(isolation="process", trace=True) as box:
            box.host_function("env", "ask")(ask)
            lies(patch, told, Traced)
            return box.run(wat(ASKS))

    assert [call.call for call in run(0).trace_calls] == ["env.ask"]
    assert crashed(run(1)) == "the worker says what makes no sense: it tells of a call of a function that there is not"


def test_a_trace_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: filling the host's memory with calls, or its report with numbers."""
    lies(monkeypatch, lambda _told, _: (Traced(), bytes(640)), Finished)
    assert "calls that nobody asked for" in crashed(Sandbox(isolation="process").run(wat(HELLO)))
    monkeypatch.undo()

    def lost(told: Finished, blob: bytes) -> tuple[Finished, bytes]:
        return msgspec.structs.replace(told, report=msgspec.structs.replace(told.report, trace_lost=5)), blob

    lies(monkeypatch, lost, Finished)
    assert "it tells what nobody asked for" in crashed(Sandbox(isolation="process").run(wat(HELLO)))


def test_calls_that_never_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: calls that begin, and of whose end nothing is ever told, which the host would keep."""
    open_calls = [0]

    def told(message: Traced, blob: bytes) -> tuple[Traced, bytes]:
        size = len(blob) // max(1, len(blob) // 128)
        open_calls[0] += len(blob) // 128
        return message, b"".join(
            blob[at : at + 1] + b"\0" + blob[at + 2 : at + size] for at in range(0, len(blob), 128)
        )

    lies(monkeypatch, told, Traced)
    with Sandbox(isolation="process", trace=Trace(string_bytes=0)) as box:
        report = box.call(wat(CALLS), "times", 20_000)

    assert crashed(report).endswith("it tells of more calls under way than a guest can make")
    assert open_calls[0] < 6_000


def test_a_flood_while_the_host_waits_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: a worker that is asked for memory, and tells of calls in the place of the answer, without end."""
    receive = _handle.WorkerHandle.receive
    flooding = [False]

    def flood(handle: _handle.WorkerHandle, most_blob: int) -> object:
        return (Traced(), bytes(640), ()) if flooding[0] else receive(handle, most_blob)

    monkeypatch.setattr(_handle.WorkerHandle, "receive", flood)

    def ask(call: HostCall) -> None:
        flooding[0] = True
        call.memory.read(0, 4)

    with Sandbox(isolation="process", trace=True) as box:
        box.host_function("env", "ask")(ask)
        report = box.run(wat(ASKS))

    assert crashed(report).endswith("it tells of more calls than there is room for")
