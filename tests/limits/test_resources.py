"""What a guest uses is counted exactly, and each thing that it may not do is told as exactly that.

Holds P-REPORT-7.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from stockade import Monitoring, Mount, Outcome, Policy, Sandbox
from stockade.policy import Wasi
from tests._small_guests import SLEEP
from tests.conftest import HELLO, wat
from tests.limits._guests import CREAT, EMFILE, MOUNT, SUCCESS, Script, files_policy
from tests.report._reports import BUSY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stockade import Report

pytestmark = pytest.mark.usefixtures("everywhere")

SPIN = '(module (func (export "_start") (loop (br 0))))'
DEEP = '(module (func $f (export "_start") (call $f)))'
GROWS = '(module (memory 1) (func (export "_start") (drop (memory.grow (i32.const 100)))))'
TABLE = """(module (table 1 funcref)
  (func (export "_start") (drop (table.grow (ref.null func) (i32.const 100)))))"""


def ran(text: str, **limits: object) -> Report:
    """The report on a guest under limits."""
    with Sandbox(Policy().replace(**{"wall_time": 60, **limits})) as box:  # type: ignore[arg-type]
        return box.run(wat(text))


def played(folder: Path, write: Callable[[Script], object], **limits: object) -> Report:
    """The report on a script, in a folder that it may do everything to."""
    (folder / "here").write_bytes(b"x" * 1000)
    script = Script()
    write(script)
    return script.play(files_policy(folder, **limits)).report  # type: ignore[arg-type]


def read(script: Script, times: int) -> None:
    """Reads 100 bytes, some times."""
    file = script.open("here")
    for _ in range(times):
        script.pread(file, 100, 0)


def written(script: Script, size: int) -> None:
    """Writes a new file."""
    script.write(script.open("new", CREAT), b"x" * size)


def yields(script: Script, times: int) -> None:
    """Calls that do nothing."""
    for _ in range(times):
        script.call("sched_yield")


def socket(script: Script) -> None:
    """Asks for the network."""
    script.call("sock_shutdown", MOUNT, 1)


VIOLATIONS: dict[str, tuple[str, Callable[[Path], Report]]] = {
    "memory": ("memory", lambda folder: ran(GROWS, memory=1 << 20)),
    "memory_growth": ("memory_growth", lambda folder: ran(GROWS, memory_growth=10)),
    "table": ("table_elements", lambda folder: ran(TABLE, table_elements=10)),
    "timeout": ("wall_time", lambda folder: ran(SPIN, wall_time=0.05)),
    "idle": ("idle_time", lambda folder: ran(SLEEP, idle_time=0.05)),
    "fuel": ("fuel", lambda folder: ran(SPIN, fuel=1000)),
    "stack": ("stack", lambda folder: ran(DEEP)),
    "calls": ("calls", lambda folder: played(folder, lambda script: yields(script, 6), calls=5)),
    "call_rate": ("call_rate", lambda folder: played(folder, lambda s: yields(s, 6), call_rate=5, on_rate="refuse")),
    "open_files": (
        "open_files",
        lambda folder: played(folder, lambda script: [script.open("here") for _ in range(3)], open_files=2),
    ),
    "files_created": ("files_created", lambda folder: played(folder, lambda s: written(s, 1), files_created=0)),
    "file_size": ("file_size", lambda folder: played(folder, lambda script: written(script, 101), file_size=100)),
    "read_bytes": ("read_bytes", lambda folder: played(folder, lambda script: read(script, 2), read_bytes=100)),
    "write_bytes": ("write_bytes", lambda folder: played(folder, lambda script: written(script, 101), write_bytes=100)),
    "read_rate": ("read_rate", lambda folder: played(folder, lambda s: read(s, 2), read_rate=100, on_rate="refuse")),
    "random_bytes": (
        "random_bytes",
        lambda folder: played(folder, lambda script: script.call("random_get", 64, 101), random_bytes=100),
    ),
    "path": ("", lambda folder: played(folder, lambda script: script.open("../outside"))),
    "create": ("", lambda folder: played(folder, lambda script: written(script, 1), create=False)),
    "delete": ("", lambda folder: played(folder, lambda s: s.call("path_unlink_file", MOUNT, "here"), delete=False)),
    "symlinks": ("", lambda folder: played(folder, lambda s: s.call("path_symlink", "a", MOUNT, "b"), symlinks=False)),
}


@pytest.mark.parametrize("kind", VIOLATIONS)
def test_each_violation_is_told_as_itself_and_nothing_else(kind: str, tmp_path: Path) -> None:
    """One guest for each: its report has that kind, once, under pressure of that limit alone."""
    limit, run = VIOLATIONS[kind]
    report = run(tmp_path)

    (violation,) = report.violations
    assert (violation.kind, violation.count) == (kind, 1)
    assert [use.name for use in report.limits_used if use.exceeded] == ([limit] if limit else [])
    assert report.has_pressure(1.0) is bool(limit)
    document = json.loads(report.to_json())
    assert [told["kind"] for told in document["violations"]] == [kind]
    assert "violations" in report.render()


@pytest.mark.parametrize(
    ("wasi", "field"), [(Wasi(deny=("sock_*",)), "wasi.deny"), (Wasi(allow=("fd_*",), deny=()), "wasi.allow")]
)
def test_a_syscall_that_is_forbidden_and_one_that_is_not_allowed(tmp_path: Path, wasi: Wasi, field: str) -> None:
    """A socket: refused by name, or since the list of what is allowed does not have it."""
    script = Script()
    socket(script)
    report = script.play(msgspec.structs.replace(files_policy(tmp_path), wasi=wasi)).report

    (violation,) = report.violations
    assert (violation.kind, violation.call, violation.field) == ("call", "sock_shutdown", field)
    assert report.usage.denied == {"sock_shutdown": 1}
    assert not report.has_pressure(1.0)


def test_opening_is_counted_exactly(tmp_path: Path) -> None:
    """Open, open, refused, close, open: what is refused opens nothing, and what is closed makes room."""
    (tmp_path / "here").write_bytes(b"x")
    script = Script()
    first = script.open("here")
    script.open("here")
    script.open("here")
    script.close(first)
    script.open("here")
    done = script.play(files_policy(tmp_path, open_files=2))

    assert done.errnos == [SUCCESS, SUCCESS, EMFILE, SUCCESS, SUCCESS]
    usage = done.report.usage
    assert (usage.files_opened, usage.files_open_peak, usage.denied) == (3, 2, {"path_open": 1})
    assert done.report.utilization["open_files"] == 1.0


def test_closing_what_is_closed_counts_nothing(tmp_path: Path) -> None:
    """No count goes below nothing: after three closes of one file, exactly two more may be open."""
    (tmp_path / "here").write_bytes(b"x")
    script = Script()
    file = script.open("here")
    for _ in range(3):
        script.close(file)
    for _ in range(3):
        script.open("here")
    done = script.play(files_policy(tmp_path, open_files=2))

    assert [errno == SUCCESS for errno in done.errnos] == [True, True, False, False, True, True, False]
    assert (done.report.usage.files_opened, done.report.usage.files_open_peak) == (3, 2)


def test_a_run_knows_nothing_of_the_one_before() -> None:
    """Violations, time and counts begin anew, in one sandbox and of one module."""
    with Sandbox(Policy().replace(memory=1 << 20), monitoring=Monitoring(alerts=0.9, samples=True)) as box:
        module = box.prepare(wat(GROWS))
        first, second = box.run(module), box.run(module)

    for report in (first, second):
        assert [violation.count for violation in report.violations] == [1]
        assert [alert.limit for alert in report.alerts] == ["memory"]
        assert report.usage.wall_seconds < 1
        assert report.samples[0].violations == 0
    assert second.usage.calls == first.usage.calls


MILLION = """(module
  (import "wasi_snapshot_preview1" "sock_shutdown" (func $shut (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $n i32)
    (loop $more
      (drop (call $shut (i32.const 3) (i32.const 1)))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $n) (i32.const 1000000))))))"""


def test_a_million_violations_are_one_with_a_count() -> None:
    """Attack: a guest that fills the reader's memory with what it was refused. The report stays small, and is true."""
    with Sandbox(Policy().replace(wall_time=60), monitoring=Monitoring(samples=True, alerts=0.5)) as box:
        report = box.run(wat(MILLION))

    (violation,) = report.violations
    assert (violation.count, report.usage.denied) == (1_000_000, {"sock_shutdown": 1_000_000})
    assert (len(report.events), report.events_dropped) == (32, 1_000_000 - 32)
    assert report.samples[-1].violations == 1_000_000
    assert len(report.to_json()) < 250_000
    assert len(report.to_html()) < 150_000
    assert len(report.render()) < 4_000


