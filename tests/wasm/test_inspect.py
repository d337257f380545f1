"""The outline of a module: whatever the bytes, it tells what they hold or that they are damaged.

Holds P-LOAD-1 and P-LOAD-2.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stockade
from stockade.engine import assemble
from stockade.wasm import ExportInfo, GlobalInfo, ImportInfo, MemoryInfo, Producer, TableInfo, outline, parse
from tests._examples import examples
from tests.conftest import program_path
from tests.guard._modules import HEADER, custom, leb, name, section, vec

_EVERYTHING = r"""
(module $named
  (type $t (func (param i32 i64 f32 f64 v128) (result externref)))
  (type $s (struct (field i32) (field (mut i8)) (field (ref null $t))))
  (type $a (array (mut i16)))
  (rec (type $x (sub (struct (field (ref null $y))))) (type $y (sub final $x (struct (field (ref null $y))))))
  (type $c (cont $t))
  (import "env" "f" (func (type $t)))
  (import "env" "t" (table 1 2 externref))
  (import "env" "m" (memory 1 2 shared))
  (import "env" "g" (global (mut i64)))
  (import "env" "e" (tag (param i32)))
  (table 3 funcref)
  (table i64 4 5 (ref null $t))
  (table 6 6 (ref func) (ref.func $own))
  (memory i64 7)
  (memory 8 (pagesize 1))
  (tag $own_tag (param f64))
  (global $i i32 (i32.add (i32.const 1) (i32.const 2)))
  (global (ref i31) (ref.i31 (i32.const 5)))
  (global (ref $a) (array.new_fixed $a 2 (i32.const 1) (i32.const 2)))
  (global (ref $s) (struct.new $s (i32.const 1) (i32.const 2) (ref.null $t)))
  (global anyref (ref.null any))
  (global v128 (v128.const i64x2 1 2))
  (global f32 (f32.const 1)) (global f64 (f64.const 1))
  (export "imported" (func 0))
  (export "own" (func $own))
  (export "table" (table 2))
  (export "memory" (memory 2))
  (export "global" (global $i))
  (export "tag" (tag $own_tag))
  (start $own)
  (func $own)
  (elem func $own) (elem func $own)
  (data "abc") (data "de") (data "f"))
