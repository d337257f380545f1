"""Locks: a forked child waits for none that another thread of its parent had.

Holds P-FORK-1.
"""

from __future__ import annotations

import os
import random
import re
import signal
import threading
from pathlib import Path

import pytest

import stockade
from stockade import Policy, Sandbox
from stockade._locks import new_lock
from tests._processes import ended, forked
from tests.conftest import wat

pytestmark = pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="processes are not forked here")

SOURCES = Path(stockade.__file__).parent

WITHIN_ONE_PROCESS = {
    "_bell.py": "whoever waits at a bell is a thread of the process that made it",
    "_locks.py": "here they are made",
    "audit/_outlet.py": "all that waits is the parent's: `begin_anew` makes another",
    "cli/_guest_io.py": "the command forks nothing",
    "execution/_guest.py": "of one run, which its own thread takes on",
    "host/_guest.py": "of one call of a function, on its own thread",
}
"""Modules that make locks which no child comes to."""


def test_a_lock_of_another_thread_is_open_in_a_child_and_one_of_its_own_is_not() -> None:
    theirs, mine, nobodys = new_lock(), new_lock(), new_lock()
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with theirs:
            held.set()
            over.wait()

    def work() -> None:
        assert theirs.acquire(blocking=False)
        assert nobodys.acquire(blocking=False)
        assert mine._is_owned()  # type: ignore[attr-defined]

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with mine:
        child = forked(work)
        assert ended(child) == 0
        assert not theirs.acquire(blocking=False)
    over.set()
    thread.join()
    with theirs, mine, nobodys:
        pass


def test_what_the_handler_of_a_signal_raises_leaves_no_lock_taken() -> None:
    """Wherever it comes in between, also right behind the call that takes the lock."""

    def ring(*_: object) -> None:
        raise InterruptedError

    lock, chance, heard, taken = new_lock(), random.Random(3), 0, 0
    before = signal.signal(signal.SIGALRM, ring)
    try:
        while heard < 2_000:
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.random() * 2e-5 + 1e-6)
                for _ in range(1_000):
                    with lock:
                        pass
            except InterruptedError:
                heard += 1
            while lock._is_owned():  # type: ignore[attr-defined]
                taken += 1
                lock.release()
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert taken == 0


def test_a_sandbox_that_another_thread_is_about_to_use_is_used_in_a_child() -> None:
    module = wat('(module (func (export "_start")))')
    box = Sandbox()
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with box._contexts._lock, box._contexts.under()._lock:
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = forked(lambda: box.run(module, policy=Policy().replace(wall_time=30)).check())
    over.set()
    thread.join()
    assert ended(child) == 0


def test_who_makes_locks_makes_them_for_children_or_begins_anew_there() -> None:
    for path in SOURCES.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if re.search(r"\b(?:R?Lock|reentrant_lock|Condition|Semaphore|Event)\(\)", re.sub("asyncio.Event", "", text)):
            name = str(path.relative_to(SOURCES))
            assert name in WITHIN_ONE_PROCESS or re.search(r"def _?after_fork|def forget", text), name
