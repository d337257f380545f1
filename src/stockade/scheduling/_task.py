"""A run as plain data: what to run, for whom, under which limits; and what came of it. Both go through JSON."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime  # noqa: TC003 - msgspec looks it up
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from stockade._json import JsonRecord
from stockade._text import printable
from stockade.errors import PolicyError, UsageError
from stockade.execution import check_arguments
from stockade.policy import Network, Policy, policy_of
from stockade.report import Outcome, Usage
from stockade.runner import NORMAL_PRIORITY
from stockade.sandbox import check_count

if TYPE_CHECKING:
    from typing import Self, TypeAlias

    from stockade.execution import Stdin
    from stockade.modules import Source
    from stockade.report import Report

    _Module: TypeAlias = Source
    _Input: TypeAlias = Stdin
    _Own: TypeAlias = str | dict[str, Any] | Policy | os.PathLike[str] | None
else:
    # What JSON can say of them; Python can say more.
    _Module = str
    _Input = str
    _Own = str | dict[str, Any] | None

__all__ = ["Quota", "Task", "TaskResult"]

_LEAST_CORES: Final = 0.01
_LEAST_SECONDS: Final = 0.001
_MOST_SECONDS: Final = 10 * 365 * 86_400.0
_MOST_MBPS: Final = 80_000
"""What the limits of a policy can say."""


_BYTES_OF_MEGABIT: Final = 125_000


def _random_name() -> str:
    """A random UUID, as `uuid.uuid4` makes one, in a fifth of its time."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


