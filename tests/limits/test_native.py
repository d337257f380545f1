"""Every WASI call with any arguments: by what a guest can tell the guard from native WASI is written down.

`SPECIFICATION.md` lists the differences. Each of them has a name here; a call that may show one is left out of the
script, and the rest is compared again.

Holds P-NATIVE-1.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from stockade.policy import Limits
from tests._examples import examples, part
from tests.limits._guests import EINVAL, ENAMETOOLONG, SUCCESS
from tests.limits._native import (
    ARGUMENTS,
    ENVIRONMENT,
    MOST_PAGES,
    PAGE,
    PROGRAM,
    Outcome,
    Shape,
    Step,
    forget_native,
    play_both,
    play_native,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

EXAMPLES: Final = int(os.environ.get("STOCKADE_EXAMPLES", examples(100)))
"""How many scripts each test compares; `make thorough` asks for more."""

_MOST_MEMORY = 1 << 32
_LARGE = 1 << 40
LARGEST = 1 << 62
"""The most bytes of a file that a policy can allow."""
LARGEST_SIZE = (1 << 62) + 1
"""More than that, but fewer than there can be."""

UNLIMITED = Limits(
    fuel=None, memory=_MOST_MEMORY, memories=2, wall_time=60.0, open_files=4096, files_created=None, file_size=None,
    read_bytes=None, write_bytes=None, random_bytes=None,
)  # fmt: skip
LIMITED = Limits(
    memory=_MOST_MEMORY, memories=2, wall_time=60.0, open_files=4096, files_created=_LARGE, file_size=LARGEST,
    read_bytes=_LARGE, write_bytes=LARGEST, random_bytes=_LARGE, calls=_LARGE,
    read_rate=10**10, write_rate=10**10, call_rate=10**10, idle_time=1000.0,
)  # fmt: skip
"""Limits that nothing here reaches, so that every check of the guard is made."""

_U32 = (1 << 32) - 1
_U64 = (1 << 64) - 1
IOV_MAX = POLL_MAX = 1024
PATH_MAX = 4096
IO_MAX = 1 << 20
EINTR, ESPIPE = 27, 70
FAR = 10**15


@pytest.fixture(scope="module", autouse=True)
def _free_native() -> Iterator[None]:
    yield
    forget_native()


# -- pointers that a call is given ------------------------------------------------------------------------------------


class Pointer(NamedTuple):
    """A pointer of a call.

    Attributes:
        place: Which argument it is.
        size: How many bytes it has to point to.
        align: Of what its address has to be a multiple.
        count: The argument that tells how many times so many bytes; None where it is once.
    """

    place: int
    size: int
    align: int = 1
    count: int | None = None

    @property
    def is_text(self) -> bool:
        """Whether a length follows."""
        return self.count == self.place + 1 and self.size == 1

    def is_bad(self, arguments: tuple[int, ...], pages: int) -> bool:
        """Whether it points outside of memory, or is not aligned."""
        at = arguments[self.place] & _U32
        size = self.size * (1 if self.count is None else arguments[self.count] & _U32)
        return at % self.align != 0 or at + size > pages * PAGE


def _text(place: int) -> Pointer:
    return Pointer(place, 1, 1, place + 1)


def _array(place: int, size: int, align: int) -> Pointer:
    return Pointer(place, size, align, 2)


# What the guest is given, as the guard hands it out.
_ARGUMENTS_BYTES = sum(len(text) + 1 for text in (PROGRAM, *ARGUMENTS))
_ENVIRONMENT_BYTES = sum(len(name) + len(value) + 2 for name, value in ENVIRONMENT.items())


POINTERS: Final[dict[str, tuple[Pointer, ...]]] = {
    "args_get": (Pointer(0, 12, 4), Pointer(1, _ARGUMENTS_BYTES)),
    "args_sizes_get": (Pointer(0, 4, 4), Pointer(1, 4, 4)),
    "environ_get": (Pointer(0, 8, 4), Pointer(1, _ENVIRONMENT_BYTES)),
    "environ_sizes_get": (Pointer(0, 4, 4), Pointer(1, 4, 4)),
    "clock_res_get": (Pointer(1, 8, 8),),
    "clock_time_get": (Pointer(2, 8, 8),),
    "fd_fdstat_get": (Pointer(1, 24, 8),),
    "fd_filestat_get": (Pointer(1, 64, 8),),
    "fd_pread": (_array(1, 8, 4), Pointer(4, 4, 4)),
    "fd_prestat_get": (Pointer(1, 8, 4),),
    "fd_pwrite": (_array(1, 8, 4), Pointer(4, 4, 4)),
    "fd_read": (_array(1, 8, 4), Pointer(3, 4, 4)),
    "fd_readdir": (_text(1), Pointer(4, 4, 4)),
    "fd_seek": (Pointer(3, 8, 8),),
    "fd_tell": (Pointer(1, 8, 8),),
    "fd_write": (_array(1, 8, 4), Pointer(3, 4, 4)),
    "path_create_directory": (_text(1),),
    "path_filestat_get": (_text(2), Pointer(4, 64, 8)),
    "path_filestat_set_times": (_text(2),),
    "path_link": (_text(2), _text(5)),
    "path_open": (_text(2), Pointer(8, 4, 4)),
    "path_readlink": (_text(1), _text(3), Pointer(5, 4, 4)),
    "path_remove_directory": (_text(1),),
    "path_rename": (_text(1), _text(4)),
    "path_symlink": (_text(0), _text(3)),
    "path_unlink_file": (_text(1),),
    "poll_oneoff": (_array(0, 48, 8), _array(1, 32, 8), Pointer(3, 4, 4)),
    "random_get": (_text(0),),
}
"""The pointers of each call."""

BUFFERED = ("fd_read", "fd_write", "fd_pread", "fd_pwrite")


class Seen(NamedTuple):
    """A call, and what it finds.

    Attributes:
        step: The call.
        shape: The guest.
        before: What stands in memory when it is made.
        is_stream: Whether its first argument is stdin, stdout or stderr, under whatever number.
    """

    step: Step
    shape: Shape
    before: Outcome
    is_stream: bool

    def argument(self, place: int) -> int:
        """An argument as a number of 32 bits."""
        return self.step.arguments[place] & _U32

    def has_bad_pointer(self) -> bool:
        """Whether a pointer is bad, or that of the first buffer that has bytes, or of any buffer of a stream."""
        pages = self.shape.pages
        if any(pointer.is_bad(self.step.arguments, pages) for pointer in POINTERS.get(self.step.name, ())):
            return True
        bad = [at + size > pages * PAGE for at, size in self.buffers()]
        return any(bad if self.is_stream else bad[:1])

    def writes_over_unread(self) -> bool:
        """Whether it is a poll whose events stand over subscriptions other than the first."""
        if self.step.name != "poll_oneoff":
            return False
        subscriptions, answers, count = self.argument(0), self.argument(1), self.argument(2)
        return answers < subscriptions + 48 * count and subscriptions + 48 < answers + 32 * count

    def buffers(self) -> list[tuple[int, int]]:
        """The buffers of a read or write that have bytes."""
        if self.step.name not in BUFFERED:
            return []
        array = self.before.read(self.shape, self.argument(1), 8 * self.argument(2)) or b""
        return [(at, size) for at, size in struct.iter_unpack("<II", array) if size]


def events(step: Step, shape: Shape, after: Outcome) -> Counter[bytes]:
    """The events of a poll that has just been made."""
    count = after.read(shape, step.arguments[3] & _U32, 4)
    assert count is not None
    array = after.read(shape, step.arguments[1] & _U32, 32 * int.from_bytes(count, "little"))
    assert array is not None
    return Counter(array[at : at + 32] for at in range(0, len(array), 32))


# -- the differences, as SPECIFICATION.md has them --------------------------------------------------------------------


def difference(
    seen: Seen, guarded: int | None, native: int | None, after: Callable[[], tuple[Outcome, Outcome]]
) -> str | None:
    """Says by which of the listed differences both may end a call in their own way; None where there is none.

    Args:
        seen: The call.
        guarded: The errno under the guard; None for a trap.
        native: The errno of native WASI; None for a trap.
        after: Makes the call last, and returns what can be seen then.
    """
    step = seen.step
    if guarded is None and seen.has_bad_pointer():
        return "pointers are checked first"
    if guarded == EINVAL and step.name in BUFFERED and seen.argument(2) > IOV_MAX:
        return "at most 1,024 buffers"
    if guarded == EINVAL and step.name == "poll_oneoff" and seen.argument(2) > POLL_MAX:
        return "at most 1,024 subscriptions"
    if step.name in BUFFERED and any(size > IO_MAX for _, size in seen.buffers()[:1]):
        return "at most 1 MiB at once"
    if guarded == ENAMETOOLONG and step.name.startswith("path_"):
        texts = [pointer for pointer in POINTERS[step.name] if pointer.is_text]
        if any(seen.argument(pointer.place + 1) > PATH_MAX for pointer in texts):
            return "paths are at most 4,096 bytes"
    if (guarded, native) == (SUCCESS, SUCCESS) and seen.is_stream and len(seen.buffers()) > 1:
        return "streams use all buffers"
    if guarded == SUCCESS and seen.writes_over_unread():
        return "a poll reads all its subscriptions first"
    if (guarded, native) == (SUCCESS, SUCCESS) and step.name == "poll_oneoff" and seen.argument(2) > 1:
        told, natively = (events(step, seen.shape, outcome) for outcome in after())
        if told > natively:
            return "all that is ready is told"
    if (guarded, native) == (SUCCESS, EINTR) and step.name == "fd_read" and seen.is_stream and not seen.buffers():
        return "no bytes of stdin are read"
    return None


def check(steps: Sequence[Step], shape: Shape, limits: Limits) -> Outcome:
    """Compares both; a call that shows a listed difference is left out, and the rest compared again."""
    steps = list(steps)
    # What native WASI tells of several subscriptions is a matter of luck at times: then the script is played again, so
    # often that bad luck alone does not last.
    more_tries = 40 if any(step.name == "poll_oneoff" and step.arguments[2] & _U32 > 1 for step in steps) else 0
    while True:
        guarded, native = play_both(steps, shape, limits)
        ended = list(zip(guarded.ends, native.ends, strict=False))
        place = next((place for place, (one, other) in enumerate(ended) if one != other), None)
        if place is None and not guarded.trapped:
            if not _unlike(guarded, native, shape):
                return guarded
            place = _first_unlike(steps, shape, limits)
            if place is None:
                continue
        if place is None:
            # Both trapped. What that leaves, no guest can see; but what was done before can be seen in the folders.
            del steps[len(ended) - 1 :]
            continue
        one, other = ended[place]
        both = partial(play_both, _prefix(steps, place + 1), shape, limits)
        listed = difference(_look(steps, place, shape), one, other, both)
        if listed is None and more_tries:
            more_tries -= 1
            continue
        if listed is None:
            pytest.fail(
                f"{steps[place]}: {one} under the guard, {other} natively; {_unlike(*both(), shape)}; "
                f"after {list(zip(steps[:place], ended, strict=False))}"
            )
        event(listed)
        del steps[place]


def _prefix(steps: Sequence[Step], count: int) -> list[Step]:
    """The first calls, and the same in memory as for all of them."""
    blocks = tuple(block for step in steps[count:] for block in step.blocks)
    volatile = tuple(part for step in steps[count:] for part in step.volatile)
    return [*steps[:count], Step("sched_yield", (), blocks, volatile)]


def _look(steps: Sequence[Step], place: int, shape: Shape) -> Seen:
    step = steps[place]
    prefix = _prefix(steps, place)
    fd = step.arguments[0] if step.arguments else 0
    # Only a stream cannot be asked for its position for this reason. Nothing can be told where there is no memory.
    after = play_native([*prefix, Step("fd_tell", (fd, 0))], shape) if shape.pages else None
    is_stream = after is not None and after.ends[len(prefix)] == ESPIPE
    return Seen(step, shape, play_native(prefix, shape), is_stream)


def _unlike(guarded: Outcome, native: Outcome, shape: Shape) -> str:
    """Says what can be told apart of two runs; nothing where they are alike."""
    for what, one, other in (
        ("files", guarded.files, native.files),
        ("stdout", guarded.stdout, native.stdout),
        ("stderr", guarded.stderr, native.stderr),
    ):
        if one != other:
            return f"{what}: {one!r}, {other!r}"
    if shape.export is None or guarded.trapped or native.trapped or guarded.memory == native.memory:
        return ""
    pairs = zip(guarded.memory, native.memory, strict=True)
    return f"memory: {[(hex(at), one, other) for at, (one, other) in enumerate(pairs) if one != other][:20]}"


def _first_unlike(steps: Sequence[Step], shape: Shape, limits: Limits) -> int | None:
    """The first call after which the runs are not alike; None where they are."""
    for count in range(1, len(steps) + 1):
        if _unlike(*play_both(_prefix(steps, count), shape, limits), shape):
            return count - 1
    return None


# -- scripts ----------------------------------------------------------------------------------------------------------

FDS = st.one_of(st.integers(3, 7), st.integers(0, 9), st.sampled_from([4095, 4096, _U32, 1 << 31]))
GOOD_FDS = st.one_of(st.integers(5, 7), st.integers(5, 6), st.integers(0, 6))
FOLDERS = st.sampled_from([3, 3, 3, 3, 4, 5, 6])
NAMES = (
    b"a", b"b", b"d", b"d/a", b"d/e", b"new", b"d/new", b"ln", b"dl", b"dl/a", b"dang", b"made", b"loop", b"out",
    b"abs", b"..", b"", b".", b"/", b"/a", b"a/", b"d/", b"d//a", b"a/b", b"no/a", b"d/../a", b"./b", b"../outside",
    b"../x", b"ln/", b"dl/", b"dang/", b"loop/x", b"abs/passwd", b"new/", b"d/e/..", b"d/e/../..", b"d/./e", b"a\0b",
    b"\xff\xfe", b"n" * 255, b"n" * 256, b"d/" * 2000 + b"a", b"/" * 4096, b"a" * 4097, b"no/", b"a/.", b"d/.",
    b"new/.", b"dl/..", b"dl/new",
)  # fmt: skip
PATHS = st.one_of(st.sampled_from(NAMES[:12]), st.sampled_from(NAMES[:12]), st.sampled_from(NAMES))
OFFSETS = st.one_of(st.integers(0, 40), st.sampled_from([-1, 4096, 1 << 20, 1 << 62, (1 << 63) - 1, 1 << 63, _U64 - 3]))
RIGHTS = st.one_of(
    st.sampled_from([0x02, 0x40, 0x42, (1 << 29) - 1]),
    st.sampled_from([0x02, 0x40, 0x42, (1 << 29) - 1, 0, 0x20_4026, 0x04, 0x20, 1 << 22, 1 << 13, 1 << 29, _U64]),
    st.integers(0, (1 << 29) - 1),
)
LOOKUPS = st.sampled_from([0, 1, 2, 3, 1 << 31, 1 << 16])
OFLAGS = st.one_of(st.integers(0, 15), st.sampled_from([16, 0x10001, 1 << 31, 0xFFFF, _U32]))
FDFLAGS = st.one_of(st.integers(0, 31), st.sampled_from([32, 0x10000, _U32]))
GOOD_LOOKUPS = st.integers(0, 1)
GOOD_OFLAGS = st.one_of(st.integers(0, 1), st.integers(0, 15))
GOOD_FDFLAGS = st.sampled_from([0, 0, 0, 1, 1, 4])
GOOD_OFFSETS = st.one_of(st.integers(0, 40), st.just(4096))
TIMES = st.sampled_from([0, 1, 10**18, 10**9 + 5, (1 << 63) - 1, 1 << 63, _U64])

# Where things stand in a memory that has room: for each step a slot, and slots of what differs from run to run.
_SLOTS, _SLOT = 0x1000, 0x600
_VOLATILE, _VOLATILE_SLOT = 0xA000, 0x400
MOST_STEPS = 12


class _Memory:
    """Chooses addresses for a step's pointers, and what stands there.

    Args:
        draw: Draws from a strategy.
        shape: The guest.
        number: The step's place.
        wild: Whether anything goes: of the others, most succeed.
    """

    def __init__(self, draw: Callable[..., Any], shape: Shape, number: int, wild: bool) -> None:
        self.draw = draw
        self.wild = wild
        self.size = shape.pages * PAGE
        self.number = number
        self.next = _SLOTS + number * _SLOT
        self.next_volatile = _VOLATILE + number * _VOLATILE_SLOT
        self.blocks: list[tuple[int, bytes]] = []
        self.volatile: list[tuple[int, int]] = []

    def _bad(self, size: int) -> list[int]:
        end = self.size
        return [at & _U32 for at in (end - size + 1, end, end + 8, _U32 - 3, _U32 - 7, _U32, 1 << 31, end - size + 4)]

    def at(self, size: int, align: int = 1) -> int:
        """An address for so many bytes: in the slot mostly, but at either end of memory, too, or at none."""
        choice = self.draw(st.integers(0, 39 if self.wild else 37))
        if choice < 30 and self.size:
            at = -(-self.next // align) * align
            self.next = at + size
            return at
        if choice < 32:
            return 0
        if choice < 35:
            return (self.size - size) // align * align & _U32
        if choice < 37:
            return _SLOTS + self.draw(st.integers(0, MOST_STEPS * _SLOT // 8)) * 8
        if choice < 38 and align == 1:
            at = self.next
            self.next += size
            return at
        if choice < 39:
            return (self.next | 7) + self.draw(st.sampled_from([2, 3, 5]))
        return int(self.draw(st.sampled_from(self._bad(size))))

    def unstable(self, size: int, align: int) -> int:
        """An address for what differs from run to run: nothing else comes to stand there."""
        choice = self.draw(st.integers(0, 19 if self.wild else 17))
        if choice < 18 and self.size:
            at = -(-self.next_volatile // align) * align
            self.next_volatile = at + size
            self.volatile.append((at, size))
            return at
        if choice < 19 and self.size:
            at = self.next_volatile + self.draw(st.sampled_from([1, 2, 4]))
            self.next_volatile = at + size
            self.volatile.append((at, size))
            return at
        # Not at the very end: there others stand.
        return int(self.draw(st.sampled_from(self._bad(size)[:-1])))

    def put(self, data: bytes, align: int = 1) -> int:
        """An address, and these bytes there as far as there is memory."""
        at = self.at(len(data), align)
        kept = data[: max(self.size - at, 0)]
        if kept:
            self.blocks.append((at, kept))
        return at

    def path(self) -> tuple[int, int]:
        """A path, and how long it is said to be."""
        name = self.draw(PATHS)
        at = self.at(min(len(name), 300))
        kept = name[: max(min(self.size, _VOLATILE if at < _VOLATILE else self.size) - at, 0)]
        if kept:
            self.blocks.append((at, kept))
        return at, len(name) if not self.wild or self.draw(st.integers(0, 9)) else self.draw(
            st.sampled_from([0, 1, PAGE, 4097, _U32])
        )

    def iovecs(self, captured: bool) -> tuple[int, int]:
        """An array of buffers and how many it is said to have.

        Args:
            captured: Whether the descriptor may be a stream, of which all buffers are used: then one has bytes.
        """
        sizes = self.draw(st.lists(st.sampled_from([0, 1, 3, 8, 20, 40]), max_size=3))
        if captured:
            sizes = [0] * self.draw(st.integers(0, 2)) + [size for size in sizes if size][:1]
        array_at = self.at(8 * len(sizes), 4)
        pairs = []
        for size in sizes:
            kind = self.draw(st.integers(0, 19))
            # Over the array itself, over what stands before it, or too long.
            if kind == 0:
                pairs.append((array_at, size))
            elif kind == 1:
                pairs.append(((array_at - 4) & _U32, size))
            elif kind == 2 and self.wild:
                pairs.append((self.at(size), self.draw(st.sampled_from([PAGE, _U32, 1 << 31]))))
            else:
                pairs.append((self.at(size), size))
        data = b"".join(struct.pack("<II", *pair) for pair in pairs)
        kept = data[: max(self.size - array_at, 0)]
        if kept:
            self.blocks.append((array_at, kept))
        count = (
            len(sizes)
            if not self.wild or self.draw(st.integers(0, 9))
            else self.draw(st.sampled_from([0, 1025, 1 << 31, _U32]))
        )
        return array_at, count

    def subscriptions(self) -> tuple[int, int]:
        """Subscriptions of a poll, one of which is ready or not fit."""
        made = [self._clock(7, 0)]
        if self.draw(st.integers(0, 3)):
            made = [self._file() for _ in range(self.draw(st.integers(1, 3)))]
            if self.draw(st.integers(0, 1)):
                # Far off, but for a few: natively, whether one that is due is told beside others is luck.
                far = self.draw(st.sampled_from([FAR, 1 << 62, FAR, 1 << 62, FAR, 0]))
                made.insert(self.draw(st.integers(0, len(made))), self._clock(5, far))
        data = b"".join(made)
        count = (
            len(made)
            if not self.wild or self.draw(st.integers(0, 9))
            else self.draw(st.sampled_from([0, 1025, 1 << 31, _U32]))
        )
        return self.put(data, 8), count

    def _file(self) -> bytes:
        type_ = self.draw(st.sampled_from([1, 2, 3, 255] if self.wild else [1, 2]))
        return struct.pack(
            "<QB7xI28x", self.draw(st.sampled_from([0, 7, _U64])), type_, self.draw(FDS if self.wild else GOOD_FDS)
        )

    def _clock(self, userdata: int, timeout: int) -> bytes:
        clock = self.draw(st.sampled_from([0, 1, 2, 3, 4, 1 << 31] if self.wild else [0, 1]))
        flags = self.draw(st.sampled_from([0, 1, 2, 0x100] if self.wild else [0, 1]))
        if timeout and clock == 0 and flags:
            timeout = 1 << 62
        return struct.pack("<QB7xI4xQQH6x", userdata, 0, clock, timeout, 1, flags)


def _step(name: str, memory: _Memory, draw: Callable[..., Any]) -> tuple[int, ...]:
    """Arguments for a call."""
    wild = memory.wild
    fds, folders = (FDS, FDS) if wild else (GOOD_FDS, FOLDERS)
    lookups, oflags, fdflags, offsets = (
        (LOOKUPS, OFLAGS, FDFLAGS, OFFSETS) if wild else (GOOD_LOOKUPS, GOOD_OFLAGS, GOOD_FDFLAGS, GOOD_OFFSETS)
    )
    sizes = st.sampled_from([_U64, 1 << 63, LARGEST_SIZE]) if wild else st.integers(0, 50)
    what = st.sampled_from([0, 3, 5, 10, 12, 15, 16, 0x10000, _U32] if wild else [0, 1, 2, 4, 8, 5, 10])
    fd = draw(folders if name.startswith("path_") or name == "fd_readdir" else fds)
    simple: dict[str, tuple[st.SearchStrategy[int], ...]] = {
        "fd_advise": (offsets, offsets, st.sampled_from([6, 256, _U32] if wild else [0, 1, 2, 3, 4, 5])),
        "fd_allocate": (offsets, offsets),
        "fd_close": (),
        "fd_datasync": (),
        "fd_fdstat_set_flags": (fdflags,),
        "fd_fdstat_set_rights": (RIGHTS, RIGHTS),
        "fd_filestat_set_size": (sizes,),
        "fd_filestat_set_times": (TIMES, TIMES, what),
        "fd_renumber": (fds,),
        "fd_sync": (),
        "sock_shutdown": (st.sampled_from([0, 1, 2, 3, 4, _U32]),),
    }
    if name in simple:
        return (fd, *(draw(strategy) for strategy in simple[name]))
    if name in ("args_get", "environ_get"):
        return memory.at(12, 4), memory.at(40)
    if name in ("args_sizes_get", "environ_sizes_get"):
        return memory.at(4, 4), memory.at(4, 4)
    if name in ("clock_res_get", "clock_time_get"):
        clock = draw(st.sampled_from([2, 3, 4, 256, _U32] if wild else [0, 1]))
        middle = () if name == "clock_res_get" else (draw(offsets),)
        return (clock, *middle, memory.unstable(8, 8))
    if name == "fd_fdstat_get":
        return fd, memory.at(24, 8)
    if name == "fd_filestat_get":
        return fd, memory.unstable(64, 8)
    if name in BUFFERED:
        middle = (draw(offsets),) if name.startswith("fd_p") else ()
        return (fd, *memory.iovecs(fd <= 2), *middle, memory.at(4, 4))
    if name == "fd_prestat_get":
        return fd, memory.at(8, 4)
    if name == "fd_prestat_dir_name":
        return fd, memory.at(3), draw(st.sampled_from([0, 1, 3, 4, 5000, _U32] if wild else [1, 3]))
    if name == "fd_readdir":
        size = draw(st.sampled_from([0, 1, 22, 24, 25, 100, 300, 0x300]))
        cookie = draw(st.sampled_from([_U64, 1 << 63, 14]) if wild else st.integers(0, 12))
        return fd, memory.unstable(size, 1), size, cookie, memory.at(4, 4)
    if name == "fd_seek":
        return (
            fd,
            draw(offsets),
            draw(st.sampled_from([0, 2, 3, 255, 256, _U32] if wild else [0, 1, 2])),
            memory.at(8, 8),
        )
    if name == "fd_tell":
        return fd, memory.at(8, 8)
    if name in ("path_create_directory", "path_remove_directory", "path_unlink_file"):
        return (fd, *memory.path())
    if name == "path_filestat_get":
        return (fd, draw(lookups), *memory.path(), memory.unstable(64, 8))
    if name == "path_filestat_set_times":
        return (fd, draw(lookups), *memory.path(), draw(TIMES), draw(TIMES), draw(what))
    if name == "path_link":
        return (fd, draw(lookups) if wild else 0, *memory.path(), draw(folders), *memory.path())
    if name == "path_open":
        rights = draw(RIGHTS)
        inheriting = draw(RIGHTS) if wild else rights
        return (
            fd, draw(lookups), *memory.path(), draw(oflags), rights, inheriting, draw(fdflags), memory.at(4, 4),
        )  # fmt: skip
    if name == "path_readlink":
        size = draw(st.sampled_from([0, 1, 5, 40, 5000, _U32]))
        return (fd, *memory.path(), memory.at(min(size, 40)), size, memory.at(4, 4))
    if name == "path_rename":
        return (fd, *memory.path(), draw(folders), *memory.path())
    if name == "path_symlink":
        return (*memory.path(), fd, *memory.path())
    if name == "poll_oneoff":
        at, count = memory.subscriptions()
        out = at if not draw(st.integers(0, 4)) else memory.at(32 * min(count, 4), 8)
        return at, out, count, memory.at(4, 4)
    if name == "random_get":
        size = draw(st.sampled_from([_U32] if wild else [0, 1, 8, 100]))
        return memory.unstable(min(size, 100), 1), size
    if name == "sock_accept":
        return fd, draw(FDFLAGS), memory.at(4, 4)
    if name == "sock_recv":
        return (fd, *memory.iovecs(fd <= 2), draw(st.integers(0, 4)), memory.at(4, 4), memory.at(4, 4))
    if name == "sock_send":
        return (fd, *memory.iovecs(fd <= 2), draw(st.integers(0, 1)), memory.at(4, 4))
    assert name in ("sched_yield", "proc_raise"), name
    return () if name == "sched_yield" else (draw(st.integers(0, 32)),)


def _plain_open(memory: _Memory, draw: Callable[..., Any]) -> tuple[int, ...]:
    """Arguments that open something, so that later calls find descriptors from 5 on."""
    name, flags = draw(
        st.sampled_from([(b"a", 0), (b"a", 1), (b"new", 1), (b"d/a", 0), (b"b", 8), (b"d", 2), (b"d/n", 5), (b"ln", 0)])
    )
    rights = 0x02 if flags & 2 else draw(st.sampled_from([0x42, 0x42, (1 << 29) - 1, 0x40, 0x02]))
    folder = draw(st.sampled_from([3, 3, 3, 3, 4])) if not flags and rights == 2 else 3
    at = memory.put(name)
    return folder, 1, at, len(name), flags, rights, rights, draw(st.sampled_from([0, 0, 0, 1])), memory.at(4, 4)


CALLS = (
    *("path_open",) * 8,
    *("fd_read", "fd_write", "fd_pread", "fd_pwrite", "poll_oneoff", "fd_renumber", "fd_close") * 3,
    *("fd_seek", "fd_filestat_set_size", "fd_fdstat_set_flags", "fd_readdir", "path_rename", "path_link") * 2,
    *POINTERS, "fd_advise", "fd_allocate", "fd_datasync", "fd_sync", "fd_fdstat_set_rights", "fd_filestat_set_times",
    "fd_prestat_dir_name", "sock_accept", "sock_recv", "sock_send", "sock_shutdown", "sched_yield",
)  # fmt: skip


@st.composite
def scripts(draw: Callable[..., Any], shape: Shape) -> list[Step]:
    """A script that opens a file, does anything, and looks at every descriptor in the end."""
    steps: list[Step] = []
    opens = draw(st.sampled_from([3, 2, 3, 1, 0])) if shape.pages else 0
    for number in range(opens + draw(st.integers(1, MOST_STEPS - 3))):
        memory = _Memory(draw, shape, number, wild=number >= opens and not draw(st.integers(0, 3)))
        if number < opens:
            name, arguments = "path_open", _plain_open(memory, draw)
        else:
            name = draw(st.sampled_from(CALLS))
            arguments = _step(name, memory, draw)
        steps.append(Step(name, arguments, tuple(memory.blocks), tuple(memory.volatile)))
    if shape.pages:
        for fd in range(10):
            at = 0xD400 + fd * 0x80
            steps.append(Step("fd_fdstat_get", (fd, at)))
            steps.append(Step("fd_tell", (fd, at + 24)))
            steps.append(Step("fd_filestat_get", (fd, at + 32), (), ((at + 32, 16), (at + 72, 24))))
    assume(not _polls_for_another(steps))
    return steps


def _polls_for_another(steps: Sequence[Step]) -> bool:
    """Whether a poll reads what was placed for a later one, which waits for less than this one does: maybe for ever."""
    for place, step in enumerate(steps):
        if step.name == "poll_oneoff":
            later = [block for other in steps[place + 1 :] for block in other.blocks]
            for at, data in step.blocks:
                if any(start < at + len(data) and at < start + len(other) for start, other in later):
                    return True
    return False


def within_limits(step: Step) -> Step:
    """The same call, so that no file can come to be larger than a policy can allow."""
    return step._replace(
        arguments=tuple(LARGEST // 16 if argument == LARGEST_SIZE else argument for argument in step.arguments)
    )


# Native WASI needs the name `memory`; without it, the guard takes the first memory.
SHAPES = (
    Shape(), Shape(first=True), Shape(2), Shape(first=True, export="another"), Shape(first=True, export=None),
)  # fmt: skip
many = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@many
@given(st.data())
def test_any_call_is_as_native_wasi_makes_it(data: st.DataObject) -> None:
    """Any calls with any arguments do what they do without a guard, but for what the specification lists."""
    shape = data.draw(st.sampled_from(SHAPES))
    check(data.draw(scripts(shape)), shape, UNLIMITED)


@many
@given(st.data())
def test_a_limit_out_of_reach_changes_nothing(data: st.DataObject) -> None:
    """The same with every limit set, none of them reached."""
    shape = data.draw(st.sampled_from(SHAPES))
    check([within_limits(step) for step in data.draw(scripts(shape))], shape, LIMITED)


@settings(many, max_examples=max(EXAMPLES // 4, examples(25)))
@given(st.data())
def test_the_size_of_memory_changes_nothing(data: st.DataObject) -> None:
    """The same with no memory at all, and with all of it."""
    shape = data.draw(st.sampled_from([Shape(0), Shape(0, first=True), Shape(MOST_PAGES)]))
    check(data.draw(scripts(shape)), shape, UNLIMITED)


def opened(
    rights: int = 0x42, inheriting: int | None = None, name: bytes = b"a", fdflags: int = 0, mount: int = 3
) -> Step:
    """A call that opens a file as descriptor 5."""
    arguments = (mount, 1, 0x100, len(name), 0, rights, rights if inheriting is None else inheriting, fdflags, 0x120)
    return Step("path_open", arguments, ((0x100, name),))


def polled(*types: tuple[int, int], at: int = 0x600) -> Step:
    """A poll of descriptors, for reading (1) or writing (2), into memory that is not empty."""
    subscriptions = b"".join(struct.pack("<QB7xI28x", 7, type_, fd) for type_, fd in types)
    return Step("poll_oneoff", (0x200, at, len(types), 0x800), ((0x200, subscriptions), (at, b"\x5a" * 0x100)))


def pwritten(offset: int) -> Step:
    """A write of some bytes."""
    return Step("fd_pwrite", (5, 0x200, 1, offset, 0x400), ((0x200, struct.pack("<II", 0x300, 8)),))


@pytest.mark.parametrize(
    "steps",
    part(
        [
            pytest.param([Step("args_get", (0x20C, 0x200))], id="addresses of arguments among the arguments"),
            pytest.param([Step("environ_get", (0x20C, 0x200))], id="addresses of variables among the variables"),
            pytest.param([Step("args_sizes_get", (0x200, 0x200))], id="both sizes of arguments in one place"),
            pytest.param([Step("environ_sizes_get", (0x200, 0x200))], id="both sizes of the environment in one place"),
            *(
                pytest.param([Step(name, (fd, *middle, flags, *after))], id=f"{name} {fd} {flags:#x}")
                for name, middle, after, most in (
                    ("sock_accept", (), (0x100,), 31),
                    ("sock_recv", (0x100, 0), (0x110, 0x120), 3),
                    ("sock_send", (0x100, 0), (0x110,), 0xFFFF),
                    ("sock_shutdown", (), (), 3),
                )
                for fd in (3, 99)
                for flags in (most, most + 1)
            ),
            pytest.param([opened(inheriting=_U64)], id="inheriting rights that there are not"),
            pytest.param([opened(rights=_U64, inheriting=0)], id="rights that there are not"),
            pytest.param([opened(inheriting=0), Step("fd_fdstat_get", (5, 0x400))], id="no inheriting rights"),
            pytest.param([opened(0x40), polled((1, 5))], id="poll what is written for reading"),
            pytest.param([opened(0x02), polled((2, 5))], id="poll what is read for writing"),
            pytest.param([opened(), polled((2, 5))], id="poll a file"),
            pytest.param([opened(0x02, mount=4), polled((2, 5))], id="poll what is read-only for writing"),
            pytest.param([opened(0x02, mount=4), polled((1, 5))], id="poll what is read-only for reading"),
            pytest.param([opened(0x02, mount=4), polled((1, 5), (2, 5))], id="poll what is read-only for both"),
            pytest.param([opened(), Step("fd_seek", (5, 0, 2, 0x500)), polled((1, 5))], id="poll a file at its end"),
            pytest.param([opened(0x40), Step("fd_seek", (5, 9, 2, 0x500)), polled((1, 5))], id="poll beyond an end"),
            pytest.param([polled((1, 0))], id="poll stdin"),
            pytest.param(
                [Step("fd_read", (0, 0x900, 1, 0x910), ((0x900, struct.pack("<II", 0x1000, 0x100)),)), polled((1, 0))],
                id="poll stdin at its end",
            ),
            pytest.param([polled((2, 1), at=0x200)], id="poll into the subscriptions"),
            pytest.param([opened(), Step("fd_filestat_set_size", (5, 1 << 63))], id="a size that there is not"),
            pytest.param([opened(), Step("fd_filestat_set_size", (5, _U64))], id="the largest number as a size"),
            *(
                pytest.param([opened(rights), pwritten(offset)], id=f"write at {offset:#x} with rights {rights:#x}")
                for rights in (0x02, 0x40)
                for offset in ((1 << 63) - 1, 1 << 63, _U64)
            ),
        ]
    ),
)
def test_what_no_program_does_is_as_native_wasi_has_it(steps: list[Step]) -> None:
    """Flags that there are not, answers over each other, odd polls: to the byte what they give without a guard."""
    for limits in (UNLIMITED, LIMITED):
        check(steps, Shape(), limits)


@pytest.mark.parametrize("name", ["args_get", "environ_get"])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("distance", part(range(4, 33, 4)))
def test_texts_at_the_end_of_all_memory(name: str, which: int, distance: int) -> None:
    """As native WASI has it, to the byte, also where what comes after the last text has no address."""
    arguments = [0x200, 0x400]
    arguments[which] = (1 << 32) - distance
    check([Step(name, tuple(arguments))], Shape(MOST_PAGES), UNLIMITED)
