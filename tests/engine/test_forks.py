"""Forks while other threads are in the engine: the child has all it needs, or says in words that it has not.

Holds P-FORK-1.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from stockade import EngineError, Outcome, Policy, Sandbox
from stockade.engine import CompiledModule, Engine, EngineConfig, Instance, LinkedModule, _fork_gate, assemble
from stockade.engine._capi import _COUNTED_BY_CALLERS, LONG_CALLS, capi
from tests._processes import ended, fork, forked, until
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="processes are not forked here")

NOTHING = wat('(module (memory (export "memory") 1) (func (export "_start")))')
SPIN = wat('(module (func (export "_start") (loop $l (br $l))))')
FILLS = wat(
    """(module (memory (export "memory") 100) (func (export "_start")
      (memory.fill (i32.const 0) (i32.const 1) (i32.const 6000000))))"""
)
UNMETERED = Policy().replace(fuel=None, wall_time=10)

REFUSED = (
    "this process was forked while another thread was in the engine and did not come out of it in time, so that no "
    "guest can run here: fork before anything is run or compiled, fork again, or start processes by spawning them"
)


def leb(number: int) -> bytes:
    """A number as WebAssembly has it."""
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


class _Slow:
    """A module whose first instance the engine makes slowly: others wait for that by a lock of the engine's."""

    size = 32 << 20

    def __init__(self) -> None:
        self.engine = Engine.shared(EngineConfig(fuel=False, stack_bytes=1 << 20, canonical_nans=True))
        wasm = assemble(
            f'(module (memory (export "memory") {self.size >> 16}) (func (export "go") (result i32) (i32.const 7)))'
        )
        data = b"\1\0\x41\0\x0b" + leb(self.size) + bytes([1]) * self.size
        module = CompiledModule(self.engine, wasm + b"\x0b" + leb(len(data)) + data)
        self.linked = LinkedModule(module, memories=1, tables=0)

    def call(self) -> object:
        store = self.engine.acquire(self.linked.claim)
        assert store is not None
        instance = Instance(self.linked, store, None, self.size, 0)
        instance.begin(b"go", (), ("i32",))
        while not instance.poll():
            pass
        results = instance.results()
        instance.close()
        return results

    def fork_in_the_middle(self, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> int:
        """Forks while another thread has that lock."""
        begun, api = threading.Event(), capi()
        real = api.instance_pre_instantiate_long

        def told(*arguments: Any) -> Any:
            begun.set()
            return real(*arguments)

        monkeypatch.setattr(api, "instance_pre_instantiate_long", told)
        thread = threading.Thread(target=self.call)
        thread.start()
        begun.wait()
        time.sleep(0.002)
        child = forked(work)
        thread.join()
        monkeypatch.undo()
        return child


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert not _fork_gate.forks
    assert not _fork_gate.inside
    assert not _fork_gate._forking


def test_a_child_waits_for_no_lock_that_another_thread_of_its_parent_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: a guest of another tenant is large, so that a forked child waits for ever, where no limit ends it."""
    slow = _Slow()

    def work() -> None:
        assert not _fork_gate.others_were_inside()
        assert slow.call() == [7]

    assert ended(slow.fork_in_the_middle(monkeypatch, work)) == 0
    assert slow.call() == [7]


def test_a_child_of_a_fork_that_waited_too_long_refuses_guests_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: a guest is in one call for longer than a fork waits. Its parent goes on; so do children forked later."""
    slow = _Slow()
    other = Sandbox(UNMETERED)
    session = other.open(wat('(module (memory (export "memory") 1) (func (export "f")))'))

    def work() -> None:
        with pytest.raises(EngineError) as problem:
            slow.call()
        assert str(problem.value) == REFUSED
        with pytest.raises(EngineError) as problem:
            other.run(NOTHING)
        assert str(problem.value) == REFUSED
        # What its parent had is not given back to an engine that may wait for ever.
        session.close()

    monkeypatch.setattr(_fork_gate, "MOST_WAITED_SECONDS", 0.0)
    assert ended(slow.fork_in_the_middle(monkeypatch, work)) == 0
    assert slow.call() == [7]
    session.call("f").check()
    session.close()

    assert ended(forked(lambda: other.run(NOTHING).check())) == 0


def test_a_guest_that_computes_yields_to_a_fork_and_goes_on() -> None:
    reports = []
    box = Sandbox(Policy().replace(fuel=None, wall_time=1))
    box.prepare(SPIN)
    thread = threading.Thread(target=lambda: reports.append(box.run(SPIN)))
    thread.start()
    assert until(lambda: any(engine.ticker.running for engine in Engine._engines.values()))

    def work() -> None:
        assert not _fork_gate.others_were_inside()
        box.run(NOTHING).check()

    assert [ended(forked(work)) for _ in range(3)] == [0] * 3
    thread.join()
    assert reports[0].outcome is Outcome.TIMEOUT


def test_a_handler_that_forks_in_the_middle_of_a_run_waits_for_nobody() -> None:
    """The run goes on in both processes, and ends by its deadline in both."""
    me, children = os.getpid(), []

    def handler(*_: object) -> None:
        if child := fork():
            children.append(child)
        else:
            signal.alarm(60)

    def interrupt() -> None:
        if until(lambda: bool(box.monitor())):
            os.kill(me, signal.SIGUSR1)

    box = Sandbox(Policy().replace(fuel=None, wall_time=1.0))
    box.prepare(SPIN)
    before = signal.signal(signal.SIGUSR1, handler)
    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    try:
        outcome = box.run(SPIN).outcome
    finally:
        if os.getpid() != me:
            os._exit(0 if outcome is Outcome.TIMEOUT and not _fork_gate.others_were_inside() else 1)
        interrupting.join()
        signal.signal(signal.SIGUSR1, before)
    assert outcome is Outcome.TIMEOUT
    assert [ended(child) for child in children] == [0]


def test_a_run_that_was_about_to_begin_goes_on_in_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own thread is on the list, which is no reason to wait; and the child has a ticker, for it has a run."""
    box = Sandbox(Policy().replace(fuel=None, wall_time=0.2))
    box.prepare(SPIN)
    ticker = next(engine.ticker for engine in Engine._engines.values() if not engine.config.fuel)
    me, children = os.getpid(), []
    slept: list[float] = []
    real = type(ticker).enter

    def enter(self: Any, run: object) -> None:
        real(self, run)
        if not children:
            with monkeypatch.context() as patch:
                patch.setattr(_fork_gate, "time", SimpleNamespace(monotonic=time.monotonic, sleep=slept.append))
                children.append(fork())
            if os.getpid() != me:
                signal.alarm(60)

    monkeypatch.setattr(type(ticker), "enter", enter)
    outcome = None
    try:
        outcome = box.run(SPIN).outcome
    finally:
        if os.getpid() != me:
            os._exit(0 if outcome is Outcome.TIMEOUT and not _fork_gate.others_were_inside() else 1)
    assert outcome is Outcome.TIMEOUT
    assert [ended(child) for child in children] == [0]
    assert not slept


def test_a_handler_that_raises_while_a_fork_waits_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it raises is lost, as Python has it for whatever is called before a fork; the child knows whom it lacks."""

    class MineError(Exception):
        pass

    def raises(_: float) -> None:
        raise MineError

    problems: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda problem: problems.append(problem.exc_type))
    monkeypatch.setitem(_fork_gate.inside, "another thread's", 1)
    with monkeypatch.context() as patch:
        patch.setattr(_fork_gate, "time", SimpleNamespace(monotonic=time.monotonic, sleep=raises))
        child = forked(lambda: _ok(_fork_gate.others_were_inside()))
    assert ended(child) == 0
    assert problems == [MineError]
    monkeypatch.undo()

    Sandbox(UNMETERED).run(NOTHING).check()


