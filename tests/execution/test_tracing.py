"""The trace: each call with what it was given and what came of it, whatever the guest does about it.

Holds P-TRACE-1, P-TRACE-2 and P-TRACE-3.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import stockade
from stockade import InvalidModule, Mount, Outcome, Policy, Sandbox, Trace, UsageError
from stockade._wasi import WASI
from stockade.execution import _tracing
from stockade.guard import guard, prove, weave
from stockade.report import TracedCall
from stockade.wasm import parse
from tests._processes import cancelling
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("everywhere")

_IMPORTS = {
    "fd_write": "(param i32 i32 i32 i32) (result i32)",
    "fd_read": "(param i32 i32 i32 i32) (result i32)",
    "fd_close": "(param i32) (result i32)",
    "fd_seek": "(param i32 i64 i32 i32) (result i32)",
    "fd_filestat_get": "(param i32 i32) (result i32)",
    "fd_fdstat_get": "(param i32 i32) (result i32)",
    "fd_prestat_get": "(param i32 i32) (result i32)",
    "fd_prestat_dir_name": "(param i32 i32 i32) (result i32)",
    "path_open": "(param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)",
    "path_readlink": "(param i32 i32 i32 i32 i32 i32) (result i32)",
    "path_rename": "(param i32 i32 i32 i32 i32 i32) (result i32)",
    "clock_time_get": "(param i32 i64 i32) (result i32)",
    "poll_oneoff": "(param i32 i32 i32 i32) (result i32)",
    "args_sizes_get": "(param i32 i32) (result i32)",
    "random_get": "(param i32 i32) (result i32)",
    "sched_yield": "(result i32)",
    "proc_exit": "(param i32)",
}


def guest(code: str, data: str = "", before: str = "", export: str = "_start") -> stockade.Module:
    """A guest that imports what it calls: `$fd_write` and so on; buffers stand at 16, of the 6 bytes at 256."""
    called = [name for name in _IMPORTS if re.search(rf"\${name}\b", code + before)]
    imports = "\n".join(f'(import "wasi_snapshot_preview1" "{n}" (func ${n} {_IMPORTS[n]}))' for n in called)
    return wat(rf"""(module {imports} {before}
      (memory (export "memory") 2)
      (data (i32.const 16) "\00\01\00\00\06\00\00\00") (data (i32.const 256) "hello\n") {data}
      (func (export "{export}") {code}))""")


WRITE = "(drop (call $fd_write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 8)))"


def opens(path: str, address: int = 512) -> str:
    """Code that opens a path for reading; the descriptor stands at 40."""
    return (
        f"(drop (call $path_open (i32.const 3) (i32.const 1) (i32.const {address}) (i32.const {len(path)}) "
        "(i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 40)))"
    )


def lines(report: stockade.Report) -> list[str]:
    """The trace of a report, without durations."""
    return [re.sub(r" <[0-9.]+>$", "", call.render()) for call in report.trace_calls]


def test_calls_are_told_as_strace_tells_them(tmp_path: Path) -> None:
    """Names of arguments, what was answered, and the errno's name. Holds P-TRACE-1."""
    (tmp_path / "a.txt").write_text("content\n")
    (tmp_path / "link").symlink_to("a.txt")
    read = "(drop (call $fd_read (i32.load (i32.const 40)) (i32.const 24) (i32.const 1) (i32.const 8)))"
    module = guest(
        f"""{WRITE}
        (drop (call $fd_prestat_get (i32.const 3) (i32.const 64)))
        (drop (call $fd_prestat_dir_name (i32.const 3) (i32.const 80) (i32.const 5)))
        {opens("a.txt")} {read}
        (drop (call $fd_filestat_get (i32.load (i32.const 40)) (i32.const 128)))
        (drop (call $fd_fdstat_get (i32.load (i32.const 40)) (i32.const 128)))
        (drop (call $fd_seek (i32.load (i32.const 40)) (i64.const -2) (i32.const 2) (i32.const 64)))
        (drop (call $fd_close (i32.load (i32.const 40))))
        (drop (call $fd_close (i32.const 99)))
        (drop (call $path_readlink (i32.const 3) (i32.const 520) (i32.const 4) (i32.const 96) (i32.const 9)
          (i32.const 8)))
        {opens("link2", 520)}
        (drop (call $args_sizes_get (i32.const 64) (i32.const 68)))
        (drop (call $random_get (i32.const 64) (i32.const 4)))
        (drop (call $poll_oneoff (i32.const 1024) (i32.const 2048) (i32.const 1) (i32.const 8)))
        (call $proc_exit (i32.const 3))""",
        data=r"""(data (i32.const 24) "\00\03\00\00\40\00\00\00") (data (i32.const 512) "a.txt")
        (data (i32.const 520) "link2")
        (data (i32.const 1040) "\01\00\00\00\00\00\00\00\40\42\0f\00\00\00\00\00")""",
    )
    with Sandbox(Policy().replace(mounts=[Mount(tmp_path, "/data", "ro")]), trace=True) as box:
        report = box.run(module)
    assert report.exit_code == 3
    assert report.trace_lost == 0
    assert lines(report) == [
        r'fd_write(1, "hello\n") = 6',
        "fd_prestat_get(3, {DIR, pr_name_len=5}) = 0",
        'fd_prestat_dir_name(3, "/data") = 0',
        'path_open(3, SYMLINK_FOLLOW, "a.txt", 0, 0x2, 0x0, 0) = 4',
        r'fd_read(4, "content\n") = 8',
        "fd_filestat_get(4, {REGULAR_FILE, size=8}) = 0",
        "fd_fdstat_get(4, {REGULAR_FILE, 0}) = 0",
        "fd_seek(4, -2, SEEK_END) = 6",
        "fd_close(4) = 0",
        "fd_close(99) = -1 EBADF",
        'path_readlink(3, "link", "a.txt") = 5',
        'path_open(3, SYMLINK_FOLLOW, "link2", 0, 0x2, 0x0, 0, 0x28) = -1 ENOENT',
        "args_sizes_get([1], [10]) = 0",
        "random_get(0x40, 4) = 0",
        "poll_oneoff({MONOTONIC +0.001000000s}, 0x800, 1) = 1",
        "proc_exit(3) = ?",
    ]
    poll = report.trace_calls[-2]
    assert poll.duration_seconds is not None
    assert poll.duration_seconds >= 0.001
    assert report.trace_calls[0].duration_seconds is None
    assert report.trace_calls[3] == TracedCall(
        sequence=3,
        call="path_open",
        arguments={
            "fd": 3,
            "dirflags": ("SYMLINK_FOLLOW",),
            "path": "a.txt",
            "oflags": (),
            "fs_rights_base": 2,
            "fs_rights_inheriting": 0,
            "fdflags": (),
            "opened_fd": 40,
        },
        results={"opened_fd": 4},
        duration_seconds=report.trace_calls[3].duration_seconds,
        at=report.trace_calls[3].at,
    )
    assert [call.at for call in report.trace_calls] == sorted(call.at for call in report.trace_calls)


