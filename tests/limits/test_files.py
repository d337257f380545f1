"""Limits and rights on files: exactly the limit succeeds, one more is refused, and the report says so.

Holds P-LIMIT-1 and P-TIME-1.
"""

from __future__ import annotations

import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import stockade
from stockade.policy import Filesystem, Limits, Mount, Policy
from tests.limits._guests import (
    ALL_RIGHTS,
    APPEND,
    CREAT,
    CUR,
    DIRECTORY,
    EAGAIN,
    EBADF,
    EDQUOT,
    EEXIST,
    EFBIG,
    EINVAL,
    EMFILE,
    END,
    ENOENT,
    ENOTSUP,
    EPERM,
    EXCL,
    FOLLOW,
    MOUNT,
    READ_RIGHTS,
    SUCCESS,
    TRUNC,
    Later,
    Script,
    files_policy,
    kinds,
    player,
    tree,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests._timeline import Timeline

pytestmark = pytest.mark.usefixtures("everywhere")

FD = MOUNT + 1
"""The descriptor of the first file that a script opens."""


class Case(NamedTuple):
    """A script of which only the last call is too much.

    Attributes:
        write: Writes the script.
        policy: What the policy limits.
        errno: How the last call is refused.
        kind: The kind of the violation.
        subject: What it is about.
        limit: What is allowed.
        observed: What was asked for.
        call: Which call asked.
        usage: What is used when the last call is refused.
        noted: The errno of the last call where the policy only audits.
    """

    write: Callable[[Script], object]
    policy: dict[str, Any]
    errno: int
    kind: str
    subject: str
    limit: int | None
    observed: int | None
    call: str
    usage: Mapping[str, int] = MappingProxyType({})
    noted: int = SUCCESS


def open_one_too_many(script: Script) -> None:
    script.open("one")
    script.open("folder", DIRECTORY)
    script.open("two")


def open_one_too_many_after_closing(script: Script) -> None:
    """Places are counted after closing and moving: 2 open, 1 closed, 1 moved over the other, 1 free place taken."""
    one, two = script.open("one"), script.open("two")
    script.close(one)
    three = script.open("one")
    script.call("fd_renumber", three, two)
    script.open("one")
    script.open("two")


def create_a_file_too_many(script: Script) -> None:
    script.open("a", CREAT)
    script.call("path_create_directory", MOUNT, "b")
    script.open("c", CREAT)


def create_a_folder_too_many(script: Script) -> None:
    script.open("a", CREAT)
    script.open("b", CREAT | EXCL)
    script.call("path_create_directory", MOUNT, "c")


def create_a_symlink_too_many(script: Script) -> None:
    script.call("path_symlink", "one", MOUNT, "a")
    script.call("path_link", MOUNT, 0, "one", MOUNT, "b")
    script.call("path_symlink", "one", MOUNT, "c")


def create_a_link_too_many(script: Script) -> None:
    script.call("path_symlink", "one", MOUNT, "a")
    script.call("path_link", MOUNT, 0, "one", MOUNT, "b")
    script.call("path_link", MOUNT, 0, "one", MOUNT, "c")


def write_a_byte_too_many(script: Script) -> None:
    fd = script.open("new", CREAT)
    script.write(fd, b"1234567")
    script.write(fd, b"890")
    script.write(fd, b"x")


def write_a_long_buffer(script: Script) -> None:
    script.write(script.open("new", CREAT), b"12345678901")


def pwrite_past_the_limit(script: Script) -> None:
    fd = script.open("new", CREAT)
    script.pwrite(fd, b"0", 9)
    script.pwrite(fd, b"x", 10)


def append_past_the_limit(script: Script) -> None:
    """The position of the file is 0, but what is written goes to its end."""
    script.write(script.open("new", CREAT), b"123456789")
    fd = script.open("new", fdflags=APPEND)
    script.write(fd, b"0")
    script.seek(fd, 0)
    script.write(fd, b"x")


def append_past_the_limit_by_set_flags(script: Script) -> None:
    fd = script.open("new", CREAT)
    script.write(fd, b"1234567890")
    script.seek(fd, 0)
    script.write(fd, b"1")
    script.call("fd_fdstat_set_flags", fd, APPEND)
    script.seek(fd, 0)
    script.write(fd, b"x")


def append_past_the_limit_after_renumber(script: Script) -> None:
    script.write(script.open("new", CREAT), b"1234567890")
    fd = script.open("new", fdflags=APPEND)
    script.call("fd_renumber", fd, FD)
    script.seek(FD, 0)
    script.write(FD, b"x")


def set_size_past_the_limit(script: Script) -> None:
    fd = script.open("new", CREAT)
    script.call("fd_filestat_set_size", fd, 10)
    script.call("fd_filestat_set_size", fd, 11)


def seek_far_and_write(script: Script) -> None:
    """The attack: a sparse giant, which takes little of the disk but breaks whoever copies it."""
    fd = script.open("new", CREAT)
    script.seek(fd, 1 << 40)
    script.seek(fd, 9)
    script.write(fd, b"0")
    script.seek(fd, 990, CUR)
    script.write(fd, b"x")


def read_a_byte_too_many(script: Script) -> None:
    fd = script.open("digits")
    script.read(fd, 3)
    script.pread(fd, 2, 0)
    script.read(fd, 1)


def pread_a_byte_too_many(script: Script) -> None:
    fd = script.open("digits")
    script.read(fd, 5)
    script.pread(fd, 1, 0)


def write_bytes_too_many(script: Script) -> None:
    fd = script.open("new", CREAT)
    script.write(fd, b"123")
    script.pwrite(fd, b"45", 0)
    script.write(fd, b"x")


def pwrite_bytes_too_many(script: Script) -> None:
    fd = script.open("new", CREAT)
    script.write(fd, b"12345")
    script.pwrite(fd, b"x", 0)


def random_too_many(script: Script) -> None:
    buffer = script.room(32)
    script.call("random_get", buffer, 15)
    script.call("random_get", buffer, 1)
    script.call("random_get", buffer, 1)


def read_too_fast(script: Script) -> None:
    fd = script.open("digits")
    script.read(fd, 4)
    script.read(fd, 1)
    script.read(fd, 1)


def write_too_fast(script: Script) -> None:
    fd = script.open("new", CREAT)
    script.write(fd, b"12345")
    script.write(fd, b"x")


def one(name: str, *arguments: int | str) -> Callable[[Script], object]:
    return lambda script: script.call(name, *arguments)


LONG = {"file_size": 10}
CASES = {
    "open_files": Case(
        open_one_too_many, {"open_files": 2}, EMFILE, "open_files", "two", 2, 3, "path_open",
        {"files_opened": 2, "files_open_peak": 2, "files_created": 0},
    ),
    "open_files, counted": Case(
        open_one_too_many_after_closing, {"open_files": 2}, EMFILE, "open_files", "two", 2, 3, "path_open",
        {"files_opened": 4, "files_open_peak": 2},
    ),
    "open_files 0": Case(
        lambda script: script.open("one"), {"open_files": 0}, EMFILE, "open_files", "one", 0, 1, "path_open",
        {"files_opened": 0, "files_open_peak": 0},
    ),
    "files_created by O_CREAT": Case(
        create_a_file_too_many, {"files_created": 2}, EDQUOT, "files_created", "c", 2, 3, "path_open",
        {"files_created": 2, "files_opened": 1},
    ),
    "files_created by mkdir": Case(
        create_a_folder_too_many, {"files_created": 2}, EDQUOT, "files_created", "c", 2, 3, "path_create_directory",
        {"files_created": 2},
    ),
    "files_created by symlink": Case(
        create_a_symlink_too_many, {"files_created": 2}, EDQUOT, "files_created", "c", 2, 3, "path_symlink",
        {"files_created": 2},
    ),
    "files_created by link": Case(
        create_a_link_too_many, {"files_created": 2}, EDQUOT, "files_created", "c", 2, 3, "path_link",
        {"files_created": 2},
    ),
    "create by O_CREAT": Case(
        lambda script: script.open("a", CREAT), {"create": False}, EPERM, "create", "a", None, None, "path_open",
        {"files_created": 0, "files_opened": 0},
    ),
    "create by O_CREAT and O_EXCL": Case(
        lambda script: script.open("a", CREAT | EXCL), {"create": False}, EPERM, "create", "a", None, None,
        "path_open",
    ),
    "create by mkdir": Case(
        one("path_create_directory", MOUNT, "a"), {"create": False}, EPERM, "create", "a", None, None,
        "path_create_directory", {"files_created": 0},
    ),
    "create by symlink": Case(
        one("path_symlink", "one", MOUNT, "a"), {"create": False}, EPERM, "create", "a", None, None, "path_symlink",
    ),
    "delete by unlink": Case(
        one("path_unlink_file", MOUNT, "one"), {"delete": False}, EPERM, "delete", "one", None, None,
        "path_unlink_file", {"files_deleted": 0},
    ),
    "delete by rmdir": Case(
        one("path_remove_directory", MOUNT, "folder"), {"delete": False}, EPERM, "delete", "folder", None, None,
        "path_remove_directory", {"files_deleted": 0},
    ),
    "delete by rename": Case(
        one("path_rename", MOUNT, "one", MOUNT, "two"), {"delete": False}, EPERM, "delete", "one", None, None,
        "path_rename", {"files_deleted": 0},
    ),
    "create by rename": Case(
        one("path_rename", MOUNT, "one", MOUNT, "new"), {"create": False}, EPERM, "create", "new", None, None,
        "path_rename", {"files_created": 0},
    ),
    "symlinks by symlink": Case(
        one("path_symlink", "one", MOUNT, "a"), {"symlinks": False}, EPERM, "symlinks", "a", None, None,
        "path_symlink", {"files_created": 0},
    ),
    "symlinks by link": Case(
        one("path_link", MOUNT, 0, "one", MOUNT, "a"), {"symlinks": False}, EPERM, "symlinks", "a", None, None,
        "path_link", {"files_created": 0},
    ),
    "file_size by write": Case(
        write_a_byte_too_many, LONG, EFBIG, "file_size", "fd_write", 10, 11, "fd_write", {"written_bytes": 10},
    ),
    "file_size by one write": Case(
        write_a_long_buffer, LONG, EFBIG, "file_size", "fd_write", 10, 11, "fd_write", {"written_bytes": 0},
    ),
    "file_size by pwrite": Case(
        pwrite_past_the_limit, LONG, EFBIG, "file_size", "fd_pwrite", 10, 11, "fd_pwrite", {"written_bytes": 10},
    ),
    "file_size by append": Case(
        append_past_the_limit, LONG, EFBIG, "file_size", "fd_write", 10, 11, "fd_write", {"written_bytes": 10},
    ),
    "file_size by append, set later": Case(
        append_past_the_limit_by_set_flags, LONG, EFBIG, "file_size", "fd_write", 10, 11, "fd_write",
        {"written_bytes": 11},
    ),
    "file_size by append, renumbered": Case(
        append_past_the_limit_after_renumber, LONG, EFBIG, "file_size", "fd_write", 10, 11, "fd_write",
    ),
    "file_size by set_size": Case(
        set_size_past_the_limit, LONG, EFBIG, "file_size", "fd_filestat_set_size", 10, 11, "fd_filestat_set_size",
    ),
    "file_size by seek": Case(
        seek_far_and_write, LONG, EFBIG, "file_size", "fd_write", 10, 1001, "fd_write", {"written_bytes": 10},
    ),
    "read_bytes by read": Case(
        read_a_byte_too_many, {"read_bytes": 5}, EDQUOT, "read_bytes", "fd_read", 5, 6, "fd_read", {"read_bytes": 5},
    ),
    "read_bytes by pread": Case(
        pread_a_byte_too_many, {"read_bytes": 5}, EDQUOT, "read_bytes", "fd_pread", 5, 6, "fd_pread",
        {"read_bytes": 5},
    ),
    "write_bytes by write": Case(
        write_bytes_too_many, {"write_bytes": 5}, EDQUOT, "write_bytes", "fd_write", 5, 6, "fd_write",
        {"written_bytes": 5},
    ),
    "write_bytes by pwrite": Case(
        pwrite_bytes_too_many, {"write_bytes": 5}, EDQUOT, "write_bytes", "fd_pwrite", 5, 6, "fd_pwrite",
        {"written_bytes": 5},
    ),
    "random_bytes": Case(
        random_too_many, {"random_bytes": 16}, EDQUOT, "random_bytes", "random_get", 16, 17, "random_get",
        {"random_bytes": 16},
    ),
    "read_rate": Case(
        read_too_fast, {"read_rate": 5, "on_rate": "refuse"}, EAGAIN, "read_rate", "fd_read", 5, 6, "fd_read",
        {"read_bytes": 5},
    ),
    "write_rate": Case(
        write_too_fast, {"write_rate": 5, "on_rate": "refuse"}, EAGAIN, "write_rate", "fd_write", 5, 6, "fd_write",
        {"written_bytes": 5},
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a script finds in its mount; outside is a file that no guest may see."""
    inside = tmp_path / "inside"
    (inside / "folder").mkdir(parents=True)
    (inside / "one").write_bytes(b"1")
    (inside / "two").write_bytes(b"2")
    (inside / "digits").write_bytes(b"0123456789")
    (tmp_path / "outside").write_bytes(b"secret")
    return inside


def sizes(folder: Path) -> list[int]:
    """Apparent sizes of all files."""
    return [path.lstat().st_size for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_exactly_the_limit_succeeds_and_one_more_is_refused(case: Case, folder: Path) -> None:
    """The limit itself can be used, then one call is refused."""
    script = Script()
    case.write(script)
    played = script.play(files_policy(folder, **case.policy))

    assert played.errnos == [SUCCESS] * (len(script) - 1) + [case.errno]
    violation = played.only_violation()
    assert (violation.kind, violation.subject, violation.limit, violation.observed) == (
        case.kind,
        case.subject,
        case.limit,
        case.observed,
    )
    assert (violation.call, violation.action, violation.count) == (case.call, "deny", 1)
    assert played.report.ok
    assert played.report.usage.denied == {case.call: 1}
    for name, value in case.usage.items():
        assert getattr(played.report.usage, name) == value, name
    if limit := case.policy.get("file_size"):
        assert max(sizes(folder)) <= limit


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_more_ends_the_run_where_the_policy_says_stop(case: Case, folder: Path) -> None:
    """The same script under on_violation = stop: outcome denied, one violation, nothing done beyond the limit."""
    script = Script()
    case.write(script)
    played = script.play(files_policy(folder, on_violation="stop", **case.policy))

    assert played.report.outcome is stockade.Outcome.DENIED
    violation = played.only_violation()
    assert (violation.kind, violation.subject, violation.call, violation.action) == (
        case.kind,
        case.subject,
        case.call,
        "stop",
    )
    assert sum(played.report.usage.calls.values()) == len(script)
    for name, value in case.usage.items():
        assert getattr(played.report.usage, name) == value, name


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_more_is_done_where_the_policy_takes_note(case: Case, folder: Path) -> None:
    """The same script under on_violation = audit: all is done, and the same violation is written down."""
    script = Script()
    case.write(script)
    played = script.play(files_policy(folder, on_violation="audit", **case.policy))

    assert played.errnos == [SUCCESS] * (len(script) - 1) + [case.noted]
    violation = played.only_violation()
    assert (violation.kind, violation.subject, violation.limit, violation.observed) == (
        case.kind,
        case.subject,
        case.limit,
        case.observed,
    )
    assert (violation.call, violation.action) == (case.call, "audit")
    assert played.report.usage.denied == {}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_without_the_limit_nothing_is_violated(case: Case, folder: Path) -> None:
    """The positive twin: no limit, no violation."""
    script = Script()
    case.write(script)
    played = script.play(files_policy(folder))

    assert played.errnos == [SUCCESS] * (len(script) - 1) + [case.noted]
    assert played.report.violations == ()


# -- open files -----------------------------------------------------------------------------------------------------


def test_closing_a_file_frees_its_place(folder: Path) -> None:
    """Open, open, refused, close, open."""
    script = Script()
    one = script.open("one")
    script.open("two")
    script.open("digits")
    script.close(one)
    script.open("digits")
    played = script.play(files_policy(folder, open_files=2))

    assert played.errnos == [SUCCESS, SUCCESS, EMFILE, SUCCESS, SUCCESS]
    assert played.report.usage.files_open_peak == 2
    assert played.report.usage.files_opened == 3


def test_closing_what_is_not_open_frees_no_place(folder: Path) -> None:
    """Attack on the counter of open files: close twice, close the mount and stdin, so that it counts too few."""
    script = Script()
    script.open("one")
    two = script.open("two")
    script.close(two)
    script.close(two)
    script.close(0)
    script.close(77)
    script.close(1 << 31)
    script.open("two")
    script.open("digits")
    played = script.play(files_policy(folder, open_files=2))

    assert played.errnos == [SUCCESS, SUCCESS, SUCCESS, EBADF, SUCCESS, EBADF, EBADF, SUCCESS, EMFILE]


def test_renumbering_keeps_the_count_of_open_files(folder: Path) -> None:
    """Attack on the counter: renumber onto itself, onto stdin, onto the mount, onto what is not open."""
    script = Script()
    one = script.open("one")
    for _ in range(3):
        script.call("fd_renumber", one, one)
    script.call("fd_renumber", one, 0)
    script.call("fd_renumber", 0, 99)
    two = script.open("two")
    script.open("digits")  # one too many
    script.call("fd_renumber", two, 0)  # closes one
    script.open("digits")
    script.open("digits")  # one too many
    played = script.play(files_policy(folder, open_files=2))

    assert played.errnos == [0, 0, 0, 0, 0, EBADF, 0, EMFILE, 0, 0, EMFILE]
    assert played.report.usage.files_open_peak == 2


def test_a_failed_open_takes_no_place(folder: Path) -> None:
    """What was not opened is not counted."""
    script = Script()
    for _ in range(3):
        script.open("missing")
    script.open("one")
    played = script.play(files_policy(folder, open_files=1))

    assert played.errnos == [ENOENT, ENOENT, ENOENT, SUCCESS]
    assert played.report.usage.files_opened == 1


def test_a_guest_cannot_use_up_the_descriptors_of_the_host(folder: Path) -> None:
    """Attack: 3,000 opens without a close. The host can still open files."""
    script = Script()
    path = script.put("one")
    result = script.cell()
    for _ in range(3_000):
        script.call("path_open", MOUNT, 0, path, 3, 0, READ_RIGHTS, 0, 0, result.address)
    played = script.play(files_policy(folder, open_files=64))

    assert played.errnos.count(SUCCESS) == 64
    assert played.errnos.count(EMFILE) == 3_000 - 64
    assert played.only_violation().count == 3_000 - 64
    with (folder / "one").open("rb") as file:
        assert file.read() == b"1"


# -- creating and deleting ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [{"create": False}, {"files_created": 0}], ids=["no right", "none left"])
def test_an_existing_file_is_opened_without_the_right_to_create(folder: Path, policy: dict[str, Any]) -> None:
    """O_CREAT on what exists creates nothing; with O_EXCL it fails as ever. O_TRUNC still empties."""
    script = Script()
    script.open("one", CREAT)
    script.open("one", CREAT | EXCL)
    script.open("one", CREAT | TRUNC)
    played = script.play(files_policy(folder, **policy))

    assert played.errnos == [SUCCESS, EEXIST, SUCCESS]
    assert played.report.violations == ()
    assert played.report.usage.files_created == 0
    assert (folder / "one").read_bytes() == b""


def test_an_existing_file_is_not_counted_as_created(folder: Path) -> None:
    """O_CREAT counts only where a file came to be, and O_TRUNC and O_EXCL mean what they always mean."""
    script = Script()
    script.open("one", CREAT)
    script.open("new", CREAT)
    script.open("new", CREAT)
    script.open("new", CREAT | EXCL)
    script.open("digits", CREAT | TRUNC | EXCL)
    played = script.play(files_policy(folder))

    assert played.errnos == [SUCCESS, SUCCESS, SUCCESS, EEXIST, EEXIST]
    assert played.report.usage.files_created == 1
    assert (folder / "digits").read_bytes() == b"0123456789"


def test_deleted_files_are_counted(folder: Path) -> None:
    """Unlink, rmdir and rename over something are counted; a plain rename is not."""
    script = Script()
    script.call("path_rename", MOUNT, "digits", MOUNT, "other")
    script.call("path_rename", MOUNT, "other", MOUNT, "one")
    script.call("path_unlink_file", MOUNT, "one")
    script.call("path_unlink_file", MOUNT, "one")
    script.call("path_remove_directory", MOUNT, "folder")
    played = script.play(files_policy(folder))

    assert played.errnos == [SUCCESS, SUCCESS, SUCCESS, ENOENT, SUCCESS]
    assert played.report.usage.files_deleted == 3
    assert tree(folder) == {"two": b"2"}


def test_renaming_over_a_dangling_link_needs_the_right_to_delete(folder: Path) -> None:
    """Attack: a link to nothing looks like nothing to whoever follows it, but renaming over it removes it."""
    (folder / "dangling").symlink_to("nowhere")
    script = Script()
    script.call("path_rename", MOUNT, "one", MOUNT, "dangling")
    played = script.play(files_policy(folder, delete=False))

    assert played.errnos == [EPERM]
    assert played.only_violation().kind == "delete"
    assert (folder / "dangling").is_symlink()


@pytest.mark.parametrize("target", ["../planted", "{outside}/planted"])
@pytest.mark.parametrize("flags", [CREAT, CREAT | EXCL, CREAT | TRUNC])
def test_a_link_that_leads_out_creates_nothing(folder: Path, target: str, flags: int) -> None:
    """Attack: O_CREAT through a link to nothing makes a file outside."""
    (folder / "link").symlink_to(target.format(outside=folder.parent))
    before = tree(folder.parent)
    script = Script()
    script.open("link", flags)
    played = script.play(files_policy(folder))

    assert played.errnos[0] != SUCCESS
    assert played.report.usage.files_created == 0
    assert tree(folder.parent) == before


def test_a_file_created_through_a_link_is_counted(folder: Path) -> None:
    """Attack: O_CREAT through a link to nothing makes a file that nobody counted, or that may not be made."""
    (folder / "link").symlink_to("target")
    script = Script()
    script.open("link", CREAT)

    refused = script.play(files_policy(folder, create=False))
    assert refused.errnos == [EPERM]
    assert kinds(refused.report.violations) == ["create"]
    assert not (folder / "target").exists()

    granted = script.play(files_policy(folder, files_created=1))
    assert granted.errnos == [SUCCESS]
    assert granted.report.usage.files_created == 1
    assert (folder / "target").exists()


def test_a_link_to_a_file_is_opened(folder: Path) -> None:
    """The positive twin: a link inside the mount to a file inside it works, with O_CREAT too."""
    (folder / "link").symlink_to("digits")
    script = Script()
    taken, buffer = script.read(script.open("link", CREAT), 20)
    played = script.play(files_policy(folder))

    assert played.errnos == [SUCCESS, SUCCESS]
    assert played.memory[buffer : buffer + played.number(taken)] == b"0123456789"
    assert played.report.usage.files_created == 0


def test_a_planted_link_leads_nowhere(folder: Path) -> None:
    """Attack: with the right to make links, one that leads out is planted and opened."""
    script = Script()
    script.call("path_symlink", "../outside", MOUNT, "link")
    script.open("link")
    played = script.play(files_policy(folder))

    assert played.errnos[1] == EPERM
    assert "path" in kinds(played.report.violations)


# -- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1 << 20, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1])
def test_no_offset_gets_round_the_file_size(folder: Path, offset: int) -> None:
    """Attack: a pwrite, allocate or set_size at an offset whose sum with the length wraps round 2^64."""
    script = Script()
    fd = script.open("new", CREAT)
    script.pwrite(fd, b"x" * 5, offset)
    script.call("fd_allocate", fd, offset, 5)
    script.call("fd_filestat_set_size", fd, offset)
    script.seek(fd, offset)
    script.write(fd, b"x" * 5)
    played = script.play(files_policy(folder, file_size=10))

    assert played.errnos[1] != SUCCESS
    assert played.errnos[2] == ENOTSUP
    # No file can end beyond 2^63-1, whatever the policy says.
    assert played.errnos[3] == (EFBIG if offset < 1 << 63 else EINVAL)
    if played.errnos[4]:
        assert played.errnos[5] == SUCCESS
    else:
        assert played.errnos[5] == (EFBIG if offset + 5 < 1 << 63 else EINVAL)
    assert (folder / "new").stat().st_size <= 10


def test_a_second_descriptor_does_not_widen_the_file_size(folder: Path) -> None:
    """Attack: two descriptors of one file, one appending, each of them within the limit by itself."""
    script = Script()
    first = script.open("new", CREAT)
    second = script.open("new", fdflags=APPEND)
    for _ in range(5):
        script.write(first, b"123")
        script.write(second, b"123")
    script.call("fd_fdstat_set_flags", second, 0)
    script.seek(second, 0, END)
    script.write(second, b"123")
    played = script.play(files_policy(folder, file_size=10))

    assert (folder / "new").stat().st_size <= 10
    assert EFBIG in played.errnos


def test_a_gathered_write_stays_within_the_file_size(folder: Path) -> None:
    """Attack: many buffers in one write, the first of them empty and each within the limit."""
    script = Script()
    fd = script.open("new", CREAT)
    text = script.put(b"123456")
    buffers = [(text, 0), (text, 0), (text, 6), (text, 6), (text, 6)]
    written = script.cell()
    for _ in range(4):
        script.call("fd_write", fd, script.iovec(*buffers), len(buffers), written.address)
    script.play(files_policy(folder, file_size=10))

    assert (folder / "new").stat().st_size <= 10


def test_a_file_larger_than_the_limit_can_be_read_and_overwritten(folder: Path) -> None:
    """The limit is about growing: what was there before may be changed within the limit, and cut shorter."""
    (folder / "large").write_bytes(b"x" * 100)
    script = Script()
    fd = script.open("large")
    script.read(fd, 100)
    script.pwrite(fd, b"abc", 7)
    script.call("fd_filestat_set_size", fd, 9)
    played = script.play(files_policy(folder, file_size=10))

    assert played.errnos == [SUCCESS] * 4
    assert (folder / "large").read_bytes() == b"xxxxxxxab"


# -- bytes read -----------------------------------------------------------------------------------------------------


def test_exactly_the_limit_can_be_read_and_the_end_still_be_seen(folder: Path) -> None:
    """A file of just the limit can be read by a guest that reads until it is told of the end, as all programs do."""
    script = Script()
    fd = script.open("digits")
    counts = [script.read(fd, 7)[0] for _ in range(4)]
    counts.append(script.pread(fd, 7, 10))
    played = script.play(files_policy(folder, read_bytes=10))

    assert played.errnos == [SUCCESS] * 6
    assert [played.number(count) for count in counts] == [7, 3, 0, 0, 0]
    assert played.report.violations == ()
    assert played.report.usage.read_bytes == 10


def test_the_last_read_within_the_limit_is_short(folder: Path) -> None:
    """A read that asks for more than is left gets what is left; its buffers are then as the guest wrote them."""
    script = Script()
    fd = script.open("digits")
    buffer = script.put(b"." * 16)
    taken = script.cell()
    iovec = script.iovec((buffer, 0), (buffer, 16), (buffer, 16))
    script.call("fd_read", fd, iovec, 3, taken.address)
    script.call("fd_read", fd, iovec, 3, taken.address + 4)
    played = script.play(files_policy(folder, read_bytes=4))

    assert played.errnos == [SUCCESS, SUCCESS, EDQUOT]
    assert played.number(taken) == 4
    assert played.memory[buffer : buffer + 16] == b"0123............"
    assert played.memory[iovec : iovec + 24] == bytes(script.data[iovec : iovec + 24])
    assert played.report.usage.read_bytes == 4


def test_the_count_of_a_read_is_right_where_it_is_written_into_its_own_buffers(folder: Path) -> None:
    """Attack: the count of bytes is to be written over the length of the buffer.

    The guard shortens that length for the call and puts it back afterwards. It must look at the count before, and the
    guest must find it where it asked for it.
    """
    (folder / "large").write_bytes(bytes(100))
    script = Script()
    fd = script.open("large")
    buffer = script.room(64)
    first, second = script.iovec((buffer, 64)), script.iovec((buffer, 64))
    script.call("fd_read", fd, first, 1, first + 4)
    script.call("fd_read", fd, second, 1, second + 4)
    played = script.play(files_policy(folder, read_bytes=48))

    assert played.errnos == [SUCCESS, SUCCESS, EDQUOT]
    assert played.report.usage.read_bytes == 48
    assert played.number(Later(first + 4)) == 48


def test_a_shortened_read_over_its_own_buffers_leaves_other_memory_alone(folder: Path) -> None:
    """Attack: what is read lands on the array of buffers and makes it empty, while its length is changed."""
    (folder / "zeros").write_bytes(bytes(64))
    script = Script(low=bytes(range(128)))
    fd = script.open("zeros")
    iovec = script.iovec((len(script.data), 64))
    script.room(64)
    taken = script.cell()
    script.call("fd_read", fd, iovec, 1, taken.address)
    played = script.play(files_policy(folder, read_bytes=16))

    assert played.errnos == [SUCCESS, SUCCESS]
    assert played.memory[:128] == bytes(range(128))


def test_one_long_read_past_the_limit_is_noted(folder: Path) -> None:
    """Where the policy audits, a read that goes past the limit is in the report, however it was made."""
    script = Script()
    script.read(script.open("digits"), 10)
    played = script.play(files_policy(folder, read_bytes=4, on_violation="audit"))

    assert played.report.usage.read_bytes == 10
    assert kinds(played.report.violations) == ["read_bytes"]


def test_much_can_be_read_in_little_memory(folder: Path) -> None:
    """What is read does not count as memory."""
    with (folder / "large").open("wb") as file:
        file.truncate(64 << 20)
    script = Script()
    fd = script.open("large")
    buffer = script.room(1 << 20)
    iovec, taken = script.iovec((buffer, 1 << 20)), script.cell()
    for _ in range(64):
        script.call("fd_read", fd, iovec, 1, taken.address)
    played = script.play(files_policy(folder, memory=16 << 20))

    assert played.errnos == [SUCCESS] * 65
    assert played.report.usage.read_bytes == 64 << 20


def test_no_more_is_written_to_the_disk_than_allowed(folder: Path) -> None:
    """Attack: a guest that fills the disk, file after file."""
    script = Script()
    text = script.room(1 << 16)
    iovec, written = script.iovec((text, 1 << 16)), script.cell()
    for number in range(40):
        fd = script.open(f"file{number}", CREAT)
        script.call("fd_write", fd, iovec, 1, written.address)
        script.close(fd)
    played = script.play(files_policy(folder, write_bytes=10 << 16, files_created=20))

    assert played.report.usage.written_bytes == 10 << 16
    assert sum(path.stat().st_size for path in folder.glob("file*")) == 10 << 16
    assert len(list(folder.glob("file*"))) == 20
    assert {violation.kind for violation in played.report.violations} == {"write_bytes", "files_created"}


# -- rates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["read", "write"])
def test_a_rate_is_held_by_waiting(folder: Path, way: str) -> None:
    """A second's worth goes at once, what is more waits for its time, and goes piece by piece."""
    (folder / "data").write_bytes(bytes(3000))
    script = Script()
    fd = script.open("data")
    for _ in range(30):
        if way == "read":
            script.read(fd, 100)
        else:
            script.write(fd, bytes(100))
    policy = files_policy(folder, **{f"{way}_rate": 1000})
    begun = time.monotonic()
    played = script.play(policy)
    seconds = time.monotonic() - begun

    moved = played.report.usage.read_bytes if way == "read" else played.report.usage.written_bytes
    assert played.errnos == [SUCCESS] * 31
    # A call that has to wait moves what may go by then: a hundredth of a second's worth, or more.
    assert 1000 + 20 * 11 <= moved <= 1000 + 1000 * seconds
    violation = played.only_violation()
    assert (violation.kind, violation.action, violation.limit, violation.observed) == (
        f"{way}_rate",
        "audit",
        1000,
        1001,
    )
    assert played.report.usage.denied == {}


@pytest.mark.parametrize("way", ["read", "write"])
def test_a_deadline_holds_while_a_rate_makes_wait(timeline: Timeline, folder: Path, way: str) -> None:
    """Attack: a long read at a slow rate, so that the next call has to wait for far longer than the deadline."""
    (folder / "data").write_bytes(bytes(1000))
    script = Script()
    fd = script.open("data")
    for _ in range(2):
        if way == "read":
            script.read(fd, 500)
        else:
            script.write(fd, bytes(500))
    played = script.play(files_policy(folder, wall_time=0.3, **{f"{way}_rate": 1}))

    assert played.report.outcome is stockade.Outcome.TIMEOUT
    assert timeline.passed == pytest.approx(0.3)
    assert kinds(played.report.violations) == [f"{way}_rate", "timeout"]


def test_rates_begin_anew_with_each_run(folder: Path) -> None:
    """What one run read does not slow the next."""
    script = Script()
    script.read(script.open("digits"), 10)
    policy = files_policy(folder, read_rate=10, read_bytes=10, on_rate="refuse")
    for _ in range(3):
        assert script.play(policy).errnos == [SUCCESS, SUCCESS]


# -- read-only mounts -----------------------------------------------------------------------------------------------

WRITE_PATHS: dict[str, Callable[[Script], object]] = {
    "create": lambda script: script.open("new", CREAT),
    "create excl": lambda script: script.open("new", CREAT | EXCL),
    "open for writing": lambda script: script.open("one"),
    "truncate": lambda script: script.open("one", TRUNC, rights=READ_RIGHTS),
    "append": lambda script: script.open("one", fdflags=APPEND),
    "mkdir": lambda script: script.call("path_create_directory", MOUNT, "new"),
    "unlink": lambda script: script.call("path_unlink_file", MOUNT, "one"),
    "rmdir": lambda script: script.call("path_remove_directory", MOUNT, "folder"),
    "rename": lambda script: script.call("path_rename", MOUNT, "one", MOUNT, "new"),
    "rename out": lambda script: script.call("path_rename", MOUNT, "one", FD, "new"),
    "rename in": lambda script: script.call("path_rename", FD, "mine", MOUNT, "new"),
    "rename over": lambda script: script.call("path_rename", FD, "mine", MOUNT, "one"),
    "link": lambda script: script.call("path_link", MOUNT, 0, "one", MOUNT, "new"),
    "link out": lambda script: script.call("path_link", MOUNT, 0, "one", FD, "new"),
    "link in": lambda script: script.call("path_link", FD, 0, "mine", MOUNT, "new"),
    "symlink": lambda script: script.call("path_symlink", "one", MOUNT, "new"),
    "set times": lambda script: script.call("path_filestat_set_times", MOUNT, 0, "one", 1000, 1000, 1 | 4),
}


@pytest.fixture
def writable(tmp_path: Path) -> Path:
    """A second folder, which is mounted writable."""
    path = tmp_path / "writable"
    path.mkdir()
    (path / "mine").write_bytes(b"mine")
    (path / "one").write_bytes(b"1")
    (path / "folder").mkdir()
    return path


def both(first: Path, mode: str, writable: Path, **limits: Any) -> Policy:
    """A policy that mounts one folder as told and another one writable."""
    return Policy(
        limits=Limits(**limits),
        filesystem=Filesystem(
            mounts=(Mount(str(first), "/first", mode), Mount(str(writable), "/rw", "rw")),  # type: ignore[arg-type]
            delete=True,
            symlinks=True,
        ),
    )


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """When each file was changed, and how many names it has."""
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_nlink) for path in folder.rglob("*")}


@pytest.mark.parametrize("way", WRITE_PATHS)
def test_nothing_gets_round_a_read_only_mount(folder: Path, writable: Path, way: str) -> None:
    """Attack: change a read-only folder by link, rename, truncation or times."""
    before, stamped = tree(folder), stamps(folder)
    script = Script()
    WRITE_PATHS[way](script)
    played = script.play(both(folder, "ro", writable))

    assert played.errnos[0] in (EPERM, ENOTSUP, 69, 75, 76), played.errnos
    assert tree(folder) == before
    assert stamps(folder) == stamped
    assert played.only_violation().kind == "path"
    assert played.only_violation().action == "deny"
    assert played.report.usage.denied == played.report.usage.calls


_APART = pytest.mark.differs("each mount of a worker is a file system of its own")


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=_APART if way.endswith((" in", " out", " over")) else ()) for way in WRITE_PATHS]
)
def test_the_same_succeeds_in_a_writable_mount(folder: Path, writable: Path, way: str) -> None:
    """The positive twin: both folders writable, everything succeeds."""
    script = Script()
    WRITE_PATHS[way](script)
    played = script.play(both(folder, "rw", writable))

    assert played.errnos == [SUCCESS]
    assert played.report.violations == ()


