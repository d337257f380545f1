"""What an instance's memories and globals hold, kept so that new instances begin with it, copy-on-write.

The contents of memories lie in a file that is in memory only (a memfd) and sealed: nobody can change it any more. A new
instance gets them mapped privately over its own memory, so that all instances share what none of them has written to.
Pages of zeros are not kept.

Only instances of engines without a pool are given a mapping: their memories are unmapped whole when they are freed. A
slot of a pool would keep it, and show it to the next guest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stockade.engine._host_pages import (
    PAGE_BYTES_OF_HOST,
    PRIVATE,
    SHARED,
    changed,
    joined,
    near,
    nonzero,
    page_table,
    touched,
)
from stockade.engine._instance import GLOBAL_KINDS
from stockade.engine._libc import libc
from stockade.engine._memory_copy import stored_at
from stockade.engine._memory_image import InstanceState, MemoryImage, is_wasteful, overlaid, stored_bytes
from stockade.engine._memory_map import map_file, map_image
from stockade.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from stockade.engine._forkable import ForkableMemory
    from stockade.engine._instance import Instance

__all__ = [
    "in_large_pages",
    "is_global",
    "populate",
    "put_state",
    "share_state",
    "stretches_of",
    "take_state",
    "touched_pages",
]

_MOST_LAYERED: Final = 192
"""Mappings of a memory of which some are of earlier snapshots; where there would be more, all of it is copied anew."""

_GLOBAL_BYTES: Final = 17
"""What is told of a global: the kind of its number, and 16 bytes."""

_MADV_POPULATE_READ: Final = 22
_MADV_POPULATE_WRITE: Final = 23
"""As on Linux from 5.14 on; Python does not name them."""


def is_global(value: bytes, type_: str) -> bool:
    """Whether something is what `Instance.global_value` may tell of a global.

    Args:
        value: What somebody says that it holds.
        type_: Its type.
    """
    return len(value) == _GLOBAL_BYTES and GLOBAL_KINDS.get(value[0]) == type_


def touched_pages(
    instance: Instance, memories: Sequence[bytes]
) -> tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]] | None:
    """Returns which pages of an instance are its own, and which it shares and has looked at.

    Args:
        instance: The instance, of which nothing runs.
        memories: Its memories, by the names under which the woven module exports them.

    Returns:
        Each page as the place of its memory and its number there; None where the kernel does not tell.
    """
    found: tuple[set[tuple[int, int]], set[tuple[int, int]]] = set(), set()
    for place, name in enumerate(memories):
        pages = page_table(*instance.woven_memory(name).span())
        if pages is None:
            return None
        for pattern, numbers in zip((PRIVATE, SHARED), found, strict=True):
            for match in pattern.finditer(pages):
                numbers.update((place, number) for number in range(*match.span()))
    return frozenset(found[0]), frozenset(found[1])


def stretches_of(pages: Collection[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Returns the stretches that pages make up: of each the place of its memory, where it begins there, and its end.

    Args:
        pages: The pages, as `touched_pages` tells them.
    """
    found = []
    for place in sorted({at for at, _ in pages}):
        starts = sorted(number * PAGE_BYTES_OF_HOST for at, number in pages if at == place)
        found += [
            (place, start, end) for start, end in joined(((start, start + PAGE_BYTES_OF_HOST) for start in starts), 0)
        ]
    return found


def populate(
    instance: Instance,
    memories: Sequence[bytes],
    written: Iterable[tuple[int, int, int]],
    read: Iterable[tuple[int, int, int]],
) -> None:
    """Gives an instance copies of pages of its own before it writes to them, and maps those that it will look at.

    What its memories hold stays as it is.

    Args:
        instance: The instance, of which nothing runs.
        memories: Its memories, by the names under which the woven module exports them.
        written: The stretches of which it gets copies, as `stretches_of` tells them.
        read: The stretches that are mapped.
    """
    spans: dict[int, tuple[int, int]] = {}
    advise = libc().madvise
    for stretches, advice in ((read, _MADV_POPULATE_READ), (written, _MADV_POPULATE_WRITE)):
        for place, start, end in stretches:
            span = spans.get(place)
            if span is None:
                span = spans[place] = instance.woven_memory(memories[place]).span()
            address, size = span
            if end <= size:
                # SAFETY: the stretch lies inside a memory of a live instance, which may be read and written. The
                # kernel does what a read or a write that changes nothing would make it do; where it does not know
                # the advice, nothing happens, and the guest's first accesses do the same.
                advise(address + start, end - start, advice)


# -- taking ------------------------------------------------------------------------------------------------------------


