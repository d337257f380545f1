"""What native code does that has got out of a guest, and the engine: in a jail all of it is refused.

Each attempt is made in a jailed process by ctypes and plain system calls, and by a twin without the jail, where it
works. Holds P-JAIL-2.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.jail._jailed import needs_linux, prisoner

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_linux

NOBODY = 65534

REFUSED = {
    # files
    "open_passwd": "EACCES|ENOENT",
    "list_root": "EACCES",
    "open_own_environment": "EACCES",
    "load_library": "cannot open shared object file: .*",
    "open_passwd_from_mount": "EACCES|ENOENT",
    "open_by_path_descriptor": "EACCES|ENOENT",
    "write_outside": "EACCES|ENOENT",
    "link_outside": "EACCES|EXDEV|ENOENT",
    "rename_out": "EACCES|EXDEV",
    "read_inherited": "EBADF",
    "write_own_code": "EACCES",
    "make_link": "EACCES",
    "lock_file": "EPERM",
    "mark_file": "EPERM",
    "change_mode": "EPERM",
    "make_fifo": "EPERM",
    "make_device": "EPERM",
    "open_by_handle": "EPERM",
    # a mount that may be read
    "write_readonly": "EACCES|EROFS",
    "cut_readonly": "EACCES|EROFS",
    "cut_readonly_by_path": "EPERM",
    "reopen_with_more_rights": "EACCES|EROFS",
    "reopen_by_path_descriptor": "EACCES|EROFS",
    "make_in_readonly": "EACCES|EROFS",
    "remove_from_readonly": "EACCES|EROFS",
    "rename_in_readonly": "EACCES|EROFS",
    "link_into_writable": "EACCES|EXDEV",
    "rename_into_writable": "EACCES|EXDEV|EROFS",
    "link_into_readonly": "EACCES|EXDEV|EROFS",
    "rename_into_readonly": "EACCES|EXDEV|EROFS",
    "exchange_with_readonly": "EACCES|EXDEV|EROFS",
    # network
    "connect": "EPERM",
    "unix_socket": "EPERM",
    "netlink": "EPERM",
    # processes and programs
    "fork": "EPERM",
    "raw_clone": "EPERM",
    "clone3_process": "ENOSYS",
    "execve": "EPERM",
    "execute_true": "EPERM",
    "execute_memory": "EPERM",
    # others
    "ptrace_parent": "EPERM",
    "process_vm_readv": "EPERM",
    # EPERM where the kernel still knows the folder by an earlier look: /proc hides who may not be traced.
    "read_parent_memory": "EACCES|ENOENT|EPERM",
    "open_init_memory": "EACCES|ENOENT|EPERM",
    "signal_parent": "EPERM",
    "signal_all": "EPERM",
    "signal_group": "EPERM",
    "signal_thread": "EPERM",
    "signal_by_descriptor": "EPERM",
    "queue_signal": "EPERM",
    "own_by_fcntl": "EPERM",
    "steal_descriptor": "EPERM",
    "limit_of_parent": "EPERM",
    "pin_parent": "EPERM",
    "slow_parent": "EPERM",
    "schedule_parent": "EPERM",
    # namespaces, mounts, users
    "user_namespace": "EPERM",
    "network_namespace": "EPERM",
    "enter_own_namespace": "EPERM",
    "mount_nothing": "EPERM",
    "mount_by_descriptors": "EPERM",
    "clone_root": "EPERM",
    "chroot": "EPERM",
    "become_nobody": "EPERM",
    "name_host": "EPERM",
    # the kernel
    "keyring": "EPERM",
    "personality": "EPERM",
    "raise_limit": "EPERM",
    "io_uring": "EPERM",
    "old_rings": "EPERM",
    "bpf": "EPERM",
    "userfaultfd": "EPERM",
    "perf_event": "EPERM",
    "watch_files": "EPERM",
    "watch_all_files": "EPERM",
    "read_kernel_log": "EPERM",
    "make_timer": "EPERM",
    "other_segments": "EPERM",
    # what is shared by name
    "shared_segment": "EPERM",
    "semaphores": "EPERM",
    "message_queue": "EPERM",
    "named_queue": "EPERM",
    # a terminal
    "type_into_terminal": "EPERM",
    "switch_terminal": "EPERM",
    # its own walls
    "become_traceable": "EPERM",
    "drop_filter": "EPERM",
    "report_to_another": "EPERM",
    # code and memory of its own
    "write_and_run": "EPERM",
    "write_and_execute_at_once": "EPERM",
    "data_is_code": "EPERM",
    "share_memory": "EPERM",
}
"""Attempts, and how they fail in a jail, by any of its walls."""

REFUSED_BY_MOUNTS = {
    "look_at_parent": "ENOENT",
    "stat_passwd": "ENOENT",
    "stat_above_mount": "ENOENT",
    "touch_outside": "ENOENT",
    "touch_above_mount": "ENOENT",
    "touch_readonly": "EROFS",
    "open_device": "EACCES",
}
"""The same for what Landlock does not know: a namespace of mounts is needed."""

TAKES_ROOT = (
    *("open_passwd_from_mount", "write_outside", "read_parent_memory", "chroot", "become_nobody"),
    *("make_device", "open_by_handle", "change_mode", "enter_own_namespace", "mount_nothing", "mount_by_descriptors"),
    *("clone_root", "name_host", "watch_all_files", "read_kernel_log", "type_into_terminal", "queue_signal"),
    *("write_outside", "touch_above_mount", "touch_outside", "touch_readonly", "open_device", "network_namespace"),
    *("limit_of_parent", "make_fifo"),
)
"""What no other user can do without a jail either. The tests may run as another user."""

ELSEWHERE = {
    "make_device": "EPERM",
    "open_device": "ENOENT|EACCES",
    "mark_file": "ENOTSUP",
    "execute_memory": "EACCES",
    "ptrace_parent": "EPERM",
    "process_vm_readv": "EPERM",
    "read_parent_memory": "EACCES",
    "open_init_memory": "EACCES|EPERM",
    "user_namespace": "EPERM|ENOSPC|ENOSYS",
    "network_namespace": "EPERM",
    "enter_own_namespace": "EPERM",
    "mount_nothing": "EPERM|EACCES",
    "mount_by_descriptors": "EPERM",
    "clone_root": "EPERM",
    "open_by_handle": "EPERM|ENOTSUP",
    "name_host": "EPERM",
    "keyring": "ENOSYS|EPERM",
    "io_uring": "EPERM|ENOSYS",
    "old_rings": "ENOSYS",
    "bpf": "EPERM|ENOSYS",
    "userfaultfd": "EPERM|ENOSYS",
    "perf_event": "EPERM|EACCES|ENOSYS|ENOENT",
    "watch_all_files": "EPERM|ENOSYS",
    "read_kernel_log": "EPERM",
    "other_segments": "ENOSYS",
    "named_queue": "ENOSYS",
    "type_into_terminal": "EIO|EPERM",
    "switch_terminal": "EPERM",
    "signal_by_descriptor": "ENOSYS",
    "steal_descriptor": "ENOSYS|EPERM",
}
"""How some machines and containers refuse to all what they are asked for, before there is any jail."""

STILL_WORKS = (
    *("read_mount", "read_mount_by_proc", "write_mount", "rename_in_mount"),
    *("start_thread", "signal_itself", "reserve_gigabytes"),
)

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "namespaces": {"namespaces": True},
    "nobody": {"user": NOBODY},
    "nobody in namespaces": {"user": NOBODY, "namespaces": True},
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that the user of the prisoner may use, in one that it must not."""
    path = Path(tempfile.mkdtemp(prefix="stockade-jail-"))
    path.chmod(0o777)
    for name, file in (("mount", "hello"), ("readonly", "kept"), ("readonly", "empty"), ("point", "")):
        (path / name).mkdir(exist_ok=True)
        (path / name).chmod(0o777)
        if file:
            (path / name / file).write_text(file)
            (path / name / file).chmod(0o666)
    (path / "secret").write_text("secret")
    (path / "beside").touch()
    for name in ("secret", "beside"):
        (path / name).chmod(0o666)
    if os.geteuid() == 0:
        with suppress(OSError):
            os.mknod(path / "readonly" / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    yield path
    shutil.rmtree(path)


def library() -> str:
    """A library that Python does not load by itself."""
    found = [
        path
        for folder in ("/usr/lib", "/lib")
        for path in Path(folder).glob("*-linux-gnu/lib[pr]*.so.*")
        if path.is_file()
    ]
    if not found:
        pytest.skip("there is no library to load")
    return str(found[0])


def surroundings(folder: Path) -> dict[str, Any]:
    """What the attempts are told of."""
    return {
        "outside": str(folder / "outside"),
        "secret": str(folder / "secret"),
        "mountpoint": str(folder / "point"),
        "library": library(),
    }


def mounts(folder: Path) -> list[dict[str, Any]]:
    """One that is writable, and one that is not."""
    rights = {"writable": True, "create": True, "delete": True}
    return [{"path": str(folder / "mount"), **rights}, {"path": str(folder / "readonly")}]


_TOLD: dict[str, dict[str, Any]] = {}


def attempted(folder: Path, setting: str) -> dict[str, Any]:
    """What came of all attempts in a jail; they are made once."""
    if setting not in _TOLD:
        options = SETTINGS[setting]
        if "user" in options and os.geteuid() != 0:
            pytest.skip("to become another user takes root")
        _TOLD[setting] = prisoner(
            jail={"mounts": mounts(folder), "on_forbidden": "errno", "executable": False},
            attempts=[*REFUSED, *REFUSED_BY_MOUNTS, *STILL_WORKS],
            **surroundings(folder),
            **options,
        )
        assert not (folder / "outside").exists()
        found = {name: sorted(file.name for file in (folder / name).iterdir()) for name in ("mount", "readonly")}
        assert found["mount"] == ["hello"]
        assert set(found["readonly"]) - {"zero"} == {"empty", "kept"}
        assert [(folder / "readonly" / name).read_text() for name in ("empty", "kept")] == ["empty", "kept"]
    return _TOLD[setting]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("attempts", [REFUSED, REFUSED_BY_MOUNTS], ids=["everywhere", "by mounts"])
def test_attempts_are_refused(folder: Path, setting: str, attempts: dict[str, str]) -> None:
    """Attack: code that is out of the guest and the engine, with all that a process of this user may do."""
    told = attempted(folder, setting)
    if "landlock" not in told["steps"] or not told["steps"]["landlock"][0]:
        pytest.skip("this kernel has no Landlock")
    if attempts is REFUSED_BY_MOUNTS and not told["steps"].get("mount", [False])[0]:
        pytest.skip("there is no namespace of mounts")

    came = {attempt: told["attempts"][attempt] for attempt in attempts}
    assert {
        attempt: came[attempt]
        for attempt, how in attempts.items()
        if not re.search(rf"^(?:{how})$|: (?:{how})$", came[attempt])
    } == {}


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_a_worker_needs_still_works(folder: Path, setting: str) -> None:
    """The positive side: its mount, by descriptor and by /proc, threads, signals to itself, address space."""
    told = attempted(folder, setting)["attempts"]

    assert {name: told[name] for name in STILL_WORKS} == dict.fromkeys(STILL_WORKS, "worked")


@pytest.mark.parametrize("attempt", [*REFUSED, *REFUSED_BY_MOUNTS])
def test_without_the_jail_it_works(folder: Path, attempt: str) -> None:
    """The twin of each: nothing is refused because it could not work anyway."""
    if attempt in TAKES_ROOT and os.geteuid() != 0:
        pytest.skip("without a jail, too, it takes root")
    if "none" not in _TOLD:
        _TOLD["none"] = prisoner(mounts=mounts(folder), attempts=[*REFUSED, *REFUSED_BY_MOUNTS], **surroundings(folder))
        (folder / "outside").unlink(missing_ok=True)
        for name in ("fifo", "device"):
            (folder / "mount" / name).unlink(missing_ok=True)
    came = _TOLD["none"]["attempts"][attempt]
    if attempt == "open_init_memory":
        # The first process of a namespace, for that of the machine may be out of reach.
        came = prisoner(namespaces=True, attempts=[attempt])["attempts"][attempt]
    if attempt in ELSEWHERE and re.fullmatch(ELSEWHERE[attempt], came):
        pytest.skip(f"this machine lets nobody do that ({came})")

    assert came == "worked"
