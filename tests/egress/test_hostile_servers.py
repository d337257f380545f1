"""Servers that answer with what is none, with too much, too slowly, or with what leads elsewhere.

Holds P-NET-2 and P-NET-3.
"""

from __future__ import annotations

import gzip
import socket
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from stockade import HostRule, Network, Policy
from stockade.egress import FailureCode
from tests._http_server import HttpServer
from tests.egress.test_exchange import LOOPBACK, ask, network, refused

if TYPE_CHECKING:
    from pathlib import Path

OK = "HTTP/1.1 200 OK\r\n"
BRIEF = LOOPBACK.replace(request_time="300ms")


@pytest.mark.parametrize(
    "say",
    [
        "hello",  # HTTP/0.9
        "\r\n\r\n",
        "HTTP/9.9 200 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 99 OK\r\n\r\n",
        "HTTP/1.1 OK\r\n\r\n",
        f"{OK}No colon\r\n\r\n",
        f"{OK}X y: 1\r\n\r\n",
        f"{OK} X: 1\r\n\r\n",
        f"{OK}X: a\0b\r\n\r\n",
        f"{OK}: 1\r\n\r\n",
        f"{OK}Content-Length: -1\r\n\r\n",
        f"{OK}Content-Length: +1\r\n\r\nx",
        f"{OK}Content-Length: 1_0\r\n\r\nx",
        f"{OK}Content-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
        f"{OK}Content-Length: 1, 2\r\n\r\nxy",
        f"{OK}Transfer-Encoding: gzip\r\n\r\nx",
        f"{OK}Transfer-Encoding: gzip, chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        f"{OK}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        f"{OK}Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
        f"{OK}Transfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
        f"{OK}Transfer-Encoding: chunked\r\n\r\n{'f' * 40}\r\nx\r\n0\r\n\r\n",
        f"{OK}Transfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n",
        f"{OK}Transfer-Encoding: chunked\r\n\r\n5\r\nx",
        f"{OK}Content-Length: 5\r\n\r\nx",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_none(server: HttpServer, say: str) -> None:
    """The attack: messages of which others would read something else, or that end early."""
    assert refused(f"{server.url}/raw?say={quote(say)}").code in (FailureCode.PROTOCOL, FailureCode.CONNECT)


@pytest.mark.parametrize(
    ("say", "body"),
    [
        (f"{OK}Content-Length: 2\r\n\r\nhi", b"hi"),
        (f"{OK}Content-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n\r\n", b"hi"),
        (f"{OK}\r\nuntil the end", b"until the end"),
        (f"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n{OK}Content-Length: 2\r\n\r\nhi", b"hi"),
        (f"{OK}Transfer-Encoding: chunked\r\n\r\n2;name=value\r\nhi\r\n0\r\nX: trailer\r\n\r\n", b"hi"),
    ],
)
def test_what_is_unusual_is_read(server: HttpServer, say: str, body: bytes) -> None:
    """The positive twin. What comes behind an answer is nobody's."""
    assert ask(f"{server.url}/raw?say={quote(say)}") == (200, body)


@pytest.mark.parametrize(
    ("before", "piece", "code"),
    [
        ("", "x", FailureCode.PROTOCOL),
        (OK, "X: y\r\n", FailureCode.PROTOCOL),
        (f"{OK}X: ", "y", FailureCode.PROTOCOL),
        ("", "HTTP/1.1 103 Early Hints\r\n\r\n", FailureCode.PROTOCOL),
        (f"{OK}Transfer-Encoding: chunked\r\n\r\n", "0", FailureCode.PROTOCOL),
        (f"{OK}Transfer-Encoding: chunked\r\n\r\n1;", "x", FailureCode.PROTOCOL),
        (f"{OK}Transfer-Encoding: chunked\r\n\r\n0\r\n", "X: y\r\n", FailureCode.PROTOCOL),
        (f"{OK}\r\n", "x", FailureCode.LIMIT),
        (f"{OK}Transfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n", FailureCode.PROTOCOL),
        (f"{OK}Transfer-Encoding: chunked\r\n\r\n", "10\r\n0123456789abcdef\r\n", FailureCode.LIMIT),
    ],
    ids=["status", "headers", "header", "interim", "size", "extension", "trailers", "body", "bytes", "chunks"],
)
def test_what_never_ends_is_not_kept(server: HttpServer, before: str, piece: str, code: FailureCode) -> None:
    """The attack: a server that fills the host's memory, by any part of an answer, or keeps its
    thread busy with chunks of a byte each: 2 MB of it are sent."""
    guest = network(LOOPBACK.replace(received_bytes="1MiB"))

    problem = refused(f"{server.url}/flood?before={quote(before)}&piece={quote(piece)}", guest)

    assert problem.code == code
    received = guest.take_use().received_bytes
    assert received < (300_000 if code == FailureCode.PROTOCOL else 1_200_000)


@pytest.mark.parametrize(
    "say",
    ["H" * 100, f"{OK}X: {'y' * 100}", f"{OK}Content-Length: 100\r\n\r\n{'x' * 100}", "HTTP/1.1 103 Hi\r\n\r\n" * 9],
    ids=["status", "header", "body", "interim"],
)
def test_a_server_that_is_never_silent_is_late_all_the_same(server: HttpServer, say: str) -> None:
    """The attack: a byte now and then, so that nothing ever seems to hang."""
    guest = network(BRIEF)

    # The beginning of it at once, so that it is about the rest.
    problem = refused(f"{server.url}/drip?say={quote(say)}", guest)

    assert (problem.code, str(problem)) == (FailureCode.TIMEOUT, "the request has taken more than 0.3 s")
    (violation,), _ = guest.take_violations()
    assert (violation.kind, violation.subject) == ("request_time", server.url)


def test_a_server_that_says_nothing_of_tls_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a connection that is taken, and a handshake that never begins."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        problem = refused(f"https://localhost:{listening.getsockname()[1]}/", network(BRIEF))

    assert problem.code == FailureCode.TIMEOUT


def test_what_is_compressed_stays_so(server: HttpServer) -> None:
    """The attack: a small answer that becomes a large one in the host. It is the guest's to unpack, in its memory."""
    guest = network(LOOPBACK.replace(received_bytes="1MiB"))

    status, body = ask(f"{server.url}/gzip?bytes=5000000", guest, headers=[("Accept-Encoding", "gzip")])

    assert (status, len(body) < 100_000, len(gzip.decompress(body))) == (200, True, 5_000_000)
    assert guest.take_use().received_bytes < 100_000


def test_a_redirect_does_not_give_up_encryption(secure: HttpServer) -> None:
    """The attack: a redirect from https to http, by which others come to read what was encrypted."""
    with HttpServer() as plain:
        rule = HostRule("localhost", [secure.port, plain.port])
        guest = network(Policy(network=Network(mode="hosts", hosts=[rule])))

        problem = refused(f"{secure.url}/redirect?to={plain.url}/", guest)

        assert (problem.code, str(problem)) == (FailureCode.DENIED, "the policy permits localhost by https only")
        # Where a policy permits both, what is for the one is not told to the other.
        ask(f"{secure.url}/redirect?to={plain.url}/echo", headers=[("Authorization", "mine"), ("Cookie", "a=b")])
        (seen,) = plain.seen
        assert (seen.header("authorization"), seen.header("cookie"), seen.header("referer")) == ([], [], [])


@pytest.mark.parametrize(
    "to", ["ftp://localhost/", "file:///etc/passwd", "javascript:1", "http://user@localhost/", "//"]
)
def test_a_redirect_to_what_is_no_url_leads_nowhere(server: HttpServer, to: str) -> None:
    problem = refused(f"{server.url}/redirect?to={quote(to)}")

    assert problem.code == FailureCode.PROTOCOL
    assert str(problem).startswith("the redirect leads nowhere: ")
    assert server.connections == 1


def test_no_file_gets_the_keys_of_a_connection(
    secure: HttpServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The attack: an environment that has TLS write down how its connections can be read."""
    keys = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))

    assert ask(f"{secure.url}/") == (200, b"hello GET /")
    assert not keys.exists() or "CLIENT" not in keys.read_text()


def test_no_file_of_the_home_folder_adds_a_password(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The attack: a `.netrc` of the user's, whose passwords would go along with what a guest asks."""
    (tmp_path / ".netrc").write_text(
        "machine localhost login user password not-for-guests\ndefault login a password b\n"
    )
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))

    ask(f"{server.url}/")

    assert server.seen[0].header("authorization") == []


def test_a_failure_tells_no_address(server: HttpServer) -> None:
    """The attack: a guest finds out the addresses of a private network by what it is told of failures."""
    guest = network(Policy(network=Network(mode="full")), inner_example="127.0.0.1")

    problem = refused("http://inner.example:1/", guest)

    assert str(problem) == "there is no connection to http://inner.example:1: Connection refused"
