"""Functions of the embedder: how they are typed, what they see of the guest, and what ends the run.

Holds P-TIME-2, P-HOST-1 and P-HOST-2.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import json
import math
import os
import pickle
import re
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stockade
from stockade import (
    F32,
    F64,
    I32,
    I64,
    U32,
    U64,
    GuestMemory,
    HostCall,
    LinkError,
    Outcome,
    Policy,
    Sandbox,
    UsageError,
)
from stockade.policy import Amount
from stockade.runner._executor import MOST_OUTSIDE, executor
from tests.conftest import HELLO, isolation_here, wat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stockade import Module, Report

pytestmark = pytest.mark.usefixtures("everywhere")

PAGE = 65_536


def box(**changes: object) -> Sandbox:
    """A sandbox under the default policy with changes."""
    return Sandbox(Policy().replace(**changes))


def lending(function: Callable[..., object], **changes: object) -> Sandbox:
    """A sandbox that lends one function, as env.f."""
    sandbox = box(**changes)
    sandbox.host_function("env", "f")(function)
    return sandbox


def caller(params: str = "", results: str = "", *, memory: str = '(memory (export "memory") 1)') -> Module:
    """A guest that imports env.f and exports `go`, which passes its parameters on."""
    names = params.split()
    gets = " ".join(f"(local.get {place})" for place in range(len(names)))
    type_ = (f"(param {params})" if params else "") + (f"(result {results})" if results else "")
    return wat(
        f'(module (import "env" "f" (func $f {type_})) {memory} (func (export "go") {type_} (call $f {gets}))'
        f' (func (export "_start")))'
    )


PLAIN = caller()


def trap(report: Report) -> str:
    """The message of a run that a host function ended."""
    assert report.outcome is Outcome.TRAP
    assert report.trap is not None
    assert report.trap.code == "host"
    return report.trap.message


# -- types ------------------------------------------------------------------------------------------------------------

LARGE = {
    "i32": [0, 1, -1, 2**31 - 1, -(2**31), 2**31, 2**32 - 1],
    "i64": [0, 1, -1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1],
}


def int_(value: int) -> int:
    return value


def i32(value: I32) -> I32:
    return value


def u32(value: U32) -> U32:
    return value


def i64(value: I64) -> I64:
    return value


def u64(value: U64) -> U64:
    return value


@pytest.mark.parametrize(
    ("function", "type_", "signed"),
    [(int_, "i32", True), (i32, "i32", True), (u32, "i32", False), (i64, "i64", True), (u64, "i64", False)],
)
def test_integers_are_what_their_annotation_says(function: Callable[[int], int], type_: str, signed: bool) -> None:
    """The same bits, signed or unsigned, at the borders of both."""
    bits = int(type_[1:])
    seen = []

    def f(value: Any) -> Any:
        seen.append(value)
        return function(value)

    f.__annotations__ = dict(function.__annotations__)
    sandbox = lending(f)
    for number in LARGE[type_]:
        signed_number = number - 2**bits if number >= 2 ** (bits - 1) else number
        assert sandbox.call(caller(type_, type_), "go", number).check().value == signed_number
        assert seen.pop() == (signed_number if signed else number % 2**bits)


ALIASES = {
    "i32": (i32, "i32", st.integers(-(2**31), 2**32 - 1)),
    "u32": (u32, "i32", st.integers(-(2**31), 2**32 - 1)),
    "i64": (i64, "i64", st.integers(-(2**63), 2**64 - 1)),
    "u64": (u64, "i64", st.integers(-(2**63), 2**64 - 1)),
}


@pytest.mark.parametrize("alias", ALIASES)
def test_every_integer_comes_back(alias: str) -> None:
    """A round trip through the host changes no bit."""
    function, type_, numbers = ALIASES[alias]
    bits = int(type_[1:])
    with lending(function).open(caller(type_, type_)) as session:

        @given(numbers)
        def check(number: int) -> None:
            value = session.call("go", number).value
            assert isinstance(value, int)
            assert value % 2**bits == number % 2**bits

        check()


def f64(value: F64) -> F64:
    return value


def float_(value: float) -> float:
    return value


def f32(value: F32) -> F32:
    return value


@pytest.mark.parametrize("function", [f64, float_])
@pytest.mark.parametrize("number", [0.0, -0.0, 1.5, -1e308, 5e-324, math.inf, -math.inf, 3])
def test_f64_comes_back(function: Callable[..., float], number: float) -> None:
    """To the last bit, the sign of zero included; an int is a float, too."""
    value = lending(function).call(caller("f64", "f64"), "go", number).value
    assert isinstance(value, float)
    assert value == number
    assert math.copysign(1, value) == math.copysign(1, number)


@pytest.mark.parametrize("number", [0.0, -0.0, 1.5, math.inf, -math.inf, 3.4028234663852886e38, 1e-45])
def test_f32_comes_back(number: float) -> None:
    """What 32 bits hold."""
    value = lending(f32).call(caller("f32", "f32"), "go", number).value
    assert isinstance(value, float)
    assert value == pytest.approx(number)
    assert math.copysign(1, value) == math.copysign(1, number)


def test_nan_comes_back() -> None:
    """NaN through both widths."""
    for function, type_ in ((f32, "f32"), (f64, "f64")):
        value = lending(function).call(caller(type_, type_), "go", math.nan).value
        assert isinstance(value, float)
        assert math.isnan(value)


@pytest.mark.parametrize(("number", "seen"), [(0, False), (1, True), (7, True), (-1, True)])
def test_bool_is_any_number_but_zero(number: int, seen: bool) -> None:
    """And is returned as 1 or 0."""
    got: list[object] = []

    def f(value: bool) -> bool:
        got.append(value)
        return value

    assert lending(f).call(caller("i32", "i32"), "go", number).value == int(seen)
    assert got == [seen]
    assert type(got[0]) is bool


def test_several_parameters_and_results_keep_their_places() -> None:
    """All types at once, the call itself first."""

    def f(call: HostCall, a: int, b: I64, c: F32, d: float, e: bool) -> tuple[bool, float, F32, I64, int]:
        assert isinstance(call, HostCall)
        return e, d, c, b, a

    module = caller("i32 i64 f32 f64 i32", "i32 f64 f32 i64 i32")
    assert lending(f).call(module, "go", 1, -2, 0.5, -0.25, 1).value == [1, -0.25, 0.5, -2, 1]


def test_text_and_bytes_are_read_from_the_guest() -> None:
    """Each takes two numbers, address and length."""
    got: list[object] = []

    def f(text: str, data: bytes) -> None:
        got.extend((text, data))

    module = caller("i32 i32 i32 i32", memory=r'(memory (export "memory") 1) (data (i32.const 8) "h\c3\a9llo\ff")')
    sandbox = lending(f)
    assert sandbox.call(module, "go", 8, 6, 13, 2).ok
    assert sandbox.call(module, "go", 8, 0, PAGE, 0).ok
    assert got == ["héllo", b"o\xff", "", b""]
    assert trap(sandbox.call(module, "go", 8, 7, 0, 0)) == (
        "env.f raised UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 6: invalid start byte"
    )


def none_() -> None:
    return None


def empty_tuple() -> tuple[()]:
    return ()


@pytest.mark.parametrize("function", [none_, empty_tuple])
def test_functions_without_results(function: Callable[..., object]) -> None:
    """None, or a tuple of nothing."""
    assert lending(function).call(PLAIN, "go").check().value is None


def test_one_result_may_be_annotated_as_a_tuple() -> None:
    """It is one result, returned as a number."""

    def f() -> tuple[int]:
        return 5  # type: ignore[return-value]

    assert lending(f).call(caller("", "i32"), "go").value == 5


WRONG_RESULTS: list[tuple[str, object, str, str]] = [
    ("i32", "x", "int", "returned 'x', which is no whole number (i32)"),
    ("i32", 1.0, "int", "returned 1.0, which is no whole number (i32)"),
    ("i32", None, "int", "returned None, which is no whole number (i32)"),
    ("i32", 2**32, "int", "returned a number that does not fit i32"),
    ("i32", -(2**31) - 1, "int", "returned a number that does not fit i32"),
    ("i32", 2**300, "int", "returned a number that does not fit i32"),
    ("i64", 2**64, "I64", "returned a number that does not fit i64"),
    ("i64", -(2**63) - 1, "U64", "returned a number that does not fit i64"),
    ("f64", True, "float", "returned True, which is no number (f64)"),
    ("f64", "1", "float", "returned '1', which is no number (f64)"),
    ("f64", 10**309, "float", "returned a number that does not fit f64"),
    ("f32", 3.5e38, "F32", "returned 3.5e+38, which does not fit f32"),
    ("f32", -(2.0**128 - 2.0**103), "F32", "returned -3.4028235677973366e+38, which does not fit f32"),
    ("", 1, "None", "returned 1 values, and is annotated to return 0"),
    ("i32 i32", 1, "tuple[int, int]", "returned 1 values, and is annotated to return 2"),
    ("i32 i32", None, "tuple[int, int]", "returned 0 values, and is annotated to return 2"),
    ("i32 i32", (1, 2, 3), "tuple[int, int]", "returned 3 values, and is annotated to return 2"),
    ("i32 i32", (1, "\x1b"), "tuple[int, int]", r"returned '\x1b', which is no whole number (i32)"),
]


@pytest.mark.parametrize(("results", "value", "annotation", "message"), WRONG_RESULTS)
def test_a_result_that_is_not_as_annotated_is_a_mistake_of_the_embedder(
    results: str, value: object, annotation: str, message: str
) -> None:
    """Nothing is cut or wrapped in silence, and the guest is not blamed."""

    def f() -> Any:
        return value

    f.__annotations__ = {"return": annotation}
    with pytest.raises(UsageError) as caught:
        lending(f).call(caller("", results), "go")
    assert str(caught.value) == f"env.f {message}"
    with lending(f).open(caller("", results)) as session:
        with pytest.raises(UsageError):
            session.call("go")
        with pytest.raises(UsageError, match="the guest has ended, so the session is over"):
            session.call("go")


# -- what cannot be lent ----------------------------------------------------------------------------------------------

ALLOWED = "it must be int, float, bool, str, bytes, or one of stockade.host.I32, U32, I64, U64, F32, F64"
RESULTS = "it must be None, int, float, bool, one of stockade.host.I32, U32, I64, U64, F32, F64, or a tuple of these"


def _unfit() -> Iterator[tuple[str, str]]:
    yield "(a) -> None", f"the annotation of a is missing: {ALLOWED}"
    yield "(a: list) -> None", f"the annotation of a is list: {ALLOWED}"
    yield "(a: list[int]) -> None", f"the annotation of a is list[int]: {ALLOWED}"
    yield "(a: int | None) -> None", f"the annotation of a is int | None: {ALLOWED}"
    yield "(a: None) -> None", f"the annotation of a is NoneType: {ALLOWED}"
    yield "(a: 'object') -> None", f"the annotation of a is object: {ALLOWED}"
    yield "(a: int, b: HostCall) -> None", f"the annotation of b is HostCall: {ALLOWED}"
    yield "(*a: int) -> None", "a must be a plain parameter, not * or keyword-only"
    yield "(*a: HostCall) -> None", "a must be a plain parameter, not * or keyword-only"
    yield "(**a: int) -> None", "a must be a plain parameter, not * or keyword-only"
    yield "(*, a: int) -> None", "a must be a plain parameter, not * or keyword-only"
    yield "(*, a: HostCall) -> None", "a must be a plain parameter, not * or keyword-only"
    yield "(a: int)", f"the annotation of its result is missing: {RESULTS}"
    yield "() -> str", f"the annotation of its result is str: {RESULTS}"
    yield "() -> bytes", f"the annotation of its result is bytes: {RESULTS}"
    yield "() -> tuple", f"the annotation of its result is tuple: {RESULTS}"
    yield "() -> tuple[int, ...]", f"the annotation of its result is tuple[int, ...]: {RESULTS}"
    yield "() -> tuple[int, str]", f"the annotation of its result is tuple[int, str]: {RESULTS}"
    yield "(a: 'Nowhere') -> None", "its annotations cannot be read: name 'Nowhere' is not defined"
    yield "(a: 'int.x') -> None", "its annotations cannot be read: type object 'int' has no attribute 'x'"


@pytest.mark.parametrize(("signature", "message"), list(_unfit()))
def test_an_unfit_function_is_refused_when_it_is_lent(signature: str, message: str) -> None:
    """In words that say which parameter, and what it may be; nothing is lent then."""
    scope: dict[str, Any] = {"HostCall": HostCall}
    exec(f"def f{signature}: ...", scope)  # the signatures are those above
    sandbox = box()

    with pytest.raises(UsageError) as caught:
        sandbox.host_function("env")(scope["f"])
    assert str(caught.value) == f"env.f: {message}"
    with pytest.raises(LinkError):
        sandbox.call(PLAIN, "go")


def test_what_python_cannot_tell_the_parameters_of_is_refused() -> None:
    """Builtins without a signature, objects without a name, names that are no text."""
    with pytest.raises(UsageError, match=r"^env\.min: its annotations cannot be read: no signature found for builtin"):
        box().host_function("env")(min)

    class Nameless:
        def __call__(self) -> None: ...

    with pytest.raises(UsageError) as caught:
        box().host_function("env")(Nameless())
    assert str(caught.value) == "the function has no name of its own: give the name of the import"
    with pytest.raises(UsageError) as caught:
        box().host_function("env", "\ud800")(none_)
    assert str(caught.value) == r"env.\ud800 is no text that UTF-8 can hold"


def _scaled(factor: int, value: int) -> int:
    return factor * value


def test_a_partial_and_an_object_that_can_be_called_are_functions() -> None:
    """They have the annotations of what they call; what is none is refused in words."""

    class Counter:
        def __init__(self) -> None:
            self.count = 10

        async def __call__(self, value: int) -> int:
            self.count += value
            return self.count

    sandbox = box()
    sandbox.host_function("env", "f")(functools.partial(_scaled, 3))
    assert sandbox.call(caller("i32", "i32"), "go", 5).value == 15
    sandbox = box()
    sandbox.host_function("env", "f")(Counter())
    assert sandbox.call(caller("i32", "i32"), "go", 5).value == 15
    with pytest.raises(UsageError) as caught:
        box().host_function("env", "f")(functools.partial(_scaled, factor=3))
    assert str(caught.value) == "env.f: factor must be a plain parameter, not * or keyword-only"
    with pytest.raises(UsageError) as caught:
        box().host_function("env", "f")(5)  # type: ignore[type-var]
    assert str(caught.value) == "env.f is int: give a function"


def test_a_name_is_lent_once() -> None:
    """Also by two decorators; under another module, or in another sandbox, it is another name."""
    sandbox = lending(none_)

    with pytest.raises(UsageError) as caught:
        sandbox.host_function("env", "f")(int_)
    assert str(caught.value) == "env.f is already registered: choose another name"
    sandbox.host_function("other", "f")(int_)
    lending(none_)
    assert sandbox.call(PLAIN, "go").ok


def test_wasi_is_not_to_be_replaced() -> None:
    """Attack on ourselves: a function that stands in for a WASI call would go past the guard."""
    with pytest.raises(UsageError) as caught:
        box().host_function("wasi_snapshot_preview1", "fd_write")(none_)
    assert str(caught.value) == (
        "wasi_snapshot_preview1 is WASI's own: register functions under another name, such as env"
    )


def test_the_decorator_gives_the_function_back_and_its_name() -> None:
    """It can be called as before; a bound method is lent like a function."""
    sandbox = box()

    @sandbox.host_function("env")
    def f() -> None:
        seen.append("f")

    class Log:
        def g(self, value: int) -> int:
            return value + len(seen)

    sandbox.host_function("env")(Log().g)
    seen: list[str] = []
    f()
    assert seen == ["f"]
    assert sandbox.call(PLAIN, "go").ok
    assert seen == ["f", "f"]
    module = wat('(module (import "env" "g" (func $g (param i32) (result i32))) (export "g" (func $g)))')
    assert sandbox.call(module, "g", 40).value == 42


# -- linking ----------------------------------------------------------------------------------------------------------


def test_an_import_of_another_type_is_refused() -> None:
    """Both types are told, and nothing ran."""
    with pytest.raises(LinkError) as caught:
        lending(i64).call(caller("i32", "i64"), "go", 1)
    assert str(caught.value) == (
        "the module imports env.f as (i32) -> (i64), but as a host function it is (i64) -> (i64): "
        "change the annotations of the function, or rebuild the module"
    )


def test_what_nobody_lends_is_refused() -> None:
    """Env needs someone who provides it; what is lent later is there later."""
    sandbox = box()
    with pytest.raises(LinkError) as caught:
        sandbox.call(PLAIN, "go")
    assert str(caught.value) == (
        "nothing provides what the module imports: env.f (function () -> ()). Guests get WASI preview 1 "
        "(wasi_snapshot_preview1). Run the module from Python and provide these with Sandbox.host_function(...), or "
        "rebuild it without them"
    )
    sandbox.host_function("env", "f")(none_)
    assert sandbox.call(PLAIN, "go").ok


@pytest.mark.parametrize("item", ["(memory 1)", "(global i32)", "(table 1 funcref)"])
def test_only_functions_can_be_lent(item: str) -> None:
    """Attack: an import of the same name that is no function."""
    with pytest.raises(LinkError, match=r"nothing provides what the module imports: env\.f \("):
        lending(none_).call(wat(f'(module (import "env" "f" {item}) (func (export "go")))'), "go")


def test_sandboxes_do_not_see_each_others_functions() -> None:
    """Attack: machine code is kept by content, for the whole process. What is linked to it is not."""
    module = caller("", "i32")

    def answer(number: int) -> Callable[[], int]:
        def f() -> int:
            return number

        return f

    boxes = [lending(answer(number)) for number in range(5)]
    for _ in range(3):
        assert [sandbox.call(module, "go").value for sandbox in boxes] == [0, 1, 2, 3, 4]
    with pytest.raises(LinkError):
        box().call(module, "go")
    with boxes[3].open(module) as three, boxes[4].open(module) as four:
        assert (three.call("go").value, four.call("go").value, three.call("go").value) == (3, 4, 3)


def test_a_session_outlives_its_sandbox_and_keeps_its_functions() -> None:
    """Attack on freed memory: sandbox, linker and functions are let go while a guest still calls."""

    def begin() -> stockade.Session:
        def f() -> int:
            return 42

        sandbox = lending(f)
        session = sandbox.open(caller("", "i32"))
        sandbox.close()
        return session

    with begin() as session:
        gc.collect()
        for _ in range(3):
            assert session.call("go").value == 42


def test_a_sandbox_shared_by_threads() -> None:
    """Each guest gets its own answers, on the thread that it runs on."""

    def f(call: HostCall, value: int) -> int:
        call.memory.write(0, value.to_bytes(4, "little"))
        return int.from_bytes(call.memory.read(0, 4), "little")

    sandbox, module = lending(f), caller("i32", "i32")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: sandbox.call(module, "go", n).value, range(400))) == list(range(400))


ROUTES = """
(module
  (type $t (func (result i32)))
  (import "env" "f" (func $f (type $t)))
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (import "env" "g" (func $g (param i32) (result i32)))
  (memory (export "memory") 1)
  (table $table 3 funcref)
  (elem (table $table) (i32.const 0) func $f)
  (elem $passive funcref (ref.func $f))
  (elem declare func $f)
  (global $reference funcref (ref.func $f))
  (export "again" (func $f))
  (func (export "direct") (result i32) (call $f))
  (func (export "tail") (result i32) (return_call $f))
  (func (export "indirect") (result i32) (call_indirect $table (type $t) (i32.const 0)))
  (func (export "tail_indirect") (result i32) (return_call_indirect $table (type $t) (i32.const 0)))
  (func (export "passive") (result i32)
    (table.init $table $passive (i32.const 1) (i32.const 0) (i32.const 1))
    (call_indirect $table (type $t) (i32.const 1)))
  (func (export "reference") (result i32)
    (table.set $table (i32.const 2) (global.get $reference))
    (call_indirect $table (type $t) (i32.const 2)))
  (func (export "ref_func") (result i32)
    (table.set $table (i32.const 2) (ref.func $f))
    (call_indirect $table (type $t) (i32.const 2)))
  (func (export "both") (result i32) (i32.add (call $yield) (call $g (call $f)))))
