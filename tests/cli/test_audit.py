"""`stockade audit verify`, `--audit` and STOCKADE_LOG. Holds P-AUDIT-8."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from stockade import AuditLog, Module, Sandbox
from tests._commands import ran
from tests.audit._logs import events, names
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    path = tmp_path / "guests" / "hello.wasm"
    path.parent.mkdir()
    path.write_bytes(wat(HELLO).data)
    return path


def run(*arguments: object, **variables: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command."""
    done = ran([*map(str, arguments)], env={**os.environ, **variables})
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_a_run_is_put_on_record_and_checked(hello: Path, tmp_path: Path) -> None:
    """And a second one goes on with the chain."""
    log = tmp_path / "audit.jsonl"
    plain = run("run", hello)
    for _ in range(2):
        assert run("run", "--audit", log, hello) == plain

    assert names(log) == 2 * ["configuration", "policy_used", "module_loaded", "run_started", "run_ended"]
    status, said, problem = run("audit", "verify", log)
    assert (status, problem) == (0, "")
    assert said.startswith("10 events, all as written. The last seal is ")


def test_what_was_changed_is_told_with_the_exit_status(hello: Path, tmp_path: Path) -> None:
    """Each finding in a line of its own, with the file and the line."""
    log = tmp_path / "audit.jsonl"
    run("run", "--audit", log, hello)
    lines = log.read_text().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if "run_ended" in line)
    lines[at] = lines[at].replace('"ok"', '"no"')
    log.write_text("".join(lines))

    status, said, _ = run("audit", "verify", log)
    assert status == 1
    assert said.startswith(f"NOT AS WRITTEN: {log}:{at + 1}: this line was changed: it is not the one that was written")

    status, said, _ = run("audit", "verify", "--json", log)
    told = json.loads(said)
    assert status == 1
    assert (told["ok"], told["findings"][0]["line"]) == (False, at + 1)


def test_a_log_that_is_not_there_is_wrong_use(tmp_path: Path) -> None:
    """Unless it was there once."""
    AuditLog(tmp_path / "another").close()  # From then on the user has a key.
    assert run("audit", "verify", tmp_path / "none") == (
        125,
        "",
        f"stockade: there is no audit log at {tmp_path}/none, and none was written there\n",
    )
    assert run("audit", "verify", "--head", "x", "--no-head", tmp_path / "none")[0] == 125


def test_a_key_that_others_may_read_is_none(hello: Path, tmp_path: Path) -> None:
    """The attack: whoever reads the key seals what was changed. A slip of the operator's, which is told in words."""
    log, key = tmp_path / "audit.jsonl", tmp_path / "key"
    secret = bytes(range(32))
    key.write_bytes(secret)
    with AuditLog(log, key=secret) as told, Sandbox(audit=told) as box:
        box.run(Module.load(hello))

    for mode in (0o644, 0o640, 0o620, 0o604):
        key.chmod(mode)
        assert run("audit", "verify", "--key", key, log) == (
            125,
            "",
            f"stockade: the key {key} cannot be read: another user's, or others may read or write it: chmod 600 it\n",
        )

    key.chmod(0o600)
    assert run("audit", "verify", "--key", key, log)[0] == 0


def test_nothing_runs_where_the_log_cannot_be_written(hello: Path, tmp_path: Path) -> None:
    """It was asked for."""
    (tmp_path / "log").symlink_to(hello)

    status, said, problem = run("run", "--audit", tmp_path / "log", hello)

    assert (status, said) == (125, "")
    assert problem.startswith(f"stockade: the audit log {tmp_path}/log is a link")


def test_what_cannot_be_run_is_put_on_record(tmp_path: Path) -> None:
    """A file that is no module, and one that is not there."""
    log = tmp_path / "audit.jsonl"
    (tmp_path / "bad.wasm").write_bytes(b"\0asm\1\0\0\0\xff")

    assert run("run", "--audit", log, tmp_path / "bad.wasm")[0] == 126
    assert run("run", "--audit", log, tmp_path / "none.wasm")[0] == 127

    assert [event["subject"] for event in events(log) if event["event"] == "module_refused"] == [
        "InvalidModule",
        "ModuleNotFound",
    ]


