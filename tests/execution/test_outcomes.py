"""Every way in which a run ends, and that nothing of the guest's choosing changes what is said about it.

Holds P-FUEL-1, P-TIME-1 and P-TEXT-1.
"""

from __future__ import annotations

import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import Outcome, Policy, Report, Sandbox
from stockade._wasi import MODULE, WASI_BY_NAME
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests._timeline import Timeline

pytestmark = pytest.mark.usefixtures("everywhere")


WALL_TIME = 0.2
ASLEEP_TIME = 0.5
"""The deadline of runs that are to be asleep by then."""
LONG = 60.0
"""So long takes only what has lost its deadline. How late runs end is measured by benchmarks."""
HOUR = 3600 * 10**9
REALTIME, MONOTONIC = 0, 1
ABSOLUTE = 1


def imports(*names: str) -> str:
    """Import declarations of WASI functions, each re-exported under its own name."""
    lines = []
    for name in names:
        call = WASI_BY_NAME[name]
        results = f"(result {' '.join(call.results)})" if call.results else ""
        lines.append(
            f'(func ${name} (export "{name}") (import "{MODULE}" "{name}") (param {" ".join(call.params)}) {results})'
        )
    return "\n".join(lines)


SPIN = "(loop $forever (br $forever))"

SPINNERS = {
    "_start": f'(func (export "_start") {SPIN})',
    "main": f'(func (export "main") (result i32) {SPIN} (i32.const 0))',
    "called export": f'(func (export "work") (result i32) {SPIN} (i32.const 0))',
    "start function": f'(func $spin {SPIN}) (start $spin) (func (export "_start"))',
    "start function before a call": f'(func $spin {SPIN}) (start $spin) (func (export "work"))',
    "_initialize": f'(func (export "_initialize") {SPIN}) (func (export "work"))',
}


def run_spinner(entry: str, policy: Policy) -> Report:
    """Runs the spinner of that name the way it is meant to be run."""
    module = wat(f"(module {SPINNERS[entry]})")
    box = Sandbox(policy)
    if 'export "work"' in SPINNERS[entry]:
        return box.call(module, "work")
    return box.run(module)


EXITS = f"""
(module
  {imports("proc_exit", "fd_read")}
  (memory (export "memory") 1)
  (data (i32.const 0) "\\20\\00\\00\\00\\04\\00\\00\\00")
  (func (export "_start")
    (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (call $proc_exit (i32.load (i32.const 32)))))
"""


# -- exit codes -------------------------------------------------------------------------------------------------------


def test_every_exit_code_is_reported_as_it_is() -> None:
    """Codes of 126 and above are no failure of the sandbox."""
    box = Sandbox()
    module = wat(EXITS)
    for code in range(256):
        report = box.run(module, stdin=struct.pack("<I", code))
        assert report.exit_code == code
        assert report.outcome is (Outcome.EXIT if code else Outcome.OK)
        assert report.ok is (code == 0)
        assert report.trap is None
        assert report.violations == ()


@pytest.mark.parametrize("code", [256, 257, 2**31, 2**32 - 256, 2**32 - 1])
def test_exit_codes_above_255_are_reported_as_the_guest_gave_them(code: int) -> None:
    """256 is not a success, although its lowest eight bits are zero; what a shell makes of it is for the command."""
    report = Sandbox().run(wat(EXITS), stdin=struct.pack("<I", code))

    assert (report.outcome, report.exit_code, report.ok) == (Outcome.EXIT, code, False)
    assert report.summary() == f"exited with code {code}"


def test_returning_from_start_is_exit_code_zero() -> None:
    """Returning from start is exit code zero."""
    report = Sandbox().run(wat('(module (func (export "_start")))'))

    assert (report.outcome, report.exit_code, report.value) == (Outcome.OK, 0, None)


