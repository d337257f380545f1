"""One store with one instance in it: the only place where guest code runs."""

from __future__ import annotations

import ctypes
import math
import sys
import weakref
from ctypes import addressof, c_char, c_uint64, memmove, string_at
from threading import get_ident
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stockade._pages import PAGE_BYTES
from stockade._text import printable
from stockade.engine._callbacks import check_stack, check_stack_to_call_out, running
from stockade.engine._capi import Extern, Value, prepare
from stockade.engine._failure import OUT_OF_FUEL, UNREACHABLE, Failure, error_text
from stockade.engine._fork_gate import forks, inside, stand_back
from stockade.engine._parking import MODULE, PARKING, Asked, ParkingSlot
from stockade.engine._runtime_threads import lost_by_forking
from stockade.engine._store import (
    AT_ERROR,
    AT_EXPORT,
    AT_HANDLE,
    AT_INSTANCE,
    AT_NUMBER,
    AT_TRAP,
    FUNCREF,
    Out,
    Owner,
    Store,
)
from stockade.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stockade.engine._compiled import LinkedModule
    from stockade.engine._forkable import ForkableMemory
    from stockade.engine._ticker import Watched

__all__ = [
    "F32_OVERFLOW",
    "FUEL_SLICE",
    "INTEGER_BITS",
    "Directory",
    "HaltedMemory",
    "Instance",
    "InstantiationError",
    "Loan",
    "Memory",
    "Number",
]

Number = int | float | bytes
"""What functions take and return; a v128 is its 16 bytes, as they lie in memory."""

INTEGER_BITS: Final = {"i32": 32, "i64": 64}
"""How wide the integer types are."""

F32_OVERFLOW: Final = 2.0**128 - 2.0**103
"""The least number that a 32-bit float rounds to infinity."""

Directory = tuple[bytes, bytes, bool]
"""A mount for native WASI: host path, guest path, whether it may be written."""


_FREED_AT_ONCE_BYTES: Final = 4 << 20
"""Memory up to this size is given back in less than half a millisecond."""

FUEL_SLICE: Final = 2_000_000
"""The guest yields whenever it has burned so much, about 2 ms: only then is its fuel known, for a running loop keeps
what it burns in a register."""

_TICKS: Final = 2
"""A guest that counts fuel also yields at the second tick of the epoch after it went on, for fuel may last long; at the
first, which may come at once, it would seldom get to the end of a slice of fuel."""

_FAR_AWAY: Final = prepare(1 << 62)
"""An epoch that is never reached."""

_MODULE_BYTES: Final = len(MODULE)

_NOTHING: Final[Mapping[bytes, bytes]] = MappingProxyType({})

_FUEL_IS_KNOWN: Final = (OUT_OF_FUEL, UNREACHABLE)
"""Traps before which the guest's count of fuel is written back."""

_PACKERS = {"i32": (0, "i32"), "i64": (1, "i64"), "f32": (2, "f32"), "f64": (3, "f64"), "v128": (4, "v128")}
GLOBAL_KINDS = {0: "i32", 1: "i64", 2: "f32", 3: "f64", 4: "v128"}


# Looked up once: the offset of a field takes longer to ask for than a call into the library.
_TRAP: Final[int] = Out.trap.offset
_TRAP_WORD: Final = _TRAP // 8
_ERROR: Final[int] = Out.error.offset
_ERROR_WORD: Final = _ERROR // 8
_EXTERN: Final[int] = Out.extern.offset
_HANDLE: Final[int] = Out.extern.offset + Extern.of.offset
_LENT: Final[int] = Out.lent.offset

_VALUE_BYTES: Final = ctypes.sizeof(Value)

_NUMBER_BYTES: Final = 16
"""What the largest number takes, a v128."""

_FUNCTION: Final = 0
"""The kind of an export that is a function."""

_GLOBAL: Final = 1
"""The kind of an export that is a global."""

_TABLE: Final = 2
"""The kind of an export that is a table."""

_MEMORY: Final = 3
"""The kind of an export that is a memory."""

_NOWHERE: Final = Store(None)
"""Where an instance is that has been closed."""

_HANDLE_END: Final = _HANDLE + 24
"""A `wasmtime_memory_t` or `wasmtime_table_t` has three words."""