"""


def test_every_part_of_a_module_is_told() -> None:
    """Proposals that guests may not use are told like all others."""
    data = assemble(_EVERYTHING)
    told = outline(data)

    signature = "(i32, i64, f32, f64, v128) -> (externref)"
    assert (told.kind, told.size_bytes, told.unread) == ("plain", len(data), ())
    assert told.types == (
        signature,
        "struct (i32, mut i8, (ref null 0))",
        "array (mut i16)",
        "struct ((ref null 4))",
        "struct ((ref null 4))",
        "continuation of 0",
        "(i32) -> ()",
        "(f64) -> ()",
        "() -> ()",
    )
    assert told.imports == (
        ImportInfo(module="env", name="f", kind="func", type=signature),
        ImportInfo(module="env", name="t", kind="table", type="1 to 2 of externref"),
        ImportInfo(module="env", name="m", kind="memory", type="1 to 2 pages, shared"),
        ImportInfo(module="env", name="g", kind="global", type="mut i64"),
        ImportInfo(module="env", name="e", kind="tag", type="(i32) -> ()"),
    )
    assert told.exports == (
        ExportInfo(name="imported", kind="func", type=signature),
        ExportInfo(name="own", kind="func", type="() -> ()"),
        ExportInfo(name="table", kind="table", type="4 to 5 of (ref null 0), 64-bit"),
        ExportInfo(name="memory", kind="memory", type="8 or more pages of 1 bytes"),
        ExportInfo(name="global", kind="global", type="i32"),
        ExportInfo(name="tag", kind="tag", type="(f64) -> ()"),
    )
    assert (told.functions, told.imported_functions, told.start) == (2, 1, 1)
    assert told.memories == (
        MemoryInfo(minimum=1, maximum=2, shared=True, imported=True),
        MemoryInfo(minimum=7, maximum=None, address_bits=64),
        MemoryInfo(minimum=8, maximum=None, page_bytes=1),
    )
    assert told.tables == (
        TableInfo(element="externref", minimum=1, maximum=2, imported=True),
        TableInfo(element="funcref", minimum=3, maximum=None),
        TableInfo(element="(ref null 0)", minimum=4, maximum=5, address_bits=64),
        TableInfo(element="(ref func)", minimum=6, maximum=6),
    )
    assert told.globals[0] == GlobalInfo(type="i64", mutable=True, imported=True)
    assert [entry.type for entry in told.globals[1:]] == [
        "i32",
        "(ref i31)",
        "(ref 2)",
        "(ref 1)",
        "anyref",
        "v128",
        "f32",
        "f64",
    ]
    assert told.tags == ("(i32) -> ()", "(f64) -> ()")
    assert (told.element_segments, told.data_segments, told.module_name) == (2, 3, "named")
    sizes = {entry.kind: entry.size_bytes for entry in told.sections}
    assert (told.element_bytes, told.data_bytes) == (sizes["element"], sizes["data"])
    assert [entry.kind for entry in told.sections if entry.kind != "custom"] == [
        "type",
        "import",
        "function",
        "table",
        "memory",
        "tag",
        "global",
        "export",
        "start",
        "element",
        "code",
        "data",
    ]


@pytest.mark.parametrize(
    ("exports", "kind"),
    [
        ('(export "_start" (func 0))', "command"),
        ('(export "_initialize" (func 0))', "reactor"),
        ('(export "_start" (func 0)) (export "_initialize" (func 0))', "command"),
        ('(export "_initialize" (func 0)) (export "_start" (func 0))', "command"),
        ('(export "_start" (memory 0))', "plain"),
        ('(export "f" (func 0))', "plain"),
        ("", "plain"),
    ],
)
def test_the_kind_is_that_of_the_module(exports: str, kind: str) -> None:
    """Both readers agree on it."""
    data = assemble(f"(module (memory 1) (func) {exports})")

    assert outline(data).kind == kind
    assert stockade.Module.load(data).kind == kind


@pytest.mark.parametrize("program", ["python", "quickjs", "resvg", "graphviz", "svg-flatten"])
def test_both_readers_agree_on_real_programs(program: str) -> None:
    """What may run is told by two readers that share little: they must tell the same."""
    module = stockade.Module.load(program_path(program))
    parsed, told = module.parsed, outline(module.data)

    assert told.kind == module.kind
    assert told.types == tuple(map(str, parsed.types))
    assert [(entry.module, entry.name, entry.kind, entry.type) for entry in told.imports] == list(module.imports)
    functions = [("", entry.name, entry.kind, entry.type) for entry in told.exports if entry.kind == "func"]
    assert functions == [entry for entry in module.exports if entry.kind == "func"]
    assert (told.functions, told.imported_functions) == (len(parsed.functions), parsed.imported_functions)
    assert [memory.minimum for memory in told.memories] == parsed.memories
    assert [table.minimum for table in told.tables] == [table.minimum for table in parsed.tables]
    assert (len(told.globals), told.start) == (parsed.globals, parsed.start)
    assert [entry.size_bytes for entry in told.sections] == [found.end - found.start for found in parsed.sections]
    assert told.unread == ()


def test_real_programs_say_what_they_were_made_with() -> None:
    """The producers of QuickJS, its name, and the proposals that its toolchain declares."""
    told = outline(program_path("quickjs").read_bytes())

    assert told.kind == "reactor"
    assert told.module_name == "qjs.wasm"
    assert Producer(role="language", name="C11", version="") in told.producers
    assert [entry.name for entry in told.producers if entry.role == "processed-by"] == ["clang"]
    assert "+bulk-memory" in told.target_features


@pytest.mark.parametrize("program", ["quickjs", "graphviz"])
def test_the_type_of_an_own_function_is_found_in_both_forms(program: str) -> None:
    """Type indices of a byte each are looked up in place; where some take more, they are read."""
    data = program_path(program).read_bytes()
    module = stockade.Module.load(data)
    function = next(found for found in module.parsed.sections if found.id == 3)
    content = data[function.start : function.end]
    own = module.parsed.functions[module.parsed.imported_functions :]
    padded = leb(len(own)) + b"".join(leb(index, 2) for index in own)
    before = function.start - len(leb(len(content))) - 1
    longer = data[:before] + section(3, padded) + data[function.end :]

    assert outline(longer).exports == outline(data).exports


@pytest.mark.parametrize(
    ("encoded", "told"),
    [
        (b"\x70", "funcref"),
        (b"\x63\x70", "funcref"),
        (b"\x6f", "externref"),
        (b"\x63\x6f", "externref"),
        (b"\x6e", "anyref"),
        (b"\x63\x6e", "anyref"),
        (b"\x64\x70", "(ref func)"),
        (b"\x63\x71", "nullref"),
        (b"\x63\x05", "(ref null 5)"),
        (b"\x63\x85\x80\x00", "(ref null 5)"),
        (b"\x64\xc0\x00", "(ref 64)"),
    ],
)
def test_a_type_has_one_name_in_all_its_encodings(encoded: bytes, told: str) -> None:
    """The engine takes each; wherever a type may stand, what is behind it is read at the right place."""
    types = section(1, vec([b"\x60" + vec([encoded, b"\x7f"]) + vec([encoded])]))
    imports = section(2, vec([name("a") + name("g") + b"\x03" + encoded + b"\x01"]))
    table = section(4, vec([encoded + b"\x00\x07"]))
    own = section(6, vec([encoded + b"\x01\xd0" + encoded[-1:] + b"\x0b"]) if len(encoded) < 3 else vec([]))

    found = outline(HEADER + types + imports + table + own)

    assert found.types == (f"({told}, i32) -> ({told})",)
    assert (found.imports[0].type, str(found.tables[0])) == (f"mut {told}", f"7 or more of {told}")
    assert {entry.type for entry in found.globals} == {told}
    assert found.unread == ()


# -- other proposals, components, what is not known --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "unread"),
    [
        (section(1, vec([b"\x42"])), "the rest of the type section, from byte 11 on: type form 0x42"),
        (section(1, vec([b"\x60\x01\x65\x00"])), "the rest of the type section, from byte 13 on: value type 0x65"),
        (
            section(5, vec([b"\x10\x01"])),
            "the rest of the memory section, from byte 12 on: a memory of the form 0x10",
        ),
        (
            section(4, vec([b"\x70\x08\x01"])),
            "the rest of the table section, from byte 13 on: a table of the form 0x08",
        ),
        (
            section(6, vec([b"\x7f\x00\xfb\x05\x0b"])),
            "the rest of the global section, from byte 13 on: instruction 0xfb 0x05 in a constant expression",
        ),
        (section(14, b"abc"), "section 14, which belongs to no proposal that is known here"),
        (
            section(2, vec([name("m") + name("") + b"\x7f\x01"])),
            "the rest of the import section, from byte 15 on: an import of the kind 0x7f",
        ),
    ],
)
def test_what_is_not_known_is_named(sections: bytes, unread: str) -> None:
    """The rest of the module is told all the same: sections have their length."""
    told = outline(HEADER + sections + section(8, b"\x05"))

    assert told.unread == (unread,)
    assert told.start == 5


def test_a_component_is_told_by_its_sections_imports_and_exports() -> None:
    """Names of the outermost component only; what is nested in it is a section with a size."""
    data = assemble(
        """(component
             (import "wasi:cli/environment@0.2.0" (instance))
             (import "f" (func (param "a" u32)))
             (import "t" (type (sub resource)))
             (import "m" (core module))
             (core module (func (export "hidden")))
             (component (component (core module)))
             (export "g" (func 0)))"""
    )
    told = outline(data)

    assert (told.kind, told.unread, told.functions) == ("component", (), 0)
    assert [(entry.name, entry.kind) for entry in told.imports] == [
        ("wasi:cli/environment@0.2.0", "instance"),
        ("f", "func"),
        ("t", "type"),
        ("m", "module"),
    ]
    assert [(entry.name, entry.kind) for entry in told.exports] == [("g", "func")]
    kinds = [entry.kind for entry in told.sections]
    assert kinds.count("core module") == 1
    assert kinds.count("component") == 1
    assert stockade.Module.load(data).inspect().obstacles == (
        "it is a component, and this release runs core modules: build it for wasm32-wasip1",
    )


def test_nested_components_are_not_entered() -> None:
    """The attack: ten thousand components in each other, so that the reader runs out of stack."""
    header = b"\0asm\x0d\x00\x01\x00"
    data = header
    for _ in range(10_000):
        data = header + section(4, data)

    told = outline(data)

    assert [(entry.kind, entry.size_bytes) for entry in told.sections] == [("component", len(data) - 8 - 4)]


def test_a_component_of_unknown_forms_is_told_as_far_as_it_goes() -> None:
    """A kind of name that does not exist yet, and a section."""
    told = outline(b"\0asm\x0d\x00\x01\x00" + section(10, b"\x01\x07\x01a\x01\x00") + section(77, b""))

    assert told.imports == ()
    assert told.unread == ("the rest of the import section, from byte 13 on: a name of the form 0x07",)
    assert [entry.kind for entry in told.sections] == ["import", "section 77"]


def test_a_version_that_does_not_exist_yet_is_told() -> None:
    """Its size is all that can be known of it. It cannot be loaded."""
    data = b"\0asm\x02\x00\x00\x00" + bytes(20)

    assert (outline(data).kind, outline(data).size_bytes, outline(data).sections) == ("unknown", 28, ())
    with pytest.raises(stockade.InvalidModule, match="version 02000000, which is not known"):
        stockade.Module.load(data)
    with pytest.raises(stockade.InvalidModule, match=r"^the module is not WebAssembly but an ELF file"):
        outline(b"\x7fELF")


# -- hostile modules ---------------------------------------------------------------------------------------------------


def test_names_are_shortened_and_escaped() -> None:
    """The attack: names that steer a terminal, turn the reading direction, or are long, wherever one may be."""
    evil = "\x1b[2J\u202eA" + "B" * 99_000
    shown = "\\x1b[2J\\u202eA" + "B" * 114 + f"… ({len(evil.encode()):,} long)"
    data = (
        HEADER
        + section(2, vec([name(evil) + name(evil) + b"\x02\x00\x01"]))
        + section(7, vec([name(evil) + b"\x02\x00"]))
        + custom(evil)
        + custom("producers", vec([name(evil) + vec([name(evil) + name(evil)])]))
        + custom("name", b"\x00" + leb(len(name(evil))) + name(evil))
        + custom("target_features", vec([b"+" + name(evil)]))
    )

    told = outline(data)

    assert (told.imports[0].module, told.imports[0].name) == (shown, shown)
    assert told.exports[0].name == shown
    assert told.sections[2].name == shown
    assert told.producers == (Producer(role=shown, name=shown, version=shown),)
    assert told.module_name == shown
    assert told.target_features[0].startswith("+\\x1b[2J\\u202eA")
    assert len(stockade.Module.load(data).inspect().to_json()) < 5000


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 13])
def test_a_false_count_is_refused_before_anything_is_made(number: int) -> None:
    """The attack: four billion items announced in six bytes."""
    with pytest.raises(stockade.InvalidModule, match=r"4,294,967,295 items announced in 1 bytes"):
        outline(HEADER + section(number, b"\xff\xff\xff\xff\x0f\x00"))


def test_false_counts_in_custom_sections_are_left_out() -> None:
    """The attack: a custom section is nobody's business but its writer's: a damaged one must hide nothing."""
    data = HEADER + custom("producers", b"\xff\xff\xff\xff\x0f") + custom("name", b"\x00\xff\x01")
    data += section(0, b"\x7f")

    told = outline(data)

    assert (told.producers, told.module_name) == ((), None)
    assert [entry.name for entry in told.sections] == ["producers", "name", ""]


def test_long_lists_of_producers_are_cut() -> None:
    """The attack: millions of entries where a handful is usual."""
    many = custom("producers", vec([name("language") + vec([name("a") + name("b")] * 100_000)]))

    assert len(outline(HEADER + many).producers) == 100


def test_more_items_than_engines_take_are_refused() -> None:
    """The attack: so many small things that listing them takes minutes. As many as engines take are listed."""
    with pytest.raises(stockade.InvalidModule, match="400,001 items up to the global section: no more than 400,000"):
        outline(HEADER + section(6, leb(400_001) + b"\x7f\x00\x41\x00\x0b" * 400_001))
    with pytest.raises(stockade.InvalidModule, match="101 items in the memory section: no more than 100 are read"):
        outline(HEADER + section(5, leb(101) + b"\x00\x01" * 101))
    with pytest.raises(stockade.InvalidModule, match="101 items in the import section, imported ones included: no"):
        outline(HEADER + section(2, vec([name("a") + name("b") + b"\x02\x00\x01"] * 101)))
    assert len(outline(HEADER + section(5, leb(100) + b"\x00\x01" * 100)).memories) == 100
    with pytest.raises(stockade.InvalidModule, match="sections that go on at byte 300,008 of the file: no more than"):
        outline(HEADER + custom("") * 100_001)
    assert len(outline(HEADER + custom("") * 100_000).sections) == 100_000


MANY_EXPORTS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
from stockade.wasm import outline
told = outline(sys.stdin.buffer.read())
print(len(told.exports), told.exports[-1].type)
"""


