"""How much fuel is a second here: measured, and never more than an estimate.

Fuel counts instructions, and instructions take from a tenth of a nanosecond to ten: on the same machine a second is
worth 25 times as many units to one guest as to another. What is measured is a mix of what programs are made of.
"""

from __future__ import annotations

from typing import Final

import msgspec

from stockade._locks import new_lock
from stockade.errors import UsageError
from stockade.execution._context import PolicyContext
from stockade.execution._values import Call
from stockade.host import HostFunctions
from stockade.modules import Module
from stockade.policy import Policy
from stockade.runner import RunControl, run_blocking

__all__ = ["Calibration", "calibrate"]

_MOST_UNITS: Final = 2**63 - 1
"""What the engine can count."""

_ROUNDS: Final = 5

_MIX: Final = b"""
(module
  (type $step (func (param i32) (result i32)))
  (memory 2)
  (table 2 funcref)
  (elem (i32.const 0) $up $down)
  (func $up (type $step) (i32.add (local.get 0) (i32.const 3)))
  (func $down (type $step) (i32.xor (local.get 0) (i32.const 0x5bd1)))
  (func $mixed (param $x i32) (result i32)
    (i32.rotl (i32.mul (local.get $x) (i32.const 0x01000193)) (i32.const 13)))
  (func (export "spin")
    (local $i i32) (local $x i32) (local $at i32)
    (loop $next
      ;; arithmetic and a branch, a call, memory, a call through a table
      (if (i32.and (local.get $x) (i32.const 4)) (then (local.set $x (i32.add (local.get $x) (local.get $i)))))
      (local.set $x (call $mixed (i32.add (local.get $x) (local.get $i))))
      (local.set $at (i32.and (local.get $x) (i32.const 0x1fffc)))
      (i32.store (local.get $at) (i32.add (i32.load (local.get $at)) (local.get $x)))
      (if (i32.eqz (i32.and (local.get $i) (i32.const 7)))
        (then (local.set $x (call_indirect (type $step) (local.get $x) (i32.and (local.get $x) (i32.const 1))))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next))))
"""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What a second of computing takes on this machine.

    Attributes:
        units_per_second: Fuel units that a mix of instructions burnt in a second, the median of some rounds.
        least: The least of the rounds.
        most: The most of the rounds.
    """

    units_per_second: float
    least: float
    most: float

    def fuel(self, seconds: float) -> int:
        """Estimates the fuel for some seconds of computing.

        A guest that mostly divides will take longer with it, one that mostly adds will be through sooner: limit the
        time itself where it matters (`wall_time`).

        Args:
            seconds: How long.

        Returns:
            Units: at least 1, at most what can be counted; more for more seconds.

        Raises:
            UsageError: That is no time.
        """
        if not seconds >= 0:
            raise UsageError(f"seconds is {seconds!r}: it must be a number from 0 on")
        # Compared as a float: the product may be infinite.
        units = seconds * self.units_per_second
        return _MOST_UNITS if units >= _MOST_UNITS else max(1, int(units))


_lock = new_lock()
_known: list[Calibration] = []


def calibrate(*, again: bool = False) -> Calibration:
    """Measures how much fuel is a second on this machine.

    It takes about a third of a second, once in a process.

    Args:
        again: Whether to measure anew; the result is kept for policies with `fuel_time`, too.
    """
    with _lock:
        if again or not _known:
            _known[:] = [_measured()]
        return _known[0]


def _measured() -> Calibration:
    units = 300_000_000
    context = PolicyContext(Policy().replace(fuel=units, wall_time=None), HostFunctions())
    module = Module.load(_MIX, text=True)
    call = Call(module.function_entry("spin"))
    rates = []
    for _ in range(_ROUNDS + 1):
        control = RunControl()
        guest = context.guest(module, control)
        try:
            report = run_blocking(guest.invoke(call), control)
        finally:
            guest.close()
        rates.append(units / max(report.usage.cpu_seconds, 1e-6))
    # The first round finds everything cold.
    rates = sorted(rates[1:])
    import statistics

    return Calibration(units_per_second=statistics.median(rates), least=rates[0], most=rates[-1])
