"""The executor as such, with generators made by hand: who goes on when, how often, and on how many threads.

Holds P-MANY-5 and P-TIME-4.
"""

from __future__ import annotations

import contextvars
import gc
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.runner import _executor
from stockade.runner._coroutine import ASIDE, FOREVER, GO_ON, RunControl
from stockade.runner._executor import MOST_THREADS, Executor, WorkItem
from tests._examples import examples
from tests._processes import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.runner._coroutine import RunCoroutine


class Runs:
    """Errands that were begun, and what came of them."""

    def __init__(self) -> None:
        self.executor = Executor()
        self.ended: list[tuple[object, BaseException | None]] = []
        self._more = threading.Condition()

    def item(self, steps: RunCoroutine[Any], priority: int = 50, tenant: str = "") -> WorkItem[Any]:
        def done(result: object, problem: BaseException | None) -> None:
            with self._more:
                self.ended.append((result, problem))
                self._more.notify_all()

        return WorkItem(steps, RunControl(), done, priority, tenant)

    def begin(self, steps: RunCoroutine[Any], priority: int = 50, tenant: str = "") -> RunControl:
        item = self.item(steps, priority, tenant)
        self.executor.begin(item)
        return item.control

    def wait(self, count: int) -> list[object]:
        """Waits until so many have ended; returns what they came to, in the order of their ends."""
        with self._more:
            assert self._more.wait_for(lambda: len(self.ended) >= count, 60), f"{len(self.ended)} of {count} ended"
        return [result for result, _ in self.ended]


@pytest.fixture
def runs() -> Runs:
    """A executor of the test's own."""
    return Runs()


