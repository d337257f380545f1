"""Reports: what machines and people read, and what is raised."""

from __future__ import annotations

import base64
import json
import math

import msgspec
import pytest

import stockade
from stockade import Outcome, Policy, Report, Sandbox
from stockade.errors import Cancelled, Denied, GuestError, GuestExit, GuestTrap, LimitExceeded, StockadeError
from stockade.report import (
    Alert,
    FuelAnomaly,
    FuelStatistics,
    ModuleInfo,
    PolicyInfo,
    QuotaUse,
    RunLimits,
    Timings,
    TrapFrame,
    TrapInfo,
    Trend,
    Truncated,
    Usage,
    Violation,
    violation_text,
)
from tests.conftest import HELLO, wat


def make(outcome: Outcome = Outcome.OK, **fields: object) -> Report:
    """A report with these fields."""
    return msgspec.structs.replace(
        Report(
            outcome=outcome,
            module=ModuleInfo("0123456789abcdef" * 4, "app.wasm"),
            policy=PolicyInfo("fedcba9876543210" * 4, "strict"),
        ),
        **fields,
    )


FULL = make(
    Outcome.TRAP,
    stdout=b"out",
    stderr=b"err",
    truncated=Truncated(stdout=1024, stderr=1),
    usage=Usage(
        fuel=1_234_567,
        wall_seconds=0.25,
        cpu_seconds=0.125,
        idle_seconds=1.5,
        memory_bytes=65_536,
        memory_peak_bytes=3 << 20,
        table_elements=10,
        calls={"fd_write": 1200, "fd_read": 3, "clock_time_get": 3, "path_open": 2, "args_get": 1, "fd_close": 1},
        denied={"sock_send": 4},
        read_bytes=2048,
        written_bytes=5,
        stdout_bytes=1027,
        stderr_bytes=4,
        files_opened=2,
        files_created=1,
        files_deleted=1_000,
        random_bytes=16,
    ),
    fuel=FuelStatistics(
        initial=1_000_000,
        consumed=1_234_567,
        left=765_433,
        exact=False,
        seconds=0.5,
        average_rate=2_469_134.0,
        refilled=1_000_000,
        refills=4,
        rate=9_000_000.0,
        trend=Trend.RISING,
        anomalies=(
            FuelAnomaly(kind="high_consumption", observed=9e6, expected=2e6),
            FuelAnomaly(kind="rapid_depletion", observed=0.5, expected=1.0),
        ),
    ),
    violations=(
        Violation(kind="memory", subject="limits.memory", limit=1 << 20, observed=1 << 30, call="memory.grow"),
        Violation(kind="call", subject="sock_send", call="sock_send", count=4, field="wasi.deny"),
        Violation(kind="fuel", subject="limits.fuel", limit=5_000_000, observed=5_000_000, action="stop"),
    ),
    trap=TrapInfo(
        "unreachable",
        "unreachable instruction executed",
        (TrapFrame("inner", 7, 16), TrapFrame(None, 3, 255)),
    ),
    timings=Timings(compile=1.5, instantiate=0.00002, run=0.25, total=1.8),
    limits=RunLimits(
        fuel=1_000_000,
        wall_time=5.0,
        memory=128 << 20,
        table_elements=10,
        stdout=1024,
        stderr=0,
        open_files=0,
        read_bytes=1 << 20,
        calls=10_000,
    ),
)

