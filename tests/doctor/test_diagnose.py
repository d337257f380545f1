"""What is told of a machine: of this one, and of others by facts that are given. Holds P-JAIL-6."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest
from click.testing import CliRunner

from stockade import Policy
from stockade.cli import _doctor
from stockade.cli._commands import stockade as command
from stockade.doctor import Facts, diagnose, gather_facts
from stockade.jail import NAMESPACES, WALLS, JailReport, Step, rehearse
from tests.jail._jailed import ALWAYS, needs_linux

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def facts(
    missing: Mapping[str, str], *, landlock: int = 7, user: int = 1000, pool: bool = True, descriptors: int = 20_000
) -> Facts:
    """A machine that lacks some walls, for reasons."""
    return Facts(
        system="Linux 6.12.0, x86_64",
        python="3.13.1",
        wasmtime="50.0.1",
        user=user,
        jail=JailReport(tuple(Step(wall, wall not in missing, missing.get(wall, f"{wall} stands")) for wall in WALLS)),
        landlock=landlock,
        cgroups=2,
        groups_writable=False,
        pool=pool,
        descriptors=(descriptors, None),
        maps=65_530,
    )


CONTAINER = facts(
    dict.fromkeys(NAMESPACES, "the kernel refuses it (Operation not permitted)"),
    landlock=3,
    user=0,
    pool=False,
    descriptors=1024,
)


def said(monkeypatch: pytest.MonkeyPatch, found: Facts, *args: str) -> tuple[int, str]:
    """What the command says of a machine."""
    monkeypatch.setattr(_doctor, "gather_facts", lambda: found)
    result = CliRunner().invoke(command, ["doctor", *args], standalone_mode=False)
    assert result.exception is None, result.exception
    return int(result.return_value), result.output


def test_a_machine_with_all_walls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to be changed, and nothing in colour where nobody looks."""
    status, output = said(monkeypatch, facts({}), "--policy", "strict")

    assert status == 0
    assert output == (
        "Linux 6.12.0, x86_64, Python 3.13.1, wasmtime 50.0.1\n"
        + "".join(f"{wall:<15}  active  {wall} stands\n" for wall in WALLS)
        + "account          ok      user 1000\n"
        "cgroups          ok      version 2; not used: limits are the engine's and the kernel's rlimits\n"
        "address space    ok      enough for the engine's pool\n"
        "open files       ok      20,000 of at most any number\n"
        "memory maps      ok      65,530\n"
        "cache            ok      compiled modules are kept on disk\n"
        f"score inprocess  {Policy.preset('strict').score().value}      policy strict\n"
        f"score process    {Policy.preset('strict').score('process', WALLS).value}      policy strict\n"
    )


def test_a_container_with_few_walls(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing, why, and what to change for more; the score counts only what stands."""
    status, output = said(monkeypatch, CONTAINER)

    assert status == 1
    lines = output.splitlines()
    assert lines[1:5] == [
        "user             missing  the kernel refuses it (Operation not permitted)",
        (
            "                          for more: allow user namespaces: sysctl user.max_user_namespaces, "
            "kernel.unprivileged_userns_clone, or the container's profile; where only bubblewrap may have them, use "
            'isolation="bubblewrap"'
        ),
        "mount            missing  the kernel refuses it (Operation not permitted)",
        "                          for more: see user",
    ]
    start = lines.index(
        "landlock         partial  landlock stands; TCP is not confined, devices are not confined, signals "
        "and abstract sockets are not confined"
    )
    assert lines[start + 1 :] == [
        "                          for more: use Linux 6.12 or later",
        "seccomp          active   seccomp stands",
        "account          low      root",
        "                          for more: run as a user of its own, so that files of others are out of reach",
        "cgroups          ok       version 2; not used: limits are the engine's and the kernel's rlimits",
        "address space    low      not enough for the engine's pool: runs take longer",
        "                          for more: lift ulimit -v (RLIMIT_AS)",
        "open files       low      1,024 of at most any number",
        "                          for more: raise ulimit -n for more runs at once",
        "memory maps      ok       65,530",
        "cache            ok       compiled modules are kept on disk",
        f"score inprocess  {Policy().score().value}       policy default",
        f"score process    {Policy().score().value + 13}       policy default",
    ]


def test_a_cache_that_is_not_used_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It makes everything slow, and nothing else says so; what to do is told."""
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o755)
    monkeypatch.setenv("STOCKADE_CACHE", str(folder))

    found = msgspec.structs.replace(facts({}), cache=gather_facts().cache)
    status, output = said(monkeypatch, found)

    assert status == 0
    assert f"cache            low     modules are compiled again in each process: {folder} is not private" in output
    assert f"chmod 700 {folder}\n" in output
    folder.chmod(0o700)
    assert gather_facts().cache == ""


