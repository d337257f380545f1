"""Valid modules of all kinds, each thing of them in one of all the encodings that the format allows.

Numbers are padded or not, reference types short or long, numbers behind prefixes padded, element segments in all eight
forms, memories named or left out. The modules call native WASI in every way there is, and grow memories and tables.
Code is made type by type, so that it is valid by its making; no loop goes round, so that it ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
_REFERENCES = {"funcref": 0x70, "externref": 0x6F}
_TYPES = (*_NUMBERS, *_REFERENCES)
_FUNC, _TABLE, _MEMORY, _GLOBAL = range(4)
# Bytes that begin a call, a reference or growth, wherever an immediate may hold them.
_BAIT = b"\x10\x00\x12\x00\xd2\x00\x40\x00\xfc\x0f\x00\x10\x10\x10\x00\x40"


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

    def limits(self, minimum: int, maximum: int | None) -> bytes:
        return b"\x00" + self.u(minimum) if maximum is None else b"\x01" + self.u(minimum) + self.u(maximum)


@dataclass
class _Function:
    params: tuple[str, ...]
    results: tuple[str, ...]
    type: int


@dataclass
class _Plan:
    """What the module has, before anything is encoded."""

    types: list[tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    imports: list[tuple[str, _Function]] = field(default_factory=list)
    functions: list[_Function] = field(default_factory=list)
    tables: list[tuple[str, int, int | None]] = field(default_factory=list)
    memories: list[tuple[int, int | None]] = field(default_factory=list)
    globals: list[tuple[str, bool]] = field(default_factory=list)
    declared: set[int] = field(default_factory=set)
    segments: int = 0
    data: int = 0

    def type(self, params: tuple[str, ...], results: tuple[str, ...]) -> int:
        if (params, results) not in self.types:
            self.types.append((params, results))
        return self.types.index((params, results))

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
        if choices.chance(6):
            # Indices of types that take more bytes.
            plan.types += [(("i32",) * (place % 12), ("i64",) * (place // 12)) for place in range(140)]
        for _ in choices.some(6):
            name = choices.one(tuple(CALLS))
            copies = 45 if choices.chance(12) else 1
            type_ = plan.type(CALLS[name], ("i32",))
            plan.imports += [(name, _Function(CALLS[name], ("i32",), type_))] * copies
        for _ in choices.some(3):
            params = tuple(choices.one(_TYPES) for _ in choices.some(3))
            results = tuple(choices.one(_TYPES) for _ in choices.some(2))
            plan.functions.append(_Function(params, results, plan.type(params, results)))
        plan.functions.append(_Function((), ("i32",), plan.type((), ("i32",))))
        if choices.chance(10):
            plan.functions += [_Function((), (), plan.type((), ()))] * 130
        main = len(plan.imports) + next(
            place
            for place, function in enumerate(plan.functions)
            if (function.params, function.results) == ((), ("i32",))
        )
        plan.memories = [(1, choices.one((None, 3, 9))) for _ in range(1 + choices.below(1 + choices.below(3)))]
        plan.tables = [(choices.one(tuple(_REFERENCES)), 4, choices.one((None, 4, 9))) for _ in choices.some(3)]
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
        sections[1] = [
            b"\x60"
            + encoder.vec([encoder.type(name) for name in params])
            + encoder.vec([encoder.type(n) for n in results])
            for params, results in plan.types
        ]
        sections[2] = imports
        sections[3] = [encoder.u(function.type) for function in plan.functions]
        sections[4] = [encoder.type(kind) + encoder.limits(least, most) for kind, least, most in plan.tables]
        sections[5] = [encoder.limits(least, most) for least, most in plan.memories]
        sections[10] = [encoder.u(len(body)) + body for body in bodies]
        sections[11] = data
        out = [b"\0asm\1\0\0\0"]
        for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 10, 11):
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
        if type_ in _REFERENCES:
            return b"\xd0" + bytes([_REFERENCES[type_]]) + b"\x0b"
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
            type_, mutable = self.choices.one(_TYPES), self.choices.chance(2)
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
        plan.declared.add(main)
        return [encoder.name(name) + bytes([kind]) + encoder.u(index) for name, kind, index in dict.fromkeys(entries)]

    def _elements(self) -> list[bytes]:
        encoder, choices, plan = self.encoder, self.choices, self.plan
        out = []
        for _ in choices.some(5):
            form = choices.below(8)
            type_ = choices.one(tuple(_REFERENCES)) if form in (5, 6, 7) else "funcref"
            tables = [index for index, (kind, _, _) in enumerate(plan.tables) if kind == type_]
            if form in (0, 4):
                tables = tables[:1] if tables[:1] == [0] else []
            if not form & 1 and not tables:
                continue
            segment = encoder.u(form)
            if not form & 1:
                if form & 2:
                    segment += encoder.u(choices.one(tables))
                segment += b"\x41" + encoder.s(choices.below(2), 32) + b"\x0b"
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
        if form == 2:
            out += encoder.u(choices.below(len(self.plan.memories)))
        if form != 1:
            out += b"\x41" + encoder.s(choices.below(200), 32) + b"\x0b"
        return out + encoder.u(len(_BAIT)) + _BAIT

    # -- code ---------------------------------------------------------------------------------------------------------

    def _body(self, index: int, function: _Function) -> bytes:
        choices, encoder = self.choices, self.encoder
        groups = [(choices.one((0, 1, 2, 200)), choices.one(_TYPES)) for _ in choices.some(4)]
        if groups and choices.chance(12):
            # A count whose bytes are those of a constant: who loses step before it takes code for that constant.
            groups.append((choices.one((0x41, 0x42, 0x43, 0x44)) << 7, choices.one(_TYPES)))
        locals_ = [*function.params, *(type_ for count, type_ in groups for _ in range(count))]
        code = _Code(self, len(self.plan.imports) + index, locals_)
        out = [encoder.vec([encoder.u(count) + encoder.type(type_) for count, type_ in groups])]
        out += [code.statement(3) for _ in choices.some(5)]
        if choices.chance(4) and (callees := code.callees(function.results)):
            callee = choices.one(callees)
            out += [code.arguments(callee, 1), b"\x12" + encoder.u(callee)]
        else:
            out += [code.value(type_, 3) for type_ in function.results]
        return b"".join(out) + b"\x0b"


class _Code:
    """The code of one function."""

    def __init__(self, module: _Module, index: int, locals_: list[str]) -> None:
        self.plan, self.choices, self.encoder = module.plan, module.choices, module.encoder
        self.index = index
        self.locals = locals_

    def callees(self, results: tuple[str, ...]) -> list[int]:
        """Functions with these results that may be called here: those before this one, so that nothing goes round."""
        return [index for index, function in enumerate(self.plan.all[: self.index]) if function.results == results]

    def arguments(self, callee: int, depth: int) -> bytes:
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
        kind = choices.below(14)
        if kind < 4 and (callees := [index for index in range(self.index) if index < len(plan.imports)]):
            callee = choices.one(callees)
            return self.arguments(callee, 1) + b"\x10" + encoder.u(callee) + b"\x1a"
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
            return self._address() + self.value(type_, depth - 1) + bytes([code]) + self._memory_argument()
        if kind == 8 and plan.tables:
            table = choices.below(len(plan.tables))
            put = b"\x41" + encoder.s(choices.below(4), 32) + self.value(plan.tables[table][0], depth - 1)
            if choices.chance(2):
                return put + b"\x26" + encoder.u(table)
            return put + b"\x41" + encoder.s(0, 32) + encoder.prefixed(0xFC, 17) + encoder.u(table)
        if kind == 9:
            return self._bulk()
        if kind == 10 and depth:
            # A table of branches, out of some blocks.
            labels = [encoder.u(choices.below(3)) for _ in choices.some(4)]
            choice = self.value("i32", 0) + b"\x0e" + encoder.vec(labels) + encoder.u(choices.below(3))
            return b"\x02\x40" * 3 + choice + self._dead() + b"\x0b\x0b\x0b"
        if kind == 11:
            return self._address() + self.value("v128", depth - 1) + self._vector_store()
        if kind == 12 and choices.chance(4):
            return b"\x02\x40\x0c" + encoder.u(0) + self._dead() + b"\x0b"
        if depth:
            return self.value(choices.one(_TYPES), depth) + b"\x1a"
        return b"\x01"

    def _dead(self) -> bytes:
        """Code that never runs, in which a call needs no arguments."""
        if self.index and self.choices.chance(3):
            callee = self.choices.below(self.index)
            return b"\x10" + self.encoder.u(callee) + b"\x00"
        return b""

    def _bulk(self) -> bytes:
        choices, encoder, plan = self.choices, self.encoder, self.plan
        zeros = b"".join(b"\x41" + encoder.s(0, 32) for _ in range(3))
        memory = choices.below(len(plan.memories))
        kind = choices.below(6)
        if kind == 0:
            return zeros + encoder.prefixed(0xFC, 10) + encoder.u(memory) + encoder.u(choices.below(len(plan.memories)))
        if kind == 1 and plan.data:
            segment = choices.below(plan.data)
            return zeros + encoder.prefixed(0xFC, 8) + encoder.u(segment) + encoder.u(memory)
        if kind == 2 and plan.data:
            return encoder.prefixed(0xFC, 9) + encoder.u(choices.below(plan.data))
        if kind == 3 and plan.segments:
            return encoder.prefixed(0xFC, 13) + encoder.u(choices.below(plan.segments))
        if kind == 4 and plan.tables:
            table = choices.below(len(plan.tables))
            return zeros + encoder.prefixed(0xFC, 14) + encoder.u(table) + encoder.u(table)
        return zeros + encoder.prefixed(0xFC, 11) + encoder.u(memory)

    def _address(self) -> bytes:
        return b"\x41" + self.encoder.s(self.choices.one((0, 16, 64, 0x1040)), 32)

    def _memory_argument(self) -> bytes:
        choices, encoder = self.choices, self.encoder
        memory = choices.below(len(self.plan.memories))
        offset = encoder.u(choices.one((0, 16, 0x40, 0x1040)))
        if memory or choices.chance(3):
            return encoder.u(0x40) + encoder.u(memory) + offset
        return encoder.u(0) + offset

    def _vector_store(self) -> bytes:
        if self.choices.chance(2):
            lane = bytes([self.choices.below(2)])
            return self.encoder.prefixed(0xFD, 0x5B) + self._memory_argument() + lane
        return self.encoder.prefixed(0xFD, 11) + self._memory_argument()

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
                callee = choices.one(callees)
                return self.arguments(callee, depth - 1) + b"\x10" + encoder.u(callee)
            if kind in (3, 4) and (made := self._computed(type_, depth - 1)) is not None:
                return made
            if kind == 5 and (tables := [place for place, (kind, _, _) in enumerate(plan.tables) if kind == type_]):
                return b"\x41" + encoder.s(choices.below(4), 32) + b"\x25" + encoder.u(choices.one(tables))
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
        return b"\xd0" + bytes([_REFERENCES[type_]])

    def _computed(self, type_: str, depth: int) -> bytes | None:
        """Code that computes a value, loads it or asks for it; None where there is nothing of that type."""
        choices, encoder, plan = self.choices, self.encoder, self.plan
        kind = choices.below(8)
        if type_ == "i32":
            if kind == 0:
                return self.value("f64", depth) + encoder.prefixed(0xFC, choices.one((2, 3)))
            if kind == 1:
                return b"\x3f" + encoder.u(choices.below(len(plan.memories)))
            if kind == 2:
                return (
                    b"\x41" + encoder.s(choices.below(2), 32) + b"\x40" + encoder.u(choices.below(len(plan.memories)))
                )
            if kind == 3 and plan.tables:
                return encoder.prefixed(0xFC, 16) + encoder.u(choices.below(len(plan.tables)))
            if kind == 4 and plan.tables:
                table = choices.below(len(plan.tables))
                grown = self.value(plan.tables[table][0], depth) + b"\x41" + encoder.s(choices.below(2), 32)
                return grown + encoder.prefixed(0xFC, 15) + encoder.u(table)
            if kind == 5:
                return self.value(choices.one(tuple(_REFERENCES)), depth) + b"\xd1"
            if kind == 6:
                return self.value("v128", depth) + encoder.prefixed(0xFD, 0x1B) + bytes([choices.below(4)])
            return self._address() + b"\x28" + self._memory_argument()
        if type_ == "i64":
            if kind < 3:
                return self.value("i32", depth) + b"\xad"
            return self._address() + b"\x29" + self._memory_argument()
        if type_ == "f32":
            return self.value("f64", depth) + b"\xb6"
        if type_ == "f64":
            return self._address() + b"\x2b" + self._memory_argument()
        if type_ == "v128":
            if kind == 0:
                return self.value("i32", depth) + encoder.prefixed(0xFD, choices.one((0x0F, 0x11)))
            if kind == 1:
                return self._address() + encoder.prefixed(0xFD, choices.one((0, 7, 0x5C))) + self._memory_argument()
            if kind == 2:
                lanes = bytes(choices.below(32) for _ in range(16))
                return self.value("v128", depth) + self.value("v128", depth) + encoder.prefixed(0xFD, 13) + lanes
            if kind == 3:
                loaded = self._address() + self.value("v128", depth) + encoder.prefixed(0xFD, 0x57)
                return loaded + self._memory_argument() + bytes([choices.below(2)])
            number = choices.one((0x4D, 0x62, 0xAB, 0xC0, 0x100, 0x101))
            operands = {0x4D: 1, 0x62: 1, 0xAB: 0, 0xC0: 1, 0x100: 2, 0x101: 1}[number]
            if number == 0xAB:
                return self.value("v128", depth) + self.value("i32", depth) + encoder.prefixed(0xFD, number)
            return b"".join(self.value("v128", depth) for _ in range(operands)) + encoder.prefixed(0xFD, number)
        return None