GOLDEN = """\
    module  app.wasm  sha256 0123456789abcdef…
    policy  strict  fedcba9876543210…
 isolation  inprocess
   outcome  trap - trapped: unreachable instruction executed
      trap  inner + 0x10
            function 3 + 0xff
      time  run: 250.0 ms · instantiate: 20 µs
            compile: 1.50 s · CPU: 125.0 ms
   waiting  1.50 s
      fuel  at least 1,234,567 of 2,000,000, including 1,000,000 from 4 refills
            2,469,134 per second, rising
            high consumption: 9,000,000 per second in the latest slice,
            2,000,000 before
            rapid depletion: used up within 500.0 ms
  not kept  1.0 KiB of stdout and 1 B of stderr
     files  2 opened, 1 created, 1,000 deleted, 2.0 KiB read, 5 B written
WASI calls  1,210: fd_write ×1,200, clock_time_get ×3, fd_read ×3, path_open ×2,
            args_get ×1 and 1 more
    limits  wall_time       250.0 ms of 5.00 s       5%  #...............
            fuel               1.2 M of 2.0 M       61%  #########.......
            memory           3.0 MiB of 128.0 MiB    2%  #...............
            table_elements        10 of 10         100%  ################
            stdout           1.0 KiB of 1.0 KiB    100%  ################
            stderr               4 B of 0 B        100%  ################
            calls              1,210 of 10,000      12%  #...............
            open_files             0 of 0            0%  ................
            files_created          1 unlimited
            read_bytes       2.0 KiB of 1.0 MiB     <1%  #...............
            write_bytes          5 B unlimited
            random_bytes        16 B unlimited
violations  memory: memory.grow asked for 1.0 GiB, limits.memory allows 1.0 MiB
            → deny
            call: sock_send is refused: wasi.deny has it, 4 times → deny
            fuel: used 5,000,000, limits.fuel allows 5,000,000 → stop"""


def test_render_shows_all_that_happened() -> None:
    """Render shows all that happened."""
    assert FULL.render() == GOLDEN


def test_render_of_a_quiet_run_is_short() -> None:
    """What did not happen is not shown."""
    report = make(exit_code=0, timings=Timings(instantiate=1e-5, run=0.5, total=0.5, cache_hit=True))

    assert report.render() == (
        "   module  app.wasm  sha256 0123456789abcdef…\n"
        "   policy  strict  fedcba9876543210…\n"
        "isolation  inprocess\n"
        "  outcome  ok - finished\n"
        "exit code  0\n"
        "     time  run: 500.0 ms · instantiate: 10 µs\n"
        "           compile: cached · CPU: 0 µs\n"
        "     fuel  not metered"
    )


def test_render_does_not_steer_a_terminal() -> None:
    """Attack: escape sequences in a name that reached the report; ordinary text is the twin."""
    report = make(module=ModuleInfo("0" * 64, "\x1b[2J\u202eapp ünïcødé"))

    assert "\x1b" not in report.render()
    assert "\u202e" not in report.render()
    assert "\\x1b[2J\\u202eapp ünïcødé" in report.render()


def test_json_holds_every_field() -> None:
    """The JSON twin loses nothing and reads back as it was."""
    document = json.loads(FULL.to_json())

    assert document["ok"] is False
    assert document["outcome"] == "trap"
    assert set(document) == {*Report.__struct_fields__, "ok", "utilization"}
    assert set(document["usage"]) == set(Usage.__struct_fields__)
    assert document["violations"][0] == {
        "kind": "memory",
        "subject": "limits.memory",
        "limit": 1 << 20,
        "observed": 1 << 30,
        "call": "memory.grow",
        "field": "",
        "mount": None,
        "action": "deny",
        "count": 1,
        "at": None,
    }
    assert document["trap"]["frames"] == [
        {"function": "inner", "index": 7, "offset": 16},
        {"function": None, "index": 3, "offset": 255},
    ]
    for stream in ("stdout", "stderr"):
        document[stream] = document[stream].encode()
    del document["ok"], document["utilization"]
    assert msgspec.convert(document, Report) == FULL


def test_json_of_a_real_run_reads_back() -> None:
    """Json of a real run reads back."""
    report = Sandbox().run(wat(HELLO))
    document = json.loads(report.to_json())

    assert document.pop("ok") is True
    assert document.pop("utilization") == report.utilization
    for stream in ("stdout", "stderr"):
        document[stream] = document[stream].encode()
    assert msgspec.convert(document, Report) == report


@pytest.mark.parametrize("output", [b"\xff\xfe\x00", b"caf\xe9", bytes(range(256)), b"\xed\xa0\x80"])
def test_output_that_is_not_text_is_in_base64(output: bytes) -> None:
    """Bytes are not lost in JSON."""
    document = json.loads(make(stdout=output, stderr=b"text").to_json())

    assert base64.b64decode(document["stdout_base64"]) == output
    assert document["stdout"] == output.decode("utf-8", "replace")
    assert document["stderr"] == "text"
    assert "stderr_base64" not in document


