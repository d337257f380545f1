"""Machine code on disk: found again by a cold process, and never run where a byte of it was changed.

Holds P-CACHE-1.
"""

from __future__ import annotations

import ast
import errno
import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stockade
from stockade import Clock, Module, Mount, Policy, PolicyError, Random, Sandbox
from stockade.compilation import _programs
from stockade.execution import _plan
from stockade.system import _private_files
from tests._caches import BytesCache as Cache
from tests._examples import examples
from tests._processes import open_descriptors
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD_BYTES = len(b"stockade machine code 2\n") + 32 + 8


class Own(NamedTuple):
    """Folders of one test."""

    cache: Path
    state: Path

    @property
    def entries(self) -> list[Path]:
        """The files of all entries."""
        return sorted(self.cache.glob("*.code"))

    @property
    def secret(self) -> Path:
        """The file with the secret."""
        return self.state / "cache.key"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Own:
    """Folders for one test, nothing in memory, and everything worth keeping."""
    folders = Own(tmp_path / "cache", tmp_path / "state")
    monkeypatch.setenv("STOCKADE_CACHE", str(folders.cache))
    monkeypatch.setenv("STOCKADE_STATE", str(folders.state))
    monkeypatch.setattr(_programs, "_WORTH_KEEPING_SECONDS", 0.0)
    forget(monkeypatch)
    return folders


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process one that has compiled nothing."""
    monkeypatch.setattr(_plan, "programs", _programs._Programs())


def store(folder: Path, limit_bytes: int = 1 << 20) -> Cache:
    """A cache of its own in a folder."""
    return Cache(folder / "cache", folder / "state", limit_bytes=limit_bytes)


def answering(number: int) -> bytes:
    """A module whose function says a number; all with numbers below 64 are of one size."""
    return wat(f'(module (func (export "answer") (result i32) (i32.const {number})))').data


def ask(source: bytes | Path | Module) -> tuple[object, bool]:
    """What a module answers, and whether its machine code was at hand."""
    report = Sandbox().call(source, "answer").check()
    return report.value, report.timings.cache_hit


# Runs modules in a process of its own, each in a new sandbox, and prints what came of it.
ASK = """
import json, sys
from stockade import Policy, Sandbox
for path in sys.argv[1:]:
    report = Sandbox(Policy().replace(compile_process="always")).call(path, "answer").check()
    print(json.dumps([report.value, report.timings.cache_hit]), flush=True)
"""


def cold(*paths: Path) -> list[list[object]]:
    """Asks modules in a cold process, as `ask` does here."""
    ended = subprocess.run([sys.executable, "-c", ASK, *map(str, paths)], capture_output=True, text=True, timeout=60)
    assert ended.stderr == ""
    return [json.loads(line) for line in ended.stdout.splitlines()]


# -- what is found again ----------------------------------------------------------------------------------------------


def test_a_second_cold_process_finds_what_the_first_one_compiled(own: Own, tmp_path: Path) -> None:
    """Also at another path and under another name: what counts is what is in the file."""
    here, there = tmp_path / "one.wasm", tmp_path / "two.wasm"
    here.write_bytes(answering(1))
    there.write_bytes(answering(1))

    assert cold(here) == [[1, False]]
    assert cold(here) == [[1, True]]
    assert cold(there) == [[1, True]]
    assert len(own.entries) == 1


def test_another_module_of_the_same_size_and_time_is_another_one(own: Own, tmp_path: Path) -> None:
    """The attack: a module that cannot be told from another one by size and time."""
    one, two = tmp_path / "one.wasm", tmp_path / "two.wasm"
    for path, number in ((one, 1), (two, 42)):
        path.write_bytes(answering(number))
        os.utime(path, ns=(10**18, 10**18))
    assert one.stat().st_size == two.stat().st_size

    assert cold(one, two) == [[1, False], [42, False]]
    assert cold(two, one) == [[42, True], [1, True]]


def test_a_file_replaced_by_one_of_the_same_size_and_time_runs_anew(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same attack over time, within a process and across two."""
    path = tmp_path / "guest.wasm"
    box = Sandbox()
    for number in (1, 42, 1):
        path.write_bytes(answering(number))
        os.utime(path, ns=(10**18, 10**18))
        assert box.call(path, "answer").value == number

    forget(monkeypatch)
    path.write_bytes(answering(42))
    os.utime(path, ns=(10**18, 10**18))
    assert ask(path) == (42, True)


def test_a_module_is_what_was_read_whatever_the_file_becomes(own: Own, tmp_path: Path) -> None:
    """The attack: to exchange the file after it was hashed. What was hashed is what runs."""
    path = tmp_path / "guest.wasm"
    path.write_bytes(answering(1))
    module = Module.load(path)
    path.write_bytes(answering(42))

    assert ask(module) == (1, False)
    assert ask(path) == (42, False)


