"""Runs in steps: who takes them, and who waits. Knows no WebAssembly."""

from stockade.runner._awaited import GRACE_SECONDS, AwaitedCall, Awaiter
from stockade.runner._coroutine import (
    ASIDE,
    FOREVER,
    GO_ON,
    RunControl,
    RunCoroutine,
    blamed,
    is_cancellation,
    is_in_coroutine,
    run_blocking,
)
from stockade.runner._executor import NORMAL_PRIORITY, WorkItem, executor

__all__ = [
    "ASIDE",
    "FOREVER",
    "GO_ON",
    "GRACE_SECONDS",
    "NORMAL_PRIORITY",
    "AwaitedCall",
    "Awaiter",
    "RunControl",
    "RunCoroutine",
    "WorkItem",
    "blamed",
    "executor",
    "is_cancellation",
    "is_in_coroutine",
    "run_blocking",
]
