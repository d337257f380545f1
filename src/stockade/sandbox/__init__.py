"""The facade that users import: sandboxes and sessions."""

from stockade.sandbox._calls import call, run
from stockade.sandbox._sandbox import Sandbox, check_count
from stockade.sandbox._session import AsyncSession, Session

__all__ = ["AsyncSession", "Sandbox", "Session", "call", "check_count", "run"]
