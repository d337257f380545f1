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

__all__ = ["FirstPages"]

_populate, _touched_pages = (called_later("stockade.engine", name) for name in ("populate", "touched_pages"))

_SAMPLES: Final = 4
"""Guests from which it is learned."""


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
        _populate(instance, memories, written, self._read.difference(written))
