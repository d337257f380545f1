"""A guest that holds what is written into its memory and its global, and grows."""

from __future__ import annotations

from tests.conftest import wat

__all__ = ["HOLDER"]

HOLDER = wat("""
(module
  (memory (export "memory") 2)
  (global $number (mut i32) (i32.const 0))
  (data (i32.const 100) "own data")
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "put") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "get") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "fill") (param i32 i32 i32) (memory.fill (local.get 0) (local.get 1) (local.get 2)))
  (func (export "number") (result i32) (global.get $number))
  (func (export "count") (result i32)
    (global.set $number (i32.add (global.get $number) (i32.const 1))) (global.get $number)))
""")
