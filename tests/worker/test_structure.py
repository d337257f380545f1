"""What a module may be made of: every figure is held exactly, before anything is compiled.

Holds P-COMPILE-3.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade import InvalidModule, Module, Outcome, Policy, Sandbox
from stockade.compilation import _programs
from stockade.execution import _plan
from stockade.policy import ModuleLimits
from stockade.wasm import _types, code_figures, outline_figures, parse, scan, uleb
from stockade.wasm._instructions import deepest_nesting, most_nesting
from tests._examples import examples
from tests.conftest import program_path, wat
from tests.guard._modules import HEADER, leb, section, vec

if TYPE_CHECKING:
    from pathlib import Path

    from stockade.wasm import Reader

# -- each figure ------------------------------------------------------------------------------------------------------

START = '(func (export "_start"))'
SCHED = '(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))'
OTHER = '(import "wasi_snapshot_preview1" "fd_close" (func (param i32) (result i32)))'


class Figure(NamedTuple):
    """A guest with exactly seven of something, and the words for it."""

    text: str
    words: str


TYPES = " ".join("(type (func (param" + " i32" * count + ")))" for count in range(7))
NAMES = " ".join(f'(export "{number}" (func $f))' for number in range(6))
DATA = '(data "x") ' * 7

FIGURES = {
    "functions": Figure(f"(module {SCHED} {OTHER} {START} {'(func) ' * 4})", "has 7 functions"),
    # One byte for no local variables, one for the end.
    "function_size": Figure(f"(module {START} (func {'nop ' * 5}))", "has a function of 7 bytes"),
    "locals": Figure(
        f"(module {START} (func (param f32 f32) (local i32 i32 i64 f32 f32 f32 f64)))",
        "has a function with 7 local variables",
    ),
    "types": Figure(f"(module {TYPES} {START})", "has 7 types"),
    "imports": Figure(f"(module {SCHED * 4} {OTHER * 3} {START})", "has 7 imports"),
    "exports": Figure(
        f'(module (func $f (export "_start")) {NAMES})',
        "has 7 exports",
    ),
    "globals": Figure(f"(module {'(global i64 (i64.const 1)) ' * 7} {START})", "has 7 globals"),
    "data_segments": Figure(f"(module (memory 1) {DATA} {START})", "has 7 segments of data"),
    "element_segments": Figure(
        f"(module (func $f) (table 1 funcref) {'(elem func $f) ' * 7} {START})", "has 7 segments of table elements"
    ),
    "br_table": Figure(
        f"(module {START} (func (param i32) (br_table {'0 ' * 7} 0 (local.get 0))))",
        "has a br_table with 7 branches",
    ),
    "nesting": Figure(
        f"(module {START} (func (block (nop)) {'(block ' * 3}{'(loop ' * 2}(if (i32.const 0) (then (block)))"
        f"{')' * 5} (loop)))",
        "has blocks nested 7 deep",
    ),
}

FIELDS = sorted(FIGURES)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No program is at hand, neither in memory nor on disk."""
    monkeypatch.setattr(_plan, "programs", _programs._Programs())
    monkeypatch.setenv("STOCKADE_CACHE", str(tmp_path / "cache"))


def forbid_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, compiling is a failure of the test."""

    def compile_(*args: object) -> None:
        raise AssertionError("it was compiled")

    monkeypatch.setattr(_programs, "CompiledModule", compile_)


def test_every_figure_has_its_tests() -> None:
    """A figure added to policies needs a guest here."""
    assert sorted(ModuleLimits.__struct_fields__) == FIELDS


@pytest.mark.parametrize("field", FIELDS)
def test_a_figure_at_its_limit_is_accepted(field: str, fresh: None) -> None:
    """The positive twin: seven of what a policy allows seven of."""
    report = Sandbox(Policy().replace(**{field: 7})).run(wat(FIGURES[field].text))

    assert report.outcome is Outcome.OK


@pytest.mark.parametrize("field", FIELDS)
def test_one_more_is_refused_before_it_is_compiled(field: str, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a module made to keep the compiler busy."""
    forbid_compiling(monkeypatch)

    with pytest.raises(InvalidModule) as refusal:
        Sandbox(Policy().replace(**{field: 6})).run(wat(FIGURES[field].text))

    assert str(refusal.value) == f"<bytes> {FIGURES[field].words}; the policy allows 6 (structure.{field})"


