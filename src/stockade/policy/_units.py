"""Sizes, times and counts as people write them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from stockade._text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from fractions import Fraction

__all__ = [
    "UNLIMITED",
    "parse_count",
    "parse_rate",
    "parse_seconds",
    "parse_size",
    "shown",
    "size_in_words",
    "write_rate",
    "write_seconds",
    "write_size",
]

_SIZES = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}
_MICROSECONDS = {"": 10**6, "s": 10**6, "ms": 1000, "us": 1, "m": 60 * 10**6, "min": 60 * 10**6, "h": 3600 * 10**6}
_QUANTITY = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
UNLIMITED = "unlimited"


def shown(value: object) -> str:
    """Returns a value of a policy as it is shown in a message: short, and on one line."""
    text = repr(value) if not isinstance(value, int) or value.bit_length() <= 1000 else "a huge number"
    return printable(text, 200)


def _quantity(value: object, units: Mapping[str, int], example: str, scale: int = 1) -> float | Fraction | None:
    """Reads a quantity; the units are counted in parts of one, of which there are `scale`."""
    if value == UNLIMITED:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        given = str(value).lower() if isinstance(value, bool) else shown(value)
        raise ValueError(f"{given} is not a number such as {example}")  # noqa: TRY004 - one error for unfit text
    if isinstance(value, int | float):
        if isinstance(value, int) and value.bit_length() > 1000:
            raise ValueError("the number is too large")
        return value
    match = _QUANTITY.fullmatch(value)
    if match is None or match[2] not in units:
        names = ", ".join(unit for unit in units if unit)
        hint = f" (units: {names})" if names else ""
        raise ValueError(f'{shown(value)} is not a quantity such as {example} or "{UNLIMITED}"{hint}')
    number = match[1].replace("_", "")
    if len(number) > 300:
        raise ValueError(f"{printable(value, 40)!r} is too large")
    # A decimal is exact here, as no float is.
    from fractions import Fraction

    return Fraction(number) * units[match[2]] / scale


def _whole(number: float | Fraction | None) -> int | None:
    if number is None:
        return None
    if not math.isfinite(number) or number != int(number):
        raise ValueError(f"{float(number)} is not a whole number")
    return int(number)


def parse_size(value: object) -> int | None:
    """Reads a number of bytes: `"128MiB"` is 128 * 2**20, `"128MB"` is 128 * 10**6; `"unlimited"` is None."""
    return _whole(_quantity(value, _SIZES, '"128MiB"'))


def parse_rate(value: object) -> int | None:
    """Reads a number of bytes a second: `"1MiB/s"`, or a size; `"unlimited"` is None."""
    return parse_size(value.removesuffix("/s") if isinstance(value, str) else value)


def parse_seconds(value: object) -> float | None:
    """Reads a time in seconds: `"250ms"` is 0.25; `"unlimited"` is None."""
    number = _quantity(value, _MICROSECONDS, '"5s"', 10**6)
    return None if number is None else float(number)


def parse_count(value: object) -> int | None:
    """Reads a count; `"unlimited"` is None."""
    return _whole(_quantity(value, {"": 1}, "1000"))


def write_size(size: int) -> str | int:
    """Writes a number of bytes exactly, with the largest unit in which it is whole: 134217728 is `"128MiB"`."""
    for unit, factor in (("GiB", 1 << 30), ("GB", 10**9), ("MiB", 1 << 20), ("MB", 10**6), ("KiB", 1 << 10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return size


def write_rate(rate: int) -> str | int:
    """Writes a number of bytes a second exactly: 1048576 is `"1MiB/s"`."""
    text = write_size(rate)
    return text if isinstance(text, int) else f"{text}/s"


def write_seconds(seconds: float) -> str | float:
    """Writes a time exactly, with a unit where that is exact: 0.25 is `"250ms"`, 300.0 is `"5min"`."""
    for unit in ("h", "min", "s", "ms", "us"):
        length = _MICROSECONDS[unit]
        count = round(seconds * 10**6 / length)
        if 0 < count < 10_000 and count * length / 10**6 == seconds:
            return f"{count}{unit}"
    return seconds


def size_in_words(size: int) -> str:
    """Shows a number of bytes as whoever wrote it may have: 128 MB is not told as 122.1 MiB. "" below a kilobyte."""
    for unit, factor, decimal, power in (("GiB", 30, "GB", 9), ("MiB", 20, "MB", 6), ("KiB", 10, "kB", 3)):
        if size >= 1 << factor:
            if size % (1 << factor) and not size % 10**power:
                return f"{size // 10**power:,} {decimal}"
            return f"{size / (1 << factor):,.1f}".removesuffix(".0") + f" {unit}"
    return ""