"""


@pytest.mark.parametrize(
    "route",
    ["again", "direct", "tail", "indirect", "tail_indirect", "passive", "reference", "ref_func", "both"],
)
def test_every_way_to_a_host_function_is_counted(route: str) -> None:
    """Attack: reach the function by a table, a reference, a tail call or an export, past the guard."""
    seen = []

    def f() -> int:
        seen.append(route)
        return 41

    def g(value: int) -> int:
        return value

    def lend(sandbox: Sandbox) -> Sandbox:
        sandbox.host_function("env")(f)
        sandbox.host_function("env")(g)
        return sandbox

    module = wat(ROUTES)
    report = lend(box()).call(module, route)
    assert report.value == 41
    assert report.usage.host_calls == (2 if route == "both" else 1)
    assert report.usage.calls == ({"sched_yield": 1} if route == "both" else {})
    assert seen == [route]
    denied = lend(box(calls=0)).call(module, route)
    assert denied.outcome is Outcome.DENIED
    assert seen == [route]


def test_a_host_function_as_start_function() -> None:
    """Attack: it would be called while the instance is made, before there is a policy."""
    seen = []

    def f() -> None:
        seen.append(1)

    module = wat('(module (import "env" "f" (func $f)) (start $f) (func (export "go") (result i32) (i32.const 5)))')
    report = lending(f).call(module, "go")
    assert (report.value, report.usage.host_calls, seen) == (5, 1, [1])
    assert lending(f, calls=0).call(module, "go").outcome is Outcome.DENIED
    assert seen == [1]


def test_functions_of_the_guest_that_are_called_like_those_of_the_guard() -> None:
    """Attack: names of the guard's functions and exports, taken by the guest, with other types and another meaning."""
    module = wat("""
    (module
      (import "env" "f" (func $host_call (result i32)))
      (func $enter (export "host_call") (param i32) (result i32) (i32.const 0))
      (func $end_run (export "end_run") (param i32))
      (memory (export "stockade.state") 1)
      (func $memory_grow (export "stockade.start") (result i32) (call $host_call))
      (func (export "stockade.natives") (result i32) (call $memory_grow)))
    """)

    def f() -> int:
        return 3

    for name in ("stockade.start", "stockade.natives"):
        report = lending(f).call(module, name)
        assert (report.value, report.usage.host_calls) == (3, 1)
        assert lending(f, calls=0).call(module, name).outcome is Outcome.DENIED
    assert lending(f).call(module, "host_call", 9).value == 0


