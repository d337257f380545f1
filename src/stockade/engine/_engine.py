"""Engines: one for each configuration, shared by everything in the process, and few.

A pooled engine reserves 8.7 TB of address space, of which a process has 128 TiB, and the library aborts the process
where it cannot have it. So there are only so many pools, what they reserve is tried first, and an engine is freed when
nothing refers to it any more.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
import weakref
from collections import deque
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from stockade._bounded import BoundedDict
from stockade._locks import reentrant_lock
from stockade.engine._asking import define_asking
from stockade.engine._capi import capi
from stockade.engine._failure import error_text
from stockade.engine._features import RUN_PROPOSALS
from stockade.engine._parking import define_parking
from stockade.engine._store import Store, deafen_stores, lost
from stockade.engine._ticker import Ticker
from stockade.errors import EngineError, InvalidModule
from stockade.system import Descriptors

if TYPE_CHECKING:
    from stockade.engine._compiled import ResourceCost

__all__ = [
    "MAX_POOLED_MEMORIES",
    "MAX_POOLED_TABLES",
    "MAX_POOLED_TABLE_ELEMENTS",
    "Engine",
    "EngineConfig",
    "assemble",
    "can_reserve_pool",
]

_POOL_INSTANCES = 1000
"""Instances that one pooled engine keeps slots for; one run or session takes one."""

_POOL_MAPS = 2 * _POOL_INSTANCES
"""Memory maps that a pooled engine takes from its making on: its stacks."""

_SPARED_MAPS = 8_000
"""Memory maps that are left to everything else in the process: libraries, machine code, threads. A thread that finds no
map left for the stack of its signal handlers aborts the process, so guests must never take the last ones."""

_MAX_POOLS = 6
"""Pooled engines at a time. They take less than half of a process's address space; instances beyond their slots, and
those of other engines, are allocated one by one in the rest."""

_MAX_ENGINES = 128
"""Engines at a time. One without a pool takes a few kilobytes, and a thread while one of its guests runs."""

_KEPT_ENGINES = 8
"""Engines that are kept although nothing may refer to them, those used last: making one takes longer than a run."""

_RESERVED_PER_MEMORY = (4 << 30) + (32 << 20)
"""Address space of a memory in a pool: all that 32 bits can name, and what must not be touched behind it."""

MAX_POOLED_MEMORIES = 8
"""Memories that a pooled instance may have, the guard's included."""

MAX_POOLED_TABLES = 8
"""Tables that a pooled instance may have, the guard's included."""

MAX_POOLED_TABLE_ELEMENTS = 65_536
"""Elements that a table of a pooled instance may have (512 KiB of reserved, untouched address space each)."""

_HOST_STACK_BYTES = 512 << 10
"""How much stack native WASI, and the little Python that halts a guest, may use on top of the guest's own."""

_KEEP_RESIDENT_BYTES = 64 << 10
"""Memory of a finished instance up to this size is cleared by hand, which is faster than asking the kernel to."""


class EngineConfig(NamedTuple):
    """What an engine is built for; runs with equal configurations share an engine.

    Attributes:
        fuel: Whether code is compiled to count fuel.
        stack_bytes: How much stack guest code may use.
        canonical_nans: Whether every NaN has the same bits on every machine, for runs that can be repeated.
        parallel: Whether a module is validated and compiled by several threads, which the library starts then and
            keeps: a process that may be forked goes without, for they are missing in its child, which would wait for
            them for ever.
        pooled: Whether instances come from preallocated slots (fast), or are allocated one by one (any size).
    """

    fuel: bool
    stack_bytes: int
    canonical_nans: bool = False
    parallel: bool = False
    pooled: bool = True


# What guests do not get. No memory is shared, for the weaver makes each one that is a plain one.
_OFF = (
    "memory_may_move",  # so that the host may keep the address of a memory
    "shared_memory",
    "wasm_compact_imports",
    "wasm_custom_page_sizes",
    "wasm_stack_switching",
    "wasm_wide_arithmetic",
)
_ON = (
    "gc_support",
    "epoch_interruption",
    "memory_init_cow",
    "wasm_bulk_memory",
    "wasm_multi_value",
    "wasm_reference_types",
    "wasm_relaxed_simd_deterministic",
    *sorted(f"wasm_{name}" for name in RUN_PROPOSALS),
)
"""Among them the proposals that guests may use where their policies say so. They are on for all that runs, so that
modules that differ in them share an engine; a module is held to its policy as its guest wrote it."""


