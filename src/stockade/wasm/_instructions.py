"""Finding the few instructions that matter in a body of code.

The weaver must see every call and reference to an imported function and every growth of a memory or table, and
nothing else. A compiled regular expression steps over all other instructions, so that the regular-expression engine's
C code does the walking, at some 40 MB/s; the rest is decoded here.

Only the instructions of the proposals that guests may use are known. Any other is refused, never guessed at.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from stockade.wasm._binary import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Kind", "Site", "all_sites", "deepest_nesting", "walk"]


class Kind(Enum):
    """What an instruction of interest refers to."""

    CALL = "call"
    RETURN_CALL = "return_call"
    REF_FUNC = "ref.func"
    MEMORY_GROW = "memory.grow"
    TABLE_GROW = "table.grow"
    MEMORY = "memory index"
    GLOBAL_GET = "global.get"
    TYPE = "type index"
    TABLE = "table index"
    BRANCH_TABLE = "br_table"


class Site(NamedTuple):
    """An index that an instruction names.

    Attributes:
        kind: The instruction.
        start: Offset of its first byte.
        end: Offset after it.
        target: Index of the function, memory, table, global or type that it names; for a table of branches, how many
            it has.
    """

    kind: Kind
    start: int
    end: int
    target: int


_LEB = rb"[\x80-\xff]*+[\x00-\x7f]"
_MEMARG = rb"(?:[\x00-\x3f]" + _LEB + rb"|[\x40-\x7f]" + _LEB + _LEB + rb")"
_CALLS = {0x10: Kind.CALL, 0x12: Kind.RETURN_CALL, 0xD2: Kind.REF_FUNC}

_PLAIN = [
    rb"[\x00\x01\x05\x0a\x0b\x0f\x1a\x1b\x45-\xc4\xd1]",
    rb"[\x02-\x04\x08\x0c\x0d\x20-\x26\x3f\x41\x42\xd0]" + _LEB,
    rb"[\x28-\x3e]" + _MEMARG,
    rb"[\x11\x13]" + _LEB + _LEB,
    rb"\x43[\x00-\xff]{4}",
    rb"\x44[\x00-\xff]{8}",
    rb"\xfc(?:[\x00-\x07]|[\x09\x0b\x0d\x10\x11]" + _LEB + rb"|[\x08\x0a\x0c\x0e]" + _LEB + _LEB + rb")",
    rb"\xfd(?:[\x00-\x0b\x5c\x5d]" + _MEMARG
    + rb"|[\x0c\x0d][\x00-\xff]{16}|[\x15-\x22][\x00-\xff]|[\x54-\x5b]" + _MEMARG
    + rb"[\x00-\xff]|[\x0e-\x14\x23-\x53\x5e-\x7f]|[\x80-\xff][\x01-\x7f])",
]  # fmt: skip


@lru_cache(maxsize=64)
def _stepper(imported: int) -> re.Pattern[bytes]:
    """Matches any run of instructions that cannot name one of the first `imported` functions or grow anything."""
    if imported == 0:
        calls = rb"[\x10\x12\xd2]" + _LEB
    elif imported <= 0x80:
        low = re.escape(bytes([0x80])) + rb"-" + re.escape(bytes([0x80 + imported - 1]))
        options = [
            # Padded or longer, with a low first group: an index beyond the imports only if a later group is not zero.
            rb"[" + low + rb"](?!\x80*\x00)" + _LEB,
        ]
        if imported < 0x80:
            options.append(rb"[" + re.escape(bytes([imported])) + rb"-\x7f]")
            options.append(rb"[" + re.escape(bytes([0x80 + imported])) + rb"-\xff]" + _LEB)
        calls = rb"[\x10\x12\xd2](?:" + rb"|".join(options) + rb")"
    elif imported <= 0x4000:
        # So many imports: an index is certain to be no import only from three groups on.
        calls = rb"[\x10\x12\xd2][\x80-\xff]{2}(?!\x80*\x00)" + _LEB
    else:
        # No shape of an index is certain: every call is decoded.
        calls = rb"(?!)"
    return re.compile(rb"(?:" + rb"|".join([*_PLAIN, calls]) + rb")*+", re.DOTALL)


def walk(data: bytes, start: int, end: int, imported: int) -> Iterator[Site]:
    """Finds calls and references to imported functions, growth of memories and tables, and tables of branches.

    Args:
        data: The module, already validated by the engine.
        start: Where the body's instructions begin.
        end: Where the body ends.
        imported: How many functions the module imports.

    Yields:
        The sites in order.

    Raises:
        InvalidModule: An instruction is not known here.
    """
    step = _stepper(imported).match
    position = start
    while position < end:
        match = step(data, position, end)
        assert match is not None
        position = match.end()
        if position >= end:
            break
        reader = Reader(data, position, end, "code")
        for site in _decode(reader):
            if site.kind in _WOVEN and (site.kind not in _CALLS.values() or site.target < imported):
                yield site
        position = reader.position


_WOVEN = frozenset({Kind.CALL, Kind.RETURN_CALL, Kind.REF_FUNC, Kind.MEMORY_GROW, Kind.TABLE_GROW, Kind.BRANCH_TABLE})


def all_sites(data: bytes, start: int, end: int) -> Iterator[Site]:
    """Finds every index in a body: what relocating the guard's own code needs.

    Args:
        data: The module.
        start: Where the body's instructions begin.
        end: Where the body ends.

    Yields:
        Each index with the bytes that encode it (for memory arguments and the like), or the whole instruction (for
        calls, `global.get` and growth).
    """
    reader = Reader(data, start, end, "code")
    while reader.position < end:
        yield from (site for site in _decode(reader) if site.kind is not Kind.BRANCH_TABLE)


_OPENERS = b"\x02\x03\x04\x1f"
_NO_OPENERS = bytes(code for code in range(256) if code not in _OPENERS)

# Any run of instructions that neither opens nor ends a block.
_FLAT = re.compile(
    rb"(?:%s)*+"
    % rb"|".join(
        (
            _PLAIN[0].replace(rb"\x0b", b""),
            _PLAIN[1].replace(rb"\x02-\x04", b""),
            *_PLAIN[2:],
            rb"[\x10\x12\xd2]" + _LEB,
        )
    ),
    re.DOTALL,
)


def deepest_nesting(data: bytes, start: int, end: int, enough: int) -> int:
    """Measures how deep blocks are nested in a body.

    Args:
        data: The module, already validated by the engine.
        start: Where the body's instructions begin.
        end: Where the body ends.
        enough: A depth up to which it need not be exact.

    Returns:
        The depth, where it is more than `enough`; else some number up to it.
    """
    # A block takes three bytes, and each begins with one of these: most bodies cannot be that deep.
    if end - start < 3 * enough or len(data[start:end].translate(None, _NO_OPENERS)) <= enough:
        return 0
    step = _FLAT.match
    depth = deepest = 0
    position = start
    while position < end:
        match = step(data, position, end)
        assert match is not None
        position = match.end()
        if position >= end:
            break
        opcode = data[position]
        if opcode == 0x0B:
            depth -= 1
            position += 1
            continue
        if opcode in _OPENERS:
            depth += 1
            if depth > deepest:
                deepest = depth
            if opcode != 0x1F and data[position + 1] < 0x80:
                position += 2
                continue
        reader = Reader(data, position, end, "code")
        for _ in _decode(reader):
            pass
        position = reader.position
    return deepest


def _decode(reader: Reader) -> Iterator[Site]:
    start = reader.position
    opcode = reader.byte()
    if opcode in _CALLS:
        index = reader.u32()
        yield Site(_CALLS[opcode], start, reader.position, index)
    elif opcode == 0x40:
        index = reader.u32()
        yield Site(Kind.MEMORY_GROW, start, reader.position, index)
    elif opcode == 0x3F:
        yield _index(reader, Kind.MEMORY)
    elif opcode == 0x23:
        index = reader.u32()
        yield Site(Kind.GLOBAL_GET, start, reader.position, index)
    elif opcode in _NO_IMMEDIATE:
        pass
    elif opcode in _ONE_LEB:
        reader.leb()
    elif 0x28 <= opcode <= 0x3E:
        yield from _memory_argument(reader)
    elif opcode == 0x43:
        reader.take(4)
    elif opcode == 0x44:
        reader.take(8)
    elif opcode in (0x11, 0x13):
        yield _index(reader, Kind.TYPE)
        yield _index(reader, Kind.TABLE)
    elif opcode == 0x0E:
        count = reader.count()
        for _ in range(count + 1):
            reader.u32()
        yield Site(Kind.BRANCH_TABLE, start, reader.position, count)
    elif opcode == 0x1C:
        for _ in range(reader.count()):
            reader.byte()
    elif opcode == 0x1F:
        reader.leb()
        for _ in range(reader.count()):
            if reader.byte() < 2:  # catch and catch_ref name a tag before their label
                reader.u32()
            reader.u32()
    elif opcode == 0xFC:
        yield from _decode_fc(reader, start)
    elif opcode == 0xFD:
        yield from _decode_simd(reader)
    else:
        reader.position = start
        raise reader.damaged(f"instruction {opcode:#04x} is not one that guests may use")


_NO_IMMEDIATE = frozenset([0x00, 0x01, 0x05, 0x0A, 0x0B, 0x0F, 0x1A, 0x1B, 0xD1, *range(0x45, 0xC5)])
_ONE_LEB = frozenset([0x02, 0x03, 0x04, 0x08, 0x0C, 0x0D, 0x20, 0x21, 0x22, 0x24, 0x25, 0x26, 0x41, 0x42, 0xD0])


def _index(reader: Reader, kind: Kind) -> Site:
    start = reader.position
    index = reader.u32()
    return Site(kind, start, reader.position, index)


def _memory_argument(reader: Reader) -> Iterator[Site]:
    start = reader.position
    alignment = reader.u32()
    if alignment & 0x40:
        yield _index(reader, Kind.MEMORY)
    else:
        # The index 0 is not written: it is told as an empty span after the alignment, which names the flag to set.
        yield Site(Kind.MEMORY, start, start, 0)
    reader.leb()


def _decode_fc(reader: Reader, start: int) -> Iterator[Site]:
    sub = reader.u32()
    if sub <= 7:
        return
    if sub == 0x0F:
        index = reader.u32()
        yield Site(Kind.TABLE_GROW, start, reader.position, index)
    elif sub == 0x0A:
        yield _index(reader, Kind.MEMORY)
        yield _index(reader, Kind.MEMORY)
    elif sub == 0x0B:
        yield _index(reader, Kind.MEMORY)
    elif sub in (0x09, 0x0D, 0x10, 0x11):
        reader.u32()
    elif sub in (0x08, 0x0C, 0x0E):
        reader.u32()
        reader.u32()
    else:
        reader.position = start
        raise reader.damaged(f"instruction 0xfc {sub:#04x} is not one that guests may use")


def _decode_simd(reader: Reader) -> Iterator[Site]:
    sub = reader.u32()
    if sub <= 0x0B or sub in (0x5C, 0x5D):
        yield from _memory_argument(reader)
    elif sub in (0x0C, 0x0D):
        reader.take(16)
    elif 0x15 <= sub <= 0x22:
        reader.byte()
    elif 0x54 <= sub <= 0x5B:
        yield from _memory_argument(reader)
        reader.byte()