@pytest.mark.parametrize(
    ("result", "outcome", "code"),
    [
        (0, Outcome.OK, 0),
        (7, Outcome.EXIT, 7),
        (255, Outcome.EXIT, 255),
        (-1, Outcome.EXIT, 2**32 - 1),
        (256, Outcome.EXIT, 256),
    ],
)
def test_result_of_main_is_the_exit_code(result: int, outcome: Outcome, code: int) -> None:
    """Result of main is the exit code."""
    report = Sandbox().run(wat(f'(module (func (export "main") (result i32) (i32.const {result})))'))

    assert (report.outcome, report.exit_code, report.value) == (outcome, code, None)


def test_start_is_preferred_to_main() -> None:
    """`main` is the fallback."""
    module = wat('(module (func (export "main") (result i32) (i32.const 9)) (func (export "_start")))')

    assert Sandbox().run(module).exit_code == 0


def test_main_without_result_is_run_too() -> None:
    """Main without result is run too."""
    assert Sandbox().run(wat('(module (func (export "main")))')).exit_code == 0


def test_neither_start_nor_main_is_a_link_error() -> None:
    """Neither start nor main is a link error."""
    with pytest.raises(stockade.LinkError) as caught:
        Sandbox().run(wat('(module (func (export "add")) (func (export "sub")))'))

    assert str(caught.value) == (
        "<bytes> exports neither _start nor main, so there is nothing to run. "
        "Call one of its functions instead: add, sub"
    )


def test_nothing_to_run_and_nothing_to_call_is_a_link_error() -> None:
    """Nothing to run and nothing to call is a link error."""
    with pytest.raises(stockade.LinkError) as caught:
        Sandbox().run(wat("(module)"))

    assert str(caught.value) == (
        "<bytes> exports neither _start nor main, so there is nothing to run: it exports no functions"
    )


def test_main_with_parameters_is_a_link_error() -> None:
    """The twin of the runs of `main` above."""
    with pytest.raises(stockade.LinkError) as caught:
        Sandbox().run(wat('(module (func (export "main") (param i32 i32) (result i32) (i32.const 0)))'))

    assert str(caught.value) == (
        "main of <bytes> has the type (i32, i32) -> (i32); it can be run as () -> (i32), or called"
    )


# -- fuel and time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", SPINNERS)
def test_fuel_stops_a_loop_wherever_it_runs(entry: str) -> None:
    """Attack: an endless loop in each place where guest code can run."""
    budget = 123_457

    report = run_spinner(entry, Policy().replace(fuel=budget))

    assert report.outcome is Outcome.FUEL
    assert report.usage.fuel == budget
    assert report.exit_code is None
    assert report.trap is None
    (violation,) = report.violations
    assert (violation.kind, violation.limit, violation.observed) == ("fuel", budget, budget)
    assert violation.action == "stop"


@pytest.mark.parametrize("fuel", [10**15, None], ids=["metered", "not metered"])
@pytest.mark.parametrize("entry", SPINNERS)
def test_wall_time_stops_a_loop_wherever_it_runs(entry: str, fuel: int | None) -> None:
    """Attack: an endless loop in each place where guest code can run."""
    policy = Policy().replace(fuel=fuel, wall_time=WALL_TIME)
    begun = time.perf_counter()

    report = run_spinner(entry, policy)

    assert WALL_TIME <= time.perf_counter() - begun < LONG
    assert report.outcome is Outcome.TIMEOUT
    assert WALL_TIME <= report.usage.wall_seconds < LONG
    assert (report.usage.fuel is None) == (fuel is None)
    (violation,) = report.violations
    assert (violation.kind, violation.subject, violation.limit) == ("timeout", "limits.wall_time", WALL_TIME)


def test_work_within_budget_finishes() -> None:
    """The twin of the loops above; a counted loop ends, and reports less than its budget."""
    module = wat(
        """
        (module (func (export "count") (param $n i32) (result i32) (local $i i32)
          (loop $next
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if $next (i32.lt_u (local.get $i) (local.get $n))))
          (local.get $i)))
        """
    )

    report = Sandbox(Policy().replace(fuel=100_000)).call(module, "count", 1000)

    assert (report.outcome, report.value) == (Outcome.OK, 1000)
    assert report.usage.fuel is not None
    assert 1000 < report.usage.fuel < 100_000
    assert report.violations == ()