def test_nothing_gets_round_a_read_only_mount_by_note(folder: Path, writable: Path) -> None:
    """Auditing widens limits, never mounts: native WASI still refuses."""
    before = tree(folder)
    script = Script()
    for write in WRITE_PATHS.values():
        write(script)
    policy = both(folder, "ro", writable).replace(on_violation="audit")
    played = script.play(policy)

    assert SUCCESS not in played.errnos
    assert tree(folder) == before


def test_an_open_file_of_a_read_only_mount_cannot_be_changed(folder: Path, writable: Path) -> None:
    """Attack: open for reading, then write, cut, allocate, set the times by descriptor."""
    before, stamped = tree(folder), stamps(folder)
    script = Script()
    fd = script.open("one", rights=READ_RIGHTS)
    script.write(fd, b"x")
    script.pwrite(fd, b"x", 0)
    script.call("fd_filestat_set_size", fd, 0)
    script.call("fd_allocate", fd, 0, 5)
    script.call("fd_filestat_set_times", fd, 1000, 1000, 1 | 4)
    script.call("fd_fdstat_set_rights", fd, ALL_RIGHTS, ALL_RIGHTS)
    script.write(fd, b"x")
    script.call("fd_fdstat_set_flags", fd, APPEND)
    script.write(fd, b"x")
    played = script.play(both(folder, "ro", writable))

    assert played.errnos[0] == SUCCESS
    assert SUCCESS not in played.errnos[1:6]
    assert played.errnos[7] != SUCCESS
    assert played.errnos[9] != SUCCESS
    assert tree(folder) == before
    assert stamps(folder) == stamped


