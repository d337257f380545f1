"""What is held of the modules of the specification's tests: none that is valid is refused, none that is not passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stockade import Policy
from stockade.engine import EngineConfig, validate_with
from stockade.errors import InvalidModule, LinkError
from stockade.policy import Features, runnable_features
from stockade.wasm import outline, parse
from stockade.worker import check_outline, prepare
from tests.spec._wast import modules

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.spec._wast import SpecModule

__all__ = ["RELEASE_3", "Told", "check", "everything"]

RELEASE_3 = frozenset(
    {"exceptions", "function_references", "gc", "memory64", "multi_memory", "relaxed_simd", "simd", "tail_call"}
)
"""The proposals that are part of WebAssembly 3.0 and can be told apart."""

THREADS = frozenset({"threads"})
"""Beyond the release: atomic instructions and shared memories."""

_CONFIG = EngineConfig(fuel=False, stack_bytes=Policy().limits.stack_bytes, pooled=False)


@dataclass
class Told:
    """What became of the modules of some scripts.

    Attributes:
        valid: How many are meant to be valid, and are to the engine.
        invalid: How many are not meant to be, or are not to the engine.
        strange: Those on which engine and specification differ, as the place and the engine's reason.
        refused: Valid ones that are refused, as the place and the reason.
        unlinked: Valid ones that are refused for what they import.
        passed: Invalid ones that are not refused.
        unreadable: Those whose text could not be translated.
    """

    valid: int = 0
    invalid: int = 0
    strange: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    unlinked: list[tuple[str, str]] = field(default_factory=list)
    passed: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def everything() -> Policy:
    """A policy that allows all the features there are."""
    policy = Policy(features=Features(**dict.fromkeys(runnable_features(), True)))
    return policy.replace(memories=100, tables=100, memory=4 << 30, locals=50_000)


def check(scripts: Iterable[Path], proposals: frozenset[str] = RELEASE_3 | THREADS) -> Told:
    """Looks at every module of some scripts.

    Args:
        scripts: The scripts.
        proposals: What the engine is to take for valid.
    """
    told = Told()
    policy = everything()
    for script in scripts:
        for module in modules(script.read_text()):
            place = f"{script.name}:{module.line}"
            if module.unread:
                told.unreadable.append((place, module.unread))
            else:
                _judge(told, place, module, policy, proposals)
    return told


def _judge(told: Told, place: str, module: SpecModule, policy: Policy, proposals: frozenset[str]) -> None:
    try:
        validate_with(module.wasm, proposals)
    except InvalidModule as problem:
        valid = False
        if module.valid:
            told.strange.append((place, str(problem)))
    else:
        valid = module.valid
        if not valid:
            told.strange.append((place, "valid to the engine"))
    told.valid += valid
    told.invalid += not valid
    try:
        parsed = parse(module.wasm)
        check_outline("module", parsed, policy.structure, policy.limits, policy.features)
        prepare("module", parsed, _CONFIG, policy.features, policy.structure, lambda what: None)
        outline(module.wasm)
    except LinkError as problem:
        if valid:
            told.unlinked.append((place, str(problem)))
    except InvalidModule as problem:
        if valid:
            told.refused.append((place, str(problem)))
    else:
        if not valid:
            told.passed.append((place, "not refused"))