@pytest.mark.parametrize("output", [b"", b"plain", "ünïcødé 🦀".encode(), b"\x00\x1b[2J\r\n"])
def test_output_that_is_text_is_text(output: bytes) -> None:
    """The twin; control characters are escaped as JSON does."""
    encoded = make(stderr=output).to_json()
    document = json.loads(encoded)

    assert document["stderr"].encode() == output
    assert "stderr_base64" not in document
    assert "\x1b" not in encoded


@pytest.mark.parametrize("value", [None, 0, -1, 2**63 - 1, -(2**63), 0.5, [1, 2.5], []])
def test_value_is_kept_in_json(value: object) -> None:
    """Value is kept in json."""
    assert json.loads(make(value=value).to_json())["value"] == value


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_json_is_valid_for_numbers_that_it_does_not_know(value: float) -> None:
    """Attack: a function that returns NaN, so that whoever reads the report cannot parse it."""

    def refuse(constant: str) -> object:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(make(value=value).to_json(), parse_constant=refuse)
    make(value=value).render()


CHECKS = {
    Outcome.EXIT: (GuestExit, "exited with code 3"),
    Outcome.TRAP: (GuestTrap, "trapped: unreachable instruction executed"),
    Outcome.FUEL: (LimitExceeded, "stopped: out of fuel"),
    Outcome.TIMEOUT: (LimitExceeded, "stopped: time limit reached"),
    Outcome.IDLE: (LimitExceeded, "stopped: idle limit reached"),
    Outcome.MEMORY: (LimitExceeded, "stopped: memory limit exceeded"),
    Outcome.STACK: (LimitExceeded, "stopped: stack overflow"),
    Outcome.OUTPUT: (LimitExceeded, "stopped: output limit exceeded"),
    Outcome.DENIED: (Denied, "stopped: policy violation"),
    Outcome.CANCELLED: (Cancelled, "cancelled"),
    Outcome.CRASHED: (GuestTrap, "the sandbox failed"),
}


@pytest.mark.parametrize("outcome", CHECKS)
def test_check_raises_what_fits_the_outcome(outcome: Outcome) -> None:
    """One class for each kind of end, with the report attached."""
    kind, text = CHECKS[outcome]
    trap = TrapInfo("unreachable", "unreachable instruction executed") if outcome is Outcome.TRAP else None
    report = make(outcome, exit_code=3 if outcome is Outcome.EXIT else None, trap=trap)

    with pytest.raises(GuestError) as caught:
        report.check()

    assert type(caught.value) is kind
    assert isinstance(caught.value, StockadeError)
    assert caught.value.report is report
    assert str(caught.value) == f"app.wasm: {text}"
    assert not report.ok


@pytest.mark.parametrize(
    ("outcome", "violation", "text"),
    [
        (
            Outcome.DENIED,
            Violation(kind="capability", subject="draw", call="env.line", action="stop", field="custom.draw"),
            "stopped: policy violation: env.line needs custom.draw, which the policy does not grant",
        ),
        (
            Outcome.DENIED,
            Violation(kind="call", subject="sock_send", call="sock_send", action="stop", field="wasi.deny"),
            "stopped: policy violation: sock_send is refused: wasi.deny has it",
        ),
        (
            Outcome.DENIED,
            Violation(
                kind="path", subject="x", call="path_open", action="stop", field="filesystem.mounts", mount="/books"
            ),
            "stopped: policy violation: tried to write /books/x, but /books is read-only",
        ),
        (
            Outcome.MEMORY,
            Violation(
                kind="memory",
                subject="limits.memory",
                call="memory.grow",
                limit=1 << 20,
                observed=3 << 20,
                action="stop",
                field="limits.memory",
            ),
            "stopped: memory limit exceeded: memory.grow asked for 3.0 MiB, limits.memory allows 1.0 MiB",
        ),
        (
            Outcome.MEMORY,
            Violation(
                kind="table",
                subject="initial tables",
                limit=10,
                observed=2_000,
                action="stop",
                field="limits.table_elements",
            ),
            "stopped: memory limit exceeded: initial tables of 2,000, limits.table_elements allows 10",
        ),
    ],
)
def test_a_summary_says_what_ended_the_run(outcome: Outcome, violation: Violation, text: str) -> None:
    """What was tried, and the field of the policy that decides it; what was refused before is told elsewhere."""
    before = Violation(kind="call", subject="sock_recv", call="sock_recv", field="wasi.deny")
    report = make(outcome, violations=(before, violation))

    assert report.summary() == text
    assert "sock_recv" not in report.summary()
    with pytest.raises(GuestError) as caught:
        report.check()
    assert str(caught.value) == f"app.wasm: {text}"
    assert make(outcome, violations=(before,)).summary() == CHECKS[outcome][1]


