"""What is done in the compiling process, under limits of time and memory.

Preparing and compiling a module, validating it, translating text: what each of these costs is for the module or the
text to say. In a process of its own it is stopped at any moment, and the host is not harmed.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from stockade.errors import EngineError, InvalidModule
from stockade.policy import Limits
from stockade.worker._compile_queue import SMALL_BYTES, CompileJob, compile_queue
from stockade.worker._features import proposals_used
from stockade.worker._frames import UNREADABLE, Answer, Request, failure_from, read_head, release, scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.engine import EngineConfig
    from stockade.guard import Woven
    from stockade.modules import Module
    from stockade.policy import Features, ModuleLimits, Policy
    from stockade.worker._compile_queue import Turn

__all__ = ["compile_aside", "features_of", "job_of", "translate_aside", "validate_aside", "weave_aside"]

_Result = TypeVar("_Result")

_OWN_FAULT = frozenset(
    {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP}
)
"""Signals by which a process ends itself, as the compiler does where it gets no more memory."""


_TINY_BYTES = 4096
"""Modules up to this size are validated a few times within a tenth of a second, whatever they are made of."""


class _Words(NamedTuple):
    """What a task is called in messages."""

    done: str
    by: str


_WORDS = {
    "compile": _Words("compile", "compiler"),
    "weave": _Words("weave", "weaver"),
    "validate": _Words("validate", "validator"),
    "features": _Words("validate", "validator"),
    "translate": _Words("translate", "translator"),
}


def compile_aside(
    module: Module, config: EngineConfig, policy: Policy, turn: Turn, *, traced: bool = False
) -> tuple[Woven, dict[str, int], bytes]:
    """Prepares and compiles a module.

    Args:
        module: The module.
        config: The configuration to compile for.
        policy: What the module may be, and how long and with how much memory it may take.
        turn: The turn that was waited for.
        traced: Whether calls are written into the guard's trace.

    Returns:
        What the weaver tells of it, figures of its code, and its machine code.

    Raises:
        InvalidModule: It is not valid, or takes more than it may.
        LinkError: It imports what nothing provides.
        EngineError: The engine does not accept it, or there can be no other process.
    """
    # No more of the policy than that process needs: what it says of the host is not for a compiler to know.
    request = Request(
        "compile", module.name, *_shared(policy.limits), policy.features, policy.structure, config._asdict(), traced
    )
    answer, code = _ask(request, module.data, policy.limits, turn)
    if answer.woven is None:
        raise EngineError(UNREADABLE)
    return answer.woven, answer.figures, code


def weave_aside(
    name: str, wasm: bytes, config: EngineConfig, features: Features, structure: ModuleLimits, limits: Limits
) -> Woven:
    """Prepares a module without compiling it.

    Args:
        name: The module's name, safe to show.
        wasm: The module.
        config: The configuration that it would be compiled for.
        features: The proposals that it may use.
        structure: What it may be made of.
        limits: How long, and with how much memory, it may take.

    Returns:
        The woven module, as it was proven.

    Raises:
        InvalidModule: It is not valid, or takes more than it may.
        LinkError: It imports what nothing provides.
        EngineError: There can be no other process.
    """
    request = Request("weave", name, *_shared(limits), features, structure, config._asdict())
    answer, woven = _wait_and_ask(request, wasm, limits)
    if answer.woven is None:
        raise EngineError(UNREADABLE)
    return msgspec.structs.replace(answer.woven, wasm=woven)


def validate_aside(name: str, wasm: bytes, features: Features, limits: Limits, turn: Turn | None = None) -> None:
    """Validates a module under the proposals that a policy allows.

    Args:
        name: The module's name, safe to show.
        wasm: The module.
        features: What of the policy says which.
        limits: How long, and with how much memory, it may take.
        turn: The turn that was waited for, if one was.

    Raises:
        InvalidModule: It is not valid, or takes more than it may.
        EngineError: There can be no other process.
    """
    request = Request("validate", name, *_shared(limits), features)
    if turn is None:
        _wait_and_ask(request, wasm, limits)
    else:
        _ask(request, wasm, limits, turn)


def features_of(name: str, wasm: bytes) -> tuple[str, ...]:
    """Tells which proposals a module uses, in the other process unless it is tiny: validating can take long, too.

    Args:
        name: The module's name, safe to show.
        wasm: The module.

    Raises:
        InvalidModule: It is not valid under any proposal, or takes more than the default policy gives to compiling.
        EngineError: There can be no other process.
    """
    if len(wasm) <= _TINY_BYTES:
        return proposals_used(wasm)
    limits = Limits()
    return _wait_and_ask(Request("features", name, *_shared(limits)), wasm, limits)[0].features


def translate_aside(name: str, text: bytes, limits: Limits) -> bytes:
    """Translates WebAssembly text to its binary form.

    Args:
        name: The module's name, safe to show.
        text: The text, in UTF-8.
        limits: How long, and with how much memory, it may take.

    Raises:
        InvalidModule: It does not parse, or takes more than it may.
        EngineError: There can be no other process.
    """
    return _wait_and_ask(Request("translate", name, *_shared(limits)), text, limits)[1]


def _shared(limits: Limits) -> tuple[str, int, int]:
    """What all requests say."""
    # The clock ends it first; this is for the case that nobody is left to look at the clock.
    seconds = int(limits.compile_time * max(2, os.cpu_count() or 1)) + 1
    return release(), seconds, limits.compile_memory


def job_of(work: Callable[[Turn], _Result], body: bytes, limits: Limits, tenant: str = "") -> CompileJob[_Result]:
    """Returns a job for the queue of what is done in the other process.

    Args:
        work: What to do.
        body: The module or text.
        limits: How much memory it may take.
        tenant: For whom it is done.
    """
    return CompileJob(work, memory_bytes=limits.compile_memory, small=len(body) <= SMALL_BYTES, tenant=tenant)


def _wait_and_ask(request: Request, body: bytes, limits: Limits) -> tuple[Answer, bytes]:
    """Has something done when its turn has come."""
    queue = compile_queue()
    return queue.wait(queue.submit(job_of(lambda turn: _ask(request, body, limits, turn), body, limits)))


def _ask(request: Request, body: bytes, limits: Limits, turn: Turn) -> tuple[Answer, bytes]:
    """Has something done, and reads what came of it: data that is looked at, whoever wrote it."""
    # Most processes find their modules in the cache.
    from stockade.worker._process import worker

    try:
        with scratch(content=(request, body)) as source:
            status, target = worker.run(source, limits.compile_time, turn)
        with target:
            if status != 0:
                raise _failure(status, request, limits)
            head, size = read_head(target)
            answer = msgspec.json.decode(head, type=Answer)
            result = target.read(size)
    except OSError as problem:
        raise EngineError(f"no process can be started to compile in: {problem.strerror}") from None
    except msgspec.MsgspecError:
        raise EngineError(UNREADABLE) from None
    if answer.failure is not None:
        raise failure_from(answer.failure)
    return answer, result


def _failure(status: int | None, request: Request, limits: Limits) -> EngineError | InvalidModule:
    """Says why there is no answer."""
    from stockade.worker._process import signal_name

    words = _WORDS[request.task]
    if status is None or status == -signal.SIGXCPU:
        return InvalidModule(
            f"{request.name} takes more than {limits.compile_time:g} s to {words.done} (limits.compile_time): "
            f"it is too much for the {words.by}"
        )
    if status > 0:
        return EngineError(f"the compiling process failed with exit status {status}, which is a mistake in Stockade")
    if -status in _OWN_FAULT:
        return InvalidModule(
            f"the {words.by} was ended by {signal_name(status)}, as it is where it needs more than "
            f"{limits.compile_memory:,} bytes of memory (limits.compile_memory): {request.name} is too much for it"
        )
    return EngineError(
        f"the {words.by} was ended by {signal_name(status)}, as none of its limits does: by somebody, or by a system "
        f"that is short of memory. Try {request.name} again"
    )