OTHER_CONFIGURATIONS = {
    "fuel": {"fuel": 10_000_000},
    "stack": {"stack": 600 << 10},
    "nans": {"clock": Clock(mode="none"), "random": Random(mode="none")},
}


@pytest.mark.parametrize("what", sorted(OTHER_CONFIGURATIONS))
def test_another_configuration_of_the_engine_is_another_entry(
    what: str, own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that counts fuel, for another stack or with other NaNs is never taken for this one."""
    module = wat('(module (func (export "answer") (result i32) (i32.const 1)))')
    assert ask(module) == (1, False)
    forget(monkeypatch)

    report = Sandbox(Policy().replace(**OTHER_CONFIGURATIONS[what])).call(module, "answer")

    assert (report.value, report.timings.cache_hit) == (1, False)
    assert len(own.entries) == 2
    forget(monkeypatch)
    assert ask(module) == (1, True)


def test_stacks_of_one_class_share_an_entry(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: a stack is rounded up to the next power of two, so that there are few engines."""
    module = wat('(module (func (export "answer") (result i32) (i32.const 1)))')
    assert ask(module) == (1, False)
    for stack in (257 << 10, 300 << 10, 512 << 10):
        forget(monkeypatch)
        assert Sandbox(Policy().replace(stack=stack)).call(module, "answer").timings.cache_hit
    assert len(own.entries) == 1


@pytest.mark.parametrize("name", ["wasmtime_version", "_processor"])
def test_another_engine_or_processor_is_another_entry(name: str, own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another engine or processor is another entry."""
    assert ask(answering(1)) == (1, False)
    forget(monkeypatch)
    monkeypatch.setattr(_programs, name, lambda: "another one")

    assert ask(answering(1)) == (1, False)
    assert len(own.entries) == 2


def test_limits_share_an_entry(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive twin: what the guard reads at run time is no part of machine code."""
    assert ask(answering(1)) == (1, False)
    forget(monkeypatch)

    report = Sandbox(Policy().replace(memory=1 << 20, wall_time=9.0)).call(answering(1), "answer")

    assert (report.value, report.timings.cache_hit) == (1, True)


def test_off_is_off(own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written anywhere, and everything runs."""
    monkeypatch.setenv("STOCKADE_CACHE", "off")

    assert ask(answering(1)) == (1, False)
    forget(monkeypatch)
    assert ask(answering(1)) == (1, False)
    assert list(tmp_path.iterdir()) == []
    cache = Cache()
    assert not cache.put("name", b"content")
    assert cache.problem == "switched off, or there is no home folder"


def test_what_compiles_in_no_time_is_not_kept(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry costs a file; one that saves nothing is not made."""
    monkeypatch.setattr(_programs, "_WORTH_KEEPING_SECONDS", 1e9)

    assert ask(answering(1)) == (1, False)
    assert own.entries == []


# -- what is never run ------------------------------------------------------------------------------------------------


class Entries(NamedTuple):
    """The bytes of two entries: of a module that answers 1, and of one that answers 42."""

    good: bytes
    evil: bytes
    path: Path


@pytest.fixture
def two(own: Own, monkeypatch: pytest.MonkeyPatch) -> Entries:
    """Entries of two modules; the process knows neither any more."""
    assert ask(answering(42)) == (42, False)
    (other,) = own.entries
    evil = other.read_bytes()
    other.unlink()
    assert ask(answering(1)) == (1, False)
    (path,) = own.entries
    forget(monkeypatch)
    return Entries(path.read_bytes(), evil, path)


def code_of(entry: bytes) -> bytes:
    """The machine code of an entry."""
    return entry[HEAD_BYTES + int.from_bytes(entry[HEAD_BYTES - 8 : HEAD_BYTES], "little") :]


def test_machine_code_of_another_module_is_not_run(own: Own, two: Entries, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: working machine code of the attacker's choice under an entry's own head and MAC.

    The module answers 1; the planted code is valid for the engine, and would answer 42.
    """
    kept = len(two.good) - len(code_of(two.good))
    two.path.write_bytes(two.good[:kept] + code_of(two.evil))

    assert ask(answering(1)) == (1, False)
    # The entry was replaced by a sound one.
    forget(monkeypatch)
    assert ask(answering(1)) == (1, True)
    assert two.path.read_bytes()[HEAD_BYTES:] == two.good[HEAD_BYTES:]


def test_the_mac_is_what_keeps_it_from_running(own: Own, two: Entries) -> None:
    """The twin: the same code under a MAC made with the user's secret does run, so the attack above is a real one."""
    kept = len(two.good) - len(code_of(two.good))
    assert Cache().put(two.path.stem, two.good[HEAD_BYTES:kept], code_of(two.evil))

    assert ask(answering(1)) == (42, True)


def test_one_byte_of_machine_code_is_enough(own: Own, two: Entries) -> None:
    """The attack that was made on another sandbox: one byte of the code patched, here the 1 that is returned."""
    good, evil = code_of(two.good), code_of(two.evil)
    assert len(good) == len(evil)
    differing = [at for at, (one, other) in enumerate(zip(good, evil, strict=True)) if (one, other) == (1, 42)]
    assert differing, "the constant is in the code as it is"
    patched = bytearray(two.good)
    for at in differing:
        patched[len(two.good) - len(good) + at] = 42
    two.path.write_bytes(patched)

    assert ask(answering(1)) == (1, False)


def test_an_entry_under_another_ones_name_is_not_run(own: Own, two: Entries) -> None:
    """The attack: to rename what is authentic, so that one module runs as another."""
    two.path.write_bytes(two.evil)

    assert ask(answering(1)) == (1, False)


def test_an_entry_under_another_secret_is_not_run(
    own: Own, two: Entries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: an entry made by someone else with the same program, for this module's own key."""
    kept = len(two.good) - len(code_of(two.good))
    attacker = Cache(tmp_path / "theirs", tmp_path / "their state")
    assert attacker.put(two.path.stem, two.good[HEAD_BYTES:kept], code_of(two.evil))
    forged = (tmp_path / "theirs" / two.path.name).read_bytes()
    two.path.write_bytes(forged)
    assert attacker.get(two.path.stem) is not None

    assert ask(answering(1)) == (1, False)


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: b"",
        lambda entry: entry[:1],
        lambda entry: entry[: HEAD_BYTES - 1],
        lambda entry: entry[:HEAD_BYTES],
        lambda entry: entry[: HEAD_BYTES + 3],
        lambda entry: entry[:-1],
        lambda entry: entry + b"\0",
        lambda entry: entry + entry,
        lambda entry: entry[HEAD_BYTES:],
        lambda entry: bytes(len(entry)),
        lambda entry: b"S" + entry[1:],
        lambda entry: entry[:24] + bytes(32) + entry[56:],
        lambda entry: entry[:60] + b"\xff\xff\xff\xff" + entry[64:],
    ],
)
def test_a_torn_entry_is_compiled_again_and_replaced(
    change: Callable[[bytes], bytes], own: Own, two: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short, extended, emptied, overwritten: time is all that it costs."""
    two.path.write_bytes(change(two.good))

    assert ask(answering(1)) == (1, False)
    forget(monkeypatch)
    assert ask(answering(1)) == (1, True)


@given(data=st.data())
@settings(max_examples=examples(200))
def test_a_flipped_bit_anywhere_in_a_large_entry_is_seen(data: st.DataObject, large: Cache) -> None:
    """The attack: any bit of magic, MAC or content."""
    assert large.folder is not None
    path = large.folder / "a.code"
    entry = path.read_bytes()
    at = data.draw(st.integers(0, len(entry) * 8 - 1))
    changed = bytearray(entry)
    changed[at // 8] ^= 1 << at % 8
    path.write_bytes(changed)
    try:
        assert large.get("a") is None
    finally:
        path.write_bytes(entry)
    assert large.get("a") == entry[HEAD_BYTES:]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache with an entry of 76,800 bytes."""
    cache = store(tmp_path_factory.mktemp("large"))
    assert cache.put("a", bytes(range(256)) * 300)
    return cache


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0])
def test_a_flipped_bit_of_a_real_entry_is_compiled_again(
    share: float, own: Own, two: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same through the whole path that a run takes: from the magic to the last byte of machine code."""
    changed = bytearray(two.good)
    changed[int(share * (len(changed) - 1))] ^= 0x10
    two.path.write_bytes(changed)

    assert ask(answering(1)) == (1, False)
    forget(monkeypatch)
    assert ask(answering(1)) == (1, True)


def test_every_bit_of_a_small_entry_counts(tmp_path: Path) -> None:
    """The same without chance: each of them, one after the other."""
    cache = store(tmp_path)
    assert cache.put("a", b"machine code")
    path = tmp_path / "cache" / "a.code"
    entry = path.read_bytes()
    assert len(entry) == HEAD_BYTES + 12

    for bit in range(len(entry) * 8):
        changed = bytearray(entry)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        assert cache.get("a") is None, bit
    path.write_bytes(entry)
    assert cache.get("a") == b"machine code"


def put_folder(path: Path) -> None:
    """A folder in the place of an entry."""
    path.mkdir()


def put_pipe(path: Path) -> None:
    """A pipe in its place: whoever opens one waits for the other end."""
    os.mkfifo(path)


def put_link(path: Path) -> None:
    """A link in its place, to an entry that would be right."""
    path.symlink_to(path.with_name("elsewhere"))


def put_nothing(path: Path) -> None:
    """A link to nowhere."""
    path.symlink_to("/nowhere/at/all")


def test_a_folder_is_never_told_as_an_entry_that_was_removed(own: Own) -> None:
    """The attack: a folder among the entries, which cannot be removed as they are, and would be told so each time."""
    cache = Cache()
    assert cache.put("name", b"content")
    (own.cache / "folder.code").mkdir()

    assert [entry.name for entry in cache.entries()] == ["name"]
    assert cache.verify() == []
    assert (own.cache / "folder.code").is_dir()


@pytest.mark.parametrize("put", [put_folder, put_pipe, put_link, put_nothing], ids=lambda put: put.__name__)
def test_what_is_no_file_is_no_entry(
    put: Callable[[Path], None], own: Own, two: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: something else in the place of an entry, to hang, fail or divert whoever reads it."""
    two.path.rename(two.path.with_name("elsewhere"))
    put(two.path)
    descriptors = open_descriptors()

    assert ask(answering(1)) == (1, False)
    assert Cache().get(two.path.stem) is None or two.path.is_file()
    assert open_descriptors() == descriptors
    if not two.path.is_dir():
        # Replaced by a real one, and what a link led to is untouched.
        assert stat.S_ISREG(two.path.lstat().st_mode)
        forget(monkeypatch)
        assert ask(answering(1)) == (1, True)
    assert two.path.with_name("elsewhere").read_bytes() == two.good


def test_a_hard_link_cannot_carry_anything_in_or_out(own: Own, two: Entries, tmp_path: Path) -> None:
    """The attack: an entry that is a second name of a file of the attacker's, to change it later, or to have it
    overwritten by what is kept."""
    victim = tmp_path / "victim"
    victim.write_bytes(two.evil)
    two.path.unlink()
    os.link(victim, two.path)

    assert ask(answering(1)) == (1, False)
    assert victim.read_bytes() == two.evil
    assert victim.stat().st_nlink == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_an_entry_of_another_user_is_not_run(own: Own, two: Entries) -> None:
    """Even where its bytes are right, so that nobody can change them after they were checked."""
    os.chown(two.path, 65534, -1)

    assert ask(answering(1)) == (1, False)
    assert two.path.stat().st_uid == 0


def test_names_are_no_paths(tmp_path: Path) -> None:
    """The attack: a key with a path in it, to read or write elsewhere."""
    cache = store(tmp_path)
    assert cache.put("a", b"content")
    outside = tmp_path / "b.code"
    outside.write_bytes((tmp_path / "cache" / "a.code").read_bytes())

    for name in ("../b", str(tmp_path / "b"), "", ".", "a/../a", "a.", "./a"):
        with pytest.raises(AssertionError):
            cache.put(name, b"content")
        assert cache.get(name) is None
    assert cache.get("a") == b"content"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.code", "cache", "state"]


def test_only_our_hash_names_entries(own: Own, tmp_path: Path) -> None:
    """What a file is called is no part of it."""
    path = tmp_path / "..%2f..code\n.wasm"
    path.write_bytes(answering(1))

    assert ask(path) == (1, False)
    (entry,) = own.entries
    assert re.fullmatch(r"[0-9a-f]{64}\.code", entry.name)


def test_nothing_is_ever_unpickled() -> None:
    """No format that runs code when it is read is used anywhere; nor is `marshal` read, but by guests what we wrote."""
    source = Path(stockade.__file__).parent
    boot = source / "guests" / "boot"
    files = [path for path in sorted(source.rglob("*.py")) if boot not in path.parents]

    assert len(files) > 50
    for path in files:
        text = path.read_text()
        assert re.search(r"\b(pickle|cPickle|shelve|dill|joblib|cloudpickle)\b", text) is None, path
        # By its names, for code that guests are given stands in texts.
        used = {
            node.attr
            for node in ast.walk(ast.parse(text if "marshal" in text else ""))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "marshal"
        }
        assert used <= {"dumps"}, path
        assert not re.search(r"(?m)^\s*(?:from marshal\b|import marshal as\b)", text), path


# -- whose folder it is -----------------------------------------------------------------------------------------------


def private(path: Path) -> str:
    """The words for a folder that is not private, as it is now."""
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    todo = f": chmod 700 {path}" if status.st_uid == os.geteuid() else ""
    return f"{path} is not private (mode {mode:04o}, owner {status.st_uid}): it must be yours, with mode 0700{todo}"


def unused(own: Own) -> str:
    """Holds that modules run without the cache; returns why it is not used."""
    assert ask(answering(1)) == (1, False)
    assert ask(answering(7)) == (7, False)
    cache = Cache()
    assert cache.entries() == []
    assert not cache.put("name", b"content")
    assert cache.get("name") is None
    assert cache.problem
    return cache.problem


@pytest.mark.parametrize("which", ["cache", "state"])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707, 0o750, 0o701, 0o710])
def test_a_folder_that_others_can_enter_is_not_used(which: str, mode: int, own: Own) -> None:
    """The attack: a folder planted where it is predictable, open to whoever planted it."""
    folder: Path = getattr(own, which)
    folder.mkdir()
    folder.chmod(mode)

    assert unused(own) == private(folder)
    assert list(folder.iterdir()) == []
    folder.chmod(0o700)
    assert Cache().put("name", b"content")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
@pytest.mark.parametrize("which", ["cache", "state"])
def test_a_folder_of_someone_else_is_not_used(which: str, own: Own) -> None:
    """The attack: a planted folder of the right mode."""
    folder: Path = getattr(own, which)
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, -1)

    assert unused(own) == private(folder)


