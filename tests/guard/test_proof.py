"""The proof: the engine itself says that the guest's code reaches nothing that it must not reach.

Holds P-GUARD-3.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stockade
from stockade import Outcome, Policy, Sandbox
from stockade.compilation import _programs
from stockade.engine import Engine, EngineConfig, assemble
from stockade.guard import Woven, guard, proof_copy, prove, weave
from stockade.policy import Features, ModuleLimits
from stockade.wasm import Kind, Scan, Site, _scan, parse, scan
from stockade.worker._prepare import prepare
from tests._examples import examples
from tests.conftest import program_path
from tests.guard._modules import FUNC, FUNCREF, MEMORY, Builder, i32, leb, sleb
from tests.guard.test_encodings import forging, hidden_call, hidden_element
from tests.guard.test_weave import generated_modules

if TYPE_CHECKING:
    from stockade.wasm import ParsedModule, Reader

_WOVEN = EngineConfig(fuel=False, stack_bytes=512 << 10, pooled=False)


@pytest.mark.parametrize("program", ["quickjs", "resvg", "graphviz", "svg-flatten", "usvg"])
def test_real_programs_are_proven(program: str) -> None:
    """The positive twin of all that is refused below."""
    module = parse(program_path(program).read_bytes())
    woven = weave(module, guard())

    prove(module, woven)

    assert woven.entries


# -- readers that lose step --------------------------------------------------------------------------------------------


def _one_byte(reader: Reader) -> str:
    """A reader of types that knows one encoding of each."""
    return f"{reader.byte():#x}"


def _refusal(problem: str) -> str:
    return (
        "<bytes> cannot be guarded, for it is encoded in a way that Stockade reads differently from the engine: "
        f"rebuild it with a current toolchain, and report it if that does not help (not valid WebAssembly: {problem})"
    )


def _told(problem: BaseException) -> str:
    """A message without the place where the guard's functions and types have put it."""
    return re.sub(r" \(at offset 0x[0-9a-f]+\)", "", str(problem))


def _prepare(data: bytes) -> Woven:
    """Makes a module ready to be compiled, as every run does, whatever is kept of earlier ones."""
    return prepare("<bytes>", parse(data), _WOVEN, Features(), ModuleLimits(), lambda _: None)[0]


def test_a_hidden_call_is_refused_whatever_the_reader_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a call of native WASI that the weaver does not see, for its reader is broken here."""
    monkeypatch.setattr(_scan, "guest_value_type", _one_byte)

    with pytest.raises(stockade.InvalidModule) as caught:
        _prepare(hidden_call())

    assert _told(caught.value) == _refusal("type mismatch: expected (ref $type) but nothing on stack")


def test_patched_constants_are_refused_whatever_the_reader_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a store to the guard's memory that comes to be by the weaver's patching."""
    monkeypatch.setattr(_scan, "guest_value_type", _one_byte)

    with pytest.raises(stockade.InvalidModule) as caught:
        _prepare(forging())

    assert _told(caught.value) == _refusal("unknown memory 1")


