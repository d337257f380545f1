"""WebAssembly proposals: a guest gets those that its policy allows, however it asks for them, and no other.

Holds P-LOAD-3.
"""

from __future__ import annotations

from itertools import count

import pytest

from stockade import Features, InvalidModule, Limits, Module, Policy, PolicyError, Sandbox
from stockade.engine import assemble
from stockade.policy._fields import fields_of
from tests.conftest import HELLO, wat

ANSWER = 7

# Modules that need one proposal each, by all ways that lead into it; what `f` returns is put in for {0}.
AVAILABLE = {
    "simd": {
        "instruction": '(func (export "f") (result i32) (i32x4.extract_lane 1 (i32x4.splat (i32.const {0}))))',
        "constant": ('(func (export "f") (result i32) (drop (v128.const i64x2 1 2)) (i32.const {0}))'),
        "local": '(func (export "f") (result i32) (local v128) (i32.const {0}))',
        "parameter": '(func (param v128)) (func (export "f") (result i32) (i32.const {0}))',
        "result": '(func (result v128) (unreachable)) (func (export "f") (result i32) (i32.const {0}))',
        "type": '(type (func (param v128))) (func (export "f") (result i32) (i32.const {0}))',
        "block": (
            '(func (export "f") (result i32) (drop (block (result v128) (i64x2.splat (i64.const 1)))) (i32.const {0}))'
        ),
        "global": '(global v128 (v128.const i64x2 1 2)) (func (export "f") (result i32) (i32.const {0}))',
        "memory": '(memory 1) (func (export "f") (result i32) (drop (v128.load (i32.const 0))) (i32.const {0}))',
        "where it is never executed": (
            '(func (drop (i8x16.splat (i32.const 1)))) (func (export "f") (result i32) (i32.const {0}))'
        ),
    },
    "relaxed_simd": {
        "instruction": (
            '(func (export "f") (result i32)'
            " (i32x4.extract_lane 1 (i32x4.relaxed_trunc_f32x4_s (f32x4.splat (f32.const {0})))))"
        ),
        "where it is never executed": (
            "(func (param v128) (drop (i8x16.relaxed_swizzle (local.get 0) (local.get 0))))"
            ' (func (export "f") (result i32) (i32.const {0}))'
        ),
    },
    "tail_call": {
        "call": '(func $g (result i32) (i32.const {0})) (func (export "f") (result i32) (return_call $g))',
        "indirect call": (
            "(type $t (func (result i32))) (table funcref (elem $g)) (func $g (type $t) (i32.const {0}))"
            ' (func (export "f") (result i32) (return_call_indirect (type $t) (i32.const 0)))'
        ),
    },
    "multi_memory": {
        "two memories": '(memory 1) (memory 1) (func (export "f") (result i32) (i32.const {0}))',
        "load": (
            '(memory 1) (memory $b 1) (data (memory $b) (i32.const 0) "\\{0:02x}")'
            ' (func (export "f") (result i32) (i32.load8_u $b (i32.const 0)))'
        ),
        "copy": (
            '(memory $a 1) (memory $b 1) (data (memory $b) (i32.const 0) "\\{0:02x}")'
            ' (func (export "f") (result i32)'
            " (memory.copy $a $b (i32.const 0) (i32.const 0) (i32.const 1)) (i32.load8_u (i32.const 0)))"
        ),
    },
    "extended_const": {
        "global": '(global i32 (i32.add (i32.const 3) (i32.const 4))) (func (export "f") (result i32) (global.get 0))',
        "global of 64 bits": (
            "(global i64 (i64.mul (i64.const 3) (i64.const 4)))"
            ' (func (export "f") (result i32) (drop (global.get 0)) (i32.const {0}))'
        ),
        "data": (
            '(memory 1) (data (i32.sub (i32.const 9) (i32.const 1)) "\\{0:02x}")'
            ' (func (export "f") (result i32) (i32.load8_u (i32.const 8)))'
        ),
        "element": (
            "(table 9 funcref) (elem (i32.add (i32.const 1) (i32.const 1)) $g) (func $g (result i32) (i32.const {0}))"
            ' (func (export "f") (result i32) (call_indirect (result i32) (i32.const 2)))'
        ),
    },
    "exceptions": {
        "throw": (
            '(tag $t (param i32)) (func (export "f") (result i32)'
            " (block $h (result i32) (try_table (catch $t $h) (throw $t (i32.const {0}))) (i32.const 1)))"
        ),
        "tag": '(tag (param i32)) (func (export "f") (result i32) (i32.const {0}))',
        "reference": '(func (export "f") (result i32) (drop (ref.null exn)) (i32.const {0}))',
        "local": '(func (export "f") (result i32) (local exnref) (i32.const {0}))',
    },
    "function_references": {
        "call": (
            "(type $t (func (result i32))) (elem declare func $g) (func $g (type $t) (i32.const {0}))"
            ' (func (export "f") (result i32) (call_ref $t (ref.func $g)))'
        ),
        "type": '(type $t (func)) (func (param (ref null $t))) (func (export "f") (result i32) (i32.const {0}))',
        "table": '(table 1 funcref (ref.null func)) (func (export "f") (result i32) (i32.const {0}))',
        "branch": (
            '(func (export "f") (result i32) (block (br_on_null 0 (ref.null func)) (unreachable)) (i32.const {0}))'
        ),
    },
    "gc": {
        "struct": (
            "(type $s (struct (field i32)))"
            ' (func (export "f") (result i32) (struct.get $s 0 (struct.new $s (i32.const {0}))))'
        ),
        "array": (
            '(type $a (array i8)) (func (export "f") (result i32) (array.len (array.new_default $a (i32.const {0}))))'
        ),
        "i31": '(func (export "f") (result i32) (i31.get_s (ref.i31 (i32.const {0}))))',
        "cast": '(func (export "f") (result i32) (drop (ref.test (ref i31) (ref.null any))) (i32.const {0}))',
        "recursive types": '(rec (type (func)) (type (func))) (func (export "f") (result i32) (i32.const {0}))',
        "sub types": '(type (sub (func))) (func (export "f") (result i32) (i32.const {0}))',
    },
    "memory64": {
        "memory": (
            '(memory i64 1) (data (i64.const 0) "\\{0:02x}") (func (export "f") (result i32) (i32.load (i64.const 0)))'
        ),
        "table": '(table i64 1 funcref) (func (export "f") (result i32) (i32.const {0}))',
    },
    "threads": {
        "shared memory": '(memory 1 1 shared) (func (export "f") (result i32) (i32.const {0}))',
        "atomic instruction": (
            '(memory 1) (data (i32.const 0) "\\{0:02x}")'
            ' (func (export "f") (result i32) (i32.atomic.load (i32.const 0)))'
        ),
        "fence": '(func (export "f") (result i32) (atomic.fence) (i32.const {0}))',
    },
}
CASES = [pytest.param(feature, way, id=f"{feature} {way}") for feature, ways in AVAILABLE.items() for way in ways]

