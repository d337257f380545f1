"""Numbers that go into a guest: checked against the function's type before anything runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from stockade._text import printable
from stockade.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.engine import Number
    from stockade.execution._module import Entry

__all__ = ["fit_numbers"]

_F32_OVERFLOW = 2.0**128 - 2.0**103
"""The least number that a 32-bit float rounds to infinity."""

_INTEGER_BITS = {"i32": 32, "i64": 64}


def fit_numbers(entry: Entry, args: Sequence[Number]) -> list[Number]:
    """Checks that arguments fit the parameters of a function.

    Args:
        entry: The function.
        args: A number for each of its parameters.

    Raises:
        UsageError: They do not.
    """
    params = entry.type.params
    shown = printable(entry.name)
    if len(args) != len(params):
        raise UsageError(f"{shown} takes {len(params)} arguments {entry.type}, {len(args)} were given")
    for name in (*params, *entry.type.results):
        if name not in ("i32", "i64", "f32", "f64"):
            raise UsageError(f"{shown} has the type {entry.type}: only numbers can be passed and returned")
    return [_number(shown, place, type_, value) for place, (type_, value) in enumerate(zip(params, args, strict=True))]


def _number(function: str, place: int, type_: str, value: Number) -> Number:
    where = f"argument {place + 1} of {function}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{where} is {value!r}: it must be a number ({type_})")
    bits = _INTEGER_BITS.get(type_)
    if bits is None:
        try:
            number = float(value)
        except OverflowError:
            raise UsageError(f"{where} is too large for {type_}") from None
        if type_ == "f32" and math.isfinite(number) and abs(number) >= _F32_OVERFLOW:
            raise UsageError(f"{where} is {number}: it does not fit f32")
        return number
    if not isinstance(value, int):
        raise UsageError(f"{where} is {value!r}: it must be a whole number ({type_})")
    if not -(1 << bits - 1) <= value < 1 << bits:
        raise UsageError(f"{where} is {value}: it does not fit {type_}")
    return value
