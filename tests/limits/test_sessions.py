"""Over the calls of a session: quotas and what is unread of stdin go on, what is told of a call begins anew."""

from __future__ import annotations

import struct
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import stockade
from stockade import Outcome, Policy
from stockade.policy import Clock, Random, Wasi
from tests.limits._guests import (
    CREAT,
    EDQUOT,
    EPERM,
    MOUNT,
    SUCCESS,
    Later,
    Script,
    files_policy,
    kinds,
    player,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stockade.report import Report

pytestmark = pytest.mark.usefixtures("everywhere")


class Call(NamedTuple):
    """What became of one call of a session."""

    report: Report
    errnos: list[int]


class Playing:
    """A script that is played a piece at a time, each in a call of its own."""

    def __init__(self, session: stockade.Session, script: Script) -> None:
        image, self._start, self._errnos, count = script.image()
        self._entry = (self._errnos - self._start) // count
        self._session = session
        self._next = 0
        session.write_memory(0, image)

    def next(self, count: int = 1) -> Call:
        """Plays the next calls of the script."""
        first = self._next
        self._next += count
        errnos = self._errnos + 4 * first
        report = self._session.call("play", self._start + first * self._entry, errnos, count)
        if self._session._guest.ended:
            return Call(report, [])
        return Call(report, list(struct.unpack(f"<{count}I", self._session.read_memory(errnos, 4 * count))))

    def number(self, place: Later) -> int:
        """A number in memory."""
        return int.from_bytes(self._session.read_memory(place.address, 4), "little")

    def bytes(self, address: int, count: Later) -> bytes:
        """So many bytes of memory as a result tells."""
        return self._session.read_memory(address, self.number(count))


@contextmanager
def playing(script: Script, policy: Policy, **inputs: Any) -> Iterator[Playing]:
    """A session that plays a script."""
    with stockade.Sandbox(policy).open(player(), **inputs) as session:
        yield Playing(session, script)


def open_policy(**limits: Any) -> Policy:
    """A policy without mounts that refuses no call as such."""
    return Policy(wasi=Wasi(deny=())).replace(**{"wall_time": 20.0, **limits})


# -- what goes on ------------------------------------------------------------------------------------------------------


def test_what_may_be_read_is_for_the_session(tmp_path: Path) -> None:
    """Sixty bytes, then the forty that are left, then none; each report tells of its own call."""
    (tmp_path / "file").write_bytes(b"x" * 1000)
    script = Script()
    fd = script.open("file")
    counts = [script.read(fd, 60)[0] for _ in range(3)]
    with playing(script, files_policy(tmp_path, read_bytes=100)) as play:
        assert play.next().errnos == [SUCCESS]
        calls = [play.next() for _ in range(3)]
        assert [call.errnos for call in calls] == [[SUCCESS], [SUCCESS], [EDQUOT]]
        assert [play.number(count) for count in counts] == [60, 40, 0]
    assert [call.report.usage.read_bytes for call in calls] == [60, 40, 0]
    assert [kinds(call.report.violations) for call in calls] == [[], [], ["read_bytes"]]
    violation = calls[2].report.violations[0]
    assert (violation.limit, violation.observed) == (100, 101)


def test_what_may_be_written_is_for_the_session(tmp_path: Path) -> None:
    """Also what a file grows by without being written."""
    script = Script()
    fd = script.open("file", CREAT)
    script.write(fd, b"x" * 60)
    script.call("fd_filestat_set_size", fd, 90)
    script.pwrite(fd, b"x" * 11, 90)
    script.pwrite(fd, b"x" * 10, 90)
    script.pwrite(fd, b"x", 0)
    with playing(script, files_policy(tmp_path, write_bytes=100)) as play:
        calls = [play.next() for _ in range(6)]
    assert [call.errnos[0] for call in calls] == [SUCCESS, SUCCESS, SUCCESS, EDQUOT, SUCCESS, EDQUOT]
    assert [call.report.usage.written_bytes for call in calls] == [0, 60, 30, 0, 10, 0]
    assert (tmp_path / "file").stat().st_size == 100


def test_what_may_be_created_is_for_the_session(tmp_path: Path) -> None:
    """Files, folders and links together; what was refused, or failed, leaves as much."""
    script = Script()
    script.call("path_create_directory", MOUNT, "one")
    script.call("path_create_directory", MOUNT, "one")
    script.open("two", CREAT)
    script.call("path_symlink", "two", MOUNT, "three")
    script.open("four", CREAT)
    with playing(script, files_policy(tmp_path, files_created=3)) as play:
        calls = [play.next() for _ in range(5)]
    assert [call.errnos[0] for call in calls][-2:] == [SUCCESS, EDQUOT]
    assert [call.report.usage.files_created for call in calls] == [1, 0, 1, 1, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three", "two"]


def test_random_bytes_are_for_the_session() -> None:
    """As many as the limit says, over all calls."""
    script = Script()
    place = script.room(100)
    for size in (60, 41, 40, 1):
        script.call("random_get", place, size)
    with playing(script, open_policy(random_bytes=100)) as play:
        calls = [play.next() for _ in range(4)]
    assert [call.errnos[0] for call in calls] == [SUCCESS, EDQUOT, SUCCESS, EDQUOT]
    assert [call.report.usage.random_bytes for call in calls] == [60, 0, 40, 0]


def test_calls_are_for_the_session() -> None:
    """As many as the limit says, over all calls of the session; reports count those of their own call."""
    script = Script()
    for _ in range(7):
        script.call("sched_yield")
    with playing(script, open_policy(calls=5)) as play:
        calls = [play.next(3), play.next(2), play.next(2)]
    assert [call.errnos for call in calls] == [[SUCCESS] * 3, [SUCCESS] * 2, [EPERM] * 2]
    assert [call.report.usage.calls for call in calls] == [{"sched_yield": 3}, {"sched_yield": 2}, {"sched_yield": 2}]
    assert [call.report.usage.denied for call in calls] == [{}, {}, {"sched_yield": 2}]
    violation = calls[2].report.violations[0]
    assert (violation.kind, violation.limit, violation.observed, violation.count) == ("calls", 5, 6, 2)


def test_what_is_unread_of_stdin_stays() -> None:
    """The next call goes on where the last one stopped, up to the end, which stays the end."""
    script = Script()
    reads = [script.read(0, size) for size in (5, 3, 100, 100)]
    with playing(script, open_policy(), stdin=b"hello world") as play:
        for _ in reads:
            assert play.next().errnos == [SUCCESS]
        found = [play.bytes(buffer, count) for count, buffer in reads]
    assert found == [b"hello", b" wo", b"rld", b""]


def test_what_a_callback_gave_and_was_not_read_stays() -> None:
    """It is asked only for what there is no more of, and never after it has told the end."""
    pieces = [b"one two", b"", b"never"]
    asked = []

    def stdin(most: int) -> bytes:
        asked.append(most)
        return pieces.pop(0)

    script = Script()
    reads = [script.read(0, size) for size in (3, 100, 100, 100)]
    with playing(script, open_policy(), stdin=stdin) as play:
        found = []
        for count, buffer in reads:
            assert play.next().errnos == [SUCCESS]
            found.append((play.bytes(buffer, count), len(asked)))
    assert found == [(b"one", 1), (b" two", 1), (b"", 2), (b"", 2)]
    assert pieces == [b"never"]


def test_clocks_and_generators_go_on() -> None:
    """A virtual clock does not turn back between calls, and seeded randomness does not begin again."""
    script = Script()
    times = [script.time() for _ in range(3)]
    places = [script.room(8) for _ in range(3)]
    for place in places:
        script.call("random_get", place, 8)
    policy = open_policy()
    policy = policy.replace(clock=Clock(mode="virtual", step=0.5), random=Random(mode="seeded", seed=7))
    with playing(script, policy) as play:
        for _ in range(6):
            assert play.next().errnos == [SUCCESS]
        moments = [play.number(time) for time in times]
        drawn = {play._session.read_memory(place, 8) for place in places}
    assert [later - earlier for earlier, later in pairwise(moments)] == [500_000_000] * 2
    assert len(drawn) == 3


# -- what begins anew -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [1, 2])
def test_output_begins_anew(stream: int) -> None:
    """Each report has the output of its own call, and each call may write as much."""
    script = Script()
    for text in (b"first ", b"much more than that", b"last"):
        script.write(stream, text)
    with playing(script, open_policy(stdout=8, stderr=8)) as play:
        reports = [play.next().report for _ in range(3)]
    kept = [(report.stdout, report.stderr)[stream - 1] for report in reports]
    assert kept == [b"first ", b"muchthat", b"last"]
    assert [(report.truncated.stdout, report.truncated.stderr)[stream - 1] for report in reports] == [0, 11, 0]
    assert [(report.usage.stdout_bytes, report.usage.stderr_bytes)[stream - 1] for report in reports] == [6, 19, 4]


def test_violations_begin_anew(tmp_path: Path) -> None:
    """Those of one call are not told of the next; the same one again is told again, and counted from one."""
    script = Script()
    script.call("path_unlink_file", MOUNT, "file")
    script.call("path_unlink_file", MOUNT, "file")
    script.call("sched_yield")
    script.call("path_unlink_file", MOUNT, "file")
    (tmp_path / "file").touch()
    with playing(script, files_policy(tmp_path, delete=False)) as play:
        reports = [play.next(count).report for count in (2, 1, 1)]
    assert [[(one.kind, one.count) for one in report.violations] for report in reports] == [
        [("delete", 2)], [], [("delete", 1)],
    ]  # fmt: skip
    assert [len(report.events) for report in reports] == [2, 0, 1]


def test_fuel_and_time_begin_anew() -> None:
    """Each call has a full budget, and a full deadline: three naps are more than one of them allows."""
    script = Script()
    for _ in range(3):
        script.sleep(0.7)
    with playing(script, open_policy(fuel=1_500, wall_time=2.0)) as play:
        reports = [play.next().report for _ in range(3)]
    assert [report.outcome for report in reports] == [Outcome.OK] * 3
    assert sum(report.usage.fuel or 0 for report in reports) > 1_500
    assert all(report.usage.idle_seconds >= 0.7 for report in reports)


def test_open_files_stay_and_peaks_begin_anew(tmp_path: Path) -> None:
    """What is open from earlier calls counts as open; how many were opened is told by the call."""
    (tmp_path / "file").touch()
    script = Script()
    cells = [script.open("file") for _ in range(3)]
    for cell in cells:
        script.close(cell)
    with playing(script, files_policy(tmp_path)) as play:
        usages = [play.next(count).report.usage for count in (2, 1, 1, 2)]
    assert [(usage.files_opened, usage.files_open_peak) for usage in usages] == [(2, 2), (1, 3), (0, 3), (0, 2)]


def test_a_call_that_ends_a_session_tells_what_it_did(tmp_path: Path) -> None:
    """The last report is that of its call only, however it ended."""
    script = Script()
    fd = script.open("file", CREAT)
    script.write(fd, b"x" * 10)
    script.write(fd, b"x" * 7)
    script.call("fd_tell", fd, 3)
    with playing(script, files_policy(tmp_path)) as play:
        first, last = play.next(2).report, play.next(2).report
    assert (first.outcome, first.usage.written_bytes, first.usage.files_created) == (Outcome.OK, 10, 1)
    assert (last.outcome, last.usage.written_bytes, last.usage.files_created) == (Outcome.TRAP, 7, 0)
