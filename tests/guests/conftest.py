"""Interpreters that the tests share: compiled once, fresh for each run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from stockade import JavaScript, Policy, Python

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENT = Policy().replace(wall_time=60.0)
"""No test depends on how busy the machine is."""


HEAVY = ("cpython-3.15",)
"""Runtimes that take minutes to compile. With STOCKADE_HEAVY set they are tested, too, with the machine code that
`stockade python --prepare` has put into the cache of whoever runs the tests."""


def _runtimes() -> list[str]:
    return [name for name in Python.runtimes() if name not in HEAVY or os.environ.get("STOCKADE_HEAVY")]


@pytest.fixture(scope="session", params=_runtimes())
def python(request: pytest.FixtureRequest) -> Iterator[Python]:
    """Each runtime of Python that is installed."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param in HEAVY:
            patch.delenv("STOCKADE_CACHE")
            patch.delenv("STOCKADE_STATE")
        with Python(PATIENT, runtime=request.param) as language:
            language.prepare()
            yield language


@pytest.fixture(scope="session", params=JavaScript.runtimes())
def javascript(request: pytest.FixtureRequest) -> Iterator[JavaScript]:
    """Each runtime of JavaScript that is installed."""
    with JavaScript(PATIENT, runtime=request.param) as language:
        language.prepare()
        yield language