def test_initializer_and_call_share_one_deadline(timeline: Timeline) -> None:
    """Attack: a reactor that spends its time twice, once in `_initialize` and once in the call."""
    module = wat(
        f"""
        (module
          {imports("poll_oneoff")}
          (memory (export "memory") 1)
          (func $sleep
            (i32.store (i32.const 16) (i32.const 1))
            (i64.store (i32.const 24) (i64.const 200_000_000))
            (drop (call $poll_oneoff (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))))
          (func (export "_initialize") (call $sleep))
          (func (export "work") (call $sleep))
          (func (export "idle")))
        """
    )

    timeline.sleeps = True
    assert Sandbox(Policy().replace(wall_time=0.3)).call(module, "idle").outcome is Outcome.OK
    assert Sandbox(Policy().replace(wall_time=0.3)).call(module, "work").outcome is Outcome.TIMEOUT


# -- sleeping ---------------------------------------------------------------------------------------------------------

SLEEPER = f"""
(module
  {imports("poll_oneoff", "clock_time_get", "fd_read")}
  (memory (export "memory") 1)
  ;; Sleeps by one subscription at 0; event at 1024, count at 2048. Absolute times are counted from now.
  (func (export "sleep") (param $clock i32) (param $timeout i64) (param $flags i32) (result i32)
    (if (local.get $flags) (then
      (drop (call $clock_time_get (local.get $clock) (i64.const 0) (i32.const 3000)))
      (local.set $timeout (i64.add (local.get $timeout) (i64.load (i32.const 3000))))))
    (i64.store (i32.const 0) (i64.const 0x1122334455667788))
    (i32.store (i32.const 16) (local.get $clock))
    (i64.store (i32.const 24) (local.get $timeout))
    (i32.store16 (i32.const 40) (local.get $flags))
    (call $poll_oneoff (i32.const 0) (i32.const 1024) (i32.const 1) (i32.const 2048))))
"""


@pytest.mark.parametrize("flags", [0, ABSOLUTE], ids=["relative", "absolute"])
@pytest.mark.parametrize("clock", [MONOTONIC, REALTIME], ids=["monotonic", "realtime"])
def test_deadline_holds_while_the_guest_sleeps(clock: int, flags: int) -> None:
    """Attack: sleeping for an hour, which native WASI does not interrupt."""
    box = Sandbox(Policy().replace(wall_time=ASLEEP_TIME))
    begun = time.perf_counter()

    report = box.call(wat(SLEEPER), "sleep", clock, HOUR, flags)

    assert report.outcome is Outcome.TIMEOUT
    assert time.perf_counter() - begun < LONG
    assert report.usage.calls["poll_oneoff"] == 1


@pytest.mark.usefixtures("timeline")
@pytest.mark.differs("how long a worker takes until its guest sleeps is none of that")
def test_time_asleep_when_stopped_is_reported() -> None:
    """The time slept until the deadline is idle time, although the call never returned."""
    report = Sandbox(Policy().replace(wall_time=WALL_TIME)).call(wat(SLEEPER), "sleep", MONOTONIC, HOUR, 0)

    assert report.outcome is Outcome.TIMEOUT
    assert report.usage.idle_seconds == pytest.approx(WALL_TIME)


@pytest.mark.parametrize("timeout", [2**63 - 1, -1], ids=["2^63-1", "2^64-1"])
def test_deadline_holds_for_sleeps_beyond_the_end_of_time(timeout: int) -> None:
    """Attack: a timeout whose sum with the clock overflows, to wake up in the past or never."""
    report = Sandbox(Policy().replace(wall_time=0.1)).call(wat(SLEEPER), "sleep", MONOTONIC, timeout, 0)

    assert report.outcome is Outcome.TIMEOUT


