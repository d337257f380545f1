"""Files that commands write: whole or not at all, never through a link, and never where a guest says.

Holds P-REPORT-6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stockade import Policy
from tests.cli.test_run import save, stockade
from tests.conftest import HELLO

if TYPE_CHECKING:
    from pathlib import Path


def planting(name: str, target: str, *before: str) -> str:
    """A guest that makes a link in its first folder.

    Args:
        name: The name of the link.
        target: Where it leads.
        before: What it does first.
    """
    return f"""(module
  (import "wasi_snapshot_preview1" "path_symlink" (func $link (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_rename" (func $rename (param i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "{target}")
  (data (i32.const 64) "{name}")
  (data (i32.const 128) "moved")
  (func $plant (export "_start") {"".join(before)}
    (if (call $link (i32.const 0) (i32.const {len(target)}) (i32.const 3) (i32.const 64) (i32.const {len(name)}))
      (then unreachable)))
  (func (export "plant") (call $plant)))"""


def moving(name: str) -> str:
    """Moves what has a name out of the way."""
    return f"""(if (call $rename (i32.const 3) (i32.const 64) (i32.const {len(name)})
        (i32.const 3) (i32.const 128) (i32.const 5)) (then unreachable))"""


@pytest.fixture
def linking(tmp_path: Path) -> Path:
    """A policy under which links may be made."""
    path = tmp_path / "linking.toml"
    path.write_text("[filesystem]\nsymlinks = true\ndelete = true\n")
    return path


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (("learn", "-o", "OUT", "MODULE"), "the policy"),
        (("python", "--learn", "OUT", "-c", "1"), "the policy"),
        (("trace", "-o", "OUT", "MODULE"), "the trace"),
        (("snapshot", "MODULE", "OUT"), "the snapshot"),
        (("policy", "init", "--force", "OUT"), "the policy"),
        (("inspect", "--woven", "--force", "-o", "OUT", "MODULE"), "the module"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_link_that_a_guest_has_left_is_not_followed(command: tuple[str, ...], what: str, tmp_path: Path) -> None:
    """Attack: an earlier guest has left a link under the name that a command writes to. The user's file is as it was.

    Nothing runs, and the link is told.
    """
    precious, link = tmp_path / "precious", tmp_path / "out"
    precious.write_text("mine")
    link.symlink_to(precious)
    words = {"OUT": link, "MODULE": save(tmp_path, HELLO)}

    done = stockade(*(words.get(word, word) for word in command))

    assert (done.returncode, done.stdout) == (125, b"")
    assert f"{link} is a link: give {what} a file of its own" in done.stderr.decode()
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("command", ["learn", "trace", "snapshot"])
def test_a_link_that_the_guest_plants_is_not_followed(command: str, linking: Path, tmp_path: Path) -> None:
    """Attack: the guest makes a link where the command is about to write, in a folder that it may write to."""
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    module = save(tmp_path, planting("out", "precious"))
    options = ("--policy", linking, "--dir", f"{folder}::/data::rw")
    words = {
        "learn": ("-o", folder / "out", *options, module),
        "trace": ("-o", folder / "out", *options, module),
        "snapshot": ("--invoke", "plant", *options, module, folder / "out"),
    }

    done = stockade(command, *words[command])

    assert (folder / "precious").read_text() == "mine"
    if command == "trace":
        # It was there already: the guest finds that it cannot make its link.
        assert done.returncode == 134
        assert b"path_symlink" in (folder / "out").read_bytes()
        return
    if command == "snapshot":
        # The link itself is replaced.
        assert (done.returncode, (folder / "out").is_symlink()) == (0, False), done.stderr
        return
    assert (folder / "out").is_symlink(), done.stderr
    assert done.returncode == 125
    assert b"out is a link: give the policy a file of its own" in done.stderr


@pytest.mark.parametrize("command", ["learn", "snapshot"])
def test_a_folder_that_the_guest_exchanges_is_not_entered(command: str, linking: Path, tmp_path: Path) -> None:
    """Attack: the guest puts a link in the place of the folder that the command is about to write to."""
    folder, elsewhere = tmp_path / "shared", tmp_path / "elsewhere"
    (folder / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    module = save(tmp_path, planting("sub", "../elsewhere", moving("sub")))
    options = ("--policy", linking, "--dir", f"{folder}::/data::rw")
    words = {
        "learn": ("-o", folder / "sub" / "out", *options, module),
        "snapshot": ("--invoke", "plant", *options, module, folder / "sub" / "out"),
    }

    done = stockade(command, *words[command])

    assert done.returncode == 0, done.stderr
    assert (folder / "sub").is_symlink()
    assert [*elsewhere.iterdir()] == []
    assert [path.name for path in (folder / "moved").iterdir()] == ["out"]


def test_a_plain_file_is_replaced(tmp_path: Path) -> None:
    """The twin: what is no link may be written anew, and nothing else is left beside it."""
    module, out = save(tmp_path, HELLO), tmp_path / "sub" / "out"
    out.parent.mkdir()
    out.write_text("old")

    for command in (("learn", "-o", out, module), ("trace", "-o", out, module), ("snapshot", module, out)):
        before = out.read_bytes()
        assert stockade(*command).returncode == 0
        assert out.read_bytes() != before
        assert [*out.parent.iterdir()] == [out]
    assert stockade("policy", "init", "--force", out).returncode == 0
    assert Policy.load(out) == Policy(name="out")
