"""What happened in a run, as frozen data."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias

import msgspec

from stockade._json import JsonRecord
from stockade.errors import Cancelled, Denied, GuestError, GuestExit, GuestTrap, LimitExceeded
from stockade.report._findings import Finding  # noqa: TC001 - msgspec looks it up
from stockade.report._fuel import FuelStatistics  # noqa: TC001 - msgspec looks it up
from stockade.report._limits import LimitUse, QuotaUse, RunLimits, check_share, limits_used, progress_used
from stockade.report._trace import TracedCall  # noqa: TC001 - likewise

if TYPE_CHECKING:
    from typing import Self


__all__ = [
    "Alert",
    "ModuleInfo",
    "Outcome",
    "PolicyInfo",
    "Progress",
    "Report",
    "Sample",
    "Timings",
    "TrapFrame",
    "TrapInfo",
    "Truncated",
    "Usage",
    "Value",
    "Violation",
    "ViolationEvent",
    "note_cause",
]

if TYPE_CHECKING:
    # Type checkers know this package without its being installed; Python has defaults of type variables from 3.13 on.
    from typing_extensions import TypeVar

    Value: TypeAlias = int | float | bytes | str | list[int | float | bytes | str] | None
    """What a called function returned: a number, the bytes of a vector or a text, a text, several, or nothing."""

    _Returned = TypeVar("_Returned", bound=Value, default=Value, covariant=True)
else:
    from typing import TypeVar

    # msgspec reads no union of bytes and text, for JSON cannot tell them apart. Other formats can.
    Value = Any

    _Returned = TypeVar("_Returned")


class Outcome(StrEnum):
    """How a run ended. Nothing that a guest names can change it."""

    OK = "ok"
    """The guest returned, or exited with code 0."""
    EXIT = "exit"
    """The guest left with a non-zero exit code."""
    TRAP = "trap"
    """The guest trapped; `Report.trap` says how."""
    FUEL = "fuel"
    """The fuel budget was used up."""
    TIMEOUT = "timeout"
    """The wall-clock deadline passed."""
    IDLE = "idle"
    """The guest waited for too long."""
    MEMORY = "memory"
    """More memory was needed than allowed: at the start, or by growth where the policy says stop."""
    STACK = "stack"
    """The guest's call stack was exhausted."""
    OUTPUT = "output"
    """The guest wrote or returned more than allowed."""
    DENIED = "denied"
    """The guest tried something that the policy forbids, where the policy says stop."""
    CANCELLED = "cancelled"
    """The caller cancelled the run."""
    CRASHED = "crashed"
    """What ran the guest failed, not the guest."""


