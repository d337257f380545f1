"""Runs awaited: the crew takes their steps, and an event loop gets their results and serves their streams.

Nothing of a run happens on the event loop's thread but the callbacks that the caller gave, and nothing waits for it but
the run that they belong to. Messages to a loop are gathered, so that a burst of results wakes it once.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from stockade.execution._crew import Errand, crew
from stockade.execution._pipe import Pipe
from stockade.execution._steps import FOREVER
from stockade.execution._streams import Streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from stockade.execution._inputs import Inputs
    from stockade.execution._state import State
    from stockade.execution._steps import Steps, Watch
    from stockade.report import Progress

__all__ = ["LoopStreams", "on_crew"]

_Result = TypeVar("_Result")

_MOST_PIECES = 32
"""Pieces of output that a loop may have before it has taken any; then the guest waits."""


class _Mailbox:
    """What other threads want done on an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not the loop itself, which would never be let go of: it is the key under which this is kept.
        self._loop = weakref.ref(loop)
        self._lock = threading.Lock()
        self._letters: deque[Callable[[], object]] = deque()
        self._called = False

    def post(self, letter: Callable[[], object]) -> None:
        """Has something called on the loop. Of a loop that is closed, nobody waits for anything."""
        with self._lock:
            self._letters.append(letter)
            if self._called:
                return
            self._called = True
        loop = self._loop()
        if loop is not None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._open)

    def _open(self) -> None:
        with self._lock:
            letters, self._letters = self._letters, deque()
            self._called = False
        for letter in letters:
            letter()


_mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = weakref.WeakKeyDictionary()


def _mailbox() -> _Mailbox:
    """The mailbox of the running loop."""
    loop = asyncio.get_running_loop()
    found = _mailboxes.get(loop)
    if found is None:
        found = _mailboxes[loop] = _Mailbox(loop)
    return found


async def on_crew(steps: Steps[_Result], watch: Watch, priority: int, tenant: str) -> _Result:
    """Has the crew take steps, and waits for their result.

    A cancelled task stops the guest, and waits until it has stopped.

    Args:
        steps: What to do.
        watch: Its watch.
        priority: Its share among the runs of its tenant.
        tenant: For whom it runs.
    """
    mailbox = _mailbox()
    over: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()

    def done(result: Any, problem: BaseException | None) -> None:
        def deliver() -> None:
            if over.done():
                return
            if problem is None:
                over.set_result(result)
            else:
                over.set_exception(problem)

        mailbox.post(deliver)

    crew().begin(Errand(steps, watch, done, priority, tenant))
    try:
        return await asyncio.shield(over)
    except asyncio.CancelledError:
        watch.cancel()
        await asyncio.wait([over])
        if not over.cancelled():
            over.exception()  # Looked at: it was the caller who did not want to wait for it.
        raise


class LoopStreams(Streams):
    """Callbacks of one run that are called on an event loop, and may be coroutine functions.

    Args:
        inputs: What the caller gave.
        watch: The watch of the run, which waits for the loop.
    """

    def __init__(self, inputs: Inputs, watch: Watch) -> None:
        self._mailbox = _mailbox()
        self._watch = watch
        self._lock = threading.Lock()
        # Calls that the loop has to make, in their order; the one that it is making stands first.
        self._calls: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._problem: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._source = _reader(inputs.stdin)
        self._pipe = Pipe()
        self._asked = False
        fetch, wakes = inputs.fetcher(watch) if self._source is None else (self._fetch, True)
        super().__init__(
            fetch,
            self._later(inputs.on_stdout),
            self._later(inputs.on_stderr),
            self._later(inputs.on_progress),
            wakes=wakes,
        )

    @property
    def clogged(self) -> bool:
        """Whether the loop has to take what it was given before it is given more."""
        return len(self._calls) >= _MOST_PIECES

    def serve(self, state: State | None, progress: Callable[[], Progress | None]) -> None:
        """Does what streams do, and raises what a callback on the loop has raised."""
        if self._problem is not None:
            raise self._problem
        super().serve(state, progress)

    def finish(self, state: State | None) -> Steps[None]:
        """Passes the last output on, and waits until all of it is taken."""
        while self._problem is None and not self._watch.cancelled:
            if state is not None and self.listening:
                self._pass_on(state)
            if not self._calls:
                break
            yield FOREVER
        if self._problem is not None:
            raise self._problem

    # -- output -------------------------------------------------------------------------------------------------------

    def _later(self, callback: Callable[[Any], object] | None) -> Callable[[Any], object] | None:
        if callback is None:
            return None

        def call_later(value: object) -> None:
            with self._lock:
                self._calls.append((callback, value))
                is_first = len(self._calls) == 1
            if is_first:
                self._mailbox.post(self._call_all)

        return call_later

    def _call_all(self) -> None:
        """On the loop: makes the calls, as far as they do not have to be awaited."""
        while self._calls and self._problem is None:
            callback, value = self._calls[0]
            try:
                answer = callback(value)
            except BaseException as problem:
                self._fail(problem)
                return
            if inspect.isawaitable(answer):
                self._spawn(self._await_call(answer))
                return
            self._called()

    async def _await_call(self, answer: Awaitable[object]) -> None:
        try:
            await answer
        except BaseException as problem:
            self._fail(problem)
            return
        self._called()
        self._call_all()

    def _called(self) -> None:
        with self._lock:
            self._calls.popleft()
            left = len(self._calls)
        if left in (0, _MOST_PIECES - 1):
            self._watch.wake()

    def _fail(self, problem: BaseException) -> None:
        self._problem = problem
        self._watch.wake()

    # -- input --------------------------------------------------------------------------------------------------------

    def _fetch(self, size: int) -> bytes | None:
        piece = self._pipe.take(size)
        if piece is None and not self._asked:
            self._asked = True
            self._mailbox.post(lambda: self._spawn(self._read(size)))
        return piece

    async def _read(self, size: int) -> None:
        """On the loop: gets more of stdin, and wakes the guest."""
        assert self._source is not None
        try:
            data = await self._source(size)
        except BaseException as problem:
            self._fail(problem)
            return
        if data:
            self._pipe.write(data)
        else:
            self._pipe.close()
        self._asked = False
        self._watch.wake()

    def _spawn(self, work: Any) -> None:
        # A loop keeps only weak references to its tasks.
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """On the loop: ends what still waits for input."""
        for task in tuple(self._tasks):
            task.cancel()


def _reader(source: object) -> Callable[[int], Awaitable[bytes | None]] | None:
    """How an event loop reads a source of stdin; None for a source that needs none."""
    if isinstance(source, asyncio.Queue):
        return lambda _: source.get()
    if isinstance(source, asyncio.StreamReader):
        return source.read
    if inspect.iscoroutinefunction(source) or inspect.iscoroutinefunction(getattr(source, "__call__", None)):  # noqa: B004
        asked: Callable[[int], Awaitable[bytes | None]] = source  # type: ignore[assignment]
        return asked
    if hasattr(source, "__anext__"):
        pieces = cast("AsyncIterator[bytes]", source)

        async def following(_: int) -> bytes | None:
            # Pieces without bytes are not the end.
            async for piece in pieces:
                if piece:
                    return piece
            return None

        return following
    return None
