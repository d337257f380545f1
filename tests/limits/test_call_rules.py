"""Which WASI calls a guest may make, how many, and how fast.

Holds P-LIMIT-1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import stockade
from stockade._wasi import WASI
from stockade.policy import Limits, Policy, Wasi
from tests.conftest import wat
from tests.limits._guests import (
    EAGAIN,
    EBADF,
    ENOSYS,
    ENOTCAPABLE,
    ENOTSOCK,
    EPERM,
    MOUNT,
    SUCCESS,
    Script,
    files_policy,
    kinds,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests._timeline import Timeline


def every_kind_of_call() -> tuple[Script, list[str]]:
    """A script of calls from several groups, all of which succeed under the default policy; and their names."""
    script = Script()
    cell = script.cell().address
    calls = {
        "args_sizes_get": (cell, cell),
        "environ_sizes_get": (cell, cell),
        "clock_time_get": (1, 1, cell),
        "clock_res_get": (1, cell),
        "random_get": (cell, 8),
        "fd_fdstat_get": (1, script.room(24)),
        "sched_yield": (),
    }
    for name, arguments in calls.items():
        script.call(name, *arguments)
    return script, list(calls)


@pytest.mark.parametrize(
    ("rules", "refused"),
    [
        (Wasi(), set()),
        (Wasi(deny=("clock_time_get",)), {"clock_time_get"}),
        (Wasi(deny=("clock",)), {"clock_time_get", "clock_res_get"}),
        (Wasi(deny=("*_sizes_get", "random")), {"args_sizes_get", "environ_sizes_get", "random_get"}),
        (Wasi(deny=("clock_*",), allow=("clock_time_get", "*")), {"clock_time_get", "clock_res_get"}),
        (
            Wasi(allow=("clock", "fd_*", "sched_yield"), deny=()),
            {"args_sizes_get", "environ_sizes_get", "random_get"},
        ),
        (Wasi(allow=("*",), deny=("*",)), set(every_kind_of_call()[1])),
        (Wasi(allow=(), deny=()), set(every_kind_of_call()[1])),
    ],
    ids=["default", "name", "group", "patterns", "deny wins", "allow", "deny all", "allow none"],
)
def test_calls_are_refused_by_name_group_and_pattern(rules: Wasi, refused: set[str]) -> None:
    """Exactly the denied calls fail, each with a violation, and each is counted."""
    script, names = every_kind_of_call()
    played = script.play(Policy(wasi=rules))

    assert played.errnos == [ENOTCAPABLE if name in refused else SUCCESS for name in names]
    assert [(v.kind, v.subject, v.call, v.action, v.count) for v in played.report.violations] == [
        ("call", name, name, "deny", 1) for name in names if name in refused
    ]
    assert played.report.usage.calls == dict.fromkeys(names, 1)
    assert played.report.usage.denied == dict.fromkeys(refused, 1)


@pytest.mark.parametrize(("errno", "number"), [("notcapable", ENOTCAPABLE), ("perm", EPERM), ("nosys", ENOSYS)])
def test_the_errno_of_a_refusal_is_the_policys(errno: str, number: int) -> None:
    """A guest sees the errno that the policy names."""
    script = Script()
    script.call("sched_yield")
    played = script.play(Policy(wasi=Wasi(deny=("sched",), errno=errno)))  # type: ignore[arg-type]

    assert played.errnos == [number]


@pytest.mark.parametrize("call", [call for call in WASI if call.results], ids=lambda call: call.name)
def test_every_call_can_be_refused(call: object) -> None:
    """Refused before its arguments, here all senseless, are looked at."""
    name, params = call.name, call.params  # type: ignore[attr-defined]
    script = Script()
    script.call(name, *[-1] * len(params))
    played = script.play(Policy(wasi=Wasi(deny=(name,))))

    assert played.errnos == [ENOTCAPABLE]
    assert played.report.usage.denied == {name: 1}
    assert played.only_violation().call == name


def test_sockets_are_refused_unless_asked_for() -> None:
    """By default no socket call is made; where they are allowed, there are still no sockets."""
    script = Script()
    script.call("sock_shutdown", 3, 0)
    script.call("sock_accept", 3, 0, script.cell().address)

    assert script.play(Policy()).errnos == [ENOTCAPABLE, ENOTCAPABLE]
    assert script.play(Policy(wasi=Wasi(deny=()))).errnos == [EBADF, EBADF]


def test_what_is_open_is_no_socket(tmp_path: Path) -> None:
    """As native WASI has it: a descriptor that is not open is told before one that is no socket."""
    script = Script()
    for fd in (0, 1, 2, MOUNT, 4, 4096, 0xFFFF_FFFF):
        script.call("sock_shutdown", fd, 0)
    played = script.play(files_policy(tmp_path))

    assert played.errnos == [ENOTSOCK] * 4 + [EBADF] * 3


def test_a_denied_call_ends_the_run_where_the_policy_says_stop() -> None:
    """Outcome denied, one violation, nothing after it."""
    script, _ = every_kind_of_call()
    played = script.play(Policy(wasi=Wasi(deny=("random",)), on_violation="stop"))

    assert played.report.outcome is stockade.Outcome.DENIED
    violation = played.only_violation()
    assert (violation.kind, violation.subject, violation.action) == ("call", "random_get", "stop")
    assert "sched_yield" not in played.report.usage.calls
    assert played.report.usage.denied == {"random_get": 1}
    assert played.report.usage.random_bytes == 0


def test_a_denied_call_is_made_where_the_policy_takes_note() -> None:
    """What a guest needs can be learned: all calls succeed, and those that are not allowed are noted."""
    script, names = every_kind_of_call()
    played = script.play(Policy(wasi=Wasi(allow=("fd",)), on_violation="audit"))

    assert played.errnos == [SUCCESS] * len(names)
    assert [v.subject for v in played.report.violations] == [name for name in names if name != "fd_fdstat_get"]
    assert {v.action for v in played.report.violations} == {"audit"}
    assert played.report.usage.denied == {}


def yields(count: int) -> Script:
    """A script of so many calls."""
    script = Script()
    for _ in range(count):
        script.call("sched_yield")
    return script


@pytest.mark.parametrize("limit", [0, 1, 10])
def test_exactly_the_limit_of_calls_can_be_made(limit: int) -> None:
    """The limit succeeds, all beyond it are refused, and the most that was asked for is told."""
    played = yields(limit + 3).play(Policy(limits=Limits(calls=limit)))

    assert played.errnos == [SUCCESS] * limit + [EPERM] * 3
    violation = played.only_violation()
    assert (violation.kind, violation.subject, violation.limit) == ("calls", "sched_yield", limit)
    assert (violation.observed, violation.count, violation.action) == (limit + 1, 3, "deny")
    assert played.report.usage.calls == {"sched_yield": limit + 3}
    assert played.report.usage.denied == {"sched_yield": 3}
    assert yields(limit).play(Policy(limits=Limits(calls=limit))).report.violations == ()


def test_one_call_too_many_ends_the_run_where_the_policy_says_stop() -> None:
    """Outcome denied at the first call beyond the limit."""
    played = yields(5).play(Policy(limits=Limits(calls=3), on_violation="stop"))

    assert played.report.outcome is stockade.Outcome.DENIED
    assert played.report.usage.calls == {"sched_yield": 4}
    assert (played.only_violation().kind, played.only_violation().action) == ("calls", "stop")


def test_calls_beyond_the_limit_are_noted() -> None:
    """All are made; the violation tells by how much."""
    played = yields(6).play(Policy(limits=Limits(calls=3), on_violation="audit"))

    assert played.errnos == [SUCCESS] * 6
    violation = played.only_violation()
    assert (violation.kind, violation.action, violation.count, violation.observed) == ("calls", "audit", 3, 6)


def test_calls_beyond_the_limit_take_no_more_of_the_rate_than_others() -> None:
    """Where the limit is only noted, each of them is one of those that may go in a second, and none waits for more."""
    played = yields(300).play(Policy(limits=Limits(calls=3, call_rate=1000), on_violation="audit"))

    assert played.errnos == [SUCCESS] * 300
    assert [(violation.kind, violation.count) for violation in played.report.violations] == [("calls", 297)]


LEAVE = """
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $yield)) (drop (call $yield))
    (call $exit (i32.const 3))))
