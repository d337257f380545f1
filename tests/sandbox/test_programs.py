"""Real programs do under the guard what they do under native WASI, and no more than the policy lets them.

The oracle is native WASI through wasmtime's own Python package. To count calls without the guard it links two small
modules around the program: one in front, whose functions jump through a table, and one behind, which counts, borrows
the program's memory and calls native WASI.

Holds P-GUARD-1 and P-NATIVE-1.
"""

from __future__ import annotations

import struct
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import wasmtime

import stockade
from stockade import Mount, Outcome, Policy, Report, Sandbox
from stockade._wasi import MODULE, WASI_BY_NAME, WasiCall
from tests.conftest import program_path, wat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# Machine code is shared by all policies that meter fuel, so each program is compiled once for all of these tests.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("everywhere")]

POLICY = Policy().replace(fuel=100_000_000_000, wall_time=60.0, memory=512 << 20, delete=True, symlinks=True)

DRAWING = """<svg xmlns="http://www.w3.org/2000/svg" width="64" height="48" viewBox="0 0 64 48">
<defs><linearGradient id="g"><stop offset="0" stop-color="#f00"/><stop offset="1" stop-color="#00f"/></linearGradient>
</defs><rect x="4" y="4" width="40" height="30" rx="5" fill="url(#g)"/>
<circle cx="40" cy="28" r="14" fill="green" opacity="0.5"/>
<path d="M5 40 C 20 10, 40 60, 60 20" stroke="black" fill="none" stroke-width="2"/></svg>
"""


# -- the oracle -------------------------------------------------------------------------------------------------------


class Native(NamedTuple):
    """What a program did under native WASI; the exit code is None where it trapped."""

    stdout: bytes
    stderr: bytes
    exit_code: int | None
    calls: dict[str, int]


class NativeGuest(NamedTuple):
    """A live instance under native WASI."""

    store: wasmtime.Store
    exports: wasmtime.InstanceExports
    counters: wasmtime.InstanceExports
    names: tuple[str, ...]

    def call(self, name: str, *args: int) -> int:
        """Calls an exported function."""
        function = self.exports[name]
        assert isinstance(function, wasmtime.Func)
        return function(self.store, *args)

    def write_memory(self, address: int, data: bytes) -> None:
        """Copies bytes into its memory."""
        self._memory().write(self.store, data, address)

    def read_memory(self, address: int, size: int) -> bytes:
        """Copies bytes out of its memory."""
        return bytes(self._memory().read(self.store, address, address + size))

    def _memory(self) -> wasmtime.Memory:
        memory = self.exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        return memory

    def calls(self) -> dict[str, int]:
        """How often it made each WASI call."""
        counts = {}
        for name in self.names:
            counter = self.counters[f"count {name}"]
            assert isinstance(counter, wasmtime.Global)
            counts[name] = counter.value(self.store)
        return {name: count for name, count in counts.items() if count}


@pytest.fixture(scope="module", autouse=True)
def _no_native_code_is_left() -> Iterator[None]:
    """Lets go of the oracle's machine code while the interpreter is still whole."""
    yield
    for kept in (_front, _behind, _native_module, _engine):
        kept.cache_clear()


@cache
def _engine() -> wasmtime.Engine:
    return wasmtime.Engine(wasmtime.Config())


@cache
def _native_module(program: str) -> wasmtime.Module:
    return wasmtime.Module.from_file(_engine(), str(program_path(program)))


def _signature(call: WasiCall) -> str:
    return f"(param {' '.join(call.params)}) (result {' '.join(call.results)})"


def _arguments(call: WasiCall) -> str:
    return " ".join(f"(local.get {place})" for place in range(len(call.params)))


@cache
def _front(names: tuple[str, ...]) -> wasmtime.Module:
    functions = [
        f'(func (export "{name}") {_signature(WASI_BY_NAME[name])} '
        f"(call_indirect {_signature(WASI_BY_NAME[name])} {_arguments(WASI_BY_NAME[name])} (i32.const {slot})))"
        for slot, name in enumerate(names)
    ]
    return wasmtime.Module(_engine(), f'(module (table (export "table") {len(names)} funcref) {" ".join(functions)})')


