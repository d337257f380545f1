"""Workers that somebody asks to wait: so many are ready, whoever has run before, for as long as the sandbox is open.

Holds P-ISO-16.
"""

from __future__ import annotations

import gc
import os
import signal
from typing import TYPE_CHECKING

import pytest

from stockade import InvalidModule, IsolationError, JavaScript, Policy, Python, Sandbox, UsageError
from stockade.isolation._ahead import IDLE_SECONDS
from tests._processes import until
from tests.conftest import ECHO, HELLO, wat
from tests.isolation.test_ahead import Makes
from tests.isolation.test_workers import number_of, server

if TYPE_CHECKING:
    from stockade.isolation._handle import WorkerHandle

COUNTER = """(module
  (global $count (mut i32) (i32.const 0))
  (func (export "count") (result i32)
    (global.set $count (i32.add (global.get $count) (i32.const 1))) (global.get $count)))"""


# -- how many there are ----------------------------------------------------------------------------------------------


def test_so_many_wait_whoever_asks() -> None:
    """Also of what has never run, and after a time without runs; what is made anyway goes then."""
    makes = Makes()

    assert len(makes.ahead.keep(1, 3)) == 3
    makes.now += 2 * IDLE_SECONDS
    makes.ahead.end_idle()
    assert len(makes.ahead) == 3
    assert makes.ahead.idle_at() is None
    for _ in range(4):
        assert makes.run(1).program == 1
    makes.ahead.refill(1)
    assert len(makes.ahead) == 4
    makes.now += 2 * IDLE_SECONDS
    makes.ahead.end_idle()
    assert len(makes.ahead) == 3


def test_they_make_no_room_for_others() -> None:
    """Nor do others lose their place to them."""
    makes = Makes(most=2)
    makes.ahead.keep(1, 4)
    for _ in range(2):
        makes.run(2)
        makes.ahead.refill(2)

    assert len(makes.ahead.keep(1, 4)) == 4
    assert len(makes.ahead) > 4


def test_fewer_may_be_asked_for() -> None:
    """The rest is ended; those that have ended by themselves are none."""
    makes = Makes()
    first, *_ = makes.ahead.keep(1, 3)
    first.status = -9

    assert len(makes.ahead.keep(1, 3)) == 3
    assert len(makes.ahead.keep(1, 1)) == 1
    assert makes.ahead.keep(1, 0) == ()
    assert sum(not made.closed for made in makes.made) == 0


# -- as it is used ---------------------------------------------------------------------------------------------------


def test_the_first_run_finds_one() -> None:
    """They are ready when `warm` returns; each serves one run, and another is made."""
    with Sandbox(isolation="process") as box:
        box.warm(wat(HELLO), pool_size=2)
        waiting = {number_of(worker) for worker in server().workers.values()}
        assert len(server().ahead) == 2
        assert len(waiting) == 2

        assert box.run(wat(HELLO)).ok
        assert until(lambda: len(server().ahead) == 2)
        assert box.run(wat(ECHO), stdin=b"of others").stdout == b"of others"
        assert len({number_of(worker) for worker in server().workers.values()} & waiting) == 1


def test_no_more_is_asked_for() -> None:
    """By none, or by the end of the sandbox, closed or not."""
    box = Sandbox(isolation="process")
    box.warm(wat(HELLO), pool_size=3)
    box.warm(wat(HELLO), pool_size=0)
    assert until(lambda: not server().workers)
    box.warm(wat(HELLO), pool_size=2)
    box.close()
    assert until(lambda: not server().workers)

    dropped = Sandbox(isolation="process")
    dropped.warm(wat(HELLO), pool_size=1)
    del dropped
    gc.collect()
    with Sandbox(isolation="process") as other:
        assert other.run(wat(ECHO)).ok
    assert until(lambda: not server().workers)


def test_one_that_is_killed_is_no_run_s_loss() -> None:
    """Attack, or want of memory, while they wait."""
    with Sandbox(isolation="process") as box:
        box.warm(wat(HELLO), pool_size=1)
        (worker,) = server().workers.values()
        os.kill(number_of(worker), signal.SIGKILL)

        assert until(lambda: worker.status is not None)
        assert box.run(wat(HELLO)).ok
        assert until(lambda: len(server().ahead) == 1)


def test_the_policy_of_a_run_has_its_own() -> None:
    """In the place of the sandbox's, also where only it demands a process."""
    apart = Policy(isolation="process")
    with Sandbox() as box:
        box.warm(wat(HELLO), pool_size=1, policy=apart)
        assert len(server().ahead) == 1
        assert box.run(wat(HELLO), policy=apart).isolation == "process"
    assert until(lambda: not server().workers)


def test_snapshots_are_called_in_workers_that_wait() -> None:
    """They are given the snapshot then."""
    with Sandbox(isolation="process") as box:
        with box.open(wat(COUNTER)) as session:
            session.call("count")
            snapshot = session.snapshot()
        box.warm(snapshot, pool_size=2)
        assert len(server().ahead) == 2
        assert [box.call(snapshot, "count").value for _ in range(3)] == [2, 2, 2]


def test_mistakes() -> None:
    """Told before anything is made."""
    with Sandbox(isolation="process") as box:
        with pytest.raises(UsageError, match=r"^pool_size is 65: at most 64 workers wait for a module$"):
            box.warm(wat(HELLO), pool_size=65)
        with pytest.raises(InvalidModule):
            box.warm(b"nothing")


def test_where_none_can_be_made_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """And none is left to wait."""

    def refused(worker: WorkerHandle, _seconds: float) -> bool:
        worker.refused = 11
        return True

    with Sandbox(isolation="process") as box:
        with monkeypatch.context() as patch:
            patch.setattr("stockade.isolation._handle.WorkerHandle.wait", refused)
            with pytest.raises(
                IsolationError, match=r"^no 2 workers can wait for .* \(the system's error 11\): see that"
            ):
                box.warm(wat(HELLO), pool_size=2)
        assert len(server().ahead) == 0
        box.warm(wat(HELLO), pool_size=1)
        assert len(server().ahead) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("language", "code"), [(Python, "6 * 7"), (JavaScript, "6 * 7")])
def test_interpreters(language: type[Python | JavaScript], code: str) -> None:
    """As many places as are asked for, with a worker each."""
    with language(Policy().replace(wall_time=60.0), isolation="process", pool_size=2) as interpreter:
        interpreter.prepare()
        assert until(lambda: len(server().ahead) == 2)
        for _ in range(3):
            result = interpreter.run(code)
            assert (result.value, result.report.isolation) == (42, "process")
    assert until(lambda: not server().workers)
