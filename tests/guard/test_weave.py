"""The weaver: every way to native WASI and every growth leads through the guard, and nothing else changes.

Holds P-GUARD-1 and P-GUARD-2.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stockade
from stockade import ModuleLimits, Outcome, Policy, Sandbox
from stockade._wasi import WASI, WASI_BY_NAME
from stockade.engine import RUN_PROPOSALS, CompiledModule, Engine, EngineConfig, LinkedModule, assemble, validate_with
from stockade.guard import Exposed, Woven, check_imports, guard, prove, weave
from stockade.wasm import ExternKind, parse
from tests._decoder import Decoded, decode
from tests._examples import examples
from tests.conftest import HELLO, wat
from tests.guard._checks import GROWTH, check_woven
from tests.guard._modules import (
    END,
    FUNC,
    FUNCREF,
    HEADER,
    MEMORY,
    Builder,
    call,
    constants,
    custom,
    element,
    i32,
    leb,
    name,
    ref_func,
    section,
    vec,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_WOVEN = EngineConfig(fuel=False, stack_bytes=512 << 10, pooled=False)
_YIELD = '(import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))'


def _validate_original(data: bytes) -> None:
    """As the run path does: with several memories only where the module has several."""
    validate_with(data, RUN_PROPOSALS if len(parse(data).memories) > 1 else RUN_PROPOSALS - {"multi_memory"})


# -- generated modules ------------------------------------------------------------------------------------------------


@st.composite
def generated_modules(draw: st.DrawFn) -> bytes:
    """A valid module that refers to its imports and grows its memories and tables in every way there is."""
    size = draw(st.sampled_from([1, 1, 2, 5]))
    built = Builder(size=size)
    for _ in range(draw(st.sampled_from([0, 0, 1, 200]))):
        built.type(("i32",) * (len(built.types) % 3), ("i64",) * (len(built.types) // 3))
    calls = draw(st.lists(st.sampled_from(WASI), max_size=12))
    # With 200 imports an index takes two bytes; the same function may be imported any number of times.
    for wanted in calls * (20 if calls and draw(st.integers(0, 4)) == 0 else 1):
        built.wasi(wanted.name, wanted.params, wanted.results)
    built.memories = draw(st.lists(st.tuples(st.integers(0, 2), st.none() | st.integers(2, 9)), max_size=3))
    built.tables = [(kind, 3) for kind in draw(st.lists(st.just(FUNCREF), max_size=3))]
    own = draw(st.integers(0, 4))
    imported = len(built.imports)
    functions = st.integers(0, imported + own - 1) if imported + own else st.nothing()
    declared = _declare(draw, built, functions)
    if built.memories and draw(st.booleans()):
        built.exports.append(("memory", MEMORY, draw(st.integers(0, len(built.memories) - 1))))
    built.data_count = draw(st.booleans())
    if built.memories:
        built.data = [b"\x01" + vec([b"a", b"b"])] * draw(st.integers(0, 2))
    for number in range(own):
        code = b"".join(_snippet(draw, built, declared) for _ in range(draw(st.integers(0, 6))))
        if imported and number and draw(st.booleans()):
            target = draw(st.integers(0, imported - 1))
            params, results = built.types[built.imports[target][2]]
            built.function(code + constants(params) + b"\x12" + leb(target, size), results=results)
        else:
            built.function(code)
    if own and draw(st.booleans()):
        built.start = imported
    built.custom_before = draw(st.lists(st.sampled_from([custom("x", b"\x00"), custom("metadata.code.branch_hint")])))
    built.custom_after = draw(st.lists(st.sampled_from([custom("name", b"\x00\x02\x01m"), custom(".debug_info")])))
    return built.build()


def _declare(draw: st.DrawFn, built: Builder, functions: st.SearchStrategy[int]) -> list[int]:
    """Draws elements, globals and exports; returns the functions that `ref.func` may name for it."""
    if functions.is_empty:
        return []
    declared: list[int] = []
    lists = st.lists(functions, max_size=3)
    funcref_tables = [index for index, (kind, _) in enumerate(built.tables) if kind == FUNCREF]
    for form in draw(st.lists(st.integers(0, 7), max_size=6)):
        listed = draw(lists)
        if not form & 1 and not (funcref_tables if form & 2 else funcref_tables[:1] == [0]):
            continue
        table = draw(st.sampled_from(funcref_tables)) if form in (2, 6) else 0
        built.elements.append(element(form, listed, table=table, size=built.size))
        declared += listed
    for index in draw(lists):
        built.globals.append(("funcref", ref_func(index, built.size)))
        declared.append(index)
    for index in draw(lists):
        built.exports.append((draw(st.sampled_from(["f", "stockade.state", "_start"])) + str(index), FUNC, index))
        declared.append(index)
    built.exports = list({what: (what, kind, index) for what, kind, index in built.exports}.values())
    exported = {index for _, _, index in built.exports}
    kept = [index for index in declared if index in exported or built.elements or built.globals]
    return sorted(set(kept) & _truly_declared(built))


def _truly_declared(built: Builder) -> set[int]:
    module = decode(Builder(elements=built.elements, globals=built.globals).build())
    return {*_named_outside(module), *(index for _, _, index in built.exports)}


def _snippet(draw: st.DrawFn, built: Builder, declared: list[int]) -> bytes:
    """Code that leaves the stack as it was."""
    padding = draw(st.integers(1, 5))
    several = padding if len(built.memories) > 1 else 1
    choices = ["plain"]
    choices += ["call"] * 3 * bool(built.imports) + ["ref.func"] * 2 * bool(declared)
    choices += ["grow", "load", "size"] * bool(built.memories) + ["table"] * bool(built.tables)
    choices += ["init"] * bool(built.data and built.data_count)
    kind = draw(st.sampled_from(choices))
    if kind == "call":
        target = draw(st.integers(0, len(built.imports) - 1))
        params, results = built.types[built.imports[target][2]]
        return constants(params) + call(target, padding) + b"\x1a" * len(results)
    if kind == "ref.func":
        return ref_func(draw(st.sampled_from(declared)), padding) + b"\x1a"
    if kind == "table":
        table = draw(st.integers(0, len(built.tables) - 1))
        return b"\xd0" + bytes([built.tables[table][0]]) + i32(1) + b"\xfc\x0f" + leb(table, padding) + b"\x1a"
    if kind == "plain":
        return draw(
            st.sampled_from([i32(0x10) + b"\x1a", b"\x01", b"\x02\x40\x0c\x00\x0b", b"\x44" + b"\x10" * 8 + b"\x1a"])
        )
    memory = draw(st.integers(0, len(built.memories) - 1))
    if kind == "grow":
        return i32(1) + b"\x40" + leb(memory, several) + b"\x1a"
    if kind == "size":
        return b"\x3f" + leb(memory, several) + b"\x1a"
    if kind == "init":
        return i32(0) * 3 + b"\xfc\x08" + leb(0, padding) + leb(memory, several)
    argument = b"\x42" + leb(memory, padding) if len(built.memories) > 1 else b"\x02"
    return i32(0) + b"\x28" + argument + leb(16, padding) + b"\x1a"


def _named_outside(module: Decoded) -> Iterator[int]:
    """The functions that element segments and globals name, in their order."""
    items = [item for segment in module.elements for item in segment.items]
    for expression in [*items, *(expression for _, _, expression in module.globals)]:
        yield from (instr.args[0] for instr in expression if instr.op == "ref.func")


@settings(max_examples=examples(250))
@given(generated_modules())
@pytest.mark.slow
def test_the_guest_reaches_the_guard_at_its_sites_and_nowhere_else(data: bytes) -> None:
    """The attack: any reference to native WASI or to what was appended that is left over in the guest's part.

    Padded indices, all eight forms of element segments, globals, exports, several memories and tables, and data counts
    are in the generated modules. The result is valid, and equal for equal input.
    """
    _validate_original(data)

    woven = weave(data, guard())

    Engine.shared(_WOVEN).validate(woven.wasm)
    assert weave(parse(data), guard()) == woven
    original = decode(data)
    grows = any(instr.op in GROWTH for body in original.code for instr in body.instrs)
    assert (woven.state_export is not None) == bool(original.imports or grows)
    check_woven(data, woven)
    prove(parse(data), woven)
    assert woven.initial_table_elements == sum(limits.minimum for _, limits, _ in original.tables)
    assert (
        woven.initial_memory_bytes
        == sum(limits.minimum for limits in original.memories) * 65_536 + woven.initial_table_elements * 8
    )


@pytest.fixture(scope="module")
def rich() -> bytes:
    """A module with something for the weaver in each of its sections."""
    return assemble(r"""
      (module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
        (type $none (func (result i32)))
        (table $t 4 funcref)
        (memory (export "memory") 1)
        (global $g funcref (ref.func $yield))
        (export "yield" (func $yield))
        (start $begin)
        (elem (table $t) (i32.const 0) func $yield $write)
        (elem $e funcref (ref.func $yield) (ref.null func))
        (func $begin (drop (memory.grow (i32.const 1))))
        (func (export "f") (result i32)
          (drop (call_indirect $t (type $none) (i32.const 0)))
          (drop (table.grow $t (ref.func $yield) (i32.const 1)))
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))
          (return_call $yield))
        (data (i32.const 0) "\08\00\00\00\0c\00\00\00hello world\n"))
    """)


@settings(max_examples=examples(300))
@given(data=st.data())
def test_changed_modules_that_are_valid_are_woven_or_refused(data: st.DataObject, rich: bytes) -> None:
    """The attack: a module that the engine accepts and the weaver reads in another way."""
    mutant = bytearray(rich)
    for _ in range(data.draw(st.integers(0, 2))):
        mutant[data.draw(st.integers(8, len(mutant) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(mutant)
    try:
        _validate_original(changed)
    except stockade.InvalidModule:
        return

    try:
        woven = weave(changed, guard())
    except stockade.LinkError:
        return

    Engine.shared(_WOVEN).validate(woven.wasm)
    prove(parse(changed), woven)
    check_woven(changed, woven)


def test_what_is_woven_can_be_compiled_and_linked(rich: bytes) -> None:
    """The engine takes the result with its imports resolved against native WASI."""
    woven = weave(rich, guard())

    check_woven(rich, woven)
    linked = LinkedModule(CompiledModule(Engine.shared(_WOVEN), woven.wasm))
    assert linked.link() == linked.link() == linked.native


# -- what passes through ----------------------------------------------------------------------------------------------


def test_a_module_without_anything_to_guard_is_only_written_anew() -> None:
    """Nothing is appended, no function of the guard and no memory; numbers are as short as they get."""
    plain, padded = (
        Builder(size=size, memories=[(1, None)], tables=[(FUNCREF, 2)], custom_before=[custom("x", b"\x01")])
        for size in (1, 5)
    )
    for built in (plain, padded):
        built.exports = [("memory", MEMORY, 0), ("f", FUNC, 0)]
        built.custom_after = [custom(".debug_info", b"abc")]
        built.elements = [element(0, [0], size=built.size)]
        built.function(i32(42), results=("i32",))

    for original in (plain.build(), padded.build(), HEADER):
        _validate_original(original)
        woven = weave(original, guard())
        check_woven(original, woven)
        assert woven == Woven(
            wasm=weave(plain.build(), guard()).wasm if original != HEADER else HEADER,
            state_export=None,
            renamed={},
            start_export=None,
            natives_export=None,
            natives=(),
            guest_functions=len(parse(original).functions),
            guard_functions=(),
            initial_memory_bytes=65_536 + 16 if original != HEADER else 0,
            initial_table_elements=2 if original != HEADER else 0,
            fixed_memory_bytes=65_536 + 16 if original != HEADER else 0,
            exposed=Exposed(memories=(b"memory",)) if original != HEADER else Exposed(),
        )
    report = Sandbox().call(padded.build(), "f")
    assert (report.outcome, report.value, report.usage.calls) == (Outcome.OK, 42, {})


def test_a_start_function_alone_is_taken_out_and_given_to_the_host() -> None:
    """What ran at instantiation runs later, under the same limits; nothing else is woven in."""
    data = assemble('(module (global $n (mut i32) (i32.const 1)) (start $s) (func $s (global.set $n (i32.const 7)))'
                    ' (func (export "n") (result i32) (global.get $n)))')  # fmt: skip

    woven = weave(data, guard())

    assert (woven.state_export, woven.start_export, woven.guard_functions) == (None, b"stockade.start", ())
    assert parse(woven.wasm).start is None
    assert parse(woven.wasm).exports[b"stockade.start"] == (ExternKind.FUNC, 0)
    assert Sandbox().call(data, "n").value == 7


def test_custom_sections_that_hold_offsets_are_left_out() -> None:
    """The attack: hints to the compiler at offsets that have moved. Names stay, for backtraces."""
    built = Builder(memories=[(1, None)])
    built.function(i32(1) + b"\x40\x00\x1a")
    names = custom("name", b"\x00\x02\x01m")
    built.custom_before = [custom("metadata.code.branch_hint", b"\x00")]
    built.custom_after = [custom(".debug_line", b"\x01\x02"), names]

    woven = weave(built.build(), guard())

    assert woven.wasm.endswith(names)
    assert b"debug_line" not in woven.wasm
    assert b"branch_hint" not in woven.wasm
    Engine.shared(_WOVEN).validate(woven.wasm)


# -- every way to a WASI function is counted --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("form", range(8))
def test_a_function_reached_through_an_element_segment_is_the_guards(form: int, size: int) -> None:
    """The attack: native WASI called through a table, which no call instruction names.

    Segments that are not active are copied to the table by the guest; from a declared one it may take `ref.func`.
    """
    built = Builder(tables=[(FUNCREF, 0), (FUNCREF, 2)] if form in (2, 6) else [(FUNCREF, 2)], size=size)
    table = len(built.tables) - 1
    target = built.wasi("sched_yield", (), ("i32",))
    built.elements = [element(form, [target], table=table, size=size)]
    prepare = b""
    if form in (1, 5):
        prepare = i32(0) + i32(0) + i32(1) + b"\xfc\x0c\x00" + leb(table)
    elif form in (3, 7):
        prepare = i32(0) + ref_func(target, size) + b"\x26" + leb(table)
    built.memories = [(1, None)]
    built.exports = [("memory", MEMORY, 0), ("f", FUNC, 1)]
    built.function(prepare + i32(0) + b"\x11" + leb(built.type((), ("i32",))) + leb(table), results=("i32",))
    data = built.build()
    assert b"\x10" not in data, "no call instruction"

    report = Sandbox().call(data, "f")

    assert (report.outcome, report.value, report.usage.calls) == (Outcome.OK, 0, {"sched_yield": 1})


@pytest.mark.parametrize(
    ("definitions", "code"),
    [
        ("", "(call $yield)"),
        ("", "(return_call $yield)"),
        ("", "(call $yield) (drop) (call $yield) (drop) (call $again)"),
        (
            "(table $t 1 funcref) (global $g funcref (ref.func $yield))",
            "(table.set $t (i32.const 0) (global.get $g)) (call_indirect $t (type $none) (i32.const 0))",
        ),
        (
            "(table $t 1 funcref) (elem declare func $yield)",
            "(table.set $t (i32.const 0) (ref.func $yield)) (return_call_indirect $t (type $none) (i32.const 0))",
        ),
        (
            "(table $t 0 funcref) (elem declare func $yield)",
            "(drop (table.grow $t (ref.func $yield) (i32.const 1))) (call_indirect $t (type $none) (i32.const 0))",
        ),
        (
            "(table $t 1 funcref) (table $u 1 funcref) (elem (table $u) (i32.const 0) func $yield)",
            "(table.copy $t $u (i32.const 0) (i32.const 0) (i32.const 1))(call_indirect $t (type $none) (i32.const 0))",
        ),
    ],
)
def test_every_other_way_to_a_function_is_counted_too(definitions: str, code: str) -> None:
    """The attack: each instruction that can lead to an import without a plain call of it."""
    module = wat(f"""
      (module {_YIELD}
        (import "wasi_snapshot_preview1" "sched_yield" (func $again (result i32)))
        (type $none (func (result i32))) (memory (export "memory") 1) {definitions}
        (func (export "f") (result i32) {code}))
    """)

    report = Sandbox().call(module, "f")

    assert (report.outcome, report.value) == (Outcome.OK, 0)
    assert report.usage.calls == {"sched_yield": 3 if code.count("(call $") == 3 else 1}


def test_an_import_that_is_exported_is_the_guards() -> None:
    """The attack: native WASI handed out by name. Called from outside, it is counted as any other call."""
    module = wat(f"""
      (module {_YIELD} (memory (export "memory") 1) (export "way" (func $yield)) (func (export "other")))
    """)

    assert Sandbox().call(module, "way").usage.calls == {"sched_yield": 1}
    assert Sandbox().call(module, "other").usage.calls == {}


@pytest.mark.parametrize("imports", [1, 43, 127, 128, 129, 200, 16_385, pytest.param(20_000, marks=pytest.mark.slow)])
def test_every_one_of_many_imports_leads_to_the_guard(imports: int) -> None:
    """The attack: as many imports as it takes to make the index of one look like that of another function.

    The last ones are called as they are written by any compiler, in as few bytes as it gets. Native WASI would write
    where the guest sends it, uncounted and past every limit.
    """
    built = Builder(memories=[(1, None)], exports=[("memory", MEMORY, 0)])
    for _ in range(imports):
        built.wasi("random_get", ("i32", "i32"), ("i32",))
    targets = sorted({0, imports // 2, max(0, imports - 2), imports - 1})
    code = b"".join(i32(0) + i32(8) + call(target) + b"\x1a" for target in targets)
    built.exports.append(("f", FUNC, built.function(code)))
    data = built.build()
    woven = weave(data, guard())

    report = Sandbox().call(data, "f")

    assert (report.outcome, report.usage.calls) == (Outcome.OK, {"random_get": len(targets)})
    assert report.usage.random_bytes == 8 * len(targets)
    check_woven(data, woven)


# -- growth -----------------------------------------------------------------------------------------------------------


def test_each_memory_is_grown_by_a_function_of_its_own() -> None:
    """All memories are in one account, whichever of them is exported, or none."""
    policy = Policy().replace(memories=3, multi_memory=True, memory=8 * 65_536)
    module = wat("""
      (module (memory $a 1) (memory $b 2 3) (memory $c 0)
        (func (export "a") (param i32) (result i32) (memory.grow $a (local.get 0)))
        (func (export "b") (param i32) (result i32) (memory.grow $b (local.get 0)))
        (func (export "c") (param i32) (result i32) (memory.grow $c (local.get 0)))
        (func (export "sizes") (result i32 i32 i32) (memory.size $a) (memory.size $b) (memory.size $c)))
    """)

    with Sandbox(policy).open(module) as session:
        assert [session.call(which, 1).value for which in ("a", "b", "c")] == [1, 2, 0]
        assert session.call("b", 1).value == -1, "beyond its own maximum"
        assert session.call("sizes").value == [2, 3, 1]
        assert session.call("a", 2).value == 2
        report = session.call("c", 1)
        assert report.value == -1, "beyond the account"
        assert (report.usage.memory_bytes, [v.kind for v in report.violations]) == (8 * 65_536, ["memory"])
        assert session.call("sizes").value == [4, 3, 1]


def test_each_table_is_grown_by_a_function_of_its_own() -> None:
    """All tables are in one account, in elements and in bytes."""
    policy = Policy().replace(table_elements=10)
    module = wat("""
      (module (table $f 1 funcref) (table $e 2 6 funcref) (elem declare func $one)
        (func $one (result i32) (i32.const 11))
        (func (export "f") (param i32) (result i32) (table.grow $f (ref.func $one) (local.get 0)))
        (func (export "e") (param i32) (result i32) (table.grow $e (ref.null func) (local.get 0)))
        (func (export "sizes") (result i32 i32) (table.size $f) (table.size $e))
        (func (export "last") (result i32) (call_indirect $f (result i32) (i32.const 3))))
    """)

    with Sandbox(policy).open(module) as session:
        assert session.call("e", 5).value == -1, "beyond its own maximum"
        assert (session.call("f", 3).value, session.call("e", 4).value) == (1, 2)
        assert session.call("last").value == 11
        for which in ("f", "e"):
            report = session.call(which, 1)
            assert (report.value, [v.kind for v in report.violations]) == (-1, ["table"])
        assert session.call("sizes").value == [4, 6]
        report = session.call("f", 0)
        assert (report.value, report.usage.table_elements, report.usage.memory_bytes) == (4, 10, 80)


def test_growth_of_externref_tables_is_accounted() -> None:
    """Tables of references to the host are limited as those of functions are."""
    data = assemble(
        '(module (table $t 1 externref) (func (export "f") (param i32) (result i32)'
        " (table.grow $t (ref.null extern) (local.get 0))))"
    )

    assert "table_grow" in weave(data, guard()).guard_functions
    check_woven(data, weave(data, guard()))
    with Sandbox(Policy().replace(table_elements=10)).open(data) as session:
        assert session.call("f", 9).value == 1
        refused = session.call("f", 1)
    assert (refused.value, refused.usage.table_elements) == (-1, 10)
    assert [(found.kind, found.call) for found in refused.violations] == [("table", "table.grow")]


# -- the guest's memory -----------------------------------------------------------------------------------------------


def _writes(memories: str) -> stockade.Module:
    return wat(f"""
      (module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
        {memories}
        (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32))))
        (func (export "random") (result i32) (call $random (i32.const 64) (i32.const 8))))
    """)


_TEXT = r'"\08\00\00\00\06\00\00\00'


def test_the_exported_memory_is_the_guests_whatever_its_index() -> None:
    """Both the guard and native WASI use the memory that is exported under that name."""
    memories = rf"""
      (memory $a 1) (memory $b 1) (export "memory" (memory $b))
      (data (memory $a) (i32.const 0) {_TEXT}first\n") (data (memory $b) (i32.const 0) {_TEXT}second")
    """
    sandbox = Sandbox(Policy().replace(memories=2, multi_memory=True))

    assert sandbox.run(_writes(memories)).stdout == b"second"
    with sandbox.open(_writes(memories)) as session:
        assert session.call("random").value == 0
        assert session.read_memory(64, 8) != b"\0" * 8


@pytest.mark.parametrize(
    "memories",
    [
        rf'(memory 1) (data (i32.const 0) {_TEXT}hidden")',
        rf'(memory (export "other") 1) (data (i32.const 0) {_TEXT}hidden")',
        rf'(memory 1) (data (i32.const 0) {_TEXT}hidden") (func (export "memory"))',
    ],
    ids=["not exported", "another name", "a function of that name"],
)
def test_a_memory_need_not_be_exported(memories: str) -> None:
    """Native WASI never sees it, so it may have any name, or none."""
    assert Sandbox().run(_writes(memories)).stdout == b"hidden"
    assert Sandbox().call(_writes(memories), "random").value == 0


@pytest.mark.parametrize("memories", ["", '(func (export "memory"))'], ids=["none", "a function of that name"])
def test_without_a_memory_no_call_reaches_any_memory(memories: str) -> None:
    """The attack: a WASI call that, for want of the guest's memory, is served from the guard's."""
    module = _writes(memories)

    report = Sandbox().run(module)
    random = Sandbox().call(module, "random")

    assert (report.outcome, report.stdout, report.usage.stdout_bytes) == (Outcome.TRAP, b"", 0)
    assert random.outcome is Outcome.TRAP


def test_what_the_guest_exports_as_memory_is_found_under_that_name() -> None:
    """The host's functions and sessions find the guest's memory, and a function of that name can be called."""
    module = wat(rf"""(module {_YIELD} (func (export "memory") (result i32) (call $yield)))""")
    assert Sandbox().call(module, "memory").value == 0
    module = wat(rf"""(module {_YIELD} (memory (export "memory") 1) (data (i32.const 8) "guest")
      (func (export "go") (result i32) (call $yield)))""")
    with Sandbox().open(module) as session:
        assert session.call("go").value == 0
        assert session.read_memory(8, 5) == b"guest"


# -- names ------------------------------------------------------------------------------------------------------------


def test_exports_named_like_the_guards_do_not_collide() -> None:
    """The attack: the guest exports a state of its own under the guard's name, to be read in its place.

    It says that the guest left with code 99 after no call at all.
    """
    module = wat(rf"""
      (module {_YIELD}
        (memory (export "stockade.memory") (export "memory") 2)
        (global (export "stockade.natives") i32 (i32.const 0))
        (export "stockade.start'" (func $begin))
        (func (export "stockade.start") unreachable)
        (start $begin)
        (func $begin (drop (call $yield)))
        (func (export "_start")
          (memory.fill (i32.const 0) (i32.const 99) (i32.const 131072))
          (drop (memory.grow (i32.const 1)))
          (drop (call $yield))))
    """)

    woven = weave(module.data, guard())
    report = Sandbox().run(module)

    assert (woven.state_export, woven.start_export) == (b"memory", b"stockade.start''")
    assert woven.renamed == {b"memory": b"stockade.memory'"}
    assert (report.outcome, report.exit_code, report.usage.calls) == (Outcome.OK, 0, {"sched_yield": 2})
    assert report.usage.memory_bytes == 3 * 65_536


def test_a_native_table_named_by_the_guest_does_not_collide() -> None:
    """The same for the table of natives, which a guest has when it imports less than the guard needs."""
    module = wat(r"""
      (module
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (table (export "stockade.natives") 1 funcref)
        (func (export "f") (result i32)
          (i32.store (i32.const 16) (i32.const 1))
          (i64.store (i32.const 24) (i64.const 1000000))
          (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))))
    """)

    woven = weave(module.data, guard())
    report = Sandbox().call(module, "f")

    assert woven.natives_export == b"stockade.natives'"
    assert "clock_time_get" in [native.name for native in woven.natives]
    assert (report.outcome, report.value, report.usage.calls) == (Outcome.OK, 0, {"poll_oneoff": 1})


def test_frames_tell_the_guards_functions_from_the_guests() -> None:
    """The attack: names for functions beyond the guest's own, which are the guard's.

    A trap inside the guard (here a pointer beyond memory) is told with the guard's function and the guest's caller.
    """
    built = Builder(memories=[(1, None)])
    built.wasi("fd_write", ("i32", "i32", "i32", "i32"), ("i32",))
    built.exports = [("memory", MEMORY, 0), ("_start", FUNC, 1)]
    built.function(i32(1) + i32(-8) + i32(1) + i32(0) + call(0) + b"\x1a")
    forged = vec([leb(index) + name("forged") for index in range(60)])
    built.custom_after = [custom("name", section(1, forged))]

    report = Sandbox().run(built.build())

    assert report.outcome is Outcome.TRAP
    assert report.trap is not None
    assert report.trap.code == "memory_out_of_bounds"
    functions = [frame.function for frame in report.trap.frames]
    assert functions[-2:] == ["guard: fd_write", "forged"]
    assert all(function is not None and function.startswith("guard: ") for function in functions[:-1])
    assert report.trap.frames[-1].index == 1


# -- what the guest cannot name ---------------------------------------------------------------------------------------


def _hello_with(code: bytes, *, export: tuple[str, int, int] | None = None, segment: bytes | None = None) -> bytes:
    """A guest with one import, one memory, one table, one global, and this code in its second function."""
    built = Builder(memories=[(1, None)], tables=[(FUNCREF, 1)])
    built.wasi("sched_yield", (), ("i32",))
    built.globals = [("i32", i32(0))]
    built.exports = [("memory", MEMORY, 0), ("f", FUNC, 1), *([export] if export else [])]
    built.elements = [segment] if segment else []
    built.function(call(0) + b"\x1a" + i32(0) + b"\x40\x00\x1a")
    built.function(code)
    return built.build()


@pytest.mark.parametrize("beyond", range(3))
@pytest.mark.parametrize(
    ("what", "first"),
    [
        ("call", 3),
        ("return_call", 3),
        ("call_indirect type", 2),
        ("call_indirect table", 1),
        ("memory.size", 1),
        ("memory.grow", 1),
        ("load", 1),
        ("memory.copy", 1),
        ("table.get", 1),
        ("global.get", 1),
        ("export of a function", 3),
        ("export of a memory", 1),
        ("export of a table", 1),
        ("element", 3),
    ],
)
def test_the_guest_cannot_name_what_is_appended(what: str, first: int, beyond: int) -> None:
    """The attack: the original names an index that the guard's function, memory or table would get.

    It is validated as it came, so it is not valid. With the last index of its own it is.
    """

    def build(index: int) -> bytes:
        code = {
            "call": b"\x10" + leb(index) + (b"\x1a" if index == 0 else b""),
            "return_call": b"\x12" + leb(index),
            "call_indirect type": i32(0) + b"\x11" + leb(index) + b"\x00" + (b"\x1a" if index == 0 else b""),
            "call_indirect table": i32(0) + b"\x11\x00" + leb(index) + b"\x1a",
            "memory.size": b"\x3f" + leb(index) + b"\x1a",
            "memory.grow": i32(0) + b"\x40" + leb(index) + b"\x1a",
            "load": i32(0) + b"\x28" + (b"\x42" + leb(index) if index else b"\x02") + b"\x00\x1a",
            "memory.copy": i32(0) * 3 + b"\xfc\x0a" + leb(index) + b"\x00",
            "table.get": i32(0) + b"\x25" + leb(index) + b"\x1a",
            "global.get": b"\x23" + leb(index) + b"\x1a",
        }.get(what, b"")
        kinds = {"export of a function": FUNC, "export of a memory": MEMORY, "export of a table": 1}
        return _hello_with(
            code,
            export=("x", kinds[what], index) if what in kinds else None,
            segment=element(1, [index]) if what == "element" else None,
        )

    for refuse in (_validate_original, Sandbox().prepare):
        with pytest.raises(stockade.InvalidModule):
            refuse(build(first + beyond))
    assert Sandbox().call(build(first - 1), "f").outcome is Outcome.OK


def test_a_second_memory_is_refused_unless_the_module_declares_one() -> None:
    """The attack: the flag that names a memory, in a module that has one memory: the guard's would be the second."""
    with pytest.raises(
        stockade.InvalidModule, match=r"^<bytes> uses multiple memories, which the policy does not allow"
    ):
        Sandbox(Policy().replace(multi_memory=False)).prepare(_hello_with(i32(0) + b"\x28\x42\x00\x00\x1a"))
    allowed = Sandbox(Policy().replace(memories=2, multi_memory=True))
    with pytest.raises(stockade.InvalidModule, match=r"^not valid WebAssembly: unknown memory 1"):
        allowed.prepare(_hello_with(i32(0) + b"\x28\x42\x01\x00\x1a"))
    built = Builder(memories=[(1, None), (1, None)])
    built.exports = [("f", FUNC, built.function(i32(0) + b"\x28\x42\x01\x00\x1a"))]
    assert allowed.call(built.build(), "f").ok


