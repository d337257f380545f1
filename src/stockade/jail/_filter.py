"""Programs for seccomp, made of the table: which calls pass, by number and by argument.

Each is a list of classic BPF instructions (`struct sock_filter`), which the kernel runs over `struct seccomp_data` for
each call: number, architecture, address, six arguments. There are no loops, and each part ends with a verdict:

- A call by way of another architecture's numbers ends the process, and so does one of x32, which has numbers of its own
  under the same architecture.
- Each number is in a range, which is found by halves: its calls pass, fail, end the process, or their arguments are
  looked at. What the table does not list is in some range, too.

Only numbers can be looked at: what a pointer leads to may change after the look.
"""

from __future__ import annotations

import errno
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from stockade.syscalls import Platform, Syscall, SyscallTable

__all__ = ["FilterOptions", "build_filter"]

_LOAD, _ALU_AND, _JUMP, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x45, 0x06
"""BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_JMP|JA, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_JMP|JSET|K, BPF_RET|K."""

_FARTHEST: Final = 255
"""Instructions that a conditional jump can pass over."""

_KILL: Final = 0x8000_0000
_ALLOW: Final = 0x7FFF_0000
_ERRNO: Final = 0x0005_0000

_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in `struct seccomp_data`."""

_ARCHITECTURES: Final = {"linux-x86_64": 0xC000_003E, "linux-aarch64": 0xC000_00B7}
_X32: Final = 0x4000_0000

_THREAD: Final = 0x0001_0000 | 0x0000_0800 | 0x0000_0100
"""CLONE_THREAD, CLONE_SIGHAND and CLONE_VM: all three, or it would be a process."""

_NO_THREAD: Final = 0x0000_2000 | 0x0000_4000 | 0x0002_0000 | 0x7E00_0000
"""CLONE_PTRACE, CLONE_VFORK, CLONE_NEWNS, and all other namespaces."""

_WRITE, _EXECUTE = 2, 4

_PRCTL: Final = (2, 3, 15, 16, 21, 23, 39, 0x5356_4D41)
"""PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP, PR_CAPBSET_READ, PR_GET_NO_NEW_PRIVS,
PR_SET_VMA, by which allocators name their memory."""

_IOCTL: Final = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, which isatty is, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. Nothing that reaches a device, or types."""

