"""An open guest as all rooms above this one know it, and what it does in the same way wherever it lives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from stockade.execution._asked import ask
from stockade.execution._values import bind_arguments
from stockade.runner import run_blocking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.egress import Client, GuestNetwork
    from stockade.engine import GuestBytes
    from stockade.execution._monitoring import Monitoring, RunMonitor
    from stockade.execution._plan import Plan
    from stockade.execution._snapshot import GuestState
    from stockade.execution._streams import Streams
    from stockade.execution._string_calls import Returns
    from stockade.execution._values import Argument, Call
    from stockade.policy import Policy
    from stockade.report import Progress, Report, Value
    from stockade.runner import AwaitedCall, RunControl, RunCoroutine

__all__ = ["OpenGuest", "does_call_out"]


def does_call_out(plan: Plan, streams: Streams | None, monitoring: Monitoring | None) -> bool:
    """Returns whether functions of the embedder are called while a guest runs, on the thread that drives it.

    Args:
        plan: What runs.
        streams: Who serves it.
        monitoring: Who looks at it in its course.
    """
    if monitoring is not None and monitoring.on_alert is not None:
        return True
    return plan.calls_out or (streams is not None and streams.calls_out)


class OpenGuest(ABC):
    """One live instance of a module under a policy, to call into. For one thread at a time.

    It may live in this process, or in one of its own.
    """

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
        return does_call_out(self._plan, self._streams, None if self._monitor is None else self._monitor.asked)

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether it has come to its end, so that it can not be called again."""

    @property
    @abstractmethod
    def is_restored(self) -> bool:
        """Whether it began with what another guest held, so that it is not to be initialized."""

    @property
    @abstractmethod
    def is_in_function(self) -> bool:
        """Whether a plain host function is called just now, on the thread that drives it."""

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

    @abstractmethod
    def invoke(self, call: Call, *, command: bool = False) -> RunCoroutine[Report]:
        """Calls an exported function and reports on it, in steps.

        Args:
            call: The function, and what is passed.
            command: Whether its result is an exit code.
        """

    @abstractmethod
    def renew(self) -> None:
        """Gives it a fresh budget of fuel and fresh counters, for the next call."""

    @abstractmethod
    def begin_turn(self) -> None:
        """Begins another turn of a call in which it waits for its standard input."""

    @abstractmethod
    def end_turn(self) -> Report:
        """Reports on a turn of a call that goes on later."""

    @abstractmethod
    def final_report(self) -> Report:
        """Reports on a guest that had ended before anything of it was called."""

    @abstractmethod
    def progress(self) -> Progress | None:
        """Tells how far it is; None where it has been closed. May be called from any thread, at any time."""

    @abstractmethod
    def memory(self, name: bytes) -> GuestBytes:
        """Returns an exported memory.

        Raises:
            UsageError: It has none of that name, or has ended.
        """

    @abstractmethod
    def take_state(self) -> GuestState:
        """Takes what it holds, between two calls.

        Raises:
            UsageError: It has ended.
            SnapshotError: There is more to it than can be taken.
            EngineError: There is no room for a snapshot.
        """

    @abstractmethod
    def keep(self) -> None:
        """Sees to it that it is freed after all that could look at it, where it is dropped and not closed."""

    @abstractmethod
    def close(self) -> None:
        """Frees everything. Closing twice is harmless."""

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

    @abstractmethod
    def awaited_here(self) -> AwaitedCall | None:
        """Returns the call of a coroutine host function in whose context this is; None where there is none such."""

    async def await_within(self, awaited: AwaitedCall, call: Call) -> Report:
        """Makes a call within a coroutine host function.

        Args:
            awaited: The call of the host function.
            call: The call of the export.

        Raises:
            UsageError: It cannot be made.
        """
        return await ask(awaited, self._control.wake, call)
