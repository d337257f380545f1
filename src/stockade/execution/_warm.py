"""Instances made ahead of need: restored from a snapshot, with the memory that first runs write to in place.

A restored instance shares all its memory with the snapshot, so each page that its guest writes to costs a fault and a
copy, which is most of what a short run takes. Which pages those are is learned from the first guests; later instances
get their own copies before they are asked for.

Each serves one guest, as any instance does.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from stockade.engine import PAGE_BYTES_OF_HOST, populate, touched_pages
from stockade.execution._ready import ReadyPool
from stockade.execution._snapshot import put_guest_state

if TYPE_CHECKING:
    from stockade.engine import Instance
    from stockade.execution._plan import Plan
    from stockade.runner import RunCoroutine

__all__ = ["WarmPool"]

_SAMPLES: Final = 4
"""Guests from which it is learned which pages a first run touches."""


class WarmPool(ReadyPool[tuple["Instance", bool]]):
    """Restored instances that wait to be used. Safe to share between threads.

    Args:
        plan: How they are made.
        size: How many wait.
        memory_bytes: How much memory of their own they may have together.
    """

    def __init__(self, plan: Plan, size: int, memory_bytes: int) -> None:
        super().__init__(size)
        self._plan = plan
        self._most_pages = memory_bytes // size // PAGE_BYTES_OF_HOST
        self._samples: list[tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]] = []
        self._written: frozenset[tuple[int, int]] = frozenset()
        self._read: frozenset[tuple[int, int]] = frozenset()
        self._learned = False
        names = plan.program.woven
        guards = () if names.state_export is None else (names.state_export,)
        self._memories = (*names.exposed.memories, *guards)

    @property
    def own_bytes(self) -> int:
        """How much memory those that wait have of their own, about."""
        return sum(len(self._written) * PAGE_BYTES_OF_HOST for _, is_warm in list(self._ready) if is_warm)

    # -- which pages ----------------------------------------------------------------------------------------------

    @property
    def learns(self) -> bool:
        """Whether it is still to be learned which pages a guest touches."""
        return not self._learned

    def learn(self, instance: Instance) -> None:
        """Learns which pages a guest has touched.

        Args:
            instance: Its instance, which was in no page of its own when it was taken, and of which nothing runs.
        """
        found = touched_pages(instance, self._memories)
        if self._learned or found is None:
            return
        self._samples.append(found)
        if len(self._samples) < _SAMPLES:
            return
        # Those first that most have touched.
        often = Counter(page for written, _ in self._samples for page in written)
        ordered = sorted(often, key=lambda page: (-often[page], page))
        self._written = frozenset(ordered[: self._most_pages])
        self._read = frozenset(page for _, read in self._samples for page in read) - self._written
        self._samples.clear()
        self._learned = True
        self._refill()

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
        if self._learned:
            populate(instance, self._memories, self._written, self._read)
        return self._learned

    def _improve(self) -> bool:
        """Gives one that was made before it was known which pages are touched its own."""
        for _ in range(len(self._ready) if self._learned else 0):
            with suppress(IndexError):
                instance, is_warm = self._ready.popleft()
                self._ready.append((instance, is_warm or self._warmed(instance)))
                if not is_warm:
                    return True
        return False