class Quota(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a task may use. It narrows the policy of the sandbox, and never widens it.

    Attributes:
        max_cpu_cores: Cores, from 0.01 on; a guest has one thread, so from 1 on nothing more is to be had.
        max_memory_mb: Mebibytes of memories and tables, from 1 on.
        max_execution_time_secs: Seconds from the first instruction to the last, from 0.001 on.
        max_network_mbps: Megabits per second, sent and received; with less than a byte there is no network.

    Raises:
        UsageError: A number is out of range.
    """

    max_cpu_cores: float = 1.0
    max_memory_mb: int = 512
    max_execution_time_secs: float = 300.0
    max_network_mbps: float = 10.0

    def __post_init__(self) -> None:
        check_count("quota.max_memory_mb", self.max_memory_mb, 1)
        _check_number("quota.max_cpu_cores", self.max_cpu_cores, _LEAST_CORES)
        _check_number("quota.max_execution_time_secs", self.max_execution_time_secs, _LEAST_SECONDS, _MOST_SECONDS)
        _check_number("quota.max_network_mbps", self.max_network_mbps, 0)

    def narrowed(self, policy: Policy) -> Policy:
        """Returns a policy with these limits, where they are stricter than its own.

        Args:
            policy: The policy.
        """
        limits = policy.limits
        seconds, wall_time = float(self.max_execution_time_secs), limits.wall_time
        # Rounded first: 0.57 * 100 is less than 57.
        percent = int(round(min(self.max_cpu_cores, 1) * 100, 6))
        return self._paced(policy).replace(
            cpu_percent=min(percent, limits.cpu_percent),
            memory=min(self.max_memory_mb << 20, limits.memory),
            wall_time=seconds if wall_time is None else min(seconds, wall_time),
        )

    def _paced(self, policy: Policy) -> Policy:
        """Returns a policy with the pace of the network, where there is one."""
        if policy.network.mode == "none":
            return policy
        rate, most = int(min(self.max_network_mbps, _MOST_MBPS) * _BYTES_OF_MEGABIT), policy.limits.network_rate
        if rate < 1:
            return policy.replace(network=Network())
        return policy.replace(network_rate=rate if most is None else min(rate, most))


def _check_number(name: str, number: float, least: float, most: float | None = None) -> None:
    most_of_all = sys.float_info.max if most is None else most
    # Written so that NaN, too, is none.
    if type(number) not in (int, float) or not least <= number <= most_of_all:
        bounds = f"from {least} on" if most is None else f"from {least} to {most:,.0f}"
        raise UsageError(f"{name} is {number!r}: it must be a number {bounds}")


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run.

    Attributes:
        module: The path of a module; in Python, also its bytes, or a loaded module, which is faster.
        id: What it is called; by default, a random UUID.
        export: The function to call; without one, it is run as a WASI command.
        args: Arguments of the command, or of the function: there, numbers and texts.
        stdin: Its standard input: text; in Python, also what `Sandbox.run` takes.
        env: Its environment.
        policy: The name of a preset, or a policy as a document has it, that holds beside the sandbox's own; in Python,
            also a `Policy`, or the `Path` of a file.
        quota: What it may use, beside that.
        priority: Its share among the tasks of its tenant, 1 to 100.
        tenant: For whom it runs: tenants have equal shares.

    Raises:
        UsageError: `args` is a single text, or no list.
    """

    module: _Module
    id: str = msgspec.field(default_factory=_random_name)
    export: str | None = None
    args: tuple[int | float | str, ...] = ()
    stdin: _Input = ""
    env: dict[str, str] = {}
    policy: _Own = None
    quota: Quota | None = None
    priority: int = NORMAL_PRIORITY
    tenant: str = ""

    def __post_init__(self) -> None:
        check_arguments(self.args)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Reads a task.

        Args:
            text: A JSON object with these fields by their names.

        Raises:
            UsageError: It is none; the message says where it is wrong.
        """
        return _decode(text, cls, "a task")

    def to_json(self) -> str:
        """Returns it as JSON, for `from_json`.

        Raises:
            UsageError: It holds something that JSON has no way to say, such as a module that is not a path.
        """
        module = os.fspath(self.module) if isinstance(self.module, os.PathLike) else self.module
        for name, value, kinds, advice in (
            ("module", module, str, "give the path of a module"),
            ("stdin", self.stdin, str, "give text"),
            ("policy", self.policy, str | dict | None, "give the name of a preset, or what a document says"),
        ):
            if not isinstance(value, kinds):
                raise UsageError(f"{name} is {type(value).__name__}, which JSON has no way to say: {advice}")
        try:
            text = msgspec.json.encode(msgspec.structs.replace(self, module=module)).decode()
        except (TypeError, ValueError, RecursionError) as problem:
            raise UsageError(f"JSON has no way to say this task: {printable(str(problem))}") from None
        # What does not come back would not be what is run there.
        type(self).from_json(text)
        return text

    def narrowed(self, policy: Policy) -> Policy:
        """Returns the policy that the task runs under in a sandbox.

        Args:
            policy: The sandbox's own.

        Raises:
            PolicyError: The task's own policy is none.
        """
        own = self.policy
        if own is not None:
            policy = policy.narrow(_policy_of(own))
        if self.quota is None:
            return policy
        if not isinstance(self.quota, Quota):
            raise UsageError(f"quota is {type(self.quota).__name__}: give a Quota, or None")
        return self.quota.narrowed(policy)


def _policy_of(told: object) -> Policy:
    # Text is a name only: a task may come from elsewhere, and would learn of our files by what is said of them.
    if isinstance(told, str):
        return Policy.preset(told)
    if not isinstance(told, dict):
        return policy_of(told)
    try:
        text = msgspec.json.encode(told).decode()
    except (TypeError, ValueError, RecursionError) as problem:
        raise PolicyError(f"the policy of the task is not plain data: {printable(str(problem))}") from None
    return Policy.loads(text, "json")


_Read = TypeVar("_Read")


def _decode(text: str | bytes, kind: type[_Read], what: str) -> _Read:
    if not isinstance(text, str | bytes):
        raise UsageError(f"this is not {what}: it is {type(text).__name__}, where JSON is expected")
    try:
        # Decoded here, so that what is wrong is said in the same words by every release of msgspec.
        plain = text if isinstance(text, str) else text.decode()
        plain.encode()
        found = msgspec.json.decode(plain, type=kind)
        # Of a key that is there twice, one reader sees the first and another the last: who has checked the one would
        # run the other.
        json.loads(plain, object_pairs_hook=_once)
    except (UnicodeDecodeError, UnicodeEncodeError) as problem:
        raise UsageError(f"this is not {what}: it is not UTF-8, from position {problem.start} on") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as problem:
        raise UsageError(f"this is not {what}: {printable(str(problem))}") from None
    return found


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {printable(twice)} is there twice")
    return found


class TaskResult(msgspec.Struct, JsonRecord, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of a task.

    Attributes:
        task_id: The task.
        success: Whether the guest returned, or exited with code 0.
        outcome: How it ended; None where it could not be run at all.
        output: What it returned (a v128 as hexadecimal digits), or what it wrote to stdout, as text (bytes that are
            none replaced). JSON has no infinities and no NaN: they are null there.
        execution_time_ms: Milliseconds from its first instruction to the last.
        resource_usage: What it used.
        error: What went wrong, in a sentence; None where nothing did.
        completed_at: When it was over, in UTC.
    """

    task_id: str
    success: bool
    outcome: Outcome | None
    output: int | float | str | list[int | float | str | None] | None
    execution_time_ms: float
    resource_usage: Usage
    error: str | None
    completed_at: datetime

    @classmethod
    def of(cls, task_id: str, report: Report, completed_at: datetime) -> Self:
        """Tells of a run.

        Args:
            task_id: The task.
            report: What happened.
            completed_at: When it was over.
        """
        value: Any = report.value
        if value is None:
            value = report.stdout.decode(errors="replace")
        elif isinstance(value, list):
            value = [_plain(part) for part in value]
        error = None if report.ok else f"{report.module.name}: {report.summary()}"
        return cls(
            task_id=task_id,
            success=report.ok,
            outcome=report.outcome,
            output=_plain(value),
            execution_time_ms=report.usage.wall_seconds * 1e3,
            resource_usage=report.usage,
            error=error,
            completed_at=completed_at,
        )

    @classmethod
    def refused(cls, task_id: str, problem: Exception, completed_at: datetime, outcome: Outcome | None = None) -> Self:
        """Tells of a task that could not be run.

        Args:
            task_id: The task.
            problem: Why.
            completed_at: When that was found.
            outcome: `CANCELLED`, where it was cancelled before it began.
        """
        return cls(
            task_id=task_id,
            success=False,
            outcome=outcome,
            output=None,
            execution_time_ms=0.0,
            resource_usage=Usage(),
            error=str(problem),
            completed_at=completed_at,
        )

    def to_json(self) -> str:
        """Returns it as JSON: an object with these fields by their names."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            UsageError: It is something else.
        """
        return _decode(text, cls, "the result of a task")


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
