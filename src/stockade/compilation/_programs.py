"""Modules in machine code: in memory, else in the cache on disk, else compiled.

Machine code depends on the module and on the engine's configuration only: the policy itself is data that the guard
reads. So one program serves all policies that share an engine, as long as each allows what the module is made of.
"""

from __future__ import annotations

import hashlib
import os
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from stockade._bounded import BoundedDict
from stockade._locks import reentrant_lock
from stockade._text import printable
from stockade._wasi import MODULE
from stockade.compilation._cache import Cache
from stockade.engine import (
    MAX_POOLED_MEMORIES,
    MAX_POOLED_TABLE_ELEMENTS,
    MAX_POOLED_TABLES,
    CompiledModule,
    Engine,
    EngineConfig,
    LinkedModule,
    wasmtime_version,
)
from stockade.errors import EngineError, ModuleError, StockadeError
from stockade.guard import HOST_CALLS, PROOF_VERSION, WEAVER_VERSION, StateFormat, Woven, guard, state_format
from stockade.policy import Features
from stockade.wasm import ExternKind
from stockade.worker import (
    check_figures,
    compile_aside,
    compile_queue,
    is_cheap,
    job_of,
    prepare,
    validate,
    validate_aside,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from stockade.compilation._cache import CacheHit
    from stockade.modules import Module
    from stockade.policy import Limits, ModuleLimits, Policy
    from stockade.worker import CompileJob, CompileQueue, Turn

__all__ = [
    "MadeProgram",
    "PendingProgram",
    "Program",
    "cached_name",
    "forget_programs",
    "programs",
    "why_not_kept",
]

_MAX_PROGRAMS = 64
"""Programs that are kept in memory; the one unused for longest goes first."""

_MANY_BYTES = 64 << 10
"""Modules from this size on are compiled by several threads, where a policy wants even them in this process."""

_WORTH_KEEPING_SECONDS = 0.003
"""What is compiled faster than this is not kept on disk."""

_REFUSED_SECONDS = 60.0
"""How long a module that could not be made is not tried again."""

_MUCH_CODE_BYTES = 4 << 20
"""Machine code from this size on is not copied for a second engine."""

_SMALL_MODULE_BYTES = 256 << 10
_SMALL_MEMORY_BYTES = 1 << 20
"""What modules up to this size begin with is there within a millisecond, whatever they are made of: nothing is written
more than once but what stands in their bytes."""


_MAX_REFUSED = 256
"""How many of those are remembered."""


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A woven, compiled module.

    Attributes:
        compiled: Its machine code.
        linked: The same linked to native WASI.
        lends: Whether it imports functions of the embedder.
        parks: Whether the guest imports waits, or such functions.
        memories: How many memories it has, the guard's included.
        tables: How many tables it has, the guard's included.
        woven: What the weaver tells of it; its bytes are not kept.
        figures: Figures of the original's code.
        calls: The calls that it can make.
        state_format: How to read the guard's state in it.
        valid_under: Sets of proposals under which the original is known to be valid.
        unpooled: Its machine code for an engine without a pool, once that was asked for.
        code: Where its machine code came from, if it is much: another engine maps the same memory.
    """

    compiled: CompiledModule
    linked: LinkedModule
    woven: Woven
    figures: dict[str, int]
    lends: bool
    parks: bool
    memories: int
    tables: int
    calls: tuple[str, ...]
    state_format: StateFormat
    valid_under: set[Features] = msgspec.field(default_factory=set)
    unpooled: list[LinkedModule] = msgspec.field(default_factory=list)
    code: list[CacheHit] = msgspec.field(default_factory=list)

    def without_slots(self) -> LinkedModule:
        """Returns it for an engine that allocates instances one by one."""
        if not self.compiled.engine.config.pooled:
            return self.linked
        if not self.unpooled:
            engine = Engine.shared(self.compiled.engine.config._replace(pooled=False))
            compiled = CompiledModule.load(engine, self.code[0].code if self.code else self.compiled.to_bytes())
            self.code.clear()
            self.unpooled.append(LinkedModule(compiled, parks=self.parks, memories=self.memories, tables=self.tables))
        return self.unpooled[0]

    @classmethod
    def of(
        cls, compiled: CompiledModule, woven: Woven, figures: dict[str, int], module: Module, features: Features
    ) -> Program:
        """Puts a program together; the calls that it can make are those that it imports."""
        asked = {
            entry.name.decode() if entry.module == MODULE.encode() else HOST_CALLS for entry in module.parsed.imports
        }
        format_, names = state_format(asked)
        lends = HOST_CALLS in names
        parks = lends or "poll_oneoff" in names
        parsed = module.parsed
        export = parsed.exports.get(b"memory")
        # The guard's own, and one for a guest that has none by the name under which native WASI looks for it, or one
        # whose addresses are too wide.
        found = export is not None and export.kind is ExternKind.MEMORY and not parsed.memory_limits[export.place].wide
        memories = len(parsed.memories) + (1 if found else 2)
        # The heap of its objects takes the place of a memory.
        memories += woven.collects
        tables = len(parsed.tables) + 1
        small = (
            compiled.engine.config.pooled
            and len(module.data) <= _SMALL_MODULE_BYTES
            and woven.initial_memory_bytes <= _SMALL_MEMORY_BYTES
        )
        linked = LinkedModule(compiled, parks=parks, small=small, memories=memories, tables=tables)
        woven = msgspec.structs.replace(woven, wasm=b"")
        return cls(
            compiled=compiled,
            linked=linked,
            woven=woven,
            figures=figures,
            lends=lends,
            parks=parks,
            memories=memories,
            tables=tables,
            calls=names,
            state_format=format_,
            valid_under={features},
        )


class Build(NamedTuple):
    """What a program is made for, beside its module.

    Attributes:
        config: The engine's configuration.
        traced: Whether calls are written into the guard's trace.
    """

    config: EngineConfig
    traced: bool = False


class MadeProgram(NamedTuple):
    """A program that was asked for.

    Attributes:
        program: The program.
        at_hand: Whether its machine code was there, in memory or on disk.
        seconds: How long making it took, without waiting for a turn.
    """

    program: Program
    at_hand: bool
    seconds: float = 0.0


class PendingProgram:
    """A program that is being made, or will be when its turn has come. It is waited for, or left."""

    def __init__(self, queue: CompileQueue, job: CompileJob[MadeProgram], *, joined: bool) -> None:
        self._queue = queue
        self._job = job
        self._joined = joined

    @property
    def ready(self) -> bool:
        """Whether it has been made, or cannot be."""
        return self._job.done

    def when_ready(self, call: Callable[[], object]) -> None:
        """Has something called, from any thread, when it is ready; at once, if it is."""
        self._job.when_done(call)

    def wait(self) -> MadeProgram:
        """Waits for it, unless it is ready, and waits for it no longer. To be called once, unless it is left.

        Raises:
            ModuleError: It cannot be made.
        """
        try:
            made = self._queue.wait(self._job)
            return MadeProgram(made.program, at_hand=True) if self._joined else made
        except StockadeError as problem:
            # Others are told the same, each with a traceback of its own.
            raise type(problem)(*problem.args) from None

    def leave(self) -> None:
        """Waits for it no longer."""
        self._queue.leave(self._job)


class _Programs:
    """The programs of this process, the most recently used ones."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Reentrant, as the one of each program: the handler of a signal may run something while its thread does.
        self._lock = reentrant_lock()
        self._kept: BoundedDict[tuple[str, Build], Program] = BoundedDict(_MAX_PROGRAMS)
        self._under_way: dict[tuple[str, Build], AbstractContextManager[object]] = {}
        self._jobs: dict[_Request, CompileJob[MadeProgram]] = {}
        # What could not be made, why, and until when that is believed.
        self._refused: BoundedDict[_Request, tuple[float, StockadeError]] = BoundedDict(_MAX_REFUSED)

    def ask(
        self,
        module: Module,
        policy: Policy,
        progress: Callable[[str], None] | None = None,
        tenant: str = "",
        *,
        traced: bool = False,
    ) -> MadeProgram | PendingProgram:
        """Returns the program for a module where it is at hand or quickly made; else has it made in its turn.

        Args:
            module: The module.
            policy: What it may be.
            progress: Is told what is being done.
            tenant: For whom it is made.
            traced: Whether calls are written into the guard's trace.

        Raises:
            ModuleError: The policy does not allow it, or it takes more than it may, as far as that is known already.
        """
        build = Build(_config(module, policy), traced)
        key = (module.sha256, build)
        with self._lock:
            program = self._kept.find(key)
        if program is not None and policy.features in program.valid_under:
            check_figures(module.name, program.figures, policy.structure)
            return MadeProgram(program, at_hand=True)
        tell = progress or (lambda _: None)
        if program is None:
            # Looked for before anything is asked of the module: to find that it is cheap takes longer.
            program = self._fetch(module, build)
            if program is not None and policy.features in program.valid_under:
                check_figures(module.name, program.figures, policy.structure)
                return MadeProgram(program, at_hand=True)
        if _stays_here(module, policy.limits, canonical_nans=build.config.canonical_nans):
            return self._make_here(module, build, policy, tell)
        tell("compiling" if program is None else "checking")
        return self._make_aside(module, build, policy, tenant)

    # -- in this process ----------------------------------------------------------------------------------------------

    def _make_here(self, module: Module, build: Build, policy: Policy, progress: Callable[[str], None]) -> MadeProgram:
        key = (module.sha256, build)
        begun = time.perf_counter()
        with self._lock:
            turn = self._under_way.setdefault(key, reentrant_lock())
        # Whoever comes second waits for the first one's result instead of compiling it again.
        with turn:
            with self._lock:
                program = self._kept.get(key)
            try:
                at_hand = program is not None
                if program is None:
                    program = self._keep(key, _compile_here(module, build, policy, progress))
            finally:
                with self._lock:
                    self._under_way.pop(key, None)
        if policy.features not in program.valid_under:
            progress("checking")
            validate(module.name, module.data, policy.features)
            program.valid_under.add(policy.features)
        check_figures(module.name, program.figures, policy.structure)
        return MadeProgram(program, at_hand, 0.0 if at_hand else time.perf_counter() - begun)

    def _fetch(self, module: Module, build: Build) -> Program | None:
        """Returns a program from the cache on disk."""
        store = Cache()
        found = store.get(_key(module, build))
        if found is None:
            _tell_unused(store)
            return None
        try:
            program = _from_entry(found, module, build.config)
        except (EngineError, msgspec.MsgspecError):
            found.close()
            return None  # Of another release or machine: compiled again, and replaced.
        if not program.code:
            found.close()
        return self._keep((module.sha256, build), program)

    def _keep(self, key: tuple[str, Build], program: Program) -> Program:
        with self._lock:
            self._kept.keep(key, program)
        return program

    # -- in the other one ---------------------------------------------------------------------------------------------

    def _make_aside(self, module: Module, build: Build, policy: Policy, tenant: str) -> PendingProgram:
        """Has a program made in its turn, once for all who ask for the same."""
        limits = policy.limits
        request = _Request(
            module.sha256,
            module.name,
            build,
            policy.features,
            policy.structure,
            limits.compile_time,
            limits.compile_memory,
        )
        queue = compile_queue()
        with self._lock:
            until, problem = self._refused.get(request, (0.0, None))
            if problem is not None and self._clock() < until:
                raise type(problem)(*problem.args)
            job = self._jobs.get(request)
            if job is not None and queue.join(job):
                return PendingProgram(queue, job, joined=True)
            job = job_of(lambda turn: self._try(request, module, policy, turn), module.data, limits, tenant)
            job.when_done(lambda: self._made(request, job))
            pending = PendingProgram(queue, job, joined=False)
            queue.submit(job)
            # Last: nobody is to find one that was not submitted, as the handler of a signal has raised in between.
            if not job.done:
                self._jobs[request] = job
        return pending

    def _try(self, request: _Request, module: Module, policy: Policy, turn: Turn) -> MadeProgram:
        """On a thread of its own: makes a program, or finds out whether one that is there is allowed."""
        try:
            return self._make(module, request.build, policy, turn)
        except ModuleError as problem:
            # That is the module's doing; what is not may go well another time.
            with self._lock:
                self._refused.keep(request, (self._clock() + _REFUSED_SECONDS, type(problem)(*problem.args)))
            raise

    def _make(self, module: Module, build: Build, policy: Policy, turn: Turn) -> MadeProgram:
        begun = time.perf_counter()
        key = (module.sha256, build)
        with self._lock:
            program = self._kept.get(key)
        at_hand = program is not None
        if program is None:
            program = self._keep(key, _compile_aside(module, build, policy, turn))
        elif policy.features not in program.valid_under:
            validate_aside(module.name, module.data, policy.features, policy.limits, turn)
            program.valid_under.add(policy.features)
        check_figures(module.name, program.figures, policy.structure)
        return MadeProgram(program, at_hand, 0.0 if at_hand else time.perf_counter() - begun)

    def _made(self, request: _Request, job: CompileJob[MadeProgram]) -> None:
        with self._lock:
            if self._jobs.get(request) is job:
                del self._jobs[request]

    def forget(self) -> None:
        """Forgets all programs, and what could not be made; what runs keeps its own."""
        with self._lock:
            self._kept.clear()
            self._refused.clear()

    def after_fork(self) -> None:
        """Begins anew in a forked child: locks may have been held, compilations under way are the parent's."""
        self._lock = reentrant_lock()
        self._under_way.clear()
        self._jobs.clear()


class _Request(NamedTuple):
    """All that says whether a module can be made, and in which words it cannot."""

    sha256: str
    name: str
    build: Build
    features: Features
    structure: ModuleLimits
    compile_time: float
    compile_memory: int


programs = _Programs()


def forget_programs() -> None:
    """Forgets all machine code that this process has in memory: for measuring what it costs to have none."""
    programs.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=programs.after_fork)


