"""Sessions: one live instance each, with its memory and globals kept between calls."""

from __future__ import annotations

import warnings
from threading import get_ident
from typing import TYPE_CHECKING, TypeVar, overload

from stockade._bytes import bytes_of
from stockade._text import printable
from stockade.errors import LimitExceeded, SnapshotError, UsageError
from stockade.execution import Call, Inputs, SavedGuest, bind_arguments
from stockade.runner import GO_ON, run_blocking
from stockade.sandbox._checks import check_whole
from stockade.sandbox._occupancy import Occupancy
from stockade.sandbox._snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Literal, Self

    from stockade._bytes import BytesLike
    from stockade.engine import GuestBytes
    from stockade.execution import Argument, AsyncStdin, OnOutput, OnOutputAsync, OpenGuest, Returns, Stdin
    from stockade.execution.loop_streams import LoopStreams
    from stockade.modules import Module
    from stockade.report import Report
    from stockade.runner import RunControl, RunCoroutine
    from stockade.sandbox._session_auditing import SessionAuditor

__all__ = ["AsyncSession", "Session"]

_Result = TypeVar("_Result")


class _Session:
    """What sessions of both kinds share.

    One at a time has the session: a call from its beginning until its guest is polled no more, or who looks at its
    memory. Whoever comes second is told so instead of waiting.
    """

    _closed = True  # until there is something to close

    def __init__(
        self, module: Module, guest: OpenGuest, control: RunControl, inputs: Inputs, auditor: SessionAuditor | None
    ) -> None:
        self._module = module
        self._auditor = auditor
        self._inputs = inputs
        # The last snapshot, for as long as nothing has changed since.
        self._snapshot: Snapshot | None = None
        self._guest = guest
        self._control = control
        # Nobody closes it for sure, and what refers to the session may look at its memory to the last.
        guest.keep()
        control.calls_out = guest.calls_out
        self._occupancy = Occupancy()
        self._thread = 0
        self.initialization: Report | None = None
        self.has_secrets = False
        self._closed = False

    def __del__(self) -> None:
        # The guest is freed by whoever drops it last, so not while it is polled; what is left to do is to tell.
        if not self._closed:
            warnings.warn(f"unclosed session {self!r}", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._module.name}{' closed' if self._closed else ''}>"

    def read_memory(self, address: int, size: int) -> bytes:
        """Copies bytes out of the guest's exported memory.

        Args:
            address: Where they begin.
            size: How many there are.

        Raises:
            UsageError: They are not all inside it, or the session is over.
        """
        check_whole("address", address)
        check_whole("size", size)
        return self._with_memory(lambda memory: memory.read(address, size))

    def write_memory(self, address: int, data: BytesLike) -> None:
        """Copies bytes into the guest's exported memory.

        Args:
            address: Where they begin.
            data: Bytes, or a text, which is written as UTF-8.

        Raises:
            UsageError: They do not all fit inside it, the session is over, or an argument is of another type.
        """
        check_whole("address", address)
        piece = bytes_of(data, "data")

        def write(memory: GuestBytes) -> None:
            self._snapshot = None
            memory.write(address, piece)

        self._with_memory(write)

    def cancel(self) -> None:
        """Stops a call that is under way, and ends the session. May be called from any thread."""
        self._occupancy.cancel(lambda: self._control)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the session is closed: open a new one")

    def _begin(self) -> None:
        self._control.cancelled = False

    def _with_memory(self, use: Callable[[GuestBytes], _Result]) -> _Result:
        holder = object()
        try:
            self._occupancy.take(holder, self._check_open, self._begin)
            return use(self._guest.memory(b"memory"))
        except IndexError as problem:
            raise UsageError(f"outside the guest's memory: {problem}") from None
        finally:
            if self._occupancy.holder is holder:
                self._occupancy.holder = None

    def _steps(self, call: Call) -> RunCoroutine[Report]:
        """Makes a call. From its first step on, which does nothing else, it has the session until it is over."""
        holder = object()
        try:
            self._occupancy.take(holder, self._check_open, self._begin)
            self._thread = get_ident()
            yield GO_ON
            if self._guest.ended:
                raise UsageError("the guest has ended, so the session is over: open a new one")
            # That of the last call may be over.
            self._control.start(None)
            self._snapshot = None
            self._guest.renew()
            auditor = self._auditor
            if auditor is not None:
                name = printable(call.entry.name)
                return (yield from auditor.steps(name, lambda: self._guest.invoke(call)))
            return (yield from self._guest.invoke(call))
        finally:
            if self._occupancy.holder is holder:
                self._occupancy.holder = None

    def _taking(self) -> RunCoroutine[Snapshot]:
        """Takes a snapshot. As `_steps`, from its first step on it has the session."""
        holder = object()
        try:
            self._occupancy.take(holder, self._check_open, self._begin)
            yield GO_ON
            if self.has_secrets:
                raise SnapshotError(
                    "the guest was given secrets, which a snapshot would hold, and a fork: open it under a policy that "
                    "names none in custom.secrets"
                )
            found = self._snapshot
            if found is None:
                found = self._snapshot = Snapshot(SavedGuest(self._guest.take_state()))
                if self._auditor is not None:
                    self._auditor.snapshot_taken(found.memory_bytes)
            return found
        finally:
            if self._occupancy.holder is holder:
                self._occupancy.holder = None

    def _inputs_of_fork(
        self, stdin: AsyncStdin, on_stdout: OnOutputAsync | None, on_stderr: OnOutputAsync | None, forks: bool
    ) -> Inputs:
        return self._inputs._replace(stdin=stdin, on_stdout=on_stdout, on_stderr=on_stderr, forks=forks)

    def _free(self) -> None:
        holder = object()
        try:
            self._occupancy.take(holder, otherwise="a call is under way in another thread: cancel it first")
            self._closed = True
            self._snapshot = None
            self._guest.close()
            if self._auditor is not None:
                self._auditor.close()
        finally:
            if self._occupancy.holder is holder:
                self._occupancy.holder = None


