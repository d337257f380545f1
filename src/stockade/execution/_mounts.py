"""Checking mounts before anything runs: what cannot be granted exactly as written is refused."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from stockade._text import printable
from stockade.engine import private_folders
from stockade.errors import PolicyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.engine import Directory
    from stockade.execution._host_code import HostCode
    from stockade.policy import Mount

__all__ = ["Grants"]


class Grants:
    """Folders that guests may reach, held open from the moment they were checked.

    Native WASI is given the open folder, not its path: whoever can rename things on the way to it (another guest, in a
    folder that contains it) cannot make it another folder. They are let go of when nothing refers to this any
    more: closing them under a run in another thread would give their numbers, and so other folders, to its guest.

    Args:
        mounts: The mounts of a policy.

    Raises:
        PolicyError: One cannot be granted.
    """

    def __init__(self, mounts: Sequence[Mount]) -> None:
        self._mounts = tuple(mounts)
        self._descriptors: list[int] = []
        weakref.finalize(self, _close_all, self._descriptors)
        directories: list[Directory] = []
        for real, mount in _check_mounts(mounts):
            try:
                descriptor = os.open(real, _OPEN_FOLDER)
            except OSError as problem:
                reason = f"{printable(str(real), 400)}: {problem.strerror}"
                raise PolicyError(f"the mount {printable(mount.guest)} cannot be made: {reason}") from None
            self._descriptors.append(descriptor)
            host = f"/proc/self/fd/{descriptor}" if _HAS_PROC else str(real)
            directories.append((os.fsencode(host), mount.guest.encode(), mount.mode == "rw"))
        self.directories = tuple(directories)

    def check(self) -> None:
        """Checks that the folders still are.

        Raises:
            PolicyError: One was removed.
        """
        for descriptor, mount in zip(self._descriptors, self._mounts, strict=True):
            if os.fstat(descriptor).st_nlink == 0:
                raise PolicyError(
                    f"the mount {printable(mount.guest)} has no folder behind it any more: "
                    f"{printable(mount.host, 400)} was removed"
                )


_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HAS_PROC = Path("/proc/self/fd").is_dir()


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _check_mounts(mounts: Sequence[Mount]) -> list[tuple[Path, Mount]]:
    """Checks that every mount can be granted.

    A folder that is mounted twice, or inside another mount, must have the same rights both times: native WASI
    enforces rights by the way a path is reached, so a read-only folder inside a writable one would be writable (H27).

    Args:
        mounts: The mounts of a policy.

    Returns:
        Each mount with its folder, links resolved.

    Raises:
        PolicyError: A folder is missing, is not a folder or is unreadable; two mounts contradict each other; or one
            covers what is Stockade's own, or is writable and covers where this process imports from.
    """
    seen: list[tuple[Path, Mount]] = []
    own = [folder.resolve() for folder in private_folders()] if mounts else []
    code = _host_code() if any(mount.mode == "rw" for mount in mounts) else None
    names: dict[str, Mount] = {}
    for mount in mounts:
        shown = printable(mount.host, 400)
        path = Path(mount.host)
        guest = printable(mount.guest)
        try:
            found = path.exists()
        except OSError as problem:
            raise PolicyError(f"the mount {guest} cannot be made: {shown}: {problem.strerror}") from None
        if not found:
            raise PolicyError(f"the mount {guest} has no folder behind it: {shown} does not exist")
        if not path.is_dir():
            raise PolicyError(f"the mount {guest} cannot be made: {shown} is not a folder")
        needed = os.R_OK | os.X_OK | (os.W_OK if mount.mode == "rw" else 0)
        if not os.access(path, needed):
            right = "read and written" if mount.mode == "rw" else "read"
            raise PolicyError(f"the mount {guest} cannot be made: {shown} cannot be {right} by this user")
        name = "/" + "/".join(part for part in mount.guest.split("/") if part)
        if name in names:
            first = printable(names[name].host, 400)
            raise PolicyError(f"two folders are mounted at {printable(name)}: {first} and {shown}")
        names[name] = mount
        real = path.resolve()
        for private in own:
            if real == private or private in real.parents or real in private.parents:
                raise PolicyError(
                    f"the mount {guest} covers {printable(str(private), 400)}, where Stockade keeps machine code and "
                    "secrets, which no guest may reach: mount a folder beside it"
                )
        if code is not None and mount.mode == "rw" and (reached := code.reached_from(real)):
            raise PolicyError(f"the mount {guest} is writable and {reached}. Mount it read-only, or a folder beside it")
        for other, earlier in seen:
            nested = real == other or real in other.parents or other in real.parents
            if nested and earlier.mode != mount.mode:
                inner = max(real, other, key=lambda folder: len(folder.parts))
                raise PolicyError(
                    f"the mounts {printable(earlier.guest)} ({earlier.mode}) and {guest} ({mount.mode}) share the "
                    f"folder {printable(str(inner), 400)} with different rights: "
                    "what one forbids the other would allow. Give both the same mode, or mount separate folders"
                )
            if real != other and nested and mount.mode == "rw":
                raise PolicyError(
                    f"of the mounts {printable(earlier.guest)} and {guest}, one lies inside the other and both are "
                    "writable: a guest could put a link in the place of the inner one. Mount the outer one only"
                )
        seen.append((real, mount))
    return seen


def _host_code() -> HostCode:
    # It imports what takes a while, and most policies have no folder for writing.
    from stockade.execution._host_code import HostCode

    return HostCode()
