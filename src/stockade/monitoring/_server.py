"""Tells whoever asks, of the same user, how far the runs of this process are.

One thread serves all who ask. It waits for nobody: who has not asked within a second is hung up on, and so is who does
not take the answer in that time; of many who are connected, the one that came first goes. What they send is a line of
at most 256 bytes, which has one meaning. An answer is made ten times a second at most, however often it is asked for.
"""

from __future__ import annotations

import atexit
import os
import secrets
import selectors
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

import msgspec

from stockade._bell import start_thread
from stockade._locks import new_lock
from stockade._text import printable
from stockade.errors import EngineError
from stockade.monitoring._wire import MOST_RUNS, Ask, LiveRun, ProcessRuns, open_monitor_folder
from stockade.sandbox import live_runs

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["MonitorServer", "serve_monitor"]

_MOST_CONNECTIONS: Final = 16
_MOST_ASKED_BYTES: Final = 256
_PATIENCE_SECONDS: Final = 1.0
_FRESH_SECONDS: Final = 0.1
_PIECE_BYTES: Final = 65_536
_CREDENTIALS: Final = struct.Struct("3i")

_lock: Final = new_lock()
_server: MonitorServer | None = None


def serve_monitor() -> MonitorServer:
    """Has `stockade top` see the runs of this process: all under way and all open sessions, of all its sandboxes.

    They are told on a socket in the state folder (`STOCKADE_STATE`), which only the user may open. A process has one:
    who asks again gets the same. A process that is forked from it has none, until it asks for one of its own.

    Returns:
        What stops it: `close`, or as a context manager.

    Raises:
        EngineError: There is no folder for the socket, it is not private, or no thread can be started.
    """
    global _server
    with _lock:
        if _server is None or _server.closed:
            _server = MonitorServer()
        return _server


