"""Memory in a file of its own, that forks do not copy: what it holds, and who sees what of it.

Holds P-SNAP-9.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stockade import EngineError, HostCall, LinkError, Outcome, Policy, Sandbox, Session, Snapshot, UsageError
from stockade.engine import SealedFile, _forkable, _memory_copy, _memory_image, _memory_map
from stockade.engine._libc import MAP_FAILED, libc
from stockade.execution._guest import LiveGuest
from stockade.system import is_sealed
from tests._interrupting import after_a_signal, interrupted, raised_in
from tests._processes import ended, forked, open_descriptors, until
from tests.conftest import wat
from tests.engine._holder import HOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = 65_536
PAGES = 40

LOST = "the session was opened with forks=True before this process was forked, and goes on in its parent: open one here"


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(Policy().replace(memory="16MiB")) as made:
        yield made


def _filled(box: Sandbox, mark: int = 7) -> Session:
    """A session whose memory is full of a mark, but for its first page."""
    session = box.open(HOLDER, forks=True)
    session.call("grow", PAGES - 2).check()
    session.call("fill", PAGE, mark, (PAGES - 1) * PAGE).check()
    return session


def _held(session: Session) -> bytes:
    return session.read_memory(0, PAGES * PAGE)


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes were copied for each stretch that was."""
    found: list[int] = []
    real = _memory_copy.copy_into

    def copy_into(descriptor: int, address: int, size: int, *rest: object) -> None:
        found.append(size)
        real(descriptor, address, size, *rest)  # type: ignore[arg-type] # as they come

    monkeypatch.setattr(_memory_copy, "copy_into", copy_into)
    monkeypatch.setattr(_forkable, "copy_into", copy_into)
    return found


def test_the_first_fork_copies_nothing_and_later_ones_what_has_changed(box: Sandbox, copied: list[int]) -> None:
    with _filled(box) as session:
        assert copied == [4_096], "the module's own data, as the session was opened"
        copied.clear()
        with session.fork() as fork:
            assert not copied
            assert _held(fork) == _held(session)
        session.call("put", 10 * PAGE, 1).check()
        session.call("put", 20 * PAGE, 1).check()
        with session.fork() as fork:
            assert copied == [4_096, 4_096]
            assert _held(fork) == _held(session)


def test_without_it_the_first_fork_copies_what_there_is(box: Sandbox, copied: list[int]) -> None:
    with box.open(HOLDER) as session:
        session.call("grow", PAGES - 2).check()
        session.call("fill", PAGE, 7, (PAGES - 1) * PAGE).check()
        session.fork().close()
    assert sum(copied) > (PAGES - 1) * PAGE


def test_neither_sees_what_the_other_writes_afterwards(box: Sandbox) -> None:
    """The attack: a guest looks for what the one that it was forked from, or another fork, writes later."""
    with _filled(box) as session, session.fork() as one, session.fork() as two:
        for mark, guest in enumerate((session, one, two), 1):
            guest.call("fill", 2 * PAGE, mark, 8 * PAGE).check()
            # Untouched before: in no file that they share.
            guest.call("put", 8, mark).check()
        for mark, guest in enumerate((session, one, two), 1):
            held = _held(guest)
            assert held[2 * PAGE : 10 * PAGE] == bytes([mark]) * (8 * PAGE)
            assert held[8:12] == mark.to_bytes(4, "little")
            assert held[10 * PAGE :] == b"\7" * (30 * PAGE)
            assert held[100:108] == b"own data"


def test_what_was_taken_stays_as_it_was(box: Sandbox) -> None:
    """The attack: a guest writes on after a snapshot of it was taken, to what others will begin with."""
    with _filled(box) as session:
        snapshot = session.snapshot()
        session.call("fill", 0, 9, PAGES * PAGE).check()
        session.call("grow", 10).check()
        with box.open(snapshot) as restored:
            assert _held(restored) == bytes(100) + b"own data" + bytes(PAGE - 108) + b"\7" * ((PAGES - 1) * PAGE)
            assert restored.call("grow", 0).value == PAGES


