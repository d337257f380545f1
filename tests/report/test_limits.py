"""How much of each limit a run used: shares, pressure, and limits of nothing.

Holds P-REPORT-3.
"""

from __future__ import annotations

import json
import math
from datetime import timedelta

import hypothesis
import hypothesis.strategies as st
import msgspec
import pytest

import stockade
from stockade import Limits, Outcome, Policy, Report, Sandbox, Usage, Violation
from stockade.errors import PolicyError, UsageError
from stockade.report import FuelStatistics, ModuleInfo, PolicyInfo, Progress, QuotaUse, RunLimits
from tests.conftest import HELLO, wat

NUMBERS = st.one_of(st.integers(-5, 2**64), st.floats(allow_nan=True, allow_infinity=True))


def make(limits: RunLimits, usage: Usage = Usage(), **fields: object) -> Report:  # noqa: B008 - it is frozen
    """A report with these limits."""
    return Report(
        outcome=Outcome.OK,
        module=ModuleInfo("0" * 64, "app.wasm"),
        policy=PolicyInfo("0" * 64, "strict"),
        limits=limits,
        usage=usage,
        **fields,  # type: ignore[arg-type]
    )


def test_every_limit_of_the_policy_that_holds_for_a_run_is_told() -> None:
    """The names are the policy's. What is left out says how a limit works, or is for the module or for requests."""
    left_out = {name for name in Limits.__struct_fields__ if name not in RunLimits.__struct_fields__}

    assert set(RunLimits.__struct_fields__) <= set(Limits.__struct_fields__)
    assert left_out == {
        *("fuel_refill", "fuel_refill_interval", "fuel_refill_max", "fuel_time", "on_memory_denied", "on_rate"),
        *("instances", "memories", "tables", "module_size", "compile_time", "compile_memory", "compile_process"),
        # Most runs make no requests: what they use is in `usage`, and what they are refused among the violations.
        *("connections", "requests", "request_time", "sent_bytes", "received_bytes", "network_rate"),
    }


@pytest.mark.parametrize(
    ("used", "limit", "share"),
    [
        (0, 100, 0.0),
        (50, 100, 0.5),
        (100, 100, 1.0),
        (150, 100, 1.0),
        (0, 0, 0.0),
        (1, 0, 1.0),
        (-1, 100, 0.0),
        (math.nan, 100, 0.0),
        (math.inf, 100, 1.0),
        (5, -1, 1.0),
    ],
)
def test_a_share_is_between_nothing_and_all(used: float, limit: float, share: float) -> None:
    """Also of a limit of nothing, which divides nothing by itself."""
    report = make(RunLimits(memory=limit), Usage(memory_peak_bytes=used))  # type: ignore[arg-type]

    assert report.utilization == {"memory": share}


@pytest.mark.parametrize("limit", [None, math.nan, math.inf])
def test_what_is_unlimited_has_no_share(limit: float | None) -> None:
    """Not even of everything: it is left out."""
    report = make(RunLimits(memory=limit), Usage(memory_peak_bytes=1 << 40))  # type: ignore[arg-type]

    assert report.utilization == {}
    assert not report.has_pressure(0.000001)


@hypothesis.given(limits=st.dictionaries(st.sampled_from(RunLimits.__struct_fields__), NUMBERS), numbers=st.data())
def test_no_share_is_ever_out_of_range(limits: dict[str, float], numbers: st.DataObject) -> None:
    """Whatever the numbers are, also in JSON, which knows no NaN."""
    fields = [name for name in Usage.__struct_fields__ if name not in ("calls", "denied")]
    usage = Usage(**{name: numbers.draw(NUMBERS) for name in numbers.draw(st.sets(st.sampled_from(fields)))})
    report = make(RunLimits(**limits), usage)  # type: ignore[arg-type]

    shares = report.utilization
    assert all(0 <= share <= 1 for share in shares.values())
    assert report.has_pressure(1.0) is (1.0 in shares.values())
    document = json.loads(report.to_json(), parse_constant=pytest.fail)
    assert document["utilization"] == shares
    report.render()