def test_success_and_violations_are_two_things(tmp_path: Path) -> None:
    """A guest that was refused something may do its work; one that fails may have been refused nothing."""
    refused = played(tmp_path, socket)
    # This policy permits sockets; the default one does not.
    allowed = (refused.ok, refused.violations)
    with Sandbox() as box:
        worked = box.run(wat(MILLION.replace("1000000", "1")))
        failed = box.run(wat('(module (func (export "_start") unreachable))'))

    assert allowed == (True, ())
    assert (worked.outcome, len(worked.violations)) == (Outcome.OK, 1)
    assert (failed.outcome, failed.violations) == (Outcome.TRAP, ())
    assert all(report.usage.wall_seconds > 0 for report in (refused, worked, failed))


def test_every_measure_tells_what_was_used(tmp_path: Path) -> None:
    """Integration: one guest uses everything, and each number is what it used."""
    (tmp_path / "here").write_bytes(b"x" * 1000)
    script = Script()
    file = script.open("here")
    script.pread(file, 1000, 0)
    script.write(script.open("new", CREAT), b"y" * 300)
    script.call("path_create_directory", MOUNT, "folder")
    script.call("path_unlink_file", MOUNT, "here")
    script.call("random_get", script.room(64), 64)
    script.write(1, b"out")
    script.write(2, b"error")
    script.sleep(0.02)
    script.call("sock_shutdown", MOUNT, 1)
    policy = files_policy(tmp_path, fuel=10**9)
    usage = script.play(msgspec.structs.replace(policy, wasi=Wasi(deny=("sock_*",)))).report.usage

    assert (usage.read_bytes, usage.written_bytes, usage.random_bytes) == (1000, 300, 64)
    assert (usage.stdout_bytes, usage.stderr_bytes) == (3, 5)
    assert (usage.files_opened, usage.files_open_peak, usage.files_created, usage.files_deleted) == (2, 2, 2, 1)
    assert (usage.calls["path_open"], usage.calls["fd_write"], usage.denied) == (2, 3, {"sock_shutdown": 1})
    assert usage.fuel is not None
    assert 0 < usage.fuel < 10**9
    assert 0.02 <= usage.idle_longest_seconds <= usage.idle_seconds <= usage.wall_seconds
    assert usage.cpu_seconds > 0
    assert usage.memory_bytes == usage.memory_peak_bytes == (128 << 16) + 8 * usage.table_elements
    assert (usage.network_sent_bytes, usage.network_received_bytes, usage.network_connections) == (0, 0, 0)