def _check_begun(guest: OpenGuest) -> None:
    """Checks that a guest is there to be called.

    Raises:
        LimitExceeded: It needs more than it may have.
    """
    if guest.ended:
        report = guest.final_report()
        for violation in report.violations:
            if guest.is_restored and violation.kind == "memory":
                raise LimitExceeded(
                    f"{report.module.name}: the snapshot has {violation.observed:,} bytes of memory; the policy allows "
                    f"{violation.limit:,} (limits.memory)",
                    report,
                )
        report.check()


class Session(_Session):
    """One live instance: its memory and globals are kept between calls. Use it as a context manager.

    Each call has its own budget of fuel and time, and its own report. When the guest traps, exits or is stopped, the
    session is over: what is left of it is not to be trusted.

    Attributes:
        initialization: The report on a reactor's `_initialize`; None for a guest that has none.
    """

    def __init__(
        self,
        module: Module,
        guest: OpenGuest,
        control: RunControl,
        inputs: Inputs,
        reopen: Callable[[Snapshot, Inputs], Session],
        auditor: SessionAuditor | None = None,
    ) -> None:
        super().__init__(module, guest, control, inputs, auditor)
        self._reopen: Callable[[Snapshot, Inputs], Session] | None = reopen
        try:
            _check_begun(guest)
            if module.initializer is not None and not guest.is_restored:
                self.initialization = self._invoke(Call(module.initializer)).check()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @overload
    def call(self, export: str, *args: Argument, returns: Literal["text"]) -> Report[str | None]: ...

    @overload
    def call(self, export: str, *args: Argument, returns: Literal["bytes"]) -> Report[bytes | None]: ...

    @overload
    def call(self, export: str, *args: Argument, returns: Returns | None = None) -> Report: ...

    def call(self, export: str, *args: Argument, returns: Returns | None = None) -> Report:
        """Calls an exported function.

        Args:
            export: Name of the function.
            *args: What is passed, as to `Sandbox.call`.
            returns: What the result is read as, as there.

        Raises:
            LinkError: There is no such function.
            UsageError: The session is over, in use by another thread, or the arguments do not fit.
        """
        bound = bind_arguments(self._module, export, args, returns)
        if self._guest.is_in_function and self._thread == get_ident():
            # By a host function that the guest calls.
            return self._guest.call_within(bound)
        return self._invoke(bound)

    def snapshot(self) -> Snapshot:
        """Takes what the guest holds now, for others to begin with: `Sandbox.open(snapshot)`.

        While nothing is called in between, the same one is returned again.

        Raises:
            SnapshotError: The guest holds more than a snapshot does: open files, changed descriptors, or tables and
                segments that its code changes.
            EngineError: There is no room for it.
            UsageError: The session is over, or in use by another thread.
        """
        return run_blocking(self._taking(), self._control)

    def fork(
        self,
        *,
        stdin: Stdin = b"",
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        forks: bool = False,
    ) -> Session:
        """Opens another session that begins as this one is now, under the same policy.

        Neither sees what the other does from then on. What is left of this one's quotas, its fuel and its time are its
        own: the fork has those of a new session. Arguments and environment are the same.

        Args:
            stdin: The fork's standard input, as in `Sandbox.open`.
            on_stdout: Is given its stdout in pieces as they are written.
            on_stderr: The same for stderr.
            forks: Whether the fork is opened with that, as in `Sandbox.open`.

        Raises:
            SnapshotError: As of `snapshot`; so are `EngineError` and `UsageError`.
        """
        snapshot, reopen = self.snapshot(), self._reopen
        if reopen is None:
            raise UsageError("the session is closed: open a new one")
        return reopen(snapshot, self._inputs_of_fork(stdin, on_stdout, on_stderr, forks))

    def close(self) -> None:
        """Ends the session and frees the instance. Closing twice is harmless.

        Raises:
            UsageError: A call is under way in another thread: cancel it first.
        """
        self._free()
        # It keeps folders open that are granted.
        self._reopen = None

    def _invoke(self, call: Call) -> Report:
        return run_blocking(self._steps(call), self._control)


