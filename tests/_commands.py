"""The command in processes of its own: begun anew, or, where somebody waits for the tests, forked from one that waits.

To begin Python, and to load what a command needs, takes several times as long as most commands do. So `make test` has a
process that has loaded all of it and has done nothing else; for each command it forks one, which gets the arguments,
the environment, the working folder and the streams that a new process would have. All other ways to run tests begin
each process anew, and `tests/cli/test_start.py` always does.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["COMMAND", "ran"]

COMMAND = (sys.executable, "-m", "stockade")

_ENCODING = "PYTHONIOENCODING"
_REQUEST_BYTES = 100_000
"""More than any test asks for but those that ask for much; those begin anew."""

_WAITING = """
import sys
from tests._commands import _serve
_serve(int(sys.argv[1]))
"""


def ran(
    words: Sequence[str | Path],
    stdin: bytes | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 110,
) -> subprocess.CompletedProcess[bytes]:
    """Runs the command with pipes for its output.

    Args:
        words: Its arguments.
        stdin: What it reads; None for nothing.
        cwd: Its working folder.
        env: Its environment; None for that of the tests.
        timeout: After how many seconds it hangs.

    Raises:
        subprocess.TimeoutExpired: It hangs.
    """
    given = [*map(str, words)]
    variables = dict(os.environ if env is None else env)
    request = json.dumps({"words": given, "cwd": str(cwd or Path.cwd()), "env": variables})
    if not _can_be_forked(variables) or len(request) > _REQUEST_BYTES:
        return subprocess.run(
            [*COMMAND, *given],
            stdin=subprocess.DEVNULL if stdin is None else None,
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
            cwd=cwd,
            env=variables,
        )
    return _waiting().run(given, request.encode(), stdin, timeout)


def _can_be_forked(variables: Mapping[str, str]) -> bool:
    """Whether nothing is asked for that is looked at where Python begins or a module is loaded.

    But for the encoding of the streams.
    """

    def settings(given: Mapping[str, str]) -> dict[str, str]:
        return {
            name: value
            for name, value in given.items()
            if name.startswith(("PYTHON", "LC_", "LANG", "STOCKADE_LOG")) and name != _ENCODING
        }

    return "STOCKADE_QUICK" in os.environ and hasattr(os, "fork") and settings(variables) == settings(os.environ)


class _Waiting:
    """The process that forks commands."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WAITING, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).parents[1],
            )

    def run(
        self, words: list[str], request: bytes, stdin: bytes | None, timeout: float
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a command, as `ran` does."""
        (read_out, write_out), (read_err, write_err) = os.pipe(), os.pipe()
        read_in, write_in = (os.open(os.devnull, os.O_RDONLY), -1) if stdin is None else os.pipe()
        socket.send_fds(self._socket, [request], [read_in, write_out, write_err])
        for theirs in (read_in, write_out, write_err):
            os.close(theirs)
        child = int(self._socket.recv(64))
        kept: dict[int, list[bytes]] = {read_out: [], read_err: []}
        left = memoryview(stdin or b"")
        end = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(read_out, selectors.EVENT_READ)
            selector.register(read_err, selectors.EVENT_READ)
            if left:
                os.set_blocking(write_in, False)
                selector.register(write_in, selectors.EVENT_WRITE)
            elif write_in >= 0:
                os.close(write_in)
            while selector.get_map():
                ready = selector.select(max(0.0, end - time.monotonic()))
                if not ready:
                    os.kill(child, signal.SIGKILL)
                    self._socket.recv(64)
                    raise subprocess.TimeoutExpired([*COMMAND, *words], timeout)
                for key, _ in ready:
                    if key.fd == write_in:
                        with suppress(BrokenPipeError):
                            left = left[os.write(write_in, left[:65_536]) :]
                            if left:
                                continue
                    else:
                        piece = os.read(key.fd, 65_536)
                        if piece:
                            kept[key.fd].append(piece)
                            continue
                    selector.unregister(key.fd)
                    os.close(key.fd)
        status = int(self._socket.recv(64))
        return subprocess.CompletedProcess(
            [*COMMAND, *words], os.waitstatus_to_exitcode(status), b"".join(kept[read_out]), b"".join(kept[read_err])
        )


@cache
def _waiting() -> _Waiting:
    return _Waiting()


def _serve(number: int) -> None:
    """Forks a command for each request, until nobody is there to ask."""
    import stockade
    import stockade.cli._commands as commands

    for module in {*commands._LOADED_WHEN_USED.values()}:
        __import__(f"stockade.cli.{module}")
    assert stockade.Sandbox
    # What this process was begun with is nobody's: each command begins in its own folder.
    sys.path[:] = [entry for entry in sys.path if entry not in ("", str(Path.cwd()))]
    requests = socket.socket(fileno=number)
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 3)
        if not request:
            return
        child = os.fork()
        if not child:
            requests.close()
            _become(json.loads(request), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(b"%d" % child)
        requests.send(b"%d" % os.waitpid(child, 0)[1])


def _become(request: dict[str, object], descriptors: Sequence[int]) -> None:
    """Does what a new process would do."""
    import stockade.cli
    from stockade import _start
    from stockade.syscalls import _table
    from stockade.system import _folders

    words, folder, variables = request["words"], request["cwd"], request["env"]
    assert isinstance(words, list)
    assert isinstance(folder, str)
    assert isinstance(variables, dict)
    for stream, descriptor in enumerate(descriptors):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    if encoding := variables.get(_ENCODING):
        sys.stdin.reconfigure(encoding=encoding)  # type: ignore[union-attr]
        sys.stdout.reconfigure(encoding=encoding)  # type: ignore[union-attr]
        sys.stderr.reconfigure(encoding=encoding)  # type: ignore[union-attr]
    # Where `python -m stockade` would have begun, and what it looks for no modules in.
    _start.LEFT_OUT[:] = [folder]
    for module in (_start, _table, _folders):
        module.START_FOLDER = folder  # type: ignore[attr-defined]
    sys.argv = [str(Path(stockade.__file__).with_name("__main__.py")), *words]
    stockade.cli.main()