# -- what is refused --------------------------------------------------------------------------------------------------


def _refusal(data: bytes) -> str:
    with pytest.raises(stockade.LinkError) as caught:
        check_imports(parse(data))
    with pytest.raises(stockade.LinkError) as by_sandbox:
        Sandbox().run(data)
    # A sandbox may find no entry point first; where there is one it says the same.
    assert str(by_sandbox.value) == str(caught.value)
    return str(caught.value)


def _importing(text: str) -> bytes:
    return assemble(f'(module {text} (func (export "_start")))')


_ONLY_WASI = (
    "Guests get WASI preview 1 (wasi_snapshot_preview1). Run the module from Python and provide these with "
    "Sandbox.host_function(...), or rebuild it without them"
)


@pytest.mark.parametrize("wanted", WASI, ids=lambda wanted: wanted.name)
def test_a_wasi_function_under_a_wrong_type_is_refused(wanted: stockade._wasi.WasiCall) -> None:
    """The attack: a guard function called under another type. Its own type is accepted."""
    params = " ".join(wanted.params)
    result = " ".join(wanted.results)
    right = f'(import "wasi_snapshot_preview1" "{wanted.name}" (func (param {params}) (result {result})))'
    wrong = f'(import "wasi_snapshot_preview1" "{wanted.name}" (func (param {params} f64) (result {result})))'
    sound = f"({', '.join(wanted.params)}) -> ({', '.join(wanted.results)})"
    given = f"({', '.join([*wanted.params, 'f64'])}) -> ({', '.join(wanted.results)})"

    assert _refusal(_importing(wrong)) == (
        f"the module imports wasi_snapshot_preview1.{wanted.name} as {given}, but in WASI preview 1 it is {sound}: "
        "rebuild it with a current toolchain"
    )
    woven = weave(_importing(right), guard())
    assert woven.guard_functions.count(wanted.name) == 1
    Engine.shared(_WOVEN).validate(woven.wasm)


