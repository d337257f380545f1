"""Modules that the engine and a careless reader take for different ones: each is guarded, or refused.

The engine takes a reference type in two encodings, `70` and `63 70`, whatever proposals are on. Who takes one byte for
a type where the engine takes two reads everything behind it at the wrong place.
"""

from __future__ import annotations

import pytest

import stockade
from stockade import Outcome, Policy, Sandbox
from tests.guard._modules import (
    END,
    FUNC,
    FUNCREF,
    MEMORY,
    Builder,
    call,
    element,
    i32,
    leb,
    ref_func,
    section,
    vec,
)

_LONG = b"\x63\x70"
_DROP = b"\x1a"
_SCHED_YIELD = ("sched_yield", (), ("i32",))


def _body(locals_: bytes, code: bytes) -> bytes:
    """A function's code with local variables in front, both as bytes; `Builder` has none, so they go in unread."""
    return locals_ + code


class _WithLocals(Builder):
    """A builder whose functions bring their local variables along, as bytes in front of their code."""

    def build(self) -> bytes:
        whole = super().build()
        bodies = [code + END for _, code in self.functions]
        right = section(10, vec([leb(len(body)) + body for body in bodies]))
        wrong = section(10, vec([leb(len(body) + 1) + b"\x00" + body for body in bodies]))
        assert whole.count(wrong) == 1
        return whole.replace(wrong, right)


def _yielding(code: bytes, locals_: bytes, *, more: int = 0) -> _WithLocals:
    """A module with one function `f` and some more that do nothing."""
    built = _WithLocals(memories=[(1, None)])
    built.wasi(*_SCHED_YIELD)
    built.exports = [("memory", MEMORY, 0), ("f", FUNC, 1)]
    built.function(locals_ + code, results=("i32",))
    for _ in range(more):
        built.function(b"\x00")
    return built


# A group of one `(ref null func)`, and one of 8,704 variables of type i32. Who takes `63` alone for the first type
# reads a group of 112 next, and begins with the code at `44`: f64.const, which swallows `7f` and seven bytes of code.
_SHIFTING = b"\x02" + b"\x01" + _LONG + b"\x80\x44" + b"\x7f"


def hidden_call() -> bytes:
    """The attack: a call of native WASI, where a reader that has lost step sees a constant."""
    return _yielding(call(0) + _DROP + b"\x01" * 4 + i32(7), _SHIFTING).build()


def test_a_call_behind_a_long_type_of_a_local_is_counted() -> None:
    """The attack: local variables of a type in its long encoding, and a call that is taken for a constant."""
    report = Sandbox().call(hidden_call(), "f")

    assert (report.outcome, report.value, report.usage.calls) == (Outcome.OK, 7, {"sched_yield": 1})


def forging() -> bytes:
    """The attack: a constant that a reader that has lost step takes for two calls.

    There are so many functions that an index of the guard's takes two bytes: to redirect the calls makes the constant
    two bytes longer. So its last two bytes become instructions: a drop, and a store to the memory whose index follows,
    the guard's. The original does nothing but trap.
    """
    exited = b"\x41\xd0\x82\x01"  # i32.const 16720: where the guard noted that the guest has left
    constant = b"\x44" + call(0) + call(0) + b"\x01\x01" + _DROP + b"\x36"
    behind = b"\x42\x01" + b"\x00" + i32(7)
    return _yielding(exited + i32(1) + constant + behind, _SHIFTING, more=130).build()


def test_bytes_of_a_constant_are_not_patched() -> None:
    """The attack: a guest that has the weaver write a store to the guard's own memory for it, and says `exit`."""
    report = Sandbox().call(forging(), "f")

    assert (report.outcome, report.exit_code, report.usage.calls) == (Outcome.TRAP, None, {})


