"""An instance whose memory is a guest's, which passes its large reads and writes on to native WASI.

Native WASI reads and writes the memory that the instance which calls it exports as `memory`. For a woven module that is
the guard's. So that the data of a large read or write need not be copied there or from there, the guard has it moved by
this one: it imports the guest's memory, exports it under that name, and passes two calls on as they are. It puts its
functions into the first slots of the table through which the guard reaches what it is lent. Nothing of the guest can
name them.
"""

from __future__ import annotations

from ctypes import addressof, c_uint64, sizeof
from itertools import starmap
from typing import TYPE_CHECKING, Any, Final

from stockade.engine._capi import Extern
from stockade.engine._compiled import CompiledModule
from stockade.engine._engine import assemble
from stockade.engine._failure import error_text
from stockade.engine._parking import MODULE
from stockade.errors import EngineError

if TYPE_CHECKING:
    from stockade.engine._compiled import LinkedModule
    from stockade.engine._store import Store

__all__ = ["add_forwarder", "forwarder_of"]

_TEXT: Final = """
(module
  (type $io (func (param i32 i32 i32 i32) (result i32)))
  (import "" "memory" (memory 0))
  (import "" "natives" (table 2 funcref))
  (import "" "fd_read" (func $fd_read (type $io)))
  (import "" "fd_write" (func $fd_write (type $io)))
  (export "memory" (memory 0))
  (elem (i32.const 0) func $read $write)
  (func $read (type $io) (call $fd_read (local.get 0) (local.get 1) (local.get 2) (local.get 3)))
  (func $write (type $io) (call $fd_write (local.get 0) (local.get 1) (local.get 2) (local.get 3))))
"""

_NATIVES: Final = (b"fd_read", b"fd_write")

_EXTERN_BYTES: Final = sizeof(Extern)


def forwarder_of(linked: LinkedModule) -> CompiledModule:
    """Returns the machine code of what forwards for the instances of a module, made once."""
    code = linked.forwarder
    if code is None:
        # Some bytes of ours, which take a millisecond.
        code = linked.forwarder = CompiledModule(linked.engine, assemble(_TEXT))
    return code


def add_forwarder(linked: LinkedModule, place: Store, context: int, memory: bytes, table: bytes) -> None:
    """Adds what forwards to the store of an instance.

    Args:
        linked: What the instance is of.
        place: Where it is.
        context: Its store.
        memory: Name of the exported memory of its guest.
        table: Name of the exported table through which the guard reaches what it is lent.

    Raises:
        EngineError: It cannot be made.
    """
    api: Any = linked.engine.api
    code = forwarder_of(linked)
    items = (Extern * 4)()
    at = addressof(items)
    # SAFETY: names are borrowed for each call; what is written to `items` are copies of handles of this store.
    for number, name in enumerate((memory, table)):
        if not api.instance_export_get(context, place.address, name, len(name), at + number * _EXTERN_BYTES):
            raise KeyError(name)
    for number, name in enumerate(_NATIVES, 2):
        where = at + number * _EXTERN_BYTES
        if not api.linker_get(linked.linker, context, MODULE, len(MODULE), name, len(name), where):
            raise KeyError(name)
    out = (c_uint64 * 4)()
    made = addressof(out)
    linker = None
    try:
        # SAFETY: the linker is ours until it is deleted, here; unpacked, not called, so it is kept (see `Store.open`).
        # The future borrows linker, module and the places in `out` until it is deleted, here or with the store, which
        # keeps `out`. Nothing of the guest runs in it.
        (linker,) = starmap(api.linker_new, ((linked.engine.pointer,),))
        _define(api, linker, context, at)
        place.kept = out, code
        future = place.future = api.linker_instantiate_async(linker, context, code.module, made, made + 16, made + 24)
        _poll(api, future)
        place.end_call()
    finally:
        place.end_call()
        if linker is not None:
            api.linker_delete(linker)
    if out[3]:
        raise EngineError(f"large reads and writes cannot be forwarded: {error_text(out[3])}")
    if out[2]:
        api.trap_delete(out[2])
        raise EngineError("large reads and writes cannot be forwarded: the engine says a trap")


# Functions of their own, for what is raised as a loop begins anew would pass by the `try` around it.


def _define(api: Any, linker: int, context: int, items: int) -> None:
    """Defines what is imported: one extern behind the other."""
    for number, name in enumerate((b"memory", b"natives", *_NATIVES)):
        # SAFETY: name and extern are borrowed for the call; the linker copies both.
        if error := api.linker_define(linker, context, b"", 0, name, len(name), items + number * _EXTERN_BYTES):
            raise EngineError(f"large reads and writes cannot be forwarded: {error_text(error)}")


def _poll(api: Any, future: int) -> None:
    # SAFETY: the future is alive. Nothing in it waits; should the library do so all the same, it is polled again.
    while not api.call_future_poll(future):
        pass