def _address_space_is_limited() -> bool:
    try:
        import resource
    except ImportError:
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def can_reserve_pool() -> bool:
    """Whether the system gives this process the address space of one more pool: tried, and given back at once."""
    return not _address_space_is_limited() and _can_reserve(EngineConfig(fuel=True, stack_bytes=512 << 10))


def _can_reserve(config: EngineConfig) -> bool:
    """Whether the system gives a pool what it reserves: tried, and given back at once."""
    memories = 2 * _POOL_INSTANCES * _RESERVED_PER_MEMORY
    # Two pages more for each stack; an element of a table takes up to 16 bytes.
    stacks = _POOL_INSTANCES * (config.stack_bytes + _HOST_STACK_BYTES + (64 << 10))
    tables = 2 * _POOL_INSTANCES * MAX_POOLED_TABLE_ELEMENTS * 16
    return _can_map(memories, usable=False) and _can_map(stacks + tables, usable=True)


_MAP_NORESERVE = 0x4000
"""As on Linux; Python names it from 3.13 on only."""


def _can_map(size: int, *, usable: bool) -> bool:
    import mmap

    flags = mmap.MAP_PRIVATE | mmap.MAP_ANON | (_MAP_NORESERVE if sys.platform == "linux" else 0)
    try:
        mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE if usable else 0).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _build(api: Any, config: EngineConfig) -> int:
    # SAFETY: the config is ours until wasm_engine_new_with_config consumes it; the pooling config is copied into it
    # and freed here. Every setter takes a live config and a plain number.
    raw = api.config_new()
    for name in _OFF:
        api.switch(raw, name, False)
    for name in _ON:
        getattr(api, f"config_{name}_set")(raw, True)
    api.config_parallel_compilation_set(raw, config.parallel)
    api.config_cranelift_nan_canonicalization_set(raw, config.canonical_nans)
    api.config_consume_fuel_set(raw, config.fuel)
    api.config_max_wasm_stack_set(raw, config.stack_bytes)
    api.config_async_stack_size_set(raw, config.stack_bytes + _HOST_STACK_BYTES)
    if config.pooled:
        pool = api.pooling_allocation_config_new()
        for name, value in {
            "total_core_instances": _POOL_INSTANCES,
            "total_memories": _POOL_INSTANCES * 2,
            "total_tables": _POOL_INSTANCES * 2,
            "total_stacks": _POOL_INSTANCES,
            "max_memories_per_module": MAX_POOLED_MEMORIES,
            "max_tables_per_module": MAX_POOLED_TABLES,
            "max_core_instance_size": 64 << 20,
            "table_elements": MAX_POOLED_TABLE_ELEMENTS,
            "linear_memory_keep_resident": _KEEP_RESIDENT_BYTES,
            "table_keep_resident": _KEEP_RESIDENT_BYTES,
            "async_stack_keep_resident": 16 << 10,
        }.items():
            getattr(api, f"pooling_allocation_config_{name}_set")(pool, value)
        api.pooling_allocation_strategy_set(raw, pool)
        api.pooling_allocation_config_delete(pool)
    engine = api.engine_new_with_config(raw)
    if not engine:
        raise EngineError(f"wasmtime refused the configuration {config}")
    return int(engine)


