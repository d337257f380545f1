"""Text and bytes through a guest's memory: each convention, and every lie that a guest can tell about it.

Holds P-VALUE-2.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stockade
from stockade import LimitExceeded, Outcome, Policy, Report, Sandbox, UsageError
from stockade.execution._string_calls import CONVENTIONS
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade import Module

pytestmark = pytest.mark.usefixtures("everywhere")


BOX = Sandbox()

BUMP = """
  (memory (export "memory") 1 4)
  (global $at (mut i32) (i32.const 1024))
  (global $log (mut i32) (i32.const 0))
  (func $bump (param $size i32) (result i32)
    (global.get $at)
    (global.set $at (i32.add (global.get $at) (local.get $size))))
  (func $note (param $number i32)
    (i32.store (i32.add (i32.const 512) (i32.mul (i32.const 4) (global.get $log))) (local.get $number))
    (global.set $log (i32.add (global.get $log) (i32.const 1))))
  (func (export "noted") (param $place i32) (result i32)
    (i32.load (i32.add (i32.const 512) (i32.mul (i32.const 4) (local.get $place)))))
  (func (export "notes") (result i32) (global.get $log))
"""
"""A memory, an allocator that never takes back, and a list in which deallocators say what they were given."""

MALLOC = '(func (export "malloc") (param i32) (result i32) (call $bump (local.get 0)))'
FREE = '(func (export "free") (param i32) (call $note (local.get 0)))'

FUNCTIONS = """
  (func (export "echo") (param i32 i32) (result i32 i32) local.get 0 local.get 1)
  (func (export "packed") (param i32 i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32)) (i64.extend_i32_u (local.get 1))))
  (func (export "area") (param i32 i32) (result i32)
    (i32.store (i32.const 3) (local.get 0)) (i32.store (i32.const 7) (local.get 1)) (i32.const 3))
  (func (export "second") (param i32 i32 i64 i32 i32) (result i32 i32) local.get 3 local.get 4)
  (func (export "length") (param i32 i32) (result i32) local.get 1)
  (func (export "address") (param i32 i32) (result i32) local.get 0)
"""


def guest(*parts: str) -> Module:
    """A guest with a memory, an allocator of its own, and these parts."""
    return wat(f"(module {BUMP} {''.join(parts)} {FUNCTIONS})")


GOOD = guest(MALLOC, FREE)


def refusal(module: Module, export: str, *args: Any, **options: Any) -> str:
    """Why a call is refused, before anything runs."""
    with pytest.raises(UsageError) as caught:
        BOX.call(module, export, *args, **options)
    return str(caught.value)


def trapped(report: Report) -> tuple[str, str]:
    """The code and the message of a trap."""
    assert (report.outcome, report.value) == (Outcome.TRAP, None)
    assert report.trap is not None
    return report.trap.code, report.trap.message


# -- conventions ------------------------------------------------------------------------------------------------------

CABI = """(func (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32)
  (result i32)
  (call $note (local.get $old)) (call $note (local.get $old_size)) (call $note (local.get $align))
  (call $bump (local.get $size)))"""

WBINDGEN = """
  (func (export "__wbindgen_malloc") (param i32 i32) (result i32)
    (call $note (local.get 1)) (call $bump (local.get 0)))
  (func (export "__wbindgen_free") (param i32 i32 i32)
    (call $note (local.get 0)) (call $note (local.get 1)) (call $note (local.get 2)))"""


def _pair(allocate: str, free: str) -> str:
    """An allocator of a size, and a deallocator of an address and a size."""
    return f"""
      (func (export "{allocate}") (param i32) (result i32) (call $bump (local.get 0)))
      (func (export "{free}") (param i32 i32) (call $note (local.get 0)) (call $note (local.get 1)))"""


ALLOCATORS: dict[str, tuple[str, list[int]]] = {
    "cabi_realloc": (CABI, [0, 0, 1]),
    "malloc": (MALLOC + FREE, [1024]),
    "alloc": (_pair("alloc", "dealloc"), [1024, 6]),
    "allocate": (_pair("allocate", "deallocate"), [1024, 6]),
    "__wbindgen_malloc": (WBINDGEN, [1, 1024, 6, 1]),
    "__wbindgen_malloc of old": (_pair("__wbindgen_malloc", "__wbindgen_free"), [1024, 6]),
}
"""Each with what its functions are given for a call of `echo` with six bytes."""


@pytest.mark.parametrize("name", ALLOCATORS)
def test_each_convention_passes_text_and_gives_back_what_it_says(name: str) -> None:
    """The allocator is asked once; what is given back, and with what, is as the convention has it."""
    functions, noted = ALLOCATORS[name]

    with BOX.open(guest(functions)) as session:
        assert session.call("echo", "wörld", returns="text").check().value == "wörld"
        count = session.call("notes").value
        assert isinstance(count, int)
        assert [session.call("noted", place).value for place in range(count)] == noted


@pytest.mark.parametrize("name", ["__wbindgen_malloc", "cabi_realloc"])
def test_arguments_that_belong_to_the_guest_are_not_taken_back(name: str) -> None:
    """The attack on oneself: what the guest's own code frees must not be freed by the host as well."""
    functions, noted = ALLOCATORS[name]

    with BOX.open(guest(functions)) as session:
        assert session.call("length", "wörld").check().value == 6
        assert session.call("notes").value == len(noted) - (3 if name == "__wbindgen_malloc" else 0)


