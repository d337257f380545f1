"""Sessions: one live instance each, with its memory and globals kept between calls."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from stockade.errors import UsageError
from stockade.execution import Call, drive, fit

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from stockade.execution import Argument, Guest, Module, Returns, Steps, Watch
    from stockade.execution.awaited import LoopStreams
    from stockade.report import Report

__all__ = ["AsyncSession", "Session"]


class _Session:
    """What sessions of both kinds share."""

    def __init__(self, module: Module, guest: Guest, watch: Watch) -> None:
        self._module = module
        self._guest = guest
        self._watch = watch
        self._lock = threading.Lock()
        self._closed = False
        self.initialization: Report | None = None

    def read_memory(self, address: int, size: int) -> bytes:
        """Copies bytes out of the guest's exported memory.

        Raises:
            UsageError: They are not all inside it, or the session is over.
        """
        with self._exclusive():
            try:
                return self._guest.memory(b"memory").read(address, size)
            except IndexError as problem:
                raise UsageError(f"outside the guest's memory: {problem}") from None

    def write_memory(self, address: int, data: bytes) -> None:
        """Copies bytes into the guest's exported memory.

        Raises:
            UsageError: They do not all fit inside it, or the session is over.
        """
        with self._exclusive():
            try:
                self._guest.memory(b"memory").write(address, data)
            except IndexError as problem:
                raise UsageError(f"outside the guest's memory: {problem}") from None

    def cancel(self) -> None:
        """Stops a call that is under way, and ends the session. May be called from any thread."""
        self._watch.cancel()

    def _free(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise UsageError("a call is under way in another thread: cancel it first")
        try:
            self._closed = True
            self._guest.close()
        finally:
            self._lock.release()

    def _prepare(self, call: Call) -> Steps[Report]:
        """Gets ready for a call; the lock is held."""
        if self._guest.ended:
            raise UsageError("the guest has ended, so the session is over: open a new one")
        # A cancellation is for the call under way; there is none.
        self._watch.cancelled = False
        self._guest.renew()
        return self._guest.invoke(call)

    def _exclusive(self) -> _Exclusive:
        return _Exclusive(self._lock, self._check_open)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the session is closed: open a new one")


class Session(_Session):
    """One live instance: its memory and globals are kept between calls. Use it as a context manager.

    Each call has its own budget of fuel and time, and its own report. When the guest traps, exits or is stopped, the
    session is over: what is left of it is not to be trusted.

    Attributes:
        initialization: The report on a reactor's `_initialize`; None for a guest that has none.
    """

    def __init__(self, module: Module, guest: Guest, watch: Watch) -> None:
        super().__init__(module, guest, watch)
        try:
            if guest.ended:
                guest.obituary().check()
            if module.initializer is not None:
                self.initialization = self._invoke(Call(module.initializer)).check()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

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
        return self._invoke(fit(self._module, export, args, returns))

    def close(self) -> None:
        """Ends the session and frees the instance. Closing twice is harmless.

        Raises:
            UsageError: A call is under way in another thread: cancel it first.
        """
        self._free()

    def _invoke(self, call: Call) -> Report:
        with self._exclusive():
            return drive(self._prepare(call), self._watch)


class AsyncSession(_Session):
    """A session whose calls are awaited: `async with await box.open_async(module) as session: ...`.

    As `Session`, but a call holds no thread while the guest waits, and cancelling the task that awaits it stops the
    guest, which ends the session.

    Attributes:
        initialization: The report on a reactor's `_initialize`; None for a guest that has none.
    """

    def __init__(
        self, module: Module, guest: Guest, watch: Watch, streams: LoopStreams | None, priority: int, tenant: str
    ) -> None:
        super().__init__(module, guest, watch)
        self._streams = streams
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
            if self._guest.ended:
                self._guest.obituary().check()
            if self._module.initializer is not None:
                self.initialization = (await self._invoke(Call(self._module.initializer))).check()
        except BaseException:
            await self.close()
            raise

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
        return await self._invoke(fit(self._module, export, args, returns))

    async def close(self) -> None:
        """Ends the session and frees the instance. Closing twice is harmless.

        Raises:
            UsageError: A call is under way: cancel it first.
        """
        self._free()
        if self._streams is not None:
            self._streams.close()

    async def _invoke(self, call: Call) -> Report:
        from stockade.execution.awaited import on_crew

        with self._exclusive():
            return await on_crew(self._prepare(call), self._watch, self._priority, self._tenant)


class _Exclusive:
    """Holds the session's lock; whoever comes second is told so instead of waiting (H86)."""

    def __init__(self, lock: threading.Lock, check: Callable[[], None]) -> None:
        self._lock = lock
        self._check = check

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise UsageError("the session is in use by another thread: give each thread a session of its own")
        try:
            self._check()
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *exception: object) -> None:
        self._lock.release()