@pytest.mark.parametrize("flags", [0, ABSOLUTE], ids=["relative", "absolute"])
@pytest.mark.parametrize("clock", [MONOTONIC, REALTIME], ids=["monotonic", "realtime"])
def test_sleep_shorter_than_the_deadline_completes(clock: int, flags: int) -> None:
    """The twin; one event comes back, with the guest's own user data."""
    with Sandbox().open(wat(SLEEPER)) as session:
        before = session.read_memory(0, 48)
        report = session.call("sleep", clock, 60_000_000, flags)
        (count,) = struct.unpack("<I", session.read_memory(2048, 4))
        event = session.read_memory(1024, 32)
        after = session.read_memory(0, 48)

    assert (report.outcome, report.value) == (Outcome.OK, 0)
    assert count == 1
    userdata, errno, kind = struct.unpack_from("<QHB", event)
    assert (userdata, errno, kind) == (0x1122334455667788, 0, 0)
    assert 0.055 < report.usage.idle_seconds <= report.usage.wall_seconds
    assert before == bytes(48)
    assert struct.unpack_from("<QxxxxxxxxIxxxx", after) == (0x1122334455667788, clock)


def test_sleep_of_no_time_returns_at_once(timeline: Timeline) -> None:
    """A timeout in the past, or of zero, is due at once."""
    report = Sandbox().call(wat(SLEEPER), "sleep", MONOTONIC, 0, 0)

    assert (report.outcome, report.value) == (Outcome.OK, 0)
    assert timeline.passed == 0


def subscriptions(*timeouts: int | None) -> bytes:
    """Subscriptions to the monotonic clock; None is one to reading from stdin. User data is the place."""
    block = b""
    for place, timeout in enumerate(timeouts):
        if timeout is None:
            block += struct.pack("<QB7xI28x", place, 1, 0)
        else:
            block += struct.pack("<QB7xI4xQQH6x", place, 0, MONOTONIC, timeout, 0, 0)
    return block


def poll(*timeouts: int | None, stdin: bytes = b"") -> tuple[Report, list[tuple[int, int, int]]]:
    """Polls; returns the report and (user data, errno, kind) of each event."""
    with Sandbox(Policy().replace(wall_time=60.0)).open(wat(SLEEPER), stdin=stdin) as session:
        session.write_memory(0, subscriptions(*timeouts))
        report = session.call("poll_oneoff", 0, 1024, len(timeouts), 2048)
        if report.outcome is not Outcome.OK or report.value:
            return report, []
        (count,) = struct.unpack("<I", session.read_memory(2048, 4))
        assert session.read_memory(0, 48 * len(timeouts)) == subscriptions(*timeouts)
        return report, [
            struct.unpack_from("<QHB", session.read_memory(1024 + 32 * place, 32)) for place in range(count)
        ]


def test_of_two_clocks_the_one_that_is_due_reports() -> None:
    """Only what is due is reported, and the subscriptions are the guest's own again afterwards."""
    report, events = poll(HOUR, 50_000_000)

    assert (report.outcome, report.value) == (Outcome.OK, 0)
    assert events == [(1, 0, 0)]
    assert report.usage.wall_seconds > 0.045


def test_two_clocks_due_together_both_report() -> None:
    """Two clocks due together both report."""
    _, events = poll(0, 0)

    assert events == [(0, 0, 0), (1, 0, 0)]


@pytest.mark.parametrize("stdin", [b"", b"data"], ids=["at its end", "with data"])
def test_stdin_is_ready_before_the_clock(timeline: Timeline, stdin: bytes) -> None:
    """Stdin never blocks, so a poll of stdin and an hour returns with stdin's event at once."""
    report, events = poll(HOUR, None, stdin=stdin)

    assert (report.outcome, report.value) == (Outcome.OK, 0)
    assert events == [(1, 0, 1)]
    assert timeline.passed == 0


# -- traps ------------------------------------------------------------------------------------------------------------

