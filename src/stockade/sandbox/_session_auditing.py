"""What a sandbox tells its audit log of a live instance, and of the calls of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.audit import EventName
from stockade.modules import Module
from stockade.sandbox._snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.audit import AuditLog
    from stockade.execution import PolicyContext
    from stockade.report import Report
    from stockade.runner import RunControl, RunCoroutine
    from stockade.sandbox._auditing import Auditor

__all__ = ["SessionAuditor"]


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