_FCNTL: Final = (0, 1, 2, 3, 4, 1030, 1033, 1034)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_ADD_SEALS, F_GET_SEALS. F_SETOWN and its kin would
have the kernel send signals to other processes, and for a lock other processes would wait."""

_SHARED_MEMORY: Final = 0x01 | 0x20
"""MAP_SHARED, which MAP_SHARED_VALIDATE contains, and MAP_ANONYMOUS: memory that no limit of a process counts."""

_STRICTER: Final = (1, (0, 1))
"""SECCOMP_SET_MODE_FILTER, without flags or with SECCOMP_FILTER_FLAG_TSYNC: filters only ever take away."""

_PLACEHOLDER: Final = 0x7FFF_FFFF
"""Stands for the number of the process until it is known. No process has it."""

_INSTRUCTION: Final = struct.Struct("<HBBI")
_VALUE: Final = struct.Struct("<I")
"""The last word of an instruction."""

_Code = list[tuple[int, int, int, int]]


class _Range(NamedTuple):
    """Numbers up to the next range, and what is done for them."""

    first: int
    part: _Code


class FilterOptions(NamedTuple):
    """What a filter depends on, beside the table.

    Attributes:
        executable: Whether memory may be made executable.
        may_tighten: Whether another filter may follow.
        on_forbidden: Whether a forbidden call ends the process; else it fails.
        on_unlisted: The same for all others that are not allowed.
    """

    executable: bool = True
    may_tighten: bool = False
    on_forbidden: bool = True
    on_unlisted: bool = False


def build_filter(table: SyscallTable, platform: Platform, options: FilterOptions, process: int) -> bytes:
    """Makes the program of a worker.

    Args:
        table: What is allowed.
        platform: A Linux.
        options: The rest.
        process: The number of the process, as it sees itself: it may send signals to no other.

    Returns:
        An array of `struct sock_filter`.
    """
    template, places = _template(_Key(table), platform, options)
    program = bytearray(template)
    for place in places:
        _VALUE.pack_into(program, place, process)
    return bytes(program)


class _Key:
    """A table as a key: tables are large, and there are few."""

    def __init__(self, table: SyscallTable) -> None:
        self.table = table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and (self.table is other.table or self.table == other.table)

    def __hash__(self) -> int:
        return len(self.table.calls)


@lru_cache(16)
def _template(key: _Key, platform: Platform, options: FilterOptions) -> tuple[bytes, tuple[int, ...]]:
    """Makes a program for any process, and says where the number of the process stands in it."""
    code = [*_head(platform), *_search(_ranges(key.table, platform, options))]
    places = tuple(
        place * _INSTRUCTION.size + _INSTRUCTION.size - _VALUE.size
        for place, (operation, _, _, value) in enumerate(code)
        if (operation, value) == (_JEQ, _PLACEHOLDER)
    )
    return _assemble(code), places


def _ranges(table: SyscallTable, platform: Platform, options: FilterOptions) -> list[_Range]:
    """Says of all numbers what becomes of them: neighbours that have the same verdict are one range."""
    verdicts = {call.number(platform): _verdict(call, options) for call in table.on(platform)}
    unlisted = [_give(_refusal(options.on_unlisted, "EPERM"))]
    ranges: list[_Range] = []
    for number in range(max(number or 0 for number in verdicts) + 2):
        part = verdicts.get(number, unlisted)
        if not ranges or ranges[-1].part != part:
            ranges.append(_Range(number, part))
    return ranges


def _search(ranges: list[_Range]) -> _Code:
    """Finds the range of a number by halves: the kernel asks for every number when a filter is installed."""
    if len(ranges) == 1:
        return ranges[0].part
    lower, upper = ranges[: len(ranges) // 2], ranges[len(ranges) // 2 :]
    before, after = _search(lower), _search(upper)
    # Where a condition leads is told in a byte.
    if len(before) <= _FARTHEST:
        return [(_JGE, len(before), 0, upper[0].first), *before, *after]
    return [(_JGE, 0, 1, upper[0].first), (_JUMP, 0, 0, len(before)), *before, *after]


def _assemble(code: _Code) -> bytes:
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def _head(platform: Platform) -> _Code:
    code: _Code = [
        _load(_ARCHITECTURE),
        (_JEQ, 1, 0, _ARCHITECTURES[platform]),
        _give(_KILL),
        _load(_NUMBER),
    ]
    if platform == "linux-x86_64":
        code += [(_JGE, 0, 1, _X32), _give(_KILL)]
    return code


def _verdict(call: Syscall, options: FilterOptions) -> _Code:
    """The part of a call: what to do once the number is its."""
    if call.worker == "unlisted":
        return [_give(_refusal(options.on_unlisted, call.errno))]
    refusal = _refusal(options.on_forbidden if call.worker == "forbid" else options.on_unlisted, call.errno)
    if call.when == "stricter" and not options.may_tighten:
        return [_give(refusal)]
    if not call.when:
        return [_give(_ALLOW if call.worker == "allow" else refusal)]
    return _conditional(call.when, options, refusal)


def _conditional(when: str, options: FilterOptions, refusal: int) -> _Code:
    if when == "threads":
        return [
            _load_argument(0),
            (_ALU_AND, 0, 0, _THREAD | _NO_THREAD),
            (_JEQ, 0, 1, _THREAD),
            _give(_ALLOW),
            _give(refusal),
        ]
    if when in ("code", "map"):
        if not options.executable:
            code = _without_execution()
        else:
            both = _WRITE | _EXECUTE
            code = [_load_argument(2), (_ALU_AND, 0, 0, both), (_JEQ, 0, 1, both), _give(refusal), _give(_ALLOW)]
        return [*_without_shared_memory(refusal), *code] if when == "map" else code
    if when == "own":
        return [_load_argument(0), *_one_of((_PLACEHOLDER,), refusal)]
    if when == "read_limits":
        # Of itself, and no new limit: a pointer of two words.
        return [
            _load_argument(0),
            (_JEQ, 0, 5, 0),
            _load_argument(2),
            (_JEQ, 0, 3, 0),
            _load_argument(2, high=True),
            (_JEQ, 0, 1, 0),
            _give(_ALLOW),
            _give(refusal),
        ]
    if when == "stricter":
        operation, (plain, synchronous) = _STRICTER
        return [
            _load_argument(0),
            (_JEQ, 0, 4, operation),
            _load_argument(1),
            (_JEQ, 1, 0, plain),
            (_JEQ, 0, 1, synchronous),
            _give(_ALLOW),
            _give(refusal),
        ]
    place, allowed = {"prctl": (0, _PRCTL), "ioctl": (1, _IOCTL), "fcntl": (1, _FCNTL)}[when]
    return [_load_argument(place), *_one_of(allowed, refusal)]


def _without_shared_memory(refusal: int) -> _Code:
    """What is mapped is of this process alone, or of a file."""
    return [
        _load_argument(3),
        (_ALU_AND, 0, 0, _SHARED_MEMORY),
        (_JEQ, 0, 1, _SHARED_MEMORY),
        _give(refusal),
    ]


def _without_execution() -> _Code:
    return [_load_argument(2), (_JSET, 0, 1, _EXECUTE), _give(_refusal(False, "EPERM")), _give(_ALLOW)]


def _one_of(allowed: tuple[int, ...], refusal: int) -> _Code:
    """Allows what was loaded where it is one of some numbers."""
    count = len(allowed)
    code: _Code = [(_JEQ, count - place, 0, value) for place, value in enumerate(allowed)]
    return [*code, _give(refusal), _give(_ALLOW)]


def _refusal(kills: bool, name: str) -> int:
    return _KILL if kills and name != "ENOSYS" else _ERRNO | getattr(errno, name)


def _load(offset: int) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, offset)


def _load_argument(place: int, *, high: bool = False) -> tuple[int, int, int, int]:
    # Both architectures are little-endian. The kernel looks at the low word alone wherever only that is compared.
    return _load(_ARGUMENTS + 8 * place + 4 * high)


def _give(verdict: int) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, verdict)
