"""Bubblewrap around what makes workers: a command that enters namespaces where this process may not.

Some systems let no process enter a namespace of users but those that they trust, and that command is one of them. What
it gives is found out inside; workers raise all their own walls there, too.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Final, NoReturn

from stockade.jail import namespaces_of_this_process
from stockade.worker import watched

__all__ = ["main", "missing_command"]

_COMMAND: Final = "bwrap"
_FOLDERS: Final = "/usr/bin:/bin:/usr/local/bin:/run/current-system/sw/bin"
"""Where it is looked for: never in the folders of the environment, which somebody else may have named."""

_OPTIONS: Final = ("--unshare-all", "--bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--")


def missing_command() -> str:
    """Says that there is no such command; "" where there is."""
    if shutil.which(_COMMAND, path=_FOLDERS) is None:
        return f"there is no {_COMMAND} in {_FOLDERS.replace(':', ', ')}: install bubblewrap"
    return ""


def main(control: int, host: int) -> NoReturn:
    """Becomes the command, which starts the fork server.

    Args:
        control: Descriptor of the socket that orders come from.
        host: The process that started this one.
    """
    status = 1
    try:
        # Neither can be found out inside.
        watching, outside = watched(host), namespaces_of_this_process()
        os.set_inheritable(control, True)
        if watching is not None:
            os.set_inheritable(watching, True)
        boot = (
            f"import sys; sys.path[:] = {sys.path!r}; from stockade.isolation._server import serve; "
            f"serve({control}, {watching}, {outside!r})"
        )
        command = shutil.which(_COMMAND, path=_FOLDERS)
        if command is not None:
            os.execv(command, [_COMMAND, *_OPTIONS, sys.executable, "-I", "-X", "utf8", "-c", boot])  # noqa: S606
    finally:
        os._exit(status)
