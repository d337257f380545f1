"""Where this process was when it imported the package: relative paths in the environment are meant from there."""

import os

__all__ = ["START_FOLDER"]


def _working_folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - pathlib takes longer to import than all of this package
    except OSError:
        return ""  # It was removed.


START_FOLDER = _working_folder()
"""The working folder; empty where there was none."""
