"""The engine room: its seam to the C API, what is shared and what is fresh, and that nothing leaks or hangs.

Holds P-ENGINE-2, P-TIME-3 and P-ENGINE-3.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import math
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import stockade
from stockade import EngineError, Outcome, Policy, Report, Sandbox, Session
from stockade._wasi import ERRNO, MODULE, WASI
from stockade.engine import Engine, EngineConfig, _capi, _instance, _ticker
from stockade.engine._capi import (
    LONG_CALLS,
    QUICK_CALLS,
    SHORT_CALLS,
    SWITCHES_SINCE,
    Extern,
    Value,
    capi,
    prepare,
    wasmtime_version,
)
from stockade.engine._store import Store
from stockade.engine._ticker import Ticker
from stockade.guard import guard
from tests._processes import cancelling, live_instances, open_descriptors, until, wait_for
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests._timeline import Timeline

SOURCES = Path(stockade.__file__).parent
ADD = wat('(module (func (export "add") (param i64 i64) (result i64) (i64.add (local.get 0) (local.get 1))))')
SPIN = wat(
    '(module (func (export "_start") (loop $forever (br $forever))) (func (export "fine") (result i32) (i32.const 7)))'
)
PATIENT = Policy().replace(wall_time=None, fuel=None)
LONG = 60.0
"""So long takes only what has not heard that it is to end. How late runs end is measured by benchmarks."""


# -- the seam ---------------------------------------------------------------------------------------------------------

# The header of release 50 declares an error as the result of this one, but the function returns nothing.
WRONG_HEADERS = {"wasmtime_context_epoch_deadline_async_yield_and_update"}


def shape(type_: type | None) -> tuple[str, int]:
    """What matters of a C type: how it is passed, and how large it is."""
    if type_ is None:
        return "nothing", 0
    if type_ in (ctypes.c_float, ctypes.c_double):
        return "float", ctypes.sizeof(type_)
    return "integer", ctypes.sizeof(type_)


@pytest.mark.parametrize("name", sorted(SHORT_CALLS | LONG_CALLS))
def test_declarations_agree_with_the_bindings_of_the_wheel(name: str) -> None:
    """A declaration that disagrees with the library would corrupt memory instead of raising."""
    bindings = importlib.import_module("wasmtime._bindings")
    if SWITCHES_SINCE.get(name, 0) > int(wasmtime_version().split(".")[0]):
        assert not hasattr(bindings, f"_{name}")
        return
    result, arguments = (SHORT_CALLS | LONG_CALLS)[name]
    official = getattr(bindings, f"_{name}")

    assert len(arguments) == len(official.argtypes)
    assert [shape(own) for own in arguments] == [shape(theirs) for theirs in official.argtypes]
    if name not in WRONG_HEADERS:
        assert shape(result) == shape(official.restype)


@pytest.mark.parametrize("fuel", [None, 10_000_000])
def test_quick_calls_are_given_what_is_passed_whole(monkeypatch: pytest.MonkeyPatch, fuel: int | None) -> None:
    """What ctypes does not convert was made before, or is a small number, bytes or None: nothing of it is cut."""
    api, made = capi(), type(prepare(0))
    called: dict[str, int] = {}

    def checked(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            for argument in arguments:
                small = isinstance(argument, int) and 0 <= argument < 2**31
                assert small or argument is None or isinstance(argument, (made, bytes)), (name, argument)
            assert len(arguments) == len(SHORT_CALLS[f"wasmtime_{name}"][1])
            called[name] = called.get(name, 0) + 1
            return real(*arguments)

        return call

    for name in QUICK_CALLS:
        monkeypatch.setattr(api, f"quick_{name}", checked(name, getattr(api, f"quick_{name}")))
    sandbox = Sandbox(Policy().replace(fuel=fuel))

    assert sandbox.run(wat(HELLO)).stdout == b"hello world\n"
    assert sandbox.call(ADD, "add", 2**62, 5).value == 2**62 + 5
    with sandbox.open(ADD) as session:
        assert session.call("add", -1, 1).value == 0

    assert called.keys() == {*QUICK_CALLS} - (set() if fuel else {"context_get_fuel"})


def test_structures_have_the_sizes_of_the_bindings() -> None:
    """Structures have the sizes of the bindings."""
    bindings = importlib.import_module("wasmtime._bindings")

    assert ctypes.sizeof(Value) == ctypes.sizeof(bindings.wasmtime_val_t)
    assert Value.of.offset == bindings.wasmtime_val_t.of.offset
    assert type(Value().of).v128.size == ctypes.sizeof(bindings.wasmtime_v128)
    assert ctypes.sizeof(Extern) == ctypes.sizeof(bindings.wasmtime_extern_t)
    assert Extern.of.offset == bindings.wasmtime_extern_t.of.offset
    assert ctypes.sizeof(bindings.wasmtime_instance_t) == 16
    assert ctypes.sizeof(bindings.wasmtime_memory_t) == 24
    assert ctypes.sizeof(bindings.wasmtime_table_t) <= 24


def test_what_the_seam_does_not_declare_cannot_be_called() -> None:
    """One list says what is used of the library; the twin is on it."""
    with pytest.raises(AttributeError, match="no attribute 'module_clone'"):
        _ = capi().module_clone
    assert capi().module_new


def _without(monkeypatch: pytest.MonkeyPatch, missing: str, version: str) -> Any:
    """The library as a release would be that has all but one function."""

    class Lacking:
        def __init__(self, path: str) -> None:
            self._library = ctypes.CDLL(path)

        def __getattr__(self, name: str) -> Any:
            if name == missing:
                raise AttributeError(name)
            return getattr(self._library, name)

    monkeypatch.setattr(_capi.ctypes, "PyDLL", Lacking)
    monkeypatch.setattr(_capi, "wasmtime_version", lambda: version)
    return capi.__wrapped__()


def test_a_release_without_a_proposal_needs_no_switch_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Release 49 does not have compact imports: nothing is to be switched off, and all else is."""
    with monkeypatch.context() as patch:
        api = _without(patch, "wasmtime_config_wasm_compact_imports_set", "49.0.0")
        raw = api.config_new()
        api.switch(raw, "wasm_compact_imports", False)
        api.switch(raw, "wasm_threads", False)
        with pytest.raises(AttributeError, match="no attribute 'config_wasm_thread_set'"):
            api.switch(raw, "wasm_thread", False)
        assert api.engine_new_with_config(raw)


