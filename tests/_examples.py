"""How many examples a property is tried with: all of them, or a part where somebody waits for the tests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["examples", "part"]

_Item = TypeVar("_Item")

_QUICK: Final = "STOCKADE_QUICK" in os.environ
"""Whether somebody waits: `make test` says so; all other ways to run tests try every example."""


def examples(most: int) -> int:
    """Returns how many examples to try.

    Args:
        most: How many where there is time.
    """
    return max(most // 10, min(most, 10)) if _QUICK else most


def part(items: Sequence[_Item]) -> Sequence[_Item]:
    """Returns those of many alike that are tried: all where there is time, else every fifth, but no fewer than three.

    Args:
        items: All of them.
    """
    return items[:: max(1, min(5, len(items) // 3)) if _QUICK else 1]
