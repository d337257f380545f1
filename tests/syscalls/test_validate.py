"""Whether a worker may make a system call: by name and by number, on each platform. Holds P-JAIL-1."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade import PolicyError, SyscallRefused
from stockade.syscalls import PLATFORMS, load_table, validate_syscall

if TYPE_CHECKING:
    from stockade.syscalls import Platform

ALLOWED = (
    *("READ", "WRITE", "CLOSE", "FSTAT", "MMAP", "MUNMAP", "MREMAP", "CLOCK_GETTIME", "GETTIMEOFDAY", "EXIT"),
    *("EXIT_GROUP", "GETPID"),
)
FORBIDDEN = ("FORK", "CLONE", "EXECVE", "SETUID", "SETGID", "CHMOD", "MOUNT", "UMOUNT", "CHROOT")


@pytest.mark.parametrize("name", ALLOWED)
def test_calls_that_are_allowed(name: str) -> None:
    """By name in any case and by number."""
    call = validate_syscall(name, platform="linux-x86_64")

    assert call.name == name.lower()
    for other in (name.lower(), name.title(), call.numbers[0]):
        assert other is not None
        assert validate_syscall(other, platform="linux-x86_64") is call


@pytest.mark.parametrize("name", FORBIDDEN)
def test_calls_that_are_forbidden(name: str) -> None:
    """By name and by number, in words."""
    found = load_table().find(name, "linux-x86_64")
    assert found is not None
    assert found.numbers[0] is not None
    for call in (name, name.lower(), found.numbers[0]):
        with pytest.raises(SyscallRefused, match=r"is forbidden to every worker \(") as caught:
            validate_syscall(call, platform="linux-x86_64")
        assert caught.value.verdict == "forbidden"


def test_it_says_what_is_wrong() -> None:
    """Why, and of what kind."""

    def told(call: str | int, platform: Platform = "linux-x86_64") -> tuple[str, str]:
        with pytest.raises(SyscallRefused) as caught:
            validate_syscall(call, platform=platform)
        return caught.value.verdict, str(caught.value)

    assert told("execve") == (
        "forbidden",
        "the system call execve is forbidden to every worker (processes: new processes and programs)",
    )
    assert told(56) == (
        "forbidden",
        (
            "the system call clone (number 56) is forbidden to every worker (processes: new processes and programs). "
            "Threads of the process alone may be started"
        ),
    )
    assert told("sync") == (
        "refused",
        "the system call sync is not allowed (system: the machine: its clock, name, swap, accounting, end)",
    )
    assert told("frobnicate") == (
        "unknown",
        "the system call frobnicate is unknown on linux-x86_64: what is not listed is refused",
    )
    assert told("fork", "linux-aarch64")[0] == "unknown"
    assert told(-1)[0] == told(10_000)[0] == "unknown"


@pytest.mark.parametrize("call", [None, True, 1.0, b"read"], ids=repr)
def test_what_is_neither_a_name_nor_a_number_is_unknown(call: object) -> None:
    """Attack: None is the number of all that a platform lacks, and True equals 1, which writes."""
    with pytest.raises(SyscallRefused) as caught:
        validate_syscall(call, platform="darwin")  # type: ignore[arg-type]

    assert caught.value.verdict == "unknown"


def test_platforms_change_the_set() -> None:
    """The same number is another call elsewhere; and a platform that nobody knows is none."""
    assert [validate_syscall(3, platform=platform).name for platform in ("linux-x86_64", "darwin")] == ["close", "read"]
    assert validate_syscall("open", platform="darwin").category == "paths"
    with pytest.raises(SyscallRefused):
        validate_syscall("open", platform="linux-aarch64")
    with pytest.raises(PolicyError) as caught:
        validate_syscall("read", platform="windows")  # type: ignore[arg-type]
    assert str(caught.value) == "the platform is windows: it must be linux-x86_64, linux-aarch64 or darwin"


def test_a_table_of_the_users_own_is_looked_at() -> None:
    """What was removed is refused, and what was forbidden is still that."""
    mine = load_table().without(frozenset({"openat2", "time"}))

    assert validate_syscall("openat", platform="linux-x86_64", table=mine).name == "openat"
    for call, verdict in (("openat2", "refused"), ("clock_gettime", "refused"), ("execve", "forbidden")):
        with pytest.raises(SyscallRefused) as caught:
            validate_syscall(call, platform="linux-x86_64", table=mine)
        assert caught.value.verdict == verdict


def test_the_error_survives_pickling() -> None:
    """Executors pass errors on in this way."""
    with pytest.raises(SyscallRefused) as caught:
        validate_syscall("execve", platform="linux-x86_64")

    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.verdict) == (str(caught.value), "forbidden")


@given(st.integers() | st.integers(0, 600) | st.text(max_size=12), st.sampled_from(PLATFORMS))
def test_only_what_is_listed_is_allowed(call: int | str, platform: Platform) -> None:
    """Any name or number: default deny."""
    allowed = {known.name for known in load_table().on(platform) if known.worker == "allow"}
    try:
        found = validate_syscall(call, platform=platform)
    except SyscallRefused:
        return

    assert found.name in allowed
