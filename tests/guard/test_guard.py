"""The guard: what it captures, serves, counts and refuses, and that no pointer of a guest leads it astray.

Holds P-LIMIT-1.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stockade
from stockade import Outcome, Policy, Report, Sandbox, Session
from stockade._wasi import MODULE, WASI
from stockade.policy import Mount
from tests._examples import examples
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PAGE = 65_536
KIB, MIB = 1 << 10, 1 << 20
EBADF, EINVAL, ENOTCAPABLE = 8, 28, 76
IOVS, RESULT, DATA, MORE = 0, 16 << 10, 20 << 10, 40 << 10
"""Where tests place things in the two pages of the probe's memory."""


def imports() -> str:
    """Every WASI function, imported and re-exported under its own name."""
    lines = []
    for call in WASI:
        results = f"(result {' '.join(call.results)})" if call.results else ""
        lines.append(
            f'(func ${call.name} (export "{call.name}") (import "{MODULE}" "{call.name}") '
            f"(param {' '.join(call.params)}) {results})"
        )
    return "\n".join(lines)


PROBE = wat(f'(module {imports()} (memory (export "memory") 2))')
"""Lends its WASI functions to the test, which then calls them with any number it likes."""


def probe(
    policy: Policy | None = None,
    *,
    args: Sequence[str | bytes] = (),
    stdin: bytes = b"",
    env: dict[str, str] | None = None,
) -> Session:
    """Opens a probe."""
    return Sandbox(policy or Policy()).open(PROBE, args, stdin=stdin, env=env)


def iovecs(*buffers: tuple[int, int]) -> bytes:
    """An array of buffers: address and size of each."""
    return b"".join(struct.pack("<II", address, size) for address, size in buffers)


def number(session: Session, address: int = RESULT) -> int:
    """Reads a number that a call left."""
    return int.from_bytes(session.read_memory(address, 4), "little")


def write(session: Session, fd: int, data: bytes) -> Report:
    """Writes from one buffer."""
    session.write_memory(DATA, data)
    session.write_memory(IOVS, iovecs((DATA, len(data))))
    return session.call("fd_write", fd, IOVS, 1, RESULT)


def assert_host_is_fine() -> None:
    """Whatever the guest did, the next one runs."""
    assert Sandbox().run(wat(HELLO)).stdout == b"hello world\n"


# -- captured output --------------------------------------------------------------------------------------------------

WRITER = wat(
    """
    (module
      (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 80)
      ;; Reads sizes from stdin, the largest first; for each of the rest, writes so many bytes of a pattern to stdout.
      (func $next (result i32)
        (i32.store (i32.const 0) (i32.const 16))
        (i32.store (i32.const 4) (i32.const 4))
        (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (i32.load (i32.const 8)))
      (func (export "_start") (local $at i32) (local $end i32) (local $total i32)
        (drop (call $next))
        (local.set $end (i32.add (i32.load (i32.const 16)) (i32.const 251)))
        (loop $fill
          (i32.store8 offset=65536 (local.get $at) (i32.rem_u (local.get $at) (i32.const 251)))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br_if $fill (i32.lt_u (local.get $at) (local.get $end))))
        (block $done
          (loop $write
            (br_if $done (i32.ne (call $next) (i32.const 4)))
            (i32.store (i32.const 0) (i32.add (i32.const 65536) (i32.rem_u (local.get $total) (i32.const 251))))
            (i32.store (i32.const 4) (i32.load (i32.const 16)))
            (if (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
            (if (i32.ne (i32.load (i32.const 8)) (i32.load (i32.const 16))) (then unreachable))
            (local.set $total (i32.add (local.get $total) (i32.load (i32.const 16))))
            (br $write)))))
    """
)


def run_writer(cap: int, sizes: Sequence[int]) -> Report:
    """Writes so many bytes at a time to a stdout with this cap."""
    script = struct.pack(f"<{len(sizes) + 1}I", max(sizes, default=0), *sizes)
    return Sandbox(Policy().replace(stdout=cap)).run(WRITER, stdin=script)


