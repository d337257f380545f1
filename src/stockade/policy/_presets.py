"""Policies that come with Stockade."""

from __future__ import annotations

from stockade.errors import PolicyError
from stockade.policy._model import Clock, Filesystem, Limits, Policy, Random

__all__ = ["preset"]

_PRESETS = {
    "default": Policy(),
    # The strict and permissive figures are those of the first seed document (mission item 90).
    "strict": Policy(
        name="strict",
        limits=Limits(
            fuel=5_000_000_000,
            wall_time=5.0,
            idle_time=5.0,
            memory=128_000_000,
            open_files=10,
            read_bytes=10 << 20,
            write_bytes=5 << 20,
            read_rate=1 << 20,
            write_rate=1 << 20,
            file_size=10 << 20,
            files_created=100,
            calls=1_000_000,
            call_rate=10_000,
            random_bytes=1 << 20,
        ),
        clock=Clock(mode="coarse"),
        random=Random(mode="seeded"),
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
            open_files=1_000,
            files_created=None,
            file_size=None,
            write_bytes=None,
            random_bytes=None,
        ),
        filesystem=Filesystem(delete=True),
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
