"""A guest that plays a script of WASI calls, so that one compiled module serves most tests.

A script stands in the guest's memory: for each call its number, its arguments, and which of these are read from memory
when the call is made (a descriptor that an earlier call returned, for one). The guest makes the calls in order and
writes down each errno. It knows nothing of Stockade, so native WASI can play the same script.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import stockade
from stockade._wasi import MODULE, WASI, WASI_BY_NAME
from stockade.policy import Filesystem, Limits, Mount, Policy, Wasi
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stockade.execution import Isolation
    from stockade.report import Report, Violation

SUCCESS, EACCES, EAGAIN, EBADF, EDQUOT, EEXIST, EFBIG, EINVAL, EMFILE = 0, 2, 6, 8, 19, 20, 22, 28, 33
EILSEQ, ENAMETOOLONG, ENOENT, ENOSYS, ENOTSOCK, ENOTSUP, EPERM, ENOTCAPABLE = 25, 37, 44, 52, 57, 58, 63, 76

CREAT, DIRECTORY, EXCL, TRUNC = 1, 2, 4, 8
APPEND = 1
FOLLOW = 1
SET, CUR, END = 0, 1, 2
ALL_RIGHTS = (1 << 29) - 1
READ_RIGHTS = 1 << 1 | 1 << 2 | 1 << 5 | 1 << 14 | 1 << 21
MOUNT = 3
"""The descriptor of the first mount."""

_PAGES = 128
_MOST_ARGUMENTS = 9
_ENTRY = struct.Struct(f"<II{_MOST_ARGUMENTS}Q")
_DATA = 0x1000


class Later(NamedTuple):
    """An argument that stands in memory and is read when the call is made."""

    address: int


Argument = int | str | bytes | Later


@cache
def player_text() -> str:
    """The guest as text."""
    imports, wrappers = [], []
    for call in WASI:
        params = f"(param {' '.join(call.params)})" if call.params else ""
        result = "(result i32)" if call.results else ""
        imports.append(f'(import "{MODULE}" "{call.name}" (func ${call.name} {params} {result}))')
        loads = " ".join(
            f"(call $argument_{type_} (local.get $entry) (i32.const {place}))"
            for place, type_ in enumerate(call.params)
        )
        after = "" if call.results else "(i32.const 0)"
        wrappers.append(f"(func $play_{call.name} (param $entry i32) (result i32) (call ${call.name} {loads}) {after})")
    names = " ".join(f"$play_{call.name}" for call in WASI)
    return f"""
    (module
      {"".join(imports)}
      (memory (export "memory") {_PAGES})
      (table funcref (elem {names}))
      (type $player (func (param i32) (result i32)))
      (func $argument_i64 (param $entry i32) (param $place i32) (result i64)
        (local $at i32)
        (local.set $at (i32.add (i32.add (local.get $entry) (i32.const 8))
                                (i32.shl (local.get $place) (i32.const 3))))
        (if (result i64)
          (i32.and (i32.shr_u (i32.load offset=4 (local.get $entry)) (local.get $place)) (i32.const 1))
          (then (i64.load32_u (i32.load (local.get $at))))
          (else (i64.load (local.get $at)))))
      (func $argument_i32 (param $entry i32) (param $place i32) (result i32)
        (i32.wrap_i64 (call $argument_i64 (local.get $entry) (local.get $place))))
      {"".join(wrappers)}
      (func (export "play") (param $entry i32) (param $errno i32) (param $count i32)
        (block $done
          (loop $next
            (br_if $done (i32.eqz (local.get $count)))
            (i32.store (local.get $errno)
              (call_indirect (type $player) (local.get $entry) (i32.load (local.get $entry))))
            (local.set $entry (i32.add (local.get $entry) (i32.const {_ENTRY.size})))
            (local.set $errno (i32.add (local.get $errno) (i32.const 4)))
            (local.set $count (i32.sub (local.get $count) (i32.const 1)))
            (br $next)))))
    """


@cache
def player() -> stockade.Module:
    """The guest, ready to run."""
    return wat(player_text())


class Played(NamedTuple):
    """What became of a script.

    Attributes:
        report: The report; of native WASI there is none.
        errnos: The errno of each call; empty where the run was ended.
        memory: The guest's memory afterwards, up to the end of the script's data.
        dropped: Violations that found no entry, where that can be looked at.
    """

    report: Report
    errnos: list[int]
    memory: bytes
    dropped: int

    def number(self, place: Later, size: int = 4) -> int:
        """A number in memory."""
        return int.from_bytes(self.memory[place.address : place.address + size], "little")

    def only_violation(self) -> Violation:
        """The violation, where there is exactly one."""
        (violation,) = self.report.violations
        return violation


class Script:
    """A script and the data it points to.

    Args:
        low: What the first bytes of memory hold.
    """

    def __init__(self, low: bytes = b"") -> None:
        self.data = bytearray(_DATA)
        self.data[: len(low)] = low
        self._entries: list[bytes] = []

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, data: bytes | str) -> int:
        """Puts data into memory and returns its address."""
        address = len(self.data)
        self.data += data.encode() if isinstance(data, str) else data
        self.data += bytes(-len(self.data) % 8 or 8)
        return address

    def room(self, size: int) -> int:
        """Free room of so many bytes."""
        return self.put(bytes(size))

    def cell(self) -> Later:
        """Room for a result that later calls can use."""
        return Later(self.room(8))

    def iovec(self, *buffers: tuple[int, int]) -> int:
        """An array of buffers, each an address and a length."""
        return self.put(b"".join(struct.pack("<II", address, size) for address, size in buffers))

    def call(self, name: str, *arguments: Argument) -> int:
        """Appends a call; a text stands for its address and its length. Returns its place in the script."""
        mask = 0
        numbers: list[int] = []
        for argument in arguments:
            if isinstance(argument, Later):
                mask |= 1 << len(numbers)
                numbers.append(argument.address)
            elif isinstance(argument, str | bytes):
                data = argument.encode() if isinstance(argument, str) else argument
                numbers += [self.put(data), len(data)]
            else:
                numbers.append(argument & (1 << 64) - 1)
        call = WASI_BY_NAME[name]
        assert len(numbers) == len(call.params), f"{name} takes {call.params}"
        numbers += [0] * (_MOST_ARGUMENTS - len(numbers))
        self._entries.append(_ENTRY.pack(call.number, mask, *numbers))
        return len(self._entries) - 1

    def open(
        self,
        path: str | bytes,
        flags: int = 0,
        *,
        fd: int | Later = MOUNT,
        rights: int = ALL_RIGHTS,
        fdflags: int = 0,
        lookup: int = FOLLOW,
    ) -> Later:
        """Appends a `path_open` and returns where the new descriptor will stand."""
        result = self.cell()
        if flags & DIRECTORY:
            rights = READ_RIGHTS
        self.call("path_open", fd, lookup, path, flags, rights, rights, fdflags, result.address)
        return result

    def close(self, fd: int | Later) -> int:
        """Appends an `fd_close`."""
        return self.call("fd_close", fd)

    def write(self, fd: int | Later, data: bytes) -> Later:
        """Appends an `fd_write` and returns where the count will stand."""
        written = self.cell()
        self.call("fd_write", fd, self.iovec((self.put(data), len(data))), 1, written.address)
        return written

    def pwrite(self, fd: int | Later, data: bytes, offset: int) -> Later:
        """Appends an `fd_pwrite`."""
        written = self.cell()
        self.call("fd_pwrite", fd, self.iovec((self.put(data), len(data))), 1, offset, written.address)
        return written

    def read(self, fd: int | Later, size: int) -> tuple[Later, int]:
        """Appends an `fd_read` and returns where the count and the bytes will stand."""
        taken, buffer = self.cell(), self.room(size)
        self.call("fd_read", fd, self.iovec((buffer, size)), 1, taken.address)
        return taken, buffer

    def pread(self, fd: int | Later, size: int, offset: int) -> Later:
        """Appends an `fd_pread`."""
        taken = self.cell()
        self.call("fd_pread", fd, self.iovec((self.room(size), size)), 1, offset, taken.address)
        return taken

    def seek(self, fd: int | Later, offset: int, whence: int = SET) -> Later:
        """Appends an `fd_seek`."""
        result = self.cell()
        self.call("fd_seek", fd, offset, whence, result.address)
        return result

    def sleep(self, seconds: float, *, clock: int = 1) -> Later:
        """Appends a `poll_oneoff` that waits, and returns where the count of events will stand."""
        events = self.cell()
        subscription = self.put(clock_subscription(seconds, clock=clock))
        self.call("poll_oneoff", subscription, self.room(32), 1, events.address)
        return events

    def time(self, clock: int = 1) -> Later:
        """Appends a `clock_time_get`."""
        result = self.cell()
        self.call("clock_time_get", clock, 1, result.address)
        return result

    def image(self) -> tuple[bytes, int, int, int]:
        """The guest's memory from address 0, and where the script and the errnos stand in it, and how many."""
        start = len(self.data) + -len(self.data) % 8
        image = bytes(self.data).ljust(start, b"\0") + b"".join(self._entries)
        assert len(image) + 4 * len(self) <= _PAGES << 16, "the script does not fit the guest"
        return image, start, len(image), len(self)

    def play(self, policy: Policy, isolation: Isolation | None = None) -> Played:
        """Plays the script under a policy."""
        image, start, errnos, count = self.image()
        box = stockade.Sandbox(policy) if isolation is None else stockade.Sandbox(policy, isolation)
        with box.open(player()) as session:
            session.write_memory(0, image)
            report = session.call("play", start, errnos, count)
            dropped = report.violations_dropped
            if session._guest.ended:
                return Played(report, [], b"", dropped)
            found = list(struct.unpack(f"<{count}I", session.read_memory(errnos, 4 * count)))
            return Played(report, found, session.read_memory(0, start), dropped)


