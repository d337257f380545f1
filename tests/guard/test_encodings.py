"""Modules that the engine and a careless reader take for different ones: each is guarded, or refused.

The engine takes a reference type in two encodings, `70` and `63 70`, whatever proposals are on. Who takes one byte for
a type where the engine takes two reads everything behind it at the wrong place.

Holds P-GUARD-3.
"""

from __future__ import annotations

import pytest

import stockade
from stockade import Features, Outcome, Policy, Sandbox
from tests._examples import part
from tests.guard._modules import (
    END,
    FUNC,
    FUNCREF,
    MEMORY,
    Builder,
    call,
    i32,
    leb,
    ref_func,
    section,
    vec,
)

_LONG = b"\x63\x70"
_DROP = b"\x1a"
_SCHED_YIELD = ("sched_yield", (), ("i32",))


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


def hidden_growth() -> bytes:
    """The attack: growth of memory, where a reader that has lost step sees a constant."""
    return _yielding(i32(1000) + b"\x40\x00" + b"\x01" * 2, _SHIFTING).build()


def test_growth_behind_a_long_type_is_held_to_the_policy() -> None:
    """The attack: as much memory as the engine gives. It is refused and told; the twin may have as much."""
    refused = Sandbox(Policy().replace(memory=1 << 20)).call(hidden_growth(), "f")
    granted = Sandbox(Policy().replace(memory=128 << 20)).call(hidden_growth(), "f")

    assert (refused.outcome, refused.value, refused.usage.memory_peak_bytes) == (Outcome.OK, -1, 1 << 16)
    assert [(found.kind, found.action) for found in refused.violations] == [("memory", "deny")]
    assert (granted.outcome, granted.value, granted.usage.memory_peak_bytes) == (Outcome.OK, 1, 1001 << 16)
    assert granted.violations == ()


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


_MEMORY_ARGUMENTS = {
    "offset padded": b"\x02" + leb(4, 5),
    "alignment padded": leb(2, 4) + b"\x04",
    "memory named": b"\x42\x00\x04",
    "memory named, all padded": leb(0x42, 5) + leb(0, 5) + leb(4, 5),
}


def _before_the_call() -> dict[str, bytes]:
    """Instructions that leave the stack as it was, with numbers in them that are longer than they need be."""
    found = {f"load, {what}": i32(0) + b"\x28" + argument + _DROP for what, argument in _MEMORY_ARGUMENTS.items()}
    found |= {f"store, {what}": i32(0) + i32(5) + b"\x36" + argument for what, argument in _MEMORY_ARGUMENTS.items()}
    found |= {
        f"vector, {what}": i32(0) + b"\xfd" + leb(0x5C, 5) + argument + _DROP
        for what, argument in _MEMORY_ARGUMENTS.items()
    }
    found |= {
        f"lane, {what}": i32(0) + b"\xfd\x0c" + bytes(16) + b"\xfd" + leb(0x5A, 3) + argument + b"\x01"
        for what, argument in _MEMORY_ARGUMENTS.items()
    }
    for size in range(1, 6):
        found[f"memory.fill in {size}"] = i32(0) * 3 + b"\xfc" + leb(11, size) + leb(0, size)
        found[f"memory.copy in {size}"] = i32(0) * 3 + b"\xfc" + leb(10, size) + leb(0, size) + leb(0, size)
        found[f"memory.size in {size}"] = b"\x3f" + leb(0, size) + _DROP
        found[f"v128.const in {size}"] = b"\xfd" + leb(12, size) + b"\x10\x00" * 8 + _DROP
        found[f"relaxed in {size}"] = (b"\xfd\x0c" + bytes(16)) * 2 + b"\xfd" + leb(0x100, max(size, 2)) + _DROP
        found[f"block in {size}"] = b"\x02" + leb(1, size) + b"\x0c" + leb(0, size) + END
        found[f"br_table in {size}"] = b"\x02\x40" + i32(0) + b"\x0e" + leb(2, size) + leb(0, size) * 3 + END
        found[f"select in {size}"] = i32(0) * 3 + b"\x1c" + leb(1, size) + b"\x7f" + _DROP
    return found


@pytest.mark.parametrize("what", part(list(_before_the_call())))
def test_a_call_behind_padded_numbers_is_counted(what: str) -> None:
    """The attack: numbers behind prefixes, memory arguments and counts in other lengths than usual."""
    built = _yielding(_before_the_call()[what] + call(0), b"\x00")
    built.type((), ())
    built.memories = [(1, None), (1, None)]
    policy = Policy(features=Features(multi_memory=True, relaxed_simd=True)).replace(memories=2)

    report = Sandbox(policy).call(built.build(), "f")

    assert (report.outcome, report.value, report.usage.calls) == (Outcome.OK, 0, {"sched_yield": 1})


@pytest.mark.parametrize("size", range(1, 6))
def test_padded_counts_and_lengths_are_read(size: int) -> None:
    """The attack: numbers between sections, items and bodies that are longer than usual; a byte more is refused."""
    built = Builder(memories=[(1, None)], size=size)
    built.wasi(*_SCHED_YIELD)
    built.exports = [("memory", MEMORY, 0), ("f", FUNC, 1)]
    built.function(call(0, size), results=("i32",))

    assert Sandbox().call(built.build(), "f").usage.calls == {"sched_yield": 1}
    built.size = 6
    with pytest.raises(stockade.InvalidModule, match="number too long"):
        Sandbox().call(built.build(), "f")


@pytest.mark.parametrize(
    "type_",
    [b"\x63\xf0\x7f", b"\xf0\x7f", b"\x68", b"\x63\x68", b"\x64\x75", b"\x63\x65\x70", b"\x62\x00", b"\x7a"],
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
