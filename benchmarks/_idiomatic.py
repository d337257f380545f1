"""The same job as wasmtime-py's own documentation would have it: what Stockade is measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import wasmtime

from benchmarks._guests import HELLO

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["idiomatic_hello", "native_engine"]


def native_engine() -> tuple[wasmtime.Engine, wasmtime.Linker]:
    """An engine with the same instrumentation as ours, so that a difference is the guard alone."""
    config = wasmtime.Config()
    config.consume_fuel = True
    config.epoch_interruption = True
    engine = wasmtime.Engine(config)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    return engine, linker


def idiomatic_hello() -> Callable[[], bytes]:
    """A fresh, fuel- and time-limited hello world that returns its output. May be called from several threads."""
    engine, _ = native_engine()
    module = wasmtime.Module(engine, wasmtime.wat2wasm(HELLO))

    def run() -> bytes:
        output: list[bytes] = []
        linker = wasmtime.Linker(engine)
        linker.define_wasi()
        store = wasmtime.Store(engine)
        store.set_fuel(5_000_000_000)
        store.set_epoch_deadline(500)
        store.set_limits(memory_size=128 << 20)
        wasi = wasmtime.WasiConfig()
        wasi.stdout_custom = output.append
        store.set_wasi(wasi)
        start = linker.instantiate(store, module).exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        start(store)
        store.close()
        return b"".join(output)

    return run