@pytest.mark.parametrize(
    ("violation", "text"),
    [
        (
            Violation(kind="network", subject="https://api.example.com", call="http", field="network.mode"),
            "network: asked for https://api.example.com, which the policy does not permit (network.mode) → deny",
        ),
        (
            Violation(kind="network", subject="https://a.example/x", call="http", field="network.hosts[1]", count=2),
            (
                "network: asked for https://a.example/x, which the policy does not permit (network.hosts[1]), 2 times "
                "→ deny"
            ),
        ),
        (
            Violation(
                kind="request_time", subject="https://a.example", call="http", limit=2.0, field="limits.request_time"
            ),
            (
                "request_time: the request to https://a.example took longer than limits.request_time allows (2.00 s) "
                "→ deny"
            ),
        ),
        (
            Violation(kind="hook", subject="not on a Sunday", call="Calendar", action="stop"),
            "hook: Calendar refuses it: not on a Sunday → stop",
        ),
        (
            Violation(kind="fuel", subject="limits.fuel", limit=1_000, field="limits.fuel", action="stop"),
            "fuel: used up limits.fuel (1,000) → stop",
        ),
    ],
)
def test_only_limits_are_used_up(violation: Violation, text: str) -> None:
    assert violation_text(violation) == text
    assert text in " ".join(make(violations=(violation,)).render().split())


def test_check_returns_a_report_that_is_fine() -> None:
    """The twin."""
    report = make(exit_code=0)

    assert report.check() is report
    assert report.ok
    assert report.summary() == "finished"


def test_every_outcome_is_covered() -> None:
    """A new outcome needs a row above."""
    assert set(CHECKS) | {Outcome.OK} == set(Outcome)
    assert {str(outcome) for outcome in Outcome} == {
        "ok", "exit", "trap", "fuel", "timeout", "idle", "memory", "stack", "output", "denied", "cancelled", "crashed",
    }  # fmt: skip


def test_reports_cannot_be_changed() -> None:
    """A report is what it was when it was made."""
    with pytest.raises(AttributeError):
        FULL.outcome = Outcome.OK  # type: ignore[misc]
    with pytest.raises(AttributeError):
        FULL.usage.fuel = 0  # type: ignore[misc]


def test_report_names_module_and_policy() -> None:
    """Report names module and policy."""
    module = wat(HELLO)
    policy = Policy.preset("strict")

    report = Sandbox(policy).run(module)

    assert report.module == ModuleInfo(module.sha256, "<bytes>")
    assert report.policy == PolicyInfo(policy.digest, "strict")


def test_timings_say_whether_machine_code_was_at_hand() -> None:
    """The times are true, and add up."""
    module = wat('(module (func (export "f") (result i32) (i32.const 987123)))')
    box = Sandbox()

    first, second = box.call(module, "f"), box.call(module, "f")

    assert not first.timings.cache_hit
    assert first.timings.compile > 0
    assert (second.timings.cache_hit, second.timings.compile) == (True, 0.0)
    for timings in (first.timings, second.timings):
        parts = timings.compile + timings.instantiate + timings.run
        assert 0 < parts <= timings.total < parts + 1
    assert second.usage.wall_seconds == second.timings.run


def test_usage_never_repeats_across_runs() -> None:
    """Counters begin at zero in each run."""
    box = Sandbox()
    reports = [box.run(wat(HELLO)) for _ in range(3)]

    assert len({report.usage.fuel for report in reports}) == 1
    assert [report.usage.calls for report in reports] == [{"fd_write": 1}] * 3
    assert [report.violations for report in reports] == [()] * 3


