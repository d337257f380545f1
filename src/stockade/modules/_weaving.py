"""What the weaver adds to a module, for people to look at."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from stockade._text import printable
from stockade.engine import EngineConfig
from stockade.policy import Features, Limits, most_structure, runnable_features
from stockade.wasm import SectionId, parse
from stockade.worker import is_cheap, prepare, weave_aside

if TYPE_CHECKING:
    from stockade.guard import Woven
    from stockade.modules._module import Module
    from stockade.wasm import ParsedModule

__all__ = ["Weaving", "inspect_woven"]


_CONFIG: Final = EngineConfig(fuel=False, stack_bytes=Limits().stack_bytes, pooled=False)


class Weaving(msgspec.Struct, frozen=True, kw_only=True):
    """What the weaver changes in a module.

    Attributes:
        size_bytes: Bytes of the original.
        woven_bytes: Bytes of the woven module.
        functions: Names of the functions that are appended, in their order.
        first_function: The index of the first of them; every lower one is the guest's, as it was.
        types: How many types are appended.
        memories: How many memories are appended: the guard's, and one for a guest that has none.
        memory_bytes: Bytes of the appended memories.
        tables: How many tables are appended, for native functions that the guest does not import.
        exports: Names under which the host finds them, and the start function.
        renamed: Exports of the guest, with the names under which they are found: native WASI finds the guard's memory
            in the place of the guest's.
        redirected: How many places in the guest's code go to the guard, by instruction.
        start_taken: Whether the start function was taken out, to be called under the policy's limits.
        dropped_bytes: Bytes of custom sections that are left out: they tell of code by its place, which has changed.
    """

    size_bytes: int
    woven_bytes: int
    functions: tuple[str, ...]
    first_function: int
    types: int
    memories: int
    memory_bytes: int
    tables: int
    exports: tuple[str, ...]
    renamed: dict[str, str]
    redirected: dict[str, int]
    start_taken: bool
    dropped_bytes: int

    def to_json(self) -> str:
        """Returns it as JSON: an object with these fields by their names."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()


def inspect_woven(module: Module) -> tuple[Weaving, bytes]:
    """Weaves the guard into a module, proves the result as for a run, and tells what that changes.

    Args:
        module: The module.

    Returns:
        What is told, and the woven module.

    Raises:
        InvalidModule: It is not valid under the proposals that this release can run, or cannot be guarded.
        LinkError: It imports what nothing provides.
    """
    original = module.parsed
    features, structure = Features(**dict.fromkeys(runnable_features(), True)), most_structure()
    # By the way that every run takes, so that what is shown was proven.
    if is_cheap(original):
        woven, _ = prepare(module.name, original, _CONFIG, features, structure, lambda _: None)
    else:
        woven = weave_aside(module.name, module.data, _CONFIG, features, structure, Limits())
    after = parse(woven.wasm)
    told = Weaving(
        size_bytes=len(original.data),
        woven_bytes=len(woven.wasm),
        functions=woven.guard_functions,
        first_function=woven.guest_functions,
        types=len(after.types) - len(original.types),
        memories=len(after.memories) - len(original.memories),
        memory_bytes=sum(after.memories[len(original.memories) :]) * 65_536,
        tables=len(after.tables) - len(original.tables),
        exports=tuple(printable(name) for name in _added(after, original, woven)),
        renamed={printable(old): printable(new) for old, new in woven.renamed.items() if old in original.exports},
        redirected=dict(Counter(woven.redirected).most_common()),
        start_taken=original.start is not None,
        dropped_bytes=_custom_bytes(original) - _custom_bytes(after),
    )
    return told, woven.wasm


def _added(after: ParsedModule, original: ParsedModule, woven: Woven) -> list[bytes]:
    """Names of exports that are not the guest's."""
    state = [] if woven.state_export is None else [woven.state_export]
    guests = {woven.renamed.get(name, name) for name in original.exports}
    return [*state, *(name for name in after.exports if name not in guests and name not in state)]


def _custom_bytes(module: ParsedModule) -> int:
    return sum(section.end - section.start for section in module.sections if section.id == SectionId.CUSTOM)
