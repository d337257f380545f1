"""How a run is awaited, on an event loop. Imported where one is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.report import Report
from stockade.runner.loop import await_run, loop_bridge

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.execution import Inputs
    from stockade.execution.loop_streams import LoopStreams
    from stockade.runner import RunControl, RunCoroutine
    from stockade.sandbox._registry import UnderWay

__all__ = ["await_if_long", "loop_streams"]


async def await_if_long(
    attempt: Callable[[], Report | RunCoroutine[Report] | None],
    steps: Callable[[], RunCoroutine[Report]],
    run: UnderWay,
    priority: int,
    tenant: str,
) -> Report:
    """Has a run done on the loop's own thread if it is over within a moment; else the executor takes its steps.

    Args:
        attempt: Begins it, and returns its report if it is over by then; else its steps; None where it has not begun.
        steps: Makes its steps where it has not begun.
        run: The run.
        priority: Its share of the threads among the runs of its tenant.
        tenant: For whom it runs.
    """
    bridge = loop_bridge()
    begun = await bridge.turn() and attempt()
    if isinstance(begun, Report):
        bridge.spend(begun.timings.total)
        return begun
    return await await_run(run.until_over(begun or steps()), run.control, priority, tenant)


def loop_streams(inputs: Inputs, control: RunControl) -> LoopStreams | None:
    """Returns what serves a guest's streams on the running event loop; None where nothing of that is to be served."""
    if not inputs.served:
        return None
    from stockade.execution.loop_streams import LoopStreams

    return LoopStreams(inputs, control)