def test_a_read_only_folder_opened_again_is_still_read_only(folder: Path, writable: Path) -> None:
    """Attack: open the folder through the mount, ask for all rights, create below it."""
    before = tree(folder)
    script = Script()
    result = script.cell()
    script.call("path_open", MOUNT, 0, ".", DIRECTORY, READ_RIGHTS, ALL_RIGHTS, 0, result.address)
    script.open("new", CREAT, fd=result)
    script.call("path_unlink_file", result, "one")
    played = script.play(both(folder, "ro", writable))

    assert played.errnos[0] == SUCCESS
    assert SUCCESS not in played.errnos[1:]
    assert tree(folder) == before


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "folder/../../outside", "..", "folder/../../inside/one"])
def test_no_path_leads_out_of_a_mount(folder: Path, path: str) -> None:
    """Attack: a way out by .. or an absolute path. Refused, and written down with the path."""
    script = Script()
    result = script.cell()
    script.call("path_open", MOUNT, FOLLOW, path, 0, READ_RIGHTS, 0, 0, result.address)
    script.call("path_filestat_get", MOUNT, FOLLOW, path, script.room(64))
    played = script.play(files_policy(folder))

    assert played.errnos == [EPERM, EPERM]
    assert [(v.kind, v.subject, v.call) for v in played.report.violations] == [
        ("path", path, "path_open"),
        ("path", path, "path_filestat_get"),
    ]


def test_without_mounts_there_are_no_files() -> None:
    """No mount, no descriptor to open anything from."""
    script = Script()
    for fd in range(10):
        result = script.cell()
        script.call("path_open", fd, 1, "/etc/passwd", 0, READ_RIGHTS, 0, 0, result.address)
    played = script.play(Policy())

    assert SUCCESS not in played.errnos
    assert played.report.usage.files_opened == 0


def test_limits_hold_for_one_call_of_a_session_and_begin_anew(folder: Path) -> None:
    """Each call of a session has its own counts; files that stay open stay counted."""
    script = Script()
    result = script.open("one")
    image, start, errnos, _ = script.image()
    with stockade.Sandbox(files_policy(folder, open_files=2)).open(player()) as session:
        session.write_memory(0, image)
        found = []
        for _ in range(3):
            report = session.call("play", start, errnos, 1)
            found.append(int.from_bytes(session.read_memory(errnos, 4), "little"))
        assert found == [SUCCESS, SUCCESS, EMFILE]
        assert report.usage.files_opened == 0
        assert report.usage.files_open_peak == 2
    assert isinstance(result, Later)
