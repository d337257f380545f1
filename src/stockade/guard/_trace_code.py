"""The functions that trace: each stands before one that the guest calls, and writes an entry about the call.

They are woven in only where a trace is asked for. `trace.wat` says what stands in an entry, and has what they call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from stockade._wasi import WASI_BY_NAME
from stockade.wasm import encode_value_type, sleb, uleb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stockade._wasi import WasiCall
    from stockade.guard._appended import Appended
    from stockade.guard._source import Guard
    from stockade.wasm import FuncType, ParsedModule

__all__ = ["TRACED_VALUES", "TRACE_HELPERS", "TraceCode", "traceable"]

TRACE_HELPERS: Final = (
    "trace_begin",
    "trace_rest",
    "trace_done",
    "trace_text",
    "trace_data",
    "trace_answer32",
    "trace_answer64",
)
"""The guard's functions that these call."""

TRACED_VALUES: Final = 9
"""How many arguments an entry has room for: more than any call of WASI has."""

_I32_LOAD: Final = b"\x28\x42"
_I32_LOAD8: Final = b"\x2d\x40"
_I64_LOAD: Final = b"\x29\x43"
_I32_STORE8: Final = b"\x3a\x40"
_I64_STORE: Final = b"\x37\x43"
"""Instructions with their alignments, bit 6 of which says that the index of the memory follows."""

_AS_I64: Final = {
    "i32": b"\xad",  # i64.extend_i32_u
    "i64": b"",
    "f32": b"\xbc\xad",  # i32.reinterpret_f32, i64.extend_i32_u
    "f64": b"\xbd",  # i64.reinterpret_f64
    "v128": b"\xfd\x1d\x00",  # i64x2.extract_lane 0
}
"""What makes of a value the bits that are told of it."""

_IF: Final = b"\x04\x40"
_RETURN: Final = b"\x0f"
_END: Final = b"\x0b"
_ALL: Final = b"\x41\x7f"
_DATA_ANSWERS: Final = ("buffers", "text")


def _get(local: int) -> bytes:
    return b"\x20" + uleb(local)


def _set(local: int) -> bytes:
    return b"\x21" + uleb(local)


def _constant(number: int) -> bytes:
    return b"\x41" + sleb(number)


def traceable(module: ParsedModule, imports: Iterable[int]) -> dict[int, FuncType]:
    """Returns the imports whose calls can be told, by their indices: all that is passed and returned are numbers.

    Args:
        module: The guest's module.
        imports: Indices of the functions that it imports.
    """
    types = {index: module.function_type(index) for index in sorted(imports)}
    return {index: type_ for index, type_ in types.items() if {*type_.params, *type_.results} <= _AS_I64.keys()}


