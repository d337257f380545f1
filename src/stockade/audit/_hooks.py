"""Hooks: code of the embedder's before and after each run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stockade.audit._events import RunInfo
    from stockade.report import Report

__all__ = ["RunHook"]


class RunHook:
    """What is called around each run of the sandboxes that tell a log. Override a method in a class of your own.

    Hooks are called on the thread that takes the run's steps, which is not that of an event loop. They may take their
    time; the run waits. What one raises ends the run, and is raised to whoever asked for it.
    """

    def before_run(self, run: RunInfo) -> str | None:  # noqa: ARG002 - for whoever overrides it
        """Is called before the guest's first instruction.

        Args:
            run: The run.

        Returns:
            Why it is refused; None to let it begin.
        """
        return None

    def after_run(self, run: RunInfo, report: Report) -> None:
        """Is called when the run is over, also where it was refused.

        Args:
            run: The run.
            report: What happened.
        """

    def run_failed(self, run: RunInfo, problem: BaseException) -> None:
        """Is called where a run comes to no report: something was raised, by the caller's mistake or a callback's.

        What it raises itself is told, and nothing else.

        Args:
            run: The run.
            problem: What was raised.
        """
