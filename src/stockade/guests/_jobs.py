"""What interpreters of JavaScript are given with a job, and what is known of them once they were made ready."""

from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING

import msgspec

from stockade.errors import ModuleError
from stockade.guests._result import Frame, read_frame

if TYPE_CHECKING:
    from stockade.guests._task import Task
    from stockade.policy import Random
    from stockade.report import Report

__all__ = ["job_of", "made_ready", "seed_for", "where_stepped"]

_WORDS = (1 << 64) - 1


def seed_for(random: Random) -> int:
    """Returns where a generator of random numbers begins, which must not be 0."""
    # Some other number for 0, and each for one alone, as the generator would make it of one.
    return _step(random.seed or _WORDS) if random.mode == "seeded" else int.from_bytes(os.urandom(8), "little") or 1


def _step(state: int) -> int:
    """Returns the state of a generator (xorshift64*) after another."""
    state ^= state >> 12
    state ^= state << 25 & _WORDS
    return state ^ state >> 27


def where_stepped(before: bytes, after: bytes) -> int:
    """Finds where a generator's state lies, which has gone on by one step.

    Raises:
        ModuleError: It is not there.
    """
    for at in range(0, len(before), 8):
        (state,) = struct.unpack_from("<Q", before, at)
        if state and (_step(state),) == struct.unpack_from("<Q", after, at):
            return at
    raise ModuleError("the state of Math.random is not found, without which all runs would draw the same numbers")


def job_of(task: Task, *, has_stdin: bool = False) -> bytes:
    """Returns a job as a guest reads it; with what stands on its standard input where that is for others, or always."""
    given = task.stdin if has_stdin or task.session or task.tools or task.network else None
    return json.dumps(
        {
            "code": task.code,
            "name": task.name,
            "inputs": task.inputs,
            "args": list(task.args),
            "most": task.most_bytes,
            "session": task.session,
            "env": dict(task.env or {}),
            "echo": task.echo,
            "stdin": (given or b"").decode("utf-8", "replace"),
            "tools": [dict(tool) for tool in task.tools],
            "network": task.network,
        }
    ).encode()


def made_ready(report: Report) -> Report:
    """Returns the report on making an interpreter ready: its value is 0, or 1 with why on stderr.

    Args:
        report: That on the code that is run ahead, the last thing that is done.
    """
    frame = read_frame(report.value) if isinstance(report.value, bytes) else None
    if isinstance(frame, Frame) and frame.error is None:
        return msgspec.structs.replace(report, value=0)
    told = frame.error.traceback if isinstance(frame, Frame) and frame.error is not None else ""
    return msgspec.structs.replace(report, value=1, stderr=told.encode())
