"""System calls as policies name them: what they become in a guest, by name, by number, by platform, and in a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade import Policy, PolicyError, Wasi
from stockade._wasi import WASI_BY_NAME
from stockade.policy._syscalls import guest_syscalls
from stockade.syscalls import PLATFORMS
from tests.limits._guests import ENOSYS, ENOTCAPABLE, SUCCESS, Played, Script

SYSCALLS = guest_syscalls()

# -- numbers --------------------------------------------------------------------------------------------------------

# From the kernels' own tables: x86-64, generic (aarch64), Darwin.
FIXED = {
    "read": (0, 63, 3),
    "write": (1, 64, 4),
    "open": (2, None, 5),
    "openat": (257, 56, None),
    "close": (3, 57, 6),
    "fstat": (5, 80, 189),
    "mmap": (9, 222, 197),
    "munmap": (11, 215, 73),
    "mremap": (25, 216, None),
    "clock_gettime": (228, 113, None),
    "gettimeofday": (96, 169, 116),
    "exit": (60, 93, 1),
    "exit_group": (231, 94, None),
    "getpid": (39, 172, 20),
    "fork": (57, None, 2),
    "vfork": (58, None, 66),
    "clone": (56, 220, None),
    "clone3": (435, 435, None),
    "execve": (59, 221, 59),
    "execveat": (322, 281, None),
    "posix_spawn": (None, None, 244),
    "setuid": (105, 146, 23),
    "setgid": (106, 144, 181),
    "setreuid": (113, 145, None),
    "setregid": (114, 143, None),
    "setresuid": (117, 147, None),
    "chmod": (90, None, 15),
    "fchmod": (91, 52, None),
    "fchmodat": (268, 53, None),
    "mount": (165, 40, 167),
    "umount2": (166, 39, None),
    "unmount": (None, None, 159),
    "pivot_root": (155, 41, None),
    "chroot": (161, 51, 61),
    "process_vm_readv": (310, 270, None),
    "io_uring_setup": (425, 425, None),
}
HEADERS = {
    "linux-x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "linux-aarch64": "/usr/include/asm-generic/unistd.h",
}
_DEFINE = re.compile(r"^#define\s+__NR(3264)?_(\w+)\s+(?:([0-9]+)|__NR3264_(\w+))\s*(?:/\*.*)?$", re.MULTILINE)


def numbers_in(header: str) -> dict[str, int]:
    """The numbers that a header of the kernel gives; the generic one names some by way of another macro."""
    numbers: dict[str, int] = {}
    wide: dict[str, int] = {}
    for is_wide, name, number, stands_for in _DEFINE.findall(header):
        if is_wide:
            wide[name] = int(number)
        elif number:
            numbers.setdefault(name, int(number))
        elif stands_for in wide:
            numbers.setdefault(name, wide[stands_for])
    return numbers


@pytest.mark.parametrize("name", FIXED)
def test_numbers_that_are_known_by_heart(name: str) -> None:
    """Setreuid is 113 on x86-64, not 70, which receives messages."""
    assert SYSCALLS[name].numbers == FIXED[name]


@pytest.mark.parametrize("platform", HEADERS)
def test_numbers_are_those_of_the_kernel(platform: str) -> None:
    """Every number, and every call that a platform lacks, against the kernel's own header."""
    path = Path(HEADERS[platform])
    if not path.exists():
        pytest.skip(f"the kernel's headers are not installed: no {path}")
    numbers = numbers_in(path.read_text())
    assert len(numbers) > 300
    place = PLATFORMS.index(platform)

    told = {name: known.numbers[place] for name, known in SYSCALLS.items() if name == known.name}

    assert told == {name: numbers.get(name) for name in told}


def test_a_header_is_read_as_the_kernel_writes_it() -> None:
    """The twin of the above, on any machine: the test reads plain numbers, wide ones and comments."""
    header = (
        "#define __NR_read 63\n#define __NR3264_mmap 222\n#define __NR_mmap __NR3264_mmap\n"
        "#define __NR_io_setup 0 /* old */\n#define __NR_syscalls __NR_x\n#define __NR_read 99\n"
    )

    assert numbers_in(header) == {"read": 63, "mmap": 222, "io_setup": 0}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_each_number_stands_for_one_call(platform: str) -> None:
    """Attack: a number that stands for a harmless call and for a forbidden one."""
    place = PLATFORMS.index(platform)
    numbers = [
        known.numbers[place]
        for name, known in SYSCALLS.items()
        if name == known.name and known.numbers[place] is not None
    ]

    assert len(numbers) == len(set(numbers)) > 15


