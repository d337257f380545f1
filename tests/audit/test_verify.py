"""What is found of a log that is not as it was written. Holds P-AUDIT-1."""

from __future__ import annotations

import hmac
import json
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stockade
from stockade.audit import EventName, _content, verify
from stockade.audit._places import find_place
from stockade.system import state_folder
from tests.audit._logs import KEY, chain_file, denied, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def head_file(path: Path) -> Path:
    """The head of a log."""
    state = state_folder()
    assert state is not None
    return state / "audit" / find_place(path).head_name


def found(path: Path, **options: object) -> list[str]:
    """What is found, without the name of the file."""
    check = verify(path, key=KEY, **options)  # type: ignore[arg-type]
    assert check.ok is not check.findings
    assert all(finding.file == str(path) for finding in check.findings)
    return [f"{finding.line}: {finding.what}" for finding in check.findings]


def test_a_log_that_nobody_touched_is_as_it_was_written(tmp_path: Path) -> None:
    """The twin of all below."""
    lines = write(tmp_path / "log")

    check = verify(tmp_path / "log", key=KEY)

    assert check.ok
    assert (check.events, check.findings, check.notes) == (8, (), ())
    assert check.last == json.loads(lines[-1])["seal"]["mac"]


TWICE = (
    "the events from here on have numbers from {} on, which were there before: lines were moved or copied, or two have "
    "written from one head"
)

# Of the log, lines 1 to 3 are events 1 to 3, sealed by line 4; line 5 by line 6; lines 7 to 10 by line 11.
TAMPERINGS: dict[str, tuple[Callable[[list[str]], list[str]], list[str]]] = {
    "a field is changed": (
        lambda lines: [*lines[:7], lines[7].replace("event 6", "event 7"), *lines[8:]],
        ["8: this line was changed: it is not the one that was written, by line 11, which seals it"],
    ),
    "a number is changed": (
        lambda lines: [lines[0].replace('"count":1', '"count":2'), *lines[1:]],
        ["1: this line was changed: it is not the one that was written, by line 4, which seals it"],
    ),
    "a line is removed": (
        lambda lines: [*lines[:8], *lines[9:]],
        ["9: before this line, event 7 is missing, by line 10, which seals it"],
    ),
    "two lines are swapped": (
        lambda lines: [lines[1], lines[0], *lines[2:]],
        [
            "1: this line was moved: it is not the one that was written, by line 4, which seals it",
            "2: this line was moved: it is not the one that was written, by line 4, which seals it",
        ],
    ),
    "a line is added": (
        lambda lines: [*lines[:2], lines[0], *lines[2:]],
        ["3: added: line 3, by line 5, which seals it"],
    ),
    "a line is added before a batch": (
        lambda lines: [*lines[:4], '{"event":"denied"}\n', *lines[4:]],
        ["5: what stands before line 6 was added or changed"],
    ),
    "a batch is removed": (
        lambda lines: [*lines[:4], *lines[6:]],
        ["5: before this line, event 4 is missing"],
    ),
    "the first batch is removed": (
        lambda lines: lines[4:],
        ["1: before this line, events 1 to 3 are missing: give the files before it, too"],
    ),
    "two batches are swapped": (
        lambda lines: [*lines[:4], *lines[6:], *lines[4:6]],
        [
            "5: before this line, event 4 is missing",
            f"10: {TWICE.format(4)}",
            "0: the log was cut: at its end, events 5 to 8 are missing",
        ],
    ),
    "a batch is copied": (
        lambda lines: [*lines[:6], *lines[4:6], *lines[6:]],
        [
            f"7: {TWICE.format(4)}",
        ],
    ),
    "the last batch is cut off": (
        lambda lines: lines[:6],
        ["0: the log was cut: at its end, events 5 to 8 are missing"],
    ),
    "the last seal is cut off": (
        lambda lines: lines[:10],
        [
            "7: lines 7 to 10: no writer has sealed this: it was added, or the seal behind it cut off",
            "0: the log was cut: at its end, events 5 to 8 are missing",
        ],
    ),
    "all is cut off": (
        lambda _: [],
        ["0: the log was cut: at its end, events 1 to 8 are missing"],
    ),
    "a line is added at the end": (
        lambda lines: [*lines, '{"event":"denied"}\n'],
        ["12: line 12: no writer has sealed this: it was added, or the seal behind it cut off"],
    ),
    "a checksum is changed": (
        lambda lines: [*lines[:5], lines[5].replace('"sums":[', '"sums":[1'), *lines[6:]],
        ["5: this line was changed: it is not the one that was written, by line 6, which seals it"],
    ),
    "a seal is no seal any more": (
        lambda lines: [*lines[:5], lines[5].replace('"first"', '"fist"'), *lines[6:]],
        [
            "6: this is the line of a seal, and it was changed",
            "5: what stands before line 7 was added or changed",
            "7: before this line, event 4 is missing",
        ],
    ),
}