def test_what_the_canonical_abi_calls_afterwards_is_called_with_the_result() -> None:
    """A `cabi_post_` function takes back what was returned, after it was read; only where a text was asked for."""
    post = """(func (export "cabi_post_area") (param i32)
      (call $note (local.get 0)) (memory.fill (i32.const 1024) (i32.const 0) (i32.const 64)))"""
    module = guest(ALLOCATORS["cabi_realloc"][0], post)

    with BOX.open(module) as session:
        assert session.call("area", "text", returns="text").value == "text"
        assert [session.call("notes").value, session.call("noted", 3).value] == [4, 3]
        assert session.read_memory(1024, 4) == bytes(4)
        session.call("area", "text").check()
        assert session.call("notes").value == 7, "three numbers of the allocator, none of the other"


def test_the_first_of_several_allocators_is_used() -> None:
    """The table has an order: the component ABI before C, C before tutorials."""
    module = guest(MALLOC.replace("(call $bump", "unreachable (call $bump"), CABI)

    assert BOX.call(module, "echo", "x", returns="text").value == "x"
    assert BOX.call(guest(MALLOC, CABI.replace("cabi_realloc", "cabi_free")), "echo", "x", returns="text").value == "x"


def test_an_allocator_of_another_type_is_passed_over() -> None:
    """A name alone is no promise: `alloc` with a type of its own is not called, the next of the table is."""
    alloc = '(func (export "alloc") (param i64) (result i32) unreachable)'

    assert BOX.call(guest(alloc, ALLOCATORS["allocate"][0]), "echo", "x", returns="text").value == "x"
    assert "(it has alloc: (i64) -> (i32))" in refusal(guest(alloc), "echo", "x")


@pytest.mark.parametrize("free", ["", '(func (export "free") (param i64) unreachable)'])
def test_without_a_fit_deallocator_nothing_is_taken_back(free: str) -> None:
    """An allocator alone is enough to pass text."""
    assert BOX.call(guest(MALLOC, free), "echo", "x", returns="text").value == "x"


def test_several_texts_between_numbers() -> None:
    """Each text fills two parameters, whatever stands around them, and each is given back."""
    with BOX.open(GOOD) as session:
        assert session.call("second", "first", 7, b"sec\0nd", returns="bytes").value == b"sec\0nd"
        assert [session.call("noted", place).value for place in range(2)] == [1024, 1029]


@pytest.mark.parametrize("export", ["echo", "packed", "area"])
@given(text=st.text(max_size=200), data=st.binary(max_size=200))
def test_whatever_is_passed_comes_back(export: str, text: str, data: bytes) -> None:
    """Each convention for results, with any text and any bytes; the area of a pair may lie at any address."""
    assert BOX.call(GOOD, export, text, returns="text").check().value == text
    assert BOX.call(GOOD, export, data, returns="bytes").check().value == data


def test_empty_texts_ask_no_allocator() -> None:
    """What `malloc(0)` returns is different with each: it is not asked, and nothing is taken back."""
    module = guest('(func (export "malloc") (param i32) (result i32) unreachable)', FREE)

    with BOX.open(module) as session:
        assert session.call("echo", "", returns="text").value == ""
        assert session.call("echo", b"", returns="bytes").value == b""
        assert session.call("address", "").value == 1
        assert session.call("notes").value == 0
    assert BOX.call(module, "echo", "x").outcome is Outcome.TRAP


