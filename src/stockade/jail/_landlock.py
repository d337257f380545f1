"""Landlock: which files this process may come to, by what it has open (Documentation/userspace-api/landlock.rst).

All rights that the kernel's version knows are taken, and given back for exactly the folders and files of the jail.
Structures and numbers are the same on all architectures. What the version knows beyond files is taken, too: TCP,
signals to processes outside, sockets in the abstract namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from stockade.jail._libc import syscall

if TYPE_CHECKING:
    from stockade.jail._model import Granted, Jail

__all__ = ["landlock_version", "restrict_files"]

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG: Final = 1
_PATH_BENEATH: Final = 1

_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 7, 1 << 8, 1 << 12
_REFER, _TRUNCATE = 1 << 13, 1 << 14

_FILE_RIGHTS: Final = (0, (1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1, (1 << 15) - 1, (1 << 16) - 1)
"""All rights on files that each version knows; later ones know those of the last."""

_TCP_SINCE, _TCP = 4, 3
"""The version that knows TCP, and its rights: to bind and to connect."""

_SCOPES_SINCE, _SCOPES = 6, 3
"""The version that confines abstract sockets and signals, and their bits."""


def landlock_version() -> int:
    """Returns the kernel's version of Landlock; 0 where it has none, or it is switched off."""
    try:
        return syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def restrict_files(jail: Jail) -> str:
    """Confines this process to the folders and files of a jail.

    Args:
        jail: The jail.

    Returns:
        What is confined.

    Raises:
        OSError: The kernel does not do so.
    """
    version = landlock_version()
    if not version:
        raise OSError(0, "the kernel has no Landlock, or it is switched off (lsm= on its command line)")
    known = _FILE_RIGHTS[min(version, len(_FILE_RIGHTS) - 1)]
    fields = struct.pack(
        "<QQQ", known, _TCP if version >= _TCP_SINCE else 0, _SCOPES if version >= _SCOPES_SINCE else 0
    )
    size = 24 if version >= _SCOPES_SINCE else 16 if version >= _TCP_SINCE else 8
    # SAFETY: the structure is as long as the size that is told, and each version knows its fields.
    ruleset = syscall(_CREATE_RULESET, ctypes.create_string_buffer(fields, 24), size, 0)
    try:
        for mount in jail.mounts:
            _add(ruleset, mount.descriptor, _rights_of(mount) & known)
        for file in jail.files:
            folder = stat.S_ISDIR(os.fstat(file).st_mode)
            _add(ruleset, file, _READ_FILE | _READ_DIR * folder)
        syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    more = [", TCP"] * (version >= _TCP_SINCE) + [", signals, abstract sockets"] * (version >= _SCOPES_SINCE)
    count = len(jail.mounts) + len(jail.files)
    return f"version {version}: files ({count} granted){''.join(more)}"


def _rights_of(mount: Granted) -> int:
    rights = _READ_FILE | _READ_DIR
    if mount.writable:
        rights |= _WRITE_FILE | _TRUNCATE
    if mount.create:
        rights |= _MAKE_DIR | _MAKE_REG
    if mount.delete:
        rights |= _REMOVE_DIR | _REMOVE_FILE
    if mount.create and mount.delete:
        rights |= _REFER
    if mount.symlinks:
        rights |= _MAKE_SYM
    return rights


def _add(ruleset: int, descriptor: int, rights: int) -> None:
    # SAFETY: `struct landlock_path_beneath_attr` is packed: 8 bytes of rights, 4 of a descriptor.
    rule = ctypes.create_string_buffer(struct.pack("<Qi", rights, descriptor), 12)
    try:
        syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    except OSError as problem:
        # What is in memory only has no path, so that no rule is for it, and none is needed.
        if problem.errno != errno.EBADFD:
            raise
