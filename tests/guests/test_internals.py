"""What an interpreter has inside, and does not export, is exported by its name."""

from __future__ import annotations

from stockade import Module, Sandbox
from stockade.guests._internals import exporting
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
