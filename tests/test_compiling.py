"""Compiling in a process of its own: what a module can do to the compiler, and what that process can do to us."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from stockade import EngineError, Environment, InvalidModule, Module, Mount, Policy, Report, Sandbox, StockadeError
from stockade.engine import Engine, EngineConfig, library_folder
from stockade.execution import _aside, _plan, _programs
from stockade.policy import PRESETS
from tests.conftest import HELLO, program_path, wat
from tests.guard._modules import HEADER, custom, leb, name, section

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL_BYTES = 64 << 10
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
    real = _aside.make_aside

    def watch(module: Module, config: EngineConfig, policy: Policy) -> object:
        names.append(module.name)
        return real(module, config, policy)

    monkeypatch.setattr(_programs, "make_aside", watch)
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
        ("auto", SMALL_BYTES, False),
        ("auto", SMALL_BYTES + 1, True),
        ("always", 1000, True),
        ("always", SMALL_BYTES + 1, True),
        ("never", 1000, False),
        ("never", SMALL_BYTES + 1, False),
    ],
)
def test_the_policy_says_where_a_module_is_compiled(process: str, size: int, elsewhere: bool, aside: list[str]) -> None:
    """Up to 64 KiB a module cannot do much; beyond, the default is a process of its own."""
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
    """Holds item 16: modules, sandboxes and runs of one configuration make no further engine."""
    Sandbox(ALWAYS).run(wat(HELLO))
    engines = dict(Engine._engines)

    for greeting in ("one", "two"):
        for process in ("always", "never"):
            box = Sandbox(Policy().replace(compile_process=process))
            assert all(box.run(wat(HELLO.replace("hello", greeting))).outcome == "ok" for _ in range(3))

    assert set(Engine._engines) - set(engines) <= {config for config in Engine._engines if not config.pooled}
    assert all(Engine._engines[config] is engine for config, engine in engines.items())


def test_an_engine_with_half_of_simd_does_not_abort() -> None:
    """The attack of a wrong setting: relaxed SIMD without SIMD aborted the whole process. Holds H26."""
    code = (
        "from stockade.engine import Engine, EngineConfig\n"
        "Engine.shared(EngineConfig(fuel=True, stack_bytes=1 << 19, simd=False, relaxed_simd=True, pooled=False))\n"
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


def wat_unchecked(text: str) -> bytes:
    """A module from text, whether it is valid or not."""
    return wat(text).data


# -- bombs ------------------------------------------------------------------------------------------------------------


def test_a_bomb_is_refused_before_anything_looks_at_it(aside: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: 1 MB of 200,000 functions, for which the compiler takes seconds and a gigabyte. Holds H11."""

    def prepare(*args: object) -> None:
        raise AssertionError("it was looked at")

    monkeypatch.setattr(_programs, "prepare", prepare)
    module = Module.load(bomb(200_000))
    for policy in (NEVER, ALWAYS, Policy()):
        with pytest.raises(InvalidModule) as refusal:
            Sandbox(policy).run(module)
        assert str(refusal.value) == ("<bytes> has 200,000 functions; the policy allows 100,000 (structure.functions)")
    assert aside == []