def assert_head_and_tail_are_kept(report: Report, cap: int, total: int) -> None:
    """Holds the report against a model of the stream."""
    stream = bytes(range(251)) * (total // 251 + 1)
    stream = stream[:total]
    if total > cap:
        tail = cap // 2
        stream = stream[: cap - tail] + stream[total - tail :]
    assert report.outcome is Outcome.OK
    assert report.exit_code == 0
    assert report.stdout == stream
    assert report.usage.stdout_bytes == total
    assert report.truncated.stdout == total - len(stream)
    assert report.truncated.stderr == 0


def test_stdout_and_stderr_are_kept_apart_and_in_order() -> None:
    """Stdout and stderr are kept apart and in order."""
    with probe() as session:
        session.write_memory(DATA, b"abcdef")
        session.write_memory(IOVS, iovecs((DATA, 2), (DATA + 3, 0), (DATA + 4, 2), (DATA, 1)))
        first = session.call("fd_write", 1, IOVS, 4, RESULT)
        assert number(session) == 5
        second = session.call("fd_write", 2, IOVS, 1, RESULT)
        third = session.call("fd_write", 1, IOVS, 0, RESULT)
        assert number(session) == 0

    assert (first.value, first.stdout, first.stderr) == (0, b"abefa", b"")
    assert (second.value, second.stdout, second.stderr) == (0, b"", b"ab")
    assert (third.value, third.stdout, third.stderr) == (0, b"", b"")
    assert (first.usage.stdout_bytes, second.usage.stderr_bytes) == (5, 2)


def test_output_does_not_reach_the_terminal_of_the_host(capfd: pytest.CaptureFixture[str]) -> None:
    """Attack: escape sequences for the terminal that the host runs in."""
    with probe() as session:
        assert write(session, 1, b"\x1b[2Jout").stdout == b"\x1b[2Jout"
        assert write(session, 2, b"\x1b[2Jerr").stderr == b"\x1b[2Jerr"

    assert capfd.readouterr() == ("", "")


def test_output_at_the_cap_is_complete() -> None:
    """Output at the cap is complete."""
    report = run_writer(1000, [600, 400])

    assert_head_and_tail_are_kept(report, 1000, 1000)
    assert report.truncated == stockade.report.Truncated()


def test_output_one_over_the_cap_loses_one_byte() -> None:
    """Output one over the cap loses one byte."""
    report = run_writer(1000, [600, 401])

    assert_head_and_tail_are_kept(report, 1000, 1001)
    assert report.truncated.stdout == 1


@pytest.mark.parametrize("sizes", [[64 * KIB] * 48, [3 * MIB], [MIB + 1, MIB - 1, MIB]], ids=["48", "1", "3"])
def test_three_times_the_cap_keeps_head_and_tail(sizes: list[int]) -> None:
    """Attack: more output than the host wants to keep; the guest goes on and exits 0."""
    report = run_writer(MIB, sizes)

    assert_head_and_tail_are_kept(report, MIB, 3 * MIB)
    assert report.truncated.stdout == 2 * MIB


@pytest.mark.parametrize("cap", [0, 1, 2, 3, 7, 1001])
@pytest.mark.parametrize("sizes", [[], [1], [2], [3], [1, 1, 1], [7, 7], [5000], [1, 999, 1, 1, 5000]])
def test_small_and_odd_caps(cap: int, sizes: list[int]) -> None:
    """Small and odd caps."""
    assert_head_and_tail_are_kept(run_writer(cap, sizes), cap, sum(sizes))


@settings(max_examples=examples(150))
@given(cap=st.integers(0, 600), sizes=st.lists(st.integers(0, 700), max_size=25))
def test_any_writes_leave_head_and_tail(cap: int, sizes: list[int]) -> None:
    """For any sequence of writes, what is kept and what is dropped agree with the model."""
    assert_head_and_tail_are_kept(run_writer(cap, sizes), cap, sum(sizes))


def test_a_guest_cannot_keep_more_than_the_cap_by_many_streams() -> None:
    """Stdout and stderr have a cap each."""
    policy = Policy().replace(stdout=4, stderr=6)
    with probe(policy) as session:
        assert write(session, 1, b"0123456789").stdout == b"0189"
        report = write(session, 2, b"0123456789")

    assert (report.stderr, report.truncated) == (b"012789", stockade.report.Truncated(stderr=4))


# -- hostile pointers -------------------------------------------------------------------------------------------------

END = 2 * PAGE


@pytest.mark.parametrize(
    "buffers",
    [
        [(END, 1)],
        [(END - 1, 2)],
        [(0, END + 1)],
        [(0xFFFFFFFF, 1)],
        [(0xFFFFFFFF, 0xFFFFFFFF)],
        [(1, 0xFFFFFFFF)],
        [(DATA, 0xFFFFFFFF)],
        [(DATA, 0x80000000)],
        [(0x80000000, 0x80000000)],
    ],
)
def test_buffer_outside_of_memory_traps_and_nothing_is_captured(buffers: list[tuple[int, int]]) -> None:
    """Attack: a buffer that reaches past the guest's memory, to be shown what lies behind it."""
    with probe() as session:
        session.write_memory(IOVS, iovecs(*buffers))
        report = session.call("fd_write", 1, IOVS, len(buffers), RESULT)

    assert report.outcome is Outcome.TRAP
    assert report.trap is not None
    assert report.trap.code == "memory_out_of_bounds"
    assert report.stdout == b""
    assert report.usage.stdout_bytes == 0
    assert_host_is_fine()


def test_buffer_up_to_the_last_byte_of_memory_is_captured() -> None:
    """The twin."""
    with probe() as session:
        session.write_memory(END - 4, b"last")
        session.write_memory(IOVS, iovecs((END - 4, 4), (END, 0)))
        report = session.call("fd_write", 1, IOVS, 2, RESULT)

    assert (report.outcome, report.value, report.stdout) == (Outcome.OK, 0, b"last")


def test_bad_buffer_after_good_ones_leaves_only_the_good_ones() -> None:
    """Attack: the second buffer of a write is outside."""
    with probe() as session:
        session.write_memory(DATA, b"good")
        session.write_memory(IOVS, iovecs((DATA, 4), (END, 1), (DATA, 4)))
        report = session.call("fd_write", 1, IOVS, 3, RESULT)

    assert (report.outcome, report.stdout) == (Outcome.TRAP, b"good")


@pytest.mark.parametrize("count", [1025, 2048, 0x7FFFFFFF, -1, -(2**31), 0x20000000, 0x20000001])
@pytest.mark.parametrize("call", ["fd_write", "fd_read"])
def test_more_buffers_than_posix_allows_are_refused(call: str, count: int) -> None:
    """Attack: a count whose product with the size of an entry wraps to something small."""
    with probe(stdin=b"data") as session:
        report = session.call(call, 1 if call == "fd_write" else 0, IOVS, count, RESULT)

    assert (report.outcome, report.value, report.stdout) == (Outcome.OK, EINVAL, b"")


def test_as_many_buffers_as_posix_allows_are_taken() -> None:
    """The twin."""
    with probe() as session:
        session.write_memory(DATA, b"xy")
        session.write_memory(IOVS, iovecs((DATA, 1)) * 1023 + iovecs((DATA + 1, 1)))
        report = session.call("fd_write", 1, IOVS, 1024, RESULT)

    assert (report.value, report.stdout) == (0, b"x" * 1023 + b"y")


@pytest.mark.parametrize("call", ["fd_write", "fd_read"])
@pytest.mark.parametrize(
    ("array", "result"),
    [(END, RESULT), (END - 4, RESULT), (-4, RESULT), (-8, RESULT), (IOVS, END), (IOVS, END - 3), (IOVS, -1)],
)
def test_array_or_result_outside_of_memory_traps(call: str, array: int, result: int) -> None:
    """Attack: the array of buffers, or the place of the result, is outside; nothing is taken or kept."""
    with probe(stdin=b"data") as session:
        session.write_memory(IOVS, iovecs((DATA, 4)))
        report = session.call(call, 1 if call == "fd_write" else 0, array, 1, result)

    assert report.outcome is Outcome.TRAP
    assert report.trap is not None
    assert report.trap.code == "memory_out_of_bounds"
    assert (report.stdout, report.usage.stdout_bytes) == (b"", 0)
    assert_host_is_fine()


def test_overlapping_buffers_are_captured_as_they_stand() -> None:
    """Attack: buffers over each other, over their own array and under the result."""
    with probe() as session:
        session.write_memory(DATA, b"abcdef")
        array = iovecs((DATA, 6), (DATA + 1, 4), (IOVS, 24))
        session.write_memory(IOVS, array)
        report = session.call("fd_write", 1, IOVS, 3, DATA)
        assert number(session, DATA) == 34

    assert report.stdout == b"abcdef" + b"bcde" + array


@settings(max_examples=examples(100))
@given(
    buffers=st.lists(
        st.tuples(
            st.one_of(st.integers(0, END), st.integers(0, 2**32 - 1), st.sampled_from([END - 1, END, 2**32 - 1])),
            st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1)),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_buffers_capture_exactly_what_the_guest_has(buffers: list[tuple[int, int]]) -> None:
    """Attack: any addresses and sizes at all."""
    content = bytes(range(256)) * (PAGE // 256)
    memory = bytearray(content * 2)
    memory[IOVS : IOVS + 8 * len(buffers)] = iovecs(*buffers)
    expected = b""
    outcome = Outcome.OK
    for address, size in buffers:
        if not size:
            continue  # of no bytes at all, no place is outside
        if len(expected) + size >= 2**32:
            break  # what is written so far is all that the count can tell: a short write
        if address + size > END:
            outcome = Outcome.TRAP
            break
        expected += memory[address : address + size]
    with probe() as session:
        session.write_memory(0, bytes(memory))
        report = session.call("fd_write", 1, IOVS, len(buffers), RESULT)

    assert report.usage.stdout_bytes == len(expected)
    assert report.stdout == expected or report.truncated.stdout
    assert report.outcome is outcome


@pytest.mark.parametrize("call", ["args_get", "environ_get"])
@pytest.mark.parametrize(("pointers", "buffer"), [(END, DATA), (END - 3, DATA), (-1, DATA), (DATA, END), (DATA, -1)])
def test_strings_are_not_written_outside_of_memory(call: str, pointers: int, buffer: int) -> None:
    """Attack: a place for arguments or environment that is outside."""
    with probe(args=["argument"], env={"NAME": "value"}) as session:
        report = session.call(call, pointers, buffer)

    assert report.outcome is Outcome.TRAP
    assert_host_is_fine()


@pytest.mark.parametrize(
    ("subscriptions", "events", "count", "result"),
    [
        (END, DATA, 1, RESULT),
        (END - 47, DATA, 1, RESULT),
        (DATA, END - 31, 1, RESULT),
        (DATA, -1, 1, RESULT),
        (DATA, MORE, 1, END - 3),
        (DATA, MORE, 1, -4),
    ],
)
def test_poll_outside_of_memory_traps(subscriptions: int, events: int, count: int, result: int) -> None:
    """Attack: subscriptions, events or their count are outside."""
    with probe() as session:
        report = session.call("poll_oneoff", subscriptions, events, count, result)

    assert report.outcome is Outcome.TRAP
    assert_host_is_fine()


@pytest.mark.parametrize("count", [0, 1025, -1])
def test_poll_with_an_absurd_count_is_refused(count: int) -> None:
    """Attack: more subscriptions than there is room for, or none."""
    with probe() as session:
        report = session.call("poll_oneoff", DATA, MORE, count, RESULT)

    assert (report.outcome, report.value) == (Outcome.OK, EINVAL)


# -- descriptors ------------------------------------------------------------------------------------------------------

READ, WRITE, ALL_RIGHTS = 1 << 1, 1 << 6, (1 << 30) - 1
CREATE, FOLDER, EXCLUSIVE, TRUNCATE = 1, 2, 4, 8


def mounted(folder: Path, mode: str) -> Policy:
    """A policy that grants this folder as /data."""
    mount = Mount(str(folder), "/data", "rw" if mode == "rw" else "ro")
    return Policy().replace(mounts=[mount], delete=True, symlinks=True)


def path_open(session: Session, name: str, flags: int = 0, rights: int = READ | WRITE, lookup: int = 1) -> Report:
    """Opens a path in the first mount."""
    session.write_memory(DATA, name.encode())
    return session.call("path_open", 3, lookup, DATA, len(name.encode()), flags, rights, rights, 0, RESULT)


def opened(session: Session, name: str, flags: int = 0, rights: int = READ | WRITE) -> int:
    """Opens a path that must open, and returns its descriptor."""
    assert path_open(session, name, flags, rights).value == 0
    return number(session)


def test_renumbered_stdout_goes_to_the_file_and_back(tmp_path: Path) -> None:
    """A stream is captured under any number, and a file is a file even as number 1."""
    with probe(mounted(tmp_path, "rw")) as session:
        file = opened(session, "file", CREATE)
        spare = opened(session, "spare", CREATE)
        assert session.call("fd_renumber", 1, spare).value == 0
        gone = write(session, 1, b"nowhere")
        kept = write(session, spare, b"stream")
        assert session.call("fd_renumber", file, spare).value == 0
        again = write(session, spare, b"into file")

    assert (gone.value, gone.stdout) == (EBADF, b"")
    assert (kept.value, kept.stdout, kept.usage.written_bytes) == (0, b"stream", 0)
    assert (again.value, again.stdout, again.usage.written_bytes) == (0, b"", 9)
    assert (tmp_path / "file").read_bytes() == b"into file"
    assert (tmp_path / "spare").read_bytes() == b""


def test_file_renumbered_onto_stdout_takes_its_place(tmp_path: Path) -> None:
    """Attack: a captured stream swapped for a file, so that output is credited to the wrong one."""
    with probe(mounted(tmp_path, "rw")) as session:
        file = opened(session, "file", CREATE)
        spare = opened(session, "spare", CREATE)
        assert session.call("fd_renumber", 1, spare).value == 0
        # Number 1 is free now, and the next file gets it.
        other = opened(session, "other", CREATE)
        first = write(session, other, b"to other")
        assert session.call("fd_renumber", file, other).value == 0
        second = write(session, other, b"to file")
        assert session.call("fd_renumber", spare, other).value == 0
        third = write(session, other, b"to stdout")

    assert [report.value for report in (first, second, third)] == [0, 0, 0]
    assert [report.stdout for report in (first, second, third)] == [b"", b"", b"to stdout"]
    assert (tmp_path / "other").read_bytes() == b"to other"
    assert (tmp_path / "file").read_bytes() == b"to file"


def test_file_directly_onto_stdout_and_stderr_onto_it(tmp_path: Path) -> None:
    """File directly onto stdout and stderr onto it."""
    with probe(mounted(tmp_path, "rw")) as session:
        file = opened(session, "file", CREATE)
        assert session.call("fd_renumber", file, 1).value == 0
        in_file = write(session, 1, b"file")
        assert write(session, file, b"closed").value == EBADF
        assert session.call("fd_renumber", 2, 1).value == 0
        in_stderr = write(session, 1, b"stderr")
        assert write(session, 2, b"closed").value == EBADF

    assert (in_file.stdout, in_file.stderr, in_file.usage.written_bytes) == (b"", b"", 4)
    assert (in_stderr.stdout, in_stderr.stderr) == (b"", b"stderr")
    assert (tmp_path / "file").read_bytes() == b"file"


def test_renumbering_onto_itself_changes_nothing() -> None:
    """Renumbering onto itself changes nothing."""
    with probe() as session:
        assert session.call("fd_renumber", 1, 1).value == 0
        assert write(session, 1, b"still here").stdout == b"still here"


@pytest.mark.parametrize("fd", [1, 2])
def test_writing_to_a_closed_stream_is_an_error(fd: int) -> None:
    """The first write is the twin."""
    with probe() as session:
        assert write(session, fd, b"open").value == 0
        assert session.call("fd_close", fd).value == 0
        report = write(session, fd, b"closed")
        assert session.call("fd_close", fd).value == EBADF

    assert (report.outcome, report.value, report.stdout + report.stderr) == (Outcome.OK, EBADF, b"")


@pytest.mark.parametrize("fd", [3, 4096, 4097, 0x7FFFFFFF, -1])
def test_descriptors_that_were_never_given_out_are_refused(fd: int) -> None:
    """Attack: a descriptor beyond the guard's table, to reach what stands behind it."""
    with probe(stdin=b"data") as session:
        assert write(session, fd, b"data").value == EBADF
        assert session.call("fd_read", fd, IOVS, 1, RESULT).value == EBADF
        assert session.call("fd_close", fd).value == EBADF
        assert session.call("fd_renumber", fd, 1).value == EBADF
        assert session.call("fd_renumber", 1, fd).value == EBADF
        assert write(session, 1, b"fine").stdout == b"fine"


# -- stdin ------------------------------------------------------------------------------------------------------------


def test_stdin_is_served_in_pieces_up_to_its_end() -> None:
    """Stdin is what the caller gave, and then it is at its end."""
    with probe(stdin=b"0123456789") as session:
        pieces = []
        for buffers in (
            [(DATA, 3)],
            [(DATA, 2), (DATA + 100, 1), (DATA + 200, 0)],
            [(DATA, 0)],
            [(DATA, 100)],
            [(DATA, 9)],
        ):
            session.write_memory(IOVS, iovecs(*buffers))
            assert session.call("fd_read", 0, IOVS, len(buffers), RESULT).value == 0
            left = number(session)
            piece = b""
            for address, size in buffers:
                piece += session.read_memory(address, min(size, left))
                left -= min(size, left)
            pieces.append(piece)

    assert pieces == [b"012", b"345", b"", b"6789", b""]


def test_no_stdin_is_at_its_end() -> None:
    """Attack: reading what the terminal of the host has to say."""
    with probe() as session:
        session.write_memory(IOVS, iovecs((DATA, 10)))
        report = session.call("fd_read", 0, IOVS, 1, RESULT)
        assert number(session) == 0

    assert (report.value, report.usage.read_bytes) == (0, 0)


def test_reading_stdin_into_a_buffer_outside_of_memory_traps() -> None:
    """Attack: a buffer for stdin that is outside; the twin reads up to the last byte."""
    with probe(stdin=b"01234567") as session:
        session.write_memory(IOVS, iovecs((END - 4, 4)))
        assert session.call("fd_read", 0, IOVS, 1, RESULT).value == 0
        assert session.read_memory(END - 4, 4) == b"0123"
        session.write_memory(IOVS, iovecs((END - 3, 4)))
        report = session.call("fd_read", 0, IOVS, 1, RESULT)

    assert report.outcome is Outcome.TRAP
    assert_host_is_fine()


@settings(max_examples=examples(60))
@given(data=st.binary(max_size=300), sizes=st.lists(st.integers(0, 60), min_size=1, max_size=12))
def test_any_reads_serve_stdin_in_order(data: bytes, sizes: list[int]) -> None:
    """Any reads serve stdin in order."""
    taken = b""
    with probe(stdin=data) as session:
        for size in sizes:
            session.write_memory(IOVS, iovecs((DATA, size)))
            assert session.call("fd_read", 0, IOVS, 1, RESULT).value == 0
            count = number(session)
            assert count == min(size, len(data) - len(taken))
            taken += session.read_memory(DATA, count)

    assert taken == data[: sum(sizes)]


# -- arguments and environment ----------------------------------------------------------------------------------------


def strings(session: Session, kind: str) -> list[bytes]:
    """Reads arguments or environment as a guest does."""
    assert session.call(f"{kind}_sizes_get", RESULT, RESULT + 4).value == 0
    count, size = number(session), number(session, RESULT + 4)
    assert session.call(f"{kind}_get", DATA, MORE).value == 0
    pointers = struct.unpack(f"<{count}I", session.read_memory(DATA, 4 * count))
    block = session.read_memory(MORE, size)
    assert block.count(b"\0") == count
    return [block[pointer - MORE :].split(b"\0", 1)[0] for pointer in pointers]


@pytest.mark.parametrize(
    "args",
    [
        [],
        [""],
        ["", "", ""],
        ["a", "-b", "--c=d e", "\n\t"],
        ["ünïcødé", "日本語", "🦀"],
        [b"\xff\xfe raw"],
        [str(number) * 20 for number in range(1000)],
    ],
    ids=["none", "empty", "empties", "plain", "unicode", "not UTF-8", "a thousand"],
)
def test_arguments_arrive_as_given(args: list[str | bytes]) -> None:
    """Behind a name that tells nothing of the host."""
    with probe(args=args) as session:
        expected = [arg if isinstance(arg, bytes) else arg.encode() for arg in args]
        assert strings(session, "args") == [b"main.wasm", *expected]


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"A": ""},
        {"A": "1", "B": "x=y", "C": "with space"},
        {"NAME": "ünïcødé 日本語 🦀"},
        {f"V{number}": "x" * 20 for number in range(1000)},
    ],
    ids=["none", "empty value", "plain", "unicode", "a thousand"],
)
def test_environment_arrives_as_given(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: reading secrets from the environment of the host."""
    monkeypatch.setenv("STOCKADE_TEST_SECRET", "secret")
    with probe(env=env) as session:
        assert strings(session, "environ") == [f"{name}={value}".encode() for name, value in env.items()]


def test_nothing_of_the_host_is_in_reach_by_default() -> None:
    """No environment, no folders, and no name but one that all guests have."""
    with probe() as session:
        assert strings(session, "args") == [b"main.wasm"]
        assert strings(session, "environ") == []
        assert session.call("fd_prestat_get", 3, RESULT).value == EBADF
        assert path_open(session, "/etc/passwd").value == EBADF


def test_mounts_are_known_by_their_guest_names_only(tmp_path: Path) -> None:
    """Attack: learning where on the host a folder is."""
    with probe(mounted(tmp_path, "ro")) as session:
        assert session.call("fd_prestat_get", 3, RESULT).value == 0
        size = number(session, RESULT + 4)
        assert session.call("fd_prestat_dir_name", 3, DATA, size).value == 0
        assert session.read_memory(DATA, size) == b"/data"


@pytest.mark.parametrize("argument", ["a\0b", b"\0"])
def test_argument_with_a_zero_byte_is_refused(argument: str | bytes) -> None:
    """Such an argument would arrive as two."""
    with pytest.raises(stockade.UsageError, match="an argument contains a zero byte"):
        probe(args=[argument])


# -- refused calls ----------------------------------------------------------------------------------------------------

SOCKETS = [call for call in WASI if call.group == "sock"]


@pytest.mark.parametrize("call", SOCKETS, ids=lambda call: call.name)
def test_sockets_are_refused_and_reported(call: stockade._wasi.WasiCall) -> None:
    """Attack: using whatever descriptor might be a socket."""
    report = Sandbox().call(PROBE, call.name, *(0 for _ in call.params))

    assert (report.outcome, report.value) == (Outcome.OK, ENOTCAPABLE)
    assert report.usage.calls == {call.name: 1}
    assert report.usage.denied == {call.name: 1}
    (violation,) = report.violations
    assert (violation.kind, violation.subject, violation.call) == ("call", call.name, call.name)
    assert (violation.action, violation.count) == ("deny", 1)


def test_permitted_call_is_not_reported_as_refused() -> None:
    """The twin."""
    report = Sandbox().call(PROBE, "sched_yield")

    assert (report.outcome, report.value) == (Outcome.OK, 0)
    assert (report.usage.calls, report.usage.denied, report.violations) == ({"sched_yield": 1}, {}, ())


def test_refusals_are_counted() -> None:
    """Ten refusals are ten, in one violation."""
    module = wat(
        f"""
        (module {imports()} (memory (export "memory") 1)
          (func (export "_start") (local $i i32)
            (loop $again
              (drop (call $sock_shutdown (i32.const 0) (i32.const 0)))
              (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 10))))))
        """
    )

    report = Sandbox().run(module)

    assert (report.usage.denied, report.violations[0].count) == ({"sock_shutdown": 10}, 10)


def test_random_bytes_are_counted() -> None:
    """None are handed out where the buffer is outside of memory."""
    with probe() as session:
        report = session.call("random_get", DATA, 100)
        assert session.read_memory(DATA, 100) != bytes(100)
        assert (report.value, report.usage.random_bytes) == (0, 100)
        outside = session.call("random_get", END - 1, 2)

    assert (outside.outcome is not Outcome.OK or outside.value != 0, outside.usage.random_bytes) == (True, 0)
    assert_host_is_fine()


# -- growth -----------------------------------------------------------------------------------------------------------

GROWER = wat(
    """
    (module
      (memory (export "memory") 1)
      (table $t 10 funcref)
      (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
      (func (export "grow_table") (param i32) (result i32) (table.grow $t (ref.null func) (local.get 0)))
      (func (export "size") (result i32) (memory.size))
      (func (export "_start") (drop (memory.grow (i32.const 60000)))))
    """
)
TABLE_BYTES = 10 * 8


def test_memory_in_use_is_reported_as_pages() -> None:
    """Memory in use is reported as pages."""
    with Sandbox().open(GROWER) as session:
        assert session.call("size").usage.memory_bytes == PAGE + TABLE_BYTES
        assert session.call("grow", 4).value == 1
        report = session.call("size")

    assert report.value == 5
    assert report.usage.memory_bytes == report.usage.memory_peak_bytes == 5 * PAGE + TABLE_BYTES


def test_memory_may_grow_exactly_to_its_limit() -> None:
    """Attack: one page more than allowed; the page before it is the twin."""
    with Sandbox(Policy().replace(memory=16 * PAGE + TABLE_BYTES)).open(GROWER) as session:
        exact = session.call("grow", 15)
        over = session.call("grow", 1)
        nothing = session.call("grow", 0)

    assert (exact.value, exact.violations) == (1, ())
    assert (over.outcome, over.value) == (Outcome.OK, -1)
    (violation,) = over.violations
    assert (violation.kind, violation.call, violation.action) == ("memory", "memory.grow", "deny")
    assert (violation.limit, violation.observed) == (16 * PAGE + TABLE_BYTES, 17 * PAGE + TABLE_BYTES)
    assert over.usage.memory_bytes == 16 * PAGE + TABLE_BYTES
    assert (nothing.value, nothing.violations) == (16, ())


@pytest.mark.parametrize("pages", [65_536, 0x7FFFFFFF, -1, -(2**31)])
def test_absurd_growth_is_refused(pages: int) -> None:
    """Attack: a number of pages whose bytes wrap around to few."""
    report = Sandbox().call(GROWER, "grow", pages)

    assert (report.outcome, report.value) == (Outcome.OK, -1)
    assert report.usage.memory_bytes == PAGE + TABLE_BYTES
    assert [violation.kind for violation in report.violations] == ["memory"]


def test_refused_growth_is_reported_even_if_the_guest_ignores_it() -> None:
    """Attack: asking for too much and not minding the answer, so that nobody notices."""
    report = Sandbox().run(GROWER)

    assert (report.outcome, report.exit_code) == (Outcome.OK, 0)
    (violation,) = report.violations
    assert (violation.kind, violation.count) == ("memory", 1)
    assert violation.observed == 60_001 * PAGE + TABLE_BYTES


def test_refused_growth_ends_the_run_where_the_policy_says_stop() -> None:
    """Refused growth ends the run where the policy says stop."""
    box = Sandbox(Policy().replace(on_memory_denied="stop"))

    report = box.run(GROWER)

    assert (report.outcome, report.exit_code) == (Outcome.MEMORY, None)
    (violation,) = report.violations
    assert (violation.kind, violation.action) == ("memory", "stop")
    with pytest.raises(stockade.LimitExceeded):
        report.check()
    assert box.call(GROWER, "grow", 1).value == 1


@pytest.mark.parametrize(("pages", "outcome"), [(16, Outcome.OK), (17, Outcome.MEMORY), (65_536, Outcome.MEMORY)])
def test_initial_memory_counts(pages: int, outcome: Outcome) -> None:
    """Attack: beginning with more than the limit instead of growing to it."""
    module = wat(f'(module (memory {pages}) (func (export "_start")))')

    report = Sandbox(Policy().replace(memory=16 * PAGE)).run(module)

    assert report.outcome is outcome
    if outcome is Outcome.MEMORY:
        (violation,) = report.violations
        assert (violation.kind, violation.limit, violation.observed) == ("memory", 16 * PAGE, pages * PAGE)
        assert violation.action == "stop"


def test_growth_past_the_maximum_of_the_module_is_its_own_affair() -> None:
    """-1 because of the module's own maximum is no violation of the policy."""
    module = wat('(module (memory 1 2) (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))')

    report = Sandbox().call(module, "grow", 2)

    assert (report.value, report.violations, report.usage.memory_bytes) == (-1, (), PAGE)


@pytest.mark.parametrize(("more", "allowed"), [(9_990, True), (9_991, False), (-1, False)])
def test_tables_may_grow_exactly_to_their_limit(more: int, allowed: bool) -> None:
    """Attack: a table of millions of elements, which no memory limit sees."""
    report = Sandbox().call(GROWER, "grow_table", more)

    assert report.value == (10 if allowed else -1)
    assert report.usage.table_elements == (10_000 if allowed else 10)
    kinds = [(violation.kind, violation.call, violation.limit) for violation in report.violations]
    assert kinds == ([] if allowed else [("table", "table.grow", 10_000)])


def test_tables_count_in_the_memory_budget() -> None:
    """Attack: as above, below the limit of elements; the last element that fits is the twin."""
    policy = Policy().replace(memory=PAGE + 8 * 110)

    fits = Sandbox(policy).call(GROWER, "grow_table", 100)
    over = Sandbox(policy).call(GROWER, "grow_table", 101)

    assert (fits.value, fits.usage.memory_bytes, fits.violations) == (10, PAGE + 8 * 110, ())
    assert (over.value, over.usage.memory_bytes) == (-1, PAGE + 8 * 10)
    assert [(violation.kind, violation.observed) for violation in over.violations] == [("memory", PAGE + 8 * 111)]


def test_refused_growth_of_a_table_is_told_as_such() -> None:
    """Where the memory budget refuses a table, the violation names the instruction that asked."""
    over = Sandbox(Policy().replace(memory=PAGE + 8 * 110)).call(GROWER, "grow_table", 101)

    assert [violation.call for violation in over.violations] == ["table.grow"]


def test_initial_tables_count() -> None:
    """Attack: beginning with a large table; one of the allowed size is the twin."""
    for elements, outcome in ((10_000, Outcome.OK), (10_001, Outcome.MEMORY), (5_000_000, Outcome.MEMORY)):
        report = Sandbox().run(wat(f'(module (table {elements} funcref) (func (export "_start")))'))
        assert report.outcome is outcome
        assert [violation.kind for violation in report.violations] == ([] if report.ok else ["table"])


def test_tables_of_references_to_the_host_count_too() -> None:
    """Attack: a table of another kind."""
    module = wat(
        """
        (module (table $t 0 externref)
          (func (export "grow") (param i32) (result i32) (table.grow $t (ref.null extern) (local.get 0))))
        """
    )

    assert Sandbox().call(module, "grow", 10_000).value == 0
    assert Sandbox().call(module, "grow", 10_001).value == -1


TWO_MEMORIES = wat(
    """
    (module
      (memory $a (export "memory") 1)
      (memory $b 2)
      (func (export "grow_a") (param i32) (result i32) (memory.grow $a (local.get 0)))
      (func (export "grow_b") (param i32) (result i32) (memory.grow $b (local.get 0))))
    """
)


def test_two_memories_are_refused_unless_allowed() -> None:
    """Two memories are refused unless allowed."""
    with pytest.raises(stockade.InvalidModule) as caught:
        Sandbox(Policy().replace(memories=1)).call(TWO_MEMORIES, "grow_a", 1)

    assert str(caught.value) == "<bytes> has 2 memories; the policy allows 1 (limits.memories)"


def test_growth_of_each_of_two_memories_is_counted() -> None:
    """Attack: a limit for each memory instead of for all together."""
    policy = Policy().replace(memories=2, multi_memory=True, memory=8 * PAGE)
    with Sandbox(policy).open(TWO_MEMORIES) as session:
        assert session.call("grow_a", 2).value == 1
        grown = session.call("grow_b", 3)
        over = [session.call("grow_a", 1), session.call("grow_b", 1)]

    assert (grown.value, grown.usage.memory_bytes, grown.violations) == (2, 8 * PAGE, ())
    assert [(report.value, len(report.violations)) for report in over] == [(-1, 1), (-1, 1)]


def test_five_tables_are_refused_and_four_are_not() -> None:
    """Five tables are refused and four are not."""
    for count in (4, 5):
        module = wat(f'(module {"(table 1 funcref) " * count} (func (export "_start")))')
        if count == 4:
            assert Sandbox().run(module).ok
        else:
            with pytest.raises(stockade.InvalidModule) as caught:
                Sandbox().run(module)
            assert str(caught.value) == "<bytes> has 5 tables; the policy allows 4 (limits.tables)"


@settings(max_examples=examples(60))
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=15))
def test_any_growth_agrees_with_the_model(steps: list[tuple[bool, int]]) -> None:
    """What is granted, what is refused and what is counted."""
    limit = 40 * PAGE
    used, elements = PAGE + TABLE_BYTES, 10
    with Sandbox(Policy().replace(memory=limit, table_elements=100)).open(GROWER) as session:
        for is_table, more in steps:
            cost = more * (8 if is_table else PAGE)
            granted = used + cost <= limit and not (is_table and elements + more > 100)
            report = session.call("grow_table" if is_table else "grow", more)
            assert (report.value != -1) == granted
            assert bool(report.violations) != granted
            if granted:
                used += cost
                elements += more if is_table else 0
            assert (report.usage.memory_bytes, report.usage.table_elements) == (used, elements)


