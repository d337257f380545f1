"""One budget for all memories and tables of a run: what the report says of it, and what the host has of it.

Holds P-LIMIT-2.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade import Denied, EngineError, Module, Outcome, Policy, Report, Sandbox, wasm
from stockade.compilation import forget_programs
from stockade.engine import assemble
from stockade.guard import guard, weave
from stockade.worker import _prepare
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.wasm import ParsedModule, Scan

PAGE = 65_536
MEMORIES = 20


@cache
def grower(memories: int = MEMORIES, pages: int = 1, elements: int = 0) -> Module:
    """A guest that grows any of its memories, or its table, and touches what it gets."""
    names = range(memories)
    grow = "".join(
        f"(if (i32.eq (local.get 0) (i32.const {name})) (then"
        f" (local.set $had (memory.grow {name} (local.get 1)))"
        "  (if (i32.ne (local.get $had) (i32.const -1)) (then"
        f"  (memory.fill {name} (i32.shl (local.get $had) (i32.const 16)) (i32.const 7)"
        "   (i32.shl (local.get 1) (i32.const 16)))))"
        " (return (local.get $had))))"
        for name in names
    )
    return wat(f"""
    (module
      {"".join(f"(memory {pages})" for _ in names)}
      (table $table {elements} funcref)
      (elem declare func $grow)
      (func $grow (export "grow") (param i32 i32) (result i32) (local $had i32) {grow} (i32.const -2))
      (func (export "grow_table") (param i32) (result i32) (table.grow $table (ref.func $grow) (local.get 0)))
      (func (export "in_turn") (param $rounds i32) (result i32) (local $at i32) (local $granted i32)
        (loop $next
          (if (i32.ne (call $grow (i32.rem_u (local.get $at) (i32.const {memories})) (i32.const 1)) (i32.const -1))
            (then (local.set $granted (i32.add (local.get $granted) (i32.const 1)))))
          (if (i32.ne (table.grow $table (ref.null func) (i32.const 1000)) (i32.const -1))
            (then (local.set $granted (i32.add (local.get $granted) (i32.const 1)))))
          (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1))) (local.get $rounds))))
        (local.get $granted)))
    """)


def box(memory: int, **changes: object) -> Sandbox:
    """A sandbox that allows twenty memories within so many bytes."""
    return Sandbox(Policy().replace(memories=MEMORIES, multi_memory=True, memory=memory, **changes))


def violations(report: Report) -> list[tuple[str, str, float | None, float | None, int]]:
    """What was refused."""
    return [(v.kind, v.subject, v.limit, v.observed, v.count) for v in report.violations]


def test_twenty_memories_have_one_budget() -> None:
    """Attack: a limit for each memory would be twenty limits. The budget is exact to the page."""
    limit = (MEMORIES + 10) * PAGE
    with box(limit).open(grower()) as session:
        for name in range(10):
            assert session.call("grow", name, 1).value == 1
        report = session.call("grow", 10, 1)
        assert report.value == -1
        assert report.usage.memory_bytes == report.usage.memory_peak_bytes == limit
        assert [(v.kind, v.limit, v.observed) for v in report.violations] == [("memory", limit, limit + PAGE)]
        assert session.call("grow", 0, 0).value == 2
        assert session.call("grow", 19, 0).value == 1


def test_one_of_twenty_memories_may_have_all_that_is_left() -> None:
    """The twin. No share is set aside for the other memories."""
    report = box((MEMORIES + 100) * PAGE).call(grower(), "grow", 7, 100)

    assert (report.value, report.outcome, report.violations) == (1, Outcome.OK, ())
    assert report.usage.memory_peak_bytes == (MEMORIES + 100) * PAGE


def test_growth_that_is_refused_is_told_even_if_the_guest_ignores_it() -> None:
    """The outcome stays `ok`, the report tells of 100 MB denied under 2 MB."""
    report = box(32 * PAGE).call(grower(), "grow", 0, 1600)

    assert (report.value, report.outcome) == (-1, Outcome.OK)
    assert [(v.kind, v.limit, v.observed, v.action) for v in report.violations] == [
        ("memory", 32 * PAGE, (MEMORIES + 1600) * PAGE, "deny")
    ]
    assert report.usage.memory_peak_bytes == MEMORIES * PAGE


def test_growth_that_is_refused_ends_the_run_where_the_policy_says_so() -> None:
    """The strict form."""
    report = box(32 * PAGE, on_memory_denied="stop").call(grower(), "grow", 0, 1600)

    assert (report.value, report.outcome) == (None, Outcome.MEMORY)
    assert report.usage.memory_peak_bytes == MEMORIES * PAGE


@pytest.mark.parametrize(
    ("limits", "call", "kind"),
    [
        ({}, ("grow", 0, 1600), "memory"),
        ({"memory_growth": 10}, ("grow", 0, 11), "memory_growth"),
        ({"table_elements": 10}, ("grow_table", 11), "table"),
        ({"table_elements": 10_000_000}, ("grow_table", 1 << 18), "memory"),
        ({"memory_growth": 1}, ("grow_table", 8193), "memory_growth"),
    ],
)
def test_refused_growth_is_a_violation_that_stops_the_run(
    limits: dict[str, Any], call: tuple[Any, ...], kind: str
) -> None:
    """As any other under `on_violation = "stop"`; without it the guest gets -1, and goes on."""
    stopped = box(MEMORIES * PAGE + (1 << 20), on_violation="stop", **limits).call(grower(), *call)
    assert (stopped.value, stopped.outcome) == (None, Outcome.DENIED)
    assert [(v.kind, v.action) for v in stopped.violations] == [(kind, "stop")]
    assert stopped.usage.memory_peak_bytes == MEMORIES * PAGE
    with pytest.raises(Denied):
        stopped.check()

    failed = box(MEMORIES * PAGE + (1 << 20), **limits).call(grower(), *call)
    assert (failed.value, failed.outcome) == (-1, Outcome.OK)
    assert [(v.kind, v.action) for v in failed.violations] == [(kind, "deny")]

    both = box(MEMORIES * PAGE + (1 << 20), on_violation="stop", on_memory_denied="stop", **limits).call(
        grower(), *call
    )
    assert (both.value, both.outcome) == (None, Outcome.MEMORY)


@pytest.mark.parametrize("limit", [10_000, 10_000_000])
def test_a_table_of_twenty_million_elements_is_refused(limit: int) -> None:
    """Attack: 160 MB as table elements, past a limit on memory of 64 MB."""
    report = box(64 << 20, table_elements=limit).call(grower(), "grow_table", 20_000_000)

    assert report.value == -1
    assert [(v.kind, v.call, v.limit, v.observed) for v in report.violations] == [
        ("table", "table.grow", limit, 20_000_000)
    ]
    assert (report.usage.table_elements, report.usage.memory_peak_bytes) == (0, MEMORIES * PAGE)


def test_table_elements_are_paid_from_the_memory_budget() -> None:
    """Eight bytes each, up to the last byte of what is left, and not one element more."""
    limit = (MEMORIES + 1) * PAGE
    fits = PAGE // 8
    with box(limit, table_elements=10_000_000).open(grower()) as session:
        over = session.call("grow_table", fits + 1)
        assert over.value == -1
        assert [v.kind for v in over.violations] == ["memory"]
        exact = session.call("grow_table", fits)
        assert (exact.value, exact.usage.memory_peak_bytes, exact.usage.table_elements) == (0, limit, fits)
        assert session.call("grow_table", 1).value == -1
        assert session.call("grow", 3, 1).value == -1


def test_memories_and_a_table_in_turn_stay_within_the_budget() -> None:
    """Attack: growth of both kinds in small steps, a thousand times, none of which is over anything by itself."""
    limit = 64 * PAGE
    report = box(limit, table_elements=10_000_000).call(grower(), "in_turn", 1000)

    used = report.usage.memory_peak_bytes
    elements = report.usage.table_elements
    assert limit - 8_000 < used <= limit
    assert elements % 1000 == 0
    assert (used - elements * 8) % PAGE == 0
    assert report.value == (used - elements * 8) // PAGE - MEMORIES + elements // 1000
    assert {violation.kind for violation in report.violations} == {"memory"}
    assert sum(violation.count for violation in report.violations) == 2000 - int(report.value)


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 40)), max_size=12), st.integers(4, 60))
def test_what_was_granted_is_what_is_reported(asked: list[tuple[int, int]], pages: int) -> None:
    """Whatever is asked for in whatever order: a simple sum, done twice."""
    limit = pages * PAGE
    used, elements = 4 * PAGE, 0
    with box(limit, table_elements=20_000).open(grower(4)) as session:
        for name, amount in asked:
            if name < 0:
                more = amount * 1000
                granted = elements + more <= 20_000 and used + more * 8 <= limit
                report = session.call("grow_table", more)
                elements += more if granted else 0
                used += more * 8 if granted else 0
            else:
                granted = used + amount * PAGE <= limit
                report = session.call("grow", name, amount)
                used += amount * PAGE if granted else 0
            assert (report.value != -1) is granted
            assert bool(report.violations) is not granted
            assert report.usage.memory_bytes == report.usage.memory_peak_bytes == used
            assert report.usage.table_elements == elements


def test_memories_that_begin_above_the_budget_are_not_made() -> None:
    """Together they are too many, though each is within the limit."""
    report = box(39 * PAGE).call(grower(MEMORIES, pages=2), "grow", 0, 0)

    assert (report.outcome, report.value) == (Outcome.MEMORY, None)
    assert violations(report) == [("memory", "initial memory", 39 * PAGE, 40 * PAGE, 1)]
    assert box(40 * PAGE).call(grower(MEMORIES, pages=2), "grow", 0, 0).value == 2


def test_a_table_that_begins_above_the_budget_is_not_made() -> None:
    """By the number of elements, and by the memory that they take."""
    module = grower(1, 1, 50_000)
    by_count = box(64 << 20).call(module, "grow", 0, 0)
    by_bytes = box(6 * PAGE, table_elements=50_000).call(module, "grow", 0, 0)

    assert (by_count.outcome, by_bytes.outcome) == (Outcome.MEMORY, Outcome.MEMORY)
    assert violations(by_count) == [("table", "initial tables", 10_000, 50_000, 1)]
    assert violations(by_bytes) == [("memory", "initial memory", 6 * PAGE, PAGE + 400_000, 1)]
    fits = box(8 * PAGE, table_elements=50_000).call(module, "grow", 0, 0)
    assert (fits.value, fits.usage.memory_peak_bytes) == (1, PAGE + 400_000)


# -- in the host's own memory -----------------------------------------------------------------------------------------

_MEASURE = """
import sys
from stockade import Policy, Sandbox
sys.path.insert(0, sys.argv[2])
from tests.execution.test_growth_budget import MEMORIES, PAGE, box, grower

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

