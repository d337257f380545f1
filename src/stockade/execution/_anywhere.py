"""What a guest does in the same way wherever it lives: in this process, or in one of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from stockade.execution._asked import ask
from stockade.execution._values import bind_arguments
from stockade.runner import run_blocking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.egress import Client, GuestNetwork
    from stockade.execution._monitoring import RunMonitor
    from stockade.execution._plan import Plan
    from stockade.execution._streams import Streams
    from stockade.execution._string_calls import Returns
    from stockade.execution._values import Argument, Call
    from stockade.policy import Policy
    from stockade.report import Report, Value
    from stockade.runner import AwaitedCall, RunControl, RunCoroutine

__all__ = ["GuestAnywhere"]


class GuestAnywhere(ABC):
    """A guest, of which this does not say where it lives."""

    _plan: Plan
    _control: RunControl
    _streams: Streams | None
    _monitor: RunMonitor | None
    _client: Client | None
    _network: GuestNetwork | None

    @property
    def policy(self) -> Policy:
        """The policy that it runs under."""
        return self._plan.policy

    @property
    def calls_out(self) -> bool:
        """Whether functions of the embedder are called while it runs, on the thread that drives it."""
        if self._monitor is not None and self._monitor.asked.on_alert is not None:
            return True
        return self._plan.calls_out or (self._streams is not None and self._streams.calls_out)

    @property
    def network(self) -> GuestNetwork:
        """What it has of the network, whatever its policy permits of that; all of it is in this process."""
        if self._network is None:
            # Most guests have no use for it.
            from stockade.egress import Client, GuestNetwork

            self._network = GuestNetwork(
                self._client or Client(), self.policy, self._seconds, lambda: self._control.gate
            )
        return self._network

    @abstractmethod
    def _seconds(self) -> float:
        """Says how long its call has been under way."""

    # -- exports called while it is halted in a host function ----------------------------------------------------------

    @abstractmethod
    def within(self, call: Call) -> RunCoroutine[Report]:
        """Makes a call while the guest is halted in one of a host function, in steps.

        Raises:
            UsageError: It cannot be made.
        """

    def call_back(self, export: str, args: Sequence[Argument], returns: Returns | None) -> Value:
        """Calls an export within a plain host function, on its thread; returns its value.

        Raises:
            GuestError: The guest has ended in it.
            LinkError: There is no such function.
            UsageError: The call cannot be made.
        """
        return self.call_within(bind_arguments(self._plan.module, export, args, returns)).check().value

    def call_within(self, call: Call) -> Report:
        """Makes a call within a plain host function, on its thread.

        Raises:
            UsageError: It cannot be made.
        """
        return run_blocking(self.within(call), self._control)

    async def await_within(self, awaited: AwaitedCall, call: Call) -> Report:
        """Makes a call within a coroutine host function.

        Args:
            awaited: The call of the host function.
            call: The call of the export.

        Raises:
            UsageError: It cannot be made.
        """
        return await ask(awaited, self._control.wake, call)
