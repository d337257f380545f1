"""What is written down about violations: each once, none lost to a flood, nothing that could harm a reader.

Holds P-REPORT-1 and P-REPORT-2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import stockade
from stockade.guard import guard
from stockade.policy import Filesystem, Limits, Mount, Policy, Random, Wasi
from stockade.report import violation_text
from tests.limits._guests import (
    CREAT,
    DIRECTORY,
    EILSEQ,
    EINVAL,
    EMFILE,
    ENAMETOOLONG,
    EPERM,
    FOLLOW,
    MOUNT,
    READ_RIGHTS,
    SUCCESS,
    Script,
    files_policy,
    kinds,
    player,
)

if TYPE_CHECKING:
    from pathlib import Path

    from stockade import Report

pytestmark = pytest.mark.usefixtures("everywhere")

_ENTRIES = 48
"""Entries that any kind may take; the others are kept for kinds that have none yet."""


def stat(script: Script, path: str | bytes, *, buffer: int | None = None) -> None:
    """Asks for the state of a path."""
    script.call("path_filestat_get", MOUNT, FOLLOW, path, script.room(64) if buffer is None else buffer)


def flood(script: Script, count: int = 10_000) -> None:
    """As many distinct paths, each of which leads out of the mount."""
    buffer = script.room(64)
    for number in range(count):
        stat(script, f"../{number:05}", buffer=buffer)


def test_equal_violations_are_one_entry_with_a_count(tmp_path: Path) -> None:
    """One entry for each kind, call and subject; the order is that of their first time, and times are told."""
    script = Script()
    for _ in range(3):
        stat(script, "../a")
        stat(script, "../b")
        script.open("../a", rights=READ_RIGHTS)
    (tmp_path / "a").touch()
    script.call("path_unlink_file", MOUNT, "a")
    played = script.play(files_policy(tmp_path, delete=False))

    assert [(v.kind, v.call, v.subject, v.count) for v in played.report.violations] == [
        ("path", "path_filestat_get", "../a", 3),
        ("path", "path_filestat_get", "../b", 3),
        ("path", "path_open", "../a", 3),
        ("delete", "path_unlink_file", "a", 1),
    ]
    stamps = [v.at for v in played.report.violations]
    assert None not in stamps
    assert stamps == sorted(stamps, key=lambda at: at or 0.0)
    assert played.report.usage.denied == {"path_filestat_get": 6, "path_open": 3, "path_unlink_file": 1}
    assert played.dropped == 0


def test_the_most_that_was_asked_for_is_told(tmp_path: Path) -> None:
    """Of equal violations, the largest demand is kept."""
    script = Script()
    fd = script.open("new", CREAT)
    for size in (20, 500, 30):
        script.call("fd_filestat_set_size", fd, size)
    played = script.play(files_policy(tmp_path, file_size=10))

    assert (played.only_violation().observed, played.only_violation().count) == (500, 3)


def test_a_flood_cannot_push_out_the_first_of_another_kind(tmp_path: Path) -> None:
    """Attack: 10,000 distinct paths first, then one violation of each other kind that a script can cause."""
    (tmp_path / "data").write_bytes(b"0123456789")
    script = Script()
    flood(script)
    fd = script.open("data")
    script.open("data")  # open_files
    script.call("path_create_directory", MOUNT, "folder")
    script.call("path_create_directory", MOUNT, "another")  # files_created
    script.call("path_unlink_file", MOUNT, "data")  # delete
    script.call("path_symlink", "data", MOUNT, "link")  # symlinks
    script.read(fd, 5)
    script.read(fd, 1)  # read_bytes
    script.write(fd, b"123")
    script.write(fd, b"x")  # write_bytes
    script.call("fd_filestat_set_size", fd, 11)  # file_size
    script.call("random_get", script.room(8), 8)  # random_bytes
    script.call("sched_yield")  # call
    script.call("sched_yield")  # call, and here the limit of calls is reached
    script.call("sched_yield")
    policy = files_policy(
        tmp_path,
        delete=False,
        symlinks=False,
        open_files=1,
        files_created=1,
        read_bytes=5,
        write_bytes=3,
        file_size=10,
        random_bytes=7,
        calls=len(script) - 1,
    ).replace(wasi=Wasi(deny=("sched",)))
    played = script.play(policy)

    others = [
        "open_files", "files_created", "delete", "symlinks", "read_bytes", "write_bytes", "file_size",
        "random_bytes", "call", "calls",
    ]  # fmt: skip
    assert kinds(played.report.violations) == ["path"] * _ENTRIES + others
    assert played.report.violations[0].subject == "../00000"
    assert played.dropped == 10_000 - _ENTRIES
    assert played.report.usage.denied["path_filestat_get"] == 10_000


def test_a_flood_of_one_subject_takes_one_entry(tmp_path: Path) -> None:
    """The positive twin: the same path 10,000 times is one entry, and nothing is dropped."""
    script = Script()
    path, buffer = script.put("../a"), script.room(64)
    for _ in range(10_000):
        script.call("path_filestat_get", MOUNT, FOLLOW, path, 4, buffer)
    played = script.play(files_policy(tmp_path))

    assert played.only_violation().count == 10_000
    assert played.dropped == 0


def test_the_second_of_a_rare_kind_is_dropped_after_a_flood_but_counted(tmp_path: Path) -> None:
    """After a flood each further kind has one entry; more of it are counted as dropped, as equal ones are in it."""
    script = Script()
    flood(script, 100)
    for name in ("a", "b", "a"):
        (tmp_path / name).touch()
        script.call("path_unlink_file", MOUNT, name)
    played = script.play(files_policy(tmp_path, delete=False))

    assert played.errnos[-3:] == [EPERM] * 3
    last = played.report.violations[-1]
    assert (last.kind, last.subject, last.count) == ("delete", "a", 2)
    assert played.dropped == 100 - _ENTRIES + 1


@pytest.mark.parametrize("length", [1, 79, 80])
def test_a_subject_of_up_to_80_bytes_is_told_whole(tmp_path: Path, length: int) -> None:
    """A path that fits is in the report as it was."""
    script = Script()
    path = "p" * length
    script.call("path_create_directory", MOUNT, path)

    assert script.play(files_policy(tmp_path, create=False)).only_violation().subject == path


@pytest.mark.parametrize("length", [81, 1_000, 4_095])
def test_a_long_subject_is_cut_and_its_length_told(tmp_path: Path, length: int) -> None:
    """Attack: a path as long as there are, to fill a report or a log."""
    script = Script()
    script.call("path_create_directory", MOUNT, "./" * ((length - 1) // 2) + "p" * (2 - length % 2))
    subject = script.play(files_policy(tmp_path, create=False)).only_violation().subject

    assert subject == "./" * 40 + f"… ({length:,} long)"


@pytest.mark.parametrize("length", [4_097, 100_000])
def test_a_path_beyond_the_longest_is_refused_unread(tmp_path: Path, length: int) -> None:
    """Attack: a path that keeps native WASI, or the guard, busy. It is too long, and that is no violation."""
    script = Script()
    for call in ("path_create_directory", "path_unlink_file", "path_remove_directory"):
        script.call(call, MOUNT, "./" * (length // 2) + "p" * (length % 2))
    played = script.play(files_policy(tmp_path))

    assert played.errnos == [ENAMETOOLONG] * 3
    assert played.report.violations == ()


def test_long_subjects_that_differ_in_length_are_different(tmp_path: Path) -> None:
    """Equal beginnings are not taken for equal paths where the lengths tell."""
    script = Script()
    for length in (81, 82, 81):
        script.call("path_create_directory", MOUNT, "p" * length)

    assert [v.count for v in script.play(files_policy(tmp_path, create=False)).report.violations] == [2, 1]


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
        (b"a\r\nb", "a\\x0d\\x0ab"),
        ("abc\u202edef".encode(), "abc\\u202edef"),
        ("grün".encode(), "grün"),
    ],
    ids=["escape", "lines", "direction", "umlaut"],
)
def test_a_subject_cannot_steer_who_reads_it(tmp_path: Path, path: bytes, shown: str) -> None:
    """Attack: escape sequences, line ends and direction marks in a path."""
    script = Script()
    script.call("path_create_directory", MOUNT, path)
    report = script.play(files_policy(tmp_path, create=False)).report

    assert report.violations[0].subject == shown
    assert "\x1b" not in report.render()


def test_a_subject_outside_memory_traps(tmp_path: Path) -> None:
    """Attack: a path that begins near or beyond the end of memory: no byte of it is read."""
    for address, size in ((0xFFFF_FFF0, 8), (0xFFFF_FFF0, 0xFFFF_FFFF), (128 << 16, 1), ((128 << 16) - 4, 5)):
        script = Script()
        script.call("path_unlink_file", MOUNT, address, size)
        report = script.play(files_policy(tmp_path, delete=False)).report
        assert report.outcome is stockade.Outcome.TRAP
        assert report.trap is not None
        assert report.violations == ()


@pytest.mark.parametrize("path", [b"\xff\xfe", b"a\x00b"], ids=["not text", "zero"])
def test_a_path_that_native_wasi_does_not_take_is_no_violation(tmp_path: Path, path: bytes) -> None:
    """What would have failed anyway fails as it would, and nothing is noted."""
    script = Script()
    script.call("path_create_directory", MOUNT, path)
    played = script.play(files_policy(tmp_path, create=False))

    assert played.errnos[0] in (EILSEQ, EINVAL)
    assert played.report.violations == ()


def test_a_subject_whose_length_wraps_round_traps(tmp_path: Path) -> None:
    """Attack: a path whose end wraps round 2^32. Nothing of it is read."""
    script = Script(low=b"." * 128)
    script.call("path_unlink_file", MOUNT, 16, 0xFFFF_FFF0)
    report = script.play(files_policy(tmp_path, delete=False)).report

    assert report.outcome is stockade.Outcome.TRAP
    assert report.violations == ()


def test_stop_ends_the_run_with_exactly_one_violation(tmp_path: Path) -> None:
    """Outcome denied; of a flood only the first was made, and the next kind never."""
    script = Script()
    script.open(".", DIRECTORY)
    flood(script, 100)
    script.call("path_unlink_file", MOUNT, "a")
    played = script.play(files_policy(tmp_path, delete=False, on_violation="stop"))

    assert played.report.outcome is stockade.Outcome.DENIED
    violation = played.only_violation()
    assert (violation.kind, violation.subject, violation.action, violation.count) == ("path", "../00000", "stop", 1)
    assert played.report.usage.calls == {"path_open": 1, "path_filestat_get": 1}
    with pytest.raises(stockade.StockadeError):
        played.report.check()


def test_what_is_no_violation_stops_nothing(tmp_path: Path) -> None:
    """The positive twin: a missing file and a bad descriptor are errors of the guest's, not of the policy's."""
    script = Script()
    stat(script, "missing")
    script.open("missing")
    script.close(99)
    script.call("path_unlink_file", MOUNT, "missing")
    script.call("path_create_directory", MOUNT, "a")
    script.call("path_create_directory", MOUNT, "a")
    played = script.play(files_policy(tmp_path, on_violation="stop"))

    assert played.report.ok
    assert SUCCESS in played.errnos
    assert played.report.violations == ()


def test_violations_do_not_pile_up_over_the_calls_of_a_session(tmp_path: Path) -> None:
    """Each call of a session reports its own violations and counts."""
    (tmp_path / "a").touch()
    script = Script()
    script.open("a")
    script.call("path_unlink_file", MOUNT, "a")
    image, start, errnos, count = script.image()
    with stockade.Sandbox(files_policy(tmp_path, delete=False, open_files=1)).open(player()) as session:
        session.write_memory(0, image)
        first = session.call("play", start, errnos, count)
        second = session.call("play", start, errnos, count)
        assert int.from_bytes(session.read_memory(errnos, 4), "little") == EMFILE

    assert [(v.kind, v.count) for v in first.violations] == [("delete", 1)]
    assert [(v.kind, v.count) for v in second.violations] == [("open_files", 1), ("delete", 1)]


def test_two_runs_share_no_violations() -> None:
    """A sandbox that is used again begins with none."""
    denied, fine = Script(), Script()
    denied.call("random_get", denied.room(16), 16)
    fine.call("random_get", fine.room(16), 8)
    policy = Policy(limits=Limits(random_bytes=8))

    assert len(denied.play(policy).report.violations) == 1
    assert fine.play(policy).report.violations == ()


# -- events ---------------------------------------------------------------------------------------------------------


def test_events_tell_each_time_in_order(tmp_path: Path) -> None:
    """What a violation counts, events tell one by one: call, subject, result and time."""
    script = Script()
    script.open("a", CREAT)
    script.open("../out")
    script.open("a", CREAT)
    played = script.play(files_policy(tmp_path, create=False))

    events = played.report.events
    assert [(event.kind, event.subject, event.call, event.errno, event.action) for event in events] == [
        ("create", "a", "path_open", EPERM, "deny"),
        ("path", "../out", "path_open", EPERM, "deny"),
        ("create", "a", "path_open", EPERM, "deny"),
    ]
    times = [event.at for event in events if event.at is not None]
    assert len(times) == 3
    assert times == sorted(times)
    assert played.report.events_dropped == 0
    assert [violation.count for violation in played.report.violations] == [2, 1]


def test_a_flood_of_events_keeps_the_newest_and_counts_the_rest(tmp_path: Path) -> None:
    """Attack: a flood pushes out what came before; the first of each kind stays among the violations."""
    most = guard().layout.constants["EVENTS_MAX"]
    script = Script()
    script.open("first", CREAT)
    for number in range(100):
        script.open(f"../{number}")
    report = script.play(files_policy(tmp_path, create=False)).report

    assert [event.subject for event in report.events] == [f"../{number}" for number in range(100 - most, 100)]
    assert report.events_dropped == 101 - most
    assert report.violations[0].subject == "first"


def test_what_is_let_through_is_an_event_without_an_error(tmp_path: Path) -> None:
    """The twin for a policy that audits; what native WASI refuses stays refused, and is told so."""
    script = Script()
    script.open("new", CREAT)
    script.open("../out")
    played = script.play(files_policy(tmp_path, create=False, on_violation="audit"))

    assert played.errnos == [SUCCESS, EPERM]
    assert [(event.kind, event.errno, event.action) for event in played.report.events] == [
        ("create", SUCCESS, "audit"),
        ("path", EPERM, "deny"),
    ]
    assert played.report.usage.denied == {"path_open": 1}


# -- where a path begins, and which field decides ----------------------------------------------------------------------

READ_WRITE = 1 << 6 | 1 << 1
"""The rights to read and to write."""


def two_mounts(tmp_path: Path, mode: str = "ro", **policy: object) -> Policy:
    """A policy with the folders /books and /notes, which has a file."""
    for name in ("books", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").touch()
    mounts = tuple(Mount(str(tmp_path / name), f"/{name}", mode) for name in ("books", "notes"))  # type: ignore[arg-type]
    return Policy(filesystem=Filesystem(mounts=mounts, **policy), wasi=Wasi(deny=("sock_*",)))  # type: ignore[arg-type]


def told(report: Report) -> list[tuple[str, str | None, str]]:
    """What a report says of violations, in words, with the mount and the field of each."""
    return [(violation_text(v), v.mount, v.field) for v in report.violations]


def test_a_violation_names_the_operation_and_the_mount(tmp_path: Path) -> None:
    """Of a read-only folder, of a way out of it, and of a right that is off."""
    script = Script()
    script.open("x.txt", CREAT, rights=READ_WRITE)
    script.open("a", fd=MOUNT + 1, rights=READ_WRITE)
    script.call("path_create_directory", MOUNT, "d")
    script.call("path_unlink_file", MOUNT, "a")
    stat(script, "../../etc/passwd")
    stat(script, "/etc/passwd")
    played = script.play(two_mounts(tmp_path))

    assert told(played.report) == [
        (
            "path: tried to write /books/x.txt, but /books is read-only → deny",
            "/books",
            "filesystem.mounts",
        ),
        ("path: tried to write /notes/a, but /notes is read-only → deny", "/notes", "filesystem.mounts"),
        (
            "path: tried to create the folder /books/d, but /books is read-only → deny",
            "/books",
            "filesystem.mounts",
        ),
        ("delete: tried to remove /books/a, but filesystem.delete is off → deny", "/books", "filesystem.delete"),
        ("path: tried to look at /books/../../etc/passwd, which is outside /books → deny", "/books", ""),
        ("path: tried to look at /etc/passwd, which is outside /books → deny", "/books", ""),
    ]
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["books", "a", "notes", "a"]


def test_what_is_granted_is_no_violation(tmp_path: Path) -> None:
    """The twin: the same calls where both folders may be written and files removed."""
    script = Script()
    script.open("x.txt", CREAT, rights=READ_WRITE)
    script.open("a", fd=MOUNT + 1, rights=READ_WRITE)
    script.call("path_create_directory", MOUNT, "d")
    script.call("path_unlink_file", MOUNT, "a")
    played = script.play(two_mounts(tmp_path, "rw", delete=True))

    assert told(played.report) == []
    assert sorted(path.name for path in (tmp_path / "books").iterdir()) == ["d", "x.txt"]


def test_one_path_in_two_mounts_is_two_violations(tmp_path: Path) -> None:
    """They are counted each by itself."""
    script = Script()
    for fd in (MOUNT, MOUNT + 1, MOUNT + 1):
        script.call("path_unlink_file", fd, "a")
    report = script.play(two_mounts(tmp_path, "rw", delete=False)).report

    assert [(v.mount, v.subject, v.count) for v in report.violations] == [("/books", "a", 1), ("/notes", "a", 2)]


def test_a_mount_that_was_renumbered_is_not_named(tmp_path: Path) -> None:
    """The attack: a guest puts one folder in the place of another, so that the report names the wrong one."""
    script = Script()
    script.call("fd_renumber", MOUNT + 1, MOUNT)
    script.call("path_unlink_file", MOUNT, "a")
    report = script.play(two_mounts(tmp_path, "rw", delete=False)).report

    assert told(report) == [
        ("delete: tried to remove a, but filesystem.delete is off → deny", None, "filesystem.delete")
    ]


def test_a_descriptor_in_the_place_of_a_mount_is_not_named_as_it(tmp_path: Path) -> None:
    """The attack: the mount is closed, and a folder of another one opened, which gets its number."""
    script = Script()
    script.call("fd_close", MOUNT)
    script.open(".", DIRECTORY, fd=MOUNT + 1)
    script.call("path_unlink_file", MOUNT, "a")
    report = script.play(two_mounts(tmp_path, "rw", delete=False)).report

    assert [(v.mount, v.subject) for v in report.violations] == [(None, "a")]


def test_both_paths_of_a_call_have_their_own_mount(tmp_path: Path) -> None:
    """To rename from one folder to another: what is refused is told with the mount that it is in."""
    script = Script()
    script.call("path_rename", MOUNT, "../x", MOUNT + 1, "b")
    script.call("path_rename", MOUNT, "a", MOUNT + 1, "../y")
    report = script.play(two_mounts(tmp_path, "rw", delete=True)).report

    assert [(v.kind, v.mount) for v in report.violations] == [("path", "/notes"), ("path", "/notes")]


def test_a_refused_call_names_what_refuses_it(tmp_path: Path) -> None:
    """One of the two lists, or the mode of what it is about."""
    script = Script()
    script.call("sock_shutdown", 9, 0)
    script.call("random_get", script.room(8), 8)
    script.call("sched_yield")
    policy = Policy(wasi=Wasi(allow=("fd", "sock", "random", "proc"), deny=("sock_*",)), random=Random(mode="none"))

    assert told(script.play(policy).report) == [
        ("call: sock_shutdown is refused: wasi.deny has it → deny", None, "wasi.deny"),
        ('call: random_get is refused: random.mode is "none" → deny', None, "random.mode"),
        ("call: sched_yield is refused: wasi.allow does not have it → deny", None, "wasi.allow"),
    ]


def test_a_limit_is_told_with_its_figures(tmp_path: Path) -> None:
    """How much was asked for, and how much the policy allows, with the field that says so."""
    script = Script()
    script.call("random_get", script.room(64), 64)
    script.open("b", CREAT)
    report = script.play(files_policy(tmp_path, random_bytes=10, files_created=0)).report

    assert told(report) == [
        (
            "random_bytes: random_get asked for 64 B, limits.random_bytes allows 10 B → deny",
            None,
            "limits.random_bytes",
        ),
        ("files_created: path_open created 1, limits.files_created allows 0 → deny", "/", "limits.files_created"),
    ]
