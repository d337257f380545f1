"""How much of each limit a run has used: plain data and pure functions, in which no number is NaN or infinite.

A share is between 0 and 1, whatever a report says. A limit of nothing is used up by anything, and untouched by nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from stockade.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockade.report._model import Progress, Report

__all__ = ["LimitUse", "QuotaUse", "RunLimits", "check_share", "limits_used", "progress_used", "share_of"]

Unit: TypeAlias = Literal["units", "seconds", "bytes", "count", "percent", "pages/s", "bytes/s", "calls/s"]


class RunLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits that a run was held to, as numbers. They have the names of the policy's; None is unlimited.

    Attributes:
        fuel: Units that it began with, whichever of `limits.fuel` and `limits.fuel_time` decided that.
        wall_time: Seconds.
        idle_time: Seconds of a single wait.
        cpu_percent: Share of one core; None where that is all of it.
        memory: Bytes of memories and tables.
        memory_growth: Pages of 64 KiB in a second.
        table_elements: Elements of all tables.
        stack: Bytes.
        stdout: Bytes that are kept.
        stderr: Bytes that are kept.
        open_files: Files and folders open at a time.
        files_created: Files, folders and links.
        file_size: Bytes of any one file.
        read_bytes: Bytes read from files.
        write_bytes: Bytes written to files.
        read_rate: Bytes in a second.
        write_rate: Bytes in a second.
        random_bytes: Random bytes.
        calls: WASI calls and calls of host functions.
        call_rate: The same in a second.
    """

    fuel: int | None = None
    wall_time: float | None = None
    idle_time: float | None = None
    cpu_percent: int | None = None
    memory: int | None = None
    memory_growth: int | None = None
    table_elements: int | None = None
    stack: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    open_files: int | None = None
    files_created: int | None = None
    file_size: int | None = None
    read_bytes: int | None = None
    write_bytes: int | None = None
    read_rate: int | None = None
    write_rate: int | None = None
    random_bytes: int | None = None
    calls: int | None = None
    call_rate: int | None = None


class QuotaUse(msgspec.Struct, frozen=True, kw_only=True):
    """What earlier calls of a session used of the limits that hold for all its calls together; nothing for a run.

    Attributes:
        calls: WASI calls and calls of host functions.
        read_bytes: Bytes read from files.
        written_bytes: Bytes written to files.
        random_bytes: Random bytes.
        files_created: Files, folders and links.
    """

    calls: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    random_bytes: int = 0
    files_created: int = 0


UNITS: Final[Mapping[str, Unit]] = {
    "wall_time": "seconds",
    "cpu_percent": "percent",
    "fuel": "units",
    "memory": "bytes",
    "table_elements": "count",
    "memory_growth": "pages/s",
    "stack": "bytes",
    "idle_time": "seconds",
    "stdout": "bytes",
    "stderr": "bytes",
    "calls": "count",
    "call_rate": "calls/s",
    "open_files": "count",
    "files_created": "count",
    "file_size": "bytes",
    "read_bytes": "bytes",
    "write_bytes": "bytes",
    "read_rate": "bytes/s",
    "write_rate": "bytes/s",
    "random_bytes": "bytes",
}
"""The limits in the order in which they are shown, with what their numbers count."""

_KINDS: Final = {"timeout": "wall_time", "idle": "idle_time", "table": "table_elements", "value": "stdout"}
"""Kinds of violations that are not called as the limits that they are about."""

_PAGE_BYTES: Final = 65_536


class LimitUse(msgspec.Struct, frozen=True, kw_only=True):
    """One limit, and what a run used of it.

    Attributes:
        name: The limit, as the policy calls it: `memory` is `limits.memory`.
        unit: What both numbers count: `units` of fuel, `seconds`, `bytes`, `count`, `percent` of a core, or something a
            second.
        used: What was used; None where nobody measures that: of `stack` and `file_size` it is known only that they were
            exceeded.
        limit: What is allowed; None where it is unlimited.
        utilization: The used part of it, from 0 to 1; None where it is unlimited, or not measured and not exceeded.
        exceeded: Whether the run asked for more, and was refused, stopped, or let through where the policy audits.
    """

    name: str
    unit: Unit
    used: float | None = None
    limit: float | None = None
    utilization: float | None = None
    exceeded: bool = False


