"""What is not a module, or not one that may be run: told by class and message, never by a hang or a crash."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import InvalidModule, LinkError, Module, ModuleError, ModuleNotFound, Policy, Sandbox
from stockade._text import printable
from tests._examples import part
from tests.cli.test_run import leb, quoted, section
from tests.cli.test_run import stockade as command
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from collections.abc import Callable

NOOP = b"\0asm\x01\0\0\0" + section(1, b"\x01\x60\0\0") + section(3, b"\x01\0")
NOOP += section(7, b"\x01\x06_start\0\0") + section(10, b"\x01\x02\0\x0b")

COMPONENT = b"\0asm\x0d\0\x01\0"

IS_TEXT = "not WebAssembly but text: compile source code to WebAssembly first"
IS_TEXT_FORMAT = "WebAssembly text, not a binary module: name the file .wat, or load it with text=True"
NOT_WASM = "not WebAssembly: it does not begin with \\0asm"

OF_A_COMPONENT = (
    "a WebAssembly component, and Stockade runs core modules: build it for the target wasm32-wasip1 instead of "
    "wasm32-wasip2"
)

CUT_SHORT = (
    "short.wasm: damaged module: section 10 announces 4 bytes, 3 are left at byte 32, in the file. "
    "The file is cut short or corrupt: build or fetch it again"
)

ONLY_WASI = (
    "Guests get WASI preview 1 (wasi_snapshot_preview1). Run the module from Python and provide these with "
    "Sandbox.host_function(...), or rebuild it without them"
)

# Every section that a core module can have, with something in it.
EVERYTHING = """
(module
  (type $t (func (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (type $t)))
  (table 2 funcref)
  (memory (export "memory") 1)
  (global $g (mut i64) (i64.const -1))
  (func $f (type $t) (local f64 f32) (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1)) (local.get 0))
  (func $start)
  (func (export "_start") (drop (call_indirect (type $t) (i32.const 3) (i32.const 0))))
  (export "f" (func $f))
  (start $start)
  (elem (i32.const 0) $f $close)
  (data $d "some data")
  (data (i32.const 8) "more data"))
"""

HOSTILE = "\x1b]0;pwned\x07\r\n\u202e\x9b31m"
"""Retitles a terminal, forges a line, and turns the reading direction."""


def with_imports(*imports: str) -> Module:
    """A command that asks for these imports."""
    return wat(f'(module {" ".join(imports)} (func (export "_start")))')


def is_harmless(text: str) -> bool:
    """Whether text is short and can neither steer a terminal nor forge a line."""
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return len(text) < 2000 and not any(unicodedata.category(character) in hidden for character in text)


def make_missing(folder: Path) -> Path:
    """No file at all."""
    return folder / "absent.wasm"


def make_missing_folder(folder: Path) -> Path:
    """Not even a folder."""
    return folder / "absent" / "guest.wasm"


def make_folder(folder: Path) -> Path:
    """A folder with the name of a module."""
    path = folder / "folder.wasm"
    path.mkdir()
    return path


def make_fifo(folder: Path) -> Path:
    """A FIFO that nobody writes to."""
    path = folder / "fifo.wasm"
    os.mkfifo(path)
    return path


def make_endless(folder: Path) -> Path:
    """A device that never ends."""
    return Path("/dev/zero")


def make_socket(folder: Path) -> Path:
    """A socket that lies in the file system; it stays when it is closed."""
    path = folder / "socket.wasm"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))
    return path


def make_file(name: str, data: bytes) -> Callable[[Path], Path]:
    """A file with these bytes."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path

    return make


