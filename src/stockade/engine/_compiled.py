"""Machine code: a module compiled and linked ahead of its runs."""

from __future__ import annotations

import ctypes
import weakref
from ctypes import c_void_p
from typing import TYPE_CHECKING

from stockade.engine._failure import error_text
from stockade.engine._seam import capi
from stockade.errors import EngineError, LinkError

if TYPE_CHECKING:
    from stockade.engine._engine import Engine

__all__ = ["CompiledModule"]


def _free(module: int, prelinked: int) -> None:
    api = capi()
    # SAFETY: called once, when the last reference to the CompiledModule is gone; instances hold their own.
    api.instance_pre_delete(prelinked)
    api.module_delete(module)


class CompiledModule:
    """A module in machine code, its imports resolved against native WASI.

    Args:
        engine: The engine to compile for.
        wasm: A woven module, already validated in its original form.

    Raises:
        EngineError: The engine does not accept it.
        LinkError: An import is not native WASI.
    """

    def __init__(self, engine: Engine, wasm: bytes) -> None:
        api = capi()
        self.engine = engine
        module, prelinked = c_void_p(), c_void_p()
        # SAFETY: `wasm` is borrowed for the call. On success we own the module; on failure only the error.
        if error := api.module_new(engine.pointer, wasm, len(wasm), ctypes.addressof(module)):
            raise EngineError(f"the engine does not compile this module: {error_text(error)}")
        # SAFETY: linker and module are alive; the result holds its own references to both contents.
        if error := api.linker_instantiate_pre(engine.linker, module, ctypes.addressof(prelinked)):
            api.module_delete(module)
            raise LinkError(f"the module's imports cannot be linked: {error_text(error)}")
        assert module.value is not None
        assert prelinked.value is not None
        self.prelinked = prelinked.value
        self._finalizer = weakref.finalize(self, _free, module.value, prelinked.value)
        # Machine code needs no farewell at interpreter exit, where threads may still run it.
        self._finalizer.atexit = False
