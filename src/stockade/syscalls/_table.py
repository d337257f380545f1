"""The table of system calls: read from `syscalls.yaml`, and made smaller by files of the user's own.

The file is JSON, which is YAML, too: so it is read without a YAML parser. Numbers are those of the kernel's
`unistd_64.h` and `asm-generic/unistd.h`, and of Darwin's `syscalls.master`.
"""

from __future__ import annotations

import os
import platform as _machine
import stat
import sys
from functools import cache
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

from stockade._start import START_FOLDER
from stockade._text import printable
from stockade.errors import PolicyError

__all__ = [
    "PLATFORMS",
    "Platform",
    "Syscall",
    "SyscallTable",
    "calls_removed_by_user",
    "load_table",
    "read_table",
    "this_platform",
]

Platform: TypeAlias = Literal["linux-x86_64", "linux-aarch64", "darwin"]

PLATFORMS: Final[tuple[Platform, ...]] = ("linux-x86_64", "linux-aarch64", "darwin")
"""Platforms whose numbers are known; each has calls that the others lack."""

_FILE: Final = Path(__file__).with_name("syscalls.yaml")
_VERSION: Final = 1
_MAX_FILE_BYTES: Final = 1 << 20

Condition: TypeAlias = Literal[
    "", "threads", "code", "map", "prctl", "ioctl", "fcntl", "own", "read_limits", "stricter"
]
"""What the arguments of a call must be, where not all of them are harmless."""


class Syscall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A system call.

    Attributes:
        name: Its name, in small letters.
        numbers: Its number on each of `PLATFORMS`; None where it does not exist there.
        category: What kind of call it is, a key of the table's `categories`.
        worker: What becomes of it in a jailed worker: `allow`; `forbid`, which no file and no option changes; or
            `unlisted`, which is refused like all that the table does not know.
        needed_by: What in a worker needs it: `python`, `libc`, `engine`, `wasi` or `frames`.
        when: Which of its uses are meant, where it is not all of them: those that are allowed of one that is forbidden.
        errno: How it fails where it is refused and does not end the process.
        guest: The WASI calls that stand for it in a guest; `engine` where the engine does it, `never` where no guest
            can have it, `unknown` where policies do not name it.
    """

    name: str
    numbers: tuple[int | None, int | None, int | None]
    category: str
    worker: Literal["allow", "forbid", "unlisted"] = "unlisted"
    needed_by: tuple[str, ...] = msgspec.field(default=(), name="for")
    when: Condition = ""
    errno: Literal["EPERM", "ENOSYS"] = "EPERM"
    guest: tuple[str, ...] | Literal["engine", "never", "unknown"] = "unknown"

    @property
    def wasi(self) -> tuple[str, ...]:
        """The WASI calls that stand for it in a guest."""
        return self.guest if isinstance(self.guest, tuple) else ()

    @property
    def never(self) -> bool:
        """Whether no guest can have it."""
        return self.guest == "never"

    def number(self, platform: Platform) -> int | None:
        """Returns its number on a platform; None where it does not exist there."""
        return self.numbers[PLATFORMS.index(platform)]


class SyscallTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All system calls that are known, and what becomes of each.

    Attributes:
        version: The version of the file's format.
        platforms: `PLATFORMS`, in the order of the numbers.
        categories: What kinds of calls there are, and what each is.
        aliases: Other names of calls.
        calls: The calls.
    """

    version: int
    platforms: tuple[Platform, ...]
    categories: dict[str, str]
    aliases: dict[str, str]
    calls: tuple[Syscall, ...]

    def find(self, call: str | int, platform: Platform) -> Syscall | None:
        """Finds a call that exists on a platform.

        Args:
            call: Its name, in any case, or its number there.
            platform: The platform.
        """
        if isinstance(call, str):
            name = call.lower()
            name = self.aliases.get(name, name)
            return next((known for known in self.on(platform) if known.name == name), None)
        if type(call) is not int:  # None is the number of what a platform lacks, True equals 1
            return None
        return next((known for known in self.on(platform) if known.number(platform) == call), None)

    def on(self, platform: Platform) -> tuple[Syscall, ...]:
        """Returns the calls that exist on a platform."""
        return tuple(call for call in self.calls if call.number(platform) is not None)

    def without(self, names: frozenset[str]) -> SyscallTable:
        """Returns a table in which calls are not allowed any more.

        Args:
            names: Calls and categories.

        Raises:
            PolicyError: There is no such call or category, or processes cannot do without it.
        """
        known = {call.name for call in self.calls}
        for name in sorted(names):
            if name not in known and name not in self.categories:
                raise PolicyError(
                    f"{printable(name)} is neither a system call of the table nor a category "
                    f"({', '.join(self.categories)})"
                )
        removed = {call.name for call in self.calls if call.name in names or call.category in names}
        if needed := sorted(removed & _INDISPENSABLE):
            raise PolicyError(f"no worker can do without {', '.join(needed)}: leave it out of what is removed")
        calls = tuple(
            msgspec.structs.replace(call, worker="unlisted", when="")
            if call.name in removed and call.worker == "allow"
            else call
            for call in self.calls
        )
        return msgspec.structs.replace(self, calls=calls)


