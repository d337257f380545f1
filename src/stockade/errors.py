"""What can go wrong, as one tree.

::

    StockadeError                 everything that Stockade raises on purpose
      PolicyError                 the policy is wrong or asks for what cannot be enforced; nothing ran
      ModuleError                 the module cannot be run; nothing ran
        ModuleNotFound            no such file
        InvalidModule             not a regular file, not WebAssembly, damaged, or beyond a structural limit
        LinkError                 it asks for an import or an entry point that is not there
      IsolationError              the isolation that was asked for is unavailable
        EngineError               the wasmtime library is missing, unfit or exhausted
        SyscallRefused            a jailed worker may not make a system call
      UsageError                  an object was used in a way it does not allow (closed, or by two threads)
      SnapshotError               a snapshot cannot be taken, kept or believed
      AuditError                  an audit log cannot be written or believed; where it is required, nothing runs
      QueueFull                   a scheduler has as many runs waiting as it takes
      GuestError                  the guest failed; raised by `check` and `stockade.call`, carries the report
        GuestExit                 it ended with a non-zero exit code
        GuestTrap                 it trapped or crashed
        LimitExceeded             it ran into a limit: fuel, time, idle time, memory, stack, output
        Denied                    the policy stopped it for something it tried
        Cancelled                 the caller cancelled it
        CodeFailed                code in an interpreter raised an exception, or left before its end; has the result

The first four are the caller's to mend; `GuestError` is what the guest did. Each message says what was wrong, where,
and what to do next. Text that a guest chose is shortened and escaped in every message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from stockade.guests import CodeResult
    from stockade.report import Report

__all__ = [
    "AuditError",
    "Cancelled",
    "CodeFailed",
    "Denied",
    "EngineError",
    "GuestError",
    "GuestExit",
    "GuestTrap",
    "InvalidModule",
    "IsolationError",
    "LimitExceeded",
    "LinkError",
    "ModuleError",
    "ModuleNotFound",
    "PolicyError",
    "QueueFull",
    "SnapshotError",
    "StockadeError",
    "SyscallRefused",
    "UsageError",
]


class StockadeError(Exception):
    """Everything that Stockade raises on purpose."""


class PolicyError(StockadeError):
    """The policy is wrong, or asks for what cannot be enforced. Nothing ran: mend the named fields.

    Attributes:
        problems: What is wrong, one sentence for each mistake.
    """

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems or (message,)

    def __reduce__(self) -> tuple[type[PolicyError], tuple[str, tuple[str, ...]]]:
        return type(self), (str(self), self.problems)

    @classmethod
    def several(cls, problems: Sequence[str], where: str = "") -> PolicyError:
        """Makes one error of several mistakes.

        Args:
            problems: A sentence for each.
            where: The file that they are in, if any.
        """
        prefix = f"{where}: " if where else ""
        if len(problems) == 1:
            return cls(f"{prefix}{problems[0]}", tuple(problems))
        listed = "".join(f"\n  {problem}" for problem in problems[:_MAX_LISTED])
        rest = len(problems) - _MAX_LISTED
        more = f"\n  and {rest:,} more" if rest > 0 else ""
        return cls(f"{prefix}{len(problems):,} mistakes:{listed}{more}", tuple(problems))


_MAX_LISTED = 20
"""Mistakes of a policy that a message tells."""


class ModuleError(StockadeError):
    """The module cannot be run. Nothing ran."""


class ModuleNotFound(ModuleError):  # noqa: N818 - named like ModuleNotFoundError's cause, not its kind
    """There is no file at the path that was given."""


class InvalidModule(ModuleError):  # noqa: N818 - public name of the design
    """The bytes are not a core WebAssembly module that may be run."""


class LinkError(ModuleError):
    """The module asks for an import, or lacks an entry point, that the run needs."""


class IsolationError(StockadeError):
    """The isolation that was asked for is unavailable."""


class EngineError(IsolationError):
    """The wasmtime library is missing, unfit for this Stockade, or out of room."""


class SyscallRefused(IsolationError):  # noqa: N818 - what became of it, as `Denied`
    """A jailed worker may not make a system call.

    Attributes:
        verdict: `forbidden`, which nothing changes; `refused`, for it is not allowed; or `unknown`.
    """

    def __init__(self, message: str, verdict: Literal["forbidden", "refused", "unknown"]) -> None:
        super().__init__(message)
        self.verdict: Literal["forbidden", "refused", "unknown"] = verdict

    def __reduce__(self) -> tuple[type[SyscallRefused], tuple[str, str]]:
        return type(self), (str(self), self.verdict)


class UsageError(StockadeError):
    """An object was used in a way that it does not allow, such as after `close` or from two threads at once."""


class SnapshotError(StockadeError):
    """A snapshot cannot be taken, for the guest holds more than it can; or its file cannot be written, or believed."""


class AuditError(StockadeError):
    """An audit log cannot be written, or read. Where it is required, nothing runs until it can be written again."""


class QueueFull(StockadeError):  # noqa: N818 - as queue.Full
    """A scheduler has as many runs waiting as it takes. The run was not accepted: try again when some are done."""


class GuestError(StockadeError):
    """The guest failed.

    Attributes:
        report: What happened, in full.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[type[GuestError], tuple[str, Report]]:
        return type(self), (str(self), self.report)


class GuestExit(GuestError):  # noqa: N818 - an exit is not an error until someone asked for success
    """The guest ended with a non-zero exit code."""


class GuestTrap(GuestError):  # noqa: N818 - the field's word
    """The guest trapped, or what ran it crashed."""


class LimitExceeded(GuestError):  # noqa: N818 - says what happened
    """The guest ran into a limit of its policy."""


class Denied(GuestError):  # noqa: N818 - says what happened
    """The policy ended the run for something that the guest tried."""


class Cancelled(GuestError):  # noqa: N818 - says what happened
    """The caller cancelled the run."""


class CodeFailed(GuestError):  # noqa: N818 - says what happened
    """Code in an interpreter did not come to its end: it raised an exception, or left with an exit code.

    Attributes:
        result: What it gave, with the error and the traceback in full.
    """

    def __init__(self, message: str, result: CodeResult) -> None:
        super().__init__(message, result.report)
        self.result = result

    def __reduce__(self) -> tuple[type[CodeFailed], tuple[str, CodeResult]]:  # type: ignore[override]
        return type(self), (str(self), self.result)
