"""The same run as calls into the C library and nothing else: the least that any Python on this engine can do."""

from __future__ import annotations

import ctypes
import struct
from ctypes import addressof, c_uint64, c_void_p, memmove, string_at
from typing import TYPE_CHECKING

from benchmarks._guests import HELLO
from stockade import Module, Policy
from stockade.engine import FUEL_SLICE
from stockade.engine._capi import Extern, capi
from stockade.execution import PolicyContext
from stockade.guard import guard
from stockade.host import HostFunctions

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["bare_hello"]


class _Out(ctypes.Structure):
    _fields_ = (
        ("instance", c_uint64 * 2),
        ("trap", c_void_p),
        ("error", c_void_p),
        ("extern", Extern),
        ("number", c_uint64),
    )


_TRAP, _ERROR, _EXTERN, _NUMBER = (getattr(_Out, name).offset for name in ("trap", "error", "extern", "number"))
_HANDLE = _EXTERN + Extern.of.offset


def bare_hello(policy: Policy | None = None) -> Callable[[], bytes]:
    """The woven hello world on the engine that runs it here: limited, with a deadline, its output captured.

    Nothing is checked, and nothing is freed should anything go wrong: store, limiter, native WASI, instance, state,
    call and output are what a run cannot do without.
    """
    context = PolicyContext(policy or Policy(), HostFunctions())
    plan = context.plan(Module.load(HELLO.encode(), text=True))
    api, engine, prelinked = capi(), plan.linked.engine.pointer, plan.linked.prelinked
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
        out = _Out()
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
