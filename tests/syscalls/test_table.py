"""The table of system calls: what it says, that the kernel agrees, and that a user's own file only takes away.

Holds P-JAIL-1.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

import stockade.syscalls
from stockade import PolicyError
from stockade.syscalls import PLATFORMS, load_table, read_table
from tests.policy.test_syscalls import HEADERS, numbers_in

FILE = Path(stockade.syscalls.__file__).with_name("syscalls.yaml")
TABLE = load_table()

ALWAYS_FORBIDDEN = {
    "processes": "fork vfork clone clone3 execve execveat",
    "privileges": "setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset",
    "modes": "chmod fchmod fchmodat fchmodat2 chown fchown fchownat lchown setxattr",
    "mounts": "mount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr",
    "namespaces": "unshare setns",
    "tracing": "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd pidfd_open pidfd_send_signal personality",
    "network": "socket socketpair connect bind listen accept accept4",
    "kernel": (
        "init_module finit_module delete_module kexec_load kexec_file_load bpf perf_event_open io_uring_setup "
        "io_uring_enter io_uring_register userfaultfd"
    ),
    "keys": "keyctl add_key request_key",
    "system": "clock_settime settimeofday sethostname swapon acct reboot",
    "devices": "mknod mknodat open_by_handle_at",
}


def test_a_yaml_parser_reads_the_same() -> None:
    """The file is JSON, so that no YAML parser is needed; and it is YAML, as its name says."""
    text = FILE.read_text()

    assert YAML(typ="safe", pure=True).load(text) == json.loads(text)
    assert msgspec.json.decode(text, type=type(TABLE)) == TABLE


@pytest.mark.parametrize("platform", HEADERS)
def test_numbers_are_those_of_the_kernel(platform: str) -> None:
    """Every number, and every call that a platform lacks, against the kernel's own header; newer calls than it has."""
    path = Path(HEADERS[platform])
    if not path.exists():
        pytest.skip(f"the kernel's headers are not installed: no {path}")
    numbers = numbers_in(path.read_text())
    newest = max(numbers.values())
    place = PLATFORMS.index(platform)  # type: ignore[arg-type]

    told = {call.name: call.numbers[place] for call in TABLE.calls}

    known = {name: number for name, number in told.items() if number is None or number <= newest}
    assert known == {name: numbers.get(name) for name in known}
    assert len(known) > 250


@pytest.mark.parametrize("platform", PLATFORMS)
def test_each_number_and_name_stands_for_one_call(platform: str) -> None:
    """Attack: a number that is allowed under one name and forbidden under another."""
    place = PLATFORMS.index(platform)  # type: ignore[arg-type]
    numbers = [call.numbers[place] for call in TABLE.calls if call.numbers[place] is not None]

    assert len(numbers) == len(set(numbers))
    assert len({call.name for call in TABLE.calls}) == len(TABLE.calls)
    assert not set(TABLE.aliases) & {call.name for call in TABLE.calls}


def test_every_call_has_a_category_and_what_is_allowed_has_somebody_who_needs_it() -> None:
    """Nothing is allowed for nobody."""
    needs = {"python", "libc", "engine", "wasi", "frames"}

    for call in TABLE.calls:
        assert call.category in TABLE.categories
        assert bool(call.needed_by) == (call.worker == "allow"), call.name
        assert set(call.needed_by) <= needs
    assert {call.category for call in TABLE.calls} == set(TABLE.categories)


@pytest.mark.parametrize("category", ALWAYS_FORBIDDEN)
def test_what_no_worker_may_do(category: str) -> None:
    """New processes, privileges, mounts, namespaces, other processes, sockets, the kernel's machinery."""
    forbidden = {call.name for call in TABLE.calls if call.category == category and call.worker == "forbid"}

    assert set(ALWAYS_FORBIDDEN[category].split()) <= forbidden


