"""Requests against real servers on this machine.

Holds P-NET-2 and P-NET-3.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING, Any

import pytest

from stockade import HostRule, Network, Policy
from stockade.egress import Client, FailureCode, GuestNetwork, Request, RequestFailed
from tests._http_server import HttpServer

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOPBACK = Policy(network=Network(mode="loopback"))


def names(**known: str) -> Client:
    """A stub of DNS: names and their addresses, several with spaces between them."""

    async def resolve(name: str, port: int, lookups: object) -> Sequence[Any]:
        if (found := known.get(name.replace(".", "_"))) is None:
            raise OSError("no such name")
        return [ipaddress.ip_address(address) for address in found.split()]

    return Client(resolve)


LOCAL = {"localhost": "127.0.0.1", "a_localhost": "127.0.0.1", "b_localhost": "127.0.0.1"}


def network(policy: Policy = LOOPBACK, **known: str) -> GuestNetwork:
    return GuestNetwork(names(**(known or LOCAL)), policy, lambda: 0.5)


async def fetched(guest: GuestNetwork, request: Request) -> tuple[int, bytes]:
    number, exchange = guest.begin(request)
    answer = await exchange.answered()
    body = b""
    while piece := await exchange.read(1 << 16):
        body += piece
    guest.close(number)
    return answer.status, body


def ask(url: str, guest: GuestNetwork | None = None, method: str = "GET", **more: Any) -> tuple[int, bytes]:
    return asyncio.run(fetched(guest or network(), Request(method, url, **more)))


def refused(url: str, guest: GuestNetwork | None = None, method: str = "GET", **more: Any) -> RequestFailed:
    with pytest.raises(RequestFailed) as problem:
        ask(url, guest, method, **more)
    return problem.value


def test_a_request_is_answered(server: HttpServer) -> None:
    """The positive twin of all refusals."""
    assert ask(f"{server.url}/some?q=1") == (200, b"hello GET /some")
    assert server.connections == 1
    assert server.seen[0].header("host") == [f"localhost:{server.port}"]


def test_a_request_is_answered_over_tls(secure: HttpServer) -> None:
    assert ask(f"{secure.url}/some") == (200, b"hello GET /some")


def test_an_authority_that_this_machine_does_not_trust_is_none() -> None:
    """The attack: somebody in the middle, with a certificate of their own making."""
    with HttpServer(tls=True) as server:
        problem = refused(f"{server.url}/")

    assert (problem.code, server.seen) == (FailureCode.TLS, [])
    assert str(problem).startswith("the host does not prove its name: ")


def test_a_certificate_for_another_name_is_none(secure: HttpServer) -> None:
    problem = refused(f"https://c.localhost:{secure.port}/", network(c_localhost="127.0.0.1"))

    assert (problem.code, secure.seen) == (FailureCode.TLS, [])


def test_bodies_go_both_ways(server: HttpServer) -> None:
    status, body = ask(f"{server.url}/echo", method="POST", body=b"sent " * 100_000, headers=[("X-Mine", "1")])

    assert status == 200
    assert b"sent sent" in body
    assert server.seen[0].header("x-mine") == ["1"]
    assert server.seen[0].header("content-length") == ["500000"]
    assert ask(f"{server.url}/chunked") == (200, b"one two three")
    assert ask(f"{server.url}/large?bytes=3000000") == (200, b"x" * 3_000_000)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (
            "http://other.example:{port}/",
            "the policy permits this machine only, and other.example is none of its names",
        ),
        (
            "http://169.254.169.254:{port}/",
            "the policy permits this machine only, and 169.254.169.254 is none of its names",
        ),
        ("http://evil.localhost:{port}/", "evil.localhost leads to an address which is not this machine"),
        ("http://both.localhost:{port}/", "both.localhost leads to an address which is not this machine"),
        ("http://meta.localhost:{port}/", "meta.localhost leads to an address where clouds keep credentials"),
    ],
)
def test_what_is_refused_opens_no_socket(server: HttpServer, url: str, reason: str) -> None:
    """The attack: names that lead elsewhere, also where only the second of two addresses does."""
    guest = network(
        evil_localhost="10.0.0.1",
        both_localhost="127.0.0.1 10.0.0.1",
        meta_localhost="169.254.169.254",
        localhost="127.0.0.1",
    )

    problem = refused(url.format(port=server.port), guest)

    assert (problem.code, str(problem)) == (FailureCode.DENIED, reason)
    assert server.connections == 0
    (violation,), _ = guest.take_violations()
    assert (violation.kind, violation.action, violation.field) == ("network", "deny", "network.mode")


@pytest.mark.parametrize(
    ("method", "path", "subject"),
    [
        ("DELETE", "/v1/items", "DELETE {origin}"),
        ("G\x1b[2JT", "/v1", "G\\x1b[2JT {origin}"),
        ("X" * 50, "/v1", f"{'X' * 20}… (50 long) {{origin}}"),
        ("GET", "/private?token=hunter2", "{origin}/private"),
        ("GET", "/%1b" * 2, None),
        ("GET", "/" + "a" * 300, "{origin}/" + "a" * 119 + "… (301 long)"),
        ("GET", "/redirect?to=/with-a-credential", "{origin}"),
    ],
)
def test_a_report_tells_which_method_or_path_was_refused(
    server: HttpServer, method: str, path: str, subject: str | None
) -> None:
    """The attack: a guest that tells a secret or steers a terminal by what it asks for: the query and the place of a
    redirect are not told, the rest is short and escaped."""
    rule = HostRule("a.localhost", [server.port], methods=["GET"], paths=["/v1", "/redirect"], secure=False)
    guest = network(Policy(network=Network(mode="hosts", hosts=[rule])))
    origin = f"http://a.localhost:{server.port}"

    problem = refused(f"{origin}{path}", guest, method)

    found, _ = guest.take_violations()
    if subject is None:
        # It is no URL at all.
        assert (problem.code, found) == (FailureCode.INVALID, ())
    else:
        assert problem.code == FailureCode.DENIED
        assert [violation.subject for violation in found] == [subject.format(origin=origin)]


def test_a_name_does_not_have_thousands_connected_to() -> None:
    """The attack: a name that stands for many hosts, so that one request knocks at all of them."""
    full = Policy(network=Network(mode="full"))
    for last in (8, 9):
        many = network(full, many_example=" ".join(f"127.0.1.{number}" for number in range(1, last + 1)))
        with HttpServer(host=f"127.0.1.{last}") as server:
            url = f"http://many.example:{server.port}/"
            if last == 8:
                assert ask(url, many)[0] == 200
            else:
                assert refused(url, many).code == FailureCode.CONNECT
                assert server.connections == 0


def test_a_redirect_is_checked_anew(server: HttpServer) -> None:
    """The attack: a host that may be asked sends the guest on to one that may not."""
    with HttpServer() as other:
        rule = HostRule("a.localhost", [server.port], secure=False)
        guest = network(Policy(network=Network(mode="hosts", hosts=[rule])))

        problem = refused(f"http://a.localhost:{server.port}/redirect?to=http://b.localhost:{other.port}/", guest)

    assert (problem.code, str(problem)) == (FailureCode.DENIED, "the policy does not name b.localhost")
    assert (server.connections, other.connections) == (1, 0)


def test_credentials_of_the_guest_stay_with_the_host_that_they_are_for(server: HttpServer) -> None:
    """The attack: a redirect to another host, which is given the header for the first one."""
    headers = [("Authorization", "Bearer mine"), ("Cookie", "a=b"), ("X-Other", "1")]

    ask(f"http://a.localhost:{server.port}/redirect?to=http://b.localhost:{server.port}/echo", headers=headers)
    ask(f"http://a.localhost:{server.port}/redirect?to=/echo", headers=headers)

    first, elsewhere, again, same = server.seen
    assert (
        first.header("authorization")
        == again.header("authorization")
        == same.header("authorization")
        == ["Bearer mine"]
    )
    assert elsewhere.header("authorization") == elsewhere.header("cookie") == []
    assert elsewhere.header("x-other") == ["1"]


@pytest.mark.parametrize(
    ("status", "method", "after"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "PUT", "GET"),
        (307, "POST", "POST"),
        (308, "PUT", "PUT"),
        (303, "HEAD", "HEAD"),
    ],
)
def test_redirects_keep_what_they_should(server: HttpServer, status: int, method: str, after: str) -> None:
    ask(f"{server.url}/redirect?status={status}&to=/echo", method=method, body=b"" if method == "HEAD" else b"body")

    assert server.seen[1].method == after
    assert server.seen[1].body == (b"body" if after in ("POST", "PUT") else b"")


def test_a_redirect_may_be_left_to_the_guest(server: HttpServer) -> None:
    assert ask(f"{server.url}/redirect?to=/echo", follow=False) == (302, b"moved")


def test_circles_of_redirects_end(server: HttpServer) -> None:
    problem = refused(f"{server.url}/circle")

    assert (problem.code, str(problem)) == (FailureCode.PROTOCOL, "there are more than 10 redirects")
    assert server.connections == 11


@pytest.mark.parametrize(
    "headers",
    [
        [("X", "a\r\nEvil: 1")],
        [("X\r\nEvil", "1")],
        [("X Y", "1")],
        [("", "1")],
        [("X", "\0")],
        [("X", "\u0142")],
        [("Host", "evil.example")],
        [("X", "y" * 70_000)],
    ],
)
def test_no_header_holds_another(server: HttpServer, headers: list[tuple[str, str]]) -> None:
    """The attack: a line break in a header, which would begin another one, or another request; another host's name."""
    assert refused(f"{server.url}/", headers=headers).code == FailureCode.INVALID
    assert server.seen == []


