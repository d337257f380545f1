"""A second decoder of modules, by the specification's chapter on the binary format: no code of Stockade's is in it.

It is slow and plain on purpose: what it says of a module is held against what Stockade's readers and the engine say.
A module comes out as values without encodings (numbers, names of types, instructions as tuples), so that two encodings
of one module are equal. What is not of WebAssembly 3.0, or of its threads proposal, is a `Malformed`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Code", "Decoded", "Instr", "Limits", "Malformed", "Segment", "decode"]


class Malformed(Exception):  # noqa: N818
    """The bytes are no module that this decoder knows."""


class Instr(NamedTuple):
    """An instruction: its name or number, and its immediates as values."""

    op: str
    args: tuple[Any, ...] = ()


class Segment(NamedTuple):
    """An element segment, in whatever form: its mode, table, offset, type, and the expression of each item."""

    mode: str
    table: int | None
    offset: tuple[Instr, ...]
    type: str
    items: tuple[tuple[Instr, ...], ...]


class Code(NamedTuple):
    """A body: groups of local variables as they stand there, and instructions with the place of each in the file."""

    locals: tuple[tuple[int, str], ...]
    instrs: tuple[Instr, ...]
    places: tuple[tuple[int, int], ...]


class Limits(NamedTuple):
    """The limits of a memory or table, with the bits of its addresses, and whether it is shared."""

    minimum: int
    maximum: int | None
    bits: int = 32
    shared: bool = False


class SubType(NamedTuple):
    """A type as it stands in a group: whether it is final, what it is below, its form, and what it is made of."""

    final: bool
    above: tuple[int, ...]
    form: str
    parts: tuple[Any, ...]


@dataclass
class Decoded:
    """A module."""

    groups: list[tuple[SubType, ...]] = field(default_factory=list)
    imports: list[tuple[bytes, bytes, Any]] = field(default_factory=list)
    functions: list[int] = field(default_factory=list)
    tables: list[tuple[str, Limits, tuple[Instr, ...]]] = field(default_factory=list)
    memories: list[Limits] = field(default_factory=list)
    tags: list[int] = field(default_factory=list)
    globals: list[tuple[str, int, tuple[Instr, ...]]] = field(default_factory=list)
    exports: list[tuple[bytes, int, int]] = field(default_factory=list)
    start: int | None = None
    elements: list[Segment] = field(default_factory=list)
    data_count: int | None = None
    code: list[Code] = field(default_factory=list)
    data: list[tuple[int | None, tuple[Instr, ...], bytes]] = field(default_factory=list)
    sections: list[int] = field(default_factory=list)

    @property
    def types(self) -> list[SubType]:
        """Every type by its index."""
        return [type_ for group in self.groups for type_ in group]

    @property
    def imported_functions(self) -> int:
        """How many functions are imported."""
        return sum(1 for _, _, what in self.imports if isinstance(what, int))


class _Bytes:
    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data, self.at, self.end = data, at, end

    def byte(self) -> int:
        if self.at >= self.end:
            raise Malformed("end")
        self.at += 1
        return self.data[self.at - 1]

    def raw(self, size: int) -> bytes:
        if self.at + size > self.end:
            raise Malformed("end")
        self.at += size
        return self.data[self.at - size : self.at]

    def u(self, bits: int) -> int:
        # As the specification has it: what is left of the bits is handed on, group by group.
        group = self.byte()
        if group < 0x80:
            if group >= 1 << min(bits, 7):
                raise Malformed("number too large")
            return group
        if bits <= 7:
            raise Malformed("number too long")
        return (group - 0x80) + (self.u(bits - 7) << 7)

    def s(self, bits: int) -> int:
        group = self.byte()
        if group < 0x40:
            if bits < 7 and group >= 1 << (bits - 1):
                raise Malformed("number too large")
            return group
        if group < 0x80:
            if bits < 7 and group < 0x80 - (1 << (bits - 1)):
                raise Malformed("number too large")
            return group - 0x80
        if bits <= 7:
            raise Malformed("number too long")
        return (group - 0x80) + (self.s(bits - 7) << 7)

    def name(self) -> bytes:
        return self.raw(self.u(32))

    def done(self) -> None:
        if self.at != self.end:
            raise Malformed("bytes left over")


_NUMBER_TYPES = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128"}
_HEAP_TYPES = {
    0x74: "noexn", 0x73: "nofunc", 0x72: "noextern", 0x71: "none", 0x70: "func", 0x6F: "extern", 0x6E: "any",
    0x6D: "eq", 0x6C: "i31", 0x6B: "struct", 0x6A: "array", 0x69: "exn",
}  # fmt: skip


def _heap_type(it: _Bytes) -> str:
    if it.at < it.end and it.data[it.at] in _HEAP_TYPES:
        return _HEAP_TYPES[it.byte()]
    index = it.s(33)
    if index < 0:
        raise Malformed("heap type")
    return str(index)


def _is_reference(code: int) -> bool:
    return code in _HEAP_TYPES or code in (0x63, 0x64)


def _reference_type(it: _Bytes) -> str:
    code = it.byte()
    if code in _HEAP_TYPES:
        return f"(ref null {_HEAP_TYPES[code]})"
    if code == 0x63:
        return f"(ref null {_heap_type(it)})"
    if code == 0x64:
        return f"(ref {_heap_type(it)})"
    raise Malformed(f"reference type {code:#x}")


def _value_type(it: _Bytes) -> str:
    code = it.byte()
    if code in _NUMBER_TYPES:
        return _NUMBER_TYPES[code]
    it.at -= 1
    return _reference_type(it)


def _limits(it: _Bytes) -> Limits:
    flag = it.byte()
    if flag > 7:
        raise Malformed(f"limits {flag:#x}")
    bits = 64 if flag & 4 else 32
    return Limits(it.u(64), it.u(64) if flag & 1 else None, bits, bool(flag & 2))


def _table_type(it: _Bytes) -> tuple[str, Limits]:
    return _reference_type(it), _limits(it)


def _table(it: _Bytes) -> tuple[str, Limits, tuple[Instr, ...]]:
    if it.at < it.end and it.data[it.at] == 0x40:
        it.byte()
        if it.byte():
            raise Malformed("table")
        return *_table_type(it), _expression(it)
    return *_table_type(it), ()


def _tag(it: _Bytes) -> int:
    if it.byte():
        raise Malformed("tag")
    return it.u(32)


def _global_type(it: _Bytes) -> tuple[str, int]:
    type_, mutable = _value_type(it), it.byte()
    if mutable > 1:
        raise Malformed(f"mutability {mutable:#x}")
    return type_, mutable


# -- instructions ------------------------------------------------------------------------------------------------------


def _block_type(it: _Bytes) -> Any:
    code = it.byte()
    if code == 0x40:
        return None
    it.at -= 1
    if code in _NUMBER_TYPES or _is_reference(code):
        return _value_type(it)
    index = it.s(33)
    if index < 0:
        raise Malformed("block type")
    return index


def _memory_argument(it: _Bytes) -> tuple[int, int, int]:
    alignment = it.u(32)
    if alignment >= 0x80:
        raise Malformed("alignment")
    memory = it.u(32) if alignment & 0x40 else 0
    return alignment & 0x3F, memory, it.u(64)


_INDEXED = {
    0x0C: "br", 0x0D: "br_if", 0x10: "call", 0x12: "return_call", 0x20: "local.get", 0x21: "local.set",
    0x22: "local.tee", 0x23: "global.get", 0x24: "global.set", 0x25: "table.get", 0x26: "table.set",
    0x3F: "memory.size", 0x40: "memory.grow", 0xD2: "ref.func", 0x08: "throw", 0x14: "call_ref",
    0x15: "return_call_ref", 0xD5: "br_on_null", 0xD6: "br_on_non_null",
}  # fmt: skip
_BARE = {0x00: "unreachable", 0x01: "nop", 0x05: "else", 0x0B: "end", 0x0F: "return", 0x1A: "drop", 0x1B: "select",
         0xD1: "ref.is_null", 0x0A: "throw_ref", 0xD3: "ref.eq", 0xD4: "ref.as_non_null"}  # fmt: skip
_BULK = {
    0x08: ("memory.init", 2), 0x09: ("data.drop", 1), 0x0A: ("memory.copy", 2), 0x0B: ("memory.fill", 1),
    0x0C: ("table.init", 2), 0x0D: ("elem.drop", 1), 0x0E: ("table.copy", 2), 0x0F: ("table.grow", 1),
    0x10: ("table.size", 1), 0x11: ("table.fill", 1),
}  # fmt: skip
_NO_VECTORS = [0x9A, 0xA2, 0xA5, 0xA6, 0xAF, 0xB0, 0xB2, 0xB3, 0xB4, 0xBB, 0xC2, 0xC5, 0xC6, 0xCF, 0xD0, 0xD2, 0xD3,
               0xD4, 0xE2, 0xEE]  # fmt: skip


def _instruction(it: _Bytes) -> Instr:
    code = it.byte()
    if code in _BARE:
        return Instr(_BARE[code])
    if code in _INDEXED:
        return Instr(_INDEXED[code], (it.u(32),))
    if code in (0x02, 0x03, 0x04):
        return Instr(("block", "loop", "if")[code - 2], (_block_type(it),))
    if code == 0x0E:
        labels = tuple(it.u(32) for _ in range(it.u(32)))
        return Instr("br_table", (labels, it.u(32)))
    if code in (0x11, 0x13):
        return Instr("call_indirect" if code == 0x11 else "return_call_indirect", (it.u(32), it.u(32)))
    if code == 0x1C:
        return Instr("select", tuple(_value_type(it) for _ in range(it.u(32))))
    if 0x28 <= code <= 0x3E:
        return Instr(f"memory access {code:#x}", _memory_argument(it))
    if code == 0x41:
        return Instr("i32.const", (it.s(32),))
    if code == 0x42:
        return Instr("i64.const", (it.s(64),))
    if code in (0x43, 0x44):
        return Instr("f32.const" if code == 0x43 else "f64.const", (it.raw(4 if code == 0x43 else 8),))
    if 0x45 <= code <= 0xC4:
        return Instr(f"numeric {code:#x}")
    if code == 0xD0:
        return Instr("ref.null", (_heap_type(it),))
    if code == 0x1F:
        return Instr("try_table", (_block_type(it), tuple(_catch(it) for _ in range(it.u(32)))))
    if code == 0xFB:
        return _aggregate_instruction(it, it.u(32))
    if code == 0xFE:
        return _atomic_instruction(it, it.u(32))
    if code == 0xFC:
        sub = it.u(32)
        if sub < 8:
            return Instr(f"saturating {sub}")
        if sub not in _BULK:
            raise Malformed(f"0xfc {sub:#x}")
        named, count = _BULK[sub]
        return Instr(named, tuple(it.u(32) for _ in range(count)))
    if code == 0xFD:
        return _vector_instruction(it, it.u(32))
    raise Malformed(f"opcode {code:#x}")


def _catch(it: _Bytes) -> tuple[Any, ...]:
    kind = it.byte()
    if kind > 3:
        raise Malformed("catch")
    named = ("catch", "catch_ref", "catch_all", "catch_all_ref")[kind]
    return (named, it.u(32), it.u(32)) if kind < 2 else (named, it.u(32))


# What follows each number behind 0xFB: i for an index, h for a heap type, f for a byte of flags.
_AGGREGATES = {
    0: ("struct.new", "i"), 1: ("struct.new_default", "i"), 2: ("struct.get", "ii"), 3: ("struct.get_s", "ii"),
    4: ("struct.get_u", "ii"), 5: ("struct.set", "ii"), 6: ("array.new", "i"), 7: ("array.new_default", "i"),
    8: ("array.new_fixed", "ii"), 9: ("array.new_data", "ii"), 10: ("array.new_elem", "ii"), 11: ("array.get", "i"),
    12: ("array.get_s", "i"), 13: ("array.get_u", "i"), 14: ("array.set", "i"), 15: ("array.len", ""),
    16: ("array.fill", "i"), 17: ("array.copy", "ii"), 18: ("array.init_data", "ii"), 19: ("array.init_elem", "ii"),
    20: ("ref.test", "h"), 21: ("ref.test null", "h"), 22: ("ref.cast", "h"), 23: ("ref.cast null", "h"),
    24: ("br_on_cast", "fihh"), 25: ("br_on_cast_fail", "fihh"), 26: ("any.convert_extern", ""),
    27: ("extern.convert_any", ""), 28: ("ref.i31", ""), 29: ("i31.get_s", ""), 30: ("i31.get_u", ""),
}  # fmt: skip


def _aggregate_instruction(it: _Bytes, sub: int) -> Instr:
    if sub not in _AGGREGATES:
        raise Malformed(f"0xfb {sub:#x}")
    named, shape = _AGGREGATES[sub]
    readers = {"i": lambda: it.u(32), "h": lambda: _heap_type(it), "f": it.byte}
    return Instr(named, tuple(readers[what]() for what in shape))


def _atomic_instruction(it: _Bytes, sub: int) -> Instr:
    if sub == 3:
        return Instr("atomic.fence", (it.byte(),))
    if sub > 3 and not 0x10 <= sub <= 0x4E:
        raise Malformed(f"0xfe {sub:#x}")
    named = {0: "memory.atomic.notify", 1: "memory.atomic.wait32", 2: "memory.atomic.wait64"}
    return Instr(named.get(sub, f"atomic {sub:#x}"), _memory_argument(it))


def _vector_instruction(it: _Bytes, sub: int) -> Instr:
    if sub in _NO_VECTORS or sub >= 0x114:
        raise Malformed(f"0xfd {sub:#x}")
    what = f"vector {sub:#x}"
    if sub < 0x0C or sub in (0x5C, 0x5D):
        return Instr(what, _memory_argument(it))
    if sub in (0x0C, 0x0D):
        return Instr(what, (it.raw(16),))
    if 0x54 <= sub <= 0x5B:
        return Instr(what, (*_memory_argument(it), it.byte()))
    if 0x15 <= sub <= 0x22:
        return Instr(what, (it.byte(),))
    return Instr(what)


def _expression(it: _Bytes) -> tuple[Instr, ...]:
    """A constant expression, without its end: nothing in it opens a block."""
    out = []
    while (instr := _instruction(it)).op != "end":
        out.append(instr)
    return tuple(out)


def _body(it: _Bytes) -> Code:
    groups = tuple((it.u(32), _value_type(it)) for _ in range(it.u(32)))
    instrs, places = [], []
    while it.at < it.end:
        start = it.at
        instrs.append(_instruction(it))
        places.append((start, it.at))
    if not instrs or instrs[-1].op != "end":
        raise Malformed("a body without an end")
    return Code(groups, tuple(instrs), tuple(places))


# -- sections ----------------------------------------------------------------------------------------------------------


def _element(it: _Bytes) -> Segment:
    form = it.u(32)
    if form > 7:
        raise Malformed(f"element segment {form}")
    mode, table, offset = ("active", "passive", "active", "declared")[form & 3], None, ()
    if mode == "active":
        table = it.u(32) if form & 2 else 0
        offset = _expression(it)
    # Functions that are listed are there: their type is one that is never null.
    type_ = "(ref func)"
    if form == 4:
        type_ = "(ref null func)"
    if form & 3:
        if form & 4:
            type_ = _reference_type(it)
        elif it.byte() != 0:
            raise Malformed("element kind")
    if form & 4:
        items = tuple(_expression(it) for _ in range(it.u(32)))
    else:
        items = tuple((Instr("ref.func", (it.u(32),)),) for _ in range(it.u(32)))
    return Segment(mode, table, offset, type_, items)


def _data(it: _Bytes) -> tuple[int | None, tuple[Instr, ...], bytes]:
    form = it.u(32)
    if form > 2:
        raise Malformed(f"data segment {form}")
    memory = None if form == 1 else it.u(32) if form == 2 else 0
    offset = () if form == 1 else _expression(it)
    return memory, offset, it.name()


def _import(it: _Bytes) -> tuple[bytes, bytes, Any]:
    module, name, kind = it.name(), it.name(), it.byte()
    readers = (lambda it: it.u(32), _table_type, _limits, _global_type, lambda it: ("tag", _tag(it)))
    if kind >= len(readers):
        raise Malformed(f"import {kind}")
    return module, name, readers[kind](it)


def _export(it: _Bytes) -> tuple[bytes, int, int]:
    name, kind = it.name(), it.byte()
    if kind > 4:
        raise Malformed(f"export {kind}")
    return name, kind, it.u(32)


def _group(it: _Bytes) -> tuple[SubType, ...]:
    if it.at < it.end and it.data[it.at] == 0x4E:
        it.byte()
        return tuple(_sub_type(it) for _ in range(it.u(32)))
    return (_sub_type(it),)


def _sub_type(it: _Bytes) -> SubType:
    final, above = True, ()
    code = it.byte()
    if code in (0x50, 0x4F):
        final = code == 0x4F
        above = tuple(it.u(32) for _ in range(it.u(32)))
        code = it.byte()
    if code == 0x60:
        sides = (tuple(_value_type(it) for _ in range(it.u(32))), tuple(_value_type(it) for _ in range(it.u(32))))
        return SubType(final, above, "func", sides)
    if code == 0x5F:
        return SubType(final, above, "struct", tuple(_field(it) for _ in range(it.u(32))))
    if code == 0x5E:
        return SubType(final, above, "array", (_field(it),))
    raise Malformed("type")


def _field(it: _Bytes) -> tuple[str, int]:
    code = it.byte()
    if code in (0x78, 0x77):
        type_ = "i8" if code == 0x78 else "i16"
    else:
        it.at -= 1
        type_ = _value_type(it)
    if (mutable := it.byte()) > 1:
        raise Malformed("field")
    return type_, mutable


def _code(it: _Bytes) -> Code:
    size = it.u(32)
    if it.at + size > it.end:
        raise Malformed("end")
    body = _Bytes(it.data, it.at, it.at + size)
    it.at += size
    return _body(body)


_ORDER = [1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11]
_VECTORS = {
    1: ("groups", _group), 2: ("imports", _import), 3: ("functions", lambda it: it.u(32)), 4: ("tables", _table),
    5: ("memories", _limits), 13: ("tags", _tag), 6: ("globals", lambda it: (*_global_type(it), _expression(it))),
    7: ("exports", _export), 9: ("elements", _element), 10: ("code", _code), 11: ("data", _data),
}  # fmt: skip


def decode(data: bytes) -> Decoded:
    """Decodes a module.

    Raises:
        Malformed: It is none, or not one of WebAssembly as far as guests may use it.
    """
    if data[:8] != b"\0asm\1\0\0\0":
        raise Malformed("header")
    out = Decoded()
    it = _Bytes(data, 8, len(data))
    last = -1
    while it.at < it.end:
        number, size = it.byte(), it.u(32)
        inner = _Bytes(data, it.at, it.at + size)
        it.raw(size)
        out.sections.append(number)
        if number == 0:
            inner.name()
            continue
        if number not in _ORDER or _ORDER.index(number) <= last:
            raise Malformed(f"section {number}")
        last = _ORDER.index(number)
        if number in _VECTORS:
            name, read = _VECTORS[number]
            setattr(out, name, [read(inner) for _ in range(inner.u(32))])
        elif number == 8:
            out.start = inner.u(32)
        else:
            out.data_count = inner.u(32)
        inner.done()
    if len(out.code) != len(out.functions):
        raise Malformed("functions and code")
    return out