def test_call_raises_where_run_reports() -> None:
    """`stockade.call` returns the value, or raises with the report."""
    module = wat(
        '(module (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))'
        ' (func (export "div") (param i32 i32) (result i32) (i32.div_s (local.get 0) (local.get 1))))'
    )

    assert stockade.call(module, "add", 5, 3) == 8
    with pytest.raises(GuestTrap) as caught:
        stockade.call(module, "div", 1, 0)
    assert caught.value.report.outcome is Outcome.TRAP


GOLDEN_ENDINGS = {
    "timeout": (
        make(
            Outcome.TIMEOUT,
            usage=Usage(wall_seconds=0.5004, cpu_seconds=0.49, memory_peak_bytes=1 << 20, stdout_bytes=12),
            violations=(
                Violation(
                    kind="timeout",
                    subject="limits.wall_time",
                    limit=0.5,
                    observed=0.5004,
                    action="stop",
                    field="limits.wall_time",
                ),
            ),
            limits=RunLimits(wall_time=0.5, memory=128 << 20, stdout=1 << 20),
            timings=Timings(instantiate=1e-5, run=0.5004, total=0.6, cache_hit=True),
            alerts=(Alert(limit="wall_time", threshold=0.8, utilization=0.81, used=0.405, allowed=0.5, at=0.405),),
        ),
        """\
    module  app.wasm  sha256 0123456789abcdef…
    policy  strict  fedcba9876543210…
 isolation  inprocess
   outcome  timeout - stopped: time limit reached
      time  run: 500.4 ms · instantiate: 10 µs
            compile: cached · CPU: 490.0 ms
      fuel  not metered
    limits  wall_time  500.4 ms of 500.0 ms   100%  ################
            memory      1.0 MiB of 128.0 MiB   <1%  #...............
            stdout         12 B of 1.0 MiB     <1%  #...............
    alerts  wall_time reached 80%: 81% at 405.0 ms
violations  timeout: ran for 500.4 ms, limits.wall_time allows 500.0 ms → stop""",
    ),
    "memory": (
        make(
            Outcome.MEMORY,
            usage=Usage(memory_peak_bytes=60 << 20, wall_seconds=0.01),
            violations=(
                Violation(
                    kind="memory",
                    subject="limits.memory",
                    limit=64 << 20,
                    observed=80 << 20,
                    call="memory.grow",
                    action="stop",
                    field="limits.memory",
                ),
            ),
            limits=RunLimits(memory=64 << 20),
            timings=Timings(instantiate=1e-5, run=0.01, total=0.02, cache_hit=True),
        ),
        """\
    module  app.wasm  sha256 0123456789abcdef…
    policy  strict  fedcba9876543210…
 isolation  inprocess
   outcome  memory - stopped: memory limit exceeded: memory.grow asked for 80.0
            MiB, limits.memory allows 64.0 MiB
      time  run: 10.0 ms · instantiate: 10 µs
            compile: cached · CPU: 0 µs
      fuel  not metered
    limits  wall_time   10.0 ms unlimited
            memory     60.0 MiB of 64.0 MiB   93%  ###############.
violations  memory: memory.grow asked for 80.0 MiB, limits.memory allows 64.0
            MiB → stop""",
    ),
    "session": (
        make(
            usage=Usage(calls={"random_get": 1}, random_bytes=300),
            limits=RunLimits(random_bytes=1000, calls=10),
            earlier=QuotaUse(calls=1, random_bytes=400),
            timings=Timings(cache_hit=True),
        ),
        """\
    module  app.wasm  sha256 0123456789abcdef…
    policy  strict  fedcba9876543210…
 isolation  inprocess
   outcome  ok - finished
      time  run: 0 µs · instantiate: 0 µs
            compile: cached · CPU: 0 µs
      fuel  not metered
WASI calls  1: random_get ×1
    limits  calls             2 of 10        20%  ###.............
            random_bytes  700 B of 1,000 B   70%  ###########.....""",
    ),
}


@pytest.mark.parametrize("name", GOLDEN_ENDINGS)
def test_reports_of_a_few_endings(name: str) -> None:
    """The exact text, with limits, alerts and violations; in a session, quotas with what earlier calls used."""
    report, golden = GOLDEN_ENDINGS[name]

    assert report.render() == golden