def test_what_stands_for_a_call_is_in_wasi() -> None:
    """A misspelt WASI call in the table would give or take nothing; and what can never be had has none."""
    for known in SYSCALLS.values():
        assert set(known.wasi) <= set(WASI_BY_NAME)
        assert not (known.never and known.wasi)


# -- verdicts -------------------------------------------------------------------------------------------------------

ALLOWED = (
    *("READ", "WRITE", "CLOSE", "FSTAT", "MMAP", "MUNMAP", "MREMAP", "CLOCK_GETTIME", "GETTIMEOFDAY", "EXIT"),
    *("EXIT_GROUP", "GETPID"),
)
FORBIDDEN = ("FORK", "CLONE", "EXECVE", "SETUID", "SETGID", "CHMOD", "MOUNT", "UMOUNT", "CHROOT")
FORGOTTEN = (
    *("execveat", "vfork", "clone3", "fchmod", "fchmodat", "umount2", "pivot_root", "setresuid", "setresgid"),
    *("setreuid", "setregid", "io_uring_setup", "io_uring_enter", "process_vm_readv", "process_vm_writev", "ptrace"),
    *("unshare", "setns", "bpf", "socket", "connect", "bind", "listen", "mprotect", "seccomp", "userfaultfd"),
)


@pytest.mark.parametrize("name", ALLOWED)
def test_calls_that_are_allowed(name: str) -> None:
    """By name in any case and by number."""
    number = SYSCALLS[name.lower()].numbers[0]
    assert number is not None

    for call in (name, name.lower(), name.title(), number):
        assert Wasi().syscall(call) == "allowed"


@pytest.mark.parametrize("name", [*FORBIDDEN, *FORGOTTEN])
def test_calls_that_are_forbidden(name: str) -> None:
    """By name and by number, whatever the policy allows, those that lists tend to forget too."""
    number = SYSCALLS[name.lower()].numbers[0]
    assert number is not None

    for call in (name, name.upper(), name.lower(), number):
        for wasi in (Wasi(), Wasi(allow=("*",), deny=()), Wasi(allow=(), deny=("*",))):
            assert wasi.syscall(call) == "forbidden"


@pytest.mark.parametrize(
    "call", ["", "*", "read*", "READ ", "frobnicate", "fd_read", "__NR_read", "0", 70, 71, 1000, -1]
)
def test_unknown_calls_are_unknown(call: str | int) -> None:
    """What is not in the table is not allowed. 70 and 71 are msgrcv and msgctl on x86-64."""
    assert Wasi(allow=("*",), deny=()).syscall(call) == "unknown"


@pytest.mark.parametrize("call", [None, True, False, 1.0, b"read", ("read",)], ids=repr)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_what_is_neither_a_name_nor_a_number_is_unknown(call: object, platform: str) -> None:
    """Attack: None is the number of every call that a platform lacks, and True equals 1, which writes."""
    assert Wasi().syscall(call, platform) == "unknown"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "verdicts"),
    [
        ("FORK", ("forbidden", "unknown", "forbidden")),
        ("CLONE", ("forbidden", "forbidden", "unknown")),
        ("CHMOD", ("forbidden", "unknown", "forbidden")),
        ("UMOUNT", ("forbidden", "forbidden", "unknown")),
        ("unmount", ("unknown", "unknown", "forbidden")),
        ("posix_spawn", ("unknown", "unknown", "forbidden")),
        ("MREMAP", ("allowed", "allowed", "unknown")),
        ("EXIT_GROUP", ("allowed", "allowed", "unknown")),
        ("open", ("allowed", "unknown", "allowed")),
        ("openat", ("allowed", "allowed", "unknown")),
        ("READ", ("allowed", "allowed", "allowed")),
        (0, ("allowed", "unknown", "unknown")),
        (3, ("allowed", "unknown", "allowed")),
        (57, ("forbidden", "allowed", "unknown")),
        (59, ("forbidden", "unknown", "forbidden")),
        (113, ("forbidden", "allowed", "unknown")),
    ],
)
def test_platforms_change_the_set(call: str | int, verdicts: tuple[str, ...]) -> None:
    """The same name or number on Linux (x86-64, aarch64) and on Darwin."""
    assert tuple(Wasi().syscall(call, platform) for platform in PLATFORMS) == verdicts
    assert Wasi().syscall(call) == verdicts[0]