def test_a_real_allocator_takes_back_what_it_gave(load_program: Callable[[str], Module]) -> None:
    """QuickJS exports the allocator of its C library: the same room is had again and again, so it was given back."""
    with BOX.open(load_program("quickjs")) as session:
        # realloc to the same size hands the argument through: address and length are its own parameters.
        addresses = {session.call("realloc", "x" * 5000).check().value for _ in range(20)}
        held = {session.call("malloc", 5000).check().value for _ in range(20)}

    assert len(addresses) == 1
    assert len(held) == 20


# -- what the module or the caller lacks ------------------------------------------------------------------------------


def test_without_an_allocator_the_message_says_what_to_export() -> None:
    """Nothing is written to a place that the guest did not give for it."""
    message = refusal(guest(), "echo", "x")

    assert message == (
        "echo: (i32, i32) -> (i32, i32): no text can be passed, for the module exports no allocator to make room for "
        "it. Export one of cabi_realloc: (i32, i32, i32, i32) -> (i32), malloc: (i32) -> (i32), alloc: (i32) -> (i32), "
        "allocate: (i32) -> (i32), __wbindgen_malloc: (i32, i32) -> (i32), __wbindgen_malloc: (i32) -> (i32); or call "
        "a function of the module that makes room, write there with Session.write_memory, and pass address and length "
        "as numbers"
    )
    assert BOX.call(guest(), "echo", 1024, 0, returns="text").value == "", "a result needs no allocator"


@pytest.mark.parametrize("export", ["", '(func (export "memory"))', '(memory (export "mem") 1)'])
def test_without_a_memory_of_that_name_nothing_is_passed(export: str) -> None:
    """The place of a text is told in the memory that is exported as "memory": another does not count."""
    module = wat(
        f'(module {export} (func (export "f") (param i32 i32) (result i64) i64.const 0)'
        ' (func (export "malloc") (param i32) (result i32) i32.const 8))'
    )
    expected = (
        'f: (i32, i32) -> (i64): text is passed and returned through memory, but the module exports none as "memory". '
        'Export it: (export "memory" (memory 0))'
    )

    assert refusal(module, "f", "x") == expected
    assert refusal(module, "f", 0, 0, returns="text") == expected
    assert BOX.call(module, "f", 0, 0).value == 0


def test_results_of_other_types_cannot_be_read_as_text() -> None:
    """The message says in which forms a function can return text."""
    module = guest('(func (export "f") (result f64) f64.const 1) (func (export "g"))')

    assert refusal(module, "f", returns="text") == (
        "f: () -> (f64): its result cannot be read as text. A function returns that as two i32 (address, length), as "
        "one i64 (the address in the upper half, the length in the lower), or as one i32 (the address of a pair)"
    )
    assert refusal(module, "g", returns="bytes").startswith("g: () -> (): its result cannot be read as bytes.")
    assert refusal(GOOD, "echo", 0, 0, returns="json") == 'returns is \'json\': it must be "text", "bytes" or None'


def test_half_a_surrogate_pair_is_refused() -> None:
    """UTF-8 cannot express it; what it cannot express is not replaced in silence."""
    assert refusal(GOOD, "echo", "ab\ud800") == (
        "echo: (i32, i32) -> (i32, i32): argument 1 has a character at 2 that UTF-8 cannot encode, half of a "
        "surrogate pair. Mend the text, or pass bytes"
    )
    assert BOX.call(GOOD, "echo", "ab\U00010000", returns="text").value == "ab\U00010000"


# -- hostile allocators -----------------------------------------------------------------------------------------------


def allocator(body: str) -> Module:
    """A guest whose `malloc` does this."""
    return guest(f'(func (export "malloc") (param i32) (result i32) {body})', FREE)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("i32.const 0", "0: it had no room for an argument"),
        ("i32.const -1", "4,294,967,295: not inside its memory of 65,536"),
        ("i32.const 65536", "65,536: not inside its memory of 65,536"),
        ("i32.const 65531", "65,531: not inside its memory of 65,536"),
        ("i32.const 0x7fffffff", "2,147,483,647: not inside its memory of 65,536"),
        ("i32.const 0x80000000", "2,147,483,648: not inside its memory of 65,536"),
    ],
)
def test_an_allocator_that_points_nowhere_has_trapped(body: str, told: str) -> None:
    """The attack: an address with which the host would write outside the guest's memory. One byte too far counts."""
    report = BOX.call(allocator(body), "echo", "wörld", returns="text")

    assert trapped(report) == ("bad_pointer", f"malloc was asked for 6 bytes and returned {told}")
    with pytest.raises(stockade.GuestTrap, match="trapped: malloc was asked for 6 bytes and returned"):
        report.check()
    assert json.loads(report.to_json())["trap"]["code"] == "bad_pointer"