# -- files ------------------------------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, tuple[int, bytes | str, int]]:
    """All that is in a folder: kind and rights, content, time of change."""
    found: dict[str, tuple[int, bytes | str, int]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content: bytes | str = b""
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (status.st_mode, content, status.st_mtime_ns)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, a full and an empty folder in it."""
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "inner").write_bytes(b"inner")
    (tmp_path / "empty").mkdir()
    return tmp_path


def two_names(session: Session, old: str, new: str) -> tuple[int, int, int, int]:
    """Places two names; returns address and size of each."""
    session.write_memory(DATA, old.encode())
    session.write_memory(MORE, new.encode())
    return DATA, len(old), MORE, len(new)


def on_path(call: str, name: str) -> Callable[[Session], object]:
    """An operation that takes a path only."""

    def operation(session: Session) -> object:
        session.write_memory(DATA, name.encode())
        return session.call(call, 3, DATA, len(name)).value

    return operation


def on_file(operate: Callable[[Session, int], Report]) -> Callable[[Session], object]:
    """An operation on an open file; where it does not open for writing, on one that is open for reading."""

    def operation(session: Session) -> object:
        if path_open(session, "file", rights=ALL_RIGHTS).value and (
            errno := path_open(session, "file", rights=READ).value
        ):
            return errno
        fd = number(session)
        session.write_memory(DATA, b"changed")
        session.write_memory(IOVS, iovecs((DATA, 7)))
        return operate(session, fd).value

    return operation


def rename(session: Session) -> object:
    """Renames the file."""
    old, old_size, new, new_size = two_names(session, "file", "renamed")
    return session.call("path_rename", 3, old, old_size, 3, new, new_size).value


def link(session: Session) -> object:
    """Makes a hard link to the file."""
    old, old_size, new, new_size = two_names(session, "file", "linked")
    return session.call("path_link", 3, 0, old, old_size, 3, new, new_size).value


def symlink(session: Session) -> object:
    """Makes a symbolic link to the file."""
    old, old_size, new, new_size = two_names(session, "file", "linked")
    return session.call("path_symlink", old, old_size, 3, new, new_size).value


def set_times(session: Session) -> object:
    """Sets the file's times to 2001."""
    session.write_memory(DATA, b"file")
    return session.call("path_filestat_set_times", 3, 0, DATA, 4, 10**18, 10**18, 5).value


CHANGES: dict[str, Callable[[Session], object]] = {
    "create": lambda session: path_open(session, "new", CREATE).value,
    "create exclusively": lambda session: path_open(session, "new", CREATE | EXCLUSIVE).value,
    "create for reading": lambda session: path_open(session, "new", CREATE, READ).value,
    "truncate": lambda session: path_open(session, "file", TRUNCATE).value,
    "truncate for reading": lambda session: path_open(session, "file", TRUNCATE, READ).value,
    "unlink": on_path("path_unlink_file", "file"),
    "mkdir": on_path("path_create_directory", "made"),
    "rmdir": on_path("path_remove_directory", "empty"),
    "write": on_file(lambda session, fd: session.call("fd_write", fd, IOVS, 1, RESULT)),
    "pwrite": on_file(lambda session, fd: session.call("fd_pwrite", fd, IOVS, 1, 2, RESULT)),
    "set_size": on_file(lambda session, fd: session.call("fd_filestat_set_size", fd, 2)),
    "fd set_times": on_file(lambda session, fd: session.call("fd_filestat_set_times", fd, 10**18, 10**18, 5)),
    "rename": rename,
    "link": link,
    "symlink": symlink,
    "set_times": set_times,
}


@pytest.mark.parametrize("change", CHANGES)
def test_read_only_mount_cannot_be_changed(change: str, folder: Path) -> None:
    """Attack: each way of changing a folder that may only be read."""
    before = tree(folder)
    with probe(mounted(folder, "ro")) as session:
        errno = CHANGES[change](session)

    assert errno != 0
    assert tree(folder) == before


@pytest.mark.parametrize("change", CHANGES)
def test_writable_mount_can_be_changed(change: str, folder: Path) -> None:
    """The twin of each of the above."""
    before = tree(folder)
    with probe(mounted(folder, "rw")) as session:
        errno = CHANGES[change](session)

    assert errno == 0
    assert tree(folder) != before


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "full/../../outside", "escape", "escape/passwd"])
def test_nothing_outside_of_a_mount_can_be_opened(name: str, tmp_path: Path) -> None:
    """Attack: paths and links that lead out of the folder."""
    inside = tmp_path / "inside"
    (inside / "full").mkdir(parents=True)
    (inside / "file").write_bytes(b"content")
    (inside / "escape").symlink_to("../outside" if name == "escape" else "/etc")
    (tmp_path / "outside").write_bytes(b"outside")
    with probe(mounted(inside, "rw")) as session:
        for flags in (0, CREATE):
            assert path_open(session, name, flags).value != 0
        assert path_open(session, "file").value == 0

    assert (tmp_path / "outside").read_bytes() == b"outside"


