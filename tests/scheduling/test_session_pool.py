"""Sessions kept ready: each is used once, so that nothing of one user is there for the next.

Holds P-SESSION-2.
"""

from __future__ import annotations

import threading
import time
import warnings
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import GuestTrap, LinkError, Outcome, Policy, Sandbox, Session, SessionPool, UsageError
from tests._processes import live_instances, wait_for
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests._timeline import Timeline

PATIENT = Policy().replace(fuel=None, wall_time=20.0)

VAULT = wat(
    """
    (module
      (memory (export "memory") 1 4)
      (global $secret (mut i64) (i64.const 0))
      (table $table 2 8 funcref)
      (func $noted)
      (elem declare func $noted)
      (func (export "hide") (param i64)
        (global.set $secret (local.get 0))
        (i64.store (i32.const 4096) (local.get 0))
        (drop (memory.grow (i32.const 1)))
        (i64.store (i32.const 131064) (local.get 0))
        (table.set $table (i32.const 1) (ref.func $noted)))
      (func (export "global") (result i64) (global.get $secret))
      (func (export "stored") (result i64) (i64.load (i32.const 4096)))
      (func (export "pages") (result i32) (memory.size))
      (func (export "grown") (result i64)
        (drop (memory.grow (i32.const 1)))
        (i64.load (i32.const 131064)))
      (func (export "noted") (result i32) (i32.eqz (ref.is_null (table.get $table (i32.const 1)))))
      (func (export "break") (unreachable))
      (func (export "spin") (loop br 0)))
    """
)

REACTOR = wat(
    """
    (module
      (memory (export "memory") 1)
      (global $started (mut i32) (i32.const 0))
      (func (export "_initialize") (global.set $started (i32.add (global.get $started) (i32.const 1))))
      (func (export "started") (result i32) (global.get $started)))
    """
)

SECRET = 0x5EC12E7


@pytest.fixture
def box() -> Iterator[Sandbox]:
    """A patient sandbox. Afterwards no instance is left, and no thread of a pool."""
    with Sandbox(PATIENT) as found:
        yield found
    wait_for(lambda: live_instances() == 0)
    wait_for(lambda: not any(thread.name == "stockade-pool" for thread in threading.enumerate()))


def found_in(session: Session) -> list[object]:
    """All places where somebody may have left something."""
    names = "global", "stored", "pages", "grown", "noted"
    memory = session.read_memory(0, 65_536)
    return [*(session.call(name).check().value for name in names), memory.count(b"\0") == len(memory)]


FRESH = [0, 0, 1, 0, 0, True]


@pytest.mark.parametrize("ending", ["good", "trap", "limit", "exception", "cancel"])
def test_what_one_user_leaves_the_next_does_not_find(box: Sandbox, ending: str) -> None:
    """The attack: a secret is left in globals, memory, grown memory and a table.

    However the user ends it: well, with a guest that broke, with an exception of its own.
    """
    own = Sandbox(PATIENT.replace(wall_time=0.5)) if ending == "limit" else box
    with SessionPool(own, VAULT, size=2) as pool:
        for _ in range(6):
            try:
                with pool.lease() as session:
                    assert found_in(session) == FRESH
                    session.write_memory(64, b"another secret")
                    assert session.call("hide", SECRET).ok
                    # It is there for the user of this lease: the twin.
                    assert session.call("global").value == session.call("stored").value == SECRET
                    assert session.call("noted").value == 1
                    assert b"another secret" in session.read_memory(0, 100)
                    if ending == "trap":
                        assert session.call("break").outcome is Outcome.TRAP
                    elif ending == "limit":
                        assert session.call("spin").outcome is Outcome.TIMEOUT
                    elif ending == "exception":
                        raise ZeroDivisionError
                    elif ending == "cancel":
                        threading.Timer(0.05, session.cancel).start()
                        assert session.call("spin").outcome is Outcome.CANCELLED
            except ZeroDivisionError:
                assert ending == "exception"