# What is made, the exception's class, its message, and the exit status.
BAD_FILES = {
    "missing": (make_missing, ModuleNotFound, "no file at {path}", 127),
    "missing folder": (make_missing_folder, ModuleNotFound, "no file at {path} (nor a folder {folder})", 127),
    "folder": (
        make_folder,
        InvalidModule,
        "{path} is a folder, not a regular file: give the path of a module",
        126,
    ),
    "FIFO": (make_fifo, InvalidModule, "{path} is a FIFO, not a regular file: give the path of a module", 126),
    "/dev/zero": (
        make_endless,
        InvalidModule,
        "/dev/zero is a character device, not a regular file: give the path of a module",
        126,
    ),
    "socket": (make_socket, InvalidModule, "{path} is a socket, not a regular file: give the path of a module", 126),
    "text": (make_file("text.wasm", b"echo hello\n"), InvalidModule, f"text.wasm is {IS_TEXT}", 126),
    "empty": (make_file("empty.wasm", b""), InvalidModule, "empty.wasm is empty", 126),
    "3 bytes": (make_file("three.wasm", b"\0as"), InvalidModule, f"three.wasm is {NOT_WASM}", 126),
    "text format in .wasm": (
        make_file("text.wasm", HELLO.encode()),
        InvalidModule,
        f"text.wasm is {IS_TEXT_FORMAT}",
        126,
    ),
    "binary in the wrong order": (
        make_file("swapped.wasm", NOOP[3::-1] + NOOP[4:]),
        InvalidModule,
        f"swapped.wasm is {NOT_WASM}",
        126,
    ),
    "wrong version": (
        make_file("two.wasm", b"\0asm\x02\0\0\0" + NOOP[8:]),
        InvalidModule,
        "two.wasm has WebAssembly version 02000000, which is not known; core modules have 1",
        126,
    ),
    "component": (make_file("component.wasm", COMPONENT), InvalidModule, f"component.wasm is {OF_A_COMPONENT}", 126),
    "cut short": (
        make_file("short.wasm", NOOP[:-1]),
        InvalidModule,
        CUT_SHORT,
        126,
    ),
    "neither text nor binary": (
        make_file("noise.wat", b"\xff\xfe"),
        InvalidModule,
        f"noise.wat is {NOT_WASM}",
        126,
    ),
    "unknown import": (
        make_file("import.wat", b'(module (import "env" "f" (func)) (func (export "_start")))'),
        LinkError,
        f"nothing provides what the module imports: env.f (function () -> ()). {ONLY_WASI}",
        126,
    ),
    "nothing to run": (
        make_file("library.wat", b'(module (func (export "f")))'),
        LinkError,
        "library.wat exports neither _start nor main, so there is nothing to run. Call one of its functions instead: f",
        126,
    ),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_what_cannot_be_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The attack: a path that blocks, never ends, or is no module."""
    monkeypatch.chdir(tmp_path)
    make, kind, message, _ = BAD_FILES[what]
    path = make(tmp_path)

    with pytest.raises(ModuleError) as caught:
        stockade.run(path)

    assert type(caught.value) is kind
    assert str(caught.value) == message.format(path=path, folder=path.parent)


@pytest.mark.parametrize("what", BAD_FILES)
def test_what_cannot_be_run_is_told_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The same through the command: one line on stderr, and an exit status of its own."""
    monkeypatch.chdir(tmp_path)
    make, _, message, status = BAD_FILES[what]
    path = make(tmp_path)

    done = command("run", path)

    assert b"Traceback" not in done.stderr
    assert done.stderr.decode() == f"stockade: {message.format(path=path, folder=path.parent)}\n"
    assert (done.returncode, done.stdout) == (status, b"")


@pytest.mark.parametrize(("name", "data"), [("guest.wasm", NOOP), ("guest.wat", HELLO.encode()), ("guest.wat", NOOP)])
def test_what_can_be_run_is_run(tmp_path: Path, name: str, data: bytes) -> None:
    """The counterpart of the above: a .wat file may be text, and binary too."""
    path = make_file(name, data)(tmp_path)

    assert stockade.run(path).ok
    assert command("run", path).returncode == 0


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="there is no /proc")
def test_a_regular_file_that_cannot_be_read_is_told() -> None:
    """The attack: a task names a file of the kernel's that says it is a regular one, and fails when it is read."""
    with pytest.raises(InvalidModule) as caught:
        Module.load("/proc/self/mem")
    assert str(caught.value) == "/proc/self/mem cannot be read: Input/output error"
    done = command("run", Path("/proc/self/mem"))
    assert (done.returncode, done.stderr) == (126, b"stockade: /proc/self/mem cannot be read: Input/output error\n")
    with Sandbox() as box, stockade.Scheduler(box) as scheduler:
        found = scheduler.execute(stockade.Task(module="/proc/self/mem"))
    assert (found.success, found.error) == (False, "/proc/self/mem cannot be read: Input/output error")


