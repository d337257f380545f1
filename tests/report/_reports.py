"""Reports of real runs, of every kind of end; and of a run whose every text is hostile."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import msgspec

from stockade import Limits, Monitoring, Mount, Outcome, Policy, Report, Sandbox, Usage, Violation
from stockade.report import (
    Alert,
    ModuleInfo,
    PolicyInfo,
    RunLimits,
    Sample,
    TrapFrame,
    TrapInfo,
    Truncated,
    ViolationEvent,
)
from tests._small_guests import EXIT, SLEEP
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = (
    "<script>alert(1)</script>\"><img src=x onerror=alert(1)>&amp;'</style></title></pre>\x1b[2J\u202eevil\u2066\x00\n"
    "   outcome  ok - finished\r\nhttp://evil.example/x.js ]]> <!-- -->"
)
"""What a guest could want a reader of its report to take for something else."""

BUSY = """(module
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\10\\00\\00\\00\\06\\00\\00\\00")
  (data (i32.const 16) "<b>hi\\0a")
  (func (export "_start") (local $n i32)
    (drop (memory.grow (i32.const 100)))
    (drop (memory.grow (i32.const 60000)))
    (loop $more
      (drop (call $yield))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $n) (i32.const 300000))))))"""


def hostile() -> Report:
    """A report as nobody would make it: every text of it is hostile."""
    violation = Violation(kind=HOSTILE, subject=HOSTILE, call=HOSTILE, field=HOSTILE, mount=HOSTILE, at=0.25)
    return Report(
        outcome=Outcome.TRAP,
        value=HOSTILE,
        stdout=HOSTILE.encode() + b"\xff\xfe",
        stderr=HOSTILE.encode(),
        truncated=Truncated(1, 1),
        usage=Usage(wall_seconds=0.5, calls={HOSTILE: 1}, fuel=3),
        violations=(violation, Violation(kind="path", subject=HOSTILE, call="path_open", action="stop")),
        events=(ViolationEvent(kind=HOSTILE, subject=HOSTILE, call=HOSTILE, at=0.3),),
        trap=TrapInfo(HOSTILE, HOSTILE, (TrapFrame(HOSTILE, 0, 0),)),
        module=ModuleInfo("0" * 64, HOSTILE),
        policy=PolicyInfo("0" * 64, HOSTILE),
        limits=RunLimits(wall_time=1.0, memory=100),
        alerts=(Alert(limit=HOSTILE, threshold=0.5, utilization=0.6, used=1, allowed=2, at=0.1, module=HOSTILE),),
        samples=tuple(
            Sample(at=at, fuel=1, memory_bytes=2, calls=3)
            for at in (0.0, float("nan"), float("inf"), -1.0, 0.25, 0.2, 0.5)
        ),
    )


@cache
def busy() -> Report:
    """A run with samples, alerts and violations."""
    policy = Policy(name="demo").replace(memory="8MiB", fuel=10**10, wall_time=60)
    watched = Monitoring(samples=True, alerts={"memory": 0.75, "fuel": 0.0001})
    with Sandbox(policy, monitoring=watched) as box:
        return box.run(wat(BUSY))


def endings(folder: Path) -> dict[Outcome, Report]:
    """A real run of each outcome that a guest can bring about."""
    spin = '(module (func (export "_start") (loop (br 0))))'
    deep = '(module (func $f (export "_start") (call $f)))'
    large = '(module (memory 4000) (func (export "_start")))'
    socket = """(module (import "wasi_snapshot_preview1" "sock_shutdown" (func $shut (param i32 i32) (result i32)))
      (memory (export "memory") 1) (func (export "_start") (drop (call $shut (i32.const 3) (i32.const 1)))))"""
    text = """(module (memory (export "memory") 1)
      (func (export "long") (result i32 i32) (i32.const 0) (i32.const 60000)))"""
    base = Policy(limits=Limits(wall_time=10.0)).replace(mounts=[Mount(folder, "/data", "ro")])
    with Sandbox(base, monitoring=Monitoring(samples=True, alerts=0.5)) as box:
        return {
            Outcome.OK: box.run(wat(HELLO)),
            Outcome.EXIT: box.run(wat(EXIT)),
            Outcome.TRAP: box.run(wat('(module (func (export "_start") unreachable))')),
            Outcome.FUEL: box.run(wat(spin), policy=Policy().replace(fuel=100_000)),
            Outcome.TIMEOUT: box.run(wat(spin), policy=Policy().replace(wall_time=0.05)),
            Outcome.IDLE: box.run(wat(SLEEP), policy=Policy().replace(idle_time=0.05)),
            Outcome.MEMORY: box.run(wat(large)),
            Outcome.STACK: box.run(wat(deep)),
            Outcome.OUTPUT: box.call(wat(text), "long", returns="text", policy=Policy().replace(stdout=100)),
            Outcome.DENIED: box.run(wat(socket), policy=msgspec.structs.replace(Policy(), on_violation="stop")),
        }
