"""Which threads are in code of the embedder: how long they stay there is not for us to say."""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["call_outside", "outside"]

_Result = TypeVar("_Result")

outside: set[int] = set()
"""Their numbers. Each thread adds and removes its own, in calls that are whole, so that it needs no lock."""


def call_outside(function: Callable[..., _Result], *arguments: object) -> _Result:
    """Calls a function of the embedder.

    Args:
        function: The function.
        *arguments: What it is given.
    """
    me = get_ident()
    # It may run another guest here, which calls another function.
    within = me in outside
    outside.add(me)
    try:
        return function(*arguments)
    finally:
        if not within:
            outside.discard(me)
