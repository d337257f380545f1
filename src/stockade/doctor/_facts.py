"""What is found on this machine, by trying and by asking the kernel."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Final

import msgspec

from stockade.compilation import Cache
from stockade.engine import can_reserve_pool, wasmtime_version
from stockade.errors import PolicyError
from stockade.jail import JailReport, landlock_version, rehearse
from stockade.syscalls import calls_removed_by_user

__all__ = ["Facts", "gather_facts"]

_MAPS: Final = Path("/proc/sys/vm/max_map_count")
_GROUPS: Final = Path("/sys/fs/cgroup")


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        system: The kernel, its release and its architecture.
        python: The release of Python.
        wasmtime: The release of the library.
        user: The number of the user; None where there are none.
        jail: What came of each wall around a process that was made for that.
        landlock: The kernel's version of Landlock; 0 where it has none.
        cgroups: The version of control groups that is mounted: 0, 1 or 2.
        groups_writable: Whether this user may make groups of its own.
        pool: Whether the engine has the address space for its pool.
        descriptors: How many descriptors this process may have, and could be given; None where that is not limited.
        maps: How many memory maps a process may have; None where the kernel does not tell.
        cache: Why compiled modules are not kept on disk; empty where they are.
        removed: The system calls, and categories of them, that a file of the user's takes from workers.
        removed_problem: Why that file cannot be followed; "" where it can, or there is none.
    """

    system: str
    python: str
    wasmtime: str
    user: int | None
    jail: JailReport
    landlock: int
    cgroups: int
    groups_writable: bool
    pool: bool
    descriptors: tuple[int | None, int | None]
    maps: int | None
    cache: str = ""
    removed: tuple[str, ...] = ()
    removed_problem: str = ""


def gather_facts() -> Facts:
    """Finds out what this machine has. It takes as long as to start a process.

    Raises:
        EngineError: The wasmtime library is missing or unfit.
    """
    linux = sys.platform.startswith("linux")
    removed, removed_problem = _removed()
    return Facts(
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        python=platform.python_version(),
        wasmtime=wasmtime_version(),
        user=os.geteuid() if hasattr(os, "geteuid") else None,
        jail=rehearse(),
        landlock=landlock_version() if linux else 0,
        cgroups=_cgroups(),
        groups_writable=os.access(_own_group(), os.W_OK),
        pool=can_reserve_pool(),
        descriptors=_descriptors(),
        maps=_maps(),
        cache=_cache(),
        removed=removed,
        removed_problem=removed_problem,
    )


def _cache() -> str:
    store = Cache()
    store.entries()
    return store.problem


def _removed() -> tuple[tuple[str, ...], str]:
    try:
        return tuple(sorted(calls_removed_by_user())), ""
    except PolicyError as problem:
        return (), str(problem)


def _cgroups() -> int:
    if (_GROUPS / "cgroup.controllers").exists():
        return 2
    return 1 if (_GROUPS / "memory").exists() else 0


def _own_group() -> Path:
    """The folder of this process's group, in version 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return _GROUPS
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return _GROUPS / own


def _descriptors() -> tuple[int | None, int | None]:
    try:
        import resource
    except ImportError:
        return None, None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    return (None if soft == endless else soft), (None if hard == endless else hard)


def _maps() -> int | None:
    try:
        return int(_MAPS.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