def test_integration_of_a_run_and_all_that_is_told_of_it(tmp_path: Path) -> None:
    """Integration: limits, alerts, samples, violations and output of one run agree with each other in every format."""
    policy = Policy(name="all").replace(memory="8MiB", fuel=10**10, wall_time=60, mounts=[Mount(tmp_path, "/d", "ro")])
    told: list[str] = []
    watched = Monitoring(samples=True, alerts=0.8, on_alert=lambda alert: told.append(alert.limit))
    with Sandbox(policy, monitoring=watched) as box:
        report = box.run(wat(BUSY))
        fresh = box.run(wat(HELLO))

    shares, document, html, text = report.utilization, json.loads(report.to_json()), report.to_html(), report.render()
    assert told == [alert.limit for alert in report.alerts]
    assert set(told) == {use.name for use in report.limits_used if use.exceeded or (use.utilization or 0) >= 0.8}
    assert document["utilization"] == shares
    assert document["samples"][-1]["memory_bytes"] == report.usage.memory_bytes == 101 << 16
    assert document["stdout"].startswith("<b>hi\n")
    assert "&lt;b&gt;hi\n" in html
    assert "<b>hi" not in html
    assert "memory.grow asked for" in text
    assert (fresh.alerts, fresh.violations) == ((), ())