@cache
def _behind(names: tuple[str, ...]) -> wasmtime.Module:
    natives = [f'(import "{MODULE}" "{name}" (func $native.{name} {_signature(WASI_BY_NAME[name])}))' for name in names]
    functions = [
        f'(global $count.{name} (export "count {name}") (mut i64) (i64.const 0))'
        f"(func ${name} {_signature(WASI_BY_NAME[name])}"
        f" (global.set $count.{name} (i64.add (global.get $count.{name}) (i64.const 1)))"
        f" (call $native.{name} {_arguments(WASI_BY_NAME[name])}))"
        for name in names
    ]
    return wasmtime.Module(
        _engine(),
        f'(module {" ".join(natives)} (import "guest" "memory" (memory 0))'
        f' (import "front" "table" (table {len(names)} funcref)) (export "memory" (memory 0))'
        f" {' '.join(functions)} (elem (i32.const 0) func {' '.join(f'${name}' for name in names)}))",
    )


def open_native(
    program: str,
    folder: Path,
    args: Sequence[str] = (),
    *,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    mounts: Sequence[Mount] = (),
) -> NativeGuest:
    """Makes an instance under native WASI, with its streams in files of a folder."""
    module = _native_module(program)
    names = tuple(dict.fromkeys(str(entry.name) for entry in module.imports))
    (folder / "stdin").write_bytes(stdin)
    wasi = wasmtime.WasiConfig()
    wasi.argv = ["main.wasm", *args]
    wasi.env = list((env or {}).items())
    wasi.stdin_file = str(folder / "stdin")
    wasi.stdout_file = str(folder / "stdout")
    wasi.stderr_file = str(folder / "stderr")
    for mount in mounts:
        wasi.preopen_dir(mount.host, mount.guest, mount.mode == "rw")
    store = wasmtime.Store(_engine())
    store.set_wasi(wasi)
    front = wasmtime.Instance(store, _front(names), []).exports(store)
    guest = wasmtime.Instance(store, module, [front[entry.name] for entry in module.imports]).exports(store)
    linker = wasmtime.Linker(_engine())
    linker.define_wasi()
    linker.define(store, "guest", "memory", guest["memory"])
    linker.define(store, "front", "table", front["table"])
    counters = linker.instantiate(store, _behind(names)).exports(store)
    return NativeGuest(store, guest, counters, names)


