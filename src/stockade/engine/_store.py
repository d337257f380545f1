"""The one owner of what an instance takes: its store, its call under way, and its share of what is scarce.

A handler of a signal may raise wherever Python looks for signals: when a function begins, after each call, at each jump
back. So whatever is got is kept, and whatever is given back forgotten, without such a place between. An owner that is
dropped, wherever that is, frees what it still has: nobody else has to notice.

Where a cycle of references is dropped, Python ends everything in it in any order: generators, too, which may look at
the guest's memory once more. So what is dropped is an `Owner`, which only then comes to hold the store itself: that is
freed when the cycle is taken apart, and all in it has ended.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from stockade.engine._callbacks import skip_signal_check

if TYPE_CHECKING:
    from stockade.engine._compiled import ResourceCost
    from stockade.engine._engine import Engine

__all__ = ["Owner", "Store", "deafen_stores"]

_NULL: Final = (None,)


class Store:
    """A place for an instance that an engine has admitted, and the `wasmtime_store_t` in it. For one thread at a time.

    It is made empty; `Engine.admit` fills in what was admitted, `open` makes the store. It is kept until its owner is
    dropped.

    Attributes:
        engine: The engine that has admitted it.
        claim: What was admitted; None where nothing is.
        pointers: The store; nothing before it is made.
        future: The call under way.
        kept: What the library may write to until the call is deleted, and the store.
    """

    __slots__ = ("claim", "engine", "future", "kept", "pointers")

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.claim: ResourceCost | None = None
        self.pointers: list[int] = []
        self.future: int | None = None
        self.kept: tuple[Any, ...] = ()

    def open(self) -> int:
        """Makes the store, and returns it."""
        engine = self.engine
        assert engine is not None
        # SAFETY: the store is ours until it is freed; the engine holds its own contents. By one call in C that also
        # keeps it, as above.
        self.pointers.extend(map(engine.api.store_new, (engine.pointer,), _NULL, _NULL))
        return self.pointers[0]

    def end_call(self) -> None:
        """Deletes the future of the call under way, if there is one."""
        future = self.future
        if future is not None:
            self.future = None
            assert self.engine is not None
            # SAFETY: we own the future, which is deleted once: nobody finds it any more. Deleting one that is not
            # finished unwinds the guest, whose store is alive.
            self.engine.api.call_future_delete(future)

    def free(self, *, large: bool = True) -> None:
        """Frees all of it. Freeing twice is harmless.

        Args:
            large: Whether it may have come to use much memory: giving that back takes long, and other threads go on
                meanwhile.
        """
        engine, pointers, future, claim = self.engine, self.pointers, self.future, self.claim
        # Before any place where Python looks for signals, for this function is deaf at its entry: else what it raised
        # there would be lost, and the store with it. Whoever comes after us finds nothing to free.
        self.pointers, self.future, self.claim = [], None, None
        if engine is None:
            return
        try:
            if future is not None:
                # SAFETY: as in `end_call`.
                engine.api.call_future_delete(future)
        finally:
            try:
                if pointers:
                    # SAFETY: we own the store, and nobody else finds it any more; no future is alive, no handle is used
                    # after this. Both are the same function of the library.
                    delete = engine.api.store_delete_long if large else engine.api.store_delete
                    delete(pointers[0])
            finally:
                if claim is not None:
                    engine.dismissed.append((engine, claim))
                    engine.settle()

    __del__ = free


class Owner:
    """Keeps a store, and frees it when it is dropped."""

    __slots__ = ("_number", "_store")

    def __init__(self) -> None:
        """Makes an empty store."""
        number = self._number = next(_numbers)
        _stores[number] = Store()

    @property
    def store(self) -> Store:
        """The store."""
        return _stores[self._number]

    def __del__(self) -> None:
        # Nowhere here does Python look for signals, for this is deaf at its entry.
        self._store = _stores[self._number]
        del _stores[self._number]


_numbers = itertools.count(1)
_stores: dict[int, Store] = {}
"""The stores of owners that have not been dropped, by their numbers."""


@cache
def deafen_stores() -> None:
    """Sees to it that no handler of a signal begins where the freeing of a store does."""
    skip_signal_check(Store.free)
    skip_signal_check(Owner.__del__)
