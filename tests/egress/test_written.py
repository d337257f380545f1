"""Requests as they are sent: whatever a guest gives, a server reads one request, to the host that was decided about.

Holds P-NET-1.
"""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.egress import BadUrl, RequestFailed, parse_url
from stockade.egress._headers import checked_headers, headers_sent
from stockade.egress._messages import written
from stockade.policy import METHODS
from tests._examples import examples

_ODD = st.sampled_from(
    [
        "\r\n",
        "\n",
        "\r",
        "\0",
        " ",
        "\t",
        ":",
        "GET / HTTP/1.1",
        "http://evil.example/",
        "chunked",
        "0",
        "\x85",
        "\u2028",
    ]
)
_TEXTS = st.lists(_ODD | st.text(max_size=6), max_size=6).map("".join)
_NAMES = _TEXTS | st.sampled_from(
    [
        *("Host", "hOST", "Content-Length", "Transfer-Encoding", "transfer-encoding ", "Connection", "Upgrade", "TE"),
        *("Expect", "Trailer", "Proxy-Connection", "Content_Length", "X", "Keep-Alive", "HTTP2-Settings", ":authority"),
    ]
)


def _read(data: bytes) -> tuple[list[h11.Request], bytes, bytes]:
    """The requests that a server reads, the bodies, and what is left over."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    requests, body = [], b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            requests.append(event)
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            assert isinstance(event, h11.EndOfMessage), event
            return requests, body, connection.trailing_data[0]


@settings(max_examples=examples(400))
@given(
    st.sampled_from(METHODS),
    _TEXTS,
    st.lists(st.tuples(_NAMES, _TEXTS), max_size=5),
    st.binary(max_size=20) | st.just(b"0\r\n\r\nGET /evil HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
)
def test_one_request_is_one(method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> None:
    """The attack: a path, headers or a body by which a server reads two requests, or one to another host."""
    try:
        target = parse_url(f"http://api.example.com/{path}")
        sent = headers_sent(checked_headers(headers), target, body, has_body=method in ("POST", "PUT", "PATCH"))
        _, data = written(method, target, sent, body)
    except (BadUrl, RequestFailed):
        return
    requests, found, rest = _read(data)

    (request,) = requests
    names = [name for name, _ in request.headers]
    assert (found, rest) == (body, b"")
    assert dict(request.headers)[b"host"] == b"api.example.com"
    assert names.count(b"host") == names.count(b"connection") == 1
    assert b"transfer-encoding" not in names
    assert request.target.startswith(b"/")
    assert request.method == method.encode()
    assert data.count(b"\r\n\r\n") - body.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize("path", ["http://evil.example/", "//evil.example/", "*", "@evil.example/", "..//evil.example"])
def test_no_target_names_a_host(path: str) -> None:
    """The attack: a path that a proxy or server takes for a whole URL."""
    target = parse_url(f"https://api.example.com/{path}")
    _, data = written("GET", target, headers_sent((), target, b"", has_body=False), b"")

    line = data.partition(b"\r\n")[0].split(b" ")
    assert line[0] == b"GET"
    assert line[1].startswith(b"/")
    assert line[2] == b"HTTP/1.1"
    assert b"\r\nHost: api.example.com\r\n" in data
