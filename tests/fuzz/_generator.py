"""Valid modules of all kinds, each thing of them in one of all the encodings that the format allows.

Numbers are padded or not, reference types short or long, numbers behind prefixes padded, element segments in all eight
forms, memories named or left out, types in groups or alone. The modules call native WASI in every way there is, and
grow memories and tables; they throw and catch, make objects, call by references, and have addresses of 64 bits.
Code is made type by type, so that it is valid by its making; no loop goes round, so that it ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["CALLS", "Choices", "generate"]

CALLS = {
    "sched_yield": (),
    "fd_datasync": ("i32",),
    "fd_sync": ("i32",),
    "fd_allocate": ("i32", "i64", "i64"),
    "fd_filestat_set_size": ("i32", "i64"),
    "fd_advise": ("i32", "i64", "i64", "i32"),
}
"""WASI calls that do nothing: a yield, and calls of descriptors that are not open, which take no address. All return an
i32."""

_BAD_DESCRIPTOR = 1_000
_NUMBERS = {"i32": 0x7F, "i64": 0x7E, "f32": 0x7D, "f64": 0x7C, "v128": 0x7B}
_REFERENCES = {
    "funcref": 0x70, "externref": 0x6F, "anyref": 0x6E, "eqref": 0x6D, "i31ref": 0x6C, "structref": 0x6B,
    "arrayref": 0x6A, "exnref": 0x69, "nullref": 0x71, "nullexternref": 0x72, "nullfuncref": 0x73, "nullexnref": 0x74,
}  # fmt: skip
"""References that may be null, by the byte of what they are to."""

_FEW = ("funcref", "externref", "anyref", "exnref")
_TYPES = (*_NUMBERS, "funcref", "externref")
_FUNC, _TABLE, _MEMORY, _GLOBAL, _TAG = range(5)
# Bytes that begin a call, a reference, growth or a wait, wherever an immediate may hold them.
_BAIT = b"\x10\x00\x12\x00\xd2\x00\x40\x00\xfc\x0f\x00\xfe\x01\x02\x00\x40"


class Choices:
    """Where decisions come from: a random generator, or Hypothesis.

    Args:
        below: Returns a number from 0 up to one less than it is given.
    """

    def __init__(self, below: Callable[[int], int]) -> None:
        self.below = below

    def one(self, options: Sequence[T]) -> T:
        """One of several."""
        return options[self.below(len(options))]

    def chance(self, one_in: int) -> bool:
        """True once in so many times; the simplest choice is no."""
        return self.below(one_in) == one_in - 1

    def some(self, most: int) -> range:
        """Up to so many rounds."""
        return range(self.below(most + 1))


class _Encoder:
    """Encodes what there is to encode in one of the ways in which it can be."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        # Some modules are as compilers write them, and some are padded throughout.
        self._one_in = choices.one((4, 2, 1_000_000, 12))

    def u(self, value: int, bits: int = 32) -> bytes:
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
        return self._padded(bytes(out), bits, 0x00)

    def s(self, value: int, bits: int) -> bytes:
        out = bytearray()
        while not -0x40 <= value < 0x40:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value & 0x7F)
        return self._padded(bytes(out), bits, 0x7F if value < 0 else 0x00)

    def _padded(self, plain: bytes, bits: int, fill: int) -> bytes:
        room = -(-bits // 7) - len(plain)
        if room < 1 or not self.choices.chance(self._one_in):
            return plain
        more = 1 + self.choices.below(room)
        return plain[:-1] + bytes([plain[-1] | 0x80]) + bytes([fill | 0x80]) * (more - 1) + bytes([fill])

    def type(self, name: str) -> bytes:
        if name in _NUMBERS:
            return bytes([_NUMBERS[name]])
        if name.isdecimal():
            # A reference that may be null, to the type of that index.
            return b"\x63" + self.s(int(name), 33)
        short = bytes([_REFERENCES[name]])
        return b"\x63" + short if self.choices.chance(2) else short

    def prefixed(self, prefix: int, number: int) -> bytes:
        return bytes([prefix]) + self.u(number)

    def vec(self, items: Sequence[bytes]) -> bytes:
        return self.u(len(items)) + b"".join(items)

    def name(self, text: str) -> bytes:
        return self.u(len(text)) + text.encode()

    def section(self, number: int, content: bytes) -> bytes:
        return bytes([number]) + self.u(len(content)) + content

    def heap(self, name: str) -> bytes:
        """What a reference is to."""
        return self.s(int(name), 33) if name.isdecimal() else bytes([_REFERENCES[name]])

    def limits(self, minimum: int, maximum: int | None, *, wide: bool = False, shared: bool = False) -> bytes:
        flags = (maximum is not None) | shared << 1 | wide << 2
        return bytes([flags]) + b"".join(self.u(bound, 64) for bound in (minimum, maximum) if bound is not None)


@dataclass
class _Function:
    params: tuple[str, ...]
    results: tuple[str, ...]
    type: int


class _Memory(NamedTuple):
    """A memory: the pages that it may have, the size of its addresses, and whether threads may share it."""

    most: int | None
    wide: bool
    shared: bool


class _Table(NamedTuple):
    """A table: the type of its elements, how many it may have, and the size of its indices."""

    element: str
    most: int | None
    wide: bool


class _Data(NamedTuple):
    """The type of a structure or of an array: its fields, each with the byte that says whether it may change."""

    is_array: bool
    fields: tuple[tuple[str, int], ...]


@dataclass
class _Plan:
    """What the module has, before anything is encoded."""

    types: list[tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    group: list[_Data] = field(default_factory=list)
    tags: list[tuple[str, ...]] = field(default_factory=list)
    imports: list[tuple[str, _Function]] = field(default_factory=list)
    functions: list[_Function] = field(default_factory=list)
    tables: list[_Table] = field(default_factory=list)
    memories: list[_Memory] = field(default_factory=list)
    globals: list[tuple[str, bool]] = field(default_factory=list)
    declared: set[int] = field(default_factory=set)
    segments: int = 0
    data: int = 0

    def type(self, params: tuple[str, ...], results: tuple[str, ...]) -> int:
        """The index of a function's type: those of data come first."""
        if (params, results) not in self.types:
            self.types.append((params, results))
        return len(self.group) + self.types.index((params, results))

    @property
    def known(self) -> tuple[str, ...]:
        """Types of values that there are here, the data's references among them."""
        return (*_TYPES, *_TYPES, *_REFERENCES, *map(str, range(len(self.group))))

    @property
    def references(self) -> tuple[str, ...]:
        return (*_FEW, *_REFERENCES, *map(str, range(len(self.group))))

    @property
    def all(self) -> list[_Function]:
        return [function for _, function in self.imports] + self.functions


def generate(choices: Choices) -> bytes:
    """Makes a module. Its function `f` takes nothing and returns an i32."""
    return _Module(choices).build()


class _Module:
    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.encoder = _Encoder(choices)
        self.plan = _Plan()

    def build(self) -> bytes:
        choices, plan = self.choices, self.plan
        for _ in choices.some(3) if choices.chance(2) else ():
            # Structures and arrays, whose fields may be references to those before them, or to themselves.
            fields = ("i32", "i64", "f64", "v128", "funcref", "anyref", *map(str, range(len(plan.group) + 1)))
            is_array = choices.chance(2)
            shape = [(choices.one(fields), choices.below(2)) for _ in range(1 if is_array else choices.below(4))]
            plan.group.append(_Data(is_array, tuple(shape)))
        if choices.chance(6):
            # Indices of types that take more bytes.
            plan.types += [(("i32",) * (place % 12), ("i64",) * (place // 12)) for place in range(140)]
        for _ in choices.some(6):
            name = choices.one(tuple(CALLS))
            copies = 45 if choices.chance(12) else 1
            type_ = plan.type(CALLS[name], ("i32",))
            plan.imports += [(name, _Function(CALLS[name], ("i32",), type_))] * copies
        for _ in choices.some(3):
            params = tuple(choices.one(plan.known) for _ in choices.some(3))
            results = tuple(choices.one(plan.known) for _ in choices.some(2))
            plan.functions.append(_Function(params, results, plan.type(params, results)))
        plan.functions.append(_Function((), ("i32",), plan.type((), ("i32",))))
        if choices.chance(10):
            plan.functions += [_Function((), (), plan.type((), ()))] * 130
        main = len(plan.imports) + next(
            place
            for place, function in enumerate(plan.functions)
            if (function.params, function.results) == ((), ("i32",))
        )
        plan.memories = [self._memory() for _ in range(1 + choices.below(1 + choices.below(3)))]
        plan.tables = [
            _Table(choices.one(plan.references), choices.one((None, 4, 9)), choices.chance(4)) for _ in choices.some(3)
        ]
        plan.tags = [tuple(choices.one(plan.known) for _ in choices.some(2)) for _ in choices.some(2)]
        tags = [b"\x00" + self.encoder.u(plan.type(params, ())) for params in plan.tags]
        tables = [self._table(table) for table in plan.tables]
        sections = {
            6: self._globals(),
            7: self._exports(main),
            9: self._elements(),
        }
        data = [self._data_segment() for _ in choices.some(2)]
        plan.data = len(data)
        # The code last: by then it is known what it may refer to.
        bodies = [self._body(index, function) for index, function in enumerate(plan.functions)]
        start = next(
            (
                len(plan.imports) + place
                for place, function in enumerate(plan.functions)
                if not function.params and not function.results
            ),
            None,
        )
        encoder = self.encoder
        imports = [
            encoder.name("wasi_snapshot_preview1") + encoder.name(name) + b"\x00" + encoder.u(function.type)
            for name, function in plan.imports
        ]
        sections[1] = self._types()
        sections[2] = imports
        sections[3] = [encoder.u(function.type) for function in plan.functions]
        sections[4] = tables
        sections[5] = [encoder.limits(1, most, wide=wide, shared=shared) for most, wide, shared in plan.memories]
        sections[13] = tags
        sections[10] = [encoder.u(len(body)) + body for body in bodies]
        sections[11] = data
        out = [b"\0asm\1\0\0\0"]
        for number in (1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11):
            if choices.chance(8):
                out.append(encoder.section(0, encoder.name(choices.one(("x", "name", "producers"))) + _BAIT))
            if number == 8:
                if start is not None and choices.chance(2):
                    out.append(encoder.section(8, encoder.u(start)))
            elif number == 12:
                out.append(encoder.section(12, encoder.u(plan.data)))
            elif sections[number] or choices.chance(8):
                out.append(encoder.section(number, encoder.vec(sections[number])))
        return b"".join(out)

    # -- outside of code ----------------------------------------------------------------------------------------------

    def _memory(self) -> _Memory:
        wide, shared = self.choices.chance(4), self.choices.chance(8)
        return _Memory(self.choices.one((3, 9) if shared else (None, 3, 9)), wide, shared)

    def _table(self, table: _Table) -> bytes:
        said = self.encoder.type(table.element) + self.encoder.limits(4, table.most, wide=table.wide)
        if self.choices.chance(4):
            return b"\x40\x00" + said + self._constant(table.element)
        return said

    def _types(self) -> list[bytes]:
        """Data first, in groups or alone, final or not; then functions, which native WASI has to be able to have."""
        encoder, choices, plan = self.encoder, self.choices, self.plan
        out: list[bytes] = []
        together: list[bytes] = []
        for is_array, fields in plan.group:
            entry = [encoder.type(type_) + bytes([mutable]) for type_, mutable in fields]
            said = b"\x5e" + entry[0] if is_array else b"\x5f" + encoder.vec(entry)
            together.append(choices.one((b"", b"\x4f\x00", b"\x50\x00")) + said)
            # What refers to itself needs no group, and may be in one with those before it.
            if choices.chance(2):
                alone = len(together) == 1 and choices.chance(2)
                out.append(together[0] if alone else b"\x4e" + encoder.vec(together))
                together = []
        if together:
            out.append(b"\x4e" + encoder.vec(together))
        return out + [
            b"\x60" + encoder.vec([encoder.type(p) for p in params]) + encoder.vec([encoder.type(r) for r in results])
            for params, results in plan.types
        ]

    def _some_function(self) -> int:
        # Imports are what matters.
        count = len(self.plan.imports)
        if count and self.choices.chance(2):
            return self.choices.below(count)
        return self.choices.below(count + len(self.plan.functions))

    def _constant(self, type_: str) -> bytes:
        encoder, choices = self.encoder, self.choices
        if type_ == "funcref" and choices.chance(2):
            return self._reference()
        if type_ in ("i31ref", "eqref", "anyref") and choices.chance(2):
            return b"\x41" + encoder.s(choices.below(100), 32) + encoder.prefixed(0xFB, 28) + b"\x0b"
        if type_.isdecimal() and choices.chance(2):
            return _new(encoder, self.plan.group, int(type_), choices.below(3)) + b"\x0b"
        if type_ not in _NUMBERS:
            return b"\xd0" + encoder.heap(type_) + b"\x0b"
        places = [place for place, known in enumerate(self.plan.globals) if known == (type_, False)]
        if places and choices.chance(3):
            return b"\x23" + encoder.u(choices.one(places)) + b"\x0b"
        if type_ == "i32":
            code = b"\x41" + encoder.s(choices.one((0, 16, -1, 64, 2**31 - 1, -(2**31))), 32)
            if choices.chance(4):
                code += b"\x41" + encoder.s(choices.below(70), 32) + bytes([choices.one((0x6A, 0x6B, 0x6C))])
            return code + b"\x0b"
        if type_ == "i64":
            return b"\x42" + encoder.s(choices.one((0, 16, -1, 2**63 - 1, -(2**63))), 64) + b"\x0b"
        if type_ == "v128":
            return encoder.prefixed(0xFD, 12) + _BAIT + b"\x0b"
        return (b"\x43" + _BAIT[:4] if type_ == "f32" else b"\x44" + _BAIT[:8]) + b"\x0b"

    def _reference(self) -> bytes:
        index = self._some_function()
        self.plan.declared.add(index)
        return b"\xd2" + self.encoder.u(index) + b"\x0b"

    def _globals(self) -> list[bytes]:
        out = []
        for _ in self.choices.some(4):
            type_, mutable = self.choices.one(self.plan.known), self.choices.chance(2)
            out.append(self.encoder.type(type_) + bytes([mutable]) + self._constant(type_))
            self.plan.globals.append((type_, mutable))
        return out

    def _exports(self, main: int) -> list[bytes]:
        encoder, choices, plan = self.encoder, self.choices, self.plan
        # Native WASI finds the guest's memory by this name.
        entries = [("memory", _MEMORY, choices.below(len(plan.memories))), ("f", _FUNC, main)]
        for place in choices.some(3):
            index = self._some_function()
            plan.declared.add(index)
            entries.append((f"{choices.one(('g', 'stockade.state', 'stockade.start'))}{place or ''}", _FUNC, index))
        if plan.tables:
            entries.append(("t", _TABLE, choices.below(len(plan.tables))))
        if plan.tags:
            entries.append(("e", _TAG, choices.below(len(plan.tags))))
        plan.declared.add(main)
        return [encoder.name(name) + bytes([kind]) + encoder.u(index) for name, kind, index in dict.fromkeys(entries)]

    def _elements(self) -> list[bytes]:
        encoder, choices, plan = self.encoder, self.choices, self.plan
        out = []
        for _ in choices.some(5):
            form = choices.below(8)
            type_ = choices.one(plan.references) if form in (5, 6, 7) else "funcref"
            tables = [index for index, table in enumerate(plan.tables) if table.element == type_]
            if form in (0, 4):
                tables = tables[:1] if tables[:1] == [0] else []
            if not form & 1 and not tables:
                continue
            segment = encoder.u(form)
            if not form & 1:
                table = choices.one(tables) if form & 2 else 0
                if form & 2:
                    segment += encoder.u(table)
                segment += self._place(choices.below(2), wide=plan.tables[table].wide) + b"\x0b"
            if form & 3:
                segment += encoder.type(type_) if form & 4 else b"\x00"
            listed = []
            for _ in choices.some(3):
                if form & 4:
                    listed.append(self._constant(type_))
                else:
                    index = self._some_function()
                    plan.declared.add(index)
                    listed.append(encoder.u(index))
            out.append(segment + encoder.vec(listed))
        plan.segments = len(out)
        return out

    def _data_segment(self) -> bytes:
        encoder, choices = self.encoder, self.choices
        form = choices.below(3)
        out = encoder.u(form)
        memory = choices.below(len(self.plan.memories)) if form == 2 else 0
        if form == 2:
            out += encoder.u(memory)
        if form != 1:
            out += self._place(choices.below(200), wide=self.plan.memories[memory].wide) + b"\x0b"
        return out + encoder.u(len(_BAIT)) + _BAIT

    def _place(self, number: int, *, wide: bool) -> bytes:
        return b"\x42" + self.encoder.s(number, 64) if wide else b"\x41" + self.encoder.s(number, 32)

    # -- code ---------------------------------------------------------------------------------------------------------

    def _body(self, index: int, function: _Function) -> bytes:
        choices, encoder = self.choices, self.encoder
        groups = [(choices.one((0, 1, 2, 200)), choices.one(self.plan.known)) for _ in choices.some(4)]
        if groups and choices.chance(12):
            # A count whose bytes are those of a constant: who loses step before it takes code for that constant.
            groups.append((choices.one((0x41, 0x42, 0x43, 0x44)) << 7, choices.one(self.plan.known)))
        locals_ = [*function.params, *(type_ for count, type_ in groups for _ in range(count))]
        code = _Code(self, len(self.plan.imports) + index, locals_)
        out = [encoder.vec([encoder.u(count) + encoder.type(type_) for count, type_ in groups])]
        out += [code.statement(3) for _ in choices.some(5)]
        if choices.chance(4) and (callees := code.callees(function.results)):
            out.append(code.call(choices.one(callees), 1, tail=True))
        else:
            out += [code.value(type_, 3) for type_ in function.results]
        return b"".join(out) + b"\x0b"


def _new(encoder: _Encoder, group: list[_Data], index: int, length: int) -> bytes:
    """Code that makes an object whose fields are all zero."""
    if not group[index].is_array:
        return encoder.prefixed(0xFB, 1) + encoder.u(index)
    return b"\x41" + encoder.s(length, 32) + encoder.prefixed(0xFB, 7) + encoder.u(index)


class _Code:
    """The code of one function."""

    def __init__(self, module: _Module, index: int, locals_: list[str]) -> None:
        self.plan, self.choices, self.encoder = module.plan, module.choices, module.encoder
        self.index = index
        self.locals = locals_

    def callees(self, results: tuple[str, ...]) -> list[int]:
        """Functions with these results that may be called here: those before this one, so that nothing goes round."""
        return [index for index, function in enumerate(self.plan.all[: self.index]) if function.results == results]

    def call(self, callee: int, depth: int, *, tail: bool = False) -> bytes:
        """A call: by the function's index, or by a reference to it."""
        arguments = self._arguments(callee, depth)
        if callee in self.plan.declared and self.choices.chance(3):
            by_reference = bytes([0x15 if tail else 0x14]) + self.encoder.u(self.plan.all[callee].type)
            return arguments + b"\xd2" + self.encoder.u(callee) + by_reference
        return arguments + bytes([0x12 if tail else 0x10]) + self.encoder.u(callee)

    def _arguments(self, callee: int, depth: int) -> bytes:
        """Values for a call: for native WASI a descriptor that is not open."""
        params = self.plan.all[callee].params
        if callee < len(self.plan.imports) and params:
            return b"\x41" + self.encoder.s(_BAD_DESCRIPTOR, 32) + b"".join(map(self._number, params[1:]))
        return b"".join(self.value(type_, depth) for type_ in params)

    def _number(self, type_: str) -> bytes:
        if type_ == "i32":
            # A call ends in a trap where a number stands for nothing, or an address is not aligned.
            return b"\x41" + self.encoder.s(0, 32)
        return b"\x42" + self.encoder.s(self.choices.one((0, 16, 0x40, 2**31 - 1)), 64)

    def statement(self, depth: int) -> bytes:
        """Code that leaves the stack as it was."""
        choices, encoder, plan = self.choices, self.encoder, self.plan
        kind = choices.below(18)
        if kind < 4 and (callees := [index for index in range(self.index) if index < len(plan.imports)]):
            return self.call(choices.one(callees), 1) + b"\x1a"
        if kind == 4 and depth:
            return self._block(None, depth, lambda: self.statement(depth - 1))
        if kind == 5 and self.locals:
            place = choices.below(len(self.locals))
            value = self.value(self.locals[place], depth - 1)
            return value + (b"\x21" + encoder.u(place) if choices.chance(2) else b"\x22" + encoder.u(place) + b"\x1a")
        if kind == 6 and (places := [place for place, (_, mutable) in enumerate(plan.globals) if mutable]):
            place = choices.one(places)
            return self.value(plan.globals[place][0], depth - 1) + b"\x24" + encoder.u(place)
        if kind == 7:
            code, type_ = choices.one(((0x36, "i32"), (0x37, "i64"), (0x38, "f32"), (0x39, "f64"), (0x3A, "i32")))
            address, argument = self._access()
            return address + self.value(type_, depth - 1) + bytes([code]) + argument
        if kind == 8 and plan.tables:
            table = choices.below(len(plan.tables))
            put = self._index(table, choices.below(4)) + self.value(plan.tables[table].element, depth - 1)
            if choices.chance(2):
                return put + b"\x26" + encoder.u(table)
            return put + self._index(table, 0) + encoder.prefixed(0xFC, 17) + encoder.u(table)
        if kind == 9:
            return self._bulk()
        if kind == 10 and depth:
            # A table of branches, out of some blocks.
            labels = [encoder.u(choices.below(3)) for _ in choices.some(4)]
            choice = self.value("i32", 0) + b"\x0e" + encoder.vec(labels) + encoder.u(choices.below(3))
            return b"\x02\x40" * 3 + choice + self._dead() + b"\x0b\x0b\x0b"
        if kind == 11:
            return self._vector_store(depth - 1)
        if kind == 12 and choices.chance(4):
            return b"\x02\x40\x0c" + encoder.u(0) + self._dead() + b"\x0b"
        if kind in (13, 14) and depth:
            return self._caught(depth)
        if kind == 15:
            return self._atomic(depth - 1)
        if kind == 16 and plan.group and depth:
            return self._changed(depth - 1)
        if depth:
            return self.value(choices.one(plan.known), depth) + b"\x1a"
        return b"\x01"

    def _dead(self) -> bytes:
        """Code that never runs, in which a call needs no arguments."""
        if self.index and self.choices.chance(3):
            callee = self.choices.below(self.index)
            return b"\x10" + self.encoder.u(callee) + b"\x00"
        return b""

    def _caught(self, depth: int) -> bytes:
        """Code that may throw, in a block that catches it in one of the four ways."""
        choices, encoder, plan = self.choices, self.encoder, self.plan
        kind = choices.below(4) if plan.tags else 2 + choices.below(2)
        tag = choices.below(len(plan.tags)) if plan.tags else 0
        caught = (*(plan.tags[tag] if kind < 2 else ()), *(("exnref",) if kind & 1 else ()))
        opener = b"\x02" + encoder.s(plan.type((), caught), 33)
        clauses = [bytes([kind]) + (encoder.u(tag) if kind < 2 else b"") + encoder.u(0)]
        if plan.tags and choices.chance(3):
            # One before it that catches what is never thrown here.
            clauses.append(b"\x00" + encoder.u(tag) + encoder.u(0) if kind == 0 else clauses[0])
        code = self.statement(depth - 1)
        if plan.tags and choices.chance(2):
            code += b"".join(self.value(type_, depth - 1) for type_ in plan.tags[tag]) + b"\x08" + encoder.u(tag)
            code += self._dead()
        tried = b"\x1f\x40" + encoder.vec(clauses) + code + b"\x0b"
        return opener + tried + b"".join(map(self._literal, caught)) + b"\x0b" + b"\x1a" * len(caught)

    def _changed(self, depth: int) -> bytes:
        """Code that changes an object."""
        choices, encoder, plan = self.choices, self.encoder, self.plan
        index = choices.below(len(plan.group))
        is_array, fields = plan.group[index]
        places = [place for place, (_, mutable) in enumerate(fields) if mutable]
        if not places:
            return self.value(str(index), depth) + b"\x1a"
        place = choices.one(places)
        made = _new(encoder, plan.group, index, 2)
        value = self.value(fields[place][0], depth)
        if not is_array:
            return made + value + encoder.prefixed(0xFB, 5) + encoder.u(index) + encoder.u(place)
        zero = b"\x41" + encoder.s(choices.below(2), 32)
        if choices.chance(2):
            return made + zero + value + encoder.prefixed(0xFB, 14) + encoder.u(index)
        return made + zero + value + b"\x41" + encoder.s(1, 32) + encoder.prefixed(0xFB, 16) + encoder.u(index)

    def _bulk(self) -> bytes:
        choices, encoder, plan = self.choices, self.encoder, self.plan
        zero = b"\x41" + encoder.s(0, 32)
        memory = choices.below(len(plan.memories))
        kind = choices.below(6)
        if kind == 0:
            other = choices.below(len(plan.memories))
            both = plan.memories[memory].wide and plan.memories[other].wide
            size = b"\x42" + encoder.s(0, 64) if both else zero
            zeros = self._at(memory, 0) + self._at(other, 0) + size
            return zeros + encoder.prefixed(0xFC, 10) + encoder.u(memory) + encoder.u(other)
        if kind == 1 and plan.data:
            segment = choices.below(plan.data)
            zeros = self._at(memory, 0) + zero + zero
            return zeros + encoder.prefixed(0xFC, 8) + encoder.u(segment) + encoder.u(memory)
        if kind == 2 and plan.data:
            return encoder.prefixed(0xFC, 9) + encoder.u(choices.below(plan.data))
        if kind == 3 and plan.segments:
            return encoder.prefixed(0xFC, 13) + encoder.u(choices.below(plan.segments))
        if kind == 4 and plan.tables:
            table = choices.below(len(plan.tables))
            zeros = self._index(table, 0) * 2 + self._index(table, 0)
            return zeros + encoder.prefixed(0xFC, 14) + encoder.u(table) + encoder.u(table)
        zeros = self._at(memory, 0) + zero + self._at(memory, 0)
        return zeros + encoder.prefixed(0xFC, 11) + encoder.u(memory)

    def _at(self, memory: int, address: int) -> bytes:
        """An address in a memory, or a size of it."""
        if self.plan.memories[memory].wide:
            return b"\x42" + self.encoder.s(address, 64)
        return b"\x41" + self.encoder.s(address, 32)

    def _index(self, table: int, place: int) -> bytes:
        """An index in a table, or a size of it."""
        if self.plan.tables[table].wide:
            return b"\x42" + self.encoder.s(place, 64)
        return b"\x41" + self.encoder.s(place, 32)

    def _access(self, alignment: int = 0, *, shared: bool = False) -> tuple[bytes, bytes]:
        """An address, and the memory argument of what accesses it."""
        choices, encoder, plan = self.choices, self.encoder, self.plan
        memory = choices.one([place for place, one in enumerate(plan.memories) if one.shared or not shared])
        address = self._at(memory, choices.one((0, 16, 64, 0x1040)))
        offset = encoder.u(choices.one((0, 16, 0x40, 0x1040)), 64)
        if memory or choices.chance(3):
            return address, encoder.u(0x40 | alignment) + encoder.u(memory) + offset
        return address, encoder.u(alignment) + offset

    def _vector_store(self, depth: int) -> bytes:
        address, argument = self._access()
        value = self.value("v128", depth)
        if self.choices.chance(2):
            return address + value + self.encoder.prefixed(0xFD, 0x5B) + argument + bytes([self.choices.below(2)])
        return address + value + self.encoder.prefixed(0xFD, 11) + argument

    def _atomic(self, depth: int) -> bytes:
        choices, encoder = self.choices, self.encoder
        kind = choices.below(4)
        if kind == 0:
            return encoder.prefixed(0xFE, 3) + b"\x00"
        if kind == 1 and any(memory.shared for memory in self.plan.memories):
            address, argument = self._access(2, shared=True)
            never = b"\x42" + encoder.s(0, 64)
            return address + self.value("i32", depth) + never + encoder.prefixed(0xFE, 1) + argument + b"\x1a"
        if kind == 2:
            address, argument = self._access(3)
            return address + self.value("i64", depth) + encoder.prefixed(0xFE, 0x18) + argument
        address, argument = self._access(2)
        changed = address + self.value("i32", depth) + encoder.prefixed(0xFE, choices.one((0, 0x1E, 0x41)))
        return changed + argument + b"\x1a"

    def _block(self, type_: str | None, depth: int, inside: Callable[[], bytes]) -> bytes:
        """A block, loop or if around code, with its type in one of the ways in which it can be said."""
        choices, encoder = self.choices, self.encoder
        results = () if type_ is None else (type_,)
        index = self.plan.type((), results) if choices.chance(3) else None
        said = b"\x40" if type_ is None else encoder.type(type_)
        if index is not None:
            said = encoder.s(index, 33)
        opener = choices.one((0x02, 0x03, 0x04))
        if opener == 0x04:
            return self.value("i32", depth - 1) + b"\x04" + said + inside() + b"\x05" + inside() + b"\x0b"
        code = inside()
        if opener == 0x02 and choices.chance(3):
            code += b"\x0c" + encoder.u(0) + self._dead()
        return bytes([opener]) + said + code + b"\x0b"

    def value(self, type_: str, depth: int) -> bytes:
        """Code that leaves one value of a type."""
        choices, encoder, plan = self.choices, self.encoder, self.plan
        if depth > 0:
            kind = choices.below(9)
            if kind == 0:
                return self._block(type_, depth, lambda: self.value(type_, depth - 1))
            if kind == 1:
                return (
                    self.value(type_, depth - 1)
                    + self.value(type_, depth - 1)
                    + self.value("i32", depth - 1)
                    + (
                        b"\x1b"
                        if type_ in _NUMBERS and choices.chance(2)
                        else b"\x1c" + encoder.vec([encoder.type(type_)])
                    )
                )
            if kind == 2 and (callees := self.callees((type_,))):
                return self.call(choices.one(callees), depth - 1)
            if kind in (3, 4) and (made := self._computed(type_, depth - 1)) is not None:
                return made
            if kind == 5 and (tables := [place for place, table in enumerate(plan.tables) if table.element == type_]):
                table = choices.one(tables)
                return self._index(table, choices.below(4)) + b"\x25" + encoder.u(table)
            if kind == 6 and type_ not in _NUMBERS:
                return self._cast(type_, depth - 1)
        kind = choices.below(3)
        if kind == 0 and (places := [place for place, known in enumerate(self.locals) if known == type_]):
            return b"\x20" + encoder.u(choices.one(places))
        if kind == 1 and (places := [place for place, (known, _) in enumerate(plan.globals) if known == type_]):
            return b"\x23" + encoder.u(choices.one(places))
        return self._literal(type_)

    def _literal(self, type_: str) -> bytes:
        choices, encoder = self.choices, self.encoder
        if type_ == "i32":
            return b"\x41" + encoder.s(choices.one((0, 1, 16, 0x12, 0x40, -1, -0x2E, 2**31 - 1, -(2**31))), 32)
        if type_ == "i64":
            return b"\x42" + encoder.s(choices.one((0, 16, 0x1000_1000, -1, 2**63 - 1, -(2**63))), 64)
        if type_ == "f32":
            return b"\x43" + _BAIT[:4]
        if type_ == "f64":
            return b"\x44" + _BAIT[:8]
        if type_ == "v128":
            return encoder.prefixed(0xFD, 12) + _BAIT
        if type_ == "funcref" and self.plan.declared and choices.chance(2):
            return b"\xd2" + encoder.u(choices.one(sorted(self.plan.declared)))
        if type_ in ("i31ref", "eqref", "anyref") and choices.chance(2):
            return b"\x41" + encoder.s(choices.below(100), 32) + encoder.prefixed(0xFB, 28)
        if type_.isdecimal() and choices.chance(2):
            return _new(encoder, self.plan.group, int(type_), choices.below(3))
        return b"\xd0" + encoder.heap(type_)

    def _cast(self, type_: str, depth: int) -> bytes:
        """A reference that is looked at on its way: whether it is null, or of some type."""
        choices, encoder = self.choices, self.encoder
        kind = choices.below(4)
        if kind == 0:
            # Out of the block where it is null; else there is one that is not, and is dropped.
            block = b"\x02\x40" + self.value(type_, depth) + b"\xd5" + encoder.u(0) + b"\x1a\x0b"
            return block + self._literal(type_)
        if kind == 1:
            # Out of the block with it where it is not null; else there is another one.
            block = b"\x02" + encoder.type(type_) + self.value(type_, depth) + b"\xd6" + encoder.u(0)
            return block + self._literal(type_) + b"\x0b"
        if type_ in ("anyref", "eqref", "structref", "arrayref") and kind == 2:
            target = "i31ref" if type_ in ("anyref", "eqref") else "nullref"
            block = b"\x02" + encoder.type(target)
            cast = encoder.prefixed(0xFB, 24) + b"\x03" + encoder.u(0) + encoder.heap(type_) + encoder.heap(target)
            return block + self.value(type_, depth) + cast + b"\x1a\xd0" + encoder.heap(target) + b"\x0b"
        if type_ == "externref":
            return self.value("anyref", depth) + encoder.prefixed(0xFB, 27)
        if type_ == "anyref":
            return self.value("externref", depth) + encoder.prefixed(0xFB, 26)
        return self.value(type_, depth) + encoder.prefixed(0xFB, 23) + encoder.heap(type_)

    def _computed(self, type_: str, depth: int) -> bytes | None:
        """Code that computes a value, loads it or asks for it; None where there is nothing of that type."""
        choices, encoder, plan = self.choices, self.encoder, self.plan
        kind = choices.below(13)
        if type_ == "i32":
            if kind == 0:
                return self.value("f64", depth) + encoder.prefixed(0xFC, choices.one((2, 3)))
            memory = choices.below(len(plan.memories))
            if kind == 1:
                return b"\x3f" + encoder.u(memory) + self._narrowed(plan.memories[memory].wide)
            if kind == 2:
                grown = self._at(memory, choices.below(2)) + b"\x40" + encoder.u(memory)
                return grown + self._narrowed(plan.memories[memory].wide)
            if kind in (3, 4) and plan.tables:
                table = choices.below(len(plan.tables))
                narrowed = self._narrowed(plan.tables[table].wide)
                if kind == 3:
                    return encoder.prefixed(0xFC, 16) + encoder.u(table) + narrowed
                grown = self.value(plan.tables[table].element, depth) + self._index(table, choices.below(2))
                return grown + encoder.prefixed(0xFC, 15) + encoder.u(table) + narrowed
            if kind == 5:
                return self.value(choices.one(plan.references), depth) + b"\xd1"
            if kind == 6:
                return self.value("v128", depth) + encoder.prefixed(0xFD, 0x1B) + bytes([choices.below(4)])
            if kind == 8:
                return self.value("eqref", depth) + self.value("eqref", depth) + b"\xd3"
            if kind == 9:
                number = self.value("i32", depth) + encoder.prefixed(0xFB, 28)
                return number + encoder.prefixed(0xFB, choices.one((29, 30)))
            if kind == 10:
                type_ = choices.one(("anyref", "eqref"))
                return self.value(type_, depth) + encoder.prefixed(0xFB, 20 + choices.below(2)) + b"\x6c"
            if kind == 11 and plan.group:
                return self._looked_at(depth)
            if kind == 12:
                address, argument = self._access(2)
                return address + encoder.prefixed(0xFE, 0x10) + argument
            address, argument = self._access()
            return address + b"\x28" + argument
        if type_ == "i64":
            if kind < 3:
                return self.value("i32", depth) + b"\xad"
            address, argument = self._access()
            return address + b"\x29" + argument
        if type_ == "f32":
            return self.value("f64", depth) + b"\xb6"
        if type_ == "f64":
            address, argument = self._access()
            return address + b"\x2b" + argument
        if type_ == "v128":
            if kind == 0:
                return self.value("i32", depth) + encoder.prefixed(0xFD, choices.one((0x0F, 0x11)))
            if kind == 1:
                address, argument = self._access()
                return address + encoder.prefixed(0xFD, choices.one((0, 7, 0x5C))) + argument
            if kind == 2:
                lanes = bytes(choices.below(32) for _ in range(16))
                return self.value("v128", depth) + self.value("v128", depth) + encoder.prefixed(0xFD, 13) + lanes
            if kind == 3:
                address, argument = self._access()
                loaded = address + self.value("v128", depth) + encoder.prefixed(0xFD, 0x57)
                return loaded + argument + bytes([choices.below(2)])
            number = choices.one((0x4D, 0x62, 0xAB, 0xC0, 0x100, 0x101))
            operands = {0x4D: 1, 0x62: 1, 0xAB: 0, 0xC0: 1, 0x100: 2, 0x101: 1}[number]
            if number == 0xAB:
                return self.value("v128", depth) + self.value("i32", depth) + encoder.prefixed(0xFD, number)
            return b"".join(self.value("v128", depth) for _ in range(operands)) + encoder.prefixed(0xFD, number)
        return None

    def _narrowed(self, wide: bool) -> bytes:
        """What makes a size of 64 bits one of 32."""
        return b"\xa7" if wide else b""

    def _looked_at(self, depth: int) -> bytes:
        """A number that tells something of an object."""
        choices, encoder, plan = self.choices, self.encoder, self.plan
        index = choices.below(len(plan.group))
        is_array, fields = plan.group[index]
        made = _new(encoder, plan.group, index, 2)
        if is_array and choices.chance(2):
            return made + encoder.prefixed(0xFB, 15)
        places = [place for place, (type_, _) in enumerate(fields) if type_ == "i32"]
        if not places:
            return self.value(str(index), depth) + b"\xd1"
        if is_array:
            return made + b"\x41" + encoder.s(1, 32) + encoder.prefixed(0xFB, 11) + encoder.u(index)
        return made + encoder.prefixed(0xFB, 2) + encoder.u(index) + encoder.u(choices.one(places))