@pytest.mark.parametrize(
    ("text", "listed", "hint"),
    [
        ('(import "env" "f" (func (param i32)))', "env.f (function (i32) -> ())", _ONLY_WASI),
        ('(import "env" "m" (memory 1))', "env.m (memory)", _ONLY_WASI),
        ('(import "env" "t" (table 1 funcref))', "env.t (table)", _ONLY_WASI),
        ('(import "env" "g" (global i32))', "env.g (global)", _ONLY_WASI),
        (
            '(import "wasi_snapshot_preview1" "sock_open" (func (result i32)))',
            "wasi_snapshot_preview1.sock_open (function () -> (i32))",
            _ONLY_WASI,
        ),
        (
            '(import "wasi_snapshot_preview1" "fd_write" (global i32))',
            "wasi_snapshot_preview1.fd_write (global)",
            _ONLY_WASI,
        ),
        (
            '(import "wasi_unstable" "fd_write" (func (param i32 i32 i32 i32) (result i32)))',
            "wasi_unstable.fd_write (function (i32, i32, i32, i32) -> (i32))",
            "wasi_unstable is an outdated preview: rebuild the module for wasm32-wasip1",
        ),
        (
            '(import "wasi:cli/environment@0.2.0" "get-environment" (func (param i32)))',
            "wasi:cli/environment@0.2.0.get-environment (function (i32) -> ())",
            "It was built for WASI 0.2: rebuild it for wasm32-wasip1",
        ),
        (
            '(import "wbg" "f" (func))',
            "wbg.f (function () -> ())",
            "It was built for a JavaScript host: rebuild it for WASI (wasm32-wasip1, GOOS=wasip1)",
        ),
        (
            " ".join(f'(import "env" "f{number}" (func))' for number in range(7)),
            ", ".join(f"env.f{number} (function () -> ())" for number in range(5)) + " and 2 more",
            _ONLY_WASI,
        ),
        (
            r'(import "\1b]0;x" "\ff" (func))'.replace(r"\ff", r"\u{202e}"),
            r"\x1b]0;x.\u202e (function () -> ())",
            _ONLY_WASI,
        ),
    ],
)
def test_imports_that_nothing_provides_are_refused(text: str, listed: str, hint: str) -> None:
    """What is missing is named, escaped and in small number, with what to do about it."""
    assert _refusal(_importing(text)) == f"nothing provides what the module imports: {listed}. {hint}"


