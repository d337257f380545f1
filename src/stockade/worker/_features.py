"""Whether a module keeps to the WebAssembly proposals that it may use; where it does not, they are named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.engine import PROPOSALS, features_used, validate_with
from stockade.errors import InvalidModule
from stockade.policy import runnable_features
from stockade.wasm import uses_extended_const

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.policy import Features

__all__ = ["listed", "proposals_used", "refuse_unrunnable", "titles", "validate"]


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
    allowed = allowed_proposals(features)
    try:
        validate_with(wasm, allowed, parallel=parallel)
        if "extended_const" not in allowed and uses_extended_const(wasm):
            raise InvalidModule("it computes in constant expressions")
    except InvalidModule:
        used = proposals_used(wasm)
        refuse_unrunnable(name, used)
        missing = [proposal for proposal in used if proposal not in allowed]
        if not missing:
            raise
        fields = ", ".join(f"features.{proposal}" for proposal in missing)
        raise InvalidModule(f"{name} uses {titles(missing)}, which the policy does not allow ({fields})") from None


def proposals_used(wasm: bytes) -> tuple[str, ...]:
    """Tells which proposals a core module uses, beyond those that every guest may use.

    Args:
        wasm: The module.

    Raises:
        InvalidModule: It is not valid under any proposal; the message says where.
    """
    used = {*features_used(wasm)}
    if uses_extended_const(wasm):
        used.add("extended_const")
    return tuple(name for name in PROPOSALS if name in used)


def allowed_proposals(features: Features) -> frozenset[str]:
    """Returns the names of the proposals that a policy allows, as far as the engine tells them apart."""
    return frozenset(name for name in PROPOSALS if getattr(features, name, False))


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