LEGACY_EXCEPTIONS = bytes.fromhex(
    "0061736d 01000000"
    "01 05 01 60 00 01 7f"  # type: () -> i32
    "03 02 01 00"
    "07 05 01 01 66 00 00"  # export "f"
    "0a 0c 01 0a 00 06 7f 41 07 19 41 08 0b 0b"  # try 7 catch_all 8
)

# Modules that need what no policy can allow.
NEVER: dict[str, str | bytes] = {
    "legacy exceptions": LEGACY_EXCEPTIONS,
    "page sizes": '(memory 1 (pagesize 1)) (func (export "f") (result i32) (i32.const 7))',
    "wide arithmetic": (
        '(func (export "f") (result i32) (i64.mul_wide_u (i64.const 1) (i64.const 2)) drop drop (i32.const 7))'
    ),
    "continuations": '(type $f (func)) (type (cont $f)) (func (export "f") (result i32) (i32.const 7))',
}

_serial = count()


def fresh(body: str) -> Module:
    """A module that nothing in this process has seen: its machine code cannot be at hand."""
    return wat(f'(module (func (export "_start") (export "{__name__} {next(_serial)}")) {body})')


def policy(*features: str) -> Policy:
    """A policy that allows these proposals and no other."""
    allowed = {name: name in features for name in fields_of(Features)}
    return Policy(features=Features(**allowed), limits=Limits(memories=2))


def with_(feature: str) -> Policy:
    return policy(feature, *NEEDED.get(feature, ()))


NEEDED = {"relaxed_simd": ("simd",), "gc": ("function_references",)}
"""What a feature cannot be allowed without."""


def without(feature: str) -> Policy:
    """A policy that allows everything that can be enforced but one proposal, and what needs it."""
    dependents = {name for name, needed in NEEDED.items() if feature in needed}
    return policy(*(set(AVAILABLE) - {feature} - dependents))


def test_there_is_a_guest_for_every_feature() -> None:
    """A new field of `Features` fails here until it is tested."""
    assert [*AVAILABLE] == list(fields_of(Features))


@pytest.mark.parametrize(("feature", "way"), CASES)
def test_a_guest_gets_the_proposals_that_its_policy_allows(feature: str, way: str) -> None:
    """Refused without, accepted with it, and nothing else is needed."""
    body = AVAILABLE[feature][way].format(ANSWER)
    box = Sandbox(without(feature))

    for attempt in (box.prepare, box.run, box.open, lambda module: box.call(module, "f")):
        with pytest.raises(InvalidModule, match=rf"features\.{feature}\b"):
            attempt(fresh(body))
    report = Sandbox(with_(feature)).call(fresh(body), "f")
    assert report.check().value == ANSWER


