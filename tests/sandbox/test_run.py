"""The main path: a guest runs and is reported on."""

from __future__ import annotations

import pytest

import stockade
from tests.conftest import HELLO, wat

pytestmark = pytest.mark.usefixtures("everywhere")


def test_hello_world_is_captured_and_reported() -> None:
    """Hello world is captured and reported."""
    report = stockade.Sandbox().run(wat(HELLO))

    assert report.outcome is stockade.Outcome.OK
    assert report.ok
    assert report.exit_code == 0
    assert report.stdout == b"hello world\n"
    assert report.stderr == b""
    assert report.usage.calls == {"fd_write": 1}
    assert report.usage.stdout_bytes == 12
