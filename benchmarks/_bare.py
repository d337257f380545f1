"""The same run as calls into the C library and nothing else: the least that any Python on this engine can do."""

from __future__ import annotations

import ctypes
import struct
from ctypes import addressof, c_bool, c_int64, c_size_t, c_uint64, c_void_p, memmove, string_at
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from benchmarks._guests import HELLO
from stockade import Module, Policy
from stockade.engine import FUEL_SLICE, library_folder
from stockade.engine._capi import Extern
from stockade.engine._store import Out
from stockade.execution import PolicyContext
from stockade.guard import guard
from stockade.host import HostFunctions

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["bare_hello"]


_TRAP, _ERROR, _EXTERN, _NUMBER = (getattr(Out, name).offset for name in ("trap", "error", "extern", "number"))
_HANDLE = _EXTERN + Extern.of.offset


_P = c_void_p
_CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "wasmtime_store_new": (_P, (_P, _P, _P)),
    "wasmtime_store_context": (_P, (_P,)),
    "wasmtime_store_limiter": (None, (_P, c_int64, c_int64, c_int64, c_int64, c_int64)),
    "wasmtime_context_set_fuel": (_P, (_P, c_uint64)),
    "wasmtime_context_get_fuel": (_P, (_P, _P)),
    "wasi_config_new": (_P, ()),
    "wasmtime_context_set_wasi": (_P, (_P, _P)),
    "wasmtime_context_set_epoch_deadline": (None, (_P, c_uint64)),
    "wasmtime_instance_pre_instantiate": (_P, (_P, _P, _P, _P)),
    "wasmtime_context_fuel_async_yield_interval": (_P, (_P, c_uint64)),
    "wasmtime_context_epoch_deadline_async_yield_and_update": (None, (_P, c_uint64)),
    "wasmtime_instance_export_get": (c_bool, (_P, _P, ctypes.c_char_p, c_size_t, _P)),
    "wasmtime_memory_data": (_P, (_P, _P)),
    "wasmtime_func_call_async": (_P, (_P, _P, _P, c_size_t, _P, c_size_t, _P, _P)),
    "wasmtime_call_future_poll": (c_bool, (_P,)),
    "wasmtime_call_future_delete": (None, (_P,)),
    "wasmtime_store_delete": (None, (_P,)),
}
"""As the header has them."""


def _library() -> Any:
    """The library with these functions, which keep the interpreter lock but where guest code runs."""
    (path,) = (library_folder() / "wasmtime").glob("*/*wasmtime.*")
    short, long = ctypes.PyDLL(str(path)), ctypes.CDLL(str(path))
    found = SimpleNamespace()
    for name, (result, arguments) in _CALLS.items():
        function = getattr(long if name == "wasmtime_call_future_poll" else short, name)
        function.restype, function.argtypes = result, arguments
        setattr(found, name.removeprefix("wasmtime_"), function)
    return found


def bare_hello(policy: Policy | None = None) -> Callable[[], bytes]:
    """The woven hello world on the engine that runs it here: limited, with a deadline, its output captured.

    Nothing is checked, and nothing is freed should anything go wrong: store, limiter, native WASI, instance, state,
    call and output are what a run cannot do without.
    """
    context = PolicyContext(policy or Policy(), HostFunctions())
    plan = context.plan(Module.load(HELLO.encode(), text=True))
    api, engine, prelinked = _library(), plan.linked.engine.pointer, plan.linked.link()[0]
    limits, memory, block = plan.policy.limits, plan.program.woven.state_export, plan.bare.block
    layout = guard().layout
    begin, stdout = layout.block, layout.offsets["stdout"]
    stream = struct.Struct("<I12xQ")
    unpack, size = stream.unpack, stream.size
    assert memory is not None
    ticks = 1 if plan.fuel is None else 2
    fuel = None if plan.fuel is None else plan.fuel + plan.overdraft

    def run(kept: object = context) -> bytes:  # noqa: ARG001 - what the pointers point to
        # SAFETY: as in `Instance`, of which these are the calls; the module is known, and returns.
        store = api.store_new(engine, None, None)
        inside = api.store_context(store)
        out = Out()
        base = addressof(out)
        api.store_limiter(store, limits.memory, limits.table_elements, 1, -1, -1)
        if fuel is not None:
            api.context_set_fuel(inside, fuel)
        api.context_set_wasi(inside, api.wasi_config_new())
        api.context_set_epoch_deadline(inside, 1 << 62)
        api.instance_pre_instantiate(prelinked, inside, base, base + _TRAP)
        if fuel is not None:
            api.context_fuel_async_yield_interval(inside, FUEL_SLICE)
        api.context_epoch_deadline_async_yield_and_update(inside, ticks)
        api.instance_export_get(inside, base, memory, len(memory), base + _EXTERN)
        address = api.memory_data(inside, base + _HANDLE)
        memmove(address + begin, block, len(block))
        api.instance_export_get(inside, base, b"_start", 6, base + _EXTERN)
        future = api.func_call_async(inside, base + _HANDLE, None, 0, None, 0, base + _TRAP, base + _ERROR)
        api.context_set_epoch_deadline(inside, ticks)
        while not api.call_future_poll(future):
            pass
        api.call_future_delete(future)
        if fuel is not None:
            api.context_get_fuel(inside, base + _NUMBER)
        at, total = unpack(string_at(address + stdout, size))
        output = string_at(address + at, total)
        api.store_delete(store)
        return output

    assert run() == b"hello world\n"
    return run