def _config(module: Module, policy: Policy) -> EngineConfig:
    parsed = module.parsed
    # One more memory for the guard, one for a guest that has none, one more table for natives.
    pooled = (
        len(parsed.memories) + 2 <= MAX_POOLED_MEMORIES
        and len(parsed.tables) + 1 <= MAX_POOLED_TABLES
        and max((table.minimum for table in parsed.tables), default=0) <= MAX_POOLED_TABLE_ELEMENTS
        # A table of a pool cannot grow beyond it, whatever the policy allows.
        and (not parsed.tables or policy.limits.table_elements <= MAX_POOLED_TABLE_ELEMENTS)
    )
    return EngineConfig(
        fuel=policy.limits.metered,
        stack_bytes=policy.limits.stack_bytes,
        canonical_nans=policy.reproducible,
        pooled=pooled,
    )


# -- from the cache, or compiled -------------------------------------------------------------------------------------


class _Named(msgspec.Struct, frozen=True):
    """Of an entry of the cache, what is shown of it."""

    name: str = ""


class _Entry(msgspec.Struct, frozen=True):
    """What is kept beside machine code."""

    woven: Woven
    figures: dict[str, int]
    features: dict[str, bool]
    name: str = ""


def _compile_here(module: Module, build: Build, policy: Policy, progress: Callable[[str], None]) -> Program:
    config = build.config
    begun = time.perf_counter()
    code = None
    parallel = len(module.data) > _MANY_BYTES and Engine.may_start_threads()
    compiling = config._replace(parallel=parallel, pooled=config.pooled and not parallel)
    woven, figures = prepare(
        module.name, module.parsed, compiling, policy.features, policy.structure, progress, traced=build.traced
    )
    progress("compiling")
    compiled = CompiledModule(Engine.shared(compiling), woven.wasm)
    if parallel:
        code = compiled.to_bytes()
        compiled = CompiledModule.load(Engine.shared(config), code)
    program = Program.of(compiled, woven, figures, module, policy.features)
    _keep_on_disk(program, module, build, policy, code, time.perf_counter() - begun)
    return program