def test_a_bomb_is_stopped_by_memory_and_by_time() -> None:
    """The same attack under a policy that allows as many functions: it harms neither this process nor its next run.

    Holds H11. In a process of its own, whose peak of memory nothing else has moved.
    """
    ended = subprocess.run(
        [sys.executable, "-c", BOMBS], input=bomb(200_000), capture_output=True, timeout=100, check=False
    )

    assert ended.stderr == b""
    *lines, grown = ended.stdout.decode().splitlines()
    assert len(lines) == 4
    assert re.fullmatch(
        r"InvalidModule the compiler was ended by (SIGABRT|SIGKILL|SIGSEGV|SIGTRAP|exit status 1), as it is where it "
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


def children(pid: int) -> set[int]:
    """The processes that a process has started and that exist."""
    found: set[int] = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found.update(int(child) for child in (thread / "children").read_text().split())
    return found


def until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Waits for something; whether it came."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def gone(pid: int) -> bool:
    """Whether a process has ended, be it waited for or not."""
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def deaf(pid: int) -> bool:
    """Whether the compiling process is past its preparations: it has its limit of memory."""
    return (
        "-I" not in Path(f"/proc/{pid}/cmdline").read_text()
        or "Max data size             unlimited" not in Path(f"/proc/{pid}/limits").read_text()
    )


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
sys.argv = ["stockade", "cache", "warm", "--policy", sys.argv[2], sys.argv[1]]
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
        (LONG, signal.SIGINT, -signal.SIGINT),
        (LONG, signal.SIGTERM, -signal.SIGTERM),
        (LONG, signal.SIGKILL, -signal.SIGKILL),
        (COMMAND, signal.SIGINT, 130),
    ],
    ids=["interrupted", "terminated", "killed", "command interrupted"],
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
        (child,) = children(host.pid)
        assert until(lambda: deaf(child))
        host.send_signal(with_)
        _, errors = host.communicate(timeout=30)
        assert host.returncode == status, errors
        assert until(lambda: gone(child), 5)
    finally:
        host.kill()
        host.wait()