@pytest.mark.parametrize("address", [65530, 1, 3, 1001])
def test_an_allocator_may_point_anywhere_inside(address: int) -> None:
    """The twin of the above: to the last byte of memory, aligned or not."""
    report = BOX.call(allocator(f"i32.const {address}"), "echo", "wörld", returns="text")

    assert (report.value, report.trap) == ("wörld", None)


def test_an_allocator_that_grows_the_memory_may_point_into_what_is_new() -> None:
    """Bounds are those at the moment of writing, and growth is counted as any other."""
    report = BOX.call(allocator("(drop (memory.grow (i32.const 1))) i32.const 65600"), "echo", "x", returns="text")

    assert (report.value, report.usage.memory_peak_bytes) == ("x", 2 * 65536)


def test_an_allocator_that_gives_the_same_room_twice_has_trapped() -> None:
    """The attack: a second argument that overwrites the first, so that a function sees what nobody passed."""
    same = allocator("i32.const 1024")

    report = BOX.call(same, "second", "first", 7, "other")

    assert trapped(report) == (
        "bad_pointer",
        "malloc was asked for 5 bytes and returned 1,024: another argument lies there",
    )
    half = "(global.get $at) (global.set $at (i32.add (global.get $at) (i32.const 4)))"
    assert trapped(BOX.call(allocator(half), "second", "first", 7, "other"))[0] == "bad_pointer"
    touching = half.replace("(i32.const 4)", "(i32.const 5)")
    assert BOX.call(allocator(touching), "second", "first", 7, "other").outcome is Outcome.OK


@pytest.mark.parametrize("place", ["malloc", "free", "cabi_post_echo"])
def test_a_trap_beside_the_function_is_a_trap_of_the_run(place: str) -> None:
    """The guest's failure is a report, not an exception, and what the function returned is not told as success."""
    malloc = '(func (export "malloc") (param i32) (result i32) unreachable)' if place == "malloc" else MALLOC
    free = '(func (export "free") (param i32) unreachable)' if place == "free" else FREE
    post = '(func (export "cabi_post_echo") (param i32 i32) unreachable)' if place == "cabi_post_echo" else ""

    report = BOX.call(guest(malloc, free, post), "echo", "x", returns="text")

    assert trapped(report) == ("unreachable", "unreachable instruction executed")
    assert report.trap is not None
    assert len(report.trap.frames) == 1


@pytest.mark.parametrize("place", ["malloc", "free"])
def test_an_allocator_that_never_returns_is_stopped(place: str) -> None:
    """The attack: to hold the host before or after the function, which alone is under a budget."""
    endless = "(loop $again (br $again))"
    module = guest(
        f'(func (export "malloc") (param i32) (result i32) {endless if place == "malloc" else ""} (i32.const 1024))',
        f'(func (export "free") (param i32) {endless if place == "free" else ""})',
    )

    by_fuel = Sandbox(Policy().replace(fuel=100_000)).call(module, "echo", "x", returns="text")
    by_time = Sandbox(Policy().replace(fuel=None, wall_time=0.05)).call(module, "echo", "x", returns="text")

    assert (by_fuel.outcome, by_fuel.usage.fuel, by_fuel.value) == (Outcome.FUEL, 100_000, None)
    assert (by_time.outcome, by_time.value) == (Outcome.TIMEOUT, None)


def test_allocators_spend_the_budget_of_the_call() -> None:
    """One report: fuel, output and calls of WASI are of all that ran for this call."""
    box = Sandbox(Policy().replace(fuel=100_000))
    plain = box.call(GOOD, "echo", 1024, 5)
    passed = box.call(GOOD, "echo", "hello")

    assert plain.usage.fuel is not None
    assert passed.usage.fuel is not None
    assert passed.usage.fuel > plain.usage.fuel
    tight = Sandbox(Policy().replace(fuel=plain.usage.fuel))
    assert tight.call(GOOD, "echo", 1024, 5).outcome is Outcome.OK
    assert tight.call(GOOD, "echo", "hello").outcome is Outcome.FUEL