def run_native(
    program: str,
    folder: Path,
    args: Sequence[str] = (),
    *,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    mounts: Sequence[Mount] = (),
) -> Native:
    """Runs a command under native WASI."""
    guest = open_native(program, folder, args, stdin=stdin, env=env, mounts=mounts)
    exit_code: int | None = 0
    try:
        guest.call("_start")
    except wasmtime.ExitTrap as left:
        exit_code = left.code
    except wasmtime.Trap:
        exit_code = None
    calls = guest.calls()
    guest.store.close()
    return Native((folder / "stdout").read_bytes(), (folder / "stderr").read_bytes(), exit_code, calls)


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """All that is in a folder: the bytes of files, the targets of links, None for folders."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = None if path.is_dir() else path.read_bytes()
    return found


class Twins(NamedTuple):
    """One program under Stockade and under native WASI, and what each left in its folders."""

    report: Report
    native: Native
    files: dict[str, bytes | str | None]


@pytest.fixture
def run_both(tmp_path: Path, load_program: Callable[[str], stockade.Module]) -> Callable[..., Twins]:
    """Runs a program in both ways on equal input, and holds that everything about it is equal."""

    def run(
        program: str,
        args: Sequence[str] = (),
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes] | None = None,
        folders: Mapping[str, str] | None = None,
    ) -> Twins:
        here, there, streams = tmp_path / "guarded", tmp_path / "native", tmp_path / "streams"
        streams.mkdir()
        for root in (here, there):
            for folder in folders or {}:
                (root / folder.lstrip("/")).mkdir(parents=True)
            for name, data in (files or {}).items():
                (root / name.lstrip("/")).write_bytes(data)

        def mounts(root: Path) -> list[Mount]:
            return [Mount(str(root / guest.lstrip("/")), guest, mode) for guest, mode in (folders or {}).items()]

        module = load_program(program)
        report = Sandbox(POLICY.replace(mounts=mounts(here))).run(module, args, stdin=stdin, env=env)
        native = run_native(program, streams, args, stdin=stdin, env=env, mounts=mounts(there))

        assert report.stdout == native.stdout
        assert report.stderr == native.stderr
        assert report.exit_code == native.exit_code
        left = tree(here) if folders else {}
        assert left == (tree(there) if folders else {})
        assert report.usage.calls == native.calls
        assert sum(report.usage.calls.values()) > 0
        assert set(report.usage.calls) <= {entry.name for entry in module.imports}
        # Nothing is refused but what native WASI refuses itself: writing to a read-only folder, leaving a mount.
        assert {found.kind for found in report.violations} <= {"path"}
        return Twins(report, native, left)

    return run


# -- drawings ---------------------------------------------------------------------------------------------------------


def test_resvg_renders_what_it_renders_natively(run_both: Callable[..., Twins]) -> None:
    """A file in a folder is read and another written: byte for byte the same image, call for call the same work."""
    twins = run_both(
        "resvg", ["/work/in.svg", "/work/out.png"], files={"/work/in.svg": DRAWING.encode()}, folders={"/work": "rw"}
    )

    image = twins.files["work/out.png"]
    assert isinstance(image, bytes)
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", image[16:24]) == (64, 48)
    usage = twins.report.usage
    assert twins.report.outcome is Outcome.OK
    assert (usage.read_bytes, usage.written_bytes) == (len(DRAWING), len(image))
    assert (usage.files_opened, usage.files_created, usage.files_open_peak) == (2, 1, 1)


def test_resvg_fails_as_it_fails_natively(run_both: Callable[..., Twins]) -> None:
    """A file that is not there, and a folder that may only be read: its own words, its own exit code."""
    twins = run_both("resvg", ["/work/none.svg", "/work/out.png"], folders={"/work": "ro"})

    assert twins.report.outcome is Outcome.EXIT
    assert twins.report.exit_code == 1
    assert twins.report.stderr == b"Error: failed to open the provided file.\n"
    assert twins.files == {"work": None}


def test_resvg_cannot_write_where_it_may_only_read(run_both: Callable[..., Twins]) -> None:
    """The attack: output into a read-only folder. Natively and under the guard nothing is left there."""
    twins = run_both(
        "resvg", ["/work/in.svg", "/work/out.png"], files={"/work/in.svg": DRAWING.encode()}, folders={"/work": "ro"}
    )

    assert twins.report.outcome is Outcome.EXIT
    assert twins.files == {"work": None, "work/in.svg": DRAWING.encode()}
    assert twins.report.usage.files_created == 0


def test_resvg_says_its_version(run_both: Callable[..., Twins]) -> None:
    """A program without files, that leaves by an explicit exit."""
    twins = run_both("resvg", ["--version"])

    assert twins.report.stdout.count(b".") == 2
    assert twins.report.usage.calls["proc_exit"] == 1


def test_usvg_reads_stdin_and_writes_stdout(run_both: Callable[..., Twins]) -> None:
    """A filter: a drawing in, a simpler one out, no folder at all."""
    twins = run_both("usvg", ["-", "-c"], stdin=DRAWING.encode())

    assert twins.report.outcome is Outcome.OK
    assert b"<path" in twins.report.stdout
    assert b"<rect" not in twins.report.stdout
    assert twins.report.usage.stdout_bytes == len(twins.report.stdout)
    assert (twins.report.usage.read_bytes, twins.report.usage.files_opened) == (0, 0)


def test_usvg_refuses_what_is_no_drawing(run_both: Callable[..., Twins]) -> None:
    """Binary data on stdin: an error of the program's own."""
    twins = run_both("usvg", ["-", "-c"], stdin=bytes(range(256)))

    assert twins.report.outcome is Outcome.EXIT
    assert twins.report.stdout == b""
    assert twins.report.stderr.startswith(b"Error: ")