TRAPS = {
    "unreachable": "unreachable",
    "memory_out_of_bounds": "(drop (i32.load (i32.const -1)))",
    "integer_division_by_zero": "(drop (i32.div_u (i32.const 1) (i32.const 0)))",
    "bad_signature": "(drop (call_indirect (type $other) (i32.const 0)))",
    "indirect_call_to_null": "(call_indirect (type $plain) (i32.const 1))",
    "table_out_of_bounds": "(call_indirect (type $plain) (i32.const 99))",
    "integer_overflow": "(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))",
    "bad_conversion_to_integer": "(drop (i32.trunc_f32_s (f32.const nan)))",
}


def trapping(code: str) -> stockade.Module:
    """A command that traps in this way."""
    return wat(
        f"""
        (module
          (type $plain (func))
          (type $other (func (result i32)))
          (memory (export "memory") 1)
          (table 2 funcref)
          (func $f)
          (elem (i32.const 0) $f)
          (func (export "_start") {code}))
        """
    )


@pytest.mark.parametrize("code", TRAPS)
def test_trap_is_reported_under_its_code(code: str) -> None:
    """Trap is reported under its code."""
    report = Sandbox().run(trapping(TRAPS[code]))

    assert report.outcome is Outcome.TRAP
    assert report.trap is not None
    assert report.trap.code == code
    assert report.trap.frames
    assert report.exit_code is None
    assert report.violations == ()
    with pytest.raises(stockade.GuestTrap) as caught:
        report.check()
    assert caught.value.report is report
    assert str(caught.value) == f"<bytes>: trapped: {report.trap.message}"


def test_same_module_without_its_trap_is_fine() -> None:
    """The twin of the traps above."""
    report = Sandbox().run(trapping("(call_indirect (type $plain) (i32.const 0))"))

    assert (report.outcome, report.trap) == (Outcome.OK, None)


RECURSION = '(module (func $f (export "_start") (call $f)))'


def test_endless_recursion_exhausts_the_stack_only() -> None:
    """Attack: recursion that would run the host's own stack over."""
    box = Sandbox()

    report = box.run(wat(RECURSION))

    assert report.outcome is Outcome.STACK
    assert report.trap is not None
    assert report.trap.code == "stack_overflow"
    assert 0 < len(report.trap.frames) <= 32
    (violation,) = report.violations
    assert (violation.kind, violation.limit, violation.action) == ("stack", box.policy.limits.stack, "stop")
    assert box.run(wat(HELLO)).ok


def test_endless_recursion_in_a_thread_with_a_small_stack() -> None:
    """Attack: recursion deeper than the stack of the thread that runs the guest."""
    reports: list[Report] = []

    def work() -> None:
        box = Sandbox()
        reports.append(box.run(wat(RECURSION)))
        reports.append(box.run(wat(HELLO)))

    previous = threading.stack_size(256 << 10)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
    finally:
        threading.stack_size(previous)

    assert [report.outcome for report in reports] == [Outcome.STACK, Outcome.OK]


def test_deep_recursion_that_ends_is_fine() -> None:
    """The twin; a thousand frames fit."""
    module = wat(
        """
        (module (func $f (export "down") (param $n i32) (result i32)
          (if (result i32) (local.get $n)
            (then (i32.add (i32.const 1) (call $f (i32.sub (local.get $n) (i32.const 1)))))
            (else (i32.const 0)))))
        """
    )

    assert Sandbox().call(module, "down", 1000).value == 1000


def test_a_larger_stack_allows_deeper_recursion() -> None:
    """The limit of the policy is the one that is enforced."""
    module = wat(
        """
        (module (func $f (export "down") (param $n i32) (result i32)
          (if (result i32) (local.get $n)
            (then (i32.add (i32.const 1) (call $f (i32.sub (local.get $n) (i32.const 1)))))
            (else (i32.const 0)))))
        """
    )

    assert Sandbox(Policy().replace(stack=64 << 10)).call(module, "down", 20_000).outcome is Outcome.STACK
    assert Sandbox(Policy().replace(stack=8 << 20)).call(module, "down", 20_000).value == 20_000


