"""Workers that are made ahead: who gets them, how many there are, when they end, and what stands around them."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from stockade import Clock, Policy, Random, Report, Sandbox, StockadeError
from stockade.execution import PolicyContext
from stockade.host import HostFunctions
from stockade.isolation import InProcess, Task, _handle, _hub
from stockade.isolation._ahead import IDLE_SECONDS, MOST_FOR_ONE, WorkersAhead
from stockade.isolation._frames import Garbled, Gone, send
from stockade.isolation._messages import Expect, Open
from stockade.isolation._prepared import Prepared
from stockade.isolation._worker import _Host
from stockade.runner import RunControl, run_blocking
from tests._processes import descriptors, ended, forked, until
from tests.conftest import ECHO, HELLO, wat
from tests.isolation.test_workers import number_of, server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Made:
    """What stands for a worker."""

    def __init__(self, program: int, number: int) -> None:
        self.program, self.number = program, number
        self.status: int | None = None
        self.refused = 0
        self.closed = False
        self.given: object = None
        self.expected: object = None

    def expect(self, given: object) -> None:
        self.expected = given

    def close(self) -> None:
        self.closed = True


class Makes:
    """Makes workers, and tells the time."""

    def __init__(self, most: int = 16) -> None:
        self.made: list[Made] = []
        self.now = 1.0
        self.is_gone = False
        self.ahead = WorkersAhead(self.make, most, lambda: self.now)  # type: ignore[arg-type, return-value]

    def make(self, program: int) -> Made:
        if self.is_gone:
            raise Gone
        self.made.append(Made(program, len(self.made)))
        return self.made[-1]

    def run(self, program: int) -> Made:
        """Begins a run as the hub does."""
        worker = self.ahead.take(program) or self.make(program)
        self.ahead.took(worker)  # type: ignore[arg-type]
        return worker  # type: ignore[return-value]

    def last(self, worker: Made) -> None:
        """Goes on with a run that is not over within a moment."""
        self.ahead.refill(worker.program)

    def end(self, worker: Made) -> None:
        worker.close()
        self.ahead.left(worker)  # type: ignore[arg-type]
        self.ahead.refill_all()


def test_what_runs_but_once_has_no_worker_that_waits() -> None:
    makes = Makes()
    for program in range(20):
        makes.end(makes.run(program))
    assert len(makes.ahead) == 0


def test_a_worker_waits_for_what_runs_again() -> None:
    """Each serves one run, and another one is made when that is over."""
    makes = Makes()
    for _ in range(2):
        makes.end(makes.run(1))
    (waits,) = [worker for worker in makes.made if not worker.closed]

    third = makes.run(1)

    assert third is waits
    assert len(makes.ahead) == 0
    makes.end(third)
    assert len(makes.ahead) == 1
    assert makes.ahead.take(1) is not third


def test_a_worker_is_made_while_a_run_lasts() -> None:
    """The next one is not to wait until that is over; and is made once."""
    makes = Makes()
    makes.end(makes.run(1))
    lasts = makes.run(1)
    assert not makes.ahead.is_short
    makes.last(lasts)
    assert len(makes.ahead) == 1
    makes.end(lasts)
    assert len(makes.ahead) == 1
    assert not makes.ahead.is_short


def test_as_many_wait_as_are_at_work() -> None:
    makes = Makes()
    at_work = [makes.run(1) for _ in range(3)]
    for worker in at_work:
        makes.last(worker)
    assert len(makes.ahead) == 3
    for worker in at_work:
        makes.end(worker)
    makes.end(makes.run(1))
    assert len(makes.ahead) == 2
    for _ in range(100):
        makes.last(makes.run(1))
    assert len(makes.ahead) == MOST_FOR_ONE


def test_so_many_wait_and_no_more() -> None:
    """What was not asked for for longest gives one up."""
    makes = Makes(most=2)
    for program in (1, 2, 3):
        makes.now += 1
        for _ in range(2):
            makes.end(makes.run(program))
    assert len(makes.ahead) == 2
    assert makes.ahead.take(1) is None
    assert makes.ahead.take(3) is not None


def test_what_has_ended_meanwhile_is_not_taken() -> None:
    """Killed, or refused by the system: the run gets another."""
    makes = Makes()
    at_work = [makes.run(1) for _ in range(2)]
    makes.last(at_work[0])
    killed, refused = (worker for worker in makes.made if worker not in at_work)
    killed.status, refused.refused = -signal.SIGKILL, 11
    found = makes.run(1)
    assert found not in (killed, refused)
    assert killed.closed
    assert refused.closed


def test_what_nobody_asks_for_is_ended() -> None:
    makes = Makes()
    for _ in range(2):
        makes.end(makes.run(1))
    due = makes.ahead.idle_at()
    assert due == makes.now + IDLE_SECONDS

    makes.now += IDLE_SECONDS - 1
    makes.ahead.end_idle()
    assert len(makes.ahead) == 1
    makes.now += 1
    makes.ahead.end_idle()

    assert len(makes.ahead) == 0
    assert makes.ahead.idle_at() is None
    assert all(worker.closed for worker in makes.made)


def test_what_is_forgotten_waits_no_more() -> None:
    makes = Makes()
    for program in (1, 1, 2, 2):
        makes.end(makes.run(program))
    makes.ahead.drop(1)
    assert [worker.program for worker in makes.made if not worker.closed] == [2]
    makes.ahead.close()
    makes.ahead.close()
    assert all(worker.closed for worker in makes.made)


def test_where_none_can_be_made_the_run_goes_on() -> None:
    makes = Makes()
    makes.end(makes.run(1))
    worker = makes.make(1)
    makes.is_gone = True
    makes.ahead.took(worker)  # type: ignore[arg-type]
    makes.end(worker)
    assert len(makes.ahead) == 0


# -- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh() -> Iterator[None]:
    """A fork server of its own, with nothing that waits before and after."""
    _hub.hub.end()
    yield
    _hub.hub.end()


def waiting() -> list[_handle.WorkerHandle]:
    """Waits until there is a worker that waits, and has a process."""
    found: list[_handle.WorkerHandle] = []

    def there() -> bool:
        found[:] = [worker for one in server().ahead._expected.values() for worker in one.waiting]
        return bool(found) and all(worker._process is not None for worker in found)

    until(there)
    return found


@pytest.mark.usefixtures("fresh")
def test_a_run_takes_the_worker_that_waits() -> None:
    """It has its arguments and input from its own run, and serves that alone. P-ISO-8."""
    box = Sandbox("strict", isolation="process")
    for text in (b"one", b"two"):
        assert box.run(wat(ECHO), stdin=text).stdout == text
    (worker,) = waiting()
    process = number_of(worker)

    assert box.run(wat(ECHO), stdin=b"three").stdout == b"three"

    assert until(lambda: worker.status is not None)
    assert [number_of(other) for other in waiting()] != [process]
    assert box.run(wat(ECHO), stdin=b"four").stdout == b"four"


DRAWS = """
(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\10\\00\\00\\00\\18\\00\\00\\00")
  (func (export "_start")
    (drop (call $random (i32.const 16) (i32.const 8)))
    (drop (call $clock (i32.const 0) (i64.const 0) (i32.const 24)))
    (drop (call $clock (i32.const 1) (i64.const 0) (i32.const 32)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
"""


def steady(report: Report) -> object:
    """What is told of a run, but for how long everything took."""
    usage = {
        name: value for name, value in msgspec.structs.asdict(report.usage).items() if not name.endswith("_seconds")
    }
    return report.outcome, report.stdout, usage, report.fuel and report.fuel.consumed, report.violations, report.earlier


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("given", [{}, {"stdin": b"x"}, {"args": ("one",)}])
def test_a_worker_that_has_waited_tells_what_a_fresh_one_does(given: dict[str, Any]) -> None:
    """What it has done meanwhile leaves nothing: the same random numbers, time, fuel and counters. P-ISO-8."""
    policy = Policy().replace(clock=Clock(mode="virtual"), random=Random(mode="seeded", seed=7))
    box = Sandbox(policy, isolation="process")
    told = [box.run(wat(DRAWS), **given) for _ in range(2)]
    waiting()
    told.append(box.run(wat(DRAWS), **given))

    assert told[0].ok
    assert len(told[0].stdout) == 24
    assert steady(told[0]) == steady(told[1]) == steady(told[2]) == steady(Sandbox(policy).run(wat(DRAWS), **given))


@pytest.mark.usefixtures("fresh")
def test_time_that_a_worker_has_waited_is_no_time_of_its_run() -> None:
    box = Sandbox(Policy().replace(wall_time=20.0), isolation="process")
    for _ in range(2):
        assert box.run(wat(HELLO)).ok
    waiting()
    begun = time.perf_counter()
    report = box.run(wat(HELLO))
    most = time.perf_counter() - begun
    assert report.timings.instantiate + report.timings.run <= most


@pytest.mark.usefixtures("fresh")
def test_policies_do_not_share_workers(tmp_path: Path) -> None:
    """Attack: a run that gets a worker with another policy's rights. Each waits for one module under one policy."""
    loose, tight = Sandbox(Policy(), isolation="process"), Sandbox(Policy().replace(stdout=3), isolation="process")
    for _ in range(2):
        assert loose.run(wat(HELLO)).ok
    waiting()
    report = tight.run(wat(HELLO))
    assert len(report.stdout) == 3
    narrowed = loose.run(wat(HELLO), policy=Policy().replace(stdout=2))
    assert len(narrowed.stdout) == 2


@pytest.mark.usefixtures("fresh")
def test_a_killed_worker_that_waited_is_no_run_s_loss() -> None:
    """Want of memory takes what waits first: the next run has another. P-ISO-8."""
    box = Sandbox("strict", isolation="process")
    for _ in range(2):
        assert box.run(wat(HELLO)).ok
    (worker,) = waiting()
    os.kill(number_of(worker), signal.SIGKILL)
    assert until(lambda: worker.status is not None)
    assert box.run(wat(HELLO)).ok


@pytest.mark.usefixtures("fresh")
def test_nothing_is_left_of_what_waited() -> None:
    """Neither processes nor descriptors, when it is closed."""
    box = Sandbox("strict", isolation="process")
    for _ in range(2):
        assert box.run(wat(HELLO)).ok
    waiting()
    server().ahead.close()
    # The process of the first run, and that of the others.
    assert until(lambda: not server().workers and len(server().watcher._templates) == 1)
    before = descriptors()
    for _ in range(3):
        assert box.run(wat(HELLO)).ok
    waiting()
    server().ahead.close()
    assert until(lambda: not server().workers)
    assert descriptors() == before


@pytest.mark.usefixtures("fresh")
def test_a_forked_host_leaves_what_waits_to_its_parent() -> None:
    """P-ISO-6."""
    box = Sandbox("strict", isolation="process")
    for _ in range(2):
        assert box.run(wat(HELLO)).ok
    (worker,) = waiting()

    def child() -> None:
        for _ in range(3):
            assert box.run(wat(HELLO)).ok

    assert ended(forked(child)) == 0
    assert worker.status is None
    assert box.run(wat(HELLO)).ok


def rehearse(prepared: Prepared) -> None:
    """Does in this process what a worker does before it waits."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        host = _Host(ours, prepared)
        with suppress(StockadeError):
            host._rehearse_run(())
        prepared.forget()
        ahead = prepared.guest_ahead(host.control)
        if ahead is not None:
            ahead.close()
        with pytest.raises(BlockingIOError):
            theirs.recv(1, socket.MSG_DONTWAIT)


COUNTS = """
(module
  (import "env" "tick" (func $tick))
  (memory (export "memory") 1)
  (func $first (call $tick))
  (start $first)
  (func (export "_start") (call $tick)))
"""


@pytest.mark.parametrize("cpu_percent", [100, 50])
def test_what_waits_has_run_nothing_of_its_guest(cpu_percent: int) -> None:
    """Attack: a guest that does something before anybody has asked for it. P-ISO-8."""
    ticks: list[int] = []
    functions = HostFunctions()

    def tick() -> None:
        ticks.append(1)

    functions.add("env", "tick", tick, None)
    module = wat(COUNTS)
    context = PolicyContext(Policy().replace(cpu_percent=cpu_percent, fuel=10**6), functions)
    context.plan(module)

    rehearse(Prepared(None, module, None, context, ()))  # type: ignore[arg-type]

    assert ticks == []
    assert not context.history(module)
    report = run_blocking(InProcess().run(context, RunControl(), Task(module), ""), RunControl())
    assert report.ok
    assert ticks == [1, 1]


def test_what_cannot_be_made_is_told_by_its_run() -> None:
    """Data that lie outside of its memory: what waits says nothing of that."""
    module = wat('(module (memory (export "memory") 1) (data (i32.const 65536) "x") (func (export "_start")))')
    context = PolicyContext(Policy(), HostFunctions())
    context.plan(module)

    rehearse(Prepared(None, module, None, context, ()))  # type: ignore[arg-type]

    assert not run_blocking(InProcess().run(context, RunControl(), Task(module), ""), RunControl()).ok


ENDS = """
import os
from stockade import Sandbox
from stockade.execution import PolicyContext
from stockade.host import HostFunctions
from stockade.isolation import InProcess, Task, _hub
from tests._processes import until
from tests.conftest import HELLO, wat
box = Sandbox("strict", isolation="process")
for _ in range(3):
    assert box.run(wat(HELLO)).ok
until(lambda: _hub.hub._server.ahead)
print(len(_hub.hub._server.ahead), _hub.hub._server.process.popen.pid)
"""


def test_what_waits_keeps_no_process_from_ending() -> None:
    """Nor does it outlive it."""
    told = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, check=True, timeout=60)
    count, pid = map(int, told.stdout.split())
    assert count == 1
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# -- what is expected ------------------------------------------------------------------------------------------------


KEEPS = """
(module
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (memory (export "memory") 2)
  (global $count (mut i32) (i32.const 0))
  (func (export "count") (result i32)
    (i32.store (i32.const 70000) (i32.add (i32.load (i32.const 70000)) (i32.const 1)))
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (i32.add (global.get $count) (i32.load (i32.const 70000))))
  (func (export "variables") (result i32)
    (drop (call $sizes (i32.const 0) (i32.const 4)))
    (i32.load (i32.const 0))))
"""


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What workers are told before their guest is there."""
    found: list[Any] = []

    def noted(line: socket.socket, message: Any, *given: Any, **named: Any) -> None:
        if isinstance(message, Open | Expect):
            found.append(message)
        send(line, message, *given, **named)

    monkeypatch.setattr(_handle, "send", noted)
    return found


def saved(box: Sandbox) -> Any:
    with box.open(wat(KEEPS)) as session:
        assert session.call("count").value == 2
        return session.snapshot()


@pytest.mark.usefixtures("fresh")
def test_what_waits_has_the_snapshot_that_was_used_last(orders: list[Any]) -> None:
    """Each run begins with it, and none with what another has left. P-ISO-8."""
    box = Sandbox(isolation="process")
    first, second = saved(box), saved(box)
    for _ in range(2):
        assert box.call(first, "count").value == 4
    waiting()
    orders.clear()

    assert box.call(first, "count").value == 4
    waiting()
    (told,) = [order for order in orders if isinstance(order, Open)]
    assert told.as_expected
    assert told.saved is None
    orders.clear()

    # Another one is another one, though it says the same.
    assert box.call(second, "count").value == 4
    assert [order.as_expected for order in orders if isinstance(order, Open)] == [False]


@pytest.mark.usefixtures("fresh")
def test_what_is_not_as_expected_is_given_what_it_is_given(orders: list[Any]) -> None:
    """A run of the module alone, where a snapshot is expected, and one with a snapshot after it."""
    box = Sandbox(isolation="process")
    snapshot = saved(box)
    for _ in range(2):
        assert box.call(snapshot, "count").value == 4
    waiting()
    assert box.call(wat(KEEPS), "count").value == 2
    waiting()
    assert box.call(snapshot, "count").value == 4
    waiting()
    assert box.call(snapshot, "count").value == 4
    assert any(isinstance(order, Expect) for order in orders)


@pytest.mark.usefixtures("fresh")
def test_a_closed_snapshot_is_kept_while_it_is_expected() -> None:
    """The descriptors of its files are nobody else's until then."""
    box = Sandbox(isolation="process")
    snapshot = saved(box)
    for _ in range(2):
        assert box.call(snapshot, "count").value == 4
    waiting()
    del snapshot
    gc.collect()
    others = [saved(box) for _ in range(3)]
    for _ in range(2):
        for other in others:
            waiting()
            assert box.call(other, "count").value == 4


def test_what_was_never_told_is_not_expected() -> None:
    """A host that says so is none of ours: the worker ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send(theirs, Open(as_expected=True))
        with pytest.raises(Garbled, match="nothing was to be expected"):
            _Host(ours, None).open(())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "exports",
    [
        '(func (export "f") (param externref) (result externref) (local.get 0))',
        '(func (export "f") (result v128 i64) (v128.const i64x2 1 2) (i64.const 3))',
        '(func (export "f") (param f32 f64 v128))',
        '(func (export "f") (result funcref) (ref.null func))',
        '(func (export "\\c3\\a4 name") (result f64) (f64.const 0.5))',
        '(func (export "main") (param i32 i32) (result i32) (unreachable))',
        '(global (export "g") i32 (i32.const 1))',
        '(func $s unreachable) (start $s) (func (export "_start"))',
        '(func (export "_initialize") unreachable) (func (export "f"))',
        "",
    ],
)
@pytest.mark.parametrize("imports", ["", '(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))'])
def test_a_worker_waits_whatever_its_module_exports(exports: str, imports: str) -> None:
    """What it does beforehand fails for none of them, with a guard or without."""
    module = wat(f'(module {imports} (memory (export "memory") 1) {exports})')
    context = PolicyContext(Policy().replace(fuel=10**6), HostFunctions())
    context.plan(module)
    rehearse(Prepared(None, module, None, context, ()))  # type: ignore[arg-type]
    assert not context.history(module)