# -- every door -------------------------------------------------------------------------------------------------------


def test_every_door() -> None:
    """`run`, `call`, `open`, their coroutines, and a policy for one run."""
    seen = []

    def f() -> None:
        seen.append(1)

    module = wat("""
    (module (import "env" "f" (func $f)) (func (export "_start") (call $f)) (func (export "go") (call $f) (call $f)))
    """)
    sandbox = lending(f)
    assert sandbox.run(module).usage.host_calls == 1
    assert sandbox.call(module, "go").usage.host_calls == 2
    with sandbox.open(module) as session:
        assert [session.call("go").usage.host_calls for _ in range(3)] == [2, 2, 2]
    assert asyncio.run(sandbox.run_async(module)).usage.host_calls == 1
    assert asyncio.run(sandbox.call_async(module, "go")).usage.host_calls == 2
    assert len(seen) == 12
    narrowed = sandbox.call(module, "go", policy=Policy().replace(calls=1))
    assert (narrowed.outcome, narrowed.usage.host_calls, len(seen)) == (Outcome.DENIED, 2, 13)


def test_the_event_loop_goes_on_while_a_host_function_waits() -> None:
    """The function waits for what only the event loop can do."""
    event = threading.Event()

    def f() -> int:
        return int(event.wait(60))

    async def main() -> Report:
        task = asyncio.ensure_future(lending(f).call_async(caller("", "i32"), "go"))
        await asyncio.sleep(0)
        event.set()
        return await task

    assert asyncio.run(main()).value == 1


# -- memory -----------------------------------------------------------------------------------------------------------

OUTSIDE = [
    (PAGE - 4, 5),
    (PAGE, 1),
    (PAGE + 1, 0),
    (-1, 1),
    (-1, 2),
    (0, -1),
    (1, -1),
    (-1, -1),
    (-(2**31), -(2**31)),
    (2**31 - 1, 2**31 - 1),
    (16, 2**32 - 16),
]
INSIDE = [(0, 0), (0, PAGE), (PAGE - 4, 4), (PAGE - 1, 1), (PAGE, 0)]


