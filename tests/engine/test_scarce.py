"""What a process has little of: engines and their address space, file descriptors, and the interpreter's lock.

Holds P-ENGINE-1 and P-ENGINE-2.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stockade
from stockade import Mount, Outcome, Policy, Sandbox
from stockade.engine import Engine, EngineConfig, _engine
from stockade.engine._capi import LONG_CALLS, SHORT_CALLS, capi
from stockade.system import _descriptors
from stockade.system._descriptors import Descriptors
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from pathlib import Path

SEVEN = wat('(module (func (export "f") (result i32) (i32.const 7)))')


def alone(script: str, *arguments: str) -> object:
    """What a script prints as JSON, in a process of its own, which must come to its end."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return json.loads(done.stdout)


# -- engines ----------------------------------------------------------------------------------------------------------

MANY_ENGINES = """
import gc, itertools, json
import stockade
from stockade import Clock, Policy, Random, Sandbox
from stockade.engine import Engine
from stockade.compilation import forget_programs
plain = stockade.Module.load(b'''(module (func (export "f") (result i32) (i32.const 7)))''', text=True)
lent = stockade.Module.load(
    b'''(module (import "env" "seven" (func $seven (result i32))) (func (export "f") (result i32) (call $seven)))''',
    text=True)
ways = itertools.cycle(itertools.product((None, 10**9), (False, True), (plain, lent)))

def seven() -> int:
    return 7

def go():
    sessions, most = [], 0
    for number, (fuel, repeats, module) in zip(range(60), ways):
        policy = Policy().replace(stack=(20 << 10) + number * 70_000, fuel=fuel)
        if repeats:
            policy = policy.replace(clock=Clock(mode="virtual"), random=Random(mode="seeded"))
        box = Sandbox(policy)
        box.host_function("env", "seven")(seven)
        sessions.append(box.open(module))
        assert sessions[-1].call("f").value == 7
    # All of them at once, each in its own engine or in one that it shares.
    assert [session.call("f").value for session in sessions] == [7] * 60
    engines = list(Engine._engines.values())
    found = len(engines), sum(engine.config.pooled for engine in engines)
    for session in sessions:
        session.close()
    return found

once = go()
forget_programs()
gc.collect()
left = len(Engine._engines)
again = go()
forget_programs()
gc.collect()
print(json.dumps([once, left, again, Engine._pools_now(), sum(e.live_instances for e in Engine._engines.values())]))
"""


def test_sixty_policies_with_as_many_stacks_run_in_one_process() -> None:
    """The attack: policies that differ in their stacks, in metering and in what is lent, each of which made an engine
    that reserved 8.7 TB of address space for good: at the sixteenth, the process was aborted.

    Engines that nothing refers to are freed, so that the same can be done again.
    """
    once, left, again, pools, alive = alone(MANY_ENGINES)  # type: ignore[misc]

    engines, pooled = once
    assert 6 < engines < 60
    assert pooled == 6
    assert left <= 8
    assert again[0] <= engines + 8
    assert again[1] <= 6
    assert pools <= 6
    assert alive == 0


@given(st.integers(16 << 10, 64 << 20))
def test_a_stack_is_held_to_the_next_power_of_two(stack: int) -> None:
    """At least what the policy says, less than twice of it, and one of a handful; a power of two is what it says."""
    got = Policy().replace(stack=stack).limits.stack_bytes

    assert stack <= got < 2 * stack
    assert got in {1 << bits for bits in range(14, 27)}
    assert Policy().replace(stack=got).limits.stack_bytes == got


def test_explain_tells_the_stack_that_a_guest_gets() -> None:
    """The sentence is about what is enforced."""
    said = [said.text for said in Policy().replace(stack=600 << 10).explain() if said.path == "limits.stack"]

    assert said == ["It has 1 MiB of stack."]


UNUSUAL = EngineConfig(fuel=False, stack_bytes=144 << 10, pooled=False)
"""A configuration that no policy asks for."""