def test_spaces_around_a_value_are_none_of_it(server: HttpServer) -> None:
    """The attack: a value of spaces alone, with which no request can be written."""
    assert ask(f"{server.url}/", headers=[("X-Empty", " \t"), ("X-Mine", " 1 ")])[0] == 200
    assert (server.seen[0].header("x-empty"), server.seen[0].header("x-mine")) == ([""], ["1"])


def test_how_a_message_is_sent_is_not_for_the_guest_to_say(server: HttpServer) -> None:
    """The attack: lengths and codings that differ from what is sent, by which one request becomes two."""
    headers = [
        ("Transfer-Encoding", "chunked"),
        ("Content-Length", "3"),
        ("Connection", "Upgrade"),
        ("Upgrade", "h2c"),
        ("Host", f"localhost:{server.port}"),
    ]

    ask(f"{server.url}/", method="POST", body=b"whole", headers=headers)

    seen = server.seen[0]
    assert seen.header("transfer-encoding") == seen.header("upgrade") == []
    assert (seen.header("content-length"), seen.header("connection"), len(seen.header("host"))) == (["5"], ["close"], 1)


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "get", "G T", "GET\r\nX: 1", ""])
def test_other_methods_are_refused(server: HttpServer, method: str) -> None:
    assert refused(f"{server.url}/", method=method).code == FailureCode.DENIED
    assert server.connections == 0