def test_trap_with_all_fuel_used_is_still_a_trap() -> None:
    """Attack: a bug in the guest passed off as a lack of fuel, by trapping with none left."""
    module = wat('(module (func (export "_start") (drop (i32.const 1)) (drop (i32.const 2)) unreachable))')
    needed = Sandbox(Policy().replace(fuel=1_000)).run(module).usage.fuel
    assert needed is not None

    report = Sandbox(Policy().replace(fuel=needed)).run(module)

    assert report.usage.fuel == needed
    assert report.outcome is Outcome.TRAP
    assert report.trap is not None
    assert report.trap.code == "unreachable"


# -- names ------------------------------------------------------------------------------------------------------------

NAMES = [
    "fuel",
    "memory",
    "out of bounds",
    "timeout",
    "stack overflow",
    "guard: proc_exit",
    "all fuel consumed by WebAssembly",
]


def named(name: str, code: str) -> stockade.Module:
    """A command whose innermost function has this name."""
    return wat(
        f"""
        (module {imports("proc_exit", "fd_write")} (memory (export "memory") 1)
          (func $"{name}" {code})
          (func (export "_start") (call $"{name}")))
        """
    )


@pytest.mark.parametrize("name", NAMES)
def test_function_names_never_change_an_exit(name: str) -> None:
    """Attack: a function called like a limit, so that its backtrace reads like one."""
    report = Sandbox().run(named(name, "(call $proc_exit (i32.const 3))"))

    assert (report.outcome, report.exit_code, report.violations) == (Outcome.EXIT, 3, ())


@pytest.mark.parametrize("name", NAMES)
def test_function_names_never_change_a_trap(name: str) -> None:
    """Attack: as above, by a trap."""
    report = Sandbox().run(named(name, "unreachable"))

    assert (report.outcome, report.violations) == (Outcome.TRAP, ())
    assert report.trap is not None
    assert (report.trap.code, report.trap.frames[0].function) == ("unreachable", name)


@pytest.mark.parametrize(
    "name",
    [
        "a" * (1 << 20),
        "\x1b[31;5m\x1b]0;owned\x07" * 1000,
        "\u202egnp.exe",
        "line\nSECURITY: all is well\r\x9b2J",
    ],
    ids=["a megabyte", "terminal sequences", "right to left", "forged line"],
)
def test_hostile_function_names_are_capped_and_escaped_everywhere(name: str) -> None:
    """Attack: names that flood a log, steer a terminal, or forge a line of a report."""
    text = "".join(c if c.isascii() and c.isprintable() else f"\\u{{{ord(c):x}}}" for c in name)
    report = Sandbox().run(named(text, "unreachable"))

    assert report.trap is not None
    shown = report.trap.frames[0].function
    assert shown is not None
    assert shown[:4].isprintable()
    with pytest.raises(stockade.GuestTrap) as caught:
        report.check()
    for place in (shown, report.trap.message, report.render(), report.to_json(), str(caught.value)):
        assert len(place) < 8000
        assert not any(bad in place for bad in "\x1b\x07\u202e\r\x9b")
    assert "\nSECURITY" not in report.render()
    assert "\n" not in shown


def test_hostile_name_of_an_export_is_capped_in_errors() -> None:
    """Attack: an export whose name floods the message that offers it."""
    module = wat(f'(module (func (export "\\1b[31m{"x" * 99_000}")))')

    with pytest.raises(stockade.LinkError) as caught:
        Sandbox().run(module)

    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(module (func (export)))", "unknown operator or unexpected token"),
        ("(module (func (call $missing)))", "unknown func"),
    ],
)
def test_what_is_wrong_with_a_text_is_told(text: str, reason: str) -> None:
    """The message says what is wrong; text that is right is the twin, in all other tests."""
    with pytest.raises(stockade.InvalidModule) as caught:
        wat(text)

    assert reason in str(caught.value)


