"""A guest that makes any WASI call with any arguments, over the guard and over native WASI, for comparing both.

The script stands in a memory of its own, which no WASI call can reach. The memory that the calls are about may so be of
any size, and every address of it may be given to them.
"""

from __future__ import annotations

import atexit
import ctypes
import shutil
import struct
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import wasmtime
from wasmtime import _bindings as ffi

import stockade
from stockade._wasi import MODULE, WASI, WASI_BY_NAME
from stockade.policy import Features, Filesystem, Limits, Mount, Policy, Wasi
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PAGE = 1 << 16
MOST_PAGES = 1 << 16
STDIN = b"what stands in standard input"
ARGUMENTS = ("one", "two words")
ENVIRONMENT = {"NAME": "value", "OTHER": ""}
PROGRAM = "main.wasm"

_QUICK = Path("/dev/shm")
"""Where there is this, folders are made and removed quickly."""

_SCRIPT_PAGES = 16
_MOST_ARGUMENTS = 9
_CALL = struct.Struct(f"<q{_MOST_ARGUMENTS}Q")
_ERRNOS = 0x10
_CALLS = 0x1000
_BLOCKS = 0x8000
_UNMADE = 0xFFFF_FFFF
_SEEN_BYTES = 2 * PAGE
"""How much of each end of a large memory is compared."""


class Step(NamedTuple):
    """A call, and what stands in memory for it.

    Attributes:
        name: The WASI call.
        arguments: Its arguments.
        blocks: What is written into memory before the script begins: addresses and bytes.
        volatile: Where the call may put what differs from run to run: addresses and lengths.
    """

    name: str
    arguments: tuple[int, ...]
    blocks: tuple[tuple[int, bytes], ...] = ()
    volatile: tuple[tuple[int, int], ...] = ()


class Shape(NamedTuple):
    """What the guest is like.

    Attributes:
        pages: The pages of its memory.
        first: Whether that is its first memory, and the script's the second. The largest one leaves room for no second:
            the script then stands in the middle of it.
        export: The name under which the memory is exported; native WASI finds it under `memory` only.
    """

    pages: int = 1
    first: bool = False
    export: str | None = "memory"

    @property
    def alone(self) -> bool:
        """Whether there is room for no second memory."""
        return self.pages == MOST_PAGES

    @property
    def script(self) -> str:
        """The name of the memory that holds the script."""
        return self.export or "" if self.alone else "script"

    @property
    def base(self) -> int:
        """Where in it the script stands."""
        return 1 << 30 if self.alone else 0


@cache
def player_text(shape: Shape) -> str:
    """The guest as text."""
    imports, wrappers = [], []
    for call in WASI:
        params = f"(param {' '.join(call.params)})" if call.params else ""
        result = "(result i32)" if call.results else ""
        imports.append(f'(import "{MODULE}" "{call.name}" (func ${call.name} {params} {result}))')
        loads = " ".join(
            f"({type_}.load $script offset={8 + 8 * place} (local.get $call))"
            for place, type_ in enumerate(call.params)
        )
        after = "" if call.results else "(i32.const 0)"
        wrappers.append(f"(func $play_{call.name} (param $call i32) (result i32) (call ${call.name} {loads}) {after})")
    # No table: it would count as memory, of which the largest guest leaves none.
    choose = f"(br_table {' '.join(map(str, range(len(WASI))))} (i32.load $script (local.get $call)))"
    for call in WASI:
        choose = f"(block {choose}) (return (call $play_{call.name} (local.get $call)))"
    export = f'(export "{shape.export}")' if shape.export is not None else ""
    guest = f"(memory $guest {export} {shape.pages})"
    script = "" if shape.alone else f'(memory $script (export "script") {_SCRIPT_PAGES})'
    text = f"""
    (module
      {"".join(imports)}
      {guest + script if shape.first else script + guest}
      {"".join(wrappers)}
      (func $make (param $call i32) (result i32) {choose} (unreachable))
      ;; Each block is an address, a length and its bytes.
      (func (export "furnish") (param $block i32) (param $count i32)
        (local $size i32)
        (block $done
          (loop $next
            (br_if $done (i32.eqz (local.get $count)))
            (local.set $size (i32.load $script offset=4 (local.get $block)))
            (memory.copy $guest $script (i32.load $script (local.get $block))
              (i32.add (local.get $block) (i32.const 8)) (local.get $size))
            (local.set $block (i32.add (i32.add (local.get $block) (i32.const 8)) (local.get $size)))
            (local.set $count (i32.sub (local.get $count) (i32.const 1)))
            (br $next))))
      (func (export "play") (param $call i32) (param $errno i32) (param $count i32)
        (block $done
          (loop $next
            (br_if $done (i32.eqz (local.get $count)))
            (i32.store $script (local.get $errno)
              (call $make (local.get $call)))
            (local.set $call (i32.add (local.get $call) (i32.const {_CALL.size})))
            (local.set $errno (i32.add (local.get $errno) (i32.const 4)))
            (local.set $count (i32.sub (local.get $count) (i32.const 1)))
            (br $next)))))
    """
    return text.replace("$script", "$guest") if shape.alone else text