@pytest.mark.parametrize("which", ["cache", "state"])
def test_a_folder_by_a_link_is_not_used(which: str, own: Own, tmp_path: Path) -> None:
    """The attack: a link planted in its place, to a folder that is private."""
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    folder: Path = getattr(own, which)
    folder.symlink_to(target)

    assert unused(own) == f"{own.cache} or {own.state} cannot be used: Not a directory"
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("which", ["cache", "state"])
def test_a_file_in_place_of_a_folder_costs_the_cache_only(which: str, own: Own) -> None:
    """Nothing is removed to make room."""
    folder: Path = getattr(own, which)
    folder.write_text("a file")

    assert unused(own) == f"{own.cache} or {own.state} cannot be used: File exists"
    assert folder.read_text() == "a file"


def test_a_folder_that_cannot_be_made_costs_the_cache_only(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without a place to write to."""
    monkeypatch.setenv("STOCKADE_CACHE", "/proc/stockade")

    assert unused(own) == f"/proc/stockade or {own.state} cannot be used: No such file or directory"


def test_folders_and_files_are_ours_alone(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the umask says."""
    before = os.umask(0)
    try:
        ask(answering(1))
    finally:
        os.umask(before)

    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (own.cache, own.state, own.secret, *own.entries)}
    assert modes == {own.cache: 0o700, own.state: 0o700, own.secret: 0o600, own.entries[0]: 0o600}
    assert all(path.stat().st_uid == os.geteuid() for path in modes)