def test_too_many_engines_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: policies that have nothing in common, one after the other, each with a session that stays open."""
    held = list(Engine._engines.values())
    monkeypatch.setattr(_engine, "_MAX_ENGINES", len(held) + 1)
    last = Engine.shared(UNUSUAL)

    with pytest.raises(stockade.EngineError) as caught:
        Engine.shared(UNUSUAL._replace(stack_bytes=80 << 10))

    assert str(caught.value) == (
        f"{len(held) + 1} engines are in use, as many as there may be in a process. Policies share one where they "
        "agree in limits.stack up to the next power of two, in whether fuel is metered, and in whether runs can be "
        "repeated (clock and random): let them agree, or close sandboxes and sessions that are done"
    )
    # One that nobody uses makes room.
    assert Engine.shared(UNUSUAL) is last
    del last, caught
    gc.collect()
    assert Engine.shared(UNUSUAL._replace(stack_bytes=80 << 10)).config.stack_bytes == 80 << 10


@pytest.mark.parametrize("why", ["pools", "maps", "space"])
def test_without_room_for_a_pool_instances_are_made_one_by_one(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests run all the same: with pools enough, with too few memory maps, without the address space."""
    config = UNUSUAL._replace(pooled=True, stack_bytes=96 << 10)
    if why == "pools":
        monkeypatch.setattr(Engine, "_most_pools", 0)
    elif why == "maps":
        # What freed engines gave back is counted before.
        gc.collect()
        Engine._pools_now()
        monkeypatch.setattr(Engine._scarce, "maps", 1999)
    else:
        monkeypatch.setattr(_engine, "_RESERVED_PER_MEMORY", 1 << 40)

    assert Engine.shared(config).config == config._replace(pooled=False)
    assert Sandbox(Policy().replace(fuel=None, stack=2 << 20)).call(SEVEN, "f").value == 7


def test_what_a_pool_reserves_is_tried_first() -> None:
    """What the system does not give is found out without asking the library, which would abort the process."""
    assert _engine._can_map(1 << 40, usable=False)
    assert _engine._can_map(1 << 30, usable=True)
    assert not _engine._can_map(1 << 50, usable=False)
    assert not _engine._can_map(1 << 80, usable=False)


def test_an_engine_that_nothing_refers_to_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its linker, once, and not before the last instance of it is gone; its pool may be had again."""
    freed: list[int] = []
    api = capi()
    real = api.engine_delete

    def noting(engine: int) -> None:
        freed.append(engine)
        real(engine)

    monkeypatch.setattr(api, "engine_delete", noting)
    pools = Engine._pools_now()
    engine = Engine.shared(UNUSUAL._replace(pooled=True, stack_bytes=32 << 10))
    assert Engine._pools_now() == pools + engine.config.pooled
    pointer, held = engine.pointer, [engine]
    del engine
    while Engine._kept:
        Engine._kept.popitem()
    gc.collect()
    assert pointer not in freed

    held.clear()
    gc.collect()

    assert freed.count(pointer) == 1
    assert Engine._pools_now() <= pools


def test_an_engine_outlives_whatever_holds_it() -> None:
    """A session keeps its engine when its sandbox and its machine code in memory are gone."""
    session = Sandbox(Policy().replace(fuel=12_345, stack=4 << 20)).open(SEVEN)
    stockade.compilation.forget_programs()
    Engine._kept.clear()
    gc.collect()

    assert session.call("f").value == 7
    session.close()


# -- descriptors ------------------------------------------------------------------------------------------------------

OPENS = """
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "file")
  (func (export "open") (param $times i32) (result i32) (local $errno i32)
    (loop $next
      (local.set $errno (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 0)
        (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))
      (if (local.get $errno) (then (return (local.get $errno))))
      (br_if $next (local.tee $times (i32.sub (local.get $times) (i32.const 1)))))
    (i32.const 0)))
"""

MANY_FILES = """
import json, os, resource, sys
import stockade
from stockade import Mount, Policy, Sandbox
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
folder = sys.argv[1]
module = stockade.Module.load(os.fsencode(sys.argv[2]), text=True)
box = Sandbox(Policy().replace(mounts=[Mount(folder, "/")], open_files=20))
sessions, message = [], ""
for _ in range(12):
    try:
        session = box.open(module)
    except stockade.EngineError as problem:
        message = str(problem)
        break
    sessions.append(session)
    assert session.call("open", 20).value == 0
