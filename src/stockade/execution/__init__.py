"""The one path that every run takes: load, plan (inspect, weave, compile), run, report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade._later import found_later
from stockade.execution._asked import awaited_call, awaited_of
from stockade.execution._classify import GuestStopped, StopReason
from stockade.execution._context import PolicyContext
from stockade.execution._inputs import (
    NO_INPUTS,
    AsyncStdin,
    Inputs,
    OnOutput,
    OnOutputAsync,
    OnProgress,
    Stdin,
    check_arguments,
    environment,
)
from stockade.execution._mounts import OpenMounts
from stockade.execution._open import OpenGuest, does_call_out
from stockade.execution._pipe import Pipe
from stockade.execution._plan import Plan
from stockade.execution._ready import ReadyPool
from stockade.execution._reporting import with_earlier, with_network
from stockade.execution._run import Guest, initialized, with_guest
from stockade.execution._snapshot import GuestState, SavedGuest
from stockade.execution._streams import Streams, StreamState
from stockade.execution._string_calls import MEMORY, CallExport, Convention, Returns, StringCall
from stockade.execution._values import Argument, Call, bind_arguments
from stockade.policy import Isolation

if TYPE_CHECKING:
    from stockade.execution._beforehand import hold_still, make_stack
    from stockade.execution._calibrate import Calibration, calibrate
    from stockade.execution._monitoring import Monitoring, RunMonitor, check_monitoring
    from stockade.execution._tracing import Tracer, trace_of, tracer_of
else:
    __getattr__ = found_later(
        __name__,
        {
            "_beforehand": ("hold_still", "make_stack"),
            "_calibrate": ("Calibration", "calibrate"),
            "_monitoring": ("Monitoring", "RunMonitor", "check_monitoring"),
            "_tracing": ("Tracer", "trace_of", "tracer_of"),
        },
    )

__all__ = [
    "MEMORY",
    "NO_INPUTS",
    "Argument",
    "AsyncStdin",
    "Calibration",
    "Call",
    "CallExport",
    "Convention",
    "Guest",
    "GuestState",
    "GuestStopped",
    "Inputs",
    "Isolation",
    "Monitoring",
    "OnOutput",
    "OnOutputAsync",
    "OnProgress",
    "OpenGuest",
    "OpenMounts",
    "Pipe",
    "Plan",
    "PolicyContext",
    "ReadyPool",
    "Returns",
    "RunMonitor",
    "SavedGuest",
    "Stdin",
    "StopReason",
    "StreamState",
    "Streams",
    "StringCall",
    "Tracer",
    "awaited_call",
    "awaited_of",
    "bind_arguments",
    "calibrate",
    "check_arguments",
    "check_monitoring",
    "does_call_out",
    "environment",
    "hold_still",
    "initialized",
    "make_stack",
    "trace_of",
    "tracer_of",
    "with_earlier",
    "with_guest",
    "with_network",
]
