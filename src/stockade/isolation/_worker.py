"""A worker: the process of one guest. It is forked with everything loaded, jailed, and makes the guest.

Then it does what the host orders: for a run that is one call, for a session any number of them, and snapshots between.
Calls go the one way that all go (`execution/`). What differs is who waits: here it is one loop that listens to the host
meanwhile. While the guest is halted in a function of the embedder's, the host may look at its memory and call it back.
"""

from __future__ import annotations

import gc
import math
import os
import select
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from stockade._text import printable
from stockade.engine import SealedFile, keep_page_table
from stockade.errors import UsageError
from stockade.execution import (
    MEMORY,
    Call,
    GuestState,
    GuestStopped,
    Inputs,
    SavedGuest,
    StopReason,
    Streams,
    initialized,
)
from stockade.guard import lost_entries, take_slots
from stockade.host import CallRefused, CapabilityMissing, ToldFailure
from stockade.isolation._frames import (
    MOST_DESCRIPTORS,
    MOST_INLINE_BYTES,
    Garbled,
    Gone,
    packed,
    receive,
    send,
)
from stockade.isolation._messages import (
    FAILURES,
    TO_WORKER,
    Answer,
    Called,
    Cancel,
    Conclude,
    Enter,
    Entered,
    Expect,
    Failed,
    Finished,
    FromWorker,
    Input,
    Leave,
    Looked,
    Open,
    Order,
    Output,
    Peek,
    Poke,
    Ready,
    Request,
    Rest,
    Returned,
    Started,
    Take,
    Taken,
    Told,
    ToWorker,
    Traced,
    Turn,
    Wants,
)
from stockade.isolation._prepared import Prepared, RemoteFunction
from stockade.isolation._state import state_of, told_state
from stockade.isolation._walls import jail_of
from stockade.jail import confine
from stockade.modules import Entry
from stockade.runner import FOREVER, GO_ON, RunControl
from stockade.system import end_with
from stockade.wasm import FuncType

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator, Sequence

    from stockade.engine import GuestBytes, Number
    from stockade.execution import CallExport, Guest
    from stockade.gate import GateRun
    from stockade.guard import State, TraceRing
    from stockade.report import Report, TracedCall
    from stockade.runner import RunCoroutine

__all__ = ["work"]

_PROGRESS_SECONDS: Final = 0.1
"""How often the host is told how far the run is."""

_WATCHED_SECONDS: Final = 0.01
"""The same where somebody looks at that in its course."""

_TRACED_BYTES: Final = MOST_INLINE_BYTES // 2
"""What a message has of the trace, or one entry."""

_NOTHING: Final = Open()
"""What most guests are given."""

_MOST_TOLD: Final = 2_000
"""Characters of a message that the host is told."""


def work(program: Prepared, line: socket.socket, parent: int | None, *, keeps: bool) -> NoReturn:
    """Is a worker.

    Args:
        program: What it is to run.
        line: The socket to the host.
        parent: The process that has forked this one, and that it ends with; None where it may outlive that.
        keeps: Whether its guest is called any number of times.
    """
    if parent is not None:
        end_with(parent)
    if keeps:
        # What was there before is frozen.
        gc.enable()
    else:
        # Nobody waits for what is given back.
        gc.disable()
    os._exit(0 if _serve(program, line, keeps=keeps) else 1)


def _serve(program: Prepared, line: socket.socket, *, keeps: bool) -> bool:
    host = RemoteFunction.host = _Host(line, program)
    try:
        try:
            table = keep_page_table() if keeps else None
            report = confine(jail_of(program, line, table), inherited=program.namespaces)
            if program.problem is not None:
                raise program.problem
            walls = tuple(sorted(report.active))
            if not keeps and not host.has_said():
                host.rehearse(walls)
            host.open(walls)
        except tuple(FAILURES.values()) as problem:
            host.fail(problem)
            return True
        host.obey()
    except (Gone, Garbled):
        return False


