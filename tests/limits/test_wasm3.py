"""What WebAssembly 3.0 adds, under limits: exceptions, 64-bit and several memories, typed tables.

Holds P-LOAD-4.
"""

from __future__ import annotations

import pytest

import stockade
from stockade import Features, Limits, Outcome, Policy, Sandbox
from tests.conftest import wat

pytestmark = pytest.mark.usefixtures("everywhere")

_ALL = Features(gc=True, memory64=True)
_YIELD = '(import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))'


def test_an_exception_that_nothing_catches_is_a_trap_with_a_name() -> None:
    """It is told by the engine's own word for it; the twin catches it."""
    text = """(module (tag $e (param i32))
      (func (export "throw") (throw $e (i32.const 7)))
      (func (export "catch") (result i32)
        (block $caught (result i32) (try_table (catch $e $caught) (throw $e (i32.const 7))) (i32.const 0))))"""

    report = Sandbox().call(wat(text), "throw")

    assert (report.outcome, report.violations) == (Outcome.TRAP, ())
    assert report.trap is not None
    assert (report.trap.code, report.trap.message) == (
        "uncaught_exception",
        "exception that the guest threw and did not catch",
    )
    assert Sandbox().call(wat(text), "catch").value == 7


_SHIELDED = """(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1 100)
  (func $spin (loop $again (br $again)))
  (func $deep (call $deep))
  (func (export "f") (param i32) (result i32)
    (block $caught
      (try_table (catch_all $caught)
        (block $trap (block $stack (block $out (block $memory (block $spin (block $exit
          (br_table $exit $spin $memory $out $stack $trap (local.get 0)))
          (call $exit (i32.const 3)))
          (call $spin))
          (drop (memory.grow (i32.const 99))))
          (drop (call $random (i32.const 0x1fffe) (i32.const 8))))
          (call $deep))
        (unreachable)))
    (i32.const 42)))"""


@pytest.mark.parametrize(
    ("what", "outcome"),
    [
        (0, Outcome.EXIT),
        (1, Outcome.TIMEOUT),
        (2, Outcome.MEMORY),
        (3, Outcome.TRAP),
        (4, Outcome.STACK),
        (5, Outcome.TRAP),
    ],
)
def test_catch_all_catches_no_end_of_a_run(what: int, outcome: Outcome) -> None:
    """The attack: a guest that goes on after its exit, its deadline, its limits or a trap in the guard."""
    limits = Limits(wall_time=0.3, memory=4 << 16, on_memory_denied="stop")

    report = Sandbox(Policy(limits=limits)).call(wat(_SHIELDED), "f", what)

    assert (report.outcome, report.value) == (outcome, None)
    if what == 0:
        assert report.exit_code == 3


def test_an_exception_that_passes_a_host_function_is_the_guests() -> None:
    """A host function raises nothing into the guest: what it raises ends the run, and nothing of it is caught."""
    text = """(module (import "env" "fail" (func $fail))
      (func (export "f") (result i32)
        (block $caught (try_table (catch_all $caught) (call $fail)))
        (i32.const 42)))"""
    sandbox = Sandbox()

    @sandbox.host_function("env")
    def fail() -> None:
        raise ValueError("no")

    report = sandbox.call(wat(text), "f")

    assert report.outcome is Outcome.TRAP
    assert report.value is None


def test_growth_of_64_bit_memories_and_tables_is_held_to_the_limits() -> None:
    """The attack: numbers of 64 bits, in the place of 32, that wrap or are cut on their way to the account."""
    text = """(module (memory $m i64 1) (memory $n 1) (table $t i64 2 funcref) (table $typed 1 (ref null func))
      (func (export "grow") (param i64) (result i64) (memory.grow $m (local.get 0)))
      (func (export "grow_other") (param i32) (result i32) (memory.grow $n (local.get 0)))
      (func (export "grow_table") (param i64) (result i64) (table.grow $t (ref.null func) (local.get 0)))
      (func (export "grow_typed") (param i32) (result i32) (table.grow $typed (ref.null func) (local.get 0)))
      (func (export "store") (param i64) (i64.store $m (local.get 0) (i64.const 1))))"""
    limits = Limits(memory=8 << 16, table_elements=10)

    with Sandbox(Policy(limits=limits, features=_ALL)).open(wat(text)) as session:
        assert session.call("grow", 1).value == 1
        assert session.call("grow_other", 1).value == 1
        assert session.call("grow_table", 3).value == 2
        assert session.call("grow_typed", 2).value == 1
        for function, size in (
            ("grow", 5),
            ("grow", 1 << 32),
            ("grow", 1 << 48),
            ("grow", (1 << 64) - 1),
            ("grow_table", 1 << 32),
            ("grow_table", 1 << 61),
            ("grow_table", (1 << 64) - 1),
        ):
            refused = session.call(function, size)
            assert refused.value == -1
            assert refused.usage.memory_bytes == (4 << 16) + 8 * 8
            assert [found.action for found in refused.violations] == ["deny"]
        assert session.call("grow_typed", 3).value == -1
        assert session.call("store", 0xFFF8).ok
        assert session.call("store", 1 << 33).outcome is Outcome.TRAP


