"""Machine code: a module compiled, and linked ahead of its runs."""

from __future__ import annotations

import ctypes
import weakref
from ctypes import c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, TypeAlias

from stockade.engine._capi import capi
from stockade.engine._failure import error_text
from stockade.errors import EngineError, LinkError

if TYPE_CHECKING:
    from stockade.engine._engine import Engine
    from stockade.engine._parking import Asked

__all__ = ["CompiledModule", "LinkedModule", "ResourceCost", "compile_to_bytes"]


class ResourceCost(NamedTuple):
    """What an instance takes of what there is only so much of.

    Attributes:
        maps: Memory maps of the kernel, at most.
        slots: Slots of a pool, which has two memories and two tables for each.
        descriptors: File descriptors that it may come to have: its mounts, and what it may open.
    """

    maps: int
    slots: int
    descriptors: int = 0


MAPS_PER_MEMORY = 3
"""What is in use of a memory, the image that it begins with, and what is reserved."""

MAPS_PER_STACK = 2
"""The stack, and the page behind it that must not be touched."""


def _free_module(module: int) -> None:
    # SAFETY: called once, when the last reference to the CompiledModule is gone; what is linked holds its own.
    capi().module_delete(module)


def _free_linked(prelinked: int) -> None:
    # SAFETY: called once, when the last reference to the LinkedModule is gone; instances hold their own.
    capi().instance_pre_delete(prelinked)


Linked: TypeAlias = tuple[int, int, object]
"""What instances are made of: see `LinkedModule.native`."""


class LinkedModule:
    """Machine code that is to be instantiated, and its imports as far as they are resolved.

    Args:
        compiled: The machine code.
        parks: Whether it imports the function that halts guests.
        small: Whether an instance is made in no time, for there is little that it begins with.
        memories: How many memories it has.
        tables: How many tables it has.

    Attributes:
        engine: Its engine.
        native: The `wasmtime_instance_pre_t`, the linker that has made it, and the former as quick calls take it; None
            before it is made.
        asking: The same for guards that ask for what halts their guests.
        parks: Whether it imports the function that halts guests.
        small: Whether an instance is made in no time.
        claim: What an instance takes, the files left out that its policy lets it open.
        memory_handles: What is known of the handles of memories that its instances export, by their names.
        table_handles: The same for tables.
        asked: What is put where when a guard asks for what halts its guest; None before it is known.
        natives_table: The same for the table through which the guard reaches what it is lent; None before it is known.
    """

    def __init__(
        self,
        compiled: CompiledModule,
        *,
        parks: bool = False,
        small: bool = False,
        memories: int = 2,
        tables: int = 1,
    ) -> None:
        self._compiled = compiled
        self.engine = compiled.engine
        self.native: Linked | None = None
        self.asking: Linked | None = None
        self.parks = parks
        self.small = small
        self.memory_handles: dict[bytes, int] = {}
        self.table_handles: dict[bytes, int] = {}
        self.asked: Asked | None = None
        self.natives_table: int | None = None
        # The stacks of a pool are all there from its beginning on.
        maps = MAPS_PER_MEMORY * memories + (0 if compiled.engine.config.pooled else MAPS_PER_STACK)
        self.claim = ResourceCost(maps, max(1, -(-memories // 2), -(-tables // 2)))

    def link(self, *, asking: bool = False) -> Linked:
        """Resolves its imports, unless that was done; returns what instances are made of (see `native`).

        Args:
            asking: Whether its guard asks for what halts its guest.

        Raises:
            LinkError: An import is none of native WASI's.
        """
        made = self.asking if asking else self.native
        if made is None:
            # Of two threads that come here at once, both make one; each is freed with this.
            linker = self.engine.linker(asking=asking)
            prelinked = self._link(linker)
            made = prelinked, linker, self.engine.api.prepare(prelinked)
            if asking:
                self.asking = made
            else:
                self.native = made
        return made

    def _link(self, linker: int) -> int:
        prelinked = c_void_p()
        # SAFETY: linker and module are alive; the result holds its own references to both contents.
        if error := capi().linker_instantiate_pre(linker, self._compiled.module, ctypes.addressof(prelinked)):
            raise LinkError(f"the module's imports cannot be linked: {error_text(error)}")
        assert prelinked.value is not None
        weakref.finalize(self, _free_linked, prelinked.value).atexit = False
        return prelinked.value


def _compile(engine: Engine, wasm: bytes) -> int:
    module = c_void_p()
    # SAFETY: `wasm` is borrowed for the call. On success we own the module; on failure only the error.
    if error := capi().module_new(engine.pointer, wasm, len(wasm), ctypes.addressof(module)):
        raise EngineError(f"the engine does not compile this module: {error_text(error)}")
    assert module.value is not None
    return module.value


def _serialize(module: int) -> bytes:
    api = capi()
    vector = (ctypes.c_size_t * 2)()
    # SAFETY: the caller keeps the module for the call; the vector is ours, copied and then freed.
    if error := api.module_serialize(module, ctypes.addressof(vector)):
        raise EngineError(f"the engine does not serialize this module: {error_text(error)}")
    code = ctypes.string_at(vector[1], vector[0])
    api.byte_vec_delete(ctypes.addressof(vector))
    return code


def compile_to_bytes(engine: Engine, wasm: bytes) -> bytes:
    """Compiles a module to machine code that another engine of the same configuration can load.

    Args:
        engine: The engine to compile for.
        wasm: A woven module, already validated in its original form.

    Raises:
        EngineError: The engine does not accept it.
    """
    module = _compile(engine, wasm)
    try:
        return _serialize(module)
    finally:
        # SAFETY: the module is ours, and nothing else refers to it.
        capi().module_delete(module)


class CompiledModule:
    """A module in machine code.

    Args:
        engine: The engine to compile for.
        wasm: A woven module, already validated in its original form.

    Raises:
        EngineError: The engine does not accept it.

    Attributes:
        engine: The engine.
        module: The `wasmtime_module_t`.
    """

    def __init__(self, engine: Engine, wasm: bytes) -> None:
        self._take(engine, _compile(engine, wasm))

    @classmethod
    def load(cls, engine: Engine, code: bytes | Path) -> Self:
        """Loads machine code, which runs as it is: it must come from `to_bytes`, by a way where nobody could change it.

        Args:
            engine: An engine of the configuration that it was compiled for.
            code: The machine code, or a file with nothing else in it.

        Raises:
            EngineError: It is of another release, configuration or machine.
        """
        module = c_void_p()
        api, out = capi(), ctypes.addressof(module)
        # SAFETY: `code` is borrowed for the call; a file is mapped privately, and may be closed afterwards. The engine
        # checks the header only, so whoever calls this has to know where the bytes come from: the cache authenticates
        # them, the compiling process is our own.
        if isinstance(code, Path):
            error = api.module_deserialize_file(engine.pointer, bytes(code), out)
        else:
            error = api.module_deserialize(engine.pointer, code, len(code), out)
        if error:
            raise EngineError(f"the machine code cannot be loaded: {error_text(error)}")
        assert module.value is not None
        self = cls.__new__(cls)
        self._take(engine, module.value)
        return self

    def to_bytes(self) -> bytes:
        """Returns the machine code, for `load`."""
        return _serialize(self.module)

    def _take(self, engine: Engine, module: int) -> None:
        self.engine = engine
        self.module = module
        # Machine code needs no farewell at interpreter exit, where threads may still run it.
        weakref.finalize(self, _free_module, module).atexit = False
