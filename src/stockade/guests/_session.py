"""Sessions: one live interpreter each, that keeps its state like a notebook."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING

from stockade.errors import SnapshotError, UsageError
from stockade.execution import SavedGuest
from stockade.guests._folder import PrivateFolder, check_files, check_patterns
from stockade.guests._idle import close_when_idle, forget
from stockade.guests._task import make_task
from stockade.runner import GO_ON, run_blocking
from stockade.sandbox import Occupancy, Snapshot, check_keywords

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Never, Self

    from stockade._bytes import BytesLike
    from stockade.execution import OpenGuest
    from stockade.guests._result import CodeResult
    from stockade.guests._task import Plain, Task
    from stockade.guests._tools import Toolbox
    from stockade.guests._turns import Turns
    from stockade.report import Report
    from stockade.runner import RunControl, RunCoroutine
    from stockade.sandbox import Sandbox, SessionAuditor

__all__ = ["Interpreter", "LanguageSession"]

_OF_SESSIONS = {
    name: f"session({name}=...), for all that runs in it"
    for name in ("policy", "env", "idle", "on_stdout", "on_stderr")
}
"""What is given when a session is opened."""


class Interpreter:
    """A live interpreter, with all that is its own.

    Args:
        box: The sandbox that it runs in.
        folder: Its files.
        toolbox: The tools that are lent to it.
        guest: The guest.
        control: Its control.
        turns: How it is given turns.
        read: Makes a result of a report, and of what the interpreter has left.
        auditor: Tells an audit log of it; None where there is none.
    """

    def __init__(
        self,
        box: Sandbox,
        folder: PrivateFolder,
        toolbox: Toolbox,
        guest: OpenGuest,
        control: RunControl,
        turns: Turns,
        read: Callable[[Report, Interpreter, Sequence[str]], CodeResult],
        auditor: SessionAuditor | None,
    ) -> None:
        self.box = box
        self.folder = folder
        self.toolbox = toolbox
        self.guest = guest
        self.control = control
        self.turns = turns
        self.read = read
        self.auditor = auditor
        # Whether code in it is given secrets; and its environment, until it is given that.
        self.has_secrets = False
        self.variables: Mapping[str, str] | None = None
        # What was last taken of it, for as long as nothing has run since.
        self._taken: Snapshot | None = None

    def take(self) -> Snapshot:
        """Takes what it holds, for forks to begin with: once, until something runs.

        Raises:
            SnapshotError: It holds what cannot be taken.
        """
        if self._taken is None:
            self._taken = Snapshot(SavedGuest(self.guest.take_state()))
        return self._taken

    def run(self, task: Task) -> RunCoroutine[Report]:
        """Has it run a piece of code, in steps.

        Args:
            task: The code.
        """
        self._taken = None
        variables, self.variables = self.variables, None
        return self.turns.turn(task._replace(env=variables) if variables else task)

    @property
    def over(self) -> bool:
        """Whether it has come to its end."""
        return self.turns.over or self.guest.ended

    def close(self) -> None:
        """Ends it, and removes its files."""
        self._taken = None
        try:
            self.turns.close()
        finally:
            self.guest.close()
            self.box.close()
            self.folder.close()
            if self.auditor is not None:
                self.auditor.close()


class LanguageSession:
    """One live interpreter: what a piece of code defines is there for the next. Use it as a context manager.

    Each piece has its own budget of fuel and time, and its own report. It is for one thread at a time; whoever comes
    second is told so. Where a piece is stopped, or ends the interpreter, the state is gone (`CodeResult.survived`), and
    the next piece finds a fresh one only after `reset`.

    Attributes:
        turns: How many pieces have been run.
        last_used: When the last of them was over, by `time.monotonic`.
    """

    _closed = True  # until there is something to close

    def __init__(
        self,
        opened: Callable[[], Interpreter],
        forked: Callable[[Interpreter, bool], Interpreter],
        prepared: Callable[[Task], Task],
        checked: Callable[[object, object], None],
        *,
        takes_bytes: bool,
        idle_seconds: float | None,
        begun: Interpreter | None = None,
    ) -> None:
        self._open = opened
        self._fork = forked
        self._prepared = prepared
        self._checked = checked
        self._takes_bytes = takes_bytes
        self._occupancy = Occupancy()
        self._idle_seconds = idle_seconds
        self._interpreter = opened() if begun is None else begun
        self._why = ""
        self.turns = 0
        self.last_used = time.monotonic()
        self._closed = False
        if idle_seconds is not None:
            try:
                close_when_idle(self, idle_seconds)
            except BaseException:
                self.close()
                raise

    def __del__(self) -> None:
        if not self._closed:
            warnings.warn(f"unclosed session {self!r}", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{' closed' if self._closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.close)

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._closed

    @property
    def alive(self) -> bool:
        """Whether its state is there, so that it can go on."""
        return not self._closed and not self._interpreter.over

    def run(
        self,
        code: str,
        *,
        files: Mapping[str, BytesLike] | None = None,
        inputs: Mapping[str, Plain] | None = None,
        args: Sequence[str] = (),
        stdin: BytesLike = b"",
        collect: Sequence[str] = (),
        **_unknown: Never,
    ) -> CodeResult:
        """Runs a piece of code.

        Args:
            code: The code.
            files: Files that are put into `/workspace` first.
            inputs: Variables that are set first.
            args: Arguments.
            stdin: What it reads from its standard input.
            collect: Which files below `/workspace` are returned.

        Raises:
            UsageError: The session is over, in use by another thread, or an argument is unfit.
        """
        check_keywords("session.run()", _unknown, _OF_SESSIONS)
        steps, control = self.steps(code, files=files, inputs=inputs, args=args, stdin=stdin, collect=collect)
        return run_blocking(steps, control)

    async def run_async(
        self,
        code: str,
        *,
        files: Mapping[str, BytesLike] | None = None,
        inputs: Mapping[str, Plain] | None = None,
        args: Sequence[str] = (),
        stdin: BytesLike = b"",
        collect: Sequence[str] = (),
        **_unknown: Never,
    ) -> CodeResult:
        """Does what `run` does, without blocking the event loop; cancelling the task stops the code, and the session.

        Args:
            code: As in `run`; so are all other arguments.
            files: Files that are put into `/workspace` first.
            inputs: Variables that are set first.
            args: Arguments.
            stdin: Its standard input.
            collect: Which files are returned.
        """
        check_keywords("session.run_async()", _unknown, _OF_SESSIONS)
        from stockade.runner import NORMAL_PRIORITY
        from stockade.runner.loop import await_run

        steps, control = self.steps(code, files=files, inputs=inputs, args=args, stdin=stdin, collect=collect)
        # The session is taken now, not when a thread has time for it.
        next(steps)
        return await await_run(steps, control, NORMAL_PRIORITY, "")

    def steps(
        self,
        code: str,
        *,
        files: Mapping[str, BytesLike] | None = None,
        inputs: Mapping[str, Plain] | None = None,
        args: Sequence[str] = (),
        stdin: BytesLike = b"",
        collect: Sequence[str] = (),
        echo: bool = False,
    ) -> tuple[RunCoroutine[CodeResult], RunControl]:
        """Returns the run of a piece of code in steps that somebody else takes, and its control.

        Args:
            code: As in `run`; so are all other arguments.
            files: Files that are put into `/workspace` first.
            inputs: Variables that are set first.
            args: Arguments.
            stdin: Its standard input.
            collect: Which files are returned.
            echo: Whether the value is shown on stdout, as an interactive interpreter does.
        """
        name = f"<cell {self.turns + 1}>"
        task = make_task(code, name, inputs, args, stdin, None, takes_bytes=self._takes_bytes)
        task = self._prepared(task)._replace(session=True, echo=echo)
        given, patterns = check_files(files), check_patterns(collect)
        self._checked(given, patterns)
        return self._steps(task, given, patterns), self._interpreter.control

    def _steps(
        self, task: Task, given: Mapping[tuple[str, ...], bytes], patterns: Sequence[str]
    ) -> RunCoroutine[CodeResult]:
        holder = object()
        try:
            self._occupancy.take(holder, self._check_open, self._begin)
            yield GO_ON
            interpreter = self._own()
            if interpreter.over:
                raise UsageError("the interpreter has ended, so its state is gone: reset the session")
            self.turns += 1
            interpreter.folder.put(given)
            interpreter.toolbox.begin()
            if interpreter.auditor is None:
                report = yield from interpreter.run(task)
            else:
                report = yield from interpreter.auditor.steps("", lambda: interpreter.run(task))
            return interpreter.read(report, interpreter, patterns)
        finally:
            try:
                if self._occupancy.holder is holder:
                    self.last_used = time.monotonic()
            finally:
                if self._occupancy.holder is holder:
                    self._occupancy.holder = None

    def fork(self, *, forks: bool = False) -> LanguageSession:
        """Opens another session that begins as this one is now: with its state, and a copy of its files.

        Neither sees what the other does from then on. What this one has not written since is shared, in memory.

        Args:
            forks: Whether the fork is opened with that, as in `Python.session`.

        Raises:
            SnapshotError: The interpreter holds what cannot be taken: open files, which must be closed first, or
                secrets that it was given.
            UsageError: The session is over, in use by another thread, or its interpreter cannot be forked.
        """
        holder = object()
        try:
            self._occupancy.take(holder, self._check_open, self._begin)
            interpreter = self._own()
            if interpreter.over:
                raise UsageError("the interpreter has ended, so there is nothing to fork: reset the session")
            if interpreter.has_secrets:
                raise SnapshotError(
                    "the code was given secrets, which a fork would hold: open the session under a policy that names "
                    "none in custom.secrets"
                )
            begun = self._fork(interpreter, forks)
        finally:
            if self._occupancy.holder is holder:
                self._occupancy.holder = None
        forked = LanguageSession(
            self._open,
            self._fork,
            self._prepared,
            self._checked,
            takes_bytes=self._takes_bytes,
            idle_seconds=self._idle_seconds,
            begun=begun,
        )
        forked.turns = self.turns
        return forked

    def reset(self) -> None:
        """Begins anew, with a fresh interpreter and an empty workspace.

        Raises:
            UsageError: The session is closed, or in use by another thread.
        """
        holder = object()
        try:
            self._occupancy.take(holder, self._check_open, self._begin)
            fresh = self._open()
            old, self._interpreter = self._interpreter, fresh
            old.close()
        finally:
            if self._occupancy.holder is holder:
                self._occupancy.holder = None

    def cancel(self) -> None:
        """Stops what is under way, which ends the interpreter. May be called from any thread."""
        self._occupancy.cancel(lambda: self._interpreter.control)

    def close(self) -> None:
        """Ends the session, and removes its files. Closing twice is harmless.

        Raises:
            UsageError: It is in use by another thread: cancel that first.
        """
        self._end("the session is closed: open a new one")

    def close_idle(self, why: str) -> bool:
        """Ends the session, unless it is in use.

        Args:
            why: What whoever uses it afterwards is told.

        Returns:
            Whether it is over.
        """
        try:
            self._end(why)
        except UsageError:
            return False
        return True

    def _end(self, why: str) -> None:
        holder = object()
        try:
            self._occupancy.take(holder)
            if not self._closed:
                self._why = why
                self._closed = True
                if self._idle_seconds is not None:
                    forget(self)
                self._interpreter.close()
        finally:
            if self._occupancy.holder is holder:
                self._occupancy.holder = None

    def _own(self) -> Interpreter:
        """Returns the interpreter, in the process that has opened it.

        Raises:
            UsageError: It is of the process that this one was forked from.
        """
        if not self._interpreter.folder.is_ours:
            raise UsageError("the session was opened before this process was forked: open one here")
        return self._interpreter

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(self._why)

    def _begin(self) -> None:
        self._interpreter.control.cancelled = False
