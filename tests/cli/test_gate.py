"""P-GATE-5, P-GATE-6: `stockade gate` releases what was kept aside, and `stockade run` prints what may leave."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from stockade import Policy, Sandbox
from stockade.cli._commands import stockade as command
from stockade.gate import GateRules, quarantined
from tests._commands import ran
from tests._folders import use_state
from tests.gate._guests import printer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Something that was kept aside."""
    use_state(tmp_path / "state", monkeypatch)
    with Sandbox(Policy(gate=GateRules(keys="quarantine"))) as box:
        return box.run(printer({1: b"password=hunt3r2 \x1b[31m"})).quarantine


def _run(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, ["gate", *args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return 1, str(done.exception)
    return done.exit_code, done.output


def test_what_is_kept_aside_is_listed_and_shown_without_its_content(kept: str) -> None:
    status, listed = _run("list")
    assert status == 0
    assert kept in listed
    assert "password" in listed

    status, shown = _run("show", kept)
    assert status == 0
    assert shown == (
        f"{kept}: of <bytes>, under the policy default\n"
        "  stdout: 22 bytes\n  stderr: 0 bytes\n"
        "  found password (h…2) in stdout, from byte 9 on\n"
    )
    assert "hunt3r2" not in shown
    assert json.loads(_run("show", kept, "--json")[1])["id"] == kept
    assert [each["id"] for each in json.loads(_run("list", "--json")[1])] == [kept]


def test_what_a_killed_process_has_left_is_said(kept: str, tmp_path: Path) -> None:
    left = tmp_path / "state" / "quarantine" / ".new-0123456789ab"
    left.mkdir(mode=0o700)
    (left / "part-0").write_bytes(b"secret")

    status, listed = _run("list")

    assert status == 0
    assert "removed what was not kept whole of 1 run: the process that kept it was killed" in listed
    assert kept in listed
    assert not left.exists()
    assert "removed" not in _run("list")[1]


def test_what_is_released_is_written_and_kept_no_longer(kept: str, tmp_path: Path) -> None:
    target = tmp_path / "out"

    status, written = _run("release", kept, "--to", str(target))

    assert status == 0
    assert str(target / "stdout") in written
    assert (target / "stdout").read_bytes() == b"password=hunt3r2 \x1b[31m"
    assert quarantined() == []
    assert _run("list") == (0, "nothing is kept aside\n")


def test_nothing_is_written_over(kept: str, tmp_path: Path) -> None:
    """The attack: the folder that is written to is there already, with a link in it."""
    status, told = _run("release", kept, "--to", str(tmp_path))

    assert status == 1
    assert "is there already: name a folder that is not" in told
    assert [each.id for each in quarantined()] == [kept]


def test_what_is_deleted_is_gone(kept: str) -> None:
    assert _run("delete", kept) == (0, f"{kept} is deleted\n")
    assert quarantined() == []
    assert _run("show", kept)[0] == 1


def test_what_run_prints_has_passed_the_gate(tmp_path: Path) -> None:
    """The attack: a guest prints a key, which `stockade run` would pass on to the terminal at once."""
    policy = tmp_path / "policy.toml"
    policy.write_text('[gate]\nkeys = "redact"\n')
    module = tmp_path / "guest.wasm"
    module.write_bytes(printer({1: b"password=hunt3r2 and more\n"}).data)

    done = ran(["run", "--policy", policy, module])

    assert done.returncode == 0
    assert b"hunt3r2" not in done.stdout + done.stderr
    assert done.stdout == b"password=[redacted:password] and more\n"


@pytest.mark.parametrize("isolation", ["inprocess", "process"])
def test_what_was_held_is_printed_at_the_end(tmp_path: Path, isolation: str) -> None:
    """Output ends in what a secret begins with, so that it is held until it is known that nothing comes behind it."""
    policy = tmp_path / "policy.toml"
    policy.write_text('[custom]\nsecrets = ["API_KEY"]\n')
    module = tmp_path / "guest.wasm"
    module.write_bytes(printer({1: b"this ends in not-a-re", 2: b"and so does not-a"}).data)
    arguments = ["--isolation", isolation, "--policy", str(policy), "--secret", "API_KEY=env:MY_KEY", str(module)]

    done = ran(["run", *arguments], env={**os.environ, "MY_KEY": "not-a-real-key"})

    assert done.returncode == 0
    assert done.stdout == b"this ends in not-a-re"
    assert b"and so does not-a" in done.stderr