def test_elements_that_are_misread_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: native WASI among elements that the weaver does not see. What is not read to its end is not woven."""
    from stockade.guard import _sections

    monkeypatch.setattr(_sections, "guest_value_type", lambda reader: "funcref" if reader.byte() else "")

    with pytest.raises(stockade.InvalidModule, match="bytes left over"):
        _prepare(hidden_element(b"\x63\x70"))
    assert _prepare(hidden_element(b"\x70")).entries


def _without(found: Scan, body: int, place: int) -> Scan:
    sites = {number: list(sites) for number, sites in found.sites.items()}
    del sites[body][place]
    return replace(found, sites=sites)


@settings(max_examples=examples(150))
@given(data=generated_modules(), choice=st.integers(0, 10_000))
def test_every_site_that_is_missed_is_noticed(data: bytes, choice: int) -> None:
    """The attack: any one call of native WASI that is left as it was. Growth is held by the engine in another way."""
    module = parse(data)
    found = scan(module)
    calls = [
        (body, place)
        for body, sites in found.sites.items()
        for place, site in enumerate(sites)
        if site.kind in (Kind.CALL, Kind.RETURN_CALL, Kind.REF_FUNC)
    ]
    prove(module, weave(module, guard(), found))
    if not calls:
        return

    missed = weave(module, guard(), _without(found, *calls[choice % len(calls)]))

    with pytest.raises(stockade.InvalidModule):
        _check_validity_and_prove(module, missed)


def _check_validity_and_prove(module: ParsedModule, woven: Woven) -> None:
    Engine.shared(_WOVEN).validate(woven.wasm)
    prove(module, woven)


# -- code that names what was appended ---------------------------------------------------------------------------------

_ROOM = 24
"""Bytes of instructions that do nothing, in the place of which others are put."""


def _guest() -> tuple[ParsedModule, Woven]:
    built = Builder(memories=[(1, None)], tables=[(FUNCREF, 2)])
    built.wasi("sched_yield", (), ("i32",))
    built.wasi("fd_write", ("i32",) * 4, ("i32",))
    built.wasi("proc_exit", ("i32",), ())
    built.exports = [("memory", MEMORY, 0), ("f", FUNC, 3)]
    built.function(b"\x01" * _ROOM)
    module = parse(built.build())
    return module, weave(module, guard())


def _with_code(woven: Woven, code: bytes) -> Woven:
    room = b"\x01" * _ROOM
    assert woven.wasm.count(room) == 1
    assert len(code) <= _ROOM
    return msgspec.structs.replace(woven, wasm=woven.wasm.replace(room, code.ljust(_ROOM, b"\x01")))


def _place(woven: Woven, name: str) -> int:
    return woven.guest_functions + woven.guard_functions.index(name)


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ("native", "type mismatch"),
        ("native with arguments", "type mismatch"),
        ("native in a tail call", "type mismatch"),
        ("native for another", "type mismatch"),
        ("helper", "type mismatch"),
        ("store", "unknown memory 1"),
        ("load", "unknown memory 1"),
        ("copy", "unknown memory 1"),
        ("grow", "unknown memory 1"),
        ("natives", "unknown table 1"),
        ("natives written", "unknown table 1"),
    ],
)
def test_code_that_names_what_was_appended_is_refused(what: str, problem: str) -> None:
    """The attack: each way to name a native function, or something of the guard's, in code that is valid as woven."""
    module, woven = _guest()
    helper = next(
        place
        for place in range(woven.guest_functions, woven.guest_functions + len(woven.guard_functions))
        if place not in woven.entries
        and not parse(woven.wasm).function_type(place).params
        and parse(woven.wasm).function_type(place).results
    )
    code = {
        "native": b"\x10\x00\x1a",
        "native with arguments": i32(0) * 4 + b"\x10\x01\x1a",
        "native in a tail call": i32(0) + b"\x12\x02",
        "native for another": b"\x02\x40" + b"\x10\x00\x1a" + b"\x0b",
        "helper": b"\x10" + leb(helper) + b"\x1a",
        "store": i32(0) + i32(0) + b"\x36\x42\x01\x00",
        "load": i32(0) + b"\x28\x42\x01\x00\x1a",
        "copy": i32(0) * 3 + b"\xfc\x0a\x01\x00",
        "grow": i32(0) + b"\x40\x01\x1a",
        "natives": i32(0) + b"\x11\x00\x01\x1a",
        "natives written": i32(0) + b"\xd0\x70\x26\x01",
    }[what]
    if what.startswith("natives"):
        assert woven.natives_export is not None
    changed = _with_code(woven, code)
    Engine.shared(_WOVEN).validate(changed.wasm)

    with pytest.raises(stockade.InvalidModule, match=problem):
        prove(module, changed)
    prove(module, woven)


@pytest.mark.parametrize("params", [(), ("funcref",), ("externref",), ("funcref", "i32")], ids=str)
def test_a_reference_to_a_function_of_the_guests_calls_nothing(params: tuple[str, ...]) -> None:
    """The attack: a reference in the place of the one that a hidden function takes. None is of its type."""
    built = Builder(memories=[(1, None)])
    built.wasi("sched_yield", (), ("i32",))
    built.exports = [("memory", MEMORY, 0), ("f", FUNC, 1), ("g", FUNC, 2)]
    built.function(b"\x01" * _ROOM)
    built.function(b"", params=params)
    module = parse(built.build())
    woven = weave(module, guard())
    changed = _with_code(woven, b"\xd2\x02" + b"\x10\x00" + b"\x1a\x1a")
    Engine.shared(_WOVEN).validate(changed.wasm)

    with pytest.raises(stockade.InvalidModule, match=r"type mismatch: expected \(ref \$type\), found \(ref \$type\)"):
        prove(module, changed)
    prove(module, _with_code(woven, b"\xd2\x02\x1a"))