def test_what_many_things_take_grows_with_their_number() -> None:
    """The attack: 2 MB of exports and of what they name. To list what there is for each export took half a minute.

    Done in half a second of processor time, and ended after twenty.
    """
    count = 199_000
    globals_ = section(6, leb(count) + b"\x7f\x00\x41\x00\x0b" * count)
    exports = section(7, leb(count) + b"".join(b"\x05%05x\x03\x00" % number for number in range(count)))

    done = subprocess.run(
        [sys.executable, "-c", MANY_EXPORTS], input=HEADER + globals_ + exports, capture_output=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, b"199000 i32\n")


def test_a_large_section_is_not_taken_apart() -> None:
    """The attack: a hundred megabytes of types. The module is told without them."""
    types = section(1, vec([b"\x60\x7f" + b"\x7f" * 127 + b"\x00"] * 300_000))

    told = outline(HEADER + types)

    assert told.types == ()
    assert told.unread[0].startswith("the rest of the type section, from byte 13 on: 39,")


def test_a_custom_section_of_a_hundred_megabytes_is_skipped() -> None:
    """The attack: a file as large as may be, nothing in it. It is told without a copy of it."""
    import tracemalloc

    data = HEADER + custom("x", bytes(100 << 20))
    tracemalloc.start()
    told = outline(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert told.sections[0].size_bytes == (100 << 20) + 2
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HEADER + section(3, b"\x00") + section(1, b"\x00"), "section type is out of order"),
        (HEADER + section(1, b"\x00") * 2, "section type is out of order"),
        (HEADER + b"\x01\x7f\x00", "section 1 announces 127 bytes, 1 are left"),
        (HEADER + section(1, b"\x00\x00"), "bytes left over"),
        (HEADER + section(3, b"\x01\x00"), "functions and their code differ in number"),
        (HEADER + section(5, vec([b"\x08\x01\x11"])), r"pages of 2\^17 bytes"),
        (HEADER + section(5, vec([b"\x04" + b"\xff" * 9 + b"\x7f"])), "number too large"),
    ],
)
def test_what_contradicts_itself_is_damaged(data: bytes, message: str) -> None:
    """The attack: a module that two readers would read in two ways."""
    with pytest.raises(stockade.InvalidModule, match=message):
        outline(data)


