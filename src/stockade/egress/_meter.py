"""What a guest has used of the network, and what its policy has to say of that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from stockade.egress._failure import FailureCode, RequestFailed
from stockade.egress._resolver import Lookups
from stockade.report import Violation

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.policy import Policy

__all__ = ["Meter", "NetworkUse"]

_MOST_KINDS: Final = 64
"""How many violations are told apart; others are only counted."""


class NetworkUse(NamedTuple):
    """What was used.

    Attributes:
        sent_bytes: Sent, headers included.
        received_bytes: Received, headers included.
        connections: Connections made, one for each request.
    """

    sent_bytes: int
    received_bytes: int
    connections: int


class Meter:
    """Counts what a guest uses, and holds it to the limits. It is changed on the network's own thread only.

    Args:
        policy: The policy.
        since: Says how many seconds the guest has been running.

    Attributes:
        dropped: How many violations were not kept.
        lookups: The names that are being looked up for it.
    """

    def __init__(self, policy: Policy, since: Callable[[], float]) -> None:
        self._limits = policy.limits
        self._action = policy.on_violation
        self._since = since
        self._sent = self._received = self._connections = 0
        self._open = 0
        self._due = 0.0
        self._found: dict[tuple[str, str, str], Violation] = {}
        self.dropped = 0
        self.lookups = Lookups()

    def used(self) -> NetworkUse:
        """Returns what was used so far. May be asked from any thread."""
        return NetworkUse(self._sent, self._received, self._connections)

    def violations(self) -> tuple[Violation, ...]:
        """Returns what was refused so far. May be asked from any thread."""
        return tuple(self._found.values())

    @property
    def _refusing(self) -> Literal["deny", "stop"]:
        """What is done where nothing is let through."""
        return "stop" if self._action == "stop" else "deny"

    def begin_call(self) -> None:
        """Lets go of what was told of earlier calls of a session."""
        self._found, self.dropped = {}, 0

    def refuse(self, code: FailureCode, reason: str, violation: Violation) -> RequestFailed:
        """Notes what the policy has against a request, and returns what is told of it."""
        return RequestFailed(code, reason, self._note(violation))

    def denied(self, reason: str, subject: str, field: str) -> RequestFailed:
        """Notes that a request is not permitted. No policy lets it through: also one that audits refuses it."""
        violation = Violation(kind="network", subject=subject, call="http", action=self._refusing, field=field)
        return self.refuse(FailureCode.DENIED, reason, violation)

    def open(self, size: int) -> None:
        """Counts a request, before anything is connected to.

        Args:
            size: How many bytes are to be sent.

        Raises:
            RequestFailed: There are too many, or it would be too much.
        """
        limits = self._limits
        self._check("requests", limits.requests, self._connections + 1)
        self._check("connections", limits.connections, self._open + 1)
        self._check("sent_bytes", limits.sent_bytes, self._sent + size)
        self._connections += 1
        self._open += 1
        self._sent += size

    def closed(self, unsent: int) -> None:
        """Counts a request that is over.

        Args:
            unsent: How many bytes were not sent, for there was no connection.
        """
        self._open -= 1
        self._sent -= unsent

    async def receive(self, size: int) -> None:
        """Counts what was received, and waits until more may be.

        Raises:
            RequestFailed: It is too much.
        """
        self._received += size
        self._check("received_bytes", self._limits.received_bytes, self._received)
        await self.pace(size)

    def late(self, subject: str) -> RequestFailed:
        """Notes that a request has taken too long."""
        seconds = self._limits.request_time
        violation = Violation(
            kind="request_time",
            subject=subject,
            limit=seconds,
            call="http",
            action=self._refusing,
            field="limits.request_time",
        )
        return self.refuse(FailureCode.TIMEOUT, f"the request has taken more than {seconds:g} s", violation)

    async def pace(self, size: int) -> None:
        """Waits until so many bytes may be sent, or others received."""
        rate = self._limits.network_rate
        if rate is None:
            return
        now = asyncio.get_running_loop().time()
        # A second's worth may go at once.
        self._due = max(self._due, now - 1.0) + size / rate
        if self._due > now:
            await asyncio.sleep(self._due - now)

    def _check(self, kind: str, limit: float | None, observed: float) -> None:
        if limit is None or observed <= limit:
            return
        field = f"limits.{kind}"
        violation = Violation(
            kind=kind, subject=field, limit=limit, observed=observed, call="http", action=self._action, field=field
        )
        if self._action == "audit":
            self._note(violation)
            return
        raise self.refuse(FailureCode.LIMIT, f"{field} is {limit:,}, and this would be more", violation)

    def _note(self, violation: Violation) -> Violation:
        key = violation.kind, violation.subject, violation.field
        before = self._found.get(key)
        if before is None:
            if len(self._found) >= _MOST_KINDS:
                self.dropped += 1
                return violation
            violation = msgspec.structs.replace(violation, at=self._since())
        else:
            most = max((seen for seen in (before.observed, violation.observed) if seen is not None), default=None)
            violation = msgspec.structs.replace(before, count=before.count + 1, observed=most)
        # A new one each time, for others may look at what there is meanwhile.
        self._found = {**self._found, key: violation}
        return violation
