"""What goes into a guest's function and comes out of it: checked against its type before anything runs."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from stockade.engine import F32_OVERFLOW, INTEGER_BITS
from stockade.errors import UsageError
from stockade.execution._string_calls import make_string_call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.engine import Number
    from stockade.execution._string_calls import Exchange, Returns
    from stockade.modules import Entry, Module

__all__ = ["Argument", "Call", "bind_arguments"]

Argument: TypeAlias = int | float | bytes | bytearray | memoryview | str
"""What callers pass: a number, a vector (v128) as an int or its 16 bytes, or a text that takes the place of two i32."""

_VECTOR_BYTES: Final = 16
_VALUE_TYPES: Final = ("i32", "i64", "f32", "f64", "v128")

_SHOWN_BITS: Final = 160
"""Integers up to this size are shown in full."""

_MOST_TEXT_BYTES: Final = (1 << 32) - 1

_ALLOWED: Final = {
    "i32": "a whole number from -2**31 to 2**32 - 1",
    "i64": "a whole number from -2**63 to 2**64 - 1",
    "f32": "a number, at most 3.4028235e+38 if it is finite",
    "f64": "a number, at most 1.7976931348623157e+308 if it is finite",
    "v128": "a whole number from 0 to 2**128 - 1, or 16 bytes",
}
"""What a parameter takes, by its type."""


class Call(NamedTuple):
    """A call that fits the type of its function.

    Attributes:
        entry: The function.
        numbers: A number for each parameter; 0 for the address and the length of a text.
        exchange: What else is passed and returned, if anything.
    """

    entry: Entry
    numbers: Sequence[Number] = ()
    exchange: Exchange | None = None

    @property
    def given(self) -> Sequence[tuple[str, Number]]:
        """Type and value of each argument."""
        return list(zip(self.entry.type.params, self.numbers, strict=True)) if self.numbers else ()


def bind_arguments(module: Module, export: str, args: Sequence[Argument], returns: Returns | None = None) -> Call:
    """Checks that arguments fit an exported function.

    Args:
        module: The module that exports it.
        export: Its name.
        args: What is passed.
        returns: What the result is read as, where it is the place of a text.

    Raises:
        LinkError: There is no such function.
        UsageError: The arguments do not fit, or the function cannot be called from outside.
    """
    entry = module.function_entry(export)
    params = entry.type.params
    for what, types in (("parameter", params), ("result", entry.type.results)):
        for place, name in enumerate(types):
            if name not in _VALUE_TYPES:
                raise UsageError(
                    f"{entry}: {what} {place + 1} is of type {name}, and references cannot cross the border. "
                    "Call a function that takes and returns only i32, i64, f32, f64 and v128"
                )
    numbers: list[Number] = []
    texts: list[tuple[int, bytes]] = []
    for number, value in enumerate(args, 1):
        place = len(numbers)
        if place >= len(params):
            break
        if isinstance(value, bytearray | memoryview):
            value = bytes(value)
        if isinstance(value, str | bytes) and params[place] != "v128":
            if params[place : place + 2] != ("i32", "i32"):
                raise _no_number(entry, number, value, place)
            texts.append((place, _encoded(entry, number, value)))
            numbers += (0, 0)
        else:
            numbers.append(_number(entry, number, params[place], value))
    if len(args) + len(texts) != len(params):
        if len(args) == len(params):
            # One for each parameter: so numbers are wanted.
            place = next(at for at, type_ in enumerate(params) if type_ != "v128" and isinstance(args[at], _TEXT))
            raise _no_number(entry, place + 1, args[place], place)
        text = ", or a text for two i32 in a row (address and length)" if ("i32", "i32") in pairwise(params) else ""
        parameters = f"{len(params):,} parameter{'s' * (len(params) != 1)}"
        given = f"{len(args):,} argument{'s are' if len(args) != 1 else ' is'} given"
        filled = f", where each text stands for two ({len(args) + len(texts):,} in all)" if texts else ""
        hint = f". Give a number for each{text}" if params else ""
        raise UsageError(f"{entry} has {parameters}, and {given}{filled}{hint}")
    if texts or returns is not None:
        return Call(entry, numbers, make_string_call(module, entry, texts, returns))
    return Call(entry, numbers)


_TEXT: Final = (str, bytes, bytearray, memoryview)
"""What is passed as a text, or as a vector."""


def _no_number(entry: Entry, number: int, value: Argument, place: int) -> UsageError:
    """Makes the error for a text where a number is expected."""
    type_ = entry.type.params[place]
    return UsageError(
        f"{entry}: argument {number} is {_kind(value)}, but parameter {place + 1} is {type_}, "
        f"which takes {_ALLOWED[type_]}. Text takes the place of two i32 in a row: address and length"
    )


def _number(entry: Entry, number: int, type_: str, value: Argument) -> Number:
    """Returns a value as the engine takes it."""
    if not isinstance(value, bool):
        if bits := INTEGER_BITS.get(type_):
            if isinstance(value, int) and -(1 << bits - 1) <= value < 1 << bits:
                return value
        elif type_ == "v128":
            if isinstance(value, bytes) and len(value) == _VECTOR_BYTES:
                return value
            if isinstance(value, int) and 0 <= value < 1 << 8 * _VECTOR_BYTES:
                return value.to_bytes(_VECTOR_BYTES, "little")
        elif isinstance(value, int | float):
            found = _float(value)
            if found is not None and (type_ == "f64" or not math.isfinite(found) or abs(found) < F32_OVERFLOW):
                return found
    raise UsageError(f"{entry}: argument {number} is {_kind(value)}; {type_} takes {_ALLOWED[type_]}")


def _float(value: float) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


def _encoded(entry: Entry, number: int, text: str | bytes) -> bytes:
    try:
        data = text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError as problem:
        raise UsageError(
            f"{entry}: argument {number} has a character at {problem.start:,} that UTF-8 cannot encode, half of a "
            "surrogate pair. Mend the text, or pass bytes"
        ) from None
    if len(data) > _MOST_TEXT_BYTES:
        raise UsageError(
            f"{entry}: argument {number} has {len(data):,} bytes; at most {_MOST_TEXT_BYTES:,} can be passed"
        )
    return data


def _kind(value: object) -> str:
    """Says what was given, at a length that does not depend on it."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, bytes):
        return "1 byte" if len(value) == 1 else f"{len(value):,} bytes"
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:
        return f"a whole number of {value.bit_length():,} bits"
    return repr(value) if isinstance(value, int | float | None) else f"of type {type(value).__name__}"
