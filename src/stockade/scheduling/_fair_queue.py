"""Who waits for a place, and whose turn it is: tenants in turns, and the runs of a tenant by their priorities."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stockade.scheduling._handle import TaskRun

__all__ = ["Line"]


class Line:
    """Runs in line. Tenants take turns; among those of one tenant, the highest priority goes first, then the eldest."""

    def __init__(self) -> None:
        # The tenant whose turn it is stands first.
        self._tenants: OrderedDict[str, dict[int, OrderedDict[TaskRun, None]]] = OrderedDict()
        self._latest: str | None = None
        self._size = 0

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
        """Takes out the run that is next, of a tenant that has the fewest running.

        Args:
            running: How many each tenant has.
            most: The most that one may have.

        Returns:
            The run; None where no tenant may have another one.
        """
        chosen, fewest = None, most
        for tenant in self._tenants:
            if running.get(tenant, 0) < fewest:
                chosen, fewest = tenant, running.get(tenant, 0)
                if not fewest:
                    break
        if chosen is None:
            return None
        self._latest = chosen
        self._tenants.move_to_end(chosen)
        ranks = self._tenants[chosen]
        run = next(iter(ranks[max(ranks)]))
        self.remove(run)
        return run

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