# -- full disks, and writes that do not end ---------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["open", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_what_cannot_be_written_is_not_kept(call: str, code: int, own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module runs, nothing half done is left, and the cache says why."""
    assert Cache().put("first", b"content")
    real = getattr(os, call)

    def fail(path: str, *args: object, **others: object) -> object:
        if str(path).endswith(".new"):
            raise OSError(code, os.strerror(code), path)
        return real(path, *args, **others)

    monkeypatch.setattr(os, call, fail)
    assert ask(answering(1)) == (1, False)
    cache = Cache()
    assert not cache.put("second", b"content")
    assert cache.problem == f"{own.cache} cannot be written: {os.strerror(code)}"
    monkeypatch.undo()
    assert [path.name for path in own.cache.iterdir()] == ["first.code"]


def test_a_disk_that_fills_while_writing_leaves_nothing(own: Own) -> None:
    """The system itself refuses the rest of a file: no entry, no temporary file, and the run is as it was."""
    script = """
import json, resource, sys
from stockade import Sandbox
from tests._caches import BytesCache as Cache
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
cache = Cache()
print(cache.put("small", bytes(1000)), cache.put("large", bytes(10_000)))
print(cache.problem)
print(cache.get("small") == bytes(1000), cache.get("large"))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)

    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["True False", f"{own.cache} cannot be written: File too large", "True None"]
    assert [path.name for path in own.cache.iterdir()] == ["small.code"]


def test_a_secret_that_cannot_be_written_is_not_half_made(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk the first time: no file is left behind, and a later process makes the secret."""
    real = os.link

    def fail(*args: object, **others: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", fail)
    assert unused(own) == f"{own.cache} or {own.state} cannot be used: No space left on device"
    assert list(own.state.iterdir()) == []
    monkeypatch.setattr(os, "link", real)
    assert Cache().put("name", b"content")


def test_a_process_killed_while_writing_leaves_no_torn_entry(own: Own) -> None:
    """Whenever it is killed, an entry is the old one or the new one, whole."""
    script = """
import sys
from tests._caches import BytesCache as Cache
cache = Cache()
contents = [bytes([number]) * (2 << 20) for number in (1, 2)]
while True:
    for content in contents:
        assert cache.put("name", content)
        sys.stdout.write("x")
        sys.stdout.flush()
"""
    allowed = {bytes([number]) * (2 << 20) for number in (1, 2)}
    for writes in range(1, 9):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert len(writer.stdout.read(writes)) == writes
            # In the middle of the next one, most likely.
            writer.send_signal(signal.SIGKILL)
        assert Cache().get("name") in allowed
        assert Cache().verify() == []


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 8])
def test_processes_at_once_all_succeed(own: Own, tmp_path: Path, count: int) -> None:
    """One folder and one secret are made by whoever is first, and one entry is left."""
    path = tmp_path / "guest.wasm"
    path.write_bytes(answering(1))
    racing = [
        subprocess.Popen(
            [sys.executable, "-c", ASK, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    results = [process.communicate(timeout=100) for process in racing]

    assert [(json.loads(out)[0], err) for out, err in results] == [(1, "")] * count
    assert len(own.entries) == len(list(own.cache.iterdir())) == 1
    assert [path.name for path in own.state.iterdir()] == ["cache.key"]
    assert Cache().verify() == []
    assert cold(path) == [[1, True]]


def test_temporary_files_have_names_that_nobody_can_guess(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a link under the name of the next temporary file.

    No two are alike, each is random, and none is opened that is there already.
    """
    opened: list[tuple[str, int]] = []
    real = os.open

    def watch(path: str, flags: int, *args: object, **others: object) -> int:
        opened.append((str(path), flags))
        return real(path, flags, *args, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", watch)
    for _ in range(10):
        assert Cache().put("name", b"content")

    made = [(path, flags) for path, flags in opened if flags & os.O_CREAT]
    assert len({path for path, _ in made}) == len(made) == 11  # one for the secret
    for path, flags in made:
        assert re.fullmatch(r"[0-9a-f]{32}\.new", path)
        assert flags & os.O_EXCL
        assert flags & os.O_NOFOLLOW


def test_temporary_files_of_the_dead_are_removed_and_of_the_living_are_not(tmp_path: Path) -> None:
    """What a killed process left goes at once, whenever it was; what is being written stays, and counts."""
    size = HEAD_BYTES + len("content")
    cache = Cache(tmp_path / "cache", tmp_path / "state", limit_bytes=1 << 20)
    assert cache.put("a", b"", b"content")
    dead, living = tmp_path / "cache" / "dead.new", tmp_path / "cache" / "living.new"
    for path in (dead, living):
        path.write_bytes(b"half")

    with living.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert cache.put("b", b"", b"content")
        assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["a.code", "b.code", "living.new"]
        # What is being written leaves room for one of the two.
        file.truncate((1 << 20) - 2 * size + 1)
        assert cache.put("b", b"", b"content")
        assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["b.code", "living.new"]
    assert cache.put("a", b"", b"content")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["a.code", "b.code"]
    dead.write_bytes(b"half")
    assert cache.clear() == 2
    assert list((tmp_path / "cache").iterdir()) == []


# -- how much there may be --------------------------------------------------------------------------------------------


def test_what_was_unused_for_longest_goes_first(tmp_path: Path) -> None:
    """The size is bounded, and what is in use stays."""
    size = HEAD_BYTES + 1000
    cache = store(tmp_path, 3 * size)

    def put(name: str, time: int, more: int = 0) -> None:
        assert cache.put(name, bytes(1000 + more))
        os.utime(tmp_path / "cache" / f"{name}.code", (time, time))

    for time, name in enumerate("abc", 1000):
        put(name, time)
    assert [entry.name for entry in cache.entries()] == ["c", "b", "a"]
    # Using a makes b the oldest.
    assert cache.get("a") == bytes(1000)
    assert cache.entries()[0].name == "a"
    put("d", 1003)
    assert [entry.name for entry in cache.entries()] == ["a", "d", "c"]
    # One byte more than there is room for: two have to go.
    put("e", 1004, 1)
    assert [entry.name for entry in cache.entries()] == ["a", "e"]
    assert sum(entry.size_bytes for entry in cache.entries()) == 2 * size + 1


def test_what_is_larger_than_everything_may_be_is_not_kept(tmp_path: Path) -> None:
    """It would push out all others, and then itself."""
    cache = store(tmp_path, HEAD_BYTES + 1000)
    assert cache.put("a", bytes(1000))

    assert not cache.put("b", bytes(1001))
    assert [entry.name for entry in cache.entries()] == ["a"]
    assert cache.get("a") == bytes(1000)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 700), st.booleans()), max_size=30))
@settings(max_examples=examples(40))
def test_the_bound_holds_whatever_is_put_and_got(steps: list[tuple[str, int, bool]]) -> None:
    """After each write all entries are within the bound; what is found is what was put last."""
    with tempfile.TemporaryDirectory() as folder:
        cache = store(Path(folder), 1500)
        last: dict[str, bytes] = {}
        for name, size, writes in steps:
            if writes:
                last[name] = os.urandom(size)
                assert cache.put(name, last[name])
                assert cache.get(name) == last[name]
                assert sum(entry.size_bytes for entry in cache.entries()) <= 1500
            else:
                assert cache.get(name) in (None, last.get(name))
        assert cache.verify() == []


# -- the secret -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_secret_is_made_once_by_racing_processes(own: Own) -> None:
    """Eight at once put one entry each; all are believed after that, so all had the same secret."""
    script = "import sys; from tests._caches import BytesCache as Cache; assert Cache().put(sys.argv[1], b'content')"
    racing = [subprocess.Popen([sys.executable, "-c", script, f"entry{number}"]) for number in range(8)]
    assert [process.wait(timeout=60) for process in racing] == [0] * 8

    assert Cache().verify() == []
    assert len(Cache().entries()) == 8
    status = own.secret.stat()
    assert (status.st_size, stat.S_IMODE(status.st_mode), status.st_nlink) == (32, 0o600, 1)
    assert len(set(own.secret.read_bytes())) > 8
    assert [path.name for path in own.state.iterdir()] == ["cache.key"]


def test_a_writer_that_is_swept_before_it_has_locked_its_file_makes_another(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who takes it for dead is another process, between the file's making and its lock."""
    locked = []

    def late(file: int, how: int) -> None:
        if how == fcntl.LOCK_EX:
            locked.append(file)
            if len(locked) == 1:
                for found in own.cache.iterdir():
                    found.unlink()
        fcntl.flock(file, how)

    assert Cache().put("first", b"content")
    monkeypatch.setattr(_private_files, "flock", late)

    assert Cache().put("second", b"content")
    assert len(locked) == 2
    assert Cache().get("second") == b"content"


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33), bytes(1000)], ids=len)
def test_a_secret_of_another_size_is_not_used(content: bytes, own: Own) -> None:
    """The attack: an empty secret, which everybody knows."""
    own.state.mkdir(mode=0o700)
    own.secret.write_bytes(content)
    own.secret.chmod(0o600)

    assert unused(own) == f"{own.secret} is not a secret of yours: remove it, and another one is made"
    assert own.secret.read_bytes() == content
    own.secret.unlink()
    assert Cache().put("name", b"content")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o644])
