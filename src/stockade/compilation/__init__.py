"""From a module to machine code: kept in memory, kept on disk, or made."""

from stockade.compilation._cache import Cache, CacheEntry, CacheHit
from stockade.compilation._programs import MadeProgram, PendingProgram, Program, forget_programs, programs

__all__ = ["Cache", "CacheEntry", "CacheHit", "MadeProgram", "PendingProgram", "Program", "forget_programs", "programs"]
