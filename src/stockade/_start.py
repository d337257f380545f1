"""How this process began: where it was when it imported the package, and what it looked for modules in."""

import os

__all__ = ["LEFT_OUT", "START_FOLDER"]


def _working_folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - pathlib takes longer to import than all of this package
    except OSError:
        return ""  # It was removed.


START_FOLDER = _working_folder()
"""The working folder, from which relative paths in the environment are meant; empty where there was none."""

LEFT_OUT: list[str] = []
"""Where this process looked for modules when it began, and no longer does: the next one begins in the same way."""