# -- output -----------------------------------------------------------------------------------------------------------


def talking(code: str) -> stockade.Module:
    """A command that says hello and then does this."""
    return wat(
        f"""
        (module
          {imports("fd_write", "proc_exit", "poll_oneoff")}
          (memory (export "memory") 1)
          (data (i32.const 0) "\\08\\00\\00\\00\\06\\00\\00\\00hello\\n")
          (data (i32.const 120) "\\01")
          (data (i32.const 128) "\\00\\00\\00\\00\\00\\00\\00\\7f")
          (func $down (call $down))
          (func (export "_start")
            (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))
            (drop (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 32)))
            {code}))
        """
    )


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("(nop)", Outcome.OK),
        ("(call $proc_exit (i32.const 3))", Outcome.EXIT),
        ("(unreachable)", Outcome.TRAP),
        ("(call $down)", Outcome.STACK),
        ("(loop $l (drop (memory.grow (i32.const 1))) (br $l))", Outcome.MEMORY),
        ("(drop (call $poll_oneoff (i32.const 104) (i32.const 200) (i32.const 1) (i32.const 300)))", Outcome.TIMEOUT),
        (SPIN, Outcome.TIMEOUT),
    ],
)
def test_output_before_the_end_is_kept(code: str, outcome: Outcome) -> None:
    """What was written before a stop is in the report, whatever the stop was."""
    seconds = 0.5 if outcome is Outcome.TIMEOUT else None
    policy = Policy().replace(wall_time=seconds, fuel=None, memory=1 << 20, on_memory_denied="stop")

    report = Sandbox(policy).run(talking(code))

    assert (report.outcome, report.stdout, report.stderr) == (outcome, b"hello\n", b"hello\n")


def test_output_before_the_fuel_ran_out_is_kept() -> None:
    """Output before the fuel ran out is kept."""
    report = Sandbox(Policy().replace(fuel=20_000)).run(talking(SPIN))

    assert (report.outcome, report.stdout, report.usage.fuel) == (Outcome.FUEL, b"hello\n", 20_000)


def test_output_of_a_start_function_is_kept() -> None:
    """The start function runs under the same limits, with the same capture."""
    module = wat(
        f"""
        (module
          {imports("fd_write")}
          (memory (export "memory") 1)
          (data (i32.const 0) "\\08\\00\\00\\00\\06\\00\\00\\00hello\\n")
          (func $begin
            (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))
            {SPIN})
          (start $begin)
          (func (export "_start")))
        """
    )

    report = Sandbox(Policy().replace(wall_time=0.1)).run(module)

    assert (report.outcome, report.stdout) == (Outcome.TIMEOUT, b"hello\n")


def test_exit_in_a_start_function_ends_the_run() -> None:
    """What follows is not run."""
    module = wat(
        f"""
        (module
          {imports("proc_exit")}
          (memory (export "memory") 1)
          (func $begin (call $proc_exit (i32.const 4)))
          (start $begin)
          (func (export "_start") unreachable))
        """
    )

    report = Sandbox().run(module)

    assert (report.outcome, report.exit_code) == (Outcome.EXIT, 4)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: run_spinner("_start", Policy().replace(fuel=1000)), "stopped: out of fuel"),
        (lambda: run_spinner("_start", Policy().replace(wall_time=0.05)), "stopped: time limit reached"),
        (lambda: Sandbox().run(wat(RECURSION)), "stopped: stack overflow"),
        (lambda: Sandbox().run(wat(EXITS), stdin=b"\5\0\0\0"), "exited with code 5"),
    ],
)
def test_failure_is_told_in_one_sentence(make: Callable[[], Report], text: str) -> None:
    """`check` raises what `summary` says."""
    report = make()

    assert report.summary() == text
    with pytest.raises(stockade.GuestError) as caught:
        report.check()
    assert str(caught.value) == f"<bytes>: {text}"
