"""File systems that are no folders of files, but a way to the kernel: no guest may be granted any of them."""

from __future__ import annotations

import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from stockade._text import printable

__all__ = ["kernel_file_system"]

_TABLE: Final = Path("/proc/self/mountinfo")

_FORBIDDEN: Final = frozenset(
    (
        *("proc", "sysfs", "devtmpfs", "devpts", "devfs", "securityfs", "selinuxfs", "smackfs", "apparmorfs"),
        *("tracefs", "debugfs", "configfs", "bpf", "cgroup", "cgroup2", "cpuset", "resctrl", "efivarfs", "pstore"),
        *("binfmt_misc", "mqueue", "fusectl", "rpc_pipefs", "nfsd", "functionfs", "gadgetfs", "usbfs", "usbdevfs"),
        *("binder", "xenfs", "openpromfs", "spufs", "hypfs", "ibmasmfs", "oprofilefs", "ocfs2_dlmfs", "dlmfs"),
        *("nsfs", "pidfs", "pipefs", "sockfs", "anon_inodefs", "bdev", "secretmem", "guest_memfd"),
    )
)

_DEVICES: Final = Path("/dev")


class _Mounted(NamedTuple):
    """A file system where it is mounted."""

    number: str
    path: str
    kind: str


def kernel_file_system(descriptor: int, path: str) -> str:
    """Says of a folder what of the kernel's a guest would reach through it; nothing if nothing.

    Args:
        descriptor: The folder, open.
        path: Where it is, without links.

    Returns:
        The end of a sentence that begins with the folder.
    """
    if not sys.platform.startswith("linux"):
        return _as_devices(descriptor)
    try:
        told = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
        table = _read(_TABLE.read_bytes())
    except OSError as problem:
        return f"lies on a file system of unknown kind ({problem.filename}: {problem.strerror}): mount /proc first"
    number = re.search(r"^mnt_id:\s*(\d+)$", told, re.MULTILINE)
    kind = next((entry.kind for entry in table if number is not None and entry.number == number[1]), None)
    if kind is None:
        return "lies on a file system of unknown kind, which the kernel does not list in /proc/self/mountinfo"
    if kind in _FORBIDDEN:
        return f"lies on {printable(kind)}, {_WHY}"
    below = path.rstrip("/") + "/"
    for entry in table:
        if entry.kind in _FORBIDDEN and entry.path.startswith(below):
            return f"covers {printable(entry.path, 400)}, which is {printable(entry.kind)}, {_WHY}"
    return _as_devices(descriptor)


_WHY: Final = "through which a guest would reach the kernel and other processes: mount a folder of files"


def _as_devices(descriptor: int) -> str:
    """Says the same of the folder of devices, which in containers lies on a file system like any other."""
    try:
        devices, root, status = _DEVICES.stat(), Path("/").stat(), os.fstat(descriptor)
    except OSError:
        return ""
    if (devices.st_dev, devices.st_ino) == (status.st_dev, status.st_ino):
        return f"is the folder of devices, {_WHY}"
    if devices.st_dev == status.st_dev != root.st_dev:
        return f"lies in the folder of devices, {_WHY}"
    return ""


@lru_cache(1)  # It is asked for each folder that is granted, and seldom changes.
def _read(table: bytes) -> tuple[_Mounted, ...]:
    """Reads the kernel's list: number, parent, device, root, path, options, others up to a dash, kind and more."""
    found = []
    for line in table.splitlines():
        before, _, after = line.partition(b" - ")
        fields = before.split(b" ")
        if len(fields) > 4 and after:
            kind = after.split(b" ")[0].decode(errors="replace").partition(".")[0]
            found.append(_Mounted(fields[0].decode(errors="replace"), _unescaped(fields[4]), kind))
    return tuple(found)


def _unescaped(path: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8) & 0xFF]), path))
