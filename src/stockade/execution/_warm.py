"""Guests made ahead of need: restored from a snapshot, with the memory that first runs write to in place.

A restored instance shares all its memory with the snapshot, so each page that its guest writes to costs a fault and a
copy, which is most of what a short run takes. Which pages those are is learned from the first guests; later instances
get their own copies before they are asked for.

Each serves one run, as any instance does. What all runs under one policy have alike, the guard's state with it, is in
place, too: a run that is given more has that written anew.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from stockade.engine import PAGE_BYTES_OF_HOST
from stockade.errors import UsageError
from stockade.execution._first_pages import memories_of
from stockade.execution._inputs import environment
from stockade.execution._ready import ReadyPool
from stockade.execution._snapshot import put_guest_state
from stockade.runner import RunControl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stockade.engine import Instance
    from stockade.execution._first_pages import FirstPages
    from stockade.execution._monitoring import Monitoring
    from stockade.execution._mounts import OpenMounts
    from stockade.execution._plan import Plan
    from stockade.execution._run import Guest
    from stockade.report import PolicyInfo
    from stockade.runner import RunCoroutine

__all__ = ["WaitingGuest", "WarmPool", "check_fits", "make_pool"]


def check_fits(plan: Plan) -> None:
    """Checks that a guest that begins with a snapshot has no more memory than it may.

    Args:
        plan: Its plan.

    Raises:
        UsageError: It has.
    """
    if (needed := plan.program.woven.initial_memory_bytes) > (allowed := plan.limits.memory):
        raise UsageError(f"the snapshot has {needed:,} bytes of memory; the policy allows {allowed:,} (limits.memory)")


def make_pool(
    plan: Plan,
    info: PolicyInfo,
    grants: OpenMounts,
    env: Mapping[str, str],
    pages: FirstPages,
    size: int,
    memory_bytes: int,
    tidy: Callable[[], object] | None,
) -> WarmPool:
    """Has guests wait that begin with a snapshot.

    It knows nothing of the context that they run under, which is kept weakly by what the snapshot holds.

    Args:
        plan: How they are made.
        info: Their policy, as reports say it.
        grants: What they may reach.
        env: The environment that they are given.
        pages: Which pages first calls touch.
        size: How many wait.
        memory_bytes: How much memory of their own they may have together.
        tidy: What is done in pauses, before others are made, as for `ReadyPool`.

    Raises:
        EngineError: There is no room for so many.
        UsageError: They have more memory than they may.
    """
    from stockade.execution._run import Guest

    check_fits(plan)
    variables = environment(env)

    def make_guest(instance: Instance) -> Guest:
        return Guest(plan, info, grants, RunControl(), env=variables, waiting=instance)

    pool = WarmPool(plan, size, memory_bytes, pages, env, make_guest, tidy)
    pool.fill()
    return pool


class WaitingGuest(NamedTuple):
    """One that waits.

    Attributes:
        instance: Its instance.
        guest: It; None where it has to be made for its run.
        is_warm: Whether the instance has its own copies of the pages that are written to first.
    """

    instance: Instance
    guest: Guest | None
    is_warm: bool


class WarmPool(ReadyPool[WaitingGuest]):
    """Restored guests that wait to be used. Safe to share between threads.

    Args:
        plan: How they are made.
        size: How many wait.
        memory_bytes: How much memory of their own they may have together.
        pages: Which pages first calls touch.
        env: The environment that they have been given.
        make_guest: Makes a guest of an instance, with this environment and nothing else.
        tidy: What is done in pauses, before others are made, as for `ReadyPool`.

    Attributes:
        env: The environment that they have been given.
    """

    def __init__(
        self,
        plan: Plan,
        size: int,
        memory_bytes: int,
        pages: FirstPages,
        env: Mapping[str, str],
        make_guest: Callable[[Instance], Guest],
        tidy: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(size, tidy)
        self._plan = plan
        self._most_pages = memory_bytes // size // PAGE_BYTES_OF_HOST
        self._pages = pages
        self.env = env
        self._make_guest = make_guest
        self._memories = memories_of(plan.program.woven)

    @property
    def own_bytes(self) -> int:
        """How much memory those that wait have of their own, about."""
        pages = self._pages.own_count(self._most_pages)
        return sum(pages * PAGE_BYTES_OF_HOST for found in list(self._ready) if found.is_warm)

    def leave(self, instance: Instance, *, is_whole: bool) -> bool:
        """Learns which pages a guest has touched, and takes its instance as `ReadyPool` does."""
        if is_whole and not self._pages.learned:
            self._pages.learn(instance, self._memories)
            if self._pages.learned and self._tidy is None:
                self.refill()
        return super().leave(instance, is_whole=is_whole)

    def begin(self, control: RunControl, monitoring: Monitoring | None, *, is_usual: bool) -> Guest | Instance | None:
        """Returns the guest for a run, or an instance to make it of; None where none waits.

        Args:
            control: Says when it must stop.
            monitoring: What is watched of it.
            is_usual: Whether it is given what those that wait have been given.
        """
        found = self.take()
        if found is None or found.guest is None or not is_usual:
            return None if found is None else found.instance
        found.guest.begin_under(control, self)
        if monitoring is not None:
            found.guest.watch(monitoring)
        return found.guest

    # -- making them ----------------------------------------------------------------------------------------------

    def _make(self, control: RunControl | None) -> RunCoroutine[WaitingGuest]:  # noqa: ARG002 - it takes no time
        plan = self._plan
        held = plan.held
        assert held is not None
        instance = plan.instantiate(0, streamed=True)
        try:
            put_guest_state(plan, instance, held)
            yield from ()
            # Traces begin with the run.
            guest = self._make_guest(instance) if self._plan.trace is None else None
            return WaitingGuest(instance, guest, self._warmed(instance))
        except BaseException:
            instance.close()
            raise

    def _free(self, item: WaitingGuest) -> None:
        item.instance.close()

    def _warmed(self, instance: Instance) -> bool:
        if not self._pages.learned:
            return False
        self._pages.give(instance, self._memories, self._most_pages)
        return True

    def _improve(self) -> bool:
        """Gives one that was made before it was known which pages are touched its own."""
        for _ in range(len(self._ready) if self._pages.learned else 0):
            with suppress(IndexError):
                found = self._ready.popleft()
                self._ready.append(found._replace(is_warm=found.is_warm or self._warmed(found.instance)))
                if not found.is_warm:
                    return True
        return False
