"""Compiled guests that make requests by `stockade:http`."""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from stockade import (
    AuditLog,
    Credential,
    HostRule,
    LinkError,
    Network,
    Outcome,
    Policy,
    PolicyError,
    Quota,
    Sandbox,
    UsageError,
)
from tests._http_server import AUTHORITY, HttpServer
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from pathlib import Path

    from stockade import Report
    from stockade.policy import Isolation

LOOPBACK = Policy(network=Network(mode="loopback"))

GUEST = """
(module
  (import "stockade:http" "send" (func $send
    (param $method i32) (param i32) (param $url i32) (param i32) (param $headers i32) (param i32)
    (param $body i32) (param i32) (param $flags i32) (param $milliseconds i32) (result i32)))
  (import "stockade:http" "read" (func $read (param i32 i32 i32) (result i32)))
  (import "stockade:http" "status" (func $status (param i32) (result i32)))
  (import "stockade:http" "headers" (func $headers (param i32 i32 i32) (result i32)))
  (import "stockade:http" "url" (func $url (param i32 i32 i32) (result i32)))
  (import "stockade:http" "error" (func $error (param i32 i32) (result i32)))
  (import "stockade:http" "close" (func $close (param i32)))
  (memory (export "memory") 64)
  (global $top (mut i32) (i32.const 65536))
  (func (export "malloc") (param $size i32) (result i32)
    global.get $top
    (global.set $top (i32.add (global.get $top) (local.get $size))))
  (func (export "free") (param i32))
  (func (export "get") (param $url i32) (param $size i32) (result i32)
    (call $send (i32.const 0) (i32.const 3) (local.get $url) (local.get $size) (i32.const 16) (i32.const 9)
      (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)))
  (func (export "status") (param i32) (result i32) (call $status (local.get 0)))
  (func (export "body") (param $response i32) (result i32 i32)
    (i32.const 1024) (call $read (local.get $response) (i32.const 1024) (i32.const 4096)))
  (func (export "headers") (param $response i32) (result i32 i32)
    (i32.const 1024) (call $headers (local.get $response) (i32.const 1024) (i32.const 4096)))
  (func (export "url") (param $response i32) (result i32 i32)
    (i32.const 1024) (call $url (local.get $response) (i32.const 1024) (i32.const 4096)))
  (func (export "error") (result i32 i32)
    (i32.const 1024) (call $error (i32.const 1024) (i32.const 4096)))
  (func (export "close") (param i32) (call $close (local.get 0)))
  (func (export "fetch") (param $url i32) (param $size i32) (result i32)
    ;; How many bytes an answer has; the code of the failure where there is none.
    (local $response i32) (local $got i32) (local $sum i32)
    (local.set $response (call $send (i32.const 0) (i32.const 3) (local.get $url) (local.get $size) (i32.const 0)
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)))
    (if (i32.lt_s (local.get $response) (i32.const 0)) (then (return (local.get $response))))
    (loop $more
      (local.set $got (call $read (local.get $response) (i32.const 1048576) (i32.const 1048576)))
      (if (i32.lt_s (local.get $got) (i32.const 0)) (then (return (local.get $got))))
      (local.set $sum (i32.add (local.get $sum) (local.get $got)))
      (br_if $more (local.get $got)))
    (call $close (local.get $response))
    (local.get $sum))
  (func (export "twice") (param $url i32) (param $size i32) (result i32)
    ;; Its second request, with the first one open.
    (drop (call $send (i32.const 0) (i32.const 3) (local.get $url) (local.get $size) (i32.const 0)
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)))
    (call $send (i32.const 0) (i32.const 3) (local.get $url) (local.get $size) (i32.const 0)
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)))
  (func (export "wild") (result i32)
    (call $send (i32.const 0) (i32.const 3) (i32.const -16) (i32.const 100) (i32.const 0)
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)))
  (data (i32.const 0) "GET")
  (data (i32.const 16) "X-Mine: 1"))
"""


def fetch(url: str, policy: Policy = LOOPBACK, export: str = "fetch") -> Report:
    with Sandbox(policy) as box:
        return box.call(GUEST.encode(), export, url)


def test_a_guest_makes_a_request(server: HttpServer) -> None:
    """Holds P-NET-1: the positive twin of what is refused."""
    with Sandbox(LOOPBACK) as box, box.open(GUEST.encode()) as session:
        assert session.call("get", f"{server.url}/redirect?to=/there").value == 1
        # What is open when a call ends is closed.
        assert session.call("status", 1).value == -9
        text: Any = session.call("error", returns="text").value
        assert text == "there is no such answer: it was closed, or never was"

    assert [seen.header("x-mine") for seen in server.seen] == [["1"], ["1"]]


