"""Credentials: added to requests by the host, and seen by no guest.

Holds P-NET-5.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import html
import itertools
import json
import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade import Credential, JavaScript, Network, Policy, PolicyError, Python, Sandbox, UsageError
from stockade.egress import Client, Credentials, FailureCode, GuestNetwork, Request, RequestFailed
from stockade.egress._scrubber import Scrubber
from stockade.gate import Gate, SecretFinder
from tests._examples import examples
from tests._http_server import HttpServer
from tests.egress.test_exchange import LOCAL, names

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = 's3cr3t/Value+of&some"length<=>'
LOOPBACK = Policy(network=Network(mode="loopback"))


@pytest.fixture
def server(secure: HttpServer) -> HttpServer:
    return secure


def _scrubber(secret: str = SECRET) -> Scrubber:
    return Scrubber(SecretFinder({"placeholder": secret.encode()}, least_held=1))


def network(**more: Any) -> GuestNetwork:
    credential = Credential(SECRET, **{"hosts": ["localhost"], "format": "Bearer {}", **more})
    client = names(**LOCAL)
    return GuestNetwork(Client(client.resolve, Credentials({"api": credential})), LOOPBACK, lambda: 0.0)


def told(guest: GuestNetwork, url: str, **more: Any) -> str:
    """All that a guest comes to see of an answer."""

    async def fetched() -> str:
        _, exchange = guest.begin(Request(more.pop("method", "GET"), url, **more))
        try:
            answer = await exchange.answered()
            body = b""
            while piece := await exchange.read(7):
                body += piece
        except RequestFailed as problem:
            return f"{problem.code} {problem}"
        return f"{answer} {body.decode('latin-1')}"

    return asyncio.run(fetched())


def test_a_credential_goes_along_with_what_it_is_for(server: HttpServer) -> None:
    """What the guest writes into the header is replaced, in whatever case it is."""
    told(network(), f"{server.url}/", headers=[("authorization", "Bearer of its own"), ("X-Other", "1")])

    assert server.seen[0].header("authorization") == [f"Bearer {SECRET}"]
    assert server.seen[0].header("x-other") == ["1"]


@pytest.mark.parametrize("hosts", [["a.localhost"], ["b.localhost"], ["127.0.0.1"], ["api.example.com"]])
def test_a_credential_goes_nowhere_else(server: HttpServer, hosts: list[str]) -> None:
    """The attack: a guest asks another host, and hopes that the credential comes along."""
    told(network(hosts=hosts), f"{server.url}/", headers=[("Authorization", "mine")])

    assert server.seen[0].header("authorization") == ["mine"]


def test_a_credential_for_a_port_goes_to_no_other(server: HttpServer) -> None:
    """The attack: a guest asks another port of the same host, where somebody else listens."""
    with HttpServer(tls=True) as other:
        for asked in (server, other):
            told(network(hosts=[f"LOCALHOST.:{server.port}", "[::1]:80"]), f"{asked.url}/")

        assert server.seen[0].header("authorization") == [f"Bearer {SECRET}"]
        assert other.seen[0].header("authorization") == []


def test_a_credential_goes_over_tls_only() -> None:
    """The attack: the same host without encryption, where others read along."""
    with HttpServer() as server:
        told(network(), f"{server.url}/")
        told(network(secure=False), f"{server.url}/")

    assert [seen.header("authorization") for seen in server.seen] == [[], [f"Bearer {SECRET}"]]


def test_a_redirect_to_another_host_drops_it(server: HttpServer) -> None:
    told(network(), f"{server.url}/redirect?to=https://b.localhost:{server.port}/there")
    told(network(), f"{server.url}/redirect?to=/there")

    first, elsewhere, again, same = (seen.header("authorization") for seen in server.seen)
    assert first == again == same == [f"Bearer {SECRET}"]
    assert elsewhere == []


def test_an_echo_tells_a_placeholder(server: HttpServer) -> None:
    """The attack: an API that answers with what it was sent."""
    found = told(network(), f"{server.url}/echo")

    assert "Bearer stockade-credential-api" in found
    assert not Gate(secrets={"api": SECRET}).scan(found.encode()).findings
    assert "content-length" not in found.lower()


FORMS: dict[str, Callable[[str], str]] = {
    "plain": lambda text: text,
    "json": lambda text: json.dumps({"a": text}),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "basic": lambda text: base64.b64encode(f"user:{text}".encode()).decode(),
    "hex": lambda text: text.encode().hex(),
    "HEX": lambda text: text.encode().hex().upper(),
    "url": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "%URL": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "html": lambda text: html.escape(text),
    "entities": lambda text: "".join(f"&#{ord(character)};" for character in text),
    "hex entities": lambda text: "".join(f"&#x{ord(character):x};" for character in text),
    "escapes": lambda text: "".join(f"\\x{byte:02x}" for byte in text.encode()),
    "base64url": lambda text: base64.urlsafe_b64encode(f"ab{text}".encode()).decode(),
    "base32": lambda text: base64.b32encode(f"abc{text}".encode()).decode(),
    "mail": lambda text: base64.encodebytes(f"{'header: ' * 6}{text}{'.' * 40}".encode()).decode(),
    "mail in json": lambda text: json.dumps(base64.encodebytes(f"{'h' * 40}{text}".encode()).decode()),
    "reversed": lambda text: text[::-1],
    "spaced": " ".join,
    "case": str.swapcase,
    "unicode": lambda text: "".join(f"\\u{ord(character):04x}" for character in text),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_usual_forms_are_found(form: str) -> None:
    """The attack: an API that answers with what it was sent in another form; cut anywhere."""
    written = FORMS[form](SECRET)
    for size in (1, 2, 7, 1000):
        scrubber = _scrubber()
        data = f"before {written} after".encode()
        pieces = [scrubber.feed(data[at : at + size]) for at in range(0, len(data), size)]
        found = b"".join([*pieces, scrubber.finish()])
        assert b"placeholder" in found
        assert found.startswith(b"before ")
        assert found.endswith(b" after")
        # What is left around base64 and base32 is less than a group on each side.
        left = found.replace(b"placeholder", b"").replace(b"\n", b"").replace(b"\\n", b"")
        unsaid = FORMS[form]("").replace("\n", "").replace("\\n", "")
        assert len(left) <= len("before  after") + len(unsaid) + 2 * 8


@pytest.mark.parametrize(
    "form",
    [
        lambda text: text[: len(text) // 2],
        lambda text: base64.b64encode(base64.b64encode(text.encode())).decode(),
        lambda text: base64.b85encode(text.encode()).decode(),
    ],
    ids=["half", "twice", "base85"],
)
def test_other_forms_pass(form: Callable[[str], str]) -> None:
    """What is not promised, so that nobody relies on it: an API that does this to a key must not be given one."""
    scrubber = _scrubber()
    data = form(SECRET).encode()

    assert scrubber.feed(data) + scrubber.finish() == data


@settings(max_examples=examples(200))
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5), st.integers(0, 200))
def test_what_is_no_secret_passes_unchanged(data: bytes, cuts: list[int], place: int) -> None:
    """Pieces come out as they went in, and a secret among them never does. The oracle is `bytes.replace`."""
    whole = data[:place] + SECRET.encode() + data[place:]
    scrubber = _scrubber()
    borders = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    found = b"".join(scrubber.feed(whole[begin:end]) for begin, end in itertools.pairwise(borders))
    found += scrubber.finish()

    if not Gate(secrets={"api": SECRET}).scan(data).findings:
        assert found == whole.replace(SECRET.encode(), b"placeholder")
    assert SECRET.encode() not in found


def test_heads_and_failures_tell_placeholders(server: HttpServer) -> None:
    """The attack: headers, addresses and errors that have the value in them."""
    from urllib.parse import quote

    told_in = f"X-Echo: {SECRET}\r\nLocation: /?{SECRET}\r\nContent-Length: {len(SECRET)}\r\n\r\n{SECRET}"
    head = f"HTTP/1.1 200 {SECRET}\r\n{told_in}"
    wrong = f"HTTP/1.1 200 OK\r\n{SECRET}\r\nContent-Length: 0\r\n\r\n"
    found = told(network(), f"{server.url}/raw?say={quote(head)}")
    failed = told(network(), f"{server.url}/raw?say={quote(wrong)}")

    assert found.count("stockade-credential-api") >= 4
    assert SECRET not in found + failed


def test_compressed_answers_are_refused(server: HttpServer) -> None:
    """The attack: an answer that is compressed, in which no value is found."""
    from urllib.parse import quote

    head = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nx"
    found = told(network(), f"{server.url}/raw?say={quote(head)}", headers=[("Accept-Encoding", "gzip")])

    assert server.seen[0].header("accept-encoding") == ["identity"]
    assert found.startswith(f"{FailureCode.PROTOCOL} the answer is compressed")


def test_parts_of_an_answer_are_refused(server: HttpServer) -> None:
    """The attack: a guest asks for an answer byte by byte, none of which is the whole value."""
    from urllib.parse import quote

    head = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-5/100\r\nContent-Length: 1\r\n\r\nx"
    other = "HTTP/1.1 200 OK\r\nContent-Range: bytes 5-5/100\r\nContent-Length: 1\r\n\r\nx"
    found = [
        told(network(), f"{server.url}/raw?say={quote(say)}", headers=[("range", "bytes=5-5"), ("If-Range", '"a"')])
        for say in (head, other)
    ]

    assert [seen.header("range") + seen.header("if-range") for seen in server.seen] == [[], []]
    assert all(text.startswith(f"{FailureCode.PROTOCOL} the answer is a part") for text in found)


def test_the_length_of_a_value_is_not_told(server: HttpServer) -> None:
    """The attack: what a guest reads of two values, of which one is longer, differs."""
    found = []
    for value in (SECRET, SECRET * 3):
        client = Client(names(**LOCAL).resolve, Credentials({"api": Credential(value, hosts=["localhost"])}))
        guest = GuestNetwork(client, LOOPBACK, lambda: 0.0)
        found.append([told(guest, f"{server.url}/echo", method=method) for method in ("GET", "HEAD")])

    assert found[0] == found[1]


def test_a_value_cut_by_chunks_is_found(server: HttpServer) -> None:
    """The attack: an answer in chunks of a few bytes each, between which the value is cut."""
    from urllib.parse import quote

    for size in (1, 3, 10):
        chunks = [SECRET[at : at + size] for at in range(0, len(SECRET), size)]
        body = "".join(f"{len(chunk):x}\r\n{chunk}\r\n" for chunk in chunks)
        head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        found = told(network(), f"{server.url}/raw?say={quote(f'{head}{body}0')}%0D%0A%0D%0A")
        assert found.endswith(" stockade-credential-api")


def test_a_redirect_takes_no_value_along(server: HttpServer) -> None:
    """The attack: a redirect with the value in its address, to a host that the credential is not for."""
    from urllib.parse import quote

    place = f"https://b.localhost:{server.port}/?{quote(SECRET, safe='')}"
    head = f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n"
    found = told(network(), f"{server.url}/raw?say={quote(head)}")

    assert found == f"{FailureCode.PROTOCOL} the redirect would take a credential to another host"
    assert len(server.seen) == 1


def test_a_credential_shows_nothing(tmp_path: Path) -> None:
    """The attack: a log, a debugger or a pickle that comes to have the object."""
    credential = Credential(SECRET, hosts=["api.example.com"])

    assert repr(credential) == str(credential) == "Credential(hosts=['api.example.com'], header='Authorization')"
    assert copy.copy(credential) is copy.deepcopy(credential) is credential
    assert not hasattr(credential, "__dict__")
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(credential)
    with Sandbox(LOOPBACK, credentials={"api": credential}) as box:
        assert SECRET not in repr(box)


@pytest.mark.parametrize(
    "given",
    [
        {"value": "short"},
        {"value": "with\nline break"},
        {"value": " with spaces "},
        {"value": 12345678},
        {"value": "zażółćgęślą"},
        {"hosts": []},
        {"hosts": "api.example.com"},
        {"hosts": ["*"]},
        {"hosts": ["https://api.example.com"]},
        {"hosts": ["api.example.com:0"]},
        {"hosts": ["api.example.com:70000"]},
        {"hosts": ["api.example.com:443:443"]},
        {"hosts": [5]},
        {"header": "Host"},
        {"header": "A: b"},
        {"header": ""},
        {"format": "Bearer"},
        {"format": "{}{}"},
        {"format": "a\r\n{}"},
        {"secure": False},
    ],
    ids=str,
)
def test_what_is_no_credential_is_refused(given: dict[str, Any]) -> None:
    """No message has the value."""
    with pytest.raises(UsageError) as problem:
        Credential(**{"value": SECRET, "hosts": ["api.example.com"], **given})

    assert str(given.get("value", SECRET)) not in str(problem.value)


def test_credentials_and_secrets_have_names() -> None:
    """A list of them is refused in words, which have no value."""
    with pytest.raises(UsageError) as problem:
        Sandbox(credentials=[Credential(SECRET, hosts=["a.example"])])  # type: ignore[arg-type]
    assert str(problem.value) == (
        'credentials is list: it must have each under its name, as in credentials={"api": credential}'
    )
    with pytest.raises(UsageError) as problem:
        Sandbox(secrets=[SECRET])  # type: ignore[arg-type]
    assert str(problem.value) == 'secrets is list: it must have each under its name, as in secrets={"database": secret}'


def test_files_are_those_of_the_user_alone(tmp_path: Path) -> None:
    """The attack: a file that others may read or exchange, or a link or FIFO that leads elsewhere."""
    path, link, fifo = tmp_path / "key", tmp_path / "link", tmp_path / "fifo"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    link.symlink_to(path)
    os.mkfifo(fifo, 0o600)

    credential = Credential.from_file(path, hosts=["localhost"])
    assert credential.written() == SECRET
    path.chmod(0o640)
    for wrong, why in (
        (path, "another user's, or others may read or write it: chmod 600 it"),
        (link, "Too many levels of symbolic links"),
        (fifo, "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "missing", "No such file or directory"),
    ):
        with pytest.raises(UsageError) as problem:
            Credential.from_file(wrong, hosts=["localhost"])
        assert str(problem.value) == f"{wrong} cannot be read as a credential: {why}"


def test_variables_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", SECRET)
    assert Credential.from_environment("API_KEY", hosts=["localhost"]).written() == SECRET
    with pytest.raises(UsageError, match="there is no environment variable NO_KEY"):
        Credential.from_environment("NO_KEY", hosts=["localhost"])


def test_names_and_headers_are_for_one_each() -> None:
    one = Credential(SECRET, hosts=["localhost"])
    for wrong in ({"a b": one}, {"a": "text"}, {"a": one, "b": Credential(SECRET, hosts=["LOCALHOST."])}):
        with pytest.raises(UsageError):
            Sandbox(LOOPBACK, credentials=wrong)  # type: ignore[arg-type]


def test_code_sees_the_placeholder(server: HttpServer) -> None:
    """The attack: code that tries what it can to print the credential that it uses."""
    credentials = {"api": Credential(SECRET, hosts=["localhost"], format="Bearer {}")}
    policy = LOOPBACK.replace(wall_time="60s", memory="512MiB")
    with Python(policy, runtime="cpython-3.12", credentials=credentials) as python:
        code = """