def test_wasi_reads_the_memory_that_is_exported_whatever_its_index() -> None:
    """The third of several memories is where native WASI would look, and so does the guard."""
    text = """(module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (memory 1) (memory i64 1) (memory $io (export "memory") 1)
      (data (memory 0) (i32.const 8) "\\10\\00\\00\\00\\03\\00\\00\\00\\00\\00no\\0a")
      (data (memory $io) (i32.const 8) "\\10\\00\\00\\00\\04\\00\\00\\00yes\\0a")
      (func (export "_start") (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 0)))))"""

    assert Sandbox(Policy(features=_ALL)).run(wat(text)).stdout == b"yes\n"


def test_a_64_bit_memory_is_refused_for_wasi_in_words() -> None:
    """Preview 1 has addresses of 32 bits: a call that passes one cannot be served. One that passes none is."""
    write = '(import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))'

    with pytest.raises(stockade.LinkError) as caught:
        Sandbox(Policy(features=_ALL)).run(
            wat(f'(module {write} (memory (export "memory") i64 1) (func (export "_start")))')
        )
    assert str(caught.value) == (
        "the module's memory has 64-bit addresses, and those of WASI preview 1, which it imports, have 32 bits: "
        "build it for wasm32, or without calls that pass addresses"
    )
    report = Sandbox(Policy(features=_ALL)).run(
        wat(f'(module {_YIELD} (memory (export "memory") i64 1) (func (export "_start") (drop (call $yield))))')
    )
    assert (report.outcome, report.usage.calls) == (Outcome.OK, {"sched_yield": 1})


def test_a_tag_that_is_imported_is_refused_in_words() -> None:
    """Nothing provides tags. One that is exported is nobody's business."""
    with pytest.raises(stockade.LinkError, match=r"^nothing provides what the module imports: env.e \(tag\)"):
        Sandbox().run(wat('(module (import "env" "e" (tag)) (func (export "_start")))'))
    assert Sandbox().run(wat('(module (tag (export "e") (param i32)) (func (export "_start")))')).ok


def test_an_import_by_a_type_in_a_group_is_refused_in_words() -> None:
    """Its references would be to another type than the host's function has."""
    text = """(module (rec (type $a (func (result i32))) (type (struct)))
      (import "wasi_snapshot_preview1" "sched_yield" (func (type $a))) (func (export "_start")))"""

    with pytest.raises(stockade.LinkError, match="may have sub types or is in a group of types"):
        Sandbox(Policy(features=_ALL)).run(wat(text))


@pytest.mark.parametrize("type_", ["anyref", "(ref null $s)", "i31ref", "exnref", "(ref null $f)", "nullfuncref"])
def test_a_function_with_references_is_not_called_from_outside(type_: str) -> None:
    """The message names the type, in words of the text format."""
    shown = type_.replace("$s", "0").replace("$f", "1")
    module = wat(f'(module (type $s (struct)) (type $f (func)) (func (export "f") (param {type_})))')

    with pytest.raises(stockade.UsageError) as caught:
        Sandbox(Policy(features=_ALL)).call(module, "f", 1)

    assert f"parameter 1 is of type {shown}, and references cannot cross the border" in str(caught.value)


def test_objects_keep_a_guest_from_being_snapshotted() -> None:
    """The attack: state in fields of objects, which a snapshot of memories and globals would not have."""
    text = """(module (type $s (struct (field (mut i32)))) (memory (export "memory") 1)
      (global $g (ref $s) (struct.new $s (i32.const 1)))
      (func (export "f") (struct.set $s 0 (global.get $g) (i32.const 2))))"""

    with (
        Sandbox(Policy(features=_ALL)).open(wat(text)) as session,
        pytest.raises(stockade.StockadeError, match="it makes structures or arrays"),
    ):
        session.snapshot()


@pytest.mark.parametrize(
    ("said", "kind", "observed"),
    [
        ("memory i64 0x10001", "memory", 0x10001 << 16),
        ("memory i64 0x1_0000_0000_0000", "memory", 2**63 - 1),
        ("table i64 0x1_0000_0000 funcref", "table", 2**32),
        ("table i64 0xffff_ffff_ffff_ffff funcref", "table", 2**63 - 1),
    ],
)
@pytest.mark.parametrize("grows", [False, True])
def test_what_begins_larger_than_anything_can_be_is_too_large_and_nothing_else(
    said: str, kind: str, observed: int, grows: bool
) -> None:
    """The attack: sizes that the engine does not compile, or that are no number of 64 bits in bytes. Nothing runs."""
    grow = {
        "memory": "(drop (memory.grow (i64.const 0)))",
        "table": "(drop (table.grow (ref.null func) (i64.const 0)))",
    }
    text = f'(module ({said}) (func (export "f") {grow[kind] if grows else ""}))'
    policy = Policy(features=Features(memory64=True)).replace(memory=4 << 30)

    report = Sandbox(policy).call(wat(text), "f")

    assert report.outcome is Outcome.MEMORY
    assert [(found.kind, found.observed, found.action) for found in report.violations] == [(kind, observed, "stop")]
