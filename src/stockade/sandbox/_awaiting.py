"""How a run is awaited, on an event loop.

What belongs to event loops takes longer to import than a small guest to run, and most never need it: it is imported
where a run is awaited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from stockade.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.execution import Inputs
    from stockade.execution.loop_streams import LoopStreams
    from stockade.runner import RunControl, RunCoroutine
    from stockade.sandbox._registry import UnderWay

__all__ = ["awaited", "awaited_if_long", "loop_streams"]

_Result = TypeVar("_Result")


async def awaited(steps: RunCoroutine[_Result], control: RunControl, priority: int, tenant: str) -> _Result:
    """Has the steps of a run taken by the executor, and awaits what comes of them.

    Args:
        steps: The steps.
        control: The control of the run.
        priority: Its share of the threads among the runs of its tenant.
        tenant: For whom it runs.
    """
    from stockade.runner.loop import await_run

    return await await_run(steps, control, priority, tenant)


async def awaited_if_long(
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
    from stockade.runner.loop import loop_bridge

    bridge = loop_bridge()
    begun = await bridge.turn() and attempt()
    if isinstance(begun, Report):
        bridge.spend(begun.timings.total)
        return begun
    return await awaited(run.until_over(begun or steps()), run.control, priority, tenant)


def loop_streams(inputs: Inputs, control: RunControl) -> LoopStreams | None:
    """Returns what serves a guest's streams on the running event loop; None where nothing of that is to be served."""
    if not inputs.served:
        return None
    from stockade.execution.loop_streams import LoopStreams

    return LoopStreams(inputs, control)