class AsyncSession(_Session):
    """A session whose calls are awaited: `async with await box.open_async(module) as session: ...`.

    As `Session`, but a call holds no thread while the guest waits, and cancelling the task that awaits it stops the
    guest, which ends the session.

    Attributes:
        initialization: The report on a reactor's `_initialize`; None for a guest that has none.
    """

    def __init__(
        self,
        module: Module,
        guest: OpenGuest,
        control: RunControl,
        inputs: Inputs,
        reopen: Callable[[Snapshot, Inputs], Awaitable[AsyncSession]],
        auditor: SessionAuditor | None,
        streams: LoopStreams | None,
        priority: int,
        tenant: str,
    ) -> None:
        self._streams = streams
        super().__init__(module, guest, control, inputs, auditor)
        self._reopen: Callable[[Snapshot, Inputs], Awaitable[AsyncSession]] | None = reopen
        self._priority = priority
        self._tenant = tenant

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def initialize(self) -> None:
        """Initializes a reactor; Stockade does so when it opens a session.

        Raises:
            GuestError: Its initialization failed.
        """
        try:
            _check_begun(self._guest)
            if self._module.initializer is not None and not self._guest.is_restored:
                self.initialization = (await self._invoke(Call(self._module.initializer))).check()
        except BaseException:
            await self.close()
            raise

    @overload
    async def call(self, export: str, *args: Argument, returns: Literal["text"]) -> Report[str | None]: ...

    @overload
    async def call(self, export: str, *args: Argument, returns: Literal["bytes"]) -> Report[bytes | None]: ...

    @overload
    async def call(self, export: str, *args: Argument, returns: Returns | None = None) -> Report: ...

    async def call(self, export: str, *args: Argument, returns: Returns | None = None) -> Report:
        """Calls an exported function.

        Args:
            export: Name of the function.
            *args: What is passed, as to `Sandbox.call`.
            returns: What the result is read as, as there.

        Raises:
            LinkError: There is no such function.
            UsageError: The session is over, a call is under way, or the arguments do not fit.
        """
        bound = bind_arguments(self._module, export, args, returns)
        within = self._guest.awaited_here()
        if within is not None:
            # By a host function that the guest calls.
            return await self._guest.await_within(within, bound)
        return await self._invoke(bound)

    async def snapshot(self) -> Snapshot:
        """Takes what the guest holds now, as `Session.snapshot`, on another thread."""
        return await self._awaited(self._taking())

    async def fork(
        self,
        *,
        stdin: AsyncStdin = b"",
        on_stdout: OnOutputAsync | None = None,
        on_stderr: OnOutputAsync | None = None,
        forks: bool = False,
    ) -> AsyncSession:
        """Opens another session that begins as this one is now, as `Session.fork`.

        Args:
            stdin: The fork's standard input, as in `Sandbox.open_async`.
            on_stdout: Is given its stdout in pieces as they are written.
            on_stderr: The same for stderr.
            forks: Whether the fork is opened with that, as in `Sandbox.open`.
        """
        snapshot, reopen = await self.snapshot(), self._reopen
        if reopen is None:
            raise UsageError("the session is closed: open a new one")
        return await reopen(snapshot, self._inputs_of_fork(stdin, on_stdout, on_stderr, forks))

    def __del__(self) -> None:
        if not self._closed and self._streams is not None:
            self._streams.abandon()
        super().__del__()

    async def close(self) -> None:
        """Ends the session and frees the instance. Closing twice is harmless.

        Raises:
            UsageError: A call is under way: cancel it first.
        """
        self._free()
        self._reopen = None
        if self._streams is not None:
            self._streams.close()

    async def _invoke(self, call: Call) -> Report:
        return await self._awaited(self._steps(call))

    async def _awaited(self, steps: RunCoroutine[_Result]) -> _Result:
        from stockade.runner.loop import await_run

        next(steps)
        return await await_run(steps, self._control, self._priority, self._tenant)
