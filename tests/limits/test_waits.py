"""Atomic instructions and shared memories, where no thread can be started.

Holds P-TIME-7.
"""

from __future__ import annotations

import time

import pytest

import stockade
from stockade import Features, Limits, Outcome, Policy, Sandbox
from stockade.guard import guard, weave
from stockade.policy import Clock
from stockade.wasm import parse
from tests.conftest import wat

pytestmark = pytest.mark.usefixtures("everywhere")

_ALLOWED = Features(threads=True, memory64=True)
_POLICY = Policy(features=_ALLOWED)


def _waits(memory: str, address: str) -> str:
    return f"""(module (memory (export "memory") {memory})
      (func (export "wait32") (param i32 i64) (result i32)
        (memory.atomic.wait32 offset=8 ({address}.const 8) (local.get 0) (local.get 1)))
      (func (export "wait64") (param i64 i64) (result i32)
        (memory.atomic.wait64 offset=8 ({address}.const 8) (local.get 0) (local.get 1)))
      (func (export "beyond") (result i32)
        (memory.atomic.wait32 offset=0xfffffffc ({address}.const 4) (i32.const 0) (i64.const 0)))
      (func (export "outside") (result i32)
        (memory.atomic.wait64 ({address}.const 65536) (i64.const 0) (i64.const 0)))
      (func (export "misaligned") (result i32)
        (memory.atomic.wait32 ({address}.const 2) (i32.const 0) (i64.const 0)))
      (func (export "notify") (result i32) (memory.atomic.notify ({address}.const 16) (i32.const 9)))
      (func (export "add") (result i32)
        (drop (i32.atomic.rmw.add ({address}.const 16) (i32.const 5)))
        (atomic.fence)
        (i32.atomic.load ({address}.const 16))))"""


_SHARED = {"32": _waits("1 1 shared", "i32"), "64": _waits("i64 1 1 shared", "i64")}


@pytest.mark.parametrize("text", _SHARED.values(), ids=_SHARED.keys())
def test_a_wait_on_a_shared_memory_is_the_guards(text: str) -> None:
    """Another value is told at once; a time passes, and nobody could notify. Where the instruction traps, it traps."""
    with Sandbox(_POLICY).open(wat(text)) as session:
        assert session.call("wait32", 1, -1).value == 1
        assert session.call("wait64", 1, -1).value == 1
        assert session.call("wait32", 0, 0).value == 2
        slept = session.call("wait64", 0, 20_000_000)
        assert (slept.value, slept.usage.idle_seconds >= 0.02) == (2, True)
        assert session.call("notify").value == 0
        assert session.call("add").value == 5
    for function, code in (
        ("beyond", "memory_out_of_bounds"),
        ("outside", "memory_out_of_bounds"),
        ("misaligned", "heap_misaligned"),
    ):
        trap = Sandbox(_POLICY).call(wat(text), function).trap
        assert trap is not None
        assert trap.code == code


@pytest.mark.parametrize("text", _SHARED.values(), ids=_SHARED.keys())
def test_a_wait_ends_at_the_deadline(text: str) -> None:
    """The attack: a wait without an end, which in the engine would hold the thread out of reach of any deadline."""
    sandbox = Sandbox(Policy(limits=Limits(wall_time=0.2), features=_ALLOWED))
    begun = time.monotonic()

    report = sandbox.call(wat(text), "wait32", 0, -1)

    assert report.outcome is Outcome.TIMEOUT
    assert time.monotonic() - begun < 30
    assert report.usage.cpu_seconds < 0.2


def test_a_wait_is_held_to_the_limit_of_idle_time() -> None:
    """A wait of the guest's own, as one in `poll_oneoff`."""
    report = Sandbox(Policy(limits=Limits(idle_time=0.05), features=_ALLOWED)).call(wat(_SHARED["32"]), "wait32", 0, -1)

    assert report.outcome is Outcome.IDLE


def test_a_virtual_clock_passes_while_a_guest_waits() -> None:
    """Nobody waits on a clock that is made up."""
    policy = Policy(clock=Clock(mode="virtual"), features=_ALLOWED)
    begun = time.monotonic()

    report = Sandbox(policy).call(wat(_SHARED["32"]), "wait32", 0, 3_600_000_000_000)

    assert (report.outcome, report.value) == (Outcome.OK, 2)
    assert time.monotonic() - begun < 600


def test_a_wait_on_a_plain_memory_traps() -> None:
    """As the specification has it."""
    trap = Sandbox(_POLICY).call(wat(_waits("1", "i32")), "wait32", 0, -1).trap

    assert trap is not None
    assert trap.code == "atomic_wait_non_shared_memory"


def test_no_memory_that_runs_is_shared() -> None:
    """The attack: a wait that the weaver has missed. In a memory that is not shared the engine waits for nothing."""
    woven = weave(parse(wat(_SHARED["32"]).data), guard())

    assert [limits.shared for limits in parse(woven.wasm).memory_limits] == [False] * 2
    assert woven.waits


def test_a_shared_memory_that_is_imported_is_refused_in_words() -> None:
    """Nobody could share one with a guest."""
    with pytest.raises(stockade.LinkError, match=r"^nothing provides what the module imports: env.memory \(memory\)"):
        Sandbox(_POLICY).run(wat('(module (import "env" "memory" (memory 1 1 shared)) (func (export "_start")))'))


def test_growth_of_a_shared_memory_counts() -> None:
    """The attack: a kind of memory that the limit does not know."""
    text = """(module (memory 1 100 shared)
      (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))"""
    sandbox = Sandbox(Policy(limits=Limits(memory=4 << 16), features=_ALLOWED))

    with sandbox.open(wat(text)) as session:
        assert session.call("grow", 3).value == 1
        refused = session.call("grow", 1)
    assert (refused.value, refused.usage.memory_bytes) == (-1, 4 << 16)
    assert [found.kind for found in refused.violations] == ["memory"]
