"""Which requests a policy lets out, and to which addresses: by mode, URL, method and what DNS answers.

Nothing here opens a socket. Holds P-NET-1 and P-NET-2.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade import HostRule, Network
from stockade.egress import BadUrl, Refusal, RequestPlan, parse_url, pin
from stockade.policy import host_name, normal_path
from tests._examples import examples

PUBLIC, PUBLIC6 = "93.184.216.34", "2606:2800:220:1::1"

NETWORKS = {
    "none": Network(),
    "loopback": Network(mode="loopback"),
    "hosts": Network(
        mode="hosts",
        hosts=(
            HostRule("api.example.com"),
            HostRule("*.example.org", (443, "8000-8010")),  # type: ignore[arg-type]
            HostRule("plain.example.com", (80, 443), secure=False),  # type: ignore[arg-type]
            HostRule("only.example.com", methods=("GET", "HEAD"), paths=("/v1", "/public/")),
            HostRule("db.corp.internal", (443,)),  # type: ignore[arg-type]
            HostRule("localhost", (8080,), secure=False),  # type: ignore[arg-type]
            HostRule("10.0.0.7", (443,)),  # type: ignore[arg-type]
            HostRule("metadata.google.internal", (80,), secure=False),  # type: ignore[arg-type]
            HostRule("bücher.example"),
        ),
    ),
    "ports": Network(mode="ports", ports=(443, "8000-8010")),  # type: ignore[arg-type]
    "full": Network(mode="full"),
}

# A mode, a URL, the addresses that its name stands for, and the host of the plan; - where it is refused.
TABLE = f"""
    none      https://api.example.com/                      {PUBLIC}              -
    none      http://localhost/                             127.0.0.1             -
    none      http://127.0.0.1/                             -                     -
    loopback  http://localhost/                             127.0.0.1             localhost
    loopback  http://localhost:8080/                        ::1                   localhost
    loopback  https://LOCALHOST./                           127.0.0.1,::1         localhost
    loopback  http://db.localhost/                          127.0.0.2             db.localhost
    loopback  http://localhost/                             {PUBLIC}              -
    loopback  http://localhost/                             127.0.0.1,10.0.0.1    -
    loopback  http://localhost/                             169.254.169.254       -
    loopback  http://localhost/                             0.0.0.0               -
    loopback  http://localhost/                             ::                    -
    loopback  http://localhost/                             ::ffff:127.0.0.1      localhost
    loopback  http://localhost/                             ::ffff:10.0.0.1       -
    loopback  http://localhost/                             64:ff9b::7f00:1       -
    loopback  http://127.0.0.1/                             -                     127.0.0.1
    loopback  http://127.1/                                 -                     127.0.0.1
    loopback  http://2130706433/                            -                     127.0.0.1
    loopback  http://0x7f000001/                            -                     127.0.0.1
    loopback  http://0177.0.0.1/                            -                     127.0.0.1
    loopback  http://[::1]/                                 -                     ::1
    loopback  http://[::ffff:127.0.0.1]/                    -                     127.0.0.1
    loopback  http://0.0.0.0/                               -                     -
    loopback  http://0/                                     -                     -
    loopback  http://[::]/                                  -                     -
    loopback  http://10.0.0.1/                              -                     -
    loopback  http://169.254.169.254/                       -                     -
    loopback  https://api.example.com/                      127.0.0.1             -
    loopback  http://localhost.evil.net/                    127.0.0.1             -
    loopback  http://evil.net#@localhost/                   127.0.0.1             -
    loopback  http://localhost@evil.net/                    127.0.0.1             -
    hosts     https://api.example.com/                      {PUBLIC}              api.example.com
    hosts     https://API.Example.COM/                      {PUBLIC}              api.example.com
    hosts     https://api.example.com./                     {PUBLIC}              api.example.com
    hosts     https://api.example.com:443/                  {PUBLIC6}             api.example.com
    hosts     https://api。example.com/                     {PUBLIC}              api.example.com
    hosts     HTTPS://api.example.com/                      {PUBLIC},{PUBLIC6}    api.example.com
    hosts     http://api.example.com/                       {PUBLIC}              -
    hosts     http://api.example.com:443/                   {PUBLIC}              -
    hosts     https://api.example.com:8443/                 {PUBLIC}              -
    hosts     https://api.example.com:0/                    {PUBLIC}              -
    hosts     https://api.example.com:70000/                {PUBLIC}              -
    hosts     https://api.example.com:443:443/              {PUBLIC}              -
    hosts     https://user@api.example.com/                 {PUBLIC}              -
    hosts     https://user:word@api.example.com/            {PUBLIC}              -
    hosts     https://api.example.com@evil.net/             {PUBLIC}              -
    hosts     https://evil.net\\@api.example.com/            {PUBLIC}              -
    hosts     https://evil.net/@api.example.com/            {PUBLIC}              -
    hosts     https://evil.net?@api.example.com/            {PUBLIC}              -
    hosts     https://evil.net/                             {PUBLIC}              -
    hosts     https://example.com/                          {PUBLIC}              -
    hosts     https://sub.api.example.com/                  {PUBLIC}              -
    hosts     https://api.example.com.evil.net/             {PUBLIC}              -
    hosts     https://xapi.example.com/                     {PUBLIC}              -
    hosts     https://api.example.com%2eevil.net/           {PUBLIC}              -
    hosts     https://api%2eexample.com/                    {PUBLIC}              -
    hosts     https://api.example.com%00.evil.net/          {PUBLIC}              -
    hosts     https://{PUBLIC}/                             -                     -
    hosts     https://api.example.com/                      10.0.0.1              -
    hosts     https://api.example.com/                      172.16.0.1            -
    hosts     https://api.example.com/                      192.168.0.1           -
    hosts     https://api.example.com/                      127.0.0.1             -
    hosts     https://api.example.com/                      ::1                   -
    hosts     https://api.example.com/                      169.254.169.254       -
    hosts     https://api.example.com/                      fe80::1               -
    hosts     https://api.example.com/                      fd00:ec2::254         -
    hosts     https://api.example.com/                      100.64.0.1            -
    hosts     https://api.example.com/                      100.100.100.200       -
    hosts     https://api.example.com/                      0.0.0.0               -
    hosts     https://api.example.com/                      255.255.255.255       -
    hosts     https://api.example.com/                      224.0.0.1             -
    hosts     https://api.example.com/                      ff02::1               -
    hosts     https://api.example.com/                      240.0.0.1             -
    hosts     https://api.example.com/                      192.0.2.1             -
    hosts     https://api.example.com/                      198.18.0.1            -
    hosts     https://api.example.com/                      fd00::1               -
    hosts     https://api.example.com/                      fec0::1               -
    hosts     https://api.example.com/                      2001:db8::1           -
    hosts     https://api.example.com/                      ::ffff:10.0.0.1       -
    hosts     https://api.example.com/                      ::ffff:{PUBLIC}       api.example.com
    hosts     https://api.example.com/                      ::7f00:1              -
    hosts     https://api.example.com/                      64:ff9b::a00:1        -
    hosts     https://api.example.com/                      64:ff9b::5db8:d822    api.example.com
    hosts     https://api.example.com/                      64:ff9b:1::a00:1      -
    hosts     https://api.example.com/                      2002:a00:1::          -
    hosts     https://api.example.com/                      2002:7f00:1::         -
    hosts     https://api.example.com/                      2001:0:102:304::80ff:fffe  -
    hosts     https://api.example.com/                      {PUBLIC},10.0.0.1     -
    hosts     https://api.example.com/                      {PUBLIC},127.0.0.1    -
    hosts     https://api.example.com/                      {PUBLIC},169.254.169.254   -
    hosts     https://api.example.com/                      {PUBLIC},::1          -
    hosts     https://a.example.org/                        {PUBLIC}              a.example.org
    hosts     https://a.b.example.org:8005/                 {PUBLIC}              a.b.example.org
    hosts     https://A.EXAMPLE.ORG./                       {PUBLIC}              a.example.org
    hosts     https://example.org/                          {PUBLIC}              -
    hosts     https://a.example.org:8011/                   {PUBLIC}              -
    hosts     https://aexample.org/                         {PUBLIC}              -
    hosts     https://a.example.org.evil.net/               {PUBLIC}              -
    hosts     https://a.example.org/                        10.0.0.1              -
    hosts     http://plain.example.com/                     {PUBLIC}              plain.example.com
    hosts     https://plain.example.com/                    {PUBLIC}              plain.example.com
    hosts     http://plain.example.com:8080/                {PUBLIC}              -
    hosts     https://only.example.com/v1                   {PUBLIC}              only.example.com
    hosts     https://only.example.com/v1/                  {PUBLIC}              only.example.com
    hosts     https://only.example.com/v1/a?q=/../          {PUBLIC}              only.example.com
    hosts     https://only.example.com/%76%31/a             {PUBLIC}              only.example.com
    hosts     https://only.example.com/a/../v1/b            {PUBLIC}              only.example.com
    hosts     https://only.example.com/public               {PUBLIC}              only.example.com
    hosts     https://only.example.com/public/a             {PUBLIC}              only.example.com
    hosts     https://only.example.com/                     {PUBLIC}              -
    hosts     https://only.example.com                      {PUBLIC}              -
    hosts     https://only.example.com/v10                  {PUBLIC}              -
    hosts     https://only.example.com/V1                   {PUBLIC}              -
    hosts     https://only.example.com/v1/../admin          {PUBLIC}              -
    hosts     https://only.example.com/v1/..                {PUBLIC}              -
    hosts     https://only.example.com/v1/%2e%2e/admin      {PUBLIC}              -
    hosts     https://only.example.com/v1/%2E./admin        {PUBLIC}              -
    hosts     https://only.example.com/v1/..%2fadmin        {PUBLIC}              -
    hosts     https://only.example.com/v1/%2e%2e%2fadmin    {PUBLIC}              -
    hosts     https://only.example.com/v1/..%5cadmin        {PUBLIC}              -
    hosts     https://only.example.com/v1/%252e%252e/admin  {PUBLIC}              -
    hosts     https://only.example.com/v1/..;/admin         {PUBLIC}              -
    hosts     https://only.example.com/v1/..;x=y/admin      {PUBLIC}              -
    hosts     https://only.example.com/v1\\..\\admin          {PUBLIC}              -
    hosts     https://only.example.com/v1/%00               {PUBLIC}              -
    hosts     https://only.example.com/v1/%0d%0aX:          {PUBLIC}              -
    hosts     https://only.example.com/v1/%zz               {PUBLIC}              -
    hosts     https://only.example.com//v1/a                {PUBLIC}              -
    hosts     https://only.example.com/?/v1/                {PUBLIC}              -
    hosts     https://only.example.com/#/v1/                {PUBLIC}              -
    hosts     https://only.example.com/admin#/v1            {PUBLIC}              -
    hosts     https://db.corp.internal/                     10.0.0.5              db.corp.internal
    hosts     https://db.corp.internal/                     {PUBLIC}              db.corp.internal
    hosts     https://db.corp.internal/                     127.0.0.1             -
    hosts     https://db.corp.internal/                     ::ffff:127.0.0.1      -
    hosts     https://db.corp.internal/                     64:ff9b::7f00:1       -
    hosts     https://db.corp.internal/                     169.254.169.254       -
    hosts     https://db.corp.internal/                     64:ff9b::a9fe:a9fe    -
    hosts     http://localhost:8080/                        127.0.0.1             localhost
    hosts     http://localhost:8080/                        10.0.0.1              -
    hosts     http://localhost:8081/                        127.0.0.1             -
    hosts     http://127.0.0.1:8080/                        -                     -
    hosts     https://10.0.0.7/                             -                     10.0.0.7
    hosts     https://167772167/                            -                     10.0.0.7
    hosts     https://[::ffff:10.0.0.7]/                    -                     10.0.0.7
    hosts     https://10.0.0.8/                             -                     -
    hosts     http://metadata.google.internal/              169.254.169.254       metadata.google.internal
    hosts     http://metadata.google.internal/              127.0.0.1             -
    hosts     http://metadata.google.internal/              10.0.0.1              -
    hosts     http://169.254.169.254/                       -                     -
    hosts     https://bücher.example/                       {PUBLIC}              xn--bcher-kva.example
    hosts     https://BÜCHER.example./                      {PUBLIC}              xn--bcher-kva.example
    hosts     https://xn--bcher-kva.example/                {PUBLIC}              xn--bcher-kva.example
    hosts     https://bucher.example/                       {PUBLIC}              -
    hosts     ftp://api.example.com/                        {PUBLIC}              -
    hosts     file:///etc/passwd                            {PUBLIC}              -
    hosts     file://api.example.com/etc/passwd             {PUBLIC}              -
    hosts     gopher://api.example.com:443/                 {PUBLIC}              -
    hosts     ws://api.example.com/                         {PUBLIC}              -
    hosts     javascript:alert(1)                           {PUBLIC}              -
    hosts     data:,x                                       {PUBLIC}              -
    hosts     //api.example.com/                            {PUBLIC}              -
    hosts     /v1                                           {PUBLIC}              -
    hosts     api.example.com                               {PUBLIC}              -
    hosts     https:api.example.com                         {PUBLIC}              -
    hosts     https:/api.example.com                        {PUBLIC}              -
    hosts     https:///api.example.com                      {PUBLIC}              -
    hosts     https://                                      {PUBLIC}              -
    hosts     https://:443/                                 {PUBLIC}              -
    hosts     https://[api.example.com]/                    {PUBLIC}              -
    ports     https://any.example.com/                      {PUBLIC}              any.example.com
    ports     http://any.example.com:8000/                  {PUBLIC}              any.example.com
    ports     http://any.example.com/                       {PUBLIC}              -
    ports     https://{PUBLIC}/                             -                     {PUBLIC}
    ports     https://any.example.com:8010/                 {PUBLIC6}             any.example.com
    ports     https://any.example.com:8011/                 {PUBLIC}              -
    ports     https://any.example.com/                      10.0.0.1              -
    ports     https://any.example.com/                      127.0.0.1             -
    ports     https://any.example.com/                      ::1                   -
    ports     https://any.example.com/                      169.254.169.254       -
    ports     https://any.example.com/                      {PUBLIC},192.168.1.1  -
    ports     https://any.example.com/                      64:ff9b::a9fe:a9fe    -
    ports     https://any.example.com/                      64:ff9b::7f00:1       -
    ports     https://any.example.com/                      2002:c0a8:101::1      -
    ports     https://any.example.com/                      ::ffff:192.168.1.1    -
    ports     https://any.example.com/                      0.0.0.0               -
    ports     https://any.example.com/                      100.64.0.1            -
    ports     https://any.example.com/                      224.0.0.1             -
    ports     https://intranet/                             {PUBLIC}              -
    ports     https://db.corp.internal/                     {PUBLIC}              -
    ports     https://localhost/                            {PUBLIC}              -
    ports     https://metadata.google.internal/             {PUBLIC}              -
    ports     https://169.254.169.254/                      -                     -
    ports     https://2852039166/                           -                     -
    ports     https://0xa9fea9fe/                           -                     -
    ports     https://[::ffff:169.254.169.254]/             -                     -
    ports     https://[64:ff9b::a9fe:a9fe]/                 -                     -
    ports     https://[fe80::1%25eth0]/                     -                     -
    ports     https://10.0.0.1/                             -                     -
    ports     https://127.0.0.1/                            -                     -
    full      https://any.example.com/                      {PUBLIC}              any.example.com
    full      http://any.example.com:81/                    10.0.0.1              any.example.com
    full      http://any.example.com/                       127.0.0.1             any.example.com
    full      http://10.0.0.1/                              -                     10.0.0.1
    full      http://[fd00::1]/                             -                     fd00::1
    full      http://any.example.com/                       169.254.169.254       -
    full      http://any.example.com/                       {PUBLIC},169.254.169.254   -
    full      http://any.example.com/                       64:ff9b::a9fe:a9fe    -
    full      http://any.example.com/                       ::ffff:169.254.169.254     -
    full      http://any.example.com/                       fe80::1               -
    full      http://any.example.com/                       fd00:ec2::254         -
    full      http://any.example.com/                       100.100.100.200       -
    full      http://any.example.com/                       168.63.129.16         -
    full      http://any.example.com/                       0.0.0.0               -
    full      http://any.example.com/                       255.255.255.255       -
    full      http://any.example.com/                       224.0.0.1             -
    full      http://metadata.google.internal/              {PUBLIC}              -
    full      http://METADATA.google.internal./             {PUBLIC}              -
    full      http://metadata/                              {PUBLIC}              -
    full      http://169.254.169.254/                       -                     -
    full      http://169.254.43518/                         -                     -
    full      http://0xA9.254.0251.254/                     -                     -
    full      http://[::a9fe:a9fe]/                         -                     -
    full      http://user@any.example.com/                  {PUBLIC}              -
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]


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
    ("url", "method", "reason", "field"),
    [
        ("https://other.net/", "GET", "the policy does not name other.net", "network.hosts"),
        ("http://api.example.com/", "GET", "the policy does not permit port 80 of api.example.com", "network.hosts[0]"),
        ("http://api.example.com:443/", "GET", "the policy permits api.example.com by https only", "network.hosts[0]"),
        (
            "https://only.example.com/v1",
            "POST",
            "the policy does not permit POST for only.example.com",
            "network.hosts[3]",
        ),
        (
            "https://only.example.com/",
            "GET",
            "the policy does not permit this path of only.example.com",
            "network.hosts[3]",
        ),
    ],
)
def test_a_refusal_says_why(url: str, method: str, reason: str, field: str) -> None:
    assert decide(NETWORKS["hosts"], url, PUBLIC, method) == Refusal(reason, field)


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
