"""What of a guest's state the woven module exports, for the host to take it, and to put it into another instance.

A guest's memories and mutable globals are all there is to its state, where no instruction of it changes anything else.
Those that it does not export are exported under names that it does not use. That costs a run nothing: the engine looks
exports up by name, when it is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.guard._sections import encode_export, items
from stockade.guard._woven import Exposed
from stockade.wasm import ExternKind, Kind, SectionId, guest_value_type, skip_const_expression

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stockade.wasm import ParsedModule, Scan

__all__ = ["expose", "types_of_globals"]

_NUMBERS = frozenset({"i32", "i64", "f32", "f64", "v128"})

_OBSTACLES = {
    Kind.TABLE_CHANGE: "its code changes tables (table.set, table.fill, table.copy or table.init)",
    Kind.TABLE_GROW: "its code grows tables (table.grow)",
    Kind.ELEMENT_DROP: "its code drops element segments (elem.drop)",
    Kind.DATA_DROP: "its code drops data segments (data.drop)",
}


def expose(
    module: ParsedModule, scan: Scan, renamed: Mapping[bytes, bytes], free: Callable[[bytes], bytes]
) -> tuple[list[bytes], Exposed]:
    """Exports what a guest does not export of its state.

    Args:
        module: The guest's module.
        scan: What was found in its code.
        renamed: The exports that have another name in the woven module.
        free: Returns a name that the guest does not use.

    Returns:
        The exports, encoded; and the state by all its names.
    """
    mutable, references = _mutable_globals(module)
    wanted = {ExternKind.MEMORY: range(len(module.memories)), ExternKind.GLOBAL: list(mutable)}
    names: dict[tuple[ExternKind, int], bytes] = {}
    for name, entry in module.exports.items():
        if entry.kind in wanted:
            names.setdefault(entry, renamed.get(name, name))
    exports = []
    for kind, places in wanted.items():
        for place in places:
            if (kind, place) not in names:
                name = names[kind, place] = free(b"stockade.%s.%d" % (kind.name.lower().encode(), place))
                exports.append(encode_export(name, kind, place))
    changes = scan.changes | {kind for kind, _ in scan.grown}
    obstacles = [reason for kind, reason in _OBSTACLES.items() if kind in changes]
    if module.collects and not module.throws_only:
        obstacles.append("it makes structures or arrays (features.gc)")
    if references:
        obstacles.append("it has mutable globals that hold references")
    memories, globals_ = (tuple(names[kind, place] for place in places) for kind, places in wanted.items())
    return exports, Exposed(memories, globals_, tuple(obstacles))


def types_of_globals(module: ParsedModule) -> tuple[str, ...]:
    """Returns the types of the mutable globals that hold numbers, in the order of `Exposed.globals`.

    Args:
        module: The guest's module.
    """
    return tuple(_mutable_globals(module)[0].values())


def _mutable_globals(module: ParsedModule) -> tuple[dict[int, str], bool]:
    """The types of its mutable globals that hold numbers, by their places, and whether others hold references."""
    reader, count = items(module, SectionId.GLOBAL)
    found, references = {}, False
    for place in range(count):
        type_, mutable = guest_value_type(reader), reader.byte()
        skip_const_expression(reader)
        if mutable and type_ in _NUMBERS:
            found[place] = type_
        elif mutable:
            references = True
    return found, references