def test_calls_with_more_than_one_use_are_held_to_some() -> None:
    """By themselves, these would start processes, reach devices, signal others, make data executable, share memory."""
    conditions = {call.name: call.when for call in TABLE.calls if call.when}

    assert conditions == {
        "clone": "threads",
        "fcntl": "fcntl",
        "ioctl": "ioctl",
        "kill": "own",
        "mmap": "map",
        "mprotect": "code",
        "prctl": "prctl",
        "prlimit64": "read_limits",
        "seccomp": "stricter",
        "tgkill": "own",
    }


# -- files of the user's own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["remove: [openat2, ipc, linkat]\n", '{"remove": ["openat2", "ipc", "linkat"]}'])
def test_a_file_takes_calls_and_categories_away(tmp_path: Path, text: str) -> None:
    """As YAML and as JSON; the rest is as it was."""
    file = tmp_path / "mine.yaml"
    file.write_text(text)

    mine = read_table(file)

    before = {call.name for call in TABLE.calls if call.worker == "allow"}
    after = {call.name for call in mine.calls if call.worker == "allow"}
    assert before - after == {"openat2", "linkat"}
    assert after < before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("allow: [execve]", "Object contains unknown field `allow`"),
        ("{}", "Object missing required field `remove`"),
        ('{"remove": [], "allow": ["execve"]}', "Object contains unknown field `allow`"),
        ("calls: []\nremove: []", "Object contains unknown field `calls`"),
        ("- execve", "Expected `object`, got `array`"),
        ("remove: execve", "Expected `array`, got `str` - at `$.remove`"),
        ("remove: [1]", "Expected `str`, got `int` - at `$.remove[0]`"),
        ("", "Expected `object`, got `null`"),
    ],
)
def test_a_file_can_do_nothing_else(tmp_path: Path, text: str, told: str) -> None:
    """Attack: a file that allows what is forbidden."""
    file = tmp_path / "mine.yaml"
    file.write_text(text)

    with pytest.raises(PolicyError) as caught:
        read_table(file)

    assert str(caught.value) == (
        f"{file}: {told}. A file of your own can only remove: write remove, and a list of names and categories"
    )


def test_what_is_misspelt_or_needed_is_told(tmp_path: Path) -> None:
    """A name that removes nothing would be taken for one that does; a process must be able to end."""
    file = tmp_path / "mine.yaml"
    file.write_text("remove: [opnat2]")
    with pytest.raises(PolicyError, match=r"mine\.yaml: opnat2 is neither a system call of the table nor a category"):
        read_table(file)

    file.write_text("remove: [itself]")
    with pytest.raises(PolicyError, match=r"no worker can do without exit_group: leave it out of what is removed"):
        read_table(file)

    file.write_text("remove: [openat2, sendmsg]")
    with pytest.raises(PolicyError) as caught:
        read_table(file)
    assert str(caught.value) == f"{file}: workers need sendmsg (frames): it cannot be removed"
    file.write_text("remove: [openat2, messages]")
    with pytest.raises(PolicyError) as caught:
        read_table(file)
    assert str(caught.value) == (
        f"{file}: workers need sendmsg (frames), recvmsg (frames): they cannot be removed: name the calls of messages "
        "that are to be removed, one by one"
    )

    file.write_text("remove: [&a, *a")
    with pytest.raises(PolicyError, match=r"mine\.yaml: it is neither YAML nor JSON"):
        read_table(file)
    with pytest.raises(PolicyError, match=r"nowhere cannot be read: No such file or directory"):
        read_table(tmp_path / "nowhere")
    with pytest.raises(PolicyError, match=r"is not a regular file|cannot be read"):
        read_table(tmp_path)


@given(st.frozensets(st.sampled_from([*TABLE.categories, *(call.name for call in TABLE.calls)]), max_size=6))
def test_no_file_adds_anything(names: frozenset[str]) -> None:
    """What is removed in any order: no call is allowed that was not, and what is forbidden stays so."""
    try:
        mine = TABLE.without(names)
    except PolicyError:
        return

    for ours, theirs in zip(TABLE.calls, mine.calls, strict=True):
        assert theirs.worker == ours.worker or (ours.worker, theirs.worker) == ("allow", "unlisted")
        assert theirs.numbers == ours.numbers
        if theirs.worker != "unlisted":
            assert theirs.when == ours.when
