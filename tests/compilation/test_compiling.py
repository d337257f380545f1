"""Compiling in a process of its own: what a module can do to the compiler, and what that process can do to us.

Holds P-COMPILE-3.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from stockade import (
    EngineError,
    Environment,
    InvalidModule,
    LinkError,
    Module,
    Mount,
    Policy,
    Report,
    Sandbox,
    StockadeError,
)
from stockade.compilation import _programs
from stockade.engine import Engine, EngineConfig, library_folder
from stockade.execution import _plan
from stockade.modules import _module
from stockade.modules._module import load_module
from stockade.policy import PRESETS, Limits
from stockade.wasm import Excess, Unsupported
from stockade.worker import _child, _process, _subprocess
from stockade.worker._frames import failure_from, failure_of
from tests._examples import part
from tests._processes import busy, children, descriptors, gone, until
from tests.conftest import HELLO, program_path, wat
from tests.guard._modules import HEADER, custom, leb, name, section

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.policy import Features
    from stockade.worker._compile_queue import Turn

CHEAP_BYTES = 40_000
"""A module of so many bytes that only the guest's own hello world needs compiling is within what is compiled here."""
ALWAYS = Policy().replace(compile_process="always")
NEVER = Policy().replace(compile_process="never")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is at hand: what runs in these tests was compiled in them."""
    monkeypatch.setenv("STOCKADE_CACHE", "off")
    forget(monkeypatch)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process one that has compiled nothing."""
    monkeypatch.setattr(_plan, "programs", _programs._Programs())


@pytest.fixture
def aside(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of modules that are compiled in a process of their own."""
    names: list[str] = []
    real = _subprocess.compile_aside

    def watch(module: Module, config: EngineConfig, policy: Policy, turn: Turn, **more: bool) -> object:
        names.append(module.name)
        return real(module, config, policy, turn, **more)

    monkeypatch.setattr(_programs, "compile_aside", watch)
    return names


def padded(size: int) -> bytes:
    """The greeting in a module of exactly this size."""
    data = wat(HELLO).data
    rest = size - len(data) - len(custom("pad")) - 4
    result = data + section(0, name("pad") + bytes(rest), 5)
    assert len(result) == size
    return result


def bomb(functions: int) -> bytes:
    """A module of many functions that do nothing, three bytes of code each."""
    types = section(1, b"\1\x60\0\0")
    declared = section(3, leb(functions) + bytes(functions))
    exports = section(7, b"\1" + name("_start") + b"\0\0")
    return HEADER + types + declared + exports + section(10, leb(functions) + b"\2\0\x0b" * functions)


# -- where modules are compiled ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("process", "size", "elsewhere"),
    [
        ("auto", 1000, False),
        ("auto", CHEAP_BYTES, False),
        ("auto", CHEAP_BYTES + (32 << 10), True),
        ("always", 1000, True),
        ("never", 1000, False),
        ("never", 1 << 20, False),
    ],
)
def test_the_policy_says_where_a_module_is_compiled(process: str, size: int, elsewhere: bool, aside: list[str]) -> None:
    """What is certain to be cheap is compiled here; anything else, by default, in a process of its own."""
    report = Sandbox(Policy().replace(compile_process=process)).run(padded(size))

    assert report.stdout == b"hello world\n"
    assert aside == (["<bytes>"] if elsewhere else [])


def test_strict_compiles_everything_in_another_process(aside: list[str]) -> None:
    """Whoever asks for the strictest preset does not want guests near the host's own compiler."""
    assert Sandbox("strict").run(wat('(module (func (export "_start")))')).ok

    assert aside == ["<bytes>"]


def test_the_other_process_really_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's compiler is not called here at all."""

    def compile_(engine: Engine, wasm: bytes) -> int:
        raise AssertionError("compiled in this process")

    monkeypatch.setattr("stockade.engine._compiled._compile", compile_)
    assert Sandbox(ALWAYS).run(wat(HELLO)).stdout == b"hello world\n"
    with pytest.raises(AssertionError, match="compiled in this process"):
        Sandbox(NEVER).run(wat(HELLO.replace("hello", "HELLO")))


def test_threads_that_want_the_same_module_compile_it_once(aside: list[str]) -> None:
    """The others wait for the first one's result."""
    module, box = wat(HELLO), Sandbox(ALWAYS)
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(box.run(module).stdout)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == [b"hello world\n"] * 6
    assert aside == ["<bytes>"]


def test_any_number_of_runs_shares_an_engine() -> None:
    """Modules, sandboxes and runs of one configuration make no further engine."""
    Sandbox(ALWAYS).run(wat(HELLO))
    engines = dict(Engine._engines)

    for greeting in ("one", "two"):
        for process in ("always", "never"):
            box = Sandbox(Policy().replace(compile_process=process))
            assert all(box.run(wat(HELLO.replace("hello", greeting))).outcome == "ok" for _ in range(3))

    assert set(Engine._engines) - set(engines) <= {config for config in Engine._engines if not config.pooled}
    assert all(Engine._engines[config] is engine for config, engine in engines.items())


def test_to_validate_with_half_of_simd_does_not_abort() -> None:
    """The attack of a wrong setting: relaxed SIMD without SIMD aborted the whole process."""
    code = (
        "from stockade.engine import validate_with\n"
        "validate_with(b'\\0asm\\1\\0\\0\\0', frozenset({'relaxed_simd'}))\n"
        "print('alive')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "alive\n", "")


# -- the same result --------------------------------------------------------------------------------------------------

TRAPS = """
(module
  (func $inner (param i32) (result i32) (i32.div_u (i32.const 1) (local.get 0)))
  (func $outer (drop (call $inner (i32.const 0))))
  (func (export "_start") (call $outer)))
"""
GROWS = """
(module
  (memory (export "memory") 1 50000)
  (func (export "_start") (local $left i32)
    (local.set $left (i32.const 3000))
    (loop $more
      (drop (memory.grow (i32.const 1)))
      (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))
"""
RECURSES = '(module (func $f (export "_start") (call $f)))'
LOOPS = '(module (func (export "_start") (loop (br 0))))'
DRAWING = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="5" height="4" fill="red"/></svg>'


def told(report: Report) -> dict[str, object]:
    """What a report says that does not depend on the clock."""
    usage = report.usage
    return {
        "outcome": report.outcome,
        "exit": report.exit_code,
        "stdout": report.stdout,
        "stderr": report.stderr,
        "fuel": usage.fuel,
        "calls": usage.calls,
        "memory": usage.memory_peak_bytes,
        "violations": report.violations,
        "trap": report.trap,
        "module": report.module,
    }


@pytest.mark.parametrize("text", [HELLO, TRAPS, GROWS, RECURSES, LOOPS], ids=["hello", "trap", "grow", "stack", "fuel"])
def test_guests_do_the_same_wherever_they_were_compiled(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fuel to the unit, every call, every frame of a trap."""
    module = wat(text)
    here = Sandbox(NEVER.replace(fuel=1_000_000)).run(module)
    forget(monkeypatch)

    there = Sandbox(ALWAYS.replace(fuel=1_000_000)).run(module)

    assert not there.timings.cache_hit
    assert told(there) == told(here)


@pytest.mark.slow
def test_a_real_program_does_the_same_wherever_it_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renderer of drawings, with fuel to the unit."""
    module = Module.load(program_path("usvg"))
    here = Sandbox(NEVER.replace(fuel=10**10)).run(module, ["-", "-c"], stdin=DRAWING)
    forget(monkeypatch)

    there = Sandbox(ALWAYS.replace(fuel=10**10)).run(module, ["-", "-c"], stdin=DRAWING)

    assert here.ok
    assert b"<path" in here.stdout
    assert told(there) == told(here)


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"development"}))  # which asks for a network
def test_every_preset_reaches_the_other_process(preset: str, aside: list[str]) -> None:
    """A policy goes there as a document; none is lost or changed on the way."""
    box = Sandbox(Policy.preset(preset).replace(compile_process="always"))

    assert box.run(wat('(module (func (export "_start")))')).ok
    assert aside == ["<bytes>"]