def test_hard_and_symbolic_links_to_modules_are_fine(tmp_path: Path) -> None:
    """What counts is the file that was opened, not how it was found."""
    path = make_file("guest.wasm", NOOP)(tmp_path)
    (tmp_path / "hard.wasm").hardlink_to(path)
    (tmp_path / "soft.wasm").symlink_to(path)

    assert stockade.run(tmp_path / "hard.wasm").ok
    assert stockade.run(tmp_path / "soft.wasm").ok


def test_refused_files_are_closed(tmp_path: Path) -> None:
    """The attack: a caller that retries bad paths runs out of file descriptors."""
    paths = [make_folder(tmp_path), make_fifo(tmp_path), make_endless(tmp_path), make_missing(tmp_path)]
    before = len(list(Path("/proc/self/fd").iterdir()))

    for path in paths * 3:
        with pytest.raises(stockade.StockadeError):
            Module.load(path)

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_text_is_not_taken_for_a_module() -> None:
    """The attack: text where a module was expected reaches the parser of the text format."""
    with pytest.raises(InvalidModule) as caught:
        Module.load(HELLO.encode())
    assert str(caught.value) == f"<bytes> is {IS_TEXT_FORMAT}"
    with pytest.raises(InvalidModule) as caught:
        stockade.run(b"hello")
    assert str(caught.value) == f"<bytes> is {IS_TEXT}"
    assert Module.load(HELLO.encode(), text=True).kind == "command"
    assert stockade.run(HELLO.encode()).ok


def test_text_with_a_mistake_is_told_with_its_place(tmp_path: Path) -> None:
    """A mistake in a .wat file is told in words and with its line, in one line."""
    path = make_file("guest.wat", b"(module\n  (func\n    i32.nonsense))\n")(tmp_path)

    with pytest.raises(InvalidModule) as caught:
        Module.load(path)

    message = str(caught.value)
    assert message.startswith("guest.wat is not valid WebAssembly text: ")
    assert is_harmless(message)
    assert message.endswith(" at line 3, column 5")
    assert "unknown operator or unexpected token" in message


def test_component_is_known_as_one() -> None:
    """A component can be loaded and asked what it is; it cannot be run."""
    module = Module.load(COMPONENT)

    assert module.kind == "component"
    with pytest.raises(InvalidModule) as caught:
        Sandbox().run(module)
    assert str(caught.value) == f"<bytes> is {OF_A_COMPONENT}"
    assert Module.load(NOOP).kind == "command"


@pytest.mark.parametrize("text", [HELLO, EVERYTHING], ids=["hello", "everything"])
def test_every_prefix_is_refused_or_valid(text: str) -> None:
    """The attack: a cut-off file makes the reader fail in a way of its own, such as an IndexError."""
    data = wat(text).data
    messages = []

    for length in range(len(data)):
        try:
            Module.load(data[:length])
        except InvalidModule as problem:
            messages.append(str(problem))

    assert len(messages) > len(data) * 0.8
    assert all(map(is_harmless, messages))
    assert Module.load(data).kind == "command"


def test_every_prefix_and_every_changed_byte_is_refused_or_runs() -> None:
    """The attack: a damaged module gets past the reader and makes the weaver, or what it wove, fail."""
    data = wat(EVERYTHING).data
    damaged = [data[:length] for length in range(8, len(data), 3)]
    damaged += [
        data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :] for at in range(8, len(data)) for flip in (1, 0x80)
    ]
    damaged = list(part(damaged))
    box = Sandbox(Policy().replace(fuel=100_000, memory=1 << 20))
    messages = []

    for variant in damaged:
        try:
            box.run(variant)
        except ModuleError as problem:
            messages.append(str(problem))

    assert len(messages) > len(damaged) // 2
    assert all(map(is_harmless, messages))
    assert box.run(data).ok


@pytest.mark.parametrize(
    ("item", "shown"),
    [
        ('"env" "f" (func (param i32 f64) (result i64))', "env.f (function (i32, f64) -> (i64))"),
        ('"env" "memory" (memory 1)', "env.memory (memory)"),
        ('"env" "table" (table 1 funcref)', "env.table (table)"),
        ('"env" "g" (global i32)', "env.g (global)"),
        ('"wasi_snapshot_preview1" "sock_open" (func)', "wasi_snapshot_preview1.sock_open (function () -> ())"),
        ('"wasi_snapshot_preview1" "fd_write" (memory 1)', "wasi_snapshot_preview1.fd_write (memory)"),
        ('"" "" (func)', ". (function () -> ())"),
    ],
    ids=["function", "memory", "table", "global", "call", "memory called fd_write", "nameless"],
)
def test_unknown_imports_are_named(item: str, shown: str) -> None:
    """What is asked for and is not there, and what there is instead."""
    with pytest.raises(LinkError) as caught:
        Sandbox().run(with_imports(f"(import {item})"))

    assert str(caught.value) == f"nothing provides what the module imports: {shown}. {ONLY_WASI}"


