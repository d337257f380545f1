"""What runs in guests before the user's code, as text."""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["boot_code"]


@cache
def boot_code(name: str) -> str:
    """Returns a program from the folder `boot`.

    Args:
        name: The name of its file.
    """
    return (Path(__file__).parent / "boot" / name).read_text("utf-8")