def test_indices_beyond_what_there_is_are_told_as_they_are() -> None:
    """The attack: exports of things that do not exist. The engine refuses the module; it is told all the same."""
    kinds = ("func", "table", "memory", "global", "tag")
    exports = vec([name(kind) + bytes([place]) + b"\x09" for place, kind in enumerate(kinds)])
    imported = section(2, vec([name("a") + name("b") + b"\x00\x63"]))
    told = stockade.wasm.outline(HEADER + imported + section(7, exports))

    assert [entry.type for entry in told.exports] == ["function 9", "table 9", "memory 9", "global 9", "tag 9"]
    assert told.imports[0].type == "type 99"


# -- any bytes ---------------------------------------------------------------------------------------------------------


def _attempt(data: bytes) -> None:
    """Nothing but InvalidModule may come of it; what the strict reader takes, this one takes, too."""
    try:
        told = outline(data)
    except stockade.InvalidModule:
        told = None
    try:
        strict = parse(data)
    except stockade.InvalidModule:
        return
    if told is None:
        # Counted here and not there: sections that only the engine reads.
        assert {section.id for section in strict.sections} & {9, 11, 12, 13}
    else:
        assert told.functions == len(strict.functions)


@settings(max_examples=examples(300))
@given(st.binary(max_size=64))
def test_arbitrary_bytes_raise_nothing_but_invalid_module(data: bytes) -> None:
    """The attack: bytes that are no module at all, or no component."""
    for attempt in (data, HEADER + data, b"\0asm\x0d\x00\x01\x00" + data):
        _attempt(attempt)


