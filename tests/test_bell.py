"""Bells, and threads that are started: handlers of signals that raise leave nobody waiting."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

from stockade._bell import start_thread
from tests._processes import until

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def test_a_thread_whose_start_is_interrupted_comes_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a handler raises while it is waited for that the thread has begun. Nobody is told that there are no
    more threads, and none is left that never begins.
    """
    # A handler may raise where Python drops something, too.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    armed, interrupted, begun, ended = False, 0, 0, 0
    lock = threading.Lock()

    def ring(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise InterruptedError

    def counted(run: Callable[[], None]) -> Callable[[], None]:
        def bootstrap() -> None:
            nonlocal begun, ended
            with lock:
                begun += 1
            try:
                run()
            except KeyError:
                pass  # Python's own list of threads was interrupted, so that the thread ends at once.
            finally:
                with lock:
                    ended += 1

        return bootstrap

    chance = random.Random(5)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        while interrupted < 2_000:
            thread = threading.Thread(target=time.monotonic, daemon=True)
            # What the system begins with, before the thread says that it has begun.
            thread._bootstrap_inner = counted(thread._bootstrap_inner)  # type: ignore[attr-defined]
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, chance.random() * 2e-4 + 1e-6)
                start_thread(thread)
            except InterruptedError:
                interrupted += 1
            armed = False
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert until(lambda: begun == ended)
