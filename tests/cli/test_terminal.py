"""What may reach a terminal, and what a stderr that is full or closed may change: nothing.

Holds P-TEXT-1.
"""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests._commands import COMMAND, ran
from tests._examples import part
from tests.cli.test_run import LOOP, in_terminal, save, speaker, stockade
from tests.conftest import HELLO

if TYPE_CHECKING:
    from collections.abc import Sequence

HOSTILE = "\x9b31m\u202edrowssap\U000e0041[link=https://evil.example]x[/link]"
"""A C1 control sequence, a change of direction, a tag that nobody sees, and markup that would be a link."""

ENDINGS = ("\x1b]8;", "\x1b]0;", "\x9b", "\u202e", "\U000e0041")
"""What must never reach a terminal as it is: hyperlinks and titles, C1, bidirectional controls, tags."""


def harmless(shown: bytes) -> str:
    """What a terminal was sent, if nothing in it steers it."""
    text = shown.decode()
    assert not [bad for bad in ENDINGS if bad in text], text
    return text.replace("\r\n", "\n")


def policy_file(folder: Path) -> Path:
    """A policy with hostile texts in it."""
    path = folder / "p.toml"
    path.write_text(f'name = "n{HOSTILE}"\n[environment]\nset = {{ A = "{HOSTILE}" }}\n')
    return path


def hostile_module(folder: Path) -> Path:
    """A module with hostile names, under one."""
    name = HOSTILE.encode()
    text = "".join(f"\\{byte:02x}" for byte in name)
    return save(
        folder,
        f'(module (func $f (export "_start") unreachable) (func (export "{text}")))',
        f"{HOSTILE.replace('/', ' ')}.wat",
    )


def test_the_report_as_json_is_harmless_on_a_terminal_and_still_json(tmp_path: Path) -> None:
    """The attack: a guest writes controls that JSON lets through as they are (C1, directions, tags)."""
    said = f"{HOSTILE}\n"
    guest = save(tmp_path, speaker(said.encode()))
    status, shown, _ = in_terminal(["stdout"], "run", "--json", guest)

    assert status == 0
    assert json.loads(harmless(shown))["stdout"] == said
    assert json.loads(stockade("run", "--json", guest).stdout)["stdout"] == said


@pytest.mark.parametrize("command", [("show",), ("init", "--preset")], ids=["show", "init"])
def test_policies_as_toml_are_harmless_on_a_terminal_and_still_toml(command: Sequence[str], tmp_path: Path) -> None:
    """The attack: a policy from somebody else has controls in its texts."""
    status, shown, _ = in_terminal(["stdout"], "policy", *command, policy_file(tmp_path))

    assert status == 0
    assert tomllib.loads(harmless(shown))["environment"]["set"] == {"A": HOSTILE}
    piped = stockade("policy", *command, policy_file(tmp_path)).stdout.decode()
    assert tomllib.loads(piped)["environment"]["set"] == {"A": HOSTILE}


def test_policies_as_json_are_harmless_on_a_terminal_and_still_json(tmp_path: Path) -> None:
    """The attack: the same, in what `show`, `diff` and `explain` print as JSON."""
    path = policy_file(tmp_path)
    _, shown, _ = in_terminal(["stdout"], "policy", "show", "--json", path)
    assert json.loads(harmless(shown))["environment"]["set"] == {"A": HOSTILE}
    status, shown, _ = in_terminal(["stdout"], "policy", "diff", "--json", "default", path)
    assert status == 1
    assert HOSTILE in json.dumps(json.loads(harmless(shown)), ensure_ascii=False)
    for command in (("explain",), ("explain", "--json"), ("score",), ("diff", "default")):
        _, shown, _ = in_terminal(["stdout", "stderr"], "policy", *command, path)
        assert harmless(shown)


def test_modules_are_harmless_on_a_terminal(tmp_path: Path) -> None:
    """The attack: names of a file and of exports in everything that is told of a module, also while it is compiled."""
    path = hostile_module(tmp_path)
    for command in (
        ("inspect",),
        ("inspect", "--all"),
        ("inspect", "--json"),
        ("inspect", "--woven"),
        ("inspect", "--woven", "--json"),
        ("run",),
        ("run", "--report"),
        ("run", "--json"),
        ("cache", "warm"),
    ):
        _, shown, _ = in_terminal(["stdout", "stderr"], *command, path)
        assert harmless(shown), command