def test_an_entry_may_be_called_from_anywhere() -> None:
    """The positive twin: the guard's entries are for the guest, wherever it calls them."""
    module, woven = _guest()

    prove(module, _with_code(woven, b"\x10" + leb(_place(woven, "sched_yield")) + b"\x1a"))


@pytest.mark.parametrize("code", [b"\x10\x00", b"\x12\x02", b"\x10\x01"], ids=bytes.hex)
def test_code_that_never_runs_may_name_anything(code: bytes) -> None:
    """Behind `unreachable` any stack is to the validator's liking, and nothing runs."""
    module, woven = _guest()
    dead = _with_code(woven, b"\x00" + code + b"\x00")

    _check_validity_and_prove(module, dead)


@pytest.mark.parametrize("hidden", ["native", "helper"])
@pytest.mark.parametrize("before", [b"", b"\x00"], ids=["alive", "dead"])
def test_a_reference_to_what_is_hidden_is_refused(hidden: str, before: bytes) -> None:
    """The attack: `ref.func`, which takes no operand; it names only functions that are declared outside of code."""
    module, woven = _guest()
    index = 0 if hidden == "native" else next(
        place for place in range(woven.guest_functions, len(parse(woven.wasm).functions)) if place not in woven.entries
    )  # fmt: skip
    changed = _with_code(woven, before + b"\xd2" + leb(index) + b"\x1a")

    with pytest.raises(stockade.InvalidModule, match="undeclared function reference"):
        prove(module, changed)


@pytest.mark.parametrize("where", ["export", "global", "element"])
def test_what_is_hidden_is_not_named_outside_of_code(where: str) -> None:
    """The attack: a slip of the weaver's in a section where no type shows it."""
    text = {
        "export": '(export "x" (func $yield))',
        "global": "(global funcref (ref.func $yield))",
        "element": "(elem func $yield)",
    }[where]
    module = parse(
        assemble(f"""(module (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
                       (memory (export "memory") 1) {text})""")
    )
    woven = weave(module, guard())
    prove(module, woven)

    with pytest.raises(stockade.InvalidModule, match="is named outside of code"):
        proof_copy(module, msgspec.structs.replace(woven, entries=()))


# -- what the proof stands on ------------------------------------------------------------------------------------------


_TYPES_LIKE_THOSE_THAT_HIDE = {
    "alone": """(type $fresh (func (param (ref func))))
                (type $hidden (func (param (ref $fresh))))""",
    "in a group of two": """(rec (type $fresh (func (param (ref func))))
                                 (type $hidden (func (param (ref $fresh)))))""",
    "in groups of two to four": """
        (rec (type $a (func (param (ref func)))) (type $b (func (param (ref $a)))))
        (rec (type $fresh (func (param (ref func)))) (type $hidden (func (param (ref $fresh)))) (type (func)))
        (rec (type $c (func (param (ref func)))) (type $d (func (param (ref $c)))) (type (func)) (type (func)))""",
    "with types below": """(type $fresh (sub (func (param (ref func)))))
                           (type $lower (sub $fresh (func (param (ref null func)))))
                           (type $hidden (sub (func (param (ref $fresh)))))""",
}
"""Types of a guest's that look like those by which the copy hides what it must not reach."""


def _with_types_like_those_that_hide(types: str) -> tuple[ParsedModule, Woven]:
    module = parse(
        assemble(f"""(module {types}
                       (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
                       (memory (export "memory") 1) (elem declare func $own)
                       (func $own (type $fresh))
                       (func (export "f") {"nop " * _ROOM}))""")
    )
    return module, weave(module, guard())