def test_an_allocator_that_leaves_ends_the_run_with_its_exit_code() -> None:
    """`proc_exit` in an allocator is the guest's exit, told as everywhere."""
    module = wat(f"""(module
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (memory (export "memory") 1)
      (func (export "malloc") (param i32) (result i32) (call $exit (i32.const 7)) unreachable) {FUNCTIONS})""")

    report = BOX.call(module, "echo", "x", returns="text")

    assert (report.outcome, report.exit_code, report.value) == (Outcome.EXIT, 7, None)


def test_a_session_is_over_when_its_guest_broke_the_convention() -> None:
    """As after every trap: what is left of the guest is not to be trusted."""
    with BOX.open(allocator("i32.const 0")) as session:
        assert session.call("echo", "", returns="text").value == ""
        assert trapped(session.call("echo", "x"))[0] == "bad_pointer"
        with pytest.raises(UsageError, match="the guest has ended, so the session is over: open a new one"):
            session.call("notes")


# -- hostile results --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "size", "told"),
    [
        (-1, 1, "1 byte at 4,294,967,295"),
        (-1, 0, "0 bytes at 4,294,967,295"),
        (65536, 1, "1 byte at 65,536"),
        (65535, 2, "2 bytes at 65,535"),
        (0, 65537, "65,537 bytes at 0"),
        (0x7FFF_FFFF, 5, "5 bytes at 2,147,483,647"),
        (-5, 5, "5 bytes at 4,294,967,291"),
    ],
)
@pytest.mark.parametrize("export", ["echo", "packed", "area"])
def test_a_result_that_is_not_all_inside_memory_has_trapped(export: str, address: int, size: int, told: str) -> None:
    """The attack: an address and a length with which the host would read its own memory. No sum wraps around."""
    report = BOX.call(GOOD, export, address, size, returns="bytes")

    assert trapped(report) == ("bad_pointer", f"{export} returned {told}: not inside its memory of 65,536")


@pytest.mark.parametrize(("address", "size"), [(65536, 0), (65535, 1), (0, 65536), (0, 0), (1, 0), (7, 3)])
@pytest.mark.parametrize("export", ["echo", "packed", "area"])
def test_a_result_may_lie_anywhere_inside_memory(export: str, address: int, size: int) -> None:
    """The twin of the above: up to the last byte, and no byte at the end."""
    report = BOX.call(GOOD, export, address, size, returns="bytes")

    assert isinstance(report.value, bytes)
    assert len(report.value) == size


@pytest.mark.parametrize("address", [-1, -8, 65536, 65529])
def test_a_pair_that_is_not_inside_memory_has_trapped(address: int) -> None:
    """The attack: the place of address and length itself is outside, or only half inside."""
    module = guest(
        f'(func (export "f") (result i32) i32.const {address})',
        '(func (export "g") (result i32) i32.const 65528)',
    )

    report = BOX.call(module, "f", returns="text")

    assert trapped(report) == (
        "bad_pointer",
        f"f returned 8 bytes at {address % 2**32:,}: not inside its memory of 65,536",
    )
    assert BOX.call(module, "g", returns="text").value == ""


def test_a_result_may_lie_where_the_memory_grew_to() -> None:
    """Bounds are those after the call."""
    module = guest("""(func (export "f") (result i32 i32)
      (drop (memory.grow (i32.const 1)))
      (i32.store8 (i32.const 131071) (i32.const 88))
      i32.const 131071 i32.const 1)""")

    assert BOX.call(module, "f", returns="text").value == "X"


@pytest.mark.parametrize("data", [b"\xff", b"ab\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"])
def test_bytes_that_are_not_text_have_trapped_where_text_was_asked_for(data: bytes) -> None:
    """Surrogates and overlong forms included: nothing is replaced, and nothing passes that is not UTF-8."""
    code, message = trapped(BOX.call(GOOD, "echo", data, returns="text"))

    size = "1 byte" if len(data) == 1 else f"{len(data)} bytes"
    assert code == "bad_text"
    assert message.startswith(f"echo returned {size} that are not text in UTF-8: ")
    assert BOX.call(GOOD, "echo", data, returns="bytes").value == data


