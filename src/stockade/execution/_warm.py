"""Instances made ahead of need: restored from a snapshot, with the memory that first runs write to in place.

A restored instance shares all its memory with the snapshot, so each page that its guest writes to costs a fault and a
copy, which is most of what a short run takes. Which pages those are is learned from the first guests; later instances
get their own copies before they are asked for.

Each serves one guest, as any instance does. They are made by the executor, in steps, and no more than so many.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from stockade.engine import PAGE_BYTES_OF_HOST, populate, touched_pages
from stockade.errors import EngineError
from stockade.execution._snapshot import put_guest_state
from stockade.runner import GO_ON, RunControl, WorkItem, executor

if TYPE_CHECKING:
    from stockade.engine import Instance
    from stockade.execution._plan import Plan
    from stockade.runner import RunCoroutine

__all__ = ["WarmPool"]

_SAMPLES: Final = 4
"""Guests from which it is learned which pages a first run touches."""

_TENANT: Final = "\0warm pools"
"""No other tenant is called so."""


class WarmPool:
    """Restored instances that wait to be used. Safe to share between threads.

    Args:
        plan: How they are made.
        size: How many wait.
        memory_bytes: How much memory of their own they may have together.
    """

    def __init__(self, plan: Plan, size: int, memory_bytes: int) -> None:
        self._plan = plan
        self._size = size
        self._most_pages = memory_bytes // size // PAGE_BYTES_OF_HOST
        self._ready: deque[tuple[Instance, bool]] = deque()
        self._samples: list[tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]] = []
        self._written: frozenset[tuple[int, int]] = frozenset()
        self._read: frozenset[tuple[int, int]] = frozenset()
        self._learned = False
        self._closed = False
        self._process = os.getpid()
        self._filling: WorkItem[None] | None = None
        names = plan.program.woven
        guards = () if names.state_export is None else (names.state_export,)
        self._memories = (*names.exposed.memories, *guards)

    @property
    def ready(self) -> int:
        """How many wait."""
        return len(self._ready)

    @property
    def own_bytes(self) -> int:
        """How much memory those that wait have of their own, about."""
        return sum(len(self._written) * PAGE_BYTES_OF_HOST for _, is_warm in list(self._ready) if is_warm)

    def take(self) -> Instance | None:
        """Returns an instance that nobody has used, or None where none waits; has others made."""
        found = None
        with suppress(IndexError):
            found, _ = self._ready.popleft()
        # Not after each: to wake a thread takes about as long as what is saved.
        if len(self._ready) <= self._size // 2:
            self._refill()
        return found

    def fill(self) -> None:
        """Makes as many as are missing, on this thread.

        Raises:
            EngineError: There is no room for them.
        """
        while not self._closed and len(self._ready) < self._size:
            self._ready.append(self._made())

    def close(self) -> None:
        """Frees those that wait. Closing twice is harmless."""
        self._closed = True
        while True:
            try:
                instance, _ = self._ready.popleft()
            except IndexError:
                return
            instance.close()

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

    def _made(self) -> tuple[Instance, bool]:
        plan = self._plan
        held = plan.held
        assert held is not None
        instance = plan.instantiate(0)
        try:
            put_guest_state(plan, instance, held)
            return instance, self._warmed(instance)
        except BaseException:
            instance.close()
            raise

    def _warmed(self, instance: Instance) -> bool:
        if self._learned:
            populate(instance, self._memories, self._written, self._read)
        return self._learned

    def _refill(self) -> None:
        """Has those that are missing made, unless that is being done."""
        if self._closed or self._filling is not None:
            return
        if self._process != os.getpid():
            # A forked child has none of its parent's threads, and does without.
            return
        pool = weakref.ref(self)
        control = RunControl()
        self._filling = WorkItem(_filling(pool), control, lambda *_: _filled(pool), 1, _TENANT)
        try:
            executor().begin(self._filling)
        except EngineError:
            self._filling = None

    def one_more(self) -> bool:
        """Makes one that is missing, or makes one warm that is not; says whether there may be more to do."""
        if self._closed:
            return False
        if len(self._ready) < self._size:
            try:
                made = self._made()
            except EngineError:
                # There is no room now. Whoever takes the next one asks again.
                return False
            self._ready.append(made)
            if self._closed:
                self.close()
            return True
        if not self._learned:
            return False
        for _ in range(len(self._ready)):
            with suppress(IndexError):
                instance, is_warm = self._ready.popleft()
                self._ready.append((instance, is_warm or self._warmed(instance)))
                if not is_warm:
                    return True
        return False

    def filled(self) -> None:
        """Says that nothing is being made any more."""
        self._filling = None


def _filling(pool: weakref.ref[WarmPool]) -> RunCoroutine[None]:
    """Makes what a pool lacks, in steps, for as long as anybody has the pool."""
    while (found := pool()) is not None and found.one_more():
        del found
        yield GO_ON


def _filled(pool: weakref.ref[WarmPool]) -> None:
    found = pool()
    if found is not None:
        found.filled()
