"""The reader of modules: whatever the bytes, it says what they hold or that they are damaged.

Holds P-LOAD-1 and P-LOAD-2.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stockade
from stockade import Features, Policy, Sandbox
from stockade.engine import assemble
from stockade.wasm import (
    Export,
    ExternKind,
    FuncType,
    Import,
    Limits,
    Reader,
    SectionId,
    TableType,
    parse,
    rewrite_const_expression,
    skip_const_expression,
    sleb,
    uleb,
)
from tests._examples import examples
from tests.guard._modules import END, HEADER, custom, i32, leb, name, ref_func, section, vec

_HELP = "The file is cut short or corrupt: build or fetch it again"

_EVERYTHING = r"""
(module $every_section
  (type $t (func (param i32 i64 f32 f64) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
  (import "env" "g" (global $g i32))
  (table $a 2 5 funcref)
  (table $b 1 externref)
  (memory (export "memory") 1 3)
  (global $h (mut i64) (i64.const -5))
  (global $r funcref (ref.func $close))
  (global $v v128 (v128.const i64x2 1 2))
  (global $f f32 (f32.const 1.5))
  (global $d f64 (f64.const 2.5))
  (global $n externref (ref.null extern))
  (global $s i32 (i32.add (global.get $g) (i32.const 4)))
  (export "close" (func $close))
  (export "a" (table $a))
  (export "h" (global $h))
  (start $begin)
  (elem (table $a) (i32.const 0) func $begin $close)
  (elem declare func $f)
  (func $begin (memory.init 0 (i32.const 0) (i32.const 0) (i32.const 1)))
  (func $f (export "f") (type $t) (local i64 i64 i32)
    (drop (call $close (local.get 0)))
    (i32.const 7))
  (data "abc")
  (data (i32.const 9) "defg"))
"""


@pytest.fixture(scope="module")
def everything() -> bytes:
    """A module with all sections that guests may have."""
    return assemble(_EVERYTHING)


def _forbidden(what: str, position: int, where: str) -> str:
    """The message about a sound module that needs what guests do not get."""
    return (
        f"the module needs {what}, at byte {position}, in the {where}: "
        "that belongs to a proposal that guests may not use. Build it without"
    )


def _damage(problem: str, position: int, where: str) -> str:
    return f"damaged module: {problem} at byte {position:,}, in the {where}. {_HELP}"


def _message(data: bytes) -> str:
    with pytest.raises(stockade.InvalidModule) as caught:
        parse(data)
    return str(caught.value)


def test_every_part_of_a_module_is_told(everything: bytes) -> None:
    """The positive twin of every refusal below: a whole module is read in full."""
    module = parse(everything)

    close = FuncType(("i32",), ("i32",))
    assert str(close) == "(i32) -> (i32)"
    assert module.imports == [
        Import(b"wasi_snapshot_preview1", b"fd_close", ExternKind.FUNC, module.types.index(close)),
        Import(b"env", b"g", ExternKind.GLOBAL, 0),
    ]
    assert [module.function_type(index) for index in range(3)] == [
        close,
        FuncType((), ()),
        FuncType(("i32", "i64", "f32", "f64"), ("i32",)),
    ]
    assert module.imported_functions == 1
    assert module.tables == [TableType("funcref", 2, 5), TableType("externref", 1)]
    assert (module.memories, module.imported_memories) == ([1], 0)
    assert module.memory_limits == [Limits(1, 3)]
    assert module.globals == 8
    assert module.exports == {
        b"memory": Export(ExternKind.MEMORY, 0),
        b"close": Export(ExternKind.FUNC, 0),
        b"a": Export(ExternKind.TABLE, 0),
        b"h": Export(ExternKind.GLOBAL, 1),
        b"f": Export(ExternKind.FUNC, 2),
    }
    assert module.start == 1
    assert len(module.bodies) == 2
    assert all(everything[end - 1] == 0x0B for _, end in module.bodies)
    assert [found.id for found in module.sections if found.id] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 10, 11]
    assert module.section(SectionId.TAG) is None


def test_a_module_cut_short_is_refused_wherever_it_is_cut(everything: bytes) -> None:
    """The attack: a file that ends in the middle of anything. Only a cut between sections can leave a module."""
    module = parse(everything)
    code = module.section(SectionId.CODE)
    function = module.section(SectionId.FUNCTION)
    assert code is not None
    assert function is not None
    # Between sections what is left is a module, unless it has lost the code of its functions.
    whole = {8} | {found.end for found in module.sections if found.end < function.start or found.end >= code.end}

    for cut in range(len(everything)):
        if cut in whole:
            assert parse(everything[:cut]).data == everything[:cut]
        else:
            with pytest.raises(stockade.InvalidModule):
                parse(everything[:cut])


@settings(max_examples=examples(300))
@given(data=st.data())
def test_changed_bytes_raise_nothing_but_invalid_module(data: st.DataObject, everything: bytes) -> None:
    """The attack: bytes of a good module are changed, left out or put in, to make the reader fail in its own way."""
    mutant = bytearray(everything)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(8, len(mutant) - 1))
        change = data.draw(st.sampled_from(["set", "insert", "delete"]))
        value = data.draw(st.one_of(st.sampled_from([0, 1, 0x0B, 0x40, 0x60, 0x7F, 0x80, 0xFF]), st.integers(0, 255)))
        if change == "set":
            mutant[place] = value
        elif change == "insert":
            mutant.insert(place, value)
        else:
            del mutant[place]

    try:
        module = stockade.Module.load(bytes(mutant))
    except stockade.InvalidModule:
        return
    assert module.kind == "plain"
    try:
        assert module.parsed.data == bytes(mutant)
    except stockade.InvalidModule:
        # Loaded all the same, to be inspected: that says why it cannot run.
        assert module.inspect().obstacles
        return
    assert len(module.imports) == len(module.parsed.imports)
    assert len(module.exports) == len(module.parsed.exports)


@settings(max_examples=examples(300))
@given(
    st.lists(
        st.tuples(st.integers(0, 15), st.binary(max_size=24)).map(lambda made: section(made[0], made[1])), max_size=6
    )
)
def test_arbitrary_sections_raise_nothing_but_invalid_module(sections: list[bytes]) -> None:
    """The attack: sections of any number in any order with any content."""
    try:
        parse(HEADER + b"".join(sections))
    except stockade.InvalidModule:
        return


@settings(max_examples=examples(200))
@given(st.binary(max_size=64))
def test_arbitrary_bytes_raise_nothing_but_invalid_module(data: bytes) -> None:
    """The attack: bytes that are no module at all."""
    for attempt in (data, HEADER + data):
        try:
            parse(attempt)
        except stockade.InvalidModule:
            continue


def test_an_empty_module_is_a_module() -> None:
    """The smallest module there is, and the same with custom sections anywhere."""
    assert len(parse(HEADER).bodies) == 0
    assert [
        found.id for found in parse(HEADER + custom("a") + section(1, vec([])) + custom("b", b"\xff")).sections
    ] == [
        0,
        1,
        0,
    ]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7, 10])
def test_a_false_count_is_refused_before_anything_is_made(number: int) -> None:
    """The attack: four billion items announced in six bytes, so that the reader reserves room for them."""
    where = f"{SectionId(number).name.lower()} section"
    at = len(HEADER) + 2

    message = _message(HEADER + section(number, b"\xff\xff\xff\xff\x0f" + b"\x00"))

    assert message == _damage("4,294,967,295 items announced in 1 bytes", at + 5, where)
    if number != 10:
        assert parse(HEADER + section(number, b"\x00")).functions == []


def test_a_false_count_inside_a_type_is_refused() -> None:
    """The attack: a type that announces more parameters than there are bytes."""
    message = _message(HEADER + section(1, vec([b"\x60" + leb(1_000_000) + b"\x7f\x00"])))

    assert message == _damage("1,000,000 items announced in 2 bytes", 15, "type section")
    assert parse(HEADER + section(1, vec([b"\x60" + leb(1) + b"\x7f\x00"]))).types == [FuncType(("i32",), ())]


def test_text_and_other_files_are_told_from_modules() -> None:
    """Bytes must begin as a module does; text is not taken for one unless it is asked for."""
    text = b"(module)"

    assert _message(text) == (
        "the module is WebAssembly text, not a binary module: name the file .wat, or load it with text=True"
    )
    with pytest.raises(stockade.InvalidModule, match=r"^<bytes> is WebAssembly text, not a binary module"):
        stockade.Module.load(text)
    assert stockade.Module.load(text, text=True).data == HEADER


def test_a_component_is_told_from_a_module() -> None:
    """A component is named as such, with the target to build for instead."""
    component = b"\0asm\x0d\x00\x01\x00"

    assert _message(component) == (
        "the module is a WebAssembly component, and Stockade runs core modules: build it for the target wasm32-wasip1 "
        "instead of wasm32-wasip2"
    )
    assert stockade.Module.load(component).kind == "component"
    assert stockade.Module.load(HEADER).kind == "plain"


def test_another_version_is_refused() -> None:
    """A module of a version that does not exist, and one cut inside its version."""
    assert _message(b"\0asm\x02\x00\x00\x00") == (
        "the module has WebAssembly version 02000000, which is not known; core modules have 1"
    )
    assert _message(b"\0asm\x01\x00") == "the module is not a WebAssembly module: it has only 6 bytes"


def test_sections_out_of_order_are_refused() -> None:
    """The attack: two readers that disagree on which of two sections counts. Holds the order, once each."""
    types, functions = section(1, vec([b"\x60\x00\x00"])), section(3, vec([]))

    assert parse(HEADER + types + functions).types == [FuncType((), ())]
    assert _message(HEADER + functions + types) == _damage(
        "section type is out of order", len(HEADER + functions + types), "file"
    )
    assert _message(HEADER + types + types) == _damage(
        "section type is out of order", len(HEADER + types + types), "file"
    )
    # The data count comes between elements and code, whatever its number.
    count = section(12, b"\x00")
    assert len(parse(HEADER + section(9, vec([])) + count + section(10, vec([]))).bodies) == 0
    assert "section data_count is out of order" in _message(HEADER + section(10, vec([])) + count)


def test_an_unknown_section_is_refused() -> None:
    """A section number that no proposal has which guests may use."""
    assert _message(HEADER + section(14, b"")) == _damage("section number 14 is not known", 10, "file")


def test_a_section_longer_than_the_file_is_refused() -> None:
    """The attack: a section that claims what comes after the file."""
    assert _message(HEADER + b"\x01\x7f\x00") == _damage("section 1 announces 127 bytes, 1 are left", 10, "file")


def test_bytes_left_over_in_a_section_are_refused() -> None:
    """The attack: a section longer than what it lists, read by one reader and skipped by another."""
    assert _message(HEADER + section(1, vec([]) + b"\x00")) == _damage("bytes left over", 11, "type section")


def test_functions_without_code_and_code_without_functions_are_refused() -> None:
    """The attack: bodies that belong to no function, so that every later index is off by one."""
    types, one, body = section(1, vec([b"\x60\x00\x00"])), section(3, vec([b"\x00"])), vec([b"\x02\x00\x0b"])

    assert len(parse(HEADER + types + one + section(10, body)).bodies) == 1
    for data in (HEADER + types + one, HEADER + types + section(10, body)):
        assert _message(data) == _damage("functions and their code differ in number", len(data), "file")


@pytest.mark.parametrize(
    ("content", "problem", "position"),
    [
        (b"\x01\x5d\x00", "type form 0x5d", 11),
        (b"\x01\x4d\x00", "type form 0x4d", 11),
        (b"\x01\x60\x01\x64\x66\x00", "heap type 0x66", 14),
        (b"\x01\x60\x01\x7a\x00", "value type 0x7a", 13),
    ],
)
def test_types_of_other_proposals_are_refused(content: bytes, problem: str, position: int) -> None:
    """Continuations, descriptors and what nobody has defined belong to proposals that are off."""
    assert _message(HEADER + section(1, content)) == _forbidden(problem, position, "type section")


@pytest.mark.parametrize("flags", range(8))
def test_limits_are_read_in_every_form(flags: int) -> None:
    """With or without a maximum, shared or not, with addresses of 32 or 64 bits."""
    numbers = bytes([1, 3] if flags & 1 else [1])
    limits = Limits(1, 3 if flags & 1 else None, bool(flags & 4), bool(flags & 2))

    assert parse(HEADER + section(5, bytes([1, flags]) + numbers)).memory_limits == [limits]
    table = HEADER + section(4, bytes([1, 0x70, flags]) + numbers)
    if flags & 2:
        assert _message(table) == _forbidden("a shared table", 13 + len(numbers), "table section")
    else:
        assert parse(table).tables == [TableType("funcref", *limits[:3])]


def test_pages_of_another_size_are_refused() -> None:
    """They belong to a proposal that is off."""
    problem = "a memory with pages of another size"

    assert _message(HEADER + section(5, bytes([1, 8, 1, 0]))) == _forbidden(problem, 12, "memory section")


@pytest.mark.parametrize("form", [1, 5])
def test_limits_have_numbers_of_64_bits_whatever_the_addresses_have(form: int) -> None:
    """The attack: a size that takes more bytes than a reader of 32 bits takes. The engine judges the rest."""
    large, wide = 2**48 - 1, form == 5

    for minimum, padded in ((0, leb(0, 10)), (large, leb(large))):
        limits = parse(HEADER + section(5, bytes([1, form]) + padded + leb(large))).memory_limits
        assert limits == [Limits(minimum, large, wide=wide)]
    assert "number too long" in _message(HEADER + section(5, bytes([1, form]) + leb(0, 11) + leb(large)))
    with Sandbox(Policy(features=Features(memory64=True))) as sandbox, pytest.raises(stockade.InvalidModule):
        sandbox.prepare(HEADER + section(5, bytes([1, form]) + leb(large + 2) * 2))


@pytest.mark.parametrize(
    "type_", [b"\x70", b"\x6f", b"\x69", b"\x6e", b"\x71", b"\x63\x80\x00", b"\x63\x70"], ids=bytes.hex
)
def test_a_table_may_begin_with_a_value(type_: bytes) -> None:
    """The value is stepped over; what follows it is read in step."""
    one = b"\x40\x00" + type_ + b"\x00\x01" + b"\xd0" + type_[-1:] + END

    tables = parse(HEADER + section(4, vec([one, type_ + b"\x00\x02", one]))).tables

    assert [table.minimum for table in tables] == [1, 2, 1]
    assert len({table.element for table in tables}) == 1


def test_tables_of_other_types_are_refused() -> None:
    """A table of what is no reference, or of a form that nobody has defined."""
    assert _message(HEADER + section(4, vec([b"\x40\x01\x70\x00\x01"]))) == _forbidden(
        "a table of the form 0x01", 12, "table section"
    )
    assert _message(HEADER + section(4, vec([b"\x7f\x00\x01"]))) == _damage(
        "a table of i32 values", 11, "table section"
    )
    for type_ in (b"\x70", b"\x63\x70"):
        assert parse(HEADER + section(4, vec([type_ + b"\x00\x01"]))).tables == [TableType("funcref", 1)]


def test_indices_beyond_what_there_is_are_refused() -> None:
    """The attack: indices that the weaver would look up. Python would fail on them with an IndexError."""
    types = section(1, vec([b"\x60\x00\x00"]))

    assert "type 1 does not exist" in _message(HEADER + types + section(2, vec([name("a") + name("b") + b"\x00\x01"])))
    assert "type 9 does not exist" in _message(HEADER + types + section(3, vec([b"\x09"])))
    assert "function 0 does not exist" in _message(HEADER + section(7, vec([name("f") + b"\x00\x00"])))
    assert "function 3 does not exist" in _message(HEADER + section(8, b"\x03"))
    good = types + section(2, vec([name("a") + name("b") + b"\x00\x00"])) + section(7, vec([name("f") + b"\x00\x00"]))
    assert parse(HEADER + good).exports == {b"f": Export(ExternKind.FUNC, 0)}


def test_unknown_kinds_of_imports_and_exports_are_refused() -> None:
    """Holds the escaping of guest-chosen names: an escape sequence in a name does not reach the message as it is."""
    wrong = name("m") + name("\x1b[2Jx") + b"\x05"

    assert _message(HEADER + section(2, vec([wrong]))) == _damage(
        r"import \x1b[2Jx is of the unknown kind 5", len(HEADER) + 3 + len(wrong), "import section"
    )
    assert _message(HEADER + section(7, vec([name("\u202ex") + b"\x05\x00"]))) == _damage(
        r"export \u202ex is of the unknown kind 5", 17, "export section"
    )


def test_a_long_name_is_cut_in_a_message() -> None:
    """The attack: a name as long as the engine takes, to flood a log. A longer one is refused."""
    message = _message(HEADER + section(7, vec([name("x" * 100_000) + b"\x09\x00"])))

    assert "x" * 120 + "… (100,000 long) is of the unknown kind 9" in message
    assert len(message) < 400
    assert _message(HEADER + section(7, vec([name("x" * 100_001) + b"\x02\x00"]))) == (
        "a name of 100,001 bytes in the export section: no more than 100,000 are read. Give it a shorter one"
    )


def test_numbers_are_read_in_their_range_only() -> None:
    """A number of 32 bits takes at most five bytes, padded or not, and no more than 32 bits."""

    def read(data: bytes) -> int:
        return Reader(data, 0, len(data), "test").u32()

    for value in (0, 1, 127, 128, 16_383, 16_384, 2**32 - 1):
        assert read(uleb(value)) == value
        assert uleb(value) == leb(value)
        assert read(leb(value, 5)) == value
    for data, problem in (
        (b"\xff\xff\xff\xff\x1f", "number too large"),
        (b"\x80\x80\x80\x80\x80\x00", "number too long"),
        (b"\x80\x80", "unexpected end"),
        (b"", "unexpected end"),
    ):
        with pytest.raises(stockade.InvalidModule, match=problem):
            read(data)


def test_the_reader_never_reads_past_its_part() -> None:
    """The attack: a length inside a part that reaches into the bytes behind it."""
    reader = Reader(b"\x03abcdef", 0, 3, "part")

    with pytest.raises(stockade.InvalidModule) as caught:
        reader.name()
    assert str(caught.value) == _damage("unexpected end", 1, "part")
    assert Reader(b"\x03abcdef", 0, 4, "part").name() == b"abc"


def test_constant_expressions_are_written_anew() -> None:
    """Every instruction that may stand in one; functions are redirected, numbers lose their padding."""
    code = i32(-1) + b"\x42\x7f" + b"\x43" + b"\x0b" * 4 + b"\x44" + b"\x0b" * 8 + b"\xfd\x0c" + b"\x0b" * 16
    code += b"\x23\x01" + b"\xd0\x70" + b"\x6a\x6b\x6c\x7c\x7d\x7e"
    padded = code + b"\x41\xff\xff\xff\xff\x7f" + b"\x23" + leb(1, 5) + b"\xfd" + leb(12, 5) + bytes(16)
    padded += ref_func(5, 5) + ref_func(1) + b"\x0b"
    reader = Reader(padded + b"\xff", 0, len(padded), "test")

    written = rewrite_const_expression(reader, lambda index: index + 300)

    reader.finish()
    assert written == code + i32(-1) + b"\x23\x01" + b"\xfd\x0c" + bytes(16) + ref_func(305) + ref_func(301) + b"\x0b"
    reader.position = 0
    skip_const_expression(reader)
    reader.finish()


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (b"\x10\x00\x0b", "0x10"),
        (b"\x40\x00\x0b", "0x40"),
        (b"\xfd\x0f\x0b", "0xfd 0x0f"),
        (b"\xfb\x02\x00\x0b", "0xfb 0x02"),
        (b"\x0c\x00\x0b", "0x0c"),
    ],
)
def test_other_instructions_in_constant_expressions_are_refused(code: bytes, what: str) -> None:
    """The attack: code where only constants may stand."""
    for read in (skip_const_expression, lambda reader: rewrite_const_expression(reader, int)):
        with pytest.raises(stockade.InvalidModule) as caught:
            read(Reader(i32(5) + code, 0, 2 + len(code), "test"))
        assert str(caught.value) == _forbidden(f"instruction {what} in a constant expression", 2, "test")


def test_constant_expressions_may_make_objects() -> None:
    """A module that makes an array for a global can be inspected, and woven; what is not constant is refused."""
    code = i32(5) + b"\xfb\x07\x00" + b"\x0b"
    reader = Reader(code, 0, len(code), "test")

    skip_const_expression(reader)

    reader.finish()
    assert rewrite_const_expression(Reader(code, 0, len(code), "test"), int) == code
    code = i32(5) + b"\xfb\x0f" + b"\x0b"
    with pytest.raises(stockade.InvalidModule) as caught:
        rewrite_const_expression(Reader(code, 0, len(code), "test"), int)
    assert str(caught.value) == _forbidden("instruction 0xfb 0x0f in a constant expression", 2, "test")


@pytest.mark.parametrize(("types", "refused"), [(1_000, False), (1_001, True)])
def test_types_name_a_bounded_number_of_values_in_all(types: int, refused: bool) -> None:
    """The attack: a hundred megabytes of types, each byte of which takes eight in memory."""
    one = b"\x60" + uleb(500) + b"\x7f" * 500 + uleb(500) + b"\x7f" * 500
    content = uleb(types) + one * types
    data = b"\0asm\1\0\0\0\x01" + uleb(len(content)) + content

    if refused:
        with pytest.raises(stockade.InvalidModule) as caught:
            parse(data)
        assert str(caught.value) == (
            "1,001,000 parameters, results and fields of types: no more than 1,000,000 are read. "
            "Build it with fewer, or as several modules"
        )
    else:
        assert len(parse(data).types) == types


# -- what is read is bounded -------------------------------------------------------------------------------------------


def _many(number: int, item: bytes, count: int) -> bytes:
    return section(number, leb(count) + item * count)


_TYPE = section(1, vec([b"\x60\x00\x00"]))
_FEWER = ". Build it with fewer, or as several modules"


@pytest.mark.parametrize(
    ("number", "item", "most", "message"),
    [
        (4, b"\x70\x00\x01", 100, "101 items in the table section: no more than 100 are read"),
        (5, b"\x00\x01", 100, "101 items in the memory section: no more than 100 are read"),
        (9, b"\x05\x70\x00", 100_000, "100,001 items in the element section: no more than 100,000 are read"),
        (11, b"\x01\x00", 100_000, "100,001 items in the data section: no more than 100,000 are read"),
        (0, b"", 100_000, "sections that go on at byte 300,008 of the file: no more than 100,000 are read"),
    ],
)
def test_as_much_is_read_as_the_engine_takes(number: int, item: bytes, most: int, message: str) -> None:
    """The attack: so many small things that reading them takes minutes. One less is read."""

    def make(count: int) -> bytes:
        return HEADER + (custom("") * count if number == 0 else _many(number, item, count))

    assert parse(make(most)).data == make(most)
    assert _message(make(most + 1)) == message + _FEWER


def test_imported_tables_and_memories_count_too() -> None:
    """The attack: more memories than the engine takes, most imported."""
    imported = section(2, vec([name("a") + name("b") + b"\x02\x00\x01"] * 60))

    assert len(parse(HEADER + imported + _many(5, b"\x00\x01", 40)).memories) == 100
    assert _message(HEADER + imported + _many(5, b"\x00\x01", 41)) == (
        "101 memories, imported ones included: no more than 100 are read" + _FEWER
    )


@pytest.mark.slow
def test_items_of_all_kinds_are_bounded_together() -> None:
    """The attack: of each kind as many as the engine takes. Functions are counted apart, for they take little."""
    types, globals_ = _many(1, b"\x60\x00\x00", 200_000), _many(6, b"\x7f\x00\x41\x00\x0b", 200_000)
    functions, code = _many(3, b"\x00", 1_000_000), _many(10, b"\x02\x00\x0b", 1_000_000)

    assert len(parse(HEADER + types + functions + globals_ + code).bodies) == 1_000_000
    assert _message(HEADER + types + globals_ + section(7, vec([name("m") + b"\x02\x00"]))) == (
        "400,001 types, imports, globals and exports: no more than 400,000 are read" + _FEWER
    )
    assert "1,000,001 items in the function section" in _message(HEADER + types + _many(3, b"\x00", 1_000_001))
    imported = section(2, vec([name("a") + name("b") + b"\x00\x00"]))
    assert _message(HEADER + _TYPE + imported + functions) == (
        "1,000,001 functions, imported ones included: no more than 1,000,000 are read" + _FEWER
    )


def test_bytes_that_are_taken_apart_are_bounded_together() -> None:
    """The attack: a hundred megabytes of names. What the code and the data take is their own business."""
    imports = section(2, vec([name("a") + name("x" * 99_000) + b"\x00\x00"] * 340))
    size = len(_TYPE) - 2 + len(imports) - 5

    assert _message(HEADER + _TYPE + imports) == (
        f"{size:,} bytes of types, imports, globals and exports: no more than 33,554,432 are read{_FEWER}"
    )
    assert len(parse(HEADER + _TYPE + section(2, vec([name("a") + name("x" * 99_000) + b"\x00\x00"] * 338))).imports)


def test_what_a_global_begins_with_is_bounded() -> None:
    """The attack: one constant that is computed in millions of steps, and as many as fit of those that may be."""

    def one(steps: int) -> bytes:
        return b"\x7f\x00" + i32(1) + (i32(1) + b"\x6a") * steps + b"\x0b"

    assert parse(HEADER + section(6, vec([one(20_000)]))).globals == 1
    assert _message(HEADER + section(6, vec([one(30_000)]))) == (
        "a constant expression of more than 65,536 bytes in the global section: no more than 65,536 are read. "
        "Build it with a shorter one"
    )
    many = vec([one(20_000)] * 140)
    assert _message(HEADER + section(6, many)) == (
        f"{len(many):,} bytes of globals: no more than 8,388,608 are read{_FEWER}"
    )


@settings(max_examples=examples(300))
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 5)), max_size=30), st.binary(max_size=6))
def test_many_numbers_are_read_as_one_by_one(numbers: list[tuple[int, int]], behind: bytes) -> None:
    """The attack: numbers that are read another way in bulk than alone."""
    data = b"".join(leb(value, size) for value, size in numbers)
    reader, skipping = (Reader(data + behind, 0, len(data), "test") for _ in range(2))

    assert reader.u32s(len(numbers)) == [value for value, _ in numbers]
    reader.finish()
    skipping.skip_u32s(len(numbers))
    skipping.finish()
    with pytest.raises(stockade.InvalidModule):
        Reader(data + behind, 0, len(data), "test").u32s(len(numbers) + 1)


@settings(max_examples=examples(300))
@given(st.binary(min_size=1, max_size=40), st.integers(1, 12))
def test_bulk_reading_fails_where_single_reading_fails(data: bytes, count: int) -> None:
    """The attack: bytes that are no numbers. Both readers refuse them, in the same words."""

    def read(in_bulk: bool) -> object:
        reader = Reader(data, 0, len(data), "test")
        try:
            return reader.u32s(count) if in_bulk else [reader.u32() for _ in range(count)]
        except stockade.InvalidModule as problem:
            return str(problem)

    assert read(in_bulk=True) == read(in_bulk=False)


@settings(max_examples=examples(300))
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 9))
def test_signed_numbers_are_read_however_they_are_padded(value: int, padding: int) -> None:
    """Numbers of 32, 33 and 64 bits: within their range and length, and not beyond."""
    plain = sleb(value)
    fill = 0x7F if value < 0 else 0
    padded = plain[:-1] + bytes([plain[-1] | 0x80]) + bytes([fill | 0x80]) * (padding - 1) + bytes([fill])
    encoded = padded if padding else plain
    for bits, read in ((32, Reader.s32), (33, Reader.s33), (64, Reader.s64)):
        reader = Reader(encoded, 0, len(encoded), "test")
        if -(2 ** (bits - 1)) <= value < 2 ** (bits - 1) and len(encoded) <= -(-bits // 7):
            assert read(reader) == value
            reader.finish()
        else:
            with pytest.raises(stockade.InvalidModule):
                read(reader)
