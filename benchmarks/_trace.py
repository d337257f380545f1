"""What tracing costs a call, and what it costs where it is off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import stockade
from benchmarks._measure import Promise, Spread
from stockade.guard import guard, weave

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["trace"]

_CALLS: Final = 1_000
"""The ring has room for as many: so the guest, which looks at its own clock, is not halted in between."""

_ROUNDS, _WARMUP = 300, 20

_WORK: Final = {
    "fd_write": "(call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64))",
    "clock_time_get": "(call $time (i32.const 1) (i64.const 0) (i32.const 64))",
    "args_sizes_get": "(call $sizes (i32.const 64) (i32.const 68))",
}

_LOOP = """
  (func (export "{name}") (param $times i32) (result i64)
    (drop (call $time (i32.const 1) (i64.const 0) (i32.const 80)))
    (loop $next
      (drop {call})
      (br_if $next (local.tee $times (i32.sub (local.get $times) (i32.const 1)))))
    (drop (call $time (i32.const 1) (i64.const 0) (i32.const 88)))
    (i64.sub (i64.load (i32.const 88)) (i64.load (i32.const 80))))
"""

_GUEST = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\10\\00\\00\\00\\20\\00\\00\\00")
  (data (i32.const 16) "thirty-two bytes, as strace has.")
"""


def trace(_: Console) -> list[Promise]:
    """Calls of a guest that is traced, over those of one that is not; and that nothing is woven for the latter."""
    text = _GUEST + "".join(_LOOP.format(name=name, call=call) for name, call in _WORK.items()) + ")"
    module = stockade.Module.load(text.encode(), text=True)
    no_limit = dict.fromkeys(("fuel", "wall_time", "calls", "call_rate"))
    policy = stockade.Policy().replace(**no_limit)
    asked = {
        "plain": None,
        "traced": stockade.Trace(on_overflow="count", most_calls=0),
        "filtered": stockade.Trace(calls=("sock",), most_calls=0),
    }
    boxes = {name: stockade.Sandbox(policy, trace=trace) for name, trace in asked.items()}
    sessions = {name: box.open(module) for name, box in boxes.items()}
    promises = []
    for name in _WORK:
        taken: dict[str, list[float]] = {kind: [] for kind in sessions}
        for number in range(_WARMUP + _ROUNDS):
            for kind, session in sessions.items():
                report = session.call(name, _CALLS).check()
                assert isinstance(report.value, int)
                assert report.trace_lost >= (_CALLS if kind == "traced" else 0)
                if number >= _WARMUP:
                    taken[kind].append(report.value / _CALLS)
        each = {kind: Spread.of(times).p50 for kind, times in taken.items()}
        promises += [
            Promise(f"{name} traced: nanoseconds added to a call", each["traced"] - each["plain"], 25.0),
            Promise(
                f"{name} left out of the trace: nanoseconds added to a call", each["filtered"] - each["plain"], 5.0
            ),
        ]
    for kind, session in sessions.items():
        session.close()
        boxes[kind].close()
    woven = weave(module.data, guard())
    promises.append(
        Promise("no trace: functions for it in the woven module", woven.guard_functions.count("trace"), 0.0)
    )
    return promises
