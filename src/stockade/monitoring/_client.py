"""Asks all processes that can be asked how far their runs are, at once, and waits for none of them for long."""

from __future__ import annotations

import os
import selectors
import socket
import stat
import time
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec

from stockade.monitoring._server import peer_of
from stockade.monitoring._wire import NAME, ProcessRuns, open_monitor_folder

__all__ = ["Found", "look"]

_PATIENCE_SECONDS: Final = 1.0
_MOST_PROCESSES: Final = 256
_MOST_TRIES: Final = 20
_MOST_ANSWERED_BYTES: Final = 8 << 20
_PIECE_BYTES: Final = 1 << 20


class Found(NamedTuple):
    """What was found.

    Attributes:
        processes: The processes that answered, by their numbers.
        silent: The numbers of those that did not answer, or not with what was asked for.
    """

    processes: tuple[ProcessRuns, ...]
    silent: tuple[int, ...]


def look() -> Found:
    """Asks all processes of this user that serve a monitor. Sockets of processes that are over are removed.

    Raises:
        EngineError: The folder of the sockets is not private.
    """
    folder = open_monitor_folder(make=False)
    if folder is None:
        return Found((), ())
    asked: dict[socket.socket, _Asked] = {}
    silent: set[int] = set()
    try:
        for name in sorted(os.listdir(folder))[: 4 * _MOST_PROCESSES]:  # noqa: PTH208 - it is a descriptor
            match = NAME.fullmatch(name)
            if match is None or len(asked) >= _MOST_PROCESSES or not _is_socket(name, folder):
                continue
            connected = _asked(name, folder)
            if connected is not None:
                asked[connected] = _Asked(int(match["pid"]))
            elif _is_socket(name, folder):
                silent.add(int(match["pid"]))
        found = _answers(asked)
    finally:
        os.close(folder)
        for connected in asked:
            connected.close()
    silent |= {one.pid for one in asked.values() if one.pid not in {process.pid for process in found}}
    return Found(tuple(sorted(found, key=lambda process: process.pid)), tuple(sorted(silent)))


class _Asked:
    """Who was asked, and what has come of the answer."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.answer = bytearray()


def _is_socket(name: str, folder: int) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _asked(name: str, folder: int) -> socket.socket | None:
    """Connects and asks; None where nobody is there, and the socket is removed, or nobody has time."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _connect(connected, f"/proc/self/fd/{folder}/{name}")
        if peer_of(connected)[1] == os.geteuid():
            connected.send(b'{"want":"runs"}\n')
            return connected
    except ConnectionRefusedError:
        # It listened when it got its name, which nobody uses again: its process is over.
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)
    except OSError:
        pass
    connected.close()
    return None


def _connect(connected: socket.socket, path: str) -> None:
    """Connects, also where there is a line: the other end is about to look at it."""
    for _ in range(_MOST_TRIES):
        with suppress(BlockingIOError):
            connected.connect(path)
            return
        time.sleep(_PATIENCE_SECONDS / _MOST_TRIES / 2)
    connected.connect(path)


def _answers(asked: dict[socket.socket, _Asked]) -> list[ProcessRuns]:
    found: list[ProcessRuns] = []
    until = time.monotonic() + _PATIENCE_SECONDS
    with selectors.DefaultSelector() as selector:
        for connected in asked:
            selector.register(connected, selectors.EVENT_READ)
        while selector.get_map() and (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                assert isinstance(key.fileobj, socket.socket)
                one = asked[key.fileobj]
                try:
                    piece = key.fileobj.recv(_PIECE_BYTES)
                except BlockingIOError:
                    continue
                except OSError:
                    piece = b""
                one.answer += piece
                if piece and len(one.answer) <= _MOST_ANSWERED_BYTES:
                    continue
                selector.unregister(key.fileobj)
                with suppress(msgspec.MsgspecError):
                    if not piece:
                        process = msgspec.json.decode(one.answer, type=ProcessRuns)
                        # Who it is, the name of its socket tells: in another namespace it has another number.
                        found.append(msgspec.structs.replace(process, pid=one.pid))
    return found
