"""Runs that are given nothing, in a worker that waits: told by one message, and over by another."""

from __future__ import annotations

import math
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from stockade import Outcome, Policy, Report, Sandbox
from stockade.gate import GateRules
from stockade.isolation import _brief, _handle, _hub
from stockade.isolation._messages import FROM_WORKER, Output, Returned, Told
from stockade.report import Progress, QuotaUse
from tests._processes import until
from tests.conftest import HELLO, wat
from tests.isolation.test_ahead import steady, waiting
from tests.isolation.test_workers import SPIN, all_gone, number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WRITES = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 3)
  (data (i32.const 0) "\\00\\00\\01\\00\\60\\ea\\00\\00")
  (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
"""
"""Writes 60,000 bytes: about as many as a message has in the socket."""

ENDS = """
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (call $exit (i32.const 3)))
  (func (export "trap") unreachable))
"""

CALLED = """
(module
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (memory (export "memory") 1)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "none"))
  (func (export "same") (param f64) (result f64) (local.get 0))
  (func (export "two") (result i64 f32) (i64.const -1) (f32.const 0.5)))
"""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """A fork server of its own, with nothing that waits before and after."""
    _hub.hub.end()
    yield
    assert until(lambda: _hub.hub._server is None or all_gone())
    assert _hub.hub._free == _hub.MOST_WORKERS
    _hub.hub.end()


class Brief:
    """Knows of each run that a waiting worker was told of whether it was over within a moment."""

    def __init__(self) -> None:
        self.found: list[bool] = []

    def report(self, do: Callable[[], Report]) -> Report:
        """Does a run until one is over within a moment, which on a busy machine not every one is."""
        for _ in range(20):
            self.found.clear()
            report = do()
            if self.found == [True]:
                return report
            waiting()
        raise AssertionError("no run is over within a moment")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> Brief:
    """What is known of the runs of a test."""
    found, heard = Brief(), _brief._heard

    def noted(*given: Any) -> tuple[float | None, Report | None]:
        told = heard(*given)
        found.found.append(told[1] is not None)
        return told

    monkeypatch.setattr(_brief, "_heard", noted)
    # However busy the machine is.
    monkeypatch.setattr(_handle, "_BRIEF_TIME", _handle.struct.pack("@ll", 60, 0))
    return found


def ready(box: Sandbox, do: Callable[[], Report]) -> None:
    """Has a worker wait, which is ready."""
    for _ in range(2):
        do()
    (worker,) = waiting()
    assert until(lambda: worker.wait(1))


def test_a_run_is_told_as_in_this_process(brief: Brief) -> None:
    box, here = Sandbox("strict", isolation="process"), Sandbox("strict")
    ready(box, lambda: box.run(wat(HELLO)))
    report = brief.report(lambda: box.run(wat(HELLO)))
    assert steady(report) == steady(here.run(wat(HELLO)))
    assert report.stdout == b"hello world\n"
    assert (report.isolation, report.exit_code) == ("process", 0)
    assert 0 < report.timings.run <= report.timings.total


@pytest.mark.parametrize(
    ("export", "args", "value"), [("add", (1, 2), 3), ("none", (), None), ("same", (0.5,), 0.5), ("two", (), [-1, 0.5])]
)
def test_a_call_is_told_as_in_this_process(brief: Brief, export: str, args: tuple[int, ...], value: object) -> None:
    box = Sandbox(isolation="process")
    ready(box, lambda: box.call(wat(CALLED), export, *args))
    report = brief.report(lambda: box.call(wat(CALLED), export, *args))
    assert report.value == value
    assert steady(report) == steady(Sandbox().call(wat(CALLED), export, *args))


def test_no_call_is_taken_for_an_equal_one(brief: Brief) -> None:
    """There are two zeros, which are equal."""
    box = Sandbox(isolation="process")
    ready(box, lambda: box.call(wat(CALLED), "same", 0.0))
    signs = []
    for value in (0.0, -0.0, 0.0):
        waiting()
        report = brief.report(lambda value=value: box.call(wat(CALLED), "same", value))
        signs.append(math.copysign(1, report.value))
    assert signs == [1, -1, 1]


def test_much_output_comes_whole(brief: Brief) -> None:
    box = Sandbox(isolation="process")
    ready(box, lambda: box.run(wat(WRITES)))
    report = brief.report(lambda: box.run(wat(WRITES)))
    assert len(report.stdout) == 60_000


@pytest.mark.parametrize("export", [None, "trap"])
def test_of_what_more_is_to_be_told_all_is_told(brief: Brief, export: str | None) -> None:
    """An exit code and a trap are no returns: the run goes on in steps, and hears the same again."""
    box, here = Sandbox(isolation="process"), Sandbox()

    def do(where: Sandbox) -> Report:
        return where.run(wat(ENDS)) if export is None else where.call(wat(ENDS), export)

    ready(box, lambda: do(box))
    report = do(box)
    assert brief.found == [False]
    assert steady(report) == steady(do(here))
    assert report.trap == do(here).trap


def test_a_run_that_lasts_is_cancelled_and_held_to_its_deadline() -> None:
    box = Sandbox(Policy().replace(wall_time=0.2), isolation="process")
    ready(box, lambda: box.run(wat(SPIN)))
    report = box.run(wat(SPIN))
    assert report.outcome is Outcome.TIMEOUT
    assert report.usage.wall_seconds >= 0.2

    box = Sandbox(Policy().replace(wall_time=None, fuel=None), isolation="process")
    reports: list[Report] = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: reports.append(box.run(wat(SPIN), run_id="spins")))
        thread.start()
        assert until(lambda: "spins" in box.monitor())
        assert box.cancel("spins")
        thread.join(60)
    assert [report.outcome for report in reports] == [Outcome.CANCELLED] * 3


def test_a_worker_that_was_killed_is_no_run_s_loss() -> None:
    """It is found dead when it is told, and another one is made."""
    box = Sandbox(isolation="process")
    ready(box, lambda: box.run(wat(HELLO)))
    (worker,) = waiting()
    status = worker.status
    os.kill(number_of(worker), signal.SIGKILL)
    assert until(lambda: worker.status is not None)
    # As if that had not been heard yet.
    worker.status = status
    assert box.run(wat(HELLO)).ok


def test_what_a_handler_raises_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is free again, whoever looks."""
    box = Sandbox(isolation="process")
    ready(box, lambda: box.run(wat(HELLO)))
    (worker,) = waiting()

    def interrupted(handle: _handle.WorkerHandle, most_blob: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_handle.WorkerHandle, "receive_soon", interrupted)
        with pytest.raises(KeyboardInterrupt):
            box.run(wat(HELLO))

    assert until(lambda: worker.status == -signal.SIGKILL)
    assert box.run(wat(HELLO)).ok


