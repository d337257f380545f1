"""What the guard counted, in a report's words: at the end of a run, and while it is under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.guard import HOST_CALLS
from stockade.report import Progress, Usage

if TYPE_CHECKING:
    from stockade.execution._plan import Plan
    from stockade.guard import StateReading

__all__ = ["progress_of", "usage_of"]


def progress_of(reading: StateReading | None, plan: Plan, fuel: int | None, seconds: float) -> Progress:
    """Tells how far a run is.

    Args:
        reading: The guard's counters; None for a module without a guard.
        plan: What runs.
        fuel: Units that are known to be consumed; None where it is not metered.
        seconds: Since it began.
    """
    if reading is None:
        return Progress(seconds=seconds, fuel=fuel, memory_bytes=plan.program.woven.initial_memory_bytes)
    number = reading.number
    return Progress(
        seconds=seconds,
        fuel=fuel,
        idle_seconds=number.idle / 1e9,
        memory_bytes=number.memory_used,
        stdout_bytes=number.stdout_total,
        stderr_bytes=number.stderr_total,
        calls=sum(reading.calls.values()),
        open_files=number.open_now,
    )


def usage_of(reading: StateReading | None, plan: Plan, fuel: int | None, wall: float, cpu: float) -> Usage:
    """Tells what a run used.

    Args:
        reading: The guard's counters; None for a module without a guard.
        plan: What ran.
        fuel: Units that it consumed; None where it was not metered.
        wall: Seconds from the first instruction to the last.
        cpu: Seconds of processor time.
    """
    if reading is None:
        size = plan.program.woven.initial_memory_bytes
        return Usage(
            fuel=fuel,
            wall_seconds=wall,
            cpu_seconds=cpu,
            memory_bytes=size,
            memory_peak_bytes=size,
            table_elements=plan.program.woven.initial_table_elements,
        )
    number = reading.number
    memory = number.memory_used
    if not (reading.has_files or number.open_now or HOST_CALLS in reading.calls):
        # What most runs do not have is left out: to say it takes longer than the guest may have run.
        return Usage(
            fuel=fuel,
            wall_seconds=wall,
            cpu_seconds=cpu,
            memory_bytes=memory,
            memory_peak_bytes=memory,
            table_elements=number.table_used,
            calls=reading.calls,
            denied=reading.denied,
            stdout_bytes=number.stdout_total,
            stderr_bytes=number.stderr_total,
        )
    host_calls = reading.calls.pop(HOST_CALLS, 0)
    if host_calls:
        reading.denied.pop(HOST_CALLS, None)
    return Usage(
        fuel=fuel,
        wall_seconds=wall,
        cpu_seconds=cpu,
        idle_seconds=number.idle / 1e9,
        memory_bytes=memory,
        memory_peak_bytes=memory,
        table_elements=number.table_used,
        host_calls=host_calls,
        calls=reading.calls,
        denied=reading.denied,
        read_bytes=number.read,
        written_bytes=number.written,
        stdout_bytes=number.stdout_total,
        stderr_bytes=number.stderr_total,
        files_opened=number.opened,
        files_open_peak=max(number.open_peak, number.open_now),
        files_created=number.created,
        files_deleted=number.deleted,
        random_bytes=number.random,
    )