def test_a_secret_that_others_can_read_is_not_used(mode: int, own: Own) -> None:
    """What others know is no secret."""
    assert Cache().put("name", b"content")
    own.secret.chmod(mode)

    cache = Cache()
    assert cache.get("name") is None
    assert cache.problem == f"{own.secret} is not a secret of yours: remove it, and another one is made"
    own.secret.chmod(0o600)
    assert Cache().get("name") == b"content"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_secret_of_someone_else_is_not_used(own: Own) -> None:
    """Whoever planted it knows it."""
    assert Cache().put("name", b"content")
    os.chown(own.secret, 65534, -1)

    cache = Cache()
    assert cache.get("name") is None
    assert cache.problem == f"{own.secret} is not a secret of yours: remove it, and another one is made"


@pytest.mark.parametrize(
    ("put", "words"),
    [
        (put_folder, "not a regular file"),
        (put_pipe, "not a regular file"),
        (put_nothing, "Too many levels of symbolic links"),
    ],
    ids=["folder", "pipe", "link"],
)
def test_a_secret_that_is_no_file_is_not_used(put: Callable[[Path], None], words: str, own: Own) -> None:
    """The attack: a link to a file that the attacker can read, or a pipe to wait at for ever."""
    own.state.mkdir(mode=0o700)
    put(own.secret)
    descriptors = open_descriptors()

    assert unused(own) == f"{own.secret} cannot be read: {words}"
    assert open_descriptors() == descriptors