@pytest.mark.parametrize("how", TAMPERINGS)
def test_tampering_is_found_where_it_was_done(how: str, tmp_path: Path) -> None:
    """Whoever can write to the file, and lacks the key, wants to hide something."""
    path = tmp_path / "log"
    tamper, told = TAMPERINGS[how]
    lines = write(path)

    path.write_text("".join(tamper(lines)))

    assert found(path) == told


@pytest.mark.parametrize("how", TAMPERINGS)
def test_tampering_is_found_however_the_file_is_read(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of a few bytes: whatever is looked for lies across two."""
    monkeypatch.setattr(_content, "_PIECE_BYTES", 7)
    test_tampering_is_found_where_it_was_done(how, tmp_path)


@pytest.mark.parametrize("tampered", [False, True])
def test_a_long_log_is_read_in_pieces(tampered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of it is in memory than a piece and a batch, and no part is read more than a few times."""
    path = tmp_path / "log"
    lines = write(path, [20] * 200)
    if tampered:
        lines[2100] = lines[2100].replace("count", "cound")
        path.write_text("".join(lines))
    sizes: list[int] = []

    def counted(descriptor: int, size: int, start: int) -> bytes:
        sizes.append(size)
        return pread(descriptor, size, start)

    pread = os.pread
    monkeypatch.setattr(_content, "_PIECE_BYTES", 16_384)
    monkeypatch.setattr(os, "pread", counted)
    told = found(path)

    size = path.stat().st_size
    assert len(told) == tampered
    assert all(line.startswith("2101: this line was changed") for line in told)
    assert size > 20 * 16_384
    assert max(sizes) <= 16_384
    assert size <= sum(sizes) <= 8 * size


def test_a_log_that_shrinks_while_it_is_checked_is_told(tmp_path: Path) -> None:
    """It is no part of the file that would be compared with what was written."""
    path = tmp_path / "log"
    write(path, [3])
    with path.open("rb") as file:
        content = _content.Content(file.fileno(), path.stat().st_size + 1, "log")
        with pytest.raises(stockade.AuditError, match="log has become shorter while it was checked: check it again"):
            content.read(0, 10)


def test_one_event_of_a_large_batch_is_told(tmp_path: Path) -> None:
    """However many there are beside it."""
    path = tmp_path / "log"
    lines = write(path, [1, 5_000])
    path.write_text("".join([*lines[:3_000], *lines[3_001:]]))

    assert found(path) == ["3001: before this line, event 3,000 is missing, by line 5,002, which seals it"]


def test_a_log_that_was_removed_is_missed(tmp_path: Path) -> None:
    """Its head is elsewhere, and tells what there was."""
    path = tmp_path / "log"
    write(path)
    path.unlink()

    assert found(path) == ["0: the log is not there: its head tells of 8 events"]


def test_a_log_that_was_removed_and_begun_anew_is_missed(tmp_path: Path) -> None:
    """What is written afterwards goes on with the chain, and says that the file is another one."""
    path = tmp_path / "log"
    write(path)
    path.unlink()
    lines = write(path, [1])

    assert json.loads(lines[0])["event"] == "log_continued"
    assert found(path) == ["1: before this line, events 1 to 8 are missing: give the files before it, too"]


def test_there_is_nothing_to_check_where_there_never_was_a_log(tmp_path: Path) -> None:
    """That is no finding: it is the wrong path."""
    with pytest.raises(stockade.AuditError, match=r"there is no audit log at .*nothing, and none was written there"):
        verify(tmp_path / "nothing", key=KEY)


def test_a_log_without_its_head_may_have_been_cut(tmp_path: Path) -> None:
    """Which is told, unless somebody wants to do without."""
    path = tmp_path / "log"
    write(path)
    head_file(path).unlink()

    told = "the log has no head here (of a copy, name it by --head, or do without by --no-head)"
    assert found(path) == [f"0: {told}, so whether its end was cut off cannot be known"]
    assert found(path, without_head=True) == []
    with pytest.raises(stockade.AuditError) as problem:
        verify(path, key=KEY, head=tmp_path / "nohead")
    assert str(problem.value) == f"the head cannot be read: there is no file at {tmp_path}/nohead"


def test_what_is_no_log_is_told_from_one_that_was_changed(tmp_path: Path) -> None:
    """The attack beside it: who puts something else in the place of a log, whose head tells of it, is found out."""
    path, other = tmp_path / "log", tmp_path / "add.wat"
    write(path)
    for name in (path, other):
        name.write_text("(module)\n")

    with pytest.raises(stockade.AuditError) as problem:
        verify(other, key=KEY)
    assert str(problem.value) == f"{other} is no audit log: nothing in it is an event or a seal"
    with pytest.raises(stockade.AuditError, match="is no audit log"):
        verify(other, key=KEY, without_head=True)
    assert found(path) != []
    # Without its head, what is left of its lines is still one.
    other.write_text('{"event":"run_started"}\n')
    assert found(other, without_head=True) != []


def test_a_key_is_bytes(tmp_path: Path) -> None:
    """Text is refused in words."""
    write(tmp_path / "log")

    with pytest.raises(stockade.AuditError, match=r"the key of an audit log is 16 to 4,096 bytes"):
        verify(tmp_path / "log", key="x")  # type: ignore[arg-type]


def test_a_head_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    """It carries a MAC, too."""
    path = tmp_path / "log"
    write(path)
    head = head_file(path)
    head.write_bytes(head.read_bytes().replace(b'"events":8', b'"events":4'))

    told = "the head of the log is not as it was written, or of another key"
    assert found(path) == [f"0: {told}, so whether its end was cut off cannot be known"]


@pytest.mark.parametrize("mac", ["", "\u00e9" * 64, "\\ud800", "0" * 10_000], ids=["none", "wide", "half", "long"])
def test_a_mac_of_any_kind_is_compared(mac: str, tmp_path: Path) -> None:
    """The attack: one that is no hexadecimal number, to have whoever checks or goes on with the log give up."""
    path = tmp_path / "log"
    *lines, seal = write(path, [2])
    path.write_text("".join(lines) + seal[: seal.index('"mac":"') + 7] + mac + '"}}\n', encoding="utf-8")

    assert not verify(path, key=KEY).ok
    head_file(path).unlink()
    file = chain_file(path)
    file.append([denied(3)])
    file.close()
    assert not verify(path, key=KEY).ok


def test_macs_are_compared_in_a_time_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: whoever can have a log checked measures how much of a MAC is right. Nothing else decides of one."""
    path = tmp_path / "log"
    write(path)
    assert verify(path, key=KEY).ok
    with monkeypatch.context() as patch:
        patch.setattr(hmac, "compare_digest", lambda one, other: False)
        told = verify(path, key=KEY)
    assert (told.ok, told.events) == (False, 0)


def test_an_old_head_is_told_from_the_log(tmp_path: Path) -> None:
    """Somebody puts back a copy of it, to cut the log at its place, and then does not."""
    path = tmp_path / "log"
    write(path, [2])
    old = head_file(path).read_bytes()
    write(path, [3])
    head_file(path).write_bytes(old)

    assert found(path) == ["0: the head is an old one: it tells of 2 events, and there are 5"]


def test_two_writers_that_do_not_know_of_each_other_are_found(tmp_path: Path) -> None:
    """Both have the key: one has written from a head that was put back, as after a backup."""
    path = tmp_path / "log"
    write(path, [2])
    old = head_file(path).read_bytes()
    before = path.read_bytes()
    write(path, [2])
    longer = path.read_bytes()
    path.write_bytes(before)
    head_file(path).write_bytes(old)
    write(path, [1])
    path.write_bytes(longer + path.read_bytes()[len(before) :])

    assert found(path) == [f"7: {TWICE.format(3)}"]


def test_a_writer_with_another_key_is_found(tmp_path: Path) -> None:
    """It takes the head for a changed one, tells so, and begins a chain of its own."""
    path = tmp_path / "log"
    write(path, [2])
    with stockade.AuditLog(path, key=b"another key, of somebody else") as log:
        log.tell(EventName.DENIED)

    told = found(path)

    assert len(told) >= 2
    assert any("was changed" in line or "no writer has sealed" in line or "seal itself" in line for line in told)
    assert any("head" in line for line in told)


def test_the_wrong_key_is_told_as_that(tmp_path: Path) -> None:
    """Not as thousands of lines that were changed."""
    path = tmp_path / "log"
    write(path, [2])

    check = verify(path, key=b"another key of somebody else")

    assert check.findings[0].what == "no seal fits the key: is it the key of this log?"


def test_files_of_a_rotated_log_are_checked_together(tmp_path: Path) -> None:
    """Each goes on where the one before it ends; without that, what is missing is told."""
    old, path = tmp_path / "log.1", tmp_path / "log"
    write(path, [2, 1])
    path.rename(old)
    write(path, [2])

    check = verify([old, path], key=KEY)

    # And the event that tells of the rotation.
    assert (check.ok, check.events) == (True, 6)
    assert found(path) == ["1: before this line, events 1 to 3 are missing: give the files before it, too"]
    assert found(path, partial=True) == []
    assert not verify([path, old], key=KEY).ok


def test_a_copy_is_checked_with_a_copy_of_its_head(tmp_path: Path) -> None:
    """Elsewhere, with the key."""
    path, copy, head = tmp_path / "log", tmp_path / "copy", tmp_path / "head"
    write(path)
    copy.write_bytes(path.read_bytes())
    head.write_bytes(head_file(path).read_bytes())

    assert found(copy, head=head) == []
    copy.write_bytes(path.read_bytes()[:-1])
    assert found(copy, head=head) != []


def test_lines_of_guests_cannot_pass_for_events(tmp_path: Path) -> None:
    """Text with line ends, quotes and control characters stays within the string that it is in."""
    path = tmp_path / "log"
    text = 'x"}\n{"event":"run_ended","time":1\r\x00\x1b[2J\u202e'
    with stockade.AuditLog(path, key=KEY) as log:
        log.tell(EventName.DENIED, subject=text)

    first, _ = path.read_text().splitlines()

    assert json.loads(first)["subject"] == text
    assert found(path) == []


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, Path]:
    """A log in a folder, its bytes, and a copy of its head."""
    folder = tmp_path_factory.mktemp("written")
    path = folder / "log"
    write(path, [1, 3, 2, 5])
    head = folder / "head"
    head.write_bytes(head_file(path).read_bytes())
    return folder, path.read_bytes(), head


@given(data=st.data())
def test_whatever_is_changed_is_found(data: st.DataObject, written: tuple[Path, bytes, Path]) -> None:
    """Bytes and lines are removed, copied, moved, added and flipped, in any order."""
    folder, whole, head = written
    changed = whole
    for _ in range(data.draw(st.integers(1, 3))):
        how = data.draw(st.sampled_from(["flip", "cut", "remove", "add", "lines", "append"]))
        at = data.draw(st.integers(0, max(0, len(changed) - 1)))
        if how == "flip" and changed:
            changed = changed[:at] + bytes([changed[at] ^ data.draw(st.integers(1, 255))]) + changed[at + 1 :]
        elif how == "cut":
            changed = changed[:at]
        elif how == "remove":
            changed = changed[:at] + changed[at + data.draw(st.integers(1, 400)) :]
        elif how == "add":
            changed = changed[:at] + data.draw(st.binary(min_size=1, max_size=20)) + changed[at:]
        elif how == "append":
            changed += data.draw(st.sampled_from([b"\n", b"x", b'{"event":"denied"}\n', whole, whole[-1:]]))
        else:
            lines = changed.splitlines(keepends=True)
            changed = b"".join(data.draw(st.permutations(lines)))
    path = folder / "changed"
    path.write_bytes(changed)

    assert verify(path, key=KEY, head=head).ok is (changed == whole)
