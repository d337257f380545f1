"""The other side of `_aside`: a process that prepares and compiles one module, and leaves."""

from __future__ import annotations

import os
import resource
from dataclasses import replace

__all__ = ["main"]


def main(source: int, target: int) -> None:
    """Does the job in one file and leaves what came of it in another.

    Args:
        source: Descriptor of a file with the job, followed by the module.
        target: Descriptor of an empty file.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import msgspec

    from stockade.engine import Engine, EngineConfig, compile_to_bytes, end_with
    from stockade.errors import EngineError, InvalidModule, LinkError
    from stockade.execution._aside import Job, Made, answer, read_framed
    from stockade.execution._prepare import check_outline, prepare
    from stockade.policy import Policy
    from stockade.wasm import parse

    with os.fdopen(source, "rb") as file:
        head, wasm = read_framed(file)
    job = msgspec.json.decode(head, type=Job)
    policy = Policy.loads(job.policy, "json")
    limits = policy.limits
    # Limits before anything of the module is looked at.
    end_with(job.parent)
    _limit(resource.RLIMIT_CPU, job.seconds)
    _limit(resource.RLIMIT_DATA, limits.compile_memory)
    config = EngineConfig(**job.config)._replace(pooled=False)  # type: ignore[arg-type]
    with os.fdopen(target, "wb") as file:
        try:
            module = parse(wasm)
            check_outline(job.name, module, policy.structure, limits, policy.features)
            woven, figures = prepare(job.name, module, config, policy.features, policy.structure, lambda _: None)
            code = compile_to_bytes(Engine.shared(config), woven.wasm)
            answer(file, Made(woven=replace(woven, wasm=b""), figures=figures), code)
        except (EngineError, InvalidModule, LinkError) as problem:
            answer(file, Made(failure=(type(problem).__name__, str(problem))))
    # Nothing is left to do, and freeing the engine takes its time.
    os._exit(0)


def _limit(kind: int, most: int) -> None:
    """Sets a limit, within the one that this process was started with."""
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(kind, (most, most))
