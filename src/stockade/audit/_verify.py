"""Whether an audit log is as it was written; and if not, which lines are not."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, suppress
from difflib import SequenceMatcher
from fcntl import LOCK_SH, LOCK_UN, flock
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from stockade._text import printable
from stockade.audit._chain import (
    HEAD_BYTES,
    MOST_BODY_BYTES,
    NOTHING_BEFORE,
    SEAL_MARK,
    Head,
    Seal,
    checksums,
    is_sealed,
    read_head,
    read_seal,
)
from stockade.audit._content import Content
from stockade.audit._places import LogPlace, find_place, open_head, read_key, take_lock, users_key
from stockade.errors import AuditError
from stockade.system import open_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["AuditCheck", "AuditFinding", "verify"]

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MOST_SEAL_BYTES: Final = 8 << 20
"""No seal that was written is a longer line."""

_MOST_COMPARED_BYTES: Final = 16 << 20
"""A batch of more bytes is not compared line by line."""

_NO_HEAD: Final = "the log has no head here (of a copy, name it by --head, or do without by --no-head)"
"""What is told of a log that was copied, or never written here."""

_MOST_FINDINGS: Final = 100
_MOST_COMPARED: Final = 2000
"""Lines of one batch that are compared one by one, to tell which was moved."""


class AuditFinding(msgspec.Struct, frozen=True):
    """Something that is not as it was written, or that is worth knowing.

    Attributes:
        file: The file.
        line: The line that it begins at, from 1 on; 0 where it is about the whole file.
        what: What it is, as a sentence.
    """

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}" if self.line else f"{self.file}: {self.what}"


class AuditCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a check.

    Attributes:
        events: How many events are in the files, as their writers have written them.
        findings: What is not as it was written. None: all is.
        notes: What is worth knowing: writes that were broken off, and files that were rotated.
        last: The MAC of the last seal. Kept elsewhere, it tells later that the log goes on from here.
    """

    events: int
    findings: tuple[AuditFinding, ...]
    notes: tuple[AuditFinding, ...]
    last: str

    @property
    def ok(self) -> bool:
        """Whether all is as it was written."""
        return not self.findings


def verify(
    paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    key: bytes | None = None,
    head: str | os.PathLike[str] | None = None,
    without_head: bool = False,
    partial: bool = False,
) -> AuditCheck:
    """Checks an audit log. Writers may go on meanwhile.

    Args:
        paths: Its file; or several that it was rotated to, the oldest first.
        key: Its key; by default, the user's.
        head: The file of its head, where that is not the user's own: of a log that was copied from elsewhere.
        without_head: Whether nothing is asked of the head; whether the end was cut off is not known then.
        partial: Whether the first file need not be the first that was written.

    Returns:
        What was found.

    Raises:
        AuditError: It cannot be read, or there is no key.
    """
    names = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not names:
        raise AuditError("no audit log was named: give its path")
    places = [find_place(name) for name in names]
    secret = users_key() if key is None else read_key(key)
    check = _Check(secret, partial=partial)
    told: Head | None = None
    size: int | None
    for number, place in enumerate(places, 1):
        size, why = None, _NO_HEAD
        if number == len(places) and not without_head:
            told, size, why = _head_of(place, secret, None if head is None else Path(head))
            if told is None:
                check.find(place.shown, 0, why)
        with ExitStack() as stack:
            data = _content(stack, place, size, known=told is not None)
            if told is None and why.startswith(_NO_HEAD) and len(places) == 1 and data and _is_no_log(data):
                raise AuditError(f"{place.shown} is no audit log: nothing in it is an event or a seal")
            check.file(place.shown, data, told)
    if told is not None:
        check.compare(places[-1].shown, told)
    return check.result()


