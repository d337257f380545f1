"""From a module to machine code: kept in memory, kept on disk, or made."""

from stockade.compilation._cache import Cache, CacheEntry, CacheHit
from stockade.compilation._programs import (
    MadeProgram,
    PendingProgram,
    Program,
    cached_name,
    forget_programs,
    programs,
    why_not_kept,
)

__all__ = [
    "Cache",
    "CacheEntry",
    "CacheHit",
    "MadeProgram",
    "PendingProgram",
    "Program",
    "cached_name",
    "forget_programs",
    "programs",
    "why_not_kept",
]
