"""Text and bytes across the border: an address and a length, by the conventions that compilers and tutorials follow.

The host asks the guest's own allocator for room, copies the bytes in, calls the function, and copies what it returns
out. Every number that comes from the guest is checked against its memory as it is at that moment. A guest that breaks
the convention has trapped, as in the canonical ABI of components: its report says so, and the host goes on.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from stockade._text import printable
from stockade.errors import UsageError
from stockade.execution._classify import GuestStopped, StopReason
from stockade.modules import Entry
from stockade.report import TrapInfo, Violation
from stockade.wasm import ExternKind, FuncType

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from stockade.engine import GuestBytes, Number
    from stockade.execution._values import Call
    from stockade.modules import Module

__all__ = ["CONVENTIONS", "MEMORY", "CallExport", "Convention", "Exchange", "Returns", "StringCall", "make_string_call"]

Returns: TypeAlias = Literal["text", "bytes"]
"""What the bytes that a function returns are read as."""

MEMORY: Final = b"memory"
"""The export that addresses are about."""

_EMPTY_ADDRESS: Final = 1
"""Where an empty text is said to be: not null, which Rust would not forgive, and aligned to one."""

_WORD: Final = 0xFFFF_FFFF


class Convention(NamedTuple):
    """How a guest lends room in its memory. All numbers are i32.

    Attributes:
        allocate: The export that makes room and returns its address.
        takes: What it is given, in order, by the names in `_given`.
        free: The export that takes room back; "" where the convention has none.
        gives: What that one is given.
        returned: What the host gives back with it after a call: its arguments, or what the function returned.
    """

    allocate: str
    takes: tuple[str, ...]
    free: str
    gives: tuple[str, ...]
    returned: Literal["arguments", "result"]

    def __str__(self) -> str:
        return f"{self.allocate}: {self.allocate_type}"

    @property
    def allocate_type(self) -> FuncType:
        """The type of the allocator."""
        return FuncType(("i32",) * len(self.takes), ("i32",))

    @property
    def free_type(self) -> FuncType:
        """The type of the deallocator."""
        return FuncType(("i32",) * len(self.gives), ())


CONVENTIONS: Final = (
    Convention("cabi_realloc", ("old", "old_size", "align", "size"), "", (), "arguments"),
    Convention("malloc", ("size",), "free", ("address",), "arguments"),
    Convention("alloc", ("size",), "dealloc", ("address", "size"), "arguments"),
    Convention("allocate", ("size",), "deallocate", ("address", "size"), "arguments"),
    Convention("__wbindgen_malloc", ("size", "align"), "__wbindgen_free", ("address", "size", "align"), "result"),
    Convention("__wbindgen_malloc", ("size",), "__wbindgen_free", ("address", "size"), "result"),
)
"""Tried in this order; the first whose allocator a module exports, with its type, is used."""


def _given(names: Sequence[str], size: int, address: int = 0) -> list[tuple[str, Number]]:
    """The arguments for an allocator or deallocator."""
    numbers = {"old": 0, "old_size": 0, "align": 1, "size": size, "address": address}
    return [("i32", numbers[name]) for name in names]


class StringCall(msgspec.Struct, frozen=True):
    """What a call passes and returns beside numbers.

    Attributes:
        texts: What is passed: the place of its address among the parameters, and the bytes.
        returns: What the result is read as; None where it is not a text.
        convention: How the guest lends room; None where it cannot, and need not.
        gives_back: What the host gives back after the call, if the guest exports what takes it.
        after: What is called with the results when they have been read, if the guest exports such a function.
    """

    texts: tuple[tuple[int, bytes], ...]
    returns: Returns | None
    convention: Convention | None
    gives_back: Literal["arguments", "result"] | None
    after: Entry | None

    def perform(
        self, call: Call, memory: GuestBytes, enter: CallExport, limit_bytes: int
    ) -> Generator[float, None, Sequence[Number | str]]:
        """Passes the texts, calls the function, reads its result, and gives back what was lent.

        Args:
            call: The call.
            memory: The guest's memory.
            enter: Calls an export of the guest.
            limit_bytes: The most that is read of a result.

        Returns:
            The results; one where they tell of a text.

        Raises:
            Ended: The guest did not come back from one of its functions, broke the convention, or returned too much.
        """
        entry, numbers = call.entry, list(call.numbers)
        lent: list[tuple[int, int]] = []
        for place, text in self.texts:
            numbers[place : place + 2] = (yield from self._lend(text, lent, memory, enter)), len(text)
        given = list(zip(entry.type.params, numbers, strict=True))
        results = yield from enter(entry.name, given, entry.type.results)
        found: Sequence[Number | str] = results
        if self.returns is not None:
            address, size = _place_of(entry, results, memory)
            if size > limit_bytes:
                raise GuestStopped(StopReason(refused=_too_much(size, limit_bytes)))
            found = [self._read(entry, memory, address, size)]
            if self.gives_back == "result":
                yield from self._free(address, size, enter)
            if self.after is not None:
                yield from enter(self.after.name, list(zip(self.after.type.params, results, strict=True)), ())
        if self.gives_back == "arguments":
            for address, size in lent:
                yield from self._free(address, size, enter)
        return found

    def _lend(
        self, text: bytes, lent: list[tuple[int, int]], memory: GuestBytes, enter: CallExport
    ) -> Generator[float, None, int]:
        """Copies bytes into room that the guest makes for them; returns their address."""
        convention, size = self.convention, len(text)
        assert convention is not None
        if not size:
            # What allocators return for no bytes at all is different with each; nothing will be read there.
            return _EMPTY_ADDRESS
        (answer,) = yield from enter(convention.allocate.encode(), _given(convention.takes, size), ("i32",))
        address = int(answer) & _WORD
        told = f"{convention.allocate} was asked for {_bytes(size)} and returned {address:,}"
        if not address:
            raise _broken("bad_pointer", f"{told}: it had no room for an argument")
        if any(address < start + length and start < address + size for start, length in lent):
            raise _broken("bad_pointer", f"{told}: another argument lies there")
        try:
            memory.write(address, text)
        except IndexError:
            raise _broken("bad_pointer", f"{told}: not inside its memory of {memory.size_bytes:,}") from None
        lent.append((address, size))
        return address

    def _free(self, address: int, size: int, enter: CallExport) -> Generator[float, None, None]:
        assert self.convention is not None
        if size:
            yield from enter(self.convention.free.encode(), _given(self.convention.gives, size, address), ())

    def _read(self, entry: Entry, memory: GuestBytes, address: int, size: int) -> str | bytes:
        data = _copied(entry, memory, address, size)
        if self.returns == "bytes":
            return data
        try:
            return data.decode()
        except UnicodeDecodeError as problem:
            told = f"{printable(entry.name)} returned {_bytes(size)} that are not text in UTF-8"
            raise _broken("bad_text", f"{told}: {problem.reason} at {problem.start:,}") from None


class Exchange(Protocol):
    """What is done for a call beside calling its function: other calls, and what is passed in memory."""

    def perform(
        self, call: Call, memory: GuestBytes, enter: CallExport, limit_bytes: int
    ) -> Generator[float, None, Sequence[Number | str]]:
        """Makes the call, in steps as `Guest.invoke` does, and returns its results.

        Args:
            call: The call.
            memory: The guest's memory.
            enter: Calls an export of the guest.
            limit_bytes: The most that is read of a result.
        """


class CallExport(Protocol):
    """Calls an export of the guest, under the budget of the run."""

    def __call__(
        self, export: bytes, arguments: Sequence[tuple[str, Number]], results: Sequence[str], /
    ) -> Generator[float, None, list[Number]]:
        """Returns the results, in steps as `Guest.invoke` does.

        Raises:
            Ended: The guest did not return.
        """


def make_string_call(
    module: Module, entry: Entry, texts: Sequence[tuple[int, bytes]], returns: Returns | None
) -> StringCall:
    """Finds what a module offers for the texts of a call.

    Args:
        module: The module.
        entry: The function to be called.
        texts: What is passed.
        returns: What its result is read as.

    Raises:
        UsageError: The module, or the function, does not follow any convention.
    """
    if returns not in ("text", "bytes", None):
        raise UsageError(f'returns is {returns!r}: it must be "text", "bytes" or None')
    if returns is not None and entry.type.results not in (("i32", "i32"), ("i64",), ("i32",)):
        raise UsageError(
            f"{entry}: its result cannot be read as {returns}. A function returns that as two i32 (address, length), "
            "as one i64 (the address in the upper half, the length in the lower), or as one i32 (the address of a pair)"
        )
    export = module.parsed.exports.get(MEMORY)
    if export is None or export.kind is not ExternKind.MEMORY:
        raise UsageError(
            f'{entry}: text is passed and returned through memory, but the module exports none as "memory". '
            'Export it: (export "memory" (memory 0))'
        )
    convention = _convention(module)
    if texts and convention is None:
        raise UsageError(
            f"{entry}: no text can be passed, for the module exports no allocator to make room for it{_unfit(module)}. "
            f"Export one of {', '.join(map(str, CONVENTIONS))}; or call a function of the module that makes room, "
            "write there with Session.write_memory, and pass address and length as numbers"
        )
    return StringCall(
        tuple(texts),
        returns,
        convention,
        convention.returned if convention is not None and _frees(module, convention) else None,
        _after(module, entry),
    )


def _frees(module: Module, convention: Convention) -> bool:
    return bool(convention.free) and module.function_type(convention.free.encode()) == convention.free_type


def _convention(module: Module) -> Convention | None:
    for convention in CONVENTIONS:
        if module.function_type(convention.allocate.encode()) == convention.allocate_type:
            return convention
    return None


def _unfit(module: Module) -> str:
    """Says which allocators are there, but of another type."""
    names = dict.fromkeys(convention.allocate for convention in CONVENTIONS)
    found = {name: module.function_type(name.encode()) for name in names}
    told = [f"{name}: {printable(str(type_))}" for name, type_ in found.items() if type_ is not None]
    return f" of a known type (it has {', '.join(told)})" if told else ""


def _after(module: Module, entry: Entry) -> Entry | None:
    """What the canonical ABI has the host call when it has read the results of a function."""
    name = b"cabi_post_" + entry.name
    wanted = FuncType(entry.type.results, ())
    return Entry(name, wanted) if module.function_type(name) == wanted else None


def _place_of(entry: Entry, results: Sequence[Number], memory: GuestBytes) -> tuple[int, int]:
    """Where the function says that its text is: address and length."""
    numbers = [int(number) for number in results]
    if entry.type.results == ("i64",):
        return numbers[0] >> 32 & _WORD, numbers[0] & _WORD
    if len(numbers) == 1:
        address, size = struct.unpack("<II", _copied(entry, memory, numbers[0] & _WORD, 8))
        return address, size
    return numbers[0] & _WORD, numbers[1] & _WORD


def _copied(entry: Entry, memory: GuestBytes, address: int, size: int) -> bytes:
    try:
        return memory.read(address, size)
    except IndexError:
        told = f"{printable(entry.name)} returned {_bytes(size)} at {address:,}"
        raise _broken("bad_pointer", f"{told}: not inside its memory of {memory.size_bytes:,}") from None


def _bytes(count: int) -> str:
    return "1 byte" if count == 1 else f"{count:,} bytes"


def _broken(code: str, message: str) -> GuestStopped:
    return GuestStopped(StopReason(broken=TrapInfo(code, message)))


def _too_much(size: int, limit_bytes: int) -> Violation:
    return Violation(
        kind="value", subject="limits.stdout", limit=limit_bytes, observed=size, action="stop", field="limits.stdout"
    )
