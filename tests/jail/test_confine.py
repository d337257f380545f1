"""The jail: its walls in their order, where the kernel lacks some, and what is required.

Holds P-JAIL-4 and P-JAIL-5.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from stockade.jail import NAMESPACES, WALLS
from stockade.jail._libc import number_of
from tests.jail._jailed import ALWAYS, needs_linux, prisoner, run_prisoner

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_linux

LANDLOCK = 444


@pytest.fixture
def mount(tmp_path: Path) -> dict[str, Any]:
    """A folder that is granted, with one file."""
    (tmp_path / "hello").write_text("hello")
    return {"path": str(tmp_path), "writable": True, "create": True, "delete": True}


def test_walls_are_raised_in_their_order() -> None:
    """What a later one takes away, the earlier ones need; each says what it does, and the process has tried them."""
    told = prisoner(jail={}, namespaces=True)

    assert tuple(told["steps"]) == WALLS
    assert WALLS[: len(NAMESPACES)] == NAMESPACES
    for wall in ALWAYS:
        active, detail = told["steps"][wall]
        assert active, detail
        assert detail
    if told["steps"]["landlock"][0] and told["steps"]["seccomp"][0]:
        assert told["tried"] == [
            "read its environment",
            "open a folder of the host's",
            "start a process",
            "execute a program",
            "open a socket",
            "trace a process",
            "signal its parent",
            "enter a namespace",
            "set up a ring",
            "load a program into the kernel",
        ]


def test_paths_of_the_host_lead_nowhere(tmp_path: Path) -> None:
    """Attack: to look whether a file is there, and to change its times, which Landlock does not know."""
    outside = tmp_path / "outside"
    outside.write_text("x")
    before = outside.stat().st_mtime
    names = ["stat_passwd", "touch_outside"]
    told = prisoner(jail={}, namespaces=True, attempts=names, outside=str(outside))
    if not told["steps"]["mount"][0]:
        pytest.skip("this machine gives no namespace of mounts")

    assert told["attempts"] == dict.fromkeys(names, "ENOENT")
    assert outside.stat().st_mtime == before
    assert prisoner(jail={}, attempts=names, outside=str(outside))["attempts"] == dict.fromkeys(names, "worked")


def test_a_file_in_memory_keeps_no_wall_away(mount: dict[str, Any]) -> None:
    """Attack: machine code in a file without a path, for which Landlock takes no rule, and all files are open."""
    told = prisoner(jail={"mounts": [mount]}, memory_file=True, attempts=["open_passwd", "read_mount"])
    if not prisoner(jail={})["steps"]["landlock"][0]:
        pytest.skip("this kernel has no Landlock")

    assert told["steps"]["landlock"][0]
    assert told["attempts"] == {"open_passwd": "EACCES", "read_mount": "worked"}


def test_without_namespaces_of_users_there_are_fewer_walls() -> None:
    """A container whose filter refuses `unshare`: the others stand, and it is said which do not, and why."""
    told = prisoner(jail={}, namespaces=True, without=[number_of("unshare")])

    for wall in NAMESPACES:
        active, detail = told["steps"][wall]
        assert not active
        assert detail.startswith("the kernel refuses it (Function not implemented): ")
    assert all(told["steps"][wall][0] for wall in (*ALWAYS, "seccomp"))


def test_without_landlock_there_is_one_wall_less(mount: dict[str, Any]) -> None:
    """An older kernel: said so, and the rest stands. Files are open then to whatever this user may open."""
    told = prisoner(jail={"mounts": [mount]}, without=[LANDLOCK], attempts=["read_mount", "open_passwd"])

    assert told["steps"]["landlock"] == [
        False,
        "the kernel has no Landlock, or it is switched off (lsm= on its command line)",
    ]
    assert told["steps"]["seccomp"][0]
    assert told["attempts"] == {"read_mount": "worked", "open_passwd": "worked"}
    assert "open a folder of the host's" not in told["tried"]


def test_what_is_required_and_not_there_is_refused() -> None:
    """Fail closed: nothing runs behind fewer walls than the policy wants."""
    refused = prisoner(jail={"require": ["landlock", "seccomp"]}, without=[LANDLOCK])

    assert refused == {
        "refused": (
            "the policy requires walls that this machine does not give (landlock: the kernel has no Landlock, or it is "
            "switched off (lsm= on its command line)): run stockade doctor, or require less"
        )
    }
    assert prisoner(jail={"require": ["user"]}) == {
        "refused": (
            "the policy requires walls that this machine does not give (user: was not raised): run stockade doctor, or "
            "require less"
        )
    }
    told = prisoner(jail={}, namespaces=True, require_namespaces=["network"], without=[number_of("unshare")])
    assert told["refused"].startswith("the policy requires walls that this machine does not give (network: ")


def test_without_seccomp_there_is_one_wall_less() -> None:
    """A kernel that takes no filter."""
    told = prisoner(jail={}, without=[number_of("seccomp")], attempts=["raw_clone"])

    assert told["steps"]["seccomp"] == [False, "Function not implemented"]
    assert told["attempts"] == {"raw_clone": "worked"}


@pytest.mark.parametrize("attempt", ["raw_clone", "execve", "connect", "user_namespace", "ptrace_parent", "chroot"])
def test_forbidden_calls_end_the_process(attempt: str) -> None:
    """By default: an exploit has one attempt, and it shows in the exit status."""
    came = run_prisoner(jail={}, attempts=["open_passwd", attempt, "read_mount"])

    assert came.status == 128 + signal.SIGSYS
    assert came.begun == 2


def test_other_numbers_end_the_process() -> None:
    """Those of x32, under the same architecture."""
    if os.uname().machine != "x86_64":
        pytest.skip("x32 is of x86-64")
    came = run_prisoner(jail={"on_forbidden": "errno"}, attempts=["x32"])

    assert came.status == 128 + signal.SIGSYS


def test_nothing_becomes_executable_where_code_is_loaded(mount: dict[str, Any]) -> None:
    """As in workers; the twin is a jail in which machine code can be loaded."""
    attempts = ["write_and_run", "start_thread", "read_mount"]
    told = prisoner(jail={"mounts": [mount]}, attempts=attempts)
    assert told["attempts"] == dict.fromkeys(attempts, "worked")

    told = prisoner(jail={"mounts": [mount], "executable": False}, attempts=attempts)
    assert told["attempts"] == {"write_and_run": "EPERM", "start_thread": "worked", "read_mount": "worked"}


@pytest.mark.parametrize(
    ("rights", "refused"),
    [
        ({}, {"write_mount", "rename_in_mount", "write_much"}),
        ({"writable": True, "create": True}, {"rename_in_mount"}),
        ({"writable": True, "delete": True}, {"write_mount", "rename_in_mount", "write_much"}),
        ({"writable": True, "create": True, "delete": True}, set()),
    ],
)
def test_rights_of_a_mount(mount: dict[str, Any], rights: dict[str, bool], refused: set[str]) -> None:
    """Landlock knows the same rights as the guard: to rename takes both, to write to a new file takes two."""
    names = ["read_mount", "write_mount", "rename_in_mount", "write_much"]
    told = prisoner(jail={"mounts": [{"path": mount["path"], **rights}]}, attempts=names)
    if not told["steps"]["landlock"][0]:
        pytest.skip("this kernel has no Landlock")

    assert told["attempts"] == {name: "EACCES" if name in refused else "worked" for name in names}


def test_limits_are_the_kernels(mount: dict[str, Any]) -> None:
    """Memory that is written to, file size, descriptors; what is only reserved does not count."""
    limits = {"data_bytes": 200 << 20, "file_size_bytes": 1 << 20, "open_files": 50}
    told = prisoner(
        jail={"mounts": [mount], "limits": limits},
        attempts=["reserve_gigabytes", "fill_memory", "write_much", "open_many"],
    )

    assert told["attempts"] == {
        "reserve_gigabytes": "worked",
        "fill_memory": "ENOMEM",
        "write_much": "EFBIG",
        "open_many": "EMFILE",
    }
    assert told["steps"]["limits"][1] == (
        "core 0, memlock 0, msgqueue 0, nice 0, rtprio 0, sigpending 256, data 209,715,200, fsize 1,048,576, nofile 50"
    )


@pytest.mark.slow
def test_processor_time_is_the_kernels() -> None:
    """A loop that ignores the warning is ended by the kernel."""
    came = run_prisoner(jail={"limits": {"cpu_seconds": 1}}, attempts=["burn"])

    assert came.status == 128 + signal.SIGKILL


@pytest.mark.slow
def test_threads_are_limited() -> None:
    """Attack: threads until the machine has no number for another process; no limit of its own counts those of root."""
    told = prisoner(jail={}, namespaces=True, attempts=["start_many_threads"])
    if not told["steps"]["pid"][0] or tuple(map(int, os.uname().release.split(".")[:2])) < (6, 14):
        pytest.skip("namespaces of this kernel do not number processes themselves")

    assert told["attempts"] == {"start_many_threads": "EAGAIN"}
    assert prisoner(jail={}, attempts=["start_many_threads"])["attempts"] == {"start_many_threads": "worked"}


def test_calls_that_a_file_removes_are_refused(mount: dict[str, Any]) -> None:
    """The user's own table holds in the filter."""
    told = prisoner(
        jail={"mounts": [mount], "remove": ["renameat", "renameat2", "rename"]}, attempts=["rename_in_mount"]
    )

    assert told["attempts"] == {"rename_in_mount": "EPERM"}


def test_a_process_with_threads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: another thread stays outside of Landlock, and of the filter."""
    told = prisoner(jail={}, thread=True)

    assert told == {
        "refused": "this process has other threads, which would stay outside the jail: confine it before they start"
    }


def test_the_environment_is_gone_from_memory() -> None:
    """What /proc/self/environ shows is the memory that it was passed in."""
    told = prisoner(jail={}, without=[LANDLOCK], attempts=["find_environment"])

    assert told["attempts"] == {"find_environment": "worked"}
