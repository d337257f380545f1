"""What an audit log is told of a run: whether hooks let it begin, what it was refused, and how it has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from stockade._text import printable
from stockade.audit import EventName
from stockade.errors import GuestError, ModuleError, StockadeError, UsageError
from stockade.report import ModuleInfo, Outcome, Report, Violation
from stockade.runner import is_cancellation
from stockade.sandbox._audited_run import passed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.audit import AuditLog
    from stockade.report import Finding
    from stockade.sandbox._audited_run import AuditedRun

__all__ = ["MOST_TEXT", "RunTeller"]

_MOST_VIOLATIONS: Final = 64
"""Of one run that are told one by one."""

_MOST_CALLS: Final = 1_000
"""Calls of host functions of one run that are told one by one; all are counted."""

MOST_TEXT: Final = 400
"""Characters of why something was refused."""

_RIGHTS: Final = frozenset({"call", "create", "delete", "symlinks", "path", "custom", "hook"})
"""Kinds of violations that are about a right; all others are about a limit."""

_STOPPED: Final = {
    Outcome.FUEL,
    Outcome.TIMEOUT,
    Outcome.IDLE,
    Outcome.MEMORY,
    Outcome.STACK,
    Outcome.OUTPUT,
}


class RunTeller:
    """Tells an audit log of runs that it knows to have begun.

    Args:
        log: The log.
    """

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    def hold(self, run: AuditedRun) -> Report | None:
        """Has hooks called, and the disk waited for, before a run begins.

        Returns:
            The report, where one has refused it.
        """
        log = self._log
        info = run.info(log.writer)
        for hook in log.hooks:
            try:
                reason = hook.before_run(info)
                if reason is not None and not isinstance(reason, str):
                    raise UsageError(
                        f"{type(hook).__name__}.before_run returned {type(reason).__name__}: it must return the reason "
                        "why the run is refused, or None"
                    )
            except BaseException as problem:
                self._hook_failed(run, hook, "before_run", problem)
                raise
            if reason is not None:
                return self._refuse(run, hook, reason)
        log.settle()
        return None

    def _refuse(self, run: AuditedRun, hook: object, reason: str) -> Report:
        reason = printable(reason, MOST_TEXT)
        self._tell(run, EventName.RUN_REFUSED, subject=type(hook).__name__, reason=reason)
        return Report(
            outcome=Outcome.DENIED,
            violations=(Violation(kind="hook", subject=reason, call=type(hook).__name__, action="stop"),),
            module=ModuleInfo(run.module.sha256, run.module.name),
            policy=run.policy,
            isolation=run.kind.isolation,
        )

    def end(self, run: AuditedRun, report: Report) -> None:
        """Tells that a run is over."""
        run.over = True
        log, control = self._log, run.control
        control.on_function = control.on_tool = None
        if report.outcome is not Outcome.OK or report.violations:
            self._tell_violations(run, report)
        log.ended(run.kind, run.number, report.outcome, report.exit_code, report.usage)
        if log.blocks:
            self._let_go(run, report)

    def _let_go(self, run: AuditedRun, report: Report) -> None:
        """Has hooks called, and the disk waited for, after a run."""
        log = self._log
        info = run.info(log.writer)
        if run.control.frames:
            # What an interpreter returns was not looked at yet.
            report = replace(report, value=None)
        for hook in log.hooks:
            try:
                hook.after_run(info, report)
            except BaseException as problem:
                self._hook_failed(run, hook, "after_run", problem)
                raise
        log.settle()

    def fail(self, run: AuditedRun, problem: BaseException) -> None:
        """Tells that a run is over that has raised something."""
        if run.over:
            # By a hook, after its end was told.
            return
        if isinstance(problem, GuestError):
            self.end(run, problem.report)
            return
        run.over = True
        run.control.on_function = run.control.on_tool = None
        if isinstance(problem, ModuleError):
            self._tell(
                run,
                EventName.MODULE_REFUSED,
                subject=type(problem).__name__,
                reason=printable(str(problem), MOST_TEXT),
            )
        cancelled = isinstance(problem, GeneratorExit | KeyboardInterrupt) or is_cancellation(problem)
        # What the embedder's own code has raised may hold secrets.
        why = (
            passed(run, printable(str(problem), MOST_TEXT))
            if isinstance(problem, StockadeError)
            else type(problem).__name__
        )
        log = self._log
        outcome = "cancelled" if cancelled else "error"
        log.ended(run.kind, run.number, outcome, reason="" if cancelled else why)
        for hook in log.hooks:
            try:
                hook.run_failed(run.info(log.writer), problem)
            except Exception as failure:
                # What is raised already is what the caller has to know.
                self._hook_failed(run, hook, "run_failed", failure)

    def _tell_violations(self, run: AuditedRun, report: Report) -> None:
        told_limit = False
        for violation in report.violations[:_MOST_VIOLATIONS]:
            told_limit = self._tell_violation(run, violation) or told_limit
        if report.outcome in _STOPPED and not told_limit:
            self._tell(run, EventName.LIMIT_REACHED, name=str(report.outcome), subject=str(report.outcome), count=1)
        more = len(report.violations) - _MOST_VIOLATIONS + report.violations_dropped
        if more > 0:
            self._tell(run, EventName.DENIED, name="more", reason="more than are told one by one", count=more)

    def _tell_violation(self, run: AuditedRun, violation: Violation) -> bool:
        """Tells of a violation; says whether it is of a limit."""
        is_right = violation.kind in _RIGHTS or violation.field.startswith("custom.")
        self._tell(
            run,
            EventName.DENIED if is_right else EventName.LIMIT_REACHED,
            name=violation.kind,
            subject=printable(violation.subject),
            reason=printable(violation.field or violation.action),
            limit=violation.limit,
            observed=violation.observed,
            count=violation.count,
        )
        return not is_right

    def called(self, run: AuditedRun, function: str) -> None:
        """Tells that a function of the embedder's is called."""
        run.calls += 1
        if run.calls <= _MOST_CALLS:
            self._tell(run, EventName.HOST_FUNCTION_CALLED, name=printable(function), count=run.calls)

    def found(self, run: AuditedRun, found: Sequence[Finding]) -> None:
        """Tells what a gate has found in what code gives, which is looked at when its run is over."""
        if not found:
            return
        from stockade.gate import violation_of

        told: dict[tuple[str, str, str], Violation] = {}
        for finding in found:
            # Of a file only that it is one: its name may be the guest's, and have the secret.
            violation = violation_of(replace(finding, channel=finding.channel.partition(" ")[0]))
            key = violation.subject, violation.field, violation.action
            before = told.get(key)
            told[key] = violation if before is None else replace(before, count=before.count + violation.count)
        for violation in tuple(told.values())[:_MOST_VIOLATIONS]:
            self._tell_violation(run, violation)

    def _hook_failed(self, run: AuditedRun, hook: object, method: str, problem: BaseException) -> None:
        self._tell(
            run,
            EventName.HOOK_FAILED,
            subject=printable(f"{type(hook).__name__}.{method}"),
            reason=printable(type(problem).__name__),
        )

    def _tell(self, run: AuditedRun, name: EventName, /, **fields: str | float | None) -> None:
        self._log.tell(
            name,
            run=run.name(self._log.writer),
            tenant=printable(run.tenant),
            policy=run.policy.digest,
            module=run.module.sha256,
            session=run.session,
            **{field: passed(run, value) if isinstance(value, str) else value for field, value in fields.items()},
        )
