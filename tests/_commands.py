"""The command in processes of its own: begun anew, or, where somebody waits for the tests, forked from one that waits.

To begin Python, and to load what a command needs, takes several times as long as most commands do. So `make test` has a
process that has loaded all of it and has done nothing else; for each command it forks one, which gets the arguments,
the environment, the working folder and the streams that a new process would have. All other ways to run tests begin
each process anew, and `tests/cli/test_start.py` always does.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import termios
import time
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import IO

    Stream = int | IO[bytes] | None

__all__ = ["COMMAND", "Forked", "begun", "ran"]

COMMAND = (sys.executable, "-m", "stockade")

_ENCODING = "PYTHONIOENCODING"
_REQUEST_BYTES = 100_000
"""More than any test asks for but those that ask for much; those begin anew."""

_NAMED = """
import sys
sys.argv[:2] = sys.argv[1:2]
from stockade.cli import main
main()
"""

# Ctrl-C goes to the processes whose terminal it is typed on, and whoever runs the tests may ignore it.
_ON_ITS_TERMINAL = """
import fcntl, os, signal, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""

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
    **streams: Stream,
) -> subprocess.CompletedProcess[bytes]:
    """Runs the command with pipes for its output.

    Args:
        words: Its arguments.
        stdin: What it reads; None for nothing.
        cwd: Its working folder.
        env: Its environment; None for that of the tests.
        timeout: After how many seconds it hangs.
        streams: Streams that are no pipes, as `begun` takes them.

    Raises:
        subprocess.TimeoutExpired: It hangs.
    """
    reads = subprocess.DEVNULL if stdin is None else subprocess.PIPE
    process = begun(words, cwd, env, stdin=reads, **streams)
    try:
        out, err = process.communicate(stdin, timeout)
    finally:
        process.kill()
        process.wait()
    assert process.returncode is not None
    return subprocess.CompletedProcess([*COMMAND, *words], process.returncode, out, err)


def begun(
    words: Sequence[str | Path],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    *,
    name: str = "",
    on_its_terminal: bool = False,
    **streams: Stream,
) -> subprocess.Popen[bytes] | Forked:
    """Begins the command.

    Args:
        words: Its arguments.
        cwd: Its working folder.
        env: Its environment; None for that of the tests.
        name: As what it was typed; "" for `python -m`.
        on_its_terminal: Whether stdin is a terminal that nobody else has, so that Ctrl-C goes to it.
        streams: `stdin`, `stdout` and `stderr` as `subprocess` takes them; without them it reads nothing, and writes
            to pipes.

    Returns:
        The process.
    """
    given = [*map(str, words)]
    variables = dict(os.environ if env is None else env)
    chosen: dict[str, Stream] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        **streams,
    }
    request = {
        "words": given,
        "cwd": str(cwd or Path.cwd()),
        "env": variables,
        "name": name,
        "on_its_terminal": on_its_terminal,
        "interrupted": on_its_terminal or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN,
    }
    told = json.dumps(request).encode()
    if not _can_be_forked(variables) or len(told) > _REQUEST_BYTES:
        command = [sys.executable, "-c", _NAMED, name] if name else COMMAND
        before = [sys.executable, "-S", "-c", _ON_ITS_TERMINAL] if on_its_terminal else []
        return subprocess.Popen([*before, *command, *given], cwd=cwd, env=variables, **chosen)  # type: ignore[call-overload,no-any-return]
    return _waiting().begin(told, chosen)


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

    return "STOCKADE_QUICK" in os.environ and hasattr(os, "pidfd_open") and settings(variables) == settings(os.environ)


