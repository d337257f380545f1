"""What did happen: reports as plain frozen data. Nothing of the engine."""

from typing import TYPE_CHECKING

from stockade._later import found_later
from stockade.report._findings import Finding, Verdict
from stockade.report._fuel import (
    SAMPLES_KEPT,
    FuelAnomaly,
    FuelHistory,
    FuelSample,
    FuelStatistics,
    Trend,
    history_of,
    run_statistics,
)
from stockade.report._limits import LimitUse, QuotaUse, RunLimits, check_share
from stockade.report._model import (
    Alert,
    ModuleInfo,
    Outcome,
    PolicyInfo,
    Progress,
    Report,
    Sample,
    Timings,
    TrapFrame,
    TrapInfo,
    Truncated,
    Usage,
    Value,
    Violation,
    ViolationEvent,
    note_cause,
)
from stockade.report._numbers import amount, bar, duration, percent, size
from stockade.report._render import LIMITS, deciding_violation, limits_shown, rows, summary, violation_text
from stockade.report._trace import Trace, TraceArgument, TracedCall
from stockade.report._trace_text import TraceCount, TraceSummary

if TYPE_CHECKING:
    from stockade.report._schema import json_schema
else:
    __getattr__ = found_later(__name__, {"_schema": ("json_schema",)})

__all__ = [
    "LIMITS",
    "SAMPLES_KEPT",
    "Alert",
    "Finding",
    "FuelAnomaly",
    "FuelHistory",
    "FuelSample",
    "FuelStatistics",
    "LimitUse",
    "ModuleInfo",
    "Outcome",
    "PolicyInfo",
    "Progress",
    "QuotaUse",
    "Report",
    "RunLimits",
    "Sample",
    "Timings",
    "Trace",
    "TraceArgument",
    "TraceCount",
    "TraceSummary",
    "TracedCall",
    "TrapFrame",
    "TrapInfo",
    "Trend",
    "Truncated",
    "Usage",
    "Value",
    "Verdict",
    "Violation",
    "ViolationEvent",
    "amount",
    "bar",
    "check_share",
    "deciding_violation",
    "duration",
    "history_of",
    "json_schema",
    "limits_shown",
    "note_cause",
    "percent",
    "rows",
    "run_statistics",
    "size",
    "summary",
    "violation_text",
]