@pytest.mark.parametrize(("address", "size"), OUTSIDE)
def test_what_is_outside_of_memory_ends_the_run(address: int, size: int) -> None:
    """Attack: beyond the end, a sum that wraps round 2^32, negative numbers: by annotation and by hand."""

    def by_annotation(data: bytes) -> None:
        raise AssertionError("called")

    def by_hand(call: HostCall, address: U32, size: U32) -> None:
        call.memory.read(address, size)

    def signed(call: HostCall, address: I32, size: I32) -> None:
        call.memory.read(address, size)

    module = caller("i32 i32")
    begin, count = address % 2**32, size % 2**32
    for function in (by_annotation, by_hand, signed):
        assert trap(lending(function).call(module, "go", address, size)) == (
            f"env.f raised IndexError: bytes {begin:,} to {begin + count:,} are not inside 65,536"
        )


@pytest.mark.parametrize(("address", "size"), INSIDE)
def test_what_is_just_inside_of_memory_is_read(address: int, size: int) -> None:
    """The twin."""
    got = []

    def f(data: bytes) -> None:
        got.append(len(data))

    assert lending(f).call(caller("i32 i32"), "go", address, size).ok
    assert got == [size]


def test_no_pair_of_numbers_reads_outside() -> None:
    """Whatever the numbers are, what is read is what stands there, or the run ends."""
    pattern = bytes(range(256)) * 256
    read = []

    def f(data: bytes) -> None:
        read.append(data)

    sandbox, module = lending(f), caller("i32 i32")
    near = st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(PAGE - 300, PAGE + 300), st.integers(0, 300))

    @given(near, near)
    def check(address: int, size: int) -> None:
        with sandbox.open(module) as session:
            session.write_memory(0, pattern)
            report = session.call("go", address, size)
        begin, count = address % 2**32, size % 2**32
        assert report.ok is (begin + count <= PAGE)
        assert (read.pop() == pattern[begin : begin + count]) if report.ok else not read

    check()


@pytest.mark.parametrize(
    ("address", "data"), [(PAGE - 3, b"1234"), (PAGE, b"1"), (-1, b"1"), (2**32, b""), (-(2**31) - 1, b"1")]
)
def test_nothing_is_written_outside(address: int, data: bytes) -> None:
    """Attack: the same for writing; not even what would fit is written."""

    def f(call: HostCall) -> None:
        try:
            call.memory.write(address, data)
        finally:
            seen.append(call.memory.read(PAGE - 16, 16))

    seen: list[bytes] = []
    assert "IndexError: bytes " in trap(lending(f).call(PLAIN, "go"))
    assert seen == [bytes(16)]


def test_what_is_written_is_seen_by_the_guest() -> None:
    """Bytes and their like; a text as UTF-8, and not as Python keeps it."""

    def f(call: HostCall, kind: int) -> None:
        data: list[Any] = [b"\1\2\3\4", bytearray(b"\5\0\0\0"), memoryview(b"x\6\0\0\0x")[1:5], "é\7\0", 5]
        call.memory.write(PAGE - 4, data[kind])

    module = wat(f"""
    (module (import "env" "f" (func $f (param i32))) (memory (export "memory") 1)
      (func (export "go") (param i32) (result i32) (call $f (local.get 0)) (i32.load (i32.const {PAGE - 4}))))
    """)
    sandbox = lending(f)
    assert [sandbox.call(module, "go", kind).value for kind in range(4)] == [0x04030201, 5, 6, 0x0007A9C3]
    assert trap(sandbox.call(module, "go", 4)) == (
        "env.f raised UsageError: data is int: give bytes, or text, which is passed on as UTF-8"
    )


def test_memory_that_grew_is_all_there() -> None:
    """Between two calls, and not what is beyond it."""
    sizes = []

    def f(call: HostCall) -> None:
        size = call.memory.size_bytes
        sizes.append(size)
        call.memory.write(size - 1, b"x")
        with pytest.raises(IndexError):
            call.memory.read(size, 1)

    module = wat("""
    (module (import "env" "f" (func $f)) (memory (export "memory") 1)
      (func (export "go") (call $f) (drop (memory.grow (i32.const 1))) (call $f) (drop (memory.grow (i32.const 8)))
        (call $f)))
    """)
    assert lending(f).call(module, "go").ok
    assert sizes == [PAGE, 2 * PAGE, 10 * PAGE]


@pytest.mark.parametrize("memory", ["", "(memory 1)", '(func (export "memory"))', '(memory (export "Memory") 1)'])
def test_a_guest_without_memory(memory: str) -> None:
    """A module that exports none, or something else under its name."""

    def f(call: HostCall) -> None:
        call.memory.read(0, 0)

    message = "env.f raised UsageError: the guest exports no memory"
    assert trap(lending(f).call(caller(memory=memory), "go")) == message

    def text(text: str) -> None: ...

    assert trap(lending(text).call(caller("i32 i32", memory=memory), "go", 0, 0)) == message


GONE = "the guest's memory is only there while the host function runs: copy what you need"


def test_memory_that_is_kept_refuses() -> None:
    """Attack on freed memory: what a function kept is used when the call is over, and when the guest is gone."""
    kept: list[tuple[HostCall, GuestMemory]] = []
    calls: list[HostCall] = []

    def f(call: HostCall) -> None:
        if calls:
            kept.append((call, call.memory))
            call.memory.read(0, 1)
        calls.append(call)

    sandbox = lending(f)
    with sandbox.open(PLAIN) as session:
        session.call("go")
        session.call("go")
        for _ in range(2):
            for use in (
                lambda: kept[0][1].read(0, 1),
                lambda: kept[0][1].read_text(0, 1),
                lambda: kept[0][1].write(0, b"x"),
                lambda: kept[0][1].size_bytes,
                lambda: kept[0][0].memory.read(0, 1),
                lambda: calls[0].memory,
            ):
                with pytest.raises(UsageError) as caught:
                    use()
                assert str(caught.value) == GONE
            session.close()


def test_memory_is_for_the_thread_of_the_call() -> None:
    """Attack: another thread uses the memory while the guest may go on, or be gone."""
    problems: list[str] = []

    def f(call: HostCall, first: bool) -> None:
        memory = call.memory if first else None

        def use() -> None:
            try:
                (memory or call.memory).read(0, 1)
            except UsageError as problem:
                problems.append(str(problem))

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        call.memory.read(0, 1)

    sandbox = lending(f)
    for first in (0, 1):
        assert sandbox.call(caller("i32"), "go", first).ok
    assert problems == ["the guest's memory is for the thread that the guest runs on: copy what you need"] * 2


# -- failures ---------------------------------------------------------------------------------------------------------


class UntellableError(Exception):
    """An error whose text is an error."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (ValueError("bad thing"), "ValueError: bad thing"),
        (KeyError("k"), "KeyError: 'k'"),
        (RuntimeError(), "RuntimeError: "),
        (ValueError("\x1b]0;owned\x07\u202e\n"), r"ValueError: \x1b]0;owned\x07\u202e\x0a"),
        (ValueError("x" * 10**6), f"ValueError: {'x' * 400}… (1,000,000 long)"),
        (StopIteration(5), "StopIteration: 5"),
        (MemoryError(), "MemoryError: "),
        (RecursionError("deep"), "RecursionError: deep"),
        (ExceptionGroup("two", [ValueError(), TypeError()]), "ExceptionGroup: two (2 sub-exceptions)"),
        (stockade.LinkError("inner"), "LinkError: inner"),
        (UntellableError(), "UntellableError: (it cannot be told)"),
    ],
)
def test_an_exception_is_a_trap(problem: Exception, message: str) -> None:
    """Outcome, code and message, short and escaped; the session is over, the sandbox is not."""

    def f(ask: bool) -> None:
        if ask:
            raise problem

    sandbox, module = lending(f), caller("i32")
    with sandbox.open(module) as session:
        report = session.call("go", 1)
        assert trap(report) == f"env.f raised {message}"
        assert report.usage.host_calls == 1
        with pytest.raises(UsageError, match="the guest has ended, so the session is over"):
            session.call("go", 0)
    assert sandbox.call(module, "go", 0).ok


def test_a_trap_can_be_raised_by_check() -> None:
    """It is a `GuestTrap` that says what happened."""

    def f() -> None:
        raise ValueError("bad thing")

    with pytest.raises(stockade.GuestTrap, match=r"env\.f raised ValueError: bad thing"):
        lending(f).call(PLAIN, "go").check()


def test_what_a_function_raised_is_the_cause_of_what_check_raises() -> None:
    """The exception itself, with the frames of the function and none of ours: for the embedder to debug."""

    def inner() -> None:
        raise KeyError("a secret of the host's")

    def f() -> None:
        inner()

    report = lending(f).call(PLAIN, "go")
    with pytest.raises(stockade.GuestTrap) as caught:
        report.check()

    cause = caught.value.__cause__
    assert isinstance(cause, KeyError)
    assert [frame.name for frame in traceback.extract_tb(cause.__traceback__)] == ["f", "inner"]
    with pytest.raises(stockade.GuestTrap) as again:
        report.check()
    assert again.value.__cause__ is cause


def test_the_cause_is_no_part_of_the_report() -> None:
    """What is written, compared, pickled or copied does not have it; nor does a trap of the guest's own."""

    def f() -> None:
        raise ValueError("bad")

    report = lending(f).call(PLAIN, "go")
    copied = pickle.loads(pickle.dumps(report))

    assert "cause" not in json.loads(report.to_json())
    assert copied == report
    for other in (copied, box().call(wat('(module (func (export "go") unreachable))'), "go")):
        with pytest.raises(stockade.GuestTrap) as caught:
            other.check()
        assert caught.value.__cause__ is None