def take_state(
    instance: Instance,
    memories: Sequence[bytes],
    globals_: Sequence[bytes],
    initial_bytes: Sequence[int],
    base: InstanceState | None = None,
    *,
    whole: bool = False,
) -> InstanceState:
    """Copies what an instance holds, of which nothing runs.

    Args:
        instance: The instance.
        memories: Its memories, by the names under which the woven module exports them.
        globals_: Its mutable globals, likewise.
        initial_bytes: How large each memory is in a new instance.
        base: What was put into the instance, if anything was: of that, only what has changed is copied.
        whole: Whether it is not known what is mapped over its memories: then all of them are copied.

    Raises:
        EngineError: There is no memory to keep it in, or no file descriptor.
    """
    numbers = tuple(instance.global_value(name) for name in globals_)
    spans = [instance.woven_memory(name).span() for name in memories]
    if forkable := instance.forkable:
        state = InstanceState(tuple(_taken(*pair) for pair in zip(forkable, spans, strict=True)), numbers)
        state.check()
        return state
    below = base.memories if base is not None else (None,) * len(spans)
    images = None
    if base is not None and not whole:
        written = [changed(*span) for span in spans]
        if all(runs is not None for runs in written):
            images = _written(spans, [near(runs or ()) for runs in written])
            images = [
                MemoryImage(size, overlaid(under.extents, over.extents))
                for (_, size), under, over in zip(spans, base.memories, images, strict=True)
            ]
    if images is None or _is_too_much(images):
        found = [
            near(nonzero(address, [(0, size)] if whole else touched(address, size, initial, under)))
            for (address, size), initial, under in zip(spans, initial_bytes, below, strict=True)
        ]
        images = _written(spans, found)
    state = InstanceState(tuple(images), numbers)
    state.check()
    return state


def _is_too_much(images: Sequence[MemoryImage]) -> bool:
    """Whether there are more stretches, or more in their files, than is reasonable for what they hold."""
    return any(len(image.extents) > _MOST_LAYERED for image in images) or is_wasteful(
        stored_bytes(part for image in images for part in image.extents), sum(image.size_bytes for image in images)
    )


def _taken(memory: ForkableMemory, span: tuple[int, int]) -> MemoryImage:
    """Takes what a memory holds that lies in a file of its own; what cannot be taken so is copied."""
    address, size = span
    found = memory.take(size)
    if found is None:
        (found,) = _written([span], [near(nonzero(address, [(0, size)]))])
        memory.lay(found)
    return found


def _written(spans: Sequence[tuple[int, int]], found: Sequence[Sequence[tuple[int, int]]]) -> list[MemoryImage]:
    """Copies stretches of memories into a file.

    Raises:
        EngineError: There is no room.
    """
    stretches = [
        (address, start, stop - start) for (address, _), runs in zip(spans, found, strict=True) for start, stop in runs
    ]
    stored = iter(stored_at(stretches, "soon"))
    return [MemoryImage(size, tuple(next(stored) for _ in runs)) for (_, size), runs in zip(spans, found, strict=True)]


def in_large_pages(state: InstanceState) -> InstanceState:
    """Copies a state into large pages, however long it takes; where there is no room for it, it stays as it is.

    Args:
        state: The state, with which many instances will begin.
    """
    extents = [part for image in state.memories for part in image.extents]
    try:
        # SAFETY: mappings of our own of sealed files, somewhere, that nobody else knows, until this returns.
        mapped = [map_file(part.file.descriptor, part.offset, part.size) for part in extents]
        stretches = [
            (room.address - part.start, part.start, part.size) for room, part in zip(mapped, extents, strict=True)
        ]
        stored = iter(stored_at(stretches, "always"))
    except EngineError:
        return state
    memories = (MemoryImage(image.size_bytes, tuple(next(stored) for _ in image.extents)) for image in state.memories)
    made = state._replace(memories=tuple(memories))
    made.check()
    return made


# -- putting -----------------------------------------------------------------------------------------------------------


def put_state(
    instance: Instance,
    memories: Sequence[bytes],
    globals_: Sequence[bytes],
    initial_bytes: Sequence[int],
    state: InstanceState,
) -> None:
    """Puts into a new instance what another one of the same module held.

    Args:
        instance: The instance, of an engine without a pool; nothing of it has run.
        memories: Its memories, by the names under which the woven module exports them.
        globals_: Its mutable globals, likewise.
        initial_bytes: How large each memory is in a new instance.
        state: What the other one held.

    Raises:
        EngineError: There is no memory for it, or no memory map.
    """
    assert not instance.is_pooled
    for name, initial, image in zip(memories, initial_bytes, state.memories, strict=True):
        memory = instance.woven_memory(name)
        memory.grow_to(image.size_bytes)
        address, size = memory.span()
        assert size == image.size_bytes
        map_image(address, initial, image)
    for name, value in zip(globals_, state.globals, strict=True):
        instance.set_global(name, value)


def share_state(
    instance: Instance, memories: Sequence[bytes], initial_bytes: Sequence[int], state: InstanceState
) -> None:
    """Has an instance, of an engine without a pool, share what was just taken of it with those that get it.

    Args:
        instance: The instance, of which nothing has run since.
        memories: Its memories, by the names under which the woven module exports them.
        initial_bytes: How large each memory is in a new instance.
        state: What was taken.

    Raises:
        EngineError: There is no memory map for it.
    """
    assert not instance.is_pooled
    for name, initial, image in zip(memories, initial_bytes, state.memories, strict=True):
        address, _ = instance.woven_memory(name).span()
        map_image(address, initial, image)
