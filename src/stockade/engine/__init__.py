"""The only room that touches the wasmtime C API: engines, machine code, instances, failures."""

from stockade.engine._cache import Cache, CacheEntry, Kept
from stockade.engine._compiled import Claim, CompiledModule, LinkedModule, compile_to_bytes
from stockade.engine._engine import (
    MAX_POOLED_MEMORIES,
    MAX_POOLED_TABLE_ELEMENTS,
    MAX_POOLED_TABLES,
    Engine,
    EngineConfig,
    assemble,
)
from stockade.engine._failure import (
    OUT_OF_FUEL,
    STACK_OVERFLOW,
    TRAP_CODES,
    EngineFrame,
    Failure,
)
from stockade.engine._features import PROPOSALS, Proposal, features_used, validate_with
from stockade.engine._fifo import can_interrupt_opens
from stockade.engine._folders import private_folders
from stockade.engine._instance import F32_OVERFLOW, FUEL_SLICE, INTEGER_BITS, Directory, Instance, Memory, Number
from stockade.engine._lending import FindMemory, Lending, Lent
from stockade.engine._parent import end_with, forgo_privileges
from stockade.engine._seam import library_folder, wasmtime_version
from stockade.engine._store import Owner

__all__ = [
    "F32_OVERFLOW",
    "FUEL_SLICE",
    "INTEGER_BITS",
    "MAX_POOLED_MEMORIES",
    "MAX_POOLED_TABLES",
    "MAX_POOLED_TABLE_ELEMENTS",
    "OUT_OF_FUEL",
    "PROPOSALS",
    "STACK_OVERFLOW",
    "TRAP_CODES",
    "Cache",
    "CacheEntry",
    "Claim",
    "CompiledModule",
    "Directory",
    "Engine",
    "EngineConfig",
    "EngineFrame",
    "Failure",
    "FindMemory",
    "Instance",
    "Kept",
    "Lending",
    "Lent",
    "LinkedModule",
    "Memory",
    "Number",
    "Owner",
    "Proposal",
    "assemble",
    "can_interrupt_opens",
    "compile_to_bytes",
    "end_with",
    "features_used",
    "forgo_privileges",
    "library_folder",
    "private_folders",
    "validate_with",
    "wasmtime_version",
]