def test_a_session_kept_after_its_lease_is_closed(box: Sandbox) -> None:
    """The attack: a user keeps what was lent, to look at what the next one does with it."""
    with SessionPool(box, VAULT, size=1) as pool:
        with pool.lease() as kept:
            kept.call("hide", SECRET)
        with pool.lease() as next_one:
            assert next_one is not kept
            uses: list[Callable[[], object]] = [
                lambda: kept.call("global"),
                lambda: kept.read_memory(0, 1),
                lambda: kept.write_memory(0, b"x"),
            ]
            for use in uses:
                with pytest.raises(UsageError) as caught:
                    use()
                assert str(caught.value) == "the session is closed: open a new one"
            kept.cancel()
            kept.close()
            assert found_in(next_one) == FRESH


def test_a_call_left_under_way_is_cancelled(box: Sandbox) -> None:
    """The attack: a user has another thread call a function that never ends, and gives the session back."""
    outcomes: list[Outcome] = []
    with SessionPool(box, VAULT, size=1) as pool:
        for _ in range(3):
            with pool.lease() as session:
                thread = threading.Thread(target=lambda: outcomes.append(session.call("spin").outcome))
                thread.start()
                wait_for(lambda: session._occupancy.holder is not None)
            assert session._guest.ended
            thread.join(60)
            with pool.lease() as next_one:
                assert found_in(next_one) == FRESH
    assert outcomes == [Outcome.CANCELLED] * 3


def test_many_threads_lease_at_once(box: Sandbox) -> None:
    """Each gets one of its own, with room in the pool or without, and nobody gets one twice."""
    seen: list[Session] = []
    wrong: list[object] = []
    together = threading.Barrier(8)

    def work(number: int) -> None:
        try:
            for turn in range(12):
                together.wait(60)
                with pool.lease() as session:
                    seen.append(session)
                    if found_in(session) != FRESH:
                        wrong.append((number, turn))
                    session.call("hide", number + 1)
                    if session.call("global").value != number + 1:
                        wrong.append((number, turn))
        except BaseException as problem:
            wrong.append(problem)

    with SessionPool(box, VAULT, size=3) as pool:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []
        assert len(set(map(id, seen))) == len(seen) == 8 * 12
        wait_for(lambda: pool.ready == 3)
        assert live_instances() == 3


def test_as_many_are_ready_as_were_asked_for(box: Sandbox) -> None:
    """From the beginning on, and again after each lease; never more."""
    with SessionPool(box, VAULT, size=3) as pool:
        assert pool.ready == live_instances() == 3
        with pool.lease(), pool.lease():
            wait_for(lambda: pool.ready == 3)
            assert live_instances() == 5
        wait_for(lambda: live_instances() == 3)
        time.sleep(0.05)
        assert pool.ready == live_instances() == 3
    assert pool.ready == 0


def test_a_reactor_is_initialized_once(box: Sandbox) -> None:
    """It is so before it is lent, and each one anew."""
    with SessionPool(box, REACTOR, size=2) as pool:
        for _ in range(5):
            with pool.lease() as session:
                assert session.initialization is not None
                assert session.initialization.ok
                assert session.call("started").value == 1


def test_waiting_in_the_pool_takes_none_of_the_guests_time(timeline: Timeline) -> None:
    """The deadline counts from a call on, not from when its session was made ready."""
    with Sandbox(PATIENT.replace(wall_time=0.2)) as box, SessionPool(box, REACTOR, size=1) as pool:
        timeline.now += 0.3
        with pool.lease() as session:
            assert session.call("started").ok


def test_arguments_and_environment_are_those_of_the_pool(box: Sandbox) -> None:
    """All its guests see the same ones."""
    counts = wat(
        """
        (module
          (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "environ_sizes_get" (func $variables (param i32 i32) (result i32)))
          (memory (export "memory") 1)
          (func (export "counts") (result i32 i32)
            (drop (call $args (i32.const 0) (i32.const 8)))
            (drop (call $variables (i32.const 16) (i32.const 24)))
            (i32.load (i32.const 0)) (i32.load (i32.const 16))))
        """
    )
    with SessionPool(box, counts, ["a", "b"], size=1, env={"C": "d"}) as pool:
        for _ in range(3):
            with pool.lease() as session:
                assert session.call("counts").value == [3, 1]


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "4"])
def test_what_is_no_size(box: Sandbox, size: object) -> None:
    """It is told before anything is opened; the twin is the least there is."""
    with pytest.raises(UsageError) as caught:
        SessionPool(box, VAULT, size=size)  # type: ignore[arg-type]
    assert str(caught.value) == f"size is {size!r}: it must be a whole number from 1 on"
    with SessionPool(box, VAULT, size=1) as pool:
        assert pool.ready == 1


