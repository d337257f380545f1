"""The table of all instructions (`instructions.txt`), and the guests that are made of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from stockade.engine import assemble

__all__ = ["Group", "Row", "groups", "opcode_at"]

_LINE = re.compile(r"((?:F[BCDE] )?[0-9A-F]{2,3}) +(\S+) +(.*)", re.DOTALL)
_CODE = re.compile(r": (\S+) (.*)", re.DOTALL)
_SIGNATURE = re.compile(r"(.*?) ?-> (\S+)(?: / (.*))?")
_LOCALS = re.compile(r"(?:\(local [^()]*(?:\([^()]*\))?[^()]*\)\s*)*")

_NUMBERS = {
    "i32": ["7", "-3", "0x80000000", "0x7fffffff", "1", "0x12345678"],
    "i64": ["7", "-3", "0x8000000000000000", "0x7fffffffffffffff", "1", "0x123456789abcdef0"],
    "f32": ["1.5", "-2.5", "inf", "nan", "-0", "0x1.8p-130"],
    "f64": ["1.5", "-2.5", "inf", "nan", "-0", "0x1.8p-1040"],
    "f32+": ["0", "1.5", "2.999", "0x1p30", "1e-20", "77"],
    "f64+": ["0", "1.5", "2.999", "0x1p30", "1e-200", "77"],
    "v128": [
        "i8x16 0 1 2 3 -1 -2 -3 127 -128 64 65 66 200 100 50 25",
        "i64x2 0x8000000000000000 0x7fffffffffffffff",
        "i32x4 0x80008000 0x7fff7fff 0xffffffff 1",
        "i16x8 1 -1 2 -2 0x7fff 0x8000 300 -300",
        "i64x2 0 0",
        "i64x2 -1 -1",
    ],
    "f32x4": ["f32x4 1.5 -2.5 inf nan", "f32x4 -0 0 0x1p40 -0x1p40", "f32x4 3.7 1e-40 100.5 -inf"] * 2,
    "f64x2": ["f64x2 1.5 -2.5", "f64x2 inf nan", "f64x2 -0 0x1p70", "f64x2 -inf 0x1.8p-1040"] * 2,
}
"""Operands to be tried, by type. The second operand of an instruction is the next but one of the list, and so on: none
divides by zero or has a quotient that is too large."""

_TO_I64 = {
    "i32": "i64.extend_i32_u",
    "i64": "nop",
    "f32": "i32.reinterpret_f32 i64.extend_i32_u",
    "f64": "i64.reinterpret_f64",
    "v128": "call $lanes",
}

_FIELDS = """
(import "wasi_snapshot_preview1" "sched_yield" (func $sched_yield (result i32)))
(import "wasi_snapshot_preview1" "clock_time_get" (func $clock_time_get (param i32 i64 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
(memory $memory (export "memory") 1 4)
(table $table (export "table") 8 16 funcref)
"""
_LANES = """
(func $lanes (param v128) (result i64)
  (i64.xor (i64x2.extract_lane 0 (local.get 0)) (i64.rotl (i64x2.extract_lane 1 (local.get 0)) (i64.const 9))))
"""
_PATTERN = "".join(f"\\{(place * 37 + 11) % 256:02x}" for place in range(256))


class Row(NamedTuple):
    """A line of the table: an instruction, and a guest's function that has it.

    Attributes:
        export: The name of the function.
        opcode: The prefix, None where there is none, and the number.
        text: The function.
        vectors: Whether it has vectors.
    """

    export: str
    opcode: tuple[int | None, int]
    text: str
    vectors: bool


@dataclass
class Group:
    """Instructions that become one module.

    Attributes:
        name: Its name in the table.
        fields: Fields of the module.
        rows: The instructions.
    """

    name: str
    fields: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The module as text."""
        lanes = _LANES if any(row.vectors for row in self.rows) else ""
        functions = "\n".join(row.text for row in self.rows)
        data = f'(data (memory $memory) (i32.const 0) "{_PATTERN}")'
        return f"(module {_FIELDS}{lanes}\n{chr(10).join(self.fields)}\n{data}\n{functions})"

    @property
    def wasm(self) -> bytes:
        """The module."""
        return assemble(self.text)


@cache
def groups() -> dict[str, Group]:
    """Reads the table; returns its groups by their names."""
    found: dict[str, Group] = {}
    here = Group("")
    # A line that begins with blanks goes on with the one before.
    for line in re.split(r"\n(?! )", Path(__file__).with_name("instructions.txt").read_text()):
        if line.startswith("== "):
            here = found[line[3:]] = Group(line[3:])
        elif line.startswith("|"):
            here.fields.append(line[1:])
        elif line.strip() and not line.startswith("#"):
            here.rows.append(_row(line, len(here.rows)))
    return found


def _row(line: str, number: int) -> Row:
    matched = _LINE.fullmatch(line.rstrip())
    assert matched, line
    code, name, rest = matched.groups()
    *prefix, last = code.split()
    opcode = (int(prefix[0], 16) if prefix else None, int(last, 16))
    export = f"{number} {code} {name}"
    if found := _CODE.fullmatch(rest):
        type_, body = found.groups()
    else:
        found = _SIGNATURE.fullmatch(rest)
        assert found, line
        type_, body = found[2], _tried(name, found[1].split(), found[2], found[3] or "")
    locals_ = _LOCALS.match(body)
    assert locals_ is not None
    before, after = body[: locals_.end()], body[locals_.end() :]
    text = f"""(func (export "{export}") (result i64) {before}
  (drop (call $sched_yield)) (drop (memory.grow $memory (i32.const 0)))
  {after} {_TO_I64[type_] if found.re is _CODE else ""}
  (drop (table.grow $table (ref.null func) (i32.const 0))) (drop (call $sched_yield)))"""
    return Row(export, opcode, text, "v128" in text)


def _tried(name: str, operands: list[str], result: str, immediates: str) -> str:
    """Code that has an instruction with several operands each, and mixes what it gives."""
    lines = ["(local $all i64)"]
    for number in range(6 if operands else 1):
        pushed = [
            f"({type_.rstrip('+') if type_[:2] not in ('f3', 'f6') or 'x' not in type_ else 'v128'}.const "
            f"{_NUMBERS[type_][(number + 2 * place) % len(_NUMBERS[type_])]})"
            for place, type_ in enumerate(operands)
        ]
        lines.append(f"{' '.join(pushed)} {name} {immediates} {_TO_I64[result]}")
        lines.append("(local.get $all) (i64.const 7) i64.rotl i64.xor (local.set $all)")
    return "\n  ".join([*lines, "(local.get $all)"])


def opcode_at(data: bytes, place: int) -> tuple[int | None, int]:
    """The opcode of the instruction that begins there."""
    if data[place] < 0xFB or data[place] == 0xFF:
        return None, data[place]
    number = shift = 0
    for group in data[place + 1 :]:
        number |= (group & 0x7F) << shift
        shift += 7
        if group < 0x80:
            break
    return data[place], number
