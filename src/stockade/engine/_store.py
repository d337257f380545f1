"""The one owner of what an instance takes: its store, its call under way, and its share of what is scarce.

A handler of a signal may raise wherever Python looks for signals: when a function begins, after each call, at each jump
back. So whatever is got is kept, and whatever is given back forgotten, without such a place between. An owner that is
dropped, wherever that is, frees what it still has: nobody else has to notice.

Where a cycle of references is dropped, Python ends everything in it in any order: generators, too, which may look at
the guest's memory once more. So what is dropped is an `Owner`, which only then comes to hold the store itself: that is
freed when the cycle is taken apart, and all in it has ended.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections import deque
from ctypes import addressof, c_char, c_uint64, c_void_p, sizeof
from functools import cache
from itertools import starmap
from typing import TYPE_CHECKING, Final, TypeAlias

from stockade.engine._callbacks import skip_signal_check
from stockade.engine._capi import Extern
from stockade.engine._fork_gate import delete_aside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.engine._compiled import ResourceCost
    from stockade.engine._engine import Engine
    from stockade.engine._forkable import ForkableMemory
    from stockade.engine._parking import ParkingSlot

__all__ = [
    "AT_ERROR",
    "AT_EXPORT",
    "AT_HANDLE",
    "AT_INSTANCE",
    "AT_NUMBER",
    "AT_TRAP",
    "FUNCREF",
    "Out",
    "Owner",
    "Store",
    "deafen_stores",
    "lost",
]

FUNCREF: Final = 5
"""The kind of a `wasmtime_val_t` that is a reference to a function."""

_MOST_IDLE: Final = 4
"""Places of instances that an engine keeps admitted for the next ones. Where room is short, they are given back."""


class Out(ctypes.Structure):
    """The places that C calls write to, in one allocation: it lives as long as the store."""

    _fields_ = (
        ("instance", c_uint64 * 2),
        ("item", c_uint64),
        ("trap", c_void_p),
        ("error", c_void_p),
        ("extern", Extern),
        ("lent", Extern),
        ("number", c_uint64),
    )


AT_INSTANCE, AT_TRAP, AT_ERROR, AT_EXPORT, AT_HANDLE, AT_NUMBER = range(6)
_PLACES: Final = (
    Out.instance.offset,
    Out.trap.offset,
    Out.error.offset,
    Out.extern.offset,
    Out.extern.offset + Extern.of.offset,
    Out.number.offset,
)

Places: TypeAlias = tuple[object, ...]
"""Arguments that were made before: see `QUICK_CALLS`."""


class Store:
    """A place for an instance that an engine has admitted, and the `wasmtime_store_t` in it. For one thread at a time.

    `Engine.acquire` makes one with what was admitted, `open` makes the store. The engine keeps some that are empty
    again, for those to come.

    Args:
        engine: The engine that is about to admit it; None for a place that stays empty.

    Attributes:
        home: The same, not kept while nothing is in here.
        engine: The engine, while something is in here, or may be put here.
        claim: What was admitted; None where nothing is.
        pointer: The store; None before it is made.
        future: The call under way.
        out: What the library writes to: as long as the store is.
        address: Where that is.
        places: Where in it is what, by `AT_…`, as quick calls take it; nothing where this stays empty.
        bytes: The same, byte by byte.
        handle: The bytes of the instance among them, and of the number of what is asked for of it.
        words: All of them, word by word.
        kept: What else it may write to until the call is deleted.
        bed: Where its guest sleeps, to which it refers as long as the store is; those to come sleep there, too.
        forkable: Its memories that lie in files of their own, given up before the store is freed; None where none does.
    """

    __slots__ = (
        "address",
        "bed",
        "bytes",
        "claim",
        "engine",
        "forkable",
        "future",
        "handle",
        "home",
        "kept",
        "out",
        "places",
        "pointer",
        "words",
    )

    def __init__(self, engine: Engine | None) -> None:
        self.engine = engine
        self.home = None if engine is None else weakref.ref(engine)
        self.claim: ResourceCost | None = None
        self.pointer: int | None = None
        self.future: int | None = None
        self.out = Out()
        address = self.address = addressof(self.out)
        self.places: Places = () if engine is None else tuple(engine.api.prepare(address + at) for at in _PLACES)
        # To look at a field of `out` takes several times as long.
        self.bytes = memoryview((c_char * sizeof(Out)).from_buffer(self.out)).cast("B")
        self.words = self.bytes.cast("Q")
        self.handle = self.bytes[: Out.trap.offset]
        self.kept: object = None
        self.bed: ParkingSlot | None = None
        self.forkable: Sequence[ForkableMemory] | None = None

    def open(self) -> int:
        """Makes the store, and returns it."""
        engine = self.engine
        assert engine is not None
        # SAFETY: the store is ours until it is freed; the engine holds its own contents. Unpacked, not called: so it is
        # kept, as above.
        (self.pointer,) = starmap(engine.api.store_new, engine.new_store)
        return self.pointer

    def clear(self) -> None:
        """Frees a small store whose call is over, and has the engine keep this place, still admitted, for the next one.

        Where the engine has enough of them, whoever drops this gives it back.
        """
        engine, pointer = self.engine, self.pointer
        assert engine is not None
        assert self.future is None
        # Python looks for signals nowhere between the next line and the call. Whatever is raised before or after it,
        # this finds its store, or none.
        self.pointer = None
        # SAFETY: as in `free`.
        engine.api.store_delete(pointer)
        self.kept = self.engine = None
        idle = engine.idle
        if len(idle) < _MOST_IDLE:
            idle.append(self)

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
        try:
            engine, pointer, future, claim = self.engine, self.pointer, self.future, self.claim
        except AttributeError:
            # What the handler of a signal raised has come before it was made.
            return
        # Before any place where Python looks for signals, for this function is deaf at its entry: else what it raised
        # there would be lost, and the store with it. Whoever comes after us finds nothing to free.
        self.pointer = self.future = self.claim = self.forkable = None
        if engine is None:
            # Kept for later use, if it is anything at all.
            if claim is None:
                return
            engine = None if self.home is None else self.home()
            if engine is None:
                lost.append(claim)
                return
        try:
            if future is not None:
                # SAFETY: as in `end_call`.
                engine.api.call_future_delete(future)
        finally:
            try:
                if pointer is not None:
                    # SAFETY: we own the store, and nobody else finds it any more; no future is alive, no handle is used
                    # after this. Both are the same function of the library.
                    if large:
                        delete_aside(engine.api.store_delete_long, pointer)
                    else:
                        engine.api.store_delete(pointer)
            finally:
                if claim is not None:
                    engine.dismissed.append((engine, claim))
                    engine.settle()

    __del__ = free


lost: Final[deque[ResourceCost]] = deque()
"""What was admitted to places of engines that are no more, for whoever counts it."""


class Owner:
    """Keeps a store, and frees it when it is dropped.

    Args:
        store: The store.
    """

    __slots__ = ("_number", "_store")

    def __init__(self, store: Store) -> None:
        number = self._number = next(_numbers)
        _stores[number] = store

    def __del__(self) -> None:
        # Nowhere here does Python look for signals, for this is deaf at its entry.
        try:
            self._store = _stores[self._number]
            del _stores[self._number]
        except (AttributeError, KeyError):
            # What the handler of a signal raised has come before it was made.
            return


_numbers = itertools.count(1)
_stores: dict[int, Store] = {}
"""The stores of owners that have not been dropped, by their numbers."""


@cache
def deafen_stores() -> None:
    """Sees to it that no handler of a signal begins where the freeing of a store does."""
    skip_signal_check(Store.free)
    skip_signal_check(Owner.__del__)
    skip_signal_check(delete_aside)
