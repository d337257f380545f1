"""Preparing and compiling a module in a process of its own, under limits of time and memory.

What a module makes the weaver and the compiler do is the module's choice: 1.8 MB of small functions keep the compiler
busy for seconds and take a gigabyte. In a process of its own it is stopped at any moment, and the host is not harmed.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from stockade._text import printable
from stockade.engine import library_folder
from stockade.errors import EngineError, InvalidModule, LinkError
from stockade.guard import Woven  # noqa: TC001 - for msgspec
from stockade.policy import Policy

if TYPE_CHECKING:
    import subprocess

    from stockade.engine import EngineConfig
    from stockade.execution._module import Module

__all__ = ["Job", "Made", "make_aside"]

_BOOT = "import sys; sys.path += {paths!r}; from stockade.execution._child import main; main({source}, {target})"
_MOST_ANSWER_BYTES = 4 << 30
_FIRST_FREE = 3
"""The first descriptor after the standard streams."""
_UNREADABLE = "the compiling process left nothing that can be read"
_FAILURES = {kind.__name__: kind for kind in (EngineError, InvalidModule, LinkError)}


class Job(msgspec.Struct, frozen=True):
    """What the other process is to do.

    Attributes:
        name: The module's name, for messages.
        config: What to compile for.
        policy: The policy, as a document.
        seconds: CPU time that it may use.
        parent: The process that waits for it.
    """

    name: str
    config: dict[str, bool | int]
    policy: str
    seconds: int
    parent: int


class Made(msgspec.Struct, frozen=True):
    """What the other process made; it is followed by the machine code.

    Attributes:
        woven: What the weaver tells of the module, without its bytes.
        figures: Figures of the original's code.
        failure: The kind of error, and its message, where it did not come to that.
    """

    woven: Woven | None = None
    figures: dict[str, int] = {}
    failure: tuple[str, str] | None = None


def make_aside(module: Module, config: EngineConfig, policy: Policy) -> tuple[Woven, dict[str, int], bytes]:
    """Prepares and compiles a module in a process of its own.

    Args:
        module: The module.
        config: The configuration to compile for.
        policy: What the module may be, and how long and with how much memory it may take.

    Returns:
        What the weaver tells of it, figures of its code, and its machine code.

    Raises:
        InvalidModule: It is not valid, or takes more than it may.
        LinkError: It imports what nothing provides.
        EngineError: The engine does not accept it, or there can be no other process.
    """
    limits = policy.limits
    # The clock ends it first; this is for the case that nobody is left to look at the clock.
    seconds = int(limits.compile_time * max(2, os.cpu_count() or 1)) + 1
    # No more of the policy than that process needs: what it says of the host is not for a compiler to know.
    needed = Policy(limits=limits, structure=policy.structure, features=policy.features)
    job = Job(module.name, config._asdict(), json.dumps(needed.to_document()), seconds, os.getpid())
    try:
        with ExitStack() as stack:
            source, target = stack.enter_context(_scratch()), stack.enter_context(_scratch())
            _write_framed(source, msgspec.json.encode(job), module.data)
            status = _run((source.fileno(), target.fileno()), limits.compile_time)
            head, code = (b"", b"") if status != 0 else read_framed(target)
    except OSError as problem:
        raise EngineError(f"no process can be started to compile in: {problem.strerror}") from None
    if status is None:
        raise InvalidModule(
            f"{module.name} takes more than {limits.compile_time:g} s to compile (limits.compile_time): "
            "it is too much for the compiler"
        )
    if status > 0:
        raise EngineError(
            f"the compiling process failed with exit status {status}: check that {printable(sys.executable, 400)} is a "
            "sound Python with this Stockade and its packages"
        )
    if status:
        raise InvalidModule(
            f"the compiler was ended by {_name(status)}, as it is where it needs more than "
            f"{limits.compile_memory:,} bytes of memory (limits.compile_memory): {module.name} is too much for it"
        )
    try:
        made = msgspec.json.decode(head, type=Made)
    except msgspec.MsgspecError:
        raise EngineError(_UNREADABLE) from None
    if made.failure is not None:
        kind, message = made.failure
        raise _FAILURES.get(kind, EngineError)(message)
    if made.woven is None:
        raise EngineError(_UNREADABLE)
    return made.woven, made.figures, code


def _write_framed(file: IO[bytes], head: bytes, body: bytes) -> None:
    file.write(len(head).to_bytes(8, "little") + head)
    file.write(body)
    file.flush()
    file.seek(0)


def read_framed(file: IO[bytes]) -> tuple[bytes, bytes]:
    """Reads what `_write_framed` wrote.

    Raises:
        EngineError: It is not that.
    """
    size = os.fstat(file.fileno()).st_size
    if size > _MOST_ANSWER_BYTES:
        raise EngineError(f"the compiling process left {size:,} bytes, more than machine code can have")
    file.seek(0)
    head = int.from_bytes(file.read(8), "little")
    if head > size - 8:
        raise EngineError(_UNREADABLE)
    return file.read(head), file.read()


def answer(file: IO[bytes], made: Made, code: bytes = b"") -> None:
    """Writes what was made, in the other process."""
    _write_framed(file, msgspec.json.encode(made), code)


def _run(descriptors: tuple[int, int], seconds: float) -> int | None:
    """Runs the other process; returns its status, None where its time was up."""
    import subprocess

    if not sys.executable:
        raise EngineError(
            "there is no Python to compile with, for sys.executable is not set: set it, or let the policy say "
            'limits.compile_process = "never"'
        )
    source, target = descriptors
    # Only where our own packages are, and last: never the working folder, which a guest may have written to.
    homes = (Path(__file__).parents[2], Path(str(msgspec.__file__)).parents[1], library_folder())
    paths = list(dict.fromkeys(map(str, homes)))
    child = subprocess.Popen(  # noqa: S603 - our own code; the module goes by descriptor
        [sys.executable, "-I", "-c", _BOOT.format(paths=paths, source=source, target=target)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=descriptors,
        # Ctrl-C is for this process, which ends the other one.
        start_new_session=True,
    )
    try:
        return _wait(child, seconds)
    finally:
        child.kill()
        child.wait()


def _wait(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    import select
    from subprocess import TimeoutExpired

    if hasattr(os, "pidfd_open"):
        # Popen.wait looks up only every 50 ms, which is as long as a small module takes.
        ended = os.pidfd_open(child.pid)
        try:
            # Not select(), which cannot wait for descriptors from 1024 on.
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            return child.wait() if poll.poll(seconds * 1000) else None
        finally:
            os.close(ended)
    try:
        return child.wait(seconds)
    except TimeoutExpired:
        return None


def _scratch() -> IO[bytes]:
    """An unnamed file, never under the number of a standard stream: there the other process has streams of its own."""
    file = _unnamed()
    if file.fileno() >= _FIRST_FREE:
        return file
    # The host has closed a standard stream.
    with file:
        return os.fdopen(fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE), "w+b")


def _unnamed() -> IO[bytes]:
    """An unnamed file, in memory where the system has such."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("stockade"), "w+b")
    from tempfile import TemporaryFile

    return TemporaryFile()


def _name(status: int) -> str:
    import signal

    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"exit status {status}"
