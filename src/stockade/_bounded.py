"""A mapping that keeps so many entries and no more: those that were used last."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import TypeVar

__all__ = ["BoundedDict"]

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class BoundedDict(OrderedDict[_Key, _Value]):
    """Keeps the entries that were used last.

    It has no lock of its own. Where it is used under a lock that its holder may take again, the handler of a signal may
    have changed it between any two lines; so it takes nothing for granted that it saw before.

    Args:
        most: How many entries it keeps.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def find(self, key: _Key) -> _Value | None:
        """Returns an entry, which counts as used; None where there is none."""
        value = self.get(key)
        if value is not None:
            # Each run comes here, and `suppress` takes three calls.
            try:  # noqa: SIM105
                self.move_to_end(key)
            except KeyError:
                pass
        return value

    def keep(self, key: _Key, value: _Value) -> None:
        """Takes an entry, and lets go of those that were not used for longest."""
        self[key] = value
        with suppress(KeyError):
            self.move_to_end(key)
            while len(self) > self._most:
                self.popitem(last=False)