def _file_of(snapshot: Snapshot) -> SealedFile:
    (image,) = snapshot._saved.state.instance.memories
    (file,) = {id(part.file): part.file for part in image.extents}.values()
    return file


def test_nobody_can_change_the_file_of_a_snapshot(box: Sandbox) -> None:
    with _filled(box) as session:
        file = _file_of(session.snapshot())
        for attempt in (
            lambda: os.pwrite(file.descriptor, b"x", 0),
            lambda: os.ftruncate(file.descriptor, 0),
            lambda: os.ftruncate(file.descriptor, 1 << 30),
            lambda: mmap.mmap(file.descriptor, PAGE),
        ):
            with pytest.raises(OSError, match="not permitted"):
                attempt()
        # What is aside is given back without anybody asking for it.
        assert until(lambda: file.is_settled)
        assert is_sealed(file.descriptor)
        assert fcntl.fcntl(file.descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL
        file.settle()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_written_grown_and_forked_each_holds_its_own(box: Sandbox, seed: int) -> None:
    """Against a model: any number of guests, forks of forks with and without files of their own."""
    choose = random.Random(seed)
    guests = [(box.open(HOLDER, forks=True), bytearray(bytes(100) + b"own data" + bytes(2 * PAGE - 108)))]
    try:
        for _ in range(120):
            session, model = choose.choice(guests)
            kind = choose.randrange(6)
            if kind == 0 and len(model) < 100 * PAGE:
                pages = choose.randrange(8)
                assert session.call("grow", pages).value == len(model) // PAGE
                model.extend(bytes(pages * PAGE))
            elif kind == 1 and len(guests) < 8:
                forks = bool(choose.randrange(2))
                guests.append((session.fork(forks=forks), bytearray(model)))
            elif kind == 2 and len(guests) > 1:
                guests.remove((session, model))
                session.close()
            else:
                start = choose.randrange(len(model))
                size = min(choose.choice([1, 5_000, PAGE, 12 * PAGE]), len(model) - start)
                mark = choose.choice([0, 1 + choose.randrange(255)])
                session.call("fill", start, mark, size).check()
                model[start : start + size] = bytes([mark]) * size
            for guest, expected in guests:
                assert guest.read_memory(0, len(expected)) == expected
    finally:
        for session, _ in guests:
            session.close()


def test_a_restored_guest_has_its_changes_and_what_it_grows_by_in_its_forks(box: Sandbox, copied: list[int]) -> None:
    with _filled(box) as first:
        snapshot = first.snapshot()
    copied.clear()
    with box.open(snapshot, forks=True) as session:
        session.call("put", 5 * PAGE, 1).check()
        session.call("grow", 20).check()
        session.call("fill", PAGES * PAGE, 3, 20 * PAGE).check()
        with session.fork() as fork:
            assert copied == [4_096]
            assert fork.read_memory(0, (PAGES + 20) * PAGE) == session.read_memory(0, (PAGES + 20) * PAGE)
            assert fork.call("count").value == session.call("count").value == 1


def test_after_any_number_of_forks_only_what_has_changed_is_copied(box: Sandbox, copied: list[int]) -> None:
    """What a memory is made of does not come to be more and more pieces, so that all has to be copied anew."""
    choose, sites = random.Random(5), range(0, 138, 6)
    with _filled(box) as session:
        session.call("grow", 100).check()
        session.call("fill", PAGE, 1, 139 * PAGE).check()
        session.fork().close()
        copied.clear()
        for number in range(60):
            for site in choose.sample(sites, 12):
                session.call("put", site * PAGE, number).check()
            with session.fork() as fork:
                assert fork.read_memory(0, 140 * PAGE) == session.read_memory(0, 140 * PAGE)
            assert copied == [4_096] * 12
            copied.clear()


def test_limits_and_bounds_are_as_without_it(box: Sandbox) -> None:
    """The attack: what lies behind the memory is mapped already, up to the limit."""
    for forks in (False, True):
        with box.open(HOLDER, forks=forks) as session:
            assert session.call("get", 2 * PAGE - 4).value == 0
            report = session.call("get", 2 * PAGE - 3)
            assert (report.outcome, report.trap and report.trap.code) == (Outcome.TRAP, "memory_out_of_bounds")
        with box.open(HOLDER, forks=forks) as session:
            assert session.call("grow", 300).value == -1
            assert session.call("grow", 100).value == 2
            assert session.call("put", 102 * PAGE - 4, 1).check()
            assert session.call("put", 102 * PAGE, 1).outcome is Outcome.TRAP
        with box.open(HOLDER, forks=forks) as session:
            session.fork().close()
            assert session.call("put", 2 * PAGE, 1).outcome is Outcome.TRAP
        with pytest.raises(LinkError), box.open(HOLDER, forks=forks) as session:
            session.call("no such function")


def test_nothing_shows_in_later_guests(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: guests that read memory before they have written to it, after forks that were closed or failed."""
    calls = iter(range(1_000))

    def failing(*arguments: object, **options: object) -> object:
        if next(calls) % 3 == 2:
            raise EngineError("as if there were no map left")
        return real(*arguments, **options)

    for name in ("map_over", "map_in_place", "put_aside"):
        real = getattr(_forkable, name)
        with monkeypatch.context() as patch:
            patch.setattr(_forkable, name, failing)
            for _ in range(6):
                with (
                    contextlib.suppress(EngineError),
                    _filled(box, 0x5A) as session,
                    session.fork() as fork,
                ):
                    fork.call("fill", 0, 0x5B, 4 * PAGE)
    for number in range(24):
        policy = Policy().replace(table_elements=100_000 if number % 2 else 1_000)
        with box.open(HOLDER, forks=number % 3 == 0, policy=policy) as session:
            session.call("grow", PAGES - 2).check()
            held = _held(session)
            assert not (held[:100] + held[108:]).strip(b"\0"), "another guest's memory shows"


class _InterruptedError(Exception):
    """As a handler of a signal raises."""


@pytest.mark.parametrize("name", ["mmap", "mremap", "madvise"])
@pytest.mark.parametrize("at", range(6))
def test_a_fork_that_is_interrupted_anywhere_loses_nothing(
    box: Sandbox, name: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: a signal in the middle of a fork, whose handler raises: what the guest writes next is in its own."""
    with _filled(box) as session:
        session.snapshot()
        session.call("fill", PAGE, 8, PAGE).check()
        session.call("grow", 20).check()
        session.call("fill", PAGES * PAGE, 3, 20 * PAGE).check()
        real, calls = getattr(libc(), name), iter(range(100))

        def interrupted(*arguments: object) -> object:
            found = real(*arguments)
            if next(calls) == at:
                raise _InterruptedError
            return found

        with monkeypatch.context() as patch:
            patch.setattr(libc(), name, interrupted)
            with contextlib.suppress(_InterruptedError):
                session.snapshot()
        for mark in (4, 5):
            session.call("fill", 3 * PAGE, mark, 30 * PAGE).check()
            session.call("fill", 50 * PAGE, mark, PAGE).check()
            expected = session.read_memory(0, (PAGES + 20) * PAGE)
            with session.fork() as fork:
                session.call("fill", 0, 9, PAGES * PAGE).check()
                assert fork.read_memory(0, (PAGES + 20) * PAGE) == expected


@pytest.mark.parametrize("why", ["no descriptor", "no mremap", "memory is never promised", "no table of pages"])
def test_where_it_cannot_be_had_forks_copy(box: Sandbox, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "no descriptor":

        def none_left(*_: object) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr("stockade.engine._memory_image.own_memory_file", none_left)
            session = _filled(box)
    else:
        if why == "no mremap":
            monkeypatch.setattr(libc(), "mremap", lambda *_: None)
        elif why == "no table of pages":
            monkeypatch.setattr(_forkable, "page_table", lambda *_: None)
        else:
            monkeypatch.setattr(_forkable, "_has_room_for_sure", lambda: False)
        session = _filled(box)
    with session:
        for mark in (1, 2):
            session.call("fill", mark * PAGE, mark, PAGE).check()
            with session.fork() as fork:
                assert _held(fork) == _held(session)


def test_descriptors_are_given_back(box: Sandbox) -> None:
    def once() -> None:
        with _filled(box) as session, session.fork(forks=True) as fork:
            fork.call("fill", 0, 1, PAGE).check()
            fork.fork().close()

    once()
    before = open_descriptors()
    for _ in range(5):
        once()
    # What is aside is given back on another thread, which has the file until then.
    assert until(lambda: open_descriptors() <= before)


# -- processes ---------------------------------------------------------------------------------------------------------


def test_a_forked_process_refuses_the_session_and_changes_nothing_of_it(box: Sandbox) -> None:
    """The attack: parent and child would write to the same memory. What was taken before serves both."""
    with _filled(box) as session, session.fork() as fork:
        snapshot = session.snapshot()
        session.call("fill", 0, 1, PAGE).check()
        session.call("grow", 4).check()

        def work() -> None:
            # By the host, to what is the child's own.
            assert session.read_memory(0, PAGE) == b"\1" * PAGE
            session.write_memory(0, b"\x63" * PAGE)
            session.write_memory((PAGES + 2) * PAGE, b"\x63" * PAGE)
            for attempt in (session.fork, lambda: session.call("put", 0, 99)):
                with pytest.raises(UsageError) as problem:
                    attempt()
                assert str(problem.value) == LOST
            # One without it goes on in both, as ever.
            fork.call("fill", 0, 2, PAGE).check()
            with box.open(snapshot) as restored, box.open(HOLDER, forks=True) as fresh:
                assert restored.read_memory(PAGE, 1) == b"\7"
                fresh.fork().close()
            session.close()

        assert ended(forked(work)) == 0
        assert session.read_memory(0, PAGE) == b"\1" * PAGE
        assert session.read_memory((PAGES + 2) * PAGE, PAGE) == bytes(PAGE)
        assert fork.read_memory(0, 1) == b"\0"
        session.call("put", 0, 5).check()
        session.fork().close()


NOT_APART = (
    "the session was opened with forks=True before this process was forked, and its memory could not be set apart "
    "here, for the kernel had no memory maps left: open one here"
)


def _refuses(*_: object) -> None:
    raise EngineError("a snapshot cannot be mapped: Cannot allocate memory")


def test_what_cannot_be_set_apart_in_a_forked_process_is_refused_there_and_the_rest_is_set_apart(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: with no memory map left, the child would write to what the parent's guest has in its memory."""
    real, refused = _forkable.map_over, range(0)

    def map_over(address: int, *rest: int) -> None:
        if address in refused:
            _refuses()
        real(address, *rest)

    monkeypatch.setattr(_forkable, "map_over", map_over)
    with _filled(box) as first, _filled(box) as second, _filled(box) as third:
        sessions = [first, second, third]
        for at, refusing in enumerate(sessions):
            begin = _place(refusing)
            refused = range(begin, begin + (16 << 20))

            def work(at: int = at) -> None:
                for number, session in enumerate(sessions):
                    if number != at:
                        assert session.read_memory(PAGE, 1) == b"\7"
                        session.write_memory(PAGE, b"\x63")
                _check_as_child(sessions, at)
                # And so in a child of this one.
                assert ended(forked(lambda: _check_as_child(sessions, at))) == 0
                for session in sessions:
                    with pytest.raises(UsageError) as problem:
                        session.call("put", 0, 99)
                    assert str(problem.value) == LOST
                    session.close()

            assert ended(forked(work)) == 0
            refused = range(0)
            for session in sessions:
                assert session.read_memory(PAGE, 2) == b"\7\7"
                session.call("put", 0, 5).check()
                session.fork().close()


def _place(session: Session) -> int:
    guest = session._guest
    assert isinstance(guest, LiveGuest)
    assert guest._instance is not None
    return guest._instance.memory(b"memory").span()[0]


def _check_as_child(sessions: list[Session], at: int) -> None:
    for number, session in enumerate(sessions):
        if number != at:
            assert session.read_memory(PAGE, 2) == b"\x63\7"
            continue
        with pytest.raises(UsageError) as problem:
            session.read_memory(PAGE, 1)
        assert str(problem.value) == NOT_APART
        with pytest.raises(UsageError) as problem:
            session.write_memory(PAGE, b"\x63")
        assert str(problem.value) == NOT_APART


def test_a_host_function_in_a_forked_process_uses_no_memory_that_could_not_be_set_apart(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: the same by a call that is under way as the process is forked."""
    calls = wat("""
    (module
      (import "app" "fork" (func $fork))
      (memory (export "memory") 1)
      (func (export "go") (call $fork)))
    """)
    children: list[int] = []

    @box.host_function("app")
    def fork(call: HostCall) -> None:
        call.memory.write(0, b"right")
        with monkeypatch.context() as patch:
            patch.setattr(_forkable, "map_over", _refuses)
            child = _plain_fork()
        if child:
            children.append(child)
            return
        found = []
        for use in (lambda: call.memory.read(0, 5), lambda: call.memory.write(0, b"wrong")):
            try:
                use()
            except UsageError as problem:
                found.append(str(problem))
        os._exit(0 if found == [NOT_APART] * 2 else 5)

    with box.open(calls, forks=True) as session:
        session.call("go").check()
        assert ended(children[0]) == 0
        assert session.read_memory(0, 5) == b"right"


def test_a_host_function_that_forks_ends_the_call_in_the_child(box: Sandbox) -> None:
    """The attack: the call would go on in both processes, in the same memory."""
    calls = wat("""
    (module
      (import "app" "fork" (func $fork))
      (memory (export "memory") 1)
      (func (export "go") (call $fork) (i32.store (i32.const 0) (i32.const 42))))
    """)
    children: list[int] = []
    session: Session | None = None

    @box.host_function("app")
    def fork() -> None:
        # Its own frames go on in the child until the call is over there.
        if (child := _plain_fork()) != 0:
            children.append(child)

    session = box.open(calls, forks=True)
    try:
        session.call("go").check()
    except BaseException as problem:
        if not children:
            os._exit(0 if isinstance(problem, UsageError) and str(problem) == LOST else 3)
        raise
    if not children:
        os._exit(4)
    assert ended(children[0]) == 0
    assert session.read_memory(0, 4) == (42).to_bytes(4, "little")
    session.close()


def _plain_fork() -> int:
    from tests._processes import fork

    return fork()


def test_a_snapshot_opens_in_a_process_of_its_own_and_from_a_file(box: Sandbox, tmp_path: Path) -> None:
    with _filled(box) as session:
        snapshot = session.snapshot()
        snapshot.save(tmp_path / "it.snapshot")
        expected = _held(session)
    with Sandbox(box.policy, isolation="process") as jailed, jailed.open(snapshot) as restored:
        assert _held(restored) == expected
    with box.open(Snapshot.load(tmp_path / "it.snapshot")) as restored:
        assert _held(restored) == expected


def test_in_a_process_of_its_own_it_makes_no_difference(box: Sandbox) -> None:
    with Sandbox(box.policy, isolation="process") as jailed, jailed.open(HOLDER, forks=True) as session:
        session.call("put", 8, 5).check()
        with session.fork() as fork:
            assert fork.call("get", 8).value == 5


def test_on_an_event_loop(box: Sandbox) -> None:
    async def work() -> None:
        async with await box.open_async(HOLDER, forks=True) as session:
            (await session.call("put", 8, 5)).check()
            async with await session.fork(forks=True) as fork:
                (await session.call("put", 8, 6)).check()
                assert (await fork.call("get", 8)).value == 5

    asyncio.run(work())


def test_what_is_put_aside_is_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a mapping, tables are moved, and nothing of what is read there changes."""
    monkeypatch.undo()
    with mmap.mmap(-1, 4 << 20) as held:
        held[:] = b"x" * len(held)
        view = (ctypes.c_char * len(held)).from_buffer(held)
        room = _memory_map.put_aside(ctypes.addressof(view), len(held))
        del view
        assert room is not None
        assert held[:] == b"x" * len(held)


def test_a_forked_child_gives_back_nothing_that_was_put_aside() -> None:
    """The attack: where address space was put aside in the parent, a child has memory of its own, which stays."""
    place = _mine(4 << 20)
    rooms = [_memory_map.Room(4 << 20, int, place, piece=2 << 20)]

    def look() -> None:
        rooms.clear()
        ctypes.memset(place, 1, 4 << 20)

    assert ended(forked(look)) == 0
    # The twin: where it was put aside it is given back.
    rooms.clear()
    assert f"{place:x}-" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("refused", [-1, None], ids=repr)
def test_a_kernel_that_does_not_move_tables_unmaps_nothing(
    refused: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: on Linux before 5.13 such a move is refused, and one to a fixed place has given back what lay there.

    So another thread comes to be there, and loses what it has as the room is given back.
    """
    asked: list[tuple[int, ...]] = []
    theirs: list[int] = []

    def mremap(*arguments: int) -> int | None:
        asked.append(arguments)
        _, _, size, flags, place = arguments
        if flags & _MREMAP_FIXED:
            assert libc().munmap(place, size) == 0
        # In the first hole that there is, as the kernel does it.
        theirs.append(libc().mmap(place, size, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0))
        return None if refused is None else MAP_FAILED

    monkeypatch.setattr(libc(), "mremap", mremap)
    with mmap.mmap(-1, 4 << 20) as held:
        view = (ctypes.c_char * len(held)).from_buffer(held)
        assert _memory_map.put_aside(ctypes.addressof(view), len(held)) is None
        del view
    assert len(asked) == 1
    assert not asked[0][3] & _MREMAP_FIXED
    assert f"{theirs[0]:x}-" in Path("/proc/self/maps").read_text(), "what somebody else has mapped is gone"
    libc().munmap(theirs[0], 4 << 20)


def test_a_place_that_somebody_has_taken_meanwhile_stays_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: the kernel takes another one."""
    real, theirs = libc().mremap, []

    def mremap(*arguments: int) -> int | None:
        place = arguments[-1]
        found = libc().mmap(place, PAGE, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        assert found == place
        theirs.append(found)
        return int(real(*arguments))

    monkeypatch.setattr(libc(), "mremap", mremap)
    with mmap.mmap(-1, 4 << 20) as held:
        held[:] = b"x" * len(held)
        view = (ctypes.c_char * len(held)).from_buffer(held)
        room = _memory_map.put_aside(ctypes.addressof(view), len(held))
        del view
        assert room is not None
        assert room.address != theirs[0]
        assert held[:] == b"x" * len(held)
    assert ctypes.string_at(theirs[0], PAGE) == bytes(PAGE)
    del room
    assert ctypes.string_at(theirs[0], PAGE) == bytes(PAGE)
    libc().munmap(theirs[0], PAGE)


def test_tables_that_are_put_aside_are_moved_whole() -> None:
    """Both begin at the same place within one."""
    with mmap.mmap(-1, 4 << 20) as held:
        view = (ctypes.c_char * len(held)).from_buffer(held)
        address = ctypes.addressof(view) + PAGE
        room = _memory_map.put_aside(address, len(held) - PAGE)
        del view
        assert room is not None
        assert room.address % (2 << 20) == address % (2 << 20)


_MREMAP_FIXED = 2

_ROOM = 4 << 20

_THINGS: dict[str, Callable[[], object]] = {
    "file": lambda: _memory_image.MemoryFile(PAGE),
    "sealed file": lambda: SealedFile(SealedFile.new()),
    "received file": lambda: _received(SealedFile(SealedFile.new())),
    "room": lambda: _memory_map.new_room(_ROOM),
    "file with a room": lambda: SealedFile.of(
        _memory_image.MemoryFile(PAGE), [_memory_map.Room(_ROOM, _mine, _ROOM, piece=PAGE)]
    ),
    "memory": lambda: _begun(_mine(_ROOM), _ROOM),
}
"""What holds something of the system's."""


def _received(file: SealedFile) -> SealedFile:
    return SealedFile.received(os.dup(file.descriptor))


def _begun(address: int, size: int) -> _forkable.ForkableMemory:
    memory = _forkable.ForkableMemory(address, size, ())
    memory.begin(size)
    return memory


def _maps() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("name", _THINGS)
def test_a_signal_while_something_is_dropped_loses_neither_it_nor_what_the_handler_raises(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: Ctrl-C, while what a session or a snapshot was kept in is given back."""
    _THINGS[name]()
    before, maps = open_descriptors(), _maps()
    for _ in range(10):
        held = [_THINGS[name]()]
        raised_in(held.clear, monkeypatch)
    assert open_descriptors() == before
    # What the memory lay in is the test's.
    assert _maps() <= maps + 4 + (10 if name == "memory" else 0)


def test_a_signal_while_a_room_is_made_loses_none() -> None:
    maps = _maps()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    for number in range(10):
        get = after_a_signal(libc().mmap, None, _ROOM, number % 2, flags, -1, 0)
        with interrupted():
            _memory_map.Room(_ROOM, get, piece=PAGE)
            # Python looks for signals behind a call in C.
            len(())
    assert _maps() <= maps + 4


def _mine(size: int) -> int:
    """Memory that is never given back by whoever asks for it."""
    return int(
        libc().mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0) or 0
    )


def _kept() -> int:
    """How many bytes this process keeps in files in memory."""
    found = 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - those of this process
        with contextlib.suppress(OSError):
            if "memfd:stockade snapshot" in os.readlink(f"/proc/self/fd/{name}"):  # noqa: PTH115 - a link to no path
                found += Path(f"/proc/self/fd/{name}").stat().st_blocks * 512
    return found


@pytest.mark.parametrize("forks", [True, False], ids=["forks", "restored"])
def test_a_guest_has_the_host_keep_no_more_than_a_few_times_its_memory(forks: bool) -> None:
    """The attack: before each fork it writes to nearly all of its memory, so a little of each file is still used."""
    size, step = 16 << 20, 320 << 10
    with (
        Sandbox(Policy().replace(memory="16MiB", fuel=None)) as box,
        box.open(HOLDER, forks=True) if forks else _restored(box) as session,
    ):
        session.call("grow", size // PAGE - 2).check()
        before = _kept()
        for number, at in enumerate(range(0, size, step)):
            session.call("fill", at, number + 1, size - at).check()
            session.fork().close()
            # What is copied in the place of what is kept is there beside it for a moment.
            assert _kept() - before < 4 * size + (16 << 20)
        held = session.read_memory(0, size)
    assert held == b"".join(
        bytes([number + 1]) * min(step, size - at) for number, at in enumerate(range(0, size, step))
    )


def _restored(box: Sandbox) -> Session:
    with box.open(HOLDER) as first:
        return box.open(first.snapshot())


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), EngineError("a snapshot cannot be mapped: as if")], ids=repr)
def test_a_fork_of_a_restored_session_that_fails_loses_nothing(
    box: Sandbox, raised: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it fails: some of what was taken is mapped by then, and some is not."""
    real, left = _memory_map.map_over, 0

    def map_over(address: int, size: int, descriptor: int, offset: int) -> None:
        nonlocal left
        real(address, size, descriptor, offset)
        left -= 1
        if left == 0:
            raise raised

    monkeypatch.setattr(_memory_map, "map_over", map_over)
    with _restored(box) as session:
        session.call("grow", 30).check()
        for number in range(1, 6):
            session.call("put", 0, number).check()
            session.call("put", 20 * PAGE, number).check()
            session.call("put", 31 * PAGE, number).check()
            left = number
            with contextlib.suppress(type(raised)):
                session.fork().close()
            left = 0
            with session.fork() as fork:
                for each in (session, fork):
                    assert [each.call("get", at * PAGE).value for at in (0, 20, 31)] == [number] * 3