@settings(max_examples=examples(300))
@given(
    st.sampled_from([HEADER, b"\0asm\x0d\x00\x01\x00"]),
    st.lists(
        st.tuples(st.integers(0, 15), st.binary(max_size=24)).map(lambda made: section(made[0], made[1])), max_size=6
    ),
)
def test_arbitrary_sections_raise_nothing_but_invalid_module(header: bytes, sections: list[bytes]) -> None:
    """The attack: sections of any number in any order with any content."""
    _attempt(header + b"".join(sections))


@cache
def _seeds() -> tuple[bytes, ...]:
    """Modules to change: with every proposal, a component, and a real program."""
    component = '(component (import "a:b/c@1.0.0" (instance)) (core module (func)) (export "g" (instance 0)))'
    return assemble(_EVERYTHING), assemble(component), program_path("micropython").read_bytes()


@settings(max_examples=examples(400))
@given(data=st.data())
def test_changed_bytes_raise_nothing_but_invalid_module(data: st.DataObject) -> None:
    """The attack: bytes of a good module are changed, left out, put in or cut off, to make the reader fail."""
    mutant = bytearray(data.draw(st.sampled_from(_seeds())))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(4, min(len(mutant) - 1, 6000)))
        change = data.draw(st.sampled_from(["set", "insert", "delete", "cut"]))
        value = data.draw(st.one_of(st.sampled_from([0, 1, 0x0B, 0x40, 0x60, 0x7F, 0x80, 0xFF]), st.integers(0, 255)))
        if change == "set":
            mutant[place] = value
        elif change == "insert":
            mutant.insert(place, value)
        elif change == "delete":
            del mutant[place]
        elif len(mutant) > 100:
            del mutant[max(place, 50) :]
    _attempt(bytes(mutant))
    try:
        inspection = stockade.Module.load(bytes(mutant)).inspect()
    except stockade.InvalidModule:
        return
    assert inspection.problem is None or inspection.obstacles


def test_a_module_cut_short_is_told_only_where_a_section_ends() -> None:
    """The attack: a file that ends in the middle of anything."""
    data = assemble(_EVERYTHING)
    sections = parse(assemble('(module (func (export "f")))')).sections
    assert len(sections) == 4  # the twin: whole modules have sections
    ends = {8}
    position = 8
    for entry in outline(data).sections:
        position += 1 + len(leb(entry.size_bytes)) + entry.size_bytes
        ends.add(position)
    assert position == len(data)

    for cut in range(8, len(data)):
        if cut not in ends:
            with pytest.raises(stockade.InvalidModule):
                outline(data[:cut])
