"""What a worker is forked with: all that it can come to need loaded, and a module under a policy, but no engine."""

from __future__ import annotations

import os
import pkgutil
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

import msgspec

from stockade.compilation import MadeProgram, Program
from stockade.engine import CompiledModule, Engine, EngineConfig, assemble
from stockade.execution import (
    Call,
    OpenMounts,
    PolicyContext,
)
from stockade.guard import guard, state_format, weave
from stockade.host import HostFunctions
from stockade.isolation._messages import (
    FAILURES,
    Register,
)
from stockade.jail import Step, detach_folders
from stockade.modules import Entry, Module, load_module
from stockade.report import Trace
from stockade.runner import RunControl
from stockade.wasm import FuncType, parse, scan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.execution import Guest
    from stockade.report import Report

__all__ = ["Prepared", "RemoteFunction", "prepared", "rehearse"]

_ROOMS: Final = (
    "system",
    "policy",
    "report",
    "wasm",
    "engine",
    "guard",
    "host",
    "modules",
    "worker",
    "runner",
    "execution",
)
"""What workers may come to use."""

_ELSEWHERE: Final = ("._child", "._yaml", ".loop", ".loop_calls", ".loop_streams", ".own_loop")
"""Modules of these that are other processes' own, need packages that may not be there, or are for event loops."""

_TINY: Final = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0)))))
"""


class Prepared:
    """A module under a policy, made as ready as it can be without an engine.

    Attributes:
        order: What was told of it.
        module: The module.
        code: The file with its machine code.
        context: The policy made ready.
        namespaces: What came of the namespaces that its workers are in.
    """

    def __init__(
        self, order: Register, module: Module, code: int, context: PolicyContext, namespaces: tuple[Step, ...]
    ) -> None:
        self.order = order
        self.module = module
        self.code = code
        self.context = context
        self.namespaces = namespaces

    def close(self) -> None:
        """Lets go of its files; its folders go with the context."""
        os.close(self.code)

    def load(self) -> None:
        """Makes an engine, with the machine code in it."""
        order = self.order
        config = EngineConfig(**order.config)  # type: ignore[arg-type]
        compiled = CompiledModule.load(
            Engine.shared(config._replace(pooled=False, parallel=False)), Path(f"/proc/self/fd/{self.code}")
        )
        self._engine = compiled.engine
        program = Program.of(compiled, order.woven, order.figures, self.module, order.features)
        self.context.adopt(self.module, MadeProgram(program, at_hand=True))

    def wait(self) -> None:
        """Starts what a run needs a thread for, which stays."""
        with suppress(*FAILURES.values()):
            self._engine.ticker.stay()

    def rehearse(self) -> Report | None:
        """Does what a run does, but for the guest's own code: of a run that is cancelled before it begins.

        What is touched then is in place when the run comes that this is for: most of what it takes is that memory is
        touched for the first time.

        Returns:
            What is reported on it; None where there is no report.
        """
        report = None
        control = RunControl()
        control.cancel()
        # What is wrong with it is told by the run.
        with suppress(*FAILURES.values()):
            guest = self.context.guest(self.module, control)
            try:
                steps = guest.invoke(Call(Entry(b"", FuncType((), ()))))
                try:
                    next(steps)
                except StopIteration as end:
                    report = end.value
                steps.close()
            finally:
                guest.close()
        self.context.ready(self.module).history.clear()
        return report

    def guest_ahead(self, control: RunControl) -> Guest | None:
        """Makes a guest that is given nothing, for a run that comes later; None where that is to be done then.

        Args:
            control: The control of that run.
        """
        with suppress(*FAILURES.values()):
            if self.context.trace is None:
                return self.context.guest(self.module, control)
        return None


def prepared(
    order: Register, descriptors: Sequence[int], namespaces: tuple[Step, ...], known: Prepared | None
) -> Prepared:
    """Makes a module under a policy ready, in the fork server.

    Args:
        order: What is told of it.
        descriptors: The module and its machine code, unless these are known, and the folders of its mounts.
        namespaces: What came of the namespaces that the server is in.
        known: The same under another policy.
    """
    if known is None:
        wasm, code, *given = descriptors
        with os.fdopen(wasm, "rb") as file:
            file.seek(0)
            module = load_module(file.read(), order.policy, text=False, name=order.name)
    else:
        # The host has held it to this policy, too.
        module, code, given = known.module, os.dup(known.code), list(descriptors)
    assert module.sha256 == order.sha256
    mounts = order.policy.filesystem.mounts
    folders, namespaces = detach_folders(
        ((folder, mount.mode == "rw") for folder, mount in zip(given, mounts, strict=True)), namespaces
    )
    grants = OpenMounts.received(mounts, folders)
    units = order.units
    functions = HostFunctions.described(order.functions, RemoteFunction)
    told = order.trace
    trace = None if told is None else Trace(**msgspec.structs.asdict(told))
    context = PolicyContext(order.policy, functions, grants, trace=trace, units_for=lambda _: units or 0)
    return Prepared(order, module, code, context, namespaces)


class FunctionHost(Protocol):
    """The host, as functions of the embedder's need it."""

    def call(self, number: int, values: tuple[object, ...]) -> object:
        """Calls a function of the embedder's, and waits for what comes of it."""


class RemoteFunction:
    """A function of the embedder, which is in the host.

    Args:
        number: Its place among those of the module.
    """

    host: ClassVar[FunctionHost]
    """Set in a worker."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __call__(self, *values: object) -> object:
        return self.host.call(self._number, values)


_LOADED_LATER: Final = (
    *("asyncio", "atexit", "difflib", "encodings.ascii", "encodings.latin_1", "fcntl", "inspect", "linecache", "mmap"),
    *("resource", "statistics", "struct", "tempfile", "textwrap", "threading", "tomllib", "traceback", "unicodedata"),
)
"""What rooms and Python itself load in the middle of things."""


def rehearse() -> None:
    """Has done in the fork server what every worker would do again, and could not behind its walls: open files.

    So all is loaded that a run can come to need, the library too. No engine is made, and no thread.
    """
    for name in _LOADED_LATER:
        import_module(name)
    for room in _ROOMS:
        for module in pkgutil.iter_modules(import_module(f"stockade.{room}").__path__, f"stockade.{room}."):
            if not module.name.endswith(_ELSEWHERE):
                import_module(module.name)
    tiny = parse(assemble(_TINY))
    woven = weave(tiny, guard(), scan(tiny))
    state_format({"fd_write"})
    msgspec.msgpack.encode(woven.renamed)
