"""How many examples a property is tried with: all of them, or a part where somebody waits for the tests."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["examples"]

_DIVISOR: Final = 5 if "STOCKADE_QUICK" in os.environ else 1
"""`make test` says so; all other ways to run tests try every example."""


def examples(most: int) -> int:
    """Returns how many examples to try.

    Args:
        most: How many where there is time.
    """
    return max(most // _DIVISOR, min(most, 10))
