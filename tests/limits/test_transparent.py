"""Where the policy permits all, the guard cannot be told from native WASI.

Holds P-NATIVE-1.
"""

from __future__ import annotations

import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import wasmtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stockade
from stockade.policy import Filesystem, Limits, Mount, Policy, Wasi
from tests._examples import examples
from tests.limits._guests import ALL_RIGHTS, FOLLOW, READ_RIGHTS, SUCCESS, Script, player_text, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGE = 1 << 40
UNLIMITED = Limits(fuel=None, open_files=4096, files_created=None, file_size=None, write_bytes=None, random_bytes=None)
LIMITED = Limits(
    open_files=4096,
    files_created=_LARGE,
    file_size=_LARGE,
    read_bytes=_LARGE,
    write_bytes=_LARGE,
    read_rate=10**10,
    write_rate=10**10,
    calls=_LARGE,
    call_rate=10**10,
    idle_time=1000.0,
)
"""Limits that nothing here reaches, so that every check of the guard is made."""


class Result(NamedTuple):
    """What can be seen of a script's run: memory without what is bound to differ, and the files it left."""

    trapped: bool
    errnos: list[int]
    memory: bytes
    folders: list[object]
    files: dict[str, object]


class Step(NamedTuple):
    """One call of a generated script."""

    name: str
    arguments: tuple[Any, ...]


NAMES = ("a", "b", "d", "d/a", "new", "d/new", "..", "", ".", "/a", "a/", "d/", "a/b", "no/a", "d/../a", "./b", "../x")
fds = st.one_of(st.integers(3, 6), st.integers(0, 8))
names = st.one_of(st.sampled_from(NAMES[:6]), st.sampled_from(NAMES))
offsets = st.one_of(st.integers(0, 30), st.sampled_from([-1, 1 << 20]))
buffers = st.lists(st.integers(0, 20), min_size=0, max_size=3)
# A write to a captured stream takes all buffers at once, where native WASI takes the first: both are within POSIX.
single = st.builds(lambda empty, size: [0] * empty + [size], st.integers(0, 2), st.integers(0, 20))
rights = st.sampled_from([ALL_RIGHTS, READ_RIGHTS, 1 << 6, 0])
steps = st.one_of(
    st.builds(
        lambda *arguments: Step("open", arguments),
        fds, names, st.integers(0, 15), rights, st.sampled_from([0, 0, 1, 4]), st.integers(0, 1),
    ),
    st.builds(
        lambda *arguments: Step("open", arguments),
        st.just(3), st.sampled_from(NAMES[:6]), st.sampled_from([0, 1]), st.just(ALL_RIGHTS), st.integers(0, 1),
        st.just(1),
    ),
    st.builds(lambda *arguments: Step("write", arguments), fds, single),
    st.builds(lambda *arguments: Step("read", arguments), fds, buffers),
    st.builds(lambda *arguments: Step("pwrite", arguments), fds, buffers, offsets),
    st.builds(lambda *arguments: Step("pread", arguments), fds, buffers, offsets),
    st.builds(lambda *arguments: Step("fd_seek", arguments), fds, offsets, st.integers(0, 2)),
    st.builds(lambda *arguments: Step("fd_tell", arguments), fds),
    st.builds(lambda *arguments: Step("fd_close", arguments), fds),
    st.builds(lambda *arguments: Step("fd_renumber", arguments), fds, fds),
    st.builds(lambda *arguments: Step("fd_fdstat_get", arguments), fds),
    st.builds(lambda *arguments: Step("fd_fdstat_set_flags", arguments), fds, st.sampled_from([0, 1])),
    st.builds(lambda *arguments: Step("fd_filestat_set_size", arguments), fds, st.integers(0, 50)),
    st.builds(lambda *arguments: Step("fd_prestat_get", arguments), fds),
    st.builds(lambda *arguments: Step("fd_filestat_get", arguments), fds),
    st.builds(lambda *arguments: Step("path_filestat_get", arguments), fds, st.integers(0, 1), names),
    st.builds(lambda *arguments: Step("path_unlink_file", arguments), fds, names),
    st.builds(lambda *arguments: Step("path_remove_directory", arguments), fds, names),
    st.builds(lambda *arguments: Step("path_create_directory", arguments), fds, names),
    st.builds(lambda *arguments: Step("path_rename", arguments), fds, names, fds, names),
    st.builds(lambda *arguments: Step("path_link", arguments), fds, st.integers(0, 1), names, fds, names),
    st.builds(lambda *arguments: Step("fd_readdir", arguments), fds),
)  # fmt: skip


