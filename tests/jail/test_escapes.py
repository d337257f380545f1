"""What native code does that has got out of a guest, and the engine: in a jail all of it is refused.

Each attempt is made in a jailed process by ctypes and plain system calls, and by a twin without the jail, where it
works. Holds P-JAIL-2.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.jail._jailed import needs_linux, prisoner

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_linux

NOBODY = 65534

WORKS_WITHOUT = {
    # files
    "open_passwd": "EACCES|ENOENT",
    "list_root": "EACCES",
    "open_own_environment": "EACCES",
    "load_library": "cannot open shared object file: .*",
    # network
    "connect": "EPERM",
    "unix_socket": "EPERM",
    "netlink": "EPERM",
    # processes and programs
    "fork": "EPERM",
    "raw_clone": "EPERM",
    "clone3_process": "ENOSYS",
    "execute_true": "EPERM",
    # others
    "signal_group": "EPERM",
    "own_by_fcntl": "EPERM",
    # the kernel
    "keyring": "EPERM",
    "personality": "EPERM",
    "raise_limit": "EPERM",
    # code of its own
    "write_and_run": "EPERM",
    "write_and_execute_at_once": "EPERM",
}
"""Attempts that work for any user without a jail, and how they fail in one, by any of its walls."""

WORKS_FOR_ROOT = {
    "open_passwd_from_mount": "EACCES",
    "write_outside": "EACCES|ENOENT",
    "read_parent_memory": "EACCES",
    "signal_parent": "EPERM",
    "queue_signal": "EPERM",
    "chroot": "EPERM",
    "become_nobody": "EPERM",
    "change_mode": "EPERM",
    "limit_of_parent": "EPERM",
    "make_fifo": "EPERM",
}
"""The same for what needs root, or files of root's, without a jail. The tests may run as another user."""

WORKS_SOMEWHERE = {
    "link_outside": "EACCES|EXDEV|EPERM|ENOENT",
    "execve": "EPERM",
    "ptrace_parent": "EPERM",
    "process_vm_readv": "EPERM",
    "open_init_memory": "EACCES",
    "user_namespace": "EPERM",
    "network_namespace": "EPERM",
    "mount_nothing": "EPERM",
    "io_uring": "EPERM",
    "bpf": "EPERM",
    "userfaultfd": "EPERM",
    "perf_event": "EPERM",
    "make_device": "EPERM",
    "open_by_handle": "EPERM",
}
"""The same for what some machines refuse to all."""

STILL_WORKS = (
    *("read_mount", "read_mount_by_proc", "write_mount", "rename_in_mount"),
    *("start_thread", "signal_itself", "reserve_gigabytes"),
)

REFUSED = {**WORKS_WITHOUT, **WORKS_FOR_ROOT, **WORKS_SOMEWHERE}

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
    mount = path / "mount"
    mount.mkdir()
    (mount / "hello").write_text("hello")
    mount.chmod(0o777)
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


_TOLD: dict[str, dict[str, Any]] = {}


def attempted(folder: Path, setting: str) -> dict[str, Any]:
    """What came of all attempts in a jail; they are made once."""
    if setting not in _TOLD:
        options = SETTINGS[setting]
        if "user" in options and os.geteuid() != 0:
            pytest.skip("to become another user takes root")
        mount = {"path": str(folder / "mount"), "writable": True, "create": True, "delete": True}
        _TOLD[setting] = prisoner(
            jail={"mounts": [mount], "on_forbidden": "errno", "executable": False},
            attempts=[*REFUSED, *STILL_WORKS],
            outside=str(folder / f"outside-{setting}"),
            library=library(),
            **options,
        )
    return _TOLD[setting]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("attempt", REFUSED)
def test_attempts_are_refused(folder: Path, setting: str, attempt: str) -> None:
    """Attack: code that is out of the guest and the engine, with all that a process of this user may do."""
    told = attempted(folder, setting)
    if "landlock" not in told["steps"] or not told["steps"]["landlock"][0]:
        pytest.skip("this kernel has no Landlock")

    came = told["attempts"][attempt]
    assert re.search(rf"^(?:{REFUSED[attempt]})$|: (?:{REFUSED[attempt]})$", came), came
    assert not (folder / f"outside-{setting}").exists()
    assert not (folder / "mount" / "stolen").exists()
    assert not (folder / "mount" / "fifo").exists()


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_a_worker_needs_still_works(folder: Path, setting: str) -> None:
    """The positive side: its mount, by descriptor and by /proc, threads, signals to itself, address space."""
    told = attempted(folder, setting)["attempts"]

    assert {name: told[name] for name in STILL_WORKS} == dict.fromkeys(STILL_WORKS, "worked")


def test_without_the_jail_they_work(folder: Path) -> None:
    """The twin: nothing of the above is refused because it could not work anyway."""
    names = [*WORKS_WITHOUT, *(WORKS_FOR_ROOT if os.geteuid() == 0 else ())]
    told = prisoner(
        mounts=[{"path": str(folder / "mount")}],
        attempts=names,
        outside=str(folder / "outside"),
        library=library(),
    )["attempts"]
    for name in ("fifo", "stolen"):
        (folder / "mount" / name).unlink(missing_ok=True)

    assert {name: came for name, came in told.items() if came not in ("worked", "EEXIST")} == {}
    assert (folder / "outside").exists() == (os.geteuid() == 0)
    (folder / "outside").unlink(missing_ok=True)