@pytest.mark.parametrize(("feature", "way"), CASES)
@pytest.mark.parametrize("first", ["with", "without"])
def test_machine_code_of_one_policy_does_not_serve_a_stricter_one(first: str, feature: str, way: str) -> None:
    """Attack: a module compiled for a policy that allows a proposal is at hand when one comes that does not."""
    module = fresh(AVAILABLE[feature][way].format(ANSWER))
    allowing, refusing = Sandbox(with_(feature)), Sandbox(without(feature))

    def allow() -> None:
        assert allowing.call(module, "f").check().value == ANSWER
        assert Sandbox(with_(feature)).call(module.data, "f").check().value == ANSWER

    def refuse() -> None:
        for same in (module, module.data):
            with pytest.raises(InvalidModule):
                refusing.call(same, "f")
            with pytest.raises(InvalidModule):
                Sandbox(without(feature)).call(same, "f")

    for step in (allow, refuse, allow) if first == "with" else (refuse, allow, refuse):
        step()


@pytest.mark.parametrize(("feature", "way"), CASES)
def test_a_policy_for_one_call_allows_no_more_than_both(feature: str, way: str) -> None:
    """Attack: a call brings a laxer policy of its own; or the code of a laxer call serves the next, stricter one."""
    module = fresh(AVAILABLE[feature][way].format(ANSWER))
    lax, strict = with_(feature), without(feature)
    box = Sandbox(lax)

    assert box.call(module, "f", policy=lax).check().value == ANSWER
    with pytest.raises(InvalidModule):
        box.call(module, "f", policy=strict)
    assert box.call(module, "f").check().value == ANSWER
    with pytest.raises(InvalidModule):
        Sandbox(strict).call(module, "f", policy=lax)


@pytest.mark.parametrize("what", NEVER)
def test_some_proposals_are_for_no_guest(what: str) -> None:
    """Such a module is refused under any policy that can be used."""
    source = NEVER[what]
    wasm = source if isinstance(source, bytes) else assemble(f"(module {source})")

    for allowed in (Policy(), policy(), policy(*AVAILABLE)):
        with pytest.raises(
            InvalidModule, match=r"which this release cannot run: build it without$|legacy_exceptions feature required"
        ):
            Sandbox(allowed).call(wasm, "f")


def test_gc_needs_function_references() -> None:
    """Objects have typed references, so no policy can allow the one and not the other."""
    for attempt in (
        lambda: Features(gc=True, function_references=False),
        lambda: Policy().replace(gc=True, function_references=False),
        lambda: Policy.loads("[features]\ngc = true\nfunction_references = false"),
    ):
        with pytest.raises(PolicyError) as caught:
            attempt()
        assert str(caught.value) == (
            "features.gc is true and features.function_references is false: it needs function_references, too"
        )


NEEDS_SIMD = "features.relaxed_simd is true and features.simd is false: it needs simd, too"


def test_relaxed_simd_needs_simd() -> None:
    """An engine with the one and not the other would abort the process, so no such policy can be made."""
    attempts = (
        lambda: Features(simd=False, relaxed_simd=True),
        lambda: Policy().replace(simd=False, relaxed_simd=True),
        lambda: Policy(features=Features(relaxed_simd=True)).replace(simd=False),
        lambda: Policy.loads("[features]\nsimd = false\nrelaxed_simd = true"),
        lambda: Policy.loads("extends = 'permissive'\n[features]\nsimd = false"),
    )
    for attempt in attempts:
        with pytest.raises(PolicyError) as caught:
            attempt()
        assert str(caught.value) == NEEDS_SIMD

    Policy.loads("extends = 'permissive'\n[features]\nsimd = false\nrelaxed_simd = false")


@pytest.mark.parametrize(
    "features", [(), ("simd",), ("simd", "relaxed_simd"), ("tail_call",), tuple(AVAILABLE)], ids=str
)
def test_a_plain_guest_needs_no_proposal(features: tuple[str, ...]) -> None:
    """The process lives with any features on and off, and what asks for none of them runs."""
    assert Sandbox(policy(*features)).run(wat(HELLO)).stdout == b"hello world\n"


def test_two_memories_need_the_feature_and_the_limit() -> None:
    """Neither of the two stands for the other, and the message names the one that is missing."""
    module = fresh(AVAILABLE["multi_memory"]["two memories"].format(ANSWER))
    limits, features = Limits(memories=2), Features(multi_memory=True)

    assert Sandbox(Policy(limits=limits, features=features)).call(module, "f").value == ANSWER
    for lacking, message in (
        (Policy(limits=Limits(memories=1), features=features), "has 2 memories; the policy allows 1 (limits.memories)"),
        (
            Policy(limits=limits, features=Features(multi_memory=False)),
            "has 2 memories; the policy allows one (features.multi_memory)",
        ),
    ):
        with pytest.raises(InvalidModule) as caught:
            Sandbox(lacking).call(module, "f")
        assert str(caught.value) == f"<bytes> {message}"
