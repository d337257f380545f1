"""Components, as far as they are told: imports and exports of the outermost one by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stockade._text import printable

if TYPE_CHECKING:
    from stockade.wasm._binary import Reader

__all__ = ["COMPONENT_SECTIONS", "read_component_exports", "read_component_imports"]

COMPONENT_SECTIONS: Final = (
    "custom",
    "core module",
    "core instance",
    "core type",
    "component",
    "instance",
    "alias",
    "type",
    "canon",
    "start",
    "import",
    "export",
    "value",
)
"""Sections of a component by their numbers."""

_SORTS: Final = ("module", "func", "value", "type", "component", "instance")


def read_component_imports(reader: Reader) -> list[tuple[str, str]]:
    """Reads an import section of a component.

    Returns:
        The name and kind of each.
    """
    return [(_extern_name(reader), _extern(reader)) for _ in range(reader.count())]


def read_component_exports(reader: Reader) -> list[tuple[str, str]]:
    """Reads an export section of a component.

    Returns:
        The name and kind of each.
    """
    found = []
    for _ in range(reader.count()):
        name, sort = _extern_name(reader), _sort(reader)
        reader.u32()
        if reader.byte():
            _extern(reader)
        found.append((name, sort))
    return found


def _extern_name(reader: Reader) -> str:
    form = reader.byte()
    name = printable(reader.name())
    if form > 1:
        reader.position -= 1
        raise reader.forbidden(f"a name of the form {form:#04x}")
    return name


def _sort(reader: Reader) -> str:
    code = reader.byte()
    if code >= len(_SORTS) or (code == 0 and reader.byte() != 0x11):
        raise reader.forbidden(f"something of the sort {code:#04x}")
    return _SORTS[code]


def _extern(reader: Reader) -> str:
    sort = _sort(reader)
    if sort in ("value", "type"):
        # A bound: equal to an index or a type, or (for types) any resource.
        if reader.byte() == 0 or sort == "value":
            reader.leb()
    else:
        reader.u32()
    return sort
