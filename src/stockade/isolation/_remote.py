"""A guest in a worker, as the host sees it: it listens, serves, and ends what does not end by itself.

Whatever the worker says is hostile. While the guest runs, what it says is taken in the steps of its call; while it is
halted in a function of the embedder's, or between two calls, it is asked, and answers within a moment or is ended.
"""

from __future__ import annotations

import os
import signal
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from stockade._locks import new_lock
from stockade.engine import SealedFile
from stockade.errors import EngineError, IsolationError, SnapshotError, StockadeError, UsageError
from stockade.execution import MEMORY, GuestState, StringCall, ask, awaited_of, bind_arguments, with_network
from stockade.host import MEMORY_OVER
from stockade.isolation._calls import RemoteCalls
from stockade.isolation._frames import MOST_MESSAGE_BYTES, Garbled, Gone
from stockade.isolation._messages import (
    FAILURES,
    Called,
    Cancel,
    Conclude,
    Enter,
    Entered,
    Failed,
    Finished,
    FromWorker,
    Input,
    Leave,
    Looked,
    Output,
    Peek,
    Poke,
    Request,
    Rest,
    Started,
    Take,
    Taken,
    Told,
    ToWorker,
    Turn,
    Wants,
)
from stockade.isolation._sound import check_numbers, check_values, most_output_bytes, sound_report
from stockade.isolation._state import checked_state
from stockade.report import Outcome, Progress, Report, Timings, TrapInfo, Usage, Violation, note_cause
from stockade.runner import FOREVER, GO_ON, blamed, is_cancellation, run_blocking
from stockade.wasm import ExternKind
from stockade.worker import signal_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stockade.egress import Client, GuestNetwork
    from stockade.engine import GuestBytes, Number
    from stockade.execution import Argument, Call, Monitoring, Plan, Returns, RunMonitor, Streams
    from stockade.isolation._hub import WorkerHandle
    from stockade.policy import Policy
    from stockade.report import PolicyInfo, Value
    from stockade.runner import AwaitedCall, RunControl, RunCoroutine

__all__ = ["GRACE_SECONDS", "RemoteGuest"]

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

_OUTPUT_BYTES: Final = 1 << 16
"""What a piece of output has at most."""

_GLOBAL_TOLD_BYTES: Final = 32
"""What a global takes in a message."""

_STOPS: Final = frozenset((signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU))
"""Signals by which a process does nothing until another one has it go on."""

_NO_NETWORK: Final = dict.fromkeys(("network_sent_bytes", "network_received_bytes", "network_connections"), 0)

_ENDED: Final = "the guest has ended: its memory is gone. Open a new session"

_Found = TypeVar("_Found")


class _Streamed:
    """The guard's state as far as streams need it: pieces of output that have come, and a way for input to go.

    Args:
        worker: The worker.
        control: The control of the run.
    """

    def __init__(self, worker: WorkerHandle, control: RunControl) -> None:
        self._worker = worker
        self._control = control
        self.pieces: deque[tuple[str, bytes]] = deque()
        self.wanted = False

    def take_output(self) -> tuple[str, bytes] | None:
        return self.pieces.popleft() if self.pieces else None

    def give_stdin(self, piece: bytes) -> None:
        self.wanted = False
        if self._control.cancelled:
            # By whoever was asked for input: the guest has no part in what comes after.
            self._worker.send(Cancel())
        self._worker.send(Input(), piece)


class _Ending(NamedTuple):
    """Why there is no report by the worker.

    Attributes:
        outcome: How the run has ended.
        why: What happened to the worker.
    """

    outcome: Outcome
    why: str = ""


class _Over(Exception):  # noqa: N818 - it says what happened; never leaves this module
    """The call around is over, and with it what was under way in it."""