class Written(NamedTuple):
    """A script, and where results stand that need a closer look."""

    script: Script
    stats: list[int]
    folders: list[tuple[int, int]]


def write(plan: list[Step]) -> Written:
    """Makes a script of the steps."""
    script = Script(low=bytes(range(200)))
    stats: list[int] = []
    folders: list[tuple[int, int]] = []
    for number, (name, arguments) in enumerate(plan):
        if name == "open":
            fd, path, flags, right, fdflags, lookup = arguments
            script.call("path_open", fd, lookup, path, flags, right, right, fdflags, script.cell().address)
        elif name in ("read", "write", "pread", "pwrite"):
            places = [(script.put(bytes([65 + number % 26]) * size), size) for size in arguments[1]]
            if name in ("read", "pread"):
                places = [(script.room(size), size) for _, size in places]
            script.call(
                f"fd_{name}", arguments[0], script.iovec(*places), len(places), *arguments[2:], script.cell().address
            )
        elif name in ("fd_seek", "fd_tell", "fd_fdstat_get", "fd_prestat_get"):
            script.call(name, *arguments, script.room(24))
        elif name in ("fd_filestat_get", "path_filestat_get"):
            stats.append(script.room(64))
            script.call(name, *arguments, stats[-1])
        elif name == "fd_readdir":
            used = script.cell().address
            folders.append((script.room(2048), used))
            script.call(name, arguments[0], folders[-1][0], 2048, 0, used)
        else:
            script.call(name, *arguments)
    return Written(script, stats, folders)


def normal(written: Written, trapped: bool, errnos: list[int], memory: bytes, folder: Path) -> Result:
    """A result without what is bound to differ: inode numbers, times, and the order in a folder."""
    if trapped:
        return Result(True, [], b"", [], tree(folder))
    kept = bytearray(memory)
    for stat in written.stats:
        kept[stat : stat + 16] = bytes(16)
        kept[stat + 40 : stat + 64] = bytes(24)
    listed: list[object] = []
    for buffer, used in written.folders:
        end = buffer + int.from_bytes(memory[used : used + 4], "little")
        found, at = [], buffer
        while at < end:
            # The three bytes behind the kind are whatever the host has there; the guard clears them.
            length, kind = struct.unpack_from("<IB", memory, at + 16)
            found.append((kind, bytes(memory[at + 24 : at + 24 + length])))
            at += 24 + length
        listed.append(sorted(found))
        kept[buffer : buffer + 2048] = bytes(2048)
    return Result(False, errnos, bytes(kept), listed, tree(folder))


def furnish(folder: Path) -> None:
    """What every script finds."""
    (folder / "d").mkdir()
    (folder / "a").write_bytes(b"hello, this is a")
    (folder / "d" / "a").write_bytes(b"another")


def under_stockade(written: Written, folder: Path, limits: Limits) -> Result:
    """Plays a script under the guard."""
    policy = Policy(
        limits=limits,
        filesystem=Filesystem(mounts=(Mount(str(folder), "/", "rw"),), create=True, delete=True, symlinks=True),
        wasi=Wasi(deny=()),
    )
    played = written.script.play(policy)
    trapped = played.report.outcome is stockade.Outcome.TRAP
    assert trapped or played.report.ok
    return normal(written, trapped, played.errnos, played.memory, folder)


@cache
def native() -> tuple[wasmtime.Engine, wasmtime.Module, wasmtime.Linker]:
    """The same guest over native WASI."""
    engine = wasmtime.Engine()
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    return engine, wasmtime.Module(engine, player_text()), linker


@pytest.fixture(scope="module", autouse=True)
def _free_native() -> Iterator[None]:
    """Frees the native engine before the interpreter is torn down."""
    yield
    native.cache_clear()