def share_of(used: float | None, limit: float | None) -> float | None:
    """Returns the used part of a limit, from 0 to 1; None where there is no limit, or nothing is known.

    Args:
        used: What was used.
        limit: What is allowed.
    """
    if used is None or limit is None or math.isnan(limit) or limit == math.inf:
        return None
    if math.isnan(used) or used <= 0:
        return 0.0
    return 1.0 if used >= limit else used / limit


def check_share(value: object, what: str) -> float:
    """Returns a share of a limit that a caller gives.

    Args:
        value: What was given.
        what: What it is called.

    Raises:
        UsageError: It is no number above 0 and up to 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise UsageError(f"{what} is {value!r}: it must be a share of a limit, above 0 and up to 1, such as 0.8")
    return float(value)


def limits_used(report: Report) -> tuple[LimitUse, ...]:
    """Returns each limit with what a run used of it; one that is unlimited, too."""
    usage, limits, earlier, fuel = report.usage, report.limits, report.earlier, report.fuel
    seconds = usage.wall_seconds
    calls = sum(usage.calls.values()) + usage.host_calls
    refused = sum(
        violation.count
        for violation in report.violations
        if violation.kind in ("calls", "call_rate") and violation.action == "deny"
    )
    used: dict[str, float | None] = {
        "fuel": usage.fuel,
        "wall_time": seconds,
        "idle_time": usage.idle_longest_seconds,
        "cpu_percent": 100 * usage.cpu_seconds / seconds if seconds > 0 else 0.0,
        "memory": usage.memory_peak_bytes,
        "memory_growth": _pace(usage.memory_grown_bytes / _PAGE_BYTES, seconds),
        "table_elements": usage.table_elements,
        "stdout": usage.stdout_bytes,
        "stderr": usage.stderr_bytes,
        "open_files": usage.files_open_peak,
        "files_created": earlier.files_created + usage.files_created,
        "read_bytes": earlier.read_bytes + usage.read_bytes,
        "write_bytes": earlier.written_bytes + usage.written_bytes,
        "read_rate": _pace(usage.read_bytes, seconds),
        "write_rate": _pace(usage.written_bytes, seconds),
        "random_bytes": earlier.random_bytes + usage.random_bytes,
        # A call that is refused for want of calls takes none.
        "calls": earlier.calls + max(0, calls - refused),
        "call_rate": _pace(max(0, calls - refused), seconds),
    }
    exceeded = {_KINDS.get(violation.kind, violation.kind) for violation in report.violations}
    allowed = dict(_numbers(limits))
    if fuel is not None and limits.fuel is not None:
        allowed["fuel"] = fuel.initial + fuel.refilled
    return tuple(_use(name, used.get(name), allowed[name], exceeded=name in exceeded) for name in UNITS)


def progress_used(progress: Progress) -> tuple[LimitUse, ...]:
    """Returns each limit of which it is known while a run is under way what it has used."""
    calls = progress.calls
    used: dict[str, float | None] = {
        "fuel": progress.fuel,
        "wall_time": progress.seconds,
        "memory": progress.memory_bytes,
        "table_elements": progress.table_elements,
        "stdout": progress.stdout_bytes,
        "stderr": progress.stderr_bytes,
        "open_files": progress.open_files,
        "files_created": progress.earlier.files_created + progress.files_created,
        "read_bytes": progress.earlier.read_bytes + progress.read_bytes,
        "write_bytes": progress.earlier.written_bytes + progress.written_bytes,
        "random_bytes": progress.earlier.random_bytes + progress.random_bytes,
        "calls": progress.earlier.calls + calls,
    }
    allowed = _numbers(progress.limits)
    return tuple(_use(name, used[name], allowed[name]) for name in UNITS if name in used)


def _numbers(limits: RunLimits) -> Mapping[str, float | None]:
    return {name: getattr(limits, name) for name in RunLimits.__struct_fields__}


def _pace(amount: float, seconds: float) -> float:
    """What went in a second, where a second's worth may go at once: never more than the rate that it was held to."""
    return amount / (1 + max(0.0, seconds))


def _use(name: str, used: float | None, limit: float | None, *, exceeded: bool = False) -> LimitUse:
    share = share_of(used, limit)
    if exceeded and used is None and limit is not None:
        share = 1.0
    return LimitUse(name=name, unit=UNITS[name], used=used, limit=limit, utilization=share, exceeded=exceeded)
