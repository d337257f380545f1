"""Who may compile, and when: by processors and memory, in turns between tenants, small modules beside large ones.

A compiler takes what it is given, all processors and a gigabyte, so that many at once would only take it from each
other. So a few jobs are under way, and the others wait: as entries of a queue, not as threads or processes. What a job
may take is counted in its share of the machine, so that whether a module is too much for the compiler does not depend
on who else compiles.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from stockade._bell import MOST_RAISED, Once, start_thread
from stockade._locks import reentrant_lock
from stockade.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["SMALL_BYTES", "CompileJob", "CompileQueue", "Turn", "compile_queue"]

_Result = TypeVar("_Result")

SMALL_BYTES: Final = 64 << 10
"""What is no larger than this does not wait for what is."""

_SMALL_BESIDE: Final = 2
"""So many small jobs may be under way beyond what is the most for large ones."""


_LEFT: Final = EngineError("nobody waits for this any more")


class Turn:
    """What a job that is under way may ask, and is told.

    Attributes:
        abandoned: Whether nobody waits for it any more.
        on_abandoned: What is called when that comes to be so, from any thread.
    """

    __slots__ = ("_begun", "_had", "abandoned", "on_abandoned")

    def __init__(self, had: Callable[[], float]) -> None:
        self._had = had
        self._begun = had()
        self.abandoned = False
        self.on_abandoned: Callable[[], object] | None = None

    def had(self) -> float:
        """Returns how many seconds of the machine it has had so far: of those that it shared, its share."""
        return self._had() - self._begun

    def abandon(self) -> None:
        """Says that nobody waits for it any more."""
        self.abandoned = True
        call = self.on_abandoned
        if call is not None:
            call()


class CompileJob(Once[_Result]):
    """Something that is done in its turn.

    Args:
        work: What to do.
        memory_bytes: How much memory it may take.
        small: Whether it is likely to take little.
        tenant: For whom it is done.

    Attributes:
        begun: Whether a thread does it.
        turn: What it is told; None while it waits.
        wanted: How many wait for it.
    """

    __slots__ = ("begun", "memory_bytes", "small", "tenant", "turn", "wanted", "work")

    def __init__(self, work: Callable[[Turn], _Result], *, memory_bytes: int, small: bool, tenant: str) -> None:
        super().__init__()
        self.work = work
        self.memory_bytes = memory_bytes
        self.small = small
        self.tenant = tenant
        self.begun = False
        self.turn: Turn | None = None
        self.wanted = 1


class _Tenant:
    """What a tenant waits for and has under way."""

    __slots__ = ("running", "used", "waiting")

    def __init__(self, used: float) -> None:
        # Small jobs, and others.
        self.waiting: tuple[deque[CompileJob[Any]], deque[CompileJob[Any]]] = (deque(), deque())
        self.running: set[CompileJob[Any]] = set()
        self.used = used

    @property
    def gone(self) -> bool:
        return not (self.running or any(self.waiting))


class CompileQueue:
    """Lets jobs be done, a few at a time. Safe to share between threads.

    Args:
        processors: How many processors there are.
        memory_bytes: How much memory there is for all jobs together.
        clock: Tells the time, in seconds.
    """

    def __init__(
        self,
        processors: int | None = None,
        memory_bytes: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._processors = max(1, processors or os.cpu_count() or 1)
        self._memory_bytes = memory_bytes
        self._clock = clock
        # A turn begins under it, and looks at the time.
        self._lock = reentrant_lock()
        self._tenants: dict[str, _Tenant] = {}
        # Not only counted, so that whoever is interrupted may add or take out one again.
        self._under_way: dict[CompileJob[Any], None] = {}
        # Seconds that each job under way has had for itself, as all share the machine.
        self._shared = 0.0
        self._looked = clock()
        # What the tenant had used that was served last: nobody comes with a share saved up.
        self._served = 0.0

    @property
    def running(self) -> int:
        """How many jobs are under way."""
        return len(self._under_way)

    @property
    def waiting(self) -> int:
        """How many jobs wait for their turn."""
        with self._lock:
            return sum(len(line) for tenant in self._tenants.values() for line in tenant.waiting)

    def submit(self, job: CompileJob[_Result]) -> CompileJob[_Result]:
        """Has a job done in its turn, on a thread of its own. Where this raises, nobody waits for it any more."""
        try:
            self._start(self._line_up(job))
        except BaseException:
            # The handler of a signal has raised, in the middle of this. Others may wait for it, or stand behind it.
            for _ in range(MOST_RAISED):
                try:
                    self._line_up(job)
                    self._start([other for other in tuple(self._under_way) if not other.begun])
                    self.leave(job)
                    break
                except BaseException:  # noqa: S112 - a second signal; the first is raised
                    continue
            raise
        return job

    def _line_up(self, job: CompileJob[Any]) -> list[CompileJob[Any]]:
        """Puts a job in line, if it is not there, and returns what may begin."""
        with self._lock:
            if job.turn is None and not job.done:
                tenant = self._tenants.get(job.tenant)
                if tenant is None:
                    tenant = self._tenants[job.tenant] = _Tenant(self._served)
                line = tenant.waiting[not job.small]
                if job not in line:
                    line.append(job)
            return self._admit()

    def join(self, job: CompileJob[Any]) -> bool:
        """Says that one more waits for a job; whether it is not too late for that."""
        with self._lock:
            if not job.wanted:
                return False
            job.wanted += 1
            return True

    def leave(self, job: CompileJob[Any]) -> None:
        """Says that one of those who wait for a job does so no longer; what nobody waits for is not done."""
        with self._lock:
            job.wanted -= 1
            if job.wanted or job.done:
                return
            turn = job.turn
            if turn is None:
                tenant = self._tenants[job.tenant]
                tenant.waiting[not job.small].remove(job)
                self._forget(job.tenant, tenant)
        if turn is None:
            job.settle(None, _LEFT)
        else:
            turn.abandon()

    def wait(self, job: CompileJob[_Result]) -> _Result:
        """Waits for a job, on the caller's thread.

        Raises:
            BaseException: What it has raised, or what has come between, such as Ctrl-C.
        """
        try:
            return job.result()
        finally:
            self.leave(job)

    # -- whose turn it is (under the lock) ----------------------------------------------------------------------------

    def _admit(self) -> list[CompileJob[Any]]:
        """Takes out of the queue what may begin."""
        admitted: list[CompileJob[Any]] = []
        while (job := self._next()) is not None:
            self._advance()
            tenant = self._tenants[job.tenant]
            self._served = max(self._served, tenant.used)
            job.turn = job.turn or Turn(self._had)
            self._under_way[job] = None
            tenant.running.add(job)
            # Last: whoever finds this half done does it again.
            tenant.waiting[not job.small].popleft()
            admitted.append(job)
        return admitted

    def _next(self) -> CompileJob[Any] | None:
        running, taken_bytes = len(self._under_way), sum(job.memory_bytes for job in self._under_way)
        for large in (False, True):
            most = self._processors + (2 if large else 2 + _SMALL_BESIDE)
            if running >= most:
                continue
            # So that no tenant's jobs ever stand in all places.
            most_of_one = self._processors + (0 if large else 1)
            for tenant in self._in_turn(large):
                if len(tenant.running) >= most_of_one:
                    continue
                job = tenant.waiting[large][0]
                if not running or taken_bytes + job.memory_bytes <= self._memory():
                    return job
                # Whoever needs much memory is not passed by until there never is as much.
                break
        return None

    def _in_turn(self, large: bool) -> Iterator[_Tenant]:
        """Yields the tenants that wait, the one that has used least first."""
        return iter(
            sorted(
                (tenant for tenant in self._tenants.values() if tenant.waiting[large]),
                key=lambda tenant: (tenant.used, len(tenant.running)),
            )
        )

    def _memory(self) -> float:
        if self._memory_bytes is None:
            self._memory_bytes = _machine_memory()
        return self._memory_bytes

    def _advance(self) -> None:
        """Counts the time since somebody looked, as each job's share of it."""
        now = self._clock()
        self._shared += (now - self._looked) / max(1, len(self._under_way))
        self._looked = now

    def _had(self) -> float:
        with self._lock:
            self._advance()
            return self._shared

    def _forget(self, name: str, tenant: _Tenant) -> None:
        if tenant.gone:
            self._tenants.pop(name, None)

    # -- the threads --------------------------------------------------------------------------------------------------

    def _start(self, jobs: list[CompileJob[Any]]) -> None:
        todo = deque(jobs)
        while todo:
            job = todo.popleft()
            try:
                start_thread(threading.Thread(target=self._work, args=(job,), name="stockade-compile", daemon=True))
            except RuntimeError as problem:
                if not self._takes(job):
                    continue
                job.settle(None, EngineError(f"no thread can be started to compile on: {problem}"))
                todo.extend(self._finish(job, 0.0))

    def _takes(self, job: CompileJob[Any]) -> bool:
        """Whether a job is the caller's to do. Where starting its thread was interrupted, there may be another one."""
        with self._lock:
            begun, job.begun = job.begun, True
            return not begun

    def _work(self, job: CompileJob[Any]) -> None:
        while self._takes(job):
            turn = job.turn
            assert turn is not None
            problem: BaseException | None = None
            result = None
            try:
                result = job.work(turn)
            except BaseException as raised:
                problem = raised
            admitted = self._finish(job, turn.had())
            job.settle(result, problem)
            # Nothing of it is kept while others are done.
            del job, turn, result, problem
            if not admitted:
                return
            job = admitted.pop()
            self._start(admitted)

    def _finish(self, job: CompileJob[Any], seconds: float) -> list[CompileJob[Any]]:
        with self._lock:
            self._advance()
            tenant = self._tenants[job.tenant]
            tenant.running.discard(job)
            tenant.used += seconds
            self._under_way.pop(job, None)
            self._forget(job.tenant, tenant)
            return self._admit()


def _machine_memory() -> float:
    """How much memory this process and its children may have together, as far as the system tells."""
    found = [float("inf")]
    with suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        # "max" is no number.
        with suppress(OSError, ValueError):
            found.append(int(Path(place).read_text(encoding="ascii")))
    return min(found)


_compile_queue = CompileQueue()


def compile_queue() -> CompileQueue:
    """Returns the queue of this process."""
    return _compile_queue


def _after_fork() -> None:
    """Begins anew in a forked child, which has none of the parent's threads."""
    global _compile_queue
    _compile_queue = CompileQueue()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
