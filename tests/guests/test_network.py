"""Code in interpreters that makes requests, with what its language has for that."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest

from stockade import JavaScript, Network, Outcome, Policy, Python
from tests._examples import examples
from tests._http_server import AUTHORITY, HttpServer
from tests.conftest import program_path

if TYPE_CHECKING:
    from collections.abc import Iterator

POLICY = Policy(network=Network(mode="loopback")).replace(wall_time="5min", memory="512MiB")
HEAVY = "cpython-3.15"
RUNTIMES = [*(name for name in Python.runtimes() if name != HEAVY), pytest.param(HEAVY, marks=pytest.mark.slow)]
SCRIPTS = [*JavaScript.runtimes(), *filter(None, [os.environ.get("STOCKADE_QUICKJS_WASI")])]
"""Those that are installed, and npm's quickjs-wasi where its path is given."""


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer() as serving:
        yield serving


@pytest.fixture(scope="module", params=RUNTIMES)
def python(request: pytest.FixtureRequest) -> Iterator[Python]:
    with pytest.MonkeyPatch.context() as patch:
        runtime = request.param
        if runtime == HEAVY:
            # It takes minutes to compile: whoever runs the tests may have its machine code in their cache.
            patch.delenv("STOCKADE_CACHE", raising=False)
            patch.delenv("STOCKADE_STATE", raising=False)
            runtime = str(program_path("python 3.15"))
        with Python(POLICY, runtime=runtime) as language:
            language.prepare()
            yield language


def test_urllib_asks_a_server(python: Python, server: HttpServer) -> None:
    """Text, JSON, a body, and what the answer says of itself."""
    result = python.run(
        """
import json, urllib.request
with urllib.request.urlopen(f"{url}/there?q=1", timeout=5) as answer:
    first = [answer.status, answer.headers["x-one"], answer.geturl(), answer.read().decode()]
asked = urllib.request.Request(f"{url}/echo", data=b"sent", headers={"X-Mine": "1"}, method="PUT")
told = json.load(urllib.request.urlopen(asked))
[first, told["method"], told["body"], dict(map(tuple, told["headers"]))["x-mine"]]
""",
        inputs={"url": server.url},
    )

    assert result.error is None, result.error.traceback
    assert result.value == [[200, "1", f"{server.url}/there?q=1", "hello GET /there"], "PUT", "sent", "1"]
    assert result.report.usage.network_connections == 2


def test_http_client_asks_a_server(python: Python, server: HttpServer) -> None:
    result = python.run(
        """
import http.client
connection = http.client.HTTPConnection("localhost", port)
found = []
for path in ("/one", "/chunked", "/error"):
    connection.request("GET", path)
    answer = connection.getresponse()
    found.append([answer.status, answer.reason, answer.read().decode()])
connection.request("POST", "/echo", iter([b"in ", b"pieces"]))
found.append(connection.getresponse().status)
found
""",
        inputs={"port": server.port},
    )

    assert result.error is None, result.error.traceback
    assert result.value == [
        [200, "OK", "hello GET /one"],
        [200, "OK", "one two three"],
        [500, "Internal Server Error", "it broke"],
        200,
    ]
    assert server.seen[-1].body == b"in pieces"


def test_redirects_and_errors_are_those_of_urllib(python: Python, server: HttpServer) -> None:
    result = python.run(
        """
import urllib.request, urllib.error
found = [urllib.request.urlopen(f"{url}/redirect?to=/there").read().decode()]
for address in (f"{url}/error", "http://nobody.example/", "http://localhost:1/", f"{url}/wait?seconds=60"):
    try:
        urllib.request.urlopen(address, timeout=0.3)
    except urllib.error.HTTPError as problem:
        found.append([problem.code, problem.read().decode()])
    except urllib.error.URLError as problem:
        found.append([type(problem.reason).__name__, str(problem.reason)])
    except OSError as problem:
        found.append([type(problem).__name__, str(problem)])
found
""",
        inputs={"url": server.url},
    )

    assert result.error is None, result.error.traceback
    assert result.value[:2] == ["hello GET /there", [500, "it broke"]]
    assert result.value[2][0] == type(OSError(errno.EACCES, "")).__name__
    assert result.value[2][1].endswith("the policy permits this machine only, and nobody.example is none of its names")
    assert result.value[3][0] == "ConnectionError"
    assert result.value[4] == ["TimeoutError", "no answer within 0.3 s"]
    assert [violation.kind for violation in result.report.violations] == ["network"]


