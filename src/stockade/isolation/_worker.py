"""A worker: the process of one run. It is forked with everything loaded, jailed, makes an engine, runs, and ends.

The run goes the one way that all runs go (`execution/`). What differs is who waits: here it is one loop that listens to
the host meanwhile.
"""

from __future__ import annotations

import gc
import math
import os
import pkgutil
import resource
import select
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

import msgspec

from stockade.compilation import MadeProgram, Program
from stockade.engine import CompiledModule, Engine, EngineConfig, assemble
from stockade.execution import Inputs, OpenMounts, PolicyContext, Streams
from stockade.guard import guard, state_format, weave
from stockade.host import CapabilityMissing, HostFunctions, ToldFailure
from stockade.isolation._backend import InProcess, Task
from stockade.isolation._frames import (
    FAILURES,
    TO_WORKER,
    Answer,
    Called,
    Cancel,
    Failed,
    Finished,
    FromWorker,
    Garbled,
    Gone,
    Input,
    Output,
    Register,
    Request,
    Started,
    Told,
    Wants,
    receive,
    send,
)
from stockade.jail import Granted, Jail, ResourceLimits, Step, Wall, confine, detach_folders, seal_code
from stockade.modules import Module, load_module
from stockade.runner import FOREVER, GO_ON, RunControl
from stockade.system import end_with
from stockade.wasm import parse, scan

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from stockade.report import Report
    from stockade.runner import RunCoroutine

__all__ = ["Prepared", "prepared", "rehearse", "work"]

REQUIRED_WALLS: Final[frozenset[Wall]] = frozenset({"environment", "descriptors", "limits", "privileges", "seccomp"})
"""Walls without which no worker runs anything. Landlock and namespaces stand where the machine gives them."""

_SPARE_BYTES: Final = 256 << 20
"""What a worker may use of memory, or write into a file, beyond what its guest may."""

_SPARE_SECONDS: Final = 10
_SPARE_FILES: Final = 128

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

_PROGRESS_SECONDS: Final = 0.1
"""How often the host is told how far the run is."""


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
        program = Program.of(compiled, order.woven, order.figures, self.module, order.features)
        self.context.adopt(self.module, MadeProgram(program, at_hand=True))


def prepared(order: Register, descriptors: Sequence[int], namespaces: tuple[Step, ...]) -> Prepared:
    """Makes a module under a policy ready, in the fork server.

    Args:
        order: What is told of it.
        descriptors: The module, its machine code, and the folders of its mounts.
        namespaces: What came of the namespaces that the server is in.
    """
    wasm, code, *given = descriptors
    mounts = order.policy.filesystem.mounts
    folders, namespaces = detach_folders(
        ((folder, mount.mode == "rw") for folder, mount in zip(given, mounts, strict=True)), namespaces
    )
    with os.fdopen(wasm, "rb") as file:
        file.seek(0)
        module = load_module(file.read(), order.policy, text=False, name=order.name)
    assert module.sha256 == order.sha256
    grants = OpenMounts.received(mounts, folders)
    units = order.units
    functions = HostFunctions.described(order.functions, _Function)
    context = PolicyContext(order.policy, functions, grants, units_for=lambda _: units or 0)
    return Prepared(order, module, code, context, namespaces)


class _Function:
    """A function of the embedder, which is in the host.

    Args:
        number: Its place among those of the module.
    """

    host: ClassVar[_Host]
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


def work(program: Prepared, line: socket.socket, server: int) -> NoReturn:
    """Is a worker.

    Args:
        program: What it is to run.
        line: The socket to the host.
        server: The process that has forked this one.
    """
    end_with(server)
    gc.disable()
    # Nobody waits for what is given back.
    os._exit(0 if _serve(program, line) else 1)


def _serve(program: Prepared, line: socket.socket) -> bool:
    host = _Function.host = _Host(line)
    try:
        try:
            report = confine(_jail_of(program, line), inherited=program.namespaces)
            program.load()
            seal_code()
            request, stdin = host.request()
            host.tell(Started(tuple(sorted(report.active))))
            told = host.drive(program, request, stdin)
        except tuple(FAILURES.values()) as problem:
            kind = next(name for name, kind in FAILURES.items() if isinstance(problem, kind))
            host.tell(Failed(kind, str(problem)))  # type: ignore[arg-type]
        else:
            host.finish(told)
    except (Gone, Garbled):
        return False
    return True


def _jail_of(program: Prepared, line: socket.socket) -> Jail:
    """What a worker is left with."""
    policy = program.order.policy
    limits, files = policy.limits, policy.filesystem
    mounts = tuple(
        Granted(
            descriptor,
            writable=mount.mode == "rw",
            create=mount.mode == "rw" and files.create,
            delete=mount.mode == "rw" and files.delete,
            symlinks=mount.mode == "rw" and files.symlinks,
        )
        for mount, descriptor in zip(files.mounts, program.context.mounts.descriptors, strict=True)
    )
    output = 2 * limits.stdout + limits.stderr
    seconds = limits.wall_time
    return Jail(
        mounts=mounts,
        files=(program.code,),
        keep=(line.fileno(),),
        limits=ResourceLimits(
            data_bytes=_data_bytes() + limits.memory + 2 * output + _SPARE_BYTES,
            # What it has run for is looked at elsewhere; this is for a worker that nobody looks after any more.
            cpu_seconds=None if seconds is None else 2 * math.ceil(seconds) + _SPARE_SECONDS,
            file_size_bytes=max(limits.file_size or 0, output) + _SPARE_BYTES if limits.file_size is not None else None,
            open_files=limits.open_files + len(mounts) + _SPARE_FILES,
        ),
        seal_later=True,
        remove=frozenset(program.order.removed),
        require=REQUIRED_WALLS,
    )


