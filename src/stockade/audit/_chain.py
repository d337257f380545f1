"""The chain: what ties each batch of lines to all that were written before it, by a key.

A batch is some lines of events and a line that seals them. The seal has an HMAC over the seal before, the bytes of the
batch and all else that it tells; so whoever lacks the key can change, remove, add or move nothing without breaking it.
It also has a checksum of each line. It proves nothing, but tells which of the lines was changed.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final
from zlib import adler32

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "EVENT_MARK",
    "HEAD_BYTES",
    "MOST_BATCH_BYTES",
    "MOST_BODY_BYTES",
    "MOST_FOUND_BYTES",
    "NOTHING_BEFORE",
    "SEAL_MARK",
    "Head",
    "Seal",
    "checksums",
    "is_sealed",
    "make_seal",
    "read_head",
    "read_seal",
]

NOTHING_BEFORE: Final = "0" * 64
"""What stands for the seal before in the first seal of a chain."""

SEAL_MARK: Final = b'{"seal":'
"""What the line of a seal begins with; no line of an event does."""

EVENT_MARK: Final = b'{"event":'
"""What the line of an event begins with."""

_BATCH: Final = b"stockade audit batch 1\n"
_HEAD: Final = b"stockade audit head 1\n"
_MAC_MARK: Final = b',"mac":"'

MOST_BATCH_BYTES: Final = 4 << 20
"""From so many on, a batch is given no more events: whoever checks it has all of it in memory."""

MOST_FOUND_BYTES: Final = 64 << 20
"""More that was added by others is not taken into the chain."""

MOST_BODY_BYTES: Final = MOST_FOUND_BYTES + 2 * MOST_BATCH_BYTES + (8 << 20)
"""No batch that was written has more bytes."""

HEAD_BYTES: Final = 512
"""How large the file of a head is: it is written as a whole."""


class Seal(msgspec.Struct, frozen=True):
    """What seals a batch.

    Attributes:
        before: The MAC of the seal before.
        first: The number of its first event, counted through the chain from 1 on.
        size_bytes: How many bytes it has, without this line.
        found_bytes: How many of those were there when it was written: what an interrupted write has left.
        sums: A checksum for each line of an event.
        mac: The MAC.
    """

    before: str
    first: int
    size_bytes: int = msgspec.field(name="bytes")
    found_bytes: int = msgspec.field(name="found")
    sums: list[int]
    mac: str


class _Line(msgspec.Struct, frozen=True):
    seal: Seal


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """How far the chain has come, kept apart from the log: so what is cut off its end is missed.

    Attributes:
        events: How many events it has.
        mac: The MAC of the last seal.
        size_bytes: How large the file was then.
        inode: Which file it was.
        next_bytes: How many bytes there are going to be behind it, where a write is under way; else 0.
        damaged: Whether something else had been added there before.
    """

    events: int = 0
    mac: str = NOTHING_BEFORE
    size_bytes: int = 0
    inode: int = 0
    next_bytes: int = 0
    damaged: bool = False

    def encoded(self, key: bytes) -> bytes:
        """Returns what is written to the head's file.

        Args:
            key: The key of the log.
        """
        told = msgspec.json.encode(self)
        line = b"%s %s" % (told, hmac.digest(key, _HEAD + told, "sha256").hex().encode())
        return line.ljust(HEAD_BYTES - 1) + b"\n"


def read_head(data: bytes, key: bytes) -> Head | None:
    """Reads what `Head.encoded` returned; None where it was changed, or is of another key.

    Args:
        data: What is in the file.
        key: The key of the log.
    """
    told, _, mac = data.strip().rpartition(b" ")
    if not hmac.compare_digest(hmac.digest(key, _HEAD + told, "sha256").hex().encode(), mac):
        return None
    try:
        return msgspec.json.decode(told, type=Head)
    except msgspec.MsgspecError:
        return None


def checksums(lines: list[bytes]) -> list[int]:
    """Returns a checksum for each line."""
    return list(map(adler32, lines))


def _mac_of(key: bytes, body: Iterable[bytes | memoryview], told: bytes) -> str:
    """Returns the MAC of a batch.

    Args:
        key: The key of the log.
        body: The bytes of the batch, in pieces.
        told: What its seal tells, up to the MAC; how many bytes the batch has is part of it.
    """
    mac = hmac.new(key, _BATCH, "sha256")
    # Without a copy, for it may be megabytes.
    for piece in body:
        mac.update(piece)
    mac.update(told)
    return mac.hexdigest()


def is_sealed(key: bytes, body: Iterable[bytes | memoryview], told: bytes, mac: str) -> bool:
    """Says whether a MAC is that of a batch, in a time that tells nothing of it.

    Args:
        key: The key of the log.
        body: The bytes of the batch, in pieces.
        told: What its seal tells, up to the MAC.
        mac: The MAC, as it was read.
    """
    return hmac.compare_digest(_mac_of(key, body, told).encode(), mac.encode())


def make_seal(key: bytes, before: str, first: int, body: bytes, found_bytes: int, sums: list[int]) -> tuple[bytes, str]:
    """Seals a batch.

    Args:
        key: The key of the log.
        before: The MAC of the seal before.
        first: The number of its first event.
        body: Its bytes.
        found_bytes: How many of those were there already.
        sums: A checksum for each line of an event.

    Returns:
        The line of the seal, and its MAC.
    """
    told = b'{"seal":{"before":"%s","first":%d,"bytes":%d,"found":%d,"sums":%s' % (
        before.encode(),
        first,
        len(body),
        found_bytes,
        msgspec.json.encode(sums),
    )
    mac = _mac_of(key, [body], told)
    return _line(told, mac) + b"\n", mac


def read_seal(line: bytes) -> tuple[Seal, bytes] | None:
    """Reads the line of a seal; None where it is none.

    Args:
        line: The line.

    Returns:
        The seal, unchecked; and what of the line its MAC is about.
    """
    try:
        seal = msgspec.json.decode(line, type=_Line).seal
    except msgspec.MsgspecError:
        return None
    told, _, _ = line.rpartition(_MAC_MARK)
    # To the last byte: what the MAC is not about must not be changed either.
    return (seal, told) if line.rstrip(b"\n") == _line(told, seal.mac) else None


def _line(told: bytes, mac: str) -> bytes:
    return b'%s%s%s"}}' % (told, _MAC_MARK, mac.encode())
