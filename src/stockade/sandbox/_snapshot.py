"""Snapshots: what a session's guest held between two calls, as users hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stockade.execution import GuestState, PolicyContext
    from stockade.modules import Module, Source

__all__ = ["Snapshot", "load_source"]


class Snapshot:
    """What a guest held between two calls: its memories and globals. Give it to `Sandbox.open`, `call` and `run`.

    Each makes a guest of its own that begins with it, in the place of a new one. They share what none of them has
    written to. It is freed with the last reference to it and the last guest that began with it.

    A guest's random state is part of it: guests that begin with one snapshot draw the same numbers from a generator
    that was seeded before it was taken.

    Args:
        held: What the guest held.
    """

    __slots__ = ("__weakref__", "_held")

    def __init__(self, held: GuestState) -> None:
        self._held = held

    def __repr__(self) -> str:
        return f"<Snapshot of {self.module.name}, {self.memory_bytes:,} bytes>"

    @property
    def module(self) -> Module:
        """The module whose guest it was taken of."""
        return self._held.module

    @property
    def memory_bytes(self) -> int:
        """How large the guest's memories are together: what each guest that begins with it takes of `limits.memory`."""
        return self._held.memory_bytes

    @property
    def stored_bytes(self) -> int:
        """How much memory it takes, once for all guests that begin with it: pages of zeros are left out.

        Of a session that itself began with a snapshot, or of which one was taken before, only what has changed since
        is stored anew; the rest is counted in both.
        """
        return self._held.instance.stored_bytes


def load_source(context: PolicyContext, source: Source | Snapshot) -> tuple[Module, GuestState | None]:
    """Loads a module, as large as the policy allows, or that of a snapshot.

    Args:
        context: The policy made ready.
        source: The module, or the snapshot.

    Returns:
        The module; and what its guests begin with, where that is not what the module begins with.

    Raises:
        ModuleError: It cannot be loaded.
    """
    if isinstance(source, Snapshot):
        held = source._held  # noqa: SLF001 - the other half of this class, kept out of the public one
        return context.load(held.module), held
    return context.load(source), None
