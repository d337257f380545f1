"""The facade that users import: sandboxes and sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.sandbox._calls import call, run
from stockade.sandbox._checks import check_count, check_keywords, check_text
from stockade.sandbox._occupancy import Occupancy
from stockade.sandbox._registry import live_runs
from stockade.sandbox._sandbox import Sandbox
from stockade.sandbox._session import AsyncSession, Session
from stockade.sandbox._snapshot import Snapshot, is_snapshot_file

if TYPE_CHECKING:
    # Where there is no audit log, it is never loaded.
    from stockade.sandbox._session_auditing import SessionAuditor as SessionAuditor

__all__ = [
    "AsyncSession",
    "Occupancy",
    "Sandbox",
    "Session",
    "Snapshot",
    "call",
    "check_count",
    "check_keywords",
    "check_text",
    "is_snapshot_file",
    "live_runs",
    "run",
]