@pytest.mark.differs("what the guard has written is changed here on its way")
def test_no_call_begins_before_the_one_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are told by two clocks, which may differ by as long as a busy machine takes between the two."""
    real = _tracing.take_entries

    def ahead(state: Any) -> list[Any]:
        return [entry._replace(began=entry.began + (10**9 if entry.sequence == 0 else 0)) for entry in real(state)]

    monkeypatch.setattr(_tracing, "take_entries", ahead)
    with Sandbox(trace=True) as box:
        calls = box.run(guest(WRITE + WRITE)).trace_calls
    assert len(calls) == 2
    assert 1.0 <= calls[0].at <= calls[1].at


def test_tracing_changes_nothing_for_the_guest() -> None:
    """The same output, calls and violations with a trace and without."""
    module = guest(f"{WRITE} {opens('a')} (drop (call $random_get (i32.const 64) (i32.const 4)))")
    reports = []
    for trace in (None, True):
        with Sandbox(trace=trace) as box:
            reports.append(box.run(module))
    plain, traced = reports
    assert plain.trace_calls == ()
    assert len(traced.trace_calls) == 3
    for field in ("outcome", "exit_code", "stdout", "stderr", "violations", "trap"):
        assert getattr(plain, field) == getattr(traced, field)
    assert plain.usage.calls == traced.usage.calls


def test_nothing_is_woven_where_nothing_is_asked() -> None:
    """Without a trace there is no function of it in the module. Holds P-TRACE-2."""
    module = parse(wat(HELLO).data)
    assert not any(name.startswith("trace") for name in weave(module, guard()).guard_functions)
    assert "trace" in weave(module, guard(), traced=True).guard_functions


def test_every_call_can_be_woven_and_proven() -> None:
    """All of WASI, and functions of the embedder, behind functions that trace."""
    imports = "".join(
        f'(import "wasi_snapshot_preview1" "{call.name}" (func '
        f"{''.join(f'(param {type_})' for type_ in call.params)} {'(result i32)' if call.results else ''}))"
        for call in WASI
    )
    text = f"""(module {imports} (import "env" "f" (func (param i32 i64 f32 f64 v128) (result f64 v128)))
        (import "env" "g" (func (param funcref))) (memory (export "memory") 1))"""
    module = parse(wat(text).data)
    woven = weave(module, guard(), traced=True)
    prove(module, woven)
    # What takes a reference cannot be told.
    assert woven.guard_functions.count("trace") == len(WASI) + 1


def test_a_guest_cannot_reach_the_ring() -> None:
    """Attack: a guest names the memory that has the ring, to forge what is told of it."""
    text = """(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32))) (memory (export "memory") 1)
      (func (export "_start") (i32.store 1 (i32.const 42504) (i32.const 0)) (drop (call 0))))"""
    with Sandbox(trace=True) as box, pytest.raises(InvalidModule):
        box.run(wat(text))


@pytest.mark.parametrize("address", [-1, -4, 131_070])
def test_texts_that_are_not_in_memory(address: int) -> None:
    """Attack: paths and buffers at addresses beyond the memory. The guest traps as without a trace."""
    for code in (
        opens("a.txt", address),
        f"(drop (call $fd_write (i32.const 1) (i32.const {address}) (i32.const 2) (i32.const 8)))",
        f"(i32.store (i32.const 16) (i32.const {address})) {WRITE}",
        f"(drop (call $fd_write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const {address})))",
        f"(drop (call $poll_oneoff (i32.const {address}) (i32.const 0) (i32.const 1000) (i32.const 8)))",
    ):
        reports = []
        for trace in (None, True):
            with Sandbox(trace=trace) as box:
                reports.append(box.run(guest(code)))
        plain, traced = reports
        assert plain.trap is not None
        assert traced.trap is not None
        assert (plain.outcome, plain.trap.code) == (traced.outcome, traced.trap.code)
        (call,) = traced.trace_calls
        assert not call.has_returned
        assert call.render().endswith(" = ?")


def test_a_path_is_kept_as_it_was_at_the_call() -> None:
    """Attack: the guest changes the path after the call; and has the answer overwrite it."""
    module = guest(
        f"""{opens("aaaaa")} (i32.store (i32.const 512) (i32.const 0x62626262))
        (drop (call $path_readlink (i32.const 3) (i32.const 512) (i32.const 5) (i32.const 512) (i32.const 5)
          (i32.const 512)))""",
        data='(data (i32.const 512) "aaaaa")',
    )
    with Sandbox(trace=True) as box:
        report = box.run(module)
    assert [call.arguments["path"] for call in report.trace_calls] == ["aaaaa", "bbbba"]


def test_escapes_never_reach_a_line() -> None:
    """Attack: a path with terminal escapes, quotes, line ends and a text that goes from right to left."""
    path = r"\1b[2J\22\0a\e2\80\ae\ff"
    module = guest(opens("x" * 10), data=f'(data (i32.const 512) "{path}")')
    with Sandbox(trace=True) as box:
        report = box.run(module)
    (line,), (call,) = lines(report), report.trace_calls
    assert line == r'path_open(3, SYMLINK_FOLLOW, "\x1b[2J\"\n\u202e\\xff", 0, 0x2, 0x0, 0, 0x28) = -1 EILSEQ'
    assert "\x1b" not in call.to_json()


def test_long_texts_are_cut() -> None:
    """Only so much is kept, and it is told that there was more."""
    module = guest(f"{opens('x' * 300)} {WRITE}", data=f'(data (i32.const 512) "{"y" * 300}")')
    with Sandbox(trace=Trace(string_bytes=4)) as box:
        opened, written = box.run(module).trace_calls
    # Room for texts is a multiple of eight bytes.
    assert opened.arguments["path"] == "y" * 8
    assert opened.cut == ("path",)
    assert '"yyyyyyyy"...' in opened.render()
    assert written.cut == ()
    with Sandbox(trace=Trace(string_bytes=0)) as box:
        opened, written = box.run(module).trace_calls
    assert (opened.arguments["path"], written.arguments["iovs"]) == ("", "")
    assert opened.cut == ("path",)
    assert written.cut == ("iovs",)


FLOOD = f"""(local $i i32) (loop $next {WRITE}
  (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 20000))))"""


def test_a_flood_waits_or_is_counted() -> None:
    """Attack: more calls than there is room for. All are told where the guest waits, or all others are counted."""
    with Sandbox(trace=Trace(on_overflow="wait")) as box:
        report = box.run(guest(FLOOD))
    assert report.ok
    assert [call.sequence for call in report.trace_calls] == list(range(20_000))
    assert report.trace_lost == 0
    assert report.usage.idle_seconds == 0
    with Sandbox(trace=Trace(on_overflow="count")) as box:
        report = box.run(guest(FLOOD))
    assert report.ok
    assert report.trace_lost > 0
    assert len(report.trace_calls) + report.trace_lost == 20_000


def test_a_call_that_the_host_looks_into_keeps_the_numbers_whole() -> None:
    """The rest of a call takes a place in the ring, and none in the order of calls."""
    read = "(drop (call $fd_read (i32.const 0) (i32.const 24) (i32.const 1) (i32.const 8)))"
    module = guest((read + WRITE) * 3, data=r'(data (i32.const 24) "\00\03\00\00\04\00\00\00")')
    with Sandbox(trace=True) as box:
        report = box.run(module, stdin=lambda _: b"line")
    assert [call.sequence for call in report.trace_calls] == list(range(6))
    assert all(call.has_returned for call in report.trace_calls)


def test_what_is_kept_is_bounded() -> None:
    """Attack: a guest that makes calls for ever fills the host's memory. What is kept has a bound."""
    with Sandbox(trace=Trace(most_calls=100)) as box:
        report = box.run(guest(FLOOD))
    assert [call.sequence for call in report.trace_calls] == list(range(100))
    assert report.trace_lost == 19_900


