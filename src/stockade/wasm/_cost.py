"""A bound of what a module can make its compiler do, from its bytes alone.

What a compiler does grows with products: every branch passes on every result, every loop may join every local, every
table of branches does both for each of its targets. A hostile module writes such factors in a few bytes. So the bound
multiplies them: for each function, what can branch or call by what can be alive there. It counts bytes that may be
such instructions, wherever they stand, and needs no decoder that agrees with the engine's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from stockade.errors import InvalidModule
from stockade.wasm._binary import Reader
from stockade.wasm._types import DataType, FuncType

if TYPE_CHECKING:
    from stockade.wasm._reader import ParsedModule
    from stockade.wasm._types import TypeEntry

__all__ = ["compile_cost"]

_BYTE: Final = 2
"""Each byte of the file: read, copied, woven; an item of a section or a plain instruction takes two at least."""

_STEP: Final = 150
"""A function, and each instruction that branches, calls, or takes a barrier for a reference, with nothing alive."""

_STEPS_OF_AN_IMPORT: Final = 4
"""How many times as much an imported function costs."""

_VALUE: Final = 8
"""A parameter or result of a type, or of a function, each of which may get code of its own to be called by."""

_VALUES_SQUARED: Final = 100
"""How many pairs of such values cost one more."""

_ELEMENTS: Final = 25
"""How many elements of a table, which are laid out beforehand, cost one."""

_MOST_ELEMENTS: Final = 1 << 20
"""Elements of a table that the engine lays out at most."""

_FIELD: Final = 30
"""A field of an object that is made: a reference in it takes a barrier."""

_MEMORY: Final = 2_000
"""A memory, up to a megabyte of whose beginning is laid out beforehand."""

# What branches, calls or leaves the function, and what may call the host or need a barrier: globals and tables of
# references, growth, bulk operations, references to functions. Opcodes that are not defined are never compiled.
_STEPS: Final = bytes((*range(0x02, 0x0B), *range(0x0C, 0x16), *range(0x18, 0x1A), 0x1F, *range(0x23, 0x27)))
_STEPS_OF_REFERENCES: Final = bytes((0x3F, 0x40, *range(0xD0, 0xD7), 0xFB, 0xFC, 0xFE))
_NO_STEPS: Final = bytes(set(range(256)).difference(_STEPS, _STEPS_OF_REFERENCES))

# Seen ahead, so that one which lies in another's immediate is found as well.
_BRANCH_TABLE: Final = re.compile(rb"\x0e(?=([\x80-\xff]{0,4}[\x00-\x7f]))", re.DOTALL)

# The catches of a try_table are branches, too: its type, then how many they are.
_TRY_TABLE: Final = re.compile(
    rb"\x1f(?=(?:[\x63\x64]?[\x80-\xff]{0,4}[\x00-\x7f])([\x80-\xff]{0,4}[\x00-\x7f]))", re.DOTALL
)

_PLAIN_TYPES: Final = frozenset((*range(0x7B, 0x80), *range(0x69, 0x75)))
"""Types of one byte."""

_MOST_LOCALS: Final = 50_000
"""Locals that the engine allows a function."""


def compile_cost(module: ParsedModule, enough: int) -> int:
    """Bounds what preparing and compiling a module takes: at most about a microsecond, and a kilobyte, for each unit.

    Args:
        module: The module, which nobody has validated.
        enough: A cost from which on it need not be exact: the rest of the module is not looked at.

    Returns:
        The bound, if it is at most `enough`; else some number beyond.
    """
    cost = _BYTE * len(module.data)
    if cost > enough:
        return cost
    cost += sum(_values(type_) for type_ in module.types)
    cost += sum(min(table.minimum, _MOST_ELEMENTS) // _ELEMENTS for table in module.tables)
    cost += _MEMORY * len(module.memories)
    functions = [type_ for type_ in module.types if isinstance(type_, FuncType)]
    most_params = max((len(type_.params) for type_ in functions), default=0)
    most_results = max((1, *(len(type_.results) for type_ in functions)))
    # One instruction makes an object, and fills each of its fields.
    most_fields = _FIELD * max((len(type_.fields) for type_ in module.types if isinstance(type_, DataType)), default=0)
    # An import gets a function of the weaver's, which calls it, and code to be called by from either side.
    imported, own = module.functions[: module.imported_functions], module.functions[module.imported_functions :]
    cost += sum(_STEPS_OF_AN_IMPORT * (_STEP + _values(module.types[index])) for index in imported)
    for type_index, (start, end) in zip(own, module.bodies, strict=True):
        if cost > enough:
            return cost
        steps = len(module.data[start:end].translate(None, _NO_STEPS)) + _branches(module.data, start, end)
        # Each byte pushes a value, at most; or all the results of a call or block.
        alive = _locals(module.data, start, end) + most_params + most_fields + (end - start) * most_results
        cost += _values(module.types[type_index]) + (1 + steps) * (_STEP + alive)
    return cost


def _values(type_: TypeEntry) -> int:
    values = len(type_.params) + len(type_.results) if isinstance(type_, FuncType) else len(type_.fields)
    return _VALUE * values + values * values // _VALUES_SQUARED


def _branches(data: bytes, start: int, end: int) -> int:
    """How many targets tables of branches, and of catches, can have, if every byte that may be one is."""
    targets = 0
    for table in (_BRANCH_TABLE, _TRY_TABLE):
        for match in table.finditer(data, start, end):
            announced = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(match[1]))
            targets += min(announced, end - match.start())
    return targets


def _locals(data: bytes, start: int, end: int) -> int:
    """How many locals a function declares; as many as there may be, where that is not plain to see."""
    reader = Reader(data, start, end, "code")
    locals_ = 0
    try:
        for _ in range(reader.count()):
            locals_ += reader.u32()
            if reader.byte() not in _PLAIN_TYPES:
                return _MOST_LOCALS
    except InvalidModule:
        return _MOST_LOCALS
    return locals_