@pytest.mark.parametrize("platform", ["", "linux", "Linux-x86_64", "windows", None])
def test_unknown_platforms_are_refused(platform: str) -> None:
    """A verdict for a platform that nobody knows would be a guess."""
    with pytest.raises(PolicyError) as caught:
        Wasi().syscall("read", platform)

    assert str(caught.value) == f"the platform is {platform!r}: it must be linux-x86_64, linux-aarch64 or darwin"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_name_and_its_number_have_one_verdict(platform: str) -> None:
    """For every call of the table, under a policy that refuses some."""
    wasi = Wasi(allow=("fd", "CLOCK_GETTIME"), deny=("fd_write",))
    place = PLATFORMS.index(platform)
    verdicts = set()
    for name, known in SYSCALLS.items():
        number = known.numbers[place]
        verdict = wasi.syscall(name, platform)
        verdicts.add(verdict)
        assert verdict == ("unknown" if number is None else wasi.syscall(number, platform))

    assert verdicts == {"allowed", "refused", "forbidden", "unknown"}


def test_verdicts_follow_the_policy() -> None:
    """Unlisted calls are refused; those that the engine does itself are not for a policy to take."""
    wasi = Wasi(allow=("READ", "WRITE", "CLOSE", "EXIT"))
    verdicts = {name: wasi.syscall(name) for name in ALLOWED}

    assert verdicts == {
        **dict.fromkeys(("READ", "WRITE", "CLOSE", "EXIT", "EXIT_GROUP"), "allowed"),
        **dict.fromkeys(("MMAP", "MUNMAP", "MREMAP", "GETPID"), "allowed"),
        **dict.fromkeys(("FSTAT", "CLOCK_GETTIME", "GETTIMEOFDAY"), "refused"),
    }
    assert Wasi(deny=("GETTIMEOFDAY",)).syscall("CLOCK_GETTIME") == "refused"


@given(
    st.integers() | st.integers(0, 500) | st.text(max_size=20) | st.sampled_from([*SYSCALLS, *ALLOWED]),
    st.sampled_from(PLATFORMS),
)
def test_any_name_or_number_has_a_verdict(call: str | int, platform: str) -> None:
    """Allowed is only what the table lists as such."""
    verdict = Wasi(allow=("*",), deny=()).syscall(call, platform)
    place = PLATFORMS.index(platform)
    wanted = call.lower() if isinstance(call, str) else call
    listed = [
        known
        for name, known in SYSCALLS.items()
        if known.numbers[place] is not None and wanted in (known.numbers[place], name)
    ]

    assert verdict == ("unknown" if not listed else "forbidden" if listed[0].never else "allowed")


# -- in policies ----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([name for name, known in SYSCALLS.items() if not known.never]), max_size=6),
    st.lists(st.sampled_from(list(SYSCALLS)), max_size=4),
    st.booleans(),
)
def test_lists_of_system_calls_give_what_stands_for_them(allow: list[str], deny: list[str], upper: bool) -> None:
    """Nothing beyond what is allowed, and nothing that is denied."""
    written = [name.upper() if upper else name for name in (*allow, *deny)]
    wasi = Wasi(allow=tuple(written[: len(allow)]), deny=tuple(written[len(allow) :]))
    granted = {call for name in allow for call in SYSCALLS[name].wasi}
    denied = {call for name in deny for call in SYSCALLS[name].wasi}

    assert set(WASI_BY_NAME) - wasi.refused() == granted - denied


@pytest.mark.parametrize("name", [*FORBIDDEN, *FORGOTTEN])
def test_what_no_guest_can_be_given_cannot_be_allowed(name: str) -> None:
    """A policy that promises what WASI cannot do is refused; denying it is fine."""
    with pytest.raises(PolicyError) as caught:
        Wasi(allow=("READ", name))

    assert str(caught.value) == (
        f"wasi.allow has {name!r}, which no guest can be given: WASI has no such call. Leave it out"
    )
    assert Wasi(allow=("READ",), deny=(name,)).refused() == Wasi(allow=("READ",)).refused()


