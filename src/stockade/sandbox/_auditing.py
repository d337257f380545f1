"""What a sandbox tells its audit log: of modules, policies, sessions and snapshots, and of each run from begin to end.

All runs pass here, whoever takes their steps. Where there is no log, nobody comes here.
"""

from __future__ import annotations

import platform
from time import time
from typing import TYPE_CHECKING, Final

from stockade._text import printable
from stockade._version import __version__
from stockade.audit import ENDED, STARTED, AuditLog, EventName, RunKind, pack
from stockade.engine import wasmtime_version
from stockade.errors import ModuleError, UsageError
from stockade.modules import Module
from stockade.report import Outcome, PolicyInfo, Report
from stockade.runner import ASIDE
from stockade.sandbox._audited_run import AuditedRun, run_name
from stockade.sandbox._run_telling import MOST_TEXT, RunTeller
from stockade.sandbox._session_auditing import SessionAuditor
from stockade.sandbox._snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.execution import PolicyContext
    from stockade.modules import Source
    from stockade.policy import Isolation
    from stockade.runner import RunControl, RunCoroutine

__all__ = ["Auditor"]

_MOST_MET: Final = 1024
"""Modules and policies that are known to have been told of."""

_MOST_KINDS: Final = 256
"""Kinds of runs that are kept."""

_RARELY: Final = 1022
"""Of the numbers of events, which are even or odd for most begins of runs, one in so many has none of these bits."""

_OK: Final = Outcome.OK


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
        self._teller = RunTeller(log)
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
            self._teller.fail(self._briefly(number, control, context, module, export), problem)
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
            self._teller.end(self._briefly(number, control, context, module, export), report)
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
    ) -> AuditedRun:
        """Returns a run of which no more was made at its begin than its number."""
        assert isinstance(module, Module)
        policy = self.told or context.info
        kind = self._kind(policy, context.isolation, module, export)
        return AuditedRun(number, kind, control, module, policy, export=export)

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
            report = (self._teller.hold(run) if self._log.blocks else None) or do(control, context, loaded, *given)
            self._teller.end(run, report)
        except BaseException as problem:
            self._teller.fail(run, problem)
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
            self._teller.end(run, begun)
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

    def held(self, run: AuditedRun, make: Callable[[], RunCoroutine[Report]]) -> RunCoroutine[Report]:
        """Takes the steps of a run that has been told of, where no hook refuses it."""
        try:
            if self._log.blocks:
                run.control.calls_out = True
                yield ASIDE
                report = self._teller.hold(run) or (yield from make())
            else:
                report = yield from make()
        except BaseException as problem:
            self._teller.fail(run, problem)
            raise
        self._teller.end(run, report)
        return report

    def _rest(self, run: AuditedRun, steps: RunCoroutine[Report]) -> RunCoroutine[Report]:
        try:
            report = yield from steps
        except BaseException as problem:
            self._teller.fail(run, problem)
            raise
        self._teller.end(run, report)
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
                reason=printable(str(problem), MOST_TEXT),
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
    ) -> AuditedRun:
        """Tells that a run begins."""
        policy = self.told or context.info
        module = given if isinstance(given, Module) else given.module
        kind = self._kind(policy, context.isolation, module, export, tenant, session, run_name(control))
        if isinstance(given, Snapshot):
            self.snapshot_opened(policy, module, given, session)
        log = self._log
        run = AuditedRun(log.started(kind, at or time()), kind, control, module, policy, tenant, export, session)
        if context.functions.count and self.tells_functions:
            control.on_function = lambda function: self._teller.called(run, function)
        elif not self.tells_functions:
            control.on_tool = lambda tool: self._teller.called(run, tool)
            control.on_found = lambda found: self._teller.found(run, found)
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
            reason=printable(str(problem), MOST_TEXT),
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