def test_no_descriptor_is_left_open() -> None:
    """Neither after a success nor after a failure."""
    box = Sandbox(ALWAYS.replace(locals=1))
    assert box.run(wat(HELLO)).ok

    def descriptors() -> list[str]:
        # Runs keep files for the standard streams of later runs; the scratch files have a name of their own.
        found = (path.readlink().name for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
        return [name for name in found if "memfd:stockade" in name or "pidfd" in name]

    # Machine code from the cache is mapped from such a file, and may be in use.
    before = len(descriptors())
    assert box.run(wat(HELLO.replace("hello", "HELLO"))).ok
    with pytest.raises(InvalidModule):
        box.run(wat('(module (func (export "_start") (local i32 i32)))'))

    assert len(descriptors()) <= before
    assert children(os.getpid()) == set()


# -- what the other process may leave ---------------------------------------------------------------------------------

PYTHON = sys.executable

# Finds the descriptors; `boot` is what it was to run.
FAKE = """#!{python}
import json, os, re, subprocess, sys
boot = sys.argv[3]
source, target = map(int, re.search(r"main[(]([0-9]+), ([0-9]+)[)]", boot).groups())
def frame(head, body=b""):
    os.pwrite(target, len(head).to_bytes(8, "little") + head + body, 0)
def genuine():
    size = int.from_bytes(os.pread(source, 8, 0), "little")
    job, body = json.loads(os.pread(source, size, 8)), os.pread(source, 1 << 30, 8 + size)
    job["parent"] = os.getpid()
    head = json.dumps(job).encode()
    os.pwrite(source, len(head).to_bytes(8, "little") + head + body, 0)
    subprocess.run(["{python}", *sys.argv[1:]], pass_fds=(source, target), check=True)
{code}
"""

UNREADABLE = "the compiling process left nothing that can be read"
FAILED = (
    "the compiling process failed with exit status {}: check that PYTHON is a sound Python with this Stockade and its "
    "packages"
)
TOO_MUCH = (
    "the compiler was ended by {}, as it is where it needs more than 1,073,741,824 bytes of memory "
    "(limits.compile_memory): <bytes> is too much for it"
)


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program of our own in the place of Python."""

    def put(code: str) -> None:
        path = tmp_path / "fake"
        path.write_text(FAKE.format(python=PYTHON, code=code))
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))

    return put


@pytest.mark.parametrize(
    ("code", "kind", "message"),
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
        ("sys.exit(1)", EngineError, FAILED.format(1)),
        ("frame(b'{}'); sys.exit(77)", EngineError, FAILED.format(77)),
        ("os.kill(os.getpid(), 9)", InvalidModule, TOO_MUCH.format("SIGKILL")),
        ("os.kill(os.getpid(), 40)", InvalidModule, TOO_MUCH.format("exit status -40")),
    ],
)
def test_a_compiling_process_that_fails_is_told_in_words(
    code: str,
    kind: type[StockadeError],
    message: str,
    pretend: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The attack: a guest that has taken the compiler over, or only broken it, answers whatever it likes."""
    box = Sandbox(ALWAYS)
    with monkeypatch.context():
        pretend(code)
        message = message.replace("PYTHON", sys.executable)
        with pytest.raises(kind) as failure:
            box.run(wat(HELLO))

    assert type(failure.value) is kind
    assert str(failure.value) == message
    monkeypatch.undo()
    assert box.run(wat(HELLO)).stdout == b"hello world\n"


def test_a_compiling_process_that_hangs_is_ended(pretend: Callable[[str], None]) -> None:
    """However deaf it is to signals."""
    pretend("import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(3600)")

    with pytest.raises(InvalidModule) as failure:
        Sandbox(ALWAYS.replace(compile_time=0.2)).run(wat(HELLO))

    assert str(failure.value) == (
        "<bytes> takes more than 0.2 s to compile (limits.compile_time): it is too much for the compiler"
    )
    assert children(os.getpid()) == set()


def test_machine_code_that_is_none_is_not_loaded(
    pretend: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is right but the machine code."""
    pretend("genuine()")
    assert Sandbox(ALWAYS).run(wat(HELLO)).stdout == b"hello world\n"
    forget(monkeypatch)
    pretend("genuine(); os.ftruncate(target, 8 + int.from_bytes(os.pread(target, 8, 0), 'little') + 100)")

    with pytest.raises(EngineError, match=r"^the machine code cannot be loaded: "):
        Sandbox(ALWAYS).run(wat(HELLO))


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
        ("/etc", "no process can be started to compile in: Permission denied"),
    ],
)
def test_no_python_to_compile_with_is_said(
    executable: str | None, message: str, monkeypatch: pytest.MonkeyPatch
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
        "resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)); kept = [os.dup(0) for _ in range(1100)]",
        "os.environ['PYTHONPATH'] = '/nowhere'; os.environ['PYTHONSTARTUP'] = os.environ['PYTHONHOME'] = '/nowhere'",
        "os.close(0); os.close(2)",
        "signal.signal(signal.SIGCHLD, signal.SIG_DFL); os.chdir('/')",
        "os.environ.clear(); os.environ['STOCKADE_CACHE'] = 'off'",
    ],
    ids=["descriptors", "python", "closed", "elsewhere", "bare"],
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

    from stockade.execution import _child

    done: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: done.append((kind, pair)))
    for hard in (1000, resource.RLIM_INFINITY, 10**6):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, hard=hard: (hard, hard))
        _child._limit(resource.RLIMIT_DATA, 5000)

    assert done == [(resource.RLIMIT_DATA, (most, most)) for most in (1000, 5000, 5000)]


def test_nothing_of_the_guests_gets_into_the_code_of_the_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert (python, options) == (sys.executable, ["-I", "-c"])
    assert "SystemExit" not in code
    homes = [Path(_aside.__file__).parents[2], Path(str(msgspec.__file__)).parents[1], library_folder()]
    paths = re.escape(repr(list(dict.fromkeys(map(str, homes)))))
    assert re.fullmatch(
        rf"import sys; sys\.path \+= {paths}; from stockade\.execution\._child import main; main\(\d+, \d+\)", code
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
    pretend(f"open({str(tmp_path / 'seen')!r}, 'wb').write(os.pread(source, 1 << 20, 0)); genuine()")
    environment = Environment(set={"API_KEY": "hunter2hunter2"})  # type: ignore[arg-type]

    report = Sandbox(ALWAYS.replace(environment=environment, name="hush hush")).run(wat(HELLO))

    assert report.stdout == b"hello world\n"
    seen = (tmp_path / "seen").read_bytes()
    assert b"compile_memory" in seen
    assert b"hunter2" not in seen
    assert b"hush" not in seen
