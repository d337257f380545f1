"""Constant expressions: what globals begin with, where segments go, what element segments list.

They are read to be stepped over, or to be written anew with other functions in the place of those that they refer to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stockade.wasm._binary import excess, uleb
from stockade.wasm._opcodes import CONSTANTS, Kind, patterns, read_opcode, run_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.errors import InvalidModule
    from stockade.wasm._binary import Reader

__all__ = ["rewrite_const_expression", "skip_const_expression"]

_END: Final = 0x0B

_MOST_BYTES: Final = 65_536
"""Bytes of a constant expression. Real ones have a handful; the engine has no bound of its own."""

_LONGEST: Final = 32
"""No instruction of a constant expression has as many bytes."""

_RUN: Final = run_of(patterns(CONSTANTS.items()))


def skip_const_expression(reader: Reader) -> None:
    """Steps over a constant expression, whatever proposals it uses.

    Args:
        reader: Stands at its beginning; stands after its end afterwards.

    Raises:
        InvalidModule: It has an instruction that may not stand there, or is longer than any real one.
    """
    start, end = reader.position, reader.end
    bound = start + _MOST_BYTES
    match = _RUN.match(reader.data, start, min(end, bound))
    assert match is not None
    if bound < end and match.end() > bound - _LONGEST:
        raise _too_long(reader)
    reader.position = match.end()
    if read_opcode(reader) != (None, _END):
        raise _refused(reader, match.end())


def rewrite_const_expression(reader: Reader, redirect: Callable[[int], int]) -> bytes:
    """Writes a constant expression anew, each number as short as it gets.

    Args:
        reader: Stands at its beginning; stands after its end afterwards.
        redirect: Tells the function to refer to in the place of another.

    Raises:
        InvalidModule: As of `skip_const_expression`.
    """
    begun = reader.position
    out = bytearray()
    while True:
        start = reader.position
        if start - begun > _MOST_BYTES:
            raise _too_long(reader)
        prefix, number = opcode = read_opcode(reader)
        if opcode == (None, _END):
            out.append(_END)
            return bytes(out)
        row = CONSTANTS.get(opcode)
        if row is None:
            raise _refused(reader, start)
        out += bytes([number]) if prefix is None else bytes([prefix]) + uleb(number)
        for immediate in row.immediates:
            value = immediate.read(reader)
            assert immediate.write is not None, "immediates of constants can be written"
            out += immediate.write(redirect(value) if row.site is Kind.REF_FUNC else value)


def _too_long(reader: Reader) -> InvalidModule:
    found = f"a constant expression of more than {_MOST_BYTES:,} bytes in the {reader.what}"
    return excess(found, _MOST_BYTES, "Build it with a shorter one")


def _refused(reader: Reader, start: int) -> InvalidModule:
    """What to say of an instruction that begins there."""
    reader.position = start
    prefix, number = read_opcode(reader)
    reader.position = start
    shown = f"{number:#04x}" if prefix is None else f"{prefix:#04x} {number:#04x}"
    return reader.forbidden(f"instruction {shown} in a constant expression")
