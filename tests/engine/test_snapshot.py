"""What a restored instance was given, and what it wrote, is in no memory of a later guest.

Holds P-SNAP-4.
"""

from __future__ import annotations

import ctypes
import os
import random
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import EngineError, Policy, Sandbox, Session
from stockade.engine import (
    Extent,
    Instance,
    InstanceState,
    MemoryImage,
    SealedFile,
    _host_pages,
    _memory_copy,
    _memory_image,
    _memory_map,
    _snapshot,
)
from stockade.engine._libc import libc
from stockade.engine._memory_copy import large_page_bytes
from stockade.engine._memory_image import overlaid
from stockade.execution import SavedGuest
from stockade.system import is_sealed
from tests.conftest import wat
from tests.engine._holder import HOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = 40
"""Pages of 64 KiB of the guests here, grown and initial."""

_OF_SNAPSHOT, _OF_GUEST = b"held by the snapshot", b"written by its guest"


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(Policy().replace(memory="16MiB")) as made:
        yield made


def _fill(session: Session, mark: bytes) -> None:
    """Puts a mark on every page of the host's."""
    for page in range(PAGES * 16):
        session.write_memory(page * 4_096 + 1_000, mark)


def _taken(box: Sandbox) -> stockade.Snapshot:
    with box.open(HOLDER) as session:
        session.call("grow", PAGES - 2).check()
        _fill(session, _OF_SNAPSHOT)
        return session.snapshot()


def _check_nothing_shows(box: Sandbox, guests: int = 12) -> None:
    """Opens guests, in slots of the pool and beside it, and searches all their memory."""
    sessions = []
    try:
        for number in range(guests):
            # An engine has a pool only where its tables cannot grow beyond it.
            policy = Policy().replace(table_elements=100_000 if number % 2 else 1_000)
            session = box.open(HOLDER, policy=policy)
            sessions.append(session)
            session.call("grow", PAGES - 2).check()
            held = session.read_memory(0, PAGES * 65_536)
            assert held[100:108] == b"own data"
            assert not (held[:100] + held[108:]).strip(b"\0"), "another guest's memory shows"
    finally:
        for session in sessions:
            session.close()


def test_nothing_of_a_snapshot_or_its_guests_shows_in_later_guests(box: Sandbox) -> None:
    """The attack: a guest that reads its memory before it has written to it."""
    snapshot = _taken(box)
    restored = [box.open(snapshot) for _ in range(8)]
    for session in restored:
        _fill(session, _OF_GUEST)
    _check_nothing_shows(box)
    for session in restored:
        session.close()
    _check_nothing_shows(box)

    # What others hold of the snapshot is as it was.
    with box.open(snapshot) as session:
        held = session.read_memory(0, PAGES * 65_536)
        assert held.count(_OF_SNAPSHOT) == PAGES * 16
        assert _OF_GUEST not in held