_ITEM_WORD: Final = Out.item.offset // 8
"""Where the third of them stands behind an instance: a `wasmtime_instance_t` has two words, the store and a number."""

_ITEM_IN_HANDLE: Final = slice(Out.item.offset, Out.item.offset + 8)
"""Where the third of them stands in a handle."""

_INSTANCE_END: Final = 12
"""Where that number ends in a handle: it has 32 bits there, and nothing stands in the other half of the word."""


_NO_VIEW: Final = memoryview(b"")

_views: dict[int, memoryview] = {}
"""Views of the beginnings of memories, by where these lie: the slots of a pool are used again and again."""

_MOST_VIEWS: Final = 4_096


def _view(base: int) -> memoryview:
    if len(_views) >= _MOST_VIEWS:
        _views.clear()
    # SAFETY: it is of an address, not of a memory: by itself it keeps and reads nothing. A `Memory` looks at it that
    # lies there and has this much, while its store is alive: that memory never moves or shrinks, and whoever closes
    # an instance drops its `Memory` before, and waits for those who look (`LiveGuest.close`). What comes to lie there
    # later is reached by a `Memory` of its own; where nothing does, nobody looks.
    made = _views[base] = memoryview((c_char * PAGE_BYTES).from_address(base)).cast("B")
    return made


class Loan(NamedTuple):
    """Native functions for the guard, beside those that the guest imports.

    Attributes:
        table: Name of the exported table.
        natives: Each with its slot there, its name, and how long that is.
        halts: Whether one halts the guest, of these or the next.
        asked: The slot of the function that halts the guest, where the guard asks for that; None where it does not.
    """

    table: bytes
    natives: tuple[tuple[int, bytes, int], ...]
    halts: bool
    asked: int | None = None

    @classmethod
    def of(cls, table: bytes | None, calls: Sequence[tuple[int, bytes]], *, asks: bool = False) -> Loan | None:
        """Returns what is lent; None where that is nothing.

        Args:
            table: Name of the exported table; None where there is none.
            calls: The names of the functions, each with its slot.
            asks: Whether the guard asks for the function that halts the guest when it needs it.
        """
        if table is None or not calls:
            return None
        parking = next((slot for slot, name in calls if name == PARKING), None)
        natives = tuple((slot, name, len(name)) for slot, name in calls if not (asks and slot == parking))
        return cls(table, natives, parking is not None, parking if asks else None)


def _lend(
    natives: tuple[tuple[int, bytes, int], ...], api: Any, linker: int, context: int, out: memoryview, base: int
) -> None:
    """Puts native functions into the table whose number stands behind the instance's handle.

    A function of its own, for what is raised as a loop begins anew would pass by the `try` around it.

    Args:
        natives: Each with its slot, its name, and how long that is.
        api: The C API.
        linker: Where they are.
        context: The store.
        out: What the library writes to.
        base: Where that is.
    """
    lent = base + _LENT
    # SAFETY: linker and store belong to one engine. The table's handle is where the instance's is, with its number
    # behind it (see `Instance._handle`), borrowed for each call; a function lands in `out.lent`. An extern that holds a
    # function and a value that holds a reference to one lie alike, so with its kind changed it is that value.
    for slot, name, size in natives:
        if not api.linker_get(linker, context, MODULE, _MODULE_BYTES, name, size, lent):
            raise KeyError(name)
        out[_LENT] = FUNCREF
        if error := api.table_set(context, base, slot, lent):
            raise EngineError(f"native {name.decode()} cannot be given to the guard: {error_text(error)}")


class InstantiationError(EngineError):
    """The engine can make no instance, and says no trap."""


