"""A run that is told to an audit log, from its begin to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade._text import printable
from stockade.audit import RunInfo, RunKind

if TYPE_CHECKING:
    from stockade.modules import Module
    from stockade.report import PolicyInfo
    from stockade.runner import RunControl

__all__ = ["AuditedRun", "passed", "run_name"]


class AuditedRun:
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
            run_name=run_name(self.control),
        )


def passed(run: AuditedRun, text: str) -> str:
    """Returns words about a run without what a gate looks for: a log is not where it may leave."""
    gate = run.control.gate
    return text if gate is None else gate.told(text)


def run_name(control: RunControl) -> str:
    """What the caller calls a run; nothing where it is a number of ours."""
    name = control.name
    return "" if name is None or name.startswith("#") else printable(name)