class Truncated(msgspec.Struct, frozen=True):
    """Output that was dropped for want of room.

    Attributes:
        stdout: Bytes from the middle of stdout.
        stderr: The same of stderr.
    """

    stdout: int = 0
    stderr: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a run used, from the place that measured it.

    Attributes:
        fuel: Fuel units; None where the policy does not meter. After a stop by time or cancellation it is "at
            least": a running loop keeps up to 2 million units in a register.
        wall_seconds: From the first instruction to the last.
        cpu_seconds: Processor time of the thread that ran the guest. For a run that was over within a tenth of a
            millisecond, its time on the wall.
        idle_seconds: Time spent waiting, in `poll_oneoff` or for stdin.
        idle_longest_seconds: The longest single wait.
        memory_bytes: What the guest's memories and tables have at the end (8 bytes an element).
        memory_peak_bytes: The most they had; WebAssembly memory never shrinks. Objects are not in it: no engine tells.
        memory_grown_bytes: By how much they grew.
        table_elements: Elements of its tables at the end.
        calls: WASI call -> how often the guest made it, refused ones included. Calls it did not make are left out.
        denied: WASI call -> how often the policy refused it.
        read_bytes: Read from files.
        written_bytes: Written to files.
        stdout_bytes: Written to stdout, dropped bytes included.
        stderr_bytes: Written to stderr, dropped bytes included.
        files_opened: Files and folders opened.
        files_open_peak: The most open at a time.
        files_created: Files, folders and links created.
        files_deleted: Files and folders removed.
        random_bytes: Random bytes handed out.
        host_calls: Calls of host functions.
        network_sent_bytes: Sent over the network.
        network_received_bytes: Received from the network.
        network_connections: Network connections made.
    """

    fuel: int | None = None
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    idle_seconds: float = 0.0
    idle_longest_seconds: float = 0.0
    memory_bytes: int = 0
    memory_peak_bytes: int = 0
    memory_grown_bytes: int = 0
    table_elements: int = 0
    calls: dict[str, int] = {}
    denied: dict[str, int] = {}
    read_bytes: int = 0
    written_bytes: int = 0
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    files_opened: int = 0
    files_open_peak: int = 0
    files_created: int = 0
    files_deleted: int = 0
    random_bytes: int = 0
    host_calls: int = 0
    network_sent_bytes: int = 0
    network_received_bytes: int = 0
    network_connections: int = 0


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run is, while it is under way; or an open session.

    Attributes:
        seconds: Since the call under way began; 0 where none is.
        fuel: Fuel units consumed, as of the last time that the guest was halted; None where the policy does not meter.
        cpu_seconds: Processor time, as of the last time that the guest was halted.
        idle_seconds: Time spent waiting, without the wait under way.
        memory_bytes: What the guest's memories and tables have (8 bytes an element).
        table_elements: Elements of its tables.
        stdout_bytes: Written to stdout.
        stderr_bytes: Written to stderr.
        calls: WASI calls and calls of host functions made.
        open_files: Files and folders open.
        files_created: Files, folders and links created.
        read_bytes: Read from files.
        written_bytes: Written to files.
        random_bytes: Random bytes handed out.
        violations: How often the policy was violated.
        state: `running`; `waiting`, the guest is halted until something comes; or `idle`, no call of the session is
            under way.
        is_session: Whether it is a session.
        module: The name of the module.
        policy: The name of the policy.
        limits: The limits that it is held to.
        earlier: What earlier calls of the session used of those that hold for all of them.
    """

    seconds: float
    fuel: int | None = None
    cpu_seconds: float = 0.0
    idle_seconds: float = 0.0
    memory_bytes: int = 0
    table_elements: int = 0
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    calls: int = 0
    open_files: int = 0
    files_created: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    random_bytes: int = 0
    violations: int = 0
    state: Literal["running", "waiting", "idle"] = "running"
    is_session: bool = False
    module: str = ""
    policy: str = ""
    limits: RunLimits = RunLimits()
    earlier: QuotaUse = QuotaUse()

    @property
    def limits_used(self) -> tuple[LimitUse, ...]:
        """Each limit of which it is known while the run is under way what it has used."""
        return progress_used(self)

    @property
    def utilization(self) -> dict[str, float]:
        """The used part of these limits by their names, each from 0 to 1; unlimited ones are left out."""
        return _shares(progress_used(self))


def _shares(limits: tuple[LimitUse, ...]) -> dict[str, float]:
    return {use.name: use.utilization for use in limits if use.utilization is not None}


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """A run has used as much of a limit as somebody wanted to be told of.

    Attributes:
        limit: The limit, as the policy calls it.
        threshold: The share of it that was to be told of.
        utilization: The share that was used when it was seen.
        used: What was used then.
        allowed: What is allowed.
        at: Seconds into the run when it was seen.
        module: The name of the module.
        run_id: What the run is called; "" where it was given no name.
    """

    limit: str
    threshold: float
    utilization: float
    used: float
    allowed: float
    at: float
    module: str = ""
    run_id: str = ""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What a run had used at one moment.

    Attributes:
        at: Seconds into the run.
        fuel: Fuel units consumed, as far as it was known; None where the policy does not meter.
        memory_bytes: What memories and tables had.
        read_bytes: Read from files.
        written_bytes: Written to files.
        output_bytes: Written to stdout and stderr.
        calls: WASI calls and calls of host functions made.
        violations: How often the policy was violated.
    """

    at: float
    fuel: int | None = None
    memory_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    output_bytes: int = 0
    calls: int = 0
    violations: int = 0


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the guest tried and the policy forbids.

    Attributes:
        kind: What was violated: a limit (`memory`, `table`, `fuel`, `timeout`, `stack`, `idle`, `calls`, `call_rate`,
            `open_files`, `files_created`, `file_size`, `read_bytes`, `write_bytes`, `read_rate`, `write_rate`,
            `random_bytes`, `value`), a right (`call`, `create`, `delete`, `symlinks`), or `path`: native WASI refused
            it.
        subject: What it was about: the name of a call or limit.
        limit: What is allowed, where it is a number.
        observed: What was asked for or reached, where it is a number.
        call: The WASI call or instruction that asked, if one did.
        action: What was done: `deny`, `stop` or `audit`.
        count: How often it happened.
        at: Seconds into the run of the first time; None where the guest has no clock.
        field: The field of the policy that decides it, such as `limits.memory`, `wasi.deny` or `custom.draw`; empty
            where no field would permit it, such as a path that leads out of its mount.
        mount: The mount that the path begins at, as the guest sees it; None where it is not known, or there is none.
    """

    kind: str
    subject: str
    limit: int | float | None = None
    observed: int | float | None = None
    call: str | None = None
    action: Literal["deny", "stop", "audit"] = "deny"
    count: int = 1
    at: float | None = None
    field: str = ""
    mount: str | None = None


class ViolationEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One violation, one time.

    Attributes:
        kind: What was violated, as in `Violation`.
        subject: What it was about.
        call: The WASI call.
        errno: What the call returned for it; 0 where it was let through or the run ended.
        action: What was done.
        limit: What is allowed, where it is a number.
        observed: What was asked for, where it is a number.
        at: Seconds into the run; None where the guest has no clock.
    """

    kind: str
    subject: str
    call: str
    errno: int = 0
    action: Literal["deny", "stop", "audit"] = "deny"
    limit: int | float | None = None
    observed: int | float | None = None
    at: float | None = None


class TrapFrame(msgspec.Struct, frozen=True):
    """One frame of a backtrace, innermost first.

    Attributes:
        function: Name of the function, shortened and escaped; None where the module does not say.
        index: Its index in the module.
        offset: Offset of the instruction from the function's start, in bytes of the woven module.
    """

    function: str | None
    index: int
    offset: int


class TrapInfo(msgspec.Struct, frozen=True):
    """How the guest trapped.

    Attributes:
        code: Name of the trap code, such as `unreachable`; `host` where native WASI ended the run; `bad_pointer` or
            `bad_text` where the guest broke the convention by which text is passed.
        message: The same in words.
        frames: The innermost frames of the guest's stack.
    """

    code: str
    message: str
    frames: tuple[TrapFrame, ...] = ()


class ModuleInfo(msgspec.Struct, frozen=True):
    """Which module ran.

    Attributes:
        sha256: The SHA-256 of its bytes.
        name: The name it was loaded under.
    """

    sha256: str
    name: str


class PolicyInfo(msgspec.Struct, frozen=True):
    """Which policy held.

    Attributes:
        digest: Its digest: equal for equal policies.
        name: Its name.
    """

    digest: str
    name: str


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time went, in seconds.

    Attributes:
        compile: Validation, weaving and compilation; 0 where machine code was at hand.
        instantiate: Setting up the instance.
        run: The guest's own time.
        total: All of it, and the report.
        cache_hit: Whether machine code was at hand.
    """

    compile: float = 0.0
    instantiate: float = 0.0
    run: float = 0.0
    total: float = 0.0
    cache_hit: bool = False


_LIMIT_OUTCOMES = frozenset(
    {Outcome.FUEL, Outcome.TIMEOUT, Outcome.IDLE, Outcome.MEMORY, Outcome.STACK, Outcome.OUTPUT}
)


_CAUSE = "cause"
"""Where a report keeps the exception that ended its run: beside its fields, so it is neither written nor compared."""


