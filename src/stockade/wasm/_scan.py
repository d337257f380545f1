"""One walk over a module's code: what the weaver redirects, and the figures by which a module may be refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from stockade.wasm._binary import Reader
from stockade.wasm._instructions import Site, deepest_nesting, skipper, walk
from stockade.wasm._opcodes import Kind
from stockade.wasm._types import guest_value_type

if TYPE_CHECKING:
    from stockade.wasm._reader import ParsedModule

__all__ = ["Scan", "code_figures", "scan", "skip_locals"]


@dataclass(slots=True)
class Scan:
    """What was found in the code of a module.

    Attributes:
        sites: By the number of the body: calls and references to imports, growth, and waits on shared memories. Bodies
            without any are left out.
        grown: The memories and tables that are grown, each with its kind of growth.
        starts: Where the instructions of each body begin.
        changes: What it has of instructions that change more than memories and globals: tables, or segments.
        most_locals: The most local variables of a function, parameters left out.
        most_branches: The most branches of one `br_table`.
    """

    sites: dict[int, list[Site]] = field(default_factory=dict)
    grown: set[tuple[Kind, int]] = field(default_factory=set)
    starts: list[int] = field(default_factory=list)
    changes: set[Kind] = field(default_factory=set)
    most_locals: int = 0
    most_branches: int = 0


_CHANGES = frozenset({Kind.TABLE_CHANGE, Kind.ELEMENT_DROP, Kind.DATA_DROP})


def scan(module: ParsedModule) -> Scan:
    """Walks over the code of a module.

    Args:
        module: A module that the engine has validated.

    Raises:
        InvalidModule: An instruction is not known here.
    """
    found = Scan()
    data, imported, starts = module.data, module.imported_functions, found.starts
    skip = skipper(imported)
    reader = Reader(data, 0, 0, "code")
    for number, (start, end) in enumerate(module.bodies):
        reader.position, reader.end = start, end
        locals_ = skip_locals(reader)
        found.most_locals = max(found.most_locals, locals_)
        start = reader.position
        starts.append(start)
        # Most bodies have nothing that is of interest.
        if (start := skip(data, start, end)) == end:
            continue
        here = []
        for site in walk(data, start, end, imported):
            if site.kind is Kind.BRANCH_TABLE:
                found.most_branches = max(found.most_branches, site.target)
                continue
            if site.kind in _CHANGES:
                found.changes.add(site.kind)
                continue
            if site.kind in _WAITS and not _is_shared(module, site.target):
                # It traps at once.
                continue
            here.append(site)
            if site.kind in (Kind.MEMORY_GROW, Kind.TABLE_GROW):
                found.grown.add((site.kind, site.target))
        if here:
            found.sites[number] = here
    return found


_WAITS: Final = (Kind.WAIT_32, Kind.WAIT_64)


def _is_shared(module: ParsedModule, memory: int) -> bool:
    limits = module.memory_limits
    return memory < len(limits) and limits[memory].shared


def skip_locals(reader: Reader) -> int:
    """Steps over the local variables that a body begins with.

    Args:
        reader: Stands at the beginning of the body; stands at its first instruction afterwards.

    Returns:
        How many there are, parameters left out.
    """
    locals_ = 0
    for _ in range(reader.count()):
        locals_ += reader.u32()
        guest_value_type(reader)
    return locals_


def code_figures(module: ParsedModule, scan: Scan) -> dict[str, int]:
    """Returns the figures of a module's code.

    Args:
        module: The module.
        scan: What was found in it.
    """
    # Exact, for the figures are kept, and held against whatever policy comes later.
    bodies = zip(scan.starts, (end for _, end in module.bodies), strict=True)
    return {
        "locals": scan.most_locals,
        "br_table": scan.most_branches,
        "nesting": deepest_nesting(module.data, bodies),
    }