def test_what_a_guest_uses_is_told(server: HttpServer) -> None:
    report = fetch(f"{server.url}/large?bytes=3000000")

    assert (report.outcome, report.value, report.violations) == (Outcome.OK, 3_000_000, ())
    assert report.usage.network_connections == 1
    assert 3_000_000 < report.usage.network_received_bytes < 3_001_000
    assert 50 < report.usage.network_sent_bytes < 500


def test_fifty_megabytes_pass_through(server: HttpServer) -> None:
    assert fetch(f"{server.url}/large?bytes=50000000").value == 50_000_000


@pytest.mark.parametrize("mode", ["none", "hosts", "ports"])
def test_what_is_refused_opens_no_socket(server: HttpServer, mode: str) -> None:
    """The attack: a guest asks for a host that its policy does not name. Holds P-NET-1."""
    network = {
        "none": Network(),
        "hosts": Network(mode="hosts", hosts=[HostRule("api.example.com")]),
        "ports": Network(mode="ports", ports=[server.port]),
    }[mode]

    report = fetch(server.url, Policy(network=network))

    assert (report.outcome, report.value, server.connections) == (Outcome.OK, -1, 0)
    (violation,) = report.violations
    assert (violation.kind, violation.subject, violation.call) == ("network", server.url, "http")
    assert (violation.action, violation.count) == ("deny", 1)
    assert report.usage.network_connections == 0


def test_a_policy_that_says_stop_ends_the_run(server: HttpServer) -> None:
    report = fetch(server.url, Policy(on_violation="stop"))

    assert (report.outcome, server.connections) == (Outcome.DENIED, 0)
    (violation,) = report.violations
    assert (violation.kind, violation.action) == ("network", "stop")


def test_a_policy_that_audits_still_refuses_hosts(server: HttpServer) -> None:
    """The attack: a policy for learning lets quotas pass, and with them what goes to hosts that nobody named."""
    report = fetch(server.url, Policy(on_violation="audit"))
    let_through = fetch(server.url, LOOPBACK.replace(on_violation="audit", requests=0))

    assert (report.value, server.connections) == (-1, 1)
    assert let_through.value == len(b"hello GET /")
    assert [(violation.kind, violation.action) for violation in let_through.violations] == [("requests", "audit")]


def test_too_many_connections_are_refused(server: HttpServer) -> None:
    report = fetch(f"{server.url}/large?bytes=5000000", LOOPBACK.replace(connections=1), "twice")

    assert report.value == -6
    (violation,) = report.violations
    assert (violation.kind, violation.limit, violation.observed) == ("connections", 1, 2)


def test_addresses_outside_of_its_memory_end_the_run(server: HttpServer) -> None:
    """The attack: a URL that lies beyond the guest's memory."""
    with Sandbox(LOOPBACK) as box:
        report = box.call(GUEST.encode(), "wild")
    assert (report.outcome, server.connections) == (Outcome.TRAP, 0)


def test_functions_of_this_module_are_types_that_are_checked() -> None:
    with Sandbox() as box, pytest.raises(LinkError, match=r"stockade:http\.send"):
        box.prepare(b'(module (import "stockade:http" "send" (func)))')
    with Sandbox() as box, pytest.raises(UsageError, match="stockade:http is Stockade's own"):
        box.host_function("stockade:http", "send")(lambda: None)


def test_a_deadline_holds_in_a_request(server: HttpServer) -> None:
    report = fetch(f"{server.url}/wait?seconds=60", LOOPBACK.replace(wall_time=0.3))

    assert report.outcome is Outcome.TIMEOUT
    while server.open:
        time.sleep(0.01)


def test_a_cancelled_guest_lets_go_of_its_connection(server: HttpServer) -> None:
    """Holds P-NET-4."""

    async def cancelled() -> None:
        async with Sandbox(LOOPBACK) as box:
            task = asyncio.create_task(box.call_async(GUEST.encode(), "fetch", f"{server.url}/wait?seconds=60"))
            while not server.seen:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while server.open:
                await asyncio.sleep(0.001)

    asyncio.run(cancelled())


@pytest.mark.parametrize("count", [100, pytest.param(1_000, marks=pytest.mark.slow)])
def test_many_guests_wait_without_threads(server: HttpServer, count: int) -> None:
    """Holds P-NET-4: a thousand guests wait for a server at once, and next to no thread does. It answers nobody before
    all are there."""
    most, before = 0, threading.active_count()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def all_of_them() -> list[Any]:
        nonlocal most
        async with Sandbox(LOOPBACK.replace(wall_time="5min", idle_time="5min", request_time="5min")) as box:
            box.prepare(GUEST.encode())
            url = f"http://127.0.0.1:{server.port}/gather?count={count}"
            tasks = [asyncio.create_task(box.call_async(GUEST.encode(), "fetch", url)) for _ in range(count)]
            while not all(task.done() for task in tasks):
                most = max(most, threading.active_count() - before)
                await asyncio.sleep(0.02)
            return [task.result().value for task in tasks]

    try:
        assert asyncio.run(all_of_them()) == [len("together")] * count
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert server.connections == server.gathered == count
    assert most < 20