def test_what_leaves_is_looked_at(brief: Brief) -> None:
    policy = Policy().replace(gate=GateRules(registered="redact"))
    box = Sandbox(policy, isolation="process", secrets={"greeting": b"hello world"})
    ready(box, lambda: box.run(wat(HELLO)))
    report = brief.report(lambda: box.run(wat(HELLO)))
    assert report.stdout == b"[redacted:greeting]\n"


def test_runs_of_many_threads(brief: Brief) -> None:
    box = Sandbox(isolation="process")
    ready(box, lambda: box.run(wat(HELLO)))
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.extend(box.run(wat(HELLO)).stdout for _ in range(10))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert found == [b"hello world\n"] * 40
    assert any(brief.found)


# -- a worker in the hands of its guest ------------------------------------------------------------------------------


def lies(monkeypatch: pytest.MonkeyPatch, told: Callable[[Returned, bytes], tuple[Any, bytes]]) -> None:
    """Has workers say something else than they do."""

    def lying(receive: Callable[[_handle.WorkerHandle, int], Any]) -> Callable[[_handle.WorkerHandle, int], object]:
        def lie(handle: _handle.WorkerHandle, most_blob: int) -> object:
            found = receive(handle, most_blob)
            if found is not None and isinstance(found[0], Returned):
                return *told(found[0], found[1]), found[2]
            return found

        return lie

    for name in ("receive", "receive_soon"):
        monkeypatch.setattr(_handle.WorkerHandle, name, lying(getattr(_handle.WorkerHandle, name)))


