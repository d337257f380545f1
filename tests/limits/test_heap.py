"""Objects that the engine collects count towards the limit of memory, and so do exceptions.

Holds P-LIMIT-3.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from stockade import EngineError, Features, Limits, Outcome, Policy, Sandbox
from stockade.engine import Instance, InstantiationError
from stockade.errors import LimitExceeded
from stockade.execution._plan import Plan
from tests.conftest import wat

pytestmark = pytest.mark.usefixtures("everywhere")

_ALLOWED = Features(gc=True)
_MIB = 1 << 20

_LEAKS = """
  (type $n (struct (field (ref null $n)) (field i64 i64 i64)))
  (type $a (array (mut i8)))
  (global $kept (mut (ref null $n)) (ref.null $n))
  (tag $e (param exnref))
  (func (export "structures")
    (loop $again
      (global.set $kept (struct.new $n (global.get $kept) (i64.const 1) (i64.const 2) (i64.const 3)))
      (br $again)))
  (func (export "array") (param i32) (result i32) (array.len (array.new_default $a (local.get 0))))
  (func (export "exceptions") (local $last exnref)
    (loop $again
      (block $caught (result exnref)
        (try_table (catch_all_ref $caught) (throw $e (local.get $last)))
        (unreachable))
      (local.set $last)
      (br $again)))
  (func (export "dropped") (param i32) (result i32)
    (loop $again
      (drop (struct.new $n (ref.null $n) (i64.const 1) (i64.const 2) (i64.const 3)))
      (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))
    (i32.const 7))
