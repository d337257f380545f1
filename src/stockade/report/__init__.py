"""What did happen: reports as plain frozen data. Nothing of the engine."""

from stockade.report._model import (
    Event,
    Frame,
    ModuleInfo,
    Outcome,
    PolicyInfo,
    Report,
    Timings,
    TrapInfo,
    Truncated,
    Usage,
    Value,
    Violation,
)
from stockade.report._render import rows, summary, violation_text

__all__ = [
    "Event",
    "Frame",
    "ModuleInfo",
    "Outcome",
    "PolicyInfo",
    "Report",
    "Timings",
    "TrapInfo",
    "Truncated",
    "Usage",
    "Value",
    "Violation",
    "rows",
    "summary",
    "violation_text",
]