module = grower()
sandbox = box((64 << 20), table_elements=10_000_000)
with sandbox.open(module) as session:
    session.call("grow", 0, 0)
with sandbox.open(module) as session:
    before = resident()
    if sys.argv[1] == "memory":
        granted = sum(session.call("grow", name % MEMORIES, 50).value != -1 for name in range(200))
    elif sys.argv[1] == "table":
        granted = sum(session.call("grow_table", size).value != -1 for size in (20_000_000, 10_000_000, 8_000_000))
    else:
        granted = 0
        for name in range(200):
            granted += session.call("grow", name % MEMORIES, 20).value != -1
            granted += session.call("grow_table", 100_000).value != -1
    usage = session.call("grow", 0, 0).usage
print(resident() - before, granted, usage.memory_peak_bytes, usage.table_elements)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("memory", "table")), "both"]
)
def test_the_host_has_no_more_of_it_than_the_report_says(kind: str) -> None:
    """Attack: what the report does not tell, the host still pays for. Every page granted is touched."""
    root = str(Path(__file__).parents[2])
    result = subprocess.run(
        [sys.executable, "-c", _MEASURE, kind, root], capture_output=True, text=True, timeout=100, check=False
    )
    assert result.returncode == 0, result.stderr
    more, granted, told, elements = map(int, result.stdout.split())

    assert told <= 64 << 20
    assert more <= told + (8 << 20)
    if kind == "table":
        assert (granted, elements) == (1, 8_000_000)
    assert granted > 0
    # What is granted is really there: the figure is none of thin air.
    assert more > told // 2


