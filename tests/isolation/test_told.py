"""What a worker is told of a policy is all of it, and what the user has taken from workers. Holds P-ISO-7."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stockade import Mount, Outcome, Policy, PolicyError, Sandbox
from stockade.policy import Filesystem
from stockade.syscalls import load_table, this_platform
from tests.conftest import HELLO, wat
from tests.execution.test_outcomes import imports

if TYPE_CHECKING:
    from pathlib import Path

    from stockade.execution import Isolation

EPERM = 63
"""Of WASI."""

OPENS = """
(call $proc_exit (call $path_open (i32.const 3) (i32.const 0) (i32.const {place}) (i32.const 1) (i32.const 0)
  (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 64)))
"""


def opens(name: str) -> str:
    """A guest that opens a file of one letter, and exits with the errno."""
    return (
        f'(module {imports("path_open", "proc_exit")} (memory (export "memory") 1) (data (i32.const 32) "ab")'
        f' (func (export "_start") {OPENS.format(place=32 + "ab".index(name))}))'
    )


def test_paths_that_may_be_named_are_told(isolation: Isolation, tmp_path: Path) -> None:
    """Attack: a file of a mounted folder that the policy does not list, in a process where the list was forgotten."""
    for name in "ab":
        (tmp_path / name).write_text(name)
    policy = Policy(filesystem=Filesystem(mounts=(Mount(tmp_path, "/m", only=("a",)),)))
    box = Sandbox(policy, isolation=isolation)

    assert box.run(wat(opens("a"))).ok
    refused = box.run(wat(opens("b")))

    assert (refused.outcome, refused.exit_code) == (Outcome.EXIT, 2)
    assert [violation.field for violation in refused.violations] == ["filesystem.mounts.only"]


def test_calls_that_a_file_takes_away_are_taken_from_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy lets a guest make folders, the user's file no worker; the twin has the file not."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("remove: [mkdir, mkdirat]")
    folder = tmp_path / "out"
    folder.mkdir()
    mount = Mount(folder, "/out", "rw")
    policy = Policy(filesystem=Filesystem(mounts=(mount,), create=True))
    makes = wat(
        f'(module {imports("path_create_directory", "proc_exit")} (memory (export "memory") 1)'
        ' (data (i32.const 32) "ab") (func (export "_start") (call $proc_exit'
        " (call $path_create_directory (i32.const 3) (i32.const 32) (i32.const 1)))))"
    )
    assert Sandbox(policy, isolation="process").run(makes).ok
    (folder / "a").rmdir()
    monkeypatch.setenv("STOCKADE_SYSCALLS", str(mine))

    refused = Sandbox(policy, isolation="process").run(makes)

    assert (refused.outcome, refused.exit_code) == (Outcome.EXIT, EPERM)
    assert not (folder / "a").exists()


def test_a_wrong_file_is_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt name would remove nothing."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("remove: [opnat]")
    monkeypatch.setenv("STOCKADE_SYSCALLS", str(mine))

    with pytest.raises(PolicyError, match=r"mine\.yaml: opnat is neither a system call of the table nor a category"):
        Sandbox(isolation="process").run(wat(HELLO))


@pytest.mark.slow
def test_what_can_be_removed_workers_can_do_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call by itself: it is refused when the file is read, or a guest runs all the same."""
    platform = this_platform()
    assert platform is not None
    told: list[str] = []
    for call in load_table().on(platform):
        if call.worker != "allow":
            continue
        mine = tmp_path / f"{call.name}.json"
        mine.write_text(f'{{"remove": ["{call.name}"]}}')
        monkeypatch.setenv("STOCKADE_SYSCALLS", str(mine))
        problem, report = "", None
        try:
            report = Sandbox(isolation="process").run(wat(HELLO))
        except PolicyError as refusal:
            problem = str(refusal)
        if report is None:
            assert f"{call.name} (" in problem or f"without {call.name}" in problem
            told.append(call.name)
        else:
            assert report.ok, (call.name, report.summary())

    assert {"sendmsg", "recvmsg", "openat", "exit_group"} <= set(told)
    assert "linkat" not in told