def hidden_element(long: bytes = _LONG) -> bytes:
    """The attack: an element segment whose type is in its long encoding, and native WASI among its first elements.

    Who takes one byte for the type takes `70` for the count, and then the count for the instruction `v128.const`, which
    swallows the first five elements.
    """
    built = Builder(memories=[(1, None)], tables=[(FUNCREF, 1661)])
    target = built.wasi(*_SCHED_YIELD)
    hidden = (ref_func(target) + END) * 4 + ref_func(target, 2) + END
    null = b"\xd0\x70" + END
    built.elements = [b"\x06\x00" + i32(0) + END + long + b"\xfd\x0c" + hidden + null * (1661 - 5)]
    built.exports = [("memory", MEMORY, 0), ("f", FUNC, 1)]
    built.function(i32(0) + b"\x11" + leb(built.type((), ("i32",))) + b"\x00", results=("i32",))
    return built.build()


def test_an_element_behind_a_long_type_is_the_guards() -> None:
    """The attack: native WASI in the guest's table. The same in the short encoding is the positive twin."""
    for long in (_LONG, b"\x70"):
        report = Sandbox().call(hidden_element(long), "f")

        assert (report.outcome, report.value, report.usage.calls) == (Outcome.OK, 0, {"sched_yield": 1})


@pytest.mark.parametrize("type_", [b"\x70", b"\x63\x70", b"\x6f", b"\x63\x6f"], ids=bytes.hex)
@pytest.mark.parametrize("where", ["block", "loop", "if", "select", "local", "param", "table", "global", "element"])
def test_a_reference_type_in_either_encoding_is_read_wherever_it_may_stand(where: str, type_: bytes) -> None:
    """The attack: each place of a type in turn, with a call behind it. It is counted, and all runs as written."""
    null = b"\xd0" + type_[-1:]
    code = b""
    built = _WithLocals(memories=[(1, None)])
    built.wasi(*_SCHED_YIELD)
    locals_ = b"\x01\x01" + type_ if where == "local" else b"\x00"
    if where in ("block", "loop"):
        code = (b"\x02" if where == "block" else b"\x03") + type_ + null + END + _DROP
    elif where == "if":
        code = i32(1) + b"\x04" + type_ + null + b"\x05" + null + END + _DROP
    elif where == "select":
        code = null + null + i32(0) + b"\x1c\x01" + type_ + _DROP
    built.exports = [("memory", MEMORY, 0), ("f", FUNC, 1)]
    built.function(locals_ + code + call(0), results=("i32",))
    data = built.build()
    if where == "param":
        types = vec([b"\x60" + vec([]) + vec([b"\x7f"]), b"\x60" + vec([type_, type_]) + vec([type_])])
        data = data.replace(section(1, vec([b"\x60" + vec([]) + vec([b"\x7f"])])), section(1, types))
    elif where == "table":
        data = data.replace(
            section(5, vec([b"\x00\x01"])), section(4, vec([type_ + b"\x00\x03"])) + section(5, vec([b"\x00\x01"]))
        )
    elif where == "global":
        memory, exports = section(5, vec([b"\x00\x01"])), section(6, vec([type_ + b"\x01" + null + END]))
        data = data.replace(memory, memory + exports)
    elif where == "element":
        code_at = data.rindex(b"\x0a")
        data = data[:code_at] + section(9, vec([b"\x05" + type_ + vec([null + END])])) + data[code_at:]

    report = Sandbox().call(data, "f")

    assert (report.outcome, report.value, report.usage.calls) == (Outcome.OK, 0, {"sched_yield": 1})


_TYPED = stockade.InvalidModule


@pytest.mark.parametrize(
    "type_",
    [b"\x64\x70", b"\x63\x00", b"\x63\x80\x00", b"\x63\xf0\x7f", b"\xf0\x7f", b"\x69", b"\x63\x69", b"\x63\x65\x70"],
    ids=bytes.hex,
)
@pytest.mark.parametrize("where", ["local", "block", "select"])
def test_types_that_guests_may_not_use_are_refused(where: str, type_: bytes) -> None:
    """The attack: an encoding of a type that no proposal of guests has, also where only the engine reads."""
    code = {"local": b"", "block": b"\x02" + type_ + b"\x00" + END + _DROP, "select": b"\x00\x1c\x01" + type_ + _DROP}
    locals_ = b"\x01\x01" + type_ if where == "local" else b"\x00"
    built = _yielding(code[where] + call(0), locals_)

    with pytest.raises(stockade.InvalidModule):
        Sandbox(Policy()).call(built.build(), "f")
    assert element(0, [0])  # the builder's segments are those of the weaver's own tests