class Memory:
    """A linear memory of an instance, read and written from outside with bounds checks.

    Memories never move and never shrink: where it lies is asked for once, and what was once inside stays inside. So
    bytes known to be inside may be looked at while a call is halted, when the store must not be asked for anything.

    Args:
        api: The C API.
        context: The store that it lives in.
        handle: The bytes of the `wasmtime_memory_t`.
        known_bytes: How large it is at least: nothing, or a page or more.

    Attributes:
        page: Its first page, as it is, as long as the store is alive; nothing where it is not known to have one.
    """

    __slots__ = ("_api", "_base", "_context", "_handle", "_known_bytes", "page")

    def __init__(self, api: Any, context: int, handle: bytes, known_bytes: int = 0) -> None:
        self._api = api
        self._context = context
        # SAFETY: the handle is an index into the store, valid while that lives; our copy lives as long as we do. The
        # base is valid as long: the engine is told that memories may not move, so they grow in place. The holder drops
        # this object before the store is closed.
        self._handle = handle
        base = self._base = api.memory_data(context, handle)
        self._known_bytes = known_bytes
        self.page = (_views.get(base) or _view(base)) if known_bytes else _NO_VIEW

    @property
    def size_bytes(self) -> int:
        """Its present size."""
        # SAFETY: the store is alive and no call of it is halted.
        self._known_bytes = self._api.memory_data_size(self._context, self._handle)
        return self._known_bytes

    def span(self) -> tuple[int, int]:
        """Returns where it lies in the process, and its present size."""
        return self._base, self.size_bytes

    def grow_to(self, size_bytes: int) -> None:
        """Makes the memory at least this large.

        Raises:
            EngineError: The memory cannot be had.
        """
        if size_bytes <= self._known_bytes or size_bytes <= self.size_bytes:
            return
        previous = c_uint64()
        pages = -(-(size_bytes - self._known_bytes) // PAGE_BYTES)
        if error := self._api.memory_grow(self._context, self._handle, pages, addressof(previous)):
            raise EngineError(f"{size_bytes:,} bytes of memory cannot be allocated: {error_text(error)}")
        self._known_bytes += pages * PAGE_BYTES

    def read(self, address: int, size: int) -> bytes:
        """Copies bytes out.

        Raises:
            IndexError: They are not all inside the memory.
        """
        end = address + size
        if 0 <= address <= end <= len(page := self.page):
            return page[address:end].tobytes()
        self._check(address, size)
        return string_at(self._base + address, size)

    def write(self, address: int, data: bytes) -> None:
        """Copies bytes in.

        Raises:
            IndexError: They do not all fit inside the memory.
        """
        end = address + len(data)
        if 0 <= address <= end <= len(page := self.page):
            page[address:end] = data
            return
        self._check(address, len(data))
        memmove(self._base + address, data, len(data))

    def view(self, address: int, size: int) -> memoryview:
        """Returns bytes as they lie in the memory, to be read and written in place.

        Raises:
            IndexError: They are not all inside the memory.
        """
        self._check(address, size)
        # SAFETY: as for the base: what is inside stays where it is while the store lives, and the holder drops this
        # before that is closed.
        return memoryview((ctypes.c_char * size).from_address(self._base + address)).cast("B")

    def while_halted(self, known_bytes: Callable[[], int]) -> HaltedMemory:
        """Returns the same memory for use while a call is halted, when the store must not be asked.

        Args:
            known_bytes: Tells its size, as the guest knows it.
        """
        return HaltedMemory(self._base, known_bytes)

    def _check(self, address: int, size: int) -> None:
        if address < 0 or size < 0 or (address + size > self._known_bytes and address + size > self.size_bytes):
            raise IndexError(f"bytes {address:,} to {address + size:,} are not inside {self._known_bytes:,}")


class HaltedMemory:
    """A linear memory, read and written while a call of its instance is halted.

    Args:
        base: Where it lies.
        known_bytes: Tells its size: that of the moment in which the guest halted, as the guest told it.
    """

    __slots__ = ("_base", "_known_bytes")

    def __init__(self, base: int, known_bytes: Callable[[], int]) -> None:
        # SAFETY: memories never move and never shrink. Whoever uses this does so between two polls of the guest, whose
        # store is alive, and asks nothing of the library.
        self._base = base
        self._known_bytes = known_bytes

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return self._known_bytes()

    def read(self, address: int, size: int) -> bytes:
        """Copies bytes out.

        Raises:
            IndexError: They are not all inside the memory.
        """
        self._check(address, size)
        return string_at(self._base + address, size)

    def write(self, address: int, data: bytes) -> None:
        """Copies bytes in.

        Raises:
            IndexError: They do not all fit inside the memory.
        """
        self._check(address, len(data))
        memmove(self._base + address, data, len(data))

    def _check(self, address: int, size: int) -> None:
        known = self._known_bytes()
        if address < 0 or size < 0 or address + size > known:
            raise IndexError(f"bytes {address:,} to {address + size:,} are not inside {known:,}")


class Instance:
    """An instance of a compiled module in a store of its own.

    Use it from one thread at a time, and close it. A function is called in steps: `begin`, then `poll` until that says
    that it is over, then `results`; or `abandon`. Between two polls the guest is halted, and another thread may go on.

    Args:
        linked: What to instantiate.
        store: Its place, as its engine has admitted it: freed when the instance is closed or dropped.
        fuel: The budget in fuel units; None where the engine does not count.
        memory_bytes: The most that any single memory may have, the guard's included.
        table_elements: The most that any single table may have.
        directories: What native WASI may reach.
        renamed: Exports of the guest that are found under another name.
        loan: What the guard is lent.

    Raises:
        EngineError: There is no room, or a directory could not be opened.

    Attributes:
        bed: Where its guest sleeps when it waits; None where it cannot.
        failure: Why the last call did not return.
        calls_out: Whether its guest may halt to call functions of the embedder.
        exact: Whether `fuel_left` tells how much there is, and not how much there was up to `FUEL_SLICE` ago. Only then
            may it be set.
    """

    # Python reads these several times as fast as others.
    __slots__ = (
        "_api",
        "_at",
        "_base",
        "_context",
        "_is_over",
        "_keeper",
        "_linked",
        "_place",
        "_renamed",
        "_result_types",
        "_ticks",
        "_values",
        "_watched",
        "bed",
        "calls_out",
        "exact",
        "failure",
    )

    def __init__(
        self,
        linked: LinkedModule,
        store: Store,
        fuel: int | None,
        memory_bytes: int,
        table_elements: int,
        directories: Sequence[Directory] = (),
        renamed: Mapping[bytes, bytes] = _NOTHING,
        loan: Loan | None = None,
    ) -> None:
        api = self._api = linked.engine.api
        self._place = store
        self._renamed = renamed
        self._linked = linked  # keeps the machine code alive while this store may run it
        self._is_over = self.calls_out = False
        self.exact = True
        self.failure: Failure | None = None
        self.bed: ParkingSlot | None = None
        self._values: Any = None
        self._keeper: Owner | None = None
        # A reference that does not keep it: it keeps us.
        self._watched: Callable[[], Watched | None] | None = None
        self._ticks = 1 if fuel is None else _TICKS
        # SAFETY: the store is ours until it is freed, by close() or with this object; its context is a pointer into it.
        # `out` is kept by its place, so that it outlives the store and every call that is given its address.
        pointer = store.open()
        context: int = api.store_context(pointer)
        self._context = context
        at = self._at = api.prepare(context)
        base = self._base = store.address
        places = store.places
        try:
            if linked.parks:
                self.bed = store.bed or self._make_bed()
            api.store_limiter(pointer, memory_bytes, table_elements, 1, -1, -1)
            if fuel is not None:
                api.context_set_fuel(context, fuel)
            # SAFETY: native WASI takes the new config. It gets no stdio, arguments or environment.
            if directories:
                self._set_wasi(directories)
            elif error := api.context_set_wasi(context, api.wasi_config_new()):
                raise EngineError(f"native WASI cannot be set up: {error_text(error)}")
            # Instantiation runs code of the engine's own, which must not be interrupted; no guest code, for the weaver
            # took the start function out. Yielding is for the guest, and begins after it.
            api.quick_context_set_epoch_deadline(at, _FAR_AWAY)
            if loan is None or loan.asked is None:
                prelinked, linker, quick = linked.native or linked.link()
            else:
                prelinked, linker, quick = linked.asking or linked.link(asking=True)
            # SAFETY: prelinked module and store belong to one engine; the results land in `out`.
            if not linked.small:
                error = self._instantiate(linked, prelinked)
            elif linked.parks:
                error = self._instantiate_async(prelinked, api.call_future_poll)
            else:
                error = api.quick_instance_pre_instantiate(quick, at, places[AT_INSTANCE], places[AT_TRAP])
            if error:
                # Limits were checked before, so it is not the guest that failed: the engine is out of slots or memory.
                # But for objects that globals, tables and elements begin with, for which the heap may be too small.
                raise InstantiationError(
                    f"no instance can be made: {error_text(error)}. Close sessions, or run fewer at once"
                )
            if store.words[_TRAP_WORD]:
                self.failure = self._take_trap()
            elif loan is not None:
                table, natives, halts, asked = loan
                if halts:
                    bed = self.bed = store.bed or self._make_bed()
                    # What the place had before must not count any more.
                    bed.asks_of = 0
                    if asked is not None:
                        bed.asked = linked.asked or self._note_asked(linker, table, asked)
                        bed.asks_of = context
                if natives:
                    number = linked.natives_table
                    store.words[_ITEM_WORD] = self._find_natives(table) if number is None else number
                    _lend(natives, api, linker, context, store.bytes, base)
            if fuel is not None:
                api.context_fuel_async_yield_interval(context, FUEL_SLICE)
            api.quick_context_epoch_deadline_async_yield_and_update(at, self._ticks)
        except BaseException:
            self.close()
            raise

    def _make_bed(self) -> ParkingSlot:
        # Kept with the place: the library refers to it until the store is gone. Whoever comes to the place after us
        # sleeps there, too: we are gone by then, and have not gone to sleep for good, else it would not be used again.
        place = self._place
        bed = place.bed = ParkingSlot(place.address, place.bytes, place.words)
        return bed

    def _note_asked(self, linker: int, table: bytes, slot: int) -> Asked:
        """Notes what is put where when a guard asks for it: for all instances."""
        linked = self._linked
        number = linked.natives_table
        noted = linked.asked = linker, self._find_natives(table) if number is None else number, slot
        return noted

    def _instantiate(self, linked: LinkedModule, prelinked: int) -> int | None:
        """Instantiates without the interpreter lock, which others have meanwhile."""
        inside[self] = get_ident()
        try:
            if forks:
                stand_back(inside, self)
            if linked.parks:
                return self._instantiate_async(prelinked, self._api.call_future_poll_long)
            # SAFETY: as above.
            error: int | None = self._api.instance_pre_instantiate_long(
                prelinked, self._context, self._base, self._base + _TRAP
            )
            return error
        finally:
            del inside[self]

    def _instantiate_async(self, prelinked: int, poll: Callable[[int], bool]) -> int | None:
        """Instantiates what imports an asynchronous function, which the library does no other way.

        Args:
            prelinked: What to instantiate.
            poll: What polls the future, with the interpreter lock or without.
        """
        api, place, base = self._api, self._place, self._base
        # SAFETY: the future borrows module, store and the places in `out` until it is deleted, here. Nothing of the
        # guest runs in it, so there is nothing to wait for; should the library wait all the same, it is polled again.
        future = place.future = api.instance_pre_instantiate_async(
            prelinked, self._context, base, base + _TRAP, base + _ERROR
        )
        while not poll(future):
            pass
        place.future = None
        # SAFETY: as in `Store.end_call`.
        api.call_future_delete(future)
        words = place.words
        error = words[_ERROR_WORD]
        if error:
            words[_ERROR_WORD] = 0
            return error
        return None

    def _set_wasi(self, directories: Sequence[Directory]) -> None:
        if directories and lost_by_forking():
            raise EngineError(
                "this process was forked from one that had run guests, so that native WASI has none of its threads "
                "here, and no call about files would return: fork before anything is run, or start processes by "
                "spawning them"
            )
        api = self._api
        # SAFETY: the config is ours until context_set_wasi consumes it, or until it is deleted on failure. Native
        # WASI gets no stdio, arguments or environment: the guard serves those.
        config = api.wasi_config_new()
        for host, guest, writable in directories:
            if not api.wasi_config_preopen_dir(config, host, guest, writable):
                api.wasi_config_delete(config)
                raise EngineError(f"the folder {printable(host, 400)} could not be opened for the guest")
        if error := api.context_set_wasi(self._context, config):
            raise EngineError(f"native WASI cannot be set up: {error_text(error)}")

    def _take_trap(self) -> Failure:
        words = self._place.words
        trap, words[_TRAP_WORD] = words[_TRAP_WORD], 0
        return Failure.from_trap(trap)

    def _find(self, name: bytes) -> int:
        """Looks an export up; returns its kind, its handle is in `out`."""
        # SAFETY: the name is borrowed for the call; the handle written to `out` is a copy.
        place = self._place
        places = place.places
        if not self._api.quick_instance_export_get(self._at, places[AT_INSTANCE], name, len(name), places[AT_EXPORT]):
            raise KeyError(name)
        return place.bytes[_EXTERN]

    def memory(self, name: bytes) -> Memory:
        """Returns a memory that the guest exports.

        Raises:
            KeyError: There is no memory of that name.
            UsageError: It may not be looked at in this process.
        """
        self._check_memory()
        return self.woven_memory(self._renamed.get(name, name))

    def woven_memory(self, name: bytes, known_bytes: int = 0) -> Memory:
        """Returns a memory by the name under which the woven module exports it.

        Args:
            name: That name.
            known_bytes: How large it is at least: nothing, or a page or more.

        Raises:
            KeyError: There is no memory of that name.
        """
        return Memory(self._api, self._context, self._handle(self._linked.memory_handles, name, _MEMORY), known_bytes)

    def _handle(self, known: dict[bytes, int], name: bytes, kind: int) -> bytes:
        """Returns the handle of an exported memory or table.

        Args:
            known: What comes behind the instance in the handles of this kind, by their names: for all instances.
            name: Its name.
            kind: Its kind.

        Raises:
            KeyError: There is none of that name.
        """
        place, number = self._place, known.get(name)
        if number is not None:
            # SAFETY: a handle of these kinds begins as the instance's does, with the store and the number that the
            # instance has there, as was seen when this was noted. What follows is its number within the module, and
            # all instances here are of one module. The library looks at the store, and bounds what it looks up.
            place.words[_ITEM_WORD] = number
            return place.handle.tobytes()
        if self._find(name) != kind:
            raise KeyError(name)
        handle = bytes(place.bytes[_HANDLE:_HANDLE_END])
        if handle[:_INSTANCE_END] == place.handle[:_INSTANCE_END]:
            known[name] = int.from_bytes(handle[_ITEM_IN_HANDLE], sys.byteorder)
        return handle

    def _find_natives(self, table: bytes) -> int:
        """Returns the number of the table through which the guard reaches what it is lent, and notes it."""
        linked = self._linked
        self._handle(linked.table_handles, table, _TABLE)
        # Noted by now, for the table is the instance's own.
        number = linked.natives_table = linked.table_handles[table]
        return number

    def limit(self, memory_bytes: int, table_elements: int) -> None:
        """Says anew how large any single memory or table may become; what is larger stays as it is."""
        # SAFETY: the store is alive, and nothing of it runs.
        self._api.store_limiter(self._place.pointer, memory_bytes, table_elements, 1, -1, -1)

    def table_size(self, name: bytes) -> int:
        """Returns how many elements an exported table has.

        Raises:
            KeyError: There is no table of that name.
        """
        handle = self._handle(self._linked.table_handles, name, _TABLE)
        # SAFETY: the handle is borrowed for the call; the store is alive and no call of it is halted.
        return int(self._api.table_size(self._context, handle))

    @property
    def forkable(self) -> Sequence[ForkableMemory] | None:
        """Its memories, where they lie in files of their own.

        Raises:
            UsageError: This process was forked from the one that they are of.
        """
        self._check_process()
        return self._place.forkable

    @forkable.setter
    def forkable(self, memories: Sequence[ForkableMemory]) -> None:
        self._place.forkable = memories

    def _check_process(self) -> None:
        forkable = self._place.forkable
        if forkable is not None:
            for memory in forkable:
                memory.check_process()

    def _check_memory(self) -> None:
        """Checks that its memory may be looked at in this process.

        Raises:
            UsageError: It may not.
        """
        forkable = self._place.forkable
        if forkable is not None:
            for memory in forkable:
                memory.check_apart()

    @property
    def is_pooled(self) -> bool:
        """Whether its memories are slots of a pool, which the next guest gets."""
        return self._linked.engine.config.pooled

    def global_value(self, name: bytes) -> bytes:
        """Returns what an exported global holds: the kind of its number and 16 bytes.

        Raises:
            KeyError: There is no global of that name.
        """
        if self._find(name) != _GLOBAL:
            raise KeyError(name)
        value = Value()
        # SAFETY: the handle was just written to `out`; the store is alive, and nothing of it runs. The value is copied
        # to our place; it holds a number, so nothing has to be freed.
        self._api.global_get(self._context, self._base + _HANDLE, addressof(value))
        assert value.kind in GLOBAL_KINDS
        return string_at(addressof(value), 1) + string_at(addressof(value) + Value.of.offset, _NUMBER_BYTES)

    def set_global(self, name: bytes, value: bytes) -> None:
        """Sets an exported mutable global.

        Args:
            name: Its name.
            value: What `global_value` has told of the same global in another instance.

        Raises:
            KeyError: There is no global of that name.
            EngineError: It is of another type.
        """
        if self._find(name) != _GLOBAL:
            raise KeyError(name)
        assert value[0] in GLOBAL_KINDS
        number = Value()
        memmove(addressof(number), value, 1)
        memmove(addressof(number) + Value.of.offset, value[1:], _NUMBER_BYTES)
        # SAFETY: as above; the engine checks that the kind is the global's, and copies the number.
        if error := self._api.global_set(self._context, self._base + _HANDLE, addressof(number)):
            raise EngineError(f"a global cannot be set: {error_text(error)}")

    def watch(self, guest: Watched) -> None:
        """Has the guest looked after while it runs, for it may open a FIFO."""
        self._watched = weakref.ref(guest)

    def begin(self, export: bytes, arguments: Sequence[tuple[str, Number]], result_types: Sequence[str]) -> None:
        """Begins a call of an exported function; nothing of the guest runs before the first `poll`.

        Args:
            export: Its name.
            arguments: Type and value of each argument.
            result_types: Types of its results.

        Raises:
            KeyError: There is no function of that name.
        """
        if self._place.forkable is not None:
            self._check_process()
        renamed = self._renamed
        if self._find(renamed.get(export, export) if renamed else export) != _FUNCTION:
            raise KeyError(export)
        api = self._api
        values = first = results = None
        if arguments or result_types:
            values = (Value * (len(arguments) + len(result_types)))()
            for index, (kind, number) in enumerate(arguments):
                values[index].kind, member = _PACKERS[kind]
                # SAFETY: ctypes copies into `values`, which is ours: a number into its member, cut to that member's
                # bits; a vector byte by byte into its 16. References never come here: callers refuse them.
                setattr(values[index].of, member, tuple(number) if isinstance(number, bytes) else number)
            address = addressof(values)
            first, results = api.prepare(address), api.prepare(address + _VALUE_BYTES * len(arguments))
        self._values = values
        self._result_types = result_types
        self._is_over = False
        self.failure = None
        if self.bed is not None:
            (check_stack_to_call_out if self.calls_out else check_stack)()
        place = self._place
        assert place.future is None
        places = place.places
        place.kept = values
        # SAFETY: the future borrows context, function handle, arguments, results, trap and error until it is deleted:
        # all of them are kept by the owner of the store, and nothing else uses the store before that but to ask
        # for fuel and to set it, which the library reads and writes between two polls. Deleting an unfinished future
        # unwinds the guest. `poll` is never called again after it said that it is done. Where a handler of a signal
        # raises before the future is kept, a few bytes are lost, and nothing has begun.
        place.future = api.quick_func_call_async(
            self._at,
            places[AT_HANDLE],
            first,
            len(arguments),
            results,
            len(result_types),
            places[AT_TRAP],
            places[AT_ERROR],
        )

    def poll(self) -> bool:
        """Lets the guest run until it returns or traps, or yields.

        Returns:
            Whether the call is over. If not, `is_parked` says whether the guest waits for something; else it yields
            for others.
        """
        place, api, ticker = self._place, self._api, self._linked.engine.ticker
        if place.forkable is not None:
            self._check_process()
        ticks = ticker.raised
        # SAFETY: writes a number into the store, whose guest is halted. Counted from here, for it may have been halted
        # for long: it must not yield at once, and whoever finds fewer ticks than these knows that it yielded by fuel.
        api.quick_context_set_epoch_deadline(self._at, self._ticks)
        watched = innermost = before = None
        if self._watched is not None:
            watched = self._watched()
        if self.bed is not None:
            innermost = running.innermost
            before = innermost[0]
        # A handler of a signal may raise wherever Python looks for signals: what has begun is ended all the same, and
        # to end what has not begun is harmless.
        try:
            if innermost is not None:
                innermost[0] = self
            if watched is not None:
                ticker.watch(watched)
            ticker.enter(self)
            if api.call_future_poll_long(place.future):
                # SAFETY: as in `Store.end_call`.
                future, place.future = place.future, None
                api.call_future_delete(future)
                if perf_counter() > ticker.due:
                    ticker.let_by()
                return True
        finally:
            if innermost is not None:
                innermost[0] = before
            try:
                ticker.running.pop(self, None)
            finally:
                if watched is not None:
                    ticker.watched.pop(watched, None)
        self.keep()
        if self._ticks == _TICKS:
            self.exact = self.is_parked or ticker.count - ticks < _TICKS
        return False

    def keep(self) -> None:
        """Sees to it that, whoever drops this instance and what refers to it, its store is freed after all of that."""
        if self._keeper is None:
            self._keeper = Owner(self._place)

    @property
    def is_called(self) -> bool:
        """Whether a call is under way."""
        return self._place.future is not None

    @property
    def is_parked(self) -> bool:
        """Whether the guest waits, until it is woken."""
        return self.bed is not None and self.bed.taken

    def wake(self) -> None:
        """Lets a guest that waits go on when it is polled the next time."""
        if self.bed is not None:
            self.bed.wake()

    def abandon(self) -> None:
        """Ends the call under way where it is, if there is one."""
        self._place.end_call()

    def results(self) -> list[Number] | None:
        """Returns the results of a call that is over; None where it did not return: then `failure` tells why."""
        words = self._place.words
        if words[_TRAP_WORD]:
            self.failure = self._take_trap()
            self.exact = self.failure.code in _FUEL_IS_KNOWN
            return None
        if words[_ERROR_WORD]:
            error, words[_ERROR_WORD] = words[_ERROR_WORD], 0
            # SAFETY: the store is alive, and nothing of it runs.
            thrown = self._api.context_has_exception(self._context)
            self.failure = Failure.from_error(error, thrown=thrown)
            return None
        self._is_over = self.exact = True
        if self._values is None:
            return []
        # SAFETY: the engine wrote each result's kind beside it, so the member that is read is the one that was written;
        # what is read is a copy.
        values, types = self._values, self._result_types
        found = [getattr(v.of, GLOBAL_KINDS[v.kind]) for v in values[len(values) - len(types) :]]
        return found if "v128" not in types else [bytes(v) if isinstance(v, ctypes.Array) else v for v in found]

    def set_fuel(self, fuel: int, slice_: int = FUEL_SLICE) -> None:
        """Sets the fuel that is left, and after how much of it the guest yields.

        Between two polls of a call only where `exact` says that the guest's own count has been written back.
        """
        # SAFETY: the store is alive, and nothing of it runs.
        self._api.context_set_fuel(self._context, fuel)
        self._api.context_fuel_async_yield_interval(self._context, slice_)

    def fuel_left(self) -> int:
        """Returns the fuel that is left; `exact` tells whether that is old."""
        # SAFETY: writes one number into `out`. The engine counts fuel where the caller asks for this.
        place = self._place
        self._api.quick_context_get_fuel(self._at, place.places[AT_NUMBER])
        return int(place.out.number)

    def close(self, used_bytes: float = math.inf) -> None:
        """Frees the store and all that is in it. Closing twice is harmless.

        Args:
            used_bytes: How much memory it may have come to use, as far as that is known: giving much of it back takes
                long, and other threads go on meanwhile.
        """
        store, large = self._place, used_bytes >= _FREED_AT_ONCE_BYTES
        if (
            large
            or self._keeper is not None
            or not self._is_over
            or store.claim is None
            or store.claim.descriptors
            or store.forkable
        ):
            store.free(large=large)
            return
        # Nobody else knows the place: the next instance may have it, and this one must not find it any more.
        self._place, self.bed = _NOWHERE, None
        store.clear()