def test_wasi_alone_is_provided() -> None:
    """The positive twin: all of WASI preview 1 at once."""
    built = Builder(memories=[(1, None)])
    for wanted in WASI_BY_NAME.values():
        built.wasi(wanted.name, wanted.params, wanted.results)
    built.exports = [("memory", MEMORY, 0), ("_start", FUNC, built.function(b""))]

    woven = weave(built.build(), guard())

    assert woven.natives == ()
    assert set(WASI_BY_NAME) <= set(woven.guard_functions)
    assert Sandbox().run(built.build()).ok


@pytest.mark.parametrize(
    ("imports", "asked"),
    [
        (("fd_write",), 0),
        (("proc_exit", "fd_read"), 1),
        (("fd_read", "fd_write"), 1),
        (("fd_write", "poll_oneoff"), None),
        (("sched_yield",), None),
        ((), None),
    ],
)
def test_the_guard_asks_by_a_read_or_write_for_what_halts_the_guest(
    imports: tuple[str, ...], asked: int | None
) -> None:
    """Where the guest imports one, and not what halts it. Nothing else of the guard is changed by that."""
    built = Builder(memories=[(1, None)])
    for wanted in imports:
        built.wasi(wanted, WASI_BY_NAME[wanted].params, WASI_BY_NAME[wanted].results)
    built.exports = [("memory", MEMORY, 0), ("_start", FUNC, built.function(b""))]
    data = built.build()

    woven = weave(data, guard())

    check_woven(data, woven)
    prove(parse(data), woven)
    assert woven.asks is (asked is not None)
    result = decode(woven.wasm)
    for native in woven.natives:
        # Behind the functions of the guard itself.
        *_, place = (place for place, found in enumerate(woven.guard_functions) if found == native.name)
        body = result.code[woven.guest_functions - result.imported_functions + place].instrs
        calls = [instr.args[0] for instr in body if instr.op == "call"]
        assert calls == ([asked] if native.name == "poll_oneoff" and asked is not None else [])
        assert [instr.op for instr in body if instr.op == "call_indirect"] == ["call_indirect"]
        assert [instr.args for instr in body if instr.op == "table.get"] == [(0,)] * len(calls)