class _RemoteMemory:
    """The memory of a guest that is halted, or between two calls.

    Args:
        guest: The guest.
        gone: What is said where it is not there any more.
    """

    def __init__(self, guest: RemoteGuest, gone: str = _ENDED) -> None:
        self._guest = guest
        self._gone = gone

    @property
    def size_bytes(self) -> int:
        """Its present size."""
        return self._guest.look(Peek(0, 0), self._gone)[0]

    def read(self, address: int, size: int) -> bytes:
        """Copies bytes out.

        Raises:
            IndexError: They are not all inside the memory.
        """
        _check_place(address, size)
        return self._guest.look(Peek(address, size), self._gone)[1]

    def write(self, address: int, data: bytes) -> None:
        """Copies bytes in.

        Raises:
            IndexError: They do not all fit inside the memory.
        """
        _check_place(address, len(data))
        self._guest.look(Poke(address), self._gone, data)


_MOST_ADDRESS: Final = 1 << 48


def _check_place(address: int, size: int) -> None:
    # What is further away is in no memory, and in no message.
    if not (0 <= address < _MOST_ADDRESS and 0 <= size < _MOST_ADDRESS):
        raise IndexError(f"bytes {address:,} to {address + size:,} are in no memory")


def _let_go(worker: WorkerHandle) -> None:
    if worker.close():
        worker.hub.release()


