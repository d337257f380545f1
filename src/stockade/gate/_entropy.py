"""Text that is as random as keys are."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from math import log2
from typing import TYPE_CHECKING, Final

from stockade.gate._finder import Hold, Span
from stockade.gate._known import held_word

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EntropyFinder"]

_WORD: Final = re.compile(rb"(?<![A-Za-z0-9+/=_.-])[A-Za-z0-9+/_-]{20,128}={0,2}(?![A-Za-z0-9+/=_.-])")
_LEAST_BITS: Final = 3.9
"""Of each character, where there are as many as thirty; fewer cannot have as much."""

_LEAST_CHANGES: Final = 0.38
"""Of neighbours, how many are of different kinds: capitals, small letters and digits. In what people name, few are."""

_ORDINARY: Final = re.compile(
    rb"sha(?:1|256|384|512)-|AAAA[BCE]3NzaC1|v\d|iVBORw0KGgo|R0lGOD|/9j/|UklGR|JVBERi|UEsDB|H4sI|PHN2Zy"
)
"""Sums of files, public keys, versions, and the beginnings of images and archives in base64."""

_BEFORE_SUMS: Final = re.compile(rb"(?:base64,|[Ss][Hh][Aa]\d{1,3}[:=]|\bh1:)\Z")


class EntropyFinder:
    """Looks for text that is as random as keys are: of letters in both sizes and digits, and in no order."""

    def find(self, data: bytes, *, is_last: bool) -> Iterator[Span]:
        """Returns such texts in data.

        Args:
            data: The data.
            is_last: Whether nothing comes behind it.
        """
        for match in _WORD.finditer(data):
            if (is_last or match.end() < len(data)) and _is_random(match[0]) and not _is_embedded(data, match.start()):
                yield Span(*match.span(), "entropy", "random-text")

    def hold(self, data: bytes) -> Hold:
        """Returns from where on such a text may have begun.

        Args:
            data: The data.
        """
        return held_word(data)


def _is_embedded(data: bytes, at: int) -> bool:
    return _BEFORE_SUMS.search(data[max(0, at - 8) : at]) is not None


def _is_random(word: bytes) -> bool:
    if _ORDINARY.match(word):
        return False
    kinds = [_KINDS[byte] for byte in word if _KINDS[byte]]
    if len(set(kinds)) < 3 or kinds.count(3) < 2:
        return False
    changes = sum(one != other for one, other in pairwise(kinds))
    if changes < _LEAST_CHANGES * (len(kinds) - 1):
        return False
    total = len(word)
    bits = -sum(count / total * log2(count / total) for count in Counter(word).values())
    return bits >= min(_LEAST_BITS, log2(total) - 0.5)


_KINDS: Final = bytes(
    1 if 65 <= byte <= 90 else 2 if 97 <= byte <= 122 else 3 if 48 <= byte <= 57 else 0 for byte in range(256)
)
