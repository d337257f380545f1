"""Whether a handler of a signal may wait: not where it has interrupted what others, whom it would wait for, need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["may_wait"]

_HOLD_NOTHING: Final = frozenset(
    {
        "Bell.wait",
        "Interpreter.close",
        "LoopStreams._await_call",
        "LoopStreams._call_all",
        "LoopStreams._read",
        "Sandbox.__exit__",
        "Scheduler.__exit__",
        "Streams._pass_on",
        "Streams.serve",
        "TaskHandle.on_done.<locals>.call",
        "_Place.close",
        "_Window.leave",
        "call_outside",
    }
)
"""Functions of ours that wait, or call those of the embedder, or close; they hold nothing that others need."""

_HERE: Final = str(Path(__file__).parent)


def may_wait(frame: FrameType | None) -> bool:
    """Whether who calls has not interrupted, as the handler of a signal, something of ours that others wait for.

    Args:
        frame: That of whoever calls.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith(_HERE):
            return frame.f_code.co_qualname in _HOLD_NOTHING
        frame = frame.f_back
    return True