def test_the_cause_goes_with_the_report() -> None:
    """What the function had in its hands is not kept by anything else."""

    class Thing:
        """Something to look at."""

    things: list[weakref.ref[Thing]] = []

    def f() -> None:
        thing = Thing()
        things.append(weakref.ref(thing))
        raise ValueError

    report = lending(f).call(PLAIN, "go")
    gc.collect()
    assert things[0]() is not None
    del report
    gc.collect()
    assert things[0]() is None


class Own(BaseException):
    """One that nobody knows."""


@pytest.mark.parametrize(
    "kind",
    [
        KeyboardInterrupt,
        SystemExit,
        GeneratorExit,
        Own,
        lambda: BaseExceptionGroup("g", [Own()]),
    ],
)
def test_what_is_no_exception_reaches_the_caller(kind: Callable[[], BaseException]) -> None:
    """KeyboardInterrupt and its like are raised where the call began, as they are; the process lives."""
    problem = kind()

    def f() -> None:
        raise problem

    sandbox = lending(f)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - the very object is compared
        sandbox.call(PLAIN, "go")
    assert caught.value is problem
    with sandbox.open(PLAIN) as session:
        with pytest.raises(type(problem)):
            session.call("go")
        with pytest.raises(UsageError, match="the guest has ended, so the session is over"):
            session.call("go")


@pytest.mark.differs("workers that wait for the next run are left, with their sockets: tests/isolation looks for more")
def test_failures_leave_nothing_behind() -> None:
    """Instances, descriptors and threads are given back, whatever a function raises."""
    kinds = itertools.cycle((ValueError, KeyboardInterrupt, Own, SystemExit))

    def f() -> None:
        raise next(kinds)

    sandbox = lending(f)

    def fail() -> None:
        with contextlib.suppress(KeyboardInterrupt, Own, SystemExit):
            sandbox.call(PLAIN, "go")

    def left() -> tuple[int, list[str], int]:
        gc.collect()
        descriptors = len(os.listdir("/proc/self/fd")) if sys.platform.startswith("linux") else 0  # noqa: PTH208
        # Tickers come and go as engines are used, at most one each; an earlier test's executor may be about to go.
        threads = sorted({thread.name for thread in threading.enumerate()} - {"stockade-ticker", "stockade-executor"})
        instances = sum(type(thing).__name__ == "Instance" for thing in gc.get_objects())
        return descriptors, threads, instances

    fail()
    before, tickers = left(), threading.active_count()
    # More than there are instances to be had at once.
    for _ in range(1200):
        fail()
    (descriptors, *others), (most, *expected) = left(), before
    # Workers of earlier tests, which nobody has asked for in a while, may go meanwhile.
    assert descriptors <= most
    assert others == expected
    assert threading.active_count() <= tickers + 3


# -- in a process of its own: what would abort it ---------------------------------------------------------------------

_ALONE = """
import copy, json, re, signal, sys
from stockade import HostCall, Module, Policy, Sandbox
module = Module.load(b'''(module (import "env" "f" (func $f (result i32)))
  (func (export "go") (result i32) (call $f))
  (func (export "many") (param i32) (result i32) (local $sum i32)
    (loop $next
      (local.set $sum (i32.add (local.get $sum) (call $f)))
      (br_if $next (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))
    (local.get $sum)))''', text=True)
box = Sandbox(Policy().replace(fuel=None, wall_time=60.0), sys.argv[1])
"""


def alone(script: str) -> str:
    """What a script prints; it must come to its end."""
    result = subprocess.run(
        [sys.executable, "-c", _ALONE + textwrap.dedent(script), isolation_here()],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout


DEEP = {
    "python": """
        def dive(n):
            return dive(n - 1) + 1 if n else 0
        work = lambda: dive(900)
    """,
    "json": """
        def work():
            nested = []
            for _ in range(899):
                nested = [nested]
            return json.dumps(nested).count("[")
    """,
    "sorted": """
        def dive(n):
            return sorted([n], key=lambda n: dive(n - 1) and 0)[0] if n else 1
        work = lambda: dive(300) * 3
    """,
    "copy": """
        def work():
            nested = []
            for _ in range(300):
                nested = [nested]
            return len(copy.deepcopy([nested] * 900))
    """,
    "re": """
        work = lambda: len(re.fullmatch("(?:(?:a|b)*?c?)*", "ab" * 450).group())
    """,
    "eval": """
        work = lambda: eval("(" * 90 + "900" + ")" * 90)
    """,
}


@pytest.mark.parametrize("kind", DEEP)
def test_a_host_function_may_go_deep(kind: str) -> None:
    """The function runs on the guest's stack: Python's own recursion, and that of its C code, find room there."""
    script = textwrap.dedent(DEEP[kind]) + textwrap.dedent("""
        @box.host_function("env")
        def f() -> int:
            return work()
        print(box.call(module, "go").check().value, work())
    """)
    inside, outside = alone(script).split()
    assert inside == outside
    assert int(inside) >= 899


def test_recursion_without_end_is_a_trap() -> None:
    """Attack on the stack: Python's limit comes before its end, in Python and in C code."""
    printed = alone("""
        def dive():
            return dive()
        def dive_sorted():
            return sorted([1], key=lambda _: dive_sorted())
        class Deep:
            def __repr__(self):
                return repr([self])
        works = [dive, dive_sorted, lambda: repr(Deep())]
        @box.host_function("env")
        def f() -> int:
            work()
        for work in works:
            report = box.call(module, "go")
            print(report.outcome, report.trap.code, report.trap.message.split(":")[0])
    """)
    assert printed == "trap host env.f raised RecursionError\n" * 3


def test_a_call_where_pythons_stack_is_nearly_full() -> None:
    """Attack: at the border into Python nothing can be caught; with no room there, the process was aborted.

    Before that, calls were skipped: the guest went on with a result of 0. Wherever the call begins, it either ends with
    the function's result or raises before the guest runs.
    """
    printed = alone("""
        calls = 0
        @box.host_function("env")
        def f() -> int:
            global calls
            calls += 1
            return 7
        def dive(depth, session):
            return dive(depth - 1, session) if depth else session.call("go")
        seen = set()
        for depth in range(850, 1000):
            with box.open(module) as session:
                calls = 0
                try:
                    report = dive(depth, session)
                except Exception as problem:
                    assert "RecursionError" in repr(problem), problem
                    seen.add(f"raised {calls}")
                else:
                    seen.add(f"{report.outcome} {report.value} {report.usage.host_calls} {calls}")
        print(*sorted(seen), sep=", ")
    """)
    assert printed == "ok 7 1 1, raised 0\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals are POSIX's")
def test_a_signal_at_any_moment_reaches_the_caller() -> None:
    """Attack: a signal's handler raises at the border into Python, where it cannot be caught.

    The process was aborted by it. It must be raised where the run began, each time, and no call may be skipped.
    """
    printed = alone("""
        class Alarm(BaseException):
            pass
        def ring(*_):
            raise Alarm
        signal.signal(signal.SIGALRM, ring)
        calls = 0
        @box.host_function("env")
        def f() -> int:
            global calls
            calls += 1
            return 1
        # What is loaded by the first run is loaded by code that swallows what is raised in it.
        box.call(module, "many", 1)
        rung = 0
        for turn in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.003 + turn * 0.00013)
                box.call(module, "many", 1_000_000_000)
            except Alarm:
                rung += 1
        calls = 0
        print(rung, box.call(module, "many", 1000).value, calls)
    """)
    assert printed == "60 1000 1000\n"


