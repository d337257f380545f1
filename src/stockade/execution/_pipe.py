"""Standard input that is written while the guest reads it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from stockade._bytes import bytes_of
from stockade._locks import new_lock
from stockade.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from stockade._bytes import BytesLike

__all__ = ["Pipe"]


class Pipe:
    r"""Standard input for one guest, written piece by piece, from any thread. As a context manager, it closes itself.

    A guest that has read all there is waits, and holds no thread while it does. When the pipe is closed, and all of it
    read, the guest comes to the end of its input.

    >>> pipe = Pipe()
    >>> pipe.write(b"one line\\n")
    >>> pipe.close()
    """

    def __init__(self) -> None:
        # Reentrant, for the handler of a signal may write while its thread does, or reads.
        self._lock = new_lock()
        # Views, so that taking a little of much copies only that.
        self._pieces: deque[memoryview] = deque()
        self._closed = False
        self._on_more: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, data: BytesLike) -> None:
        """Gives the guest more to read. Never waits.

        Args:
            data: Bytes, or a text, which the guest reads as UTF-8.

        Raises:
            UsageError: The pipe is closed, or that is neither.
        """
        piece = bytes_of(data, "what is written to the pipe")
        with self._lock:
            if self._closed:
                raise UsageError("the pipe is closed: nothing can be written to it any more")
            if piece:
                self._pieces.append(memoryview(piece))
            on_more = self._on_more
        if on_more is not None:
            on_more()

    def close(self) -> None:
        """Says that nothing more comes. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            on_more = self._on_more
        if on_more is not None:
            on_more()

    def attach(self, on_more: Callable[[], object]) -> None:
        """Gives the pipe to a guest; Stockade does so when a run begins.

        Args:
            on_more: Is called whenever there is more to take.

        Raises:
            UsageError: Another guest has it.
        """
        with self._lock:
            if self._on_more is not None:
                raise UsageError("the pipe is the input of another guest: make one for each")
            self._on_more = on_more

    def take(self, size: int) -> bytes | None:
        """Takes out at most so many bytes: none at the end, None where there are none yet."""
        with self._lock:
            if not self._pieces:
                return b"" if self._closed else None
            piece = self._pieces.popleft()
            if len(piece) > size:
                self._pieces.appendleft(piece[size:])
                piece = piece[:size]
            return bytes(piece)
