"""Engines: one for each configuration, shared by everything in the process."""

from __future__ import annotations

import ctypes
import math
import os
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stockade.engine._failure import error_text
from stockade.engine._parking import define_parking
from stockade.engine._seam import capi
from stockade.engine._ticker import Ticker
from stockade.errors import EngineError, InvalidModule

if TYPE_CHECKING:
    from stockade.engine._compiled import Claim

__all__ = [
    "MAX_POOLED_MEMORIES",
    "MAX_POOLED_TABLES",
    "MAX_POOLED_TABLE_ELEMENTS",
    "Engine",
    "EngineConfig",
    "assemble",
]

_POOL_INSTANCES = 1000
"""Instances that one pooled engine keeps slots for; one run or session takes one."""

_POOL_MAPS = 2 * _POOL_INSTANCES
"""Memory maps that a pooled engine takes from its making on: its stacks."""

_SPARED_MAPS = 8_000
"""Memory maps that are left to everything else in the process: libraries, machine code, threads. A thread that finds no
map left for the stack of its signal handlers aborts the process, so guests must never take the last ones."""

MAX_POOLED_MEMORIES = 8
"""Memories that a pooled instance may have, the guard's included."""

MAX_POOLED_TABLES = 8
"""Tables that a pooled instance may have, the guard's included."""

MAX_POOLED_TABLE_ELEMENTS = 65_536
"""Elements that a table of a pooled instance may have (512 KiB of reserved, untouched address space each)."""

_KEEP_RESIDENT_BYTES = 64 << 10
"""Memory of a finished instance up to this size is cleared by hand, which is faster than asking the kernel to."""


class EngineConfig(NamedTuple):
    """What an engine is built for; runs with equal configurations share an engine.

    Attributes:
        fuel: Whether code is compiled to count fuel.
        stack_bytes: How much stack guest code may use.
        simd: Whether the SIMD proposal is on. This and the next three: for what runs always, when a module is
            validated as its guest wrote it where the policy allows.
        relaxed_simd: Whether the relaxed SIMD proposal is on.
        tail_call: Whether the tail call proposal is on.
        multi_memory: Whether the multi-memory proposal is on.
        canonical_nans: Whether every NaN has the same bits on every machine, for runs that can be repeated.
        parallel: Whether a module is validated and compiled by several threads, which the library starts then and
            keeps: a process that may be forked goes without, for they are missing in its child, which would wait for
            them for ever.
        host_stack_bytes: How much stack native WASI and host functions may use on top of the guest's own.
        pooled: Whether instances come from preallocated slots (fast), or are allocated one by one (any size).
    """

    fuel: bool
    stack_bytes: int
    simd: bool = True
    relaxed_simd: bool = True
    tail_call: bool = True
    multi_memory: bool = True
    canonical_nans: bool = False
    parallel: bool = False
    host_stack_bytes: int = 512 << 10
    pooled: bool = True


# Proposals that guests do not get. GC, threads and 64-bit memories widen what the engine must get right;
# the weaver does not know stack switching or typed function references.
_OFF = (
    "memory_may_move",  # so that the host may keep the address of a memory
    "shared_memory",
    "wasm_compact_imports",
    "wasm_custom_page_sizes",
    "wasm_exceptions",
    "wasm_function_references",
    "wasm_gc",
    "wasm_memory64",
    "wasm_stack_switching",
    "wasm_threads",
    "wasm_wide_arithmetic",
)
_ON = (
    "gc_support",  # for references to the host (externref), not for the GC proposal
    "epoch_interruption",
    "memory_init_cow",
    "wasm_bulk_memory",
    "wasm_multi_value",
    "wasm_reference_types",
    "wasm_relaxed_simd_deterministic",
)


