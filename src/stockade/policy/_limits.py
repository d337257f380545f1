"""How much a run may use."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec

from stockade.errors import PolicyError
from stockade.policy._fields import ABOUT_SECONDS, BYTES, COUNT, RATE, SECONDS, Part, Quantity
from stockade.policy._units import parse_seconds, shown

if TYPE_CHECKING:
    from typing import TypeGuard, Unpack

    from stockade.policy._changes import LimitsFields
    from stockade.policy._fields import Plain

__all__ = ["MAX_MODULE_BYTES", "Limits"]

MAX_MODULE_BYTES = 1 << 30
"""The most bytes that any policy lets a module have."""

_MAX_SECONDS = 10 * 365 * 86_400.0
_MAX_FUEL = 2**63 - 1
_MAX_COUNT = 2**62
_MAX_RATE = 10**10  # what fits the guard's arithmetic in nanoseconds
_PAGE = 65_536


class _Fuel(Quantity):
    """A budget in units; in its place a document may have an estimate, which `Limits.spelled_out` understands."""

    def __init__(self) -> None:
        super().__init__(COUNT, 1, _MAX_FUEL, unlimited=True, what="units")

    def read(self, path: str, value: object, base: object = None) -> object:
        return value if _is_estimate(value) else super().read(path, value, base)

    def schema(self) -> dict[str, Plain]:
        units = super().schema()["anyOf"]
        assert isinstance(units, list)
        return {"anyOf": [*units, {"type": "string", "pattern": ABOUT_SECONDS}]}

    def allowed(self) -> str:
        return f'{super().allowed()}, or a time such as "~2s"'


def _is_estimate(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value.startswith("~")


_Refill = Annotated[int, Quantity(COUNT, 0, _MAX_FUEL, what="units")]
_MIN_SECONDS = 0.001
_Time = Annotated[float | None, Quantity(SECONDS, _MIN_SECONDS, _MAX_SECONDS, unlimited=True)]
_Bytes = Annotated[int | None, Quantity(BYTES, 0, _MAX_COUNT, unlimited=True)]
_Count = Annotated[int | None, Quantity(COUNT, 0, _MAX_COUNT, unlimited=True)]
_Speed = Annotated[int | None, Quantity(RATE, 1, _MAX_RATE, unlimited=True)]


class Limits(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much a run may use. None is unlimited, where a field allows it; in documents that is "unlimited".

    Attributes:
        fuel: Fuel units, about one for each instruction. Unlimited, where `fuel_time` is, too: not metered, which is
            faster. `"~2s"` is short for `fuel = "unlimited"` and `fuel_time = "2s"`.
        fuel_refill: Units that are added every `fuel_refill_interval` seconds of the run's wall time, but never so that
            more than `fuel_refill_max` are in hand: what would be beyond it is lost, and does not count as refilled.
            The units of `fuel` are spent first, then refilled ones. A run that has none in hand before the next refill
            ends with outcome `fuel`.
        fuel_refill_interval: Seconds from the beginning of a run to the first refill, and from each to the next.
        fuel_refill_max: The most units that may be in hand; at least `fuel`, where there are refills.
        fuel_time: Fuel for about so many seconds of computing: an estimate, for what a second takes is measured on the
            machine where the policy is used (see `stockade.calibrate`). Where `fuel` is given as well, the lesser
            counts. No refill adds to it: a run burns no more than this in all.
        wall_time: Seconds from the first instruction to the last, waits included. Unlimited: no deadline.
        idle_time: Seconds that a single wait may last, in `poll_oneoff` or for stdin; a longer one ends the run with
            outcome `idle`.
        cpu_percent: Share of one core that a busy guest may use.
        memory: Bytes that all linear memories and tables of the run may have together (8 for a table element), and the
            objects and exceptions that it makes. Where memories grow beside those, objects have half of it, and
            exceptions alone an eighth.
        memory_growth: Pages of 64 KiB by which memories and tables may grow in a second; a second's worth may go at
            once.
        on_memory_denied: What refused growth does: `fail`, the guest gets -1 and goes on, unless `on_violation` is
            `stop`; `stop`, the run ends with outcome `memory`. A violation is reported either way.
        table_elements: Elements that all tables of the run may have together.
        stack: Bytes of stack for guest code, rounded up to the next power of two: an engine serves all guests with the
            same size of stack, and there cannot be many engines.
        instances: Instances of the module in a run.
        memories: Linear memories that a module may declare; more than one need `features.multi_memory`.
        tables: Tables that a module may declare.
        module_size: Bytes that a module file may have.
        compile_time: Seconds that preparing and compiling a module, or translating its text, may take in a process of
            its own; waiting for a turn there does not count.
        compile_memory: Bytes of memory that it may need there.
        compile_process: Which modules are compiled in a process of their own: `auto`, all but those that are certain to
            be cheap, as small programs are, and text of more than 64 KiB; `always`, all; `never`, none, which leaves
            compiling without limits of time and memory.
        stdout: Bytes of stdout that are kept, half of them for the beginning and half for the end.
        stderr: The same for stderr.
        open_files: Files and folders that may be open at a time, beside stdin, stdout, stderr and the mounts.
        files_created: Files, folders and links that may be created.
        file_size: Bytes that a file may reach by writing, seeking or setting its size. Where several write to the end
            of one file at once, each may take it over this by one call.
        read_bytes: Bytes that may be read from files.
        write_bytes: Bytes that may be written to files, and by which files may grow without being written: a gap before
            what is written, a size that is set.
        read_rate: Bytes that may be read in a second; a second's worth may go at once.
        write_rate: The same for writing.
        random_bytes: Random bytes that may be handed out.
        calls: WASI calls that may be made.
        call_rate: WASI calls that may be made in a second; a second's worth may go at once.
        on_rate: What an exceeded rate does: `wait`, the call waits for its turn; `refuse`, it fails with EAGAIN.
        connections: Network connections that may be open at a time.
        requests: Requests that may go out to the network, each redirect that is followed counted as one.
        request_time: Seconds that a request may take, from looking its host up to the last byte of its answer.
        sent_bytes: Bytes that may be sent to the network, headers included.
        received_bytes: Bytes that may be received from the network, headers included.
        network_rate: Bytes that may be sent and received in a second; a second's worth may go at once, and what is
            beyond it waits.
    """

    PATH: ClassVar = "limits"

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[LimitsFields]) -> None: ...

    fuel: Annotated[int | None, _Fuel()] = None
    fuel_refill: _Refill = 0
    fuel_refill_interval: Annotated[float, Quantity(SECONDS, _MIN_SECONDS, _MAX_SECONDS)] = 1.0
    fuel_refill_max: _Refill = 0
    fuel_time: _Time = None
    wall_time: _Time = 5.0
    idle_time: _Time = None
    cpu_percent: Annotated[int, Quantity(COUNT, 1, 100, what="percent")] = 100
    memory: Annotated[int, Quantity(BYTES, _PAGE, 4 << 30)] = 128 << 20
    memory_growth: Annotated[int | None, Quantity(COUNT, 1, _PAGE, unlimited=True, what="pages per second")] = None
    on_memory_denied: Literal["fail", "stop"] = "fail"
    table_elements: Annotated[int, Quantity(COUNT, 0, 10_000_000)] = 10_000
    stack: Annotated[int, Quantity(BYTES, 16 << 10, 64 << 20)] = 512 << 10
    instances: Annotated[int, Quantity(COUNT, 1, 1)] = 1
    memories: Annotated[int, Quantity(COUNT, 0, 100)] = 4
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
    connections: Annotated[int, Quantity(COUNT, 0, 1_000)] = 10
    requests: _Count = 1_000
    request_time: _Time = 30.0
    sent_bytes: _Bytes = 64 << 20
    received_bytes: _Bytes = 256 << 20
    network_rate: _Speed = None

    def __post_init__(self) -> None:
        if _is_estimate(self.fuel):
            short: dict[str, object] = {"fuel": self.fuel}
            if self.fuel_time is not None:
                short["fuel_time"] = self.fuel_time
            for name, value in self.spelled_out(short).items():
                msgspec.structs.force_setattr(self, name, value)
        Part.__post_init__(self)
        if not self.fuel_refill:
            if self.fuel_refill_max:
                raise PolicyError("limits.fuel_refill_max has no effect where fuel_refill is 0: leave it out")
        elif self.fuel is None:
            if self.fuel_time is not None:
                raise PolicyError(
                    "limits.fuel_refill needs a budget in units, which limits.fuel_time is not: set limits.fuel, too, "
                    "or leave the refills out"
                )
            raise PolicyError("limits.fuel_refill has no effect where fuel is unlimited: leave it out")
        elif self.fuel_refill_max < self.fuel:
            raise PolicyError(
                f"limits.fuel_refill_max is {self.fuel_refill_max:,}: with refills it must be at least "
                f"limits.fuel, which is {self.fuel:,}"
            )

    @property
    def metered(self) -> bool:
        """Whether fuel is counted, because there is a budget of it, in units or in time."""
        return self.fuel is not None or self.fuel_time is not None

    @property
    def stack_bytes(self) -> int:
        """The stack that guest code gets: `stack`, rounded up to the next power of two."""
        return 1 << (self.stack - 1).bit_length()

    @classmethod
    def spelled_out(cls, given: dict[str, object]) -> dict[str, object]:
        """Returns the limits that somebody sets, with an estimate in place of `fuel` written as `fuel_time`.

        Args:
            given: The limits that are set, by their names.

        Raises:
            PolicyError: The estimate is none, or `fuel_time` is set as well.
        """
        fuel = given.get("fuel")
        if not _is_estimate(fuel):
            return given
        if "fuel_time" in given:
            raise PolicyError(
                f"limits.fuel is {shown(fuel)}, which is short for limits.fuel_time, and that is given, too: "
                "leave one of them out"
            )
        return {**given, "fuel": None, "fuel_time": _estimated(fuel)}


def _estimated(fuel: str) -> float:
    """Reads an estimate such as `"~2s"`, in seconds."""
    try:
        seconds = parse_seconds(fuel[1:]) if re.search(ABOUT_SECONDS, fuel) else None
    except ValueError:  # thousands of digits
        seconds = None
    if seconds is None or not _MIN_SECONDS <= seconds <= _MAX_SECONDS:
        raise PolicyError(
            f"limits.fuel is {shown(fuel)}: after ~ it must be a time from 1ms to {_MAX_SECONDS:,.0f} seconds, "
            'with its unit (s, ms, us, m, min, h): write "~2s"'
        )
    return seconds
