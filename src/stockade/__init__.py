"""Stockade runs WebAssembly that nobody trusts, under a policy, and reports truthfully what happened.

>>> import stockade
>>> stockade.call(b'(module (func (export "add") (param i32 i32) (result i32)'
...               b' local.get 0 local.get 1 i32.add))', "add", 5, 3)
8
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stockade import _start as _start  # when it is imported is what it tells
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
    from stockade.execution import Calibration, Pipe, calibrate
    from stockade.host import F32, F64, I32, I64, U32, U64, GuestMemory, HostCall
    from stockade.modules import Inspection, Module
    from stockade.policy import (
        Amount,
        Change,
        Clock,
        Environment,
        Features,
        Filesystem,
        HostRule,
        Limits,
        ModuleLimits,
        Mount,
        Network,
        Policy,
        PolicyStatement,
        PortRange,
        Process,
        Random,
        Reason,
        Score,
        Wasi,
    )
    from stockade.report import (
        FuelAnomaly,
        FuelHistory,
        FuelStatistics,
        Outcome,
        Progress,
        Report,
        Timings,
        TrapFrame,
        TrapInfo,
        Trend,
        Truncated,
        Usage,
        Violation,
        ViolationEvent,
    )
    from stockade.sandbox import AsyncSession, Sandbox, Session, call, run
    from stockade.scheduling import Quota, Scheduler, SessionPool, Task, TaskHandle, TaskResult

__all__ = [
    "F32",
    "F64",
    "I32",
    "I64",
    "U32",
    "U64",
    "Amount",
    "AsyncSession",
    "Calibration",
    "Cancelled",
    "Change",
    "Clock",
    "Denied",
    "EngineError",
    "Environment",
    "Features",
    "Filesystem",
    "FuelAnomaly",
    "FuelHistory",
    "FuelStatistics",
    "GuestError",
    "GuestExit",
    "GuestMemory",
    "GuestTrap",
    "HostCall",
    "HostRule",
    "Inspection",
    "InvalidModule",
    "IsolationError",
    "LimitExceeded",
    "Limits",
    "LinkError",
    "Module",
    "ModuleError",
    "ModuleLimits",
    "ModuleNotFound",
    "Mount",
    "Network",
    "Outcome",
    "Pipe",
    "Policy",
    "PolicyError",
    "PolicyStatement",
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
    "StockadeError",
    "Task",
    "TaskHandle",
    "TaskResult",
    "Timings",
    "TrapFrame",
    "TrapInfo",
    "Trend",
    "Truncated",
    "Usage",
    "UsageError",
    "Violation",
    "ViolationEvent",
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
    "stockade.modules",
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
