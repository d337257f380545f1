"""Which requests a policy lets out, and to which addresses: by mode, URL, method and what DNS answers.

Nothing here opens a socket. Holds P-NET-1 and P-NET-2.
"""

from __future__ import annotations

import ipaddress
from typing import Literal
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade import HostRule, Network
from stockade.egress import BadUrl, Refusal, RequestPlan, parse_url, pin
from stockade.policy import host_name, normal_path
from tests._examples import examples
from tests.egress._table import NETWORKS, PUBLIC, ROWS


def decide(network: Network, url: str, answers: str, method: str = "GET") -> RequestPlan | Refusal | None:
    """The plan, or why there is none; None where the URL is none."""
    try:
        target = parse_url(url)
    except BadUrl:
        return None
    found = [] if answers == "-" else [ipaddress.ip_address(answer) for answer in answers.split(",")]
    return pin(network, method, target, found)


@pytest.mark.parametrize(("mode", "url", "answers", "host"), ROWS, ids=[" ".join(row[:3]) for row in ROWS])
def test_requests_by_mode_url_and_answers(mode: str, url: str, answers: str, host: str) -> None:
    """The attack: a forbidden host or address in another of its forms, or behind a name that is permitted."""
    plan = decide(NETWORKS[mode], url, answers)

    if host == "-":
        assert not isinstance(plan, RequestPlan)
        assert plan is None or plan.reason != ""
    else:
        assert isinstance(plan, RequestPlan), plan
        assert str(plan.target.host) == host
        # What is connected to is what was checked, and nothing else.
        if answers != "-":
            given = [ipaddress.ip_address(answer) for answer in answers.split(",")]
            assert list(plan.addresses) == [getattr(address, "ipv4_mapped", None) or address for address in given]
        else:
            assert [str(address) for address in plan.addresses] == [host]


@pytest.mark.parametrize("mode", NETWORKS)
@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "get", "", "GET HTTP/1.1\r\nX:", "PROPFIND"])
def test_methods_that_no_policy_permits(mode: str, method: str) -> None:
    urls = {"loopback": ("http://localhost/", "127.0.0.1"), "hosts": ("https://api.example.com/", PUBLIC)}
    url, answers = urls.get(mode, ("https://any.example.com/", PUBLIC))

    assert isinstance(decide(NETWORKS[mode], url, answers, method), Refusal)


@pytest.mark.parametrize(
    ("url", "method", "reason", "field", "part"),
    [
        ("https://other.net/", "GET", "the policy does not name other.net", "network.hosts", ""),
        (
            "http://api.example.com/",
            "GET",
            "the policy does not permit port 80 of api.example.com",
            "network.hosts[0]",
            "",
        ),
        (
            "http://api.example.com:443/",
            "GET",
            "the policy permits api.example.com by https only",
            "network.hosts[0]",
            "",
        ),
        (
            "https://only.example.com/v1",
            "POST",
            "the policy does not permit POST for only.example.com",
            "network.hosts[3]",
            "method",
        ),
        (
            "https://only.example.com/",
            "GET",
            "the policy does not permit this path of only.example.com",
            "network.hosts[3]",
            "path",
        ),
    ],
)
def test_a_refusal_says_why(
    url: str, method: str, reason: str, field: str, part: Literal["", "method", "path"]
) -> None:
    assert decide(NETWORKS["hosts"], url, PUBLIC, method) == Refusal(reason, field, part=part)


def test_a_name_of_a_metadata_service_is_not_meant_by_those_below_a_domain() -> None:
    """The attack: a rule for all hosts of a cloud, one of which has the credentials of this machine."""
    network = Network(mode="hosts", hosts=[HostRule("*.azure.com", (80,), secure=False)])

    assert isinstance(decide(network, "http://metadata.azure.com/", PUBLIC), Refusal)
    assert isinstance(decide(network, "http://portal.azure.com/", PUBLIC), RequestPlan)


# -- properties -----------------------------------------------------------------------------------------------------

_ADDRESSES = st.ip_addresses(v=4) | st.ip_addresses(v=6)


@settings(max_examples=examples(300))
@given(st.lists(_ADDRESSES, min_size=1, max_size=3))
def test_no_name_leads_to_what_is_not_public(answers: list[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> None:
    """A public name is connected to by addresses that Python, too, takes for public ones."""
    plan = decide(NETWORKS["hosts"], "https://api.example.com/", ",".join(map(str, answers)))

    if isinstance(plan, RequestPlan):
        for address in plan.addresses:
            meant = _leads_to(address)
            assert meant.is_global, address
            assert not any((meant.is_loopback, meant.is_private, meant.is_multicast, meant.is_link_local)), address


def _leads_to(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """What a 6to4, Teredo or NAT64 address leads to: whether these are public depends on the release of Python."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in ipaddress.ip_network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.sixtofour or (address.teredo[1] if address.teredo else address)


@settings(max_examples=examples(300))
@given(st.text(max_size=40), st.sampled_from(["", "/", "/v1/", "/v1/.."]))
def test_paths_come_to_rest(text: str, before: str) -> None:
    """The normal form of a path is its own normal form, and has nothing in it that leads up."""
    normal = normal_path(f"{before}/{text}")

    if normal is not None:
        assert normal_path(normal) == normal
        assert normal.isascii()
        assert not {"..", "."} & set(normal.split("/"))
        assert not any(character in normal for character in " \\\r\n\0")


@settings(max_examples=examples(300))
@given(st.lists(st.sampled_from(["v1", "v10", "..", ".", "admin", "%2e%2e", "%2E.", "a;b", "", "%76%31"]), max_size=6))
def test_no_path_leads_out_of_its_prefix(segments: list[str]) -> None:
    """The attack: a path that begins as the policy says, and leads elsewhere. The oracle walks it by segments."""
    path = "/" + "/".join(segments)
    walked: list[str] = []
    for place, segment in enumerate(segments):
        plain = segment.replace("%2e", ".").replace("%2E", ".").replace("%76%31", "v1")
        if plain == "..":
            del walked[-1:]
        elif plain != ".":
            walked.append(plain)
        if plain in (".", "..") and place == len(segments) - 1:
            walked.append("")
    plan = decide(NETWORKS["hosts"], f"https://only.example.com{path}", PUBLIC)

    assert isinstance(plan, RequestPlan) == (walked[:1] == ["v1"])


@settings(max_examples=examples(200))
@given(st.text(min_size=1, max_size=30))
def test_no_text_hides_a_host(text: str) -> None:
    """Whatever stands in a URL, the host that is asked is one that the policy names."""
    for url in (f"https://{text}", f"https://{quote(text)}/", f"https://api.example.com{text}", text):
        plan = decide(NETWORKS["hosts"], url, PUBLIC)
        if isinstance(plan, RequestPlan):
            assert any(rule.covers(plan.target.host) for rule in NETWORKS["hosts"].hosts)
            assert plan.target.host == host_name(str(plan.target.host))
            assert parse_url(plan.target.url) == plan.target
