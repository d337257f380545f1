"""Fuel as a budget: what a guest is given, what is added while it runs, and how it spends it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from stockade.engine import FUEL_SLICE, OUT_OF_FUEL, Failure
from stockade.execution._classify import GuestStopped, StopReason
from stockade.report import SAMPLES_KEPT, FuelSample, FuelStatistics, run_statistics

if TYPE_CHECKING:
    from stockade.engine import Instance
    from stockade.policy import Limits

__all__ = ["Budget"]

_SAMPLE_SECONDS: Final = 0.01
"""Samples of how fast fuel is spent begin at this length, and double whenever there is no room for more."""


class Budget:
    """The fuel of one guest, from one renewal to the next.

    What is in hand is known, and may be added to, only when the guest's own count has been written back: at the end of
    a slice of fuel, and while it waits.

    Args:
        instance: The guest.
        units: What it begins with.
        overdraft: Units that the engine has beyond that, and the guest has not.
        most: What it may be given in all; None where nothing but its refills limits that.
        limits: Tells of refills.

    Attributes:
        initial: What it began with.
        refilled: What was added.
        refills: How often something was added.
        known: What was known to be spent at the last look. Any thread may read it.
    """

    __slots__ = (
        "_instance",
        "_limits",
        "_marked",
        "_most",
        "_next_refill",
        "_overdraft",
        "_rested",
        "_sample_seconds",
        "_samples",
        "_spent",
        "initial",
        "known",
        "refilled",
        "refills",
    )

    def __init__(self, instance: Instance, units: int, overdraft: int, most: int | None, limits: Limits) -> None:
        self._instance = instance
        self._overdraft = overdraft
        self._most = most
        self._limits = limits
        self.initial = units
        self.refilled = self.refills = self.known = 0
        self._samples: list[FuelSample] = []
        self._sample_seconds = _SAMPLE_SECONDS
        self._spent = 0
        self._marked = self._rested = 0.0
        self._next_refill = 0.0
        if limits.fuel_refill:
            self._give(units)

    def start(self) -> None:
        """Begins to measure: the guest runs from now on."""
        self._marked = time.monotonic()
        self._next_refill = self._marked + self._limits.fuel_refill_interval

    def rested(self, seconds: float) -> None:
        """Leaves out a time in which the guest did not run."""
        self._rested += seconds

    def _left(self) -> int:
        """What is left, if the instance says that its count is exact, else at most this.

        Less than nothing, where the guest has used up what it had in the middle of a block of code, and finished that.
        """
        return min(self._instance.fuel_left() - self._overdraft, self.initial + self.refilled)

    def _read(self) -> int:
        """What the guest has spent of what it was given: all of it, where its count is exact, else at least this."""
        return self.initial + self.refilled - max(self._left(), 0)

    def look(self) -> None:
        """Takes a sample and gives the guest what is due, if its count is exact.

        Raises:
            Ended: All is spent, and nothing is due.
        """
        if not self._instance.exact:
            return
        now = time.monotonic()
        spent = self.known = self._read()
        self._sample(now, spent)
        if not self._limits.fuel_refill:
            return
        # What a block of code took beyond what there was is owed: the next refill is less by as much.
        left = self._left()
        given = self._due(now, left)
        if left + given <= 0:
            raise GuestStopped(StopReason(failure=Failure(OUT_OF_FUEL, "", ())))
        # Always anew: the guest must yield when it has spent what is in hand, neither before nor after.
        if given or left <= FUEL_SLICE:
            self._give(left + given)

    def _due(self, now: float, left: int) -> int:
        if now < self._next_refill:
            return 0
        limits = self._limits
        times = int((now - self._next_refill) / limits.fuel_refill_interval) + 1
        self._next_refill += times * limits.fuel_refill_interval
        given = min(times * limits.fuel_refill, max(0, limits.fuel_refill_max - left))
        if self._most is not None:
            given = min(given, self._most - self.initial - self.refilled)
        if given:
            self.refills += -(-given // limits.fuel_refill)
            self.refilled += given
        return given

    def _give(self, left: int) -> None:
        self._instance.set_fuel(left + self._overdraft, min(left, FUEL_SLICE))

    def _sample(self, now: float, spent: int) -> None:
        seconds = now - self._marked - self._rested
        if seconds < self._sample_seconds:
            return
        self._samples.append(FuelSample(spent - self._spent, seconds))
        self._spent, self._marked, self._rested = spent, now, 0.0
        if len(self._samples) == SAMPLES_KEPT:
            # The whole run in as much memory, whatever its length: two neighbours become one.
            pairs = zip(self._samples[::2], self._samples[1::2], strict=True)
            self._samples = [FuelSample(a.units + b.units, a.seconds + b.seconds) for a, b in pairs]
            self._sample_seconds *= 2

    def statistics(self, seconds: float) -> FuelStatistics:
        """Tells how the fuel was spent.

        Args:
            seconds: For how long the guest ran, waits left out.
        """
        spent = self.known = self._read()
        return run_statistics(
            initial=self.initial,
            refilled=self.refilled,
            refills=self.refills,
            left=self.initial + self.refilled - spent,
            exact=self._instance.exact,
            seconds=max(0.0, seconds),
            samples=self._samples,
        )
