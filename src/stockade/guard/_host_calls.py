"""The functions that stand in the place of the embedder's: they put a call into the guard's mailbox, and halt.

A guest has no way to the host but halting. Each import of a function of the embedder becomes one more import of the
function that halts guests, at its index, and is called by nobody under that index: what called it calls the function
made here, of the same type. `rest.wat` tells what stands in the mailbox.

While the guest is halted in such a call, the host may have exports of it called, on the guest's own stack: one function
that all of the others ask does that. So no second call of the instance is ever begun while one is halted. What such an
export throws and does not catch ends the run, for no exception may pass through the guard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from stockade.wasm import sleb, uleb

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stockade.guard._source import Layout
    from stockade.wasm import FuncType

__all__ = ["HALTING_TYPE", "MAILBOX_HEAD_BYTES", "HostCallCode", "callable_exports", "slots_of"]

HALTING_TYPE: Final = (("i32",) * 4, ("i32",))
"""The type of the function that halts guests: it goes by the name of `poll_oneoff`."""

MAILBOX_HEAD_BYTES: Final = 8
"""What is said, and the pages of the guest's memory; values follow."""

_SLOT_BYTES: Final = 8

_MOST_EXPORTS: Final = 1024
_MOST_EXPORT_VALUES: Final = 4096
"""Exports that can be called while the guest is halted, and what they may take and return together: what a module makes
the weaver write is bounded, and not a multiple of what it has written itself."""

_LOADS: Final = {
    "i32": b"\x28\x42",
    "i64": b"\x29\x43",
    "f32": b"\x2a\x42",
    "f64": b"\x2b\x43",
    "v128": b"\xfd\x00\x43",
}
_STORES: Final = {
    "i32": b"\x36\x42",
    "i64": b"\x37\x43",
    "f32": b"\x38\x42",
    "f64": b"\x39\x43",
    "v128": b"\xfd\x0b\x43",
}
"""Instructions with their alignments, bit 6 of which says that the index of the memory follows."""

_TYPES: Final = {"i32": b"\x7f", "i64": b"\x7e", "f32": b"\x7d", "f64": b"\x7c", "v128": b"\x7b"}

_ZERO: Final = b"\x41\x00"
_UNREACHABLE: Final = b"\x00"
_CATCHING: Final = b"\x02\x40" + b"\x1f\x40\x01\x02\x00"
"""Begins a block, and in it what leaves that block when anything is thrown."""

_CATCHING_DEPTH: Final = 2
_END: Final = b"\x0b"


def slots_of(types: Sequence[str], most: int) -> list[int] | None:
    """Returns where values of these types stand among the values of the mailbox; None where they cannot.

    Args:
        types: Their types.
        most: How many values there is room for.
    """
    slots, at = [], 0
    for type_ in types:
        if type_ not in _LOADS:
            return None
        slots.append(at)
        at += 2 if type_ == "v128" else 1
    return slots if at <= most else None


def callable_exports(functions: Iterable[tuple[int, FuncType]], most: int) -> list[tuple[int, FuncType]]:
    """Returns the functions that the host can have called while the guest is halted: each once.

    Args:
        functions: The functions that the guest exports, with their types.
        most: How many values the mailbox has room for.
    """
    found: dict[int, FuncType] = {}
    values = 0
    for index, type_ in functions:
        if index in found or slots_of(type_.params, most) is None or slots_of(type_.results, most) is None:
            continue
        values += len(type_.params) + len(type_.results)
        if len(found) == _MOST_EXPORTS or values > _MOST_EXPORT_VALUES:
            break
        found[index] = type_
    return list(found.items())


class HostCallCode(NamedTuple):
    """Writes the bodies, each as it stands in a code section, but for its size.

    Attributes:
        layout: The guard's state.
        memory: The index of its memory.
    """

    layout: Layout
    memory: int

    def _place(self, instruction: bytes, slot: int) -> bytes:
        """A load or store of a value, relative to the address 0."""
        offset = self.layout.offsets["mailbox"] + MAILBOX_HEAD_BYTES + slot * _SLOT_BYTES
        return instruction + uleb(self.memory) + uleb(offset)

    def _slots(self, types: Sequence[str]) -> list[int] | None:
        return slots_of(types, self.layout.constants["MAILBOX_VALUES"])

    def stand_in(self, number: int, type_: FuncType, enter: int, ask: int) -> bytes:
        """The function in the place of an import.

        Args:
            number: What the function is called in the mailbox.
            type_: Its type.
            enter: The function of the guard that counts the call.
            ask: The function made by `ask`.
        """
        params, results = self._slots(type_.params), self._slots(type_.results)
        code = b"\x00\x10" + uleb(enter)
        if params is None or results is None:
            # No function of that type can be lent, so this one is in no module that is run.
            return code + _UNREACHABLE + _END
        for place, (kind, slot) in enumerate(zip(type_.params, params, strict=True)):
            code += _ZERO + b"\x20" + uleb(place) + self._place(_STORES[kind], slot)
        code += b"\x41" + sleb(number) + b"\x10" + uleb(ask)
        for kind, slot in zip(type_.results, results, strict=True):
            code += _ZERO + self._place(_LOADS[kind], slot)
        return code + _END

    def ask(self, park: int, exports: Sequence[tuple[int, FuncType]]) -> bytes:
        """The function that says something to the host, and calls exports until the host has answered.

        Args:
            park: The function of the guard that halts.
            exports: The functions that it may call, in the order of their numbers, with their types.
        """
        kinds = list(_TYPES)
        # Locals behind the parameter: one of each type, for a result on its way from the stack to its place.
        code = uleb(len(kinds)) + b"".join(b"\x01" + _TYPES[kind] for kind in kinds)
        # (loop (if (local.tee $said (call $park (local.get $said)))
        code += b"\x03\x40\x20\x00\x10" + uleb(park) + b"\x22\x00\x04\x40"
        # A block for each export, one for what is none of them, and one for what follows.
        many = len(exports)
        code += b"\x02\x40" * (many + 2)
        code += b"\x20\x00\x41" + sleb(self.layout.constants["HOST_EXPORT"]) + b"\x73"  # xor
        code += b"\x0e" + uleb(many) + b"".join(uleb(place) for place in range(many + 1)) + _END
        for place, (index, type_) in enumerate(exports):
            params, results = self._slots(type_.params), self._slots(type_.results)
            assert params is not None
            assert results is not None
            # What the export throws must not unwind through a call that the host takes for halted: it ends the run.
            code += _CATCHING
            for kind, slot in zip(type_.params, params, strict=True):
                code += _ZERO + self._place(_LOADS[kind], slot)
            code += b"\x10" + uleb(index)
            for kind, slot in reversed(list(zip(type_.results, results, strict=True))):
                local = uleb(1 + kinds.index(kind))
                code += b"\x21" + local + _ZERO + b"\x20" + local + self._place(_STORES[kind], slot)
            # To what follows all of them.
            code += b"\x0c" + uleb(many - place + _CATCHING_DEPTH) + _END + _UNREACHABLE + _END + _UNREACHABLE + _END
        code += _UNREACHABLE + _END
        # (local.set $said $HOST_RETURNED) (br $loop) end end
        code += b"\x41" + sleb(self.layout.constants["HOST_RETURNED"]) + b"\x21\x00\x0c\x01" + _END + _END
        return code + _END
