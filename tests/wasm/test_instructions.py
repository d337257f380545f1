"""The finder of sites: no call or reference to an import, and no growth, is ever missed or made up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stockade
from stockade.engine import assemble
from stockade.wasm import Kind, Reader, Site, all_sites, parse, walk
from tests._examples import examples
from tests.conftest import program_path
from tests.guard._modules import leb, sleb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FUNCTIONS = {Kind.CALL: b"\x10", Kind.RETURN_CALL: b"\x12", Kind.REF_FUNC: b"\xd2"}
_NOTED = (Kind.BRANCH_TABLE, Kind.TABLE_CHANGE, Kind.ELEMENT_DROP, Kind.DATA_DROP)
_GROWTH = {Kind.MEMORY_GROW: b"\x40", Kind.TABLE_GROW: b"\xfc\x0f"}

# How many functions a module may import: around each border of the encoding, and what real programs have.
_IMPORTED = [0, 1, 2, 10, 43, 45, 91, 92, 93, 94, 126, 127, 128, 129, 200, 16_383, 16_384, 16_385, 20_000, 2_097_153]

# Bytes that are a site's first byte, wherever an immediate may hold them.
_BAIT = b"\x10\x00\x12\x00\xd2\x00\x40\x00\xfc\x0f\x00\x10\x10\x10\x00\x40"


def sites(data: bytes, start: int, end: int, imported: int) -> Iterator[Site]:
    """What the weaver redirects: all that is found but tables of branches, and what changes tables and segments."""
    return (site for site in walk(data, start, end, imported) if site.kind not in _NOTED)


def _skipped() -> dict[str, bytes]:
    """One instruction of every class that holds no site, with bait for immediates."""
    plain = [0x00, 0x01, 0x05, 0x0A, 0x0B, 0x0F, 0x1A, 0x1B, 0xD1, *range(0x45, 0xC5)]
    found = {f"{code:#04x}": bytes([code]) for code in plain}
    for code in (0x02, 0x03, 0x04):
        found[f"{code:#04x} empty"] = bytes([code, 0x40])
        found[f"{code:#04x} type 16"] = bytes([code, 0x10])
        found[f"{code:#04x} padded type"] = bytes([code]) + leb(0x40, 5)
    for code in (0x08, 0x0C, 0x0D, *range(0x20, 0x27), 0x3F):
        found[f"{code:#04x} 16"] = bytes([code, 0x10])
        found[f"{code:#04x} padded"] = bytes([code]) + leb(0x40, 5)
    found["ref.null"] = b"\xd0\x70"
    for number in (0x10, 0x12, 0x40, -0x2E, 2**31 - 1, -(2**31)):
        found[f"i32.const {number}"] = b"\x41" + sleb(number)
        found[f"i64.const {number}"] = b"\x42" + sleb(number << 32)
    found["f32.const"] = b"\x43" + _BAIT[:4]
    found["f64.const"] = b"\x44" + _BAIT[:8]
    for code in range(0x28, 0x3F):
        for what, argument in _MEMORY_ARGUMENTS.items():
            found[f"{code:#04x} {what}"] = bytes([code]) + argument
    for code in (0x11, 0x13):
        found[f"{code:#04x} call_indirect"] = bytes([code, 0x10, 0x40])
        found[f"{code:#04x} call_indirect padded"] = bytes([code]) + leb(0x10, 5) + leb(0x40, 5)
    found["br_table"] = b"\x0e\x03" + b"\x10\x40\x12\x10"
    found["br_table padded"] = b"\x0e" + leb(2, 5) + leb(0x10, 5) + leb(0x40, 5) + b"\x10"
    found["br_table of one"] = b"\x0e\x00\x10"
    found["select typed"] = b"\x1c\x01\x7f"
    found["try_table"] = b"\x1f\x40\x03" + b"\x00\x10\x12" + b"\x01\x10\x40" + b"\x02\x10"
    for code in range(8):
        found[f"0xfc {code:#04x}"] = bytes([0xFC, code])
    for code in (0x09, 0x0B, 0x0D, 0x10, 0x11):
        found[f"0xfc {code:#04x}"] = bytes([0xFC, code, 0x10])
        found[f"0xfc {code:#04x} padded"] = b"\xfc" + leb(code, 5) + leb(0x40, 5)
    for code in (0x08, 0x0A, 0x0C, 0x0E):
        found[f"0xfc {code:#04x}"] = bytes([0xFC, code, 0x10, 0x40])
        found[f"0xfc {code:#04x} padded"] = b"\xfc" + leb(code, 5) + leb(0x10, 5) + leb(0x40, 5)
    for code in set(range(0x114)) - _NO_VECTORS:
        for size in (1, 5):
            found[f"0xfd {code:#04x} in {size}"] = b"\xfd" + leb(code, size) + _simd_immediate(code)
    return found


# Numbers behind 0xfd that no instruction has.
_NO_VECTORS = {0x9A, 0xA2, 0xA5, 0xA6, 0xAF, 0xB0, *range(0xB2, 0xB5), 0xBB, 0xC2, 0xC5, 0xC6, 0xCF, 0xD0}
_NO_VECTORS |= {*range(0xD2, 0xD5), 0xE2, 0xEE}

_MEMORY_ARGUMENTS = {
    "plain": b"\x02\x10",
    "padded offset": b"\x00" + leb(0x40, 5),
    "large offset": b"\x03" + leb(2**32 - 1),
    "padded alignment": leb(2, 5) + b"\x10",
    "of another memory": b"\x42\x10\x40",
    "of another memory, padded": b"\x42" + leb(0x10, 5) + leb(0x40, 5),
    "padded alignment of another memory": leb(0x42, 5) + b"\x10\x40",
}


def _simd_immediate(code: int) -> bytes:
    if code in (0x0C, 0x0D):
        return _BAIT
    argument = b"\x42\x10\x40" if code % 2 else b"\x02\x10"
    if 0x54 <= code <= 0x5B:
        return argument + b"\x10"
    if code <= 0x0B or code in (0x5C, 0x5D):
        return argument
    return b"\x10" if 0x15 <= code <= 0x22 else b""


_SKIPPED = _skipped()


def _expected(instructions: Iterable[tuple[bytes, Kind | None, int]], start: int, imported: int) -> list[Site]:
    """What must be found, told by whoever wrote the instructions down and not by a decoder."""
    found = []
    for code, kind, target in instructions:
        if kind in _GROWTH or (kind in _FUNCTIONS and target < imported):
            assert kind is not None
            found.append(Site(kind, start, start + len(code), target))
        start += len(code)
    return found


@st.composite
def _instruction(draw: st.DrawFn, imported: int) -> tuple[bytes, Kind | None, int]:
    if draw(st.booleans()):
        return draw(st.sampled_from(list(_SKIPPED.values()))), None, 0
    size = draw(st.integers(1, 5))
    if draw(st.integers(0, 3)) == 0:
        kind = draw(st.sampled_from(list(_GROWTH)))
        index = draw(st.integers(0, 20))
        code = b"\x40" if kind is Kind.MEMORY_GROW else b"\xfc" + leb(0x0F, draw(st.integers(1, 5)))
        return code + leb(index, size), kind, index
    kind = draw(st.sampled_from(list(_FUNCTIONS)))
    near = [0, imported - 1, imported, imported + 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152]
    index = draw(
        st.one_of(st.sampled_from([n for n in near if n >= 0]), st.integers(0, imported), st.integers(0, 1_000_000))
    )
    return _FUNCTIONS[kind] + leb(index, size), kind, index


@settings(max_examples=examples(250))
@given(st.data())
def test_sites_are_found_in_any_code(data: st.DataObject) -> None:
    """The attack: a call of native WASI that the weaver does not see, hidden by padding or between immediates.

    The decoder that reads every instruction must agree, too.
    """
    imported = data.draw(st.sampled_from(_IMPORTED))
    instructions = data.draw(st.lists(_instruction(imported), max_size=40))
    before, after = data.draw(st.binary(max_size=6)), data.draw(st.sampled_from([b"", b"\x10\x00", b"\x00", b"\xff"]))
    code = b"".join(code for code, _, _ in instructions)
    end = len(before) + len(code)

    found = list(sites(before + code + after, len(before), end, imported))

    expected = _expected(instructions, len(before), imported)
    assert found == expected
    woven = {*_FUNCTIONS, *_GROWTH}
    slow = [site for site in all_sites(before + code + after, len(before), end) if site.kind in woven]
    assert [site for site in slow if site.kind in _GROWTH or site.target < imported] == expected


@pytest.mark.parametrize("imported", _IMPORTED)
@pytest.mark.parametrize("kind", list(_FUNCTIONS), ids=lambda kind: kind.value)
def test_every_import_is_seen_and_nothing_else(kind: Kind, imported: int) -> None:
    """The attack: so many imports that the index of one is written like that of the guest's own functions.

    WASI functions may be imported any number of times; each must be redirected, or the guard is gone round.
    """
    borders = [0, 1, 126, 127, 128, 129, 255, 256, 16_383, 16_384, 16_385, 2_097_151, 2_097_152, 2**32 - 1]
    targets = sorted({index for index in [*borders, imported - 2, imported - 1, imported, imported + 1] if index >= 0})
    instructions: list[tuple[bytes, Kind | None, int]] = [
        (_FUNCTIONS[kind] + leb(index, size), kind, index) for index in targets for size in range(1, 6)
    ]
    code = b"".join(code for code, _, _ in instructions)

    assert list(sites(code, 0, len(code), imported)) == _expected(instructions, 0, imported)


def test_every_number_of_imports_up_to_two_groups_is_right() -> None:
    """The attack: a number of imports that means something else in a pattern (`]`, `^`, `-`, a backslash)."""
    for imported in range(132):
        instructions: list[tuple[bytes, Kind | None, int]] = [
            (b"\x10" + leb(index, size), Kind.CALL, index) for index in range(140) for size in (1, 2, 5)
        ]
        code = b"".join(code for code, _, _ in instructions)
        assert list(sites(code, 0, len(code), imported)) == _expected(instructions, 0, imported), imported


@pytest.mark.parametrize("imported", [1, 43, 128, 200, 20_000])
def test_every_class_of_instruction_is_stepped_over_whole(imported: int) -> None:
    """The attack: an instruction whose length is misjudged, so that a call behind it is read as its immediate."""
    before, after = b"\x10\x00", b"\xd2" + leb(0, 3)
    for what, skipped in _SKIPPED.items():
        code = before + skipped + after
        end = len(code)
        expected = [Site(Kind.CALL, 0, 2, 0), Site(Kind.REF_FUNC, end - 4, end, 0)]
        assert list(sites(code, 0, end, imported)) == expected, what
        # Alone, it is stepped over to its last byte.
        assert list(sites(skipped, 0, len(skipped), imported)) == [], what


def test_growth_is_found_whatever_the_padding() -> None:
    """The attack: growth that goes round the account. Sub-opcodes may be padded as indices are."""
    for size in range(1, 6):
        code = b"\x40" + leb(3, size) + b"\xfc" + leb(0x0F, size) + leb(2, size) + b"\x0b"
        middle = 1 + size
        assert list(sites(code, 0, len(code), 0)) == [
            Site(Kind.MEMORY_GROW, 0, middle, 3),
            Site(Kind.TABLE_GROW, middle, len(code) - 1, 2),
        ]
    # Their neighbours, memory.size and table.size, grow nothing.
    assert list(sites(b"\x3f\x00\xfc\x10\x00\x0b", 0, 6, 0)) == []


@pytest.mark.parametrize(
    "code",
    [
        *(bytes([code]) for code in (0x06, 0x07, 0x09, 0x16, 0x17, 0x18, 0x19, 0x1D, 0x1E, 0x27, 0xC5, 0xCF, 0xD7)),
        b"\xe0",
        b"\xe6",
        b"\xff",
    ],
    ids=bytes.hex,
)
def test_unknown_instructions_are_refused(code: bytes) -> None:
    """Holds the rule that an instruction of another proposal is never guessed at: its length decides what follows."""
    data = b"\x01\x01" + code + b"\x10\x00\x0b"
    expected = (
        f"damaged module: instruction {code[0]:#04x} is not one that guests may use at byte 2, in the code. "
        "The file is cut short or corrupt: build or fetch it again"
    )

    for find in (lambda: list(sites(data, 0, len(data), 1)), lambda: list(all_sites(data, 0, len(data)))):
        with pytest.raises(stockade.InvalidModule) as caught:
            find()
        assert str(caught.value) == expected
    assert list(sites(b"\x01\x01\x10\x00\x0b", 0, 5, 1)) == [Site(Kind.CALL, 2, 4, 0)]


@pytest.mark.parametrize(
    ("prefix", "number"),
    [
        (0xFB, 0x1F),
        (0xFB, 0x40),
        (0xFE, 0x04),
        (0xFE, 0x0F),
        (0xFE, 0x4F),
        (0xFC, 0x12),
        (0xFD, 0x9A),
        (0xFD, 0xEE),
        (0xFD, 0x114),
        (0xFD, 0x3FFF),
    ],
)
@pytest.mark.parametrize("size", [1, 5])
def test_unknown_numbers_behind_a_prefix_are_refused(prefix: int, number: int, size: int) -> None:
    """The same for what no proposal of guests has behind a prefix, however it is padded."""
    data = bytes([prefix]) + leb(number, size) + b"\x00\x00"

    with pytest.raises(stockade.InvalidModule) as caught:
        list(sites(data, 0, len(data), 1))
    assert str(caught.value) == (
        f"damaged module: instruction {prefix:#04x} {number:#04x} is not one that guests may use at byte 0, in the "
        "code. The file is cut short or corrupt: build or fetch it again"
    )


@pytest.mark.parametrize("sub", [0x12, 0x13, 0x16, 0x7F, 0x80, 0x10F])
def test_unknown_bulk_instructions_are_refused(sub: int) -> None:
    """The same for those that begin with 0xfc."""
    data = b"\xfc" + leb(sub) + b"\x00\x00"

    with pytest.raises(stockade.InvalidModule) as caught:
        list(sites(data, 0, len(data), 1))
    assert str(caught.value) == (
        f"damaged module: instruction 0xfc {sub:#04x} is not one that guests may use at byte 0, in the code. "
        "The file is cut short or corrupt: build or fetch it again"
    )


@settings(max_examples=examples(300))
@given(st.binary(max_size=40), st.sampled_from([0, 1, 43, 128, 200, 20_000]))
def test_arbitrary_code_raises_nothing_but_invalid_module(code: bytes, imported: int) -> None:
    """The attack: bytes that are no code, read by the weaver alone."""
    for find in (lambda: list(sites(code, 0, len(code), imported)), lambda: list(all_sites(code, 0, len(code)))):
        try:
            find()
        except stockade.InvalidModule:
            continue


def test_every_index_of_the_guards_code_is_told() -> None:
    """What relocating needs: memories written out and left out, globals, types and tables, where they stand."""
    code = b"\x28\x02\x08" + b"\x36\x42\x01\x08" + b"\x23\x05" + b"\x11\x03\x02" + b"\xfc\x0a\x01\x00" + b"\xfc\x0b\x01"
    code += b"\x3f\x01" + b"\x40\x01" + b"\x10\x07" + b"\xfd\x00\x44\x02\x00" + b"\x0b"

    assert list(all_sites(code, 0, len(code))) == [
        Site(Kind.MEMORY, 1, 1, 0),
        Site(Kind.MEMORY, 5, 6, 1),
        Site(Kind.GLOBAL_GET, 7, 9, 5),
        Site(Kind.TYPE, 10, 11, 3),
        Site(Kind.TABLE, 11, 12, 2),
        Site(Kind.MEMORY, 14, 15, 1),
        Site(Kind.MEMORY, 15, 16, 0),
        Site(Kind.MEMORY, 18, 19, 1),
        Site(Kind.MEMORY, 20, 21, 1),
        Site(Kind.MEMORY_GROW, 21, 23, 1),
        Site(Kind.CALL, 23, 25, 7),
        Site(Kind.MEMORY, 28, 29, 2),
    ]


def test_what_an_assembler_writes_is_read() -> None:
    """The engine's own assembler agrees on where instructions begin and end."""
    data = assemble(r"""
      (module
        (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
        (memory (export "memory") 1) (table $t 1 funcref) (elem declare func $yield)
        (func (param v128 i32) (result v128) (local i64)
          (drop (call $yield))
          (block (block (br_table 0 1 0 (local.get 1))))
          (local.set 2 (i64.const 0x40_0010_0010))
          (drop (i8x16.shuffle 16 0 18 0 64 0 1 2 3 4 5 6 7 8 9 10 (local.get 0) (local.get 0)))
          (drop (memory.grow (i32.const 16)))
          (drop (table.grow $t (ref.func $yield) (i32.const 1)))
          (drop (select (result i32) (call $yield) (i32.const 1) (i32.const 0)))
          (v128.store64_lane offset=16 1 (local.get 1) (local.get 0))
          (f64x2.relaxed_madd (v128.const i32x4 0x10 0x40 0x10 0x40) (local.get 0)
            (v128.load offset=64 (i32.const 0))))
        (func (result i32) (return_call $yield)))
    """)
    module = parse(data)

    found = []
    for start, end in module.bodies:
        reader = Reader(data, start, end, "code")
        for _ in range(reader.count()):
            reader.u32()
            reader.byte()
        found += [site.kind for site in sites(data, reader.position, end, module.imported_functions)]

    assert found == [
        Kind.CALL,
        Kind.MEMORY_GROW,
        Kind.REF_FUNC,
        Kind.TABLE_GROW,
        Kind.CALL,
        Kind.RETURN_CALL,
    ]


def test_both_finders_agree_on_a_real_program() -> None:
    """A program of 370 KB as a compiler wrote it."""
    data = program_path("quickjs").read_bytes()
    module = parse(data)
    count = 0
    for start, end in module.bodies:
        reader = Reader(data, start, end, "code")
        for _ in range(reader.count()):
            reader.u32()
            reader.byte()
        fast = list(sites(data, reader.position, end, module.imported_functions))
        slow = [
            site
            for site in all_sites(data, reader.position, end)
            if site.kind in _GROWTH or (site.kind in _FUNCTIONS and site.target < module.imported_functions)
        ]
        assert fast == slow
        count += len(fast)
    assert count > 20