@pytest.mark.parametrize("export", ["echo", "packed", "area"])
def test_a_result_beyond_the_limit_ends_the_run(export: str) -> None:
    """The attack: gigabytes that the host must copy, from a memory that costs the guest nothing."""
    box = Sandbox(Policy().replace(stdout=1000))

    within, beyond = (box.call(GOOD, export, 0, size, returns="bytes") for size in (1000, 1001))
    absurd = box.call(GOOD, export, 0, -1, returns="text")

    assert isinstance(within.value, bytes)
    assert len(within.value) == 1000
    assert (beyond.outcome, beyond.value, beyond.trap) == (Outcome.OUTPUT, None, None)
    (violation,) = beyond.violations
    assert (violation.kind, violation.subject, violation.limit) == ("value", "limits.stdout", 1000)
    assert (violation.observed, violation.action) == (1001, "stop")
    assert (absurd.outcome, absurd.violations[0].observed) == (Outcome.OUTPUT, 2**32 - 1)
    with pytest.raises(LimitExceeded, match="stopped: output limit exceeded"):
        beyond.check()


# -- every door, and what is told -------------------------------------------------------------------------------------


def test_text_goes_through_every_door() -> None:
    """Sessions, coroutines and the one-call form."""
    with BOX.open(GOOD) as session:
        assert [session.call("echo", text, returns="text").value for text in ("one", "two")] == ["one", "two"]
    assert asyncio.run(BOX.call_async(GOOD, "packed", "three", returns="text")).value == "three"
    assert stockade.call(GOOD, "area", "four", returns="bytes") == b"four"


def test_an_initializer_runs_before_the_allocator() -> None:
    """A reactor's heap is made by its `_initialize`, and what was a start function comes before that."""
    module = wat(f"""(module
      (memory (export "memory") 1)
      (global $at (mut i32) (i32.const 0))
      (func $start (global.set $at (i32.const 2000)))
      (start $start)
      (func (export "_initialize") (global.set $at (i32.add (global.get $at) (i32.const 1))))
      (func (export "malloc") (param i32) (result i32) (global.get $at)) {FUNCTIONS})""")

    assert BOX.call(module, "address", "x").value == 2001


def test_json_and_text_for_people_tell_the_value() -> None:
    """Text as text, bytes as the output streams are told: as text, else in base64 too."""
    text = BOX.call(GOOD, "echo", "wörld\x1b[2J", returns="text")
    data = BOX.call(GOOD, "echo", b"\xff\0", returns="bytes")
    pair = wat("""(module (func (export "f") (result i32 v128)
      i32.const 1 v128.const i8x16 255 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15))""")
    several = BOX.call(pair, "f")

    assert json.loads(text.to_json())["value"] == "wörld\x1b[2J"
    assert "value_base64" not in json.loads(text.to_json())
    assert "  value  wörld\\x1b[2J\n" in text.render()
    assert (json.loads(data.to_json())["value"], json.loads(data.to_json())["value_base64"]) == ("\ufffd\0", "/wA=")
    assert "  value  \\xff\\x00\n" in data.render()
    assert json.loads(several.to_json())["value_base64"] == [None, "/wECAwQFBgcICQoLDA0ODw=="]
    assert json.loads(several.to_json())["value"][0] == 1
    long = BOX.call(GOOD, "echo", "x" * 1000, returns="text").render()
    assert f"value{'x' * 400}…(1,000long)" in "".join(long.split())
    assert max(map(len, long.splitlines())) <= 80


def test_reports_with_text_and_bytes_are_kept_by_msgspec() -> None:
    """A format that tells bytes from text gives the same report back."""
    for report in (
        BOX.call(GOOD, "echo", "text", returns="text"),
        BOX.call(GOOD, "echo", b"\xff", returns="bytes"),
        BOX.call(GOOD, "echo", 5, 7),
    ):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=Report) == report


# -- the page ---------------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "values.md"


def test_the_page_tells_every_convention() -> None:
    """The table in docs/values.md is the one that is used, in its order."""
    rows = re.findall(
        r"^\| `(\w+)\(([\w, ]+)\)` \| (?:`(\w+)\(([\w, ]+)\)`)? ?\| (\w+)", PAGE.read_text(), re.MULTILINE
    )

    assert [(name, takes, free, gives) for name, takes, free, gives, _ in rows] == [
        (row.allocate, ", ".join(row.takes), row.free, ", ".join(row.gives)) for row in CONVENTIONS
    ]
    told = {"nothing": "arguments", "arguments": "arguments", "a": "result"}
    assert [told[what] for *_, what in rows] == [row.returned for row in CONVENTIONS]
