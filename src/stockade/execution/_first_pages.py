"""Which pages of a restored instance its first call touches, learned from the first guests.

They are the snapshot's, whatever guests run under, so all pools of a snapshot learn together.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from stockade._later import called_later

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.engine import Instance
    from stockade.guard import Woven

__all__ = ["FirstPages", "memories_of"]

_populate, _stretches_of, _touched_pages = (
    called_later("stockade.engine", name) for name in ("populate", "stretches_of", "touched_pages")
)

_SAMPLES: Final = 4
"""Guests from which it is learned."""

_MOST_AT_ONCE: Final = 512
"""Pages that an instance gets which a run waits for: 2 MiB."""


def memories_of(woven: Woven) -> tuple[bytes, ...]:
    """Returns the memories of which pages are learned: those of a guest, and the guard's.

    Args:
        woven: What they are exported by.
    """
    guards = () if woven.state_export is None else (woven.state_export,)
    return (*woven.exposed.memories, *guards)


class FirstPages:
    """The pages that first calls touch: each the place of its memory, and its number there.

    Attributes:
        learned: Whether it is known which they are.
    """

    def __init__(self) -> None:
        self.learned = False
        self._samples: list[tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]] = []
        self._written: tuple[tuple[int, int], ...] = ()
        self._read: frozenset[tuple[int, int]] = frozenset()
        # Stretches of those that all have written to.
        self._common: Sequence[tuple[int, int, int]] = ()

    def learn(self, instance: Instance, memories: Sequence[bytes]) -> None:
        """Learns which pages a guest has touched.

        Args:
            instance: Its instance, which was in no page of its own when it was taken, and of which nothing runs.
            memories: Its memories, by the names under which the woven module exports them.
        """
        found = _touched_pages(instance, memories)
        if self.learned or found is None:
            return
        self._samples.append(found)
        if len(self._samples) < _SAMPLES:
            return
        # Those first that most have touched.
        often = Counter(page for written, _ in self._samples for page in written)
        self._written = tuple(sorted(often, key=lambda page: (-often[page], page)))
        self._read = frozenset(page for _, read in self._samples for page in read)
        common = frozenset.intersection(*(written for written, _ in self._samples))
        self._common = _stretches_of(sorted(common)[:_MOST_AT_ONCE])
        self._samples = []
        self.learned = True

    def own_count(self, most: int) -> int:
        """Returns how many pages of its own an instance gets.

        Args:
            most: How many it may have.
        """
        return min(len(self._written), most)

    def give(self, instance: Instance, memories: Sequence[bytes], most: int) -> None:
        """Gives an instance its own copies of the pages that are written to, and maps those that are looked at.

        Args:
            instance: The instance, of which nothing runs.
            memories: Its memories, by the names under which the woven module exports them.
            most: How many pages of its own it may have.
        """
        written = self._written[:most]
        _populate(instance, memories, _stretches_of(written), _stretches_of(self._read.difference(written)))

    def give_common(self, instance: Instance, memories: Sequence[bytes]) -> None:
        """Gives an instance its own copies of pages that every guest writes to, which one by one would take longer.

        Args:
            instance: The instance, of which nothing runs.
            memories: Its memories, by the names under which the woven module exports them.
        """
        _populate(instance, memories, self._common, ())