def _data_bytes() -> int:
    """What this process has already of what its limit counts."""
    pages = int(Path("/proc/self/statm").read_bytes().split()[5])
    return pages * resource.getpagesize()


class _Host:
    """The host, as a worker knows it.

    Args:
        line: The socket.
    """

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._poll = select.poll()
        self._poll.register(line, select.POLLIN)
        self._input: list[bytes] = []
        self._asked = False
        self._answer: Answer | None = None
        self._next_told = 0.0
        self.control = RunControl()

    def request(self) -> tuple[Request, bytes]:
        """Waits for what is to be done."""
        found = receive(self._line, TO_WORKER)
        assert found is not None
        request, stdin, _ = found
        if not isinstance(request, Request):
            # It was cancelled before it was told what to do.
            raise Gone
        return request, stdin

    def tell(self, message: FromWorker, blob: bytes = b"") -> None:
        """Tells the host something."""
        send(self._line, message, blob)

    def finish(self, report: Report) -> None:
        """Tells what came of the run."""
        value: Any = report.value
        kind = "text" if isinstance(value, str) else "bytes" if isinstance(value, bytes) else ""
        behind = value.encode("utf-8", "surrogatepass") if kind == "text" else value if kind else b""
        told = msgspec.structs.replace(report, stdout=b"", stderr=b"", value=None if kind else value)
        finished = Finished(told, len(report.stdout), len(report.stderr), len(behind), kind)  # type: ignore[arg-type]
        self.tell(finished, report.stdout + report.stderr + behind)

    def drive(self, program: Prepared, request: Request, stdin: bytes) -> Report:
        """Runs a guest, and listens to the host meanwhile."""
        context, module, control = program.context, program.module, self.control
        streams = None
        if request.listens or request.asks:
            streams = Streams(
                self._take if request.asks else None,
                self._passes_on("stdout") if request.listens else None,
                self._passes_on("stderr") if request.listens else None,
                wakes=True,
            )
        export = request.export
        task = Task(
            module,
            Inputs(request.args if export is None else (), stdin, request.env),
            streams,
            export,
            request.args if export is not None else (),
            request.returns,
        )
        return self._driven(InProcess().run(context, control, task, ""))

    def _driven(self, steps: RunCoroutine[Report]) -> Report:
        while True:
            try:
                until = next(steps)
            except StopIteration as end:
                report: Report = end.value
                return report
            now = time.monotonic()
            if now >= self._next_told:
                self._next_told = now + _PROGRESS_SECONDS
                told = self.control.progress
                progress = None if told is None else told()
                if progress is not None:
                    self.tell(Told(progress))
            wait = 0 if until <= GO_ON else None if until == FOREVER else max(0, math.ceil((until - now) * 1000))
            if self._poll.poll(wait):
                self._listen()

    def call(self, number: int, values: tuple[object, ...]) -> object:
        """Calls a function of the embedder's, and waits for what comes of it.

        Raises:
            ToldFailure: It has raised something, or the run is to end.
            CapabilityMissing: It has missed one.
        """
        self.tell(Called(number, values))
        while self._answer is None:
            if not self.control():
                # Whatever it comes to, it is too late.
                raise ToldFailure("the run is over")
            deadline = self.control.deadline
            left = None if deadline == FOREVER else max(1, math.ceil((deadline - time.monotonic()) * 1000))
            if self._poll.poll(left):
                self._listen()
        answer, self._answer = self._answer, None
        if answer.capability:
            raise CapabilityMissing(answer.capability)
        if answer.problem:
            raise ToldFailure(answer.problem)
        return answer.values[0] if len(answer.values) == 1 else answer.values

    def _listen(self) -> None:
        while (found := receive(self._line, TO_WORKER, waits=False)) is not None:
            message, blob, _ = found
            if isinstance(message, Cancel):
                self.control.cancel()
            elif isinstance(message, Answer):
                self._answer = message
            elif isinstance(message, Input):
                self._asked = False
                self._input.append(blob)

    def _take(self, size: int) -> bytes | None:
        if self._input:
            piece = self._input.pop()
            if len(piece) > size:
                self._input.append(piece[size:])
            return piece[:size]
        if not self._asked:
            self._asked = True
            self.tell(Wants())
        return None

    def _passes_on(self, stream: Any) -> Any:
        def pass_on(piece: bytes) -> None:
            self.tell(Output(stream), piece)

        return pass_on
