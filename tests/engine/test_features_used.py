"""Which WebAssembly proposals a module uses, and that one which may not be used is refused by its name.

Holds P-LOAD-3.
"""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from stockade import Features, InvalidModule, Policy, Sandbox
from stockade.engine import PROPOSALS, RUN_PROPOSALS, assemble, features_used
from stockade.policy import runnable_features
from stockade.worker._features import proposals_used
from tests.conftest import program_path, wat

# What uses a proposal, and what it is told to use.
_USES = {
    "simd": ("(func (drop (v128.const i32x4 0 0 0 0)))", ("simd",)),
    "simd type": ("(type (func (param v128)))", ("simd",)),
    "relaxed_simd": (
        "(func (drop (i32x4.relaxed_trunc_f32x4_s (v128.const i32x4 0 0 0 0))))",
        ("simd", "relaxed_simd"),
    ),
    "tail_call": ("(func $f return_call $f)", ("tail_call",)),
    "multi_memory": ("(memory 1) (memory 1)", ("multi_memory",)),
    "shared memory": ("(memory 1 1 shared)", ("threads",)),
    "atomics": ("(memory 1) (func (drop (i32.atomic.load (i32.const 0))))", ("threads",)),
    "memory64": ("(memory i64 1)", ("memory64",)),
    "table64": ("(table i64 1 funcref)", ("memory64",)),
    "exceptions": ("(tag $e) (func (throw $e))", ("exceptions",)),
    "exception references": ("(func (local exnref))", ("exceptions",)),
    "gc type": ("(type (struct (field i32)))", ("gc",)),
    "gc instruction": ("(func (drop (ref.i31 (i32.const 1))))", ("gc",)),
    "function_references": ("(type $t (func)) (func (param (ref null $t)))", ("function_references",)),
    "initialised table": ("(table 1 funcref (ref.null func))", ("function_references",)),
    "typed calls": (
        "(type $t (func)) (elem declare func $f) (func $f (call_ref $t (ref.func $f)))",
        ("function_references",),
    ),
    "sum in a global": ("(global i32 (i32.add (i32.const 1) (i32.const 2)))", ("extended_const",)),
    "sum in a table": (
        "(type $a (array i32)) (table 1 (ref $a) (array.new_default $a (i32.mul (i32.const 1) (i32.const 2))))",
        ("extended_const", "gc"),
    ),
    "sum in an element": (
        "(table 9 funcref) (elem (i32.const 0) func) (elem (i32.sub (i32.const 3) (i32.const 2)) funcref)",
        ("extended_const",),
    ),
    "sum in data": (
        '(memory 1) (data "x") (data (i32.const 1) "y") (data (i32.add (i32.const 3) (i32.const 2)) "z")',
        ("extended_const",),
    ),
    "custom_page_sizes": ("(memory 1 (pagesize 1))", ("custom_page_sizes",)),
    "wide_arithmetic": (
        "(func (param i64) (result i64 i64) (i64.mul_wide_u (local.get 0) (local.get 0)))",
        ("wide_arithmetic",),
    ),
    "stack_switching": ("(type $f (func)) (type $c (cont $f))", ("stack_switching",)),
    "two": ("(memory i64 1 1 shared)", ("threads", "memory64")),
    "three": (
        "(memory 1) (memory 1) (func $f (drop (v128.const i32x4 0 0 0 0)) return_call $f)",
        ("simd", "tail_call", "multi_memory"),
    ),
}

_ALWAYS_ON = """
  (table 1 externref) (memory 1) (data "x")
  (func (result i32 i32) (i32.const 1) (i32.extend8_s (i32.const 2)))
  (func (memory.init 0 (i32.const 0) (i32.const 0) (i32.const 1)) (drop (i32.trunc_sat_f32_s (f32.const 1))))
"""


@pytest.mark.parametrize("case", _USES)
def test_what_a_module_uses_is_told(case: str) -> None:
    """Every proposal that a policy has a field for, and those that none has."""
    text, used = _USES[case]

    assert proposals_used(assemble(f"(module {text})")) == used


def test_what_every_guest_may_use_is_not_told() -> None:
    """The negative twin: multi-value, bulk memory, reference types, sign extension and saturation are always on."""
    assert proposals_used(assemble(f"(module {_ALWAYS_ON})")) == ()
    assert proposals_used(assemble("(module)")) == ()


@pytest.mark.parametrize(("name", "used"), [("graphviz", ()), ("resvg", ()), ("micropython", ("exceptions",))])
def test_what_real_programs_use_is_told(name: str, used: tuple[str, ...]) -> None:
    """Programs from four toolchains; MicroPython jumps by throwing."""
    assert features_used(program_path(name).read_bytes()) == used


def test_what_is_invalid_in_any_case_is_said_to_be() -> None:
    """A function without the result that it promises."""
    with pytest.raises(InvalidModule, match=r"^not valid WebAssembly: type mismatch"):
        features_used(assemble("(module (func (result i32) nop))"))


def test_every_field_of_a_policy_is_a_proposal_that_can_be_told() -> None:
    """A feature that a policy names and the search does not know could not be refused by name."""
    fields = {field.name for field in msgspec.structs.fields(Features)}

    assert fields <= set(PROPOSALS)
    assert runnable_features() == fields
    assert fields - {"extended_const"} == RUN_PROPOSALS


