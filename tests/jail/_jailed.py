"""Processes in jails: each is started anew, for what a jail does to a process is for good."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["ALWAYS", "Came", "needs_linux", "prisoner", "run_prisoner"]

import pytest

from stockade.syscalls import this_platform

needs_linux = pytest.mark.skipif(
    this_platform() not in ("linux-x86_64", "linux-aarch64"), reason="jails need Linux on x86-64 or aarch64"
)

ALWAYS = ("environment", "session", "descriptors", "limits", "privileges", "capabilities", "undumpable")
"""Walls that every Linux gives to every process."""

_SECONDS = 120
_PRISONER = Path(__file__).with_name("_prisoner.py")


class Came(NamedTuple):
    """What came of a process."""

    status: int
    begun: int
    told: dict[str, Any]
    errors: str


def run_prisoner(**spec: object) -> Came:
    """Starts a process as it is told, and waits for it."""
    command = [sys.executable, str(_PRISONER), json.dumps(spec)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, errors = process.communicate(timeout=_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    dots, _, answer = out.rpartition("\n")
    begun = (dots or out).count(".")
    told = json.loads(answer) if answer.startswith("{") else {}
    return Came(process.returncode, begun, told, errors)


def prisoner(**spec: object) -> dict[str, Any]:
    """The same, of one that is to end well."""
    came = run_prisoner(**spec)
    assert (came.status, came.errors) == (0, ""), came
    return came.told