@pytest.mark.parametrize(
    "command",
    [
        ("run", f"/nowhere/{HOSTILE}"),
        ("run", "--dir", HOSTILE, "GUEST"),
        ("run", "--env", HOSTILE.replace("=", ""), "GUEST"),
        ("run", "--policy", HOSTILE, "GUEST"),
        ("run", f"--{HOSTILE}", "GUEST"),
        ("run", "--returns", HOSTILE, "GUEST"),
        ("policy", "init", f"/nowhere/{HOSTILE}"),
        ("policy", "check", HOSTILE),
        (HOSTILE,),
    ],
    ids=["file", "dir", "env", "policy", "option", "choice", "init", "check", "command"],
)
def test_messages_are_harmless_on_a_terminal(command: Sequence[str], tmp_path: Path) -> None:
    """The attack: whoever can choose an argument of a script has it shown in a message."""
    guest = save(tmp_path, HELLO)
    status, shown, _ = in_terminal(["stdout", "stderr"], *(guest if part == "GUEST" else part for part in command))

    assert status >= 125
    assert "drowssap" in harmless(shown)


def test_what_is_written_is_told_harmlessly(tmp_path: Path) -> None:
    """The attack: the name of a policy's file, in the line that says that it was written."""
    path = tmp_path / "\x1b]0;pwned\x07\u202e.toml"
    status, shown, _ = in_terminal(["stderr"], "policy", "init", path)

    assert (status, path.is_file()) == (0, True)
    assert r"\x1b]0;pwned\x07\u202e.toml" in harmless(shown).replace("\n", "")


def test_ordinary_text_reaches_a_terminal_as_it_is(tmp_path: Path) -> None:
    """The twin: letters of any script, lines and tabs are nobody's attack."""
    said = "naïve 東京 🙂\tx\n"
    status, shown, _ = in_terminal(["stdout"], "run", save(tmp_path, speaker(said.encode())))
    assert (status, harmless(shown)) == (0, said)
    status, shown, _ = in_terminal(["stdout"], "run", "--json", save(tmp_path, speaker(said.encode())))
    assert json.loads(shown.decode())["stdout"] == said
    assert "naïve 東京 🙂" in shown.decode()


TRAP = '(module (func (export "_start") unreachable))'
STDERRS = {"full": "2>/dev/full", "closed": "2>&-", "read only": "2</dev/null"}


@pytest.mark.parametrize(
    "where",
    [
        pytest.param(where, id=name, marks=pytest.mark.slow if name == "read only" else ())
        for name, where in STDERRS.items()
    ],
)
@pytest.mark.parametrize(
    ("status", "text", "options"),
    part(
        [
            pytest.param(134, TRAP, (), id="trap"),
            pytest.param(134, TRAP, ("--report",), id="report"),
            pytest.param(124, LOOP, ("--timeout", "50ms", "--fuel", "unlimited"), id="time"),
            pytest.param(137, LOOP, ("--fuel", "1000"), id="fuel"),
            pytest.param(127, None, (), id="missing"),
            pytest.param(0, HELLO, ("--report",), id="ok"),
            pytest.param(0, speaker(b"psst\n", stream=2), (), id="guest"),
            pytest.param(0, speaker(b"psst\n", stream=2), ("--live",), id="live"),
            pytest.param(3, speaker(b"psst\n", stream=2, exit_code=3), (), id="exit"),
            pytest.param(125, HELLO, ("--timeout", "soon"), id="usage"),
        ]
    ),
)
def test_a_stderr_that_takes_nothing_does_not_change_the_status(
    status: int, text: str | None, options: Sequence[str], where: str, tmp_path: Path
) -> None:
    """Scripts look at the exit status; where messages go is another matter, a full disk included."""
    path = tmp_path / "none.wasm" if text is None else save(tmp_path, text)
    words = ["run", *options, str(path)]
    if where == STDERRS["full"]:
        with Path("/dev/full").open("wb") as full:
            done = ran(words, stderr=full)
    else:
        done = subprocess.run(
            ["/bin/sh", "-c", f'"$@" {where}', "sh", *COMMAND, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=60,
            check=False,
        )

    assert done.returncode == status
    assert done.stdout == (b"hello world\n" if text is HELLO and status == 0 else b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_terminal_can_be_written_to(encoding: str, tmp_path: Path) -> None:
    """What an encoding lacks is escaped; nothing ends in a traceback."""
    for command in (("policy", "score", "default"), ("policy", "diff", "default", "strict"), ("policy", "schema")):
        done = ran(command, env={**os.environ, "PYTHONIOENCODING": encoding})
        assert done.stderr == b""
        assert done.stdout.decode(encoding)