class RemoteGuest:
    """A live instance in a worker. For one thread at a time, but for what says otherwise.

    Args:
        plan: What runs.
        policy: The policy, as reports say it.
        control: Its control.
        worker: The worker, which has a place, and is closed with this.
        streams: Who serves the guest; None where nobody does.
        files: Files of what it begins with; None where it begins as its module does.
        begun: When it was asked for, by `time.perf_counter`.
        client: What makes its requests; None where it may make none.
        keeps: Whether it lives on after one run; if not, another worker is made for the next one meanwhile.
    """

    def __init__(
        self,
        plan: Plan,
        policy: PolicyInfo,
        control: RunControl,
        worker: WorkerHandle,
        streams: Streams | None,
        files: Sequence[SealedFile] | None,
        begun: float,
        client: Client | None = None,
        *,
        keeps: bool = True,
    ) -> None:
        # First: whoever drops it, at whatever moment, ends the worker.
        self._finish = weakref.finalize(self, _let_go, worker)
        self._finish.atexit = False
        self._plan = plan
        self._policy = policy
        self._control = control
        self._worker = worker
        self._streams = streams
        self._files = tuple(files or ())
        self.is_restored = files is not None
        self._opened = begun
        self._wants_more = not keeps
        self._client = client
        self._network: GuestNetwork | None = None
        self._monitor: RunMonitor | None = None
        self._has_news = False
        self._state = _Streamed(worker, control)
        # Where the policy only takes note, there may be more.
        most = None if plan.policy.on_violation == "audit" else plan.limits.calls
        self._calls = RemoteCalls(plan.functions, control, plan.module, most)
        self._most_blob = max(most_output_bytes(plan), _OUTPUT_BYTES)
        # Who looks at its memory may be on another thread than who takes its steps.
        self._lock = new_lock()
        self._started: float | None = None
        self._over_at_once = False
        self._open_seconds = 0.0
        self._called: float | None = None
        # When the call under way was asked for, and when the budget was that it is held to.
        self._asked_at = self._since = time.monotonic()
        self._renews = False
        self._timed = False
        self._depth = 0
        self._told_cancel: float | None = None
        self._gone: float | None = None
        self._has_more = False
        self._progress: Progress | None = None
        self._used: Report | None = None
        self._ending: _Ending | None = None
        # What has stopped a call within one of a function of the embedder's; and what the worker has failed with.
        self._broken: BaseException | None = None
        self._failed: StockadeError | None = None
        self._ended = False
        self._closed = False
        # What was said, and is waited for.
        self._finished: tuple[Finished, bytes] | None = None
        self._returned: tuple[Finished, bytes] | None = None
        self._entered: Entered | None = None
        self._looked: tuple[Looked, bytes] | None = None
        self._taken: tuple[Taken, tuple[int, ...]] | None = None
        self._expects: type[Entered | Looked | Taken] | None = None

    # -- what is known of it -------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        """The policy that it runs under."""
        return self._plan.policy

    @property
    def calls_out(self) -> bool:
        """Whether functions of the embedder are called while it runs, on the thread that drives it."""
        if self._monitor is not None and self._monitor.asked.on_alert is not None:
            return True
        return self._plan.calls_out or (self._streams is not None and self._streams.calls_out)

    @property
    def ended(self) -> bool:
        """Whether it has come to its end, so that it can not be called again."""
        return self._ended

    @property
    def network(self) -> GuestNetwork:
        """What it has of the network, whatever its policy permits of that; all of it is in this process."""
        if self._network is None:
            # Most guests have no use for it.
            from stockade.egress import Client, GuestNetwork

            self._network = GuestNetwork(
                self._client or Client(), self.policy, self._seconds, lambda: self._control.gate
            )
        return self._network

    def _seconds(self) -> float:
        return 0.0 if self._called is None else time.monotonic() - self._called

    def watch(self, monitoring: Monitoring) -> None:
        """Has it looked at in its course.

        Args:
            monitoring: What is asked for.
        """
        from stockade.execution import RunMonitor

        self._monitor = RunMonitor(monitoring)

    def _seen(self, report: Report) -> Report:
        """Returns a report as it may leave, with what was seen of the call in its course."""
        gate = self._control.gate
        report = report if gate is None else gate.release(report)
        return report if self._monitor is None else self._monitor.finish(report, self._control.name)

    def progress(self) -> Progress | None:
        """Tells how far it is, as the worker told last. May be called from any thread."""
        if self._closed or self._started is None:
            return None
        told, used, plan = self._progress, self._used, self._plan
        if used is None:
            if told is not None:
                return told
            woven = plan.program.woven
            found = Progress(
                seconds=0.0, fuel=None if plan.fuel is None else 0, memory_bytes=woven.initial_memory_bytes
            )
            found = msgspec.structs.replace(found, table_elements=woven.initial_table_elements)
        else:
            usage = used.usage
            shared = {name: getattr(usage, name) for name in _ALIKE}
            found = Progress(seconds=0.0, calls=sum(usage.calls.values()), earlier=used.earlier, **shared)
        state = "idle" if self._called is None else "running"
        told_of = {"module": plan.info.name, "policy": self._policy.name, "limits": plan.run_limits}
        return msgspec.structs.replace(found, state=state, **told_of)

    def keep(self) -> None:
        """Sees to it that it is freed after all that could look at it, where it is dropped: it is, in any case."""

    def close(self) -> None:
        """Ends the worker. Closing twice is harmless."""
        self._closed = self._ended = True
        self._calls.close()
        if self._network is not None:
            self._network.end()
        # What these know may know this: the collector would have to come.
        self._used = self._broken = self._failed = self._calls.raised = None
        self._finish()

    # -- it is opened --------------------------------------------------------------------------------------------------

    def opened(self) -> RunCoroutine[None]:
        """Waits until it is there.

        Raises:
            StockadeError: It cannot be made.
        """
        try:
            yield from self._until(lambda: self._started)
        except _Over:
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
        self._asked_at = self._called = time.monotonic()
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
        request = self._request(call)
        self.send(
            msgspec.structs.replace(
                request, is_command=command, initializes=initializes, renews=renews, depth=self._depth
            )
        )
        if self._wants_more:
            # Only now: whoever makes another one for the next run would take the time of this one.
            self._wants_more = False
            self._worker.hub.took(self._worker)

    def _request(self, call: Call) -> Request:
        exchange, type_ = call.exchange, call.entry.type
        is_plain = exchange is None or isinstance(exchange, StringCall)
        return Request(
            call.entry.name,
            type_.params,
            type_.results,
            tuple(_sendable(number) for number in call.numbers),
            exchange if isinstance(exchange, StringCall) else None,
            is_driven=not is_plain,
        )

    def _until_over(self, call: Call) -> RunCoroutine[Report]:
        results: Sequence[Number | str | bytes] | None = None
        try:
            if call.exchange is not None and not isinstance(call.exchange, StringCall):
                results = yield from self._drive(call)
            finished, blob = yield from self._until(self._take_finished)
        except (_Over, UsageError):
            if self._finished is not None:
                finished, blob = self._finished
            elif self._ending is not None:
                return self._report(self._ending)
            else:
                raise
        return (yield from self._finish_call(finished, blob, results))

    def _take_finished(self) -> tuple[Finished, bytes] | None:
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
                raise _Over from None

        self._expects = Entered
        yield from self._until(lambda: self._entered)
        self._entered = None
        results = yield from exchange.perform(call, _RemoteMemory(self), enter, self._plan.limits.stdout)
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

    def call_back(self, export: str, args: Sequence[Argument], returns: Returns | None) -> Value:
        """Calls an export within a plain host function, on its thread; returns its value.

        Raises:
            GuestError: The guest has ended in it.
            LinkError: There is no such function.
            UsageError: The call cannot be made.
        """
        return self.call_within(bind_arguments(self._plan.module, export, args, returns)).check().value

    def call_within(self, call: Call) -> Report:
        """Makes a call within a plain host function, on its thread.

        Raises:
            UsageError: It cannot be made.
        """
        return run_blocking(self.within(call), self._control)

    def awaited_here(self) -> AwaitedCall | None:
        """Returns the call of a coroutine host function in whose context this is; None where there is none such."""
        found = awaited_of(self)
        return found if found is not None and self._calls.is_under_way(found) and not found.is_over() else None

    async def await_within(self, awaited: AwaitedCall, call: Call) -> Report:
        """Makes a call within a coroutine host function.

        Args:
            awaited: The call of the host function.
            call: The call of the export.

        Raises:
            UsageError: It cannot be made.
        """
        return await ask(awaited, self._control.wake, call)

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
            except _Over:
                ending = self._ending or _Ending(Outcome.CANCELLED if self._control.cancelled else Outcome.TIMEOUT)
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
            return self._checked(finished, blob, is_within=True)
        finally:
            self._depth -= 1
            self._calls.here = before

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

    def _check_halted(self) -> None:
        if self._ending is not None or self._finished is not None:
            raise UsageError("the guest has ended in a call that this host function made, and cannot be called again")

    @property
    def halted_memory(self) -> GuestBytes | None:
        """The memory that it exports as `memory`; None where it exports none."""
        return _RemoteMemory(self, MEMORY_OVER) if self._exports_memory(MEMORY) else None

    # -- its memory, and what it holds ---------------------------------------------------------------------------------

    def memory(self, name: bytes) -> GuestBytes:
        """Returns an exported memory.

        Raises:
            UsageError: It has none of that name, or has ended.
        """
        if self._ended:
            raise UsageError(_ENDED)
        if name != MEMORY or not self._exports_memory(name):
            raise UsageError("the guest exports no memory")
        return _RemoteMemory(self)

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
            raise UsageError(_ENDED)
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
            if any(file.size_bytes > plan.limits.memory + _OUTPUT_BYTES for file in known[len(self._files) :]):
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
                raise UsageError(_ENDED)
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
        raise UsageError(_ENDED)

    def _answered(self, answer: Callable[[], _Found | None]) -> _Found:
        # A function of its own: what the handler of a signal raises as the loop begins anew is seen around it.
        until = time.monotonic() + REPLY_SECONDS
        while (found := answer()) is None:
            if self._finished is not None:
                # Its time was up before.
                self._control.wake()
                raise UsageError(_ENDED)
            heard = self._worker.receive(self._most_blob)
            if heard is not None:
                self._take(*heard)
            elif not self._worker.wait(until - time.monotonic()):
                self._crash(f"the worker has not answered for {REPLY_SECONDS:g} s")
                raise UsageError(_ENDED)
        return found

    def _status(self) -> int | None:
        """Returns how the worker has ended, which says nothing any more."""
        until = time.monotonic() + _STATUS_SECONDS
        while self._worker.status is None and time.monotonic() < until:
            time.sleep(0.001)
        return self._worker.status

    def _crash(self, why: str) -> None:
        """Ends the worker, for what it has done."""
        self._end(_Ending(Outcome.CRASHED, why))
        self._worker.kill()

    def _end(self, ending: _Ending) -> None:
        self._ended = True
        if self._ending is None:
            self._ending = ending

    # -- what the worker says ------------------------------------------------------------------------------------------

    def _until(self, find: Callable[[], _Found | None]) -> RunCoroutine[_Found]:
        """Does what is to be done until something is there.

        Args:
            find: Returns it.

        Raises:
            _Over: The call around has come to its end before.
        """
        streams = self._streams
        while True:
            ending = self._hear()
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
                if self._state.wanted and self._finished is None and streams.answer(self._state):
                    continue
            if self._finished is not None:
                raise _Over
            ending = self._ending or ending or self._late()
            if ending is not None:
                self._end(ending)
                self._worker.kill()
                raise _Over
            yield GO_ON if self._has_more else self._next_look()

    def _hear(self) -> _Ending | None:
        """Takes what the worker says; how the run has ended, if it has ended without a report."""
        with self._lock:
            self._has_more = False
            try:
                return self._take_all()
            except Garbled as problem:
                return self._killed() or _Ending(Outcome.CRASHED, f"the worker says what makes no sense: {problem}")
            except Gone:
                return self._over()

    def _take_all(self) -> _Ending | None:
        streams, count = self._streams, 0
        while self._finished is None and not (streams is not None and streams.clogged):
            count += 1
            if count > _MOST_MESSAGES or len(self._state.pieces) >= _MOST_PIECES:
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
        if isinstance(message, Finished):
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
            self._looked = message, blob
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
            self._failed = FAILURES[message.kind](message.message)
            raise self._failed

    def _start(self, message: Started) -> None:
        if self._started is not None:
            raise Garbled("it has begun twice")
        self._started = time.monotonic()
        self._over_at_once = message.over
        self._control.walls = message.walls
        if self._called is not None:
            self._called = self._started
            self._control.start(self._plan.limits.wall_time)
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

    def _late(self) -> _Ending | None:
        """How a run has ended whose worker does not end it in its time."""
        control, now = self._control, time.monotonic()
        if self._started is None and now >= self._asked_at + START_SECONDS:
            return _Ending(Outcome.CRASHED, f"no worker was ready within {START_SECONDS:g} s")
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

    def _killed(self) -> _Ending | None:
        """How the run has ended if it should have been over by now."""
        if self._told_cancel is None and self._control():
            return None
        return _Ending(Outcome.CANCELLED if self._control.cancelled else Outcome.TIMEOUT)

    def _over(self) -> _Ending | None:
        """How the run has ended whose worker is gone; None while it is not known what became of it."""
        now = time.monotonic()
        if self._gone is None:
            self._gone = now
        status = self._worker.status
        if status is None and not self._worker.refused and now < self._gone + _STATUS_SECONDS:
            return None
        if self._worker.refused:
            return None
        return _Ending(Outcome.CRASHED, _why_gone(status))

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
        if self._told_cancel is not None:
            return min(until, self._told_cancel + GRACE_SECONDS)
        if self._started is None:
            return min(until, self._asked_at + START_SECONDS)
        return min(until, self._control.deadline)

    # -- reports -------------------------------------------------------------------------------------------------------

    def _finish_call(
        self, finished: Finished, blob: bytes, results: Sequence[Number | str | bytes] | None
    ) -> RunCoroutine[Report]:
        """Returns the report of the worker, once all output was taken."""
        report = self._checked(finished, blob)
        if self._ending is not None:
            return report
        if self._streams is not None and not (yield from self._streams.finish(self._state)):
            self._ended = True
            return self._report(_Ending(Outcome.CANCELLED if self._control.cancelled else Outcome.TIMEOUT))
        if self._calls.raised is not None and report.outcome is Outcome.TRAP:
            note_cause(report, self._calls.raised)
            self._calls.raised = None
        if results is not None and report.outcome is Outcome.OK:
            value: Any = results[0] if len(results) == 1 else list(results) or None
            report = msgspec.structs.replace(report, value=value)
        return report

    def _checked(self, finished: Finished, blob: bytes, *, is_within: bool = False) -> Report:
        """Returns the report of the worker as far as it makes sense; else that on its end."""
        seconds = time.monotonic() - self._since
        timings = self._timings(finished.report.usage.wall_seconds)
        try:
            report = sound_report(finished, blob, self._plan, self._policy, seconds, timings, is_within=is_within)
            if not is_within and report.usage.host_calls < self._calls.count:
                raise Garbled("it has made more calls than it says")
        except Garbled as problem:
            self._crash(f"the worker reports what makes no sense: {problem}")
            assert self._ending is not None
            return self._report(self._ending)
        if not is_within:
            report = self._with_network(report)
            self._used = report
            self._ended = finished.over or report.outcome not in (Outcome.OK, Outcome.EXIT)
            if report.fuel is not None:
                self._plan.history.append((report.fuel.consumed, report.fuel.seconds))
        return report

    def _timings(self, wall: float) -> Timings:
        """How long everything took.

        Args:
            wall: How long the guest has run: what a worker says may be anything, and is looked at later.
        """
        plan = self._plan
        if self._open_seconds:
            total = time.monotonic() - self._asked_at
            run, made = (min(wall, total) if wall >= 0 else 0.0), self._open_seconds
        else:
            total = time.perf_counter() - self._opened
            run = min(wall, total) if wall >= 0 else 0.0
            made = total - run
        return Timings(
            compile=plan.compile_seconds,
            instantiate=made,
            run=run,
            total=plan.compile_seconds + made + run,
            cache_hit=plan.was_compiled,
        )

    def _report(self, ending: _Ending) -> Report:
        """Reports on a run whose worker has not. It has used at least what it had when it was last heard of."""
        plan = self._plan
        wall = 0.0 if self._called is None or self._started is None else time.monotonic() - self._called
        told = self._progress or Progress(seconds=0.0)
        violations: tuple[Violation, ...] = ()
        if ending.outcome is Outcome.TIMEOUT:
            field = "limits.wall_time"
            violations = (
                Violation(
                    kind="timeout",
                    subject=field,
                    limit=plan.limits.wall_time,
                    observed=wall,
                    action="stop",
                    field=field,
                ),
            )
        report = Report(
            outcome=ending.outcome,
            trap=TrapInfo("worker", ending.why) if ending.why else None,
            usage=Usage(
                fuel=None if plan.fuel is None else told.fuel or 0,
                wall_seconds=wall,
                cpu_seconds=told.cpu_seconds,
                idle_seconds=told.idle_seconds,
                memory_bytes=told.memory_bytes,
                memory_peak_bytes=told.memory_bytes,
                table_elements=told.table_elements,
                read_bytes=told.read_bytes,
                written_bytes=told.written_bytes,
                stdout_bytes=told.stdout_bytes,
                stderr_bytes=told.stderr_bytes,
                files_created=told.files_created,
                random_bytes=told.random_bytes,
                host_calls=self._calls.count,
            ),
            violations=violations,
            module=plan.info,
            policy=self._policy,
            timings=self._timings(wall),
            limits=plan.run_limits,
            earlier=told.earlier,
        )
        return self._with_network(report)

    def _with_network(self, report: Report) -> Report:
        """Adds what it has used of the network, which only the host knows."""
        usage = msgspec.structs.replace(report.usage, **_NO_NETWORK)
        told: Mapping[str, Any] = {"violations": report.violations, "violations_dropped": report.violations_dropped}
        if self._network is not None:
            usage, told = with_network(self._network, usage, told)
        return msgspec.structs.replace(report, usage=usage, **told)


_ALIKE: Final = (
    "fuel",
    "memory_bytes",
    "table_elements",
    "stdout_bytes",
    "stderr_bytes",
    "files_created",
    "read_bytes",
    "written_bytes",
    "random_bytes",
    "cpu_seconds",
    "idle_seconds",
)
"""What is told of a session between two calls as its last report tells it."""


def _sendable(number: Number) -> int | float | bytes:
    return int(number) if isinstance(number, int) else number


def _why_gone(status: int | None) -> str:
    if status is None:
        return "the worker says nothing any more, and nobody knows what became of it"
    if -status in _STOPS:
        return f"the worker was stopped by {signal_name(status)}, and ended for that"
    if status < 0:
        return f"the worker was ended by {signal_name(status)}"
    return f"the worker ended with exit status {status} and without a report"
