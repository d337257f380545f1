"""Plots over the time of a run, as SVG: a few lines and marks, which need no library, no script and no font."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from stockade.report._markup import Markup, element, group
from stockade.report._numbers import amount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.report._limits import Unit

__all__ = ["Mark", "Series", "plot", "time_line"]

_WIDTH: Final = 720
_LEFT, _RIGHT = 78, 12
_TOP, _HEIGHT, _BELOW = 16, 120, 22
_LANE: Final = 26

_MOST_POINTS: Final = 600
"""More can not be told apart."""


class Series(NamedTuple):
    """A line in a plot: what it is called, and its points, from left to right."""

    name: str
    points: Sequence[tuple[float, float]]


class Mark(NamedTuple):
    """Something that happened: when, in seconds, what is said of it, and what it is, as the style sheet calls it."""

    at: float
    text: str
    kind: str


def plot(
    title: str, unit: Unit, series: Sequence[Series], seconds: float, limit: float | None, marks: Sequence[Mark]
) -> Markup:
    """Draws lines over time.

    Args:
        title: What is shown, for those who cannot see it.
        unit: What the numbers count.
        series: The lines.
        seconds: How long the run took.
        limit: What is allowed; it is drawn where the lines come near it.
        marks: What happened meanwhile.
    """
    seconds = _span(seconds)
    lines = [Series(one.name, _usable(one.points, seconds)) for one in series]
    top = max((value for one in lines for _, value in one.points), default=0.0)
    shows_limit = limit is not None and math.isfinite(limit) and 0 < limit <= 4 * top
    if shows_limit and limit is not None:
        top = max(top, limit)
    ticks = _ticks(top, binary=unit == "bytes", whole=unit in ("count", "units"))
    top = ticks[-1]
    height = _TOP + _HEIGHT + _BELOW

    def x(at: float) -> float:
        return _x(at, seconds)

    def y(value: float) -> float:
        return _TOP + _HEIGHT * (1 - value / top)

    parts = [element("title", title)]
    for tick in ticks:
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(element("text", amount(tick, unit), x=_LEFT - 6, y=y(tick) + 4, class_="label end"))
    parts += _time_axis(seconds, _TOP + _HEIGHT)
    parts += [
        element("line", x1=x(mark.at), x2=x(mark.at), y1=_TOP, y2=_TOP + _HEIGHT, class_=f"mark {mark.kind}")
        for mark in marks
    ]
    if shows_limit and limit is not None:
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(limit), y2=y(limit), class_="limit"))
        parts.append(element("text", "limit", x=_WIDTH - _RIGHT - 4, y=y(limit) - 4, class_="label end limit-label"))
    for number, one in enumerate(lines):
        told = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in one.points)
        parts.append(element("polyline", points=told, class_=f"line s{number}"))
    return _svg(height, title, parts)


def time_line(title: str, marks: Sequence[Mark], seconds: float) -> Markup:
    """Draws what happened, and when.

    Args:
        title: What is shown.
        marks: What happened.
        seconds: How long the run took.
    """
    seconds = _span(seconds)
    parts = [element("title", title)]
    middle = _TOP + _LANE / 2
    parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=middle, y2=middle, class_="grid"))
    parts += _time_axis(seconds, _TOP + _LANE)
    for mark in marks:
        at = _x(mark.at, seconds)
        parts.append(element("path", element("title", mark.text), d=_shape(at, middle, mark.kind), class_=mark.kind))
    return _svg(_TOP + _LANE + _BELOW, title, parts)


def _svg(height: float, title: str, parts: Sequence[Markup]) -> Markup:
    return element("svg", group(*parts), viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=title)


def _shape(x: float, y: float, kind: str) -> str:
    """A diamond for what ended the run, a square for what was let through, a triangle for an alert, else a circle."""
    if kind == "stop":
        return f"M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8-8z"
    if kind == "audit":
        return f"M{x - 5:.1f} {y - 5:.1f}h10v10h-10z"
    if kind == "alert":
        return f"M{x:.1f} {y - 7:.1f}l7 12h-14z"
    return f"M{x - 5:.1f} {y:.1f}a5 5 0 1 0 10 0a5 5 0 1 0-10 0z"


def _time_axis(seconds: float, y: float) -> list[Markup]:
    parts = [element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="axis")]
    ticks = [tick for tick in _ticks(seconds) if tick <= seconds * 1.0001]
    for tick in ticks:
        at = _x(tick, seconds)
        side = "start" if tick == 0 else "end" if at > _WIDTH - _RIGHT - 20 else "middle"
        parts.append(element("text", amount(tick, "seconds") if tick else "0", x=at, y=y + 15, class_=f"label {side}"))
    return parts


def _x(at: float, seconds: float) -> float:
    reached = min(max(at, 0.0), seconds) if math.isfinite(at) else seconds
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * reached / seconds


def _span(seconds: float) -> float:
    """A time that can be drawn, also where the run took none."""
    return seconds if math.isfinite(seconds) and seconds > 1e-9 else 1e-9


def _usable(points: Sequence[tuple[float, float]], seconds: float) -> list[tuple[float, float]]:
    """Points that can be drawn, and no more than can be seen."""
    step = max(1, math.ceil(len(points) / _MOST_POINTS))
    kept = [*points[:-1:step], *points[-1:]]
    found = []
    latest = 0.0
    for at, value in kept:
        if math.isfinite(at) and math.isfinite(value):
            latest = min(max(latest, at), seconds)
            found.append((latest, max(0.0, float(value))))
    return found


def _ticks(top: float, *, binary: bool = False, whole: bool = False) -> list[float]:
    """Round numbers from 0 to at least a given one: four or five of them."""
    if top <= 0:
        return [0.0, 1.0]
    if binary:
        step = 2.0 ** math.ceil(math.log2(max(top, 4) / 4))
    else:
        rough = top / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(1.0, step)
    ticks = [step * number for number in range(math.ceil(top / step * 0.999999) + 1)]
    assert all(a < b for a, b in pairwise(ticks)), "a scale rises"
    return ticks
