"""A guest in a worker that is listened to: what it says is taken, and a worker that is late is ended.

Whatever the worker says is hostile. While the guest runs, what it says is taken in the steps of its call; while it is
halted in a function of the embedder's, or between two calls, it is asked, and answers within a moment or is ended.
"""

from __future__ import annotations

import os
import signal
import time
from abc import abstractmethod
from threading import get_ident
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from stockade.errors import IsolationError, UsageError
from stockade.isolation._frames import Garbled, Gone
from stockade.isolation._handle import BRIEF_SECONDS
from stockade.isolation._messages import (
    FAILURES,
    Called,
    Cancel,
    Entered,
    Failed,
    Finished,
    FromWorker,
    Looked,
    Output,
    Ready,
    Returned,
    Started,
    Taken,
    Told,
    ToWorker,
    Traced,
    Wants,
)
from stockade.isolation._remote_memory import ENDED
from stockade.isolation._remote_told import Ending, ToldGuest
from stockade.isolation._sound import check_numbers, sound_entries
from stockade.report import Outcome, Progress
from stockade.runner import FOREVER, GO_ON
from stockade.worker import signal_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.engine import GuestBytes
    from stockade.runner import RunCoroutine

__all__ = ["GRACE_SECONDS", "HeardGuest", "Over"]

GRACE_SECONDS: Final = 0.5
"""How long after its deadline, or after it was cancelled, a worker may take to come to its end by itself."""

START_SECONDS: Final = 60.0
"""How long it may take until a worker is ready, on a machine that is very busy."""

REPLY_SECONDS: Final = 30.0
"""How long a worker may take to answer, whose guest is halted: on a machine that is very busy, or for a snapshot."""

_STATUS_SECONDS: Final = 2.0
"""How long to wait to be told how a worker has ended that says nothing any more."""

_ABANDONED_SECONDS: Final = 0.2
"""How often it is looked whether anybody still awaits a run."""

_MOST_MESSAGES: Final = 64
"""Messages that are heard before anything else is looked at."""

_MOST_PIECES: Final = 16
"""Pieces of output that are taken before they are passed on."""

_MOST_TRACED: Final = 128
"""Messages of the trace that are kept until they are told of: the guard's ring is handed over in fewer."""

_MOST_OPEN: Final = 4_096
"""Calls under way, one within the other, that are kept of a trace."""

_STOPS: Final = frozenset((signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU))
"""Signals by which a process does nothing until another one has it go on."""

_Found = TypeVar("_Found")


class Over(Exception):  # noqa: N818 - it says what happened; never leaves the steps of a guest
    """The call around is over, and with it what was under way in it."""


