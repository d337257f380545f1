"""Names looked up, at a real name server of this machine that answers from a script.

Holds P-NET-2.
"""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from typing import TYPE_CHECKING, Any

import pytest

from stockade import HostRule, Network, Policy, Sandbox, UsageError
from stockade.egress import Client, FailureCode, GuestNetwork, Request, RequestFailed
from stockade.egress import _resolver as resolver
from tests._dns_server import DnsServer
from tests._http_server import HttpServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FULL = Policy(network=Network(mode="full"))
PORTS = Policy(network=Network(mode="ports", ports=[443]))


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[DnsServer]:
    with DnsServer() as serving:
        monkeypatch.setenv("STOCKADE_NAMESERVERS", serving.address)
        yield serving


def looked_up(name: str) -> list[str]:
    return sorted(map(str, asyncio.run(Client().resolve(name, 443, resolver.Lookups()))))


def became(url: str, policy: Policy = FULL, *, guest: GuestNetwork | None = None, **more: Any) -> tuple[int, str]:
    """Status and nothing, or the code of the failure and why."""

    asking = guest or GuestNetwork(Client(), policy, lambda: 0.0)

    async def ask() -> tuple[int, str]:
        try:
            _, exchange = asking.begin(Request("GET", url, **more))
            return (await exchange.answered()).status, ""
        except RequestFailed as problem:
            return int(problem.code), str(problem)
        finally:
            asking.end()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("says", "addresses"),
    [
        ("1.2.3.4", ["1.2.3.4"]),
        ("2606:4700::1 1.2.3.4 5.6.7.8", ["1.2.3.4", "2606:4700::1", "5.6.7.8"]),
        ("@b.example", ["1.1.1.1", "2606:4700::b"]),
        ("@chain.example", ["1.1.1.1", "2606:4700::b"]),
        ("forged 1.2.3.4", ["1.2.3.4"]),
        ("truncated 1.2.3.4", ["1.2.3.4"]),
        ("empty", []),
        ("@empty.example", []),
    ],
)
def test_all_addresses_of_a_name_are_found(names: DnsServer, says: str, addresses: list[str]) -> None:
    """Of both kinds, through other names, and past an answer that somebody else has sent."""
    names.names = {
        "a.example": says,
        "b.example": "1.1.1.1 2606:4700::b",
        "chain.example": "@two.example",
        "two.example": "@b.example",
        "empty.example": "",
    }
    assert looked_up("a.example") == addresses


@pytest.mark.parametrize("says", ["nxdomain", "servfail", "@a.example", "@loop.example"])
def test_what_is_no_answer_is_no_address(names: DnsServer, server: HttpServer, says: str) -> None:
    """The attack: a name server that fails, or leads around in circles."""
    names.names = {"a.example": says, "loop.example": "@a.example"}

    code, reason = became(f"http://a.example:{server.port}/")

    assert (code, reason) == (FailureCode.NAME, "the name a.example stands for no address")
    assert server.connections == 0


def test_a_name_server_that_does_not_answer_is_not_waited_for(names: DnsServer, server: HttpServer) -> None:
    """The attack: a name whose own server answers slowly, or never."""
    names.names = {"a.example": "silent"}

    code, reason = became(f"http://a.example:{server.port}/", FULL.replace(request_time="200ms"))
    given_up = became(f"http://a.example:{server.port}/", seconds=0.1)

    assert (code, reason) == (FailureCode.TIMEOUT, "the request has taken more than 0.2 s")
    assert given_up == (FailureCode.TIMEOUT, "no answer within 0.1 s")
    assert server.connections == 0


def test_nonsense_of_a_name_server_is_no_address(names: DnsServer, server: HttpServer) -> None:
    """The attack: answers that are none, with the right number and with another one."""
    names.names = {"a.example": "garbage"}

    code, _ = became(f"http://a.example:{server.port}/", FULL.replace(request_time="300ms"))

    assert code in (FailureCode.NAME, FailureCode.TIMEOUT)
    assert server.connections == 0


def test_a_name_that_leads_here_is_reached(names: DnsServer, server: HttpServer) -> None:
    """The positive twin of those below, where the policy permits all: the name is asked for once for each kind."""
    names.names = {"any.example": "@other.example", "other.example": "127.0.0.1"}

    assert became(f"http://any.example:{server.port}/") == (200, "")
    assert server.connections == 1
    assert sorted(names.asked) == [("any.example", "A"), ("any.example", "AAAA")]


@pytest.mark.parametrize(
    ("says", "address", "reason"),
    [
        ("127.0.0.1", "127.0.0.1", "which is this machine"),
        ("1.2.3.4 127.0.0.1", "127.0.0.1", "which is this machine"),
        ("@inner.example", "127.0.0.1", "which is this machine"),
        ("1.2.3.4 ::1", "::1", "which is this machine"),
        ("::ffff:127.0.0.1", "127.0.0.1", "which is this machine"),
        ("64:ff9b::7f00:1", "64:ff9b::7f00:1", "which is this machine"),
        ("0.0.0.0", "0.0.0.0", "which is no host's"),
        ("::", "::", "which is no host's"),
        ("10.0.0.1", "10.0.0.1", "which is of a private network"),
        ("1.2.3.4 169.254.169.254", "169.254.169.254", "where clouds keep credentials"),
    ],
)
def test_a_name_that_leads_to_what_is_private_is_refused(
    names: DnsServer, says: str, address: str, reason: str
) -> None:
    """The attack: rebinding. A public name stands for an address of this machine, also as one among several, where a
    server listens on the very port that the policy permits. The report says where it leads; the guest, which could find
    out the addresses of a private network, is not told."""
    names.names = {"any.example": says, "inner.example": "@deep.example", "deep.example": "127.0.0.1"}
    with HttpServer(host=None) as server:
        guest = GuestNetwork(Client(), Policy(network=Network(mode="ports", ports=[server.port])), lambda: 0.0)

        found = became(f"http://any.example:{server.port}/", guest=guest)

        assert found == (FailureCode.DENIED, f"any.example leads to an address {reason}")
        assert server.connections == 0
        (violation,), _ = guest.take_violations()
        assert violation.subject == f"http://any.example:{server.port} ({address})"