"""


@pytest.mark.parametrize(
    "policy",
    [
        Policy(limits=Limits(calls=0)),
        Policy(limits=Limits(calls=1)),
        Policy(wasi=Wasi(deny=("*",))),
        Policy(wasi=Wasi(deny=("proc_exit",))),
        Policy(limits=Limits(call_rate=1, on_rate="refuse")),
    ],
    ids=["no calls", "one call", "all denied", "exit denied", "rate"],
)
def test_a_guest_can_always_leave(policy: Policy) -> None:
    """proc_exit is never refused: there would be nothing to go on to."""
    report = stockade.Sandbox(policy).run(wat(LEAVE))

    assert report.outcome is stockade.Outcome.EXIT
    assert report.exit_code == 3
    assert report.usage.calls["proc_exit"] == 1


def test_a_rate_of_calls_is_held_by_waiting(timeline: Timeline) -> None:
    """25 calls at 10 a second: ten at once, the rest takes 1.5 seconds, and none is refused."""
    played = yields(25).play(Policy(limits=Limits(call_rate=10)))

    assert played.errnos == [SUCCESS] * 25
    assert timeline.passed == pytest.approx(1.5)
    violation = played.only_violation()
    assert (violation.kind, violation.subject, violation.action) == ("call_rate", "sched_yield", "audit")
    assert (violation.limit, violation.observed, violation.count) == (10, 11, 15)
    assert played.report.usage.denied == {}


def test_a_deadline_holds_while_a_rate_of_calls_makes_wait(timeline: Timeline) -> None:
    """The wait for the next second is over when the deadline comes."""
    played = yields(25).play(Policy(limits=Limits(call_rate=10, wall_time=0.25)))

    assert played.report.outcome is stockade.Outcome.TIMEOUT
    assert timeline.passed == pytest.approx(0.25)
    assert kinds(played.report.violations) == ["call_rate", "timeout"]


@pytest.mark.usefixtures("timeline")
def test_a_rate_of_calls_is_held_by_refusing() -> None:
    """Exactly the rate succeeds at once, and one more gets EAGAIN."""
    script = yields(8)
    result = script.cell()
    for _ in range(40):
        script.call("clock_time_get", 1, 1, result.address)
    played = script.play(Policy(limits=Limits(call_rate=5, on_rate="refuse")))

    assert played.errnos == [SUCCESS] * 5 + [EAGAIN] * 43
    assert [(v.kind, v.subject, v.limit, v.observed, v.count, v.action) for v in played.report.violations] == [
        ("call_rate", "sched_yield", 5, 6, 3, "deny"),
        ("call_rate", "clock_time_get", 5, 6, 40, "deny"),
    ]
    assert played.report.usage.denied == {"sched_yield": 3, "clock_time_get": 40}


PATIENT = """
(module
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (memory (export "memory") 1)
  (func (export "go") (result i32)
    (local $made i32)
    (loop $next
      (br_if $next (call $yield))
      (br_if $next (i32.lt_u (local.tee $made (i32.add (local.get $made) (i32.const 1))) (i32.const 12))))
    (local.get $made)))
