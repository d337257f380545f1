"""Guests in workers that make requests: the host makes them, and its secrets never come to a worker. Holds P-ISO-13."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stockade import Credential, HostRule, Network, Outcome, Policy, Sandbox
from stockade.isolation import _hub
from tests._http_server import HttpServer
from tests.egress.test_guests import GUEST, LOOPBACK
from tests.isolation.test_workers import number_of, server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def anew() -> None:
    """No worker is left of other tests."""
    _hub.hub.end()


NOWHERE = Policy(network=Network(mode="hosts", hosts=(HostRule("example.invalid"),)))


@pytest.fixture
def serving() -> Iterator[HttpServer]:
    with HttpServer() as found:
        yield found


def test_a_guest_in_a_worker_makes_requests(serving: HttpServer) -> None:
    """What it has used is told, as in this process."""
    reports = []
    for isolation in ("inprocess", "process"):
        with Sandbox(LOOPBACK, isolation=isolation) as box:  # type: ignore[arg-type]
            reports.append(box.call(GUEST.encode(), "fetch", f"{serving.url}/large?bytes=3000000"))

    here, there = reports
    assert (there.outcome, there.value, there.violations) == (Outcome.OK, 3_000_000, ())
    assert there.usage.network_connections == here.usage.network_connections == 1
    assert there.usage.network_sent_bytes == here.usage.network_sent_bytes
    assert 3_000_000 < there.usage.network_received_bytes < 3_001_000


def test_a_session_in_a_worker_keeps_no_answers(serving: HttpServer) -> None:
    """What is open when a call ends is closed, and each call is told what it has used itself."""
    with Sandbox(LOOPBACK, isolation="process") as box, box.open(GUEST.encode()) as session:
        first = session.call("get", f"{serving.url}/redirect?to=/there")
        second = session.call("status", 1)

    assert (first.value, second.value) == (1, -9)
    assert first.usage.network_connections == 2
    assert second.usage.network_connections == 0
    assert [seen.header("x-mine") for seen in serving.seen] == [["1"], ["1"]]


@pytest.mark.parametrize("isolation", ["inprocess", "process"])
@pytest.mark.parametrize("on_violation", ["deny", "stop"])
def test_what_is_not_permitted_is_never_sent(serving: HttpServer, isolation: str, on_violation: str) -> None:
    """Attack: a guest in a process of its own that asks for what its policy does not permit. It is told as here."""
    policy = NOWHERE.replace(on_violation=on_violation)  # type: ignore[arg-type]
    with Sandbox(policy, isolation=isolation) as box:  # type: ignore[arg-type]
        report = box.call(GUEST.encode(), "fetch", f"{serving.url}/a")

    assert not serving.seen
    assert report.outcome is (Outcome.OK if on_violation == "deny" else Outcome.DENIED)
    (violation,) = report.violations
    assert (violation.kind, violation.action) == ("network", on_violation)


def test_without_a_network_there_is_none(serving: HttpServer) -> None:
    """Attack: the same, where the policy permits none at all."""
    with Sandbox(Policy(), isolation="process") as box:
        report = box.call(GUEST.encode(), "fetch", f"{serving.url}/a")

    assert not serving.seen
    assert report.value < 0  # type: ignore[operator]
    assert [violation.kind for violation in report.violations] == ["network"]


def _memory_of(process: int) -> bytes:
    """All that a process has of memory, as far as it can be read."""
    found = []
    with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{process}/maps").read_text().splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if match is None or "[v" in line:
                continue
            first, last = (int(match[place], 16) for place in (1, 2))
            memory.seek(first)
            # Behind the end of a file that is mapped there is nothing.
            with suppress(OSError):
                found.append(memory.read(last - first))
    return b"".join(found)


SECRET = "a-secret-that-no-worker-has-5309"

PAUSES = """
(module
  (import "stockade:http" "send" (func $send
    (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "env" "pause" (func $pause (param i32 i32)))
  (memory (export "memory") 64)
  (func (export "malloc") (param i32) (result i32) (i32.const 4096))
  (func (export "free") (param i32))
  (func (export "fetch") (param $url i32) (param $size i32) (result i32)
    (local $response i32)
    (local.set $response (call $send (i32.const 0) (i32.const 3) (local.get $url) (local.get $size) (i32.const 0)
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)))
    (call $pause (local.get $url) (local.get $size))
    (local.get $response))
  (data (i32.const 0) "GET"))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into processes that hide from others")
def test_secrets_of_the_host_are_in_no_worker(serving: HttpServer) -> None:
    """Attack: code that is out of the guest reads its process, right after a request that had a secret added to it.

    What the guest itself has is found there: the search finds what there is.
    """
    credential = Credential(value=SECRET, hosts=["localhost"], header="X-Key", secure=False)
    box = Sandbox(LOOPBACK, isolation="process", credentials={"key": credential})
    seen: list[bytes] = []

    @box.host_function("env", "pause")
    def pause(url: str) -> None:
        assert url
        (worker,) = server().workers.values()
        seen.append(_memory_of(number_of(worker)))

    report = box.call(PAUSES.encode(), "fetch", f"{serving.url}/found-in-the-guest-8241")

    assert report.ok, report.summary()
    (request,) = serving.seen
    assert request.header("x-key") == [SECRET]
    (memory,) = seen
    assert b"found-in-the-guest-8241" in memory
    assert SECRET.encode() not in memory