def test_a_new_secret_makes_old_entries_worthless(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing the secret is how to distrust everything."""
    assert ask(answering(1)) == (1, False)
    own.secret.unlink()
    forget(monkeypatch)

    assert ask(answering(1)) == (1, False)
    forget(monkeypatch)
    assert ask(answering(1)) == (1, True)


# -- what was found wrong ---------------------------------------------------------------------------------------------


def test_verify_removes_exactly_what_was_changed(own: Own) -> None:
    """Whatever else lies in the folder, by any name."""
    for name in ("a", "b", "c"):
        assert Cache().put(name, name.encode())
    (own.cache / "b.code").write_bytes(b"stockade machine code 1\n" + bytes(32) + b"b")
    odd = os.fsdecode(b"\xff\xfe\n.code")
    (own.cache / odd).write_bytes(b"stockade machine code 1\n" + bytes(32))

    assert sorted(Cache().verify()) == sorted(["b", odd.removesuffix(".code")])
    assert [path.name for path in own.entries] == ["a.code", "c.code"]
    assert Cache().verify() == []


# -- no guest may reach any of this -----------------------------------------------------------------------------------


def refusal(host: Path) -> str:
    """The words with which a sandbox refuses to mount a folder."""
    with pytest.raises(PolicyError) as refused:
        Sandbox(Policy().replace(mounts=[Mount(str(host), "/data", "rw")]))
    return str(refused.value)


def covering(folder: Path) -> str:
    """The words for a mount that reaches one of our folders."""
    return (
        f"the mount /data covers {folder}, where Stockade keeps machine code and secrets, which no guest may reach: "
        "mount a folder beside it"
    )


@pytest.mark.parametrize("which", ["cache", "state"])
def test_our_own_folders_cannot_be_mounted(which: str, own: Own, tmp_path: Path) -> None:
    """The attack: a guest that can write to the cache, or read the secret, runs what it likes the next time."""
    assert ask(answering(1)) == (1, False)
    folder: Path = getattr(own, which)
    (folder / "inner").mkdir()
    link = tmp_path / "link"
    link.symlink_to(folder / "inner")

    assert refusal(folder) == covering(folder)
    assert refusal(folder / "inner") == covering(folder)
    assert refusal(link) == covering(folder)
    assert refusal(tmp_path) == covering(own.cache)
    assert refusal(Path("/")) == covering(own.cache)
    beside = tmp_path / "beside"
    beside.mkdir()
    box = Sandbox(Policy().replace(mounts=[Mount(str(beside), "/data", "rw")]))
    assert box.run(wat(HELLO)).stdout == b"hello world\n"


@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_not_even_to_read_or_before_they_exist(mode: str, own: Own, tmp_path: Path) -> None:
    """Reading the secret is enough to forge entries; and a folder made later would lie in the mount all the same."""
    assert not own.cache.exists()
    with pytest.raises(PolicyError) as refused:
        Sandbox(Policy().replace(mounts=[Mount(str(tmp_path), "/data", mode)]))

    assert str(refused.value) == covering(own.cache)


def test_our_folders_are_known_by_where_links_lead(own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: the cache is named through a link, and the folder behind it is mounted."""
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "way").symlink_to(real)
    monkeypatch.setenv("STOCKADE_CACHE", str(tmp_path / "way" / "cache"))

    assert refusal(real) == covering(real / "cache")


