"""The bound of what compiling costs: what must count, in whatever way it is written, and what may be left out.

Holds P-COMPILE-4.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.wasm import compile_cost, parse
from stockade.worker._prepare import CHEAP_COST as CHEAP
from stockade.worker._prepare import is_cheap
from tests.conftest import HELLO, wat
from tests.guard._modules import HEADER, custom, leb, section

EXACT = 1 << 60


def module(
    *codes: bytes,
    locals_: bytes = b"\0",
    types: tuple[bytes, ...] = (),
    sections: dict[int, bytes] | None = None,
) -> bytes:
    """A module of functions of the first type, which takes and returns nothing."""
    bodies = [locals_ + code + b"\x0b" for code in codes]
    parts = {
        1: leb(1 + len(types)) + b"\x60\0\0" + b"".join(types),
        3: leb(len(codes)) + b"\0" * len(codes),
        10: leb(len(codes)) + b"".join(leb(len(body)) + body for body in bodies),
        **(sections or {}),
    }
    order = (1, 2, 3, 4, 5, 6, 7, 9, 10, 11)
    return HEADER + b"".join(section(number, parts[number]) for number in order if number in parts)


def cost(data: bytes) -> int:
    return compile_cost(parse(data), EXACT)


def many(count: int) -> bytes:
    """A type of so many parameters and results each."""
    return b"\x60" + (leb(count) + b"\x7f" * count) * 2


def test_small_guests_are_cheap() -> None:
    """A greeting, and a hundred small functions."""
    assert cost(wat(HELLO).data) < CHEAP // 20
    assert cost(module(*[b"\x20\0\x20\1\x6a\x1a"] * 100)) < CHEAP


NESTED = b"\x02\1" * 999 + b"\x41\0" * 1000 + b"\x41\0\x0e" + leb(998) + b"\0" * 999 + b"\x0b" * 999 + b"\x1a" * 1000


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("branches to blocks with results", module(NESTED, types=(many(1000),))),
        ("loops that join locals", module(b"\x03\x40" * 999 + b"\x0b" * 999, locals_=b"\1" + leb(9000) + b"\x7f")),
        ("locals of many functions", module(*[b""] * 100, locals_=b"\1" + leb(50_000) + b"\x7f")),
        ("functions", module(*[b""] * 1000)),
        ("calls with many values", module((b"\x10\0" * 200), types=(many(1000),))),
        ("a long function", module(b"\x41\0\x1a" * 40_000)),
        ("barriers", module(b"\x23\0\x24\0" * 300)),
        ("large types", module(b"", types=(many(1000),) * 8)),
        ("tables", module(b"", sections={4: b"\5" + (b"\x70\0" + leb(1 << 20)) * 5})),
        ("memories", module(b"", sections={5: leb(80) + b"\0\1" * 80})),
        ("data", module(b"", sections={5: b"\1\0\2", 11: b"\1\0\x41\0\x0b" + leb(80_000) + bytes(80_000)})),
        ("a custom section", module(b"") + custom("name", bytes(80_000))),
    ],
)
def test_what_takes_the_compiler_long_is_not_cheap(what: str, data: bytes) -> None:
    """The attack: much work in few bytes, of each kind."""
    assert cost(data) > CHEAP, what


def test_a_branch_table_counts_wherever_it_may_stand() -> None:
    """The attack: its opcode after a byte that makes it look like an immediate, or its count written long."""
    plain = cost(module(b"\x02\x40\x41\0\x0e\x40" + b"\0" * 65 + b"\x0b"))
    behind = cost(module(b"\x02\x40\x41\x0e\x0e\x40" + b"\0" * 65 + b"\x0b"))
    long = cost(module(b"\x02\x40\x41\0\x0e\xc0\x80\0" + b"\0" * 65 + b"\x0b"))
    without = cost(module(b"\x02\x40\x41\0\x0e\0" + b"\1" * 65 + b"\x0b"))

    assert plain > without * 5
    assert behind >= plain
    assert long > without * 5


def test_locals_that_are_not_plain_to_see_are_as_many_as_there_may_be() -> None:
    """The attack: a type in its long form, behind which a reader that takes one byte loses step."""
    plain = cost(module(b"", locals_=b"\1\1\x70"))
    long = cost(module(b"", locals_=b"\2\1\x63\x70" + leb(50_000) + b"\x7f"))
    damaged = cost(module(b"", locals_=b"\x05\x85"))

    assert plain < 1_000
    assert long > 50_000
    assert damaged > 50_000
    assert cost(module(b"", locals_=b"\2" + leb(50_000, 5) + b"\x7f\1\x7e")) > 50_000


def test_looking_ends_where_it_is_enough() -> None:
    """The attack: a million functions, each of which is looked at though the first hundred are too many."""
    data = module(*[b"\x0e" * 500] * 2000)

    assert 1_000 < compile_cost(parse(data), 1_000) < 3_000_000
    half = compile_cost(parse(data[:8] + data[8:]), 3_000_000)
    assert 3_000_000 < half < EXACT


steps = st.sampled_from(
    [b"\x02\x40\x0b", b"\x03\x40\x0b", b"\x41\0\x04\x40\x0b", b"\x10\0", b"\x41\0\x25\0\x1a", b"\x0f"]
)
plains = st.sampled_from([b"\1", b"\x41\0\x1a", b"\x41\0\x41\0\x6a\x1a", b"\x20\0\x21\0"])


@given(st.lists(steps, min_size=1, max_size=30), st.lists(plains, max_size=30), st.integers(0, 1000))
def test_no_part_lowers_the_bound(some: list[bytes], more: list[bytes], locals_: int) -> None:
    """Whatever is added to a function or to a module, it does not become cheaper; and products count."""
    declared = b"\1" + leb(locals_) + b"\x7f"
    base = cost(module(b"".join(some), locals_=declared))

    assert cost(module(b"".join(some + more), locals_=declared)) >= base
    assert cost(module(b"".join(some), b"".join(more), locals_=declared)) > base
    # Many more: the bytes that say how many may look like steps, or no more do so.
    assert cost(module(b"".join(some), locals_=b"\1" + leb(locals_ + 10_000) + b"\x7f")) > base
    assert base > len(some) * (locals_ + 150)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_code_has_a_bound(code: bytes, enough: int) -> None:
    """Whatever a body holds; nobody has validated it yet. A bound up to `enough` is exact."""
    parsed = parse(module(code, locals_=b""))
    exact = compile_cost(parsed, EXACT)

    found = compile_cost(parsed, enough * 1000)
    assert found == exact or enough * 1000 < found <= exact


def test_what_is_cheap_costs_more_where_nans_are_canonical() -> None:
    """Attack: 30 KB of square roots, slowly compiled in the host's process by a reproducible policy."""
    roots = parse(module(b"\x44" + b"\0" * 8 + b"\x9f" * 30_000 + b"\x1a"))
    assert is_cheap(roots)
    assert not is_cheap(roots, canonical_nans=True)
    assert is_cheap(parse(wat(HELLO).data), canonical_nans=True)
