"""Which keywords languages take, and which their runs and sessions: so that what is misplaced is told."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LANGUAGE_KEYWORDS", "of_languages", "of_runs"]

LANGUAGE_KEYWORDS = (
    "runtime",
    "preload",
    "isolation",
    "packages",
    "pool_size",
    "monitoring",
    "trace",
    "audit",
    "credentials",
    "secrets",
)
"""What a language takes when it is made."""


@cache
def of_languages(language: str) -> Mapping[str, str]:
    """Returns which keywords a language takes when it is made."""
    return {name: f"{language}({name}=...)" for name in LANGUAGE_KEYWORDS} | {
        name: f"run({name}=...) of the session" for name in ("files", "inputs", "args", "stdin", "collect")
    }


@cache
def of_runs(language: str) -> Mapping[str, str]:
    """Returns which keywords its runs and sessions take."""
    names = ("files", "inputs", "args", "stdin", "env", "collect", "on_stdout", "on_stderr")
    return {name: f"{language}.run({name}=...)" for name in names} | {"idle": f"{language}.session(idle=...)"}