@pytest.mark.parametrize("types", _TYPES_LIKE_THOSE_THAT_HIDE.values(), ids=_TYPES_LIKE_THOSE_THAT_HIDE.keys())
def test_no_type_of_the_guests_is_equal_to_the_one_that_hides(types: str) -> None:
    """The attack: a function of the guest's with the type that native functions seem to take a reference to."""
    module, woven = _with_types_like_those_that_hide(types)
    changed = _with_code(woven, b"\xd2\x01" + b"\x10\x00" + b"\x1a\x1a")
    Engine.shared(_WOVEN).validate(changed.wasm)

    with pytest.raises(stockade.InvalidModule, match=r"type mismatch: expected \(ref \$type\), found \(ref \$type\)"):
        prove(module, changed)
    prove(module, _with_code(woven, b"\xd2\x01\x1a"))


def test_the_group_of_the_type_that_hides_has_a_size_of_its_own() -> None:
    """The attack: groups of every size up to some number. The copy takes the next one."""
    groups = "".join(f"(rec {'(type (func (param (ref func))))' * size})" for size in range(60))
    module = parse(
        assemble(f"""(module {groups} (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
                                  (memory (export "memory") 1))""")
    )
    woven = weave(module, guard())

    copy = parse(proof_copy(module, woven))

    assert module.group_sizes == {0, *range(2, 60)}
    assert copy.group_sizes - parse(woven.wasm).group_sizes == {60}
    assert len(copy.types) == len(parse(woven.wasm).types) + 60
    prove(module, woven)


_CASTS = {
    "ref.cast to the type": b"\xd2\x01" + b"\xfb\x16" + b"FRESH" + b"\x10\x00" + b"\x1a",
    "ref.null of the type": b"\xd0" + b"FRESH" + b"\xd4\x10\x00\x1a",
    "call_ref of the type": b"\xd2\x01\xd2\x01\x14" + b"FRESH",
    "block of the type": b"\x02" + b"FRESH" + b"\x00\x0b\x10\x00\x1a",
    "br_on_cast to the type": b"\x02\x40\xd2\x01\xfb\x18\x00\x00\x70" + b"FRESH" + b"\x1a\x0b",
}


@pytest.mark.parametrize("code", _CASTS.values(), ids=_CASTS.keys())
def test_a_guest_cannot_name_the_types_that_hide(code: bytes) -> None:
    """The attack: the index that the type has in the copy, which is none in the module that runs."""
    _, woven = _with_types_like_those_that_hide(_TYPES_LIKE_THOSE_THAT_HIDE["alone"])
    fresh = len(parse(woven.wasm).types)
    changed = _with_code(woven, code.replace(b"FRESH", sleb(fresh)))

    with pytest.raises(stockade.InvalidModule, match="unknown type"):
        Engine.shared(_WOVEN).validate(changed.wasm)


_BOTTOM = b"\xd0\x73\xd4"
"""A reference to no function, which traps."""


@pytest.mark.parametrize("place", ["native", "helper"])
def test_code_behind_the_bottom_of_functions_may_name_anything(place: str) -> None:
    """The one value that fits what a hidden function takes is one that there is not: it traps before the call."""
    module, woven = _guest()
    hidden = 0 if place == "native" else _place(woven, "helper")
    changed = _with_code(woven, _BOTTOM + b"\x10" + leb(hidden) + b"\x00")

    prove(module, changed)
    report = Sandbox(Policy(features=Features(gc=True))).call(
        assemble("""(module (import "wasi_snapshot_preview1" "sched_yield" (func $y (result i32)))
                      (memory (export "memory") 1)
                      (func (export "f") (result i32) (drop (ref.as_non_null (ref.null nofunc))) (call $y)))"""),
        "f",
    )
    assert (report.outcome, report.usage.calls) == (Outcome.TRAP, {})
    assert report.trap is not None
    assert report.trap.code == "null_reference"


_REFERENCES = {
    "struct.new": "(type $s (struct (field funcref))) (global (ref $s) (struct.new $s (ref.func $yield)))",
    "array.new_fixed": "(type $a (array funcref)) (global (ref $a) (array.new_fixed $a 1 (ref.func $yield)))",
    "table initialiser": "(table 3 (ref func) (ref.func $yield))",
    "typed element": "(type $t (func (result i32))) (elem (ref $t) (ref.func $yield))",
    "64-bit table": "(table i64 3 funcref) (elem (table 0) (i64.const 0) funcref (ref.func $yield))",
}


