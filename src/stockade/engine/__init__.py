"""The only room that touches the wasmtime C API: engines, machine code, instances, failures."""

from stockade.engine._compiled import CompiledModule
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
from stockade.engine._features import PROPOSALS, Proposal, features_used
from stockade.engine._instance import Directory, Instance, Memory, Number
from stockade.engine._seam import wasmtime_version

__all__ = [
    "MAX_POOLED_MEMORIES",
    "MAX_POOLED_TABLES",
    "MAX_POOLED_TABLE_ELEMENTS",
    "OUT_OF_FUEL",
    "PROPOSALS",
    "STACK_OVERFLOW",
    "TRAP_CODES",
    "CompiledModule",
    "Directory",
    "Engine",
    "EngineConfig",
    "EngineFrame",
    "Failure",
    "Instance",
    "Memory",
    "Number",
    "Proposal",
    "assemble",
    "features_used",
    "wasmtime_version",
]
