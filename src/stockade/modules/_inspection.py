"""What a module is, uses and asks for, and what a policy would have to allow for it to run."""

from __future__ import annotations

from typing import Final

import msgspec

from stockade._json import JsonRecord
from stockade._wasi import GROUPS, MODULE, WASI_BY_NAME
from stockade.errors import InvalidModule
from stockade.policy import Need, Policy, needs, runnable_features
from stockade.wasm import FuncType, ImportInfo, Outline, outline
from stockade.worker import features_of, titles

__all__ = ["Grant", "Inspection", "inspect"]

_ELEMENT_BYTES: Final = 8
"""What an element of a table counts in the budget of memory."""


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """A group of WASI calls that a module imports.

    Attributes:
        group: Its name, with which a policy may allow or deny it.
        grants: What it lets a guest do, where the policy grants it.
        calls: The calls of the group that the module imports.
        refused: Those of them that the default policy refuses.
    """

    group: str
    grants: str
    calls: tuple[str, ...]
    refused: tuple[str, ...]


class Inspection(Outline, JsonRecord, frozen=True, kw_only=True):
    """What a module is made of, what it uses and asks for, and what a policy would have to allow.

    Besides the following it has the fields of an outline. Names that the module chose are shortened and escaped.

    Attributes:
        name: The name of its file.
        sha256: The hash of its bytes.
        features: WebAssembly proposals that it uses, beyond those that every guest may use, by the names that policies
            have for them.
        problem: Why the engine does not take it for valid, under whatever proposals; None where it does.
        grants: Groups of WASI calls that it imports.
        unprovided: What it imports and WASI does not have.
        needs: Fields that a policy would have to set, beyond the default.
        obstacles: Why it cannot run, whatever the policy says.
    """

    name: str
    sha256: str
    features: tuple[str, ...] = ()
    problem: str | None = None
    grants: tuple[Grant, ...] = ()
    unprovided: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    obstacles: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Returns the inspection as JSON: an object with these fields by their names."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()


def inspect(data: bytes, name: str, sha256: str) -> Inspection:
    """Inspects a module.

    Args:
        data: Its bytes.
        name: Its name, safe to show.
        sha256: The hash of its bytes.

    Raises:
        InvalidModule: It is not WebAssembly, or is damaged.
    """
    found = outline(data)
    features: tuple[str, ...] = ()
    problem = None
    grants: tuple[Grant, ...] = ()
    unprovided: tuple[str, ...] = ()
    if found.kind == "component":
        obstacles = ["it is a component, and this release runs core modules: build it for wasm32-wasip1"]
        wanted: dict[str, int | bool] = {}
    else:
        try:
            features = features_of(name, data)
        except InvalidModule as invalid:
            problem = str(invalid)
        runnable = runnable_features()
        unrunnable = [feature for feature in features if feature not in runnable]
        obstacles = [f"it uses {titles(unrunnable)}, which this release cannot run"] if unrunnable else []
        obstacles += [problem] if problem else []
        wanted = _wanted(found) | {f"features.{feature}": True for feature in features if feature in runnable}
        grants, unprovided = _imports(found.imports)
    needed, beyond = needs(wanted)
    return Inspection(
        **{field: getattr(found, field) for field in Outline.__struct_fields__},
        name=name,
        sha256=sha256,
        features=features,
        problem=problem,
        grants=grants,
        unprovided=unprovided,
        needs=needed,
        obstacles=(*obstacles, *beyond),
    )


def _wanted(found: Outline) -> dict[str, int | bool]:
    """The limits that the module needs from its first instruction on."""
    elements = sum(table.minimum for table in found.tables)
    pages = sum(memory.minimum * memory.page_bytes for memory in found.memories)
    return {
        "limits.module_size": found.size_bytes,
        "limits.memories": len(found.memories),
        "limits.tables": len(found.tables),
        "limits.memory": pages + elements * _ELEMENT_BYTES,
        "limits.table_elements": elements,
        "structure.functions": found.functions,
        "structure.types": len(found.types),
        "structure.imports": len(found.imports),
        "structure.exports": len(found.exports),
        "structure.globals": len(found.globals),
        "structure.data_segments": found.data_segments,
        "structure.element_segments": found.element_segments,
    }


def _imports(imports: tuple[ImportInfo, ...]) -> tuple[tuple[Grant, ...], tuple[str, ...]]:
    """Sorts imports into groups of WASI calls and what is none."""
    calls: dict[str, list[str]] = {}
    unprovided = []
    for entry in imports:
        call = WASI_BY_NAME.get(entry.name) if (entry.module, entry.kind) == (MODULE, "func") else None
        told = f"{entry.module}.{entry.name} ({entry.kind} {entry.type})"
        if call is None:
            unprovided.append(told)
        elif entry.type != (wanted := str(FuncType(call.params, call.results))):
            unprovided.append(f"{told}, which in WASI preview 1 is {wanted}")
        else:
            calls.setdefault(call.group, []).append(call.name)
    refused = Policy().wasi.refused()
    grants = [
        Grant(
            group=group,
            grants=grants,
            calls=tuple(dict.fromkeys(calls[group])),
            refused=tuple(name for name in dict.fromkeys(calls[group]) if name in refused),
        )
        for group, grants in GROUPS.items()
        if group in calls
    ]
    return tuple(grants), tuple(unprovided)
