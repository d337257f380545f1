"""The file of an audit log: batches of lines, added under a lock, sealed, and followed by the head.

Whoever adds a batch has the lock of the head's file, so any number of processes write one chain. The head is written
before the batch, with how long that is going to be, and after it. So whoever comes next sees what became of a write
that was broken off, and tells what is left of it from what somebody else has added.
"""

from __future__ import annotations

import errno
import os
import re
import time
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_UN, flock
from typing import TYPE_CHECKING, Final, Generic, Literal, NamedTuple, TypeVar

import msgspec

from stockade._locks import new_lock
from stockade.audit._chain import (
    EVENT_MARK,
    HEAD_BYTES,
    MOST_BATCH_BYTES,
    MOST_FOUND_BYTES,
    NOTHING_BEFORE,
    SEAL_MARK,
    Head,
    checksums,
    is_sealed,
    make_seal,
    read_head,
    read_seal,
)
from stockade.audit._events import AuditEvent, EventName
from stockade.audit._places import LogPlace, claim_place, open_head, open_log, read_key, take_lock, user_state
from stockade.audit._records import batched
from stockade.errors import AuditError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from stockade.audit._lines import Line

    Fsync: TypeAlias = Literal["never", "second", "run"]

__all__ = ["ChainFile", "Opening", "follow"]

_Item = TypeVar("_Item")

_LOCKED: Final = "another process keeps the audit log locked"


class Opening(msgspec.Struct, frozen=True):
    """What another process has to know to write to a log as this one does.

    Attributes:
        folder: The folder that the log is in.
        name: Its name there.
        state: The folder of its head.
        key: Its key.
        fsync: When what was written is brought to the disk.
        writer: Who notes its events.
    """

    folder: bytes
    name: bytes
    state: bytes
    key: bytes
    fsync: Literal["never", "second", "run"]
    writer: str


class _Found(NamedTuple):
    """Where the chain goes on, and what was found there.

    Attributes:
        mac: The MAC of the last seal.
        events: How many events there are.
        rest: What stands behind the last seal, and is no batch.
        newline: What ends the line that it is in.
        told: An event that tells of it, its reason and a count; None where all is as it should be.
    """

    mac: str
    events: int
    rest: bytes = b""
    newline: bytes = b""
    told: tuple[EventName, str, int] | None = None


