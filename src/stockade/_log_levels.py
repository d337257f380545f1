"""How much is told by `logging`: what STOCKADE_LOG says."""

from __future__ import annotations

import logging
import os
from typing import Final

from stockade._text import printable

__all__ = ["LOG_LEVELS", "log_level", "set_log_level"]

LOG_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 1,
}
"""What the variable may say."""


def log_level() -> int | None:
    """Returns the level that STOCKADE_LOG says; None where it says nothing, or nothing that is known."""
    return LOG_LEVELS.get(os.environ.get("STOCKADE_LOG", "").lower())


def set_log_level() -> None:
    """Has the loggers of this package tell what STOCKADE_LOG says, and leaves them alone where it says nothing."""
    level = log_level()
    if level is not None:
        logging.getLogger("stockade").setLevel(level)
    elif told := os.environ.get("STOCKADE_LOG"):
        logging.getLogger("stockade").warning(
            "STOCKADE_LOG is %s, which is none of %s", printable(told), ", ".join(LOG_LEVELS)
        )
