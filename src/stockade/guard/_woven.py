"""What is told of a woven module, for whoever compiles and runs it: kept beside its machine code."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from stockade._wasi import WasiCall  # noqa: TC001 - msgspec reads the annotations

__all__ = ["ELEMENT_BYTES", "PROOF_VERSION", "WEAVER_VERSION", "Exposed", "Woven"]

WEAVER_VERSION: Final = 5
"""The version of what is woven, the guard left out: part of every cache key, as its digest is."""

PROOF_VERSION: Final = 2
"""The version of what is proven: part of every cache key, so that machine code is kept only with this proof."""

ELEMENT_BYTES: Final = 8
"""What an element of a table counts in the budget of memory."""


class Exposed(NamedTuple):
    """A guest's state, by the names under which the woven module exports it.

    Attributes:
        memories: Each of its memories, in order.
        globals: Each of its mutable globals, in order.
        obstacles: Why there may be more to its state than these: then it cannot be taken.
    """

    memories: tuple[bytes, ...] = ()
    globals: tuple[bytes, ...] = ()
    obstacles: tuple[str, ...] = ()


class Woven(msgspec.Struct, frozen=True, kw_only=True):
    """A module with the guard in it.

    Attributes:
        wasm: Its bytes.
        state_export: Name of the exported memory that holds the guard's state, which is also the one that native WASI
            finds; None where there is no guard.
        renamed: That name -> the one under which what the guest exports under it is found instead.
        start_export: Name under which the original's start function is exported; None where it had none.
        natives_export: Name of the table for native functions that the guest does not import; None where not needed.
        natives: Those functions, in the order of the table's slots.
        guest_functions: Functions of the original; those from here on are the guard's.
        guard_functions: Names of the guard's functions, in order.
        initial_memory_bytes: What the guest's memories and tables take at the beginning, 8 bytes an element.
        initial_table_elements: How many elements its tables begin with.
        entries: The guard's functions that the guest may call and refer to.
        fixed_memory_bytes: What of the initial bytes is in memories and tables that cannot grow.
        grown_memories: Names under which the memories are exported that the guest can grow.
        grown_tables: The same of tables.
        redirected: How many places in the guest's code go to the guard, by instruction.
        exposed: Where the guest's state is found.
        host_exports: Functions that the guest exports and the host can have called while the guest is halted in a call
            of a function of the embedder, by name: their numbers.
        traced: Whether its calls are written into the guard's trace, where one is asked for.
        waits: Whether an instruction of the guest's may wait for another thread.
        collects: Whether it can make objects that the engine collects, in a heap beside its memories.
        throws_only: Whether these objects are exceptions, and nothing else.
        asks: Whether the guard asks for the function that halts the guest, where that is not there, by an import that
            is called natively for files alone.
    """

    wasm: bytes
    state_export: bytes | None
    renamed: dict[bytes, bytes]
    start_export: bytes | None
    natives_export: bytes | None
    natives: tuple[WasiCall, ...]
    guest_functions: int
    guard_functions: tuple[str, ...]
    initial_memory_bytes: int
    initial_table_elements: int
    entries: tuple[int, ...] = ()
    fixed_memory_bytes: int = 0
    grown_memories: tuple[bytes, ...] = ()
    grown_tables: tuple[bytes, ...] = ()
    redirected: dict[str, int] = msgspec.field(default_factory=dict)
    exposed: Exposed = msgspec.field(default_factory=Exposed)
    host_exports: dict[bytes, int] = msgspec.field(default_factory=dict)
    traced: bool = False
    waits: bool = False
    collects: bool = False
    throws_only: bool = False
    asks: bool = False

    @property
    def shares_heap(self) -> bool:
        """Whether its memories grow beside a heap of objects, with which they share what they may have together."""
        return self.collects and bool(self.grown_memories)