"""


def test_refused_calls_do_not_use_up_the_rate() -> None:
    """A guest that asks again and again gets its calls when the second is over, refusals not counted."""
    limits = Limits(fuel=None, call_rate=6, calls=12, on_rate="refuse", wall_time=100.0)
    report = stockade.Sandbox(Policy(limits=limits)).call(wat(PATIENT), "go")

    assert report.value == 12
    assert report.usage.wall_seconds >= 0.99
    assert report.usage.calls["sched_yield"] == 12 + report.usage.denied["sched_yield"]


WRITER = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\10\\00\\00\\00\\01\\00\\00\\00")
  (data (i32.const 16) "x")
  (func (export "_start") (local $left i32)
    (local.set $left (i32.const 40))
    (loop $next
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br_if $next (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))
"""


def test_a_guest_that_writes_and_writes_comes_to_its_rate_and_then_to_its_total(timeline: Timeline) -> None:
    """Each is told once, in this order, and when four fifths of the calls are made; 30 of 40 come through."""
    told: list[str] = []
    watched = stockade.Monitoring(alerts={"calls": 0.8}, on_alert=lambda alert: told.append(alert.limit))
    limits = Limits(call_rate=10, calls=30, wall_time=100.0)
    with stockade.Sandbox(Policy(limits=limits), monitoring=watched) as box:
        report = box.run(wat(WRITER))

    assert 2.0 <= timeline.passed < 2.2
    assert [(each.kind, each.subject, each.limit) for each in report.violations] == [
        ("call_rate", "fd_write", 10),
        ("calls", "fd_write", 30),
    ]
    assert report.stdout == b"x" * 30
    assert (report.usage.calls, report.usage.denied) == ({"fd_write": 40}, {"fd_write": 10})
    assert told == [alert.limit for alert in report.alerts] == ["calls"]


