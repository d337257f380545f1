"""Who waits for a place, and whose turn it is: tenants in turns, and the runs of a tenant by their priorities."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stockade.scheduling._handle import TaskRun

__all__ = ["Line"]


_EQUAL_SECONDS: Final = 0.02
"""Who has used more than another by no more than this has used as much."""

_MOST_KNOWN: Final = 1000
"""Of so many tenants it is known what they have used."""


class Line:
    """Runs in line. Tenants take turns, and those that have used more of the processors later than others.

    Among the runs of one tenant, the highest priority goes first, then the eldest.

    Args:
        used: What tenants have used, in seconds of processors.
        served: What the tenant had used that was served last: nobody comes with a share saved up.
    """

    def __init__(self, used: dict[str, float] | None = None, served: float = 0.0) -> None:
        # The tenant whose turn it is stands first.
        self._tenants: OrderedDict[str, dict[int, OrderedDict[TaskRun, None]]] = OrderedDict()
        self._latest: str | None = None
        self._size = 0
        self._used = used or {}
        self._served = served

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[TaskRun]:
        for ranks in self._tenants.values():
            for rank in ranks.values():
                yield from rank

    def add(self, run: TaskRun) -> None:
        """Puts a run in line."""
        tenant, priority = run.task.tenant, run.task.priority
        if tenant not in self._tenants:
            self._tenants[tenant] = {}
            # Whoever had the last turn stands behind whoever has just come.
            if self._latest is not None and self._latest in self._tenants:
                self._tenants.move_to_end(self._latest)
        self._tenants[tenant].setdefault(priority, OrderedDict())[run] = None
        self._size += 1

    def take(self, running: Mapping[str, int], most: int) -> TaskRun | None:
        """Takes out the run that is next: of a tenant that has the fewest running, and of these has used the least.

        Args:
            running: How many each tenant has.
            most: The most that one may have.

        Returns:
            The run; None where no tenant may have another one.
        """
        found = self._only(running, most) if len(self._tenants) == 1 else self._next(running, most)
        if found is None:
            return None
        chosen, used = found
        self._served = max(self._served, used)
        self._latest = chosen
        self._tenants.move_to_end(chosen)
        ranks = self._tenants[chosen]
        run = next(iter(ranks[max(ranks)]))
        self.remove(run)
        return run

    def _only(self, running: Mapping[str, int], most: int) -> tuple[str, float] | None:
        """The tenant whose turn it is, and what it has used, where there is one alone."""
        (tenant,) = self._tenants
        return None if running.get(tenant, 0) >= most else (tenant, self._has_used(tenant))

    def _next(self, running: Mapping[str, int], most: int) -> tuple[str, float] | None:
        """The same of many."""
        fewest = most
        able: list[tuple[str, float]] = []
        for tenant in self._tenants:
            many = running.get(tenant, 0)
            if many < fewest:
                fewest, able = many, []
            if many == fewest < most:
                able.append((tenant, self._has_used(tenant)))
        if not able:
            return None
        least = min(used for _, used in able)
        return next(entry for entry in able if entry[1] <= least + _EQUAL_SECONDS)

    def emptied(self) -> Line:
        """Returns a line without anybody in it, which knows what tenants have used."""
        return Line(self._used, self._served)

    def charge(self, tenant: str, seconds: float) -> None:
        """Notes what a tenant has used.

        Args:
            tenant: The tenant.
            seconds: Seconds of processors.
        """
        self._used[tenant] = self._has_used(tenant) + seconds
        if len(self._used) > _MOST_KNOWN:
            # Those that others have caught up with are the least.
            most = heapq.nlargest(_MOST_KNOWN // 2, self._used.items(), key=lambda entry: entry[1])
            self._used = dict(most)

    def _has_used(self, tenant: str) -> float:
        return max(self._used.get(tenant, 0.0), self._served - _EQUAL_SECONDS)

    def has(self, run: TaskRun) -> bool:
        """Whether a run is in line."""
        ranks = self._tenants.get(run.task.tenant)
        return ranks is not None and run in ranks.get(run.task.priority, ())

    def remove(self, run: TaskRun) -> bool:
        """Takes out a run; says whether it was there."""
        tenant, priority = run.task.tenant, run.task.priority
        ranks = self._tenants.get(tenant)
        rank = None if ranks is None else ranks.get(priority)
        if ranks is None or rank is None or run not in rank:
            return False
        del rank[run]
        self._size -= 1
        if not rank:
            del ranks[priority]
            if not ranks:
                del self._tenants[tenant]
        return True