class Outcome(NamedTuple):
    """What can be seen of a run.

    Attributes:
        errnos: Of each call that returned.
        trapped: Whether the next one trapped.
        memory: Both ends of the guest's memory, without what is volatile.
        files: What stands in the folders: by name, what it is.
        stdout: What was written to stdout.
        stderr: What was written to stderr.
    """

    errnos: list[int]
    trapped: bool
    memory: bytes
    files: dict[str, object]
    stdout: bytes
    stderr: bytes

    @property
    def ends(self) -> list[int | None]:
        """How each call ended: with an errno, or None for a trap."""
        return [*self.errnos, *([None] if self.trapped else [])]

    def read(self, shape: Shape, at: int, size: int) -> bytes | None:
        """Bytes of memory; None where they are outside of it, or of what was kept."""
        for kept, (begin, end) in zip(
            (self.memory[: len(self.memory) // 2], self.memory[len(self.memory) // 2 :]), _parts(shape), strict=True
        ):
            if begin <= at and at + size <= end:
                return kept[at - begin :][:size]
        return None


def furnish(place: Path) -> None:
    """What every script finds: two folders to be mounted, and something beside them."""
    for name in ("rw", "ro"):
        folder = place / name
        (folder / "d" / "e").mkdir(parents=True)
        (folder / "a").write_bytes(b"hello, this is a")
        (folder / "d" / "a").write_bytes(b"another")
        (folder / "b").hardlink_to(folder / "a")
        for link, target in (
            ("ln", "a"), ("dl", "d"), ("dang", "made"), ("loop", "loop"), ("out", "../outside"), ("abs", "/etc"),
        ):  # fmt: skip
            (folder / link).symlink_to(target)
    (place / "outside").write_bytes(b"nobody reads this")


def tree(place: Path) -> dict[str, object]:
    """What stands in a folder: links by their target, files by size, bytes and names, folders by None."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_file():
            stat = path.stat()
            # A file may be said to be larger than any memory.
            with path.open("rb") as file:
                found[name] = (stat.st_size, file.read(_SEEN_BYTES), stat.st_nlink)
        else:
            found[name] = None
    return found


def _encode(steps: Sequence[Step]) -> tuple[bytes, bytes, int]:
    """The calls, the blocks, and how many blocks there are."""
    calls = b"".join(
        _CALL.pack(
            WASI_BY_NAME[step.name].number,
            *(argument & (1 << 64) - 1 for argument in step.arguments),
            *[0] * (_MOST_ARGUMENTS - len(step.arguments)),
        )
        for step in steps
    )
    blocks = [
        struct.pack("<II", *block) + data for step in steps for at, data in step.blocks for block in [(at, len(data))]
    ]
    assert len(calls) <= _BLOCKS - _CALLS
    assert 4 * len(steps) <= _CALLS - _ERRNOS
    assert sum(map(len, blocks)) <= _SCRIPT_PAGES * PAGE - _BLOCKS
    return calls, b"".join(blocks), len(blocks)


def _errnos(steps: Sequence[Step], raw: bytes) -> list[int]:
    found = list(struct.unpack(f"<{len(steps)}I", raw))
    return found[: found.index(_UNMADE)] if _UNMADE in found else found


def _without_volatile(steps: Sequence[Step], shape: Shape, low: bytes, high: bytes) -> bytes:
    """Both ends of memory, with zeros where the steps have put what differs from run to run."""
    size = shape.pages * PAGE
    ends = [(0, bytearray(low)), (size - len(high), bytearray(high))]
    for step in steps:
        for at, length in step.volatile:
            for begin, kept in ends:
                first, last = max(at - begin, 0), min(at + length - begin, len(kept))
                if first < last:
                    kept[first:last] = bytes(last - first)
    return bytes(ends[0][1] + ends[1][1])


def _parts(shape: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
    size = shape.pages * PAGE
    seen = min(size, _SEEN_BYTES)
    return (0, seen), (size - seen, size)


def _policy(place: str, limits: Limits) -> Policy:
    return Policy(
        limits=limits,
        filesystem=Filesystem(
            mounts=(Mount(f"{place}/rw", "/", "rw"), Mount(f"{place}/ro", "/ro", "ro")),
            create=True,
            delete=True,
            symlinks=True,
        ),
        wasi=Wasi(deny=()),
        features=Features(multi_memory=True),
    )


@cache
def _guarded(shape: Shape) -> stockade.Module:
    return wat(player_text(shape))


def _play_guarded(steps: Sequence[Step], shape: Shape, place: Path, limits: Limits) -> Outcome:
    calls, blocks, count = _encode(steps)
    with stockade.Sandbox(_policy(str(place), limits)).open(
        _guarded(shape), ARGUMENTS, stdin=STDIN, env=ENVIRONMENT
    ) as session:
        instance = session._guest._instance
        assert instance is not None
        script, base = instance.memory(shape.script.encode()), shape.base
        for at, data in ((_CALLS, calls), (_ERRNOS, b"\xff" * 4 * len(steps)), (_BLOCKS, blocks)):
            script.write(base + at, data)
        assert session.call("furnish", base + _BLOCKS, count).ok
        report = session.call("play", base + _CALLS, base + _ERRNOS, len(steps))
        trapped = report.outcome is stockade.Outcome.TRAP
        assert trapped or report.ok, report
        errnos = _errnos(steps, script.read(base + _ERRNOS, 4 * len(steps)))
        memory = b""
        if shape.export is not None:
            guest = instance.memory(shape.export.encode())
            low, high = (guest.read(begin, end - begin) for begin, end in _parts(shape))
            memory = _without_volatile(steps, shape, low, high)
    return Outcome(errnos, trapped, memory, tree(place), report.stdout, report.stderr)


@cache
def _native(shape: Shape) -> tuple[wasmtime.Engine, wasmtime.Module, wasmtime.Linker]:
    config = wasmtime.Config()
    config.wasm_multi_memory = True
    engine = wasmtime.Engine(config)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    return engine, wasmtime.Module(engine, player_text(shape)), linker


def forget_native() -> None:
    """Frees the native engines, before the interpreter is torn down."""
    _native.cache_clear()


def _play_native(steps: Sequence[Step], shape: Shape, place: Path) -> Outcome:
    calls, blocks, count = _encode(steps)
    base = shape.base
    engine, module, linker = _native(shape)
    config = wasmtime.WasiConfig()
    config.argv = (PROGRAM, *ARGUMENTS)
    config.env = list(ENVIRONMENT.items())
    config.preopen_dir(str(place / "rw"), "/", True)
    config.preopen_dir(str(place / "ro"), "/ro", False)
    output = {"stdout": b"", "stderr": b""}
    with tempfile.TemporaryDirectory() as kept:
        config.stdout_file = f"{kept}/stdout"
        config.stderr_file = f"{kept}/stderr"
        given = ffi.wasm_byte_vec_t()
        # SAFETY: the library copies bytes that live through the call, and the configuration owns the copy.
        ffi.wasm_byte_vec_new(ctypes.byref(given), len(STDIN), (ctypes.c_ubyte * len(STDIN))(*STDIN))
        ffi.wasi_config_set_stdin_bytes(config.ptr(), ctypes.byref(given))
        store = wasmtime.Store(engine)
        store.set_wasi(config)
        exports = linker.instantiate(store, module).exports(store)
        script, guest = exports[shape.script], exports["memory"]
        furnish_, play = exports["furnish"], exports["play"]
        assert isinstance(script, wasmtime.Memory)
        assert isinstance(guest, wasmtime.Memory)
        assert isinstance(furnish_, wasmtime.Func)
        assert isinstance(play, wasmtime.Func)
        for at, data in ((_CALLS, calls), (_ERRNOS, b"\xff" * 4 * len(steps)), (_BLOCKS, blocks)):
            script.write(store, data, base + at)
        furnish_(store, base + _BLOCKS, count)
        trapped = False
        try:
            play(store, base + _CALLS, base + _ERRNOS, len(steps))
        except (wasmtime.Trap, wasmtime.WasmtimeError):
            trapped = True
        errnos = _errnos(steps, bytes(script.read(store, base + _ERRNOS, base + _ERRNOS + 4 * len(steps))))
        low, high = (bytes(guest.read(store, begin, end)) for begin, end in _parts(shape))
        store.close()
        for name in output:
            output[name] = Path(kept, name).read_bytes()
    memory = _without_volatile(steps, shape, low, high)
    return Outcome(errnos, trapped, memory, tree(place), output["stdout"], output["stderr"])


def play_both(steps: Sequence[Step], shape: Shape, limits: Limits) -> tuple[Outcome, Outcome]:
    """Plays a script under the guard and over native WASI, one after the other in the same place."""
    with _place() as place:
        guarded = _play_guarded(steps, shape, place, limits)
    return guarded, play_native(steps, shape)


def play_native(steps: Sequence[Step], shape: Shape) -> Outcome:
    """Plays a script over native WASI, which needs a memory of the name `memory`."""
    with _place() as place:
        return _play_native(steps, shape._replace(export="memory"), place)


@contextmanager
def _place() -> Iterator[Path]:
    """The folder of every run: always the same, so that all of it is."""
    place = Path(_holder(), "place")
    place.mkdir()
    try:
        furnish(place)
        yield place
    finally:
        shutil.rmtree(place)


@cache
def _holder() -> str:
    holder = tempfile.mkdtemp(dir=_QUICK if _QUICK.is_dir() else None)
    atexit.register(shutil.rmtree, holder)
    return holder
