"""Guests for measuring, as text."""

from __future__ import annotations

__all__ = ["CALLS", "HELLO", "MANY_IMPORTS", "SLEEP", "SPIN"]

HELLO = r"""
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\08\00\00\00\0c\00\00\00hello world\n")
  (func (export "_start")
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))))
"""

SLEEP = r"""
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 3600000000000))
    (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))
"""
"""Sleeps for an hour."""

SPIN = r"""(module (memory (export "memory") 1) (func (export "_start") (loop $next (br $next))))"""
"""Computes for ever."""

CALLS = r"""
(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_pread" (func $pread (param i32 i32 i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_seek" (func $seek (param i32 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_tell" (func $tell (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_filestat_get" (func $stat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_filestat_get" (func $path_stat (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 17)
  (data (i32.const 256) "\00\04\00\00\00\01\00\00")  ;; 256 bytes
  (data (i32.const 248) "\00\00\01\00\00\00\10\00")  ;; 1 MiB
  (data (i32.const 512) "file")
  (global $fd (mut i32) (i32.const -1))
  (func $rewind (drop (call $seek (global.get $fd) (i64.const 0) (i32.const 0) (i32.const 272))))
  (func (export "prepare")
    (if (call $open (i32.const 3) (i32.const 0) (i32.const 512) (i32.const 4) (i32.const 0)
          (i64.const 0x1fffffff) (i64.const 0x1fffffff) (i32.const 0) (i32.const 264))
      (then (unreachable)))
    (global.set $fd (i32.load (i32.const 264))))
  (func (export "clock_time_get") (param $times i32)
    (loop $next
      (drop (call $clock (i32.const 1) (i64.const 0) (i32.const 280)))
      (br_if $next (local.tee $times (i32.sub (local.get $times) (i32.const 1))))))
  (func (export "fd_read") (param $times i32)
    (loop $next
      (call $rewind)
      (if (call $read (global.get $fd) (i32.const 256) (i32.const 1) (i32.const 268)) (then (unreachable)))
      (br_if $next (local.tee $times (i32.sub (local.get $times) (i32.const 1))))))
  (func (export "fd_write") (param $times i32)
    (loop $next
      (call $rewind)
      (if (call $write (global.get $fd) (i32.const 256) (i32.const 1) (i32.const 268)) (then (unreachable)))
      (br_if $next (local.tee $times (i32.sub (local.get $times) (i32.const 1))))))
  (func (export "fd_read of 1 MiB") (param $times i32)
    (loop $next
      (call $rewind)
      (if (call $read (global.get $fd) (i32.const 248) (i32.const 1) (i32.const 268)) (then (unreachable)))
      (if (i32.ne (i32.load (i32.const 268)) (i32.const 1048576)) (then (unreachable)))
      (br_if $next (local.tee $times (i32.sub (local.get $times) (i32.const 1))))))
  (func (export "fd_write of 1 MiB") (param $times i32)
    (loop $next
      (call $rewind)
      (if (call $write (global.get $fd) (i32.const 248) (i32.const 1) (i32.const 268)) (then (unreachable)))
      (if (i32.ne (i32.load (i32.const 268)) (i32.const 1048576)) (then (unreachable)))
      (br_if $next (local.tee $times (i32.sub (local.get $times) (i32.const 1))))))
  (func (export "path_open") (param $times i32)
    (loop $next
      (if (call $open (i32.const 3) (i32.const 0) (i32.const 512) (i32.const 4) (i32.const 0)
            (i64.const 0x1fffffff) (i64.const 0x1fffffff) (i32.const 0) (i32.const 264))
        (then (unreachable)))
      (drop (call $close (i32.load (i32.const 264))))
      (br_if $next (local.tee $times (i32.sub (local.get $times) (i32.const 1)))))))
"""
"""Loops over single calls; the file is `file` in the first mount. Imports what the guard needs of native WASI, as real
programs do."""


def _many_imports() -> str:
    from stockade._wasi import WASI

    wanted = [call for call in WASI if call.name not in ("fd_allocate", "proc_raise", "sock_accept")]
    imports = "\n".join(
        f'(import "wasi_snapshot_preview1" "{call.name}" (func (param {" ".join(call.params)})'
        f"{' (result i32)' if call.results else ''}))"
        for call in wanted
    )
    return f'(module {imports} (memory (export "memory") 2) (func (export "_start")))'


MANY_IMPORTS = _many_imports()
"""A module with 43 WASI imports, as CPython has, that does nothing."""
