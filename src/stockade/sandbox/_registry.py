"""The runs and sessions of a sandbox, by their names: looked at, cancelled, and waited for."""

from __future__ import annotations

import itertools
import os
import weakref
from contextvars import ContextVar
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from stockade._bell import MOST_RAISED, wait_until
from stockade._interrupted import may_wait
from stockade._text import printable
from stockade.errors import UsageError
from stockade.runner import RunControl
from stockade.sandbox._checks import check_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Self

    from stockade.execution import OpenGuest
    from stockade.report import Progress
    from stockade.runner import RunCoroutine

__all__ = ["CLOSED", "RunRegistry", "UnderWay", "live_runs"]

_Result = TypeVar("_Result")

CLOSED = "the sandbox is closed: make a new one"

_inside: ContextVar[tuple[object, ...]] = ContextVar("stockade_inside", default=())
"""The registries in whose runs on the executor we are, in a function of the embedder that a guest calls."""


_registries: Final[dict[int, weakref.ref[RunRegistry]]] = {}
"""Those of all sandboxes of the process. Without a lock, as all here."""


def live_runs() -> list[tuple[str, Progress]]:
    """Tells how far all runs and open sessions of the process are, by their names, which sandboxes may share."""
    found: list[tuple[str, Progress]] = []
    for reference in list(_registries.values()):
        registry = reference()
        if registry is not None:
            found += registry.monitor().items()
    return found


class UnderWay:
    """A run on the list, from entering to leaving it: a context manager.

    Attributes:
        control: What tells the run to stop.
    """

    __slots__ = ("_name", "_registry", "control")

    def __init__(self, registry: RunRegistry, run_id: str | None, control: RunControl) -> None:
        self._registry = registry
        self._name = run_id
        self.control = control

    def __enter__(self) -> Self:
        # Whatever the handler of a signal raises in here, the run is on the list only if it is taken off again.
        try:
            self._registry.enlist(self._name, self.control)
            return self  # noqa: TRY300 - what a handler raises here must be seen, too
        except BaseException:
            self._registry.leave(self.control)
            raise

    def __exit__(self, *exception: object) -> None:
        self._registry.leave(self.control)

    def __del__(self) -> None:
        # Where the handler of a signal has raised before the run was off the list.
        # It may not have come to be on any list.
        for _ in range(MOST_RAISED if hasattr(self, "control") else 0):
            try:
                if self._registry.has(self.control):
                    self._registry.leave(self.control)
                break
            except BaseException:  # noqa: S112 - another one: what is raised here is for nobody
                continue

    def until_over(self, steps: RunCoroutine[_Result]) -> RunCoroutine[_Result]:
        """Takes steps, and the run off the list with the last of them: not only when somebody looks at its report."""
        _inside.set((*_inside.get(), self._registry))
        try:
            return (yield from steps)
        finally:
            self._registry.leave(self.control)


