"""What a guest holds between two calls, taken and put into new guests.

A snapshot is of the guest only: its memories and mutable globals. The guard's state is none of it: every new guest gets
that written as any run does, by its own policy and its own inputs. What cannot be taken is refused in words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import msgspec

from stockade._later import called_later
from stockade._pages import PAGE_BYTES
from stockade.errors import SnapshotError
from stockade.execution._first_pages import FirstPages

if TYPE_CHECKING:
    from stockade.engine import Instance, InstanceState
    from stockade.execution._plan import Plan
    from stockade.execution._warm import WarmPool
    from stockade.guard import State
    from stockade.modules import Module

__all__ = ["SPARE_MAPS", "GuestState", "SavedGuest", "put_guest_state", "take_guest_state"]

_in_large_pages, _put_state, _share_state, _take_state = (
    called_later("stockade.engine", name) for name in ("in_large_pages", "put_state", "share_state", "take_state")
)

SPARE_MAPS = 16
"""Memory maps that a restored guest may come to have beyond those that it begins with, as snapshots are taken of it."""

_SHOWN = 5
"""Descriptors that a message names."""


class GuestState(msgspec.Struct, frozen=True):
    """What a guest of a module held.

    Attributes:
        module: The module.
        instance: Its memories and globals.
        started: Whether what was the module's start function has run.
    """

    module: Module
    instance: InstanceState
    started: bool

    @property
    def memory_bytes(self) -> int:
        """How large its memories are together."""
        return sum(memory.size_bytes for memory in self.instance.memories)

    @property
    def grown_bytes(self) -> int:
        """By how much they are larger than those of a new guest."""
        return self.memory_bytes - sum(_initial_bytes(self.module))

    def in_large_pages(self) -> GuestState:
        """Returns the same for many guests to begin with: however long it takes, it is in large pages if it can be."""
        return msgspec.structs.replace(self, instance=_in_large_pages(self.instance))


class SavedGuest:
    """What a guest held, and how others are made of it.

    Args:
        state: What it held.

    Attributes:
        state: What it held.
        warm: Instances that were made ahead, by what they run under.
        pages: Which pages of theirs their first calls touch.
    """

    def __init__(self, state: GuestState) -> None:
        self.state = state
        # By what they run under. No plan refers to this, so it is freed with the last reference to it.
        self._plans: WeakKeyDictionary[object, Plan] = WeakKeyDictionary()
        self.warm: WeakKeyDictionary[object, WarmPool] = WeakKeyDictionary()
        self.pages = FirstPages()

    def plan(self, under: object, plan: Plan) -> Plan:
        """Returns the plan for guests that begin with it.

        Args:
            under: What they run under.
            plan: The plan there for new guests of the module.
        """
        found = self._plans.get(under)
        if found is None:
            found = self._plans[under] = plan.restoring(self.state)
        return found


def take_guest_state(
    plan: Plan, instance: Instance, state: State | None, below: InstanceState | None, *, started: bool
) -> tuple[GuestState, InstanceState | None]:
    """Takes what a guest holds, between two calls.

    Args:
        plan: What it was made of.
        instance: Its instance, of which nothing runs.
        state: The guard's state.
        below: What was put into it when it was made, or was last taken of it and is shared with it.
        started: Whether what was its start function has run.

    Returns:
        What it holds; and what of that its instance shares from now on, for the next time.

    Raises:
        SnapshotError: There is more to it than can be taken.
        EngineError: There is no room for a snapshot.
    """
    exposed = plan.program.woven.exposed
    if exposed.obstacles:
        raise SnapshotError(
            f"no snapshot can be taken of {plan.module.name}: {'; '.join(exposed.obstacles)}, and that cannot be read "
            "back. Open a new session instead"
        )
    if state is not None:
        _check(state)
    initial = _initial_bytes(plan.module)
    held = _take_state(instance, exposed.memories, exposed.globals, initial, below)
    taken = GuestState(plan.module, held, started)
    if not instance.is_pooled and plan.held is not None and held.maps <= plan.held.instance.maps + SPARE_MAPS:
        # Else it would come to have more memory maps than were counted for it.
        _share_state(instance, exposed.memories, initial, held)
        return taken, held
    return taken, below


def _check(state: State) -> None:
    if count := state.open_files():
        raise SnapshotError(
            f"the guest has {count:,} {'file' if count == 1 else 'files'} open, and a snapshot holds no files: let it "
            "close them first"
        )
    if changed := state.changed_descriptors():
        shown = ", ".join(map(str, changed[:_SHOWN])) + (" and more" if len(changed) > _SHOWN else "")
        raise SnapshotError(
            f"the guest has closed or renumbered descriptors ({shown}), and a snapshot begins with all of them as they "
            "were: take it before that"
        )
    if state.has_untaken_output():
        raise SnapshotError(
            "output of the guest has not been taken by its callbacks: make a call, and take it after that"
        )


def put_guest_state(plan: Plan, instance: Instance, held: GuestState) -> None:
    """Puts into a new instance what another guest of the same module held.

    Args:
        plan: What the instance was made of.
        instance: The instance; nothing of it has run.
        held: What the other guest held.

    Raises:
        EngineError: There is no memory for it, or no memory map.
    """
    exposed = plan.program.woven.exposed
    _put_state(instance, exposed.memories, exposed.globals, _initial_bytes(plan.module), held.instance)


def _initial_bytes(module: Module) -> list[int]:
    return [pages * PAGE_BYTES for pages in module.parsed.memories]
