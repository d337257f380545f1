"""A world with one clock: threads take turns as a seed says, and time passes when nobody has anything to do.

Each simulated thread is a thread of the system, of which one has the baton. It is handed on wherever threads meet (at
locks, waits, sleeps, while a guest is polled) and, for some seeds, between any two lines of the modules that are looked
at. The modules get the world's `threading` and `time` in the place of Python's own.
"""

from __future__ import annotations

import _thread
import random
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import CodeType, FrameType, ModuleType

__all__ = ["BrokenError", "Over", "Signal", "World"]

_NEVER = float("inf")


class BrokenError(AssertionError):
    """Something that must always hold does not."""


class Over(BaseException):
    """The world has come to its end, and every thread with it."""


class Signal(BaseException):
    """What the handler of a signal has raised."""


class _Actor:
    """A simulated thread."""

    def __init__(self, world: World, target: Callable[[], object], name: str) -> None:
        self.world = world
        self.target = target
        self.name = name
        self.number = len(world.names)
        world.names.append(name)
        self.baton = _thread.allocate_lock()
        self.baton.acquire()
        self.ready: Callable[[], bool] | None = None
        self.until = _NEVER
        self.cpu_seconds = 0.0
        self.over = False
        # How many signals it may still get; only the main thread of a process gets any.
        self.signals = 0
        self.handler: Callable[[], object] | None = None

    def may_go_on(self, now: float) -> bool:
        return self.ready is None or self.until <= now or self.ready()