def test_cancelling_takes_no_time(server: HttpServer) -> None:
    """Holds P-NET-4: within 50 ms of being cancelled a guest is gone, and the server has seen it go. The best of some
    is what is asked for: that others keep the machine busy is not ours."""

    async def cancelled(box: Sandbox) -> float:
        seen = len(server.seen)
        task = asyncio.create_task(box.call_async(GUEST.encode(), "fetch", f"{server.url}/wait?seconds=60"))
        while len(server.seen) == seen:
            await asyncio.sleep(0.005)
        begun = time.perf_counter()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while server.open:
            await asyncio.sleep(0.001)
        return time.perf_counter() - begun

    async def best() -> float:
        async with Sandbox(LOOPBACK.replace(wall_time="2min", idle_time="2min", request_time="2min")) as box:
            least = 60.0
            for _ in range(50):
                least = min(least, await cancelled(box))
                if least < 0.05:
                    break
            return least

    assert asyncio.run(best()) < 0.05


def test_the_preset_for_development_reaches_this_machine_alone(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With its own folders and limits: a service on this machine is asked, and what is elsewhere is not."""
    for name in ("work", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    policy = Policy.preset("development")

    assert fetch(f"{server.url}/there", policy).value == len("hello GET /there")
    for url in ("http://10.0.0.1/", "http://169.254.169.254/", "https://example.com/"):
        report = fetch(url, policy)
        assert (report.value, [violation.kind for violation in report.violations]) == (-1, ["network"])
    assert server.connections == 1


def test_a_log_has_what_was_refused_and_no_credential(server: HttpServer, tmp_path: Path) -> None:
    """The attack: a log, which many may read, comes to have the value that an API has echoed."""
    credential = Credential("v4lue-of-a-credential", hosts=["localhost"], secure=False)
    path = tmp_path / "log"
    with AuditLog(path) as log, Sandbox(LOOPBACK, audit=log, credentials={"api": credential}) as box:
        assert box.call(GUEST.encode(), "fetch", f"{server.url}/echo").value > 0
        assert box.call(GUEST.encode(), "fetch", "http://10.0.0.1/v4lue-of-a-credential").value == -1

    assert server.seen[0].header("authorization") == ["v4lue-of-a-credential"]
    told = path.read_text()
    assert "http://10.0.0.1" in told
    assert "v4lue-of-a-credential" not in told


@pytest.mark.parametrize(("mbps", "rate"), [(10.0, 1_250_000), (0.8, 100_000), (0.000_008, 1)])
def test_a_quota_is_the_rate_of_requests(mbps: float, rate: int) -> None:
    """What is sent and received in a second; the policy's own rate holds where it is less."""
    quota = Quota(max_network_mbps=mbps)

    assert quota.narrowed(LOOPBACK).limits.network_rate == rate
    assert quota.narrowed(LOOPBACK.replace(network_rate=1)).limits.network_rate == 1
    assert Quota(max_network_mbps=0).narrowed(LOOPBACK).network == Network()


def test_tls_is_for_guests_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with HttpServer(tls=True) as server:
        assert fetch(server.url).value == -4
        monkeypatch.setenv("SSL_CERT_FILE", str(AUTHORITY))
        assert fetch(server.url).value == len(b"hello GET /")


@pytest.mark.parametrize("isolation", ["inprocess", "process"])
def test_without_the_extra_a_module_that_makes_requests_is_refused(
    isolation: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it runs, in words that say what to install; where the policy permits none, it is as ever."""
    monkeypatch.setitem(sys.modules, "h11", None)
    box = Sandbox(LOOPBACK, isolation)
    for _ in range(2):
        with pytest.raises(PolicyError) as caught:
            box.call(GUEST.encode(), "fetch", "http://localhost/")
        assert str(caught.value) == (
            '<bytes> imports stockade:http, and network.mode "loopback" permits requests, but what makes them is not '
            "installed: pip install 'stockade[network]'"
        )
    assert Sandbox(isolation=isolation).call(GUEST.encode(), "fetch", "http://localhost/").value == -1
    assert Sandbox(LOOPBACK, isolation).run(wat(HELLO)).ok