def _head_of(place: LogPlace, key: bytes, path: Path | None) -> tuple[Head | None, int | None, str]:
    """Returns the head of a log, how large the log was then, and why there is no head."""
    lost = "so whether its end was cut off cannot be known"
    size: int | None = None
    try:
        if path is None:
            descriptor = open_head(place, make=False)
            try:
                take_lock(descriptor, LOCK_SH, "another process keeps it locked")
                data = os.pread(descriptor, HEAD_BYTES + 1, 0)
                with suppress(FileNotFoundError):
                    size = place.path.lstat().st_size
            finally:
                flock(descriptor, LOCK_UN)
                os.close(descriptor)
        else:
            with open_file(str(path)) as file:
                data = file.read(HEAD_BYTES + 1) or b""
    except FileNotFoundError:
        if path is not None:
            raise AuditError(f"the head cannot be read: there is no file at {printable(str(path), 400)}") from None
        if not place.path.exists():
            raise AuditError(f"there is no audit log at {place.shown}, and none was written there") from None
        return None, size, f"{_NO_HEAD}, {lost}"
    except OSError as problem:
        raise AuditError(f"the head of {place.shown} cannot be read: {problem.strerror}") from None
    if not data:
        return Head(), size, ""
    found = read_head(data, key)
    return found, size, "" if found else f"the head of the log is not as it was written, or of another key, {lost}"


def _content(stack: ExitStack, place: LogPlace, size: int | None, *, known: bool) -> Content | None:
    """Opens a log; None where it is not there, and its head is."""
    try:
        descriptor = os.open(place.path, _READ)
    except FileNotFoundError:
        if known:
            return None
        raise AuditError(f"there is no audit log at {place.shown}") from None
    except OSError as problem:
        raise AuditError(f"{place.shown} cannot be read: {problem.strerror}") from None
    stack.callback(os.close, descriptor)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise AuditError(f"{place.shown} is no plain file")
    return Content(descriptor, status.st_size if size is None else min(size, status.st_size), place.shown)


def _is_no_log(data: Content) -> bool:
    """Whether a file has something in it, which neither begins as an event does nor has a seal."""
    return data.size > 0 and data.read(0, 1) != b"{" and next(_seal_lines(data), None) is None


