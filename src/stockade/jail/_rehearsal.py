"""What this machine gives, found out by doing it: all walls are raised around a process that is made for that alone."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec

from stockade.jail._confine import confine
from stockade.jail._model import WALLS, Jail, JailError, JailReport, Step
from stockade.jail._namespaces import enter_namespaces, leave_root

__all__ = ["be_rehearsed", "rehearse"]

_SECONDS = 30.0
_MAX_TOLD = 2000


def rehearse() -> JailReport:
    """Raises all walls around a new process, has it try them, and returns what came of each.

    A worker has these walls and no others, on this machine and for this user.
    """
    if not sys.platform.startswith("linux"):
        return _none("a jail needs Linux on x86-64 or aarch64")
    command = (
        f"import sys; sys.path[:] = {sys.path!r}; from stockade.jail._rehearsal import be_rehearsed; be_rehearsed()"
    )
    try:
        done = subprocess.run(  # noqa: S603 - our own code, nobody else's text
            [sys.executable, "-I", "-X", "utf8", "-c", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
            timeout=_SECONDS,
            check=False,
        )
        return msgspec.json.decode(done.stdout, type=JailReport)
    except (OSError, subprocess.SubprocessError) as problem:
        return _none(f"no process can be started ({problem})"[:_MAX_TOLD])
    except msgspec.DecodeError:
        told = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return _none(f"the process that tried it has failed with status {done.returncode}: {told}"[:_MAX_TOLD])


def be_rehearsed() -> None:
    """Raises all walls around this process, and writes on stdout what came of each."""
    try:
        report = confine(Jail(keep=(1, 2), on_forbidden="errno"), leave_root(enter_namespaces()))
    except JailError as problem:
        report = _none(str(problem))
    os.write(1, msgspec.json.encode(report))
    os._exit(0)


def _none(why: str) -> JailReport:
    return JailReport(tuple(Step(wall, active=False, detail=why) for wall in WALLS))