"""
_LEAKING = f"(module {_LEAKS})"
_GROWING = f"""(module {_LEAKS} (memory (export "memory") 1)
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "both") (param i32) (result i32)
    (drop (memory.grow (local.get 0)))
    (array.len (array.new_default $a (i32.const 3000000)))))"""


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4_096


@pytest.mark.parametrize("text", [_LEAKING, _GROWING], ids=["no memory", "a memory that grows"])
@pytest.mark.parametrize("function", ["structures", "exceptions"])
def test_a_guest_that_makes_objects_for_ever_ends_at_the_limit_of_memory(function: str, text: str) -> None:
    """The attack: a heap of objects instead of a memory. The run ends with its reason, and the host has what it had."""
    sandbox = Sandbox(Policy(limits=Limits(memory=32 * _MIB, wall_time=60), features=_ALLOWED))
    sandbox.call(wat(text), "array", 1)
    before = _resident_bytes()

    with sandbox.open(wat(text)) as session:
        report = session.call(function)
        grown = _resident_bytes() - before

    assert report.outcome is Outcome.MEMORY
    assert [(found.kind, found.subject, found.limit, found.action) for found in report.violations] == [
        ("memory", "limits.memory", 32 * _MIB, "stop")
    ]
    assert report.trap is None
    assert grown < 48 * _MIB


def test_objects_that_are_dropped_are_collected() -> None:
    """The positive twin: three times as many bytes of objects as there may be, one after the other."""
    report = Sandbox(Policy(limits=Limits(memory=16 * _MIB), features=_ALLOWED)).call(
        wat(_LEAKING), "dropped", 1_000_000
    )

    assert (report.outcome, report.value) == (Outcome.OK, 7)


@pytest.mark.parametrize("length", [1 << 24, (1 << 32) - 1], ids=["as much as there is", "all that 32 bits tell"])
def test_one_array_that_is_too_large_ends_the_run(length: int) -> None:
    """The attack: all of the memory in one instruction. A smaller array is there."""
    sandbox = Sandbox(Policy(limits=Limits(memory=16 * _MIB), features=_ALLOWED))

    report = sandbox.call(wat(_LEAKING), "array", length)

    assert report.outcome in (Outcome.MEMORY, Outcome.TRAP)
    assert report.trap is None or report.trap.code == "allocation_too_large"
    assert sandbox.call(wat(_LEAKING), "array", 4 * _MIB).value == 4 * _MIB


def test_memories_and_the_heap_share_what_they_may_have() -> None:
    """The attack: as much again beside a memory that has grown to the limit. Each has its half where both can grow."""
    sandbox = Sandbox(Policy(limits=Limits(memory=16 * _MIB), features=_ALLOWED))

    with sandbox.open(wat(_GROWING)) as session:
        assert session.call("grow", 127).value == 1
        refused = session.call("grow", 1)
        assert refused.value == -1
        assert [(found.subject, found.limit) for found in refused.violations] == [("limits.memory", 8 * _MIB)]
        assert session.call("array", 4 * _MIB - 100).value == 4 * _MIB - 100
        assert session.call("array", 8 * _MIB).outcome is Outcome.MEMORY
    assert sandbox.call(wat(_GROWING), "both", 127).value == 3_000_000


def test_a_memory_grows_beyond_what_the_heap_may_have() -> None:
    """The positive twin: exceptions alone leave seven eighths to the memories, and the engine lets one have them."""
    text = """(module (tag $e) (memory (export "memory") 1)
      (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
      (func (export "catch") (result i32)
        (block $caught (try_table (catch_all $caught) (throw $e)) (return (i32.const 0)))
        (i32.const 1)))"""

    with Sandbox(Policy(limits=Limits(memory=16 * _MIB))).open(wat(text)) as session:
        assert session.call("grow", 14 * 16 - 1).value == 1
        assert session.call("catch").value == 1
        assert session.call("grow", 1).value == -1


def test_a_guest_that_starts_with_all_its_memory_has_no_heap() -> None:
    """The attack: memories that take all there may be, and objects beside them."""
    text = _LEAKING.replace("(module", "(module (memory 16)")

    report = Sandbox(Policy(limits=Limits(memory=1 * _MIB), features=_ALLOWED)).call(wat(text), "structures")

    assert report.outcome is Outcome.MEMORY


def test_a_guest_from_a_snapshot_has_the_same_share() -> None:
    """The attack: a heap beyond its share, in a guest whose memory was larger than that when it began."""
    text = """(module (tag $e (param exnref)) (memory (export "memory") 1)
      (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
      (func (export "leak") (local $last exnref)
        (loop $again
          (block $caught (result exnref)
            (try_table (catch_all_ref $caught) (throw $e (local.get $last)))
            (unreachable))
          (local.set $last)
          (br $again))))"""
    sandbox = Sandbox(Policy(limits=Limits(memory=256 * _MIB, wall_time=60)))

    with sandbox.open(wat(text)) as session:
        assert session.call("grow", 200 * 16).value == 1
        with session.fork() as fork:
            before = _resident_bytes()
            assert fork.call("leak").outcome is Outcome.MEMORY
            assert _resident_bytes() - before < 48 * _MIB


def _beginning(what: str, count: int) -> str:
    """A guest that begins with arrays of a megabyte each, before anything of it runs."""
    array = "(array.new_default $a (i32.const 131072))"
    begins = {
        "globals": f"(global (ref $a) {array})" * count,
        "elements": f"(table $t {count} (ref null $a)) (elem (table $t) (i32.const 0) (ref null $a)"
        + f" (item {array})" * count
        + ")",
        "tables": f"(table 1 (ref $a) {array})" * count,
    }
    return f'(module (type $a (array i64)) {begins[what]} (func (export "_start")))'


@pytest.mark.parametrize("what", ["globals", "elements", "tables"])
def test_what_a_module_begins_with_has_the_limit_of_memory(what: str) -> None:
    """The attack: objects that are made with the instance, before the first instruction."""
    sandbox = Sandbox(Policy(limits=Limits(memory=32 * _MIB, tables=50), features=_ALLOWED))

    report = sandbox.run(wat(_beginning(what, 40)))

    assert report.outcome is Outcome.MEMORY
    assert [(found.kind, found.subject, found.limit, found.action) for found in report.violations] == [
        ("memory", "limits.memory", 32 * _MIB, "stop")
    ]
    assert report.trap is None
    with pytest.raises(LimitExceeded):
        sandbox.open(wat(_beginning(what, 40).replace("_start", "go")))
    # The twin: with room for it, it runs.
    assert sandbox.run(wat(_beginning(what, 10))).outcome is Outcome.OK
    assert (
        Sandbox(Policy(limits=Limits(memory=256 * _MIB, tables=50), features=_ALLOWED))
        .run(wat(_beginning(what, 40)))
        .ok
    )


@pytest.mark.differs("the engine is changed here, which workers have of their own")
def test_an_engine_without_room_is_no_fault_of_a_guest_that_begins_with_no_objects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The twin: what the engine lacks is told as that, also where the guest could make objects later."""

    def instantiate(self: Plan, guard_bytes: int, *, streamed: bool = False) -> Instance:
        raise InstantiationError("no instance can be made: no room")

    sandbox = Sandbox(Policy(limits=Limits(memory=32 * _MIB), features=_ALLOWED))
    monkeypatch.setattr(Plan, "instantiate", instantiate)
    with pytest.raises(EngineError, match=r"^no instance can be made: no room$"):
        sandbox.call(wat(_LEAKING), "array", 1)
