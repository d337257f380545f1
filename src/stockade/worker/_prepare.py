"""From a module to one that can be compiled: held to its policy's figures, validated, the guard woven in.

What this costs is for the module to say, so it happens in a process of its own for all but those that are certain to
be cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.engine import Engine, EngineConfig, assemble
from stockade.errors import InvalidModule
from stockade.guard import Woven, guard, prove, weave
from stockade.wasm import Excess, ParsedModule, code_figures, compile_cost, scan
from stockade.worker._features import validate
from stockade.worker._figures import check_figures

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.policy import Features, ModuleLimits

__all__ = ["CHEAP_COST", "is_cheap", "prepare", "translate"]

CHEAP_COST = 100_000
"""Modules up to this cost are validated and compiled in the host's process, unless a policy says otherwise: the worst
that was found takes 0.2 s and 80 MB (`python -m benchmarks worst`)."""

_CANONICAL_FACTOR = 6
"""How much longer the worst takes to compile where NaNs are canonical: each result of arithmetic is then compared."""


def is_cheap(module: ParsedModule, *, canonical_nans: bool = False) -> bool:
    """Whether validating and compiling a module is certain to take little, whatever it is made of.

    Args:
        module: The module.
        canonical_nans: Whether it is compiled so that every NaN has the same bits.
    """
    most = CHEAP_COST // _CANONICAL_FACTOR if canonical_nans else CHEAP_COST
    return compile_cost(module, most) <= most


def translate(name: str, text: bytes) -> bytes:
    """Translates WebAssembly text to its binary form.

    Args:
        name: The module's name, for messages.
        text: The text, in UTF-8.

    Raises:
        InvalidModule: It is no such text.
    """
    try:
        return assemble(text.decode())
    except InvalidModule as problem:
        raise InvalidModule(f"{name} is {problem}") from None
    except UnicodeDecodeError:
        raise InvalidModule(f"{name} is neither WebAssembly nor text in UTF-8") from None


def prepare(
    name: str,
    module: ParsedModule,
    config: EngineConfig,
    features: Features,
    structure: ModuleLimits,
    progress: Callable[[str], None],
    *,
    traced: bool = False,
) -> tuple[Woven, dict[str, int]]:
    """Makes a module ready to be compiled.

    Args:
        name: The module's name, for messages.
        module: The module, its outline checked.
        config: What it will be compiled for.
        features: The proposals that it may use.
        structure: What it may be made of.
        progress: Is told what is being done.
        traced: Whether calls are written into the guard's trace.

    Returns:
        The woven module, and the figures of the original's code.

    Raises:
        InvalidModule: It is not valid, or beyond what the policy allows.
    """
    progress("checking")
    validate(name, module.data, features, parallel=config.parallel)
    found = scan(module)
    figures = code_figures(module, found)
    check_figures(name, figures, structure)
    progress("weaving")
    woven = weave(module, guard(), found, traced=traced)
    try:
        Engine.shared(config._replace(pooled=False)).validate(woven.wasm)
    except InvalidModule as problem:
        # The original was valid, so with the guard in it, it is beyond a limit of the engine.
        reason = str(problem).removeprefix("not valid WebAssembly: ")
        raise InvalidModule(
            f"{name} leaves no room for the guard: {reason}. Build it with less of that, or as several modules"
        ) from None
    progress("proving")
    try:
        prove(module, woven)
    except Excess as problem:
        # Likewise: the original was read, so with the guard in it, it is beyond what is read.
        raise InvalidModule(f"{name} leaves no room for the guard: {problem}") from None
    except InvalidModule as problem:
        raise InvalidModule(
            f"{name} cannot be guarded, for it is encoded in a way that Stockade reads differently from the engine: "
            f"rebuild it with a current toolchain, and report it if that does not help ({problem})"
        ) from None
    return woven, figures