def test_a_report_is_80_columns_wide() -> None:
    """Also with the largest limits that a policy can have, and as much used."""
    most = 2**62
    limits = dict.fromkeys(RunLimits.__struct_fields__, most) | {"wall_time": 315e6, "idle_time": 315e6, "fuel": 2**63}
    numbers = [name for name in Usage.__struct_fields__ if name not in ("calls", "denied")]
    usage = Usage(**dict.fromkeys(numbers, most) | {"wall_seconds": 315e6}, calls={"fd_write": most})  # type: ignore[arg-type]

    lines = make(RunLimits(**limits), usage).render().splitlines()

    assert len(lines) > 20
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("limit", "usage"),
    [
        ("fuel", Usage(fuel=50)),
        ("wall_time", Usage(wall_seconds=50)),
        ("idle_time", Usage(idle_longest_seconds=50)),
        ("cpu_percent", Usage(cpu_seconds=1, wall_seconds=2)),
        ("memory", Usage(memory_peak_bytes=50)),
        ("table_elements", Usage(table_elements=50)),
        ("stdout", Usage(stdout_bytes=50)),
        ("stderr", Usage(stderr_bytes=50)),
        ("open_files", Usage(files_open_peak=50)),
        ("files_created", Usage(files_created=50)),
        ("read_bytes", Usage(read_bytes=50)),
        ("write_bytes", Usage(written_bytes=50)),
        ("random_bytes", Usage(random_bytes=50)),
        ("calls", Usage(calls={"fd_write": 20, "fd_read": 10}, host_calls=20)),
        # A second's worth may go at once, so that 100 in one second is half of what is allowed then.
        ("read_rate", Usage(read_bytes=100, wall_seconds=1)),
        ("write_rate", Usage(written_bytes=100, wall_seconds=1)),
        ("call_rate", Usage(calls={"fd_write": 100}, wall_seconds=1)),
        ("memory_growth", Usage(memory_grown_bytes=100 << 16, wall_seconds=1)),
    ],
)
def test_each_limit_is_held_against_what_it_limits(limit: str, usage: Usage) -> None:
    """And against nothing else."""
    assert make(RunLimits(**{limit: 100}), usage).utilization == {limit: 0.5}
    assert make(RunLimits(**{limit: 100}), Usage(fuel=0)).utilization == {limit: 0.0}


def test_every_limit_is_tried_above() -> None:
    """But for two of whose use nothing is known before it is too much."""
    mark = test_each_limit_is_held_against_what_it_limits.pytestmark[0]  # type: ignore[attr-defined]

    assert {limit for limit, _ in mark.args[1]} == {*RunLimits.__struct_fields__} - {"stack", "file_size"}


@pytest.mark.parametrize("limit", ["stack", "file_size"])
def test_what_is_not_measured_is_known_when_it_was_too_much(limit: str) -> None:
    """Before that it is left out, not told as nothing."""
    violation = Violation(kind=limit, subject=f"limits.{limit}", limit=100, action="stop", field=f"limits.{limit}")

    assert make(RunLimits(**{limit: 100})).utilization == {}
    assert make(RunLimits(**{limit: 100}), violations=(violation,)).utilization == {limit: 1.0}


def test_refills_are_part_of_what_there_was() -> None:
    """The budget is what a run was given in all."""
    fuel = FuelStatistics(100, 150, 50, True, 1.0, 150.0, refilled=100, refills=1)

    assert make(RunLimits(fuel=100), Usage(fuel=150), fuel=fuel).utilization == {"fuel": 0.75}


def test_calls_that_were_refused_for_want_of_calls_take_none() -> None:
    """A guest that asks on and on uses up no more than there is."""
    refused = Violation(kind="calls", subject="fd_write", call="fd_write", limit=100, observed=101, count=60)
    report = make(RunLimits(calls=200), Usage(calls={"fd_write": 160}), violations=(refused,))

    assert report.utilization == {"calls": 0.5}
    assert report.has_pressure(1.0), "it was refused more"


def test_pressure_is_a_share_or_being_refused() -> None:
    """Memory that was refused is pressure, however little the guest came to have."""
    half = make(RunLimits(memory=100), Usage(memory_peak_bytes=50))
    refused = Violation(kind="memory", subject="limits.memory", limit=100, observed=10_000, field="limits.memory")

    assert half.has_pressure(0.5)
    assert not half.has_pressure(0.51)
    assert not half.has_pressure()
    assert msgspec.structs.replace(half, violations=(refused,)).has_pressure()


@pytest.mark.parametrize("threshold", [0, -1, 1.01, math.nan, math.inf, True, "0.5", None])
def test_a_threshold_is_a_share(threshold: object) -> None:
    """What could never be reached, or always is, is a mistake."""
    with pytest.raises(UsageError, match=r"threshold is .*: it must be a share of a limit, above 0 and up to 1"):
        make(RunLimits()).has_pressure(threshold)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, -math.inf, 0, True, "NaN", timedelta(0)])
def test_no_policy_has_a_limit_that_is_no_number(value: object) -> None:
    """NaN and infinities, negative and zero times: they never come as far as a report."""
    with pytest.raises(PolicyError, match="wall_time"):
        Policy().replace(wall_time=value)  # type: ignore[arg-type]


