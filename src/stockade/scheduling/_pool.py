"""Sessions kept ready, for guests that take long to begin. Each is used once: nothing is left for the next user."""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from collections import deque
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from stockade._bell import Bell, start_thread
from stockade.errors import EngineError, UsageError
from stockade.sandbox import Sandbox, Snapshot, check_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from stockade.modules import Source
    from stockade.sandbox import Session

__all__ = ["SessionPool"]

_RETRY_SECONDS: Final = 0.005
"""How soon a session is looked at again whose call was cancelled."""


class SessionPool:
    """Opens sessions ahead of their use. Safe to share between threads; use it as a context manager.

    A session is closed when it comes back, whatever its user did with it, and another one is opened in
    its place: a fresh store, a fresh memory, fresh globals.

    It opens its first sessions when it is made, and calls of its sessions block their thread: in a coroutine, leave
    both to `asyncio.to_thread`.

    Args:
        sandbox: Where they run.
        module: The module, or a snapshot, as in `Sandbox.open`.
        args: Arguments that the guest sees.
        size: How many are kept ready.
        env: Its environment.

    Raises:
        UsageError: The size is out of range.
        ModuleError: The module cannot be run.
        GuestError: Its initialization failed.
        EngineError: There is no thread to fill it.
    """

    _closed = True  # until there is something to close

    def __init__(
        self,
        sandbox: Sandbox,
        module: Source | Snapshot,
        args: Sequence[str | bytes] = (),
        *,
        size: int = 4,
        env: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(sandbox, Sandbox):
            raise UsageError(f"sandbox is {type(sandbox).__name__}: give a Sandbox")
        check_count("size", size, 1)
        self._sandbox = sandbox
        self._module = sandbox.prepare(module)
        self._source = module if isinstance(module, Snapshot) else self._module
        self._args = args
        self._env = env
        self._size = size
        # Without a lock, which the handler of a signal that closes the pool would wait for in vain: whoever takes a
        # session out has it.
        self._ready: deque[Session] = deque()
        self._wanted = Bell()
        self._closed = False
        try:
            for _ in range(size):
                self._ready.append(self._open())
            # It does not keep the pool: who drops it, or never comes to have it, need not close it.
            fill = partial(_fill, weakref.ref(self), self._wanted)
            start_thread(threading.Thread(target=fill, name="stockade-pool", daemon=True))
        except BaseException as problem:
            self.close()
            if isinstance(problem, RuntimeError):
                raise EngineError(
                    "no thread can be started to fill the pool: the process or the system has as many as it may "
                    f"({problem}). Run fewer at once, or raise the limit (ulimit -u)"
                ) from None
            raise

    def __del__(self) -> None:
        if not self._closed:
            warnings.warn(f"unclosed pool of {self._module.name}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Nothing is waited for: what is ready has no call under way.
        self.close()

    @property
    def ready(self) -> int:
        """How many sessions are ready."""
        return len(self._ready)

    @contextmanager
    def lease(self) -> Iterator[Session]:
        """Lends a fresh session; without one that is ready, opens one.

        When the lease ends, a call that is still under way in another thread is cancelled.

        Raises:
            UsageError: The pool is closed.
            GuestError: The guest's initialization failed.
        """
        if self._closed:
            raise UsageError("the pool is closed: make a new one")
        session = self._taken()
        self._wanted.ring()
        if session is None:
            session = self._open()
        try:
            yield session
        finally:
            _end(session)

    def close(self) -> None:
        """Closes what is ready; a session in use is closed when it comes back. Closing twice is harmless."""
        self._closed = True
        self._wanted.ring()
        while (session := self._taken()) is not None:
            session.close()

    def _taken(self) -> Session | None:
        """Takes out a session that is ready, if one is."""
        try:
            return self._ready.popleft()
        except IndexError:
            return None

    def _open(self) -> Session:
        return self._sandbox.open(self._source, self._args, env=self._env)

    def _refill(self) -> bool:
        """Opens one session, if one is missing; says whether there may be another one to open."""
        if self._closed or len(self._ready) >= self._size:
            return False
        self._ready.append(self._open())
        if self._closed:
            # Maybe after that has closed what was there.
            self.close()
        return not self._closed


def _fill(about: weakref.ref[SessionPool], wanted: Bell) -> None:
    """Opens sessions in the place of those that were lent, as long as there is a pool."""
    while True:
        wanted.wait()
        pool = about()
        # What fails here fails again for whoever leases, and is told there: also what a function raises that the guest
        # called while it was initialized.
        with suppress(BaseException):
            while pool is not None and pool._refill():  # noqa: SLF001 - of this module
                pass
        if pool is None or pool._closed:  # noqa: SLF001
            return
        del pool


def _end(session: Session) -> None:
    """Closes a session, whatever its user left under way."""
    while True:
        try:
            session.close()
        except UsageError:
            session.cancel()
            time.sleep(_RETRY_SECONDS)
        else:
            return
