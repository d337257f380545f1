"""Whether a module keeps to the WebAssembly proposals that it may use; where it does not, they are named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.engine import PROPOSALS, Engine, EngineConfig, features_used
from stockade.errors import InvalidModule
from stockade.policy import Limits, runnable_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.policy import Features

__all__ = ["listed", "refuse_unrunnable", "titles", "validate"]


def validate(name: str, wasm: bytes, features: Features, *, parallel: bool = False) -> None:
    """Validates a module as its guest wrote it, under the proposals that a policy allows.

    Args:
        name: The module's name, safe to show.
        wasm: The module.
        features: What of the policy says which.
        parallel: Whether several threads may do it; they stay, and a process that has them must not be forked.

    Raises:
        InvalidModule: It is not valid; the message names the proposals that it uses and may not, or says where it is
            wrong.
    """
    plain = EngineConfig(
        fuel=False,
        stack_bytes=Limits().stack,
        simd=features.simd,
        relaxed_simd=features.relaxed_simd,
        tail_call=features.tail_call,
        multi_memory=features.multi_memory,
        parallel=parallel,
        pooled=False,
    )
    try:
        Engine.shared(plain).validate(wasm)
    except InvalidModule:
        used = features_used(wasm)
        refuse_unrunnable(name, used)
        missing = [proposal for proposal in used if not getattr(features, proposal)]
        if not missing:
            raise
        fields = ", ".join(f"features.{proposal}" for proposal in missing)
        raise InvalidModule(f"{name} uses {titles(missing)}, which the policy does not allow ({fields})") from None


def refuse_unrunnable(name: str, used: Sequence[str]) -> None:
    """Refuses a module that uses proposals that no policy can allow yet.

    Args:
        name: Its name, safe to show.
        used: The proposals that it uses.

    Raises:
        InvalidModule: It does.
    """
    runnable = runnable_features()
    if unrunnable := [proposal for proposal in used if proposal not in runnable]:
        raise InvalidModule(f"{name} uses {titles(unrunnable)}, which this release cannot run: build it without")


def titles(proposals: Sequence[str]) -> str:
    """Names proposals as people do, in one phrase."""
    return listed([PROPOSALS[name].title for name in proposals])


def listed(words: Sequence[str]) -> str:
    """Puts words together: `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
