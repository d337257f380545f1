"""What a guest holds between two calls, taken and put into new guests.

A snapshot is of the guest only: its memories and mutable globals. The guard's state is none of it: every new guest gets
that written as any run does, by its own policy and its own inputs. What cannot be taken is refused in words.
"""

from __future__ import annotations

import time
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import msgspec

from stockade._later import called_later
from stockade._pages import PAGE_BYTES
from stockade.errors import EngineError, SnapshotError
from stockade.execution._first_pages import FirstPages
from stockade.runner import GO_ON, RunControl, WorkItem, executor

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.engine import Instance, InstanceState
    from stockade.execution._plan import Plan
    from stockade.execution._warm import WarmPool
    from stockade.guard import State
    from stockade.modules import Module
    from stockade.runner import RunCoroutine

__all__ = [
    "SPARE_MAPS",
    "GuestState",
    "SavedGuest",
    "known_apart",
    "make_forkable",
    "plan_and_pool",
    "put_guest_state",
    "take_guest_state",
]

_in_large_pages, _make_forkable, _put_state, _share_state, _take_state = (
    called_later("stockade.engine", name)
    for name in ("in_large_pages", "make_forkable", "put_state", "share_state", "take_state")
)

_FORKABLE_MAPS: Final = 256
"""Memory maps that a memory that lies in a file of its own comes to have more, at most."""

SPARE_MAPS = 16
"""Memory maps that a restored guest may come to have beyond those that it begins with, as snapshots are taken of it."""

_LEAST_PRIORITY: Final = 1

_SETTLED_SECONDS: Final = 0.02
"""After how long what is aside is given back."""

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
    plan: Plan,
    instance: Instance,
    state: State | None,
    below: InstanceState | None,
    *,
    started: bool,
    whole: bool = False,
) -> tuple[GuestState, InstanceState | None]:
    """Takes what a guest holds, between two calls.

    Args:
        plan: What it was made of.
        instance: Its instance, of which nothing runs.
        state: The guard's state.
        below: What was put into it when it was made, or was last taken of it and is shared with it.
        started: Whether what was its start function has run.
        whole: Whether the last time did not come to its end, so that nobody knows what is mapped over its memories.

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
    held = _take_state(instance, exposed.memories, exposed.globals, initial, below, whole=whole)
    taken = GuestState(plan.module, held, started)
    if instance.forkable:
        # It goes on with what it shares. What was moved aside is given back while others go on.
        _settle_later(held)
        return taken, held
    if not instance.is_pooled and plan.held is not None and held.maps <= plan.held.instance.maps + SPARE_MAPS:
        # Else it would come to have more memory maps than were counted for it.
        _share_state(instance, exposed.memories, initial, held)
        return taken, held
    return taken, below


def _settle_later(held: InstanceState) -> None:
    files = {id(part.file): part.file for image in held.memories for part in image.extents if not part.file.is_settled}
    if not files:
        return

    def steps() -> RunCoroutine[None]:
        # Not while the fork is opened, which would wait for it.
        yield time.monotonic() + _SETTLED_SECONDS
        for file in files.values():
            # Whoever needs it settled tries again, and is told.
            with suppress(EngineError):
                file.settle()
            yield GO_ON

    # Where there is no thread for it, the next snapshot does it, or whoever drops the last reference to the file.
    with suppress(EngineError):
        control = RunControl()
        item = WorkItem(steps(), control, lambda *_: None, _LEAST_PRIORITY, "\0aside")
        Context().run(executor().begin, item)


def plan_and_pool(under: object, plan: Plan, saved: SavedGuest | None, *, forks: bool) -> tuple[Plan, WarmPool | None]:
    """Returns the plan for a guest that is more than a new one of its module, and where others like it wait.

    Args:
        under: What it runs under.
        plan: The plan there for new guests of the module.
        saved: What it begins with, where that is not what the module begins with.
        forks: Whether it keeps its memory so that forks of it copy next to nothing.
    """
    pool = None
    if saved is not None:
        plan, pool = saved.plan(under, plan), saved.warm.get(under)
    if not forks:
        return plan, pool
    # As restored ones, such guests use no slots of a pool. Each of their memories is a file.
    linked, claim, memories = plan.linked, plan.claim, len(plan.program.woven.exposed.memories)
    if plan.held is None:
        linked = plan.without_slots()
        claim = linked.claim._replace(descriptors=claim.descriptors)
    claim = claim._replace(maps=claim.maps + memories * _FORKABLE_MAPS, descriptors=claim.descriptors + memories)
    return msgspec.structs.replace(plan, linked=linked, claim=claim, forks=True), None


def make_forkable(plan: Plan, instance: Instance) -> None:
    """Has a new guest keep its memory so that forks of it copy next to nothing, where that can be had.

    Args:
        plan: What it was made of.
        instance: Its instance, which holds what it begins with; nothing of it has run.

    Raises:
        EngineError: There is no memory map for it.
    """
    exposed, held = plan.program.woven.exposed, plan.held
    if not (exposed.obstacles or instance.is_pooled):
        below = None if held is None else held.instance.memories
        _make_forkable(instance, exposed.memories, _initial_bytes(plan.module), plan.limits.memory, below)


def known_apart(instance: Instance, known_bytes: Callable[[], int]) -> Callable[[], int]:
    """Returns what tells how large a memory is that functions of the embedder look at, while a call is halted.

    Where a process was forked meanwhile and may not look at the memory, that is refused in words.

    Args:
        instance: The instance of the guest.
        known_bytes: Tells its size, as the guest knows it.
    """
    memories = instance.forkable
    if memories is None:
        return known_bytes

    def told() -> int:
        for memory in memories:
            memory.check_apart()
        return known_bytes()

    return told


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
