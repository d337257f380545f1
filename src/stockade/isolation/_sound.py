"""What a worker says of its run is looked at before it is believed: it may be the guest who speaks.

A worker can lie about its own run, as far as it makes sense: no number is infinite, no text steers a terminal or floods
a log, nothing is larger than the policy lets it be, and what the host knows itself is not asked.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import msgspec

from stockade._wasi import WASI, WASI_BY_NAME
from stockade.engine import INTEGER_BITS
from stockade.execution import StringCall
from stockade.guard import entries_in, traced_numbers
from stockade.isolation._frames import Garbled
from stockade.report import FuelStatistics, Outcome, QuotaUse, Report, Timings, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.engine import Number
    from stockade.execution import Call, Isolation, Plan
    from stockade.guard import TraceEntry
    from stockade.isolation._messages import Finished, Returned
    from stockade.report import PolicyInfo

__all__ = [
    "check_numbers",
    "check_value",
    "check_values",
    "most_output_bytes",
    "returned_report",
    "sound_entries",
    "sound_report",
]

_MOST_TEXT: Final = 4_000
"""Characters of any text in a report, output and values left out."""

_MOST_ENTRIES: Final = 4_096
"""Violations, frames, calls and the like in a report, each."""

_MOST_NUMBER: Final = 1 << 64

_KNOWN_HERE: Final = frozenset({"stdout", "stderr", "value", "module", "policy", "isolation", "limits", "timings"})
"""Fields of a report that are not taken as they are told."""

_CALLS: Final = frozenset(WASI_BY_NAME)
"""The calls that a guest that has returned, and of which there is little to tell, can have made."""

_NOTHING_EARLIER: Final = QuotaUse()

_CLOCK_SECONDS: Final = 1.0
"""How much later than the host a worker may say that it is."""


def most_output_bytes(plan: Plan) -> int:
    """Returns how many bytes of output and value a report on a run may have.

    Args:
        plan: What runs.
    """
    limits = plan.limits
    return limits.stdout * 2 + limits.stderr


def check_numbers(value: object) -> None:
    """Checks that numbers are finite, texts are short and harmless, and lists are.

    Args:
        value: A struct, or what is in one.

    Raises:
        Garbled: They are not.
    """
    kind = type(value)
    if kind is int:
        if not 0 <= value < _MOST_NUMBER:  # type: ignore[operator]
            raise Garbled("a number in it is negative, or too large")
    elif value is None or kind is bool:
        pass
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise Garbled("a number in it is infinite, or none")
    elif isinstance(value, str):
        if len(value) > _MOST_TEXT or not value.isprintable():
            raise Garbled("a text in it is too long, or not to be shown")
    elif isinstance(value, bytes):
        if value:
            raise Garbled("there are bytes in it that nobody asked for")
    elif isinstance(value, msgspec.Struct):
        for entry in msgspec.structs.astuple(value):
            check_numbers(entry)
    elif isinstance(value, dict | tuple | list):
        if len(value) > _MOST_ENTRIES:
            raise Garbled("a list in it is too long")
        for entry in value:
            check_numbers(entry)
            if isinstance(value, dict):
                check_numbers(value[entry])
    else:
        raise Garbled(f"there is {kind.__name__} in it")


def sound_report(
    finished: Finished,
    blob: bytes,
    plan: Plan,
    policy: PolicyInfo,
    isolation: Isolation,
    seconds: float,
    timings: Timings,
    *,
    is_within: bool = False,
) -> Report:
    """Returns the report that a worker has made, if it can be.

    Args:
        finished: What it says.
        blob: What stands behind that.
        plan: What ran.
        policy: The policy, as reports say it.
        isolation: Where it ran.
        seconds: How long it has run, as the host knows it.
        timings: Where the time went, likewise.
        is_within: Whether it is on a call within one of a function of the embedder's, which has no budget of its own.

    Raises:
        Garbled: It cannot.
    """
    told, limits = finished.report, plan.limits
    if finished.stdout > limits.stdout or finished.stderr > limits.stderr or finished.value > limits.stdout:
        raise Garbled("it has more output than the policy allows")
    if finished.stdout + finished.stderr + finished.value != len(blob) or told.stdout or told.stderr:
        raise Garbled("its output is of another length")
    is_traced = plan.trace is not None and not is_within
    if told.alerts or told.samples or told.trace_calls or told.findings or told.quarantine:
        raise Garbled("it tells what nobody asked for")
    if told.trace_lost and not is_traced:
        raise Garbled("it tells what nobody asked for")
    behind = memoryview(blob)
    stdout, stderr = bytes(behind[: finished.stdout]), bytes(behind[finished.stdout :][: finished.stderr])
    value = _value(finished, bytes(behind[finished.stdout + finished.stderr :]))
    for field in told.__struct_fields__:
        if field not in _KNOWN_HERE:
            check_numbers(getattr(told, field))
    if told.usage.wall_seconds > seconds + _CLOCK_SECONDS:
        raise Garbled("it has run for longer than it was there")
    _check_ending(told, plan, is_within=is_within)
    return msgspec.structs.replace(
        told,
        stdout=stdout,
        stderr=stderr,
        value=value,
        module=plan.info,
        policy=policy,
        isolation=isolation,
        limits=plan.run_limits,
        timings=timings,
    )


def returned_report(
    told: Returned,
    blob: bytes,
    call: Call,
    plan: Plan,
    policy: PolicyInfo,
    isolation: Isolation,
    seconds: float,
    timings: Timings,
    *,
    earlier: QuotaUse = _NOTHING_EARLIER,
) -> Report:
    """Returns the report on a run of which a worker says that its guest has returned, if that can be.

    Args:
        told: What it says.
        blob: What stands behind that.
        call: The call.
        plan: What ran.
        policy: The policy, as reports say it.
        isolation: Where it ran.
        seconds: How long it has run, as the host knows it.
        timings: Where the time went, likewise.
        earlier: What earlier calls have used.

    Raises:
        Garbled: It cannot be.
    """
    limits, fuel, code, calls, wall = plan.limits, told.fuel, told.exit_code, told.calls, told.wall_seconds
    end, elements, memory_bytes = told.stdout, told.table_elements, told.memory_bytes
    if end > limits.stdout or told.stderr > limits.stderr:
        raise Garbled("it has more output than the policy allows")
    if end + told.stderr != len(blob):
        raise Garbled("its output is of another length")
    if wall > seconds + _CLOCK_SECONDS:
        raise Garbled("it has run for longer than it was there")
    if not _CALLS.issuperset(calls):
        raise Garbled("it has made a call that there is not")
    if (fuel is None) != (plan.fuel is None):
        raise Garbled("its ending contradicts itself")
    value: Any = None
    if code is None:
        values = check_values(told.values, call.entry.type.results)
        value = values[0] if len(values) == 1 else values or None
    elif told.values:
        raise Garbled("it has two values")
    return Report(
        outcome=Outcome.EXIT if code else Outcome.OK,
        exit_code=code,
        value=value,
        stdout=blob[:end],
        stderr=blob[end:],
        usage=Usage(
            fuel=None if fuel is None else fuel[0],
            wall_seconds=wall,
            cpu_seconds=told.cpu_seconds,
            memory_bytes=memory_bytes,
            memory_peak_bytes=memory_bytes,
            memory_grown_bytes=told.grown_bytes,
            table_elements=elements,
            calls=calls,
            stdout_bytes=end,
            stderr_bytes=told.stderr,
        ),
        fuel=None if fuel is None else _statistics(fuel, plan, wall),
        module=plan.info,
        policy=policy,
        isolation=isolation,
        timings=timings,
        limits=plan.run_limits,
        earlier=earlier,
    )


def _statistics(fuel: tuple[int, int, bool], plan: Plan, seconds: float) -> FuelStatistics:
    consumed, left, exact = fuel
    if plan.fuel is None or consumed + left != plan.fuel:
        raise Garbled("it has used other fuel than it was given")
    return FuelStatistics(plan.fuel, consumed, left, exact, seconds, consumed / seconds if seconds > 0 else 0.0)


def sound_entries(data: bytes, plan: Plan, seconds: float) -> list[TraceEntry]:
    """Returns entries of the trace that a worker has handed over, if the guard can have written them.

    What they say in numbers and bytes may be anything: it is told as what the guest has done, and made safe to show.

    Args:
        data: The entries.
        plan: What runs.
        seconds: How long the guest has been there, as the host knows it.

    Raises:
        Garbled: It cannot.
    """
    ring = plan.ring
    if ring is None:
        raise Garbled("it tells of calls that nobody asked for")
    if not data or len(data) % ring.slot_bytes:
        raise Garbled("what it tells of calls is no number of entries")
    entries = entries_in(data, ring.slot_bytes, ring.string_bytes)
    numbers, latest = traced_numbers(ring), (seconds + _CLOCK_SECONDS) * 1e9
    for entry in entries:
        if entry.number not in numbers:
            raise Garbled("it tells of a call that is not traced")
        if entry.number >= len(WASI) and (entry.answers[1] or 0) >= len(plan.functions):
            raise Garbled("it tells of a call of a function that there is not")
        if max(entry.began, entry.ended or 0) > latest:
            raise Garbled("it tells of a call that is yet to come")
    return entries


def check_values(values: Sequence[object], types: Sequence[str]) -> list[Number]:
    """Returns what a worker says that a function has returned, if it can have.

    Args:
        values: That.
        types: The types of its results.

    Raises:
        Garbled: It cannot.
    """
    if len(values) != len(types):
        raise Garbled("a function has returned another number of values")
    found: list[Number] = []
    for value, type_ in zip(values, types, strict=True):
        bits = INTEGER_BITS.get(type_)
        if bits is not None:
            fits = type(value) is int and -(1 << bits - 1) <= value < 1 << bits
        else:
            fits = _is_vector(value) if type_ == "v128" else type(value) is float
        if not fits or not isinstance(value, int | float | bytes):
            raise Garbled("a function has returned a value of another type")
        found.append(value)
    return found


def check_value(value: object, call: Call) -> None:
    """Checks that a call can have a value that a worker says it has: that of its type, or what was asked for.

    Args:
        value: The value.
        call: The call.

    Raises:
        Garbled: It cannot.
    """
    if value is None:
        return
    exchange = call.exchange
    returns = exchange.returns if isinstance(exchange, StringCall) else None
    if returns is not None:
        if type(value) is not (str if returns == "text" else bytes):
            raise Garbled("its value is not what was asked for")
    elif exchange is not None and not isinstance(exchange, StringCall):
        raise Garbled("it has a value where the host makes one")
    else:
        check_values(value if isinstance(value, list) else [value], call.entry.type.results)


def _check_ending(report: Report, plan: Plan, *, is_within: bool) -> None:
    code = report.exit_code
    if (
        (report.outcome is Outcome.EXIT) != bool(code)
        or (code is not None and not 0 <= code < 1 << 32)
        or (code is not None and report.outcome not in (Outcome.EXIT, Outcome.OK))
        or ((report.fuel is None or report.usage.fuel is None) and plan.fuel is not None and not is_within)
        or (report.outcome in (Outcome.TRAP, Outcome.CRASHED))
        < (report.trap is not None and report.outcome is Outcome.OK)
    ):
        raise Garbled("its ending contradicts itself")


def _value(finished: Finished, behind: bytes) -> object:
    value = finished.report.value
    if finished.kind:
        if value is not None:
            raise Garbled("it has two values")
        if finished.kind != "text":
            return behind
        try:
            return behind.decode()
        except UnicodeDecodeError:
            raise Garbled("its value is no text") from None
    if finished.value:
        raise Garbled("its value is of no kind")
    for entry in value if isinstance(value, list) else (value,):
        if entry is not None and not isinstance(entry, bool | int | float) and not _is_vector(entry):
            raise Garbled("its value is none that a function returns")
    if isinstance(value, list) and len(value) > _MOST_ENTRIES:
        raise Garbled("its value is too long")
    return value


def _is_vector(entry: object) -> bool:
    return isinstance(entry, bytes) and len(entry) == 16
