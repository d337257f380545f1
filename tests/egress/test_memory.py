"""Where a credential is not: in the memory of a guest, of a jailed worker, and of any other process but the host.

Holds P-NET-5.
"""

from __future__ import annotations

import base64
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from stockade import Credential, Network, Outcome, Policy, Sandbox
from stockade.gate import Gate
from tests.egress.test_guests import GUEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests._http_server import HttpServer

LOOPBACK = Policy(network=Network(mode="loopback"))


def _value() -> str:
    """A value that stands nowhere in the code, made of two halves."""
    return "".join(["v4lue", "-of-a-", "credential-", "9" * 12])


def _forms() -> list[bytes]:
    """Those in which it may lie in memory."""
    value = _value().encode()
    return [
        value,
        _value().encode("utf-16-le"),
        value.hex().encode(),
        *(base64.b64encode(b"x" * at + value)[4:-4] for at in range(3)),
    ]


@pytest.fixture
def server(secure: HttpServer) -> HttpServer:
    return secure


def _descendants() -> list[int]:
    """All processes that this one has started, and those that they have."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {os.getpid()})


def _regions(process: int) -> Iterator[tuple[int, int]]:
    """The memory of a process that can be written, and has been: its heaps, its stacks, and what it has mapped."""
    region = None
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line):
            region = int(match[1], 16), int(match[2], 16)
        elif re.match(r"[0-9a-f]+-", line):
            region = None
        elif line.startswith("Rss:") and region is not None and line.split()[1] != "0":
            yield region


def _holds(process: int, what: Iterable[bytes]) -> bool:
    """Whether the memory of a process has one of some texts; its environment and arguments lie on its stack."""
    with Path(f"/proc/{process}/mem").open("rb", 0) as memory:
        for start, end in _regions(process):
            for at in range(start, end, 16 << 20):
                try:
                    data = os.pread(memory.fileno(), min(end - at, (16 << 20) + 200), at)
                except OSError:
                    continue
                if any(text in data for text in what):
                    return True
    return False


@pytest.mark.parametrize("isolation", ["inprocess", "process"])
def test_the_memory_of_a_guest_has_the_placeholder(
    server: HttpServer, tmp_path: Path, isolation: Literal["inprocess", "process"]
) -> None:
    """The attack: a guest looks through all of its memory for the credential that it has had sent, and been echoed."""
    credentials = {"api": Credential(_value(), hosts=["localhost"])}
    with Sandbox(LOOPBACK, isolation, credentials=credentials) as box, box.open(GUEST.encode()) as session:
        assert session.call("fetch", f"{server.url}/echo").value > 100
        snapshot = session.snapshot()
        snapshot.save(tmp_path / "snapshot")
    saved = (tmp_path / "snapshot").read_bytes()

    assert server.seen[0].header("authorization") == [_value()]
    assert b"stockade-credential-api" in saved
    assert not Gate(secrets={"api": _value()}).scan(saved).findings


HERE = "what-the-guest-has-in-its-memory"
WAITING = f"""
{GUEST.rstrip().removesuffix(")").replace("(module", '(module (import "env" "look" (func $look))', 1)}
  (data (i32.const 60000) "{HERE}")
  (func (export "run") (param $url i32) (param $size i32) (result i32)
    ;; With the answer open, of which it has read a part.
    (local $response i32)
    (local.set $response (call $send (i32.const 0) (i32.const 3) (local.get $url) (local.get $size) (i32.const 0)
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)))
    (drop (call $read (local.get $response) (i32.const 1048576) (i32.const 100)))
    (call $look)
    (call $status (local.get $response))))
"""


def test_no_process_but_the_host_has_a_credential(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a guest that has got out of its engine, into the worker; out of that, into the fork server; or a
    module that has got out of the compiler. None of these has the value, nor the variable that the host had it from,
    while a request is under way that it goes along with, and that an API echoes."""
    monkeypatch.setenv("KEY_OF_THE_HOST", _value())
    credential = Credential.from_environment("KEY_OF_THE_HOST", hosts=["localhost"])
    found: dict[int, tuple[bool, bool]] = {}
    policy = LOOPBACK.replace(wall_time="5min", idle_time="5min", request_time="5min")

    with Sandbox(policy, "process", credentials={"api": credential}) as box:

        @box.host_function("env", "look")
        def look() -> None:
            for process in _descendants():
                # What has ended meanwhile holds nothing.
                with suppress(FileNotFoundError, ProcessLookupError):
                    found[process] = _holds(process, _forms()), _holds(process, [HERE.encode()])

        report = box.call(WAITING.encode(), "run", f"{server.url}/echo")

    assert (report.outcome, report.value) == (Outcome.OK, 200), report
    assert server.seen[0].header("authorization") == [_value()]
    # The positive twins: what is searched is there, in the host and in the worker.
    assert _holds(os.getpid(), _forms())
    assert any(has_guest for _, has_guest in found.values())
    assert len(found) >= 2
    assert [process for process, (has_value, _) in found.items() if has_value] == []