def test_files_opened_created_and_deleted_are_counted(folder: Path) -> None:
    """Files opened created and deleted are counted."""
    with probe(mounted(folder, "rw")) as session:
        created = path_open(session, "new", CREATE)
        existing = path_open(session, "file", CREATE)
        missing = path_open(session, "missing")
        made = session.call("path_create_directory", 3, *two_names(session, "made", "")[:2])
        unlinked = session.call("path_unlink_file", 3, *two_names(session, "file", "")[:2])
        removed = session.call("path_remove_directory", 3, *two_names(session, "empty", "")[:2])
        not_removed = session.call("path_remove_directory", 3, *two_names(session, "full", "")[:2])

    def counts(report: Report) -> tuple[int, int, int, int]:
        usage = report.usage
        return usage.files_opened, usage.files_created, usage.files_deleted, usage.files_open_peak

    assert counts(created) == (1, 1, 0, 1)
    assert counts(existing) == (1, 0, 0, 2)
    assert (missing.value != 0, counts(missing)) == (True, (0, 0, 0, 2))
    assert counts(made)[:3] == (0, 1, 0)
    assert counts(unlinked)[:3] == (0, 0, 1)
    assert counts(removed)[:3] == (0, 0, 1)
    assert (not_removed.value != 0, counts(not_removed)[:3]) == (True, (0, 0, 0))