@pytest.mark.parametrize("field", FIELDS)
def test_another_process_refuses_it_with_the_same_words(
    field: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of the code are looked at where the code is compiled; its machine code never gets here."""
    forbid_compiling(monkeypatch)
    policy = Policy().replace(**{field: 6, "compile_process": "always"})

    with pytest.raises(InvalidModule) as refusal:
        Sandbox(policy).run(wat(FIGURES[field].text))

    assert str(refusal.value) == f"<bytes> {FIGURES[field].words}; the policy allows 6 (structure.{field})"


@pytest.mark.parametrize("field", FIELDS)
def test_a_program_in_memory_is_held_to_a_stricter_policy(field: str, fresh: None) -> None:
    """The attack: to be compiled under a policy that allows much, and then run under one that allows less."""
    module = wat(FIGURES[field].text)
    assert Sandbox(Policy()).run(module).ok

    with pytest.raises(InvalidModule) as refusal:
        Sandbox(Policy().replace(**{field: 6})).run(module)

    assert str(refusal.value) == f"<bytes> {FIGURES[field].words}; the policy allows 6 (structure.{field})"
    assert Sandbox(Policy().replace(**{field: 7})).run(module).timings.cache_hit


@pytest.mark.parametrize("field", FIELDS)
def test_a_program_on_disk_is_held_to_a_stricter_policy(
    field: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same attack, over the cache: figures of the code are kept beside the machine code."""
    monkeypatch.setattr(_programs, "_WORTH_KEEPING_SECONDS", 0.0)
    module = wat(FIGURES[field].text)
    assert not Sandbox(Policy()).run(module).timings.cache_hit

    monkeypatch.setattr(_plan, "programs", _programs._Programs())
    with pytest.raises(InvalidModule) as refusal:
        Sandbox(Policy().replace(**{field: 6})).run(module)

    assert str(refusal.value) == f"<bytes> {FIGURES[field].words}; the policy allows 6 (structure.{field})"
    monkeypatch.setattr(_plan, "programs", _programs._Programs())
    assert Sandbox(Policy().replace(**{field: 7})).run(module).timings.cache_hit


def test_a_shallow_measure_is_not_kept_for_stricter_policies(fresh: None) -> None:
    """The attack: 200 blocks, which a lax policy need not count, under a policy that allows 10.

    A figure that is exact only beyond the first policy's limit would let them pass under the second one.
    """
    module = wat(f'(module (func (export "_start") {"(block " * 200}{")" * 200}))')
    assert Sandbox(Policy()).run(module).ok

    with pytest.raises(InvalidModule, match=r"^<bytes> has blocks nested 200 deep; the policy allows 10 "):
        Sandbox(Policy().replace(nesting=10)).run(module)


@pytest.mark.parametrize(("field", "kind"), [("memories", "(memory 0) "), ("tables", "(table 0 funcref) ")])
def test_memories_and_tables_are_counted_too(
    field: str, kind: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take address space, so they have limits among those of runs."""
    module = wat(f"(module {kind * 3} {START})")
    assert Sandbox(Policy().replace(**{field: 3, "multi_memory": True})).run(module).ok
    forbid_compiling(monkeypatch)

    with pytest.raises(InvalidModule) as refusal:
        Sandbox(Policy().replace(**{field: 2, "multi_memory": True})).run(module)

    assert str(refusal.value) == f"<bytes> has 3 {field}; the policy allows 2 (limits.{field})"


def test_more_memories_need_their_feature(fresh: None) -> None:
    """A second memory is refused where the policy does not have the proposal, whatever limits say."""
    with pytest.raises(InvalidModule) as refusal:
        Sandbox(Policy().replace(memories=9, multi_memory=False)).run(wat(f"(module (memory 0) (memory 0) {START})"))

    assert str(refusal.value) == "<bytes> has 2 memories; the policy allows one (features.multi_memory)"


@pytest.mark.parametrize("process", ["always", "never"])
def test_refused_proposals_are_named_the_same_in_both_processes(process: str, fresh: None) -> None:
    """What a policy does not have is refused by its name, wherever the module is compiled."""
    module = wat(f"(module {START} (func (drop (v128.const i32x4 1 2 3 4))))")
    with pytest.raises(InvalidModule) as refusal:
        Sandbox(Policy().replace(simd=False, relaxed_simd=False, compile_process=process)).run(module)

    assert "features.simd" in str(refusal.value)
    assert Sandbox(Policy().replace(simd=True, compile_process=process)).run(module).ok


def test_a_program_at_hand_is_held_to_the_proposals_of_its_policy(fresh: None) -> None:
    """The attack: compiled where SIMD is allowed, then run where it is not; machine code alone would not tell."""
    module = wat(f"(module {START} (func (drop (v128.const i32x4 1 2 3 4))))")
    assert Sandbox(Policy().replace(simd=True)).run(module).ok

    with pytest.raises(InvalidModule, match=r"features\.simd"):
        Sandbox(Policy().replace(simd=False, relaxed_simd=False)).run(module)


# -- the depth of blocks ----------------------------------------------------------------------------------------------

# Instructions whose immediates look like blocks and ends.
LEAVES = st.one_of(
    st.sampled_from([b"\x01", b"\x00", b"\x1a", b"\x45", b"\xd1", b"\xfc\x00"]),
    st.integers(0, 2**32 - 1).map(lambda value: b"\x20" + uleb(value)),
    st.sampled_from([b"\x02", b"\x03", b"\x04", b"\x0b", b"\x82\x0b", b"\x8b\x02", b"\x7f"]).map(lambda n: b"\x41" + n),
    st.binary(min_size=4, max_size=4).map(lambda raw: b"\x43" + raw),
    st.binary(min_size=8, max_size=8).map(lambda raw: b"\x44" + raw),
    st.binary(min_size=16, max_size=16).map(lambda raw: b"\xfd\x0c" + raw),
    st.lists(st.integers(0, 300), max_size=5).map(lambda to: b"\x0e" + uleb(len(to)) + b"".join(map(uleb, [*to, 2]))),
    st.tuples(st.integers(0, 5), st.integers(0, 2**20)).map(lambda pair: b"\x28" + uleb(pair[0]) + uleb(pair[1])),
    st.integers(0, 2**20).map(lambda index: b"\x10" + uleb(index)),
    st.tuples(st.integers(0, 11), st.integers(0, 11)).map(lambda pair: b"\x11" + uleb(pair[0]) + uleb(pair[1])),
    st.sampled_from([b"\x1c\x01\x7f", b"\xfc\x0a\x02\x03", b"\x40\x00", b"\x3f\x0b", b"\xd2\x04", b"\xfd\x15\x02"]),
)
# Its type: none, one result, or a type by a number of one byte or more.
OPENERS = st.tuples(
    st.sampled_from([b"\x02", b"\x03", b"\x04"]),
    st.sampled_from([b"\x40", b"\x7f", b"\x02", b"\x0b", b"\x82\x0b", b"\x84\x82\x00"]),
).map(b"".join)


class Code(NamedTuple):
    """Instructions, and how deep they nest."""

    data: bytes
    depth: int


def _join(parts: list[Code]) -> Code:
    return Code(b"".join(part.data for part in parts), max((part.depth for part in parts), default=0))


def _wrap(pair: tuple[list[bytes], Code, bool]) -> Code:
    openers, inside, other = pair
    middle = b"\x05" if other else b""
    return Code(b"".join(openers) + inside.data + middle + b"\x0b" * len(openers), inside.depth + len(openers))


CODE = st.recursive(
    LEAVES.map(lambda leaf: Code(leaf, 0)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=6).map(_join),
        st.tuples(st.lists(OPENERS, min_size=1, max_size=20), inner, st.booleans()).map(_wrap),
    ),
    max_leaves=30,
)


@given(st.lists(CODE, min_size=1, max_size=6))
@settings(max_examples=examples(500))
def test_depth_is_what_a_generator_of_code_counts(codes: list[Code]) -> None:
    """Whatever stands in immediates, and beside which others: the depth of the deepest."""
    data = b"\x02\x02\x02"
    bodies = []
    for code in codes:
        bodies.append((len(data), len(data) + len(code.data) + 1))
        data += code.data + b"\x0b"
    data += b"\x0b\x03"

    assert deepest_nesting(data, bodies) == max(code.depth for code in codes)
    for code, (start, end) in zip(codes, bodies, strict=True):
        assert deepest_nesting(data, [(start, end)]) == code.depth <= most_nesting(data, start, end)


def test_the_deepest_of_many_bodies_is_found_wherever_it_is() -> None:
    """More bodies than are looked at together, all as large, or the deep one the smallest that can be so deep."""
    for padding in (0, 1, 50):
        for place in range(0, 200, 9):
            bodies, data = [], b""
            for number in range(200):
                depth = 12 if number == place else number % 3
                code = b"\x02\x40" * depth + b"\x01" * (padding * (number != place)) + b"\x0b" * (depth + 1)
                bodies.append((len(data), len(data) + len(code)))
                data += code
            assert deepest_nesting(data, bodies) == 12


@pytest.mark.parametrize("name", ["quickjs", "graphviz", pytest.param("resvg", marks=pytest.mark.slow)])
def test_figures_of_real_programs_are_those_of_a_naive_reader(name: str) -> None:
    """Every function read byte by byte, by a reader that shares nothing with the one under test."""
    data = program_path(name).read_bytes()
    module = parse(data)
    naive = _naive_figures(data)

    assert code_figures(module, scan(module)) == {field: naive[field] for field in ("locals", "br_table", "nesting")}
    outline = outline_figures(module)
    assert outline == {field: naive[field] for field in outline}


class _Naive:
    """Reads numbers, one byte at a time."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def memarg(self) -> None:
        if self.number() & 0x40:
            self.number()
        self.number()


def _naive_figures(data: bytes) -> dict[str, int]:
    figures = dict.fromkeys(FIELDS, 0)
    reader = _Naive(data, 8)
    while reader.at < len(data):
        section, size = reader.byte(), reader.number()
        end = reader.at + size
        if section in _COUNTED:
            count = _Naive(data, reader.at).number()
            for field in _COUNTED[section]:
                figures[field] += count
        if section == 2:
            for kind in _import_kinds(data, reader.at):
                figures["functions"] += kind == 0
                figures["globals"] += kind == 3
        if section == 10:
            for _ in range(reader.number()):
                size = reader.number()
                figures["function_size"] = max(figures["function_size"], size)
                _read_body(reader, reader.at + size, figures)
        reader.at = end
    return figures


_COUNTED = {
    1: ("types",),
    2: ("imports",),
    3: ("functions",),
    6: ("globals",),
    7: ("exports",),
    9: ("element_segments",),
    11: ("data_segments",),
}


def _import_kinds(data: bytes, at: int) -> list[int]:
    reader, kinds = _Naive(data, at), []
    for _ in range(reader.number()):
        for _ in range(2):
            size = reader.number()
            reader.at += size
        kinds.append(reader.byte())
        assert kinds[-1] == 0, "these programs import functions only"
        reader.number()
    return kinds


def _read_body(reader: _Naive, end: int, figures: dict[str, int]) -> None:
    total = 0
    for _ in range(reader.number()):
        total += reader.number()
        reader.byte()
    figures["locals"] = max(figures["locals"], total)
    depth = 1
    while depth:
        figures["nesting"] = max(figures["nesting"], depth - 1)
        code = reader.byte()
        if code in (0x02, 0x03, 0x04):
            reader.number()
            depth += 1
        elif code == 0x1F:
            reader.number()
            for _ in range(reader.number()):
                if reader.byte() in (0, 1):
                    reader.number()
                reader.number()
            depth += 1
        elif code == 0x0B:
            depth -= 1
        elif code == 0x0E:
            count = reader.number()
            figures["br_table"] = max(figures["br_table"], count)
            for _ in range(count + 1):
                reader.number()
        elif code in (0x08, 0x0C, 0x0D, 0x10, 0x12, *range(0x20, 0x27), 0x3F, 0x40, 0x41, 0x42, 0xD0, 0xD2):
            reader.number()
        elif code in (0x11, 0x13):
            reader.number()
            reader.number()
        elif code == 0x1C:
            for _ in range(reader.number()):
                reader.byte()
        elif 0x28 <= code <= 0x3E:
            reader.memarg()
        elif code in (0x43, 0x44):
            reader.at += struct.calcsize("<f" if code == 0x43 else "<d")
        elif code == 0xFC:
            for _ in range(_BULK_IMMEDIATES[reader.number()]):
                reader.number()
        elif code == 0xFD:
            _read_vector(reader)
        else:
            assert code in (0x00, 0x01, 0x05, 0x0A, 0x0F, 0x1A, 0x1B, 0xD1) or 0x45 <= code <= 0xC4, hex(code)
    assert reader.at == end


_BULK_IMMEDIATES = (0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 2, 1, 2, 1, 2, 1, 1, 1)


def _read_vector(reader: _Naive) -> None:
    code = reader.number()
    if code <= 11 or code in (92, 93):
        reader.memarg()
    elif code in (12, 13):
        reader.at += 16
    elif 21 <= code <= 34:
        reader.byte()
    elif 84 <= code <= 91:
        reader.memarg()
        reader.byte()


# -- before it is read -------------------------------------------------------------------------------------------------

_FUNC, _UNKNOWN = b"\x60\0\0", b"\x5d\0"


def _grouped(sizes: list[int]) -> list[bytes]:
    return [b"\x4e" + leb(size) + _FUNC * size for size in sizes]


@pytest.mark.parametrize(
    ("entries", "told", "read"),
    [
        # No two that are equal, for the same bytes are not read twice.
        ([b"\x60" + leb(number) + b"\x7f" * number + b"\0" for number in range(20)], 20, 0),
        (_grouped([3, 400, 5]), 403, 3),
        (_grouped([3, 7, 5]), 15, 10),
        (_grouped([1] * 20), 20, 0),
        # What guests may not use is read a second time, for `inspect` to tell of it.
        ([_FUNC, _UNKNOWN, *_grouped([400])], 402, 1 + 1 + 1),
        ([*_grouped([3]), _UNKNOWN, *[_FUNC] * 20], 22, 0),
    ],
)
def test_types_beyond_what_is_allowed_are_not_read(
    entries: list[bytes], told: int, read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: megabytes of types, which take seconds to read, only to be told that they are too many."""
    seen: list[int] = []
    sub_type = _types._sub_type

    def counted(reader: Reader) -> _types.SubType:
        seen.append(reader.position)
        return sub_type(reader)

    monkeypatch.setattr(_types, "_sub_type", counted)
    with pytest.raises(InvalidModule) as refusal:
        Sandbox(Policy().replace(types=14)).run(HEADER + section(1, vec(entries)))

    assert str(refusal.value) == f"<bytes> has {told} types; the policy allows 14 (structure.types)"
    assert len(seen) == read
    # The twin: without a policy they are read, to be told of.
    seen.clear()
    Module.load(HEADER + section(1, vec(entries)))
    assert len(seen) > read