def clock_subscription(seconds: float, *, clock: int = 1, absolute: bool = False, userdata: int = 7) -> bytes:
    """A subscription of `poll_oneoff` to a clock."""
    nanoseconds = round(seconds * 1e9)
    return struct.pack("<QB7xI4xQQH6x", userdata, 0, clock, nanoseconds, 0, int(absolute))


def files_policy(
    folder: Path,
    *,
    mode: str = "rw",
    create: bool = True,
    delete: bool = True,
    symlinks: bool = True,
    on_violation: str = "deny",
    **limits: object,
) -> Policy:
    """A policy that mounts a folder and permits everything that is not limited here."""
    return Policy(
        limits=Limits(**{"wall_time": 20.0, **limits}),  # type: ignore[arg-type]
        filesystem=Filesystem(
            mounts=(Mount(str(folder), "/", mode),),  # type: ignore[arg-type]
            create=create,
            delete=delete,
            symlinks=symlinks,
        ),
        wasi=Wasi(deny=()),
        on_violation=on_violation,  # type: ignore[arg-type]
    )


def tree(folder: Path) -> dict[str, object]:
    """What stands in a folder: links by their target, files by their bytes, folders by None."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def kinds(violations: Sequence[Violation]) -> list[str]:
    """The kinds of violations, in order."""
    return [violation.kind for violation in violations]