class HeardGuest(ToldGuest):
    """A guest that is listened to."""

    # -- what functions of the embedder may do, which it calls ---------------------------------------------------------

    @property
    @abstractmethod
    def halted_memory(self) -> GuestBytes | None:
        """The memory that it exports as `memory`; None where it exports none."""

    def check_whole(self) -> None:
        """Checks that it can go on, after a function of the embedder's is done.

        Raises:
            BaseException: What has stopped a call within one.
        """
        broken, self._broken = self._broken, None
        if broken is not None:
            try:
                raise broken
            finally:
                # This frame is in its traceback: the two would keep each other.
                del broken

    # -- what the worker is asked --------------------------------------------------------------------------------------

    def send(self, message: ToWorker, blob: bytes = b"") -> None:
        """Tells the worker something. What it does not take is lost: that is seen by what it does next."""
        self._worker.send(message, blob)

    def _ask(
        self,
        message: ToWorker,
        answer: Callable[[], _Found | None],
        blob: bytes = b"",
        kind: type[Looked | Taken] | None = None,
        *,
        most_blob: int | None = None,
    ) -> _Found:
        """Asks a worker whose guest is halted, and waits for the answer on this thread.

        Args:
            message: What it is asked.
            answer: Returns the answer, once it is there.
            blob: What goes with the question.
            kind: What kind of answer is expected; None for a report.
            most_blob: How many bytes may come with it; by default, as with any message.

        Raises:
            UsageError: It has ended, or does so now.
        """
        with self._lock:
            if self._ending is not None:
                raise UsageError(ENDED)
            self._expects = kind
            before, self._most_blob = self._most_blob, max(self._most_blob, most_blob or 0)
            self.send(message, blob)
            try:
                return self._answered(answer)
            except Garbled as problem:
                self._crash(f"the worker says what makes no sense: {problem}")
            except Gone:
                self._crash(_why_gone(self._status()))
            finally:
                self._expects = None
                self._most_blob = before
        raise UsageError(ENDED)

    def _answered(self, answer: Callable[[], _Found | None]) -> _Found:
        # A function of its own: what the handler of a signal raises as the loop begins anew is seen around it.
        until = time.monotonic() + REPLY_SECONDS
        late: float | None = None
        while (found := answer()) is None:
            if self._finished is not None:
                # Its time was up before.
                self._control.wake()
                raise UsageError(ENDED)
            heard = self._worker.receive(self._most_blob)
            if heard is not None:
                self._take(*heard)
            elif not self._worker.wait(min(until - time.monotonic(), _ABANDONED_SECONDS)):
                now = time.monotonic()
                if now >= until:
                    self._crash(f"the worker has not answered for {REPLY_SECONDS:g} s")
                    raise UsageError(ENDED)
                # Between two calls there is no deadline, but that of the last one.
                if self._called is not None and not self._control():
                    late = now if late is None else late
                    if now >= late + GRACE_SECONDS:
                        self._end(Ending(Outcome.CANCELLED if self._control.cancelled else Outcome.TIMEOUT))
                        self._worker.kill()
                        raise UsageError(ENDED)
        return found

    def _status(self) -> int | None:
        """Returns how the worker has ended, which says nothing any more."""
        until = time.monotonic() + _STATUS_SECONDS
        while self._worker.status is None and time.monotonic() < until:
            time.sleep(0.001)
        return self._worker.status

    # -- what the worker says ------------------------------------------------------------------------------------------

    def _until(self, find: Callable[[], _Found | None]) -> RunCoroutine[_Found]:
        """Does what is to be done until something is there.

        Args:
            find: Returns it.

        Raises:
            Over: The call around has come to its end before.
        """
        streams = self._streams
        while True:
            ending = self._hear()
            self._tell_trace()
            if self._has_news and self._monitor is not None:
                self._has_news = False
                self._monitor.look(self.progress, self._control.name)
            found = find()
            if found is not None:
                return found
            if (yield from self._calls.look(self, self._depth)):
                continue
            if streams is not None:
                streams.serve(self._state, self.progress)
                is_asked = self._state.wanted and self._finished is None and not self._control.cancelled
                if is_asked and streams.answer(self._state):
                    continue
            if self._finished is not None:
                raise Over
            ending = self._ending or ending or self._late()
            if ending is not None:
                self._end(ending)
                self._worker.kill()
                raise Over
            if not self._has_more and self._waits_here():
                continue
            if self._wants_more and time.monotonic() >= self._asked_at + BRIEF_SECONDS:
                # Not before: whoever makes another worker for the next run takes the time of this one.
                self._wants_more = False
                self._worker.hub.refill(self._worker)
            yield GO_ON if self._has_more else self._next_look()

    def _waits_here(self) -> bool:
        """Waits on this thread, while the call has only just begun: most are over within a moment.

        Whether it has said something. To be woken by the thread that listens to all workers takes longer. Whoever
        cancels the run is heard a moment later.
        """
        control, brief = self._control, self._asked_at + BRIEF_SECONDS - time.monotonic()
        if brief <= 0 or control.thread != get_ident() or control.awaited or control.cancelled or self._calls.count:
            return False
        if self._gone is not None or (self._streams is not None and self._streams.clogged) or self._state.wanted:
            return False
        return self._worker.wait(brief)

    def _hear(self) -> Ending | None:
        """Takes what the worker says; how the run has ended, if it has ended without a report."""
        with self._lock:
            self._has_more = False
            try:
                return self._take_all()
            except Garbled as problem:
                return self._killed() or Ending(Outcome.CRASHED, f"the worker says what makes no sense: {problem}")
            except Gone:
                return self._over()

    def _take_all(self) -> Ending | None:
        streams, count = self._streams, 0
        while self._finished is None and not (streams is not None and streams.clogged):
            count += 1
            if count > _MOST_MESSAGES or max(len(self._state.pieces), len(self._traced)) >= _MOST_PIECES:
                # A worker may say more than anybody can hear: what has come is passed on, and the clock looked at.
                self._has_more = True
                return None
            # Asked first: what it has said before it ended is there by then.
            has_ended = self._worker.status is not None
            found = self._worker.receive(self._most_blob)
            if found is None:
                return self._over() if has_ended else None
            self._take(*found)
            if self._has_more:
                # Such calls may follow one another for ever.
                return None
        return None

    def _take(self, message: FromWorker, blob: bytes, descriptors: tuple[int, ...]) -> None:
        if descriptors and not isinstance(message, Taken):
            for descriptor in descriptors:
                os.close(descriptor)
            raise Garbled("descriptors came with it")
        if blob and isinstance(message, Taken):
            for descriptor in descriptors:
                os.close(descriptor)
            raise Garbled("something stands behind it")
        if isinstance(message, Finished | Returned):
            if self._started is None:
                raise Garbled("it has ended before it began")
            if not message.depth:
                self._finished = message, blob
            elif self._returned is None and message.depth == self._depth:
                self._returned = message, blob
            else:
                raise Garbled("it reports on a call that was not made")
            return
        if isinstance(message, Output):
            if self._streams is None or not self._streams.listening or not 0 < len(blob) <= self._most_blob:
                raise Garbled("there is output that nobody asked for")
            self._state.pieces.append((message.stream, blob))
            return
        if isinstance(message, Looked):
            self._check_asked(Looked)
            check_numbers(message)
            self._looked = msgspec.structs.replace(message, problem=self._passed(message.problem)), blob
            return
        if isinstance(message, Traced):
            self._take_trace(message, blob)
            return
        if blob:
            raise Garbled("something stands behind it")
        if isinstance(message, Taken):
            self._check_asked(Taken, descriptors)
            self._taken = message, descriptors
        elif isinstance(message, Entered):
            self._check_asked(Entered)
            self._entered = message
        elif isinstance(message, Started):
            self._start(message)
        elif isinstance(message, Ready):
            self._be_ready(message)
        elif isinstance(message, Wants):
            if self._streams is None or self._streams.stdin is None:
                raise Garbled("it wants input that there is not")
            self._state.wanted = True
        elif isinstance(message, Called):
            if self._called is None or self._started is None:
                raise Garbled("it calls a function before it has begun")
            self._calls.take(message, self, self._depth)
            self._has_more = True
        elif isinstance(message, Told):
            check_numbers(message.progress)
            self._hear_of(message.progress)
        elif isinstance(message, Failed):
            check_numbers(message.message)
            if self._started is not None and not self._may_fail_by(message.kind):
                # The guest has begun: what the embedder has done wrong was told before, and the guest may say this.
                raise Garbled("it says that somebody else has failed")
            self._failed = FAILURES[message.kind](self._passed(message.message))
            raise self._failed

    def _passed(self, text: str) -> str:
        """Returns words of the worker's as they may be told: it knows what its guest was given."""
        gate = self._control.gate
        return text if gate is None or not text else gate.told(text)

    def _take_trace(self, message: Traced, blob: bytes) -> None:
        """Takes calls that were traced: they are told of later, where nothing else is under way."""
        if self._tracer is None or self._started is None:
            raise Garbled("it tells of calls that nobody asked for")
        if len(self._traced) >= _MOST_TRACED:
            raise Garbled("it tells of more calls than there is room for")
        if message.ended:
            if blob:
                raise Garbled("something stands behind it")
            self._calls_open = 0
            self._traced.append(None)
            return
        entries = sound_entries(blob, self._plan, time.perf_counter() - self._opened)
        for entry in entries:
            if not entry.has_returned:
                self._calls_open += 1
            elif entry.is_rest:
                self._calls_open = max(0, self._calls_open - 1)
        if self._calls_open > _MOST_OPEN:
            raise Garbled("it tells of more calls under way than a guest can make")
        self._traced.append(entries)

    def _may_fail_by(self, kind: str) -> bool:
        """Whether a worker whose guest has begun may truthfully say that it fails by an error of a kind."""
        # Only there it is known whether a snapshot can be taken; and whether one more call within another can be made.
        return kind == "EngineError" or self._expects is Taken or (kind == "UsageError" and self._depth > 0)

    def _start(self, message: Started) -> None:
        if self._started is not None:
            raise Garbled("it has begun twice")
        self._over_at_once = message.over
        if not self._is_ready:
            self._control.walls = message.walls
        self._begin_time()

    def _be_ready(self, message: Ready) -> None:
        if self._is_ready or self._started is not None:
            raise Garbled("it is ready twice")
        self._is_ready = True
        self._control.walls = message.walls
        if self._begins_at_once:
            self._begin_time()

    def _begin_time(self) -> None:
        now = time.monotonic()
        self._started = now if self._ready_at is None else self._ready_at
        if self._called is not None:
            self._called = self._started
            self._control.start(self._plan.limits.wall_time, now - self._started)
            self._timed = True

    def _hear_of(self, told: Progress) -> None:
        """Takes what the worker says of how far it is. What is known here is not believed; time goes on only."""
        now = time.monotonic()
        least = 0.0 if self._progress is None else self._progress.seconds
        passed = now - (self._called if self._called is not None else now)
        self._progress = msgspec.structs.replace(
            told,
            seconds=max(least, min(told.seconds, passed)),
            module=self._plan.info.name,
            policy=self._policy.name,
            limits=self._plan.run_limits,
        )
        self._has_news = True

    def _check_asked(self, kind: type[Entered | Looked | Taken], descriptors: Sequence[int] = ()) -> None:
        expected, self._expects = self._expects, None
        if expected is not kind:
            for descriptor in descriptors:
                os.close(descriptor)
            raise Garbled("it answers what it was not asked")

    # -- time ---------------------------------------------------------------------------------------------------------

    def _late(self) -> Ending | None:
        """How a run has ended whose worker does not end it in its time."""
        control, now = self._control, time.monotonic()
        if self._started is None and now >= self._asked_at + START_SECONDS:
            return Ending(Outcome.CRASHED, f"no worker was ready within {START_SECONDS:g} s")
        if self._worker.refused:
            raise IsolationError(
                f"there can be no worker for this run (the system's error {self._worker.refused}): see that this user "
                "may have more processes, and that there is memory for them"
            )
        if control():
            return None
        if self._told_cancel is None:
            self._told_cancel = now
            if control.cancelled:
                self.send(Cancel())
        if now < self._told_cancel + GRACE_SECONDS:
            return None
        return self._killed()

    def _killed(self) -> Ending | None:
        """How the run has ended if it should have been over by now."""
        if self._told_cancel is None and self._control():
            return None
        return Ending(Outcome.CANCELLED if self._control.cancelled else Outcome.TIMEOUT)

    def _over(self) -> Ending | None:
        """How the run has ended whose worker is gone; None while it is not known what became of it."""
        now = time.monotonic()
        if self._gone is None:
            self._gone = now
        status = self._worker.status
        if status is None and not self._worker.refused and now < self._gone + _STATUS_SECONDS:
            return None
        if self._worker.refused:
            return None
        return Ending(Outcome.CRASHED, _why_gone(status))

    def _next_look(self) -> float:
        """Says until when to wait, and has somebody wake the run before."""
        if self._gone is not None:
            return self._gone + _STATUS_SECONDS
        streams, until = self._streams, FOREVER
        if streams is None or not streams.clogged:
            self._worker.listen()
        if self._state.wanted and streams is not None:
            until = time.monotonic() + streams.retry_seconds
        if self._control.abandoned is not None:
            # Nobody wakes a run when whoever awaits it goes away.
            until = min(until, time.monotonic() + _ABANDONED_SECONDS)
        if self._wants_more:
            until = min(until, self._asked_at + BRIEF_SECONDS)
        if self._told_cancel is not None:
            return min(until, self._told_cancel + GRACE_SECONDS, self._calls.waits_until)
        if self._started is None:
            return min(until, self._asked_at + START_SECONDS)
        return min(until, self._control.deadline)


def _why_gone(status: int | None) -> str:
    if status is None:
        return "the worker says nothing any more, and nobody knows what became of it"
    if -status in _STOPS:
        return f"the worker was stopped by {signal_name(status)}, and ended for that"
    if status < 0:
        return f"the worker was ended by {signal_name(status)}"
    return f"the worker ended with exit status {status} and without a report"