@pytest.mark.parametrize(
    ("missing", "version"),
    [("wasmtime_config_wasm_compact_imports_set", "50.0.1"), ("wasmtime_config_wasm_threads_set", "49.0.0")],
)
def test_a_switch_that_should_be_there_is_missed(missing: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a library with a proposal that cannot be switched off. Nothing runs on it."""
    with monkeypatch.context() as patch, pytest.raises(stockade.EngineError) as caught:
        _without(patch, missing, version)
    assert f"lacks {missing}. Install a release that Stockade was made for: pip install 'wasmtime>=49,<51'" in str(
        caught.value
    )


def test_version_is_that_of_the_installed_wheel() -> None:
    """Version is that of the installed wheel."""
    assert wasmtime_version() == importlib.import_module("importlib.metadata").version("wasmtime")


def test_only_the_engine_room_names_the_library() -> None:
    """Private parts of wasmtime are named in one room."""
    guilty = [
        str(path.relative_to(SOURCES))
        for path in sorted(SOURCES.rglob("*.py"))
        if re.search(r"^\s*(?:import|from)\s+(?:ctypes|wasmtime)\b", path.read_text(), re.MULTILINE)
    ]

    assert guilty
    # A room and two files ask the operating system, and not the library, for what Python has no function for.
    elsewhere = {path for path in guilty if not path.startswith(("engine/", "jail/"))}
    assert elsewhere == {"system/_fifo.py", "system/_parent.py"}


def test_guard_counts_each_call_under_its_number() -> None:
    """The numbers in the guard's source are those of the table that reads the counters."""
    source = "\n".join(path.read_text() for path in sorted((SOURCES / "guard").glob("*.wat")))
    functions = re.split(r'^\(func \(export "', source, flags=re.MULTILINE)[1:]
    named = {
        name: int(number) for name, number in re.findall(r"\(global \$N\.(\w+) +i32 \(i32\.const (\d+)\)\)", source)
    }
    numbers = {
        function.split('"', 1)[0]: [
            named[name]
            for name in re.findall(r"\(call \$(?:enter|count|no_socket) \(global\.get \$N\.(\w+)\)", function)
        ]
        for function in functions
    }

    for call in WASI:
        assert numbers[call.name] == [call.number], call.name
    others = {name for name, found in numbers.items() if found} - {call.name for call in WASI}
    assert not others
    assert named == {call.name: call.number for call in WASI}


@pytest.mark.parametrize("call", WASI, ids=lambda call: call.name)
def test_each_call_is_counted_under_its_name(call: stockade._wasi.WasiCall) -> None:
    """The same, by calling each from a tiny guest."""
    zeros = " ".join(f"({kind}.const 0)" for kind in call.params)
    results = f"(result {' '.join(call.results)})" if call.results else ""
    drop = "drop" if call.results else ""
    module = wat(
        f"""
        (module
          (func $call (import "{MODULE}" "{call.name}") (param {" ".join(call.params)}) {results})
          (memory (export "memory") 1)
          (func (export "_start") (call $call {zeros}) {drop}))
        """
    )

    # Rights that a call needs beside its name are granted; there is nothing here that it could reach.
    report = Sandbox(Policy().replace(delete=True, symlinks=True)).run(module)

    assert report.usage.calls == {call.name: 1}
    assert report.usage.denied == ({call.name: 1} if call.group == "sock" else {})


def test_guard_refuses_by_its_rules() -> None:
    """The array of rules has room for each call, and the arrays of counters as well."""
    layout = guard().layout

    assert layout.offsets["stdout"] - layout.offsets["rules"] >= len(WASI)
    assert layout.offsets["denied"] - layout.offsets["calls"] == 8 * (len(WASI) + 1)
    assert layout.constants["HOST"] == len(WASI)
    assert layout.offsets["notes"] - layout.offsets["denied"] == 8 * (len(WASI) + 1)
    report = Sandbox().call(
        wat(f'(module (func (export "f") (import "{MODULE}" "sock_shutdown") (param i32 i32) (result i32)))'), "f", 0, 0
    )
    assert report.value == ERRNO["notcapable"]


# -- what is shared, what is fresh ------------------------------------------------------------------------------------


def test_runs_share_one_engine() -> None:
    """The first run makes the engines it needs, the next hundred none."""
    module = wat(HELLO)
    Sandbox().run(module)
    before = dict(Engine._engines)

    for _ in range(50):
        assert Sandbox().run(module).ok
        assert Sandbox().run(wat(HELLO.replace("hello", "howdy"))).ok

    assert before == Engine._engines
    config = EngineConfig(fuel=True, stack_bytes=Policy().limits.stack)
    assert Engine.shared(config) is Engine.shared(config)


def test_another_configuration_is_another_engine() -> None:
    """The twin; what cannot be shared is not."""
    config = EngineConfig(fuel=True, stack_bytes=512 << 10)

    assert Engine.shared(config) is not Engine.shared(config._replace(fuel=False))


MUTABLE = wat(
    """
    (module
      (memory (export "memory") 1)
      (global $g (mut i32) (i32.const 0))
      (table $t 4 funcref)
      (elem declare func $bump)
      (data (i32.const 100) "original")
      (func $bump (export "bump") (result i32)
        (global.set $g (i32.add (global.get $g) (i32.const 1)))
        (i32.store (i32.const 65532) (i32.add (i32.load (i32.const 65532)) (i32.const 1)))
        (i32.store8 (i32.const 100) (i32.const 33))
        (if (i32.eqz (ref.is_null (table.get $t (i32.const 1)))) (then unreachable))
        (table.set $t (i32.const 1) (ref.func $bump))
        (i32.add (global.get $g) (i32.load (i32.const 65532))))
      (func (export "count") (result i32) (i32.add (global.get $g) (i32.load (i32.const 65532)))))
    """
)


def test_each_run_begins_anew() -> None:
    """Attack: leaving something in memory, globals or tables for the next run."""
    box = Sandbox()

    for _ in range(50):
        assert box.call(MUTABLE, "bump").value == 2
    assert box.call(MUTABLE, "count").value == 0
    with box.open(MUTABLE) as session:
        assert session.read_memory(100, 8) == b"original"
        assert session.read_memory(0, 65_536).count(b"\0") == 65_536 - 8


def test_grown_memory_is_not_handed_on() -> None:
    """Attack: a secret in the pages that one run grew, read by the next one that grows."""
    module = wat(
        """
        (module (memory (export "memory") 1)
          (func (export "leave") (result i32)
            (drop (memory.grow (i32.const 16)))
            (memory.fill (i32.const 0) (i32.const 0x5a) (i32.const 1114112))
            (i32.load (i32.const 1000000)))
          (func (export "look") (result i32) (local $at i32) (local $sum i32)
            (drop (memory.grow (i32.const 16)))
            (loop $next
              (local.set $sum (i32.or (local.get $sum) (i32.load (local.get $at))))
              (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 4))) (i32.const 1114112))))
            (local.get $sum)))
        """
    )
    box = Sandbox()

    for _ in range(20):
        assert box.call(module, "leave").value == 0x5A5A5A5A
        assert box.call(module, "look").value == 0


@pytest.mark.parametrize("rated", [False, True])
@pytest.mark.parametrize("imports", ["", '(func $poll (import "wasi_snapshot_preview1" "poll_oneoff") (type 0))'])
def test_handles_that_are_not_asked_for_are_those_that_the_library_tells(imports: str, rated: bool) -> None:
    """What was noted of one instance's memories and tables leads to those of the next one, and to no others."""
    module = wat(
        f"""
        (module
          (type (func (param i32 i32 i32 i32) (result i32)))
          {imports}
          (import "wasi_snapshot_preview1" "fd_write" (func (type 0)))
          (table 3 funcref)
          (memory (export "other") 2)
          (memory (export "memory") 1)
          (func (export "f")))
        """
    )
    policy = Policy().replace(call_rate=1000) if rated else Policy()
    with Sandbox(policy) as box, box.open(module) as first, box.open(module) as second:
        looked_at = 0
        for session in (first, second):
            instance = session._guest._instance
            assert instance is not None
            linked = instance._linked
            for known, kind in ((linked.memory_handles, 3), (linked.table_handles, 2)):
                for name in [*known, *(() if kind == 2 else (b"memory", b"other"))]:
                    noted = instance._handle(known, name, kind)
                    assert instance._find(name) == kind
                    told = bytes(instance._place.bytes[_instance._HANDLE : _instance._HANDLE_END])
                    assert (noted[:12], noted[16:20]) == (told[:12], told[16:20])
                    looked_at += 1
            assert linked.memory_handles.keys() >= {b"memory", b"other"}
            assert session.call("f").ok
        assert looked_at >= 6


def test_output_of_one_run_is_not_in_the_next() -> None:
    """Attack: reading the output or input of the run before."""
    box = Sandbox()
    echo = wat(
        f"""
        (module
          (func $read (import "{MODULE}" "fd_read") (param i32 i32 i32 i32) (result i32))
          (func $write (import "{MODULE}" "fd_write") (param i32 i32 i32 i32) (result i32))
          (memory (export "memory") 1)
          (func (export "_start")
            (i32.store (i32.const 0) (i32.const 100))
            (i32.store (i32.const 4) (i32.const 1000))
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
            (i32.store (i32.const 4) (i32.load (i32.const 8)))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
        """
    )

    assert box.run(echo, stdin=b"secret" * 100).stdout == b"secret" * 100
    assert box.run(echo).stdout == b""
    assert box.run(echo, stdin=b"x").stdout == b"x"


# -- leaks ------------------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    """How much memory this process has in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wait_for_ticker_to_end() -> bool:
    """Waits for the ticker threads to end."""
    return until(lambda: not any(thread.name == "stockade-ticker" for thread in threading.enumerate()))


def test_short_runs_that_follow_each_other_keep_the_ticker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each is over before a tick finds it: so a run that comes after a short pause starts no thread."""
    assert wait_for_ticker_to_end()
    ticker, ticks = Ticker(lambda: None), 0

    def sleep(_: float) -> None:
        nonlocal ticks
        ticks += 1
        if ticks % 5 == 0 and ticks <= 60:
            ticker.enter(ticker)
            del ticker.running[ticker]

    monkeypatch.setattr(_ticker, "time", SimpleNamespace(sleep=sleep, perf_counter=time.perf_counter))
    me = ticker._thread = threading.current_thread()
    ticker._tick_while_needed(me)
    assert ticks == 70
    assert ticker._thread is None


def test_a_late_tick_is_let_by_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next call that is over; one that is not late holds nobody up."""
    let: list[float] = []
    let_by = Ticker.let_by
    monkeypatch.setattr(Ticker, "let_by", lambda self: let.append(self.due) or let_by(self))
    # Nobody ticks: whoever waits for it waits no longer than a moment.
    monkeypatch.setattr(Ticker, "_tick_while_needed", lambda *_: None)
    with Sandbox() as box, box.open(wat('(module (func (export "f")))')) as session:
        ticker = session._guest._instance._linked.engine.ticker  # type: ignore[union-attr]

        for due, times in ((math.inf, 0), (time.perf_counter() + 3600, 0), (0.0, 1), (math.inf, 1)):
            ticker.due = due
            session.call("f").check()
            assert len(let) == times
            assert ticker.due == (math.inf if times else due)


@pytest.mark.parametrize("runs", [True, False])
def test_who_lets_a_tick_by_goes_on_when_it_is_over(runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether anything runs then or not."""
    monkeypatch.setattr(_ticker, "_LET_BY_SECONDS", 3600.0)
    monkeypatch.setattr(_ticker, "_LINGER_TICKS", math.inf)
    ticked = threading.Event()
    ticker = Ticker(ticked.set)
    if runs:
        ticker.running[ticked] = 0
    ticker._start()

    waiting = threading.Thread(target=ticker.let_by)
    waiting.start()
    waiting.join(60)

    # Then it ends.
    ticker._thread = None
    ticker.running.clear()
    assert not waiting.is_alive()
    assert ticked.is_set() is runs


def test_ticker_thread_ends_after_the_last_run() -> None:
    """And begins again for the next."""
    assert wait_for_ticker_to_end()
    # Those of other tests may end meanwhile.
    before = set(threading.enumerate())
    for _ in range(3):
        # Nothing but the ticker makes an unmetered guest look up.
        report = Sandbox(Policy().replace(fuel=None, wall_time=0.05)).run(SPIN)
        assert report.outcome is Outcome.TIMEOUT
        assert wait_for_ticker_to_end()
        assert before.issuperset(threading.enumerate())


@pytest.mark.slow
def test_thousands_of_runs_leave_nothing_behind() -> None:
    """Memory, descriptors and instances are what they were."""
    box = Sandbox()
    modules = [wat(HELLO), MUTABLE, wat('(module (func (export "_start") unreachable))')]

    def burst(count: int) -> None:
        for _ in range(count):
            box.run(modules[0], args=["a"], stdin=b"b", env={"C": "d"})
            box.call(modules[1], "bump")
            box.run(modules[2])

    burst(200)
    gc.collect()
    memory, descriptors = resident_bytes(), open_descriptors()
    burst(10_000)
    gc.collect()

    assert resident_bytes() - memory < 8 << 20
    assert open_descriptors() == descriptors
    assert live_instances() == 0


@pytest.mark.slow
def test_compiled_modules_are_freed() -> None:
    """Machine code lives only as long as something may run it."""
    box = Sandbox()

    def burst(first: int, count: int) -> None:
        for number in range(first, first + count):
            assert box.call(wat(f'(module (func (export "f") (result i32) (i32.const {number})))'), "f").value == number

    burst(0, 150)
    gc.collect()
    memory = resident_bytes()
    burst(1000, 300)
    gc.collect()

    assert resident_bytes() - memory < 8 << 20


def test_errors_before_the_run_leave_nothing_behind() -> None:
    """Refused modules and arguments take no slot."""
    before = live_instances()
    module = wat(HELLO)
    for _ in range(20):
        with pytest.raises(stockade.LinkError):
            Sandbox().call(module, "missing")
        with pytest.raises(stockade.UsageError):
            Sandbox().call(MUTABLE, "bump", 1)
        with pytest.raises(stockade.UsageError):
            Sandbox().run(module, args=["\0"])
        with pytest.raises(stockade.LinkError):
            Sandbox().run(wat('(module (import "env" "f" (func)) (func (export "_start")))'))

    assert live_instances() == before == 0


def test_a_full_pool_is_an_engine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: opening sessions until there is no room; it is told as the host's trouble, and it passes."""
    box = Sandbox()
    box.prepare(MUTABLE)
    box.prepare(wat(HELLO))
    Engine._let_idle_go()
    for engine in Engine._engines.values():
        monkeypatch.setattr(engine, "_slots_left", min(engine._slots_left, 1))
    # One fits the pool, one is made without a slot, and of memory maps there are no more.
    monkeypatch.setattr(Engine._scarce, "maps", 3 * 2 + 3 * 2 + 2)
    with box.open(MUTABLE) as first, box.open(MUTABLE) as second:
        with pytest.raises(stockade.EngineError) as caught:
            box.run(wat(HELLO))
        assert first.call("bump").value == second.call("bump").value == 2

    assert re.fullmatch(
        r"[\d,]+ memory maps are taken by 2 runs and sessions that are open, and the kernel gives a process [\d,]+: "
        r"close sessions that are done, run fewer at once, or raise vm\.max_map_count \(docs/performance\.md\)",
        str(caught.value),
    )
    assert box.run(wat(HELLO)).ok
    assert live_instances() == 0
    # What is kept for the next run has a slot, which would be counted as free when the counts are as they were.
    Engine._let_idle_go()


@pytest.mark.parametrize(
    "module",
    [
        '(module (table 1 funcref) (table 1 funcref) (table 1 funcref) (func (export "f")) (func (export "_start")))',
        '(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32))) (memory 1) (func (export "f")))',
    ],
    ids=["tables", "memories"],
)
def test_a_pool_without_tables_or_memories_is_not_the_end(module: str) -> None:
    """Attack: modules that take more tables or memories than the slots of a pool have for each instance."""
    with Sandbox(Policy().replace(fuel=123_456)) as box, contextlib.ExitStack() as open_ones:
        loaded = box.prepare(wat(module))
        for _ in range(720):
            open_ones.enter_context(box.open(loaded))
        assert box.call(loaded, "f").ok
    assert live_instances() == 0


def test_a_pool_full_of_memories_is_an_engine_error() -> None:
    """Attack: modules with many memories, which fill the pool before instances run out.

    That the host has no room is no fault of the guest that comes too late: it must not be told as its trap.
    """
    module = wat(
        """
        (module
          (memory (export "memory") 1) (memory 1) (memory 1) (memory 1)
          (func (export "f") (drop (memory.grow (i32.const 1)))))
        """
    )
    box = Sandbox(Policy().replace(memories=4, multi_memory=True))
    with contextlib.ExitStack() as stack, contextlib.suppress(stockade.EngineError):
        for _ in range(900):
            stack.enter_context(box.open(module))
            report = box.call(module, "f")
            assert report.ok, report.trap
    assert box.call(module, "f").ok


# -- threads ----------------------------------------------------------------------------------------------------------


def test_threads_share_a_sandbox() -> None:
    """Each run gets its own input and output."""
    box = Sandbox()
    echo = wat(
        f"""
        (module
          (func $read (import "{MODULE}" "fd_read") (param i32 i32 i32 i32) (result i32))
          (func $write (import "{MODULE}" "fd_write") (param i32 i32 i32 i32) (result i32))
          (func $exit (import "{MODULE}" "proc_exit") (param i32))
          (memory (export "memory") 1)
          (func (export "_start")
            (i32.store (i32.const 0) (i32.const 100))
            (i32.store (i32.const 4) (i32.const 4))
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
            (call $exit (i32.load8_u (i32.const 100)))))
        """
    )
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for turn in range(200):
                data = struct.pack("<I", number * 1000 + turn)
                report = box.run(echo, stdin=data)
                if report.stdout != data or report.exit_code != data[0]:
                    wrong.append(report)
        except BaseException as problem:
            wrong.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert wrong == []
    assert live_instances() == 0


def test_threads_compile_a_module_once() -> None:
    """Whoever comes second waits for the first."""
    module = wat('(module (func (export "f") (result i32) (i32.const 424242)))')
    gate = threading.Barrier(8)
    hits: list[bool] = []

    def work() -> None:
        gate.wait(60)
        hits.append(Sandbox().call(module, "f").timings.cache_hit)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(hits) == [False] + [True] * 7


def test_a_running_guest_lets_other_threads_run() -> None:
    """The interpreter lock is free while guest code runs."""
    box = Sandbox(Policy().replace(wall_time=None, fuel=None))
    done = threading.Event()
    report: list[Report] = []

    def work() -> None:
        report.append(box.run(SPIN, run_id="it"))
        done.set()

    threading.Thread(target=work).start()
    wait_for(lambda: bool(box.monitor()))
    for _ in range(30):
        assert not done.wait(0.01)
    assert box.cancel("it")

    assert done.wait(60)
    assert report[0].outcome is Outcome.CANCELLED


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_cancelled_task_stops_its_guest_and_no_other() -> None:
    """The event loop goes on, the other run goes on, the cancelled one ends at once."""

    async def scenario() -> None:
        box = Sandbox(Policy().replace(wall_time=None, fuel=None))
        cancelled = asyncio.create_task(box.run_async(SPIN))
        bystander = asyncio.create_task(box.run_async(SPIN, run_id="it"))
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not cancelled.done()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not bystander.done()
        assert box.cancel("it")
        assert (await bystander).outcome is Outcome.CANCELLED
        assert (await box.call_async(SPIN, "fine")).value == 7

    asyncio.run(scenario())
    assert live_instances() == 0


def test_many_guests_run_under_one_event_loop() -> None:
    """The twin; nothing is cancelled, and all are right."""

    async def scenario() -> list[Report]:
        box = Sandbox()
        return await asyncio.gather(*(box.run_async(wat(HELLO)) for _ in range(20)))

    assert [report.stdout for report in asyncio.run(scenario())] == [b"hello world\n"] * 20


def test_cancelling_a_run_that_waits_for_its_turn_returns_at_once() -> None:
    """A task that has not begun is not held up by those that have."""

    async def scenario() -> None:
        from concurrent.futures import ThreadPoolExecutor

        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        box = Sandbox(Policy().replace(wall_time=None, fuel=None))
        first = asyncio.create_task(box.run_async(SPIN, run_id="it"))
        second = asyncio.create_task(box.run_async(SPIN))
        await asyncio.sleep(0.05)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not first.done()
        assert box.cancel("it")
        assert (await first).outcome is Outcome.CANCELLED

    asyncio.run(scenario())
    assert live_instances() == 0


@contextlib.contextmanager
def interrupt_after(seconds: float) -> Iterator[None]:
    """Sends this process what Ctrl-C sends."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGINT, previous)


def test_interrupt_stops_a_guest_in_the_main_thread() -> None:
    """Ctrl-C is heard while guest code runs, and nothing leaks."""
    box = Sandbox(PATIENT)
    # Machine code that is kept may have a descriptor, from its first run on.
    assert box.call(SPIN, "fine").value == 7
    descriptors = open_descriptors()
    begun = time.monotonic()

    with interrupt_after(0.2), pytest.raises(KeyboardInterrupt):
        box.run(SPIN)

    assert 0.2 <= time.monotonic() - begun < LONG
    assert live_instances() == 0
    assert open_descriptors() == descriptors
    assert all(not engine.ticker.running for engine in Engine._engines.values())
    assert box.call(SPIN, "fine").value == 7


def test_interrupt_stops_a_sleeping_guest() -> None:
    """The same for a guest that waits."""
    module = wat(
        f"""
        (module
          (func $poll (import "{MODULE}" "poll_oneoff") (param i32 i32 i32 i32) (result i32))
          (memory (export "memory") 1)
          (func (export "_start")
            (i32.store (i32.const 16) (i32.const 1))
            (i64.store (i32.const 24) (i64.const 3_600_000_000_000))
            (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))
        """
    )
    begun = time.monotonic()

    with interrupt_after(0.2), pytest.raises(KeyboardInterrupt):
        Sandbox(PATIENT).run(module)

    assert time.monotonic() - begun < LONG
    assert live_instances() == 0


def test_interrupted_session_is_over() -> None:
    """What was stopped midway is not called again."""
    with Sandbox(PATIENT).open(SPIN) as session:
        with interrupt_after(0.2), pytest.raises(KeyboardInterrupt):
            session.call("_start")
        with pytest.raises(stockade.UsageError, match="the guest has ended"):
            session.call("fine")

    assert live_instances() == 0


def test_a_python_without_its_lock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written down between two polls relies on nobody else's coming in between."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    with pytest.raises(EngineError) as caught:
        capi.__wrapped__()
    assert str(caught.value) == (
        "this is a free-threaded build of Python, which runs without the global lock on which Stockade relies: use "
        "the usual build"
    )
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
    assert capi.__wrapped__() is not None


def test_a_store_may_be_dropped_before_it_is_made() -> None:
    """What the handler of a signal raises may come before the first line that makes it. Nothing is told of that."""
    store = Store.__new__(Store)
    store.free()
    del store


def test_deadlines_hold_in_a_forked_child() -> None:
    """A child made by fork, as multiprocessing makes them, has no ticker thread of its parent's."""
    script = """
import os, signal, sys, time, warnings
warnings.simplefilter("ignore")
import stockade
spin = stockade.Module.load(b'(module (func (export "_start") (loop $l (br $l))))', text=True)
box = stockade.Sandbox(stockade.Policy().replace(wall_time=0.1, fuel=None))
assert box.run(spin).outcome == "timeout"
child = os.fork()
if not child:
    signal.alarm(3)
    os._exit(0 if box.run(spin).outcome == "timeout" else 1)
print(os.waitpid(child, 0)[1])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30, check=True)

    assert result.stdout.strip() == b"0", "killed by its alarm: the deadline was never looked at"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="nobody tells of the library's threads")
def test_a_forked_child_that_lacks_native_threads_gets_no_guests_with_files(tmp_path: Path) -> None:
    """Attack: a guest opens a file in a child of a process that has run guests with files.

    Native WASI would wait for threads that only the parent has, where no limit holds. So there are no guests with
    files, in words; others run, and so do all where the parent had not run any.
    """
    script = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
import stockade
opens = stockade.Module.load(b'''(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "x")
  (func (export "go") (result i32) (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 1)
    (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 200))))''', text=True)
plain = stockade.Module.load(b'(module (func (export "go") (result i32) (i32.const 0)))', text=True)
box = stockade.Sandbox(stockade.Policy().replace(mounts=(stockade.Mount(sys.argv[1], "/m", "rw"),)))
other = stockade.Sandbox()

def in_child():
    child = os.fork()
    if not child:
        signal.alarm(10)
        ended = 1
        try:
            print(other.call(plain, "go").value, flush=True)
            print(box.call(opens, "go").value, flush=True)
            ended = 0
        except stockade.EngineError as problem:
            print(problem, flush=True)
            ended = 0
        finally:
            os._exit(ended)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

in_child()
print(box.call(opens, "go").value, flush=True)
in_child()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=60, check=True
    )

    refused = (
        "this process was forked from one that had run guests, so that native WASI has none of its threads here, "
        "and no call about files would return: fork before anything is run, or start processes by spawning them"
    )
    assert done.stdout.splitlines() == ["0", "0", "0", "0", "0", refused, "0"]


# -- sessions ---------------------------------------------------------------------------------------------------------

TALKER = wat(
    f"""
    (module
      (func $write (import "{MODULE}" "fd_write") (param i32 i32 i32 i32) (result i32))
      (func $exit (export "leave") (import "{MODULE}" "proc_exit") (param i32))
      (memory (export "memory") 1)
      (global $calls (mut i32) (i32.const 0))
      (data (i32.const 0) "\\08\\00\\00\\00\\03\\00\\00\\00hey")
      (func (export "_initialize") (global.set $calls (i32.const 100)))
      (func (export "say") (result i32)
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))
        (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
        (global.get $calls))
      (func (export "spin") (loop $forever (br $forever)))
      (func (export "trap") unreachable)
      (func (export "nothing")))
    """
)


def test_session_keeps_state_and_counts_each_call() -> None:
    """State is kept, budgets and counters begin anew; `_initialize` came first."""
    with Sandbox().open(TALKER) as session:
        reports = [session.call("say") for _ in range(3)]

    assert [report.value for report in reports] == [101, 102, 103]
    assert [report.stdout for report in reports] == [b"hey"] * 3
    assert [report.usage.calls for report in reports] == [{"fd_write": 1}] * 3
    assert [report.usage.stdout_bytes for report in reports] == [3] * 3
    assert len({report.usage.fuel for report in reports}) == 1


def test_call_initializes_a_reactor_first() -> None:
    """Each call has an instance of its own, and `_initialize` runs before it."""
    assert [Sandbox().call(TALKER, "say").value for _ in range(2)] == [101, 101]


def test_each_call_of_a_session_has_its_own_budget(timeline: Timeline) -> None:
    """A session does not run out of fuel or time by being used for long."""
    module = wat(
        """
        (module (func (export "count") (param $n i32)
          (loop $next (br_if $next (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))))
        """
    )
    with Sandbox(Policy().replace(fuel=10_000, wall_time=0.2)).open(module) as session:
        for _ in range(30):
            timeline.now += 0.01
            assert session.call("count", 1000).ok
        assert session.call("count", 100_000).outcome is Outcome.FUEL


@pytest.mark.parametrize(
    ("export", "args", "outcome"),
    [("trap", (), Outcome.TRAP), ("leave", (0,), Outcome.OK), ("leave", (3,), Outcome.EXIT)],
)
def test_session_is_over_when_the_guest_ended(export: str, args: tuple[int, ...], outcome: Outcome) -> None:
    """A tainted instance is never used again."""
    with Sandbox().open(TALKER) as session:
        assert session.call("say").ok
        assert session.call(export, *args).outcome is outcome
        with pytest.raises(stockade.UsageError) as caught:
            session.call("say")
        assert str(caught.value) == "the guest has ended, so the session is over: open a new one"
        with pytest.raises(stockade.UsageError):
            session.read_memory(0, 1)
        with pytest.raises(stockade.UsageError):
            session.write_memory(0, b"x")


def test_session_is_over_when_its_time_was_up() -> None:
    """Session is over when its time was up."""
    with Sandbox(Policy().replace(wall_time=0.05)).open(TALKER) as session:
        assert session.call("spin").outcome is Outcome.TIMEOUT
        with pytest.raises(stockade.UsageError):
            session.call("say")


def in_use(session: Session) -> threading.Thread:
    """Makes another thread call into the session, and returns once it does."""
    thread = threading.Thread(target=session.call, args=("spin",))
    thread.start()
    wait_for(lambda: session._occupancy.holder is not None)
    return thread


def test_session_belongs_to_one_thread_at_a_time() -> None:
    """Attack: one store used from two threads at once is undefined behaviour."""
    with Sandbox(PATIENT).open(TALKER) as session:
        thread = in_use(session)
        for use in (
            lambda: session.call("say"),
            lambda: session.read_memory(0, 1),
            lambda: session.write_memory(0, b"x"),
        ):
            with pytest.raises(stockade.UsageError) as caught:
                use()
            assert str(caught.value) == (
                "the session is in use by another thread: give each thread a session of its own"
            )
        with pytest.raises(stockade.UsageError, match="a call is under way in another thread: cancel it first"):
            session.close()
        session.cancel()
        thread.join(60)
        assert not thread.is_alive()


def test_session_may_move_between_threads() -> None:
    """The twin; one after the other is fine."""
    values: list[object] = []
    with Sandbox().open(TALKER) as session:
        for _ in range(3):
            thread = threading.Thread(target=lambda: values.append(session.call("say").value))
            thread.start()
            thread.join(60)

    assert values == [101, 102, 103]


def test_cancelled_call_of_a_session_is_reported() -> None:
    """The outcome says who stopped it."""
    with Sandbox(PATIENT).open(TALKER) as session:
        with cancelling(session.cancel):
            report = session.call("spin")
        with pytest.raises(stockade.Cancelled):
            report.check()

    assert report.outcome is Outcome.CANCELLED


def test_cancelling_an_idle_session_does_not_stop_a_later_call() -> None:
    """Cancel stops the call that is under way, and there is none."""
    with Sandbox(Policy().replace(wall_time=0.5)).open(TALKER) as session:
        session.cancel()
        assert session.call("say").ok
        assert session.call("spin").outcome is Outcome.TIMEOUT


def test_closing_a_session_twice_is_harmless() -> None:
    """Closing a session twice is harmless."""
    session = Sandbox().open(TALKER)
    assert session.call("say").ok
    session.close()
    session.close()

    with pytest.raises(stockade.UsageError) as caught:
        session.call("say")
    assert str(caught.value) == "the session is closed: open a new one"
    with pytest.raises(stockade.UsageError):
        session.read_memory(0, 1)
    assert live_instances() == 0


def test_failing_initializer_raises_and_leaves_nothing_behind() -> None:
    """The twin is every other session of a reactor."""
    module = wat('(module (func (export "_initialize") unreachable) (func (export "f")))')

    with pytest.raises(stockade.GuestTrap):
        Sandbox().open(module)

    assert Sandbox().call(module, "f").outcome is Outcome.TRAP
    assert live_instances() == 0


@pytest.mark.parametrize(
    ("start", "error"),
    [
        ('(memory (export "memory") 2)', stockade.LimitExceeded),
        ('(memory (export "memory") 1) (data (i32.const 65536) "x")', stockade.GuestTrap),
        ('(memory (export "memory") 1) (data (i32.const 65535) "x")', None),
    ],
    ids=["too much memory", "data outside of memory", "fine"],
)
def test_session_that_cannot_begin_is_told_at_once(start: str, error: type[stockade.GuestError] | None) -> None:
    """Why a module could not be set up is in the error, not lost until the first call."""
    module = wat(f'(module {start} (func (export "f") (result i32) (i32.const 5)))')
    box = Sandbox(Policy().replace(memory=65_536))
    if error is None:
        with box.open(module) as session:
            assert session.call("f").value == 5
        return
    with pytest.raises(error) as caught:
        box.open(module)
    assert caught.value.report.outcome is box.call(module, "f").outcome
    assert live_instances() == 0


def test_memory_of_a_session_is_reached_within_its_bounds() -> None:
    """The host's own accesses are checked like the guest's."""
    with Sandbox().open(TALKER) as session:
        session.write_memory(65_532, b"last")
        assert session.read_memory(65_532, 4) == b"last"
        assert session.read_memory(65_536, 0) == b""
        for address, size in ((65_533, 4), (65_536, 1), (-1, 1), (0, -1), (0, 65_537), (2**32, 1), (2**64, 1)):
            with pytest.raises(stockade.UsageError, match="outside the guest's memory"):
                session.read_memory(address, size)
        for address, data in ((65_533, b"four"), (65_536, b"x"), (-1, b"x"), (2**32, b"x"), (2**64 - 1, b"xx")):
            with pytest.raises(stockade.UsageError, match="outside the guest's memory"):
                session.write_memory(address, data)
        assert session.call("say").ok


def test_memory_that_is_not_exported_is_not_there() -> None:
    """The guard's own memory is not to be had by asking for one."""
    module = wat('(module (memory 1) (func (export "f") (drop (memory.grow (i32.const 0)))))')
    with Sandbox().open(module) as session:
        assert session.call("f").ok
        with pytest.raises(stockade.UsageError) as caught:
            session.read_memory(0, 1)

    assert str(caught.value) == "the guest exports no memory"


# -- sandboxes --------------------------------------------------------------------------------------------------------


def test_closing_a_sandbox_twice_is_harmless() -> None:
    """Closing a sandbox twice is harmless."""
    box = Sandbox()
    assert box.run(wat(HELLO)).ok
    box.close()
    box.close()

    for use in (
        lambda: box.run(wat(HELLO)),
        lambda: box.call(TALKER, "say"),
        lambda: box.open(TALKER),
        lambda: box.prepare(wat(HELLO)),
    ):
        with pytest.raises(stockade.UsageError) as caught:
            use()
        assert str(caught.value) == "the sandbox is closed: make a new one"


def test_sandbox_is_a_context_manager() -> None:
    """Sandbox is a context manager."""
    with Sandbox() as box:
        assert box.run(wat(HELLO)).ok
    with pytest.raises(stockade.UsageError):
        box.run(wat(HELLO))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("i32", 2**31 - 1),
        ("i32", -(2**31)),
        ("i64", 2**63 - 1),
        ("i64", -(2**63)),
        ("f64", 0.1),
        ("f32", 0.5),
        ("f64", 3),
    ],
)
def test_numbers_pass_unchanged(kind: str, value: float) -> None:
    """Numbers pass unchanged."""
    module = wat(f'(module (func (export "same") (param {kind}) (result {kind}) (local.get 0)))')

    assert Sandbox().call(module, "same", value).value == value


def test_unsigned_numbers_pass_as_their_bits() -> None:
    """WebAssembly does not tell signed from unsigned, so either may be given; results are signed."""
    module = wat('(module (func (export "same") (param i32 i64) (result i32 i64) (local.get 0) (local.get 1)))')

    assert Sandbox().call(module, "same", 2**32 - 1, 2**64 - 1).value == [-1, -1]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("i32", 2**32),
        ("i32", -(2**31) - 1),
        ("i64", 2**64),
        ("i64", -(2**63) - 1),
        ("i32", 1.0),
        ("i64", True),
        ("f64", "1"),
        ("f64", 2**1024),
    ],
    ids=lambda part: str(part)[:24],
)
def test_numbers_that_do_not_fit_are_refused(kind: str, value: object) -> None:
    """Nothing is cut to size in silence."""
    module = wat(f'(module (func (export "same") (param {kind}) (result {kind}) (local.get 0)))')

    with pytest.raises(stockade.UsageError, match=r"same: \(\w+\) -> \(\w+\): argument 1 is"):
        Sandbox().call(module, "same", value)  # type: ignore[arg-type]


def test_several_results_come_as_a_list() -> None:
    """Several results come as a list."""
    module = wat('(module (func (export "two") (result i32 f64) (i32.const 1) (f64.const 2.5)))')

    assert Sandbox().call(module, "two").value == [1, 2.5]
