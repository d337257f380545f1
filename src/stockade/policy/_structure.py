"""What a module may be made of: figures that are held before it is compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from stockade.policy._fields import BYTES, COUNT, Part, Quantity, fields_of

if TYPE_CHECKING:
    from typing import Unpack

    from stockade.policy._changes import ModuleLimitsFields

__all__ = ["ModuleLimits", "most_structure"]


def _up_to(most: int) -> Quantity:
    return Quantity(COUNT, 0, most)


class ModuleLimits(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a module may be made of. More is refused before it is compiled, so that it cannot keep the compiler busy.

    Upper bounds are those of the engine; of types, imports, exports and globals together, 400,000 are read.

    Attributes:
        functions: Functions, imported ones included.
        function_size: Bytes of code of one function.
        locals: Local variables of one function, beside its parameters.
        types: Types of functions.
        imports: Imports.
        exports: Exports.
        globals: Globals, imported ones included.
        data_segments: Segments of data.
        element_segments: Segments of table elements.
        br_table: Branches of one `br_table` instruction.
        nesting: Blocks within blocks.
    """

    PATH: ClassVar = "structure"

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[ModuleLimitsFields]) -> None: ...

    functions: Annotated[int, _up_to(1_000_000)] = 100_000
    function_size: Annotated[int, Quantity(BYTES, 0, 7_654_321)] = 1 << 20
    locals: Annotated[int, _up_to(50_000)] = 10_000
    types: Annotated[int, _up_to(1_000_000)] = 10_000
    imports: Annotated[int, _up_to(1_000_000)] = 100_000
    exports: Annotated[int, _up_to(1_000_000)] = 200_000
    globals: Annotated[int, _up_to(1_000_000)] = 100_000
    data_segments: Annotated[int, _up_to(100_000)] = 100_000
    element_segments: Annotated[int, _up_to(100_000)] = 10_000
    br_table: Annotated[int, _up_to(65_520)] = 10_000
    nesting: Annotated[int, _up_to(100_000)] = 2_000


def most_structure() -> ModuleLimits:
    """Returns the structure that allows as much as any policy can."""
    kinds = {name: found.kind for name, found in fields_of(ModuleLimits).items()}
    return ModuleLimits(**{name: int(kind.most) for name, kind in kinds.items() if isinstance(kind, Quantity)})