# -- guests within guests ---------------------------------------------------------------------------------------------


def test_a_function_cannot_use_the_session_that_calls_it_otherwise() -> None:
    """Attack: the store is in use by the guest, one call deeper. Calls of exports are another matter."""
    caught: list[str] = []
    sessions: list[stockade.Session] = []

    def f(way: int) -> None:
        session = sessions[0]
        ways: list[Callable[[], object]] = [
            lambda: session.read_memory(0, 1),
            lambda: session.write_memory(0, b"x"),
            session.close,
        ]
        try:
            ways[way]()
        except UsageError as problem:
            caught.append(str(problem))
            raise

    sandbox, module = lending(f), caller("i32")
    for way in range(3):
        with sandbox.open(module) as session:
            sessions[:] = [session]
            assert trap(session.call("go", way)) == f"env.f raised UsageError: {caught[-1]}"
    used = "the session is in use by another thread: give each thread a session of its own"
    assert caught == [used, used, "a call is under way in another thread: cancel it first"]


def test_a_function_may_run_other_guests() -> None:
    """Three deep, in one sandbox and of one module; each function sees the memory of its own caller."""
    seen: list[tuple[int, bytes, bytes]] = []

    def f(call: HostCall, depth: int) -> int:
        call.memory.write(0, b"%d" % depth)
        before = call.memory.read(0, 2)
        inner = sandbox.call(module, "go", depth - 1).check().value if depth else 0
        seen.append((depth, before, call.memory.read(0, 2)))
        assert isinstance(inner, int)
        return inner + depth

    module = caller("i32", "i32")
    sandbox = lending(f)
    report = sandbox.call(module, "go", 3)
    assert (report.value, report.usage.host_calls) == (6, 1)
    assert seen == [(depth, b"%d\0" % depth, b"%d\0" % depth) for depth in range(4)]


def test_a_failure_within_ends_only_the_guest_within() -> None:
    """The inner guest's trap does not touch the outer one; KeyboardInterrupt goes through both."""
    inner_reports: list[Report] = []

    def f(depth: int) -> None:
        if depth == 0:
            raise ValueError("deep")
        if depth == 10:
            raise KeyboardInterrupt
        inner_reports.append(sandbox.call(module, "go", depth - 1))

    module = caller("i32")
    sandbox = lending(f)
    assert sandbox.call(module, "go", 2).ok
    assert [report.outcome for report in inner_reports] == [Outcome.TRAP, Outcome.OK]
    with pytest.raises(KeyboardInterrupt):
        sandbox.call(module, "go", 11)
    assert sandbox.call(module, "go", 1).ok


# -- limits -----------------------------------------------------------------------------------------------------------

MANY = wat("""
(module (import "env" "f" (func $f))
  (func (export "go") (param i32) (result i32) (local $made i32)
    (loop $next
      (call $f)
      (local.set $made (i32.add (local.get $made) (i32.const 1)))
      (br_if $next (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))
    (local.get $made)))
""")


def counter() -> tuple[list[int], Callable[[], None]]:
    """A function that counts its calls, and the count."""
    count = [0]

    def f() -> None:
        count[0] += 1

    return count, f


@pytest.mark.parametrize("on_violation", ["deny", "stop"])
def test_the_limit_on_calls_holds_for_host_functions(on_violation: str) -> None:
    """Exact counts; at the limit it succeeds, one more ends the run, and is not made."""
    count, f = counter()
    sandbox = lending(f, calls=10, on_violation=on_violation)
    at = sandbox.call(MANY, "go", 10)
    assert (at.outcome, at.value, at.usage.host_calls, at.violations) == (Outcome.OK, 10, 10, ())
    assert at.usage.calls == {}
    over = sandbox.call(MANY, "go", 11)
    assert (over.outcome, over.value, over.usage.host_calls, count) == (Outcome.DENIED, None, 11, [20])
    assert [(v.kind, v.call, v.limit, v.observed, v.count) for v in over.violations] == [
        ("calls", "host functions", 10, 11, 1)
    ]


def test_a_policy_that_only_takes_note_lets_calls_through() -> None:
    """The twin: all are made and told."""
    count, f = counter()
    report = lending(f, calls=10, on_violation="audit").call(MANY, "go", 13)
    assert (report.outcome, report.value, report.usage.host_calls, count) == (Outcome.OK, 13, 13, [13])
    assert [(v.kind, v.action, v.count) for v in report.violations] == [("calls", "audit", 3)]


def test_a_rate_refuses_or_waits() -> None:
    """Calls of host functions are calls; the waiting is told by the clock of the report."""
    count, f = counter()
    report = lending(f, call_rate=1, on_rate="refuse").call(MANY, "go", 101)
    assert report.outcome is Outcome.DENIED
    assert count[0] < 101
    assert [(v.kind, v.call, v.limit) for v in report.violations] == [("call_rate", "host functions", 1)]
    count[0] = 0
    waited = lending(f, call_rate=100, on_rate="wait").call(MANY, "go", 150)
    assert (waited.outcome, waited.value, count) == (Outcome.OK, 150, [150])
    assert waited.usage.wall_seconds >= 0.5


def test_the_calls_of_a_session_share_the_limit() -> None:
    """Each call's report counts its own; the limit is for all of them together."""
    count, f = counter()
    with lending(f, calls=10).open(MANY) as session:
        assert [session.call("go", 3).usage.host_calls for _ in range(3)] == [3, 3, 3]
        assert session.call("go", 2).outcome is Outcome.DENIED
    assert count == [10]


def test_the_deadline_holds_right_after_a_slow_function() -> None:
    """Attack: a host function takes the guest's time; the guest gets none for it."""

    def f() -> None:
        time.sleep(0.6)

    module = wat("""
    (module (import "env" "f" (func $f)) (global $after (mut i32) (i32.const 0))
      (func (export "go") (call $f) (loop $forever (br $forever))))
    """)
    report = lending(f, wall_time=0.5, fuel=None).call(module, "go")
    assert (report.outcome, report.usage.host_calls) == (Outcome.TIMEOUT, 1)
    assert report.usage.wall_seconds >= 0.6
    count, quick = counter()
    endless = lending(quick, wall_time=0.1, fuel=None).call(MANY, "go", 0)
    assert endless.outcome is Outcome.TIMEOUT
    assert endless.usage.host_calls == count[0]


LATE = """
(module
  (import "env" "f" (func $f))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (call $f))
  (func (export "returns") (result i32) (call $f) (i32.const 7))
  (func (export "yields") (result i32) (local $i i32)
    (call $f)
    (loop $next (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 5000000))))
    (i32.const 7))
  (func (export "traps") (call $f) unreachable)
  (func (export "exits") (call $f) (call $exit (i32.const 3)))
  (func (export "leaves") (call $f) (call $exit (i32.const 0)))
  (func (export "overflows") (call $f) (call $deeper))
  (func $deeper (call $deeper))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "text") (param i32 i32) (result i32 i32) (call $f) (i32.const 1024) (i32.const 2))
  (func (export "pointer") (param i32 i32) (result i32 i32) (call $f) (i32.const -1) (i32.const 2)))
"""
BEFORE = {
    "_start": (Outcome.OK, None),
    "returns": (Outcome.OK, 7),
    "yields": (Outcome.OK, 7),
    "traps": (Outcome.TRAP, None),
    "exits": (Outcome.EXIT, None),
    "leaves": (Outcome.OK, None),
    "overflows": (Outcome.STACK, None),
    "text": (Outcome.OK, "ab"),
    "pointer": (Outcome.TRAP, None),
}
"""What becomes of each function of the guest, and its value, where nothing comes in between."""


def _passed(export: str) -> tuple[tuple[str, ...], dict[str, str]]:
    return (("ab",), {"returns": "text"}) if export in ("text", "pointer") else ((), {})


