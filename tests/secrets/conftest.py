"""Where guests run that are given secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from stockade.execution import Isolation


@pytest.fixture(params=["inprocess", "process"])
def isolation(request: pytest.FixtureRequest) -> Isolation:
    """Where runs happen: a test that asks for this is done for each."""
    name: Literal["inprocess", "process"] = request.param
    return name