class _Host:
    """The host, as a worker knows it: what it orders is done, and it is told what comes of it.

    Args:
        line: The socket.
        program: What is run.
    """

    guest: Guest

    def __init__(self, line: socket.socket, program: Prepared) -> None:
        self._line = line
        self._program = program
        self._poll = select.poll()
        self._poll.register(line, select.POLLIN)
        self._input: list[bytes] = []
        self._asked = False
        self._answer: Answer | None = None
        self._told_every, self._next_told = _PROGRESS_SECONDS, 0.0
        # Where the guest's memory is looked at; while it runs, nowhere.
        self._memory: Callable[[], GuestBytes | None] = self._no_memory
        # Files of snapshots, by the numbers by which the host knows them, too.
        self._files: tuple[SealedFile, ...] = ()
        self.orders: deque[Order] = deque()
        self.control = RunControl()
        # What was made ahead.
        self._ahead: Guest | None = None
        self._ready_for: Open | None = None
        self._said_ready = False
        self._first: tuple[ToWorker, bytes, tuple[int, ...]] | None = None
        self._expected: Open | None = None

    # -- what it is told -----------------------------------------------------------------------------------------------

    def tell(self, message: FromWorker, blob: bytes = b"", descriptors: Sequence[int] = ()) -> None:
        """Tells the host something."""
        send(self._line, message, blob, descriptors)

    def fail(self, problem: Exception) -> None:
        """Tells that something has gone wrong."""
        kind = next(name for name, kind in FAILURES.items() if isinstance(problem, kind))
        self.tell(Failed(kind, printable(str(problem), _MOST_TOLD)))  # type: ignore[arg-type]

    def _finish(self, report: Report, depth: int = 0, *, plain: bool = False) -> None:
        """Tells what came of a call.

        Args:
            report: The report on it.
            depth: How many calls of functions of the embedder's it was made in.
            plain: Whether nothing but numbers was passed and returned.
        """
        guest = self.guest
        if plain and guest.told_little and not guest.ended:
            self.tell(_returned(report), report.stdout + report.stderr)
        else:
            self.tell(*self._finished(report, depth, over=guest.ended))

    def _finished(self, report: Report, depth: int, *, over: bool) -> tuple[Finished, bytes]:
        """Returns what is told of what came of a call, and what stands behind that."""
        value: Any = report.value
        kind = "text" if isinstance(value, str) else "bytes" if isinstance(value, bytes) else ""
        behind = value.encode("utf-8", "surrogatepass") if kind == "text" else value if kind else b""
        told = msgspec.structs.replace(report, stdout=b"", stderr=b"", value=None if kind else value)
        sizes = len(report.stdout), len(report.stderr), len(behind)
        finished = Finished(told, *sizes, kind, over=over, depth=depth)  # type: ignore[arg-type]
        return finished, report.stdout + report.stderr + behind

    # -- what it says --------------------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Hears all that it has said, and does what is to be done at once."""
        while (found := receive(self._line, TO_WORKER, waits=False)) is not None:
            message, blob, _ = found
            if isinstance(message, Cancel):
                self.control.cancel()
            elif isinstance(message, Answer):
                self._answer = message
            elif isinstance(message, Input):
                self._asked = False
                self._input.append(blob)
            elif isinstance(message, Peek | Poke):
                self._look(message, blob)
            elif isinstance(message, Open | Expect):
                raise Garbled("it is open already")
            else:
                if isinstance(message, Turn) or (isinstance(message, Request) and not message.depth):
                    # What was said before was for the last one.
                    self.control.cancelled = False
                self.orders.append(message)

    def has_said(self) -> bool:
        """Whether it has said what the guest is given. What it may come to be given is heard, too."""
        while self._first is None and self._poll.poll(0):
            self._hear_first(waits=False)
        return self._first is not None

    def _hear_first(self, *, waits: bool) -> None:
        """Hears what it says before the guest is there."""
        found = receive(self._line, TO_WORKER, most_descriptors=MOST_DESCRIPTORS, waits=waits)
        if found is not None and isinstance(found[0], Expect):
            self._expected, self._files = found[0].given, tuple(map(SealedFile.received, found[2]))
        elif found is not None:
            self._first = found

    def _wait(self, seconds: float | None) -> None:
        """Waits until it says something."""
        if self._poll.poll(None if seconds is None else max(0, math.ceil(seconds * 1000))):
            self.listen()

    def _order(self) -> Order:
        """Waits for what is to be done."""
        while not self.orders:
            self._wait(None)
        return self.orders.popleft()

    def _look(self, message: Peek | Poke, blob: bytes) -> None:
        """Looks at the guest's memory, or writes to it."""
        memory = self._memory()
        if memory is None:
            self.tell(Looked(None))
            return
        data = b""
        try:
            if isinstance(message, Peek):
                data = memory.read(message.address, message.size)
            else:
                memory.write(message.address, blob)
        except IndexError as problem:
            self.tell(Looked(memory.size_bytes, str(problem)))
        else:
            self.tell(Looked(memory.size_bytes), data)

    def _no_memory(self) -> GuestBytes | None:
        return None

    def _idle_memory(self) -> GuestBytes | None:
        try:
            return self.guest.memory(MEMORY)
        except UsageError:
            return None

    def _halted_memory(self) -> GuestBytes | None:
        return self.guest.halted_memory

    # -- the guest -----------------------------------------------------------------------------------------------------

    def rehearse(self, walls: tuple[str, ...]) -> None:
        """Does all that is to be done for a run, but for the guest's own code, and waits for that to be said.

        Args:
            walls: What stands around the guest.
        """
        program = self._program
        program.wait()
        with suppress(*FAILURES.values()):
            program.map_code()
            self._rehearse_run(walls)
        program.forget()
        self._ready_for = self._expected or _NOTHING
        self._ahead = program.guest_ahead(self.control, *self._given(self._ready_for, b""))
        self._said_ready = True
        self.tell(Ready(walls))
        # What is said already is not waited for.
        self.has_said()

    def _rehearse_run(self, walls: tuple[str, ...]) -> None:
        """Does what a run does, from the order to the answer, but for the guest's own code.

        What is touched then is in place when the run comes that this is for: most of what it takes is that memory is
        touched for the first time.

        Args:
            walls: What stands around the guest.
        """
        call = self._program.first_call
        if call is None:
            return
        type_ = call.entry.type
        order = Request(call.entry.name, type_.params, type_.results, is_command=True)
        rehearsed = _Host(_Nowhere(self._line, b"".join(packed(Open(call=order)))), self._program)  # type: ignore[arg-type]
        rehearsed._ahead = self._program.still_guest(rehearsed.control)
        if rehearsed._ahead is None:
            return
        rehearsed._said_ready, rehearsed._ready_for = True, _NOTHING
        rehearsed.open(walls)
        try:
            rehearsed._call(order)
        finally:
            rehearsed.guest.close()

    def open(self, walls: tuple[str, ...]) -> None:
        """Makes the guest.

        Args:
            walls: What stands around it.
        """
        while self._first is None:
            self._hear_first(waits=True)
        given, stdin, files = self._first
        if not isinstance(given, Open):
            raise Garbled("it does not say what the guest is given")
        expected = self._expected
        if given.as_expected:
            if expected is None:
                raise Garbled("nothing was to be expected")
            given = msgspec.structs.replace(expected, call=given.call, watched=given.watched)
            is_ready = self._ready_for is expected
        else:
            is_ready = self._ready_for is _NOTHING and given.gives_nothing and not stdin
            self._files = tuple(map(SealedFile.received, files))
        if given.watched:
            self._told_every = _WATCHED_SECONDS
        is_bare = given.gives_nothing and not stdin
        ahead, self._ahead = self._ahead, None
        if ahead is not None and is_ready:
            self.guest = ahead
            ahead.begin_under(self.control)
        else:
            if ahead is not None:
                # It has its share of what this process may have.
                ahead.close()
            self.guest = self._program.context.guest(self._program.module, self.control, *self._given(given, stdin))
        ring = self.guest.ring
        if ring is not None:
            self.guest.trace_by(_PassedTrace(self, ring))
        self.control.progress = self.guest.progress
        if given.call is not None:
            self.orders.append(given.call)
        if not (self._said_ready and is_bare and given.call is not None):
            self.tell(Started(() if self._said_ready else walls, over=self.guest.ended))

    def _given(self, given: Open, stdin: bytes) -> tuple[Inputs, Streams | None, SavedGuest | None]:
        """Returns what a guest is given: inputs, what serves it, and what it begins with.

        Args:
            given: What the host says of that.
            stdin: Its standard input.
        """
        module, streams, saved = self._program.module, None, None
        if given.saved is not None:
            saved = SavedGuest(GuestState(module, state_of(given.saved, self._files), given.saved.started))
        if given.listens or given.asks:
            streams = Streams(
                self._take if given.asks else None,
                self._passes_on("stdout") if given.listens else None,
                self._passes_on("stderr") if given.listens else None,
                wakes=True,
            )
        # Text that came from the system becomes the bytes that it was made of.
        env = {_text(name): _text(value) for name, value in given.env.items()}
        return Inputs(given.args, stdin, env), streams, saved

    def obey(self) -> NoReturn:
        """Does what it is ordered to, until nobody orders anything any more."""
        while True:
            self._memory = self._idle_memory
            order = self._order()
            try:
                if isinstance(order, Request):
                    self._call(order)
                elif isinstance(order, Take):
                    self._take_snapshot()
                elif isinstance(order, Conclude):
                    self._finish(self.guest.final_report())
                elif not isinstance(order, Leave | Enter):
                    raise Garbled("there is nothing under way")
            except tuple(FAILURES.values()) as problem:
                self.fail(problem)

    def _call(self, order: Request) -> None:
        """Makes a call."""
        self._memory = self._halted_memory
        guest, call = self.guest, self._bound(order)
        if order.renews:
            guest.renew()
        if order.initializes:
            steps = initialized(self._program.module, guest, call)
        else:
            steps = guest.invoke(call, command=order.is_command)
        self._finish(self._driven(steps), plain=call.exchange is None)

    def _bound(self, order: Request) -> Call:
        entry = Entry(order.export, FuncType(order.params, order.results))
        return Call(entry, order.numbers, _DrivenCall(self) if order.is_driven else order.exchange)

    def _take_snapshot(self) -> None:
        state = self.guest.take_state()
        told, known = told_state(state.instance, started=state.started, known=self._files)
        below = self.guest.below
        stay = set() if below is None else {id(part.file) for image in below.memories for part in image.extents}
        keeps = tuple(number for number, file in enumerate(known) if id(file) in stay)
        self.tell(Taken(told, keeps), descriptors=[file.descriptor for file in known[len(self._files) :]])
        self._files = tuple(known[number] for number in keeps)

    def _driven(self, steps: RunCoroutine[Report]) -> Report:
        """Takes steps of the guest's, and listens meanwhile."""
        while True:
            try:
                until = next(steps)
            except StopIteration as end:
                report: Report = end.value
                return report
            now = time.monotonic()
            if now >= self._next_told:
                self._next_told = now + self._told_every
                progress = self.guest.progress()
                if progress is not None:
                    self.tell(Told(progress))
            self._wait(0 if until <= GO_ON else None if until == FOREVER else until - now)
            if self.orders and isinstance(self.orders[0], Rest):
                self.orders.popleft()
                self._rest()

    def _rest(self) -> None:
        """Ends a turn of a call that goes on, and waits for the next one."""
        self._finish(self.guest.end_turn())
        if not isinstance(self._order(), Turn):
            raise Garbled("there is no turn under way")
        self.guest.begin_turn()

    def call(self, number: int, values: tuple[object, ...]) -> object:
        """Calls a function of the embedder's, and waits for what comes of it.

        Raises:
            ToldFailure: It has raised something, or the run is to end.
            CapabilityMissing: It has missed one.
            CallRefused: It has refused something, for which the policy ends the run.
        """
        self.tell(Called(number, values))
        while self._answer is None:
            if self.orders:
                self._call_within(self.orders.popleft())
                continue
            # Beyond the deadline, too: what has become of it counts beside its being late.
            self._wait(None)
        answer, self._answer = self._answer, None
        if answer.late:
            while self.control():
                # The host's clock began a moment before.
                self._wait(max(0.001, self.control.deadline - time.monotonic()))
            raise ToldFailure("the run is over")
        if answer.capability:
            raise CapabilityMissing(answer.capability)
        if answer.refused is not None:
            raise CallRefused(answer.refused)
        if answer.problem:
            raise ToldFailure(answer.problem)
        return answer.values[0] if len(answer.values) == 1 else answer.values

    def _call_within(self, order: Order) -> None:
        """Makes a call while the guest is halted in one of a function of the embedder's."""
        if not isinstance(order, Request) or not order.depth:
            raise Garbled("the guest is halted in a function")
        try:
            report = self._driven(self.guest.within(self._bound(order)))
        except tuple(FAILURES.values()) as problem:
            self.fail(problem)
        else:
            self._finish(report, order.depth)

    def drive(self, memory: GuestBytes, enter: CallExport) -> Generator[float, None, None]:
        """Calls one function after the other, as the host says."""
        before, self._memory = self._memory, lambda: memory
        try:
            yield from self._enter_all(enter)
        finally:
            self._memory = before

    def _enter_all(self, enter: CallExport) -> Generator[float, None, None]:
        self.tell(Entered())
        while True:
            while not self.orders:
                if not self.control():
                    raise GuestStopped(StopReason(cancelled=self.control.cancelled))
                yield self.control.deadline
            order = self.orders.popleft()
            if isinstance(order, Leave):
                return
            if not isinstance(order, Enter):
                raise Garbled("a driven call is under way")
            values = yield from enter(order.export, order.arguments, order.results)
            self.tell(Entered(tuple(values)))

    def _take(self, size: int) -> bytes | None:
        if self._input:
            piece = self._input.pop()
            if len(piece) > size:
                self._input.append(piece[size:])
            return piece[:size]
        if not self._asked:
            self._asked = True
            self.tell(Wants())
        return None

    def _passes_on(self, stream: Any) -> Any:
        def pass_on(piece: bytes) -> None:
            self.tell(Output(stream), piece)

        return pass_on