def test_fifty_megabytes_are_read_in_pieces(python: Python, server: HttpServer) -> None:
    code = """
import urllib.request
size = 0
with urllib.request.urlopen(f"{url}/large?bytes=50000000") as answer:
    while piece := answer.read(1 << 20):
        size += len(piece)
size
"""
    assert python.run(code, inputs={"url": server.url}).value == 50_000_000


def test_tls_is_verified_by_the_host(python: Python, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import urllib.request
try:
    found = urllib.request.urlopen(f"{url}/there").read().decode()
except OSError as problem:
    found = str(problem.reason)
found
"""
    with HttpServer(tls=True) as server, Python(POLICY, runtime=python.runtime) as other:
        assert other.run(code, inputs={"url": server.url}).value.startswith("the host does not prove its name: ")
    monkeypatch.setenv("SSL_CERT_FILE", str(AUTHORITY))
    with HttpServer(tls=True) as server, Python(POLICY, runtime=python.runtime) as other:
        assert other.run(code, inputs={"url": server.url}).value == "hello GET /there"


def test_without_a_network_there_is_none(python: Python, server: HttpServer) -> None:
    """The attack: code asks all the same, and by the messages that it would be served by."""
    code = """
import sys, urllib.request
message = b'\\1{"do":"send","url":"' + url.encode() + b'"}'
found = []
for ask in (lambda: urllib.request.urlopen(url), lambda: sys.modules["_host"].call(message)):
    try:
        found.append(repr(ask()))
    except BaseException as problem:
        found.append(None)
True
"""
    result = python.run(code, inputs={"url": server.url}, policy=Policy().replace(wall_time="60s", memory="512MiB"))

    assert result.value is True
    assert server.connections == 0


def test_a_policy_that_says_stop_ends_the_code(python: Python, server: HttpServer) -> None:
    result = python.run(
        "import urllib.request; urllib.request.urlopen('http://other.example/')",
        policy=POLICY.replace(on_violation="stop"),
    )

    assert result.report.outcome is Outcome.DENIED
    assert [(violation.kind, violation.action) for violation in result.report.violations] == [("network", "stop")]


def test_sessions_ask_again_and_again(python: Python, server: HttpServer) -> None:
    with python.session() as session:
        session.run("import urllib.request")
        for _ in range(3):
            found = session.run(f"urllib.request.urlopen('{server.url}/there').read().decode()")
            assert found.value == "hello GET /there"
            assert found.report.usage.network_connections == 1


def test_code_that_waits_holds_no_thread(python: Python, server: HttpServer) -> None:
    """Holds P-NET-4: interpreters wait for a server, and next to no thread does."""
    most, many = 0, examples(20)

    async def all_of_them() -> list[object]:
        nonlocal most
        code = f"import urllib.request; urllib.request.urlopen('{server.url}/wait?seconds=1').read().decode()"
        tasks = [asyncio.create_task(python.run_async(code)) for _ in range(many)]
        while not all(task.done() for task in tasks):
            if server.open == many:
                most = max(most, sum(thread.name == "stockade-executor" for thread in threading.enumerate()))
            await asyncio.sleep(0.02)
        return [task.result().value for task in tasks]

    assert asyncio.run(all_of_them()) == ["waited"] * many
    assert most < many // 2


def test_hostile_messages_are_answered(python: Python, server: HttpServer) -> None:
    """The attack: messages that are none, of another answer, or of a host that is not permitted."""
    code = """
import http.client
asked = http.client.HTTPConnection.connect.__globals__["_asked"]
found = []
other = {"do": "send", "url": "http://10.0.0.1/"}
for said in (other, {"do": "read", "response": 99}, {"do": "nothing"}, {"do": "send", "url": 5}, {}, []):
    try:
        asked(said)
    except OSError as problem:
        found.append(str(problem)[:20])
found
"""
    result = python.run(code)

    assert result.error is None, result.error.traceback
    assert len(result.value) == 6
    assert server.connections == 0


@pytest.fixture(scope="module", params=SCRIPTS)
def javascript(request: pytest.FixtureRequest) -> Iterator[JavaScript]:
    with JavaScript(POLICY, runtime=request.param) as language:
        language.prepare()
        yield language


def test_fetch_asks_a_server(javascript: JavaScript, server: HttpServer) -> None:
    result = javascript.run(
        """
const first = await fetch(`${url}/redirect?to=/there`);
const told = await (await fetch(`${url}/echo`, { method: "POST", body: JSON.stringify({ a: "ü" }),
  headers: { "Content-Type": "application/json", "X-Mine": "1" } })).json();
const failed = await fetch(`${url}/error`);
[first.status, first.ok, first.redirected, first.url, first.headers.get("X-One"), await first.text(),
  told.method, told.headers.find(([name]) => name === "x-mine")[1], told.body.length, failed.ok, failed.status]
""",
        inputs={"url": server.url},
    )

    assert result.error is None, result.error
    assert result.value == [
        *(200, True, True, f"{server.url}/there", "1", "hello GET /there"),
        *("POST", "1", len('{"a":"ü"}'.encode()), False, 500),
    ]


def test_fetch_reads_bytes_and_refuses(javascript: JavaScript, server: HttpServer) -> None:
    result = javascript.run(
        """
const bytes = new Uint8Array(await (await fetch(`${url}/large?bytes=3000000`)).arrayBuffer());
let told = null;
try { await fetch("http://other.example/"); } catch (problem) { told = `${problem.name}: ${problem.message}`; }
const manual = await fetch(`${url}/redirect?to=/there`, { redirect: "manual" });
const sent = await (await fetch(`${url}/echo`, { method: "POST", body: new Uint8Array([0, 255, 10]) })).json();
[bytes.length, bytes[0], told, manual.status, sent.body.length]
""",
        inputs={"url": server.url},
    )

    assert result.error is None, result.error
    assert result.value == [
        *(3_000_000, ord("x")),
        "TypeError: fetch failed: the policy permits this machine only, and other.example is none of its names",
        *(302, 3),
    ]
    assert server.seen[-1].body == b"\0\xff\n"


@pytest.mark.slow
def test_fetch_reads_fifty_megabytes(javascript: JavaScript, server: HttpServer) -> None:
    result = javascript.run(
        "(await (await fetch(`${url}/large?bytes=50000000`)).text()).length",
        inputs={"url": server.url},
        policy=POLICY.replace(wall_time="5min", request_time="5min"),
    )

    assert result.error is None, result.error
    assert result.value == 50_000_000


def test_fetch_waits_no_longer_than_its_policy_permits(javascript: JavaScript, server: HttpServer) -> None:
    code = """
let told = null;
try { await fetch(`${url}/wait?seconds=600`); } catch (problem) { told = `${problem.name}: ${problem.message}`; }
told
"""
    policy = POLICY.replace(wall_time="5min", request_time="500ms")
    result = javascript.run(code, inputs={"url": server.url}, policy=policy)

    assert result.value == "TypeError: fetch failed: the request has taken more than 0.5 s"
    assert [violation.kind for violation in result.report.violations] == ["request_time"]


def test_without_a_network_there_is_no_fetch(javascript: JavaScript) -> None:
    assert javascript.run("typeof fetch", policy=Policy()).value == "undefined"
