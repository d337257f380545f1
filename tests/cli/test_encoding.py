"""The command line on terminals and files that cannot take everything."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests._commands import ran
from tests.cli.test_run import LOOP, save, speaker
from tests.conftest import HELLO

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "encoding", ["ascii", *(pytest.param(name, marks=pytest.mark.slow) for name in ("latin-1", "cp1252"))]
)
@pytest.mark.parametrize(
    "command",
    [
        "policy score strict",
        "policy diff strict minimal",
        "policy explain permissive",
        "policy explain missing.toml",
        "policy show strict",
        "policy init",
        "policy schema --markdown",
        "inspect GUEST",
        "inspect --woven GUEST",
        "bench --cold 1 --hot 1",
        "run --report GUEST",
        "run --json GUEST",
    ],
)
def test_any_encoding_will_do(tmp_path: Path, encoding: str, command: str) -> None:
    """What the encoding cannot say is replaced; nothing fails, and nothing is written in another encoding."""
    name = "\u2192\u00e9.wat"
    save(tmp_path, HELLO, name)

    words = [name if word == "GUEST" else word for word in command.split()]
    done = ran(words, cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": encoding})

    assert b"Traceback" not in done.stderr
    assert done.returncode in ((125,) if "missing" in command else (0, 1))
    done.stdout.decode(encoding)
    done.stderr.decode(encoding)
    if command.startswith("run --json"):
        assert json.loads(done.stdout)["module"]["name"] == name


def test_our_own_characters_have_a_plain_form(tmp_path: Path) -> None:
    """Bars and arrows stay readable in ASCII; in UTF-8 they are what they are."""
    shown = {}
    for encoding in ("ascii", "utf-8"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        shown[encoding] = ran(["policy", "diff", "strict", "minimal"], env=environment).stdout

    assert shown["ascii"].splitlines()[0] == b'name                  "strict" -> "minimal"'
    assert shown["utf-8"].splitlines()[0] == 'name                  "strict" → "minimal"'.encode()


def test_guest_output_on_a_file_keeps_its_bytes(tmp_path: Path) -> None:
    """The encoding of a terminal is nothing to a file: bytes pass as they are."""
    data = "é→\n".encode()
    done = ran(["run", save(tmp_path, speaker(data))], env={**os.environ, "PYTHONIOENCODING": "ascii"})

    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["run", "TRAP"], 134),
        (["run", "--report", "TRAP"], 134),
        (["run", "missing.wasm"], 127),
        (["run", "--timeout", "300ms", "--fuel", "unlimited", "LOOP"], 124),
        (["run", "--nonsense"], 125),
    ],
    ids=["trap", "report", "missing", "timeout", "usage"],
)
def test_full_stderr_changes_no_exit_status(tmp_path: Path, arguments: list[str], status: int) -> None:
    """What was to be said is lost; the exit status says it all the same."""
    files = {
        "TRAP": save(tmp_path, '(module (func (export "_start") unreachable))', "trap.wat"),
        "LOOP": save(tmp_path, LOOP, "loop.wat"),
    }
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        done = ran([files.get(word, word) for word in arguments], cwd=tmp_path, stderr=full)

    assert done.returncode == status
