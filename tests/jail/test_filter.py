"""The program for seccomp, on both architectures: run here by an interpreter of ours. Holds P-JAIL-3."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.jail._filter import FilterOptions, build_filter
from stockade.syscalls import load_table

if TYPE_CHECKING:
    from stockade.syscalls import Platform

LINUX: tuple[Platform, ...] = ("linux-x86_64", "linux-aarch64")
ARCHITECTURES = {"linux-x86_64": 0xC000003E, "linux-aarch64": 0xC00000B7}
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x50000
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
PROCESS = 4711
TABLE = load_table()
STRICT = FilterOptions(on_forbidden=False)


def run(program: bytes, architecture: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """Runs a program over a call as the kernel does (classic BPF, the instructions that we use)."""
    words = [value & (1 << 64) - 1 for value in (*arguments, *(0,) * (6 - len(arguments)))]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0x1234, *words)
    code = list(struct.iter_unpack("<HBBI", program))
    assert len(code) <= 4096
    place, accumulator = 0, 0
    while True:
        operation, matched, other, value = code[place]
        place += 1
        if operation == 0x20:
            assert value % 4 == 0
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x05:
            place += value
        elif operation == 0x06:
            return value
        else:
            assert operation in (0x15, 0x35, 0x45)
            true = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[operation]
            place += matched if true else other


def verdict(
    call: str | int, *arguments: int, platform: Platform = "linux-x86_64", options: FilterOptions = STRICT
) -> int:
    """What becomes of a call."""
    number = call
    if isinstance(call, str):
        found = TABLE.find(call, platform)
        assert found is not None
        number = found.number(platform) or 0
    assert isinstance(number, int)
    program = build_filter(TABLE, platform, options, PROCESS)
    return run(program, ARCHITECTURES[platform], number, arguments)


@pytest.mark.parametrize("platform", LINUX)
@pytest.mark.parametrize("kills", [False, True])
def test_every_number_has_the_verdict_of_the_table(platform: Platform, kills: bool) -> None:
    """All numbers, those of no call too: what is not listed is refused."""
    options = FilterOptions(on_forbidden=kills, on_unlisted=False)
    known = {call.number(platform): call for call in TABLE.on(platform)}
    for number in range(700):
        call = known.get(number)
        if call is not None and call.when:
            continue
        expected = EPERM
        if call is not None and call.worker == "allow":
            expected = ALLOW
        elif call is not None and call.errno == "ENOSYS":
            expected = ENOSYS
        elif call is not None and call.worker == "forbid" and kills:
            expected = KILL
        assert verdict(number, platform=platform, options=options) == expected, (number, call)


@pytest.mark.parametrize("platform", LINUX)
def test_calls_by_other_numbers_end_the_process(platform: Platform) -> None:
    """Attack: the numbers of 32 bits (int 0x80), where 11 is execve; and of x32, where each has a twin."""
    program = build_filter(TABLE, platform, STRICT, PROCESS)
    for architecture in (0x40000003, 0x40000028, *ARCHITECTURES.values()):
        if architecture != ARCHITECTURES[platform]:
            for number in (0, 3, 11, 59, 221):
                assert run(program, architecture, number) == KILL
    x32 = 0x40000000 | (TABLE.find("read", platform).number(platform) or 0)  # type: ignore[union-attr]
    assert run(program, ARCHITECTURES[platform], x32) == (KILL if platform == "linux-x86_64" else EPERM)
    assert run(program, ARCHITECTURES[platform], 0xFFFFFFFF) != ALLOW


THREAD = 0x3D0F00
"""The flags with which the C library starts a thread."""


@pytest.mark.parametrize("platform", LINUX)
@pytest.mark.parametrize(
    ("call", "arguments", "allowed"),
    [
        ("clone", (THREAD,), True),
        ("clone", (THREAD | 0x10000000,), False),  # and CLONE_NEWUSER
        ("clone", (THREAD | 0x00020000,), False),  # and CLONE_NEWNS
        ("clone", (THREAD | 0x02000000,), False),
        ("clone", (THREAD | 0x40000000,), False),
        ("clone", (THREAD | 0x2000,), False),  # and CLONE_PTRACE
        ("clone", (THREAD & ~0x10000,), False),  # without CLONE_THREAD: a process
        ("clone", (THREAD & ~0x100,), False),
        ("clone", (17,), False),  # fork
        ("clone", (0x4111,), False),  # vfork
        ("clone", (0,), False),
        ("mmap", (0, 4096, 3, 0x22), True),
        ("mmap", (0, 4096, 5, 2), True),
        ("mmap", (0, 4096, 7, 0x22), False),
        ("mmap", (0, 4096, 6, 0x22), False),
        ("mmap", (0, 4096, 3, 0x21), False),  # MAP_SHARED and MAP_ANONYMOUS: no limit counts it
        ("mmap", (0, 4096, 3, 0x23), False),  # MAP_SHARED_VALIDATE
        ("mmap", (0, 4096, 1, 0x01, 3), True),  # of a file
        ("mprotect", (0, 4096, 5), True),
        ("mprotect", (0, 4096, 7), False),
        ("prctl", (15, 1), True),  # PR_SET_NAME
        ("prctl", (0x53564D41, 0), True),  # PR_SET_VMA
        ("prctl", (4, 1), False),  # PR_SET_DUMPABLE
        ("prctl", (22, 2), False),  # PR_SET_SECCOMP
        ("prctl", (35,), False),  # PR_SET_MM
        ("ioctl", (0, 0x5401), True),  # TCGETS
        ("ioctl", (0, 0x5412), False),  # TIOCSTI types into a terminal
        ("ioctl", (0, 0x541C), False),  # TIOCLINUX
        ("ioctl", (0, 0x5401 | 1 << 32), True),  # the kernel looks at the low word alone, and so do we
        ("ioctl", (0, 0x5412 | 1 << 32), False),
        ("fcntl", (3, 1030), True),  # F_DUPFD_CLOEXEC
        ("fcntl", (3, 6), False),  # F_SETLK: others would wait
        ("fcntl", (3, 8), False),  # F_SETOWN
        ("fcntl", (3, 10), False),  # F_SETSIG
        ("fcntl", (3, 15), False),  # F_SETOWN_EX
        ("fcntl", (3, 1026), False),  # F_NOTIFY
        ("kill", (PROCESS, 9), True),
        ("kill", (PROCESS + 1, 9), False),
        ("kill", (0, 9), False),
        ("kill", (-1, 9), False),
        ("kill", (-PROCESS, 9), False),
        ("kill", (PROCESS | 1 << 32, 9), True),  # the same process to the kernel
        ("tgkill", (PROCESS, 5, 9), True),
        ("tgkill", (1, PROCESS, 9), False),
        ("prlimit64", (0, 7, 0, 0x1000), True),
        ("prlimit64", (0, 7, 0x1000, 0), False),
        ("prlimit64", (0, 7, 1 << 32, 0), False),  # a pointer with an empty low word
        ("prlimit64", (1, 7, 0, 0x1000), False),
        ("seccomp", (1, 0), False),
    ],
)
def test_arguments_are_looked_at(platform: Platform, call: str, arguments: tuple[int, ...], allowed: bool) -> None:
    """Attack: the harmful use of a call that is needed."""
    assert (verdict(call, *arguments, platform=platform) == ALLOW) == allowed
    options = FilterOptions(on_forbidden=True, on_unlisted=True)
    assert verdict(call, *arguments, platform=platform, options=options) == (ALLOW if allowed else KILL)


@pytest.mark.parametrize("platform", LINUX)
def test_nothing_becomes_executable_where_code_is_loaded(platform: Platform) -> None:
    """While machine code is loaded, it can; nothing else differs."""
    options = FilterOptions(executable=False, on_forbidden=False)
    for call in ("mmap", "mprotect"):
        assert verdict(call, 0, 4096, 5, platform=platform, options=options) == EPERM
        assert verdict(call, 0, 4096, 3, platform=platform, options=options) == ALLOW
        assert verdict(call, 0, 4096, 5, platform=platform) == ALLOW


@pytest.mark.parametrize("platform", LINUX)
def test_another_filter_may_follow_only_where_that_is_meant(platform: Platform) -> None:
    """One that takes away; never one that reports to another process (SECCOMP_FILTER_FLAG_NEW_LISTENER)."""
    later = FilterOptions(may_tighten=True, on_forbidden=False)
    for arguments, allowed in (((1, 0), True), ((1, 1), True), ((1, 8), False), ((1, 9), False), ((0, 0), False)):
        assert (verdict("seccomp", *arguments, platform=platform, options=later) == ALLOW) == allowed
        assert verdict("seccomp", *arguments, platform=platform) == EPERM


@given(
    st.sampled_from(LINUX),
    st.integers(0, 0xFFFFFFFF),
    st.tuples(*[st.integers(0, 2**64 - 1)] * 6),
    st.booleans(),
)
def test_whatever_is_called_has_a_verdict(
    platform: Platform, number: int, arguments: tuple[int, ...], kills: bool
) -> None:
    """No way through the program leads out of it, or to an allowance that the table does not have."""
    options = FilterOptions(on_forbidden=kills, on_unlisted=kills)
    came = verdict(number, *arguments, platform=platform, options=options)

    assert came in (ALLOW, KILL, EPERM, ENOSYS)
    if came == ALLOW:
        found = TABLE.find(number, platform)
        assert found is not None
        assert found.worker == "allow" or found.when
