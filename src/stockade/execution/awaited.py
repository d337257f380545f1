"""Runs awaited: the crew takes their steps, and an event loop gets their results and serves their streams.

Nothing of a run happens on the event loop's thread but the callbacks that the caller gave, and nothing waits for it but
the run that they belong to. Messages to a loop are gathered, so that a burst of results wakes it once.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from stockade.errors import EngineError
from stockade.execution._crew import Errand, crew
from stockade.execution._pipe import Pipe
from stockade.execution._state import STDIN_PIECE_BYTES
from stockade.execution._steps import blamed, is_cancellation
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

_LAST_SECONDS = 0.02
"""How long a loop has to take the last output of a guest that was stopped, which has no time left of its own."""


class _Letters:
    """What is to be called on an event loop, in its order. Only the loop keeps it, so that it goes with the loop.

    A letter may be opened twice, where the handler of a signal raises in the middle of it; so what it asks for is done
    once, however often it is asked.
    """

    __slots__ = ("__weakref__", "letters", "mailbox")

    def __init__(self, mailbox: _Mailbox) -> None:
        self.mailbox = mailbox
        self.letters: deque[Callable[[], object]] = deque()

    def open(self) -> None:
        """On the loop: does what they ask for."""
        self.mailbox.collect(self)
        try:
            while self.letters:
                self.letters[0]()
                self.letters.popleft()
        except BaseException:
            asyncio.get_running_loop().call_soon(self.open)
            raise


class _Mailbox:
    """Gathers what other threads want done on an event loop, so that a burst of it wakes the loop once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not the loop itself, which would never be let go of: it is the key under which this is kept. Nor what is to be
        # called, for that knows the loop.
        self._loop = weakref.ref(loop)
        self._letters: weakref.ref[_Letters] | None = None
        # Reentrant, for something may be posted in the middle of anything.
        self._lock = threading.RLock()

    def post(self, letter: Callable[[], object]) -> None:
        """Has something called on the loop. Of a loop that is closed, nobody waits for anything."""
        with self._lock:
            letters = None if self._letters is None else self._letters()
            if letters is not None:
                letters.letters.append(letter)
                return
            letters = _Letters(self)
            letters.letters.append(letter)
            self._letters = weakref.ref(letters)
        loop = self._loop()
        if loop is not None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(letters.open)

    def collect(self, letters: _Letters) -> None:
        """On the loop: nothing is put to these letters any more."""
        with self._lock:
            if self._letters is not None and self._letters() is letters:
                self._letters = None


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

    A cancelled task stops the guest, and waits until it has stopped, however often it is cancelled: what the steps use
    is theirs until then.

    Args:
        steps: What to do.
        watch: Its watch.
        priority: Its share among the runs of its tenant.
        tenant: For whom it runs.

    Raises:
        EngineError: There is no thread to take them.
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

    try:
        crew().begin(Errand(steps, watch, done, priority, tenant))
    except RuntimeError as problem:
        steps.close()
        raise EngineError(
            f"no thread can be started to run this: the process or the system has as many as it may ({problem}). Run "
            "fewer at once, or raise the limit (ulimit -u)"
        ) from None
    except BaseException:
        # Such as what the handler of a signal raises: the crew may have it by now, and nobody waits for it.
        watch.cancel()
        raise
    cancelled: asyncio.CancelledError | None = None
    try:
        while not over.done():
            try:
                await asyncio.shield(over)
            except asyncio.CancelledError as problem:
                cancelled = problem
                watch.cancel()
    finally:
        # Where nobody can wait any more, for the loop is no more, it is to stop all the same.
        if not over.done():
            watch.cancel()
    if cancelled is None:
        return over.result()
    over.exception()  # Looked at: it was the caller who did not want to wait for it.
    try:
        raise cancelled
    finally:
        # This frame is in its traceback: the two would keep each other.
        del cancelled