# -- isolation --------------------------------------------------------------------------------------------------------

SECRET = b"the secret of the one before"

KEEPER = f"""
(module (memory (export "memory") 16) (memory 16)
  (data $secret "{SECRET.decode()}")
  (func (export "keep") (result i32) (local $at i32)
    (loop $next
      (memory.init 0 $secret (local.get $at) (i32.const 0) (i32.const {len(SECRET)}))
      (memory.init 1 $secret (local.get $at) (i32.const 0) (i32.const {len(SECRET)}))
      (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 4096))) (i32.const {15 * PAGE}))))
    (i32.load8_u (i32.const 4096))))
"""

SEEKER = f"""
(module (memory (export "memory") 1) (memory 16) (memory 0)
  (func $sum (param $end i32) (result i32) (local $at i32) (local $found i32)
    (loop $next
      (local.set $found (i32.or (local.get $found) (i32.or (i32.load (local.get $at))
        (i32.load 2 (local.get $at)))))
      (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 4))) (local.get $end))))
    (local.get $found))
  (func (export "seek") (result i32)
    (drop (memory.grow 0 (i32.const 15)))
    (drop (memory.grow 2 (i32.const 16)))
    (memory.copy 2 1 (i32.const 0) (i32.const 0) (i32.const {16 * PAGE}))
    (call $sum (i32.const {16 * PAGE}))))
"""