def under_native(written: Written, folder: Path) -> Result:
    """Plays a script without the guard."""
    engine, module, linker = native()
    config = wasmtime.WasiConfig()
    config.preopen_dir(str(folder), "/", True)
    store = wasmtime.Store(engine)
    store.set_wasi(config)
    exports = linker.instantiate(store, module).exports(store)
    memory, play = exports["memory"], exports["play"]
    assert isinstance(memory, wasmtime.Memory)
    assert isinstance(play, wasmtime.Func)
    image, start, errnos, count = written.script.image()
    memory.write(store, image, 0)
    try:
        play(store, start, errnos, count)
    except (wasmtime.Trap, wasmtime.WasmtimeError):
        return normal(written, True, [], b"", folder)
    found = list(struct.unpack(f"<{count}I", memory.read(store, errnos, errnos + 4 * count)))
    return normal(written, False, found, bytes(memory.read(store, 0, start)), folder)


def check(plan: list[Step], limits: Limits) -> Result:
    """Plays the same script both ways, in twin folders, and compares."""
    written = write(plan)
    with tempfile.TemporaryDirectory() as place:
        guarded, unguarded = Path(place, "guarded"), Path(place, "native")
        for folder in (guarded, unguarded):
            folder.mkdir()
            furnish(folder)
        found = under_stockade(written, guarded, limits)
        expected = under_native(written, unguarded)
        assert found.trapped == expected.trapped
        assert list(zip(plan, found.errnos, strict=False)) == list(zip(plan, expected.errnos, strict=False))
        assert found.folders == expected.folders
        assert found.files == expected.files
        assert found.memory == expected.memory
        assert sorted(path.name for path in Path(place).iterdir()) == ["guarded", "native"]
    return found


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
@given(plan=st.lists(steps, min_size=1, max_size=14))
def test_a_permitted_call_does_what_native_wasi_does(plan: list[Step]) -> None:
    """Any sequence of calls without limits: the same errnos, results and files as without a guard."""
    check(plan, UNLIMITED)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
@given(plan=st.lists(steps, min_size=1, max_size=14))
def test_a_limit_that_is_not_reached_changes_nothing(plan: list[Step]) -> None:
    """Any sequence of calls with every limit set, none of them reached: the same as without a guard."""
    check(plan, LIMITED)


def test_the_comparison_sees_what_scripts_do() -> None:
    """The comparison is not one of nothing with nothing: a script of all that matters succeeds both ways."""
    plan = [
        Step("open", (3, "new", 1, ALL_RIGHTS, 0, FOLLOW)),
        Step("write", (4, [5, 0, 3])),
        Step("fd_seek", (4, 1, 0)),
        Step("fd_tell", (4,)),
        Step("read", (4, [2])),
        Step("pwrite", (4, [4], 9)),
        Step("pread", (4, [20], 0)),
        Step("fd_filestat_get", (4,)),
        Step("open", (3, "d", 2, READ_RIGHTS, 0, FOLLOW)),
        Step("fd_readdir", (5,)),
        Step("fd_renumber", (4, 5)),
        Step("fd_close", (5,)),
        Step("path_create_directory", (3, "e")),
        Step("path_rename", (3, "new", 3, "a")),
        Step("path_link", (3, 0, "a", 3, "b")),
        Step("path_unlink_file", (3, "b")),
        Step("path_remove_directory", (3, "e")),
        Step("path_filestat_get", (3, FOLLOW, "a")),
    ]
    for limits in (UNLIMITED, LIMITED):
        result = check(plan, limits)
        assert result.errnos == [SUCCESS] * len(plan)
        # A write takes one buffer, as native WASI does.
        assert result.files == {"a": b"BBBBB\0\0\0\0FFFF", "d": None, "d/a": b"another"}
        assert [[name for _, name in found if name not in (b".", b"..")] for found in result.folders] == [[b"a"]]


def test_a_folder_that_is_opened_to_be_created_is_an_error() -> None:
    """O_CREAT on a folder fails as it does natively, though the guard asks twice whether it exists."""
    for limits in (UNLIMITED, LIMITED):
        result = check([Step("open", (3, "d", 1, READ_RIGHTS, 0, FOLLOW)), Step("fd_readdir", (4,))], limits)
        assert SUCCESS not in result.errnos


def test_a_file_that_is_opened_to_be_created_can_be_written() -> None:
    """Native WASI opens for writing what it is asked to create, whatever rights were asked for; so does the guard."""
    for path in ("a", "new"):
        for limits in (UNLIMITED, LIMITED):
            opened = Step("open", (3, path, 1, READ_RIGHTS, 0, FOLLOW))
            result = check([opened, Step("fd_fdstat_get", (4,)), Step("write", (4, [3]))], limits)
            assert result.errnos == [SUCCESS] * 3
