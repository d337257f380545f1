"""What a module imports: whether somebody provides it, under its right type."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from stockade._text import printable
from stockade._wasi import MODULE, WASI_BY_NAME, WasiCall
from stockade.errors import LinkError
from stockade.wasm import ExternKind, FuncType, ParsedModule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockade.wasm import Import

__all__ = ["check_imports", "wasi_call"]

_NOTHING: Mapping[tuple[bytes, bytes], FuncType] = MappingProxyType({})
"""No functions beside those of WASI."""


def check_imports(module: ParsedModule, lent: Mapping[tuple[bytes, bytes], FuncType] = _NOTHING) -> None:
    """Checks that everything the module imports is there, under its right type.

    Args:
        module: The module.
        lent: Functions beside those of WASI preview 1, by import module and name.

    Raises:
        LinkError: Something is not; the message names it and what would be needed.
    """
    unknown = []
    for entry in module.imports:
        name = f"{printable(entry.module)}.{printable(entry.name)}"
        if entry.kind is not ExternKind.FUNC:
            unknown.append(f"{name} ({entry.kind.name.lower()})")
            continue
        actual = module.type_of_function(entry.type_index)
        call = wasi_call(entry)
        if call is not None:
            expected, where = FuncType(call.params, call.results), "in WASI preview 1"
        elif (entry.module, entry.name) in lent:
            expected, where = lent[entry.module, entry.name], "as a host function"
        else:
            unknown.append(f"{name} (function {actual})")
            continue
        if actual != expected:
            raise LinkError(f"the module imports {name} as {actual}, but {where} it is {expected}: {_mend(call)}")
        if entry.type_index in module.related:
            raise LinkError(
                f"the module imports {name} by type {entry.type_index:,}, which may have sub types or is in a group of "
                f"types: functions of the host have types of their own. {_mend(call).capitalize()}"
            )
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise LinkError(f"nothing provides what the module imports: {shown}. {_hint(module)}")


def wasi_call(entry: Import) -> WasiCall | None:
    """Returns the WASI call that an import names; None where it names none."""
    return WASI_BY_NAME.get(entry.name.decode("utf-8", "replace")) if entry.module == MODULE.encode() else None


def _mend(call: WasiCall | None) -> str:
    if call is not None:
        return "rebuild it with a current toolchain"
    return "change the annotations of the function, or rebuild the module"


def _hint(module: ParsedModule) -> str:
    modules = {entry.module for entry in module.imports}
    if b"wasi_unstable" in modules:
        return "wasi_unstable is an outdated preview: rebuild the module for wasm32-wasip1"
    if any(name.startswith(b"wasi:") for name in modules):
        return "It was built for WASI 0.2: rebuild it for wasm32-wasip1"
    if any(name in (b"__wbindgen_placeholder__", b"wbg", b"go", b"gojs") for name in modules):
        return "It was built for a JavaScript host: rebuild it for WASI (wasm32-wasip1, GOOS=wasip1)"
    return (
        f"Guests get WASI preview 1 ({MODULE}). Run the module from Python and provide these with "
        "Sandbox.host_function(...), or rebuild it without them"
    )