@pytest.mark.parametrize(("required", "status"), [((), 1), (("seccomp", "landlock"), 0), (("seccomp", "user"), 1)])
def test_the_exit_status_tells_what_is_required(
    monkeypatch: pytest.MonkeyPatch, required: tuple[str, ...], status: int
) -> None:
    """All walls, or those that are named."""
    assert said(monkeypatch, CONTAINER, *(word for wall in required for word in ("--require", wall)))[0] == status


def test_a_wall_that_nobody_knows_is_no_wall() -> None:
    """A misspelt requirement would always hold."""
    result = CliRunner().invoke(command, ["doctor", "--require", "seccmp"])

    assert result.exit_code == 2
    assert "Invalid value for '--require': 'seccmp' is not one of" in result.output


def test_json_has_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """For programs."""
    _, output = said(monkeypatch, CONTAINER, "--json")
    told = json.loads(output)

    assert set(told) == {"system", "findings", "walls", "policy", "scores"}
    assert told["walls"] == [wall for wall in WALLS if wall not in NAMESPACES]
    assert told["findings"][0] == {
        "name": "user",
        "state": "missing",
        "found": "the kernel refuses it (Operation not permitted)",
        "advice": (
            "allow user namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, or the "
            "container's profile; where only bubblewrap may have them, use "
            'isolation="bubblewrap"'
        ),
    }
    assert told["scores"] == {"inprocess": Policy().score().value, "process": Policy().score().value + 13}


@needs_linux
def test_this_machine_is_found_out_by_doing() -> None:
    """The walls are those that a process has found around itself."""
    found = gather_facts()

    assert {step.wall for step in found.jail.steps} == set(WALLS)
    assert set(ALWAYS) <= found.jail.active
    assert ("landlock" in found.jail.active) == (found.landlock > 0)
    told = diagnose(found, Policy())
    assert told.walls == tuple(wall for wall in WALLS if wall in found.jail.active)


def test_where_no_process_can_be_started_no_wall_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not known is not there."""
    monkeypatch.setattr("sys.executable", "/nowhere/python")

    report = rehearse()

    assert report.active == frozenset()
    assert {step.wall for step in report.steps} == set(WALLS)


def test_a_file_that_removes_system_calls_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be followed keeps all workers from running, and the twin is told with what it removes."""
    mine = tmp_path / "mine.json"
    mine.write_text('{"remove": ["openat2", "linkat"]}')
    monkeypatch.setenv("STOCKADE_SYSCALLS", str(mine))
    found = gather_facts()
    assert (found.removed, found.removed_problem) == (("linkat", "openat2"), "")
    told = diagnose(found, Policy()).findings
    assert ("system calls", "ok", "without linkat, openat2, by STOCKADE_SYSCALLS") in [
        (finding.name, finding.state, finding.found) for finding in told
    ]

    for path, text, problem in (
        (tmp_path / "nowhere", "", "cannot be read: No such file or directory"),
        (tmp_path / "bad.json", '{"remove": ["sendmsg"]}', "workers need sendmsg (frames): it cannot be removed"),
    ):
        if text:
            path.write_text(text)
        monkeypatch.setenv("STOCKADE_SYSCALLS", str(path))
        found = gather_facts()
        status, output = said(monkeypatch, found)
        assert status == 1
        separator = ": " if text else " "
        assert f"{path}{separator}{problem}" in " ".join(output.split())
        assert "mend the file that STOCKADE_SYSCALLS names: until then, nothing runs in a process of its own" in output