@pytest.mark.parametrize("where", _REFERENCES.values(), ids=_REFERENCES.keys())
def test_references_outside_of_code_are_the_guards(where: str) -> None:
    """The attack: each place of WebAssembly 3.0 where a function may be named. All are written anew."""
    module = parse(
        assemble(f"""(module (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
                       (memory (export "memory") 1) {where})""")
    )
    woven = weave(module, guard())

    prove(module, woven)

    with pytest.raises(stockade.InvalidModule, match="is named outside of code"):
        proof_copy(module, msgspec.structs.replace(woven, entries=()))


def test_a_reference_to_an_import_calls_the_guard_in_every_way() -> None:
    """The attack: references to a native function, called, cast, kept in objects, and thrown. Each call is counted."""
    data = assemble("""(module
      (type $f (func (result i32)))
      (type $s (struct (field $f (ref $f))))
      (type $a (array (ref $f)))
      (import "wasi_snapshot_preview1" "sched_yield" (func $y (result i32)))
      (memory (export "memory") 1)
      (table $typed 2 (ref $f) (ref.func $y))
      (table $wide i64 2 funcref)
      (global $g (ref $f) (ref.func $y))
      (tag $e (param (ref $f)))
      (elem $passive (ref $f) (ref.func $y))
      (elem declare func $y)
      (func $tail (result i32) (return_call_ref $f (ref.func $y)))
      (func $thrown (result i32)
        (block $caught (result (ref $f))
          (try_table (catch $e $caught) (throw $e (ref.func $y)))
          (unreachable))
        (call_ref $f))
      (func (export "f") (result i32) (local $kept (ref null $f))
        (local.set $kept (ref.func $y))
        (drop (call_ref $f (ref.func $y)))
        (drop (call_ref $f (local.get $kept)))
        (drop (call $tail))
        (drop (call_ref $f (struct.get $s $f (struct.new $s (ref.func $y)))))
        (drop (call_ref $f (array.get $a (array.new_elem $a $passive (i32.const 0) (i32.const 1)) (i32.const 0))))
        (drop (call_ref $f (table.get $typed (i32.const 1))))
        (table.set $wide (i64.const 1) (ref.func $y))
        (drop (call_indirect $wide (type $f) (i64.const 1)))
        (drop (call_ref $f (ref.cast (ref $f) (table.get $wide (i64.const 1)))))
        (drop (call_ref $f (global.get $g)))
        (drop (call $thrown))
        (drop (ref.test (ref $f) (ref.func $y)))
        (br_on_null 0 (i32.const 0) (local.get $kept))
        (call_ref $f)
        (drop)))""")
    policy = Policy(features=Features(gc=True, memory64=True))

    report = Sandbox(policy).call(data, "f")

    assert (report.outcome, report.value, report.usage.calls) == (Outcome.OK, 0, {"sched_yield": 11})


def test_machine_code_is_kept_with_the_version_of_its_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that was compiled under an older proof, or under none, is not found again."""
    module = stockade.Module.load(hidden_call())
    before = _programs._key(module, _programs.Build(_WOVEN))
    assert _programs._key(module, _programs.Build(_WOVEN)) == before

    monkeypatch.setattr(_programs, "PROOF_VERSION", 0)

    assert _programs._key(module, _programs.Build(_WOVEN)) != before


@pytest.mark.parametrize("what", ["memory", "table"])
def test_growth_of_what_is_not_there_is_refused(what: str) -> None:
    """The attack: a reader that has lost step sees growth of a memory that there is not."""
    module, _ = _guest()
    kind = Kind.MEMORY_GROW if what == "memory" else Kind.TABLE_GROW
    start, end = module.bodies[0]
    lost = Scan(sites={0: [Site(kind, start + 1, start + 3, 7)]}, grown={(kind, 7)})

    with pytest.raises(stockade.InvalidModule) as caught:
        weave(module, guard(), lost)

    assert str(caught.value) == f"the code grows {what} 7, and there are 1"
    assert end > start
