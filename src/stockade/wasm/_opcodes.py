"""Every instruction that is known here, with what follows its opcode: the one table that all who read code go by.

To know one more instruction is to add a row, or a number to one. The regular expressions that step over code, the
decoder and the measure of nesting are made from these rows. What has no row is refused wherever it stands.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stockade.wasm._binary import Reader, sleb, uleb
from stockade.wasm._types import (
    encode_block_type,
    encode_heap_type,
    guest_value_type,
    read_block_type,
    read_heap_type,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "CONSTANTS",
    "INSTRUCTIONS",
    "Immediate",
    "Instruction",
    "Kind",
    "Span",
    "patterns",
    "read_opcode",
    "run_of",
    "set_of",
]


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
    TABLE_CHANGE = "change of a table"
    ELEMENT_DROP = "elem.drop"
    DATA_DROP = "data.drop"
    WAIT_32 = "memory.atomic.wait32"
    WAIT_64 = "memory.atomic.wait64"


class Span(NamedTuple):
    """An index of a memory, and where it stands; where it is left out: 0, and twice where the alignment stands."""

    start: int
    end: int
    memory: int


class Immediate(NamedTuple):
    """Something that follows an opcode.

    Attributes:
        read: Reads it, in any encoding that the engine takes.
        pattern: A regular expression for its encodings, or for the usual ones; None where it takes a decoder.
        rare: One for others, which are tried last: a choice within `pattern` would cost every instruction of the kind.
        write: Encodes what `read` returned, for instructions that may stand in constant expressions.
        names: What it is an index of, where that is of interest by itself.
    """

    read: Callable[[Reader], Any]
    pattern: bytes | None
    write: Callable[[Any], bytes] | None = None
    names: Kind | None = None
    rare: bytes | None = None


_LEB_32: Final = rb"[\x80-\xff]{0,4}+[\x00-\x7f]"
_LEB_64: Final = rb"[\x80-\xff]{0,9}+[\x00-\x7f]"


def _bytes(size: int) -> Immediate:
    return Immediate(lambda reader: reader.take(size), rb"[\x00-\xff]{%d}" % size, bytes)


def _read_memory_argument(reader: Reader) -> Span:
    """Reads alignment, memory and offset; returns where the index of the memory stands."""
    start = reader.position
    alignment = reader.u32()
    if alignment > 0x7F:
        reader.position = start
        raise reader.damaged("an alignment that is too large")
    found = Span(start, start, 0)
    if alignment & 0x40:
        start = reader.position
        memory = reader.u32()
        found = Span(start, reader.position, memory)
    reader.u64()
    return found


def _read_types(reader: Reader) -> list[str]:
    return [guest_value_type(reader) for _ in range(reader.count())]


def _read_labels(reader: Reader) -> int:
    """Reads the labels of a table of branches; returns how many, the default left out."""
    count = reader.count()
    reader.skip_u32s(count + 1)
    return count


def _read_catches(reader: Reader) -> None:
    for _ in range(reader.count()):
        kind = reader.byte()
        if kind > 3:
            reader.position -= 1
            raise reader.forbidden(f"a catch of the form {kind:#04x}")
        if kind < 2:  # catch and catch_ref name a tag before their label
            reader.u32()
        reader.u32()


_INDEX: Final = Immediate(Reader.u32, _LEB_32, uleb)
_FUNCTION: Final = Immediate(Reader.u32, _LEB_32, uleb)
_TYPE_INDEX: Final = _INDEX._replace(names=Kind.TYPE)
_TABLE_INDEX: Final = _INDEX._replace(names=Kind.TABLE)
_MEMORY_INDEX: Final = _INDEX._replace(names=Kind.MEMORY)
_S32: Final = Immediate(Reader.s32, _LEB_32, sleb)
_S64: Final = Immediate(Reader.s64, _LEB_64, sleb)
_LANE: Final = _bytes(1)
_HEAP: Final = rb"(?:[\x00-\x3f\x68-\x75]|[\x80-\xff]{1,4}+[\x00-\x3f])"
_HEAP_TYPE: Final = Immediate(read_heap_type, _HEAP, encode_heap_type)
# Types of one byte and indices; a reference type in its long form is rare.
_BLOCK_TYPE: Final = Immediate(
    read_block_type,
    rb"(?:[\x00-\x3f\x40\x68-\x75\x7b-\x7f]|[\x80-\xff]{1,4}+[\x00-\x3f])",
    encode_block_type,
    rare=rb"[\x63\x64]" + _HEAP,
)
_MEMORY_ARGUMENT: Final = Immediate(
    _read_memory_argument,
    rb"[\x00-\x3f]" + _LEB_64,
    names=Kind.MEMORY,
    rare=rb"[\x40-\x7f]" + _LEB_32 + _LEB_64,
)
_ONE_TYPE: Final = Immediate(_read_types, rb"\x01[\x68-\x75\x7b-\x7f]", rare=rb"\x01[\x63\x64]" + _HEAP)
_LABELS: Final = Immediate(_read_labels, None)
_CATCHES: Final = Immediate(_read_catches, rb"\x01(?:[\x00\x01]" + _LEB_32 + rb"|[\x02\x03])" + _LEB_32)
_CAST_FLAGS: Final = _bytes(1)


class Instruction(NamedTuple):
    """How an instruction is encoded behind its opcode, and what it means to those who read code here.

    Attributes:
        immediates: What follows the opcode.
        site: What it does that is of interest; its first index is the target, or the count of its labels.
        nests: 1 where it opens a block, -1 where it ends one.
        constant: Whether it may stand in a constant expression.
    """

    immediates: tuple[Immediate, ...] = ()
    site: Kind | None = None
    nests: int = 0
    constant: bool = False


_PREFIXES: Final = frozenset([0xFB, 0xFC, 0xFD, 0xFE])
"""First bytes of opcodes that go on with a number."""

_Rows = tuple[tuple[int | None, "Iterable[int]", Instruction], ...]

# Prefix, numbers, and how they are encoded. What is most frequent in code comes first.
_TABLE: Final[_Rows] = (
    # local.get, local.set, local.tee, global.set, table.get; throw, br, br_if
    (None, [0x20, 0x21, 0x22, 0x24, 0x25, 0x08, 0x0C, 0x0D], Instruction((_INDEX,))),
    (None, [0x23], Instruction((_INDEX,), site=Kind.GLOBAL_GET, constant=True)),
    (None, [0x41], Instruction((_S32,), constant=True)),
    # add, sub and mul of i32 and i64
    (None, [0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E], Instruction(constant=True)),
    # unreachable, nop, else, throw_ref, return, drop, select, ref.is_null; numeric instructions
    (None, [0x00, 0x01, 0x05, 0x0A, 0x0F, 0x1A, 0x1B, 0xD1], Instruction()),
    (None, [*range(0x45, 0x6A), *range(0x6D, 0x7C), *range(0x7F, 0xC5)], Instruction()),
    (None, [0x0B], Instruction(nests=-1)),
    (None, range(0x28, 0x3F), Instruction((_MEMORY_ARGUMENT,))),
    (None, [0x02, 0x03, 0x04], Instruction((_BLOCK_TYPE,), nests=1)),
    (None, [0x10], Instruction((_FUNCTION,), site=Kind.CALL)),
    (None, [0x12], Instruction((_FUNCTION,), site=Kind.RETURN_CALL)),
    (None, [0xD2], Instruction((_FUNCTION,), site=Kind.REF_FUNC, constant=True)),
    # call_indirect, return_call_indirect
    (None, [0x11, 0x13], Instruction((_TYPE_INDEX, _TABLE_INDEX))),
    (None, [0x0E], Instruction((_LABELS,), site=Kind.BRANCH_TABLE)),
    (None, [0x42], Instruction((_S64,), constant=True)),
    (None, [0x43], Instruction((_bytes(4),), constant=True)),
    (None, [0x44], Instruction((_bytes(8),), constant=True)),
    (None, [0x3F], Instruction((_MEMORY_INDEX,))),
    (None, [0x40], Instruction((_INDEX,), site=Kind.MEMORY_GROW)),
    (None, [0x1C], Instruction((_ONE_TYPE,))),
    (None, [0xD0], Instruction((_HEAP_TYPE,), constant=True)),
    (None, [0x1F], Instruction((_BLOCK_TYPE, _CATCHES), nests=1)),
    # saturating conversions
    (0xFC, range(8), Instruction()),
    # memory.copy, memory.fill
    (0xFC, [0x0A], Instruction((_MEMORY_INDEX, _MEMORY_INDEX))),
    (0xFC, [0x0B], Instruction((_MEMORY_INDEX,))),
    # table.size, memory.init
    (0xFC, [0x10], Instruction((_INDEX,))),
    (0xFC, [0x08], Instruction((_INDEX, _MEMORY_INDEX))),
    # What a snapshot of an instance may come to lack: table.set; table.fill; table.init, table.copy
    (None, [0x26], Instruction((_INDEX,), site=Kind.TABLE_CHANGE)),
    (0xFC, [0x11], Instruction((_INDEX,), site=Kind.TABLE_CHANGE)),
    (0xFC, [0x0C, 0x0E], Instruction((_INDEX, _INDEX), site=Kind.TABLE_CHANGE)),
    (0xFC, [0x09], Instruction((_INDEX,), site=Kind.DATA_DROP)),
    (0xFC, [0x0D], Instruction((_INDEX,), site=Kind.ELEMENT_DROP)),
    (0xFC, [0x0F], Instruction((_INDEX,), site=Kind.TABLE_GROW)),
    # loads and stores of vectors
    (0xFD, [*range(0x0C), 0x5C, 0x5D], Instruction((_MEMORY_ARGUMENT,))),
    (0xFD, range(0x54, 0x5C), Instruction((_MEMORY_ARGUMENT, _LANE))),
    (0xFD, [0x0C], Instruction((_bytes(16),), constant=True)),
    (0xFD, [0x0D], Instruction((_bytes(16),))),
    (0xFD, range(0x15, 0x23), Instruction((_LANE,))),
    (0xFD, [*range(0x0E, 0x15), *range(0x23, 0x54), *range(0x5E, 0x9A), *range(0x9B, 0xA2)], Instruction()),
    (0xFD, [0xA3, 0xA4, *range(0xA7, 0xAF), 0xB1, *range(0xB5, 0xBB), *range(0xBC, 0xC2)], Instruction()),
    (0xFD, [0xC3, 0xC4, *range(0xC7, 0xCF), 0xD1, *range(0xD5, 0xE2), *range(0xE3, 0xEE)], Instruction()),
    (0xFD, range(0xEF, 0x114), Instruction()),
    # ref.eq, ref.as_non_null; br_on_null, br_on_non_null; call_ref, return_call_ref
    (None, [0xD3, 0xD4], Instruction()),
    (None, [0xD5, 0xD6], Instruction((_INDEX,))),
    (None, [0x14, 0x15], Instruction((_TYPE_INDEX,))),
    # struct.new, struct.new_default, array.new, array.new_default; array.new_fixed
    (0xFB, [0x00, 0x01, 0x06, 0x07], Instruction((_TYPE_INDEX,), constant=True)),
    (0xFB, [0x08], Instruction((_TYPE_INDEX, _INDEX), constant=True)),
    # any.convert_extern, extern.convert_any, ref.i31
    (0xFB, [0x1A, 0x1B, 0x1C], Instruction(constant=True)),
    # struct.get and struct.set, array.new_data, array.new_elem, array.init_data, array.init_elem
    (0xFB, [*range(0x02, 0x06), 0x09, 0x0A, 0x12, 0x13], Instruction((_TYPE_INDEX, _INDEX))),
    # array.get and array.set, array.fill; array.copy
    (0xFB, [*range(0x0B, 0x0F), 0x10], Instruction((_TYPE_INDEX,))),
    (0xFB, [0x11], Instruction((_TYPE_INDEX, _TYPE_INDEX))),
    # array.len, i31.get_s, i31.get_u
    (0xFB, [0x0F, 0x1D, 0x1E], Instruction()),
    # ref.test, ref.cast; br_on_cast, br_on_cast_fail
    (0xFB, range(0x14, 0x18), Instruction((_HEAP_TYPE,))),
    (0xFB, [0x18, 0x19], Instruction((_CAST_FLAGS, _INDEX, _HEAP_TYPE, _HEAP_TYPE))),
    # memory.atomic.notify, atomic loads, stores and the rest; atomic.fence
    (0xFE, [0x00, *range(0x10, 0x4F)], Instruction((_MEMORY_ARGUMENT,))),
    (0xFE, [0x01], Instruction((_MEMORY_ARGUMENT,), site=Kind.WAIT_32)),
    (0xFE, [0x02], Instruction((_MEMORY_ARGUMENT,), site=Kind.WAIT_64)),
    (0xFE, [0x03], Instruction((_bytes(1),))),
)

INSTRUCTIONS: Final[dict[tuple[int | None, int], Instruction]] = {
    (prefix, number): row for prefix, numbers, row in _TABLE for number in numbers
}
"""Every instruction by its prefix, None where it has none, and its number."""

CONSTANTS: Final = {opcode: row for opcode, row in INSTRUCTIONS.items() if row.constant}
"""Those that may stand in constant expressions."""


def read_opcode(reader: Reader) -> tuple[int | None, int]:
    """Reads an opcode: its prefix, None where it has none, and its number, which may be padded behind a prefix."""
    code = reader.byte()
    return (code, reader.u32()) if code in _PREFIXES else (None, code)


# -- regular expressions from the table --------------------------------------------------------------------------------


def set_of(codes: Iterable[int]) -> bytes:
    """A set of bytes as a regular expression has it, in ranges."""
    ordered = sorted(codes)
    out = b""
    while ordered:
        size = next((at for at, code in enumerate(ordered) if code != ordered[0] + at), len(ordered))
        out += b"\\x%02x" % ordered[0] + (b"-\\x%02x" % ordered[size - 1] if size > 1 else b"")
        ordered = ordered[size:]
    return b"[" + out + b"]"


def patterns(rows: Iterable[tuple[tuple[int | None, int], Instruction]]) -> list[bytes]:
    """Returns what matches one of some instructions, as alternatives: opcodes of one shape share one.

    What only a decoder can read is left out.
    """
    usual: dict[tuple[int | None, bytes], list[int]] = {}
    rare: dict[tuple[int | None, bytes], list[int]] = {}
    for (prefix, number), row in rows:
        parts = [immediate.pattern for immediate in row.immediates]
        others = [immediate.rare or immediate.pattern for immediate in row.immediates]
        if None not in parts:
            usual.setdefault((prefix, b"".join(filter(None, parts))), []).append(number)
        if None not in others and others != parts:
            rare.setdefault((prefix, b"".join(filter(None, others))), []).append(number)
    found: list[bytes] = []
    behind: dict[int, list[bytes]] = {}
    for (prefix, rest), numbers in (*usual.items(), *rare.items()):
        if prefix is None:
            found.append(set_of(numbers) + rest)
        else:
            behind.setdefault(prefix, []).append(_numbers(numbers) + rest)
    return found + [b"\\x%02x(?:%s)" % (prefix, b"|".join(options)) for prefix, options in behind.items()]


def _numbers(numbers: list[int]) -> bytes:
    """Matches one of some numbers of at most 14 bits, however it is padded."""
    options = []
    if short := [number for number in numbers if number < 0x80]:
        options += [set_of(short), set_of(number | 0x80 for number in short) + rb"\x80{0,3}+\x00"]
    for high in sorted({number >> 7 for number in numbers if number >= 0x80}):
        low = set_of(number & 0x7F | 0x80 for number in numbers if number >> 7 == high)
        options += [low + b"\\x%02x" % high, low + b"\\x%02x" % (high | 0x80) + rb"\x80{0,2}+\x00"]
    return b"(?:" + b"|".join(options) + b")"


def run_of(alternatives: Iterable[bytes]) -> re.Pattern[bytes]:
    """Compiles what matches any run of some instructions."""
    return re.compile(rb"(?:" + rb"|".join(alternatives) + rb")*+", re.DOTALL)