def _compile_aside(module: Module, build: Build, policy: Policy, turn: Turn) -> Program:
    config = build.config
    begun = time.perf_counter()
    woven, figures, code = compile_aside(module, config, policy, turn, traced=build.traced)
    compiled = CompiledModule.load(Engine.shared(config), code)
    program = Program.of(compiled, woven, figures, module, policy.features)
    _keep_on_disk(program, module, build, policy, code, time.perf_counter() - begun)
    return program


def _tell_unused(store: Cache) -> None:
    """Tells once, where STOCKADE_LOG says so, that the cache is not used, so that all is compiled again."""
    if not store.problem or store.folder is None or not os.environ.get("STOCKADE_LOG") or store.problem in _told:
        return
    import logging

    from stockade._log_levels import log_level

    _told.add(store.problem)
    level = log_level()
    if level is not None and level <= logging.WARNING:
        logging.getLogger("stockade").warning(
            "the cache cannot be used, and modules are compiled again in each process: %s",
            printable(store.problem, 1000),
        )


_told: Final[set[str]] = set()
"""Why the cache is not used, as it was told."""


def _keep_on_disk(
    program: Program, module: Module, build: Build, policy: Policy, code: bytes | None, seconds: float
) -> None:
    key = _key(module, build)
    if seconds <= _WORTH_KEEPING_SECONDS:
        _unkept.keep(key, f"it compiles in {seconds * 1e3:.1f} ms, which is faster than reading a file")
        return
    store = Cache()
    entry = _Entry(program.woven, program.figures, msgspec.structs.asdict(policy.features), module.name)
    if store.put(key, msgspec.msgpack.encode(entry), code or program.compiled.to_bytes()):
        _unkept.pop(key, None)
    else:
        _unkept.keep(key, store.problem or "it is larger than the cache may be")