def test_a_policy_with_everything_reaches_the_other_process(tmp_path: Path, aside: list[str]) -> None:
    """Mounts by paths with odd names, fractions of a second, limits that are off."""
    folder = tmp_path / 'a "b" {c} \n d'
    folder.mkdir()
    policy = ALWAYS.replace(mounts=[Mount(str(folder), "/data", "rw")], wall_time=0.123456789, fuel=None, stdout=0)

    assert Sandbox(policy).run(wat('(module (func (export "_start")))')).ok
    assert aside == ["<bytes>"]


# -- the same refusals ------------------------------------------------------------------------------------------------

REFUSED = {
    "type": ('(module (func (export "_start") (result i32)))', {}, "not valid WebAssembly"),
    "unknown": ('(module (func (export "_start") (call 7)))', {}, "not valid WebAssembly"),
    "simd": ("(module (func (drop (v128.const i64x2 0 1))))", {"simd": False, "relaxed_simd": False}, "features.simd"),
    "tail": ('(module (func $f (export "_start") (return_call $f)))', {"tail_call": False}, "features.tail_call"),
    "locals": ('(module (func (export "_start") (local i32 i32)))', {"locals": 1}, "structure.locals"),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_modules_are_refused_with_the_same_words_wherever(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original is validated under the policy's own proposals in the other process too; so is a hostile name."""
    text, changes, words = REFUSED[kind]
    path = tmp_path / "gu\x1b[31m\"'{source}\n.wasm"
    path.write_bytes(wat_unchecked(text))
    messages = []
    for policy in (NEVER, ALWAYS):
        forget(monkeypatch)
        with pytest.raises(InvalidModule) as refusal:
            Sandbox(policy.replace(**changes)).prepare(path)
        messages.append(str(refusal.value))

    assert messages[0] == messages[1]
    assert words in messages[0]
    assert messages[0].isprintable()
    assert ("gu\\x1b[31m" in messages[0]) != (words == "not valid WebAssembly")


def with_items(count: int) -> bytes:
    """A command of so many types, imports, exports and globals that yields once."""
    text = """(module (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
                (memory (export "memory") 1) (func (export "_start") (drop (call $yield))))"""
    data = wat(text).data
    memory = section(5, b"\1\0\1")
    assert data.count(memory) == 1
    globals_ = count - 5  # two types, an import, two exports
    return data.replace(memory, memory + section(6, leb(globals_) + b"\x7f\0\x41\0\x0b" * globals_))


@pytest.mark.slow
@pytest.mark.parametrize("policy", [NEVER, ALWAYS], ids=["in this process", "in another"])
def test_a_module_with_room_for_all_but_the_guard_is_told_so(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many declarations as are read, to which the guard adds a few of its own: what there may be, and what to do.

    Said in both processes alike. With fewer, and with more than are read, it is told what that is.
    """
    fewer = "no more than 400,000 are read. Build it with fewer, or as several modules"
    forget(monkeypatch)
    wide = policy.replace(globals=1_000_000)
    with pytest.raises(InvalidModule) as refusal:
        Sandbox(wide).prepare(with_items(400_000))
    assert str(refusal.value) == (
        "<bytes> leaves no room for the guard: 400,015 types, imports, globals and exports: " + fewer
    )
    assert Sandbox(wide).run(with_items(300_000)).usage.calls == {"sched_yield": 1}
    with pytest.raises(InvalidModule) as refusal:
        Sandbox().prepare(with_items(400_001))
    assert str(refusal.value) == "<bytes>: 400,001 types, imports, globals and exports: " + fewer


def test_every_kind_of_refusal_is_the_same_kind_wherever() -> None:
    """Also where the kind is one that only the readers know: it is not the engine's fault over there."""
    for kind, told in ((Excess, InvalidModule), (InvalidModule, InvalidModule), (LinkError, LinkError)):
        there = failure_from(failure_of(kind("why")))
        assert (type(there), str(there)) == (told, "why")
    there = failure_from(failure_of(Unsupported("why", "what")))
    assert (type(there), str(there)) == (InvalidModule, "why")
    assert type(failure_from(("Unheard", "why"))) is EngineError


def wat_unchecked(text: str) -> bytes:
    """A module from text, whether it is valid or not."""
    return wat(text).data


# -- bombs ------------------------------------------------------------------------------------------------------------


def test_a_bomb_is_refused_before_anything_looks_at_it(aside: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: 1 MB of 200,000 functions, for which the compiler takes seconds and a gigabyte."""

    def prepare(*args: object) -> None:
        raise AssertionError("it was looked at")

    monkeypatch.setattr(_programs, "prepare", prepare)
    module = Module.load(bomb(200_000))
    for policy in (NEVER, ALWAYS, Policy()):
        with pytest.raises(InvalidModule) as refusal:
            Sandbox(policy).run(module)
        assert str(refusal.value) == ("<bytes> has 200,000 functions; the policy allows 100,000 (structure.functions)")
    assert aside == []


@pytest.mark.slow
def test_a_bomb_is_stopped_by_memory_and_by_time() -> None:
    """The same attack under a policy that allows as many functions: it harms neither this process nor its next run.

    In a process of its own, whose peak of memory nothing else has moved.
    """
    ended = subprocess.run(
        [sys.executable, "-c", BOMBS], input=bomb(200_000), capture_output=True, timeout=100, check=False
    )

    assert ended.stderr == b""
    *lines, grown = ended.stdout.decode().splitlines()
    assert len(lines) == 4
    assert re.fullmatch(
        r"InvalidModule the compiler was ended by (SIGABRT|SIGSEGV|SIGTRAP), as it is where it "
        r"needs more than 268,435,456 bytes of memory \(limits\.compile_memory\): <bytes> is too much for it",
        lines[0],
    )
    assert lines[1] == "b'hello world\\n'"
    assert lines[2] == (
        "InvalidModule <bytes> takes more than 0.5 s to compile (limits.compile_time): it is too much for the compiler"
    )
    assert lines[3] == "b'hello world\\n'"
    assert int(grown) < 64 << 20


BOMBS = f"""
import resource, sys
from stockade import Module, Policy, Sandbox, StockadeError
hello = Module.load({HELLO!r}.encode(), text=True)
data = sys.stdin.buffer.read()
Sandbox().run(hello).check()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for change in ({{"compile_memory": 256 << 20}}, {{"compile_time": 0.5}}):
    box = Sandbox(Policy().replace(functions=1_000_000, **change))
    try:
        box.run(data)
    except StockadeError as problem:
        print(type(problem).__name__, problem)
    print(box.run(hello).stdout)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_the_least_memory_that_a_policy_can_give_is_enough_for_small_modules() -> None:
    """The positive twin: the limit is for the module's share, not for Python's."""
    assert Sandbox(ALWAYS.replace(compile_memory=64 << 20)).run(wat(HELLO)).stdout == b"hello world\n"


# -- nobody is left behind --------------------------------------------------------------------------------------------


LONG = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from stockade import Policy, Sandbox
Sandbox(Policy().replace(functions=1_000_000, compile_memory=16 << 30, compile_time=600.0)).prepare(sys.argv[1])
"""
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from stockade.__main__ import main
sys.argv = ["stockade", "run", "--policy", sys.argv[2], sys.argv[1]]
main()
"""
GENEROUS = """
[structure]
functions = 1000000
[limits]
compile_memory = "16GiB"
compile_time = "10m"
"""


@pytest.mark.parametrize(
    ("script", "with_", "status"),
    [
        pytest.param(LONG, signal.SIGINT, -signal.SIGINT, id="interrupted", marks=pytest.mark.slow),
        pytest.param(LONG, signal.SIGTERM, -signal.SIGTERM, id="terminated", marks=pytest.mark.slow),
        pytest.param(LONG, signal.SIGKILL, -signal.SIGKILL, id="killed"),
        pytest.param(COMMAND, signal.SIGINT, 130, id="command interrupted"),
    ],
)
def test_whoever_stops_waiting_leaves_no_compiler_behind(
    script: str, with_: signal.Signals, status: int, tmp_path: Path
) -> None:
    """Ctrl-C and a killed host end the compiling process too, which would go on for half a minute."""
    (tmp_path / "bomb.wasm").write_bytes(bomb(700_000))
    (tmp_path / "policy.toml").write_text(GENEROUS)
    host = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "bomb.wasm"), str(tmp_path / "policy.toml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert until(lambda: bool(children(host.pid))), host.communicate()
        (server,) = children(host.pid)
        assert until(lambda: bool(busy(server)))
        (child,) = busy(server)
        host.send_signal(with_)
        _, errors = host.communicate(timeout=30)
        assert host.returncode == status, errors
        assert until(lambda: gone(child) and gone(server))
    finally:
        host.kill()
        host.wait()


def test_no_descriptor_is_left_open() -> None:
    """Neither after a success nor after a failure; and there is one compiling process, however many jobs it has had."""
    box = Sandbox(ALWAYS.replace(locals=1))
    assert box.run(wat(HELLO)).ok
    before, servers = descriptors(), children(os.getpid())
    for number in range(5):
        assert box.run(wat(HELLO.replace("hello", f"HELL{number}"))).ok
        with pytest.raises(InvalidModule):
            box.run(wat(f'(module (memory {number}) (func (export "_start") (local i32 i32)))'))

    assert descriptors() <= before
    assert children(os.getpid()) == servers


# -- what the other process may leave ---------------------------------------------------------------------------------

PYTHON = sys.executable

# Stands in for Python: the real compiling process, but that some code of ours is run in the place of what a child does.
FAKE = """#!{python}
import os, signal, sys, time
from stockade.worker import _child, _fork_server
genuine = _child._work
def work(source, target):
    def frame(head, body=b""):
        os.pwrite(target, len(head).to_bytes(8, "little") + head + body, 0)
    {code}
_child._work = work
{setup}
exec(sys.argv[-1])
"""

UNREADABLE = "the compiling process left nothing that can be read"
FAILED = "the compiling process failed with exit status {}, which is a mistake in Stockade"
TOO_MUCH = (
    "the compiler was ended by {}, as it is where it needs more than 1,073,741,824 bytes of memory "
    "(limits.compile_memory): <bytes> is too much for it"
)
TOO_LONG = "<bytes> takes more than {} s to compile (limits.compile_time): it is too much for the compiler"
ENDED = (
    "the compiler was ended by {}, as none of its limits does: by somebody, or by a system that is short of memory. "
    "Try <bytes> again"
)


@pytest.fixture
def pretend(tmp_path: Path, own_worker: _process.Worker, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a program of our own in the place of Python."""

    def put(code: str, setup: str = "") -> None:
        path = tmp_path / "fake"
        path.write_text(FAKE.format(python=PYTHON, code=code or "pass", setup=setup))
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))

    return put


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    part(
        [
            ("", EngineError, UNREADABLE),
            ("os.pwrite(target, b'x', 0)", EngineError, UNREADABLE),
            ("os.pwrite(target, os.urandom(7), 0)", EngineError, UNREADABLE),
            ("os.pwrite(target, bytes([255] * 100), 0)", EngineError, UNREADABLE),
            ("os.pwrite(target, (93).to_bytes(8, 'little') + bytes(92), 0)", EngineError, UNREADABLE),
            ("frame(b'')", EngineError, UNREADABLE),
            ("frame(b'no json')", EngineError, UNREADABLE),
            ("frame(b'[' * 100_000)", EngineError, UNREADABLE),
            ("frame(b'{}')", EngineError, UNREADABLE),
            ("frame(b'null')", EngineError, UNREADABLE),
            ("""frame(b'{"woven": {}}')""", EngineError, UNREADABLE),
            ("""frame(b'{"failure": ["KeyError", "words"]}')""", EngineError, "words"),
            ("""frame(b'{"failure": ["InvalidModule", "words"]}')""", InvalidModule, "words"),
            (
                "os.ftruncate(target, (4 << 30) + 1)",
                EngineError,
                "the compiling process left 4,294,967,297 bytes, more than machine code can have",
            ),
            ("raise ValueError", EngineError, FAILED.format(1)),
            ("frame(b'{}'); os._exit(77)", EngineError, FAILED.format(77)),
            ("os.abort()", InvalidModule, TOO_MUCH.format("SIGABRT")),
            ("os.kill(os.getpid(), signal.SIGSEGV)", InvalidModule, TOO_MUCH.format("SIGSEGV")),
            ("os.kill(os.getpid(), signal.SIGXCPU)", InvalidModule, TOO_LONG.format(60)),
            ("os.kill(os.getpid(), 9)", EngineError, ENDED.format("SIGKILL")),
            ("os.kill(os.getpid(), signal.SIGTERM)", EngineError, ENDED.format("SIGTERM")),
            ("os.kill(os.getpid(), 40)", EngineError, ENDED.format("signal 40")),
        ]
    ),
)
def test_a_compiling_process_that_fails_is_told_in_words(
    code: str, kind: type[StockadeError], message: str, pretend: Callable[[str], None]
) -> None:
    """The attack: a guest that has taken the compiler over, or only broken it, answers whatever it likes.

    A signal that no limit sends is not the module's fault.
    """
    box = Sandbox(ALWAYS)
    pretend(f"if b'broken' not in os.pread(source, 1 << 20, 0): return genuine(source, target)\n    {code}")
    with pytest.raises(kind) as failure:
        box.run(wat(HELLO.replace("hello", "broken")))

    assert type(failure.value) is kind
    assert str(failure.value) == message
    assert box.run(wat(HELLO)).stdout == b"hello world\n"


def test_a_compiling_process_that_hangs_is_ended(pretend: Callable[[str], None], own_worker: _process.Worker) -> None:
    """However deaf it is to signals."""
    pretend("[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; genuine(source, target); time.sleep(3600)")

    with pytest.raises(InvalidModule) as failure:
        Sandbox(ALWAYS.replace(compile_time=0.2)).run(wat(HELLO))

    assert str(failure.value) == TOO_LONG.format(0.2)
    assert own_worker._process is not None
    server = own_worker._process.popen.pid
    assert until(lambda: not busy(server))


def test_machine_code_that_is_none_is_not_loaded(pretend: Callable[[str], None]) -> None:
    """All is right but the machine code."""
    pretend(
        "read, kept = os.dup(source), os.dup(target); genuine(source, target)\n"
        "    if b'broken' in os.pread(read, 1 << 20, 0):\n"
        "        os.ftruncate(kept, 8 + int.from_bytes(os.pread(kept, 8, 0), 'little') + 100)"
    )
    assert Sandbox(ALWAYS).run(wat(HELLO)).stdout == b"hello world\n"

    with pytest.raises(EngineError, match=r"^the machine code cannot be loaded: "):
        Sandbox(ALWAYS).run(wat(HELLO.replace("hello", "broken")))


NO_PYTHON = (
    "there is no Python to compile with, for sys.executable is not set: set it, or let the policy say "
    'limits.compile_process = "never"'
)


@pytest.mark.parametrize(
    ("executable", "message"),
    [
        ("", NO_PYTHON),
        (None, NO_PYTHON),
        ("/nowhere/python", "no process can be started to compile in: No such file or directory"),
        ("/etc", f"no process can be started to compile in: {os.strerror(errno.EACCES)}"),
    ],
)
def test_no_python_to_compile_with_is_said(
    executable: str | None, message: str, own_worker: _process.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program with Python inside has no interpreter to start; it can compile in its own process."""
    monkeypatch.setattr(sys, "executable", executable)

    with pytest.raises(EngineError) as failure:
        Sandbox(ALWAYS).run(wat(HELLO))

    assert str(failure.value) == message
    assert Sandbox(NEVER).run(wat(HELLO)).stdout == b"hello world\n"


# -- what is around it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "surroundings",
    [
        # More descriptors than select() can wait for.
        pytest.param(
            "resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)); kept = [os.dup(0) for _ in range(1100)]",
            id="descriptors",
        ),
        pytest.param(
            "for name in ('PYTHONPATH', 'PYTHONSTARTUP', 'PYTHONHOME'): os.environ[name] = '/nowhere'",
            id="python",
        ),
        pytest.param("os.close(0); os.close(2)", id="closed", marks=pytest.mark.slow),
        pytest.param(
            "signal.signal(signal.SIGCHLD, signal.SIG_DFL); os.chdir('/')", id="elsewhere", marks=pytest.mark.slow
        ),
        pytest.param("os.environ.clear(); os.environ['STOCKADE_CACHE'] = 'off'", id="bare", marks=pytest.mark.slow),
    ],
)
def test_whatever_the_host_is_like_it_compiles(surroundings: str) -> None:
    """The other process depends on none of it."""
    code = (
        "import os, resource, signal\nfrom stockade import Module, Policy, Sandbox\n"
        f"{surroundings}\n"
        f"module = Module.load({HELLO!r}.encode(), text=True)\n"
        "print(Sandbox(Policy().replace(compile_process='always')).run(module).stdout)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert (ended.stdout, ended.stderr) == ("b'hello world\\n'\n", "")


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("RLIMIT_NOFILE, (8, 4096)", "Too many open files"),
        ("RLIMIT_FSIZE, (100, 4096)", "File too large"),
    ],
)
def test_a_host_without_room_for_another_process_is_told_so(limit: str, message: str) -> None:
    """What the system refuses is an error of ours, not a raw one."""
    code = (
        "import os, resource\nfrom stockade import EngineError, Module, Policy, Sandbox\n"
        f"module = Module.load({HELLO!r}.encode(), text=True)\n"
        "box = Sandbox(Policy().replace(compile_process='always'))\n"
        "Sandbox(Policy().replace(compile_process='never')).run(module)\n"
        "box.run(Module.load(b'(module (func (export \"_start\")))', text=True))\n"
        "module = Module.load(module.data + b'\\0\\2\\1x')\n"
        f"resource.setrlimit(resource.{limit})\n"
        "kept = []\n"
        "try:\n"
        "    while resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 10: kept.append(os.dup(0))\n"
        "except OSError: pass\n"
        "try: box.run(module)\n"
        "except EngineError as problem: print(problem)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert (ended.stdout, ended.stderr) == (f"no process can be started to compile in: {message}\n", "")


def test_limits_stay_within_those_that_were_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit can be lowered by anyone, and raised by root alone: what the host set stays where it is lower."""
    import resource

    done: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: done.append((kind, pair)))
    for hard in (1000, 5002, resource.RLIM_INFINITY, 10**6):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, hard=hard: (hard, hard))
        _child._limit(resource.RLIMIT_DATA, 5000)
        _child._limit(resource.RLIMIT_CPU, 5000, 5)

    assert [pair for kind, pair in done if kind == resource.RLIMIT_DATA] == [
        (most, most) for most in (1000, 5000, 5000, 5000)
    ]
    assert [pair for kind, pair in done if kind == resource.RLIMIT_CPU] == [
        (1000, 1000),
        (5000, 5002),
        (5000, 5005),
        (5000, 5005),
    ]


def test_nothing_of_the_guests_gets_into_the_code_of_the_other_process(
    tmp_path: Path, own_worker: _process.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: a module named so that its name, put into Python code, would be code."""
    started: list[list[str]] = []
    real = subprocess.Popen

    def watch(arguments: list[str], **others: object) -> object:
        started.append(arguments)
        return real(arguments, **others)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", watch)
    evil = "x'); raise SystemExit(3) #{paths}{source!r}\".wasm"
    path = tmp_path / evil
    path.write_bytes(wat(HELLO).data + custom("name", b"\0" + leb(len(name(evil))) + name(evil)))
    module = Module.load(path)

    assert Sandbox(ALWAYS).run(module).stdout == b"hello world\n"
    ((python, *options, code),) = started
    assert (python, options) == (sys.executable, ["-I", "-X", "utf8", "-c"])
    assert "SystemExit" not in code
    homes = [Path(_subprocess.__file__).parents[2], Path(str(msgspec.__file__)).parents[1], library_folder()]
    paths = re.escape(repr(list(dict.fromkeys(map(str, homes)))))
    assert re.fullmatch(
        rf"import sys; sys\.path \+= {paths}; from stockade\.worker\._child import main; main\(\d+, {os.getpid()}\)",
        code,
    )


def test_what_lies_in_the_working_folder_is_not_imported(tmp_path: Path) -> None:
    """The attack: a guest leaves a json.py in the working folder, and the compiling process imports it."""
    script = """
import sys
from pathlib import Path
import stockade
hello = Path(sys.argv[1]).read_bytes()
assert stockade.run(hello).stdout == b"hello world\\n"
planted = "open('taken over', 'w'); raise SystemExit(1)"
for name in ("json", "resource", "msgspec", "stockade", "os", "ctypes", "site", "sitecustomize"):
    Path(name + ".py").write_text(planted)
report = stockade.run(hello, policy=stockade.Policy().replace(compile_process="always", fuel=None))
print(report.stdout, Path("taken over").exists())
"""
    (tmp_path / "work").mkdir()
    (tmp_path / "hello.wasm").write_bytes(wat(HELLO).data)

    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "hello.wasm")],
        cwd=tmp_path / "work",
        env={**os.environ, "STOCKADE_CACHE": "off"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("b'hello world\\n' False\n", "")


def test_the_other_process_is_told_no_more_of_the_policy_than_it_needs(
    pretend: Callable[[str], None], tmp_path: Path
) -> None:
    """The attack: a compiler that a module has taken over reads the secrets of the policy."""
    pretend(f"open({str(tmp_path / 'seen')!r}, 'wb').write(os.pread(source, 1 << 20, 0)); genuine(source, target)")
    environment = Environment(set={"API_KEY": "hunter2hunter2"})  # type: ignore[arg-type]

    report = Sandbox(ALWAYS.replace(environment=environment, name="hush hush")).run(wat(HELLO))

    assert report.stdout == b"hello world\n"
    seen = (tmp_path / "seen").read_bytes()
    assert b"function_size" in seen
    assert b"hunter2" not in seen
    assert b"hush" not in seen


# -- the worst modules and texts --------------------------------------------------------------------------------------


def over_blocks() -> bytes:
    """9 KB: 999 nested blocks with 1,000 results each, and a table of branches to all of them."""
    targets = b"".join(leb(depth) for depth in range(999))
    code = b"\x02\1" * 999 + b"\x41\0" * 1001 + b"\x0e" + leb(998) + targets + b"\x0b" * 999 + b"\x1a" * 1000
    return functions_of(code, b"\x60\0" + leb(1000) + b"\x7f" * 1000)


def over_loops() -> bytes:
    """45 KB: six functions with 999 nested loops each, which pass 100 values on."""
    code = b"\x41\0" * 100 + b"\x03\1" * 999 + b"\x41\0\x0d\0\x0b" * 999 + b"\x1a" * 100
    return functions_of(code, b"\x60" + (leb(100) + b"\x7f" * 100) * 2, times=6)


def functions_of(code: bytes, type_: bytes, times: int = 1) -> bytes:
    """A command of functions with this code, in which the type has the index 1."""
    body = b"\0" + code + b"\x0b"
    sections = (
        section(1, b"\2\x60\0\0" + type_),
        section(3, leb(times) + b"\0" * times),
        section(7, b"\1" + name("_start") + b"\0\0"),
        section(10, leb(times) + (leb(len(body)) + body) * times),
    )
    return HEADER + b"".join(sections)


def in_another_process(code: str, data: bytes) -> list[str]:
    """Runs code that has `data`, `hello` and `grown()`; returns the lines that it prints."""
    script = f"""
import os, sys
from pathlib import Path
from stockade import Module, Policy, Sandbox, StockadeError
os.environ["STOCKADE_CACHE"] = "off"
hello = Module.load({HELLO!r}.encode(), text=True)
data = sys.stdin.buffer.read()
Sandbox().run(hello).check()
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
Path("/proc/self/clear_refs").write_text("5")
before = peak()
def grown():
    return peak() - before
{code}
"""
    ended = subprocess.run([sys.executable, "-W", "error", "-c", script], input=data, capture_output=True, timeout=100)
    assert (ended.returncode, ended.stderr.decode()) == (0, "")
    return ended.stdout.decode().splitlines()


@pytest.mark.parametrize(
    ("module", "bytes_"),
    [
        pytest.param(over_blocks, 9_000, id="9 KB of blocks"),
        pytest.param(over_loops, 45_000, id="45 KB of loops", marks=pytest.mark.slow),
    ],
)
def test_a_small_module_takes_neither_time_nor_memory_of_the_host(module: Callable[[], bytes], bytes_: int) -> None:
    """The attack: kilobytes for which the compiler takes seconds or minutes, and gigabytes, in the host's own process.

    What decides is what compiling can cost, not how large the module is.
    """
    data = module()
    assert abs(len(data) - bytes_) < 1000
    code = """
for change in ({"compile_memory": 256 << 20}, {"compile_time": 0.3}):
    try:
        Sandbox(Policy().replace(**change)).prepare(data)
    except StockadeError as problem:
        print(type(problem).__name__)
print(Sandbox().run(hello).stdout, grown())
"""
    *refusals, last = in_another_process(code, data)

    assert refusals == ["InvalidModule"] * 2
    said, grown = last.rsplit(" ", 1)
    assert said == r"b'hello world\n'"
    assert int(grown) < 32 << 20


def test_a_text_that_is_too_large_is_not_translated(tmp_path: Path) -> None:
    """The attack: a hundred megabytes of text, for which a translator takes gigabytes. At the bound, it is tried."""
    path = tmp_path / "large.wat"
    path.write_bytes(b"(module)".ljust((16 << 20) + 1))
    with pytest.raises(InvalidModule) as caught:
        Module.load(path)
    assert str(caught.value) == (
        "large.wat has 16,777,217 bytes of WebAssembly text; at most 16,777,216 are translated here. Translate it with "
        "wat2wasm or wasm-tools, and load the binary"
    )
    path.write_bytes(b"(module)".ljust(16 << 20))
    assert Module.load(path).exports == ()


@pytest.mark.slow
def test_a_large_text_takes_neither_time_nor_memory_of_the_host() -> None:
    """The attack: 15 MB of text for which the translator takes 1.2 GB, in the host's own process."""
    data = b"(module" + b"(func)" * 2_600_000 + b")"
    code = """
from stockade import call
for attempt in (
    lambda: Module.load(data, text=True),
    lambda: call(data, "f", policy=Policy().replace(compile_memory=200 << 20)),
    lambda: call(data, "f", policy=Policy().replace(compile_time=0.3)),
):
    try:
        attempt()
    except StockadeError as problem:
        print(type(problem).__name__, problem)
print(grown())
"""
    *lines, grown = in_another_process(code, data)

    ended = "InvalidModule the translator was ended by SIGABRT, as it is where it needs more than {} bytes of memory "
    too_much = "(limits.compile_memory): <bytes> is too much for it"
    assert lines == [
        ended.format("1,073,741,824") + too_much,
        ended.format("209,715,200") + too_much,
        f"InvalidModule {TOO_LONG.format(0.3)}".replace("compile (", "translate (").replace("compiler", "translator"),
    ]
    assert int(grown) < 4 * len(data)


def test_text_is_the_same_module_wherever_it_is_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive twin: of 64 KiB and more, from bytes and from a file, with and without another process."""
    translated: list[str] = []
    real = _module.translate_aside

    def watch(name: str, text: bytes, limits: Limits) -> bytes:
        translated.append(name)
        return real(name, text, limits)

    monkeypatch.setattr(_module, "translate_aside", watch)
    small = HELLO.encode()
    large = small + b"\n" * ((64 << 10) + 1 - len(small))
    (tmp_path / "large.wat").write_bytes(large)

    here = Module.load(large[:-1], text=True)
    assert translated == []
    there = [Module.load(large, text=True), Module.load(tmp_path / "large.wat")]
    assert translated == ["<bytes>", "large.wat"]
    asked = load_module(large, NEVER, text=True)
    assert translated == ["<bytes>", "large.wat"]
    assert {module.sha256 for module in (here, *there, asked)} == {wat(HELLO).sha256}


def test_mistakes_in_text_are_told_in_the_same_words_wherever() -> None:
    """What does not parse, and what is no text at all."""
    for wrong in (b"(module (func (i32.const)))", b"(module \xff)", b"\x7fELF"):
        messages = set()
        for text in (wrong, wrong + b" " * (64 << 10)):
            with pytest.raises(InvalidModule) as refusal:
                Module.load(text, text=True)
            messages.add(str(refusal.value))
        assert len(messages) == 1


def test_validating_anew_is_done_in_the_other_process_too(monkeypatch: pytest.MonkeyPatch, aside: list[str]) -> None:
    """A program at hand is validated under the proposals of another policy where it was compiled."""
    validated: list[str] = []
    real = _subprocess.validate_aside

    def watch(name: str, wasm: bytes, features: Features, limits: Limits, turn: Turn) -> None:
        validated.append(name)
        real(name, wasm, features, limits, turn)

    monkeypatch.setattr(_programs, "validate_aside", watch)
    module = wat('(module (func (export "_start") (drop (v128.const i64x2 0 1))))')
    assert Sandbox(ALWAYS).run(module).ok

    assert Sandbox(ALWAYS.replace(tail_call=False)).run(module).ok
    assert (aside, validated) == (["<bytes>"], ["<bytes>"])
    with pytest.raises(InvalidModule) as refusal:
        Sandbox(ALWAYS.replace(simd=False, relaxed_simd=False)).run(module)
    assert str(refusal.value) == "<bytes> uses SIMD, which the policy does not allow (features.simd)"
    assert validated == ["<bytes>"] * 2
    assert Sandbox(NEVER.replace(tail_call=True, multi_memory=True)).run(module).ok
    assert validated == ["<bytes>"] * 2


def test_inspecting_takes_neither_time_nor_memory_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: 600 KB of branches to blocks with many results, for which validating alone takes half a minute."""
    block = b"\x02\1" + b"\x41\0" * 1001 + b"\x0e" + leb(60_000) + bytes(60_001) + b"\x0b" + b"\x1a" * 1000
    module = Module.load(functions_of(block * 10, b"\x60\0" + leb(1000) + b"\x7f" * 1000))
    monkeypatch.setattr(_subprocess, "Limits", lambda: Limits(compile_time=0.3))

    inspection = module.inspect()

    too_long = "<bytes> takes more than 0.3 s to validate (limits.compile_time): it is too much for the validator"
    assert inspection.problem == too_long
    assert inspection.obstacles == (too_long,)


def test_inspecting_tells_the_same_wherever() -> None:
    """The positive twin: proposals and problems of a module, tiny or not."""
    for text in ("(func (drop (v128.const i64x2 0 1)))", "(func (result i32))", "(memory 1) (memory 1)"):
        tiny = wat_unchecked(f"(module {text})")
        here, there = (Module.load(data).inspect() for data in (tiny, tiny + custom("pad", bytes(5000))))
        assert (here.features, here.problem) == (there.features, there.problem)
