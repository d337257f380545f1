"""What an interpreter has inside, and does not export, is exported by its name."""

from __future__ import annotations

import pytest

from stockade import Module, Sandbox
from stockade.guests._internals import Composed, exporting
from stockade.wasm import FuncType
from tests.conftest import wat

INSIDE = wat("""
(module
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (memory (export "memory") 1)
  (func $seven (result i32) (i32.const 7))
  (func $eight (export "eight") (result i32) (i32.add (call $seven) (call $yield)) (i32.add (i32.const 1)))
  (func $nine (result i32) (i32.add (call $eight) (i32.const 1))))
""")


def test_functions_are_called_that_were_not_exported() -> None:
    """By the names that the module gives them; what it exports itself stays as it was."""
    with Sandbox() as box:
        module = exporting(INSIDE, ["seven", "nine", "eight", "ten"])
        assert [item.name for item in module.exports] == ["memory", "eight", "seven", "nine"]
        assert [box.call(module, name).value for name in ("seven", "eight", "nine")] == [7, 8, 9]


def test_what_is_not_there_changes_nothing() -> None:
    """Names that no function has, and modules that tell none, or whose names are damaged."""
    module = INSIDE
    assert exporting(module, ["eight", "ten"]) is module
    names = INSIDE.parsed.sections[-1]
    before = INSIDE.data[: INSIDE.data.rindex(b"\0", 0, names.start)]
    assert exporting(without := Module.load(before), ["seven"]) is without
    # It ends in the middle of a name.
    short = before + bytes([0, 12]) + b"\4name" + b"\1\x20\1\1\x20se"
    assert exporting(broken := Module.load(short), ["seven"]) is broken


NUMBER = FuncType((), ("i32",))
SEVENTEEN = Composed(
    name="seventeen",
    type=FuncType(("i32",), ("i32",)),
    locals=("i64", "i32"),
    calls={"seven": NUMBER, "nine": NUMBER},
    code=("seven", b"\x21\x02", "nine", b"\x20\x02\x6a\x20\x00\x6a"),
)
"""It returns the sum of what both return and of what it is given."""


def test_a_function_is_composed_of_others_that_are_inside() -> None:
    """One call of it does what a call of each would do; its variables and parameters are its own."""
    with Sandbox() as box:
        module = exporting(INSIDE, ["nine"], SEVENTEEN)
        assert [item.name for item in module.exports] == ["memory", "eight", "nine", "seventeen"]
        assert box.call(module, "seventeen", 100).value == 116
        assert box.call(module, "eight").value == 8


@pytest.mark.parametrize(
    "other",
    [
        SEVENTEEN._replace(calls={**SEVENTEEN.calls, "ten": NUMBER}),
        SEVENTEEN._replace(calls={**SEVENTEEN.calls, "seven": FuncType(("i32",), ("i32",))}),
        SEVENTEEN._replace(name="eight"),
    ],
    ids=["none of that name", "of another type", "exported already"],
)
def test_what_cannot_be_composed_is_left_out(other: Composed) -> None:
    assert exporting(INSIDE, [], other) is INSIDE
