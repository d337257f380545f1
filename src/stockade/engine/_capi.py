"""The seam: the one module that knows the wasmtime C API.

It loads the shared library that the `wasmtime` wheel carries, without importing the wheel's Python code (which takes
ten times as long), and declares the functions that Stockade calls. The declarations are held against the wheel's own
bindings by a test; names and version are checked here, when the library is first needed, with one clear error.

Made for wasmtime 49 and 50. On another release, read its changelog, run the tests, then widen `SUPPORTED_MAJORS`.

Two rules hold for every caller. Pointers travel as plain integers, and whoever holds one says in a `# SAFETY:` comment
who owns it and how long it lives. Functions that may run long (compile, validate, guest code) release the interpreter
lock; short ones keep it, which is faster and lets no other thread in between.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import sys
from ctypes import c_bool, c_char_p, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockade.engine._fork_gate import counted, others_were_inside
from stockade.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "LONG_CALLS",
    "QUICK_CALLS",
    "SHORT_CALLS",
    "SUPPORTED_MAJORS",
    "Extern",
    "Value",
    "capi",
    "library_folder",
    "prepare",
    "wasmtime_version",
]

SUPPORTED_MAJORS = (49, 50)
"""The wasmtime releases that these declarations were made for."""

_INSTALL = f"pip install 'wasmtime>={SUPPORTED_MAJORS[0]},<{SUPPORTED_MAJORS[-1] + 1}'"
"""What to do about a release that is none of these."""

SWITCHES_SINCE = {"wasmtime_config_wasm_compact_imports_set": 50}
"""Switches of proposals that came with a later release than the first of these: before it, there is nothing to be
switched off. Whatever else is missing is an error."""

_LIBRARY_NAMES = {"linux": "_libwasmtime.so", "darwin": "_libwasmtime.dylib", "win32": "_wasmtime.dll"}
_MACHINES = {"AMD64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}


class _ValueUnion(ctypes.Union):
    _fields_ = (
        ("i32", ctypes.c_int32),
        ("i64", ctypes.c_int64),
        ("f32", ctypes.c_float),
        ("f64", ctypes.c_double),
        ("v128", c_uint8 * 16),  # plain bytes, little-endian: aligned like the rest of the union, to 8
        ("func", c_uint64 * 2),
        ("bytes", c_uint8 * 24),  # the largest member of wasmtime's union is a rooted reference of 24 bytes
    )


class Value(ctypes.Structure):
    """`wasmtime_val_t`: a number with its kind (0 i32, 1 i64, 2 f32, 3 f64, 4 v128, 5 funcref)."""

    _fields_ = (("kind", c_uint8), ("of", _ValueUnion))


class _ExternUnion(ctypes.Union):
    _fields_ = (("words", c_uint64 * 3),)


class Extern(ctypes.Structure):
    """`wasmtime_extern_t`: an export with its kind (0 function, 1 global, 2 table, 3 memory)."""

    _fields_ = (("kind", c_uint8), ("of", _ExternUnion))


_P = c_void_p
_W = c_void_p
"""A whole number of 64 bits as an argument: as a pointer, ctypes converts it in half the time."""
_Prototypes = dict[str, tuple[Any, tuple[Any, ...]]]

_FLAGS = [
    "consume_fuel",
    "cranelift_nan_canonicalization",
    "epoch_interruption",
    "gc_support",
    "memory_init_cow",
    "memory_may_move",
    "parallel_compilation",
    "shared_memory",
    "wasm_bulk_memory",
    "wasm_compact_imports",
    "wasm_custom_page_sizes",
    "wasm_exceptions",
    "wasm_function_references",
    "wasm_gc",
    "wasm_memory64",
    "wasm_multi_memory",
    "wasm_multi_value",
    "wasm_reference_types",
    "wasm_relaxed_simd",
    "wasm_relaxed_simd_deterministic",
    "wasm_simd",
    "wasm_stack_switching",
    "wasm_tail_call",
    "wasm_threads",
    "wasm_wide_arithmetic",
]

SHORT_CALLS: _Prototypes = {
    "wasm_config_new": (_P, ()),
    **{f"wasmtime_config_{flag}_set": (None, (_P, c_bool)) for flag in _FLAGS},
    "wasmtime_config_max_wasm_stack_set": (None, (_P, _W)),
    "wasmtime_config_async_stack_size_set": (None, (_P, _W)),
    "wasmtime_pooling_allocation_config_new": (_P, ()),
    "wasmtime_pooling_allocation_config_delete": (None, (_P,)),
    "wasmtime_pooling_allocation_config_total_core_instances_set": (None, (_P, c_uint32)),
    "wasmtime_pooling_allocation_config_total_memories_set": (None, (_P, c_uint32)),
    "wasmtime_pooling_allocation_config_total_tables_set": (None, (_P, c_uint32)),
    "wasmtime_pooling_allocation_config_total_stacks_set": (None, (_P, c_uint32)),
    "wasmtime_pooling_allocation_config_max_memories_per_module_set": (None, (_P, c_uint32)),
    "wasmtime_pooling_allocation_config_max_tables_per_module_set": (None, (_P, c_uint32)),
    "wasmtime_pooling_allocation_config_max_core_instance_size_set": (None, (_P, _W)),
    "wasmtime_pooling_allocation_config_table_elements_set": (None, (_P, _W)),
    "wasmtime_pooling_allocation_config_linear_memory_keep_resident_set": (None, (_P, _W)),
    "wasmtime_pooling_allocation_config_table_keep_resident_set": (None, (_P, _W)),
    "wasmtime_pooling_allocation_config_async_stack_keep_resident_set": (None, (_P, _W)),
    "wasmtime_pooling_allocation_strategy_set": (None, (_P, _P)),
    "wasmtime_engine_increment_epoch": (None, (_P,)),
    "wasmtime_linker_new": (_P, (_P,)),
    "wasmtime_linker_define_wasi": (_P, (_P,)),
    "wasmtime_linker_allow_shadowing": (None, (_P, c_bool)),
    "wasmtime_linker_define_func": (_P, (_P, c_char_p, _W, c_char_p, _W, _P, _P, _P, _P)),
    "wasmtime_linker_define_async_func": (_P, (_P, c_char_p, _W, c_char_p, _W, _P, _P, _P, _P)),
    "wasmtime_caller_context": (_P, (_P,)),
    "wasmtime_linker_get": (c_bool, (_P, _P, c_char_p, _W, c_char_p, _W, _P)),
    "wasm_functype_new": (_P, (_P, _P)),
    "wasm_functype_delete": (None, (_P,)),
    "wasm_valtype_new": (_P, (c_uint8,)),
    "wasm_valtype_vec_new": (None, (_P, _W, _P)),
    "wasmtime_store_new": (_P, (_P, _P, _P)),
    "wasmtime_store_delete": (None, (_P,)),
    "wasmtime_store_context": (_P, (_P,)),
    "wasmtime_store_limiter": (None, (_P, _W, _W, _W, _W, _W)),
    "wasmtime_context_set_fuel": (_P, (_P, _W)),
    "wasmtime_context_get_fuel": (_P, (_P, _P)),
    "wasmtime_context_fuel_async_yield_interval": (_P, (_P, _W)),
    "wasmtime_context_set_epoch_deadline": (None, (_P, _W)),
    # The header of release 50 declares an error as the result, but the function returns nothing.
    "wasmtime_context_epoch_deadline_async_yield_and_update": (None, (_P, _W)),
    "wasmtime_context_set_wasi": (_P, (_P, _P)),
    "wasmtime_context_has_exception": (c_bool, (_P,)),
    "wasmtime_module_image_range": (None, (_P, _P, _P)),
    "wasi_config_new": (_P, ()),
    "wasi_config_delete": (None, (_P,)),
    "wasi_config_preopen_dir": (c_bool, (_P, c_char_p, c_char_p, c_bool)),
    "wasmtime_instance_pre_instantiate": (_P, (_P, _P, _P, _P)),
    "wasmtime_instance_export_get": (c_bool, (_P, _P, c_char_p, _W, _P)),
    "wasmtime_global_get": (None, (_P, _P, _P)),
    "wasmtime_global_set": (_P, (_P, _P, _P)),
    "wasmtime_memory_data": (_P, (_P, _P)),
    "wasmtime_memory_data_size": (c_size_t, (_P, _P)),
    "wasmtime_memory_grow": (_P, (_P, _P, _W, _P)),
    "wasmtime_table_size": (c_uint64, (_P, _P)),
    "wasmtime_table_set": (_P, (_P, _P, _W, _P)),
    "wasmtime_instance_pre_instantiate_async": (_P, (_P, _P, _P, _P, _P)),
    "wasmtime_func_call_async": (_P, (_P, _P, _P, _W, _P, _W, _P, _P)),
    "wasmtime_call_future_poll": (c_bool, (_P,)),
    "wasmtime_call_future_delete": (None, (_P,)),
    "wasmtime_linker_instantiate_pre": (_P, (_P, _P, _P)),
    "wasmtime_error_delete": (None, (_P,)),
    "wasmtime_error_message": (None, (_P, _P)),
    "wasmtime_error_wasm_trace": (None, (_P, _P)),
    "wasmtime_trap_code": (c_bool, (_P, _P)),
    "wasm_trap_delete": (None, (_P,)),
    "wasm_trap_trace": (None, (_P, _P)),
    "wasm_frame_func_index": (c_uint32, (_P,)),
    "wasm_frame_func_offset": (c_size_t, (_P,)),
    "wasmtime_frame_func_name": (_P, (_P,)),
    "wasm_frame_vec_delete": (None, (_P,)),
    "wasm_byte_vec_delete": (None, (_P,)),
}
"""Functions that return at once: called with the interpreter lock held."""

LONG_CALLS: _Prototypes = {
    "wasm_engine_new_with_config": (_P, (_P,)),
    "wasmtime_wat2wasm": (_P, (c_char_p, _W, _P)),
    "wasmtime_module_validate": (_P, (_P, c_char_p, _W)),
    "wasmtime_module_new": (_P, (_P, c_char_p, _W, _P)),
    "wasmtime_module_serialize": (_P, (_P, _P)),
    "wasmtime_module_deserialize": (_P, (_P, c_char_p, _W, _P)),
    "wasmtime_module_deserialize_file": (_P, (_P, c_char_p, _P)),
    "wasmtime_instance_pre_instantiate": (_P, (_P, _P, _P, _P)),
    "wasmtime_call_future_poll": (c_bool, (_P,)),
    # What frees much: machine code, a pool, or a guest's memory.
    "wasm_engine_delete": (None, (_P,)),
    "wasmtime_linker_delete": (None, (_P,)),
    "wasmtime_module_delete": (None, (_P,)),
    "wasmtime_instance_pre_delete": (None, (_P,)),
    "wasmtime_store_delete": (None, (_P,)),
}
"""Functions that compile, map or unmap memory, or run guest code: called with the interpreter lock released. One that
is short for most, and so stands in both tables, is called `…_long` here."""

QUICK_CALLS = (
    "context_epoch_deadline_async_yield_and_update",
    "context_get_fuel",
    "context_set_epoch_deadline",
    "func_call_async",
    "instance_export_get",
    "instance_pre_instantiate",
)
"""Short calls that are made for each run, under a second name, `quick_…`, by which ctypes converts nothing: that takes
a third as long for each argument. They take what `prepare` has made of an address or of any whole number, a whole
number from 0 to 2^31-1 as it is, bytes, and None. Of a larger number they would take 32 bits."""

prepare: Callable[[int], object] = c_void_p.from_param
"""Makes an argument of quick calls of an address, or of any whole number of 64 bits."""

_COUNTED_BY_CALLERS = ("instance_pre_instantiate_long", "call_future_poll_long", "store_delete_long")
"""Long calls that are made for each run: who makes them puts itself on the list of calls under way (_fork_gate.py)."""


class _CApi:
    """The declared functions as attributes, under their C names without the `wasmtime_` or `wasm_` prefix. No others.

    Args:
        path: The library.
        release: Its major version.

    Attributes:
        prepare: The same as the function of that name.
    """

    def __init__(self, path: Path, release: int) -> None:
        # SAFETY: PyDLL keeps the interpreter lock during a call. None of these functions waits for another thread
        # that could need the lock, and none runs guest code: callbacks into Python (host functions) can come out of
        # long calls only, which release the lock.
        short, long = ctypes.PyDLL(str(path)), ctypes.CDLL(str(path))
        self.prepare = prepare
        missing = []
        for library, prototypes in ((short, SHORT_CALLS), (long, LONG_CALLS)):
            for name, (result, arguments) in prototypes.items():
                try:
                    function = getattr(library, name)
                except AttributeError:
                    if SWITCHES_SINCE.get(name, 0) <= release:
                        missing.append(name)
                    continue
                function.restype, function.argtypes = result, arguments
                attribute = name.removeprefix("wasmtime_").removeprefix("wasm_")
                attribute = f"{attribute}_long" if attribute in vars(self) else attribute
                by_us = library is long and attribute not in _COUNTED_BY_CALLERS
                setattr(self, attribute, counted(function) if by_us else function)
                if library is short and attribute in QUICK_CALLS:
                    # Another object for the same function, which has no types of arguments.
                    quick = type(function)((name, short))
                    quick.restype = result
                    setattr(self, f"quick_{attribute}", quick)
        if missing:
            raise EngineError(
                f"the wasmtime library at {path} lacks {', '.join(missing)}. "
                f"Install a release that Stockade was made for: {_INSTALL}"
            )

    def switch(self, config: int, proposal: str, on: bool) -> None:
        """Switches a proposal on or off, if the library has it; one that it has not is off.

        Args:
            config: The configuration.
            proposal: Its name, such as `wasm_threads`.
            on: Whether guests may use it.
        """
        name = f"config_{proposal}_set"
        if name in vars(self) or f"wasmtime_{name}" not in SWITCHES_SINCE:
            # SAFETY: the configuration is the caller's, and live.
            getattr(self, name)(config, on)

    def refuse_all(self) -> None:
        """Lets nobody call the library any more: what would be freed stays, anything else is an error in words."""
        for name in vars(self):
            setattr(self, name, _leave if name.removesuffix("_long").endswith("_delete") else _refuse)


def _leave(*_: object) -> None:
    pass


def _refuse(*_: object) -> None:
    raise EngineError(
        "this process was forked while another thread was in the engine and did not come out of it in time, so that no "
        "guest can run here: fork before anything is run or compiled, fork again, or start processes by spawning them"
    )


@cache
def _package_folder() -> Path:
    spec = importlib.util.find_spec("wasmtime")
    if spec is None or not spec.submodule_search_locations:
        raise EngineError(f"the wasmtime package is not installed: {_INSTALL}")
    return Path(spec.submodule_search_locations[0])


def library_folder() -> Path:
    """Returns the folder from which the wasmtime package is imported."""
    return _package_folder().parent


@cache
def wasmtime_version() -> str:
    """Returns the version of the installed wasmtime wheel, such as `"50.0.1"`.

    Raises:
        EngineError: The wheel is not installed, or its metadata is missing.
    """
    folder = _package_folder()
    # The metadata folder's name tells the version; importlib.metadata would take twenty times as long to say it.
    for name in sorted(os.listdir(folder.parent)):  # noqa: PTH208 - pathlib takes five times as long
        if name.startswith("wasmtime-") and name.endswith(".dist-info"):
            return name.removeprefix("wasmtime-").removesuffix(".dist-info")
    from importlib import metadata as slow_metadata

    try:
        return slow_metadata.version("wasmtime")
    except slow_metadata.PackageNotFoundError:
        raise EngineError(f"{folder} has no version: reinstall it with {_INSTALL}") from None


def _yes() -> bool:
    return True


@cache
def capi() -> Any:
    """Loads the C API on first use.

    Raises:
        EngineError: The library is missing, of an unknown release, or lacks a function; or this Python runs without its
            lock.
    """
    if not getattr(sys, "_is_gil_enabled", _yes)():
        raise EngineError(
            "this is a free-threaded build of Python, which runs without the global lock on which Stockade relies: use "
            "the usual build"
        )
    version = wasmtime_version()
    release = int(version.split(".", 1)[0])
    if release not in SUPPORTED_MAJORS:
        raise EngineError(
            f"wasmtime {version} is installed, but this Stockade was made for releases "
            f"{SUPPORTED_MAJORS[0]} to {SUPPORTED_MAJORS[-1]}: {_INSTALL}"
        )
    machine = _MACHINES.get(platform.machine())
    library = _LIBRARY_NAMES.get(sys.platform)
    if machine is None or library is None:
        raise EngineError(f"wasmtime has no build for {sys.platform} on {platform.machine()}")
    path = _package_folder() / f"{sys.platform}-{machine}" / library
    if not path.is_file():
        raise EngineError(f"the wasmtime wheel has no library at {path}: reinstall it for this platform")
    return _CApi(path, release)


def _after_fork() -> None:
    if others_were_inside() and capi.cache_info().currsize:
        capi().refuse_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