def test_svg_flatten_takes_what_usvg_made(run_both: Callable[..., Twins], tmp_path: Path) -> None:
    """Three folders at once, one of them in the place of a device that the program asks for randomness."""
    simple = run_native("usvg", tmp_path, ["-", "-c"], stdin=DRAWING.encode()).stdout

    twins = run_both(
        "svg-flatten",
        ["--no-usvg", "/work/in.svg", "/work/out.gbr"],
        files={"/work/in.svg": simple, "/dev/urandom": bytes(range(256))},
        folders={"/work": "rw", "/dev": "ro", "/tmp": "rw"},
    )

    assert twins.report.outcome is Outcome.OK
    drawn = twins.files["work/out.gbr"]
    assert isinstance(drawn, bytes)
    assert drawn.startswith(b"%FSLAX46Y46*%\n%MOMM*%\n")
    assert drawn.endswith(b"M02*\n")
    assert twins.report.usage.read_bytes > len(simple)


def test_svg_flatten_aborts_as_it_aborts_natively(run_both: Callable[..., Twins]) -> None:
    """A program that traps by itself: the trap is told as one, and what it said before is kept."""
    twins = run_both(
        "svg-flatten",
        ["--no-usvg", "/work/in.svg", "/work/out.gbr"],
        files={"/work/in.svg": DRAWING.encode()},
        folders={"/work": "rw"},
    )

    assert twins.report.outcome is Outcome.TRAP
    assert twins.report.trap is not None
    assert twins.report.trap.code == "unreachable"
    assert [frame.function for frame in twins.report.trap.frames][:1] == ["abort"]
    assert twins.report.stderr == b"Error getting random data for temporary file name\n"


# -- reactors: sessions -----------------------------------------------------------------------------------------------


class _Guarded(NamedTuple):
    """A session with the interface of `NativeGuest`, that adds up what its reports count."""

    session: stockade.Session
    counts: dict[str, int]
    output: list[bytes]

    def call(self, name: str, *args: int) -> int:
        report = self.session.call(name, *args).check()
        for call, count in report.usage.calls.items():
            self.counts[call] = self.counts.get(call, 0) + count
        self.output.append(report.stdout)
        assert report.value is None or isinstance(report.value, int)
        return report.value or 0

    def write_memory(self, address: int, data: bytes) -> None:
        self.session.write_memory(address, data)

    def read_memory(self, address: int, size: int) -> bytes:
        return self.session.read_memory(address, size)

    def calls(self) -> dict[str, int]:
        return self.counts


def _put(guest: NativeGuest | _Guarded, data: bytes) -> int:
    """Copies bytes into room that the guest gave for them."""
    address = guest.call("malloc", len(data))
    guest.write_memory(address, data)
    return address


def _javascript(guest: NativeGuest | _Guarded, code: str) -> int:
    """Lets QuickJS evaluate code, given as its command line; returns 0 if it went well."""
    arguments = [_put(guest, text.encode() + b"\0") for text in ("qjs", "-e", code)]
    return guest.call("qjs_init_argv", 3, _put(guest, struct.pack("<4I", *arguments, 0)))


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ('print([1, 2, 3].map(x => x * x).join(","), 6 * 7)', b"1,4,9 42\n"),
        ('let s = ""; for (let i = 0; i < 3000; i++) s += i; print(s.length, BigInt(2) ** 100n)', None),
        ("print(JSON.stringify({ käse: [1.5, null, true] }))", '{"käse":[1.5,null,true]}\n'.encode()),
    ],
)
def test_quickjs_computes_what_it_computes_natively(
    code: str, output: bytes | None, load_program: Callable[[str], stockade.Module], tmp_path: Path
) -> None:
    """A reactor, initialized first, whose memory the host writes to between calls of one session."""
    native = open_native("quickjs", tmp_path)
    native.call("_initialize")
    before = native.calls()
    assert _javascript(native, code) == 0
    calls = {name: count - before.get(name, 0) for name, count in native.calls().items()}
    native.store.close()

    with Sandbox(POLICY).open(load_program("quickjs")) as session:
        guest = _Guarded(session, {}, [])
        assert _javascript(guest, code) == 0
        assert guest.call("qjs_get_context") != 0

    printed = b"".join(guest.output)
    assert printed == (tmp_path / "stdout").read_bytes()
    assert output is None or printed == output
    assert guest.calls() == {name: count for name, count in calls.items() if count}
    assert guest.counts["fd_write"] > 0