def test_nothing_is_lent_after_close(box: Sandbox) -> None:
    """What is lent stays with its user until the lease ends."""
    pool = SessionPool(box, VAULT, size=2)
    with pool.lease() as session:
        pool.close()
        pool.close()
        assert pool.ready == 0
        assert session.call("pages").value == 1
        with pytest.raises(UsageError) as caught, pool.lease():
            pass
        assert str(caught.value) == "the pool is closed: make a new one"


def test_a_closed_sandbox_is_told_to_whoever_leases(box: Sandbox) -> None:
    """What was ready is lent all the same; then there are no more."""
    own = Sandbox(PATIENT)
    with SessionPool(own, VAULT, size=1) as pool:
        own.close()
        with pool.lease() as session:
            assert found_in(session) == FRESH
        with pytest.raises(UsageError) as caught, pool.lease():
            pass
        assert str(caught.value) == "the sandbox is closed: make a new one"


def test_modules_that_cannot_be_opened(box: Sandbox) -> None:
    """What is wrong is raised where the pool is made, and nothing of it stays behind."""
    with pytest.raises(LinkError):
        SessionPool(box, wat('(module (import "env" "nobody" (func)))'))
    with pytest.raises(GuestTrap) as caught:
        SessionPool(box, wat('(module (func (export "_initialize") unreachable))'))
    assert caught.value.report.outcome is Outcome.TRAP
    assert live_instances() == 0


@pytest.mark.parametrize("raised", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_an_initialization_that_fails_now_and_then(box: Sandbox, raised: type[BaseException] | None) -> None:
    """Whoever leases is told; when it works again, the pool is as good as new.

    The attack: what a lent function raises on the thread that fills the pool must not end that thread.
    """
    broken = False

    @box.host_function("env")
    def prepare() -> int:
        if broken and raised is not None:
            raise raised("not now")
        return broken

    guest = wat(
        """
        (module
          (import "env" "prepare" (func $prepare (result i32)))
          (func (export "_initialize") (if (call $prepare) (then unreachable)))
          (func (export "seven") (result i32) (i32.const 7)))
        """
    )
    told = raised if raised in (KeyboardInterrupt, SystemExit) else GuestTrap
    assert told is not None
    with SessionPool(box, guest, size=2) as pool:
        broken = True
        for _ in range(2):
            with pool.lease() as session:
                assert session.call("seven").value == 7
        for _ in range(2):
            with pytest.raises(told), pool.lease():
                pass
        broken = False
        with pool.lease() as session:
            assert session.call("seven").value == 7
        wait_for(lambda: pool.ready == 2)


def test_a_pool_that_there_is_no_room_for(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's limits are told as its trouble, and what was opened until then is closed."""
    opened: list[Session] = []
    open_one = box.open

    def scarce(*args: object, **fields: object) -> Session:
        if len(opened) == 3:
            raise stockade.EngineError("no room")
        opened.append(open_one(*args, **fields))  # type: ignore[arg-type]
        return opened[-1]

    monkeypatch.setattr(box, "open", scarce)
    with pytest.raises(stockade.EngineError, match="no room"):
        SessionPool(box, VAULT, size=5)
    assert live_instances() == 0
    assert all(session._guest.ended for session in opened)


def test_a_pool_that_is_dropped_lets_go_of_its_sessions() -> None:
    """The attack: the handler of a signal raises before whoever makes a pool has it, so that nobody closes it."""
    with Sandbox() as box:
        pool = SessionPool(box, VAULT, size=3)
        threads = [thread for thread in threading.enumerate() if thread.name == "stockade-pool"]
        assert live_instances() == 3
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            del pool
        assert any(str(one.message).startswith("unclosed pool of ") for one in told)
        assert live_instances() == 0
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