class RunRegistry:
    """The list of runs. Safe to share between threads, and to be used by the handlers of signals.

    A run that is given no name has none until somebody asks for it.
    """

    def __init__(self) -> None:
        self._named: dict[str, RunControl] = {}
        # In the order in which they came.
        self._unnamed: dict[RunControl, None] = {}
        # Open sessions; whoever opened them closes them.
        self._sessions: dict[RunControl, weakref.ref[OpenGuest]] = {}
        self._numbers = itertools.count(1)
        key = id(self)
        _registries[key] = weakref.ref(self, lambda _: _registries.pop(key, None))
        self._process = os.getpid()
        self._closed = False
        # What is called whenever a run is over, once nothing can begin any more.
        self._waiters: list[Callable[[], object]] = []

    @property
    def runs(self) -> dict[str, RunControl]:
        """What controls each run, by its name."""
        return self._named | {self._name_of(control): control for control in self._unnamed.copy()}

    def _name_of(self, control: RunControl) -> str:
        # Two who look at once agree on a name.
        name: str = control.name or vars(control).setdefault("name", f"#{next(self._numbers)}")
        return name

    def note_session(self, guest: OpenGuest, control: RunControl) -> None:
        """Puts a session on the list of what is looked at, until its guest is gone.

        Args:
            guest: Its guest.
            control: The control of its calls.
        """
        sessions = self._sessions
        sessions[control] = weakref.ref(guest, lambda _: sessions.pop(control, None))

    def has(self, control: RunControl) -> bool:
        """Whether a run is on the list."""
        return control in self._unnamed or self._named.get(control.name or "") is control

    def here(self, run_id: str | None, do: Callable[..., _Result], *given: Any) -> _Result:
        """Does all of a run on this thread, which must not wait for it meanwhile.

        Args:
            run_id: What the run is called; None for # and a number.
            do: What to do; is called with the run's control, and then:
            *given: What else it is given.

        Returns:
            What it returned.
        """
        if run_id is not None:
            with self.under_way(run_id, here=True) as run:
                return do(run.control, *given)
        control = RunControl()
        control.thread = get_ident()
        unnamed = self._unnamed
        # Python looks for signals in here, and nowhere between this and what takes the run off the list.
        try:
            unnamed[control] = None
            if self._closed:
                raise UsageError(CLOSED)
            return do(control, *given)
        finally:
            unnamed.pop(control, None)
            if self._closed:
                self._tell()

    def under_way(self, run_id: str | None, *, here: bool = False, awaited: bool = False) -> UnderWay:
        """Returns what puts a run on the list while it is entered.

        Args:
            run_id: What the run is called; None for # and a number.
            here: Whether all of it is done on this thread, which must not wait for it then.
            awaited: Whether it is awaited on this thread, which may wait for it by awaiting it only: the handler of a
                signal may have interrupted it before it has handed the run on.
        """
        control = RunControl()
        if here or awaited:
            control.thread = get_ident()
            control.awaited = awaited
        return UnderWay(self, run_id, control)

    def enlist(self, run_id: str | None, control: RunControl) -> None:
        """Puts a run on the list; whoever does takes it off, also where this has raised.

        Raises:
            UsageError: The name is taken, or none that may be given; or the sandbox is closed.
        """
        if run_id is None:
            self._unnamed[control] = None
        else:
            check_text("run_id", run_id)
            if run_id.startswith("#") and run_id[1:].isdecimal():
                raise UsageError(f"a run cannot be called {printable(run_id)}: names of # and a number are reserved")
            # First: whoever takes it off finds it, if it was put there.
            control.name = run_id
            if self._named.setdefault(run_id, control) is not control:
                raise UsageError(f"a run called {printable(run_id)} is under way: give each run a name of its own")
        # Whoever closes the sandbox sees the run on the list, or is seen here.
        if self._closed:
            raise UsageError(CLOSED)

    def leave(self, control: RunControl) -> None:
        """Takes a run off the list; it may be off already."""
        # Without a lock: a forked child would wait for ever for one that another thread had at the fork.
        self._unnamed.pop(control, None)
        name = control.name
        if name is not None and self._named.get(name) is control:
            other = self._named.pop(name, None)
            if other is not None and other is not control:
                # Somebody else took it off between these two calls, and another run of its name has begun.
                self._named.setdefault(name, other)
        if self._closed:
            self._tell()

    def _tell(self) -> None:
        for waiter in tuple(self._waiters):
            waiter()

    def _open_sessions(self) -> dict[str, tuple[RunControl, Progress]]:
        """The sessions whose guests are there, and how far they are."""
        found = {}
        for control, reference in self._sessions.copy().items():
            guest = reference()
            # One that has ended is over, whether or not it is closed.
            told = None if guest is None or guest.ended else guest.progress()
            if told is not None:
                found[self._name_of(control)] = control, msgspec.structs.replace(told, is_session=True)
        return found

    def monitor(self) -> dict[str, Progress]:
        """Tells how far the runs are that have begun, and the open sessions, by their names."""
        found = {}
        for run_id, control in self.runs.items():
            progress = control.progress
            told = None if progress is None else progress()
            if told is not None:
                found[run_id] = told
        for name, (_, told) in self._open_sessions().items():
            found[name] = told
        return found

    def cancel(self, run_id: str) -> bool:
        """Stops a run; whether there was such a one."""
        check_text("run_id", run_id)
        control = self.runs.get(run_id)
        if control is None:
            session = self._open_sessions().get(run_id)
            if session is None or session[1].state == "idle":
                return False
            control = session[0]
        control.cancel()
        return True

    def close(self, asked_by: FrameType | None) -> None:
        """Lets nothing begin any more, cancels what is under way, and waits until it is over.

        Args:
            asked_by: The frame of whoever wants that: it may have interrupted what must go on for this to end.
        """
        self._end()
        if self._is_not_to_wait(awaiting=False) or not may_wait(asked_by):
            return
        wait_until(lambda: not self._any(), self._waiters)

    async def close_async(self) -> None:
        """Does what `close` does, without blocking the event loop."""
        self._end()
        if self._is_not_to_wait(awaiting=True):
            return
        from stockade.runner.loop import wait_until

        await wait_until(lambda: not self._any(), self._waiters)

    def _any(self) -> bool:
        return bool(self._named or self._unnamed)

    def _end(self) -> None:
        self._closed = True
        for control in self.runs.values():
            control.cancel()

    def _is_not_to_wait(self, *, awaiting: bool) -> bool:
        # In a forked child, runs of the parent's threads are on the list for ever.
        if not self._any() or os.getpid() != self._process:
            return True
        # Within one of its own runs, that one would wait for this.
        thread = get_ident()
        return self in _inside.get() or any(
            control.thread == thread and not (control.awaited and awaiting) for control in self.runs.values()
        )
