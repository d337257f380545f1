"""What a sandbox tells its audit log: of modules, policies, sessions and snapshots, and of each run from begin to end.

All runs pass here, whoever takes their steps. Where there is no log, nobody comes here.
"""

from __future__ import annotations

import platform
from time import time
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from stockade._text import printable
from stockade._version import __version__
from stockade.audit import ENDED, STARTED, AuditLog, EventName, RunInfo, RunKind, pack
from stockade.engine import wasmtime_version
from stockade.errors import GuestError, ModuleError, StockadeError, UsageError
from stockade.modules import Module
from stockade.report import ModuleInfo, Outcome, PolicyInfo, Report, Violation
from stockade.runner import ASIDE, is_cancellation
from stockade.sandbox._snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.execution import PolicyContext
    from stockade.modules import Source
    from stockade.policy import Isolation
    from stockade.report import Finding
    from stockade.runner import RunControl, RunCoroutine

__all__ = ["Auditor", "SessionAuditor"]

_MOST_MET: Final = 1024
"""Modules and policies that are known to have been told of."""

_MOST_KINDS: Final = 256
"""Kinds of runs that are kept."""

_MOST_VIOLATIONS: Final = 64
"""Of one run that are told one by one."""

_MOST_CALLS: Final = 1_000
"""Calls of host functions of one run that are told one by one; all are counted."""

_RARELY: Final = 1022
"""Of the numbers of events, which are even or odd for most begins of runs, one in so many has none of these bits."""

_TEXT: Final = 400

_RIGHTS: Final = frozenset({"call", "create", "delete", "symlinks", "path", "custom", "hook"})
"""Kinds of violations that are about a right; all others are about a limit."""

_OK: Final = Outcome.OK

_STOPPED: Final = {
    Outcome.FUEL,
    Outcome.TIMEOUT,
    Outcome.IDLE,
    Outcome.MEMORY,
    Outcome.STACK,
    Outcome.OUTPUT,
}


class _Run:
    """A run that is told of, from its begin to its end."""

    __slots__ = ("calls", "control", "export", "kind", "module", "number", "over", "policy", "session", "tenant")

    def __init__(
        self,
        number: int,
        kind: RunKind,
        control: RunControl,
        module: Module,
        policy: PolicyInfo,
        tenant: str = "",
        export: str = "",
        session: str = "",
    ) -> None:
        self.number = number
        self.kind = kind
        self.control = control
        self.module = module
        self.policy = policy
        self.tenant = tenant
        self.export = export
        self.session = session
        self.calls = 0
        self.over = False

    def name(self, writer: str) -> str:
        """What it is called in the log.

        Args:
            writer: Who tells of it.
        """
        return f"{writer}-{self.number}"

    def info(self, writer: str) -> RunInfo:
        """What hooks are told of it.

        Args:
            writer: Who tells of it.
        """
        return RunInfo(
            run=self.name(writer),
            tenant=self.tenant,
            policy=self.policy.digest,
            policy_name=self.policy.name,
            module=self.module.sha256,
            module_name=self.module.name,
            export=self.export,
            session=self.session,
            run_name=_run_name(self.control),
        )