class LoopStreams(Streams):
    """Callbacks of one run that are called on an event loop, and may be coroutine functions.

    Args:
        inputs: What the caller gave.
        watch: The watch of the run, which waits for the loop.
    """

    def __init__(self, inputs: Inputs, watch: Watch) -> None:
        self._mailbox = _mailbox()
        self._watch = watch
        # Calls that the loop has to make, in their order; the one that it is making stands first, until it is made.
        self._calls: deque[tuple[str, Callable[[Any], object], Any]] = deque()
        self._awaiting = False
        self._problem: BaseException | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._source = _reader(inputs.stdin)
        self._pipe = Pipe()
        self._asked = self._reading = self._closed = False
        fetch, wakes = inputs.fetcher(watch) if self._source is None else (self._fetch, True)
        super().__init__(
            fetch,
            self._later("on_stdout", inputs.on_stdout),
            self._later("on_stderr", inputs.on_stderr),
            self._later("on_progress", inputs.on_progress),
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

    def finish(self, state: State | None) -> Steps[bool]:
        """Passes the last output on, and waits until all of it is taken, but no longer than the guest may take."""
        last = self._watch.deadline if self._watch() else time.monotonic() + _LAST_SECONDS
        while self._problem is None:
            if state is not None and self.listening:
                self._pass_on(state)
            if not self._calls:
                return True
            if self._watch.cancelled or time.monotonic() >= last:
                return False
            yield last
        raise self._problem

    # -- output -------------------------------------------------------------------------------------------------------

    def _later(self, name: str, callback: Callable[[Any], object] | None) -> Callable[[Any], object] | None:
        if callback is None:
            return None

        def call_later(value: object) -> None:
            self._calls.append((name, callback, value))
            if len(self._calls) == 1:
                # The loop has made all calls that it knew of, or is about to see this one.
                self._mailbox.post(self._call_all)

        return call_later

    def _call_all(self) -> None:
        """On the loop: makes the calls, one at a time, as far as they do not have to be awaited."""
        while self._calls and not self._awaiting and self._problem is None and not self._closed:
            name, callback, value = self._calls[0]
            try:
                answer = callback(value)
                if inspect.isawaitable(answer):
                    self._awaiting = True
                    self._spawn(self._await_call(name, answer))
                    return
            except BaseException as problem:
                self._fail(problem, name)
                return
            self._called()

    async def _await_call(self, name: str, answer: Awaitable[object]) -> None:
        try:
            await answer
        except BaseException as problem:
            self._fail(problem, name)
            return
        self._called()
        # Only now may the next one be made, by whoever comes first: us, or a letter.
        self._awaiting = False
        self._call_all()

    def _called(self) -> None:
        self._calls.popleft()
        if len(self._calls) in (0, _MOST_PIECES - 1):
            self._watch.wake()

    def _fail(self, problem: BaseException, name: str) -> None:
        if self._closed:
            return
        if is_cancellation(problem):
            problem = blamed(problem, f"the callback {name}")
        self._problem = problem
        self._watch.wake()

    # -- input --------------------------------------------------------------------------------------------------------

    def _fetch(self, size: int) -> bytes | None:
        piece = self._pipe.take(size)
        if piece is None and not self._asked:
            self._asked = True
            self._mailbox.post(self._begin_reading)
        return piece

    def _begin_reading(self) -> None:
        """On the loop: gets more of stdin, unless that is under way already."""
        if not (self._reading or self._closed):
            self._reading = True
            self._spawn(self._read())

    async def _read(self) -> None:
        assert self._source is not None
        try:
            data = await self._source(STDIN_PIECE_BYTES)
        except BaseException as problem:
            self._fail(problem, "stdin")
            return
        if data:
            self._pipe.write(data)
        else:
            self._pipe.close()
        self._reading = self._asked = False
        self._watch.wake()

    def _spawn(self, work: Any) -> None:
        # A loop keeps only weak references to its tasks.
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    def close(self) -> None:
        """On the loop: ends what still waits for input, or for output to be taken."""
        self._closed = True
        for task in tuple(self._tasks):
            task.cancel()

    def abandon(self) -> None:
        """Has the loop close them. May be called from any thread, in the middle of anything."""
        if not self._closed:
            self._mailbox.post(self.close)


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