_unkept: BoundedDict[str, str] = BoundedDict(_MAX_PROGRAMS)
"""Why machine code that this process has made is not in the cache, by its key."""


def why_not_kept(module: Module, policy: Policy) -> str:
    """Says why the cache does not have the machine code of a module that was prepared; "" where it has.

    Args:
        module: The module.
        policy: The policy that it was prepared under.
    """
    key, store = _key(module, Build(_config(module, policy))), Cache()
    return "" if store.has(key) else store.problem or _unkept.get(key, "it has been removed since")


def cached_name(key: str) -> str:
    """Returns the name of the module whose machine code is in the cache, as it was loaded; "" where it is not told.

    Args:
        key: The key of the entry.
    """
    try:
        return msgspec.msgpack.decode(Cache().told(key), type=_Named).name
    except msgspec.MsgspecError:
        return ""


def _stays_here(module: Module, limits: Limits, *, canonical_nans: bool) -> bool:
    """Whether a module is validated and compiled in this process."""
    if limits.compile_process == "auto":
        return is_cheap(module.parsed, canonical_nans=canonical_nans)
    return limits.compile_process == "never"


def _from_entry(kept: CacheHit, module: Module, config: EngineConfig) -> Program:
    """Loads what the cache has authenticated."""
    entry = msgspec.msgpack.decode(kept.told, type=_Entry)
    compiled = CompiledModule.load(Engine.shared(config), kept.code)
    program = Program.of(compiled, entry.woven, entry.figures, module, Features(**entry.features))
    if kept.size_bytes >= _MUCH_CODE_BYTES:
        program.code.append(kept)
    return program


def _key(module: Module, build: Build) -> str:
    """Names everything that machine code depends on."""
    code = build.config._replace(pooled=False, parallel=False)
    versions = f"proof {PROOF_VERSION}, weaver {WEAVER_VERSION}{', traced' if build.traced else ''}"
    parts = (module.sha256, guard().digest, versions, repr(code), wasmtime_version(), _processor())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _processor() -> str:
    """What the processor can do, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    system = os.uname()
    return f"{system.sysname} {system.machine} {flags}"
