"""Output passed on while the guest runs, and input fetched when it asks.

Holds P-TIME-1.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import Outcome, Policy, Sandbox, UsageError
from stockade.execution import Call, PolicyContext, _halted, _run
from stockade.execution._streams import Streams
from stockade.guard._inputs import OUTPUT_RING_BYTES, STDIN_PIECE_BYTES
from stockade.host import HostFunctions
from stockade.runner import RunControl
from stockade.runner._coroutine import FOREVER, GO_ON
from tests.conftest import ECHO, wat

if TYPE_CHECKING:
    from pathlib import Path

    from stockade.engine import Memory
    from stockade.runner import RunCoroutine

pytestmark = pytest.mark.usefixtures("everywhere")


PATIENT = Policy().replace(fuel=None, wall_time=20.0)


def both(times: int, size: int) -> stockade.Module:
    """A guest that writes to stdout and stderr in turn, so many bytes so many times."""
    return wat(
        f"""
        (module
          (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 20)
          (func (export "_start") (local $left i32)
            (local.set $left (i32.const {times}))
            (i32.store (i32.const 0) (i32.const 1024))
            (i32.store (i32.const 4) (i32.const {size}))
            (loop $next
              (memory.fill (i32.const 1024) (local.get $left) (i32.const {size}))
              (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
              (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
              (br_if $next (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))
        """
    )


@pytest.mark.parametrize(
    "size", [1, 7, 8, 1000, OUTPUT_RING_BYTES // 2 - 8, OUTPUT_RING_BYTES // 2 - 7, OUTPUT_RING_BYTES + 1]
)
def test_output_arrives_whole_and_in_order(size: int) -> None:
    """Whatever the pieces are cut into, each stream is whole, and the two keep their order among each other."""
    times = 5
    pieces: list[tuple[str, bytes]] = []

    report = Sandbox(PATIENT).run(
        both(times, size),
        on_stdout=lambda piece: pieces.append(("out", piece)),
        on_stderr=lambda piece: pieces.append(("err", piece)),
    )

    expected = b"".join(bytes([number]) * size for number in range(times, 0, -1))
    assert report.outcome is Outcome.OK
    assert b"".join(piece for stream, piece in pieces if stream == "out") == expected
    assert b"".join(piece for stream, piece in pieces if stream == "err") == expected
    joined = b"".join(piece for _, piece in pieces)
    assert joined == b"".join(bytes([number]) * (2 * size) for number in range(times, 0, -1))
    changes = [stream for number, (stream, _) in enumerate(pieces) if not number or pieces[number - 1][0] != stream]
    assert changes == ["out", "err"] * times
    assert report.usage.stdout_bytes == times * size


SAYS_HI_AND_SPINS = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\08\\00\\00\\00\\02\\00\\00\\00hi")
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))
    (loop $ever (br $ever))))
"""


def test_output_arrives_while_the_guest_runs() -> None:
    """A callback hears of what was written although the guest never ends; and ends it."""
    heard: list[bool] = []
    box = Sandbox(Policy().replace(fuel=None))

    report = box.run(wat(SAYS_HI_AND_SPINS), run_id="it", on_stdout=lambda piece: heard.append(box.cancel("it")))

    assert report.outcome is Outcome.CANCELLED
    assert report.stdout == b"hi"
    assert heard == [True]


def test_a_deadline_holds_where_somebody_listens() -> None:
    """The same with nobody who ends it but its deadline."""
    heard: list[bytes] = []

    report = Sandbox(Policy().replace(fuel=None, wall_time=0.5)).run(wat(SAYS_HI_AND_SPINS), on_stdout=heard.append)

    assert report.outcome is Outcome.TIMEOUT
    assert b"".join(heard) == report.stdout


def test_a_listener_of_one_stream_gets_that_one_only() -> None:
    """Nobody listens to stderr: it is captured, and kept out of the other's callback."""
    heard: list[bytes] = []
    report = Sandbox(PATIENT).run(both(1, 3), on_stdout=heard.append)
    assert b"".join(heard) == report.stdout == report.stderr == b"\1\1\1"


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_a_callback_raises_ends_the_run_and_reaches_the_caller(raised: type[BaseException]) -> None:
    """An exception in a callback stops that run, not the host; the next run is as good as new."""
    box = Sandbox(PATIENT)

    def refuse(piece: bytes) -> None:
        raise raised("enough")

    for streams in ({"on_stdout": refuse}, {"on_stderr": refuse}):
        with pytest.raises(raised, match="enough"):
            box.run(both(1_000_000, 100), **streams)
    with pytest.raises(raised, match="enough"):
        box.run(wat(ECHO), stdin=lambda size: refuse(b""))  # type: ignore[arg-type,return-value]
    assert box.run(both(1, 3)).stdout == b"\1\1\1"


def test_stdin_is_fetched_when_it_is_wanted() -> None:
    """Pieces arrive in order up to the end; the callback is asked for no more than fits and not again after the end."""
    pieces = iter([b"first,", b"", b"never"])
    asked: list[int] = []

    def fetch(size: int) -> bytes | None:
        asked.append(size)
        return next(pieces) if len(asked) != 2 else None  # not yet

    report = Sandbox(PATIENT).run(wat(ECHO), stdin=fetch)

    assert report.stdout == b"first,"
    assert asked == [STDIN_PIECE_BYTES] * 3
    assert next(pieces) == b"never"


def test_large_stdin_is_fetched_whole() -> None:
    """The twin of bytes: what fits no buffer at once arrives all the same."""
    data = bytes(range(256)) * 1024
    places = iter(range(0, len(data) + STDIN_PIECE_BYTES, STDIN_PIECE_BYTES))

    def fetch(size: int) -> bytes:
        place = next(places)
        return data[place : place + size]

    report = Sandbox(PATIENT).run(wat(ECHO), stdin=fetch)

    assert report.stdout == data
    assert Sandbox(PATIENT).run(wat(ECHO), stdin=data).stdout == data


def test_a_callback_that_returns_too_much_is_told() -> None:
    """What does not fit is refused, never cut."""
    with pytest.raises(UsageError) as caught:
        Sandbox(PATIENT).run(wat(ECHO), stdin=lambda size: bytes(size + 1))
    assert str(caught.value) == "the stdin callback returned 65,537 bytes; it was asked for 65,536"


def test_a_guest_that_waits_for_input_meets_its_deadline() -> None:
    """Attack: input that never comes must not hold the run."""
    report = Sandbox(Policy().replace(fuel=None, wall_time=0.3)).run(wat(ECHO), stdin=lambda size: None)
    assert report.outcome is Outcome.TIMEOUT
    assert report.usage.wall_seconds < 60


@pytest.mark.parametrize("way", ["here", "awaited"])
@pytest.mark.parametrize("last", [b"more", b""], ids=["input", "the end"])
def test_a_callback_that_takes_too_long_makes_it_a_timeout(way: str, last: bytes) -> None:
    """The attack: the deadline passes in the callback for stdin, and the guest returns right after it.

    Nothing that comes after the time is told as done in time. The twin: a callback that is quick.
    """
    pause = [0.1]

    def stdin(size: int) -> bytes:
        time.sleep(pause[0])
        pieces.append(last if len(pieces) == 0 else b"")
        return pieces[-1]

    def run(wall_time: float) -> stockade.Report:
        pieces.clear()
        sandbox = Sandbox(Policy().replace(fuel=None, wall_time=wall_time))
        if way == "here":
            return sandbox.run(wat(ECHO), stdin=stdin)
        return asyncio.run(sandbox.run_async(wat(ECHO), stdin=stdin))

    pieces: list[bytes] = []
    late = run(0.05)
    asked = len(pieces)
    pause[0] = 0.0
    early = run(60.0)

    assert (late.outcome, late.exit_code, late.stdout) == (Outcome.TIMEOUT, None, b"")
    assert [(found.kind, found.subject, found.limit) for found in late.violations] == [
        ("timeout", "limits.wall_time", 0.05)
    ]
    assert late.usage.wall_seconds >= 0.05
    assert asked <= 1
    assert (early.outcome, early.stdout, early.violations) == (Outcome.OK, last, ())


def test_a_run_that_is_cancelled_in_a_callback_is_cancelled() -> None:
    """The same with the caller's own hand: the guest returns at once, and has been cancelled before."""
    sandbox = Sandbox(PATIENT)

    def stdin(size: int) -> bytes:
        sandbox.cancel("it")
        return b""

    report = sandbox.run(wat(ECHO), stdin=stdin, run_id="it")

    assert (report.outcome, report.exit_code, report.violations) == (Outcome.CANCELLED, None, ())


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_stdin_from_a_descriptor_beyond_a_thousand(kind: str, tmp_path: Path) -> None:
    """A host with many files open gives a guest one of the later ones, which `select` cannot look at."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1500:
        pytest.skip("the system gives no such descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    try:
        if kind == "pipe":
            source, ours = os.pipe()
            os.write(ours, b"content")
            os.close(ours)
        else:
            (tmp_path / "file").write_bytes(b"content")
            source = os.open(tmp_path / "file", os.O_RDONLY)
        high = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 1200)
        os.close(source)
        with os.fdopen(high, "rb") as file:
            report = Sandbox(PATIENT).run(wat(ECHO), stdin=file)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert high >= 1200
    assert (report.outcome, report.stdout) == (Outcome.OK, b"content")


def test_stdin_from_a_pipe_that_has_nothing_yet_is_waited_for(tmp_path: Path) -> None:
    """The twin: looking does not wait, and what comes later is read."""
    source, ours = os.pipe()
    pieces = iter((b"one", b"two", b""))

    def more(_: object) -> None:
        piece = next(pieces, b"")
        if piece:
            os.write(ours, piece)
        else:
            os.close(ours)

    with os.fdopen(source, "rb") as file:
        os.write(ours, b"zero")
        report = Sandbox(PATIENT).run(wat(ECHO), stdin=file, on_stdout=more)

    assert (report.outcome, report.stdout) == (Outcome.OK, b"zeroonetwo")


class _Threads:
    """The module `time`, in which each thread has used as much CPU time as the test says."""

    def __init__(self) -> None:
        self.used: dict[int, float] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)

    def thread_time(self) -> float:
        """CPU time of this thread."""
        return self.used.get(threading.get_ident(), 0.0)


class _Slow(Streams):
    """Output that is taken only in the second step after the guest has ended."""

    def finish(self, memory: Memory | None) -> RunCoroutine[bool]:
        yield FOREVER
        yield GO_ON
        return (yield from super().finish(memory))


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same thread", "another thread"])
def test_cpu_time_is_that_of_the_steps_of_the_run(elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a thread did before, between and after the steps of a run is not billed to it, whichever threads took them.

    While the last output was taken, the run was charged by the clock of whatever thread came next: less than nothing,
    or what other runs had used.
    """
    clock, pieces = _Threads(), []  # type: ignore[var-annotated]
    for module in (_run, _halted):
        monkeypatch.setattr(module, "time", clock)
    context, control, module = PolicyContext(PATIENT, HostFunctions()), RunControl(), both(2, 10)
    me = threading.get_ident()
    clock.used[me] = 100.0
    guest = context.guest(module, control, streams=_Slow(stdout=pieces.append))
    steps = guest.invoke(Call(module.command_entry), command=True)

    def take(used: float) -> stockade.Report:
        clock.used[threading.get_ident()] = used
        while True:
            try:
                next(steps)
            except StopIteration as end:
                report: stockade.Report = end.value
                return report
            # Another run has its turn on this thread.
            clock.used[threading.get_ident()] += 50.0

    while next(steps) != FOREVER:
        clock.used[me] += 50.0
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(take, 3.0).result() if elsewhere else take(1000.0)
    guest.close()

    assert report.outcome is Outcome.OK
    assert b"".join(pieces) == b"\2" * 10 + b"\1" * 10
    assert report.usage.cpu_seconds == 0.0
