"""Instances made ahead of need: restored from a snapshot, with the memory that first runs write to in place.

A restored instance shares all its memory with the snapshot, so each page that its guest writes to costs a fault and a
copy, which is most of what a short run takes. Which pages those are is learned from the first guests; later instances
get their own copies before they are asked for.

Each serves one guest, as any instance does.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from stockade.engine import PAGE_BYTES_OF_HOST
from stockade.execution._ready import ReadyPool
from stockade.execution._snapshot import put_guest_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.engine import Instance
    from stockade.execution._first_pages import FirstPages
    from stockade.execution._plan import Plan
    from stockade.runner import RunCoroutine

__all__ = ["WarmPool"]


class WarmPool(ReadyPool[tuple["Instance", bool]]):
    """Restored instances that wait to be used. Safe to share between threads.

    Args:
        plan: How they are made.
        size: How many wait.
        memory_bytes: How much memory of their own they may have together.
        pages: Which pages first calls touch.
        tidy: What is done in pauses, before others are made, as for `ReadyPool`.
    """

    def __init__(
        self,
        plan: Plan,
        size: int,
        memory_bytes: int,
        pages: FirstPages,
        tidy: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(size, tidy)
        self._plan = plan
        self._most_pages = memory_bytes // size // PAGE_BYTES_OF_HOST
        self._pages = pages
        names = plan.program.woven
        guards = () if names.state_export is None else (names.state_export,)
        self._memories = (*names.exposed.memories, *guards)

    @property
    def own_bytes(self) -> int:
        """How much memory those that wait have of their own, about."""
        pages = self._pages.own_count(self._most_pages)
        return sum(pages * PAGE_BYTES_OF_HOST for _, is_warm in list(self._ready) if is_warm)

    def leave(self, instance: Instance, *, is_whole: bool) -> bool:
        """Learns which pages a guest has touched, and takes its instance as `ReadyPool` does."""
        if is_whole and not self._pages.learned:
            self._pages.learn(instance, self._memories)
            if self._pages.learned and self._tidy is None:
                self.refill()
        return super().leave(instance, is_whole=is_whole)

    # -- making them ----------------------------------------------------------------------------------------------

    def _make(self) -> RunCoroutine[tuple[Instance, bool]]:
        plan = self._plan
        held = plan.held
        assert held is not None
        instance = plan.instantiate(0)
        try:
            put_guest_state(plan, instance, held)
            yield from ()
            return instance, self._warmed(instance)
        except BaseException:
            instance.close()
            raise

    def _free(self, item: tuple[Instance, bool]) -> None:
        item[0].close()

    def _warmed(self, instance: Instance) -> bool:
        if not self._pages.learned:
            return False
        self._pages.give(instance, self._memories, self._most_pages)
        return True

    def _improve(self) -> bool:
        """Gives one that was made before it was known which pages are touched its own."""
        for _ in range(len(self._ready) if self._pages.learned else 0):
            with suppress(IndexError):
                instance, is_warm = self._ready.popleft()
                self._ready.append((instance, is_warm or self._warmed(instance)))
                if not is_warm:
                    return True
        return False
