"""Stockade runs WebAssembly that nobody trusts, under a policy, and reports truthfully what happened.

>>> import stockade
>>> stockade.call(b'(module (func (export "add") (param i32 i32) (result i32)'
...               b' local.get 0 local.get 1 i32.add))', "add", 5, 3)
8

Here is what one types in a day. The rest is in its rooms: parts of policies in `stockade.policy`, parts of reports in
`stockade.report`, what code gives in `stockade.guests`, events and sinks in `stockade.audit`, what looks for
secrets in `stockade.gate`, numbers and memory for
host functions in `stockade.host`, system calls in `stockade.syscalls`, types for annotations in `stockade.typing`.
"""

from __future__ import annotations

from stockade import _start as _start  # when it is imported is what it tells
from stockade._version import __version__

# Type checkers take it for true; importing typing takes longer than all of this package.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from stockade.audit import AuditLog
    from stockade.egress import Credential
    from stockade.errors import (
        AuditError,
        Cancelled,
        CodeFailed,
        Denied,
        EngineError,
        GuestError,
        GuestExit,
        GuestTrap,
        InvalidModule,
        IsolationError,
        LimitExceeded,
        LinkError,
        ModuleError,
        ModuleNotFound,
        PolicyError,
        QueueFull,
        SnapshotError,
        StockadeError,
        SyscallRefused,
        UsageError,
    )
    from stockade.execution import Monitoring, Pipe, calibrate
    from stockade.guests import JavaScript, Python, run_javascript, run_python
    from stockade.host import HostCall
    from stockade.modules import Inspection, Module
    from stockade.monitoring import serve_monitor
    from stockade.policy import Limits, Mount, Policy
    from stockade.report import Outcome, Report, Trace, Usage, Violation
    from stockade.sandbox import AsyncSession, Sandbox, Session, Snapshot, call, run
    from stockade.scheduling import Quota, Scheduler, SessionPool, Task, TaskHandle, TaskResult
    from stockade.secrets import Secret

__all__ = [
    "AsyncSession",
    "AuditError",
    "AuditLog",
    "Cancelled",
    "CodeFailed",
    "Credential",
    "Denied",
    "EngineError",
    "GuestError",
    "GuestExit",
    "GuestTrap",
    "HostCall",
    "Inspection",
    "InvalidModule",
    "IsolationError",
    "JavaScript",
    "LimitExceeded",
    "Limits",
    "LinkError",
    "Module",
    "ModuleError",
    "ModuleNotFound",
    "Monitoring",
    "Mount",
    "Outcome",
    "Pipe",
    "Policy",
    "PolicyError",
    "Python",
    "QueueFull",
    "Quota",
    "Report",
    "Sandbox",
    "Scheduler",
    "Secret",
    "Session",
    "SessionPool",
    "Snapshot",
    "SnapshotError",
    "StockadeError",
    "SyscallRefused",
    "Task",
    "TaskHandle",
    "TaskResult",
    "Trace",
    "Usage",
    "UsageError",
    "Violation",
    "__version__",
    "calibrate",
    "call",
    "run",
    "run_javascript",
    "run_python",
    "serve_monitor",
]

_HOMES = (
    "stockade.errors",
    "stockade.policy",
    "stockade.report",
    "stockade.modules",
    "stockade.execution",
    "stockade.host",
    "stockade.sandbox",
    "stockade.scheduling",
    "stockade.guests",
    "stockade.monitoring",
    "stockade.audit",
    "stockade.egress",
    "stockade.secrets",
)

_MOVED = frozenset(
    {
        *("F32", "F64", "I32", "I64", "U32", "U64", "GuestMemory"),
        *("Amount", "Change", "Clock", "Environment", "Features", "Filesystem", "HostRule", "ModuleLimits", "Network"),
        *("PolicyStatement", "PortRange", "Process", "Random", "Reason", "Score", "Wasi"),
        *("FuelAnomaly", "FuelHistory", "FuelStatistics", "Progress", "Timings", "TrapFrame", "TrapInfo", "Trend"),
        *("Truncated", "ViolationEvent", "Calibration"),
    }
)
"""Names that were here before the first release, and are in their rooms now. They are found here until 1.0; type
checkers do not know them here."""

# Type checkers read the imports above: a misspelt name is an error to them.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Finds a public name when it is first used: importing the package alone stays cheap."""
        if name in __all__ or name in _MOVED:
            from importlib import import_module

            for home in _HOMES:
                module = import_module(home)
                if name in module.__all__:
                    value = globals()[name] = getattr(module, name)
                    return value
        raise AttributeError(f"module 'stockade' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
