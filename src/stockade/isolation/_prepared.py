"""What a worker is forked with: all that it can come to need loaded, and a module under a policy in machine code."""

from __future__ import annotations

import os
import pkgutil
import re
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Protocol

import msgspec

from stockade._text import printable
from stockade.compilation import MadeProgram, Program
from stockade.engine import CompiledModule, Engine, EngineConfig, assemble, map_code
from stockade.errors import IsolationError
from stockade.execution import (
    NO_INPUTS,
    Call,
    Inputs,
    OpenMounts,
    PolicyContext,
    hold_still,
    make_stack,
)
from stockade.guard import guard, state_format, weave
from stockade.host import HostFunctions
from stockade.isolation._messages import (
    FAILURES,
    Register,
)
from stockade.jail import Jail, Step, detach_folders, has_other_threads, warm_up
from stockade.modules import Module, load_module
from stockade.report import Trace
from stockade.wasm import ExternKind, parse, scan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stockade.execution import Guest, SavedGuest, Streams
    from stockade.runner import RunControl

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


_DESCRIPTORS: Final = Path("/proc/self/fd")
_MAPS: Final = Path("/proc/self/maps")
_SHARED: Final = re.compile(rb"^\S+ .w.s .*$", re.MULTILINE)


class LoadedCode(NamedTuple):
    """Machine code in an engine.

    Attributes:
        compiled: That.
        files: Descriptors that the engine has opened for it, and maps what memories begin with from.
    """

    compiled: CompiledModule
    files: tuple[int, ...]


class Prepared:
    """A module under a policy, made ready for a guest.

    Attributes:
        order: What was told of it.
        module: The module.
        code: Its machine code; None where it cannot be loaded.
        context: The policy made ready.
        namespaces: What came of the namespaces that its workers are in.
        problem: Why there can be no guest, which its workers tell; None where there can be.
    """

    def __init__(
        self,
        order: Register,
        module: Module,
        code: LoadedCode | None,
        context: PolicyContext,
        namespaces: tuple[Step, ...],
        problem: Exception | None = None,
    ) -> None:
        self.order = order
        self.module = module
        self.code = code
        self.context = context
        self.namespaces = namespaces
        self.problem = problem

    def wait(self) -> None:
        """Starts what a run needs a thread for, which stays."""
        with suppress(*FAILURES.values()):
            if self.code is not None:
                self.code.compiled.engine.ticker.stay()

    def map_code(self) -> None:
        """Has all of its machine code mapped."""
        map_code(self.context.ready(self.module).program.compiled)

    def still_guest(self, control: RunControl) -> Guest | None:
        """Makes a guest that is given nothing, and of which nothing ever runs; None where there can be none.

        Args:
            control: The control of its run.
        """
        guest = self.guest_ahead(control)
        if guest is not None:
            hold_still(guest)
        return guest

    def forget(self) -> None:
        """Forgets what was noted of runs that were none."""
        self.context.ready(self.module).history.clear()

    @property
    def first_call(self) -> Call | None:
        """What most runs of the module call; None where it exports no function."""
        plan = self.context.ready(self.module)
        if plan.command is not None:
            return plan.command
        exports = self.module.parsed.exports.items()
        name = next((name for name, export in exports if export.kind is ExternKind.FUNC), None)
        return None if name is None else Call(self.module.function_entry(name.decode("utf-8", "surrogateescape")))

    def guest_ahead(
        self,
        control: RunControl,
        inputs: Inputs = NO_INPUTS,
        streams: Streams | None = None,
        saved: SavedGuest | None = None,
    ) -> Guest | None:
        """Makes a guest for a run that comes later; None where that is to be done then.

        Args:
            control: The control of that run.
            inputs: What it is given.
            streams: What serves it.
            saved: What it begins with, where that is not what the module begins with.
        """
        with suppress(*FAILURES.values()):
            if self.context.trace is None:
                guest = self.context.guest(self.module, control, inputs, streams, saved)
                make_stack(guest)
                return guest
        return None


def prepared(
    order: Register, descriptors: Sequence[int], namespaces: tuple[Step, ...], known: Prepared | None
) -> Prepared:
    """Makes a module under a policy ready, in a template.

    Args:
        order: What is told of it.
        descriptors: The module and its machine code, unless these are known, and the folders of its mounts.
        namespaces: What came of the namespaces that the template is in.
        known: The same under another policy.
    """
    code: LoadedCode | None = None
    problem: Exception | None = None
    if known is None:
        wasm, file_of_code, *given = descriptors
        with os.fdopen(wasm, "rb") as file:
            file.seek(0)
            module = load_module(file.read(), order.policy, text=False, name=order.name)
        try:
            code = _loaded(order, file_of_code)
        except tuple(FAILURES.values()) as failed:
            problem = failed
        finally:
            os.close(file_of_code)
    else:
        # The host has held it to this policy, too.
        module, code, problem, given = known.module, known.code, known.problem, list(descriptors)
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
    if code is not None:
        try:
            program = Program.of(code.compiled, order.woven, order.figures, module, order.features)
            context.adopt(module, MadeProgram(program, at_hand=True))
            _check_forkable()
        except tuple(FAILURES.values()) as failed:
            problem = failed
    if known is None:
        # What was taken apart is enough: each fork would copy the kernel's tables of all these pages.
        module.drop_data()
    if order.removed:
        warm_up(Jail(executable=False, remove=frozenset(order.removed)))
    return Prepared(order, module, code, context, namespaces, problem)


def _loaded(order: Register, file: int) -> LoadedCode:
    """Makes an engine, with machine code in it that is in a file, which may be closed afterwards.

    Raises:
        EngineError: It cannot be loaded.
    """
    config = EngineConfig(**order.config)  # type: ignore[arg-type]
    engine = Engine.shared(config._replace(pooled=False, parallel=False))
    compiled = CompiledModule.load(engine, Path(f"/proc/self/fd/{file}"))
    return LoadedCode(compiled, tuple(_others_of(file)))


def _others_of(file: int) -> Iterator[int]:
    """Finds descriptors of the same file."""
    status = os.fstat(file)
    for entry in _DESCRIPTORS.iterdir():
        # That of the folder is closed when it has been read.
        with suppress(OSError):
            other = int(entry.name)
            if other != file and os.path.samestat(os.fstat(other), status):
                yield other


def _check_forkable() -> None:
    """Checks that what is loaded is whole in a child, and that nothing which one child writes is seen by another.

    Raises:
        IsolationError: There is a thread, which no child would have, or memory that children would share.
    """
    if has_other_threads():
        raise IsolationError("there are threads beside the one that makes workers, which these would lack")
    try:
        maps = _MAPS.read_bytes()
    except OSError as problem:
        raise IsolationError(f"the kernel does not tell what workers would share ({problem.strerror})") from None
    if shared := _SHARED.search(maps):
        raise IsolationError(f"workers would share memory that they can write to: {printable(shared[0].decode())}")


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
