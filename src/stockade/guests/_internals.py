"""Interpreters that do not export all that an embedder needs: what they have inside is exported, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stockade.errors import InvalidModule
from stockade.modules import Module
from stockade.wasm import ExternKind, FuncType, Reader, SectionId, encode_func_type, encode_value_type, uleb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stockade.wasm import ParsedModule

__all__ = ["Composed", "exporting"]

_FUNCTION_NAMES = 1
"""The part of a name section that tells the names of functions."""


class Composed(NamedTuple):
    """A function that calls others of the interpreter: so the host makes one call where it would make several.

    Attributes:
        name: What it is exported as.
        type: Its type.
        locals: The types of its variables, after its parameters.
        calls: What it calls, by name, and what types these have.
        code: Its instructions; a name stands for the call of that function.
    """

    name: str
    type: FuncType
    locals: Sequence[str]
    calls: Mapping[str, FuncType]
    code: Sequence[bytes | str]

    def body(self, inside: Mapping[bytes, int]) -> bytes:
        """Returns it as the code section has it.

        Args:
            inside: The numbers of functions, by their names.
        """
        body = uleb(len(self.locals)) + b"".join(b"\x01" + encode_value_type(type_) for type_ in self.locals)
        for part in self.code:
            body += b"\x10" + uleb(inside[part.encode()]) if isinstance(part, str) else part
        body += b"\x0b"
        return uleb(len(body)) + body


def exporting(module: Module, wanted: Sequence[str], composed: Composed | None = None) -> Module:
    """Returns an interpreter that also exports functions that it imports, or has inside as its name section tells them.

    Only for interpreters that the operator trusts: what a module calls a function is its own word.

    Args:
        module: The interpreter.
        wanted: The functions; those that it exports, or does not have, are left as they are.
        composed: A function that it gets, if it has all that this calls.
    """
    parsed = module.parsed
    functions = [one.name for one in parsed.imports if one.kind == ExternKind.FUNC]
    inside = {name: number for number, name in enumerate(functions)} | _function_names(parsed)
    exported = {name: inside[name] for name in map(str.encode, wanted) if name not in parsed.exports and name in inside}
    added: dict[SectionId, list[bytes]] = {}
    if composed is not None and _has_all(parsed, composed, inside):
        exported[composed.name.encode()] = len(parsed.functions)
        added[SectionId.TYPE] = [encode_func_type(composed.type)]
        added[SectionId.FUNCTION] = [uleb(len(parsed.types))]
        added[SectionId.CODE] = [composed.body(inside)]
    added[SectionId.EXPORT] = [
        uleb(len(name)) + name + bytes([ExternKind.FUNC]) + uleb(number) for name, number in exported.items()
    ]
    if not exported or any(parsed.section(id_) is None for id_ in added):
        return module
    return Module(_with(parsed, added), module.name)


def _has_all(parsed: ParsedModule, composed: Composed, inside: Mapping[bytes, int]) -> bool:
    def has(name: str, type_: FuncType) -> bool:
        number = inside.get(name.encode(), len(parsed.functions))
        return number < len(parsed.functions) and parsed.function_type(number) == type_

    free = composed.name.encode() not in parsed.exports
    return free and all(has(name, type_) for name, type_ in composed.calls.items())


def _with(parsed: ParsedModule, added: Mapping[SectionId, Sequence[bytes]]) -> bytes:
    """Returns a module with more entries at the ends of some of its sections."""
    data, end = parsed.data[:_HEADER_BYTES], _HEADER_BYTES
    for section in parsed.sections:
        more = added.get(SectionId(section.id))
        if more is None:
            data += parsed.data[end : section.end]
        else:
            reader = Reader(parsed.data, section.start, section.end, "section")
            content = uleb(reader.count() + len(more)) + parsed.data[reader.position : section.end] + b"".join(more)
            data += bytes([section.id]) + uleb(len(content)) + content
        end = section.end
    return data


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