def test_a_secret_of_one_guest_is_not_in_the_memories_of_the_next() -> None:
    """Attack: pooled memory is used again. Fresh memory, and grown memory, is zeros."""
    sandbox = box(256 * PAGE)
    keeper, seeker = wat(KEEPER), wat(SEEKER)
    for _ in range(20):
        assert sandbox.call(keeper, "keep").value == SECRET[0]
        assert sandbox.call(seeker, "seek").value == 0


def test_a_secret_of_a_live_guest_is_not_in_the_memories_of_another() -> None:
    """While the first one still has it, in sessions of several sandboxes and of one module."""
    keeper, seeker = wat(KEEPER), wat(SEEKER)
    with box(256 * PAGE).open(keeper) as first, box(256 * PAGE).open(keeper) as twin:
        assert first.call("keep").value == SECRET[0]
        assert first.read_memory(4096, len(SECRET)) == SECRET
        assert SECRET not in twin.read_memory(0, 16 * PAGE)
        with box(256 * PAGE).open(seeker) as second:
            assert second.call("seek").value == 0
            assert second.read_memory(0, 16 * PAGE) == bytes(16 * PAGE)


def test_the_table_of_one_run_is_not_that_of_the_next() -> None:
    """The same for tables: what one run put there is no reference for the next one to call."""
    module = wat("""
    (module (table $t 0 funcref) (elem declare func $f)
      (func $f (result i32) (i32.const 42))
      (func (export "put") (result i32) (table.grow $t (ref.func $f) (i32.const 100)))
      (func (export "look") (result i32) (local $at i32) (local $found i32)
        (drop (table.grow $t (ref.null func) (i32.const 100)))
        (loop $next
          (if (i32.eqz (ref.is_null (table.get $t (local.get $at)))) (then (local.set $found (i32.const 1))))
          (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1))) (i32.const 100))))
        (local.get $found)))
    """)
    sandbox = Sandbox()
    for _ in range(20):
        assert sandbox.call(module, "put").value == 0
        assert sandbox.call(module, "look").value == 0


