"""Where events wait for a sink, and the thread that brings them there.

Whoever tells of an event puts it into a queue, and goes on: a thread takes what has gathered, and gives it to the sink.
There is a queue for each severity, none of which grows beyond its bound. What finds no room is counted, and that is
told in its turn; or it waits, where nothing may be lost. The thread comes when there is something to do.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from itertools import repeat, starmap
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from stockade._bell import MOST_RAISED, Bell, Once, start_thread
from stockade._locks import new_lock
from stockade._rendezvous import Rendezvous
from stockade._text import printable
from stockade.audit._events import EventName, Severity
from stockade.audit._records import number

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.audit._events import AuditEvent
    from stockade.audit._records import Noted

__all__ = ["Outlet", "outlets"]

_ROOM: Final = {Severity.DETAIL: 16_384, Severity.NOTICE: 65_536, Severity.CRITICAL: 65_536}
"""How many events of each severity wait for a sink."""

_NOTICES: Final = _ROOM[Severity.NOTICE]

_MOST_IN_BATCH: Final = 16_384
"""So many are brought together. The more, the less often the thread and those that run guests take the interpreter lock
from each other, which costs both what they have in the caches of their processors."""

_GATHER_SECONDS: Final = 0.02
"""How long events gather before they are brought to the sink together. The shorter, the less is left to be brought when
somebody waits for that."""

_MEET_EVENTS: Final = 1024
"""Who adds so many lets the thread come by."""

_MEET_SECONDS: Final = 0.002
"""How long it waits for the thread at most, which hands over in a tenth of that."""

_MET_SECONDS: Final = 0.1
"""How long events gather where others let the thread come by: else it would come in their way."""

_EARLY_SECONDS: Final = 0.02
"""How long before it would come on its own it is let by."""

_TURN_SECONDS: Final = 0.1
"""How long it waits for whoever hands over what has gathered, which takes a thousandth of that."""

_LINGER_SECONDS: Final = 1.0
"""How long the thread stays that has nothing to do."""

_RETRY_SECONDS: Final = 0.25
"""How long after a failure it is tried again."""

_STEP_SECONDS: Final = 0.001

_END_STEP_SECONDS: Final = 0.01
"""How often it is looked, at the end of the process, whether there is still a thread."""

_MOST_WARNINGS_SECONDS: Final = 60.0
"""A sink that fails is told of at most so often."""

_logger = logging.getLogger("stockade.audit")


outlets: Final[weakref.WeakSet[Outlet]] = weakref.WeakSet()
"""All that there are: those of logs that were dropped have events, too, until they have brought them."""


class Feeder(Protocol):
    """Brings events to a sink, and is not waited for. For one thread at a time."""

    @property
    def is_ready(self) -> bool:
        """Whether it takes some."""

    @property
    def is_starting(self) -> bool:
        """Whether it takes some soon."""

    @property
    def awaits(self) -> bool:
        """Whether it has taken some that are not known to be with the sink."""

    @property
    def waiting(self) -> int:
        """How many these are."""

    def hand_over(self, queue: deque[Noted], most: int) -> bool:
        """Takes some out of a queue, unless it is not done with those before; whether no other thread has to come."""

    def feed(self, noted: list[Noted]) -> bool:
        """Takes events off a list, where it is done with those before; whether it does."""

    def collect(self, noted: list[Noted], *, wait: bool) -> bool:
        """Looks what has become of what it has taken; whether that is known. What has failed is put on the list.

        Raises:
            OSError: It cannot be brought there.
            AuditError: What is in the place of the sink cannot be used.
        """

    def break_off(self) -> None:
        """Comes in the place of whoever is in the middle of something, and may never go on."""


class Outlet:
    """Events on their way to one sink. Safe to share between threads, and to be used by handlers of signals.

    Args:
        name: What the sink is called in messages.
        consume: Brings events to the sink, and takes those off the list that are there. Where it raises, the others are
            given to it again; what it returns is a failure after which they are not.
        make: Makes an event of its name, its reason and a count.
        waits: Whether an event waits for room, where there is none.
        settle: Is called when all that waited is there, and somebody wants it to be.
        feeder: Takes batches without being waited for, while it is ready; None where nobody does.

    Attributes:
        failures: How often the sink has failed.
        last_error: How it failed last.
        failing: Whether its last try failed.
        dropped: How many events found no room.
        add: Puts the record of a run behind the others; whoever does looks at `alert` then.
        alert: Whether `look` is to be called by who has added a record: else somebody comes by soon, and takes it.
        process_ends: Whether this process ends: there are no new threads then, and whoever waits brings events itself.
    """

    process_ends: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        consume: Callable[[list[Noted]], Exception | None],
        make: Callable[[EventName, str, int], AuditEvent],
        *,
        waits: bool,
        settle: Callable[[], object] | None = None,
        feeder: Feeder | None = None,
    ) -> None:
        self.name = name
        self._consume = consume
        self._make = make
        self._waits = waits
        self._settle = settle
        self._feeder = feeder
        self.failures = 0
        self.last_error = ""
        self._warned = 0.0
        self._lock = new_lock()
        self.begin_anew()
        outlets.add(self)

    def begin_anew(self) -> None:
        """Forgets what waits and who works: in a forked process these are the parent's."""
        self.failing = False
        self.dropped = 0
        self._told_dropped = 0
        self._queues: tuple[deque[Noted], ...] = tuple(deque() for _ in Severity)
        self._notices = self._queues[Severity.NOTICE]
        self._rooms = tuple(_ROOM[severity] for severity in Severity)
        # Taken from the queues, and not with the sink yet.
        self._held: list[Noted] = []
        self._waiters: deque[Once[None]] = deque()
        self._bell = Bell()
        self._thread: threading.Thread | None = None
        self.add = self._notices.append
        # Whether nobody comes by on its own: then whoever has something has to ring.
        self._asleep = self.alert = True
        self._hurried = False
        # Whether the thread waits to be let by, from when on it should be, and where those are that do so.
        self._meets = False
        self._due = 0.0
        self._rendezvous = Rendezvous()
        # Of whoever takes events: of the thread, but while it waits to be let by.
        self._turn = threading.Lock()
        self._turn.acquire()

    def put(self, event: AuditEvent, severity: Severity) -> None:
        """Has an event brought to the sink.

        Args:
            event: The event.
            severity: Its severity.
        """
        queue = self._queues[severity]
        if len(queue) >= self._rooms[severity] and not self._has_room(queue, self._rooms[severity]):
            with self._lock:
                self.dropped += 1
            return
        queue.append(event)
        if self._asleep or severity is Severity.CRITICAL:
            self._wake()
        elif self._meets and not len(queue) % _MEET_EVENTS:
            self._meet()

    def note_run(self, record: bytes) -> None:
        """Has the begin or the end of a run brought to the sink; waits for room, where it is to wait.

        Args:
            record: What is noted of it.
        """
        if len(self._notices) >= _NOTICES:
            self._has_room(self._notices, _NOTICES)
        self.add(record)
        if self.alert or not len(self._notices) % _MEET_EVENTS:
            self.look()

    def look(self) -> None:
        """Looks after records that were added: that somebody takes them, and that there is room for all."""
        if self._asleep:
            self._wake()
        elif self._meets:
            self._meet()
        queue = self._notices
        while len(queue) > _NOTICES:
            with suppress(IndexError), self._lock:
                queue.pop()
                self.dropped += 1

    def _meet(self) -> None:
        """Hands over what has gathered; or lets the thread do so, for less than it costs to wake it in vain."""
        if time.monotonic() < self._due and self._hands_over():
            return
        self._meets = False
        self._rendezvous.let_by(_MEET_SECONDS, self._bell.ring)

    def _hands_over(self) -> bool:
        """Hands over what has gathered, in the place of the thread; whether that has nothing to do.

        The handler of a signal may interrupt this anywhere, for ever: then the thread takes its turn back.
        """
        feeder, turn = self._feeder, self._turn
        assert feeder is not None
        if any(queue for queue in self._queues if queue is not self._notices) or self.dropped > self._told_dropped:
            return False
        if not turn.acquire(blocking=False):
            return True
        is_done = False
        # In a forked child, the handler of which has made it here, the line is closed.
        with suppress(OSError, ValueError):
            is_done = not self._held and feeder.hand_over(self._notices, _MOST_IN_BATCH)
        turn.release()
        return is_done

    def _has_room(self, queue: deque[Noted], room: int) -> bool:
        """Waits until there is room, where it is to wait; whether there is."""
        while self._waits and not self.failing and threading.current_thread() is not self._thread:
            self._wake()
            if len(queue) < room:
                return True
            time.sleep(_STEP_SECONDS)
        return False

    def flush(self, seconds: float) -> bool:
        """Waits until all that waited is with the sink.

        Args:
            seconds: The longest to wait.

        Returns:
            Whether it is. On the thread of the sink itself it cannot be waited for.
        """
        if threading.current_thread() is self._thread:
            return False
        done: Once[None] = Once()
        self._waiters.append(done)
        self._hurried = True
        self._wake()
        self._bell.ring()
        end = time.monotonic() + seconds
        while self._thread is not None:
            left = end - time.monotonic()
            if done.wait(min(left, _END_STEP_SECONDS) if Outlet.process_ends else left):
                return not self._held
            if left <= 0 or not Outlet.process_ends:
                return False
        # There can be none any more, as at the end of the process.
        return self._bring_all() and (self._settle is None or self._try(self._settle))

    @property
    def waiting(self) -> int:
        """How many events are not with the sink yet."""
        under_way = 0 if self._feeder is None else self._feeder.waiting
        return len(self._held) + under_way + sum(map(len, self._queues))

    def tell_lost(self) -> None:
        """Tells of events that the sink has not taken in its time."""
        if self.waiting:
            _logger.warning("the audit sink %s has not taken %d events", self.name, self.waiting)

    def _wake(self) -> None:
        """Sees to it that there is a thread, and that it looks."""
        if self._thread is not None:
            self._bell.ring()
            return
        if Outlet.process_ends:
            return
        thread = threading.Thread(target=self._work, name="stockade-audit", daemon=True)
        try:
            with self._lock:
                if self._thread is not None:
                    self._bell.ring()
                    return
                self._thread = thread
                start_thread(thread)
        except BaseException as problem:
            # Of a handler of a signal, or for want of threads: the next event tries again.
            for _ in range(MOST_RAISED):
                try:
                    if self._thread is thread:
                        self._thread = None
                    break
                except BaseException:  # noqa: S112 - a second signal; the first is raised
                    continue
            if not isinstance(problem, RuntimeError):
                raise
            self._fail(problem)

    def _work(self) -> None:
        try:
            self._work_until_idle(threading.current_thread())
        finally:
            self._asleep = self.alert = True
            if any(self._queues) or self._waiters:
                # It came after the last look, and took this thread for one that goes on.
                self._thread = None
                self._wake()

    def _work_until_idle(self, me: threading.Thread) -> None:
        self._gather()
        while self._thread is me:
            self._asleep, self.alert = False, True
            waiters = [self._waiters.popleft() for _ in range(len(self._waiters))]
            if waiters:
                self._hurried = False
            done = self._bring_all() if waiters else self._bring()
            for waiter in waiters:
                if done and self._settle is not None:
                    self._try(self._settle)
                waiter.settle(None)
            if not done:
                self._bell.wait(_RETRY_SECONDS)
                continue
            self._asleep = True
            if any(self._queues) or self._waiters:
                # Put there since, or before it was known that nobody comes by.
                self._gather()
                continue
            self._bell.wait(_LINGER_SECONDS)
            if any(self._queues):
                self._gather()
            elif not self._waiters:
                if self._settle is not None:
                    self._try(self._settle)
                self._thread = None
                return

    def _gather(self) -> None:
        """Lets more events come, unless somebody waits."""
        self._asleep = self.alert = False
        seconds = _GATHER_SECONDS
        while not self._hurried:
            is_met = self._is_met(seconds)
            if not is_met:
                if self._has_time():
                    continue
                return
            seconds = _MET_SECONDS
            done = self._try(self._feed)
            self._rendezvous.is_done()
            if not done:
                return

    def _is_met(self, seconds: float) -> bool:
        """Waits for events to gather; whether somebody waits for them to be handed over.

        Args:
            seconds: How long to wait.
        """
        if self._feeder is None or not self._feeder.is_ready:
            self._bell.wait(seconds)
            return False
        self._due = time.monotonic() + seconds - _EARLY_SECONDS
        self._turn.release()
        self._meets = True
        self._bell.wait(seconds)
        is_met = not self._meets
        self._meets = False
        if not self._turn.acquire(timeout=_TURN_SECONDS):
            self._turn = threading.Lock()
            self._turn.acquire()
            self._feeder.break_off()
        return is_met

    def _has_time(self) -> bool:
        """Whether what has gathered can wait for the feeder, which takes it with less harm to the runs."""
        if self._feeder is None or not self._feeder.is_starting or self._queues[Severity.CRITICAL]:
            return False
        return all(len(queue) < room // 2 for queue, room in zip(self._queues, self._rooms, strict=True))

    def _feed(self) -> None:
        """Hands over what has gathered, where what was handed over before is with the sink."""
        feeder = self._feeder
        assert feeder is not None
        if not self._held and feeder.collect(self._held, wait=False) and not self._held:
            self._take()
        if self._held and not feeder.feed(self._held):
            self._bring_held()

    def _bring_all(self) -> bool:
        """Brings to the sink what waits; whether it took all."""
        while self._bring():
            if not self._held and not any(self._queues):
                return True
        return False

    def _bring(self) -> bool:
        """Brings a batch to the sink; whether it took that."""
        if not self._held and self._feeder is not None and self._feeder.awaits and not self._try(self._collect):
            return False
        if not self._held:
            self._take()
        return not self._held or self._try(self._bring_held) or not self._held

    def _collect(self) -> None:
        assert self._feeder is not None
        self._feeder.collect(self._held, wait=True)

    def _bring_held(self) -> None:
        problem = self._consume(self._held)
        self._held = []
        if problem is not None:
            raise problem

    def _take(self) -> None:
        """Takes a batch out of the queues, what matters most first; and tells of what found no room."""
        taken: list[Noted] = []
        kinds = 0
        for queue in reversed(self._queues):
            few = min(len(queue), _MOST_IN_BATCH - len(taken))
            if few:
                kinds += 1
                taken += starmap(queue.popleft, repeat((), few))
        if kinds > 1:
            taken.sort(key=number)
        dropped = self.dropped
        if dropped > self._told_dropped:
            taken.append(self._make(EventName.EVENTS_DROPPED, f"{self.name} had no room", dropped - self._told_dropped))
            self._told_dropped = dropped
        self._held = taken

    def _try(self, do: Callable[[], object]) -> bool:
        try:
            do()
        except Exception as problem:
            self._fail(problem)
            return False
        self.failing = False
        return True

    def _fail(self, problem: Exception) -> None:
        self.failing = True
        self.note_failure(problem)

    def note_failure(self, problem: Exception) -> None:
        """Counts a failure of the sink, and tells of it.

        Args:
            problem: What it raised.
        """
        self.failures += 1
        told = problem.strerror if isinstance(problem, OSError) else ""
        self.last_error = printable(told or f"{type(problem).__name__}: {problem}", 400)
        now = time.monotonic()
        if not self._warned or now - self._warned >= _MOST_WARNINGS_SECONDS:
            self._warned = now
            _logger.warning("the audit sink %s fails: %s", self.name, self.last_error)
