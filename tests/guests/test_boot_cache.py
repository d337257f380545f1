"""Our program for an interpreter that is a command, compiled once and not once a process: kept with machine code.

Holds P-CACHE-1.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from stockade import Mount, Policy, Python, Sandbox
from stockade.compilation import Cache, cached_name
from stockade.guests._boot_cache import BootCache
from stockade.guests._python import _CPythonCommand
from stockade.guests._task import Task
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

MODULE = wat('(module (func (export "_start")))')


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """A cache of one's own."""
    monkeypatch.setenv("STOCKADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STOCKADE_STATE", str(tmp_path / "state"))
    return Cache()


class Interpreter:
    """What compiles, and counts how often."""

    def __init__(self, answer: bytes | None = b"Y29tcGlsZWQ") -> None:
        self.asked = 0
        self._answer = answer

    def __call__(self, _: Sequence[str]) -> bytes | None:
        self.asked += 1
        return self._answer


def _arguments(
    ask: Callable[[Sequence[str]], bytes | None], *, times: int = 1, is_often: bool = False
) -> Sequence[str]:
    """What the last one of some interpreters is given, of another process."""
    driver = _CPythonCommand(MODULE)
    for _ in range(times):
        driver.prepare(ask, is_often=is_often)
    return driver.arguments(Task(""))


def test_another_process_finds_what_one_has_compiled(cache: Cache) -> None:
    ask = Interpreter()
    plain = _arguments(ask)
    assert ask.asked == 0, "the first one would come later for it"
    compiled = _arguments(ask, times=3)
    assert ask.asked == 1
    assert compiled != plain
    assert _arguments(ask) == _arguments(ask, is_often=True) == compiled
    assert ask.asked == 1
    (entry,) = cache.entries()
    assert cached_name(entry.name) == f"{MODULE.name} (its program)"
    assert cache.verify() == []


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _of_another_user(path: Path) -> None:
    """As one is signed who has another secret."""
    (path.parents[1] / "state" / "cache.key").write_bytes(os.urandom(32))


def _of_another_key(path: Path) -> None:
    """Machine code is put in its place."""
    assert Cache().put("ab", b"told", b"code")
    (path.parent / "ab.code").rename(path)


@pytest.mark.parametrize("change", [_flipped, _of_another_user, _of_another_key])
def test_what_somebody_has_changed_is_not_believed(change: Callable[[Path], None], cache: Cache) -> None:
    """The attack: another program is put into the cache, which each guest would begin with."""
    compiled = _arguments(Interpreter(), times=2)
    (entry,) = cache.entries()
    assert cache.folder is not None
    change(cache.folder / f"{entry.name}.code")
    ask = Interpreter()
    assert _arguments(ask) != compiled
    assert _arguments(ask, is_often=True) == compiled
    assert ask.asked == 1


def test_what_an_interpreter_of_another_module_has_compiled_is_not_taken(cache: Cache) -> None:
    arguments = ("-c", "text")
    BootCache(MODULE, arguments).put(b"program")
    assert BootCache(MODULE, arguments).get() == b"program"
    other = wat('(module (func (export "_start")) (func (export "other")))')
    for kept in (BootCache(other, arguments), BootCache(MODULE, ("-c", "other")), BootCache(MODULE, ("-ctext",))):
        assert kept.get() == b""
    assert len(cache.entries()) == 1


def test_what_is_no_program_is_not_taken(cache: Cache) -> None:
    kept = BootCache(MODULE, ("-c",))
    assert cache.put(kept._key, b"\xff", b"")
    assert kept.get() == b""


def test_without_a_cache_each_process_compiles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKADE_CACHE", "off")
    ask = Interpreter()
    compiled = _arguments(ask, times=3)
    assert _arguments(ask, times=2) == compiled
    assert ask.asked == 2


def test_an_interpreter_that_cannot_is_not_asked_again(cache: Cache) -> None:
    ask = Interpreter(None)
    assert _arguments(ask, times=3) == _arguments(Interpreter())
    assert ask.asked == 1
    assert cache.entries() == []


def test_a_real_interpreter_begins_with_what_another_one_has_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    real = Python._ask

    def ask(language: Python, *given: Any) -> bytes | None:
        asked.append(given)
        return real(language, *given)

    monkeypatch.setattr(Python, "_ask", ask)
    results = []
    for _ in range(2):
        asked.clear()
        with Python(runtime="cpython-3.12") as language:
            results += [language.run("import sys\n1 / 0") for _ in range(2)]
    assert asked == []
    assert len({str(result.error) for result in results}) == len({result.stderr for result in results}) == 1


def test_what_compiles_reaches_no_folder_of_anybody(cache: Cache, tmp_path: Path) -> None:
    """The attack: a policy's folder lies over the interpreter's library, and what is in it changes what is compiled.

    Whoever uses the interpreter later, under whatever policy, would begin with that program.
    """
    # It writes "0" if descriptor 3 is a folder, else "8", for EBADF.
    module = wat("""
      (module
        (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "\\10\\00\\00\\00\\01\\00\\00\\00")
        (func (export "_start")
          (i32.store8 (i32.const 16) (i32.add (i32.const 48) (call $prestat (i32.const 3) (i32.const 32))))
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 24)))))
    """)
    (tmp_path / "library").mkdir()
    policy = Policy().replace(mounts=[Mount(tmp_path / "library", "/usr/local/lib", "rw")], create=True, delete=True)

    with Python() as language:
        assert language._ask(module, policy, ()) == b"8"
    assert Sandbox(policy).run(module).stdout == b"0"


def test_what_the_gate_has_changed_is_not_kept() -> None:
    """Else a policy that looks for keys would spoil the program for all others."""
    module = wat("""
      (module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "\\10\\00\\00\\00\\14\\00\\00\\00")
        (data (i32.const 16) "AKIAQ2W3E4R5T6Y7U8I9")
        (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))))
    """)

    with Python() as language:
        assert language._ask(module, Policy(), ()) == b"AKIAQ2W3E4R5T6Y7U8I9"
        assert language._ask(module, Policy().replace(keys="redact"), ()) is None
