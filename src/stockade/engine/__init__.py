"""The only room that touches the wasmtime C API: engines, machine code, instances, failures."""

from typing import TYPE_CHECKING

from stockade._later import found_later
from stockade.engine._asking import ASKING
from stockade.engine._callbacks import check_stack_to_call_out
from stockade.engine._capi import library_folder, wasmtime_version
from stockade.engine._compiled import CompiledModule, LinkedModule, ResourceCost, compile_to_bytes
from stockade.engine._engine import (
    MAX_POOLED_MEMORIES,
    MAX_POOLED_TABLE_ELEMENTS,
    MAX_POOLED_TABLES,
    Engine,
    EngineConfig,
    assemble,
    can_reserve_pool,
)
from stockade.engine._failure import OUT_OF_FUEL, STACK_OVERFLOW, TRAP_CODES, EngineFrame, Failure
from stockade.engine._features import PROPOSALS, RUN_PROPOSALS, Proposal, features_used, validate_with
from stockade.engine._guest_bytes import GuestBytes
from stockade.engine._instance import (
    F32_OVERFLOW,
    FUEL_SLICE,
    INTEGER_BITS,
    Directory,
    HaltedMemory,
    Instance,
    InstantiationError,
    Loan,
    Memory,
    Number,
)
from stockade.engine._parking import PARKING
from stockade.engine._store import Store

if TYPE_CHECKING:
    from stockade.engine._beforehand import hold_still, make_stack, map_code
    from stockade.engine._forkable import make_forkable
    from stockade.engine._host_pages import PAGE_BYTES_OF_HOST, keep_page_table
    from stockade.engine._memory_image import Extent, InstanceState, MemoryImage, SealedFile
    from stockade.engine._snapshot import (
        in_large_pages,
        is_global,
        populate,
        put_state,
        share_state,
        stretches_of,
        take_state,
        touched_pages,
    )
else:
    __getattr__ = found_later(
        __name__,
        {
            "_beforehand": ("hold_still", "make_stack", "map_code"),
            "_forkable": ("make_forkable",),
            "_host_pages": ("PAGE_BYTES_OF_HOST", "keep_page_table"),
            "_memory_image": ("Extent", "InstanceState", "MemoryImage", "SealedFile"),
            "_snapshot": (
                "in_large_pages",
                "is_global",
                "populate",
                "put_state",
                "share_state",
                "stretches_of",
                "take_state",
                "touched_pages",
            ),
        },
    )

__all__ = [
    "ASKING",
    "F32_OVERFLOW",
    "FUEL_SLICE",
    "INTEGER_BITS",
    "MAX_POOLED_MEMORIES",
    "MAX_POOLED_TABLES",
    "MAX_POOLED_TABLE_ELEMENTS",
    "OUT_OF_FUEL",
    "PAGE_BYTES_OF_HOST",
    "PARKING",
    "PROPOSALS",
    "RUN_PROPOSALS",
    "STACK_OVERFLOW",
    "TRAP_CODES",
    "CompiledModule",
    "Directory",
    "Engine",
    "EngineConfig",
    "EngineFrame",
    "Extent",
    "Failure",
    "GuestBytes",
    "HaltedMemory",
    "Instance",
    "InstanceState",
    "InstantiationError",
    "LinkedModule",
    "Loan",
    "Memory",
    "MemoryImage",
    "Number",
    "Proposal",
    "ResourceCost",
    "SealedFile",
    "Store",
    "assemble",
    "can_reserve_pool",
    "check_stack_to_call_out",
    "compile_to_bytes",
    "features_used",
    "hold_still",
    "in_large_pages",
    "is_global",
    "keep_page_table",
    "library_folder",
    "make_forkable",
    "make_stack",
    "map_code",
    "populate",
    "put_state",
    "share_state",
    "stretches_of",
    "take_state",
    "touched_pages",
    "validate_with",
    "wasmtime_version",
]
