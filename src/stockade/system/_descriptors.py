"""File descriptors: how many of those that the process may have are for guests.

Native WASI opens a descriptor for each file, folder and mount of a guest, in this process. When they are used up, the
host cannot open a file any more, nor accept a connection. So each run that can open files claims beforehand as many as
it may come to have, and is refused where they are not there.
"""

from __future__ import annotations

import os
import time
from typing import Final

__all__ = ["Descriptors"]

_LEAST_SPARED: Final = 32
_SPARED_SHARE: Final = 8
"""One in so many of all descriptors is spared for the host, beside those that it has open already."""

_LOOK_SECONDS: Final = 0.1
"""How often descriptors are counted one by one, at most, where the kernel does not tell their number."""

_FOLDERS: Final = ("/proc/self/fd", "/dev/fd")


class Descriptors:
    """The account of the process. Whoever shares it between threads holds a lock.

    Attributes:
        taken: What runs and sessions that are open have claimed.
        holders: How many runs and sessions that is.
    """

    def __init__(self) -> None:
        self.taken = 0
        self.holders = 0
        self._others = 0
        self._next_look = 0.0

    def has(self, count: int) -> bool:
        """Whether there are so many for a run to claim.

        Args:
            count: How many it may come to have, at least one.
        """
        return count <= self._left(_soft_limit())

    def refusal(self, count: int) -> str:
        """Says why a claim was refused.

        Args:
            count: How many the run may come to have.
        """
        most = _soft_limit()
        left = max(0, int(self._left(most)))
        return (
            f"this run may come to have {count:,} file descriptors (limits.open_files and its mounts), and {left:,} "
            f"are left for it: of the {most:,} that the process may have, {self.taken:,} are taken by the runs and "
            f"sessions that are open ({self.holders:,}), {most - self.taken - left:,} are the host's. Close sessions "
            "that are done, run fewer at once, lower limits.open_files, or raise the limit (ulimit -n; "
            "docs/performance.md)"
        )

    def _left(self, most: float) -> float:
        return most - max(_LEAST_SPARED, most // _SPARED_SHARE) - self._count_others() - self.taken

    def _count_others(self) -> int:
        """Counts what is open beside what was claimed.

        While nothing is claimed, that is all that is open. Later, guests have opened no more than they claimed, so the
        rest is the host's; what they claimed and have not opened may hide some of it: the spared ones make up for that.
        No more than all can be the host's, so what it has closed comes back.
        """
        open_now = _told_by_kernel()
        if not open_now:
            now = time.monotonic()
            if now < self._next_look:
                return self._others
            self._next_look = now + _LOOK_SECONDS
            open_now = _counted()
        self._others = min(max(self._others, open_now - self.taken), open_now) if self.taken else open_now
        return self._others


def _soft_limit() -> float:
    """How many descriptors the process may have. The embedder may change that at any time, so it is asked each time."""
    try:
        import resource
    except ImportError:
        return float("inf")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return float("inf") if most == resource.RLIM_INFINITY else most


def _told_by_kernel() -> int:
    """How many descriptors are open, as Linux tells it since 6.2; 0 where it does not."""
    try:
        return os.stat(_FOLDERS[0]).st_size  # noqa: PTH116 - three times as fast
    except OSError:
        return 0


def _counted() -> int:
    for folder in _FOLDERS:
        try:
            return len(os.listdir(folder))  # noqa: PTH208 - three times as fast
        except OSError:
            continue
    return 0