mine = [open(f"{folder}/file") for _ in range(25)]
try:
    box.run(module)
except stockade.StockadeError as problem:
    assert str(problem) != message
plain = Sandbox().call(stockade.Module.load(b'(module (func (export "f") (result i32) (i32.const 7)))', text=True), "f")
several = len(sessions)
# The embedder may raise the limit at any time.
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
raised = box.call(module, "open", 20).value
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
for session in sessions:
    session.close()
for file in mine:
    file.close()
print(json.dumps([several, message, plain.value, raised, box.call(module, "open", 20).value]))
"""


def test_a_dozen_sessions_with_many_files_leave_descriptors_for_the_host(tmp_path: Path) -> None:
    """The attack: tenants that open all the files they may, until the host can open none, nor accept a connection."""
    (tmp_path / "file").write_text("content")

    several, message, plain, raised, after = alone(MANY_FILES, str(tmp_path), OPENS)  # type: ignore[misc]

    assert 8 <= several <= 10
    told = re.fullmatch(
        r"this run may come to have 21 file descriptors \(limits\.open_files and its mounts\), and (\d+) are left for "
        r"it: of the 256 that the process may have, (\d+) are taken by the runs and sessions that are open \((\d+)\), "
        r"(\d+) are the host's\. Close sessions that are done, run fewer at once, lower limits\.open_files, or raise "
        r"the limit \(ulimit -n; docs/performance\.md\)",
        message,
    )
    assert told
    left, taken, holders, others = map(int, told.groups())
    assert left < 21
    assert (taken, holders) == (21 * several, several)
    assert left + taken + others == 256
    # Who can open nothing needs none; more may be had when the limit is raised, or sessions are closed.
    assert (plain, raised, after) == (7, 0, 0)


def test_what_a_run_claims(tmp_path: Path) -> None:
    """Its mounts, and its files where it can open any; nothing without a mount."""
    (tmp_path / "file").write_text("content")
    taken = Engine._descriptors
    before = taken.taken, taken.holders
    mounts = [Mount(str(tmp_path), "/a"), Mount(str(tmp_path), "/b")]
    for module, changes, claim in (
        (wat(OPENS), {"mounts": mounts, "open_files": 9}, 11),
        (wat(HELLO), {"mounts": mounts, "open_files": 9}, 2),
        (wat(OPENS), {"open_files": 9}, 0),
    ):
        with Sandbox(Policy().replace(**changes)) as box, box.open(module):
            assert (taken.taken, taken.holders) == (before[0] + claim, before[1] + bool(claim))
    assert (taken.taken, taken.holders) == before


def take(account: Descriptors, count: int) -> bool:
    """Claims some, as the engine does where it admits an instance."""
    if not account.has(count):
        return False
    account.taken, account.holders = account.taken + count, account.holders + 1
    return True


@given(st.lists(st.tuples(st.integers(1, 100), st.booleans()), max_size=40), st.integers(0, 2000), st.integers(0, 300))
def test_claims_never_reach_what_is_spared(steps: list[tuple[int, bool]], most: int, others: int) -> None:
    """Whatever is claimed and given back, what guests may have and the host has leaves room for more of the host's."""
    account = Descriptors()
    held: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_descriptors, "_soft_limit", lambda: most)
        # Guests have opened all that they may.
        patch.setattr(_descriptors, "_told_by_kernel", lambda: others + sum(held) + 1)
        for count, back in steps:
            if back and held:
                account.taken, account.holders = account.taken - held.pop(), account.holders - 1
            elif take(account, count):
                held.append(count)
            else:
                assert sum(held) + count + others + 1 > most - max(32, most // 8)
            assert not held or sum(held) + others + 1 <= most - max(32, most // 8)
            assert (account.taken, account.holders) == (sum(held), len(held))


def test_what_the_host_opens_and_closes_later_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it shows: more than guests can have is the host's, and what is closed is nobody's."""
    open_now = [10]
    monkeypatch.setattr(_descriptors, "_soft_limit", lambda: 256)
    monkeypatch.setattr(_descriptors, "_told_by_kernel", lambda: open_now[0])
    account = Descriptors()
    assert take(account, 100)
    open_now[0] = 10 + 100 + 90
    assert not take(account, 30)
    open_now[0] = 10
    assert take(account, 30)


def test_descriptors_are_counted_where_the_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 6.2: one by one, and not for each run."""
    counted = iter((10, 20))
    now = [100.0]
    monkeypatch.setattr(_descriptors, "_told_by_kernel", lambda: 0)
    monkeypatch.setattr(_descriptors, "_counted", lambda: next(counted))
    monkeypatch.setattr(_descriptors, "_soft_limit", lambda: 132)
    monkeypatch.setattr(_descriptors.time, "monotonic", lambda: now[0])
    account = Descriptors()

    assert take(account, 90)
    account.taken = account.holders = 0
    assert take(account, 90)
    account.taken = account.holders = 0
    now[0] += 1
    assert not take(account, 90)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_number_of_open_descriptors_is_right() -> None:
    """By both ways of counting, one more is one more."""
    before = _descriptors._told_by_kernel(), _descriptors._counted()
    one, other = os.pipe()
    after = _descriptors._told_by_kernel(), _descriptors._counted()
    os.close(one)
    os.close(other)

    assert after[1] == before[1] + 2
    assert after[0] in (0, before[0] + 2)
    assert _descriptors._soft_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


# -- the interpreter's lock -------------------------------------------------------------------------------------------

GROWS = wat(
    """
    (module (memory (export "memory") 1)
      (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
      (func (export "f") (result i32) (i32.const 7))
      (func (export "spin") (loop $forever (br $forever))))
    """
)


def test_much_memory_is_given_back_with_the_lock_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeing a guest of 2 GiB takes a fifth of a second, in which no other thread of the host could run."""
    used: list[str] = []
    api = capi()
    for name in ("store_delete", "store_delete_long"):
        real = getattr(api, name)

        def noting(store: int, name: str = name, real: object = real) -> None:
            used.append(name)
            real(store)  # type: ignore[operator]

        monkeypatch.setattr(api, name, noting)

    def by(act: object) -> list[str]:
        used.clear()
        act()  # type: ignore[operator]
        return list(used)

    box = Sandbox(Policy().replace(memory=64 << 20, wall_time=0.05, fuel=None))
    assert by(lambda: box.call(SEVEN, "f")) == ["store_delete"]
    assert by(lambda: box.run(wat(HELLO))) == ["store_delete"]
    assert by(lambda: box.call(GROWS, "grow", 10)) == ["store_delete"]
    assert by(lambda: box.call(GROWS, "grow", 100)) == ["store_delete_long"]
    assert by(lambda: box.call(GROWS, "spin")) == ["store_delete"]
    assert by(lambda: box.run(wat(HELLO), stdin=bytes(8 << 20))) == ["store_delete_long"]

    def grow_in_a_session() -> None:
        with box.open(GROWS) as session:
            session.call("grow", 500)
            session.call("f")

    assert by(grow_in_a_session) == ["store_delete_long"]


def test_three_functions_are_declared_both_ways() -> None:
    """The short form keeps the lock, the long one does not: which is a flag of ctypes' own."""
    keeps_lock = 4  # FUNCFLAG_PYTHONAPI
    api = capi()

    both = ("store_delete", "instance_pre_instantiate", "call_future_poll")
    assert SHORT_CALLS.keys() & LONG_CALLS.keys() == {f"wasmtime_{name}" for name in both}
    for name in both:
        short, long = getattr(api, name), getattr(api, f"{name}_long")
        assert type(short)._flags_ & keeps_lock
        assert not type(long)._flags_ & keeps_lock
        assert ctypes.cast(short, ctypes.c_void_p).value == ctypes.cast(long, ctypes.c_void_p).value
    for name in ("engine_delete", "module_delete", "linker_delete", "instance_pre_delete"):
        assert not type(getattr(api, name).__wrapped__)._flags_ & keeps_lock


def test_outcomes_are_not_changed_by_what_is_freed() -> None:
    """The twin: the same answers, small or large."""
    box = Sandbox(Policy().replace(memory=64 << 20))

    assert box.call(GROWS, "grow", 500).value == 1
    assert box.call(GROWS, "grow", 5000).value == -1
    assert box.call(GROWS, "f").outcome is Outcome.OK