class _Check:
    """A check that goes from file to file."""

    def __init__(self, key: bytes, *, partial: bool) -> None:
        self._key = key
        self._partial = partial
        self._findings: list[AuditFinding] = []
        self._more = 0
        self._notes: list[AuditFinding] = []
        self._begun = False
        self._fitting = self._seals = 0
        self._name = ""
        self.mac = NOTHING_BEFORE
        self.expected = 1
        self.events = 0

    def find(self, file: str, line: int, what: str) -> None:
        if len(self._findings) < _MOST_FINDINGS:
            self._findings.append(AuditFinding(file, line, what))
        else:
            self._more += 1

    def result(self) -> AuditCheck:
        findings = list(self._findings)
        if self._seals and not self._fitting:
            findings.insert(0, AuditFinding(self._name, 0, "no seal fits the key: is it the key of this log?"))
        if self._more:
            findings.append(AuditFinding(self._name, 0, f"and {self._more:,} findings more"))
        return AuditCheck(events=self.events, findings=tuple(findings), notes=tuple(self._notes), last=self.mac)

    def compare(self, file: str, head: Head) -> None:
        """Compares the end of the log with its head."""
        if head.mac == self.mac:
            return
        there = self.expected - 1
        if head.events > there:
            missing = _events(there + 1, head.events)
            self.find(file, 0, f"the log was cut: at its end, {missing} missing")
        elif head.events < there:
            self.find(file, 0, f"the head is an old one: it tells of {head.events:,} events, and there are {there:,}")
        else:
            self.find(file, 0, "the end of the log is not the one that its head tells of")

    def file(self, name: str, data: Content | None, head: Head | None) -> None:
        """Checks a file.

        Args:
            name: What it is called in findings.
            data: What is in it; None where it is missing.
            head: The head, where it is the last file and there is one.
        """
        self._name = name
        if data is None:
            if head is not None and head.events:
                self.find(name, 0, f"the log is not there: its head tells of {head.events:,} events")
                self.mac, self.expected = head.mac, head.events + 1
            return
        # Where the last seal that fits ended, and the last that was looked at; and what was found since the former.
        good = end = 0
        good_mac, good_expected = self.mac, self.expected
        suspected: list[tuple[int, str]] = []
        lines = _LineCounter(data)
        for at, after in _seal_lines(data):
            self._seals += 1
            found = read_seal(data.read(at, after)) if after - at <= _MOST_SEAL_BYTES else None
            if found is None:
                suspected.append((lines.at(at), "this is the line of a seal, and it was changed"))
            else:
                seal, told = found
                start = at - seal.size_bytes
                if (
                    start >= 0
                    and seal.size_bytes <= MOST_BODY_BYTES
                    and is_sealed(self._key, data.pieces(start, at), told, seal.mac)
                ):
                    self._fitting += 1
                    if start == good:
                        # What was suspected lies in what this seal says was found there.
                        suspected.clear()
                        self.mac, self.expected = good_mac, good_expected
                    elif start != end:
                        suspected.append(
                            (
                                lines.at(min(end, start)),
                                f"what stands before line {lines.at(start):,} was added or changed",
                            )
                        )
                    self._flush(name, suspected)
                    self._follow(name, seal, lines, start)
                    good = end = after
                    good_mac, good_expected = self.mac, self.expected
                else:
                    suspected += self._compared(data, end, at, seal, lines.at(end), lines.at(at))
                    self.mac, self.expected = seal.mac, seal.first + len(seal.sums)
                    end = after
        self._flush(name, suspected)
        if end < data.size:
            self._rest(name, data, end, lines.at(end), head, is_good=end == good)

    def _flush(self, name: str, suspected: list[tuple[int, str]]) -> None:
        for line, what in suspected:
            self.find(name, line, what)
        suspected.clear()

    def _follow(self, name: str, seal: Seal, lines: _LineCounter, start: int) -> None:
        """Goes on with a seal that fits."""
        first = lines.at(start)
        if seal.found_bytes:
            until = lines.at(start + seal.found_bytes) - 1
            what = f"{_lines(first, until)}: {seal.found_bytes:,} bytes that are no events; the next event tells why"
            self._notes.append(AuditFinding(name, first, what))
        if seal.before != self.mac:
            self._broken(name, seal, first)
        self._begun = True
        self.mac, self.expected = seal.mac, seal.first + len(seal.sums)
        self.events += len(seal.sums)

    def _broken(self, name: str, seal: Seal, line: int) -> None:
        """Tells of a seal that does not go on with the chain."""
        if not self._begun and self._partial:
            what = f"begins with event {seal.first:,}: what was before is not looked at"
            self._notes.append(AuditFinding(name, line, what))
        elif seal.before == NOTHING_BEFORE:
            self.find(name, line, "a new chain begins here: what was before is not tied to it")
        elif seal.first > self.expected:
            missing = _events(self.expected, seal.first - 1)
            hint = "" if self._begun else ": give the files before it, too"
            self.find(name, line, f"before this line, {missing} missing{hint}")
        elif seal.first < self.expected:
            what = f"the events from here on have numbers from {seal.first:,} on, which were there before"
            self.find(name, line, f"{what}: lines were moved or copied, or two have written from one head")
        else:
            self.find(name, line, "what stands before this line is not what its writer had before it")

    def _compared(
        self, data: Content, start: int, end: int, seal: Seal, first: int, sealed: int
    ) -> list[tuple[int, str]]:
        """Tells which lines of a batch are not those that its seal is about."""
        if end - start > _MOST_COMPARED_BYTES:
            return [(first, f"{_lines(first, sealed)}: these {end - start:,} bytes are not what was written")]
        body = data.read(start, end)
        there = body.split(b"\n")[:-1]
        if seal.found_bytes and len(there) > len(seal.sums):
            # What was found there before has no checksums.
            skipped = body[: seal.found_bytes].count(b"\n")
            there, first = there[skipped:], first + skipped
        by = f"by line {sealed:,}, which seals it"
        if len(there) == len(seal.sums):
            changed = [
                line for line, (sum_, was) in enumerate(zip(checksums(there), seal.sums, strict=True)) if sum_ != was
            ]
            moved = sorted(checksums(there)) == sorted(seal.sums)
            if changed:
                what = f"this line was {'moved' if moved else 'changed'}: it is not the one that was written, {by}"
                return [(first + line, what) for line in changed[:_MOST_FINDINGS]]
            return [(first, f"{_lines(first, sealed)}: one of them was changed, or the seal itself")]
        was_sums, now_sums, same = _without_ends(seal.sums, checksums(there))
        if max(len(was_sums), len(now_sums)) > _MOST_COMPARED:
            what = f"{len(seal.sums):,} events were written, and {len(there):,} are there"
            return [(first + same, f"{_lines(first + same, first + same + len(now_sums) - 1)}: {what}, {by}")]
        found: list[tuple[int, str]] = []
        first += same
        matcher = SequenceMatcher(None, was_sums, now_sums, autojunk=False)
        for kind, was, was_end, now, now_end in matcher.get_opcodes():
            if kind == "delete":
                missing = _events(seal.first + same + was, seal.first + same + was_end - 1)
                found.append((first + now, f"before this line, {missing} missing, {by}"))
            elif kind == "insert":
                found.append((first + now, f"added: {_lines(first + now, first + now_end - 1)}, {by}"))
            elif kind == "replace":
                found.append((first + now, f"changed: {_lines(first + now, first + now_end - 1)}, {by}"))
        return found

    def _rest(self, name: str, data: Content, end: int, line: int, head: Head | None, *, is_good: bool) -> None:
        """Tells of what stands behind the last seal."""
        size = data.size - end
        last = line + data.newlines_within(end)
        interrupted = (
            is_good and head is not None and head.mac == self.mac and size < head.next_bytes and not head.damaged
        )
        if interrupted:
            what = f"{_lines(line, last)}: a write was broken off; these {size:,} bytes are no events"
            self._notes.append(AuditFinding(name, line, what))
        else:
            what = f"{_lines(line, last)}: no writer has sealed this: it was added, or the seal behind it cut off"
            self.find(name, line, what)