class ChainFile(Generic[_Item]):
    """A log that is written. For any number of threads and processes.

    Args:
        place: Where it is.
        key: Its key; None for the user's.
        fsync: When what was written is brought to the disk: `never`, `second`, `run`.
        make: Makes an event of its name, its reason and a count.
        expand: Makes events of what was noted, or their lines.

    Raises:
        AuditError: It, its head or its key cannot be used.
    """

    def __init__(
        self,
        place: LogPlace,
        key: bytes | None,
        fsync: Fsync,
        make: Callable[[EventName, str, int], AuditEvent],
        expand: Callable[[Sequence[_Item]], Sequence[AuditEvent | Line | msgspec.Raw]],
    ) -> None:
        self.place = place
        self._make = make
        self._expand = expand
        self._fsync = fsync
        self._synced = time.monotonic()
        self._unsynced = False
        self._encode = msgspec.json.Encoder().encode
        self._lock = new_lock()
        self._log = self._head = -1
        self._key = read_key(key)
        claim_place(place)
        try:
            self._open()
            self._check_begin()
        except OSError as problem:
            raise AuditError(f"the audit log {place.shown} cannot be written: {problem.strerror}") from None

    def append(self, noted: list[_Item]) -> None:
        """Adds events: as one batch, where they are not too many bytes for that.

        Args:
            noted: The events. Those that were added are taken off the list.

        Raises:
            OSError: They cannot be written, or another process keeps the lock; the next batch puts things in order.
            AuditError: What is in the place of the log cannot be used.
        """
        with self._lock:
            self._open()
            take_lock(self._head, LOCK_EX, _LOCKED)
            try:
                self._append_all(noted)
            finally:
                flock(self._head, LOCK_UN)

    def _append_all(self, noted: list[_Item]) -> None:
        while noted:
            del noted[: self._append(noted)]

    def opening(self, writer: str) -> Opening:
        """Returns what another process has to know to write to it, too.

        Args:
            writer: Who notes its events.

        Raises:
            AuditError: There is no folder for its head.
        """
        place = self.place
        folder, state = os.fsencode(place.folder), os.fsencode(place.state or user_state())
        return Opening(folder, os.fsencode(place.name), state, self._key, self._fsync, writer)

    def size_bytes(self) -> int:
        """Returns how large the file is that was written last."""
        with self._lock:
            return 0 if self._log < 0 else os.fstat(self._log).st_size

    def note_written(self) -> None:
        """Notes that another process has written to it, or is about to."""
        self._unsynced = True

    def written(self, start: int, writer: str) -> set[int]:
        """Returns the numbers of events that are sealed behind a place: another process was to write them, and is gone.

        Args:
            start: The place; of a log that is shorter by now, all is looked at.
            writer: Who has noted the events.

        Raises:
            OSError: The log cannot be read, or another process keeps the lock.
            AuditError: What is in its place cannot be used.
        """
        with self._lock:
            self._open()
            take_lock(self._head, LOCK_EX, _LOCKED)
            try:
                status = self._current()
                head = read_head(os.pread(self._head, HEAD_BYTES + 1, 0), self._key)
                if head is None:
                    return set()
                found = self._find(head, status)
                size = status.st_size - len(found.rest)
                # What was to be written is at the end, but for what others have added since.
                start = max(start if start <= size else 0, size - MOST_FOUND_BYTES)
                data = _read(self._log, start, size - start)
            finally:
                flock(self._head, LOCK_UN)
        return {int(number) for number in re.findall(rb'"seq":(\d+),"writer":"%s"' % writer.encode(), data)}

    def sync(self) -> None:
        """Brings what was written to the disk."""
        with self._lock:
            if self._unsynced and self._log >= 0:
                os.fsync(self._log)
                os.fsync(self._head)
                self._unsynced = False
            self._synced = time.monotonic()

    def close(self) -> None:
        """Lets go of the files. Closing twice is harmless; what is added afterwards opens them again."""
        with self._lock:
            log, self._log = self._log, -1
            _close(log)
            head, self._head = self._head, -1
            _close(head)

    def __del__(self) -> None:
        # It may never have come to have any.
        if hasattr(self, "_head"):
            self.close()

    def _open(self) -> None:
        if self._head >= 0 and not os.fstat(self._head).st_nlink:
            # Somebody has removed it, and others would lock another one.
            self.close()
        if self._head < 0:
            self._head = open_head(self.place)
        if self._log < 0:
            self._log = open_log(self.place)

    def _check_begin(self) -> None:
        """Sees to it that nothing is added to a file that is something else, as where a wrong path was given.

        Raises:
            AuditError: There is no head, and the file does not begin as a log does.
        """
        begin = b"" if os.pread(self._head, 1, 0) else os.pread(self._log, len(EVENT_MARK), 0)
        if begin and not begin.startswith((EVENT_MARK, SEAL_MARK)):
            self.close()
            raise AuditError(
                f"{self.place.shown} is there already, and is no audit log: give another path, or remove what is there"
            )

    def _current(self) -> os.stat_result:
        """Returns the status of the log; opens it anew where it was moved or removed."""
        status = os.fstat(self._log)
        try:
            there = self.place.path.lstat()
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (status.st_dev, status.st_ino):
            os.close(self._log)
            self._log = -1
            self._log = open_log(self.place)
            status = os.fstat(self._log)
        return status

    def _append(self, noted: Sequence[_Item]) -> int:
        """Adds a batch; returns how many events it has."""
        status = self._current()
        data = os.pread(self._head, HEAD_BYTES + 1, 0)
        head = read_head(data, self._key) if data else None
        if data and head is None:
            lost = (
                EventName.LOG_DAMAGED,
                "the head of the log is not as it was written, or the key is another one: a new chain begins",
                0,
            )
            found = self._ended(status.st_size, NOTHING_BEFORE, 0, lost)
        else:
            found = self._find(head, status)
        known = found.rest + found.newline
        sums: list[int] = []
        pieces = [known]
        size_bytes = 0
        if found.told is not None:
            size_bytes += self._put([self._make(*found.told)], pieces, sums)
        more = len(sums)
        for few in batched(noted):
            size_bytes += self._put(self._expand(few), pieces, sums)
            if size_bytes >= MOST_BATCH_BYTES:
                break
        body = b"".join(pieces)
        seal, mac = make_seal(self._key, found.mac, found.events + 1, body, len(known), sums)
        new = b"".join([body[len(found.rest) :] if known else body, seal])
        size = status.st_size
        self._write_head(
            Head(
                events=found.events,
                mac=found.mac,
                size_bytes=size - len(found.rest),
                inode=status.st_ino,
                next_bytes=len(found.rest) + len(new),
                damaged=found.told is not None and found.told[0] is EventName.LOG_DAMAGED,
            )
        )
        self._unsynced = True
        written = 0
        while written < len(new):
            written += os.write(self._log, memoryview(new)[written:])
        if self._fsync == "run":
            os.fsync(self._log)
        self._write_head(
            Head(events=found.events + len(sums), mac=mac, size_bytes=size + len(new), inode=status.st_ino)
        )
        if self._fsync == "run":
            os.fsync(self._head)
            self._unsynced = False
        elif self._fsync == "second" and time.monotonic() - self._synced >= 1.0:
            self.sync()
        return len(sums) - more

    def _put(self, events: Sequence[AuditEvent | Line | msgspec.Raw], pieces: list[bytes], sums: list[int]) -> int:
        """Adds the lines of events, and their checksums; returns how many bytes they have."""
        lines = list(map(self._encode, events))
        sums += checksums(lines)
        lines.append(b"")
        piece = b"\n".join(lines)
        pieces.append(piece)
        return len(piece)

    def _write_head(self, head: Head) -> None:
        os.pwrite(self._head, head.encoded(self._key), 0)

    def _find(self, head: Head | None, status: os.stat_result) -> _Found:
        size = status.st_size
        if head is None:
            if not size:
                return _Found(NOTHING_BEFORE, 0)
            told = EventName.LOG_DAMAGED, "the log has no head: a new chain begins behind what is there", size
            return self._ended(size, NOTHING_BEFORE, 0, told)
        if status.st_ino == head.inode and size == head.size_bytes:
            return _Found(head.mac, head.events)
        if status.st_ino != head.inode or size < head.size_bytes:
            if status.st_ino != head.inode:
                why = "the file is another one than the last that was written: that was moved or removed"
            else:
                why = f"the file has {head.size_bytes - size:,} bytes fewer than were written"
            return self._ended(size, head.mac, head.events, (EventName.LOG_CONTINUED, why, 0))
        return self._behind(head, size)

    def _ended(self, size: int, mac: str, events: int, told: tuple[EventName, str, int]) -> _Found:
        """What was found in a file that the chain does not reach into: its last line is ended."""
        is_open = size > 0 and os.pread(self._log, 1, size - 1) != b"\n"
        return _Found(mac, events, newline=b"\n" if is_open else b"", told=told)

    def _behind(self, head: Head, size: int) -> _Found:
        """What stands behind what the head knows of."""
        more = size - head.size_bytes
        if more > MOST_FOUND_BYTES:
            raise OSError(errno.EFBIG, f"{more:,} bytes were added by something else: move the audit log away")
        data = _read(self._log, head.size_bytes, more)
        mac, events, rest = follow(self._key, head.mac, head.events, data)
        if not rest:
            return _Found(mac, events)
        newline = b"" if rest.endswith(b"\n") else b"\n"
        if mac == head.mac and len(rest) < head.next_bytes and not head.damaged:
            name, why = EventName.LOG_INTERRUPTED, "a write was broken off"
        else:
            name, why = EventName.LOG_DAMAGED, "bytes were added that no writer of this log has written"
        return _Found(mac, events, rest, newline, (name, why, len(rest)))


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        with suppress(OSError):
            os.close(descriptor)


def _read(descriptor: int, start: int, size: int) -> bytes:
    pieces = []
    while size > 0 and (piece := os.pread(descriptor, size, start)):
        pieces.append(piece)
        start += len(piece)
        size -= len(piece)
    return b"".join(pieces)


def follow(key: bytes, mac: str, events: int, data: bytes) -> tuple[str, int, bytes]:
    """Follows a chain through the batches that stand behind what is known of it.

    Args:
        key: The key of the log.
        mac: The MAC of the last seal that is known.
        events: How many events are known.
        data: What stands behind it.

    Returns:
        The MAC of the last seal that goes on with the chain, how many events there are by then, and what is left.
    """
    start = 0
    while (at := data.find(b"\n" + SEAL_MARK, start)) >= 0:
        end = data.find(b"\n", at + 1)
        found = read_seal(data[at + 1 : end]) if end >= 0 else None
        body = data[start : at + 1]
        if found is None:
            break
        seal, told = found
        if seal.before != mac or seal.first != events + 1 or seal.size_bytes != len(body):
            break
        if not is_sealed(key, [body], told, seal.mac):
            break
        mac, events, start = seal.mac, events + len(seal.sums), end + 1
    return mac, events, data[start:]