def test_known_imports_are_provided() -> None:
    """The twin of the above."""
    assert Sandbox().run(with_imports('(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))')).ok


@pytest.mark.parametrize(
    ("module", "hint"),
    [
        ("wasi_unstable", "wasi_unstable is an outdated preview: rebuild the module for wasm32-wasip1"),
        ("wasi:cli/run@0.2.0", "It was built for WASI 0.2: rebuild it for wasm32-wasip1"),
        ("wbg", "It was built for a JavaScript host: rebuild it for WASI (wasm32-wasip1, GOOS=wasip1)"),
        ("gojs", "It was built for a JavaScript host: rebuild it for WASI (wasm32-wasip1, GOOS=wasip1)"),
    ],
)
def test_modules_for_other_hosts_are_told_what_to_build_for(module: str, hint: str) -> None:
    """Whoever built for the wrong target is told the right one."""
    with pytest.raises(LinkError) as caught:
        Sandbox().run(with_imports(f'(import "{module}" "f" (func))'))

    assert str(caught.value) == f"nothing provides what the module imports: {module}.f (function () -> ()). {hint}"


def test_wasi_function_of_a_wrong_type_is_told() -> None:
    """Both types are shown, and the twin with the right one runs."""
    name = '"wasi_snapshot_preview1" "fd_write"'
    with pytest.raises(LinkError) as caught:
        Sandbox().run(with_imports(f"(import {name} (func (param i32 i32 i32 i64) (result i32)))"))

    assert str(caught.value) == (
        "the module imports wasi_snapshot_preview1.fd_write as (i32, i32, i32, i64) -> (i32), "
        "but in WASI preview 1 it is (i32, i32, i32, i32) -> (i32): rebuild it with a current toolchain"
    )
    assert Sandbox().run(with_imports(f"(import {name} (func (param i32 i32 i32 i32) (result i32)))")).ok


def test_many_unknown_imports_are_counted() -> None:
    """The attack: a hundred thousand imports flood the message."""
    many = [f'(import "env" "f{number}" (func))' for number in range(2000)]

    with pytest.raises(LinkError) as caught:
        Sandbox().run(with_imports(*many))

    listed = ", ".join(f"env.f{number} (function () -> ())" for number in range(5))
    assert str(caught.value) == f"nothing provides what the module imports: {listed} and 1995 more. {ONLY_WASI}"


