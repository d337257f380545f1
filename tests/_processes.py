"""Looking at processes, descriptors and instances from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from stockade.engine import Engine
from stockade.isolation._hub import hub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "busy",
    "cancelling",
    "children",
    "descriptors",
    "ended",
    "fork",
    "forked",
    "gone",
    "live_guests",
    "live_instances",
    "open_descriptors",
    "threads",
    "until",
    "wait_for",
]


def children(pid: int) -> set[int]:
    """The processes that a process has started and that exist."""
    found: set[int] = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        # It may be over by now.
        with contextlib.suppress(FileNotFoundError):
            found.update(int(child) for child in (thread / "children").read_text().split())
    return found


def fork() -> int:
    """Forks this process, whatever threads it has: Python from 3.12 on warns where there are some."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def forked(work: Callable[[], object]) -> int:
    """Does something in a forked child, which ends by a signal where it waits for ever."""
    child = fork()
    if child:
        return child
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """How a child has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def threads(pid: int) -> int:
    """How many threads a process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Waits for something; whether it came. Only what never comes takes so long, on any machine."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits until something is so, at most a minute."""
    assert until(condition), "it never came to be so"


@contextlib.contextmanager
def cancelling(cancel: Callable[[], object]) -> Iterator[None]:
    """Calls something again and again while a block is under way: what is cancelled there may not have begun yet."""
    over = threading.Event()

    def again() -> None:
        while not over.wait(0.01):
            cancel()

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def live_instances() -> int:
    """How many instances exist in all engines."""
    return sum(engine.live_instances for engine in Engine._engines.values())


def live_guests() -> int:
    """How many guests there are, here and in workers: those of a worker until it is known to have ended."""
    server = hub._server
    workers = 0 if server is None or server.lost else len(server.workers) - len(server.ahead)
    return live_instances() + workers


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def gone(pid: int) -> bool:
    """Whether a process has ended, be it waited for or not."""
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def busy(server: int) -> set[int]:
    """The children of a compiling process that have a job: they have their limit of memory."""
    found = set()
    for child in children(server):
        with contextlib.suppress(OSError):
            if "Max data size             unlimited" not in Path(f"/proc/{child}/limits").read_text():
                found.add(child)
    return found


def descriptors() -> int:
    """How many descriptors are open that are ours for compiling."""
    # Runs keep files for the standard streams of later runs, and machine code from the cache is mapped from a file.
    found = (path.readlink().name for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    return sum("memfd:stockade" in name or "pidfd" in name or "socket:" in name for name in found)
