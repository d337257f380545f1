"""Interpreters that do not export all that an embedder needs: what they have inside is exported, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.errors import InvalidModule
from stockade.modules import Module
from stockade.wasm import ExternKind, Reader, SectionId, uleb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.wasm import ParsedModule

__all__ = ["exporting"]

_FUNCTION_NAMES = 1
"""The part of a name section that tells the names of functions."""


def exporting(module: Module, wanted: Sequence[str]) -> Module:
    """Returns an interpreter that also exports functions that it imports, or has inside as its name section tells them.

    Only for interpreters that the operator trusts: what a module calls a function is its own word.

    Args:
        module: The interpreter.
        wanted: The functions; those that it exports, or does not have, are left as they are.
    """
    parsed = module.parsed
    functions = [one.name for one in parsed.imports if one.kind == ExternKind.FUNC]
    inside = {name: number for number, name in enumerate(functions)} | _function_names(parsed)
    missing = {name: inside[name] for name in map(str.encode, wanted) if name not in parsed.exports and name in inside}
    section = parsed.section(SectionId.EXPORT)
    if not missing or section is None:
        return module
    reader = Reader(parsed.data, section.start, section.end, "export section")
    content = uleb(reader.count() + len(missing)) + parsed.data[reader.position : section.end]
    for name, number in missing.items():
        content += uleb(len(name)) + name + bytes([ExternKind.FUNC]) + uleb(number)
    # Where the number of a section is, and before that its size, which may be encoded in any length.
    before = next((one.end for one in reversed(parsed.sections) if one.end <= section.start), _HEADER_BYTES)
    data = parsed.data[:before] + bytes([SectionId.EXPORT]) + uleb(len(content)) + content + parsed.data[section.end :]
    return Module(data, module.name)


_HEADER_BYTES = 8


def _function_names(parsed: ParsedModule) -> dict[bytes, int]:
    """Returns the functions by the names that the module gives them; none where it tells none."""
    found: dict[bytes, int] = {}
    for section in parsed.sections:
        if section.id != SectionId.CUSTOM:
            continue
        reader = Reader(parsed.data, section.start, section.end, "name section")
        try:
            if reader.name() != b"name":
                continue
            while reader.position < reader.end:
                part, size = reader.byte(), reader.u32()
                end = reader.position + size
                if part == _FUNCTION_NAMES:
                    for _ in range(reader.count()):
                        number = reader.u32()
                        found[reader.name()] = number
                reader.position = end
        except InvalidModule:
            # It is not binding, whatever it says.
            return found
    return found
