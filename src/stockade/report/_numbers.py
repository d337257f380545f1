"""Numbers as people read them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stockade.report._limits import Unit

__all__ = ["amount", "bar", "count", "duration", "percent", "short_count", "size"]


def size(count: float) -> str:
    """Shows a number of bytes in the largest binary unit that keeps it readable."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(count) < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} EiB" if abs(count) < 1e6 else f"{count:.1e} EiB"


def duration(seconds: float) -> str:
    """Shows a time in a unit that keeps it readable."""
    if abs(seconds) < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if abs(seconds) < 1e5:
        return f"{seconds * 1e3:.1f} ms" if abs(seconds) < 1 else f"{seconds:,.2f} s"
    return f"{short_count(seconds / 86_400)} days"


def count(number: float) -> str:
    """Shows a number."""
    return f"{number:,.10g}"


def short_count(number: float) -> str:
    """Shows a number in few characters."""
    if abs(number) < 1e6:
        return f"{number:,.0f}" if number == int(number) or abs(number) >= 100 else f"{number:,.1f}"
    for factor, letter in ((1e6, "M"), (1e9, "G"), (1e12, "T"), (1e15, "P")):
        if abs(number) < 999.95 * factor:
            return f"{number / factor:,.1f} {letter}"
    return f"{number / 1e18:,.1f} E" if abs(number) < 1e24 else f"{number:.1e}"


def amount(number: float, unit: Unit) -> str:
    """Shows a number of what a limit counts.

    Args:
        number: The number.
        unit: What it counts.
    """
    if not math.isfinite(number):
        return "unknown"
    if unit == "seconds":
        return duration(number)
    if unit == "percent":
        return f"{short_count(round(number))}%"
    if unit in ("bytes", "bytes/s"):
        return size(number) + unit.removeprefix("bytes")
    if unit == "pages/s":
        return f"{short_count(number)} pages/s"
    return short_count(number) + ("/s" if unit == "calls/s" else "")


def percent(share: float) -> str:
    """Shows a share: never 0% for something, nor 100% for less than all."""
    if 0 < share < 0.01:
        return "<1%"
    return f"{math.floor(share * 100)}%"


def bar(share: float, width: int) -> str:
    """Draws a share: never empty for something, nor full for less than all.

    Args:
        share: From 0 to 1.
        width: How many characters all of it takes.
    """
    filled = max(1, math.floor(share * width)) if share > 0 else 0
    return "#" * filled + "." * (width - filled)
