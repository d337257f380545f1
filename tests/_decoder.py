"""A second decoder of modules, by the specification's chapter on the binary format: no code of Stockade's is in it.

It is slow and plain on purpose: what it says of a module is held against what Stockade's readers and the engine say.
A module comes out as values without encodings (numbers, names of types, instructions as tuples), so that two encodings
of one module are equal. What is not of WebAssembly 2.0 with tail calls, several memories, extended constant expressions
and relaxed SIMD is a `Malformed`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Code", "Decoded", "Instr", "Malformed", "Segment", "decode"]


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


@dataclass
class Decoded:
    """A module."""

    types: list[tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    imports: list[tuple[bytes, bytes, Any]] = field(default_factory=list)
    functions: list[int] = field(default_factory=list)
    tables: list[tuple[str, int, int | None]] = field(default_factory=list)
    memories: list[tuple[int, int | None]] = field(default_factory=list)
    globals: list[tuple[str, int, tuple[Instr, ...]]] = field(default_factory=list)
    exports: list[tuple[bytes, int, int]] = field(default_factory=list)
    start: int | None = None
    elements: list[Segment] = field(default_factory=list)
    data_count: int | None = None
    code: list[Code] = field(default_factory=list)
    data: list[tuple[int | None, tuple[Instr, ...], bytes]] = field(default_factory=list)
    sections: list[int] = field(default_factory=list)

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
_REFERENCE_TYPES = {0x70: "funcref", 0x6F: "externref"}


def _reference_type(it: _Bytes) -> str:
    code = it.byte()
    if code == 0x63:
        # The long form: (ref null func), (ref null extern).
        code = it.byte()
    if code not in _REFERENCE_TYPES:
        raise Malformed(f"reference type {code:#x}")
    return _REFERENCE_TYPES[code]


def _value_type(it: _Bytes) -> str:
    code = it.byte()
    if code in _NUMBER_TYPES:
        return _NUMBER_TYPES[code]
    it.at -= 1
    return _reference_type(it)


def _limits(it: _Bytes) -> tuple[int, int | None]:
    flag = it.byte()
    if flag > 1:
        raise Malformed(f"limits {flag:#x}")
    return it.u(32), it.u(32) if flag else None


def _table_type(it: _Bytes) -> tuple[str, int, int | None]:
    return _reference_type(it), *_limits(it)


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
    if code in _NUMBER_TYPES or code in _REFERENCE_TYPES or code == 0x63:
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
    return alignment & 0x3F, memory, it.u(32)


_INDEXED = {
    0x0C: "br", 0x0D: "br_if", 0x10: "call", 0x12: "return_call", 0x20: "local.get", 0x21: "local.set",
    0x22: "local.tee", 0x23: "global.get", 0x24: "global.set", 0x25: "table.get", 0x26: "table.set",
    0x3F: "memory.size", 0x40: "memory.grow", 0xD2: "ref.func",
}  # fmt: skip
_BARE = {0x00: "unreachable", 0x01: "nop", 0x05: "else", 0x0B: "end", 0x0F: "return", 0x1A: "drop", 0x1B: "select",
         0xD1: "ref.is_null"}  # fmt: skip
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
        heap = it.byte()
        if heap not in _REFERENCE_TYPES:
            raise Malformed("heap type")
        return Instr("ref.null", (_REFERENCE_TYPES[heap],))
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
    type_ = "funcref"
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
    readers = (lambda it: it.u(32), _table_type, _limits, _global_type)
    if kind >= len(readers):
        raise Malformed(f"import {kind}")
    return module, name, readers[kind](it)


def _export(it: _Bytes) -> tuple[bytes, int, int]:
    name, kind = it.name(), it.byte()
    if kind > 3:
        raise Malformed(f"export {kind}")
    return name, kind, it.u(32)


def _type(it: _Bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if it.byte() != 0x60:
        raise Malformed("type")
    return tuple(_value_type(it) for _ in range(it.u(32))), tuple(_value_type(it) for _ in range(it.u(32)))


def _code(it: _Bytes) -> Code:
    size = it.u(32)
    if it.at + size > it.end:
        raise Malformed("end")
    body = _Bytes(it.data, it.at, it.at + size)
    it.at += size
    return _body(body)


_ORDER = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 10, 11]
_VECTORS = {
    1: ("types", _type), 2: ("imports", _import), 3: ("functions", lambda it: it.u(32)), 4: ("tables", _table_type),
    5: ("memories", _limits), 6: ("globals", lambda it: (*_global_type(it), _expression(it))), 7: ("exports", _export),
    9: ("elements", _element), 10: ("code", _code), 11: ("data", _data),
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