# -- growth that the guard does not see --------------------------------------------------------------------------------


@pytest.fixture
def _missing_growth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A weaver that sees the first growth of a body only: what it would take for a guest to grow behind its back."""

    def scan(module: ParsedModule) -> Scan:
        found = wasm.scan(module)
        return replace(found, sites={body: sites[:1] for body, sites in found.sites.items()})

    monkeypatch.setattr(_prepare, "scan", scan)
    monkeypatch.setenv("STOCKADE_CACHE", str(tmp_path))
    forget_programs()
    yield
    forget_programs()


def _growing_twice(kind: str) -> bytes:
    """A guest that grows a memory or table by so many pages or elements, twice; the second time, nobody sees it."""
    one = {"memory": "(memory.grow $m (local.get 0))", "table": "(table.grow $t (ref.null func) (local.get 0))"}[kind]
    return assemble(f"""
      (module (memory $m (export "memory") 1) (table $t 1 funcref)
        (func (export "grow") (param i32) (result i32)
          (drop (memory.grow $m (i32.const 0))) {one})
        (func (export "touch") (param i32) (drop (table.grow $t (ref.null func) (i32.const 0)))
          (i32.store (i32.mul (local.get 0) (i32.const 65536)) (i32.const 1))))""")


@pytest.mark.usefixtures("_missing_growth")
@pytest.mark.parametrize("kind", ["memory", "table"])
def test_growth_that_was_missed_is_noticed(kind: str) -> None:
    """The attack: growth that goes round the account. Nothing is told of such a run: it would be untrue."""
    policy = Policy().replace(compile_process="never", memory=40 * PAGE)

    with pytest.raises(EngineError) as caught:
        Sandbox(policy).call(_growing_twice(kind), "grow", 3)

    added = 3 * PAGE if kind == "memory" else 24
    assert str(caught.value) == (
        f"the guest has {PAGE + 8 + added:,} bytes of memories and tables, and the guard has counted {PAGE + 8:,}: "
        "what it did cannot be told. Report this, with the module"
    )
    assert Sandbox(policy).call(_growing_twice(kind), "grow", 0).ok


@pytest.mark.usefixtures("_missing_growth")
@pytest.mark.parametrize("pages", [20, 700])
@pytest.mark.parametrize("stdout", [0, 20 * PAGE])
def test_growth_that_was_missed_is_held_at_the_limit(pages: int, stdout: int) -> None:
    """The attack: the same, beyond the limit. The engine holds it there, also where the guard needs more for itself."""
    policy = Policy().replace(compile_process="never", memory=pages * PAGE, stdout=stdout, stderr=stdout)

    with Sandbox(policy).open(_growing_twice("memory")) as session:
        assert session.call("grow", pages).value == -1
        # As much as that there may be; but it is noticed.
        with pytest.raises(EngineError, match="cannot be told"):
            session.call("grow", pages - 1)


@pytest.mark.parametrize("kind", ["memory", "table"])
def test_what_no_instruction_grows_cannot_grow(kind: str) -> None:
    """The attack: growth that was missed in a module where none was seen: the engine has a memory of a fixed size."""
    grow = {"memory": "(memory.grow (i32.const 1))", "table": "(table.grow (ref.null func) (i32.const 1))"}[kind]
    module = wasm.parse(
        assemble(f"""(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
                       (memory (export "memory") 2 9) (table (export "t") 3 9 funcref)
                       (func (export "f") (result i32) {grow}))""")
    )
    seen, missed = weave(module, guard()), weave(module, guard(), wasm.Scan())

    for woven, grows in ((seen, True), (missed, False)):
        found = wasm.parse(woven.wasm)
        fixed = (found.memory_limits[0].maximum == 2, found.tables[0].maximum == 3)
        assert fixed == (kind != "memory" or not grows, kind != "table" or not grows)
