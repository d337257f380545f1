"""One live instance of a module: made, given what it needs, looked at, and freed."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from stockade._locks import reentrant_lock
from stockade._pages import PAGE_BYTES
from stockade.engine import InstantiationError
from stockade.errors import UsageError
from stockade.execution._budget import Budget
from stockade.execution._classify import StopReason
from stockade.execution._first_pages import memories_of
from stockade.execution._open import OpenGuest
from stockade.execution._plan import SLACK_BYTES
from stockade.execution._reentry import Reentry
from stockade.execution._snapshot import known_apart, make_forkable, put_guest_state, take_guest_state
from stockade.execution._string_calls import MEMORY
from stockade.guard import PROGRAM_NAME, Mailbox, State, place_inputs
from stockade.report import QuotaUse

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    from stockade.egress import Client, GuestNetwork
    from stockade.engine import HaltedMemory, Instance, InstanceState, Memory
    from stockade.execution._first_pages import FirstPages
    from stockade.execution._monitoring import RunMonitor
    from stockade.execution._mounts import OpenMounts
    from stockade.execution._plan import Plan
    from stockade.execution._ready import ReadyPool
    from stockade.execution._snapshot import GuestState
    from stockade.execution._streams import Streams
    from stockade.execution._throttle import Throttle
    from stockade.execution._timekeeper import Timekeeper
    from stockade.execution._tracing import TraceTaker
    from stockade.guard import TraceRing, Woven
    from stockade.report import PolicyInfo, Trace, Usage
    from stockade.runner import RunControl
    from stockade.runner.own_loop import OwnLoop

__all__ = ["LiveGuest"]

_CLOSED = StopReason()

_NOTHING_EARLIER: Final = QuotaUse()

_NO_VARIABLES: Final[Mapping[bytes, bytes]] = MappingProxyType({})

_MOST_DOUBLINGS = 10
"""How often an open that is interrupted may take twice as long the next time: up to 20 seconds."""


class LiveGuest(OpenGuest):
    """One live instance of a module under a policy, from when it is made until it is freed.

    Args:
        plan: What to run, and under which policy.
        policy_info: The policy's name and digest, for reports.
        grants: What it may reach, held open until it is closed.
        control: Says when it must stop.
        args: Arguments for the guest, after its own name.
        env: Its environment.
        stdin: Its standard input, unless `streams` has a callback for it.
        streams: Callbacks for output and input while it runs.
        waiting: An instance for it that was made ahead, for a run with callbacks or without.

    Raises:
        EngineError: There is no room for an instance.
        UsageError: The inputs do not fit.

    Attributes:
        pool: Where it waited, or might have, which frees its instance later.
        halted_memory: Its memory for functions of the embedder, while it is halted in a call of one; None where it
            exports none, or calls no function that is given something of it.
    """

    halted_memory: HaltedMemory | None = None
    # As every guest begins; most never come to have another.
    _instance: Instance | None = None
    _state: State | None = None
    _streams: Streams | None = None
    pool: ReadyPool[Any] | None = None
    _grants: OpenMounts | None = None
    _started = True
    _ending: StopReason | None = None
    _budget: Budget | None = None
    _throttle: Throttle | None = None
    _timekeeper: Timekeeper | None = None
    _mailbox: Mailbox | None = None
    _tracer: TraceTaker | None = None
    _reentry: Reentry | None = None
    _own_loop: OwnLoop | None = None
    _client: Client | None = None
    _network: GuestNetwork | None = None
    _problem = ""
    _raised: BaseException | None = None
    _timed = False
    _begun = _cpu_mark = _resumed = 0.0
    _instantiate_seconds = _wall_seconds = _cpu_seconds = _rested_seconds = 0.0
    _used_bytes = math.inf
    _below: InstanceState | None = None
    _is_unsure = False
    _begins = False
    _halted = 0.0
    _looked_at: threading.RLock | None = None
    _monitor: RunMonitor | None = None
    _usage: Usage | None = None
    _earlier = _NOTHING_EARLIER
    _memory_before: int | None = None
    _longest_wait = 0.0
    # Whether little was told of its last call.
    _was_plain = False
    # Whether it began with no page of its own; and who is to learn which pages it has written to.
    _shares_all = False
    _learns: FirstPages | None = None

    def __init__(
        self,
        plan: Plan,
        policy_info: PolicyInfo,
        grants: OpenMounts,
        control: RunControl,
        *,
        args: Sequence[bytes] = (),
        env: Mapping[bytes, bytes] = _NO_VARIABLES,
        stdin: bytes = b"",
        streams: Streams | None = None,
        waiting: Instance | None = None,
    ) -> None:
        self._made = begun = time.perf_counter()
        self._plan = plan
        self._policy_info = policy_info
        self._grants = grants
        self._limits = plan.limits
        self._control = control
        self._placed = plan.bare
        is_bare = plan.is_bare and not (args or env or stdin or streams)
        # Whoever comes to drop the guest, at whatever moment, frees the instance with it: its store has one owner.
        if is_bare:
            instance = self._instance = plan.instantiate(0)
        else:
            self._place_inputs(args, env, stdin, streams)
            if plan.begins_too_large:
                # Not instantiated at all: the module asks for more than it may have.
                self._ending = StopReason.too_large(plan.program.woven, plan.limits, restored=plan.held is not None)
                return
            try:
                instance = self._instance = waiting or plan.instantiate(
                    self._guard_bytes, streamed=self._streams is not None
                )
            except InstantiationError:
                if not plan.module.parsed.may_begin_with_objects:
                    raise
                # The engine has room for as many instances as are admitted: what was full is the heap of this one.
                self._ending = StopReason.heap_full(plan.limits)
                return
        try:
            if instance.failure is not None:
                self._ending = StopReason(failure=instance.failure)
            elif is_bare:
                self._write_state(instance)
            else:
                self._restore(instance, waiting)
                if plan.forks:
                    make_forkable(plan, instance)
                self._set_up(instance, plan.program.woven)
        except BaseException:
            self.close()
            raise
        self._instantiate_seconds = time.perf_counter() - begun

    def begin_under(self, control: RunControl, pool: ReadyPool[Any] | None = None) -> None:
        """Gives a guest that was made ahead, and of which nothing has run, to the run that it is for.

        Args:
            control: Says when it must stop.
            pool: Where it has waited; None where there is none.
        """
        self._control, self.pool = control, pool
        self._made, self._instantiate_seconds = time.perf_counter(), 0.0

    def _place_inputs(
        self, args: Sequence[bytes], env: Mapping[bytes, bytes], stdin: bytes, streams: Streams | None
    ) -> None:
        plan = self._plan
        if plan.program.woven.start_export is not None:
            self._started = False
        if plan.trace is not None:
            self._trace(plan.trace)
        if streams is not None:
            self._streams = streams
            given = None if streams.stdin is not None else stdin
            arguments = [PROGRAM_NAME, *args]
            self._placed = place_inputs(
                plan.state, plan.limits, arguments, env, given, listening=streams.listening, trace=plan.ring
            )
        elif args or env or stdin or plan.ring is not None:
            self._placed = place_inputs(plan.state, plan.limits, [PROGRAM_NAME, *args], env, stdin, trace=plan.ring)

    def _trace(self, trace: Trace) -> None:
        # Most guests are not traced.
        from stockade.execution._tracing import tracer_of

        self._tracer = tracer_of(self._plan, trace)

    @property
    def ring(self) -> TraceRing | None:
        """What is asked of the guard where its calls are traced."""
        return self._plan.ring

    def trace_by(self, taker: TraceTaker) -> None:
        """Has somebody else take its trace, before anything of it is called.

        Args:
            taker: Who takes it.
        """
        self._tracer = taker

    @property
    def _guard_bytes(self) -> int:
        """How large the guard's memory may become, in whole pages."""
        return -(-(self._placed.end_bytes + SLACK_BYTES) // PAGE_BYTES) * PAGE_BYTES

    @property
    def ended(self) -> bool:
        """Whether the guest has come to its end, so that it can not be called again."""
        return self._ending is not None

    @property
    def is_restored(self) -> bool:
        """Whether it began with what another guest held, so that it is not to be initialized."""
        return self._plan.held is not None

    @property
    def used_memory_bytes(self) -> int:
        """How large its memories and tables are, as the guard counts them."""
        state = self._state
        return self._plan.program.woven.initial_memory_bytes if state is None else state.get("memory_used", "<Q")

    def _restore(self, instance: Instance, waiting: Instance | None) -> None:
        """Sees to it that the guest begins with what another one held, where it is to."""
        plan, held = self._plan, self._plan.held
        if held is None:
            return
        if waiting is None:
            put_guest_state(plan, instance, held)
            self._shares_all = True
        else:
            # It was made before it was known what this guest is given.
            instance.limit(*plan.instance_limits(self._guard_bytes))
        self._below = held.instance

    def _set_up(self, instance: Instance, woven: Woven) -> None:
        plan, limits = self._plan, self._limits
        if plan.directories:
            instance.watch(self)
        if limits.fuel_refill:
            self._measure_fuel(instance)
        if woven.state_export is not None:
            state = self._write_state(instance)
            if plan.functions:
                self._make_mailbox(instance, state)
            if woven.collects or self._guard_bytes > limits.memory or len(woven.natives) > limits.table_elements:
                # The engine knows one limit for all memories. So the guard's gets what it can come to need, and then
                # the limit is the guest's: it holds for growth, too, that the guard should not have seen.
                state.memory.grow_to(self._guard_bytes)
                self._limit_memories(instance)
        elif woven.collects:
            self._limit_memories(instance)

    def _write_state(self, instance: Instance) -> State:
        program = self._plan.program
        format_, export = program.state_format, program.woven.state_export
        assert export is not None
        state = self._state = State(instance.woven_memory(export, format_.memory_bytes), format_, program.calls)
        state.write(self._placed)
        return state

    def _make_mailbox(self, instance: Instance, state: State) -> None:
        mailbox = self._mailbox = Mailbox(state.memory)
        self._reentry = Reentry(self._plan.program.woven, mailbox)
        instance.calls_out = True
        # Found before any call is halted in which it could be asked for.
        with suppress(KeyError):
            self.halted_memory = instance.memory(MEMORY).while_halted(known_apart(instance, mailbox.memory_bytes))

    def _limit_memories(self, instance: Instance, *, growing: bool = False) -> None:
        """Tells the engine how large any memory may become, the heap of the guest's objects included.

        Args:
            instance: The guest.
            growing: Whether nothing but a memory can grow before this is said again.
        """
        plan = self._plan
        largest = plan.heap_bytes if plan.program.woven.collects and not growing else plan.memories_bytes
        instance.limit(largest, self._limits.table_elements)

    def _measure_fuel(self, instance: Instance) -> Budget:
        plan = self._plan
        assert plan.fuel is not None
        self._budget = Budget(instance, plan.fuel, plan.overdraft, plan.fuel_most, self._limits)
        self._budget.start()
        return self._budget

    def memory(self, name: bytes) -> Memory:
        """Returns an exported memory of the guest.

        Raises:
            UsageError: It has none of that name, or has ended.
        """
        if self._instance is None or self._ending is not None:
            raise UsageError("the guest has ended: its memory is gone. Open a new session")
        try:
            return self._instance.memory(name)
        except KeyError:
            raise UsageError("the guest exports no memory") from None

    def take_state(self) -> GuestState:
        """Takes what it holds, between two calls.

        Raises:
            UsageError: It has ended.
            SnapshotError: There is more to it than can be taken.
            EngineError: There is no room for a snapshot.
        """
        instance = self._instance
        if instance is None or self._ending is not None:
            raise UsageError("the guest has ended, so there is nothing to take a snapshot of. Open a new session")
        # Where this does not come to its end, what is below may be mapped in parts.
        whole, self._is_unsure = self._is_unsure, True
        held, self._below = take_guest_state(
            self._plan, instance, self._state, self._below, started=self._started, whole=whole
        )
        self._is_unsure = False
        return held

    @property
    def below(self) -> InstanceState | None:
        """What of earlier snapshots its memories share, which counts for the next one; None where they share none."""
        return self._below

    def _looking(self) -> threading.RLock:
        """Returns what is held while somebody looks at the guest from another thread, or in the middle of anything.

        Made where it is wanted, which is seldom. Whoever frees the guest first takes the instance away, and then waits
        for those who look; so whoever has this and finds an instance may look at it. Reentrant, for the handler of a
        signal may look while its thread does.
        """
        lock: threading.RLock = vars(self).setdefault("_looked_at", reentrant_lock())
        return lock

    def patience(self) -> int | None:
        """Says how many ticks a path that the guest opens may take, before that is interrupted; None: it opens none.

        Twice as many each time, for there are file systems that take long and begin anew when they are interrupted; but
        none where the run is to end. May be called from any thread, at any time.
        """
        with self._looking():
            state = self._state
            times = 0 if state is None or self._instance is None else int(state.get("opening", "<I"))
        if not times:
            return None
        return 2 << min(times - 1, _MOST_DOUBLINGS) if self._control() else 0

    def keep(self) -> None:
        """Sees to it that its instance is freed after all that could look at it, where it is dropped and not closed."""
        if self._instance is not None:
            self._instance.keep()

    def close(self) -> None:
        """Frees everything. Closing twice is harmless."""
        if self._network is not None:
            self._network.end()
        if self._own_loop is not None:
            self._own_loop.close()
        instance = self._instance
        if instance is not None:
            self._instance = self._state = self._mailbox = self.halted_memory = None
            looked_at = self._looked_at
            if looked_at is not None:
                # Whoever comes later finds nothing to look at.
                with looked_at:
                    pass
            if self._learns is not None and self._ending is None:
                self._learns.learn(instance, memories_of(self._plan.program.woven))
            pool = self.pool
            if pool is None or not pool.leave(instance, is_whole=self._ending is None):
                instance.close(self._used_bytes)
        self._grants = None
        if self._ending is None:
            self._ending = _CLOSED