class Auditor:
    """Tells an audit log of what happens in one sandbox. Safe to share between threads.

    Args:
        log: The log.
        isolation: Where the sandbox's runs happen.

    Attributes:
        told: The policy that is told in the place of that of the runs; None for that one. It is set before any run.
        tells_functions: Whether calls of host functions are told: not those that belong to an interpreter.
    """

    told: PolicyInfo | None = None
    tells_functions = True

    def __init__(self, log: AuditLog, isolation: str) -> None:
        if not isinstance(log, AuditLog):
            raise UsageError(f"audit is {type(log).__name__}: it must be an AuditLog")
        log.check()
        self._log = log
        self._met: set[str] = set()
        self._kinds: dict[tuple[str, ...], RunKind] = {}
        # What the last run was of, which the next one is, mostly: module, policy, function; and their kind's number.
        self._last: tuple[object, PolicyContext | None, str, int] = None, None, "", 0
        log.tell(
            EventName.CONFIGURATION,
            name=f"stockade {__version__}",
            subject=f"isolation {isolation}",
            reason=f"wasmtime {wasmtime_version()}, Python {platform.python_version()}",
        )

    # -- runs ---------------------------------------------------------------------------------------------------------

    def here(
        self,
        control: RunControl,
        do: Callable[..., Report],
        export: str,
        context: PolicyContext,
        module: Source | Snapshot,
        given: object,
        *more: object,
    ) -> Report:
        """Does all of a run on this thread that the caller has given no name, and tells of it.

        Args:
            control: Its control.
            do: What does it: is called with the control, the context, the module, and what it is given.
            export: The function that is called; empty for a command.
            context: The policy made ready.
            module: The module.
            given: What it is given.
            *more: What else.
        """
        # As little as it takes, for most runs: each name that is looked up here, and each call, is one for each run.
        guarded, add, queue, next_number = self._log.noting
        last, under, called, kind = self._last
        if last is not module or under is not context or called != export or guarded:
            kind = self._recurring(context, module, export)
        if not kind or context.functions.count:
            return self.whole(control, do, export, context, module, given, *more)
        number = next_number()
        add(pack((STARTED, kind, number, time())))
        try:
            if queue.alert or not number & _RARELY:
                queue.look()
            # To unpack nothing takes as long as the rest of a call.
            report = do(control, context, module, given, *more) if more else do(control, context, module, given)
        except BaseException as problem:
            self._fail(self._briefly(number, control, context, module, export), problem)
            raise
        if report.outcome is _OK and not report.violations:
            usage = report.usage
            add(
                pack(
                    (
                        ENDED,
                        kind,
                        next_number(),
                        number,
                        time(),
                        report.exit_code,
                        usage.wall_seconds,
                        usage.cpu_seconds,
                        usage.fuel,
                        usage.memory_bytes,
                        usage.calls,
                        usage.denied,
                        usage.host_calls,
                        usage.read_bytes,
                        usage.written_bytes,
                        usage.stdout_bytes,
                        usage.stderr_bytes,
                    )
                )
            )
            if queue.alert:
                queue.look()
        else:
            self._end(self._briefly(number, control, context, module, export), report)
        return report

    def _recurring(self, context: PolicyContext, module: Source | Snapshot, export: str) -> int:
        """Returns the number of the kind of a run that can be noted as most are; 0 where it cannot."""
        self._log.check()
        if self._log.blocks or module.__class__ is not Module:
            return 0
        kind = self._kind(self.told or context.info, context.isolation, module, export)
        if not kind.number:
            self._log.number_kind(kind)
        if kind.number:
            self._last = module, context, export, kind.number
        return kind.number

    def _briefly(
        self, number: int, control: RunControl, context: PolicyContext, module: Source | Snapshot, export: str
    ) -> _Run:
        """Returns a run of which no more was made at its begin than its number."""
        assert isinstance(module, Module)
        policy = self.told or context.info
        kind = self._kind(policy, context.isolation, module, export)
        return _Run(number, kind, control, module, policy, export=export)

    def whole(
        self,
        control: RunControl,
        do: Callable[..., Report],
        export: str,
        context: PolicyContext,
        module: Source | Snapshot,
        *given: object,
    ) -> Report:
        """Does all of any run on this thread, and tells of it.

        Args:
            control: Its control; so are the other arguments as those of `here`.
            do: What does it.
            export: The function that is called.
            context: The policy made ready.
            module: The module.
            *given: What it is given.
        """
        self._log.check()
        loaded = module if isinstance(module, Module) else self._loaded(context, module)
        run = self.begin(control, context, loaded, "", export, "")
        try:
            report = (self._hold(run) if self._log.blocks else None) or do(control, context, loaded, *given)
            self._end(run, report)
        except BaseException as problem:
            self._fail(run, problem)
            raise
        return report

    def attempt(
        self,
        do: Callable[..., Report | RunCoroutine[Report] | None],
        control: RunControl,
        tenant: str,
        export: str,
        context: PolicyContext,
        module: Source | Snapshot,
        *given: object,
    ) -> Report | RunCoroutine[Report] | None:
        """Begins a run on this thread, which must not wait, and tells of it.

        Args:
            do: What does it, as `attempt_run`.
            control: Its control.
            tenant: For whom it runs.
            export: The function that is called; empty for a command.
            context: The policy made ready.
            module: The module.
            *given: What it is given.

        Returns:
            What `do` does.
        """
        log = self._log
        log.check()
        if log.blocks or not isinstance(module, Module):
            return None
        begun_at = time()
        # It is known only then whether anything was begun.
        begun = do(control, context, module, *given)
        if begun is None:
            return None
        run = self.begin(control, context, module, tenant, export, "", begun_at)
        if isinstance(begun, Report):
            self._end(run, begun)
            return begun
        return self._rest(run, begun)

    def steps(
        self,
        control: RunControl,
        context: PolicyContext,
        module: Source | Snapshot,
        tenant: str,
        export: str,
        make: Callable[[Module | Snapshot], RunCoroutine[Report]],
    ) -> RunCoroutine[Report]:
        """Takes the steps of a run, and tells of it.

        Args:
            control: Its control.
            context: The policy made ready.
            module: The module.
            tenant: For whom it runs.
            export: The function that is called; empty for a command.
            make: Makes its steps, of the module that was loaded.
        """
        self._log.check()
        loaded = self._loaded(context, module)
        run = self.begin(control, context, loaded, tenant, export, "")
        return (yield from self.held(run, lambda: make(loaded)))

    def held(self, run: _Run, make: Callable[[], RunCoroutine[Report]]) -> RunCoroutine[Report]:
        """Takes the steps of a run that has been told of, where no hook refuses it."""
        try:
            if self._log.blocks:
                run.control.calls_out = True
                yield ASIDE
                report = self._hold(run) or (yield from make())
            else:
                report = yield from make()
        except BaseException as problem:
            self._fail(run, problem)
            raise
        self._end(run, report)
        return report

    def _rest(self, run: _Run, steps: RunCoroutine[Report]) -> RunCoroutine[Report]:
        try:
            report = yield from steps
        except BaseException as problem:
            self._fail(run, problem)
            raise
        self._end(run, report)
        return report

    def _loaded(self, context: PolicyContext, module: Source | Snapshot) -> Module | Snapshot:
        """Loads a module, and tells where that cannot be done."""
        if isinstance(module, Module | Snapshot):
            return module
        try:
            return context.load(module)
        except ModuleError as problem:
            policy = self.told or context.info
            self._log.tell(
                EventName.MODULE_REFUSED,
                policy=policy.digest,
                subject=type(problem).__name__,
                reason=printable(str(problem), _TEXT),
            )
            raise

    def begin(
        self,
        control: RunControl,
        context: PolicyContext,
        given: Module | Snapshot,
        tenant: str,
        export: str,
        session: str,
        at: float = 0.0,
    ) -> _Run:
        """Tells that a run begins."""
        policy = self.told or context.info
        module = given if isinstance(given, Module) else given.module
        kind = self._kind(policy, context.isolation, module, export, tenant, session, _run_name(control))
        if isinstance(given, Snapshot):
            self.snapshot_opened(policy, module, given, session)
        log = self._log
        run = _Run(log.started(kind, at or time()), kind, control, module, policy, tenant, export, session)
        if context.functions.count and self.tells_functions:
            control.on_function = lambda function: self._called(run, function)
        elif not self.tells_functions:
            control.on_tool = lambda tool: self._called(run, tool)
            control.on_found = lambda found: self._found(run, found)
        return run

    def _kind(
        self,
        policy: PolicyInfo,
        isolation: Isolation,
        module: Module,
        export: str,
        tenant: str = "",
        session: str = "",
        run_name: str = "",
    ) -> RunKind:
        """Returns what a run has in common with others; tells of its policy and its module, where they are new."""
        kinds = self._kinds
        key = policy.digest, policy.name, isolation, module.sha256, module.name, export, tenant, session, run_name
        kind = kinds.get(key)
        if kind is None:
            self.meet(policy, module)
            kind = RunKind(policy, isolation, module.sha256, module.name, export, tenant, run_name, session)
            if len(kinds) >= _MOST_KINDS:
                kinds.clear()
            kinds[key] = kind
        return kind

    def meet(self, policy: PolicyInfo, module: Module) -> None:
        """Tells of a policy, and of a module, where they were not used before."""
        met = self._met
        if len(met) > _MOST_MET:
            met.clear()
        if policy.digest not in met:
            met.add(policy.digest)
            self._log.tell(EventName.POLICY_USED, policy=policy.digest, name=policy.name)
        if module.sha256 not in met:
            met.add(module.sha256)
            self._log.tell(EventName.MODULE_LOADED, module=module.sha256, name=module.name, count=len(module.data))

    def _hold(self, run: _Run) -> Report | None:
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

    def _refuse(self, run: _Run, hook: object, reason: str) -> Report:
        reason = printable(reason, _TEXT)
        self._tell(run, EventName.RUN_REFUSED, subject=type(hook).__name__, reason=reason)
        return Report(
            outcome=Outcome.DENIED,
            violations=(Violation(kind="hook", subject=reason, call=type(hook).__name__, action="stop"),),
            module=ModuleInfo(run.module.sha256, run.module.name),
            policy=run.policy,
            isolation=run.kind.isolation,
        )

    def _end(self, run: _Run, report: Report) -> None:
        """Tells that a run is over."""
        run.over = True
        log, control = self._log, run.control
        control.on_function = control.on_tool = None
        if report.outcome is not Outcome.OK or report.violations:
            self._tell_violations(run, report)
        log.ended(run.kind, run.number, report.outcome, report.exit_code, report.usage)
        if log.blocks:
            self._let_go(run, report)

    def _let_go(self, run: _Run, report: Report) -> None:
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

    def _fail(self, run: _Run, problem: BaseException) -> None:
        """Tells that a run is over that has raised something."""
        if run.over:
            # By a hook, after its end was told.
            return
        if isinstance(problem, GuestError):
            self._end(run, problem.report)
            return
        run.over = True
        run.control.on_function = run.control.on_tool = None
        if isinstance(problem, ModuleError):
            self._tell(
                run,
                EventName.MODULE_REFUSED,
                subject=type(problem).__name__,
                reason=printable(str(problem), _TEXT),
            )
        cancelled = isinstance(problem, GeneratorExit | KeyboardInterrupt) or is_cancellation(problem)
        # What the embedder's own code has raised may hold secrets.
        why = (
            _passed(run, printable(str(problem), _TEXT))
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

    def _tell_violations(self, run: _Run, report: Report) -> None:
        told_limit = False
        for violation in report.violations[:_MOST_VIOLATIONS]:
            told_limit = self._tell_violation(run, violation) or told_limit
        if report.outcome in _STOPPED and not told_limit:
            self._tell(run, EventName.LIMIT_REACHED, name=str(report.outcome), subject=str(report.outcome), count=1)
        more = len(report.violations) - _MOST_VIOLATIONS + report.violations_dropped
        if more > 0:
            self._tell(run, EventName.DENIED, name="more", reason="more than are told one by one", count=more)

    def _tell_violation(self, run: _Run, violation: Violation) -> bool:
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

    def _called(self, run: _Run, function: str) -> None:
        """Tells that a function of the embedder's is called."""
        run.calls += 1
        if run.calls <= _MOST_CALLS:
            self._tell(run, EventName.HOST_FUNCTION_CALLED, name=printable(function), count=run.calls)

    def _found(self, run: _Run, found: Sequence[Finding]) -> None:
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

    def _hook_failed(self, run: _Run, hook: object, method: str, problem: BaseException) -> None:
        self._tell(
            run,
            EventName.HOOK_FAILED,
            subject=printable(f"{type(hook).__name__}.{method}"),
            reason=printable(type(problem).__name__),
        )

    def _tell(self, run: _Run, name: EventName, /, **fields: str | float | None) -> None:
        self._log.tell(
            name,
            run=run.name(self._log.writer),
            tenant=printable(run.tenant),
            policy=run.policy.digest,
            module=run.module.sha256,
            session=run.session,
            **{field: _passed(run, value) if isinstance(value, str) else value for field, value in fields.items()},
        )

    # -- what else happens in a sandbox -------------------------------------------------------------------------------

    def refused(self, context: PolicyContext, problem: ModuleError) -> None:
        """Tells that a module cannot be run, outside of any run.

        Args:
            context: The policy made ready.
            problem: Why.
        """
        self._log.tell(
            EventName.MODULE_REFUSED,
            policy=(self.told or context.info).digest,
            subject=type(problem).__name__,
            reason=printable(str(problem), _TEXT),
        )

    def session(self, control: RunControl, context: PolicyContext, given: Module | Snapshot) -> SessionAuditor:
        """Tells that a live instance is opened.

        Args:
            control: Its control.
            context: The policy made ready.
            given: The module, or the snapshot.
        """
        self._log.check()
        return SessionAuditor(self, self._log, control, context, given)

    def snapshot_opened(self, policy: PolicyInfo, module: Module, snapshot: Snapshot, session: str) -> None:
        if self.told is not None:
            # An interpreter begins with a snapshot of ours.
            return
        self._log.tell(
            EventName.SNAPSHOT_OPENED,
            policy=policy.digest,
            module=module.sha256,
            name=module.name,
            session=session,
            count=snapshot.memory_bytes,
        )


class SessionAuditor:
    """Tells an audit log of one live instance.

    Args:
        auditor: Tells of its runs.
        log: The log.
        control: Its control.
        context: The policy made ready.
        given: The module, or the snapshot.
    """

    def __init__(
        self, auditor: Auditor, log: AuditLog, control: RunControl, context: PolicyContext, given: Module | Snapshot
    ) -> None:
        self._auditor = auditor
        self._log = log
        self._control = control
        self._context = context
        self._name = f"{log.writer}-s{log.next_session()}"
        self._module = module = given if isinstance(given, Module) else given.module
        self._policy = policy = auditor.told or context.info
        self._open = True
        auditor.meet(policy, module)
        if isinstance(given, Snapshot):
            auditor.snapshot_opened(policy, module, given, self._name)
        self._tell(EventName.SESSION_OPENED)

    def steps(self, export: str, make: Callable[[], RunCoroutine[Report]]) -> RunCoroutine[Report]:
        """Takes the steps of a call, and tells of it.

        Args:
            export: The function that is called.
            make: Makes its steps.
        """
        auditor = self._auditor
        self._log.check()
        run = auditor.begin(self._control, self._context, self._module, "", export, self._name)
        return (yield from auditor.held(run, make))

    def snapshot_taken(self, memory_bytes: int) -> None:
        """Tells that a snapshot was taken.

        Args:
            memory_bytes: How much memory it has.
        """
        self._tell(EventName.SNAPSHOT_TAKEN, count=memory_bytes)

    def close(self) -> None:
        """Tells that it is closed, once."""
        if self._open:
            self._open = False
            self._tell(EventName.SESSION_CLOSED)

    def _tell(self, name: EventName, count: int = 0) -> None:
        self._log.tell(
            name,
            session=self._name,
            policy=self._policy.digest,
            module=self._module.sha256,
            name=self._module.name,
            count=count,
        )


def _passed(run: _Run, text: str) -> str:
    """Returns words about a run without what a gate looks for: a log is not where it may leave."""
    gate = run.control.gate
    return text if gate is None else gate.told(text)


def _run_name(control: RunControl) -> str:
    """What the caller calls a run; nothing where it is a number of ours."""
    name = control.name
    return "" if name is None or name.startswith("#") else printable(name)
