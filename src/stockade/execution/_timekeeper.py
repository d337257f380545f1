"""Time for a guard that has none.

A guest that imports no waits has lent the guard no native clock either. If its policy limits rates, or the guard must
wait for callbacks, the host notes the time in the guard's state whenever the guest yields, and waits in its place.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Final

from stockade.guard import guard

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.engine import Memory

__all__ = ["Timekeeper"]

_SLICE_SECONDS: Final = 0.01


class Timekeeper:
    """Keeps the time of one run, from its making on."""

    def __init__(self) -> None:
        self._began = time.monotonic_ns()

    def serve(self, memory: Memory, may_go_on: Callable[[], bool]) -> None:
        """Notes the time, and waits if the guard asks for it.

        Args:
            memory: The guard's memory.
            may_go_on: Ends the wait when it says no.
        """
        offsets = guard().layout.offsets
        (wanted,) = struct.unpack("<Q", memory.read(offsets["host_wait"], 8))
        if wanted:
            end = time.monotonic_ns() + wanted
            while (left := (end - time.monotonic_ns()) / 1e9) > 0 and may_go_on():
                time.sleep(min(left, _SLICE_SECONDS))
            memory.write(offsets["host_wait"], bytes(8))
        memory.write(offsets["host_now"], struct.pack("<Q", time.monotonic_ns() - self._began))