@pytest.mark.parametrize(
    ("field", "value", "path", "code"),
    [
        ("requests", 0, "/", FailureCode.LIMIT),
        ("connections", 0, "/", FailureCode.LIMIT),
        ("sent_bytes", 50, "/", FailureCode.LIMIT),
        ("received_bytes", 50, "/large?bytes=100", FailureCode.LIMIT),
        ("request_time", 0.2, "/wait?seconds=60", FailureCode.TIMEOUT),
    ],
)
def test_limits_hold(server: HttpServer, field: str, value: float, path: str, code: FailureCode) -> None:
    guest = network(LOOPBACK.replace(**{field: value}))  # type: ignore[arg-type]

    problem = refused(f"{server.url}{path}", guest)

    assert problem.code == code
    (violation,), _ = guest.take_violations()
    assert (violation.kind, violation.field, violation.limit) == (field, f"limits.{field}", value)
    if field != "received_bytes":
        assert guest.take_use().received_bytes == 0


def test_what_is_used_is_counted(server: HttpServer) -> None:
    guest = network()

    ask(f"{server.url}/large?bytes=100000", guest, "POST", body=b"y" * 1000)

    sent, received, connections = guest.take_use()
    assert 1000 < sent < 1500
    assert 100_000 < received < 100_500
    assert connections == 1
    assert guest.take_use() == (0, 0, 0)


def test_a_guest_may_wait_for_less_than_its_policy_permits(server: HttpServer) -> None:
    guest = network()

    problem = refused(f"{server.url}/wait?seconds=60", guest, seconds=0.1)

    assert (problem.code, str(problem)) == (FailureCode.TIMEOUT, "no answer within 0.1 s")
    assert guest.take_violations() == ((), 0)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/half", FailureCode.CONNECT),
        ("/raw?say=nonsense%0D%0A%0D%0A", FailureCode.PROTOCOL),
        ("/raw?say=", FailureCode.CONNECT),
        ("/raw?say=HTTP/1.1%20200%20OK%0D%0AContent-Length:%20x%0D%0A%0D%0A", FailureCode.PROTOCOL),
    ],
)
def test_broken_answers_are_told(server: HttpServer, path: str, code: FailureCode) -> None:
    problem = refused(f"{server.url}{path}")

    assert problem.code in (code, FailureCode.PROTOCOL)


def test_endless_heads_are_none(server: HttpServer) -> None:
    """The attack: a server that never ends the head of its answer, and fills the host's memory."""
    problem = refused(f"{server.url}/raw?say=HTTP/1.1%20200%20OK%0D%0AX:%20" + "x" * 60_000)
    assert problem.code in (FailureCode.PROTOCOL, FailureCode.CONNECT)


def test_nobody_is_there() -> None:
    with HttpServer() as server:
        url = server.url

    assert refused(url).code == FailureCode.CONNECT
    assert refused("http://nobody.localhost/").code == FailureCode.NAME


def test_proxies_of_the_environment_are_ignored(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: an environment that leads what guests send past the address that was checked."""
    with HttpServer() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert ask(f"{server.url}/")[0] == 200
        assert proxy.connections == 0


def test_ending_closes_connections(server: HttpServer) -> None:
    async def begin() -> None:
        guest = network()
        _, exchange = guest.begin(Request("GET", f"{server.url}/wait?seconds=60"))
        while not server.seen:
            await asyncio.sleep(0.01)
        guest.end()
        with pytest.raises(RequestFailed) as problem:
            await exchange.answered()
        assert problem.value.code == FailureCode.HANDLE

    asyncio.run(begin())
    while server.open:
        pass


def test_an_answer_that_nobody_takes_waits(server: HttpServer) -> None:
    """The attack: a guest that asks for much and takes nothing, so that the host keeps it."""

    async def begin() -> None:
        guest = network()
        _, exchange = guest.begin(Request("GET", f"{server.url}/large?bytes=50000000"))
        await exchange.answered()
        await asyncio.sleep(0.3)
        assert guest.take_use().received_bytes < 2_000_000
        size = 0
        while piece := await exchange.read(1 << 20):
            size += len(piece)
        assert size == 50_000_000
        guest.end()

    asyncio.run(begin())
