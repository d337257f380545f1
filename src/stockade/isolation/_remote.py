"""A guest in a worker, as all rooms above know it: opened, called, looked at, taken snapshots of.

It stands on two others, each of which knows one more thing: `ToldGuest` is reported on, `HeardGuest` is listened to.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from stockade.engine import SealedFile
from stockade.errors import EngineError, SnapshotError, UsageError
from stockade.execution import MEMORY, GuestState, StringCall, awaited_of, with_earlier
from stockade.host import MEMORY_OVER
from stockade.isolation._frames import MOST_MESSAGE_BYTES, Garbled
from stockade.isolation._messages import (
    Conclude,
    Enter,
    Entered,
    Finished,
    Leave,
    Looked,
    Peek,
    Poke,
    Request,
    Rest,
    Returned,
    Take,
    Taken,
    ToWorker,
    Turn,
)
from stockade.isolation._remote_heard import HeardGuest, Over
from stockade.isolation._remote_memory import ENDED, RemoteMemory
from stockade.isolation._remote_told import OUTPUT_BYTES, Ending
from stockade.isolation._sound import check_values
from stockade.isolation._state import checked_state
from stockade.report import Outcome, Report
from stockade.runner import blamed, is_cancellation
from stockade.wasm import ExternKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.engine import GuestBytes, Number
    from stockade.execution import Call
    from stockade.runner import AwaitedCall, RunCoroutine

__all__ = ["RemoteGuest", "request_of"]

_GLOBAL_TOLD_BYTES: Final = 32
"""What a global takes in a message."""


def request_of(
    call: Call, *, command: bool = False, initializes: bool = False, renews: bool = False, depth: int = 0
) -> Request:
    """Returns what a worker is told that is to make a call.

    Args:
        call: The call.
        command: Whether its result is an exit code.
        initializes: Whether a reactor is initialized before.
        renews: Whether its budget and its counters are fresh.
        depth: How many calls of functions of the embedder's it is made in.
    """
    exchange, type_ = call.exchange, call.entry.type
    is_plain = exchange is None or isinstance(exchange, StringCall)
    return Request(
        call.entry.name,
        type_.params,
        type_.results,
        tuple(_sendable(number) for number in call.numbers),
        exchange if isinstance(exchange, StringCall) else None,
        is_driven=not is_plain,
        is_command=command,
        initializes=initializes,
        renews=renews,
        depth=depth,
    )


class RemoteGuest(HeardGuest):
    """A live instance in a worker, made as `ToldGuest` is. For one thread at a time, but for what says otherwise."""

    # -- it is opened --------------------------------------------------------------------------------------------------

    def opened(self) -> RunCoroutine[None]:
        """Waits until it is there.

        Raises:
            StockadeError: It cannot be made.
        """
        try:
            yield from self._until(lambda: self._started)
        except Over:
            ending = self._ending
            assert ending is not None
            self._report(ending).check()
            raise EngineError(f"{self._plan.module.name}: the worker is gone: {ending.why}") from None
        self._open_seconds = time.perf_counter() - self._opened
        self._ended = self._over_at_once

    def final_report(self) -> Report:
        """Reports on a guest that had ended before anything of it was called."""
        return self._seen(self._turn_report(Conclude()))

    # -- calls ---------------------------------------------------------------------------------------------------------

    def renew(self) -> None:
        """Gives it a fresh budget of fuel and fresh counters, for the next call."""
        self._renews = True
        self._timed = False
        if self._used is not None:
            self._earlier = with_earlier(self._earlier, self._used.usage)
        if self._monitor is not None:
            self._monitor.begin()

    def invoke(self, call: Call, *, command: bool = False, initializes: bool = False) -> RunCoroutine[Report]:
        """Calls an exported function and reports on it, in steps.

        Args:
            call: The function, and what is passed.
            command: Whether its result is an exit code.
            initializes: Whether a reactor is initialized before.

        Raises:
            StockadeError: Something went wrong that is not the guest's doing.
        """
        if self._ending is not None:
            return self._seen(self._report(self._ending))
        self._begin()
        self._send_call(call, command=command, initializes=initializes)
        try:
            # The loop is a function of its own: what the handler of a signal raises as it begins anew is seen here.
            return self._seen((yield from self._until_over(call)))
        except BaseException as problem:
            # Stopped in the middle by something of the host's: what is left of the guest is not to be trusted.
            self._ended = True
            self._worker.kill()
            if is_cancellation(problem):
                raise blamed(problem, "a callback or a host function") from problem
            raise
        finally:
            self._called = self._finished = self._returned = None
            self._calls.over()

    def _begin(self) -> None:
        """Begins a call, or a turn: what counts for one counts from now."""
        told_at, self._told_at = self._told_at, None
        self._asked_at = self._called = time.monotonic() if told_at is None else told_at
        self._told_cancel = self._finished = self._used = None
        self._calls.count = 0
        self._calls.raised = None
        if not self._timed:
            self._since = self._asked_at
            self._progress = None
            if self._started is not None:
                self._control.start(self._plan.limits.wall_time)
                self._timed = True

    def _send_call(self, call: Call, *, command: bool = False, initializes: bool = False) -> None:
        renews, self._renews = self._renews, False
        told, self._told = self._told, None
        if told is None:
            request = request_of(call, command=command, initializes=initializes, renews=renews, depth=self._depth)
            self.send(request)

    def was_told(
        self, call: Request, *, at_once: bool, asked_at: float | None = None, ready_at: float | None = None
    ) -> None:
        """Notes that the worker was told what to call when it was told what the guest is given.

        Args:
            call: What is called.
            at_once: Whether the guest is given nothing, so that one that was made ahead says nothing before it is over.
            asked_at: When it was told, by `time.monotonic`; None for just now.
            ready_at: When it was heard that it is ready, likewise; None where that is to be heard.
        """
        self._told = call
        self._begins_at_once = at_once
        self._told_at, self._ready_at = asked_at, ready_at

    def _until_over(self, call: Call) -> RunCoroutine[Report]:
        results: Sequence[Number | str | bytes] | None = None
        try:
            if call.exchange is not None and not isinstance(call.exchange, StringCall):
                results = yield from self._drive(call)
            finished, blob = yield from self._until(self._take_finished)
        except (Over, UsageError):
            if self._finished is not None:
                finished, blob = self._finished
            elif self._ending is not None:
                return self._report(self._ending)
            else:
                raise
        return (yield from self._finish_call(finished, blob, call, results))

    def _take_finished(self) -> tuple[Finished | Returned, bytes] | None:
        return self._finished

    def _drive(self, call: Call) -> RunCoroutine[Sequence[Number | str | bytes]]:
        """Makes a call of which is said here, function by function, what is called."""
        exchange = call.exchange
        assert exchange is not None

        def enter(
            export: bytes, arguments: Sequence[tuple[str, Number]], results: Sequence[str]
        ) -> RunCoroutine[list[Number]]:
            given = tuple((type_, _sendable(value)) for type_, value in arguments)
            self._expects = Entered
            self.send(Enter(export, given, tuple(results)))
            entered = yield from self._until(lambda: self._entered)
            self._entered = None
            try:
                return check_values(entered.values, results)
            except Garbled as problem:
                self._crash(f"the worker says what makes no sense: {problem}")
                raise Over from None

        self._expects = Entered
        yield from self._until(lambda: self._entered)
        self._entered = None
        results = yield from exchange.perform(call, RemoteMemory(self), enter, self._plan.limits.stdout)
        self.send(Leave())
        return results

    # -- turns ---------------------------------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """Begins another turn of a call in which it waits for its standard input."""
        self._timed = False
        if self._monitor is not None:
            self._monitor.begin()
        self._begin()
        self.send(Turn())

    def end_turn(self) -> Report:
        """Reports on a turn of a call that goes on later."""
        report = self._turn_report(Rest())
        if self._streams is not None:
            self._streams.pass_rest()
        return self._seen(report)

    def _turn_report(self, message: ToWorker) -> Report:
        try:
            finished, blob = self._ask(message, self._take_finished)
        except UsageError:
            assert self._ending is not None
            return self._report(self._ending)
        self._finished = self._called = None
        return self._checked(finished, blob)

    # -- within functions of the embedder ------------------------------------------------------------------------------

    @property
    def is_in_function(self) -> bool:
        """Whether a plain host function is called just now, on the thread that drives it."""
        return self._calls.here

    def awaited_here(self) -> AwaitedCall | None:
        """Returns the call of a coroutine host function in whose context this is; None where there is none such."""
        found = awaited_of(self)
        return found if found is not None and self._calls.is_under_way(found) and not found.is_over() else None

    def within(self, call: Call) -> RunCoroutine[Report]:
        """Makes a call while the guest is halted in one of a host function, in steps.

        Raises:
            UsageError: It cannot be made.
        """
        before, self._calls.here = self._calls.here, False
        self._depth += 1
        depth = self._depth
        try:
            self._check_halted()
            self._send_call(call)
            try:
                finished, blob = yield from self._until(lambda: self._returned)
            except Over:
                ending = self._ending or Ending(Outcome.CANCELLED if self._control.cancelled else Outcome.TIMEOUT)
                return self._report(ending)
            except BaseException as problem:
                if problem is not self._failed and self._broken is None:
                    # The guest is halted somewhere else than where its call is answered.
                    self._broken = problem
                raise
            self._returned = None
            if finished.depth != depth:
                self._crash("the worker reports on a call that was not made")
                assert self._ending is not None
                return self._report(self._ending)
            return self._checked(finished, blob, call, is_within=True)
        finally:
            self._depth -= 1
            self._calls.here = before

    def _check_halted(self) -> None:
        if self._ending is not None or self._finished is not None:
            raise UsageError("the guest has ended in a call that this host function made, and cannot be called again")

    @property
    def halted_memory(self) -> GuestBytes | None:
        """The memory that it exports as `memory`; None where it exports none."""
        return RemoteMemory(self, MEMORY_OVER) if self._exports_memory(MEMORY) else None

    # -- its memory, and what it holds ---------------------------------------------------------------------------------

    def memory(self, name: bytes) -> GuestBytes:
        """Returns an exported memory.

        Raises:
            UsageError: It has none of that name, or has ended.
        """
        if self._ended:
            raise UsageError(ENDED)
        if name != MEMORY or not self._exports_memory(name):
            raise UsageError("the guest exports no memory")
        return RemoteMemory(self)

    def _exports_memory(self, name: bytes) -> bool:
        export = self._plan.module.parsed.exports.get(name)
        return export is not None and export.kind is ExternKind.MEMORY

    def look(self, message: Peek | Poke, gone: str, data: bytes = b"") -> tuple[int, bytes]:
        """Looks at its memory, or writes to it, while it is halted.

        Args:
            message: Where.
            gone: What is said where it has ended.
            data: What is written.

        Returns:
            How large the memory is, and what was read.

        Raises:
            IndexError: That is not inside it.
            UsageError: It has ended.
        """
        size = message.size if isinstance(message, Peek) else 0
        try:
            looked, found = self._ask(message, lambda: self._looked, data, Looked, most_blob=size)
        except UsageError:
            raise UsageError(gone) from None
        self._looked = None
        if looked.size_bytes is None:
            raise UsageError(gone)
        if looked.problem:
            raise IndexError(looked.problem)
        if len(found) != size:
            self._crash("the worker tells of more memory, or of less, than it was asked for")
            raise UsageError(ENDED)
        return looked.size_bytes, found

    def take_state(self) -> GuestState:
        """Takes what it holds, between two calls.

        Raises:
            UsageError: It has ended.
            SnapshotError: There is more to it than can be taken.
            EngineError: There is no room for a snapshot.
        """
        if self._ended:
            raise UsageError("the guest has ended, so there is nothing to take a snapshot of. Open a new session")
        plan, worker = self._plan, self._worker
        exposed = plan.program.woven.exposed
        if exposed.obstacles:
            raise SnapshotError(
                f"no snapshot can be taken of {plan.module.name}: {'; '.join(exposed.obstacles)}, and that cannot be "
                "read back. Open a new session instead"
            )
        with self._lock:
            before = worker.most_bytes, worker.most_descriptors
            worker.most_bytes = MOST_MESSAGE_BYTES + _GLOBAL_TOLD_BYTES * len(exposed.globals)
            worker.most_descriptors = 1
            try:
                taken, descriptors = self._ask(Take(), lambda: self._taken, b"", Taken)
            finally:
                worker.most_bytes, worker.most_descriptors = before
                self._taken = None
        # What is not sealed, or no file in memory, is refused before anything is known of it.
        try:
            known = (*self._files, *map(SealedFile.received, descriptors))
            if any(file.size_bytes > plan.limits.memory + OUTPUT_BYTES for file in known[len(self._files) :]):
                raise Garbled("the file of a snapshot is larger than its guest may be")
            state = checked_state(taken.state, known, plan)
            if len(set(taken.keeps)) != len(taken.keeps) or any(not 0 <= number < len(known) for number in taken.keeps):
                raise Garbled("a snapshot keeps files that there are not")
        except (Garbled, EngineError) as problem:
            self._crash(f"the worker says what makes no sense: {problem}")
            raise EngineError(f"no snapshot can be taken of {plan.module.name}: {self._ending_told()}") from None
        self._files = tuple(known[number] for number in taken.keeps)
        return GuestState(plan.module, state, taken.state.started)

    def _ending_told(self) -> str:
        return "the guest has ended" if self._ending is None else self._ending.why or self._ending.outcome.value


def _sendable(number: Number) -> int | float | bytes:
    return int(number) if isinstance(number, int) else number
