"""Folders of a user of one's own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from stockade.system import state_folder, user_secret

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

__all__ = ["use_state"]


def use_state(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a folder that does not exist yet be the state folder.

    The secret in it is that of all tests: machine code that another one has signed is none for them, and theirs is none
    there.
    """
    shared = state_folder()
    assert shared is not None
    user_secret(shared)
    folder.mkdir(mode=0o700)
    shutil.copy(shared / "cache.key", folder)
    monkeypatch.setenv("STOCKADE_STATE", str(folder))