def _address_space_is_limited() -> bool:
    try:
        import resource
    except ImportError:
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _build(api: Any, config: EngineConfig) -> int:
    # SAFETY: the config is ours until wasm_engine_new_with_config consumes it; the pooling config is copied into it
    # and freed here. Every setter takes a live config and a plain number.
    raw = api.config_new()
    for name in _OFF:
        getattr(api, f"config_{name}_set")(raw, False)
    for name in _ON:
        getattr(api, f"config_{name}_set")(raw, True)
    # Relaxed SIMD first: the library aborts the process on an engine with relaxed SIMD but not SIMD (H26).
    api.config_wasm_relaxed_simd_set(raw, config.relaxed_simd and config.simd)
    api.config_wasm_simd_set(raw, config.simd)
    api.config_wasm_tail_call_set(raw, config.tail_call)
    api.config_wasm_multi_memory_set(raw, config.multi_memory)
    api.config_parallel_compilation_set(raw, config.parallel)
    api.config_cranelift_nan_canonicalization_set(raw, config.canonical_nans)
    api.config_consume_fuel_set(raw, config.fuel)
    api.config_max_wasm_stack_set(raw, config.stack_bytes)
    api.config_async_stack_size_set(raw, config.stack_bytes + config.host_stack_bytes)
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


def _linker(api: Any, engine: int) -> int:
    # SAFETY: the linker holds its own reference to the engine; both are kept for the life of the process.
    linker = api.linker_new(engine)
    if error := api.linker_define_wasi(linker):
        raise EngineError(f"native WASI cannot be linked: {error_text(error)}")
    define_parking(api, linker)
    return int(linker)


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


class Engine:
    """A wasmtime engine with its linker of native WASI and its ticker. Lives as long as the process."""

    _engines: dict[EngineConfig, Engine] = {}  # noqa: RUF012 - the shared registry, guarded by the lock
    _lock = threading.Lock()
    _maps_left = _most_maps()
    """Memory maps that engines of the process and their instances may still take."""
    _maps_lock = threading.Lock()
    _forked = False

    def __init__(self, config: EngineConfig) -> None:
        api = self.api = capi()
        self.config = config
        self.pointer = _build(api, config)
        self._linker = 0
        increment, pointer = api.engine_increment_epoch, self.pointer
        self.ticker = Ticker(lambda: increment(pointer))
        # How many instances exist right now.
        self.live_instances = 0
        self._slots_left: float = _POOL_INSTANCES if config.pooled else math.inf
        with self._maps_lock:
            Engine._maps_left -= _POOL_MAPS if config.pooled else 0

    @property
    def linker(self) -> int:
        """The linker of native WASI, made on first use: whoever only compiles or validates needs none."""
        with Engine._lock:
            if not self._linker:
                self._linker = _linker(self.api, self.pointer)
            return self._linker

    @classmethod
    def shared(cls, config: EngineConfig) -> Engine:
        """Returns the engine for a configuration, built on first use.

        Where the process has an address-space limit (RLIMIT_AS), slots cannot be reserved: instances are then
        allocated one by one.
        """
        if config.pooled and _address_space_is_limited():
            config = config._replace(pooled=False)
        engine = cls._engines.get(config)
        if engine is None:
            with cls._lock:
                engine = cls._engines.get(config)
                if engine is None:
                    engine = cls._engines[config] = cls(config)
        return engine

    @classmethod
    def may_start_threads(cls) -> bool:
        """Whether an engine may be parallel here: not in a forked child, where its threads may be missing."""
        return not cls._forked

    @classmethod
    def after_fork(cls) -> None:
        """Begins anew in a forked child: locks may have been held, runs under way are the parent's."""
        cls._forked = True
        cls._lock = threading.Lock()
        cls._maps_lock = threading.Lock()
        for engine in cls._engines.values():
            engine.ticker.forget()
            engine.live_instances = 0

    def admit(self, claim: Claim) -> bool:
        """Counts one more instance, if there is room for it.

        Args:
            claim: What it takes.
        """
        maps, slots = claim
        with self._maps_lock:
            if slots > self._slots_left or maps > Engine._maps_left:
                return False
            self._slots_left -= slots
            Engine._maps_left -= maps
            self.live_instances += 1
        return True

    def dismiss(self, claim: Claim) -> None:
        """Counts one instance less, which took so much."""
        maps, slots = claim
        with self._maps_lock:
            self._slots_left += slots
            Engine._maps_left += maps
            self.live_instances -= 1

    def full(self) -> EngineError:
        """What to say where there is no room for an instance."""
        taken = _most_maps() - Engine._maps_left
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
        raise InvalidModule(f"not valid WebAssembly text: {error_text(error, slice(0, 2))}")
    wasm = ctypes.string_at(vector[1], vector[0])
    api.byte_vec_delete(ctypes.addressof(vector))
    return wasm


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Engine.after_fork)