def _by_each_way(sandbox: Sandbox, module: Module, export: str) -> list[Report]:
    """The reports of a call by `call`, `call_async`, a session, and sessions of an event loop and of a scheduler."""
    arguments, returns = _passed(export)
    found = [sandbox.call(module, export, *arguments, **returns)]  # type: ignore[arg-type]
    with sandbox.open(module) as session:
        found.append(session.call(export, *arguments, **returns))  # type: ignore[arg-type]

    async def awaited() -> None:
        found.append(await sandbox.call_async(module, export, *arguments, **returns))  # type: ignore[arg-type]
        async with await sandbox.open_async(module) as session:
            found.append(await session.call(export, *arguments, **returns))  # type: ignore[arg-type]

    asyncio.run(awaited())
    if not arguments:
        with stockade.Scheduler(sandbox) as scheduler:
            task = stockade.Task(module=module, export=export)
            found.append(scheduler.submit(task).result())
    return found


@pytest.mark.parametrize("export", BEFORE)
def test_what_comes_back_after_its_time_is_a_timeout(export: str) -> None:
    """The attack: the deadline passes inside a host function, and the guest then returns, leaves or traps at once.

    Whatever it did, it did too late; the twin, with a function that is quick, is what the guest did.
    """
    pause = [0.1]

    def f() -> None:
        time.sleep(pause[0])

    module = wat(LATE)
    late = _by_each_way(lending(f, wall_time=0.05, fuel=None), module, export)
    pause[0] = 0.0
    early = _by_each_way(lending(f, wall_time=60.0, fuel=None), module, export)

    for report in late:
        assert report.outcome is Outcome.TIMEOUT
        assert (report.value, report.exit_code, report.trap) == (None, None, None)
        assert [(found.kind, found.subject, found.limit) for found in report.violations] == [
            ("timeout", "limits.wall_time", 0.05)
        ]
        assert report.usage.wall_seconds >= 0.05
    for report in early:
        assert (report.outcome, report.value) == BEFORE[export]
        assert not any(found.kind == "timeout" for found in report.violations)


def test_commands_start_functions_and_initializers_that_take_too_long_are_timeouts() -> None:
    """The same by the other entries of a module; none of the guest's code runs after it."""
    pause, calls = [0.1], [0]

    def f() -> None:
        calls[0] += 1
        time.sleep(pause[0])

    def after() -> None:
        calls[0] += 100

    imports = '(import "env" "f" (func $f)) (import "env" "after" (func $after))'
    start = wat(f'(module {imports} (start $f) (func (export "_start") (call $after)))')
    reactor = wat(f'(module {imports} (func (export "_initialize") (call $f)) (func (export "go") (call $after)))')
    command = wat(f'(module {imports} (func (export "_start") (call $f)))')
    for wall_time, outcome in ((0.05, Outcome.TIMEOUT), (60.0, Outcome.OK)):
        pause[0] = 0.1 if outcome is Outcome.TIMEOUT else 0.0
        sandbox = lending(f, wall_time=wall_time, fuel=None)
        sandbox.host_function("env", "after")(after)
        rest = 0 if outcome is Outcome.TIMEOUT else 100
        for act, called in (
            (lambda: sandbox.run(start), 1 + rest),  # noqa: B023 - called at once
            (lambda: sandbox.call(reactor, "go"), 1 + rest),  # noqa: B023
            (lambda: sandbox.run(command), 1),  # noqa: B023
        ):
            calls[0] = 0
            assert act().outcome is outcome
            assert calls[0] == called
    pause[0] = 0.1
    slow = lending(f, wall_time=0.05, fuel=None)
    slow.host_function("env", "after")(after)
    with pytest.raises(stockade.GuestError):
        slow.open(reactor)


@pytest.mark.parametrize("export", BEFORE)
def test_what_was_cancelled_before_it_came_back_is_cancelled(export: str) -> None:
    """The attack: a run is cancelled while it is in a host function, and the guest then ends by itself.

    Also where its time is up as well: who cancels is told so.
    """
    pause = [0.0]

    def f() -> None:
        sandbox.cancel("it")
        time.sleep(pause[0])

    sandbox = lending(f, wall_time=0.05, fuel=None)
    arguments, returns = _passed(export)
    for pause[0] in (0.0, 0.1):
        report = sandbox.call(wat(LATE), export, *arguments, run_id="it", **returns)  # type: ignore[arg-type]
        assert report.outcome is Outcome.CANCELLED
        assert (report.value, report.exit_code, report.trap, report.violations) == (None, None, None, ())


def test_what_was_refused_too_late_is_told_all_the_same() -> None:
    """A timeout hides no violation: the capability that was missing in the end stands beside it."""

    def f(call: HostCall) -> None:
        time.sleep(0.1)
        call.require("gpu")

    report = lending(f, wall_time=0.05, fuel=None).call(PLAIN, "go")

    assert report.outcome is Outcome.TIMEOUT
    assert [found.kind for found in report.violations] == ["capability", "timeout"]
    assert lending(f, wall_time=60.0, fuel=None).call(PLAIN, "go").outcome is Outcome.DENIED


# -- what a guest makes the host keep ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["error", "interrupt", "capability", "unfit result", "outside"])
def test_a_failed_call_keeps_nothing_alive(kind: str) -> None:
    """The attack: calls that fail, with as large arguments as may be, each kept until the cyclic collector comes."""
    seen: list[weakref.ref[HostCall]] = []

    def f(call: HostCall, data: bytes) -> int:
        seen.append(weakref.ref(call))
        call.memory.read(0, 8)
        if kind == "error":
            raise ValueError(len(data))
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind == "capability":
            call.require("gpu")
        if kind == "outside":
            call.memory.read(-1, 8)
        return 1 << 40

    module = caller("i32 i32", "i32")
    sandbox = lending(f)
    gc.collect()
    gc.disable()
    try:
        before = sum(type(thing).__name__ in ("Instance", "Guest", "Memory") for thing in gc.get_objects())
        for _ in range(5):
            with contextlib.suppress(KeyboardInterrupt, UsageError):
                sandbox.call(module, "go", 0, 1000)
        after = sum(type(thing).__name__ in ("Instance", "Guest", "Memory") for thing in gc.get_objects())
        alive = [call() for call in seen]
    finally:
        gc.enable()

    assert alive == [None] * 5
    assert after == before


def test_a_cause_that_is_kept_keeps_no_guest() -> None:
    """An exception of a host function may be kept: it knows the function's frame, and that it was called by nobody."""

    def f(number: int) -> int:
        raise ValueError(number)

    sandbox = lending(f)
    gc.collect()
    gc.disable()
    try:
        before = sum(type(thing).__name__ in ("Instance", "Guest", "Report") for thing in gc.get_objects())
        with pytest.raises(stockade.GuestTrap) as raised:
            sandbox.call(caller("i32", "i32"), "go", 4).check()
        cause = raised.value.__cause__
        del raised
        after = sum(type(thing).__name__ in ("Instance", "Guest", "Report") for thing in gc.get_objects())
    finally:
        gc.enable()

    assert after == before
    assert isinstance(cause, ValueError)
    assert cause.__traceback__ is not None
    frame = cause.__traceback__.tb_frame
    assert (frame.f_code, frame.f_locals, cause.__traceback__.tb_next) == (f.__code__, {"number": 4}, None)
    assert frame.f_back is not None
    assert (frame.f_back.f_locals, frame.f_back.f_back) == ({}, None)


def test_a_host_function_that_runs_guests_is_called_within_itself() -> None:
    """Each call is made by another, and what is raised in the innermost comes to the outermost."""

    def f(number: int) -> int:
        if not number:
            raise ValueError("at the end")
        value = sandbox.call(module, "go", number - 1).check().value
        assert isinstance(value, int)
        return value

    module = caller("i32", "i32")
    sandbox = lending(f)
    causes = []
    with pytest.raises(stockade.GuestTrap) as raised:
        sandbox.call(module, "go", 3).check()
    problem: BaseException | None = raised.value
    while problem is not None:
        causes.append(type(problem).__name__)
        problem = problem.__cause__
    assert causes == ["GuestTrap", "GuestTrap", "GuestTrap", "GuestTrap", "ValueError"]


def test_a_call_that_is_kept_keeps_no_guest() -> None:
    """A host function may keep its `HostCall`; the instance goes with the run."""
    kept: list[HostCall] = []

    def f(call: HostCall) -> None:
        kept.append(call)

    sandbox = lending(f)
    gc.collect()
    gc.disable()
    try:
        before = sum(type(thing).__name__ == "Instance" for thing in gc.get_objects())
        sandbox.call(PLAIN, "go")
        after = sum(type(thing).__name__ == "Instance" for thing in gc.get_objects())
    finally:
        gc.enable()

    assert after == before
    with pytest.raises(UsageError):
        _ = kept[0].memory


