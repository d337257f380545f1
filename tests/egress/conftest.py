"""Servers of tests of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests._http_server import AUTHORITY, HttpServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server() -> Iterator[HttpServer]:
    """A server without TLS."""
    with HttpServer() as serving:
        yield serving


@pytest.fixture
def secure(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpServer]:
    """A server with TLS, whose authority is trusted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(AUTHORITY))
    with HttpServer(tls=True) as serving:
        yield serving
