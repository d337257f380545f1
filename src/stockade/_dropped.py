"""What is given back when an object is dropped, without a place where the handler of a signal could come between.

Python calls `__del__`, and what `weakref.finalize` and `WeakSet` have registered, and it looks for signals where a
function in Python begins. What a handler raises there is lost, for nobody has called that function; and so is what it
was to give back. So such an object has its `__del__` in a slot of its own, and that is made of calls into C alone: what
the handler raises comes afterwards, where the object was dropped.
"""

from __future__ import annotations

import os
from collections import deque
from functools import partial
from itertools import starmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["OwnedDescriptor", "when_dropped"]


def when_dropped(calls: Iterable[object]) -> Callable[[], object]:
    """Returns what makes some calls, once however often it is called: for the slot `__del__` of an object.

    Args:
        calls: Makes them as it is gone through: a `map` or `starmap` of functions in C.
    """
    return partial(deque[object]((), 0).extend, iter(calls))


class OwnedDescriptor:
    """A file descriptor that is closed when this is dropped.

    Args:
        opens: A function in C that opens it, or that returns the one that is given.
        *arguments: What it is called with.

    Attributes:
        number: The descriptor.
    """

    __slots__ = ("__del__", "number")

    def __init__(self, opens: Callable[..., int], *arguments: object) -> None:
        opened, held = starmap(opens, (arguments,)), list[int]()
        self.__del__ = when_dropped(map(os.close, held))
        # By an operator: signals are looked for behind calls.
        held += opened
        self.number = held[0]

    @classmethod
    def of(cls, number: int) -> OwnedDescriptor:
        """Returns the owner of a descriptor that is open.

        Args:
            number: The descriptor.
        """
        return cls(int, number)

    def close(self) -> None:
        """Closes it before. Closing twice is harmless."""
        self.__del__()
