"""The functions that are appended to a guest: the guard's, with the indices that things have there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stockade.guard._source import GUEST_MEMORY, Body, Reference
from stockade.wasm import FuncType, Kind, encode_func_type, uleb

if TYPE_CHECKING:
    from stockade._wasi import WasiCall

__all__ = ["Appended", "Indices"]


class Indices(NamedTuple):
    """What the guard's own indices are in the module that it is woven into."""

    functions: dict[int, int]
    guest_memory: int
    state_memory: int
    table: int

    def encode(self, reference: Reference) -> bytes:
        """The code of a reference, with its index in place."""
        if reference.kind is Kind.CALL:
            return b"\x10" + uleb(self.functions[reference.index])
        if reference.kind is Kind.TABLE_GROW:
            return b"\xfc\x0f" + uleb(self.table)
        memory = self.guest_memory if reference.index == GUEST_MEMORY else self.state_memory
        if reference.kind is Kind.MEMORY_GROW:
            return b"\x40" + uleb(memory)
        assert reference.kind is Kind.MEMORY, reference
        if reference.alignment is None:
            return uleb(memory)
        # Bit 6 of the alignment says that the index of the memory follows.
        return bytes([reference.alignment | 0x40]) + uleb(memory) if memory else bytes([reference.alignment])


class Appended:
    """Functions behind those of a guest, in their order.

    Args:
        guest_types: How many types the guest has.

    Attributes:
        types: Types behind the guest's.
        names: What the functions are called in backtraces.
        function_types: The type of each.
        code: The size and the body of each, in turn.
    """

    def __init__(self, guest_types: int) -> None:
        self._guest_types = guest_types
        self._type_index: dict[FuncType, int] = {}
        self.types: list[bytes] = []
        self.names: list[str] = []
        self.function_types: list[int] = []
        self.code: list[bytes] = []

    def type_index(self, type_: FuncType) -> int:
        """Returns the index of a type, which is appended if it is a new one."""
        if type_ not in self._type_index:
            self._type_index[type_] = self._guest_types + len(self.types)
            self.types.append(encode_func_type(type_))
        return self._type_index[type_]

    def add(self, body: Body, indices: Indices) -> None:
        """A function of the guard, with its indices in place."""
        self.names.append(body.name)
        self.function_types.append(self.type_index(body.type))
        code = b"".join(
            part + (indices.encode(reference) if reference is not None else b"") for part, reference in body.parts
        )
        self.code += [uleb(len(code)), code]

    def add_thunk(self, call: WasiCall, slot: int, table: int) -> None:
        """A function that passes its arguments to a native function in the table."""
        type_index = self.type_index(FuncType(call.params, call.results))
        self.names.append(call.name)
        self.function_types.append(type_index)
        arguments = b"".join(b"\x20" + uleb(index) for index in range(len(call.params)))
        slot_code = b"\x41" + uleb(slot)  # fewer than 64 natives: signed and unsigned encodings agree
        code = b"\x00" + arguments + slot_code + b"\x11" + uleb(type_index) + uleb(table) + b"\x0b"
        self.code += [uleb(len(code)), code]

    def add_code(self, name: str, type_: FuncType, code: bytes) -> None:
        """A function that was written for this guest."""
        self.names.append(name)
        self.function_types.append(self.type_index(type_))
        self.code += [uleb(len(code)), code]