_LIES: dict[str, Callable[[Returned, bytes], tuple[Any, bytes]]] = {
    "a call that there is not": lambda told, behind: (msgspec.structs.replace(told, calls={"I am a call": 1}), behind),
    "more output than it says": lambda told, behind: (told, behind + b"x"),
    "less output than it says": lambda told, behind: (msgspec.structs.replace(told, stdout=told.stdout + 1), behind),
    "more output than it may have": lambda told, _: (msgspec.structs.replace(told, stdout=200), b"x" * 200),
    "more errors than it may have": lambda told, behind: (
        msgspec.structs.replace(told, stderr=200),
        behind + b"x" * 200,
    ),
    "a value": lambda told, behind: (msgspec.structs.replace(told, values=(1,)), behind),
    "a value of its own": lambda told, behind: (msgspec.structs.replace(told, values=(1,), exit_code=None), behind),
    "other fuel": lambda told, behind: (msgspec.structs.replace(told, fuel=(1, 1, True)), behind),
    "no fuel": lambda told, behind: (msgspec.structs.replace(told, fuel=None), behind),
    "time that was not": lambda told, behind: (msgspec.structs.replace(told, wall_seconds=100.0), behind),
    "output that nobody asked for": lambda told, behind: (Output("stdout"), behind),
}


@pytest.mark.parametrize("lie", _LIES)
@pytest.mark.parametrize("waits", [False, True])
def test_what_makes_no_sense_ends_the_run(monkeypatch: pytest.MonkeyPatch, lie: str, *, waits: bool) -> None:
    """Attack: a worker that says of a run what cannot be, whether it was made for it or has waited. P-ISO-8."""
    box = Sandbox(Policy().replace(fuel=10**6, stdout=100, stderr=100), isolation="process")
    if waits:
        ready(box, lambda: box.run(wat(HELLO)))
    lies(monkeypatch, _LIES[lie])
    report = box.run(wat(HELLO))
    assert report.outcome is Outcome.CRASHED
    assert report.trap is not None
    assert "makes no sense" in report.trap.message
    assert (report.stdout, report.value, report.exit_code) == (b"", None, None)


def test_what_earlier_calls_have_used_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: a call of which is told as little as of a first one, what was used before left out."""
    box = Sandbox(isolation="process")
    with box.open(wat(HELLO)) as session:
        assert session.call("_start").ok
        assert session.call("_start").earlier == QuotaUse(calls=1)
        receive = _handle.WorkerHandle.receive

        def lie(handle: _handle.WorkerHandle, most_blob: int) -> object:
            found = receive(handle, most_blob)
            if found is not None and not isinstance(found[0], Told):
                return Returned(0.0, 0.0, 65536, 0, 0, {}), b"", ()
            return found

        monkeypatch.setattr(_handle.WorkerHandle, "receive", lie)
        report = session.call("_start")
        assert report.ok
        assert report.earlier == QuotaUse(calls=2)


@pytest.mark.parametrize(
    "told",
    [
        {"wall_seconds": math.nan},
        {"wall_seconds": math.inf},
        {"wall_seconds": -1.0},
        {"cpu_seconds": math.nan},
        {"cpu_seconds": 1e30},
        {"memory_bytes": -1},
        {"memory_bytes": 1 << 63},
        {"grown_bytes": -1},
        {"table_elements": True},
        {"calls": {"fd_write": -1}},
        {"calls": {"fd_write": 1.5}},
        {"stdout": -1},
        {"exit_code": -1},
        {"exit_code": 1 << 32},
        {"fuel": [1, 2]},
        {"fuel": [-1, 2, True]},
        {"values": [None]},
        {"values": ["text"]},
        {"values": [True]},
    ],
)
def test_what_no_run_comes_to_is_no_message(told: dict[str, object]) -> None:
    """Attack: numbers that none of these can be."""
    whole = {
        "type": "Returned",
        "wall_seconds": 0.5,
        "cpu_seconds": 0.5,
        "memory_bytes": 65536,
        "grown_bytes": 0,
        "table_elements": 0,
        "calls": {"fd_write": 1},
    }
    assert FROM_WORKER.decode(msgspec.msgpack.encode(whole)) == Returned(0.5, 0.5, 65536, 0, 0, {"fd_write": 1})
    with pytest.raises(msgspec.ValidationError):
        FROM_WORKER.decode(msgspec.msgpack.encode(whole | told))


def test_progress_may_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is heard before the end is heard again, in its order, where the run goes on in steps."""
    box = Sandbox(isolation="process")
    ready(box, lambda: box.run(wat(HELLO)))
    receive, count = _handle.WorkerHandle.receive_soon, 0

    def told(handle: _handle.WorkerHandle, most_blob: int) -> object:
        nonlocal count
        count += 1
        return receive(handle, most_blob) if count != 2 else (Told(Progress(seconds=0.0)), b"", ())

    monkeypatch.setattr(_handle.WorkerHandle, "receive_soon", told)
    assert box.run(wat(HELLO)).stdout == b"hello world\n"
    assert count == 2
