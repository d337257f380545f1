"""Finding the few instructions that matter in a body of code.

The weaver must see every call and reference to an imported function and every growth of a memory or table, and
nothing else. A compiled regular expression steps over all other instructions, so that the regular-expression engine's
C code does the walking, at some 100 MB/s; the rest is decoded. Both are made from the table in `_opcodes`.

The instructions of WebAssembly 3.0 are known, and the atomic ones. Any other is refused, never guessed at.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from stockade.wasm._binary import Reader
from stockade.wasm._opcodes import INSTRUCTIONS, Instruction, Kind, Span, patterns, read_opcode, run_of, set_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Site", "all_sites", "deepest_nesting", "most_nesting", "skipper", "wait_offset", "walk"]


class Site(NamedTuple):
    """An index that an instruction names.

    Attributes:
        kind: The instruction.
        start: Offset of its first byte.
        end: Offset after it.
        target: Index of the function, memory, table, global or type that it names; for a table of branches, how many
            it has; for a wait, its memory.
    """

    kind: Kind
    start: int
    end: int
    target: int


_CALL_KINDS: Final = (Kind.CALL, Kind.RETURN_CALL, Kind.REF_FUNC)
_CALLS: Final = {row.site: number for (_, number), row in INSTRUCTIONS.items() if row.site in _CALL_KINDS}
_GROWTH: Final = frozenset({Kind.MEMORY_GROW, Kind.TABLE_GROW})
_CHANGES: Final = frozenset({Kind.TABLE_CHANGE, Kind.ELEMENT_DROP, Kind.DATA_DROP})
_WAITS: Final = frozenset({Kind.WAIT_32, Kind.WAIT_64})
_WOVEN: Final = frozenset({*_CALLS, *_GROWTH, *_CHANGES, *_WAITS, Kind.BRANCH_TABLE})
_LEB: Final = rb"[\x80-\xff]{0,4}+[\x00-\x7f]"


_PLAIN: Final = patterns(row for row in INSTRUCTIONS.items() if row[1].site not in _WOVEN)


@lru_cache(maxsize=64)
def _stepper(imported: int) -> re.Pattern[bytes]:
    """Matches any run of instructions that cannot name one of the first `imported` functions or grow anything."""
    opcodes = set_of(_CALLS.values())
    if imported == 0:
        calls = opcodes + _LEB
    elif imported <= 0x80:
        # Padded or longer, with a low first group: an index beyond the imports only if a later group is not zero.
        options = [set_of(range(0x80, 0x80 + imported)) + rb"(?!\x80*\x00)[\x80-\xff]{0,3}+[\x00-\x7f]"]
        if imported < 0x80:
            options.append(set_of(range(imported, 0x80)))
            options.append(set_of(range(0x80 + imported, 0x100)) + rb"[\x80-\xff]{0,3}+[\x00-\x7f]")
        calls = opcodes + rb"(?:" + rb"|".join(options) + rb")"
    elif imported <= 0x4000:
        # So many imports: an index is certain to be no import only from three groups on.
        calls = opcodes + rb"[\x80-\xff]{2}(?!\x80*\x00)[\x80-\xff]{0,2}+[\x00-\x7f]"
    else:
        # No shape of an index is certain: every call is decoded.
        calls = rb"(?!)"
    return run_of([*_PLAIN, calls])


def skipper(imported: int) -> Callable[[bytes, int, int], int]:
    """Returns what tells where, from a place on, the first instruction stands that `walk` decodes.

    Args:
        imported: How many functions the module imports.
    """
    step = _stepper(imported).match

    def skip(data: bytes, start: int, end: int) -> int:
        match = step(data, start, end)
        assert match is not None
        return match.end()

    return skip


def walk(data: bytes, start: int, end: int, imported: int) -> Iterator[Site]:
    """Finds calls and references to imported functions, growth, changes, waits, and tables of branches.

    Args:
        data: The module, already validated by the engine.
        start: Where the body's instructions begin.
        end: Where the body ends.
        imported: How many functions the module imports.

    Yields:
        The sites in order.

    Raises:
        InvalidModule: An instruction is not known here.
    """
    skip = skipper(imported)
    position = start
    while (position := skip(data, position, end)) < end:
        reader = Reader(data, position, end, "code")
        for site in _decode(reader):
            if site.kind in _WOVEN and (site.kind not in _CALLS or site.target < imported):
                yield site
        position = reader.position


def all_sites(data: bytes, start: int, end: int) -> Iterator[Site]:
    """Finds every index in a body: what relocating the guard's own code needs.

    Args:
        data: The module.
        start: Where the body's instructions begin.
        end: Where the body ends.

    Yields:
        Each index with the bytes that encode it (for memory arguments and the like), or the whole instruction (for
        calls, `global.get` and growth).
    """
    reader = Reader(data, start, end, "code")
    while reader.position < end:
        yield from (site for site in _decode(reader) if site.kind is not Kind.BRANCH_TABLE)


def wait_offset(data: bytes, site: Site) -> int:
    """Returns the offset of an instruction that waits for another thread.

    Args:
        data: The module.
        site: The instruction.
    """
    reader = Reader(data, site.start, site.end, "code")
    read_opcode(reader)
    if reader.u32() & _NAMES_MEMORY:
        reader.u32()
    return reader.u64()


_NAMES_MEMORY: Final = 0x40
"""The bit of an alignment that says that the index of a memory follows."""

_NESTS: Final = [INSTRUCTIONS[None, code].nests if (None, code) in INSTRUCTIONS else 0 for code in range(256)]
_BEGIN, _END = b"(", b")"
_BLOCKS: Final = b"".join(_BEGIN if nests > 0 else _END for nests in _NESTS)
_NO_BLOCKS: Final = bytes(code for code, nests in enumerate(_NESTS) if not nests)


@cache
def _flat() -> re.Pattern[bytes]:
    """Matches any run of instructions that neither opens nor ends a block; made when a module is first looked at."""
    return run_of(patterns(row for row in INSTRUCTIONS.items() if row[1].nests == 0))


@cache
def _opener() -> re.Pattern[bytes]:
    """Matches what opens a block, in its usual encodings."""
    return re.compile(b"|".join(patterns(row for row in INSTRUCTIONS.items() if row[1].nests > 0)))


_MANY: Final = 64
"""Bodies that are looked at together: the deepest of real programs is among the largest ones."""


def deepest_nesting(data: bytes, bodies: Iterable[tuple[int, int]]) -> int:
    """Measures how deep blocks are nested in the deepest of some bodies.

    Args:
        data: The module, already validated by the engine.
        bodies: Where the instructions of each begin, and end.
    """
    # The largest first: beside them, most need not be walked over.
    ordered = sorted(bodies, key=lambda body: body[0] - body[1])
    deepest = 0
    for first in range(0, len(ordered), _MANY):
        # A block takes three bytes.
        some = [(start, end) for start, end in ordered[first : first + _MANY] if end - start > 3 * deepest]
        if not some:
            break
        for most, start, end in sorted(((most_nesting(data, *body), *body) for body in some), reverse=True):
            if most <= deepest:
                break
            deepest = max(deepest, _nesting(data, start, end))
    return deepest


def most_nesting(data: bytes, start: int, end: int) -> int:
    """Bounds how deep blocks can be nested in a body, whatever of its bytes are instructions.

    Args:
        data: The module.
        start: Where the body's instructions begin.
        end: Where the body ends.
    """
    # Nowhere are more blocks open than may have begun before, nor than may end behind. As many of these bytes in as
    # there are ends, both are the same number; before that the one is less, behind it the other.
    blocks = data[start:end].translate(_BLOCKS, _NO_BLOCKS)
    return blocks.count(_BEGIN, 0, blocks.count(_END))


def _nesting(data: bytes, start: int, end: int) -> int:
    """Measures how deep blocks are nested in a body."""
    step, opens = _flat().match, _opener().match
    depth = deepest = 0
    position = start
    while position < end:
        match = step(data, position, end)
        assert match is not None
        position = match.end()
        if position >= end:
            break
        nests = _NESTS[data[position]]
        if nests < 0:
            depth -= 1
            position += 1
            continue
        if nests:
            depth += 1
            if depth > deepest:
                deepest = depth
            if (match := opens(data, position, end)) is not None:
                position = match.end()
                continue
        reader = Reader(data, position, end, "code")
        _skip(reader)
        position = reader.position
    return deepest


def _instruction(reader: Reader) -> Instruction:
    """Reads an opcode and looks it up."""
    start = reader.position
    opcode = read_opcode(reader)
    row = INSTRUCTIONS.get(opcode)
    if row is None:
        reader.position = start
        prefix, number = opcode
        shown = f"{number:#04x}" if prefix is None else f"{prefix:#04x} {number:#04x}"
        raise reader.damaged(f"instruction {shown} is not one that guests may use")
    return row


def _skip(reader: Reader) -> None:
    """Steps over an instruction."""
    for immediate in _instruction(reader).immediates:
        immediate.read(reader)


def _decode(reader: Reader) -> Iterator[Site]:
    """Steps over an instruction and tells what it names."""
    start = reader.position
    row = _instruction(reader)
    if row.site is not None:
        target, *_ = [immediate.read(reader) for immediate in row.immediates]
        yield Site(row.site, start, reader.position, target.memory if isinstance(target, Span) else target)
        return
    for immediate in row.immediates:
        start = reader.position
        value = immediate.read(reader)
        if immediate.names is not None:
            span = value if isinstance(value, Span) else Span(start, reader.position, value)
            yield Site(immediate.names, *span)
