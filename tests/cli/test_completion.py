"""What the shell is offered: presets, policy files, modules and exports."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from stockade import Module
from stockade.policy import PRESETS
from tests._commands import begun, ran
from tests.cli.test_run import NUMBERS, save

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with modules, policies, and what is neither."""
    save(tmp_path, NUMBERS, "numbers.wat")
    (tmp_path / "other.wasm").write_bytes(Module.load(b'(module (func (export "other")))', text=True).data)
    (tmp_path / "mine.toml").write_text("")
    (tmp_path / "mine.yaml").write_text("")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "bad\nplain,evil.toml").write_text("")
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "deep.toml").write_text("")
    return tmp_path


def offered(folder: Path, words: str, place: int) -> list[str]:
    """What bash gets for a command line with the cursor at a word."""
    asked = {**os.environ, "_STOCKADE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(place)}
    out, err = begun([], folder, asked, name="stockade").communicate(timeout=60)
    assert err == b""
    return [line for line in out.decode().splitlines() if line]


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("stockade run --policy ", 3),
        ("stockade bench --policy ", 3),
        ("stockade cache warm --policy ", 4),
        ("stockade policy init --preset ", 4),
        ("stockade policy show ", 3),
        ("stockade policy check strict ", 4),
        ("stockade policy diff strict ", 4),
    ],
)
def test_policies_are_presets_and_files(folder: Path, words: str, place: int) -> None:
    """All of them plain: one of another kind would have bash throw the presets away."""
    found = offered(folder, words, place)

    assert found == [f"plain,{name}" for name in (*PRESETS, "mine.toml", "mine.yaml", "nested/")]


def test_policies_begin_as_typed(folder: Path) -> None:
    """Presets, files, and files in folders."""
    assert offered(folder, "stockade run --policy m", 3) == ["plain,minimal", "plain,mine.toml", "plain,mine.yaml"]
    assert offered(folder, "stockade run --policy nested/", 3) == ["plain,nested/deep.toml"]
    assert offered(folder, "stockade run --policy ./mine.t", 3) == ["plain,./mine.toml"]
    # A folder is left to the shell, which puts no space behind it.
    assert offered(folder, "stockade run --policy nes", 3) == ["file,nes"]
    assert offered(folder, "stockade run --policy missing/", 3) == []


@pytest.mark.parametrize(
    ("words", "place"),
    [("stockade run ", 2), ("stockade inspect ", 2), ("stockade bench ", 2), ("stockade cache warm ", 3)],
)
def test_modules_are_files_of_that_kind(folder: Path, words: str, place: int) -> None:
    """And the folders in which there may be some."""
    assert offered(folder, words, place) == ["plain,numbers.wat", "plain,other.wasm", "plain,nested/"]


def test_exports_are_those_of_the_module(folder: Path) -> None:
    """Of the one that is named; before one is, of those that are here."""
    assert offered(folder, "stockade run --invoke s numbers.wat", 3) == ["plain,swap"]
    assert offered(folder, "stockade run --invoke  numbers.wat", 3) == [
        f"plain,{name}" for name in ("add", "half", "swap", "nothing")
    ]
    assert offered(folder, "stockade run --invoke ", 3) == [
        f"plain,{name}" for name in ("add", "half", "swap", "nothing", "other")
    ]
    assert offered(folder, "stockade run --invoke o", 3) == ["plain,other"]


def test_exports_of_hostile_modules_are_left_out(folder: Path) -> None:
    """The attack: a module is nonsense, or exports a function whose name is two lines, the second one a word."""
    (folder / "bad.wasm").write_bytes(b"nonsense")
    save(folder, '(module (func (export "x\\0aplain,evil")) (func (export "fine")))', "evil.wat")

    assert offered(folder, "stockade run --invoke  bad.wasm", 3) == []
    assert offered(folder, "stockade run --invoke  evil.wat", 3) == ["plain,fine"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_is_printed(shell: str) -> None:
    """What the shell is to evaluate."""
    done = ran(["completion", shell])

    assert done.returncode == 0
    assert b"_STOCKADE_COMPLETE" in done.stdout


def test_help_tells_where_each_script_goes() -> None:
    """For all three shells."""
    told = ran(["completion", "--help"]).stdout.decode()

    for line in (
        'eval "$(stockade completion bash)"',
        'eval "$(stockade completion zsh)"',
        "stockade completion fish > ~/.config/fish/completions/stockade.fish",
    ):
        assert line in told