class World:
    """The clock, the threads, and whose turn it is.

    Args:
        seed: What decides.
        modules: Whose lines are places where another thread may come to have its turn.
        fine: How often one does, of a thousand lines; 0: never.
    """

    def __init__(self, seed: int, modules: Iterable[ModuleType] = (), fine: int = 0) -> None:
        self.chance = random.Random(seed)
        self.now = 1000.0
        self.steps = 0
        self.names: list[str] = []
        self.actors: list[_Actor] = []
        self.current: _Actor | None = None
        self.broken: BaseException | None = None
        # How many of a thousand threads cannot be started.
        self.unstartable = 0
        self._fine = fine
        self._files = {module.__file__ for module in modules} if fine else set()
        self._traced: dict[CodeType, bool] = {}
        self._ended = _thread.allocate_lock()
        self._over = False
        self.time = _Time(self)
        self.threading = _Threading(self)
        self.trail: list[str] = []

    # -- taking turns -------------------------------------------------------------------------------------------------

    def run(self, main: Callable[[], object]) -> None:
        """Runs until the main thread is over; raises what is broken."""
        self._ended.acquire()
        actor = _Actor(self, main, "main")
        self._launch(actor)
        self.current = actor
        actor.baton.release()
        self._ended.acquire()
        if self.broken is not None:
            raise self.broken

    def _launch(self, actor: _Actor) -> None:
        self.actors.append(actor)
        _thread.start_new_thread(self._live, (actor,))

    def _live(self, actor: _Actor) -> None:
        actor.baton.acquire()
        _here.actor = actor
        try:
            if not self._over:
                if self._fine:
                    sys.settrace(self._trace)
                actor.target()
        except Over:
            pass
        except BaseException as problem:
            self.fail(problem)
        finally:
            sys.settrace(None)
            _here.actor = None
            actor.over = True
            self.actors.remove(actor)
            self._leave(actor)

    def _leave(self, actor: _Actor) -> None:
        if actor.number == 0:
            self._over = True
        if not self.actors:
            self._ended.release()
            return
        self._hand_on(self.actors[0] if self._over else self._choose())

    def fail(self, problem: BaseException) -> None:
        """Notes the first thing that is broken; the world ends."""
        if self.broken is None:
            self.broken = problem
        self._over = True

    def check(self, holds: bool, what: str) -> None:
        """Says what must always hold."""
        if not holds:
            problem = BrokenError(what)
            self.fail(problem)
            raise problem

    def _choose(self) -> _Actor:
        while True:
            able = [actor for actor in self.actors if actor.may_go_on(self.now)]
            if able:
                return able[0] if len(able) == 1 else self.chance.choice(able)
            then = min(actor.until for actor in self.actors)
            if then == _NEVER:
                waiting = ", ".join(actor.name for actor in self.actors)
                self.fail(BrokenError(f"all wait, and nobody comes: {waiting}"))
                return self.actors[0]
            self.now = then

    def _hand_on(self, actor: _Actor) -> None:
        self.current = actor
        actor.baton.release()

    def step(self) -> None:
        """Another thread may have its turn."""
        me = _here.actor
        if me is None:
            return
        if self._over:
            raise Over
        self.steps += 1
        self.now += 1e-6
        other = self._choose()
        if other is not me:
            self._hand_on(other)
            me.baton.acquire()
        if self._over:
            raise Over

    def wait(self, ready: Callable[[], bool], seconds: float | None = None) -> bool:
        """Waits until something is so, or for so long; says whether it is."""
        me = _here.actor
        assert me is not None
        me.ready = ready
        me.until = _NEVER if seconds is None else self.now + max(0.0, seconds)
        try:
            self.step()
        finally:
            me.ready, me.until = None, _NEVER
        return ready()

    def compute(self, seconds: float) -> None:
        """This thread uses a processor; there is one."""
        me = _here.actor
        assert me is not None
        me.cpu_seconds += seconds
        self.now += seconds

    # -- between two lines --------------------------------------------------------------------------------------------

    def _trace(self, frame: FrameType, *_: object) -> Any:
        code = frame.f_code
        wanted = self._traced.get(code)
        if wanted is None:
            wanted = self._traced[code] = code.co_filename in self._files
        if not wanted:
            return None
        self._signal(frame)
        return self._line

    def _line(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            if self.chance.randrange(1000) < self._fine and _here.actor is not None:
                self.step()
            self._signal(frame, at_a_line=True)
        elif event == "return":
            self._signal(frame)
        return self._line

    def _signal(self, frame: FrameType, *, at_a_line: bool = False) -> None:
        """Python looks for signals where functions begin and when they have returned, and elsewhere."""
        me = _here.actor
        if me is None or not me.signals:
            return
        if me.handler is not None:
            if not self.chance.randrange(60):
                me.signals -= 1
                handler, many, me.signals = me.handler, me.signals, 0
                try:
                    handler()
                except Over:
                    # In a generator, a tracing function cannot raise: it ends at its next step.
                    if not frame.f_code.co_flags & 0x2A0:
                        raise
                me.signals = many
            return
        # A tracing function cannot raise where a generator goes on.
        if not at_a_line and not frame.f_code.co_flags & 0x2A0 and not self.chance.randrange(60):
            me.signals -= 1
            # Python takes a tracing function off that raises.
            sys.setprofile(self._trace_again)
            raise Signal(frame.f_code.co_qualname)

    def _trace_again(self, *_: object) -> None:
        sys.setprofile(None)
        sys.settrace(self._trace)

    def signals(self, many: int, handler: Callable[[], object] | None = None) -> None:
        """Says how many signals this thread gets from now on.

        Args:
            many: How many.
            handler: What is called, between any two lines; by default, one that raises.
        """
        assert _here.actor is not None
        _here.actor.signals = many
        _here.actor.handler = handler


class _Here(threading.local):
    actor: _Actor | None = None


_here = _Here()


class _Time:
    """The module `time` of a world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        return self._world.now

    perf_counter = monotonic

    def thread_time(self) -> float:
        return 0.0 if _here.actor is None else _here.actor.cpu_seconds + _here.actor.number * 1000.0

    def sleep(self, seconds: float) -> None:
        self._world.wait(lambda: False, seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class _Lock:
    """`threading.Lock`, and `RLock`."""

    def __init__(self, world: World, *, again: bool = False) -> None:
        self._world = world
        self._again = again
        self._holder: _Actor | None = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = _here.actor
        if self._holder is not None and not (self._again and self._holder is me):
            if not blocking:
                return False
            if me is None:
                raise Over
            end = _NEVER if timeout < 0 else self._world.now + timeout
            while self._holder is not None:
                if self._world.now >= end:
                    return False
                self._world.wait(lambda: self._holder is None, None if timeout < 0 else end - self._world.now)
        self._holder = me
        self._depth += 1
        return True

    def release(self) -> None:
        if not self._depth:
            raise RuntimeError("release unlocked lock")
        self._depth -= 1
        if not self._depth:
            self._holder = None

    def locked(self) -> bool:
        return self._holder is not None

    def _is_owned(self) -> bool:
        return self._holder is not None and self._holder is _here.actor

    def __enter__(self) -> bool:
        self._world.step()
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _Condition:
    """`threading.Condition`."""

    def __init__(self, world: World, lock: _Lock | None = None) -> None:
        self._world = world
        self._lock = lock or _Lock(world)
        self._told: list[list[bool]] = []

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        told = [False]
        self._told.append(told)
        self._lock.release()
        try:
            return self._world.wait(lambda: told[0], timeout)
        finally:
            if told in self._told:
                self._told.remove(told)
            self._lock.acquire()

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        while not predicate():
            self.wait(timeout)
        return True

    def notify_all(self) -> None:
        for told in self._told:
            told[0] = True
        self._told.clear()

    notify = notify_all


class _Event:
    """`threading.Event`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._set = False

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        return self._world.wait(lambda: self._set, timeout)


class _Thread:
    """`threading.Thread`."""

    def __init__(self, world: World, target: Callable[[], object], name: str) -> None:
        self._world = world
        self._actor = _Actor(world, target, name)
        self._actor.thread = self  # type: ignore[attr-defined]
        self.name = name

    def start(self) -> None:
        self._world.step()
        if self._world.chance.randrange(1000) < self._world.unstartable and _here.actor is not None:
            raise RuntimeError("can't start new thread")
        self._world._launch(self._actor)

    def join(self, timeout: float | None = None) -> None:
        self._world.wait(lambda: self._actor.over, timeout)


class _Threading:
    """The module `threading` of a world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def Lock(self) -> _Lock:  # noqa: N802
        return _Lock(self._world)

    def RLock(self) -> _Lock:  # noqa: N802
        return _Lock(self._world, again=True)

    def Condition(self, lock: _Lock | None = None) -> _Condition:  # noqa: N802
        return _Condition(self._world, lock)

    def Event(self) -> _Event:  # noqa: N802
        return _Event(self._world)

    def Thread(self, target: Callable[[], object], name: str = "", **_: object) -> _Thread:  # noqa: N802
        return _Thread(self._world, target, name)

    def current_thread(self) -> object:
        return getattr(_here.actor, "thread", None)

    def get_ident(self) -> int:
        return -1 if _here.actor is None else _here.actor.number

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)