def test_closing_makes_room_in_the_count_of_open_files(folder: Path) -> None:
    """Refused closes do not count."""
    with probe(mounted(folder, "rw")) as session:
        first, second = opened(session, "file"), opened(session, "full/inner")
        assert session.call("fd_close", first).value == 0
        assert session.call("fd_close", first).value == EBADF
        assert session.call("fd_close", 99).value == EBADF
        assert session.call("sched_yield").usage.files_open_peak == 1
        assert session.call("fd_close", second).value == 0
        assert session.call("sched_yield").usage.files_open_peak == 0
        assert path_open(session, "file").usage.files_open_peak == 1


def test_file_created_through_a_dangling_link_is_counted(folder: Path) -> None:
    """Attack: creating files by opening links that lead to none, which are not new names."""
    (folder / "dangling").symlink_to("target")
    with probe(mounted(folder, "rw")) as session:
        report = path_open(session, "dangling", CREATE)

    assert (folder / "target").exists() == (report.value == 0)
    assert report.usage.files_created == (1 if report.value == 0 else 0)


def test_bytes_read_and_written_are_counted(folder: Path) -> None:
    """By what was moved, not by what was asked for."""
    with probe(mounted(folder, "rw")) as session:
        file = opened(session, "file")
        session.write_memory(IOVS, iovecs((DATA, 4), (DATA + 4, 100)))
        # Native WASI may serve one buffer of several at a time.
        taken = 0
        while taken < 7:
            read = session.call("fd_read", file, IOVS, 2, RESULT)
            assert read.usage.read_bytes == number(session) > 0
            taken += read.usage.read_bytes
        assert session.call("fd_read", file, IOVS, 2, RESULT).usage.read_bytes == 0
        assert taken == 7
        again = session.call("fd_pread", file, IOVS, 1, 2, RESULT)
        written = write(session, file, b"twelve bytes")
        session.write_memory(IOVS, iovecs((DATA, 3)))
        rewritten = session.call("fd_pwrite", file, IOVS, 1, 0, RESULT)

    assert again.usage.read_bytes == 4
    assert (written.usage.written_bytes, rewritten.usage.written_bytes) == (12, 3)
    assert (folder / "file").stat().st_size == 19


def test_open_files_do_not_outlive_the_run(folder: Path) -> None:
    """Attack: leaving files open, until the host has no descriptors left."""
    with probe(mounted(folder, "rw")):
        pass  # What the engine opens once, it keeps.
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with probe(mounted(folder, "rw")) as session:
            for _ in range(20):
                opened(session, "file")

    assert len(list(Path("/proc/self/fd").iterdir())) <= before