@cache
def _kernel_maps() -> int:
    """How many memory maps the kernel gives a process (Documentation/admin-guide/sysctl/vm.rst, max_map_count)."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 65_530


@cache
def _most_maps() -> int:
    """How many of them engines and instances may take."""
    return max(_kernel_maps() - _SPARED_MAPS, 2 * _POOL_MAPS)


class _Native:
    """The library's engine and its linkers of native WASI, to be freed when nothing refers to this any more.

    The thread that raises the engine's epoch refers to it, too: it may be about to when the last run ends.

    Args:
        api: The C API.
        config: What to build.

    Raises:
        EngineError: The library does not make it.
    """

    __slots__ = ("__weakref__", "_api", "_lock", "linkers", "pointer")

    def __init__(self, api: Any, config: EngineConfig) -> None:
        self._api = api
        self._lock = reentrant_lock()
        self.pointer = _build(api, config)
        self.linkers: dict[bool, int] = {}

    def linker(self, *, asking: bool) -> int:
        """Returns a linker of native WASI, made on first use: whoever only compiles or validates needs none.

        Args:
            asking: Whether the guards of what is linked ask for what halts their guests.
        """
        if asking not in self.linkers:
            with self._lock:
                if asking not in self.linkers:
                    self._link(asking=asking)
        return self.linkers[asking]

    def _link(self, *, asking: bool) -> None:
        api = self._api
        deafen_stores()
        # SAFETY: the linker holds its own reference to the engine; both are ours until `_free`.
        linker: int = api.linker_new(self.pointer)
        try:
            if error := api.linker_define_wasi(linker):
                raise EngineError(f"native WASI cannot be linked: {error_text(error)}")
            define_parking(api, linker)
            if asking:
                define_asking(api, linker)
        except BaseException:
            api.linker_delete(linker)
            raise
        self.linkers[asking] = linker

    def after_fork(self) -> None:
        """Begins anew in a forked child: another thread may have held the lock."""
        self._lock = reentrant_lock()


def _free(pointer: int, linkers: dict[bool, int], freed: deque[int], maps: int) -> None:
    api = capi()
    # SAFETY: called once, when nothing refers to the engine any more. Modules, stores and other linkers hold their own
    # references to its contents, so that their order does not matter.
    for linker in linkers.values():
        api.linker_delete(linker)
    api.engine_delete(pointer)
    # Not by a lock: this may be called in the middle of anything, also of what holds that lock.
    freed.append(maps)


class _Scarce:
    """What all engines of the process share. By itself, for a class that is changed makes whatever asks it slow.

    Attributes:
        maps: Memory maps that engines and their instances may still take.
    """

    __slots__ = ("maps",)

    def __init__(self) -> None:
        self.maps = _most_maps()


class Engine:
    """A wasmtime engine with its linkers of native WASI and its ticker. Lives as long as something refers to it.

    Attributes:
        api: The C API.
        config: What it is built for.
        pointer: The `wasm_engine_t`.
        new_store: What a store is made of, for `starmap`.
        ticker: Makes running guests look up.
        idle: Places of instances that are admitted, and empty.
    """

    _engines: ClassVar[weakref.WeakValueDictionary[EngineConfig, Engine]] = weakref.WeakValueDictionary()
    """The shared registry, guarded by the lock."""
    _kept: ClassVar[BoundedDict[EngineConfig, Engine]] = BoundedDict(_KEPT_ENGINES)
    """Those used last, guarded by the same lock."""
    _lock = reentrant_lock()
    """Reentrant, for the handler of a signal may run something."""
    _scarce = _Scarce()
    _pools = 0
    _most_pools = _MAX_POOLS
    _freed: ClassVar[deque[int]] = deque()
    """Memory maps of engines that were freed, for whoever holds the lock of counts to count."""
    _descriptors = Descriptors()
    dismissed: ClassVar[deque[tuple[Engine, ResourceCost]]] = deque()
    """What instances took that are gone, for whoever holds the lock of counts to count."""
    _counts_lock = reentrant_lock()
    """Reentrant, for whatever is dropped while it is held is counted under it, too."""
    _forked = False

    def __init__(self, config: EngineConfig, native: _Native) -> None:
        self.api = capi()
        self.config = config
        self._native = native
        self.pointer = native.pointer
        self.new_store = ((native.pointer, None, None),)
        increment = self.api.engine_increment_epoch
        self.ticker = Ticker(lambda: increment(native.pointer))
        self._live_instances = 0
        self.idle: deque[Store] = deque()
        self._slots_left: float = _POOL_INSTANCES if config.pooled else math.inf

    def linker(self, *, asking: bool) -> int:
        """Returns the linker of native WASI, made on first use.

        Args:
            asking: Whether it is for guards that ask for what halts their guests: then it is without reads and writes.
        """
        return self._native.linker(asking=asking)

    @property
    def live_instances(self) -> int:
        """How many instances exist right now."""
        self.settle()
        return self._live_instances - len(self.idle)

    @classmethod
    def shared(cls, config: EngineConfig) -> Engine:
        """Returns the engine for a configuration, built on first use.

        Where there is no room for another pool, instances are allocated one by one: there are enough pools, or the
        process has not the address space (RLIMIT_AS) or the memory maps for it.

        Raises:
            EngineError: There are too many engines.
        """
        with cls._lock:
            engine = cls._engines.get(config)
            if engine is None and config.pooled and not cls._take_pool(config):
                config = config._replace(pooled=False)
                engine = cls._engines.get(config)
            if engine is None:
                engine = cls._engines[config] = cls._made(config)
            cls._kept.keep(config, engine)
        return engine

    @classmethod
    def _made(cls, config: EngineConfig) -> Engine:
        maps = _POOL_MAPS if config.pooled else 0
        try:
            cls._make_room()
            native = _Native(capi(), config)
        except BaseException:
            cls._freed.append(maps)
            raise
        weakref.finalize(native, _free, native.pointer, native.linkers, cls._freed, maps).atexit = False
        return cls(config, native)

    @classmethod
    def _make_room(cls) -> None:
        """Sees to it that there may be one engine more."""
        while len(cls._engines) >= _MAX_ENGINES and cls._kept:
            cls._kept.popitem(last=False)
        if (many := len(cls._engines)) >= _MAX_ENGINES:
            raise EngineError(
                f"{many} engines are in use, as many as there may be in a process. Policies share one where they agree "
                "in limits.stack up to the next power of two, in whether fuel is metered, and in whether runs can be "
                "repeated (clock and random): let them agree, or close sandboxes and sessions that are done"
            )

    @classmethod
    def _take_pool(cls, config: EngineConfig) -> bool:
        """Counts one more pool, if there is room for it."""
        if _address_space_is_limited():
            return False
        while cls._pools_now() >= cls._most_pools:
            # One that is kept for later use only makes room.
            idle = next((kept for kept in cls._kept if kept.pooled), None)
            if idle is None:
                return False
            del cls._kept[idle]
        with cls._counts_lock:
            cls._count_dismissed()
            if cls._scarce.maps < _POOL_MAPS or not _can_reserve(config):
                return False
            cls._pools += 1
            cls._scarce.maps -= _POOL_MAPS
        return True

    @classmethod
    def _pools_now(cls) -> int:
        with cls._counts_lock:
            cls._take_back()
            return cls._pools

    @classmethod
    def _take_back(cls) -> None:
        """Counts what freed engines have given back; the lock of counts is held."""
        while cls._freed:
            maps = cls._freed.popleft()
            cls._scarce.maps += maps
            cls._pools -= bool(maps)

    @classmethod
    def make_no_pools(cls) -> None:
        """Has instances allocated one by one from now on: making a pool takes as long as a hundred short runs."""
        cls._most_pools = 0

    @classmethod
    def may_start_threads(cls) -> bool:
        """Whether an engine may be parallel here: not in a forked child, where its threads may be missing."""
        return not cls._forked

    @classmethod
    def after_fork(cls) -> None:
        """Begins anew in a forked child: locks may have been held, runs under way are the parent's."""
        cls._forked = True
        cls._lock = reentrant_lock()
        cls._counts_lock = reentrant_lock()
        for engine in cls._engines.values():
            engine.forget()

    def forget(self) -> None:
        """Forgets what threads of the parent did, in a forked child."""
        self._native.after_fork()
        self.ticker.forget()

    def acquire(self, claim: ResourceCost) -> Store | None:
        """Counts one more instance, if there is room for it.

        Args:
            claim: What it takes.

        Returns:
            A place, which is given back when it is dropped; None where there is no room.
        """
        idle = self.idle
        if idle:
            try:
                store = idle.pop()
            except IndexError:
                # Another thread has taken the last one.
                pass
            else:
                if store.claim == claim:
                    store.engine = self
                    return store
                del store
        return self._admit(claim) or (self._admit(claim) if self._let_idle_go() else None)

    @classmethod
    def _let_idle_go(cls) -> bool:
        """Gives back what is kept for later use; says whether there was any."""
        found = False
        for engine in tuple(cls._engines.values()):
            while engine.idle:
                found = True
                with suppress(IndexError):
                    engine.idle.pop()
        return found

    def _admit(self, claim: ResourceCost) -> Store | None:
        store = Store(self)
        maps, slots, descriptors = claim
        scarce = Engine._scarce
        with self._counts_lock:
            self._count_dismissed()
            if maps > scarce.maps:
                self._take_back()
            if slots > self._slots_left or maps > scarce.maps:
                return None
            account = self._descriptors
            if descriptors and not account.has(descriptors):
                return None
            # Python looks for signals nowhere in these lines: all of it is counted and owned, or nothing.
            self._slots_left -= slots
            scarce.maps -= maps
            self._live_instances += 1
            if descriptors:
                account.taken += descriptors
                account.holders += 1
            store.claim = claim
        return store

    @classmethod
    def settle(cls) -> None:
        """Counts those who are gone. May be called in the middle of anything: the lock lets its holder in again."""
        if cls.dismissed or lost:
            with cls._counts_lock:
                cls._count_dismissed()

    @classmethod
    def _count_dismissed(cls) -> None:
        """As `settle`; the lock of counts is held."""
        while lost:
            try:
                claim = lost[0]
                # As below.
                del lost[0]
            except IndexError:
                break
            Engine._scarce.maps += claim.maps
        dismissed, account = cls.dismissed, cls._descriptors
        while dismissed:
            try:
                engine, (maps, slots, descriptors) = dismissed[0]
                # As in `acquire`.
                del dismissed[0]
            except IndexError:
                # The handler of a signal has counted it.
                return
            engine._slots_left += slots  # noqa: SLF001 - of this class
            Engine._scarce.maps += maps
            engine._live_instances -= 1  # noqa: SLF001
            if descriptors:
                account.taken -= descriptors
                account.holders -= 1

    def has_slots(self, claim: ResourceCost) -> bool:
        """Whether the engine has slots left for one more instance.

        Args:
            claim: What it would take.
        """
        self.settle()
        return claim.slots <= self._slots_left

    def full(self, claim: ResourceCost) -> EngineError:
        """What to say where there is no room for an instance.

        Args:
            claim: What it would take.
        """
        with self._counts_lock:
            self._count_dismissed()
            if claim.descriptors and claim.maps <= Engine._scarce.maps:
                return EngineError(self._descriptors.refusal(claim.descriptors))
            taken = _most_maps() - Engine._scarce.maps
        alive = sum(engine.live_instances for engine in self._engines.values())
        return EngineError(
            f"{taken:,} memory maps are taken by {alive:,} runs and sessions that are open, and the kernel gives a "
            f"process {_kernel_maps():,}: close sessions that are done, run fewer at once, or raise vm.max_map_count "
            "(docs/performance.md)"
        )

    def validate(self, wasm: bytes) -> None:
        """Checks that a module is valid under the proposals of this engine.

        Raises:
            InvalidModule: It is not; the message says where.
        """
        # SAFETY: `wasm` is borrowed for the call only.
        if error := capi().module_validate(self.pointer, wasm, len(wasm)):
            raise InvalidModule(f"not valid WebAssembly: {error_text(error)}")


_PLACE = re.compile(r"\s+--> <anon>:(\d+):(\d+)")
"""How the library says where text is wrong."""


def assemble(text: str) -> bytes:
    """Translates WebAssembly text to its binary form.

    Args:
        text: A module in the text format (WAT).

    Raises:
        InvalidModule: The text does not parse.
    """
    api = capi()
    encoded = text.encode()
    vector = (ctypes.c_size_t * 2)()
    # SAFETY: the text is borrowed for the call; the vector is ours, copied and then freed.
    if error := api.wat2wasm(encoded, len(encoded), ctypes.addressof(vector)):
        message = _PLACE.sub(r" at line \1, column \2", error_text(error, slice(0, 2)))
        raise InvalidModule(f"not valid WebAssembly text: {message}")
    wasm = ctypes.string_at(vector[1], vector[0])
    api.byte_vec_delete(ctypes.addressof(vector))
    return wasm


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Engine.after_fork)