def test_quickjs_keeps_its_heap_between_calls(load_program: Callable[[str], stockade.Module]) -> None:
    """What a session wrote is there at the next call, and in no other session."""
    box = Sandbox(POLICY)
    module = load_program("quickjs")
    with box.open(module) as session, box.open(module) as other:
        address = _put(_Guarded(session, {}, []), b"a secret of one tenant")
        assert _put(_Guarded(other, {}, []), b"x") == address, "the same place in another instance"
        session.call("malloc", 64).check()
        assert session.read_memory(address, 22) == b"a secret of one tenant"
        assert b"secret" not in other.read_memory(address, 22)


def _drawn(guest: NativeGuest | _Guarded, dot: str) -> tuple[bytes, bytes]:
    """Lets Graphviz draw; returns the drawing, and the error where there is none."""
    size = _put(guest, b"\0" * 4)
    texts = [_put(guest, text.encode() + b"\0") for text in (dot, "svg", "dot")]
    drawing = guest.call("graphviz_render", *texts, size)
    if not drawing:
        return b"", guest.read_memory(guest.call("graphviz_last_error"), 64).split(b"\0")[0]
    return guest.read_memory(drawing, struct.unpack("<I", guest.read_memory(size, 4))[0]), b""


def test_graphviz_draws_what_it_draws_natively(load_program: Callable[[str], stockade.Module], tmp_path: Path) -> None:
    """Exported functions of a command, called one after the other in one instance; an error does not end it."""
    native = open_native("graphviz", tmp_path)
    with Sandbox(POLICY).open(load_program("graphviz")) as session:
        guarded = _Guarded(session, {}, [])
        for dot in ("digraph { a -> b -> c; a -> c }", "graph { x -- y }"):
            drawing, _ = _drawn(guarded, dot)
            assert b"<svg" in drawing
            assert drawing == _drawn(native, dot)[0]
        assert _drawn(guarded, "digraph { a -> ") == _drawn(native, "digraph { a -> ")
        assert _drawn(guarded, "digraph { a -> ")[1] == b"Failed to parse DOT source"
        _drawn(native, "digraph { a -> ")
        assert guarded.calls() == native.calls()
    native.store.close()


def test_graphviz_runs_as_a_command(run_both: Callable[..., Twins]) -> None:
    """Its `_start` does nothing but begin and end."""
    assert run_both("graphviz").report.outcome is Outcome.OK


# -- CPython ----------------------------------------------------------------------------------------------------------


def _python(report: Report) -> str:
    assert report.stderr == b""
    assert report.outcome is Outcome.OK
    return report.stdout.decode()


def test_cpython_computes_what_it_computes_natively(run_both: Callable[..., Twins]) -> None:
    """Imports of the standard library out of the module's own files, text, numbers, an exception caught."""
    code = """
import json, hashlib, re, decimal
print(json.dumps({"sum": sum(range(1000)), "text": "käse"}, ensure_ascii=False))
print(hashlib.sha256(b"stockade").hexdigest(), re.findall(r"[0-9]+", "a1b22"), decimal.Decimal(1) / 7)
try: 1 / 0
except ZeroDivisionError as problem: print(problem)
"""
    twins = run_both("python", ["-c", code])

    assert _python(twins.report).splitlines()[0] == '{"sum": 499500, "text": "käse"}'
    assert twins.report.exit_code == 0


