"""How many examples a property is tried with: all of them, or a part where somebody waits for the tests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["examples", "part"]

_Item = TypeVar("_Item")

_DIVISOR: Final = 5 if "STOCKADE_QUICK" in os.environ else 1
"""`make test` says so; all other ways to run tests try every example."""


def examples(most: int) -> int:
    """Returns how many examples to try.

    Args:
        most: How many where there is time.
    """
    return max(most // _DIVISOR, min(most, 10))


def part(items: Sequence[_Item]) -> Sequence[_Item]:
    """Returns those of many alike that are tried: all of them where there is time, else some of all kinds.

    Args:
        items: All of them.
    """
    return items[:: _DIVISOR if len(items) > 2 * _DIVISOR else 1]
