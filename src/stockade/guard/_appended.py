"""The functions that are appended to a guest: the guard's, with the indices that things have there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stockade.guard._source import GUEST_MEMORY
from stockade.wasm import FuncType, Kind, encode_func_type, encode_value_type, uleb

if TYPE_CHECKING:
    from stockade._wasi import WasiCall
    from stockade.guard._bodies import Body, Reference

__all__ = ["Appended", "AtomicWait", "Grower", "Indices"]


class Indices(NamedTuple):
    """What the guard's own indices are in the module that it is woven into."""

    functions: dict[int, int]
    guest_memory: int
    state_memory: int

    def encode(self, reference: Reference) -> bytes:
        """The code of a reference, with its index in place."""
        if reference.kind is Kind.CALL:
            return b"\x10" + uleb(self.functions[reference.index])
        memory = self.guest_memory if reference.index == GUEST_MEMORY else self.state_memory
        if reference.kind is Kind.MEMORY_GROW:
            return b"\x40" + uleb(memory)
        assert reference.kind is Kind.MEMORY, reference
        if reference.alignment is None:
            return uleb(memory)
        # Bit 6 of the alignment says that the index of the memory follows.
        return bytes([reference.alignment | 0x40]) + uleb(memory) if memory else bytes([reference.alignment])


class Grower(NamedTuple):
    """A memory or a table that the guest grows.

    Attributes:
        place: Its index.
        wide: Whether its addresses have 64 bits.
        element: Type of a table's elements; None for a memory.
    """

    place: int
    wide: bool
    element: str | None = None


class AtomicWait(NamedTuple):
    """An instruction that waits for another thread.

    Attributes:
        memory: Its memory.
        wide: Whether that memory's addresses have 64 bits.
        long: Whether it looks at 64 bits.
    """

    memory: int
    wide: bool
    long: bool


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

    def add_thunk(self, call: WasiCall, slot: int, table: int, ask: int | None = None) -> None:
        """A function that passes its arguments to a native function in the table.

        Args:
            call: The native function.
            slot: Its place in the table.
            table: The table.
            ask: What is called before where nothing is there, with four zeros; None where that ends the run.
        """
        type_index = self.type_index(FuncType(call.params, call.results))
        self.names.append(call.name)
        self.function_types.append(type_index)
        arguments = b"".join(b"\x20" + uleb(index) for index in range(len(call.params)))
        slot_code = b"\x41" + uleb(slot)  # fewer than 64 natives: signed and unsigned encodings agree
        code = b"\x00"
        if ask is not None:
            code += slot_code + b"\x25" + uleb(table) + b"\xd1\x04\x40"  # table.get, ref.is_null, if
            code += b"\x41\x00" * 4 + b"\x10" + uleb(ask) + b"\x1a\x0b"
        code += arguments + slot_code + b"\x11" + uleb(type_index) + uleb(table) + b"\x0b"
        self.code += [uleb(len(code)), code]

    def add_grower(self, grower: Grower, reserve: int, settle: int) -> None:
        """A function in the place of an instruction that grows a memory or a table.

        Args:
            grower: What it grows.
            reserve: The guard's function that is asked before.
            settle: The one that is told afterwards.
        """
        size = "i64" if grower.wide else "i32"
        params = (size,) if grower.element is None else (grower.element, size)
        self.names.append("memory_grow" if grower.element is None else "table_grow")
        self.function_types.append(self.type_index(FuncType(params, (size,))))
        more, before = len(params) - 1, len(params)
        get_more = b"\x20" + uleb(more)
        widened = get_more + (b"" if grower.wide else b"\xad")  # i64.extend_i32_u
        if grower.element is None:
            grow = get_more + b"\x40" + uleb(grower.place)
        else:
            grow = b"\x20\x00" + get_more + b"\xfc\x0f" + uleb(grower.place)
        code = b"\x01\x01" + encode_value_type(size)
        code += widened + b"\x10" + uleb(reserve)
        code += b"\x45\x04\x40" + (b"\x42" if grower.wide else b"\x41") + b"\x7f\x0f\x0b"  # refused: -1
        code += grow + b"\x22" + uleb(before) + (b"" if grower.wide else b"\xac")  # i64.extend_i32_s
        code += widened + b"\x10" + uleb(settle) + b"\x20" + uleb(before) + b"\x0b"
        self.code += [uleb(len(code)), code]

    def add_wait(self, wait: AtomicWait, served: int) -> None:
        """A function in the place of `memory.atomic.wait32` or `wait64`, with its offset behind the operands.

        It loads what the instruction would compare, so that it traps where the instruction traps.

        Args:
            wait: The instruction.
            served: The guard's function that waits.
        """
        address, value = ("i64" if wait.wide else "i32"), ("i64" if wait.long else "i32")
        self.names.append("atomic_wait")
        self.function_types.append(self.type_index(FuncType((address, value, "i64", address), ("i32",))))
        add, less = (b"\x7c", b"\x54") if wait.wide else (b"\x6a", b"\x49")
        # Bit 6 of an alignment says that the index of the memory follows.
        memory = uleb(wait.memory)
        beyond = (b"\x42" if wait.wide else b"\x41") + b"\x7f" + b"\x2d\x40" + memory + b"\x01\x1a"
        code = b"\x00"
        # An address that is too large for its bits: a load that is out of bounds for certain.
        code += b"\x20\x00\x20\x03" + add + b"\x22\x03\x20\x00" + less + b"\x04\x40" + beyond + b"\x0b"
        load = (b"\xfe\x11\x43" if wait.long else b"\xfe\x10\x42") + memory + b"\x00"
        code += b"\x20\x03" + load + b"\x20\x01" + (b"\x52" if wait.long else b"\x47")  # ne
        code += b"\x04\x40\x41\x01\x0f\x0b"  # it is another value
        code += b"\x20\x02\x10" + uleb(served) + b"\x0b"
        self.code += [uleb(len(code)), code]

    def add_code(self, name: str, type_: FuncType, code: bytes) -> None:
        """A function that was written for this guest."""
        self.names.append(name)
        self.function_types.append(self.type_index(type_))
        self.code += [uleb(len(code)), code]
