"""Whether a module computes in constant expressions, which the engine cannot be told to do without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stockade.errors import InvalidModule
from stockade.wasm._binary import Reader
from stockade.wasm._opcodes import CONSTANTS, read_opcode
from stockade.wasm._reader import SectionId, has_initial_value, sections
from stockade.wasm._types import guest_table_type, read_global_type, read_value_type

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["uses_extended_const"]

_END: Final = 0x0B
_SUMS: Final = frozenset({0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E})
"""Addition, subtraction and multiplication of i32 and i64."""

_READ: Final = (SectionId.TABLE, SectionId.GLOBAL, SectionId.ELEMENT, SectionId.DATA)


def uses_extended_const(data: bytes) -> bool:
    """Tells whether a constant expression of a module has a sum or a product in it.

    Args:
        data: A module that the engine has found valid.
    """
    try:
        for number, start, end in sections(data):
            if number in _READ:
                section = SectionId(number)
                reader = Reader(data, start, end, f"{section.name.lower()} section")
                if any(map(_has_sum, _expressions(section, reader))):
                    return True
    except InvalidModule:
        # Of a proposal that the readers do not know, and that no policy allows.
        return False
    return False


def _has_sum(reader: Reader) -> bool:
    """Steps over a constant expression, and tells what is asked of it."""
    found = False
    while (opcode := read_opcode(reader)) != (None, _END):
        row = CONSTANTS.get(opcode)
        if row is None:
            raise reader.forbidden("an instruction that is not constant")
        for immediate in row.immediates:
            immediate.read(reader)
        found = found or (opcode[0] is None and opcode[1] in _SUMS)
    return found


def _expressions(section: SectionId, reader: Reader) -> Iterator[Reader]:
    """Stops at each constant expression of a section, for whoever reads it to its end."""
    for _ in range(reader.count()):
        if section is SectionId.GLOBAL:
            read_global_type(reader)
            yield reader
        elif section is SectionId.TABLE:
            begins = has_initial_value(reader)
            guest_table_type(reader)
            if begins:
                yield reader
        elif section is SectionId.DATA:
            form = reader.u32()
            if form & 2:
                reader.u32()
            if not form & 1:
                yield reader
            reader.take(reader.u32())
        else:
            yield from _of_element_segment(reader)


def _of_element_segment(reader: Reader) -> Iterator[Reader]:
    form = reader.u32()
    if not form & 1:
        if form & 2:
            reader.u32()
        yield reader
    if form & 3:
        if form & 4:
            read_value_type(reader)
        else:
            reader.byte()
    if form & 4:
        for _ in range(reader.count()):
            yield reader
    else:
        reader.skip_u32s(reader.count())
