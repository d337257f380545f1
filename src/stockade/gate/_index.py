"""Many texts looked for at once, in time that does not grow with how many there are, or how alike they are."""

from __future__ import annotations

import sys
from bisect import bisect_right
from functools import cached_property
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

__all__ = ["Index"]

_LONG: Final = 8
_SHORT: Final = 4
"""How many bytes of a word are compared at once: of texts that have a whole aligned word wherever they stand."""

_FEW: Final = 8
"""So many words are searched for one by one."""


class _Words:
    """Texts of which each has a whole word of so many bytes, wherever it stands.

    Args:
        texts: The texts.
        size: The bytes of a word.
    """

    def __init__(self, texts: Iterable[bytes], size: int) -> None:
        self._size = size
        self._texts = frozenset(texts)
        self._known = set[int]()
        for words in _words_of(self._texts, size):
            self._known.update(words)
        # Of words that were met.
        self._places: dict[int, tuple[tuple[int, int], ...]] = {}

    def find(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        size = self._size
        words = memoryview(data)[: len(data) // size * size].cast("Q" if size == _LONG else "I")
        met = self._known.intersection(words)
        if not met:
            return
        for at, word in _all_of(met, data, size) if len(met) <= _FEW else _each_of(met, words, size):
            for before, length in self._places.get(word) or self._placed(word):
                begin = at - before
                if begin >= 0 and (text := data[begin : begin + length]) in self._texts:
                    yield begin, text

    def _placed(self, word: int) -> tuple[tuple[int, int], ...]:
        """Returns where a word stands in texts, and how long these are."""
        found = self._places[word] = tuple((at, length) for at, length, words in self._by_place if word in words)
        return found

    @cached_property
    def _by_place(self) -> list[tuple[int, int, frozenset[int]]]:
        """The words by where they stand in texts, and by how long these are.

        Of texts that are alike, only the places are kept: there are few, however many texts there are.
        """
        by_length: dict[int, list[bytes]] = {}
        for text in self._texts:
            by_length.setdefault(len(text), []).append(text)
        return [
            (length - 2 * self._size + 1 + at, length, frozenset(words))
            for length, texts in by_length.items()
            for at, words in enumerate(_words_of(texts, self._size))
        ]


def _words_of(texts: Collection[bytes], size: int) -> Iterator[memoryview]:
    """Yields the first words of the ends of texts, then the second ones, and so on.

    Keys of one issuer begin alike, so their ends are looked for: one of these words is where words are taken.

    Args:
        texts: The texts.
        size: The bytes of a word; an end has one less than two of them.
    """
    # With a byte behind it, each takes as much as two words, of which every other one is looked at.
    ends = memoryview(b"\0".join([text[1 - 2 * size :] for text in texts]) + bytes(1 + size))
    for at in range(size):
        yield ends[at : at + 2 * size * len(texts)].cast("Q" if size == _LONG else "I")[::2]


def _all_of(met: Iterable[int], data: bytes, size: int) -> Iterator[tuple[int, int]]:
    """Yields where aligned words stand, each searched for by itself."""
    for word in met:
        text = word.to_bytes(size, sys.byteorder)
        at = data.find(text)
        while at >= 0:
            if at % size:
                at = data.find(text, at + 1)
            else:
                yield at, word
                at = data.find(text, at + size)


def _each_of(met: set[int], words: memoryview, size: int) -> Iterator[tuple[int, int]]:
    """Yields the same for many words, in one go through all there are."""
    for number, word in enumerate(words):
        if word in met:
            yield number * size, word


class Index:
    """Texts that are looked for. Safe to share between threads.

    Of what is looked through, every fourth or eighth byte's word is compared with a set of words, by one call of the
    interpreter's own code, and only where one is met is looked closer.

    Args:
        texts: The texts: of 7 bytes at least.
    """

    def __init__(self, texts: Iterable[bytes]) -> None:
        self._sorted = sorted(set(texts))
        long = [text for text in self._sorted if len(text) >= 2 * _LONG - 1]
        short = [text for text in self._sorted if len(text) < 2 * _LONG - 1]
        self._words = [_Words(texts, size) for texts, size in ((long, _LONG), (short, _SHORT)) if texts]
        begun = {text[:3] for text in self._sorted}
        self._beginnings = begun.union(*({text[:length] for text in begun} for length in (1, 2)))
        self.longest = max(map(len, self._sorted), default=0)

    def find(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Returns where texts stand in data, and which, in no order.

        Args:
            data: The data.
        """
        for words in self._words:
            yield from words.find(data)

    def begun(self, text: bytes) -> bytes | None:
        """Returns what begins like a text, and goes on; None where nothing does.

        Args:
            text: What there is of it.
        """
        return _next(self._sorted, text) if text[:3] in self._beginnings else None

    def ended(self, text: bytes) -> bytes | None:
        """Returns what ends like a text, and has more before it; None where nothing does.

        Args:
            text: What is left of it.
        """
        found = _next(self._sorted_by_ends, text[::-1])
        return None if found is None else found[::-1]

    @cached_property
    def _sorted_by_ends(self) -> list[bytes]:
        return sorted(text[::-1] for text in self._sorted)


def _next(texts: list[bytes], begun: bytes) -> bytes | None:
    at = bisect_right(texts, begun)
    return texts[at] if at < len(texts) and texts[at].startswith(begun) else None
