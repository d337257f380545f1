"""Code of users as a type checker sees it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

__all__ = ["refusals"]


def refusals(right: str, wrong: Collection[str], folder: Path) -> list[str]:
    """What mypy says, strict, of each of these lines: one error each, and none of the code before them."""
    code = folder / "users.py"
    code.write_text(right + "\n".join(wrong))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache"), str(code)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    told = [line for line in done.stdout.splitlines() if ": error: " in line]
    first = right.count("\n") + 1
    assert [line.split(":")[1] for line in told] == [str(first + place) for place in range(len(wrong))], done.stdout
    return told
