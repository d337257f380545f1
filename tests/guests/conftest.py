"""Interpreters that the tests share: compiled once, fresh for each run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stockade import JavaScript, Policy, Python

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENT = Policy().replace(wall_time=60.0)
"""No test depends on how busy the machine is."""


@pytest.fixture(scope="session", params=Python.runtimes())
def python(request: pytest.FixtureRequest) -> Iterator[Python]:
    """Each runtime of Python that is installed."""
    with Python(PATIENT, runtime=request.param) as language:
        language.prepare()
        yield language


@pytest.fixture(scope="session", params=JavaScript.runtimes())
def javascript(request: pytest.FixtureRequest) -> Iterator[JavaScript]:
    """Each runtime of JavaScript that is installed."""
    with JavaScript(PATIENT, runtime=request.param) as language:
        language.prepare()
        yield language