@pytest.mark.parametrize("kind", [str, bytes])
def test_what_text_a_call_passes_is_bounded(kind: type) -> None:
    """The attack: the same bytes of the guest, named for every parameter, are copied for each, as text four times over.

    At the bound it is passed; one byte more, over all parameters together, ends the run.
    """
    seen: list[int] = []

    def f(first: Any, second: Any) -> None:
        seen.append(len(first) + len(second))

    f.__annotations__.update(first=kind, second=kind)
    module = caller("i32 i32 i32 i32", memory='(memory (export "memory") 200)')
    sandbox = lending(f, memory=1 << 30)
    half = 8 << 20

    assert sandbox.call(module, "go", 0, half, 100, half).ok
    for first, second in ((half, half + 1), (half + 1, half), (200 * PAGE, 200 * PAGE - 100)):
        assert trap(sandbox.call(module, "go", 0, first, 100, second)) == (
            "env.f raised ValueError: its str and bytes parameters are more than 16,777,216 bytes together: take "
            "address and size as U32, and read pieces with HostCall.memory"
        )
    assert seen == [2 * half]


def test_a_run_is_cancelled_from_within_a_function() -> None:
    """And ends when the function has returned."""
    sessions: list[stockade.Session] = []

    def f() -> None:
        sessions[0].cancel()

    module = wat('(module (import "env" "f" (func $f)) (func (export "go") (call $f) (loop $l (br $l))))')
    with lending(f, fuel=None, wall_time=60.0).open(module) as session:
        sessions.append(session)
        assert session.call("go").outcome is Outcome.CANCELLED


def test_fuel_is_spent_by_the_guest_alone() -> None:
    """What the function does costs none; calling it costs the same each time."""
    _, f = counter()
    sandbox = lending(f, fuel=10_000_000)
    fuel = [sandbox.call(MANY, "go", count).usage.fuel for count in (1, 11, 21, 1)]
    assert all(isinstance(spent, int) and spent > 0 for spent in fuel)
    assert fuel[0] == fuel[3]
    assert fuel[2] - fuel[1] == fuel[1] - fuel[0] > 0  # type: ignore[operator]
    out = lending(f, fuel=10_000).call(MANY, "go", 100_000)
    assert (out.outcome, out.usage.fuel) == (Outcome.FUEL, 10_000)


# -- capabilities -----------------------------------------------------------------------------------------------------


def test_a_function_that_needs_a_capability() -> None:
    """Without it, the run ends as denied and the function is not called; with it, it is."""
    count, f = counter()

    def run(**changes: object) -> Report:
        sandbox = box(**changes)
        sandbox.host_function("env", "f", requires="gpu")(f)
        return sandbox.call(MANY, "go", 2)

    for custom in ({}, {"gpu": False}, {"GPU": True}, {"gpu": "yes"}, {"gpu": ["a"]}):
        denied = run(custom=custom)
        assert (denied.outcome, denied.usage.host_calls) == (Outcome.DENIED, 1)
        assert [(v.kind, v.subject, v.call, v.action) for v in denied.violations] == [
            ("capability", "gpu", "env.f", "stop")
        ]
        assert denied.trap is None
    assert count == [0]
    assert run(custom={"gpu": True}).value == 2
    assert count == [2]


def test_a_run_with_a_narrower_policy_has_fewer_capabilities() -> None:
    """The policy of the run counts, not that of the sandbox."""
    count, f = counter()
    sandbox = box(custom={"gpu": True})
    sandbox.host_function("env", "f", requires="gpu")(f)
    assert sandbox.call(MANY, "go", 1).ok
    assert sandbox.call(MANY, "go", 1, policy=Policy()).outcome is Outcome.DENIED
    assert count == [1]


def test_amounts_and_lists_are_asked_for() -> None:
    """`grants` says so, `require` ends the run."""
    granted: list[bool] = []

    def f(call: HostCall, cores: int) -> None:
        granted.append(call.grants("cores", cores))
        granted.append(call.grants("models", "small"))
        granted.append(call.grants("models", "large"))
        assert call.policy.custom["models"] == ("small", "tiny")
        call.require("models", "tiny")
        call.require("cores", cores)

    sandbox = lending(f, custom={"cores": Amount(4, 1, 8), "models": ["small", "tiny"]})
    module = caller("i32")
    for cores, fits in ((0, False), (1, True), (4, True), (5, False), (9, False)):
        granted.clear()
        report = sandbox.call(module, "go", cores)
        assert granted == [fits, True, False]
        assert report.ok is fits
        if not fits:
            assert [(v.kind, v.subject, v.call) for v in report.violations] == [("capability", "cores", "env.f")]


def test_a_function_may_refuse_in_its_own_way() -> None:
    """`grants` ends nothing: the guest is told what the function returns."""

    def f(call: HostCall) -> int:
        return 1 if call.grants("gpu") else -1

    assert lending(f).call(caller("", "i32"), "go").value == -1
    assert lending(f, custom={"gpu": True}).call(caller("", "i32"), "go").value == 1


# -- the page ---------------------------------------------------------------------------------------------------------

PAGE_FILE = Path(__file__).parents[2] / "docs" / "host-functions.md"


def test_the_table_of_the_page_tells_what_each_annotation_is() -> None:
    """The table in docs/host-functions.md: each annotation is lent as the types that stand beside it."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (?:`([\w ]+)`|none) \|", PAGE_FILE.read_text(), re.MULTILINE)
    names = {"int", "bool", "float", "str", "bytes", "I32", "U32", "I64", "U64", "F32", "F64", "HostCall"}

    told = [(annotation, types) for shown, types in rows for annotation in re.findall(r"\w+", shown)]
    assert sorted(annotation for annotation, _ in told) == sorted(names)
    for annotation, types in told:

        def f(value: object) -> None: ...

        f.__annotations__ = {"value": annotation, "return": "None"}
        with lending(f).open(caller(types)):
            pass


# -- those that take their time ---------------------------------------------------------------------------------------

_HOLDING = wat('(module (import "env" "hold" (func $hold)) (func (export "hold") (call $hold)))')
_READING = wat(
    """
    (module
      (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 4) "\\08")
      (func (export "_start") (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 64)))))
    """
)
_SPEAKING = wat(HELLO)


def _is_held(tenant: str) -> bool:
    """Whether a run of somebody's waits for a thread that may call functions."""
    return any(item.tenant == tenant for line in executor()._held.copy().values() for _, item in line.copy())


@pytest.mark.parametrize("kind", ["function", "stdin"])
def test_functions_that_block_delay_nobody_else(kind: str) -> None:
    """The attack: more functions of the embedder block than there are threads. Runs without any go on; those beyond
    the bound wait, can be cancelled, and meet their deadlines."""
    gate, inside = threading.Event(), []
    box = Sandbox(Policy().replace(wall_time=60.0, fuel=None))

    @box.host_function("env", "hold")
    def hold() -> None:
        inside.append(None)
        assert gate.wait(60)

    def fetch(size: int) -> bytes:
        hold()
        return b""

    async def held(tenant: str) -> stockade.Report:
        if kind == "function":
            return await box.call_async(_HOLDING, "hold", tenant=tenant)
        return await box.run_async(_READING, stdin=fetch, tenant=tenant)

    async def all_of_them() -> None:
        many = [asyncio.ensure_future(held("flood")) for _ in range(MOST_OUTSIDE + 8)]
        while len(inside) < MOST_OUTSIDE:
            await asyncio.sleep(0.001)
        for report in await asyncio.gather(*(box.run_async(_SPEAKING, tenant=f"t{n}") for n in range(20))):
            assert report.ok
        late = asyncio.ensure_future(held("late"))
        while not _is_held("late"):
            await asyncio.sleep(0.001)
        late.cancel()
        await asyncio.wait([late])
        assert late.cancelled()
        assert len(inside) == MOST_OUTSIDE
        gate.set()
        reports = await asyncio.gather(*many)
        assert all(report.ok for report in reports)
        assert len(inside) == MOST_OUTSIDE + 8

    try:
        asyncio.run(asyncio.wait_for(all_of_them(), 60))
    finally:
        gate.set()