def test_levels_are_for_stderr_and_the_guests_stdout_is_its_own(hello: Path) -> None:
    """STOCKADE_LOG says how much is told."""
    plain = run("run", hello)

    status, said, told = run("run", hello, STOCKADE_LOG="info")
    assert (status, said) == plain[:2]
    assert [line.split()[1] for line in told.splitlines()] == [
        "configuration",
        "policy_used",
        "module_loaded",
        "run_started",
        "run_ended",
    ]
    for level in ("warning", "error", "off"):
        assert run("run", hello, STOCKADE_LOG=level) == plain
    status, said, told = run("run", hello, STOCKADE_LOG="loud")
    assert (status, said) == (125, "")
    assert told.startswith("Usage: ")
    assert told.endswith("Error: STOCKADE_LOG is loud: use one of debug, info, warning, error, off\n")


@pytest.mark.parametrize("command", ["trace", "learn"])
def test_runs_that_are_looked_at_are_put_on_record(command: str, hello: Path, tmp_path: Path) -> None:
    """With the same option."""
    log = tmp_path / "audit.jsonl"

    assert run(command, "--audit", log, hello)[0] == 0

    assert names(log)[-2:] == ["run_started", "run_ended"]
    assert run("audit", "verify", log)[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        *(
            pytest.param(words, marks=pytest.mark.slow)
            for words in (("trace", "-o"), ("learn", "-o"), ("python", "--learn"), ("snapshot",))
        ),
    ],
)
def test_what_runs_is_not_written_over(words: tuple[str, ...], hello: Path, tmp_path: Path) -> None:
    """A slip of the hand: the output is named as the module is, also by a link; it stays as it is, and nothing runs."""
    link, second, before = tmp_path / "link.txt", tmp_path / "second.txt", hello.read_bytes()
    link.symlink_to(hello)
    second.hardlink_to(hello)

    for same in (hello, link, second, hello.parent / ".." / "guests" / hello.name):
        if words == ("snapshot",):
            status, said, problem = run("snapshot", hello, same)
            assert (status, said) == (125, "")
            assert problem.endswith(f"Error: {same} is what is to run: what is written needs a file of its own\n")
            assert hello.read_bytes() == before
            continue
        given = [f"--report={same}"] if words == ("run",) else [words[1], same]
        status, said, problem = run(words[0], *given, hello)
        assert (status, said) == (125, "")
        assert problem.endswith(f"Error: {same} is what is to run: what is written needs a file of its own\n")
        assert hello.read_bytes() == before


@pytest.mark.parametrize("words", [("run", "--audit"), ("trace", "-o"), ("learn", "-o"), ("python", "--learn")])
def test_no_option_is_taken_for_a_file(
    words: tuple[str, str], hello: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip of the hand: the name of the file is missing."""
    monkeypatch.chdir(tmp_path)

    status, said, problem = run(*words, "--quiet", hello)

    assert (status, said) == (125, "")
    assert problem.endswith(
        f"Error: {words[1]} needs a FILE, and --quiet begins as an option does: write ./--quiet for a file that is "
        "called so\n"
    )
    assert not (tmp_path / "--quiet").exists()
    if words[0] == "run":
        assert run("run", "--audit", "./--quiet", hello)[0] == 0
        assert (tmp_path / "--quiet").exists()


@pytest.mark.parametrize("command", [("run", "--report"), ("trace", "-o"), ("learn", "-o")])
def test_nothing_else_is_written_to_the_log(command: tuple[str, str], hello: Path, tmp_path: Path) -> None:
    """It would be lost: a slip of the hand, also where a link leads there; a file beside it is written."""
    log = tmp_path / "audit.json"
    (tmp_path / "link.json").symlink_to(log)
    name, option = command

    for same in (log, tmp_path / "link.json"):
        status, said, problem = run(name, "--audit", log, option, same, hello)
        assert (status, said) == (125, "")
        assert problem.endswith(f"Error: {same} is the audit log, too: what else is written needs a file of its own\n")
        assert not log.exists()
    assert run(name, "--audit", log, option, tmp_path / "other.json", hello)[0] == 0


def test_code_is_put_on_record(tmp_path: Path) -> None:
    """With the same option."""
    log = tmp_path / "audit.jsonl"

    assert run("js", "--audit", log, "-c", "console.log(6 * 7)")[1] == "42\n"

    assert names(log)[-2:] == ["run_started", "run_ended"]
    assert run("audit", "verify", log)[0] == 0
