"""How much a run may use."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from stockade.errors import PolicyError
from stockade.policy._fields import BYTES, COUNT, RATE, SECONDS, Part, Quantity

__all__ = ["MAX_MODULE_BYTES", "Limits"]

MAX_MODULE_BYTES = 1 << 30
"""The most bytes that any policy lets a module have."""

_MAX_SECONDS = 10 * 365 * 86_400.0
_MAX_FUEL = 2**63 - 1
_MAX_COUNT = 2**62
_MAX_RATE = 10**10  # what fits the guard's arithmetic in nanoseconds
_PAGE = 65_536

_Fuel = Annotated[int | None, Quantity(COUNT, 1, _MAX_FUEL, unlimited=True, what="units")]
_Refill = Annotated[int, Quantity(COUNT, 0, _MAX_FUEL, what="units")]
_Time = Annotated[float | None, Quantity(SECONDS, 0.001, _MAX_SECONDS, unlimited=True)]
_Bytes = Annotated[int | None, Quantity(BYTES, 0, _MAX_COUNT, unlimited=True)]
_Count = Annotated[int | None, Quantity(COUNT, 0, _MAX_COUNT, unlimited=True)]
_Speed = Annotated[int | None, Quantity(RATE, 1, _MAX_RATE, unlimited=True)]


class Limits(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much a run may use. None is unlimited, where a field allows it; in documents that is "unlimited".

    Attributes:
        fuel: Fuel units, about one for each instruction. Unlimited: not metered, which is faster.
        fuel_refill: Units that are added every `fuel_refill_interval`.
        fuel_refill_interval: Seconds between two refills.
        fuel_refill_max: The most units that may be in hand after a refill; at least `fuel`, where there are refills.
        wall_time: Seconds from the first instruction to the last, waits included. Unlimited: no deadline.
        idle_time: Seconds that a single wait in `poll_oneoff` may last; a longer one ends the run with outcome `idle`.
        cpu_percent: Share of one core that a busy guest may use.
        memory: Bytes that all linear memories and tables of the run may have together (8 for a table element).
        memory_growth: Pages of 64 KiB by which memories and tables may grow in a second; a second's worth may go at
            once.
        on_memory_denied: What refused growth does: `fail`, the guest gets -1 and goes on; `stop`, the run ends with
            outcome `memory`. A violation is reported either way.
        table_elements: Elements that all tables of the run may have together.
        stack: Bytes of stack for guest code.
        instances: Instances of the module in a run.
        memories: Linear memories that a module may declare; more than one need `features.multi_memory`.
        tables: Tables that a module may declare.
        module_size: Bytes that a module file may have.
        compile_time: Seconds that preparing and compiling a module may take in a process of its own.
        compile_memory: Bytes of memory that it may need there.
        compile_process: Which modules are compiled in a process of their own: `auto`, those over 64 KiB; `always`, all;
            `never`, none, which leaves compiling without limits of time and memory.
        stdout: Bytes of stdout that are kept, half of them for the beginning and half for the end.
        stderr: The same for stderr.
        open_files: Files and folders that may be open at a time, beside stdin, stdout, stderr and the mounts.
        files_created: Files, folders and links that may be created.
        file_size: Bytes that a file may reach by writing, seeking or setting its size.
        read_bytes: Bytes that may be read from files.
        write_bytes: Bytes that may be written to files.
        read_rate: Bytes that may be read in a second; a second's worth may go at once.
        write_rate: The same for writing.
        random_bytes: Random bytes that may be handed out.
        calls: WASI calls that may be made.
        call_rate: WASI calls that may be made in a second.
        on_rate: What an exceeded rate does: `wait`, the call waits for its turn; `refuse`, it fails with EAGAIN.
    """

    PATH: ClassVar = "limits"

    fuel: _Fuel = 5_000_000_000
    fuel_refill: _Refill = 0
    fuel_refill_interval: Annotated[float, Quantity(SECONDS, 0.001, _MAX_SECONDS)] = 1.0
    fuel_refill_max: _Refill = 0
    wall_time: _Time = 5.0
    idle_time: _Time = None
    cpu_percent: Annotated[int, Quantity(COUNT, 1, 100, what="percent")] = 100
    memory: Annotated[int, Quantity(BYTES, _PAGE, 4 << 30)] = 128 << 20
    memory_growth: Annotated[int | None, Quantity(COUNT, 1, _PAGE, unlimited=True, what="pages per second")] = None
    on_memory_denied: Literal["fail", "stop"] = "fail"
    table_elements: Annotated[int, Quantity(COUNT, 0, 10_000_000)] = 10_000
    stack: Annotated[int, Quantity(BYTES, 16 << 10, 64 << 20)] = 512 << 10
    instances: Annotated[int, Quantity(COUNT, 1, 1)] = 1
    memories: Annotated[int, Quantity(COUNT, 0, 100)] = 1
    tables: Annotated[int, Quantity(COUNT, 0, 100)] = 4
    module_size: Annotated[int, Quantity(BYTES, 8, MAX_MODULE_BYTES)] = 100 << 20
    compile_time: Annotated[float, Quantity(SECONDS, 0.1, 86_400)] = 60.0
    compile_memory: Annotated[int, Quantity(BYTES, 64 << 20, 1 << 40)] = 1 << 30
    compile_process: Literal["auto", "always", "never"] = "auto"
    stdout: Annotated[int, Quantity(BYTES, 0, 256 << 20)] = 1 << 20
    stderr: Annotated[int, Quantity(BYTES, 0, 256 << 20)] = 1 << 20
    open_files: Annotated[int, Quantity(COUNT, 0, 4096)] = 64
    files_created: _Count = 1_000
    file_size: _Bytes = 256 << 20
    read_bytes: _Bytes = None
    write_bytes: _Bytes = 256 << 20
    read_rate: _Speed = None
    write_rate: _Speed = None
    random_bytes: _Bytes = 64 << 20
    calls: _Count = None
    call_rate: Annotated[int | None, Quantity(COUNT, 1, _MAX_RATE, unlimited=True, what="calls per second")] = None
    on_rate: Literal["wait", "refuse"] = "wait"

    def __post_init__(self) -> None:
        Part.__post_init__(self)
        if not self.fuel_refill:
            if self.fuel_refill_max:
                raise PolicyError("limits.fuel_refill_max says nothing where fuel_refill is 0: leave it out")
        elif self.fuel is None:
            raise PolicyError("limits.fuel_refill says nothing where fuel is unlimited: leave it out")
        elif self.fuel_refill_max < self.fuel:
            raise PolicyError(
                f"limits.fuel_refill_max is {self.fuel_refill_max:,}: with refills it must be at least "
                f"limits.fuel, which is {self.fuel:,}"
            )
