"""Modules that are made to keep a compiler busy: each shape at any size, any number of functions of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stockade.wasm import uleb, vector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SHAPES", "Shape", "build"]

I32, I64, F32, F64, V128, FUNCREF, EXTERNREF = (bytes([code]) for code in b"\x7f\x7e\x7d\x7c\x7b\x70\x6f")
_CUSTOM = 0
_TYPE, _IMPORT, _FUNCTION, _TABLE, _MEMORY, _GLOBAL, _EXPORT, _ELEMENT, _CODE, _DATA = 1, 2, 3, 4, 5, 6, 7, 9, 10, 11


class Shape(NamedTuple):
    """A module in the making: its first type and function are those that are repeated.

    Attributes:
        type: The type of the function, as its bytes.
        code: Its code, without the end.
        locals: Its locals, as their bytes.
        types: Further types, from index 1 on.
        functions: Further functions, before it: type index and code.
        sections: Further sections.
    """

    type: bytes
    code: bytes
    locals: bytes = b"\0"
    types: tuple[bytes, ...] = ()
    functions: tuple[tuple[int, bytes], ...] = ()
    sections: Mapping[int, bytes] = {}


def _sleb(value: int) -> bytes:
    """Encodes a signed number in LEB128."""
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        if value == (-1 if byte & 0x40 else 0):
            out.append(byte)
            return bytes(out)
        out.append(byte | 0x80)


def _type(params: bytes = b"", results: bytes = b"") -> bytes:
    return b"\x60" + uleb(len(params)) + params + uleb(len(results)) + results


def _some(count: int, type_: bytes = I32) -> bytes:
    return vector([uleb(count) + type_])


def build(shape: Shape, copies: int) -> bytes:
    """Returns a module with so many functions of a shape."""
    body = shape.locals + shape.code + b"\x0b"
    bodies = [b"\0" + code + b"\x0b" for _, code in shape.functions] + [body] * copies
    indices = [uleb(index) for index, _ in shape.functions] + [b"\0"] * copies
    sections = {
        _TYPE: vector([shape.type, *shape.types]),
        _FUNCTION: vector(indices),
        _CODE: vector(uleb(len(body)) + body for body in bodies),
        **shape.sections,
    }
    order = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 10, 11, _CUSTOM)
    parts = (bytes([id_]) + uleb(len(sections[id_])) + sections[id_] for id_ in order if id_ in sections)
    return b"\0asm\1\0\0\0" + b"".join(parts)


_PLAIN = _type()
_ONE_PAGE = {_MEMORY: b"\1\0\1"}
_ZERO = b"\x41\0"
_DROP = b"\x1a"


def _br_tables_over_blocks(size: int, wide: int) -> Shape:
    inner = _ZERO * wide + _ZERO + b"\x0e" + uleb(size - 1) + b"".join(map(uleb, range(size)))
    code = b"\x02\x01" * size + inner + b"\x0b" * size + _DROP * wide
    return Shape(_PLAIN, code, types=(_type(b"", I32 * wide),))


def _loops_that_join_locals(size: int, wide: int) -> Shape:
    reads = b"".join(b"\x20" + uleb(place) + b"\x21" + uleb((place + 1) % wide) for place in range(wide))
    return Shape(_PLAIN, b"\x03\x40" * size + reads + b"\x41\0\x0d\0\x0b" * size, _some(wide))


def _loops_that_pass_values(size: int, wide: int) -> Shape:
    code = _ZERO * wide + b"\x03\x01" * size + b"\x41\0\x0d\0\x0b" * size + _DROP * wide
    return Shape(_PLAIN, code, types=(_type(I32 * wide, I32 * wide),))


def _in_a_row(piece: bytes) -> Callable[[int, int], Shape]:
    def make(size: int, wide: int) -> Shape:
        return Shape(_PLAIN, _ZERO * wide + piece * size + b"\0", types=(_type(I32 * wide, I32 * wide),))

    return make


def _calls(*, direct: bool, params: bool = True) -> Callable[[int, int], Shape]:
    def make(size: int, wide: int) -> Shape:
        call = b"\x10\0" if direct else _ZERO + b"\x11\1\0"
        code = (b"\x10\1" if wide else b"") + call * size + b"\0"
        types = (_type(I32 * wide if params else b"", I32 * wide), _type(b"", I32 * wide))
        return Shape(_PLAIN, code, types=types, functions=((1, b"\0"), (2, b"\0")), sections={_TABLE: b"\1\x70\0\1"})

    return make


def _values_over_calls(type_: bytes, value: bytes) -> Callable[[int, int], Shape]:
    def make(size: int, wide: int) -> Shape:
        code = b"\x10\0" * wide + b"\x10\1" * size + _DROP * wide
        return Shape(_PLAIN, code, types=(_type(b"", type_),), functions=((1, value), (0, b"")))

    return make


def _values_over_ifs(size: int, wide: int) -> Shape:
    code = b"\x10\0" * wide + (_ZERO + b"\x28\2\0\x04\x40\x0b") * size + b"\x6a" * (wide - 1) + _DROP
    return Shape(_PLAIN, code, types=(_type(b"", I32),), functions=((1, b"\x41\0"),), sections=_ONE_PAGE)


def _ifs_that_set(size: int, wide: int) -> Shape:
    pieces = (
        b"\x20\0\x04\x40\x41\1\x21" + uleb(place % wide) + b"\x05\x41\2\x21" + uleb(place * 7 % wide) + b"\x0b"
        for place in range(size)
    )
    return Shape(_PLAIN, b"".join(pieces), _some(wide))


def _returns(size: int, wide: int) -> Shape:
    code = _ZERO * wide + b"\x41\0\x0d\0" * size
    return Shape(_type(b"", I32 * wide), code)


def _deep(size: int, wide: int) -> Shape:
    code = (b"\x20\0\x28\2" + uleb(wide)) * size + b"\x6a" * (size - 1) + _DROP
    return Shape(_PLAIN, code, _some(1), sections=_ONE_PAGE)


def _br_tables(size: int, wide: int) -> Shape:
    piece = b"\x02\x40\x20\0\x28\2\0\x0e" + uleb(wide) + b"\0" * (wide + 1) + b"\x0b"
    return Shape(_PLAIN, piece * size, _some(1), sections=_ONE_PAGE)


def _spread_br_tables(size: int, wide: int) -> Shape:
    piece = b"\x20\0\x28\2\0\x0e" + uleb(wide) + b"".join(map(uleb, range(wide + 1)))
    code = b"\x02\x40" * (wide + 1) + b"\x02\x40\x0b" * size + piece + b"\x0b" * (wide + 1)
    return Shape(_PLAIN, code, _some(1), sections=_ONE_PAGE)


def _everywhere_called(size: int, wide: int) -> Shape:
    functions = tuple((0, b"\0") for _ in range(size))
    elements = b"\1\0\x41\0\x0b" + vector(uleb(place) for place in range(size))
    table = b"\1\x70\0" + uleb(size)
    return Shape(
        _type(I32 * wide, I32 * wide), b"\0", functions=functions, sections={_TABLE: table, _ELEMENT: elements}
    )


def _imports_of_types(size: int, wide: int) -> Shape:
    kinds = (I32, I64, F32, F64, V128)

    def params(number: int) -> bytes:
        return b"".join(kinds[number // 5**place % 5] for place in range(min(wide, 6))) + I32 * max(0, wide - 6)

    types = tuple(_type(params(number)) for number in range(size))
    imports = vector(b"\1x\5" + f"{number:05}".encode() + b"\0" + uleb(number + 1) for number in range(size))
    return Shape(_PLAIN, b"", types=types, sections={_IMPORT: imports})


def _imports_of_a_type(size: int, wide: int) -> Shape:
    imports = vector(b"\1x\5" + f"{number:05}".encode() + b"\0\1" for number in range(size))
    return Shape(_PLAIN, b"", types=(_type(I32 * wide, I32),), sections={_IMPORT: imports})


def _exports(size: int, wide: int) -> Shape:
    del wide
    names = vector(uleb(5) + f"{number:05}".encode() + b"\0\0" for number in range(size))
    return Shape(_PLAIN, b"", sections={_EXPORT: names})


def _names(size: int, wide: int) -> Shape:
    names = vector(uleb(number) + uleb(wide) + b"n" * wide for number in range(size))
    functions = tuple((0, b"") for _ in range(size))
    return Shape(_PLAIN, b"", functions=functions, sections={_CUSTOM: b"\4name\1" + uleb(len(names)) + names})


def _globals(size: int, wide: int) -> Shape:
    value = b"\x41\0" + b"\x41\0\x6a" * wide
    return Shape(_PLAIN, b"", sections={_GLOBAL: vector([I32 + b"\0" + value + b"\x0b"] * size)})


def _far_tables(size: int, wide: int) -> Shape:
    elements = min(1 << 20, max(1, wide * 1024))
    tables = vector([b"\x70\0" + uleb(elements)] * size)
    parts = vector(b"\2" + uleb(table) + b"\x41" + _sleb(elements - 1) + b"\x0b\0\1\0" for table in range(size))
    return Shape(_PLAIN, b"", sections={_TABLE: tables, _ELEMENT: parts})


def _far_data(size: int, wide: int) -> Shape:
    end = (1 << 20) - 16
    memories = vector([b"\0\x11"] * wide)
    data = (b"\2" + uleb(place % wide) + b"\x41" + _sleb(end - place * 8) + b"\x0b\1x" for place in range(size))
    return Shape(_PLAIN, b"", sections={_MEMORY: memories, _DATA: vector(data)})


def _data(size: int, wide: int) -> Shape:
    segments = vector([b"\0\x41\0\x0b" + vector([b"x"] * wide)] * size)
    return Shape(_PLAIN, b"", sections={_MEMORY: b"\1\0\x40", _DATA: segments})


def _row(piece: bytes, locals_: bytes = b"\0", **sections: bytes) -> Callable[[int, int], Shape]:
    """The same again and again; the sections are named."""
    numbers = {"table": _TABLE, "memory": _MEMORY, "globals": _GLOBAL, "exports": _EXPORT}
    numbered = {numbers[name]: content for name, content in sections.items()}
    return lambda size, _: Shape(_PLAIN, piece * size, locals_, sections=numbered)


def _lane(op: int, immediate: bytes = b"", operands: int = 2) -> Callable[[int, int], Shape]:
    return _row(b"\x20\0" * operands + b"\xfd" + uleb(op) + immediate + b"\x21\0", _some(1, V128))


SHAPES: dict[str, Callable[[int, int], Shape]] = {
    "a br_table over nested blocks with results": _br_tables_over_blocks,
    "nested loops that join locals": _loops_that_join_locals,
    "nested loops that pass values": _loops_that_pass_values,
    "blocks that pass values": _in_a_row(b"\x02\x01\x0b"),
    "ifs that pass values": _in_a_row(b"\x41\0\x04\x01\x05\x0b"),
    "loops that pass values": _in_a_row(b"\x03\x01\x41\0\x0d\0\x0b"),
    "calls that pass values": _calls(direct=True),
    "indirect calls that pass values": _calls(direct=False),
    "calls that return values": _calls(direct=True, params=False),
    "numbers alive over calls": _values_over_calls(I64, b"\x42\0"),
    "vectors alive over calls": _values_over_calls(V128, b"\xfd\x0c" + bytes(16)),
    "references alive over calls": _values_over_calls(EXTERNREF, b"\xd0\x6f"),
    "numbers alive over ifs": _values_over_ifs,
    "ifs that set locals": _ifs_that_set,
    "branches that return values": _returns,
    "a deep stack": _deep,
    "tables of equal branches": _br_tables,
    "tables of different branches": _spread_br_tables,
    "functions of large types in a table": _everywhere_called,
    "imports of large types": _imports_of_types,
    "imports of a large type": _imports_of_a_type,
    "exports": _exports,
    "names": _names,
    "globals": _globals,
    "tables filled at their ends": _far_tables,
    "memories filled far out": _far_data,
    "data": _data,
    "locals": lambda size, wide: Shape(_PLAIN, _ZERO + _DROP, _some(min(50_000, size * wide))),
    "arithmetic": _row(b"\x20\0\x41\1\x6a\x21\0", _some(1)),
    "divisions": _row(b"\x20\0\x20\0\x6d\x21\0", _some(1)),
    "conversions": _row(b"\x20\0\xb4\x21\1\x20\1\xae\x21\0", vector([b"\1\x7e", b"\1\x7d"])),
    "rounding": _row(b"\x20\0\x9e\x9c\x9d\x9f\x21\0", _some(1, F64)),
    "minima": _row(b"\x20\0\x20\0\xa4\x20\0\xa5\x21\0", _some(1, F64)),
    "loads and stores": _row(b"\x20\0\x20\0\x28\2\0\x36\2\0", _some(1), memory=b"\1\0\1"),
    "loads far out": _row(b"\x20\0\x28\2\xf0\xff\xff\xff\x0f\x1a", _some(1), memory=b"\1\0\1"),
    "choices": _row(b"\x20\0\x20\0\x20\0\x1b\x21\0", _some(1)),
    "elements of a table of references": _row(b"\x41\0\x41\0\x25\0\x26\0", table=b"\1\x6f\0\1"),
    "elements of a table of functions": _row(b"\x41\0\x41\0\x25\0\x26\0", table=b"\1\x70\0\1"),
    "globals of references": _row(b"\x23\0\x24\0", globals=b"\1\x6f\1\xd0\x6f\x0b"),
    "references to functions": _row(b"\xd2\0\x1a", exports=b"\1\1f\0\0"),
    "growth": _row(b"\x41\0\x40\0\x1a", memory=b"\1\0\1"),
    "growth of a table": _row(b"\xd0\x6f\x41\0\xfc\x0f\0\x1a", table=b"\1\x6f\0\1"),
    "filling": _row(b"\x41\0\x41\0\x41\0\xfc\x0b\0", memory=b"\1\0\1"),
    "copying": _row(b"\x41\0\x41\0\x41\0\xfc\x0a\0\0", memory=b"\1\0\1"),
    "calls of nothing": lambda size, _: Shape(_PLAIN, b"\x10\0" * size),
    "tail calls": lambda size, wide: Shape(
        _type(I32 * wide), (b"".join(b"\x20" + uleb(place) for place in range(wide)) + b"\x12\0") * size
    ),
    "shuffles": _lane(0x0D, bytes(range(3, 19))),
    "swizzles": _lane(0x0E),
    "shifts of bytes": _row(b"\x20\0\x20\1\xfd\x6c\x21\0", vector([b"\1\x7b", b"\1\x7f"])),
    "products of quads": _lane(0xD5),
    "population counts": _lane(0x62, operands=1),
    "lanes to integers": _lane(0xF8, operands=1),
    "relaxed products": _row(b"\x20\0\x20\0\x20\0\xfd\x85\x02\x21\0", _some(1, V128)),
    "nothing": _row(b"\1"),
    "empty loops": _row(b"\x03\x40\x0b"),
    "empty blocks": _row(b"\x02\x40\x0b"),
    "nested blocks": lambda size, _: Shape(_PLAIN, b"\x02\x40" * size + b"\x0b" * size),
    "nested loops": lambda size, _: Shape(_PLAIN, b"\x03\x40" * size + b"\x0b" * size),
    "nested ifs": lambda size, _: Shape(_PLAIN, b"\x20\0\x04\x40" * size + b"\x05\x0b" * size, _some(1)),
}
"""By what they are: made from a size, and from how many values, targets or others at each place."""
