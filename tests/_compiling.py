"""Compiling that a test holds up and lets go, as slow modules would make it, on any machine."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from stockade.compilation import _programs
from stockade.errors import EngineError
from stockade.execution import _plan
from stockade.worker import _compile_queue, _subprocess
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from stockade import Module, Policy
    from stockade.engine import EngineConfig
    from stockade.worker._compile_queue import Turn

__all__ = ["Compiling", "compiling_by_hand"]


class Compiling:
    """What is compiled, and what waits for that.

    Attributes:
        begun: The names of modules whose compiling has begun, in order.
    """

    def __init__(self, queue: _compile_queue.CompileQueue) -> None:
        self.begun: list[str] = []
        self._queue = queue
        self._names: dict[str, str] = {}
        self._change = threading.Condition()
        self._free: set[str] = set()
        self._all_free = False
        self._refused: dict[str, Exception] = {}

    @property
    def waiting(self) -> int:
        """How many modules wait for their turn."""
        return self._queue.waiting

    @property
    def running(self) -> int:
        """How many modules are being compiled."""
        return self._queue.running

    def module(self, number: int) -> Module:
        """A module whose name is a number."""
        module = wat(HELLO.replace("hello", f"{number:05}"))
        self._names[module.sha256] = str(number)
        return module

    def let_go(self, name: str, problem: Exception | None = None) -> None:
        """Lets a module be compiled, or refused."""
        with self._change:
            if problem is not None:
                self._refused[name] = problem
            self._free.add(name)
            self._change.notify_all()

    def let_all_go(self) -> None:
        """Lets every module be compiled."""
        with self._change:
            self._all_free = True
            self._change.notify_all()

    def hold(self, module: Module, turn: Turn) -> None:
        """Waits until the test lets a module go, or nobody waits for it any more."""
        name = self._names[module.sha256]

        def notify() -> None:
            with self._change:
                self._change.notify_all()

        turn.on_abandoned = notify
        with self._change:
            self.begun.append(name)
            self._change.wait_for(lambda: self._all_free or name in self._free or turn.abandoned)
        if turn.abandoned:
            raise EngineError("abandoned")
        if name in self._refused:
            raise self._refused[name]


def compiling_by_hand(monkeypatch: pytest.MonkeyPatch, *, processors: int = 1) -> Iterator[Compiling]:
    """Has all modules compiled by hand, as large ones, in a queue for so many processors."""
    queue = _compile_queue.CompileQueue(processors, float("inf"))
    held = Compiling(queue)
    genuine = _subprocess.compile_aside

    def compile_(module: Module, config: EngineConfig, policy: Policy, turn: Turn, **more: bool) -> object:
        held.hold(module, turn)
        return genuine(module, config, policy, turn, **more)

    monkeypatch.setenv("STOCKADE_CACHE", "off")
    monkeypatch.setattr(_compile_queue, "_compile_queue", queue)
    monkeypatch.setattr(_subprocess, "SMALL_BYTES", 0)
    monkeypatch.setattr(_programs, "_stays_here", lambda *_, **__: False)
    monkeypatch.setattr(_programs, "compile_aside", compile_)
    monkeypatch.setattr(_plan, "programs", _programs._Programs())
    yield held
    held.let_all_go()
