"""An open guest as all rooms above this one know it: it may live in this process, or in one of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from stockade.egress import GuestNetwork
    from stockade.engine import GuestBytes
    from stockade.execution._snapshot import GuestState
    from stockade.execution._values import Call
    from stockade.policy import Policy
    from stockade.report import Progress, Report
    from stockade.runner import AwaitedCall, RunCoroutine

__all__ = ["OpenGuest"]


class OpenGuest(Protocol):
    """One live instance of a module under a policy, to call into. For one thread at a time."""

    @property
    def policy(self) -> Policy:
        """The policy that it runs under."""

    @property
    def calls_out(self) -> bool:
        """Whether functions of the embedder are called while it runs, on the thread that drives it."""

    @property
    def ended(self) -> bool:
        """Whether it has come to its end, so that it can not be called again."""

    @property
    def is_restored(self) -> bool:
        """Whether it began with what another guest held, so that it is not to be initialized."""

    @property
    def is_in_function(self) -> bool:
        """Whether a plain host function is called just now, on the thread that drives it."""

    @property
    def network(self) -> GuestNetwork:
        """What it has of the network."""

    def invoke(self, call: Call, *, command: bool = False) -> RunCoroutine[Report]:
        """Calls an exported function and reports on it, in steps.

        Args:
            call: The function, and what is passed.
            command: Whether its result is an exit code.
        """

    def renew(self) -> None:
        """Gives it a fresh budget of fuel and fresh counters, for the next call."""

    def begin_turn(self) -> None:
        """Begins another turn of a call in which it waits for its standard input."""

    def end_turn(self) -> Report:
        """Reports on a turn of a call that goes on later."""

    def final_report(self) -> Report:
        """Reports on a guest that had ended before anything of it was called."""

    def progress(self) -> Progress | None:
        """Tells how far it is; None where it has been closed. May be called from any thread, at any time."""

    def memory(self, name: bytes) -> GuestBytes:
        """Returns an exported memory.

        Raises:
            UsageError: It has none of that name, or has ended.
        """

    def take_state(self) -> GuestState:
        """Takes what it holds, between two calls.

        Raises:
            UsageError: It has ended.
            SnapshotError: There is more to it than can be taken.
            EngineError: There is no room for a snapshot.
        """

    def call_within(self, call: Call) -> Report:
        """Makes a call within a plain host function, on its thread.

        Raises:
            UsageError: It cannot be made.
        """

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

    def keep(self) -> None:
        """Sees to it that it is freed after all that could look at it, where it is dropped and not closed."""

    def close(self) -> None:
        """Frees everything. Closing twice is harmless."""
