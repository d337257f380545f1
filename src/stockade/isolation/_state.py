"""What a guest holds between two calls, as it is told from one process to another; its contents are in sealed files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stockade._pages import PAGE_BYTES
from stockade.engine import Extent, InstanceState, MemoryImage, is_global
from stockade.errors import EngineError
from stockade.guard import types_of_globals
from stockade.isolation._frames import Garbled
from stockade.isolation._messages import MemoryTold, StateTold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.engine import SealedFile
    from stockade.execution import Plan

__all__ = ["checked_state", "state_of", "told_state"]

_MOST_EXTENTS: Final = 256
"""Pieces of a memory: each is a mapping of every guest that begins with it."""


def state_of(told: StateTold, files: Sequence[SealedFile]) -> InstanceState:
    """Returns what is told.

    Args:
        told: That.
        files: The files, by their numbers.
    """
    images = tuple(
        MemoryImage(
            memory.size_bytes,
            tuple(Extent(start, size, files[file], offset) for start, size, file, offset in memory.extents),
        )
        for memory in told.memories
    )
    return InstanceState(images, told.globals)


def told_state(
    state: InstanceState, *, started: bool, known: Sequence[SealedFile] = ()
) -> tuple[StateTold, tuple[SealedFile, ...]]:
    """Tells what a guest holds.

    Args:
        state: What that is.
        started: Whether what was the module's start function has run.
        known: Files that the other side knows, by their numbers.

    Returns:
        What is told; and these files and those that are new, by their numbers.
    """
    files = list(known)
    numbers = {id(file): number for number, file in enumerate(files)}
    memories = []
    for image in state.memories:
        extents = []
        for part in image.extents:
            if id(part.file) not in numbers:
                numbers[id(part.file)] = len(files)
                files.append(part.file)
            extents.append((part.start, part.size, numbers[id(part.file)], part.offset))
        memories.append(MemoryTold(image.size_bytes, tuple(extents)))
    return StateTold(tuple(memories), state.globals, started), tuple(files)


def checked_state(told: StateTold, files: Sequence[SealedFile], plan: Plan) -> InstanceState:
    """Returns what a worker says that a guest holds, if a guest of the module can hold it.

    What the memories contain is the guest's own, and is nothing to be believed. All else is checked here, since it is
    mapped as it is, in this process, too.

    Args:
        told: What it says.
        files: Files that are sealed, by their numbers.
        plan: What the guest was made of.

    Raises:
        Garbled: It cannot.
    """
    exposed, types = plan.program.woven.exposed, types_of_globals(plan.module.parsed)
    initial = plan.module.parsed.memories
    if len(told.memories) != len(exposed.memories) or len(told.globals) != len(exposed.globals):
        raise Garbled("a snapshot has other memories or globals than its module")
    if not told.started and plan.program.woven.start_export is None:
        raise Garbled("a snapshot is of a guest that has not begun")
    for value, type_ in zip(told.globals, types, strict=True):
        if not is_global(value, type_):
            raise Garbled("a global of a snapshot is of another type")
    for memory, pages in zip(told.memories, initial, strict=True):
        if memory.size_bytes % PAGE_BYTES or memory.size_bytes < pages * PAGE_BYTES:
            raise Garbled("a memory of a snapshot is smaller than it begins")
        if len(memory.extents) > _MOST_EXTENTS:
            raise Garbled("a memory of a snapshot is in too many pieces")
        if any(not 0 <= file < len(files) for _, _, file, _ in memory.extents):
            raise Garbled("a snapshot is in a file that there is not")
    if sum(memory.size_bytes for memory in told.memories) > plan.limits.memory:
        raise Garbled("a snapshot is larger than its guest may be")
    state = state_of(told, files)
    try:
        state.check()
    except EngineError:
        raise Garbled("a snapshot does not fit its memories") from None
    return state
