"""The bare engine, by way of wasmtime's own package: all of WebAssembly 3.0 and atomics, and nothing of Stockade."""

from __future__ import annotations

from functools import cache

import wasmtime

__all__ = ["bare_engine"]

_SWITCHES = (
    "gc_support",
    "shared_memory",
    "wasm_exceptions",
    "wasm_function_references",
    "wasm_gc",
    "wasm_memory64",
    "wasm_multi_memory",
    "wasm_relaxed_simd",
    "wasm_relaxed_simd_deterministic",
    "wasm_simd",
    "wasm_tail_call",
    "wasm_threads",
)


@cache
def bare_engine() -> wasmtime.Engine:
    """An engine with every proposal on that a policy can allow."""
    config = wasmtime.Config()
    for name in _SWITCHES:
        setattr(config, name, True)
    return wasmtime.Engine(config)
