"""What a policy made ready comes to wait for: programs that are made elsewhere, and what a unit of fuel is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.runner import FOREVER

if TYPE_CHECKING:
    from stockade.compilation import MadeProgram, PendingProgram
    from stockade.runner import RunControl, RunCoroutine

__all__ = ["units_for_seconds", "waited_for"]


def units_for_seconds(seconds: float) -> int:
    """Estimates the fuel for some seconds of computing."""
    # To measure that, a guest runs on a context of its own.
    from stockade.execution._calibrate import calibrate

    return calibrate().fuel(seconds)


def waited_for(made: PendingProgram, control: RunControl) -> RunCoroutine[MadeProgram | None]:
    """Waits for a program, in steps; None where the run is cancelled first."""
    made.when_ready(control.wake)
    try:
        while not made.ready:
            if control.cancelled:
                made.leave()
                return None
            yield FOREVER
    except GeneratorExit:
        made.leave()
        raise
    return made.wait()
