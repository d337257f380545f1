"""A process of ours that was started from here, and finds the engine."""

from __future__ import annotations

import socket

from stockade import system
from stockade.engine import library_folder
from stockade.system import FIRST_FREE, NO_SIGNAL, socket_pair

__all__ = ["FIRST_FREE", "NO_SIGNAL", "ServerProcess", "socket_pair"]


class ServerProcess(system.ServerProcess):
    """A process that was started, finds the engine, and ends when the socket does.

    Args:
        module: Has the function `main`, which is given the descriptor of the socket and the number of this process.
        missing: What is said where there is no Python to start.
        kind: What kind of socket it is.

    Raises:
        EngineError: There is no Python.
        OSError: The system does not start it.
    """

    def __init__(self, module: str, missing: str, kind: int = socket.SOCK_STREAM) -> None:
        super().__init__(module, missing, kind, (library_folder(),))