def _ok(condition: object) -> None:
    assert condition


def test_who_waits_for_a_fork_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold what whoever forks waits for; and a thread that forks does not wait for itself."""
    monkeypatch.setattr(_fork_gate, "MOST_WAITED_SECONDS", 0.01)
    box = Sandbox(UNMETERED)
    _fork_gate.forks.append(None)
    try:
        box.run(NOTHING).check()
        monkeypatch.setattr(_fork_gate, "MOST_WAITED_SECONDS", 3600.0)
        _fork_gate._forking.add(threading.get_ident())
        box.run(NOTHING).check()
    finally:
        _fork_gate._forking.clear()
        _fork_gate.forks.clear()


def test_nobody_begins_while_there_is_a_fork_to_be_made() -> None:
    box = Sandbox(UNMETERED)
    box.prepare(NOTHING)
    reports = []
    _fork_gate.forks.append(None)
    try:
        thread = threading.Thread(target=lambda: reports.append(box.run(NOTHING)))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
    finally:
        _fork_gate.forks.clear()
    thread.join()
    assert reports[0].ok


# What threads filter, each for itself, they filter for each other, too.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.slow
def test_threads_that_fork_at_once_wait_for_each_other_no_longer_than_that() -> None:
    box = Sandbox(UNMETERED)
    statuses: list[int] = []

    def some() -> None:
        statuses.extend(ended(forked(lambda: box.run(NOTHING).check())) for _ in range(5))

    threads = [threading.Thread(target=some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0] * 20
    box.run(NOTHING).check()


@pytest.mark.slow
def test_children_run_guests_whatever_other_threads_do() -> None:
    """Some make instances, some free large memories, some compile; each child runs a guest, and ends."""
    box, over = Sandbox(UNMETERED), threading.Event()
    for module in (NOTHING, FILLS):
        box.prepare(module)

    def again(work: Callable[[], object]) -> None:
        while not over.is_set():
            work()

    engine = Engine.shared(EngineConfig(fuel=False, stack_bytes=1 << 19, pooled=False))
    works: list[Callable[[], object]] = [
        lambda: box.run(NOTHING),
        lambda: box.run(NOTHING),
        lambda: box.run(FILLS),
        lambda: box.run(FILLS),
        lambda: CompiledModule(engine, SPIN.data),
    ]
    threads = [threading.Thread(target=again, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        statuses = [ended(forked(lambda: box.run(NOTHING).check())) for _ in range(100)]
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert statuses == [0] * 100


def test_every_call_that_lets_other_threads_go_on_is_counted() -> None:
    api = capi()
    seen = []
    for name in LONG_CALLS:
        attribute = name.removeprefix("wasmtime_").removeprefix("wasm_")
        if f"{attribute}_long" in vars(api):
            attribute += "_long"
        if attribute in _COUNTED_BY_CALLERS:
            seen.append(attribute)
        else:
            function = getattr(api, attribute)
            assert isinstance(function, FunctionType), name
            assert function.__qualname__.startswith("counted."), name
    assert sorted(seen) == sorted(_COUNTED_BY_CALLERS)

    within: list[int] = []
    assert _fork_gate.counted(lambda: within.extend(_fork_gate.inside.values()))() is None
    _fork_gate.delete_aside(lambda _: within.extend(_fork_gate.inside.values()), 5)
    with suppress(ZeroDivisionError):
        _fork_gate.counted(lambda: 1 // 0)()
    assert within == [threading.get_ident()] * 2