def test_cpython_works_in_a_folder_as_it_does_natively(run_both: Callable[..., Twins]) -> None:
    """Files made, appended to, read, renamed, linked and removed: equal trees, and counted."""
    code = """
import os, pathlib
work = pathlib.Path("/work")
(work / "a" / "b").mkdir(parents=True)
(work / "a" / "one.bin").write_bytes(bytes(range(256)) * 40)
with open("/work/two.txt", "w") as file: file.write("two\\n" * 1000)
with open("/work/two.txt", "a") as file: file.write("more")
with open("/work/two.txt", "r+") as file:
    file.seek(4); file.write("TWO"); file.truncate(100)
os.rename("/work/two.txt", "/work/a/b/deux.txt")
os.link("/work/a/one.bin", "/work/hard")
(work / "gone").write_text("x"); (work / "gone").unlink()
(work / "empty").mkdir(); (work / "empty").rmdir()
print(sorted(os.listdir("/work")), os.stat("/work/a/one.bin").st_size, (work / "in.txt").read_text())
"""
    twins = run_both("python", ["-c", code], files={"/work/in.txt": b"given"}, folders={"/work": "rw"})

    assert _python(twins.report) == "['a', 'hard', 'in.txt'] 10240 given\n"
    assert twins.files["work/a/b/deux.txt"] == (b"two\nTWO\n" + b"two\n" * 1000)[:100]
    assert twins.files["work/hard"] == bytes(range(256)) * 40
    usage = twins.report.usage
    assert usage.files_created == 7, "three folders, three files and a link"
    assert usage.files_deleted == 2
    assert usage.written_bytes == 10_240 + 4_000 + 4 + 3 + 1


def test_cpython_reads_a_read_only_folder(run_both: Callable[..., Twins]) -> None:
    """A file is read; every way to change something there is an OSError, and nothing changes.

    The attack: create, truncate, append, remove, rename, link and change times in a folder mounted for reading.
    """
    code = """
import os
print(open("/data/x.txt").read())
for change in (
    lambda: open("/data/y.txt", "w"), lambda: open("/data/x.txt", "w"), lambda: open("/data/x.txt", "a"),
    lambda: open("/data/x.txt", "r+"), lambda: os.open("/data/x.txt", os.O_RDONLY | os.O_TRUNC),
    lambda: os.remove("/data/x.txt"), lambda: os.rename("/data/x.txt", "/data/z.txt"), lambda: os.mkdir("/data/d"),
    lambda: os.rename("/data/x.txt", "/work/z.txt"), lambda: os.link("/data/x.txt", "/work/hard"),
    lambda: os.symlink("x.txt", "/data/soft"), lambda: os.utime("/data/x.txt", (1, 1)),
    lambda: os.truncate("/data/x.txt", 1),
):
    try: change()
    except OSError as problem: print(type(problem).__name__)
    else: print("DONE")
open("/work/y.txt", "w").write("here it works")
"""
    twins = run_both(
        "python",
        ["-c", code],
        files={"/data/x.txt": b"read me"},
        folders={"/data": "ro", "/work": "rw"},
    )

    lines = _python(twins.report).splitlines()
    assert lines[0] == "read me"
    assert len(lines) == 14
    assert "DONE" not in lines
    assert twins.files == {
        "data": None,
        "data/x.txt": b"read me",
        "work": None,
        "work/y.txt": b"here it works",
    }