def test_some_calls_only() -> None:
    """Calls by name, group, pattern and POSIX name; others are not written."""
    module = guest(
        f"{WRITE} {opens('a')} (drop (call $sched_yield)) (drop (call $random_get (i32.const 8) (i32.const 4)))"
    )
    for calls, names in (
        (("path_*",), ["path_open"]),
        (("fd", "sched"), ["fd_write", "sched_yield"]),
        (("WRITE", "random_get"), ["fd_write", "random_get"]),
        ((), []),
    ):
        with Sandbox(trace=Trace(calls=calls)) as box:
            assert [call.call for call in box.run(module).trace_calls] == names


def test_durations() -> None:
    """Of those that can wait, of all, or of none."""
    module = guest(
        f"{WRITE} (drop (call $sched_yield)) (drop (call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 64)))"
    )
    for durations, measured in (("io", [False, True, False]), ("all", [True] * 3), ("none", [False] * 3)):
        with Sandbox(trace=Trace(durations=durations)) as box:  # type: ignore[arg-type]
            calls = box.run(module).trace_calls
        assert [call.duration_seconds is not None for call in calls] == measured


def test_a_sink_is_told_while_the_guest_runs() -> None:
    """Each call once it has returned, in their order; nothing is kept for the report. Holds P-TRACE-3."""
    told: list[TracedCall] = []
    with Sandbox(trace=Trace(sink=told.append)) as box:
        report = box.run(guest(FLOOD))
    assert report.trace_calls == ()
    assert [call.sequence for call in told] == list(range(20_000))


