"""Checking mounts before anything runs: what cannot be granted exactly as written is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from stockade._text import printable
from stockade.errors import PolicyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.engine import Directory
    from stockade.policy import Mount

__all__ = ["check_mounts"]


def check_mounts(mounts: Sequence[Mount]) -> tuple[Directory, ...]:
    """Checks that every mount can be granted.

    A folder that is mounted twice, or inside another mount, must have the same rights both times: native WASI
    enforces rights by the way a path is reached, so a read-only folder inside a writable one would be writable (H27).

    Args:
        mounts: The mounts of a policy.

    Returns:
        What native WASI is given.

    Raises:
        PolicyError: A folder is missing, is not a folder or is unreadable; or two mounts contradict each other.
    """
    seen: list[tuple[Path, Mount]] = []
    names: dict[str, Mount] = {}
    for mount in mounts:
        shown = printable(mount.host, 400)
        path = Path(mount.host)
        if not path.exists():
            raise PolicyError(f"the mount {mount.guest} has no folder behind it: {shown} does not exist")
        if not path.is_dir():
            raise PolicyError(f"the mount {mount.guest} cannot be made: {shown} is not a folder")
        needed = os.R_OK | os.X_OK | (os.W_OK if mount.mode == "rw" else 0)
        if not os.access(path, needed):
            right = "read and written" if mount.mode == "rw" else "read"
            raise PolicyError(f"the mount {mount.guest} cannot be made: {shown} cannot be {right} by this user")
        name = mount.guest.rstrip("/") or "/"
        if name in names:
            raise PolicyError(f"two folders are mounted at {name}: {names[name].host} and {mount.host}")
        names[name] = mount
        real = path.resolve()
        for other, first in seen:
            nested = real == other or real in other.parents or other in real.parents
            if nested and first.mode != mount.mode:
                raise PolicyError(
                    f"the mounts {first.guest} ({first.mode}) and {mount.guest} ({mount.mode}) share the folder "
                    f"{printable(str(max(real, other, key=lambda p: len(p.parts))), 400)} with different rights: "
                    "what one forbids the other would allow. Give both the same mode, or mount separate folders"
                )
        seen.append((real, mount))
    return tuple((os.fsencode(real), mount.guest.encode(), mount.mode == "rw") for real, mount in seen)
