"""What interpreters of JavaScript are given with a job: the job, and where their random numbers begin."""

from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING

from stockade.errors import ModuleError

if TYPE_CHECKING:
    from stockade.guests._task import Task
    from stockade.policy import Random

__all__ = ["job_of", "seed_for", "where_stepped"]

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
    given = task.stdin if has_stdin or task.session or task.tools else None
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
        }
    ).encode()