def test_hello_world_is_woven_alike_every_time() -> None:
    """What is woven depends on the module alone, so that it can be cached by its hash."""
    data = wat(HELLO).data

    assert weave(data, guard()).wasm == weave(bytes(data), guard()).wasm
    assert len(weave(data, guard()).wasm) > len(data)
    assert weave(data + custom("x"), guard()).wasm == weave(data, guard()).wasm


@pytest.mark.parametrize("calls", [1, 200])
def test_a_function_that_outgrows_the_engine_is_the_modules_fault(calls: int) -> None:
    """A function so close to the engine's limit that the guard's longer indices take it beyond: refused, not run.

    The module cannot be run, and nothing is wrong with the engine. With few enough calls it is run.
    """
    built = Builder(memories=[(1, None)], exports=[("memory", MEMORY, 0), ("f", FUNC, 1)])
    built.wasi("sched_yield", (), ("i32",))
    for _ in range(130):
        built.function(b"")
    built.function((call(0) + b"\x1a") * calls + b"\x01" * (7_654_321 - 100 - 3 * calls))
    data = built.build()
    _validate_original(data)

    sandbox = Sandbox(Policy(structure=ModuleLimits(function_size=7_654_321)))
    if calls == 1:
        assert sandbox.call(data, "f").ok
        return
    with pytest.raises(stockade.ModuleError):
        sandbox.call(data, "f")