def test_a_sink_that_raises_ends_the_run() -> None:
    """What it raises reaches the caller, and the sandbox goes on."""
    seen = []

    def sink(call: TracedCall) -> None:
        seen.append(call)
        raise ZeroDivisionError("the sink")

    with Sandbox(trace=Trace(sink=sink)) as box:
        with pytest.raises(ZeroDivisionError, match="the sink"):
            box.run(guest(FLOOD))
        assert len(seen) == 1
        with box.open(guest(WRITE, export="f")) as session:
            with pytest.raises(ZeroDivisionError):
                session.call("f")
            with pytest.raises(UsageError, match="ended"):
                session.call("f")


def test_a_call_that_waits_is_told_when_it_has_returned() -> None:
    """The host takes the beginning while the guest is parked, and the rest later."""
    begun = threading.Event()

    def stdin(_: int) -> bytes:
        begun.set()
        time.sleep(0.05)
        return b"line"

    read = "(drop (call $fd_read (i32.const 0) (i32.const 24) (i32.const 1) (i32.const 8)))"
    module = guest(f"{WRITE} {read} {WRITE}", data=r'(data (i32.const 24) "\00\03\00\00\40\00\00\00")')
    with Sandbox(trace=True) as box:
        report = box.run(module, stdin=stdin)
    assert lines(report) == [r'fd_write(1, "hello\n") = 6', 'fd_read(0, "line") = 4', r'fd_write(1, "hello\n") = 6']
    waited = report.trace_calls[1].duration_seconds
    assert waited is not None
    assert waited >= 0.05