@pytest.mark.parametrize("name", ["REED", "FD_READ", "READ*", "fd_raed", "", "socks", "0"])
@pytest.mark.parametrize("field", ["allow", "deny"])
def test_unknown_names_are_refused(field: str, name: str) -> None:
    """Attack: a misspelt call in `deny` is passed over, and the guest makes it."""
    with pytest.raises(PolicyError) as caught:
        Wasi(**{field: (name,)})  # type: ignore[arg-type]

    assert str(caught.value) == (
        f"wasi.{field}[0] is {name!r}, which is no WASI call, group or pattern of calls: "
        "write names such as fd_write, path_* or clock"
    )


# -- in runs --------------------------------------------------------------------------------------------------------


def play(policy: Policy) -> Played:
    """What a guest gets that writes, asks for the time and for randomness, and closes its stdin."""
    script = Script()
    script.write(1, b"hello")
    script.time()
    script.call("random_get", script.room(8), 8)
    script.close(0)
    return script.play(policy)


def test_a_list_of_system_calls_takes_effect_on_guests(tmp_path: Path) -> None:
    """What is listed works, all else is refused with its errno and reported."""
    path = tmp_path / "whitelist.yaml"
    path.write_text("wasi: {allow: [READ, WRITE, CLOSE, EXIT]}\n")
    played = play(Policy.load(path))

    assert played.errnos == [SUCCESS, ENOTCAPABLE, ENOTCAPABLE, SUCCESS]
    assert played.report.stdout == b"hello"
    assert [(v.kind, v.subject, v.call, v.action) for v in played.report.violations] == [
        ("call", "clock_time_get", "clock_time_get", "deny"),
        ("call", "random_get", "random_get", "deny"),
    ]
    assert played.report.usage.denied == {"clock_time_get": 1, "random_get": 1}


def test_editing_the_list_changes_what_guests_can_do(tmp_path: Path) -> None:
    """The file is what counts, each time that it is read."""
    path = tmp_path / "whitelist.yaml"
    path.write_text("wasi:\n  allow:\n    - READ\n    - CLOSE\n  errno: nosys\n")
    played = play(Policy.load(path))
    assert played.errnos == [ENOSYS, ENOSYS, ENOSYS, SUCCESS]
    assert played.report.stdout == b""

    path.write_text("wasi:\n  allow:\n    - READ\n    - WRITE\n    - GETTIMEOFDAY\n    - GETRANDOM\n")
    played = play(Policy.load(path))
    assert played.errnos == [SUCCESS, SUCCESS, SUCCESS, ENOTCAPABLE]
    assert played.report.stdout == b"hello"

    path.write_text("wasi: {deny: [write]}\n")
    played = play(Policy.load(path))
    assert played.errnos == [ENOTCAPABLE, SUCCESS, SUCCESS, SUCCESS]


def test_a_forbidden_call_in_a_list_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """In `allow` it is an error of the file, in `deny` it is what holds anyway."""
    path = tmp_path / "whitelist.yaml"
    path.write_text("wasi: {allow: [READ, WRITE, FORK]}\n")
    with pytest.raises(PolicyError) as caught:
        Policy.load(path)
    assert str(caught.value) == (
        f"{path}: wasi.allow has 'FORK', which no guest can be given: WASI has no such call. Leave it out"
    )

    path.write_text("wasi: {deny: [FORK, EXECVE, MOUNT]}\n")
    assert play(Policy.load(path)).errnos == [SUCCESS] * 4


def test_system_calls_in_notes_are_noted(tmp_path: Path) -> None:
    """Where the policy audits, the calls are made, and the report names each that was not listed."""
    played = play(Policy.loads("on_violation: audit\nwasi: {allow: [WRITE]}\n", "yaml"))

    assert played.errnos == [SUCCESS] * 4
    assert [(v.subject, v.action) for v in played.report.violations] == [
        ("clock_time_get", "audit"),
        ("random_get", "audit"),
        ("fd_close", "audit"),
    ]