# A module that needs a proposal, and its twin that does without.
FEATURES = {
    "threads": ("(memory 1 1 shared)", "(memory 1 1)"),
    "atomics": (
        "(memory 1) (func (drop (i32.atomic.load (i32.const 0))))",
        "(memory 1) (func (drop (i32.load (i32.const 0))))",
    ),
    "memory64": ("(memory i64 1)", "(memory i32 1)"),
    "table64": ("(table i64 1 funcref)", "(table 1 funcref)"),
    "custom page sizes": ("(memory 1 (pagesize 1))", "(memory 1)"),
    "GC types": ("(type (struct (field i32)))", "(type (func (param i32)))"),
    "GC instructions": (
        "(func (drop (ref.i31 (i32.const 1))))",
        "(func (drop (ref.null func)))",
    ),
    "wide arithmetic": (
        "(func (param i64) (result i64 i64) (i64.mul_wide_u (local.get 0) (local.get 0)))",
        "(func (param i64) (result i64) (i64.mul (local.get 0) (local.get 0)))",
    ),
    "stack switching": ("(type $f (func)) (type (cont $f))", "(type $f (func))"),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_proposals_are_off(feature: str) -> None:
    """What widens the engine's attack surface is refused before it is compiled, where nobody has asked for it."""
    forbidden, allowed = FEATURES[feature]

    with pytest.raises(InvalidModule):
        Sandbox("permissive").run(wat(f'(module {forbidden} (func (export "_start")))'))
    assert Sandbox().run(wat(f'(module {allowed} (func (export "_start")))')).ok


@pytest.mark.parametrize("feature", ["custom page sizes", "wide arithmetic", "stack switching"])
def test_proposals_are_not_called_damage(feature: str) -> None:
    """A sound module that needs a proposal is not "cut short or corrupt": fetching it again would not help."""
    with pytest.raises(InvalidModule) as caught:
        Sandbox().run(wat(f'(module {FEATURES[feature][0]} (func (export "_start")))'))

    assert "which this release cannot run: build it without" in str(caught.value)
    assert "damaged" not in str(caught.value)
    assert "cut short or corrupt" not in str(caught.value)


def test_multi_memory_needs_a_policy_that_allows_it() -> None:
    """Multi memory needs a policy that allows it."""
    module = wat('(module (memory 1) (memory 1) (func (export "_start")))')

    for changes, message in (
        ({"memories": 1}, "<bytes> has 2 memories; the policy allows 1 (limits.memories)"),
        ({"multi_memory": False}, "<bytes> has 2 memories; the policy allows one (features.multi_memory)"),
    ):
        with pytest.raises(InvalidModule) as caught:
            Sandbox(Policy().replace(**changes)).run(module)
        assert str(caught.value) == message
    assert Sandbox(Policy().replace(memories=2, multi_memory=True)).run(module).ok


def test_tables_are_limited_in_number() -> None:
    """Tables are limited in number."""
    with pytest.raises(InvalidModule) as caught:
        Sandbox().run(wat(f'(module {"(table 1 funcref)" * 5} (func (export "_start")))'))

    assert str(caught.value) == "<bytes> has 5 tables; the policy allows 4 (limits.tables)"
    assert Sandbox().run(wat(f'(module {"(table 1 funcref)" * 4} (func (export "_start")))')).ok


def test_large_file_is_refused_unread(tmp_path: Path) -> None:
    """The attack: a file of 100 MiB and a byte is read before it is refused. Memory stays flat."""
    path = tmp_path / "large.wasm"
    with path.open("wb") as file:
        file.truncate((100 << 20) + 1)
    script = (
        "import resource, sys, stockade\n"
        "stockade.Module\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    stockade.Module.load(sys.argv[1])\n"
        "except stockade.InvalidModule as problem:\n"
        "    print(problem)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60, check=True
    )

    message, grown = done.stdout.splitlines()
    assert message == f"{path} has 104,857,601 bytes; modules may have 104,857,600 (limits.module_size)"
    assert int(grown) < 4096  # KiB


def test_size_limit_is_exact(tmp_path: Path) -> None:
    """The limit itself is allowed, a byte more is not, for files and bytes."""
    padded = NOOP + section(0, b"\x01x" + b"\0" * 100)
    path = make_file("guest.wasm", padded)(tmp_path)
    exact = Sandbox(Policy().replace(module_size=len(padded)))
    less = Sandbox(Policy().replace(module_size=len(padded) - 1))

    assert exact.run(path).ok
    assert exact.run(padded).ok
    for source, name in ((path, str(path)), (padded, "the module")):
        with pytest.raises(InvalidModule) as caught:
            less.run(source)
        assert str(caught.value) == (
            f"{name} has {len(padded)} bytes; modules may have {len(padded) - 1} (limits.module_size)"
        )


@pytest.mark.parametrize("padding", [0, 90_000], ids=["short", "90 kB"])
def test_names_that_a_guest_chose_are_harmless_in_messages(padding: int) -> None:
    """The attack: names in imports and exports steer the terminal, forge lines or flood the log."""
    name = quoted((HOSTILE + "y" * padding).encode())
    asking = with_imports(f'(import "{name}" "{name}" (func))')
    ill_typed = wat(f'(module (func (export "{name}") (param i32)))')
    messages = []

    for action in (
        lambda: Sandbox().run(asking),
        lambda: Sandbox().run(ill_typed),
        lambda: Sandbox().call(ill_typed, "absent"),
        lambda: Sandbox().call(ill_typed, HOSTILE + "y" * padding),
        lambda: Sandbox().call(ill_typed, HOSTILE + "z" * padding),
    ):
        with pytest.raises(stockade.StockadeError) as caught:
            action()
        messages.append(str(caught.value))

    for message in messages:
        assert is_harmless(message)
        assert r"\x1b]0;pwned\x07\x0d\x0a\u202e\x9b31m" in message


@pytest.mark.parametrize("name", [HOSTILE.replace("/", "") + ".wasm", HOSTILE + "y" * 1_000_000], ids=["short", "1 MB"])
def test_names_of_files_are_harmless_in_messages(tmp_path: Path, name: str) -> None:
    """The attack: an upload's name steers the terminal of whoever runs it."""
    path = tmp_path / name
    if len(name) < 200:
        path.write_bytes(b"no module")
        command_output = command("run", path).stderr.decode()
        assert command_output == f"stockade: {printable(name)} is {IS_TEXT}\n"
        path.write_bytes(NOOP)
        report = stockade.run(path)
        assert report.ok
        assert is_harmless(report.module.name)
        assert is_harmless(repr(Module.load(path)))
        path.unlink()

    with pytest.raises(ModuleError) as caught:
        stockade.run(path)

    assert is_harmless(str(caught.value))
    assert r"\x1b]0;pwned\x07" in str(caught.value)


def test_neighbours_with_hostile_names_are_harmless(tmp_path: Path) -> None:
    """The attack: a file beside the missing one has a name that steers the terminal, and is suggested."""
    (tmp_path / "guest\x1b[31m.wasm").write_bytes(NOOP)

    with pytest.raises(ModuleNotFound) as caught:
        stockade.run(tmp_path / "guest.wasm")

    assert str(caught.value) == rf"no file at {tmp_path}/guest.wasm; did you mean guest\x1b[31m.wasm?"


def test_zero_byte_in_a_path_is_refused() -> None:
    """The attack: a path that the system would cut at the zero byte."""
    with pytest.raises(InvalidModule) as caught:
        Module.load("guest.wasm\0.txt")

    assert str(caught.value) == r"guest.wasm\x00.txt cannot be opened: it has a zero byte"


def test_a_hundred_thousand_exports_cost_nothing_at_run_time() -> None:
    """The attack: a module with very many exports makes every run slow."""
    count = 100_000
    names = b"".join(leb(len(name)) + name + b"\0\0" for name in (b"f%d" % number for number in range(count)))
    exports = leb(count + 1) + b"\x06_start\0\0" + names
    many = NOOP[:8] + section(1, b"\x01\x60\0\0") + section(3, b"\x01\0")
    many += section(7, exports) + section(10, b"\x01\x02\0\x0b")
    box = Sandbox()
    seconds: dict[str, list[float]] = {"few": [], "many": []}
    modules = {"few": Module.load(NOOP), "many": Module.load(many)}
    for module in modules.values():
        assert box.run(module).ok

    for _ in range(30):
        for name, module in modules.items():
            begun = time.thread_time()
            box.run(module)
            seconds[name].append(time.thread_time() - begun)

    assert len(modules["many"].exports) == count + 1
    assert box.call(modules["many"], "f99999").ok
    # Looking at all of them takes a hundred times as long.
    assert min(seconds["many"]) < 10 * min(seconds["few"])


def test_what_was_loaded_is_what_runs(tmp_path: Path) -> None:
    """The attack: the file is replaced after it was checked and before it is run."""
    path = tmp_path / "guest.wasm"
    first, second = (wat(f'(module (func (export "f") (result i32) i32.const {number}))').data for number in (1, 2))
    path.write_bytes(first)
    box = Sandbox()
    module = Module.load(path)

    path.write_bytes(second)

    assert box.call(module, "f").value == 1
    assert box.call(module, "f").module.sha256 == module.sha256 == Module.load(first).sha256
    assert box.call(path, "f").value == 2


def test_files_of_equal_size_and_time_are_told_apart(tmp_path: Path) -> None:
    """The attack: another module of the same size and time is taken for the one that was compiled."""
    path = tmp_path / "guest.wasm"
    box = Sandbox()
    values = []

    for number in (1, 2):
        path.write_bytes(wat(f'(module (func (export "f") (result i32) i32.const {number}))').data)
        os.utime(path, (1_000_000_000, 1_000_000_000))
        values.append(box.call(path, "f").value)

    assert values == [1, 2]


@pytest.mark.parametrize("load", [Module.load, stockade.run])
def test_the_text_format_as_text_is_told_to_be_bytes(load: Callable[[str], object]) -> None:
    """A text is a path, wherever a module is taken."""
    with pytest.raises(ModuleNotFound) as caught:
        load("(module)")
    assert str(caught.value) == "no file at (module): give WebAssembly text as bytes"