@pytest.mark.usefixtures("timeline")
def test_a_rate_beyond_the_limit_ends_the_run_where_the_policy_says_stop() -> None:
    """With on_rate = refuse, an exceeded rate is a violation as any other."""
    policy = Policy(limits=Limits(call_rate=3, on_rate="refuse"), on_violation="stop")
    played = yields(5).play(policy)

    assert played.report.outcome is stockade.Outcome.DENIED
    assert played.report.usage.calls == {"sched_yield": 4}
    assert (played.only_violation().kind, played.only_violation().action) == ("call_rate", "stop")


WITHOUT_MEMORY = """
(module
  (import "wasi_snapshot_preview1" "sock_shutdown" (func $shutdown (param i32 i32) (result i32)))
  (func (export "go") (result i32)
    (local $made i32) (local $tries i32)
    (loop $next
      (if (i32.eq (call $shutdown (i32.const 9) (i32.const 0)) (i32.const 8))
        (then (local.set $made (i32.add (local.get $made) (i32.const 1)))))
      (br_if $next (i32.lt_u (local.tee $tries (i32.add (local.get $tries) (i32.const 1))) (i32.const 9))))
    (local.get $made)))
"""


@pytest.mark.usefixtures("timeline")
def test_a_guest_without_memory_is_held_to_its_limits() -> None:
    """Attack: without a memory there is no place where native WASI could write the time that a rate needs."""
    module = wat(WITHOUT_MEMORY)
    report = stockade.Sandbox(Policy(limits=Limits(calls=4), wasi=Wasi(deny=()))).call(module, "go")
    assert report.value == 4
    assert report.usage.denied == {"sock_shutdown": 5}

    refusing = Limits(fuel=None, call_rate=4, on_rate="refuse")
    report = stockade.Sandbox(Policy(limits=refusing, wasi=Wasi(deny=()))).call(module, "go")
    assert report.value == 4
    assert kinds(report.violations) == ["call_rate"]

    # The host keeps the time and waits in its place.
    waiting = Limits(fuel=None, call_rate=4)
    report = stockade.Sandbox(Policy(limits=waiting, wasi=Wasi(deny=()))).call(module, "go")
    assert report.value == 9
    assert report.usage.wall_seconds == pytest.approx(1.25)

    assert stockade.Sandbox(Policy(wasi=Wasi(deny=()))).call(module, "go").value == 9


def test_time_goes_on_for_a_guest_whose_memory_is_not_exported() -> None:
    """It can wait, and native WASI cannot reach its memory: what its rate allows comes back all the same."""
    module = wat(
        """
        (module
          (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
          (memory 1)
          (func $made (result i32) (local $made i32) (local $tries i32)
            (loop $next
              (if (i32.eqz (call $yield)) (then (local.set $made (i32.add (local.get $made) (i32.const 1)))))
              (br_if $next (i32.lt_u (local.tee $tries (i32.add (local.get $tries) (i32.const 1))) (i32.const 200))))
            (local.get $made))
          (func (export "go") (result i32 i32 i32)
            (call $made)
            (i32.store (i32.const 16) (i32.const 1))
            (i64.store (i32.const 24) (i64.const 500000000))
            (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))
            (call $made)))
        """
    )
    limits = Limits(fuel=None, call_rate=300, on_rate="refuse", wall_time=100.0)
    report = stockade.Sandbox(Policy(limits=limits)).call(module, "go")

    # After half a second 150 more may go, and without them only 99 could.
    assert report.value == [200, SUCCESS, 200]
    assert report.violations == ()


def test_time_kept_by_the_host_goes_on_from_an_initializer_to_the_call() -> None:
    """A guest without a clock: what `_initialize` has used of a rate is not given to the call after it anew."""
    five, four = ("(drop (call $yield))" * count for count in (5, 4))
    module = wat(
        f"""
        (module
          (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
          (memory (export "memory") 1)
          (func (export "_initialize") {five})
          (func (export "go") (local $left i32)
            (local.set $left (i32.const 200000000))
            (loop $work (br_if $work (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
            {four}))
        """
    )

    # The work is there so that the host looks, and notes the time, before the calls are made.
    report = stockade.Sandbox(Policy(limits=Limits(fuel=None, call_rate=4, wall_time=100.0))).call(module, "go")

    # Nine calls at four a second, four of them at once.
    assert report.ok
    assert report.usage.wall_seconds >= 1.2
