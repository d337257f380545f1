"""`stockade cache`: what people and scripts see of the machine code that is kept."""

from __future__ import annotations

import json
import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest
from click.testing import CliRunner, Result

from stockade import Sandbox
from stockade.cli._commands import stockade as command_line
from stockade.compilation import _programs
from stockade.execution import _plan
from tests._caches import BytesCache as Cache
from tests.cli.test_run import save
from tests.cli.test_run import stockade as process
from tests.conftest import HELLO, program_path, wat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMIT = 2 << 30


class Own(NamedTuple):
    """Folders of one test."""

    cache: Path
    state: Path


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Own:
    """Folders for one test; nothing is in memory, and everything is worth keeping."""
    folders = Own(tmp_path / "cache", tmp_path / "state")
    monkeypatch.setenv("STOCKADE_CACHE", str(folders.cache))
    monkeypatch.setenv("STOCKADE_STATE", str(folders.state))
    monkeypatch.setattr(_programs, "_WORTH_KEEPING_SECONDS", 0.0)
    monkeypatch.setattr(_plan, "programs", _programs._Programs())
    return folders


def command(*args: str | Path) -> Result:
    """What the command prints, not on a terminal: `return_value` is None or its exit status."""
    return CliRunner().invoke(command_line, ["cache", *map(str, args)], standalone_mode=False)


def fill(own: Own, *ages: tuple[str, int, float]) -> None:
    """Puts entries of these names, sizes and ages in seconds into the cache."""
    now = time.time()
    for name, size, age in ages:
        assert Cache().put(name, bytes(size))
        os.utime(own.cache / f"{name}.code", (now - age, now - age))


# -- info -------------------------------------------------------------------------------------------------------------


def test_info_tells_what_is_there(own: Own) -> None:
    """The one used last first; ages as a person would say them."""
    fill(own, ("a" * 64, 3 << 20, 400_000), ("b" * 64, 1 << 19, 10_000), ("c" * 64, 100, 130), ("d" * 64, 0, 1))

    result = command("info")

    assert (result.return_value, result.stderr) == (0, "")
    first, *rows = result.stdout.splitlines()
    assert first == f"{own.cache}: 4 modules, 3.5 MiB of 2,048.0 MiB"
    assert [row.split() for row in rows if row.strip()] == [
        ["?", "d" * 16, "0.1", "KiB", "used", "just", "now"],
        ["?", "c" * 16, "0.2", "KiB", "used", "2", "minutes", "ago"],
        ["?", "b" * 16, "512.1", "KiB", "used", "3", "hours", "ago"],
        ["?", "a" * 16, "3.0", "MiB", "used", "5", "days", "ago"],
    ]
    assert "\x1b" not in result.stdout


def test_info_of_an_empty_cache(own: Own) -> None:
    """It is made, and there is nothing in it."""
    result = command("info")

    assert (result.return_value, result.stderr) == (0, "")
    assert result.stdout.strip() == f"{own.cache}: 0 modules, 0.0 KiB of 2,048.0 MiB"