class Clock:
    """The executor's clock, which stands still until it is told to go on; the rest of `time` is as it is."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    thread_time = staticmethod(time.thread_time)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock of the test's own. A thread that rests looks at it once a second."""
    made = Clock()
    monkeypatch.setattr(_executor, "time", made)
    return made


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread takes all steps, however long the machine lets it stand in the middle of one."""
    monkeypatch.setattr(_executor, "_processors", lambda: 1)
    monkeypatch.setattr(_executor, "_STUCK_SECONDS", FOREVER)


def returning(value: object) -> RunCoroutine[object]:
    """Ends at its first step."""
    yield from ()
    return value


def waiting(until: float, value: object) -> RunCoroutine[object]:
    """Halts once."""
    yield until
    return value


# -- when they go on --------------------------------------------------------------------------------------------------


def test_alarms_ring_in_order(clock: Clock, runs: Runs) -> None:
    """Whoever was begun last may be the first to go on; nobody goes on before its time."""
    naps = [0.30, 0.10, 0.25, 0.05, 0.20, 0.15, 0.0]
    begun = clock.now + 0.1
    early: list[float] = []

    def sleeping(seconds: float) -> RunCoroutine[float]:
        yield begun + seconds
        if clock.now < begun + seconds:
            early.append(seconds)
        return seconds

    for nap in naps:
        runs.begin(sleeping(nap))
    wait_for(lambda: len(runs.executor._alarms) == len(naps))
    for count, nap in enumerate(sorted(naps), 1):
        clock.now = begun + nap
        assert runs.wait(count) == sorted(naps)[:count]
    assert early == []


def test_a_wake_comes_before_the_alarm(clock: Clock, runs: Runs) -> None:
    """Who is woken looks around at once; the alarm that was set does not make it go on a second time."""
    stops: list[str] = []

    def steps() -> RunCoroutine[str]:
        stops.append("first")
        yield clock.now + 0.3
        stops.append("second")
        yield FOREVER
        stops.append("third")
        return "woken"

    def has_rung() -> bool:
        with runs.executor._lock:
            return not runs.executor._alarms and runs.executor.is_idle

    control = runs.begin(steps())
    wait_for(lambda: len(runs.executor._alarms) == 1)
    control.wake()
    wait_for(lambda: stops == ["first", "second"])
    assert not has_rung()
    clock.now += 0.5
    wait_for(has_rung)
    assert stops == ["first", "second"]
    control.wake()
    assert runs.wait(1) == ["woken"]


def test_forever_is_until_woken(runs: Runs) -> None:
    """It is not asked meanwhile, and its thread is free; each wake is one look around."""
    looks: list[int] = []

    def steps() -> RunCoroutine[int]:
        while len(looks) < 3:
            looks.append(len(looks))
            yield FOREVER
        return len(looks)

    control = runs.begin(steps())
    for expected in (1, 2, 3):
        wait_for(lambda expected=expected: len(looks) == expected)  # type: ignore[misc]
        time.sleep(0.05)
        assert len(looks) == expected
        assert runs.ended == []
        control.wake()
    assert runs.wait(1) == [3]


def test_a_wake_while_it_runs_is_not_lost(runs: Runs) -> None:
    """What happens between the look around and the wait is seen in the next step, not at the next wake."""
    inside, gate = threading.Event(), threading.Event()

    def steps() -> RunCoroutine[str]:
        inside.set()
        gate.wait(60)
        yield FOREVER
        return "seen"

    control = runs.begin(steps())
    assert inside.wait(60)
    control.wake()
    gate.set()
    assert runs.wait(1) == ["seen"]


def test_no_wake_is_lost_whenever_it_comes(runs: Runs) -> None:
    """Letters are posted from two threads as fast as they can; whoever waits forever reads the last one, too."""
    posted = [0] * 20
    last = 500

    def reader(box: int) -> RunCoroutine[int]:
        while posted[box] < 2 * last:
            yield FOREVER
        return box

    watches = [runs.begin(reader(box)) for box in range(len(posted))]
    lock = threading.Lock()

    def post() -> None:
        for _ in range(last):
            for box, control in enumerate(watches):
                with lock:
                    posted[box] += 1
                control.wake()

    threads = [threading.Thread(target=post) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert sorted(runs.wait(len(posted))) == list(range(len(posted)))  # type: ignore[type-var]
    for thread in threads:
        thread.join()


def test_waking_out_of_season_is_harmless(runs: Runs) -> None:
    """Before it was begun, while it stands in line, and when it is over: it runs once, and ends once.

    The attack: a run is cancelled by its name from another thread in the very moment that it begins.
    """
    item = runs.item(returning(1))
    runs.executor.wake(item)
    runs.executor.begin(item)
    runs.executor.wake(item)
    assert runs.wait(1) == [1]
    runs.executor.wake(item)
    item.control.wake()
    runs.begin(returning(2))
    assert runs.wait(2) == [1, 2]
    time.sleep(0.05)
    assert len(runs.ended) == 2


@pytest.mark.parametrize("deadline", [FOREVER, 0.0], ids=["in time", "too late"])
def test_cancelling_again_and_again_while_it_stands_in_line(
    monkeypatch: pytest.MonkeyPatch, runs: Runs, deadline: float
) -> None:
    """The attack: who is cancelled twice, or when its time is up anyway, before its turn, ends once all the same."""
    monkeypatch.setattr(_executor, "_processors", lambda: 1)
    gate, inside = threading.Event(), threading.Event()
    steps_taken: list[int] = []

    def blocking() -> RunCoroutine[str]:
        inside.set()
        gate.wait(60)
        return "blocked"
        yield

    def counting(number: int) -> RunCoroutine[int]:
        steps_taken.append(number)
        return number
        yield

    runs.begin(blocking())
    assert inside.wait(60)
    items = [runs.item(counting(number)) for number in range(20)]
    for item in items:
        item.control.deadline = deadline
        runs.executor.begin(item)
        for _ in range(3):
            item.control.cancel()
    gate.set()
    runs.wait(21)
    for item in items:
        item.control.cancel()
    time.sleep(0.1)
    assert len(runs.ended) == 21
    assert sorted(steps_taken) == list(range(20))
    assert all(problem is None for _, problem in runs.ended)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("why", ["cancelled", "late"])
def test_who_has_only_to_end_is_told_before_all_others(clock: Clock, runs: Runs, why: str) -> None:
    """The attack: a crowd that computes stands before those whose time is up, or who are not wanted any more."""
    gate, inside = threading.Event(), threading.Event()
    turns: list[str] = []

    def blocking() -> RunCoroutine[None]:
        inside.set()
        gate.wait(60)
        yield from ()

    def computing() -> RunCoroutine[None]:
        for _ in range(3):
            turns.append("computes")
            yield ASIDE

    def ending() -> RunCoroutine[None]:
        turns.append("ends")
        yield from ()

    runs.begin(blocking())
    assert inside.wait(60)
    for _ in range(100):
        runs.begin(computing())
    items = [runs.item(ending()) for _ in range(10)]
    for item in items:
        item.control.deadline = clock.now + 1.0
        runs.executor.begin(item)
    for item in items:
        if why == "cancelled":
            item.control.cancel()
    if why == "late":
        clock.now += 2.0
    gate.set()
    runs.wait(111)
    assert turns == ["ends"] * 10 + ["computes"] * 300


scripts = st.lists(st.sampled_from([GO_ON, 0.0005, 0.002, -1.0, FOREVER]), max_size=8)


@settings(max_examples=examples(40))
@given(st.lists(st.tuples(scripts, st.sampled_from([1, 50, 100]), st.sampled_from("ab")), min_size=1, max_size=12))
def test_any_steps_come_to_their_end(plans: list[tuple[list[float], int, str]]) -> None:
    """Whatever they wait for, each takes its steps in order, on one thread at a time, and ends once."""
    runs = Runs()
    taken: list[list[int]] = [[] for _ in plans]
    inside = [0] * len(plans)
    crowded: list[int] = []

    def steps(number: int, script: list[float]) -> RunCoroutine[int]:
        for place, wait in enumerate(script):
            inside[number] += 1
            if inside[number] != 1:
                crowded.append(number)
            taken[number].append(place)
            inside[number] -= 1
            yield wait if wait in (GO_ON, FOREVER) else time.monotonic() + wait
        return number

    watches = [runs.begin(steps(number, plan[0]), *plan[1:]) for number, plan in enumerate(plans)]
    deadline = time.monotonic() + 60
    while len(runs.ended) < len(plans):
        assert time.monotonic() < deadline
        for control in watches:
            control.wake()
        time.sleep(0.0005)
    assert sorted(runs.wait(len(plans))) == list(range(len(plans)))  # type: ignore[type-var]
    assert crowded == []
    # A wake makes one go on before its time, but never skips or repeats a step.
    assert taken == [list(range(len(script))) for script, *_ in plans]


# -- how they end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_results_and_exceptions_are_delivered_once(runs: Runs, problem: BaseException) -> None:
    """Whatever is raised, it goes to whoever asked for that run; the executor goes on."""

    def raising(late: bool) -> RunCoroutine[None]:
        if late:
            yield GO_ON
        raise problem
        yield

    for late in (False, True):
        runs.begin(raising(late))
    runs.begin(returning(None))
    runs.begin(returning(problem))
    runs.wait(4)
    time.sleep(0.02)
    told = sorted(runs.ended, key=repr)
    expected: list[tuple[object, BaseException | None]] = [
        (None, problem),
        (None, problem),
        (None, None),
        (problem, None),
    ]
    assert told == sorted(expected, key=repr)


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whoever_is_told_may_raise(runs: Runs, raised: type[BaseException]) -> None:
    """The attack: more receivers of results raise than there may be threads; the executor is not the smaller for it."""

    def done(result: object, problem: BaseException | None) -> None:
        raise raised("of the receiver")

    for _ in range(MOST_THREADS + 4):
        runs.executor.begin(WorkItem(returning(1), RunControl(), done, 50, ""))
    runs.begin(returning(2))
    assert runs.wait(1) == [2]
    wait_for(lambda: runs.executor.threads == 0)
    runs.begin(returning(3))
    assert runs.wait(2) == [2, 3]


NAME: contextvars.ContextVar[str] = contextvars.ContextVar("NAME", default="nobody")


def test_each_step_sees_the_context_of_whoever_asked(runs: Runs) -> None:
    """What one run sets, the next one on the same thread does not see."""

    def steps() -> RunCoroutine[tuple[str, str]]:
        first = NAME.get()
        NAME.set("changed by a step")
        yield GO_ON
        return first, NAME.get()

    for name in ("a", "b"):
        token = NAME.set(name)
        runs.begin(steps())
        NAME.reset(token)
    runs.begin(steps())
    assert sorted(runs.wait(3)) == [(name, "changed by a step") for name in ("a", "b", "nobody")]  # type: ignore[type-var]


# -- shares -----------------------------------------------------------------------------------------------------------


def shares(whom: list[tuple[int, str]]) -> list[int]:
    """How many of four hundred steps of a millisecond each of these priorities and tenants gets, on one processor."""
    runs = Runs()
    counts = [0] * len(whom)

    def spinning(number: int) -> RunCoroutine[None]:
        while sum(counts) < 400:
            until = time.thread_time() + 0.001
            while time.thread_time() < until:
                pass
            counts[number] += 1
            yield GO_ON

    def begin_all() -> RunCoroutine[None]:
        for number, (priority, tenant) in enumerate(whom):
            runs.begin(spinning(number), priority, tenant)
        yield from ()

    runs.begin(begin_all(), tenant="beginner")
    runs.wait(len(whom) + 1)
    return counts


@pytest.mark.usefixtures("one_thread")
def test_priority_is_a_share() -> None:
    """Two runs of one tenant that never wait: 10 and 90 get about one step to nine."""
    low, high = shares([(10, ""), (90, "")])
    assert low > 0
    assert 9 / 2.5 < high / low < 9 * 2.5


@pytest.mark.usefixtures("one_thread")
def test_tenants_have_equal_shares() -> None:
    """The attack: a tenant begins eight runs, of the highest priority, against the single one of another."""
    single, *many = shares([(1, "single"), *((100, "many") for _ in range(8))])
    assert single > 0
    assert 1 / 2 < sum(many) / single < 2
    assert min(many) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_who_waited_has_no_share_saved_up(runs: Runs) -> None:
    """The attack: a run sleeps for a while, to have the processor for itself afterwards. Shares are even from then."""
    counts = {"steady": 0, "sleeper": 0}
    gained = {"steady": 0, "sleeper": 0}

    def compute(name: str) -> None:
        end = time.thread_time() + 0.001
        while time.thread_time() < end:
            pass
        counts[name] += 1
        gained[name] += bool(counts["sleeper"])

    def steady() -> RunCoroutine[None]:
        while sum(gained.values()) < 400:
            compute("steady")
            if counts["steady"] == 400:
                asleep.wake()
            yield GO_ON

    def sleeper() -> RunCoroutine[None]:
        yield FOREVER
        while sum(gained.values()) < 400:
            compute("sleeper")
            yield GO_ON

    asleep = runs.begin(sleeper(), tenant="sleeper")
    runs.begin(steady(), tenant="steady")
    runs.wait(2)
    assert 1 / 2.5 < gained["sleeper"] / gained["steady"] < 2.5


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_who_comes_and_goes_owes_what_it_has_used(runs: Runs) -> None:
    """The attack: a tenant has one short run after the other, each of which begins as if it had used nothing."""
    used = {"steady": 0.0, "fleeting": 0.0}

    def compute(tenant: str, seconds: float) -> None:
        begun = time.thread_time()
        while time.thread_time() < begun + seconds:
            pass
        used[tenant] += time.thread_time() - begun

    def steady() -> RunCoroutine[None]:
        while sum(used.values()) < 1.0:
            compute("steady", 0.001)
            yield GO_ON

    def fleeting() -> RunCoroutine[None]:
        compute("fleeting", 0.004)
        yield from ()

    def again(*_: object) -> None:
        if sum(used.values()) < 1.0:
            runs.executor.begin(WorkItem(fleeting(), RunControl(), again, 50, "fleeting"))

    runs.begin(steady(), tenant="steady")
    again()
    runs.wait(1)
    assert 2 / 3 < used["fleeting"] / used["steady"] < 3 / 2


# -- threads ----------------------------------------------------------------------------------------------------------


def test_a_step_that_blocks_does_not_hold_others_up(runs: Runs) -> None:
    """Functions of the embedder may take their time; whoever can go on does, on another thread."""
    gate, inside = threading.Event(), threading.Event()

    def blocking() -> RunCoroutine[str]:
        inside.set()
        gate.wait(60)
        return "blocked"
        yield

    runs.begin(blocking())
    assert inside.wait(60)
    for number in range(20):
        runs.begin(returning(number))
    assert set(runs.wait(20)) == set(range(20))
    gate.set()
    assert runs.wait(21)[-1] == "blocked"


@pytest.mark.parametrize("processors", [1, 2])
def test_more_that_block_than_there_are_processors(
    monkeypatch: pytest.MonkeyPatch, runs: Runs, processors: int
) -> None:
    """With all processors busy, to all appearances, others get their turn after a moment all the same."""
    monkeypatch.setattr(_executor, "_processors", lambda: processors)
    gate = threading.Event()

    def blocking() -> RunCoroutine[str]:
        gate.wait(60)
        return "blocked"
        yield

    for _ in range(4):
        runs.begin(blocking())
    runs.begin(returning("short"))
    assert runs.wait(1) == ["short"]
    gate.set()
    assert runs.wait(5) == ["short", *["blocked"] * 4]


def test_no_more_threads_than_so_many(monkeypatch: pytest.MonkeyPatch, runs: Runs) -> None:
    """The attack: more runs block than there may be threads. The rest wait, and none is forgotten."""
    monkeypatch.setattr(_executor, "_processors", lambda: 1000)
    gate = threading.Event()
    inside: list[int] = []

    def blocking(number: int) -> RunCoroutine[int]:
        inside.append(number)
        gate.wait(60)
        yield GO_ON
        return number

    for number in range(3 * MOST_THREADS):
        runs.begin(blocking(number))
    wait_for(lambda: len(inside) == MOST_THREADS)
    time.sleep(0.1)
    assert len(inside) == runs.executor.threads == MOST_THREADS
    gate.set()
    assert sorted(runs.wait(3 * MOST_THREADS)) == list(range(3 * MOST_THREADS))  # type: ignore[type-var]
    assert runs.executor.threads <= MOST_THREADS


def test_thousands_that_wait_hold_no_thread(runs: Runs) -> None:
    """Those that wait for a time, or until they are woken, cost memory only; then no thread is left at all."""
    looked = 0

    def patient(number: int) -> RunCoroutine[int]:
        nonlocal looked
        looked += 1
        yield FOREVER
        return number

    watches = [runs.begin(patient(number)) for number in range(5000)]
    wait_for(lambda: looked == 5000)
    wait_for(lambda: runs.executor.threads == 0)
    assert runs.ended == []
    for control in watches:
        control.wake()
    assert sorted(runs.wait(5000)) == list(range(5000))  # type: ignore[type-var]


def test_thousands_that_sleep_share_a_thread(runs: Runs) -> None:
    """One looks after all alarms."""
    until = time.monotonic() + 3600
    sleepers = [runs.begin(waiting(until, number)) for number in range(3000)]
    wait_for(lambda: len(runs.executor._alarms) == 3000)
    wait_for(lambda: runs.executor.threads <= 3)
    assert runs.ended == []
    for control in sleepers:
        control.wake()
    assert sorted(runs.wait(3000)) == list(range(3000))  # type: ignore[type-var]


def test_threads_go_away_and_come_back(clock: Clock, runs: Runs) -> None:
    """Who has nothing to do lingers for a second, so that a burst of short runs makes no threads; then it goes."""
    before = threading.active_count()
    for round_ in range(2):
        runs.begin(returning(round_))
        runs.wait(round_ + 1)
        assert runs.executor.threads >= 1
        clock.now += 1.0
        wait_for(lambda: runs.executor.threads == 0)
        wait_for(lambda: threading.active_count() <= before)


def test_what_is_over_is_let_go_of(runs: Runs) -> None:
    """A run that was woken long before its time leaves no alarm, and nothing keeps what it held.

    A guest with an hour's deadline that reads a pipe sets such an alarm for every piece.
    """

    class Big:
        """Something that a run holds."""

    def steps(big: Big) -> Iterator[float]:
        for _ in range(1000):
            yield time.monotonic() + 3600
        return big is None  # type: ignore[return-value]

    def begin() -> tuple[RunControl, weakref.ref[Big]]:
        big = Big()
        return runs.begin(steps(big)), weakref.ref(big)  # type: ignore[arg-type]

    control, big = begin()
    while not runs.ended:
        control.wake()
        time.sleep(0.0001)
    assert runs.wait(1) == [False]
    del control
    gc.collect()
    assert len(runs.executor._alarms) < 200
    wait_for(lambda: runs.executor.threads == 0)
    assert big() is None