@pytest.mark.parametrize("what", ["memories", "tables"])
def test_a_module_that_has_all_there_may_be_is_told_so(what: str) -> None:
    """As many memories or tables as the engine takes, to which the guard adds one: which bound, and what to do.

    With one less it is woven and proven.
    """
    sandbox = Sandbox(Policy().replace(**{what: 100, "multi_memory": True}))
    for count in (99, 100):
        built = Builder(memories=[(0, None)], exports=[("memory", MEMORY, 0), ("f", FUNC, 1)])
        built.wasi("clock_time_get", ("i32", "i64", "i32"), ("i32",))
        if what == "memories":
            built.memories = [(1, None)] * count
        else:
            built.tables = [(FUNCREF, 0)] * count
        built.function(i32(0) + b"\x42\x00" + i32(0) + call(0) + b"\x1a")
        if count == 99:
            prove(parse(built.build()), weave(built.build(), guard()))
            continue
        with pytest.raises(stockade.InvalidModule) as caught:
            sandbox.call(built.build(), "f")
        assert re.sub(r" \(at offset 0x[0-9a-f]+\)", "", str(caught.value)) == (
            f"<bytes> leaves no room for the guard: {what} count exceeds limit of 100. "
            "Build it with less of that, or as several modules"
        )


def test_an_unknown_element_form_is_refused() -> None:
    """The attack: a segment that only the weaver reads. The engine refuses it first; so does the weaver alone."""
    built = Builder()
    built.wasi("sched_yield", (), ("i32",))
    good = built.build() + section(9, vec([element(1, [0])]))
    bad = built.build() + section(9, vec([b"\x08"]))

    assert weave(good, guard()).state_export == b"memory"
    with pytest.raises(stockade.InvalidModule) as caught:
        weave(bad, guard())
    assert "element segment of the unknown form 8 at byte " in str(caught.value)
    assert END == b"\x0b"
