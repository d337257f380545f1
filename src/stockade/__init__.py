"""Stockade runs WebAssembly that nobody trusts, under a policy, and reports truthfully what happened.

>>> import stockade
>>> stockade.call(b'(module (func (export "add") (param i32 i32) (result i32)'
...               b' local.get 0 local.get 1 i32.add))', "add", 5, 3)
8
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stockade._version import __version__

if TYPE_CHECKING:
    from stockade.errors import (
        Cancelled,
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
        StockadeError,
        UsageError,
    )
    from stockade.execution import Calibration, Inspection, Module, Pipe, calibrate
    from stockade.host import F32, F64, I32, I64, U32, U64, GuestMemory, HostCall
    from stockade.policy import (
        Change,
        Clock,
        Environment,
        Features,
        Filesystem,
        Host,
        Limits,
        Mount,
        Network,
        Numeric,
        Policy,
        PortRange,
        Process,
        Random,
        Reason,
        Score,
        Statement,
        Structure,
        Wasi,
    )
    from stockade.report import (
        Event,
        Frame,
        FuelAnomaly,
        FuelHistory,
        FuelStatistics,
        Outcome,
        Progress,
        Report,
        Timings,
        TrapInfo,
        Trend,
        Truncated,
        Usage,
        Violation,
    )
    from stockade.sandbox import AsyncSession, Sandbox, Session, call, run
    from stockade.scheduling import Job, Quota, Scheduler, SessionPool, Task, TaskResult

__all__ = [
    "F32",
    "F64",
    "I32",
    "I64",
    "U32",
    "U64",
    "AsyncSession",
    "Calibration",
    "Cancelled",
    "Change",
    "Clock",
    "Denied",
    "EngineError",
    "Environment",
    "Event",
    "Features",
    "Filesystem",
    "Frame",
    "FuelAnomaly",
    "FuelHistory",
    "FuelStatistics",
    "GuestError",
    "GuestExit",
    "GuestMemory",
    "GuestTrap",
    "Host",
    "HostCall",
    "Inspection",
    "InvalidModule",
    "IsolationError",
    "Job",
    "LimitExceeded",
    "Limits",
    "LinkError",
    "Module",
    "ModuleError",
    "ModuleNotFound",
    "Mount",
    "Network",
    "Numeric",
    "Outcome",
    "Pipe",
    "Policy",
    "PolicyError",
    "PortRange",
    "Process",
    "Progress",
    "QueueFull",
    "Quota",
    "Random",
    "Reason",
    "Report",
    "Sandbox",
    "Scheduler",
    "Score",
    "Session",
    "SessionPool",
    "Statement",
    "StockadeError",
    "Structure",
    "Task",
    "TaskResult",
    "Timings",
    "TrapInfo",
    "Trend",
    "Truncated",
    "Usage",
    "UsageError",
    "Violation",
    "Wasi",
    "__version__",
    "calibrate",
    "call",
    "run",
]

_HOMES = (
    "stockade.errors",
    "stockade.policy",
    "stockade.report",
    "stockade.execution",
    "stockade.host",
    "stockade.sandbox",
    "stockade.scheduling",
)


def __getattr__(name: str) -> Any:
    """Finds a public name when it is first used: importing the package alone stays cheap."""
    if name in __all__:
        from importlib import import_module

        for home in _HOMES:
            module = import_module(home)
            if name in module.__all__:
                value = globals()[name] = getattr(module, name)
                return value
    raise AttributeError(f"module 'stockade' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