def test_nothing_shows_where_restoring_fails_halfway(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: an instance that is freed between mapping and its first instruction."""
    snapshot = _taken(box)

    def fail(*_: object) -> None:
        raise EngineError("as if there were no room")

    with monkeypatch.context() as patch:
        patch.setattr(Instance, "set_global", fail)
        for _ in range(8):
            with pytest.raises(EngineError, match="as if there were no room"):
                box.open(snapshot)
    _check_nothing_shows(box)

    mapped = iter([None, OSError("as if there were no map left")])
    real = _memory_map.map_over

    def once(*args: int) -> None:
        if (problem := next(mapped, None)) is not None:
            raise problem
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_memory_map, "map_over", once)
        with pytest.raises(OSError, match="as if there were no map left"), box.open(snapshot), box.open(snapshot):
            pass
    _check_nothing_shows(box)
    assert box.call(snapshot, "number").value == 0


def test_nothing_shows_after_guests_that_trap_and_that_are_dropped(box: Sandbox) -> None:
    module = wat("""
    (module (memory (export "memory") 2)
      (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
      (func (export "write") (memory.fill (i32.const 0) (i32.const 65) (i32.const 131072)) unreachable))
    """)
    with box.open(module) as session:
        snapshot = session.snapshot()
    for _ in range(8):
        assert box.call(snapshot, "write").outcome is stockade.Outcome.TRAP
    _check_nothing_shows(box)


def test_a_snapshot_is_not_put_into_a_slot_of_a_pool(box: Sandbox) -> None:
    """The slot would keep the mapping, and show it to whoever gets it next."""
    snapshot = _taken(box)
    with box.open(HOLDER) as pooled, box.open(snapshot) as restored, restored.fork() as fork:
        instances = [session._guest._instance for session in (pooled, restored, fork)]
        assert [instance is not None and instance.is_pooled for instance in instances] == [True, False, False]
        instance = instances[0]
        assert instance is not None
        with pytest.raises(AssertionError):
            _snapshot.put_state(instance, (), (), (), InstanceState((), ()))


def test_the_file_of_a_snapshot_cannot_be_changed(box: Sandbox) -> None:
    snapshot = _taken(box)
    (extent,) = snapshot._saved.state.instance.memories[0].extents
    for attempt in (
        lambda: os.pwrite(extent.file.descriptor, b"x", 0),
        lambda: os.ftruncate(extent.file.descriptor, 0),
        lambda: os.ftruncate(extent.file.descriptor, 1 << 30),
    ):
        with pytest.raises(OSError, match="not permitted"):
            attempt()


def test_files_and_maps_are_given_back(box: Sandbox) -> None:
    def counts() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(Path("/proc/self/maps").read_text().splitlines())

    def once() -> None:
        snapshot = _taken(box)
        with box.open(snapshot) as session:
            _fill(session, _OF_GUEST)
            with session.fork() as fork:
                _fill(fork, _OF_SNAPSHOT)
                fork.snapshot()

    once()
    before = counts()
    for _ in range(20):
        once()
    files, maps = counts()
    assert files <= before[0]
    assert maps <= before[1] + 20


def test_mappings_are_counted_as_they_are(box: Sandbox) -> None:
    """Those that touch leave nothing between them: as many guests are let in as the kernel has maps for."""
    chance = random.Random(3)
    with box.open(_taken(box)) as first:
        session, forks = first, []
        for _ in range(8):
            for page in chance.sample(range(PAGES * 16), 12):
                session.write_memory(page * 4_096, b"changed")
            session = session.fork()
            forks.append(session)
            guest = session._guest
            instance, held = guest._instance, guest._plan.held
            assert instance is not None
            assert held is not None
            (image,) = held.instance.memories
            base, size = instance.woven_memory(guest._plan.program.woven.exposed.memories[0]).span()
            starts = [int(line.split("-")[0], 16) for line in Path("/proc/self/maps").read_text().splitlines()]
            # The first of them is there without a snapshot, too.
            assert sum(base <= start < base + size for start in starts) <= image.maps <= 2 * len(image.extents) + 1
        assert image.maps < 2 * len(image.extents)
        for fork in forks:
            fork.close()


def test_extents_are_put_over_others_as_bytes_are() -> None:
    """Against a memory in which each page tells by whom it was written last."""
    chance = random.Random(5)
    files = [SealedFile(SealedFile.new()) for _ in range(2)]

    def some(file: SealedFile) -> tuple[Extent, ...]:
        at, found = 0, []
        while (at := at + chance.randrange(4)) < 40:
            size = chance.randrange(1, 8)
            found.append(Extent(at * 4_096, size * 4_096, file, chance.randrange(100) * 4_096))
            at += size
        return tuple(found)

    def pages(extents: tuple[Extent, ...]) -> dict[int, tuple[SealedFile, int]]:
        return {
            (part.start + at): (part.file, part.offset + at) for part in extents for at in range(0, part.size, 4_096)
        }

    for _ in range(500):
        below, above = some(files[0]), some(files[1])
        both = overlaid(below, above)
        assert pages(both) == pages(below) | pages(above)
        assert all(before.end <= after.start for before, after in pairwise(both))


def test_zeros_are_not_kept(box: Sandbox) -> None:
    """A memory of 10 MiB with two marks far from each other takes the pages of both, and not what is between."""
    with box.open(HOLDER) as session:
        session.call("grow", 158).check()
        session.write_memory(5_000_000, b"one")
        session.write_memory(9_000_000, b"two")
        snapshot = session.snapshot()
    assert snapshot.memory_bytes == 160 * 65_536
    assert snapshot.stored_bytes == 3 * 4_096
    image: MemoryImage = snapshot._saved.state.instance.memories[0]
    assert [part.size for part in image.extents] == [4_096] * 3
    with box.open(snapshot) as session:
        held = session.read_memory(0, 160 * 65_536)
    assert (held[5_000_000:5_000_003], held[9_000_000:9_000_003]) == (b"one", b"two")
    assert len(held.replace(b"\0", b"")) == len(b"one" + b"two" + b"own data".replace(b"\0", b""))


@pytest.mark.parametrize("known", [True, False], ids=["by the kernel's table of pages", "without it"])
def test_snapshots_do_not_depend_on_the_table_of_pages(
    box: Sandbox, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        monkeypatch.setattr(_host_pages, "page_table", lambda *_: None)
    snapshot = _taken(box)
    with box.open(snapshot) as session:
        session.write_memory(70_000, b"changed")
        session.write_memory(4_096, bytes(4_096))
        with session.fork() as fork:
            held = fork.read_memory(0, PAGES * 65_536)
        assert held == session.read_memory(0, PAGES * 65_536)
        assert held[70_000:70_007] == b"changed"
        assert not held[4_096:8_192].strip(b"\0")
        assert held.count(_OF_SNAPSHOT) == PAGES * 16 - 1


# -- large pages -------------------------------------------------------------------------------------------------------

LARGE = large_page_bytes() or 2 << 20


@pytest.fixture
def wide_box() -> Iterator[Sandbox]:
    with Sandbox(Policy().replace(memory="64MiB")) as made:
        yield made


def _wide(box: Sandbox) -> Session:
    """A session with three stretches of data: two that are longer than a large page, and a short one."""
    session = box.open(HOLDER)
    session.call("grow", 800).check()
    for start, size in _STRETCHES:
        session.write_memory(start, _data(start, size))
    return session


_STRETCHES = ((3 * 65_536 + 4_096, 3 * LARGE), (200 * 65_536 + 8_192, 40_000), (260 * 65_536, 2 * LARGE + 12_345))


def _data(start: int, size: int) -> bytes:
    return random.Random(start).randbytes(size)


def _check_wide(session: Session) -> None:
    held = session.read_memory(0, 802 * 65_536)
    at = 108
    for start, size in _STRETCHES:
        assert not held[at:start].strip(b"\0")
        assert held[start : start + size] == _data(start, size)
        at = start + size
    assert not held[at:].strip(b"\0")


def test_long_stretches_lie_where_large_pages_can_be_mapped(wide_box: Sandbox) -> None:
    with _wide(wide_box) as session:
        snapshot = session.snapshot()
        _check_wide(session)
    (image,) = snapshot._saved.state.instance.memories
    long = [part for part in image.extents if part.size >= LARGE]
    assert len(long) == 2
    assert not any((part.start - part.offset) % LARGE for part in long)
    # What lies between them in the file is not kept.
    assert snapshot.stored_bytes <= sum(part.size for part in image.extents)
    with wide_box.open(snapshot) as restored:
        _check_wide(restored)
        restored.write_memory(4 * 65_536, b"changed")
        with restored.fork() as fork:
            assert fork.read_memory(4 * 65_536, 7) == b"changed"
            fork.write_memory(4 * 65_536, _data(*_STRETCHES[0])[4 * 65_536 - _STRETCHES[0][0] :][:7])
            _check_wide(fork)
    with wide_box.open(snapshot) as restored:
        _check_wide(restored)


@pytest.mark.parametrize(
    "refused",
    [
        "no mapping",
        "too slow",
        *(pytest.param(how, marks=pytest.mark.slow) for how in ("none", "no room", "no advice")),
    ],
)
def test_where_there_are_no_large_pages_small_ones_are_copied(
    wide_box: Sandbox, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = libc()
    answers = {
        "no room": ("mmap", iter([None])),
        "no mapping": ("mmap", iter([library.mmap, None])),
        "no advice": ("madvise", iter([library.madvise, -1])),
    }
    with _wide(wide_box) as session:
        with monkeypatch.context() as patch:
            if refused == "none":
                patch.setattr(_memory_copy, "large_page_bytes", lambda: 0)
            elif refused == "too slow":
                patch.setattr(_memory_copy, "_SPARE_SECONDS", -1.0)
                patch.setattr(_memory_copy, "_AT_ONCE", 1)
            else:
                name, given = answers[refused]
                real = getattr(library, name)

                def first(*arguments: object) -> object:
                    answer = next(given, real)
                    return answer(*arguments) if callable(answer) else answer

                patch.setattr(library, name, first)
            snapshot = session.snapshot()
        _check_wide(session)
    with wide_box.open(snapshot) as restored:
        _check_wide(restored)


def test_what_many_begin_with_is_put_into_large_pages(wide_box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a whole, whatever files it is in: here one of small pages, and one of what was changed after it."""
    with monkeypatch.context() as patch:
        patch.setattr(_memory_copy, "large_page_bytes", lambda: 0)
        with _wide(wide_box) as session:
            below = session.snapshot()
        with wide_box.open(below) as session:
            session.write_memory(700 * 65_536, b"changed")
            state = session.snapshot()._saved.state
    lasting = state.in_large_pages()
    (before,), (after,) = state.instance.memories, lasting.instance.memories
    assert len({part.file for part in before.extents}) == 2
    assert len({part.file for part in after.extents}) == 1
    assert all(is_sealed(part.file.descriptor) for part in after.extents)
    assert not any((part.start - part.offset) % LARGE for part in after.extents if part.size >= LARGE)
    assert lasting.instance.globals == state.instance.globals
    assert lasting.instance.maps == state.instance.maps
    with wide_box.open(stockade.Snapshot(SavedGuest(lasting))) as restored:
        assert restored.read_memory(700 * 65_536, 7) == b"changed"
        restored.write_memory(700 * 65_536, bytes(7))
        _check_wide(restored)

    for name in ("no room", "no file"):
        with monkeypatch.context() as patch:
            if name == "no room":
                patch.setattr(libc(), "mmap", lambda *_: None)
            else:
                patch.setattr(_memory_image, "own_memory_file", _no_file)
            assert state.in_large_pages().instance.memories == state.instance.memories


def _no_file(_: str) -> int:
    raise OSError(24, "Too many open files")


@pytest.mark.parametrize("large_pages", ["never", "soon", "always"])
def test_whatever_large_pages_cost_the_same_is_copied(
    large_pages: _memory_copy.LargePages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an offset and with a size that are no multiples of a large page; what lies around it stays as it is."""
    monkeypatch.setattr(_memory_copy, "_SPARE_SECONDS", -1.0)
    data = bytearray(random.Random(7).randbytes(6 * LARGE + 5_000))
    file = SealedFile.new()
    os.ftruncate(file.number, 8 * LARGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(data))
    _memory_copy.copy_into(file.number, address, len(data), LARGE - 4_096, large_pages)
    held = os.pread(file.number, 8 * LARGE, 0)
    assert held == bytes(LARGE - 4_096) + data + bytes(len(held) - len(data) - LARGE + 4_096)


def test_a_process_that_was_forked_while_a_snapshot_was_taken_cannot_write_to_it(
    wide_box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: whoever has the file mapped, and may write to it, changes what others begin with.

    The kernel seals no file that somebody has mapped so; then it is copied anew.
    """
    fork, kept = _memory_copy.libc().madvise, []

    def in_the_middle(address: int, size: int, advice: int) -> int:
        if advice == 10:
            # As if the process were forked before it is said that a child does not get the mapping.
            reader, writer = os.pipe()
            if not (child := os.fork()):
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            os.close(reader)
            kept.append((child, writer))
        return int(fork(address, size, advice))

    with _wide(wide_box) as session:
        with monkeypatch.context() as patch:
            patch.setattr(libc(), "madvise", in_the_middle)
            snapshot = session.snapshot()
        assert kept
        (image,) = snapshot._saved.state.instance.memories
        assert all(is_sealed(part.file.descriptor) for part in image.extents)
        _check_wide(session)
    for _, writer in kept:
        os.close(writer)
    for child, _ in kept:
        os.waitpid(child, 0)
    with wide_box.open(snapshot) as restored:
        _check_wide(restored)