def test_a_real_run_tells_its_limits() -> None:
    """Numbers are those of the policy, and of the guest."""
    with Sandbox(Policy().replace(wall_time=2, fuel=10_000, open_files=0)) as box:
        report = box.run(wat(HELLO))

    assert (report.limits.wall_time, report.limits.fuel, report.limits.open_files) == (2, 10_000, 0)
    assert report.limits.read_bytes is None
    assert report.limits.cpu_percent is None, "a whole core is no limit"
    shares = report.utilization
    assert shares["memory"] == 65_536 / (128 << 20)
    assert shares["fuel"] == report.usage.fuel / 10_000  # type: ignore[operator]
    assert shares["open_files"] == 0
    assert 0 < shares["wall_time"] < 1
    assert "read_bytes" not in shares


GROWER = """(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "random") (param i32) (result i32) (call $random (i32.const 0) (local.get 0))))"""


def test_quotas_of_a_session_count_its_earlier_calls() -> None:
    """What holds for all calls together is told as that; memory that grew before did not grow now."""
    with Sandbox(Policy().replace(random_bytes=1000, calls=10)) as box, box.open(wat(GROWER)) as session:
        first = session.call("random", 400)
        grown = session.call("grow", 2)
        second = session.call("random", 300)

    assert first.earlier == QuotaUse()
    assert second.earlier == QuotaUse(calls=1, random_bytes=400)
    assert (first.utilization["random_bytes"], second.utilization["random_bytes"]) == (0.4, 0.7)
    assert (first.utilization["calls"], second.utilization["calls"]) == (0.1, 0.2)
    assert (grown.usage.memory_grown_bytes, second.usage.memory_grown_bytes) == (2 << 16, 0)
    assert second.usage.memory_bytes == 3 << 16


def test_the_quota_of_a_session_is_used_up_when_it_is_told_so() -> None:
    """Exactly what is left is given, and one byte more is refused."""
    with Sandbox(Policy().replace(random_bytes=1000)) as box, box.open(wat(GROWER)) as session:
        session.call("random", 400)
        rest = session.call("random", 600)
        refused = session.call("random", 1)

    assert (rest.value, rest.utilization["random_bytes"], rest.violations) == (0, 1.0, ())
    assert refused.value != 0
    assert refused.utilization["random_bytes"] == 1.0
    assert [violation.kind for violation in refused.violations] == ["random_bytes"]


def test_a_run_that_took_no_time_has_shares() -> None:
    """Nothing is divided by its seconds."""
    report = make(
        RunLimits(wall_time=1, cpu_percent=50, call_rate=10, memory_growth=1, read_rate=1, write_rate=1),
        Usage(wall_seconds=0.0, cpu_seconds=0.0),
    )

    assert set(report.utilization.values()) == {0.0}


def test_progress_has_shares_too() -> None:
    """While a run is under way, of what is known then."""
    progress = Progress(seconds=1.0, memory_bytes=32, limits=RunLimits(memory=64, wall_time=4.0, stack=100))

    assert progress.utilization == {"memory": 0.5, "wall_time": 0.25}
    assert {use.name for use in progress.limits_used} <= set(RunLimits.__struct_fields__)


def test_an_estimate_of_fuel_is_told_in_units() -> None:
    """A budget in time is one in units, when it is used."""
    with Sandbox(Policy().replace(fuel_time="2s")) as box:
        report = box.run(wat(HELLO))

    assert report.fuel is not None
    assert report.limits.fuel == report.fuel.initial
    assert report.utilization["fuel"] == report.fuel.utilization


def test_every_violation_of_a_limit_is_pressure() -> None:
    """Each is found by its kind under the name of its limit."""
    kinds = {
        *("memory", "memory_growth", "table", "fuel", "timeout", "stack", "idle", "calls", "call_rate", "open_files"),
        *(
            "files_created",
            "file_size",
            "read_bytes",
            "write_bytes",
            "read_rate",
            "write_rate",
            "random_bytes",
            "value",
        ),
    }
    for kind in kinds:
        report = make(RunLimits(), violations=(Violation(kind=kind, subject="x"),))
        assert [use.name for use in report.limits_used if use.exceeded], kind
        assert report.has_pressure(1.0), kind

    denied = make(RunLimits(), violations=(Violation(kind="call", subject="sock_send"),))
    assert not denied.has_pressure(1.0), "what is forbidden is no limit"


def test_limits_used_is_public() -> None:
    """Its parts are in the room of reports."""
    use = stockade.Sandbox().run(wat(HELLO)).limits_used[0]

    assert (use.name, use.unit, use.limit) == ("wall_time", "seconds", 5.0)