def _seal_lines(data: Content) -> Iterator[tuple[int, int]]:
    """Yields where each line that looks like a seal begins, and where the next line does."""
    at = 0 if data.read(0, len(SEAL_MARK)) == SEAL_MARK else data.find(b"\n" + SEAL_MARK, 0) + 1 or -1
    while at >= 0 and (newline := data.find(b"\n", at)) >= 0:
        yield at, newline + 1
        at = data.find(b"\n" + SEAL_MARK, newline) + 1 or -1


def _without_ends(was: list[int], now: list[int]) -> tuple[list[int], list[int], int]:
    """Returns two lists without what they begin and end with in common, and with how much they begin."""
    shorter = min(len(was), len(now))
    same = next((place for place in range(shorter) if was[place] != now[place]), shorter)
    left = shorter - same
    behind = next((place for place in range(left) if was[-1 - place] != now[-1 - place]), left)
    return was[same : len(was) - behind], now[same : len(now) - behind], same


class _LineCounter:
    """Says which line a byte is in. Is asked in order, nearly."""

    def __init__(self, data: Content) -> None:
        self._data = data
        self._at = 0
        self._line = 1

    def at(self, place: int) -> int:
        if place >= self._at:
            self._line += self._data.newlines(self._at, place)
        else:
            self._line -= self._data.newlines(place, self._at)
        self._at = place
        return self._line


def _lines(first: int, last: int) -> str:
    return f"line {first:,}" if first >= last else f"lines {first:,} to {last:,}"


def _events(first: int, last: int) -> str:
    return f"event {first:,} is" if first >= last else f"events {first:,} to {last:,} are"


def shown(finding: AuditFinding) -> str:
    """Returns a finding as text for people."""
    return printable(str(finding), 600)
