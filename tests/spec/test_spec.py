"""The specification's own tests, where they are at hand, and that their scripts are read as they are meant.

Holds P-GUARD-3 and P-LOAD-4.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.spec._check import check
from tests.spec._run import compare
from tests.spec._wast import modules

_SCRIPT = r"""
;; a comment with (module
(; and one (; within ;) another: (module) ;)
(module $named (func (export "a (b)") (result i32) (i32.const 7)))
(module definition $M (memory 1))
(module instance $I $M)
(module binary "\00asm" "\01\00\00\00" ";;\22")
(module quote "(func" ")")
(assert_return (invoke "a (b)") (i32.const 7))
(assert_invalid (module (func (result i32))) "type mismatch")
(assert_malformed (module binary "\00asm\01\00\00\00\0e\00") "malformed section id")
(assert_malformed (module quote "(func (result") "unexpected token")
(assert_unlinkable (module (import "\u{e9}\t" "f" (func))) "unknown import")
(module (func (nonsense)))
"""


def test_modules_of_a_script() -> None:
    """Comments, texts and what else a script holds: each module is found, with whether it is meant to be valid."""
    found = list(modules(_SCRIPT))

    assert [(module.line, module.valid) for module in found] == [
        (4, True),
        (5, True),
        (7, True),
        (8, True),
        (10, False),
        (11, False),
        (13, True),
        (14, True),
    ]
    assert found[2].wasm == b'\0asm\x01\0\0\0;;"'
    assert "\u00e9\t".encode() in found[6].wasm
    assert [bool(module.unread) for module in found] == [False] * 7 + [True]


def test_what_is_told(tmp_path: Path) -> None:
    """Valid modules pass, what imports something that is no function is told apart, and invalid ones do not pass."""
    (tmp_path / "one.wast").write_text('(module (import "a" "m" (memory 1)))\n' + _SCRIPT)

    told = check([tmp_path / "one.wast"])

    assert (told.valid, told.invalid, told.refused, told.passed) == (5, 3, [], [])
    assert told.strange == [("one.wast:8", "not valid WebAssembly: unexpected end-of-file (at offset 0xa)")]
    assert [place for place, _ in told.unlinked] == ["one.wast:1"]
    assert [place for place, _ in told.unreadable] == ["one.wast:15"]


_CALLS = """
(module $first (import "spectest" "print_i32" (func $print (param i32)))
  (global $sum (mut i64) (i64.const 0))
  (func (export "add") (param i64) (result i64)
    (call $print (i32.const 1))
    (global.set $sum (i64.add (global.get $sum) (local.get 0))) (global.get $sum))
  (func (export "div") (param f32 i32) (result f32 i32)
    (f32.div (local.get 0) (f32.const 0)) (i32.div_s (i32.const 1) (local.get 1)))
  (func (export "null") (result funcref) (ref.null func)))
(assert_return (invoke "add" (i64.const 0xffff_ffff_ffff_fffe)) (i64.const -2))
(module $second (func (export "add") (result i32) (i32.const 2)))
(assert_return (invoke "add") (i32.const 2))
(assert_return (invoke $first "add" (i64.const -1)) (i64.const -3))
(invoke $first "div" (f32.const -0x1.8p3) (i32.const -1))
(assert_trap (invoke $first "div" (f32.const nan:canonical) (i32.const 0)) "integer divide by zero")
(assert_return (invoke $first "null") (ref.null func))
(assert_return (invoke $second "add" (ref.null func)) (ref.null func))
(module (import "a" "b" (memory 1)) (func (export "add")))
(invoke "add")
"""


def test_calls_of_a_script(tmp_path: Path) -> None:
    """Calls that can be made are made of the right module, whose state they see; the others are left out."""
    (tmp_path / "one.wast").write_text(_CALLS)

    ran = compare([tmp_path / "one.wast"])

    assert (ran.modules, ran.calls, ran.different) == (2, 5, [])


@pytest.mark.skipif("STOCKADE_SPEC" not in os.environ, reason="STOCKADE_SPEC names no folder with .wast files")
def test_the_specifications_own_modules() -> None:
    """Nothing valid is refused, nothing invalid passes, and what runs does as on the bare engine."""
    scripts = sorted(Path(os.environ["STOCKADE_SPEC"]).rglob("*.wast"))
    told, ran = check(scripts), compare(scripts)

    assert (told.refused, told.passed, ran.different) == ([], [], [])
    assert min(told.valid, ran.calls) > 0