class TraceCode(NamedTuple):
    """Writes the bodies, each as it stands in a code section, but for its size.

    Attributes:
        guard: The guard.
        memory: The index of the memory with its state.
        helpers: The indices of `TRACE_HELPERS`, by their names.
    """

    guard: Guard
    memory: int
    helpers: Mapping[str, int]

    def add(
        self, appended: Appended, traced: Mapping[int, FuncType], served: Mapping[int, int], wasi: Mapping[int, int]
    ) -> None:
        """Appends the functions, in the order of the imports before which they stand.

        Args:
            appended: What is appended so far.
            traced: Those imports, by their indices.
            served: The functions that serve all imports.
            wasi: The guard's functions, in its own module, for the imports that are of WASI.
        """
        names = {index: name for name, index in self.guard.exports.items()}
        numbers = {index: number for number, index in enumerate(sorted(served.keys() - wasi.keys()))}
        for index, type_ in traced.items():
            call = WASI_BY_NAME[names[wasi[index]]] if index in wasi else None
            appended.add_code("trace", type_, self.body(call, type_, served[index], numbers.get(index, 0)))

    def body(self, call: WasiCall | None, type_: FuncType, served: int, function: int) -> bytes:
        """The function before another one.

        Args:
            call: The call of WASI; None for a function of the embedder.
            type_: The type of both.
            served: The other one's index.
            function: Which function of the embedder it is, from 0 on.
        """
        number = self._constant_of("HOST") if call is None else call.number
        params, results = len(type_.params), len(type_.results)
        slot, sequence, first = params, params + 1, params + 2
        kinds = [b"\x7f", b"\x7e", *map(encode_value_type, type_.results)]
        code = uleb(len(kinds)) + b"".join(b"\x01" + kind for kind in kinds)
        make = b"".join(map(_get, range(params))) + b"\x10" + uleb(served)

        has_descriptor = call is not None and params > 0 and call.arguments[0].kind == "fd"
        rule = self.guard.layout.offsets["trace_rules"] + number
        code += _constant(0) + self._access(_I32_LOAD8, rule) + b"\x45" + _IF + make + _RETURN + _END
        code += _constant(number) + (_get(0) if has_descriptor else _ALL) + self._call("trace_begin")
        code += b"\x22" + uleb(slot) + b"\x45" + _IF + make + _RETURN + _END
        for place, kind in enumerate(type_.params[:TRACED_VALUES]):
            at = self._constant_of("TRACE_ARGUMENTS") + 8 * place
            code += _get(slot) + _get(place) + _AS_I64[kind] + self._access(_I64_STORE, at)
        if call is None:
            at = self._constant_of("TRACE_ANSWERS") + 8
            code += _get(slot) + b"\x42" + sleb(function) + self._access(_I64_STORE, at) + self._has(slot, 2)
        else:
            code += self._given(call, slot)
        # Counted, now that it is whole.
        written = self.guard.layout.offsets["trace_written"]
        code += _constant(0) + self._access(_I64_LOAD, written) + _set(sequence)
        code += _constant(0) + _get(sequence) + b"\x42\x01\x7c" + self._access(_I64_STORE, written)
        code += make + b"".join(_set(first + place) for place in reversed(range(results)))
        # The host may have taken it meanwhile.
        code += _constant(0) + self._access(_I64_LOAD, self.guard.layout.offsets["trace_read"]) + _get(sequence)
        code += b"\x56" + _IF  # i64.gt_u
        code += _constant(number) + _get(sequence) + self._call("trace_rest") + _set(slot) + _END
        code += _get(slot) + _IF + self._answered(call, type_, slot, first)
        errno = _get(first) if call is not None and results else _constant(0)
        code += _constant(number) + _get(slot) + _get(sequence) + errno + self._call("trace_done") + _END
        return code + b"".join(_get(first + place) for place in range(results)) + _END

    def _given(self, call: WasiCall, slot: int) -> bytes:
        """Copies what a call of WASI names in the guest's memory."""
        code, which = b"", 0
        for argument in call.arguments:
            if argument.is_answer or argument.kind not in ("path", "buffers", "subscriptions"):
                continue
            code += _get(slot) + _constant(which) + _get(argument.place)
            if argument.kind == "subscriptions":
                count = next(other for other in call.arguments if other.name == "nsubscriptions")
                size = self.guard.layout.constants["SUBSCRIPTION_SIZE"]
                # Up to where the count is refused; a product of more is one of no account.
                code += _get(count.place) + _constant(size) + b"\x6c" + self._call("trace_text")
            elif argument.kind == "path":
                code += _get(argument.place + 1) + self._call("trace_text")
            else:
                code += _get(argument.place + 1) + _ALL + self._call("trace_data")
            which += 1
        return code

    def _answered(self, call: WasiCall | None, type_: FuncType, slot: int, first: int) -> bytes:
        """Copies what a call has answered."""
        if call is None:
            if not type_.results:
                return b""
            code = _get(slot) + _get(first) + _AS_I64[type_.results[0]]
            code += self._access(_I64_STORE, self._constant_of("TRACE_ANSWERS"))
            return code + self._has(slot, 3)
        code = self._answers(call, slot)
        # What is answered where the call fails is of no account.
        return _get(first) + b"\x45" + _IF + code + _END if code else b""

    def _answers(self, call: WasiCall, slot: int) -> bytes:
        code, which = b"", 0
        answers = [argument for argument in call.arguments if argument.is_answer]
        for argument in answers:
            if argument.kind in _DATA_ANSWERS:
                continue
            for long, offset in _READ.get(argument.kind, ((False, 0),)):
                address = _get(argument.place) + (_constant(offset) + b"\x6a" if offset else b"")
                helper = "trace_answer64" if long else "trace_answer32"
                code += _get(slot) + _constant(which) + address + self._call(helper)
                which += 1
        before = sum(argument.kind in ("path", "subscriptions") for argument in call.arguments)
        for argument in answers:
            if argument.kind in _DATA_ANSWERS:
                code += _get(slot) + _constant(before) + _get(argument.place)
                # How much it is, says the first of the other answers, where there is one.
                count = self._count(slot) if len(answers) > 1 else _get(argument.place + 1)
                if argument.kind == "buffers":
                    code += _get(argument.place + 1) + count + self._call("trace_data")
                else:
                    code += count + self._call("trace_text")
        return code

    def _has(self, slot: int, answers: int) -> bytes:
        """Says which answers there are."""
        return _get(slot) + _constant(answers) + self._access(_I32_STORE8, 2)

    def _count(self, slot: int) -> bytes:
        return _get(slot) + self._access(_I32_LOAD, self._constant_of("TRACE_ANSWERS"))

    def _call(self, helper: str) -> bytes:
        return b"\x10" + uleb(self.helpers[helper])

    def _constant_of(self, name: str) -> int:
        return self.guard.layout.constants[name]

    def _access(self, instruction: bytes, offset: int) -> bytes:
        return instruction + uleb(self.memory) + uleb(offset)


_READ: Final[Mapping[str, Sequence[tuple[bool, int]]]] = {
    "u64": ((True, 0),),
    "fdstat": ((True, 0),),
    "prestat": ((True, 0),),
    "filestat": ((True, 16), (True, 32)),
}
"""What is read of an answer that is not 32 bits long: whether 64 bits, and where."""
