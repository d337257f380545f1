"""A fork server whose workers do what native code does that has got out of a guest, in the place of a run."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from stockade.isolation._prepared import Prepared
    from stockade.jail import Jail

TOLD = "told"
"""The file in the first mount that says what came of it."""


def main(control: int, host: int, spec: str, attempts: Sequence[str]) -> NoReturn:
    """Is the fork server.

    Args:
        control: Descriptor of the socket that orders come from.
        host: The process that started this one.
        spec: What attempts are told of.
        attempts: Their names.
    """
    sys.argv = ["", spec]
    from stockade.isolation import _server, _worker
    from tests.jail import _prisoner

    jail_of = _worker.jail_of

    def failing(program: Prepared, line: socket.socket, table: int | None) -> Jail:
        """The jail of a worker, in which calls fail that would end it, so that each can be tried."""
        _prisoner.MOUNTS[:] = program.context.mounts.descriptors
        _prisoner.PARENT = os.getppid()
        return msgspec.structs.replace(jail_of(program, line, table), on_forbidden="errno")

    def escape(host: Any) -> NoReturn:
        told = {name: _prisoner.outcome(name) for name in attempts}
        # What is mounted is where a guest would have it.
        file = os.open(TOLD, os.O_CREAT | os.O_WRONLY, dir_fd=_prisoner.MOUNTS[0])
        os.write(file, json.dumps(told).encode())
        os._exit(0)

    _worker.jail_of = failing
    _worker._Host.obey = escape  # type: ignore[method-assign,assignment]
    _server.main(control, host)