def test_a_cancelled_run_tells_the_call_it_ended_in() -> None:
    """A guest that is cancelled in its sleep: the call has not returned."""
    module = guest(
        f"{WRITE} (drop (call $poll_oneoff (i32.const 1024) (i32.const 2048) (i32.const 1) (i32.const 8)))",
        data=r'(data (i32.const 1040) "\01\00\00\00\00\00\00\00\00\00\a0\6f\00\00\00\00")',
    )
    told: list[TracedCall] = []

    with Sandbox(trace=Trace(sink=told.append)) as box:

        def cancel() -> None:
            run = box.monitor().get("it")
            if run is not None and run.calls == 2 and run.state == "waiting":
                box.cancel("it")

        with cancelling(cancel):
            report = box.run(module, run_id="it")
    assert report.outcome is Outcome.CANCELLED
    assert [call.has_returned for call in told] == [True, False]
    assert told[1].render() == "poll_oneoff({MONOTONIC +1.872756736s}, 0x800, 1, 0x8) = ?"


def test_the_end_of_a_run_in_the_middle_of_a_call() -> None:
    """Out of fuel and out of stack at whatever depth: the trace has what came before, and at most one call is open."""
    deep = guest(
        "(call $deep)",
        before=f"""(func $deep {WRITE} (call $deep))""",
    )
    for policy, outcome in (
        (Policy().replace(stack="64KiB"), Outcome.STACK),
        (Policy().replace(fuel=12_345), Outcome.FUEL),
    ):
        with Sandbox(policy, trace=True) as box:
            report = box.run(deep)
        assert report.outcome is outcome
        assert report.trace_calls
        returned = [call.has_returned for call in report.trace_calls]
        assert all(returned[:-1])
        assert report.usage.calls["fd_write"] - len(returned) in (0, -1)


def test_refused_calls_are_told() -> None:
    """What the policy refuses has the errno that the guest was given."""
    with Sandbox(Policy().replace(deny=["random_get"]), trace=True) as box:
        report = box.run(guest("(drop (call $random_get (i32.const 64) (i32.const 4)))"))
    assert lines(report) == ["random_get(0x40, 4) = -1 ENOSYS"] or lines(report)[0].startswith(
        "random_get(0x40, 4) = -1"
    )


def test_sessions_and_forks() -> None:
    """Each report has the calls of its call; a fork of a session is traced by itself."""
    module = guest(WRITE, export="f")
    with Sandbox(trace=True) as box, box.open(module) as session:
        assert [len(session.call("f").trace_calls) for _ in range(3)] == [1, 1, 1]
        with session.fork() as fork:
            assert lines(fork.call("f")) == [r'fd_write(1, "hello\n") = 6']
        snapshot = session.snapshot()
        assert len(box.call(snapshot, "f").trace_calls) == 1
    with Sandbox() as plain:
        assert plain.call(snapshot, "f").trace_calls == ()


def test_snapshots_of_sandboxes_that_do_not_trace() -> None:
    """What was taken without a trace opens with one."""
    module = guest(WRITE, export="f")
    with Sandbox() as box, box.open(module) as session:
        snapshot = session.snapshot()
    with Sandbox(trace=True) as box:
        assert len(box.call(snapshot, "f").trace_calls) == 1