import gc, os, urllib.request
text = urllib.request.urlopen(f"{url}/echo").read().decode()
try:
    urllib.request.urlopen(f"{url}/error")
except OSError as problem:
    text += str(problem.headers) + problem.read().decode()
[text, dict(os.environ), [repr(thing)[:200] for thing in gc.get_objects()[:1000]]]
"""
        result = python.run(code, inputs={"url": server.url})
        assert result.error is None, result.error.traceback
        everything = f"{result.value} {result.stdout} {result.stderr} {result.report.to_json()}"
        assert "Bearer stockade-credential-api" in everything
        assert not Gate(secrets={"api": SECRET}).scan(everything.encode()).findings
    assert server.seen[0].header("authorization") == [f"Bearer {SECRET}"]


def test_javascript_sees_the_placeholder(server: HttpServer) -> None:
    credentials = {"api": Credential(SECRET, hosts=["localhost"])}
    with JavaScript(LOOPBACK.replace(wall_time="60s"), credentials=credentials) as javascript:
        result = javascript.run("await (await fetch(`${url}/echo`)).text()", inputs={"url": server.url})
    assert "stockade-credential-api" in result.value
    assert SECRET not in result.value


@pytest.mark.parametrize("make", [Sandbox, JavaScript, Python])
def test_credentials_without_a_network_are_refused(make: type[Sandbox | JavaScript | Python]) -> None:
    """They could never be used: that is a mistake, which is told before anything runs."""
    credentials = {"api": Credential(SECRET, hosts=["a.example"])}
    with pytest.raises(PolicyError) as caught:
        make("strict", credentials=credentials)

    assert str(caught.value) == (
        "there are credentials, and the policy strict permits no requests that they could go along with: name their "
        "hosts in network.hosts, or give none"
    )
    make(LOOPBACK, credentials=credentials).close()
    make("strict", credentials={}).close()


def test_a_run_without_a_network_in_a_language_that_has_one_is_looked_through_for_credentials() -> None:
    """The twin: a policy of a run may have no network, and the values are looked for all the same."""
    credentials = {"api": Credential(SECRET, hosts=["a.example"])}
    with JavaScript(LOOPBACK.replace(wall_time="60s"), credentials=credentials) as javascript:
        result = javascript.run(f"'{SECRET}'", policy="strict")

    assert result.value == "[redacted:api]"