class Report(msgspec.Struct, JsonRecord, Generic[_Returned], frozen=True, kw_only=True, dict=True):
    """What happened in a run. For type checkers, `Report[str | None]` is one whose value is a text, or None.

    Attributes:
        outcome: How it ended.
        exit_code: The guest's exit code, 0 to 2^32 - 1, as it gave it; None where it did not exit.
        value: What a called function returned: a number (integers as signed ones), the 16 bytes of a v128, a list of
            several, or None; a text or bytes where the caller asked for them.
        stdout: What the guest wrote to stdout, as kept.
        stderr: What it wrote to stderr, as kept.
        truncated: How much of both was dropped.
        usage: What it used.
        fuel: How it spent its fuel; None where the policy does not meter.
        violations: What it tried and was not allowed: each kind, call and subject once, with a count.
        events: The newest violations one by one, in order: at most 32.
        events_dropped: How many older ones there were.
        violations_dropped: Violations for which there was no room: of kinds that are told already.
        trap: How it trapped, if it did.
        trace_calls: The calls that were traced, where the sandbox traces and tells nobody else, in the order in which
            they began.
        trace_lost: Calls for which there was no room in the trace.
        module: Which module ran.
        policy: Which policy held.
        isolation: Where it ran: `inprocess`, or in a worker of its own (`process`, `bubblewrap`). Of a run that did not
            come to begin, and of one whose worker was lost, where it was to run.
        timings: Where the time went.
        limits: The limits that held, as numbers.
        earlier: What earlier calls of a session had used of the limits that hold for all of them.
        alerts: Which thresholds were reached, in the order in which that was seen; where somebody asked for alerts.
        samples: What it had used at moments in its course, the first at its beginning and the last at its end; where
            somebody asked for samples.
        findings: What was found in what leaves the run, the most severe first: at most 64 of what it wrote and
            returned, as many of its requests, and as many of what code gives beside.
        findings_dropped: How many more were found.
        quarantine: What it is called that was kept aside of the run; empty where nothing was.
    """

    outcome: Outcome
    exit_code: int | None = None
    value: _Returned = None  # type: ignore[assignment] # None is of every kind of report
    stdout: bytes = b""
    stderr: bytes = b""
    truncated: Truncated = Truncated()
    usage: Usage = Usage()
    fuel: FuelStatistics | None = None
    violations: tuple[Violation, ...] = ()
    events: tuple[ViolationEvent, ...] = ()
    events_dropped: int = 0
    violations_dropped: int = 0
    trap: TrapInfo | None = None
    trace_calls: tuple[TracedCall, ...] = ()
    trace_lost: int = 0
    module: ModuleInfo
    policy: PolicyInfo
    isolation: Literal["inprocess", "process", "bubblewrap"] = "inprocess"
    timings: Timings = Timings()
    limits: RunLimits = RunLimits()
    earlier: QuotaUse = QuotaUse()
    alerts: tuple[Alert, ...] = ()
    samples: tuple[Sample, ...] = ()
    findings: tuple[Finding, ...] = ()
    findings_dropped: int = 0
    quarantine: str = ""

    @property
    def ok(self) -> bool:
        """Whether the guest did its work: it returned, or exited with code 0."""
        return self.outcome is Outcome.OK

    def check(self, subject: str = "") -> Self:
        """Returns the report if the run went well.

        Args:
            subject: What ran, as the message calls it; by default, the name of the module.

        Raises:
            GuestError: It did not: `GuestExit`, `GuestTrap`, `LimitExceeded`, `Denied` or `Cancelled`. Where the guest
                left with an exit code or trapped, the message has the end of its stderr. Where a host function raised
                an exception, that is its `__cause__`, with its traceback: for you to see, the guest never does.
        """
        if self.ok:
            return self
        kinds: dict[Outcome, type[GuestError]] = {
            Outcome.EXIT: GuestExit,
            Outcome.DENIED: Denied,
            Outcome.CANCELLED: Cancelled,
        }
        kind = LimitExceeded if self.outcome in _LIMIT_OUTCOMES else kinds.get(self.outcome, GuestTrap)
        from stockade.report._render import last_words

        raise kind(f"{subject or self.module.name}: {self.summary()}{last_words(self)}", self) from self.__dict__.get(
            _CAUSE
        )

    @property
    def limits_used(self) -> tuple[LimitUse, ...]:
        """Each limit, with what the run used of it and which part of it that is."""
        return limits_used(self)

    @property
    def utilization(self) -> dict[str, float]:
        """The used part of each limit by its name, from 0 to 1; unlimited ones are left out."""
        return _shares(limits_used(self))

    def has_pressure(self, threshold: float = 0.8) -> bool:
        """Whether the run used so much of any limit, or asked for more than one allows.

        Args:
            threshold: The share of a limit, above 0 and up to 1.

        Raises:
            UsageError: It is no such share.
        """
        least = check_share(threshold, "threshold")
        return any(use.exceeded or (use.utilization or 0.0) >= least for use in limits_used(self))

    def summary(self) -> str:
        """Says in one sentence how the run ended."""
        from stockade.report._render import summary

        return summary(self)

    def to_json(self) -> str:
        """Returns the report as JSON; bytes as text where they are UTF-8, else in base64 under `stdout_base64`.

        The same for `stderr` and `value`. JSON has no infinities and no NaN: they are null.
        """
        from stockade.report._render import to_json

        return to_json(self)

    def to_html(self) -> str:
        """Returns the report as one HTML file that needs nothing else: no script, and nothing from elsewhere.

        What the guest chose is escaped. Where there are samples, it has plots of them over the time of the run.
        """
        from stockade.report._html import to_html

        return to_html(self)

    def render(self) -> str:
        """Returns the report as text for people, 80 columns wide, without colour."""
        from stockade.report._render import render

        return render(self)


def note_cause(report: Report, problem: BaseException | None) -> None:
    """Notes which exception of a host function ended a run: in this process only, it is no part of the report.

    Args:
        report: The report on the run.
        problem: The exception.
    """
    report.__dict__[_CAUSE] = problem