class MonitorServer:
    """Tells of the runs of this process until it is closed. `serve_monitor` makes it.

    Attributes:
        closed: Whether it is closed.
    """

    def __init__(self) -> None:
        folder = open_monitor_folder(make=True)
        assert folder is not None
        self._folder = folder
        self.closed = False
        self._name = ""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._inbox, self._outbox = os.pipe()
        self._clients: dict[socket.socket, _Client] = {}
        self._answer = b""
        self._answered = -_FRESH_SECONDS
        self._thread = threading.Thread(target=self._serve, name="stockade-monitor", daemon=True)
        try:
            self._name = _listen(self._socket, folder)
            start_thread(self._thread)
        except (OSError, RuntimeError) as problem:
            self._release(unlink=True)
            raise EngineError(f"the runs of this process cannot be told: {problem}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Tells nobody any more, and removes the socket. Closing twice is harmless."""
        with _lock:
            if self.closed:
                return
            self.closed = True
        os.write(self._outbox, b"\0")
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._release(unlink=True)

    def forget(self) -> None:
        """Lets go of everything in a process that was forked: the socket is the parent's."""
        self.closed = True
        self._release(unlink=False)

    def _release(self, *, unlink: bool) -> None:
        self.closed = True
        for client in tuple(self._clients):
            client.close()
        self._clients.clear()
        self._socket.close()
        if unlink and self._name:
            with suppress(OSError):
                os.unlink(self._name, dir_fd=self._folder)
        for descriptor in (self._folder, self._inbox, self._outbox):
            with suppress(OSError):
                os.close(descriptor)

    # -- on the thread ------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._inbox, selectors.EVENT_READ)
            while not self.closed:
                oldest = min((client.deadline for client in self._clients.values()), default=None)
                waits = None if oldest is None else max(0.0, oldest - time.monotonic())
                for key, _ in selector.select(waits):
                    if key.fileobj is self._socket:
                        self._accept(selector)
                    elif isinstance(key.fileobj, socket.socket):
                        self._go_on(selector, key.fileobj)
                now = time.monotonic()
                for client in [one for one, state in self._clients.items() if state.deadline <= now]:
                    self._hang_up(selector, client)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            client, _ = self._socket.accept()
        except BlockingIOError:
            return
        except OSError:
            # There are no descriptors: whoever has them may give some back.
            time.sleep(0.05)
            return
        client.setblocking(False)
        if peer_of(client)[1] != os.geteuid():
            client.close()
            return
        while len(self._clients) >= _MOST_CONNECTIONS:
            self._hang_up(selector, next(iter(self._clients)))
        self._clients[client] = _Client()
        selector.register(client, selectors.EVENT_READ)

    def _hang_up(self, selector: selectors.BaseSelector, client: socket.socket) -> None:
        if self._clients.pop(client, None) is not None:
            selector.unregister(client)
            client.close()

    def _go_on(self, selector: selectors.BaseSelector, client: socket.socket) -> None:
        state = self._clients.get(client)
        if state is None:
            return
        try:
            if state.rest is None:
                piece = client.recv(_MOST_ASKED_BYTES)
                state.asked += piece
                if piece and b"\n" not in state.asked and len(state.asked) < _MOST_ASKED_BYTES:
                    return
                state.rest = memoryview(self._reply(state.asked))
                selector.modify(client, selectors.EVENT_WRITE)
            else:
                state.rest = state.rest[client.send(state.rest[:_PIECE_BYTES]) :]
        except BlockingIOError:
            return
        except OSError:
            state.rest = memoryview(b"")
        if len(state.rest) == 0:
            self._hang_up(selector, client)

    def _reply(self, asked: bytes) -> bytes:
        line, end, _ = asked.partition(b"\n")
        try:
            msgspec.json.decode(line if end else b"", type=Ask)
        except msgspec.MsgspecError:
            return b'{"error":"ask with a line of {\\"want\\":\\"runs\\"}"}\n'
        if time.monotonic() - self._answered >= _FRESH_SECONDS:
            try:
                self._answer = msgspec.json.encode(_told()) + b"\n"
            except Exception as problem:
                return msgspec.json.encode({"error": printable(f"{type(problem).__name__}: {problem}")}) + b"\n"
            self._answered = time.monotonic()
        return self._answer


class _Client:
    """Who is connected: what has been asked so far, what is to be sent, and until when we wait."""

    __slots__ = ("asked", "deadline", "rest")

    def __init__(self) -> None:
        self.asked = b""
        self.deadline = time.monotonic() + _PATIENCE_SECONDS
        self.rest: memoryview | None = None


def _told() -> ProcessRuns:
    runs = live_runs()
    return ProcessRuns(
        pid=os.getpid(),
        program=printable(PurePath(sys.argv[0] if sys.argv else "").name or PurePath(sys.executable or "").name),
        runs=tuple(LiveRun(printable(name), progress) for name, progress in runs[:MOST_RUNS]),
        left_out=max(0, len(runs) - MOST_RUNS),
    )


def peer_of(connected: socket.socket) -> tuple[int, int]:
    """Returns the process and the user at the other end, as the kernel tells them."""
    pid, uid, _ = _CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def _listen(listener: socket.socket, folder: int) -> str:
    """Has a socket listen under a name of its own, which is there from when it listens, and returns that."""
    mark = secrets.token_hex(8)
    temporary, name = f".{mark}", f"{os.getpid()}-{mark}.sock"
    # The file has this mode from the beginning.
    os.fchmod(listener.fileno(), 0o600)
    # A path may have 107 bytes, and the folder's own may be longer.
    listener.bind(f"/proc/self/fd/{folder}/{temporary}")
    try:
        listener.listen(_MOST_CONNECTIONS)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        os.unlink(temporary, dir_fd=folder)
        raise
    return name


def _at_exit() -> None:
    if _server is not None:
        _server.close()


def _after_fork() -> None:
    global _server
    server, _server = _server, None
    if server is not None and not server.closed:
        server.forget()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