def _returned(report: Report) -> Returned:
    """Returns what is told of a run of which there is little to tell."""
    usage, fuel, value = report.usage, report.fuel, report.value
    values: Any = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    return Returned(
        usage.wall_seconds,
        usage.cpu_seconds,
        usage.memory_bytes,
        usage.memory_grown_bytes,
        usage.table_elements,
        usage.calls,
        len(report.stdout),
        len(report.stderr),
        None if fuel is None else (fuel.consumed, fuel.left, fuel.exact),
        report.exit_code,
        values,
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


class _Nowhere:
    """Stands for the socket to a host that says one thing, and hears nothing.

    Args:
        line: The socket to the host that there is.
        said: What it says.
    """

    def __init__(self, line: socket.socket, said: bytes) -> None:
        self._line = line
        self._said = said

    def fileno(self) -> int:
        """Returns what would be waited for, by whoever did."""
        return self._line.fileno()

    def recvmsg(self, most: int, room: int, flags: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:  # noqa: ARG002
        """Returns what is said."""
        return self._said, [], 0, None

    def sendmsg(self, parts: Sequence[bytes], with_it: object, flags: int) -> int:  # noqa: ARG002
        """Hears something."""
        return sum(map(len, parts))


class _PassedTrace:
    """Takes the trace of the guest out of the ring, and hands it to the host as it is.

    Args:
        host: The host.
        ring: What is traced.
    """

    def __init__(self, host: _Host, ring: TraceRing) -> None:
        self._host = host
        self._most = max(1, _TRACED_BYTES // ring.slot_bytes)
        self._lost = 0

    def drain(self, state: State, gate: GateRun | None) -> None:  # noqa: ARG002 - the host has it
        """Empties the ring."""
        while slots := take_slots(state, self._most):
            self._host.tell(Traced(), slots)

    def finish(self) -> None:
        """Tells that the guest has ended, in whatever calls it was."""
        self._host.tell(Traced(ended=True))

    def take(self, state: State | None) -> tuple[tuple[TracedCall, ...], int]:
        """Returns no calls, and for how many there was no room since the last time."""
        if state is None:
            return (), 0
        before, self._lost = self._lost, lost_entries(state)
        return (), self._lost - before


class _DrivenCall:
    """A call of which the host says, function by function, what is called.

    Args:
        host: The host.
    """

    def __init__(self, host: _Host) -> None:
        self._host = host

    def perform(
        self,
        call: Call,  # noqa: ARG002 - the host knows it
        memory: GuestBytes,
        enter: CallExport,
        limit_bytes: int,  # noqa: ARG002 - likewise
    ) -> Generator[float, None, Sequence[Number | str]]:
        """Makes the calls."""
        yield from self._host.drive(memory, enter)
        return []
