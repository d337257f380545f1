"""What a process has from the one that started it: environment, terminal, descriptors, and what it may use up."""

from __future__ import annotations

import ctypes
import os
import resource
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stockade.jail._libc import syscall

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.jail._model import Jail, ResourceLimits

__all__ = ["close_descriptors", "close_others", "empty_environment", "find_environment", "leave_session", "set_limits"]

_LAST: Final = 0xFFFF_FFFF
_STANDARD: Final = 3
_MOST_SIGNALS: Final = 256
"""Signals that wait to be delivered, which the kernel counts for the user."""

_ENVIRONMENT_FIELDS: Final = (47, 48)
"""Where `/proc/self/stat` tells the addresses of the environment, counted from behind the name (fields 50 and 51)."""


def empty_environment() -> str:
    """Empties the environment, and the memory that it was passed in.

    Raises:
        OSError: That memory cannot be found.
    """
    os.environb.clear()
    start, end = find_environment()
    if end > start:
        # SAFETY: the kernel tells where it put the environment, at the top of the stack, which stays mapped. Python and
        # the C library have been told above that there is none, so nobody reads it.
        ctypes.memset(start, 0, end - start)
    return "empty"


@cache
def find_environment() -> tuple[int, int]:
    """Returns where the environment was passed in, from where to where; a forked process has it at the same place.

    Raises:
        OSError: The kernel does not tell.
    """
    # To read this takes longer than all else that a jail takes.
    told = Path("/proc/self/stat").read_bytes().rpartition(b") ")[2].split()
    start, end = (int(told[place]) for place in _ENVIRONMENT_FIELDS)
    return start, end


def leave_session() -> str:
    """Begins a session of its own, without a terminal.

    Raises:
        OSError: The kernel does not do so.
    """
    if os.getsid(0) != os.getpid():
        os.setsid()
    return "its own, without a terminal"


def close_descriptors(jail: Jail) -> str:
    """Closes all descriptors but those of the jail; in the place of standard streams stands a file that takes all.

    Raises:
        OSError: One that is to be kept is not there.
    """
    kept = {*jail.keep, *jail.files, *(mount.descriptor for mount in jail.mounts)}
    for descriptor in kept:
        os.fstat(descriptor)
    missing = [stream for stream in range(_STANDARD) if stream not in kept]
    if missing:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in missing:
            if stream != nothing:
                os.dup2(nothing, stream)
        kept.update(missing)
    close_others(kept)
    return f"{len(kept)} are open"


def close_others(kept: set[int]) -> None:
    """Closes all descriptors but some.

    Args:
        kept: Those that stay open.
    """
    for first, last in _gaps(sorted(kept)):
        _close(first, last)


def _gaps(kept: list[int]) -> Iterator[tuple[int, int]]:
    first = 0
    for descriptor in kept:
        if descriptor > first:
            yield first, descriptor - 1
        first = descriptor + 1
    yield first, _LAST


def _close(first: int, last: int) -> None:
    try:
        syscall("close_range", first, last, 0)
    except OSError:  # kernels before 5.9
        os.closerange(first, min(last, resource.getrlimit(resource.RLIMIT_NOFILE)[1]) + 1)


def set_limits(limits: ResourceLimits) -> str:
    """Sets what this process may use, so that it cannot be raised again; never more than it has.

    Raises:
        OSError: The kernel does not do so.
        ValueError: The same.
    """
    wanted = {
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_NICE": 0,
        "RLIMIT_RTPRIO": 0,
        "RLIMIT_SIGPENDING": _MOST_SIGNALS,
        "RLIMIT_DATA": limits.data_bytes,
        "RLIMIT_AS": limits.address_space_bytes,
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_FSIZE": limits.file_size_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_NPROC": limits.processes,
    }
    told = []
    for name, value in wanted.items():
        if value is None:
            continue
        kind = getattr(resource, name)
        most = resource.getrlimit(kind)[1]
        least = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (least, least))
        told.append(f"{name.removeprefix('RLIMIT_').lower()} {least:,}")
    return ", ".join(told)
