"""What is left to a worker, as its policy and its guest need it."""

from __future__ import annotations

import math
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stockade.jail import Granted, Jail, JailReport, ResourceLimits, Wall

if TYPE_CHECKING:
    import socket

    from stockade.isolation._prepared import Prepared

__all__ = ["REQUIRED_WALLS", "jail_of"]

REQUIRED_WALLS: Final[frozenset[Wall]] = frozenset({"environment", "descriptors", "limits", "privileges", "seccomp"})
"""Walls without which no worker runs anything. Landlock and namespaces stand where the machine gives them."""

_SPARE_BYTES: Final = 256 << 20
"""What a worker may use of memory, or write into a file, beyond what its guest may."""

_RESERVED_BYTES: Final = 16 << 30
"""What the engine reserves for a memory, at most, when it has no pool."""

_THREADS: Final = 4096
"""Threads of all workers, which have a few each; the kernel counts them for all users but root."""

_SPARE_SECONDS: Final = 10

_SPARE_FILES: Final = 4096
"""A worker needs few. But the kernel refuses to send a descriptor where all processes of its user together have
more under way than the sender may have open."""


def jail_of(program: Prepared, line: socket.socket, table: int | None) -> Jail:
    """What a worker is left with.

    Args:
        program: What it is to run.
        line: The socket to the host.
        table: The kernel's table of its pages, where its guest is called any number of times, and snapshots are taken.
    """
    policy = program.order.policy
    limits, files = policy.limits, policy.filesystem
    # The guard lets through what it takes note of, and so must the kernel.
    noted = policy.on_violation == "audit"
    mounts = tuple(
        Granted(
            descriptor,
            writable=mount.mode == "rw",
            create=mount.mode == "rw" and (files.create or noted),
            delete=mount.mode == "rw" and (files.delete or noted),
            symlinks=mount.mode == "rw" and (files.symlinks or noted),
        )
        for mount, descriptor in zip(files.mounts, program.context.mounts.descriptors, strict=True)
    )
    output = 2 * limits.stdout + limits.stderr
    # A snapshot is a file, too.
    largest = max(limits.file_size or 0, output, 0 if table is None else limits.memory)
    seconds = limits.wall_time if table is None else None
    keep = [line.fileno()]
    if program.code is not None:
        keep += program.code.files
    if table is not None:
        keep.append(table)
    return Jail(
        mounts=mounts,
        keep=tuple(keep),
        limits=ResourceLimits(
            data_bytes=_own_bytes(5) + limits.memory + 2 * output + _SPARE_BYTES,
            # What it has run for is looked at elsewhere; this is for a worker that nobody looks after any more.
            cpu_seconds=None if seconds is None else 2 * math.ceil(seconds) + _SPARE_SECONDS,
            file_size_bytes=None if limits.file_size is None or noted else largest + _SPARE_BYTES,
            open_files=None if noted else limits.open_files + len(mounts) + _SPARE_FILES,
            # Also of what is only read: tables of pages are the kernel's memory.
            address_space_bytes=_own_bytes(0) + (limits.memories + 2) * _RESERVED_BYTES,
            processes=_THREADS if "user" in JailReport(program.namespaces).active else None,
        ),
        executable=False,
        remove=frozenset(program.order.removed),
        require=REQUIRED_WALLS,
    )


def _own_bytes(field: int) -> int:
    """What this process has already: of addresses, or as the sixth field of what its limit on data counts."""
    pages = int(Path("/proc/self/statm").read_bytes().split()[field])
    return pages * resource.getpagesize()
