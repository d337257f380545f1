"""Streams of a run that is awaited: an event loop takes its output and fetches its input.

The event loop's thread does nothing but call what the caller gave, and nothing waits for it but the run that this
belongs to.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from stockade._bytes import bytes_of
from stockade.execution._pipe import Pipe
from stockade.execution._streams import Streams
from stockade.guard import STDIN_PIECE_BYTES
from stockade.runner import blamed, is_cancellation
from stockade.runner.loop import loop_bridge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from stockade.execution._inputs import Inputs
    from stockade.execution._streams import StreamState
    from stockade.report import Progress
    from stockade.runner import RunControl, RunCoroutine

__all__ = ["LoopStreams"]

_MOST_PIECES = 32
"""Pieces of output that a loop may have before it has taken any; then the guest waits."""

_NOTHING = (b"", "")

_LAST_SECONDS = 0.02
"""How long a loop has to take the last output of a guest that was stopped, which has no time left of its own."""


class LoopStreams(Streams):
    """Callbacks of one run that are called on an event loop, and may be coroutine functions.

    Args:
        inputs: What the caller gave.
        control: The control of the run, which waits for the loop.
    """

    def __init__(self, inputs: Inputs, control: RunControl) -> None:
        inputs.check_callbacks()
        self._bridge = loop_bridge()
        self._control = control
        # Calls that the loop has to make, in their order; the one that it is making stands first, until it is made.
        self._calls: deque[tuple[str, Callable[[Any], object], Any]] = deque()
        self._awaiting = False
        self._problem: BaseException | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._source = _reader(inputs.stdin)
        self._pipe = Pipe()
        self._asked = self._reading = self._closed = False
        fetch, wakes = inputs.fetcher(control) if self._source is None else (self._fetch, True)
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

    def serve(self, state: StreamState | None, progress: Callable[[], Progress | None]) -> None:
        """Does what streams do, and raises what a callback on the loop has raised."""
        if self._problem is not None:
            raise self._problem
        super().serve(state, progress)

    def finish(self, state: StreamState | None) -> RunCoroutine[bool]:
        """Passes the last output on, and waits until all of it is taken, but no longer than the guest may take."""
        last = self._control.deadline if self._control() else time.monotonic() + _LAST_SECONDS
        while self._problem is None:
            if state is not None and self.listening:
                self._pass_on(state)
            if not self._calls:
                if self.pass_rest():
                    continue
                return True
            if self._control.cancelled or time.monotonic() >= last:
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
                self._bridge.post(self._call_all)

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
            self._control.wake()

    def _fail(self, problem: BaseException, name: str) -> None:
        if self._closed:
            return
        if is_cancellation(problem):
            problem = blamed(problem, f"the callback {name}")
        self._problem = problem
        self._control.wake()

    # -- input --------------------------------------------------------------------------------------------------------

    def _fetch(self, size: int) -> bytes | None:
        piece = self._pipe.take(size)
        if piece is None and not self._asked:
            self._asked = True
            self._bridge.post(self._begin_reading)
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
            piece = b"" if data is None else bytes_of(data, "what stdin gave")
        except BaseException as problem:
            self._fail(problem, "stdin")
            return
        if piece:
            self._pipe.write(piece)
        else:
            self._pipe.close()
        self._reading = self._asked = False
        self._control.wake()

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
            self._bridge.post(self.close)


def _reader(source: object) -> Callable[[int], Awaitable[object]] | None:
    """How an event loop reads a source of stdin; None for a source that needs none."""
    if isinstance(source, asyncio.Queue):
        return lambda _: source.get()
    if isinstance(source, asyncio.StreamReader):
        return source.read
    if inspect.iscoroutinefunction(source) or inspect.iscoroutinefunction(getattr(source, "__call__", None)):  # noqa: B004
        asked: Callable[[int], Awaitable[object]] = source  # type: ignore[assignment]
        return asked
    if hasattr(source, "__anext__"):
        pieces = cast("AsyncIterator[object]", source)

        async def following(_: int) -> object:
            # Pieces without bytes are not the end.
            async for piece in pieces:
                if piece not in _NOTHING:
                    return piece
            return None

        return following
    return None
