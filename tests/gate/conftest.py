"""What tests of gates share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests._folders import use_state

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for what is kept aside."""
    folder = tmp_path / "state"
    use_state(folder, monkeypatch)
    return folder