def test_info_in_json(own: Own) -> None:
    """All that there is, exactly."""
    fill(own, ("a", 1000, 50), ("b", 2000, 20))

    result = command("info", "--json")

    assert (result.return_value, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    entries = [(entry.name, entry.size_bytes, entry.used) for entry in Cache().entries()]
    assert found == {
        "folder": str(own.cache),
        "problem": "",
        "limit_bytes": LIMIT,
        "entries": [{"name": name, "module": "", "size_bytes": size, "used": used} for name, size, used in entries],
    }
    assert [entry[0] for entry in entries] == ["b", "a"]


def test_info_says_that_the_cache_is_off(monkeypatch: pytest.MonkeyPatch, own: Own) -> None:
    """To people as an error, to scripts as a fact."""
    monkeypatch.setenv("STOCKADE_CACHE", "off")

    told = command("info")
    listed = command("info", "--json")

    assert (told.return_value, told.stdout) == (125, "")
    assert told.stderr == "stockade: the cache cannot be used: switched off, or there is no home folder\n"
    assert listed.return_value == 0
    assert json.loads(listed.stdout) == {
        "folder": None,
        "problem": "switched off, or there is no home folder",
        "limit_bytes": LIMIT,
        "entries": [],
    }
    assert not own.cache.exists()


def open_to_all(own: Own) -> str:
    """A folder that others can enter."""
    own.cache.mkdir()
    own.cache.chmod(0o755)
    todo = f"it must be yours, with mode 0700: chmod 700 {own.cache}"
    return f"{own.cache} is not private (mode 0755, owner {os.geteuid()}): {todo}"


def a_file(own: Own) -> str:
    """A file in the place of the folder."""
    own.cache.write_text("a file")
    return f"{own.cache} or {own.state} cannot be used: File exists"


def a_short_secret(own: Own) -> str:
    """A secret that is none."""
    own.state.mkdir(mode=0o700)
    (own.state / "cache.key").write_bytes(b"short")
    return f"{own.state / 'cache.key'} is not a secret of yours: remove it, and another one is made"


BROKEN = pytest.mark.parametrize("breaking", [open_to_all, a_file, a_short_secret], ids=lambda kind: kind.__name__)


@BROKEN
def test_info_says_what_is_wrong(breaking: Callable[[Own], str], own: Own) -> None:
    """In words, with the status of wrong use."""
    words = breaking(own)

    told = command("info")

    assert (told.return_value, told.stdout) == (125, "")
    assert told.stderr == f"stockade: the cache cannot be used: {words}\n"
    assert json.loads(command("info", "--json").stdout)["problem"] == words


def test_a_cache_that_is_not_used_is_told_where_somebody_listens(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, on stderr; nothing is told where nobody asked, or where there is nothing to tell."""
    words = open_to_all(own)
    guest = save(tmp_path, HELLO)
    for level, told in (
        ("warning", f"stockade: the cache cannot be used, and modules are compiled again in each process: {words}\n"),
        ("error", ""),
        ("", ""),
    ):
        monkeypatch.setenv("STOCKADE_LOG", level)
        ran = process("run", guest)
        assert (ran.returncode, ran.stdout, ran.stderr.decode()) == (0, b"hello world\n", told)
    own.cache.chmod(0o700)

    monkeypatch.setenv("STOCKADE_LOG", "warning")
    assert process("run", guest).stderr == b""


@BROKEN
def test_a_broken_cache_touches_nothing_and_keeps_nobody_from_running(
    breaking: Callable[[Own], str], own: Own, tmp_path: Path
) -> None:
    """Modules run; nothing is removed."""
    breaking(own)
    guest = save(tmp_path, HELLO)

    ran = process("run", guest)
    warmed = command("warm", guest)

    assert (ran.returncode, ran.stdout) == (0, b"hello world\n")
    assert warmed.return_value == 125
    assert not list(tmp_path.rglob("*.code"))


def test_info_names_the_modules(own: Own, tmp_path: Path) -> None:
    """A name is what a person knows a module by; one that would steer the terminal is shown escaped."""
    guest = save(tmp_path, HELLO, "hel\x1blo.wat")
    assert command("warm", guest).return_value == 0

    (row,) = command("info").stdout.splitlines()[1:]
    (entry,) = json.loads(command("info", "--json").stdout)["entries"]

    assert row.split()[0] == "hel\\x1blo.wat"
    assert entry["module"] == "hel\\x1blo.wat"


def test_info_knows_no_name_of_a_damaged_entry(own: Own) -> None:
    """The attack: what is told of the code is nonsense, or has no end."""
    fill(own, ("a", 10, 0))
    (own.cache / "b.code").write_bytes(b"stockade machine code 2\n" + b"\xff" * 40)
    (own.cache / "c.code").write_bytes(b"")

    assert sorted(row.split()[0] for row in command("info").stdout.splitlines()[1:]) == ["?", "?", "?"]


@BROKEN
@pytest.mark.parametrize("name", ["verify", "clear", "warm"])
def test_a_cache_that_cannot_be_used_is_told(
    name: str, breaking: Callable[[Own], str], own: Own, tmp_path: Path
) -> None:
    """Nothing is claimed of what nobody can look at."""
    words = breaking(own)

    told = command(name, *([save(tmp_path, HELLO)] if name == "warm" else []))

    assert (told.return_value, told.stdout) == (125, "")
    assert told.stderr == f"stockade: the cache cannot be used: {words}\n"


def test_warm_says_what_is_not_kept_and_why(own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is made faster than read is not kept; nor is what does not fit."""
    guest = save(tmp_path, HELLO)
    with monkeypatch.context() as fast:
        fast.setattr(_programs, "_WORTH_KEEPING_SECONDS", 1e9)
        told = command("warm", guest)
    assert told.return_value == 0
    assert re.fullmatch(
        r"guest.wat: ready in \d\.\d\d s; not kept: it compiles in \d+\.\d ms, which is faster than reading a file\n",
        told.stdout,
    )

    monkeypatch.setattr(_plan, "programs", _programs._Programs())
    with monkeypatch.context() as small:
        small.setattr(_programs, "Cache", lambda: Cache(limit_bytes=100))
        told = command("warm", guest)
    assert told.stdout.endswith("; not kept: it is larger than the cache may be\n")

    monkeypatch.setattr(_plan, "programs", _programs._Programs())
    assert "not kept" not in command("warm", guest).stdout


# -- clear and verify -------------------------------------------------------------------------------------------------


def test_clear_removes_all_entries_and_nothing_else(own: Own) -> None:
    """The secret stays; so does what is not ours."""
    fill(own, ("a", 10, 0), ("b", 10, 0))
    (own.cache / "left.new").write_bytes(b"half")
    (own.cache / "notes.txt").write_text("mine")
    secret = (own.state / "cache.key").read_bytes()

    result = command("clear")

    assert (result.return_value, result.stdout, result.stderr) == (0, "2 modules removed\n", "")
    assert [path.name for path in own.cache.iterdir()] == ["notes.txt"]
    assert (own.state / "cache.key").read_bytes() == secret
    assert command("clear").stdout == "0 modules removed\n"


def test_verify_is_content_with_what_was_written(own: Own) -> None:
    """The positive twin."""
    fill(own, ("a", 10, 0), ("b", 10, 0))

    result = command("verify")

    assert (result.return_value, result.stdout, result.stderr) == (0, "2 modules unchanged\n", "")


def test_verify_removes_what_was_changed(own: Own) -> None:
    """The attack: one byte of machine code; and a file whose name would steer the terminal."""
    fill(own, ("a", 10, 0), ("b", 10, 0))
    changed = bytearray((own.cache / "a.code").read_bytes())
    changed[-1] ^= 1
    (own.cache / "a.code").write_bytes(changed)
    (own.cache / "\x1b[31m\n.code").write_bytes(b"")

    result = command("verify")

    assert result.return_value == 1
    assert sorted(result.stderr.splitlines()) == [
        "stockade: removed \\x1b[31m\\x0a: it is not as it was written",
        "stockade: removed a: it is not as it was written",
    ]
    assert result.stdout == "1 module unchanged\n"
    assert [path.name for path in own.cache.iterdir()] == ["b.code"]
    assert command("verify").return_value == 0


# -- warm -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_warm_compiles_ahead_of_the_first_run(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real program: after it, another process runs it without compiling."""
    guest = program_path("usvg")

    result = command("warm", guest)

    assert (result.return_value, result.stderr) == (0, "")
    assert result.stdout.startswith("usvg.wasm: ready in ")
    assert len(list(own.cache.glob("*.code"))) == 1
    ran = process("run", "--json", guest, "--version")
    assert json.loads(ran.stdout)["timings"]["cache_hit"] is True


def test_warm_goes_on_after_a_module_that_cannot_be_run(own: Own, tmp_path: Path) -> None:
    """Each is told by itself, and the status says that not all went well."""
    good, bad = save(tmp_path, HELLO, "good.wat"), tmp_path / "bad.wasm"
    bad.write_bytes(b"no module at all")

    result = command("warm", bad, tmp_path / "none.wasm", good)

    assert result.return_value == 127
    assert result.stderr.splitlines() == [
        "stockade: bad.wasm is not WebAssembly but text: compile source code to WebAssembly first",
        f"stockade: no file at {tmp_path}/none.wasm",
    ]
    assert command("warm", bad).return_value == 126
    assert result.stdout.startswith("good.wat: ready in ")
    assert Sandbox().run(wat(HELLO)).timings.cache_hit


def test_warm_holds_modules_to_the_policy(own: Own, tmp_path: Path) -> None:
    """What the policy would not run is not compiled under it; limits of size hold before the file is read."""
    policy = tmp_path / "small.toml"
    policy.write_text("[limits]\nmodule_size = 100\n")
    guest = tmp_path / "guest.wasm"
    guest.write_bytes(wat(HELLO).data)

    result = command("warm", "--policy", policy, guest)

    assert (result.return_value, result.stdout) == (126, "")
    assert "limits.module_size" in result.stderr
    assert not list(own.cache.iterdir())
    assert command("warm", guest).return_value == 0


def test_warm_needs_a_module() -> None:
    """In a process of its own: wrong use has its status."""
    result = process("cache", "warm")

    assert result.returncode == 125
    assert b"MODULE..." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "output"),
    [
        (("info",), 0, b": 1 module, 0.1 KiB of 2,048.0 MiB\n"),
        (("verify",), 0, b"1 module unchanged\n"),
        (("clear",), 0, b"1 module removed\n"),
    ],
)
def test_the_real_command_leaves_the_same_status(
    arguments: tuple[str, ...], status: int, output: bytes, own: Own
) -> None:
    """In a process of its own."""
    fill(own, ("a", 10, 0))

    result = process("cache", *arguments)

    assert (result.returncode, result.stderr) == (status, b"")
    assert output in result.stdout


def test_the_real_command_says_that_something_was_changed(own: Own) -> None:
    """With a status that scripts see."""
    fill(own, ("a", 10, 0))
    (own.cache / "a.code").write_bytes(b"changed")

    result = process("cache", "verify")

    assert (result.returncode, result.stdout) == (1, b"0 modules unchanged\n")
    assert result.stderr == b"stockade: removed a: it is not as it was written\n"


@pytest.mark.parametrize("arguments", [("info",), ("info", "--json"), ("verify",), ("clear",)])
def test_names_that_are_no_text_are_told_all_the_same(own: Own, arguments: tuple[str, ...]) -> None:
    """The attack: a file in the cache whose name is not UTF-8."""
    fill(own, ("a", 10, 0))
    (own.cache / os.fsdecode(b"\xff\xfe.code")).write_bytes(b"x")

    result = process("cache", *arguments)

    assert result.returncode == int(arguments == ("verify",))
    told = {
        ("info",): b"  \\xff\\xfe  ",
        ("info", "--json"): b'"name": "\\udcff\\udcfe"',
        ("verify",): b"stockade: removed \\udcff\\udcfe: it is not as it was written\n",
        ("clear",): b"2 modules removed\n",
    }[arguments]
    assert told in result.stdout + result.stderr
