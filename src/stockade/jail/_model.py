"""A jail as data: what a worker is to be left with, and what came of it."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from stockade.errors import IsolationError

__all__ = [
    "NAMESPACES",
    "WALLS",
    "Granted",
    "Jail",
    "JailError",
    "JailReport",
    "ResourceLimits",
    "Step",
    "Wall",
]

Wall: TypeAlias = Literal[
    "user",
    "mount",
    "pid",
    "network",
    "ipc",
    "uts",
    "cgroup",
    "environment",
    "session",
    "descriptors",
    "limits",
    "privileges",
    "capabilities",
    "undumpable",
    "landlock",
    "seccomp",
]

NAMESPACES: Final[tuple[Wall, ...]] = ("user", "mount", "pid", "network", "ipc", "uts", "cgroup")
"""Walls that are namespaces of the kernel's, in the order in which they are entered."""

WALLS: Final[tuple[Wall, ...]] = (
    *NAMESPACES,
    *("environment", "session", "descriptors", "limits"),
    *("privileges", "capabilities", "undumpable", "landlock", "seccomp"),
)
"""All walls, in the order in which they are raised."""


class JailError(IsolationError):
    """A wall that is required is not there, or does not hold: the process must end without touching what is hostile."""


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What came of one wall.

    Attributes:
        wall: The wall.
        active: Whether it stands.
        detail: How, or why not.
    """

    wall: Wall
    active: bool
    detail: str


class Granted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A folder that a worker may use.

    Attributes:
        descriptor: The folder, open; `O_PATH` will do. It stays open.
        writable: Whether files in it may be written to and cut.
        create: Whether files and folders may be made.
        delete: Whether files and folders may be removed. To rename takes both.
        symlinks: Whether symbolic links may be made.
    """

    descriptor: int
    writable: bool = False
    create: bool = False
    delete: bool = False
    symlinks: bool = False


class ResourceLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the kernel lets a worker use (setrlimit); None leaves a limit as it is.

    Attributes:
        data_bytes: Memory that it may write to and that is its own. Address space that is only reserved, as the engine
            does with gigabytes for each memory of a guest, does not count.
        address_space_bytes: All addresses, reserved ones too: for processes that reserve little.
        cpu_seconds: Processor time.
        file_size_bytes: How large any file may become that it writes to.
        open_files: Descriptors.
        processes: Processes and threads of the user, in its namespace where it has one.
    """

    data_bytes: int | None = None
    address_space_bytes: int | None = None
    cpu_seconds: int | None = None
    file_size_bytes: int | None = None
    open_files: int | None = 256
    processes: int | None = None


class Jail(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker is left with.

    Attributes:
        mounts: Folders that it may use.
        files: Regular files that it may open again and read, such as machine code; they stay open.
        keep: Other descriptors that stay open, such as the socket to the host.
        limits: What it may use.
        executable: Whether memory may be made executable, for a process that loads machine code in its jail. Never is
            memory both writable and executable.
        on_forbidden: What becomes of it when it makes a system call that no worker may make: `kill` or `errno`.
        on_unlisted: The same for all other calls that are not allowed. Libraries of other releases may try some.
        remove: System calls and categories that are not allowed either (`SyscallTable.without`).
        require: Walls without which nothing may run.
    """

    mounts: tuple[Granted, ...] = ()
    files: tuple[int, ...] = ()
    keep: tuple[int, ...] = ()
    limits: ResourceLimits = ResourceLimits()
    executable: bool = True
    on_forbidden: Literal["kill", "errno"] = "kill"
    on_unlisted: Literal["kill", "errno"] = "errno"
    remove: frozenset[str] = frozenset()
    require: frozenset[Wall] = frozenset()


class JailReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which walls stand around a process, as it has found out itself.

    Attributes:
        steps: What came of each wall, in the order in which they were raised.
        tried: What the process has tried in vain after that.
    """

    steps: tuple[Step, ...]
    tried: tuple[str, ...] = ()

    @property
    def active(self) -> frozenset[Wall]:
        """The walls that stand."""
        return frozenset(step.wall for step in self.steps if step.active)

    def check(self, required: frozenset[Wall]) -> None:
        """Raises unless all walls stand that are required.

        Raises:
            JailError: One is missing.
        """
        told = {step.wall: step.detail for step in self.steps}
        if missing := [wall for wall in WALLS if wall in required and wall not in self.active]:
            reasons = "; ".join(f"{wall}: {told.get(wall, 'was not raised')}" for wall in missing)
            raise JailError(
                f"the policy requires walls that this machine does not give ({reasons}): run stockade doctor, or "
                "require less"
            )
