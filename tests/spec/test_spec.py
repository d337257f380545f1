"""The specification's own tests, where they are at hand, and that their scripts are read as they are meant.

Holds P-GUARD-3.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.spec._check import check
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


@pytest.mark.skipif("STOCKADE_SPEC" not in os.environ, reason="STOCKADE_SPEC names no folder with .wast files")
def test_the_specifications_own_modules() -> None:
    """Nothing valid is refused, and nothing invalid passes."""
    told = check(sorted(Path(os.environ["STOCKADE_SPEC"]).rglob("*.wast")))

    assert told.valid > 0
    assert (told.refused, told.passed) == ([], [])
