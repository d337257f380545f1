"""Policies that come with Stockade."""

from __future__ import annotations

from stockade.errors import PolicyError
from stockade.policy._model import Limits, Policy

__all__ = ["preset"]

_PRESETS = {
    "default": Policy(),
    # The strict and permissive figures are those of the first seed document (mission item 90).
    "strict": Policy(
        name="strict",
        limits=Limits(fuel=5_000_000_000, wall_time=5.0, memory=128_000_000),
    ),
    "permissive": Policy(
        name="permissive",
        limits=Limits(
            fuel=100_000_000_000,
            wall_time=300.0,
            memory=1_024_000_000,
            table_elements=1_000_000,
            memories=4,
            tables=16,
            stack=1 << 20,
        ),
    ),
}


def preset(name: str) -> Policy:
    """Returns a preset by its name.

    Raises:
        PolicyError: There is none of that name.
    """
    try:
        return _PRESETS[name]
    except KeyError:
        raise PolicyError(f"there is no preset {name!r}: choose {', '.join(sorted(_PRESETS))}") from None
