"""Which WebAssembly proposals a module uses, as the engine's own validator sees it.

A module uses a proposal if it is valid with all of them on, and is not with all but that one on. The engines here only
validate: they are made in a fifth of a millisecond, hold no linker, and work in the caller's thread, so that forked
children can use them, too.
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

from stockade.engine._capi import capi
from stockade.engine._failure import error_text
from stockade.errors import EngineError, InvalidModule

__all__ = ["PROPOSALS", "RUN_PROPOSALS", "Proposal", "features_used", "validate_with"]


class Proposal(NamedTuple):
    """A proposal that the engine can be told to do without.

    Attributes:
        name: Its name, which is also that of the policy's field, where there is one.
        title: What people call it.
        dependents: Proposals that the engine does not take without this one.
        always_on: Whether the engine cannot be told to do without it.
    """

    name: str
    title: str
    dependents: tuple[str, ...] = ()
    always_on: bool = False


PROPOSALS: Final = {
    proposal.name: proposal
    for proposal in (
        # Most frequent first: the search ends as soon as what was found is enough.
        Proposal("simd", "SIMD", ("relaxed_simd",)),
        Proposal("relaxed_simd", "relaxed SIMD"),
        Proposal("tail_call", "tail calls"),
        Proposal("multi_memory", "multiple memories"),
        Proposal("extended_const", "extended constant expressions", always_on=True),
        Proposal("threads", "threads"),
        Proposal("memory64", "64-bit memories"),
        Proposal("exceptions", "exceptions"),
        Proposal("gc", "garbage collection"),
        # GC comes with typed references, so a module with GC is never said to use them besides.
        Proposal("function_references", "typed function references", ("gc",)),
        Proposal("custom_page_sizes", "custom page sizes"),
        Proposal("wide_arithmetic", "wide arithmetic"),
        Proposal("stack_switching", "stack switching"),
        Proposal("compact_imports", "compact imports"),
    )
}
"""Every proposal that can be told, by its name. What is not here is either always on or not known to the engine."""

_SWITCHED: Final = tuple(proposal for proposal in PROPOSALS.values() if not proposal.always_on)


RUN_PROPOSALS: Final = frozenset(proposal.name for proposal in _SWITCHED) - {
    "custom_page_sizes",
    "wide_arithmetic",
    "stack_switching",
    "compact_imports",
}
"""Those that are on for what runs, whatever its policy allows: a module is held to that as its guest wrote it."""


@cache
def _validator(wanted: frozenset[str], *, parallel: bool = False) -> int:
    """Makes an engine that validates with these proposals on; there are few such sets, and they are kept."""
    api = capi()
    # A dependent brings what it depends on: relaxed SIMD without SIMD aborts the process.
    on = wanted | {proposal.name for proposal in PROPOSALS.values() if wanted.intersection(proposal.dependents)}
    # SAFETY: the config is ours until wasm_engine_new_with_config consumes it. The engine is kept as long as the
    # process.
    raw = api.config_new()
    for proposal in _SWITCHED:
        api.switch(raw, f"wasm_{proposal.name}", proposal.name in on)
    for name in ("gc_support", "wasm_bulk_memory", "wasm_multi_value", "wasm_reference_types"):
        getattr(api, f"config_{name}_set")(raw, True)
    api.config_parallel_compilation_set(raw, parallel)
    engine = api.engine_new_with_config(raw)
    if not engine:
        raise EngineError(f"wasmtime refused to validate with {', '.join(sorted(on))}")
    return int(engine)


def _problem(wasm: bytes, on: frozenset[str], *, parallel: bool = False) -> str | None:
    # SAFETY: `wasm` is borrowed for the call only; the engine lives as long as the process.
    error = capi().module_validate(_validator(on, parallel=parallel), wasm, len(wasm))
    return error_text(error) if error else None


def validate_with(wasm: bytes, proposals: frozenset[str], *, parallel: bool = False) -> None:
    """Validates a module under some proposals, whatever guests may use.

    Args:
        wasm: The module.
        proposals: Names of `PROPOSALS`.
        parallel: Whether several threads may do it; they stay, and a process that has them must not be forked.

    Raises:
        InvalidModule: It is not valid; the message says where.
    """
    if problem := _problem(wasm, proposals, parallel=parallel):
        raise InvalidModule(f"not valid WebAssembly: {problem}")


def features_used(wasm: bytes) -> tuple[str, ...]:
    """Tells which proposals a core module uses, of those that the engine can be told to do without.

    Args:
        wasm: The module.

    Returns:
        Names of `PROPOSALS`, in their order.

    Raises:
        InvalidModule: It is not valid under any proposal; the message says where.
    """
    everything = frozenset(proposal.name for proposal in _SWITCHED)
    problem = _problem(wasm, everything)
    if problem is not None:
        raise InvalidModule(f"not valid WebAssembly: {problem}")
    found: list[str] = []
    for proposal in _SWITCHED:
        # A module that is valid with these alone needs none of the rest.
        if _problem(wasm, frozenset(found)) is None:
            break
        if _problem(wasm, everything - {proposal.name, *proposal.dependents}) is not None:
            found.append(proposal.name)
    return tuple(found)
