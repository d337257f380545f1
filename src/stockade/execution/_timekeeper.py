"""The one clock of a run's limits: kept by the host, which tells the guard whenever it looks.

Rates are tokens in the guard's state: what may go at once. The guard takes them, the host adds to them as time goes by,
never beyond a second's worth. When the guard took some since the last look is not known. It may have been just now, so
what came to more than a second's worth before that is lost. So over any time no more goes than the rate times that time
and one second's worth.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from stockade.runner import FOREVER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockade.guard import State

__all__ = ["Timekeeper"]

_NANOSECONDS: Final = 1_000_000_000


class Timekeeper:
    """Keeps the time of one guest, from its making on.

    Args:
        state: The guard's state.
        began: When the guest was made, by `time.perf_counter`.
        rates: What is added in a second, by the names of the tokens.
    """

    __slots__ = ("_began", "_last", "_owed", "_rates", "_seen", "_state")

    def __init__(self, state: State, began: float, rates: Mapping[str, int]) -> None:
        self._state = state
        self._began = began
        self._rates = rates
        self._last = 0
        # Parts of a token, in nanoseconds times tokens a second.
        self._owed = dict.fromkeys(rates, 0)
        # How many tokens there were after the last look: a second's worth at first.
        self._seen = dict(rates)

    def look(self) -> None:
        """Notes the time, and adds the tokens that are due."""
        state = self._state
        now = int((time.perf_counter() - self._began) * _NANOSECONDS)
        state.put("host_now", "<Q", now)
        passed, self._last = now - self._last, now
        for name, rate in self._rates.items():
            due, self._owed[name] = divmod(self._owed[name] + passed * rate, _NANOSECONDS)
            if self._seen[name] + due >= rate:
                # Nothing is owed to a full bucket.
                self._owed[name] = 0
            # What the guard has set aside for calls to come are tokens, too.
            aside = state.get("credit", "<Q") if name == "call_tokens" else 0
            tokens = state.get(name, "<Q") + aside
            # As if what was spent since then had been spent just now: what a full bucket would have lost is not added.
            spent = max(0, self._seen[name] - tokens)
            self._seen[name] = max(tokens, min(self._seen[name] + due, rate) - spent)
            if self._seen[name] != tokens:
                state.put(name, "<Q", self._seen[name] - aside)

    def due(self, name: str, amount: int) -> float:
        """Says when there will be so many tokens.

        Args:
            name: Which tokens.
            amount: How many there must be.

        Returns:
            A time of `time.monotonic`; that of now, or an earlier one, where there are as many.
        """
        rate = self._rates.get(name)
        if rate is None:
            return FOREVER
        missing = (amount - self._state.get(name, "<Q")) * _NANOSECONDS - self._owed[name]
        return time.monotonic() + max(missing, 0) / rate / _NANOSECONDS