def test_no_set_of_proposals_aborts_the_process() -> None:
    """The library aborts on relaxed SIMD without SIMD: no set that is ever asked for may lead there."""
    script = (
        "from itertools import combinations\n"
        "from stockade.engine._features import PROPOSALS, _validator\n"
        "for size in (0, 1, 2, len(PROPOSALS) - 2, len(PROPOSALS) - 1, len(PROPOSALS)):\n"
        "    for names in combinations(PROPOSALS, size):\n"
        "        _validator(frozenset(names))\n"
        "print('whole')\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, env=os.environ
    )

    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


def _refusal(text: str, policy: Policy) -> str:
    with pytest.raises(InvalidModule) as caught:
        Sandbox(policy).run(wat(f'(module {text} (func (export "_start")))'))
    return str(caught.value)


_SIMD = _USES["simd"][0]
_RELAXED = _USES["relaxed_simd"][0]
_TAIL = _USES["tail_call"][0]


@pytest.mark.parametrize(
    ("text", "without", "told"),
    [
        (_SIMD, ("simd", "relaxed_simd"), "SIMD, which the policy does not allow (features.simd)"),
        (_RELAXED, ("relaxed_simd",), "relaxed SIMD, which the policy does not allow (features.relaxed_simd)"),
        (
            _RELAXED,
            ("simd", "relaxed_simd"),
            "SIMD and relaxed SIMD, which the policy does not allow (features.simd, features.relaxed_simd)",
        ),
        (_TAIL, ("tail_call",), "tail calls, which the policy does not allow (features.tail_call)"),
        (
            _RELAXED + _TAIL,
            ("simd", "relaxed_simd", "tail_call"),
            (
                "SIMD, relaxed SIMD and tail calls, which the policy does not allow "
                "(features.simd, features.relaxed_simd, features.tail_call)"
            ),
        ),
        *(
            (_USES[case][0], (name,), f"{PROPOSALS[name].title}, which the policy does not allow (features.{name})")
            for case, name in (
                ("atomics", "threads"),
                ("shared memory", "threads"),
                ("memory64", "memory64"),
                ("table64", "memory64"),
                ("exceptions", "exceptions"),
                ("exception references", "exceptions"),
                ("gc type", "gc"),
                ("gc instruction", "gc"),
                ("initialised table", "function_references"),
                ("sum in a global", "extended_const"),
                ("sum in an element", "extended_const"),
                ("sum in data", "extended_const"),
            )
        ),
    ],
)
def test_a_feature_that_is_off_is_refused_by_name(text: str, without: tuple[str, ...], told: str) -> None:
    """The message names the features and their fields. Where they are on, the module runs."""
    everything = Policy().replace(relaxed_simd=True, gc=True, memory64=True, threads=True)
    off = dict.fromkeys(without, False)
    if "function_references" in without:
        off["gc"] = False

    assert _refusal(text, everything.replace(**off)) == f"<bytes> uses {told}"
    assert Sandbox(everything).run(wat(f'(module {text} (func (export "_start")))')).ok


@pytest.mark.parametrize("case", [name for name, (_, used) in _USES.items() if not runnable_features() >= set(used)])
def test_what_no_policy_can_allow_is_refused_by_name(case: str) -> None:
    """Whether the reader of modules sees it first or the engine, it is said the same way."""
    text, used = _USES[case]
    titles = " and ".join(PROPOSALS[name].title for name in used)

    for policy in (Policy(), Policy.preset("strict")):
        assert _refusal(text, policy) == f"<bytes> uses {titles}, which this release cannot run: build it without"


def test_what_cannot_run_comes_before_what_is_not_allowed() -> None:
    """Allowing SIMD would not help a guest that also multiplies 128 bits."""
    message = _refusal(_SIMD + _USES["wide_arithmetic"][0], Policy().replace(simd=False))

    assert message == "<bytes> uses wide arithmetic, which this release cannot run: build it without"


def test_an_invalid_module_is_not_blamed_on_features() -> None:
    """The twin: turning features on would not help, so none is named; the offset is."""
    message = _refusal("(func (result i32) nop)", Policy().replace(simd=False))

    assert message.startswith("not valid WebAssembly: type mismatch")


def test_a_module_that_cannot_run_is_loaded_to_be_inspected() -> None:
    """Its kind is told, and every use that would run it is refused by name."""
    module = wat('(module (memory 1 (pagesize 1)) (func (export "_initialize")) (func (export "f")))')

    assert module.kind == "reactor"
    told = "<bytes> uses custom page sizes, which this release cannot run: build it without"
    for use in (
        lambda: Sandbox().call(module, "f"),
        lambda: Sandbox().prepare(module),
        lambda: module.exports,
        lambda: module.parsed,
    ):
        with pytest.raises(InvalidModule) as caught:
            use()
        assert str(caught.value) == told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_features_are_told_in_a_forked_child() -> None:
    """The library's threads are missing in a forked child: whatever waits for one of them hangs for ever."""
    script = (
        "import os, sys, stockade\n"
        "from stockade.engine import assemble, features_used\n"
        "stockade.call(b'(module (func (export \"f\")))', 'f')\n"
        "wasm = assemble('(module' + '(func (drop (v128.const i32x4 0 0 0 0)))' * 99 + '(func (export \"_start\")))')\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    assert features_used(wasm) == ('simd',)\n"
        "    try:\n"
        "        stockade.run(stockade.Module.load(wasm), policy=stockade.Policy().replace(simd=False))\n"
        "    except stockade.InvalidModule as problem:\n"
        "        os._exit(0 if 'uses SIMD' in str(problem) else 2)\n"
        "    os._exit(3)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