def test_cpython_sees_nothing_of_the_host(
    python: stockade.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No path, name or variable of the host is in anything that a guest can list.

    The attack: list every folder there is, above the mounts too, follow links that lead out of a mount, and print
    arguments, environment, search path and the name of the machine.
    """
    monkeypatch.setenv("STOCKADE_TEST_TOKEN", "hunter2")
    folder = tmp_path / "a-name-that-only-the-host-knows"
    folder.mkdir()
    (folder / "x.txt").write_text("visible")
    (tmp_path / "outside.txt").write_text("invisible")
    (folder / "out").symlink_to(tmp_path)
    (folder / "up").symlink_to("../outside.txt")
    (folder / "etc").symlink_to("/etc")
    (folder / "within").symlink_to("x.txt")
    code = """
import os, sys
for place in ("/", "..", ".", "/..", "/data", "/data/..", "/data/out", "/data/etc", "/etc", "/proc", "/tmp", "/home"):
    try: print(place, sorted(os.listdir(place)))
    except OSError as problem: print(place, "no", type(problem).__name__)
for place in ("/etc/passwd", "/data/etc/passwd", "/data/up", "/data/../outside.txt", "/data/out/outside.txt",
              "../outside.txt", "/proc/self/environ", "/data/x.txt", "/data/within"):
    try: print(place, open(place).read())
    except OSError as problem: print(place, "no", type(problem).__name__)
for root, folders, files in os.walk("/usr"):
    if root.count("/") < 4: print(root, folders, files[:3])
print(sys.argv, sys.orig_argv, sys.path, sys.executable, dict(os.environ), os.getcwd())
print(os.uname() if hasattr(os, "uname") else "")
"""

    report = Sandbox(POLICY.replace(mounts=[Mount(str(folder), "/data", "rw")])).run(python, ["-c", code])

    listed = _python(report)
    lines = dict(line.split(" ", 1) for line in listed.splitlines() if line.startswith(("/", ".")))
    assert lines["/data"] == "['etc', 'out', 'up', 'within', 'x.txt']"
    assert (lines["/data/x.txt"], lines["/data/within"]) == ("visible", "visible")
    for place in ("/etc/passwd", "/data/etc/passwd", "/data/up", "/data/../outside.txt", "../outside.txt"):
        assert lines[place].startswith("no "), place
    for place in ("/data/..", "/data/out", "/data/etc", "/etc", "/proc", "/tmp", "/home", "/data/out/outside.txt"):
        assert lines[place].startswith("no "), place
    assert not any("passwd" in answer for answer in lines.values())
    host_paths = [str(path) for path in (Path.home(), Path.cwd(), program_path("python").parent) if path.parent != path]
    own_names = [part for part in tmp_path.parts[2:] if len(part) > 4]
    for secret in (*host_paths, *own_names, folder.name, program_path("python").name, "invisible", "hunter2", "root:"):
        assert secret not in listed


def test_cpython_gets_the_environment_it_is_given(run_both: Callable[..., Twins]) -> None:
    """Arguments and variables arrive as they are, empty ones, long ones and non-ASCII ones too."""
    code = "import os, sys; print(sys.argv[1:], sorted(os.environ.items()))"
    args = ["", "a b", "käse", "-x", "y" * 5000]
    env = {"EMPTY": "", "NAME": "wert=mit=zeichen", "ÜBER": "ß"}

    twins = run_both("python", ["-c", code, *args], env=env)

    assert _python(twins.report) == f"{args} {sorted(env.items())}\n"


@pytest.mark.parametrize("code", [0, 1, 3, 125, 126, 127, 134, 200, 255])
def test_cpython_leaves_with_its_exit_code(code: int, python: stockade.Module) -> None:
    """Codes of 126 and above are the guest's own too, with what it printed before."""
    report = Sandbox(POLICY).run(python, ["-c", f"import sys; print('last words'); sys.exit({code})"])

    assert report.exit_code == code
    assert report.outcome is (Outcome.EXIT if code else Outcome.OK)
    assert report.stdout == b"last words\n"
    assert report.trap is None


def test_every_exit_code_is_told_as_it_is() -> None:
    """All 256 of them, by the smallest of guests; returning is leaving with none."""
    module = wat(f"""
      (module
        (import "{MODULE}" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func (export "leave") (param i32) (call $exit (local.get 0)))
        (func (export "return")))
    """)
    box = Sandbox()

    for code in range(256):
        report = box.call(module, "leave", code)
        assert (report.exit_code, report.outcome) == (code, Outcome.EXIT if code else Outcome.OK)
        assert report.usage.calls == {"proc_exit": 1}
    assert box.call(module, "return").exit_code is None


def test_cpython_that_raises_says_so_on_stderr(run_both: Callable[..., Twins]) -> None:
    """An exception nobody catches: a traceback on stderr and exit code 1, as natively."""
    twins = run_both("python", ["-c", "print('before'); raise ValueError('no')"])

    assert (twins.report.outcome, twins.report.exit_code) == (Outcome.EXIT, 1)
    assert twins.report.stdout == b"before\n"
    assert twins.report.stderr.endswith(b"ValueError: no\n")


def test_cpython_echoes_its_stdin(python: stockade.Module) -> None:
    """Bytes of every value arrive and return unchanged, and nothing else is on stdin or stdout."""
    data = bytes(range(256)) * 1000
    code = (
        "import sys; data = sys.stdin.buffer.read(); sys.stdout.buffer.write(data); print(len(data), file=sys.stderr)"
    )
    box = Sandbox(POLICY)

    report = box.run(python, ["-c", code], stdin=data)
    silent = box.run(python, ["-c", code])

    assert (report.stdout, report.stderr) == (data, b"256000\n")
    assert (silent.stdout, silent.stderr) == (b"", b"0\n")


def test_cpython_reads_its_program_from_stdin(run_both: Callable[..., Twins]) -> None:
    """A script without a file."""
    twins = run_both("python", ["-"], stdin=b"import math\nprint(math.factorial(30))\n")

    assert _python(twins.report) == "265252859812191058636308480000000\n"


_LOOP = "print('on my way', flush=True)\nwhile True: pass"


def test_cpython_in_an_endless_loop_is_stopped_by_fuel(python: stockade.Module) -> None:
    """The attack is a loop that never yields. With enough fuel the same interpreter finishes."""
    fuel = 400_000_000
    box = Sandbox(POLICY.replace(fuel=fuel))

    report = box.run(python, ["-c", _LOOP])

    assert report.outcome is Outcome.FUEL
    assert report.stdout == b"on my way\n"
    assert report.exit_code is None
    assert report.usage.fuel is not None
    assert report.usage.fuel >= fuel
    assert [(found.kind, found.limit, found.action) for found in report.violations] == [("fuel", fuel, "stop")]
    assert box.run(python, ["-c", "print(1)"]).ok


@pytest.mark.parametrize(
    "code",
    [
        _LOOP,
        "print('on my way', flush=True)\nimport time; time.sleep(3600)",
        "print('on my way', flush=True)\ntry:\n import time; time.sleep(3600)\nfinally: print('never')",
    ],
    ids=["loop", "sleep", "sleep with a last word"],
)
def test_cpython_is_stopped_by_the_clock(code: str, python: stockade.Module) -> None:
    """The attack is to compute, or to sleep for an hour inside native WASI, past the deadline."""
    box = Sandbox(POLICY.replace(wall_time=2.5))
    begun = time.monotonic()

    report = box.run(python, ["-c", code])

    assert time.monotonic() - begun < 60
    assert report.outcome is Outcome.TIMEOUT
    assert report.stdout == b"on my way\n"
    assert 2.5 <= report.usage.wall_seconds < 60
    assert [(found.kind, found.limit, found.action) for found in report.violations] == [("timeout", 2.5, "stop")]


def test_cpython_that_sleeps_a_little_finishes(python: stockade.Module) -> None:
    """The positive twin: a short sleep takes its time, which is told apart from computing."""
    report = Sandbox(POLICY).run(python, ["-c", "import time; time.sleep(0.05); print('awake')"])

    assert _python(report) == "awake\n"
    assert 0.05 <= report.usage.idle_seconds <= report.usage.wall_seconds
    assert report.usage.calls["poll_oneoff"] == 1


def test_cpython_that_takes_too_much_memory_is_told_so(python: stockade.Module) -> None:
    """Refused growth is a violation, and for the guest a MemoryError that it may catch."""
    code = "try: bytearray(1 << 30)\nexcept MemoryError: print('refused')\nprint(len(bytearray(1 << 20)))"

    report = Sandbox(POLICY.replace(memory=128 << 20)).run(python, ["-c", code])

    assert _python(report) == "refused\n1048576\n"
    assert [(found.kind, found.limit, found.call) for found in report.violations] == [
        ("memory", 128 << 20, "memory.grow")
    ]
    assert report.usage.memory_peak_bytes <= 128 << 20