def test_a_cache_that_is_off_leaves_its_folder_to_mount(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive twin: nothing of ours is there; the secret stays out of reach."""
    own.cache.mkdir()
    own.state.mkdir()
    monkeypatch.setenv("STOCKADE_CACHE", "off")

    assert Sandbox(Policy().replace(mounts=[Mount(str(own.cache), "/data", "rw")])).run(wat(HELLO)).ok
    assert refusal(own.state) == covering(own.state)


RELATIVE = """
import os, sys
os.environ |= {"STOCKADE_STATE": "own/state", "STOCKADE_CACHE": "own/cache", "HOME": "home"}
import stockade
os.chdir(sys.argv[1])
from stockade.compilation import Cache
cache = Cache()
print(cache.put("a" * 8, b"", b"code"), cache.problem)
try:
    stockade.Sandbox(stockade.Policy().replace(mounts=[stockade.Mount(sys.argv[2], "/x", "rw")]))
except stockade.PolicyError:
    print("refused")
"""


def test_relative_folders_are_where_the_process_began(tmp_path: Path) -> None:
    """The attack: the host changes to a folder that a guest is granted, and the secret follows it there."""
    (tmp_path / "granted").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RELATIVE, str(tmp_path / "granted"), str(tmp_path / "own")],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert (done.stdout, done.stderr) == (b"True \nrefused\n", b"")
    assert list((tmp_path / "granted").iterdir()) == []
    assert (tmp_path / "own" / "state" / "cache.key").is_file()
