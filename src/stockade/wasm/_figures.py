"""What can be counted of a module without its code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.wasm._binary import Reader
from stockade.wasm._reader import SectionId

if TYPE_CHECKING:
    from stockade.wasm._reader import ParsedModule

__all__ = ["outline_figures"]


def outline_figures(module: ParsedModule) -> dict[str, int]:
    """Returns the figures of a module that can be told without its code, by the names that policies give them."""
    return {
        "functions": len(module.functions),
        "function_size": module.bodies.longest,
        "types": len(module.types),
        "imports": len(module.imports),
        "exports": len(module.exports),
        "globals": module.globals,
        "data_segments": _announced(module, SectionId.DATA),
        "element_segments": _announced(module, SectionId.ELEMENT),
    }


def _announced(module: ParsedModule, id_: SectionId) -> int:
    section = module.section(id_)
    return 0 if section is None else Reader(module.data, section.start, section.end, "section").u32()
