"""The other side of `_subprocess`: the compiling process, and what each of its children does."""

from __future__ import annotations

import gc
import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from stockade.engine import Engine, EngineConfig, assemble, compile_to_bytes
from stockade.errors import EngineError
from stockade.guard import Woven, guard, weave
from stockade.policy import Features, ModuleLimits
from stockade.system import end_with, forgo_privileges
from stockade.wasm import code_figures, parse, scan
from stockade.worker._features import proposals_used, validate
from stockade.worker._fork_server import Work, serve
from stockade.worker._frames import (
    FAILURES,
    MOST_ANSWER_BYTES,
    Answer,
    Request,
    failure_of,
    read_head,
    release,
    write_frame,
)
from stockade.worker._prepare import prepare, translate

__all__ = ["main"]

_MANY_BYTES = 256 << 10
"""Modules from this size on are compiled by several threads; starting them takes longer than compiling a small one."""

_GRACE_SECONDS = 5
"""Between the signal that says that the time is up, and the one that nobody can ignore."""

_EXCHANGED = "Stockade or wasmtime was exchanged on disk since this process began: start the process again"


_TINY = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $write (i32.const 1) (memory.grow (i32.const 0)) (i32.const 0) (i32.const 0)))))
"""


def main(control: int, host: int) -> NoReturn:
    """Is the compiling process.

    Args:
        control: Descriptor of the socket that jobs come from.
        host: The process that started this one.
    """
    _warm_up()
    # Each job that waits takes three descriptors.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # What is there already is not looked at in the children, whose memory it would become.
    gc.collect()
    gc.freeze()
    serve(control, host, Work(_begin, _rehearse, _work))


def _warm_up() -> None:
    """Has done what every child would do again: the guard read, decoders and patterns made. No engine, no thread."""
    tiny = parse(assemble(_TINY))
    found = scan(tiny)
    code_figures(tiny, found)
    woven = msgspec.structs.replace(weave(tiny, guard(), found), wasm=b"")
    request = Request("compile", "", release(), 0, 0)
    for message in (request, Answer(woven=woven)):
        msgspec.json.decode(msgspec.json.encode(message), type=type(message))


def _begin(server: int) -> None:
    """Begins a child, before anybody else has a say in what it does."""
    end_with(server)
    with suppress(OSError):
        forgo_privileges()
    # Where memory runs short, this is what can be spared. It is no error where the system does not take it.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900", encoding="ascii")
    gc.disable()


def _rehearse() -> None:
    """Does what a job does, with a module of our own: what is touched now need not be copied and mapped later."""
    config = EngineConfig(fuel=True, stack_bytes=1 << 19, pooled=False)
    tiny = assemble(_TINY)
    prepare("", parse(tiny), config, Features(), ModuleLimits(), lambda _: None)
    # Not with the guard, which would take ten times as long.
    compile_to_bytes(Engine.shared(config), tiny)


def _work(source: int, target: int) -> None:
    """Does one job, in a child."""
    with os.fdopen(source, "rb") as read, os.fdopen(target, "wb") as written:
        head, size = read_head(read)
        request = msgspec.json.decode(head, type=Request)
        # Limits before anything of the module is looked at.
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_FSIZE, MOST_ANSWER_BYTES)
        _limit(resource.RLIMIT_CPU, request.cpu_seconds, _GRACE_SECONDS)
        _limit(resource.RLIMIT_DATA, request.memory_bytes)
        try:
            if request.release != release():
                raise EngineError(_EXCHANGED)
            answer, result = _TASKS[request.task](request, read.read(size))
        except FAILURES as problem:
            answer, result = Answer(failure=failure_of(problem)), b""
        except MemoryError:
            # As the library ends where it is the one that gets no more.
            os.abort()
        write_frame(written, answer, result)


def _compile(request: Request, wasm: bytes) -> tuple[Answer, bytes]:
    config = _config(request, wasm)
    # Its outline was checked before it came here.
    woven, figures = _prepare(request, wasm, config)
    code = compile_to_bytes(Engine.shared(config), woven.wasm)
    return Answer(woven=msgspec.structs.replace(woven, wasm=b""), figures=figures), code


def _weave(request: Request, wasm: bytes) -> tuple[Answer, bytes]:
    woven, figures = _prepare(request, wasm, _config(request, wasm))
    return Answer(woven=msgspec.structs.replace(woven, wasm=b""), figures=figures), woven.wasm


def _config(request: Request, wasm: bytes) -> EngineConfig:
    config = EngineConfig(**request.config)  # type: ignore[arg-type]
    return config._replace(pooled=False, parallel=len(wasm) >= _MANY_BYTES)


def _prepare(request: Request, wasm: bytes, config: EngineConfig) -> tuple[Woven, dict[str, int]]:
    return prepare(
        request.name, parse(wasm), config, request.features, request.structure, lambda _: None, traced=request.traced
    )


def _validate(request: Request, wasm: bytes) -> tuple[Answer, bytes]:
    validate(request.name, wasm, request.features, parallel=len(wasm) >= _MANY_BYTES)
    return Answer(), b""


def _features(request: Request, wasm: bytes) -> tuple[Answer, bytes]:
    del request
    return Answer(features=proposals_used(wasm)), b""


def _translate(request: Request, text: bytes) -> tuple[Answer, bytes]:
    return Answer(), translate(request.name, text)


_TASKS = {"compile": _compile, "weave": _weave, "validate": _validate, "features": _features, "translate": _translate}


def _limit(kind: int, most: int, grace: int = 0) -> None:
    """Sets a limit, within the one that this process was started with."""
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
        grace = min(grace, hard - most)
    resource.setrlimit(kind, (most, most + grace))
