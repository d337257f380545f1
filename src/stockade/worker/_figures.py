"""The figures of a module, held to what its policy allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.errors import InvalidModule
from stockade.wasm import outline_figures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockade.policy import Features, Limits, ModuleLimits
    from stockade.wasm import ParsedModule

__all__ = ["check_figures", "check_outline"]

_WORDS = {
    "functions": "has {:,} functions",
    "function_size": "has a function of {:,} bytes",
    "locals": "has a function with {:,} local variables",
    "types": "has {:,} types",
    "imports": "has {:,} imports",
    "exports": "has {:,} exports",
    "globals": "has {:,} globals",
    "data_segments": "has {:,} segments of data",
    "element_segments": "has {:,} segments of table elements",
    "br_table": "has a br_table with {:,} branches",
    "nesting": "has blocks nested {:,} deep",
}


def check_figures(name: str, figures: Mapping[str, int], structure: ModuleLimits) -> None:
    """Checks that a module is within what a policy allows.

    Args:
        name: The module's name, for messages.
        figures: Figures of the module, by the names that policies give them.
        structure: What is allowed.

    Raises:
        InvalidModule: It is not.
    """
    for figure, found in figures.items():
        allowed = getattr(structure, figure)
        if found > allowed:
            what = _WORDS[figure].format(found)
            raise InvalidModule(f"{name} {what}; the policy allows {allowed:,} (structure.{figure})")


def check_outline(name: str, module: ParsedModule, structure: ModuleLimits, limits: Limits, features: Features) -> None:
    """Checks what can be told of a module without looking at its code.

    Raises:
        InvalidModule: It is beyond what the policy allows.
    """
    size = len(module.data)
    if size > limits.module_size:
        raise InvalidModule(
            f"the module has {size:,} bytes; modules may have {limits.module_size:,} (limits.module_size)"
        )
    check_figures(name, outline_figures(module), structure)
    for what, found, allowed in (
        ("memories", len(module.memories), limits.memories),
        ("tables", len(module.tables), limits.tables),
    ):
        if found > allowed:
            raise InvalidModule(f"{name} has {found} {what}; the policy allows {allowed} (limits.{what})")
    if len(module.memories) > 1 and not features.multi_memory:
        raise InvalidModule(
            f"{name} has {len(module.memories)} memories; the policy allows one (features.multi_memory)"
        )