def test_what_a_name_stands_for_later_is_of_no_use(names: DnsServer) -> None:
    """The attack: rebinding by time. Each answer is another one: a request looks once, and what was checked is what is
    connected to; the next one looks anew."""
    names.names = {"any.example": ["127.0.0.2", "127.0.0.3", "127.0.0.4"], "other.example": "127.0.0.5"}
    with HttpServer(host=None) as server:
        assert became(f"http://any.example:{server.port}/") == (200, "")
        assert became(f"http://any.example:{server.port}/redirect?to=http://other.example:{server.port}/") == (200, "")

        assert server.reached == ["127.0.0.2", "127.0.0.3", "127.0.0.5"]
    assert [name for name, kind in names.asked if kind == "A"] == ["any.example", "any.example", "other.example"]


def test_names_of_this_machine_are_never_asked_for(names: DnsServer, server: HttpServer) -> None:
    """The attack: a name server that says where `localhost` is."""
    names.names = {"localhost": "10.0.0.1", "a.localhost": "10.0.0.1"}
    loopback = Policy(network=Network(mode="loopback"))

    assert became(f"http://a.localhost:{server.port}/", loopback) == (200, "")
    assert became(f"http://LOCALHOST.:{server.port}/", loopback) == (200, "")
    assert names.asked == []


def test_names_that_the_policy_does_not_permit_are_not_looked_up(names: DnsServer) -> None:
    """The attack: a name that says something to whoever is asked for it."""
    policy = Policy(network=Network(mode="hosts", hosts=[HostRule("api.example.com", paths=["/v1"])]))

    for url in ("https://secret.evil.example/", "http://api.example.com/v1", "https://api.example.com/v2"):
        assert became(url, policy)[0] == FailureCode.DENIED
    assert names.asked == []


def test_several_name_servers_are_asked_in_turn(names: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    names.names = {"a.example": "1.2.3.4"}
    with DnsServer({"a.example": "servfail"}) as broken:
        monkeypatch.setenv("STOCKADE_NAMESERVERS", f"{broken.address}, {names.address}")
        assert looked_up("a.example") == ["1.2.3.4"]
        assert broken.asked


@pytest.mark.parametrize(
    "text", ["", "localhost", "10.0.0.53,", "10.0.0.53:0", "10.0.0.53:99999", "::1", "[::1]x", "1.2.3"]
)
def test_what_names_no_name_server_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The system is never asked in the place of servers that are named wrongly."""
    monkeypatch.setenv("STOCKADE_NAMESERVERS", text)
    with pytest.raises(UsageError, match="which is no address of a name server: write 10\\.0\\.0\\.53"):
        Sandbox(PORTS)
    Sandbox().close()


def test_without_the_extra_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKADE_NAMESERVERS", "127.0.0.1,[::1]:5353")
    Sandbox(PORTS).close()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "dns" else find(name))
    with pytest.raises(UsageError, match=r"needs an extra: pip install 'stockade\[dns\]'"):
        Sandbox(PORTS)


def test_a_guest_does_not_keep_others_from_looking_up(monkeypatch: pytest.MonkeyPatch, server: HttpServer) -> None:
    """The attack: a guest asks for names that nobody answers for, gives each up at once, and goes on to the next: the
    system is waited for by a thread, of which there are few."""
    go_on, waiting = threading.Event(), threading.Semaphore(0)
    find = resolver.socket.getaddrinfo

    def slow(name: str, *more: Any, **options: Any) -> Any:
        if name.endswith(".evil.example"):
            waiting.release()
            go_on.wait()
            raise OSError("nobody answers")
        return find(name, *more, **options)

    monkeypatch.setattr(resolver.socket, "getaddrinfo", slow)

    async def asked() -> Sequence[int]:
        hostile, other = (GuestNetwork(Client(), FULL, lambda: 0.0) for _ in range(2))
        codes = []
        try:
            for number in range(8):
                _, exchange = hostile.begin(Request("GET", f"http://{number}.evil.example/", seconds=0.02))
                with pytest.raises(RequestFailed) as problem:
                    await exchange.answered()
                codes.append(int(problem.value.code))
            _, exchange = other.begin(Request("GET", f"{server.url}/"))
            codes.append((await exchange.answered()).status)
        finally:
            go_on.set()
            hostile.end()
            other.end()
        return codes

    assert asyncio.run(asked()) == [FailureCode.TIMEOUT] * 8 + [200]
    assert sum(waiting.acquire(blocking=False) for _ in range(9)) == 2