class Forked:
    """A command that was forked, and what tests do with a `subprocess.Popen`.

    Args:
        pid: Its process.
        told: Where its status will be told.
        streams: The descriptors of our ends of its pipes.

    Attributes:
        pid: Its process.
        returncode: How it ended; None where that is not known yet.
        stdin: Our end of a pipe; None where it has none. So are `stdout` and `stderr`.
    """

    def __init__(self, pid: int, told: socket.socket, streams: Mapping[str, int]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._told = told
        self.stdin = os.fdopen(streams["stdin"], "wb") if "stdin" in streams else None
        self.stdout, self.stderr = (
            os.fdopen(streams[name], "rb") if name in streams else None for name in ("stdout", "stderr")
        )

    def poll(self) -> int | None:
        """Returns how it ended; None where it has not."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits until it has ended, and returns how."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(COMMAND, timeout or 0.0)
            self.returncode = os.waitstatus_to_exitcode(int(self._told.recv(64)))
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal to it, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, given: bytes | None = None, timeout: float | None = None) -> tuple[bytes, bytes]:
        """Writes to it, reads all that it writes, and waits until it has ended.

        Raises:
            subprocess.TimeoutExpired: It takes too long. What was read is lost.
        """
        end = None if timeout is None else time.monotonic() + timeout
        kept: dict[object, list[bytes]] = {self.stdout: [], self.stderr: []}
        left = memoryview(given or b"")
        with selectors.DefaultSelector() as selector:
            for reading in (self.stdout, self.stderr):
                if reading is not None and not reading.closed:
                    selector.register(reading, selectors.EVENT_READ)
            if self.stdin is not None:
                if left:
                    os.set_blocking(self.stdin.fileno(), False)
                    selector.register(self.stdin, selectors.EVENT_WRITE)
                else:
                    self.stdin.close()
            while selector.get_map():
                ready = selector.select(None if end is None else max(0.0, end - time.monotonic()))
                if not ready:
                    raise subprocess.TimeoutExpired(COMMAND, timeout or 0.0)
                for key, _ in ready:
                    stream = key.fileobj
                    if stream is self.stdin:
                        with suppress(BrokenPipeError):
                            left = left[os.write(key.fd, left[:65_536]) :]
                            if left:
                                continue
                    else:
                        # The rest of what was read in lines, and then what is in the pipe.
                        piece = stream.read1(65_536)  # type: ignore[union-attr]
                        if piece:
                            kept[stream].append(piece)
                            continue
                    selector.unregister(stream)
                    stream.close()  # type: ignore[union-attr]
        self.wait(None if end is None else max(0.0, end - time.monotonic()))
        return b"".join(kept[self.stdout]), b"".join(kept[self.stderr])


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

    def begin(self, request: bytes, streams: Mapping[str, Stream]) -> Forked:
        """Begins a command, as `begun` does."""
        with ExitStack() as both, ExitStack() as theirs:
            told, telling = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            theirs.callback(telling.close)
            both.callback(told.close)
            given, kept = [telling.fileno()], {}
            for number, (name, stream) in enumerate((name, streams[name]) for name in ("stdin", "stdout", "stderr")):
                if stream == subprocess.PIPE:
                    reading, writing = os.pipe()
                    own, other = (writing, reading) if name == "stdin" else (reading, writing)
                    kept[name] = own
                    both.callback(os.close, own)
                    theirs.callback(os.close, other)
                elif stream == subprocess.DEVNULL:
                    other = os.open(os.devnull, os.O_RDWR)
                    theirs.callback(os.close, other)
                elif stream == subprocess.STDOUT:
                    other = given[2]
                elif stream is None:
                    other = number
                else:
                    other = stream if isinstance(stream, int) else stream.fileno()
                given.append(other)
            socket.send_fds(self._socket, [request], given)
            pid = int(told.recv(64))
            both.pop_all()
            return Forked(pid, told, kept)


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
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready in select.select([requests, *running], [], [])[0]:
            if ready is not requests:
                child, telling = running.pop(ready)
                os.close(ready)
                with telling, suppress(OSError):
                    telling.send(b"%d" % os.waitpid(child, 0)[1])
                continue
            request, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 4)
            if not request:
                return
            child = os.fork()
            if not child:
                requests.close()
                for watched, (_, other) in running.items():
                    os.close(watched)
                    other.close()
                os.close(descriptors[0])
                _become(json.loads(request), descriptors[1:])
            for descriptor in descriptors[1:]:
                os.close(descriptor)
            telling = socket.socket(fileno=descriptors[0])
            with suppress(OSError):
                telling.send(b"%d" % child)
            running[os.pidfd_open(child)] = child, telling


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
    if request["on_its_terminal"]:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler if request["interrupted"] else signal.SIG_IGN)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    if encoding := variables.get(_ENCODING):
        sys.stdin.reconfigure(encoding=encoding)  # type: ignore[union-attr]
        sys.stdout.reconfigure(encoding=encoding)  # type: ignore[union-attr]
        sys.stderr.reconfigure(encoding=encoding)  # type: ignore[union-attr]
    # Where `python -m stockade` would have begun, and what it looks for no modules in.
    _start.LEFT_OUT[:] = [folder]
    for module in (_start, _table, _folders):
        module.START_FOLDER = folder  # type: ignore[attr-defined]
    sys.argv = [request["name"] or str(Path(stockade.__file__).with_name("__main__.py")), *words]
    stockade.cli.main()
