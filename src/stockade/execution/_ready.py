"""What is made ahead of need: so many wait, each is used once, and the executor makes others in the background."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from stockade.errors import StockadeError
from stockade.runner import GO_ON, RunControl, WorkItem, executor, run_blocking

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.engine import Instance
    from stockade.runner import RunCoroutine

__all__ = ["ReadyPool"]

_Item = TypeVar("_Item")

_TENANT: Final = "\0made ahead"
"""No other tenant is called so."""

_LEAST_PRIORITY: Final = 1

_QUIET_SECONDS: Final = 0.01
"""Where others are made in pauses: how long none was asked for by then. Runs that follow each other closely would share
the processors and the interpreter lock with what is made for later ones."""

_WATCH_SECONDS: Final = 0.2
"""How long it is watched for the next pause after the last run: to wake a thread takes longer than to say to one that
is awake what there is to do."""


class _Pauses:
    """Sees to what is to be done in pauses: of all pools, so that a run has only to say that there is something."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self.last_asked = 0.0
        self._due: dict[ReadyPool[Any], None] = {}
        # Of the one that watches.
        self._control: RunControl | None = None

    def tell(self, pool: ReadyPool[Any]) -> None:
        """Has a pool put in order in the next pause."""
        if self._process != os.getpid():
            # A forked child has none of its parent's threads.
            self._process, self._due, self._control = os.getpid(), {}, None
        self._due[pool] = None
        if self._control is None:
            control = self._control = RunControl()
            try:
                # It is for nobody's run in particular.
                Context().run(self._begin, control)
            except BaseException as problem:
                self._control = None
                if not isinstance(problem, StockadeError):
                    raise

    def _begin(self, control: RunControl) -> None:
        executor().begin(WorkItem(self._watch(control), control, self._over, _LEAST_PRIORITY, _TENANT))

    def _watch(self, control: RunControl) -> RunCoroutine[None]:
        while self._control is control:
            now = time.monotonic()
            if (until := self.last_asked + _QUIET_SECONDS) > now:
                yield until
            elif self._due:
                self._due.popitem()[0].refill()
                yield GO_ON
            elif now < self.last_asked + _WATCH_SECONDS:
                yield now + _QUIET_SECONDS
            else:
                self._control = None
                if self._due:
                    # Somebody has said so before that was to be seen.
                    self._control = control

    def _over(self, _: None, problem: BaseException | None) -> None:
        if problem is not None:
            self._control = None
            raise problem


_pauses: Final = _Pauses()


class ReadyPool(ABC, Generic[_Item]):
    """Things that wait to be used. Safe to share between threads.

    Args:
        size: How many wait.
        tidy: What is done in pauses, before others are made. Where it is given, that is when `tend` says so, and not
            when one is taken.
    """

    def __init__(self, size: int, tidy: Callable[[], object] | None = None) -> None:
        self._size = size
        self._tidy = tidy
        self._untidy = False
        self._over: deque[Instance] = deque()
        self._ready: deque[_Item] = deque()
        self._closed = False
        self._process = os.getpid()
        self._control: RunControl | None = None

    @property
    def ready(self) -> int:
        """How many wait."""
        return len(self._ready)

    @property
    def steps_taken(self) -> int:
        """How far the one is that is being made, where a run that finds none can take that; 0 where there is none."""
        return 0

    @property
    def filling(self) -> bool:
        """Whether others are being made, or will be in the next pause."""
        return self._untidy or self._control is not None

    def take(self) -> _Item | None:
        """Returns one that nobody has used, or None where none waits; has others made, where nobody tends to that."""
        found = None
        if self._tidy is not None:
            _pauses.last_asked = time.monotonic()
        with suppress(IndexError):
            found = self._ready.popleft()
        # Not after each: to wake a thread takes about as long as what is saved.
        if self._tidy is None and len(self._ready) <= self._size // 2:
            self.refill()
        return found

    def tend(self) -> None:
        """Has all put in order in the next pause: those freed that were used, and those made that are missing."""
        if self._tidy is None:
            self.refill()
        elif not self._closed and self._process == os.getpid():
            self._untidy = True
            _pauses.tell(self)

    def leave(self, instance: Instance, *, is_whole: bool) -> bool:  # noqa: ARG002 - for those that learn of it
        """Takes an instance whose guest is over, to free it in the next pause; returns whether it does.

        To give back what a guest has written to takes a good part of the time of a short run.

        Args:
            instance: The instance, which waited here.
            is_whole: Whether its guest has returned, and nothing has stopped it.
        """
        if self._tidy is None or self._closed or self._over or self._process != os.getpid() or instance.is_called:
            return False
        self._over.append(instance)
        return True

    def fill(self) -> None:
        """Makes as many as are missing, on this thread; where that fails, it is closed.

        Raises:
            StockadeError: One cannot be made.
        """
        try:
            while not self._closed and len(self._ready) < self._size:
                made = run_blocking(self._make(None), RunControl())
                assert made is not None
                self._ready.append(made)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Frees those that wait, and those that were left. Closing twice is harmless."""
        self._closed = True
        self._free_used()
        control = self._control
        if control is not None:
            control.cancel()
        while True:
            try:
                item = self._ready.popleft()
            except IndexError:
                return
            self._free(item)

    @abstractmethod
    def _make(self, control: RunControl | None) -> RunCoroutine[_Item | None]:
        """Makes one, in steps.

        Args:
            control: The control of whoever makes it in the background, for later runs; None where somebody waits.

        Returns:
            It; None where a run has taken it already, or it is not wanted any more.

        Raises:
            StockadeError: It cannot be made.
        """

    @abstractmethod
    def _free(self, item: _Item) -> None:
        """Frees one that nobody has used."""

    def _free_used(self) -> None:
        """Frees those that were used, and left here."""
        while self._over:
            with suppress(IndexError):
                self._over.popleft().close()

    def _improve(self) -> bool:
        """Does something more for one of those that wait; says whether there was something to do."""
        return False

    def refill(self) -> None:
        """Has those that are missing made, and all else put in order, unless that is being done."""
        # A forked child has none of its parent's threads: it uses what there is.
        if self._closed or self._control is not None or self._process != os.getpid():
            return
        control = self._control = RunControl()
        try:
            executor().begin(WorkItem(self._filling(control), control, self._filled, _LEAST_PRIORITY, _TENANT))
        except StockadeError:
            self._control = None

    def _filling(self, control: RunControl) -> RunCoroutine[None]:
        while not (self._closed or control.cancelled):
            if self._tidy is not None and self._untidy:
                if (until := _pauses.last_asked + _QUIET_SECONDS) > time.monotonic():
                    yield until
                    continue
                self._untidy = False
                self._free_used()
                self._tidy()
            elif len(self._ready) < self._size:
                made = yield from self._make(control)
                if made is not None:
                    self._ready.append(made)
                elif self._tidy is not None:
                    # A run has it. When that is over, it is for somebody to say so.
                    return
            elif not self._improve():
                return
            yield GO_ON
        self.close()

    def _filled(self, _: None, problem: BaseException | None) -> None:
        # Where there is no room now, whoever takes the next one asks again.
        self._control = None
        if self._untidy and problem is None:
            # Somebody said so when this was over.
            self.refill()
        if problem is not None and not isinstance(problem, StockadeError):
            raise problem