def test_awaited_runs() -> None:
    """The same in runs that are awaited, many at once."""

    async def run() -> list[stockade.Report]:
        async with Sandbox(trace=True) as box:
            return await asyncio.gather(*(box.run_async(wat(HELLO)) for _ in range(20)))

    for report in asyncio.run(run()):
        assert lines(report) == [r'fd_write(1, "hello world\n") = 12']


def test_host_functions() -> None:
    """Calls of the embedder's functions are told, with numbers; and what the guest does within them."""
    text = """(module
      (import "env" "mix" (func $mix (param i32 i64 f64) (result f64)))
      (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
      (memory (export "memory") 1)
      (func (export "back") (drop (call $yield)))
      (func (export "f") (result f64) (call $mix (i32.const -1) (i64.const -2) (f64.const 0.5))))"""
    with Sandbox(trace=True) as box:

        @box.host_function("env")
        def mix(call: stockade.HostCall, a: int, b: stockade.I64, c: float) -> float:  # type: ignore[name-defined]
            call.call("back")
            return a + b + c

        report = box.call(wat(text), "f")
    assert report.value == -2.5
    assert lines(report) == ["env.mix(-1, -2, 0.5) = -2.5", "sched_yield() = 0"]
    with Sandbox(trace=Trace(calls=("host",))) as box:
        box.host_function("env", "mix")(mix)
        assert lines(box.call(wat(text), "f")) == ["env.mix(-1, -2, 0.5) = -2.5"]


def test_a_host_function_within_which_the_ring_runs_over() -> None:
    """Attack: the beginning of a call is taken, others use its place, and then it returns."""
    text = rf"""(module
      (import "env" "f" (func $f (param i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_write" (func $fd_write {_IMPORTS["fd_write"]}))
      (memory (export "memory") 1)
      (data (i32.const 16) "\00\01\00\00\06\00\00\00") (data (i32.const 256) "hello\n")
      (func (export "many") {FLOOD})
      (func (export "g") (result i32) (call $f (i32.const 7))))"""
    with Sandbox(trace=True) as box:

        @box.host_function("env")
        def f(call: stockade.HostCall, number: int) -> int:
            call.call("many")
            return number + 1

        report = box.call(wat(text), "g")
    assert report.value == 8
    assert lines(report)[0] == "env.f(7) = 8"
    assert len(report.trace_calls) == 20_001
    assert all(line == r'fd_write(1, "hello\n") = 6' for line in lines(report)[1:])


def test_too_little_memory_for_the_ring_is_an_error_in_words() -> None:
    """The ring is the guard's, not the guest's: a guest with little memory is traced all the same."""
    with Sandbox(Policy().replace(memory="128KiB"), trace=True) as box:
        report = box.run(guest(WRITE))
    assert report.ok
    assert report.usage.memory_bytes == 128 << 10
    assert len(report.trace_calls) == 1


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (1, "trace is 1: give True, or a stockade.Trace"),
        (Trace(calls="fd"), "Trace.calls must be names of calls, groups or patterns, such as ('path_*', 'clock')"),  # type: ignore[arg-type]
        (
            Trace(calls=("fd_wirte",)),
            (
                "Trace.calls has 'fd_wirte', which is no WASI call, group or pattern of calls: write names such as "
                "fd_write, path_* or clock, or host"
            ),
        ),
        (Trace(string_bytes=5000), "Trace.string_bytes is 5000: it must be a whole number from 0 to 4,096"),
        (Trace(most_calls=-1), "Trace.most_calls is -1: it must be a whole number from 0 to 1,000,000,000"),
        (Trace(durations="some"), 'Trace.durations is \'some\': it must be "io", "all" or "none"'),  # type: ignore[arg-type]
        (Trace(on_overflow="drop"), 'Trace.on_overflow is \'drop\': it must be "wait" or "count"'),  # type: ignore[arg-type]
        (Trace(sink=3), "Trace.sink is 3: it must be a function of one call"),  # type: ignore[arg-type]
    ],
)
def test_mistakes(trace: Trace, message: str) -> None:
    """They are told before anything runs."""
    with pytest.raises(UsageError) as problem:
        Sandbox(trace=trace)
    assert str(problem.value) == message