_INDISPENSABLE: Final = frozenset(("exit_group", "rt_sigreturn"))
"""Without these a process can neither end nor return from a signal's handler."""


_WORKERS_NEED: Final = frozenset(
    (
        *("clock_gettime", "futex", "getpid", "getrandom", "memfd_create", "mmap", "mprotect", "openat", "poll"),
        *("ppoll", "prctl", "recvmsg", "rseq", "rt_sigaction", "sendmsg", "sigaltstack", "time", "write"),
    )
)
"""Without these no worker comes to its first guest, or tells what came of it. Where the C library or the kernel is
another, it may be fewer, and a file is to say the same everywhere."""


class _Removals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the user's own: it can take away, and nothing else."""

    remove: tuple[str, ...]


@cache
def load_table() -> SyscallTable:
    """Returns the table of the package."""
    table = msgspec.json.decode(_FILE.read_bytes(), type=SyscallTable)
    if table.version != _VERSION or table.platforms != PLATFORMS:
        raise PolicyError(f"{printable(str(_FILE), 400)} is of another version of Stockade: install it anew")
    return table


def read_table(path: str | os.PathLike[str]) -> SyscallTable:
    """Returns the table of the package without what a file of the user's own removes.

    Args:
        path: The file, YAML or JSON: `remove: [openat2, linkat]`, names of calls and of categories.

    Raises:
        PolicyError: The file cannot be read, says something else, or names what there is not or what workers need.
    """
    return load_table().without(_removed(os.fspath(path)))


def calls_removed_by_user() -> frozenset[str]:
    """Returns the calls and categories that the file takes away that `STOCKADE_SYSCALLS` names; it is read once.

    Raises:
        PolicyError: As for `read_table`.
    """
    told = os.environ.get("STOCKADE_SYSCALLS", "")
    return _removed_once(str(Path(START_FOLDER, told))) if told else frozenset()


def _removed(path: str) -> frozenset[str]:
    where = printable(path, 400)
    try:
        text = _read(path)
    except OSError as problem:
        raise PolicyError(f"{where} cannot be read: {problem.strerror}") from None
    try:
        removals = frozenset(msgspec.convert(_parse(text), _Removals).remove)
        load_table().without(removals)
        _check_needed(removals)
    except msgspec.ValidationError as problem:
        raise PolicyError(
            f"{where}: {printable(str(problem), 400)}. A file of your own can only remove: "
            "write remove, and a list of names and categories"
        ) from None
    except PolicyError as problem:
        raise PolicyError(f"{where}: {problem}") from None
    return removals


_removed_once = cache(_removed)


def _check_needed(names: frozenset[str]) -> None:
    """Checks that workers can work without what is removed."""
    needed = [
        call
        for call in load_table().calls
        if call.name in _WORKERS_NEED and not names.isdisjoint((call.name, call.category))
    ]
    if not needed:
        return
    told = ", ".join(f"{call.name} ({', '.join(call.needed_by)})" for call in needed)
    others = sorted({call.category for call in needed} & names)
    advice = f": name the calls of {' and '.join(others)} that are to be removed, one by one" if others else ""
    raise PolicyError(f"workers need {told}: {'they' if needed[1:] else 'it'} cannot be removed{advice}")


def _read(path: str | os.PathLike[str]) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - opened above, so that a FIFO does not hold it
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PolicyError(f"{printable(os.fspath(path), 400)} is not a regular file")
        text = file.read(_MAX_FILE_BYTES + 1)
    if len(text) > _MAX_FILE_BYTES:
        raise PolicyError(f"{printable(os.fspath(path), 400)} is larger than {_MAX_FILE_BYTES:,} bytes")
    return text


def _parse(text: bytes) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        pass
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError
    except ImportError:
        raise PolicyError(
            'it is not JSON, and YAML needs another package: install it with pip install "stockade[yaml]"'
        ) from None
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as problem:
        raise PolicyError(f"it is neither YAML nor JSON: {printable(str(problem), 400)}") from None


def this_platform() -> Platform | None:
    """Returns the platform that this process runs on; None where its numbers are not known."""
    if sys.platform == "darwin":
        return "darwin"
    if not sys.platform.startswith("linux") or sys.maxsize < 1 << 32:
        return None
    name = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}.get(
        _machine.machine().lower(), ""
    )
    return next((known for known in PLATFORMS if known == f"linux-{name}"), None)
