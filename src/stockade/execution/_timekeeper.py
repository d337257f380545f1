"""Time for a guard that has none.

A guest that imports no waits has lent the guard no native clock either. If its policy limits rates, or callbacks serve
its streams, the host notes the time in the guard's state whenever the guest has halted.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

from stockade.guard import guard

if TYPE_CHECKING:
    from stockade.engine import Memory

__all__ = ["Timekeeper"]


class Timekeeper:
    """Keeps the time of one guest, from its making on."""

    def __init__(self) -> None:
        self._began = time.monotonic_ns()

    def serve(self, memory: Memory) -> None:
        """Notes the time.

        Args:
            memory: The guard's memory.
        """
        memory.write(guard().layout.offsets["host_now"], struct.pack("<Q", time.monotonic_ns() - self._began))
