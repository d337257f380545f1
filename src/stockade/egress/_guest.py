"""The network as one guest has it: its requests under way, and what it has used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from stockade.egress._client import INSTALL, Client, is_installed
from stockade.egress._exchange import Exchange
from stockade.egress._failure import FailureCode, RequestFailed
from stockade.egress._meter import Meter, NetworkUse
from stockade.egress._url import BadUrl, parse_url
from stockade.gate import violation_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.egress._exchange import Request
    from stockade.gate import GateRun
    from stockade.policy import Policy
    from stockade.report import Violation

__all__ = ["GuestNetwork"]

_MOST_HANDLES: Final = 1_000
"""Answers that a guest may have without closing them."""

_MOST_KEPT: Final = 64
"""Of how many answers the host keeps what the guest has not taken, up to a quarter of a mebibyte each;
more where its policy permits more connections."""


def _no_gate() -> GateRun | None:
    return None


def _as_sent(url: str) -> str:
    """Returns a URL as it leaves; as it is where it is none, and nothing is asked of it."""
    try:
        return parse_url(url).url
    except BadUrl:
        return url


class GuestNetwork:
    """What one guest has of the network.

    Args:
        client: What its requests have in common with those of others.
        policy: The policy that it runs under.
        since: Says how many seconds it has been running.
        gate: Says what looks at its requests; None where nothing is looked for.

    Attributes:
        reason: Why the last request failed; "" where none has.
    """

    def __init__(
        self,
        client: Client,
        policy: Policy,
        since: Callable[[], float],
        gate: Callable[[], GateRun | None] = _no_gate,
    ) -> None:
        self._client = client
        self._policy = policy
        self._meter = Meter(policy, since)
        self._gate = gate
        self._before = NetworkUse(0, 0, 0)
        self._exchanges: dict[int, Exchange] = {}
        self._number = 0
        self.reason = ""

    @property
    def stops(self) -> bool:
        """Whether the policy ends a run for what it refuses."""
        return self._policy.on_violation == "stop"

    def begin(self, request: Request) -> tuple[int, Exchange]:
        """Begins a request.

        Returns:
            Its number, and itself.

        Raises:
            RequestFailed: It cannot begin.
            EngineError: There is no thread for it.
        """
        if not is_installed() and self._policy.network.mode != "none":
            raise RequestFailed(FailureCode.UNAVAILABLE, f"this installation has no HTTP client: {INSTALL}")
        if len(self._exchanges) >= _MOST_HANDLES:
            raise RequestFailed(FailureCode.LIMIT, f"{_MOST_HANDLES:,} answers are open: close some")
        policy = self._policy
        most_kept = max(_MOST_KEPT, policy.limits.connections)
        if sum(exchange.is_kept() for exchange in self._exchanges.values()) >= most_kept:
            raise RequestFailed(
                FailureCode.LIMIT, f"{most_kept} answers are not read to their ends: read or close some"
            )
        gate = self._gate()
        if gate is not None and policy.network.mode != "none":
            request = self._released(gate, request)
        exchange = Exchange(self._client, policy.network, self._meter, request, policy.limits.request_time)
        self._number += 1
        self._exchanges[self._number] = exchange
        exchange.begin()
        return self._number, exchange

    def _released(self, gate: GateRun, request: Request) -> Request:
        """Returns a request as it may leave.

        Raises:
            RequestFailed: It may not.
        """
        sent = _as_sent(request.url)
        found = gate.request(
            request.url, request.headers, request.body, request.method, sent if sent != request.url else None
        )
        if isinstance(found, tuple):
            url, headers, body = found
            return request._replace(url=url, headers=headers, body=body)
        violation = msgspec.structs.replace(violation_of(found), action="stop" if self.stops else "deny", call="http")
        raise RequestFailed(
            FailureCode.DENIED, f"there is {violation.subject}, which {violation.field} keeps back", violation
        )

    def exchange(self, number: int) -> Exchange:
        """Returns a request by its number.

        Raises:
            RequestFailed: There is none.
        """
        found = self._exchanges.get(number)
        if found is None:
            raise RequestFailed(FailureCode.HANDLE, "there is no such answer: it was closed, or never was")
        return found

    def close(self, number: int) -> None:
        """Ends a request, and closes its connection. Of one that is not there, nothing is said."""
        found = self._exchanges.pop(number, None)
        if found is not None:
            found.close()

    def end(self) -> None:
        """Ends all requests: the call is over."""
        while self._exchanges:
            self._exchanges.popitem()[1].close()

    def take_use(self) -> NetworkUse:
        """Returns what was used since this was last called."""
        now, before = self._meter.used(), self._before
        self._before = now
        return NetworkUse(*(total - earlier for total, earlier in zip(now, before, strict=True)))

    def take_violations(self) -> tuple[tuple[Violation, ...], int]:
        """Returns what was refused since this was last called, and how many kinds of it were not kept."""
        found, dropped = self._meter.violations(), self._meter.dropped
        self._meter.begin_call()
        return found, dropped
