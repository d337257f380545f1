"""What can be passed to a guest's functions and returned by them: numbers and vectors; all else is refused in words.

Holds P-VALUE-1.
"""

from __future__ import annotations

import asyncio
import math
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stockade
from stockade import Sandbox, UsageError
from tests.conftest import wat

if TYPE_CHECKING:
    from stockade import Module

pytestmark = pytest.mark.usefixtures("everywhere")


TYPES = ("i32", "i64", "f32", "f64", "v128")

IDENTITIES = wat(
    "(module"
    + "".join(f'(func (export "{type_}") (param {type_}) (result {type_}) local.get 0)' for type_ in TYPES)
    + """
    (func (export "all") (param i32 i64 f32 f64 v128) (result v128 f64 f32 i64 i32)
      local.get 4 local.get 3 local.get 2 local.get 1 local.get 0)
    (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
    (func (export "lane") (param v128) (result i32) (i32x4.extract_lane 3 (local.get 0)))
    (func (export "bits32") (param f32) (result i32) (i32.reinterpret_f32 (local.get 0)))
    (func (export "bits64") (param f64) (result i64) (i64.reinterpret_f64 (local.get 0)))
    (func (export "from32") (param i32) (result f32) (f32.reinterpret_i32 (local.get 0)))
    (func (export "nothing"))
    (func (export "takes-func") (param i32 funcref))
    (func (export "takes-extern") (param externref))
    (func (export "gives-func") (result funcref) (ref.null func))
    (func (export "gives-extern") (param i32) (result i32 externref) (local.get 0) (ref.null extern)))
    """
)
BOX = Sandbox()


def returned(export: str, *args: Any, module: Module = IDENTITIES) -> Any:
    """What a function returns."""
    return BOX.call(module, export, *args).check().value


def refusal(export: str, *args: Any, module: Module = IDENTITIES, **options: Any) -> str:
    """Why a call is refused."""
    with pytest.raises(UsageError) as caught:
        BOX.call(module, export, *args, **options)
    return str(caught.value)


def bits(number: float) -> bytes:
    """A float as it lies in memory: NaNs and zeros are told apart."""
    return struct.pack("<d", number)


# -- round trips ------------------------------------------------------------------------------------------------------


@given(st.integers(-(2**31), 2**32 - 1))
def test_i32_is_taken_signed_or_unsigned_and_returned_signed(number: int) -> None:
    """The same 32 bits come back, as a signed number."""
    assert returned("i32", number) == (number if number < 2**31 else number - 2**32)


@given(st.integers(-(2**63), 2**64 - 1))
def test_i64_is_taken_signed_or_unsigned_and_returned_signed(number: int) -> None:
    """The same 64 bits come back, as a signed number."""
    assert returned("i64", number) == (number if number < 2**63 else number - 2**64)


@given(st.floats(width=32, allow_nan=False))
def test_f32_comes_back_as_it_was(number: float) -> None:
    """Infinities and the sign of zero included."""
    assert bits(returned("f32", number)) == bits(number)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-3.4e38, max_value=3.4e38))
def test_f32_rounds_what_it_cannot_hold(number: float) -> None:
    """A Python float is rounded to the nearest 32-bit one, as `struct` does it."""
    assert returned("f32", number) == struct.unpack("<f", struct.pack("<f", number))[0]


@given(st.floats())
def test_f64_comes_back_to_the_last_bit(number: float) -> None:
    """Infinities, the sign of zero, and the payloads of NaNs included."""
    assert bits(returned("f64", number)) == bits(number)


@given(st.integers(0, 2**52 - 1).filter(bool), st.booleans())
def test_every_nan_of_64_bits_comes_back(payload: int, negative: bool) -> None:
    """Sign, quiet bit and payload: Python holds all of them."""
    pattern = negative << 63 | 0x7FF << 52 | payload
    (number,) = struct.unpack("<d", pattern.to_bytes(8, "little"))

    assert bits(returned("f64", number)) == pattern.to_bytes(8, "little")
    assert returned("bits64", number) % 2**64 == pattern


@given(st.integers(0, 2**22 - 1), st.booleans())
def test_quiet_nans_of_32_bits_come_back(payload: int, negative: bool) -> None:
    """A Python float holds the payload of a quiet 32-bit NaN in its upper bits."""
    pattern = negative << 31 | 0x1FF << 22 | payload
    number = returned("from32", pattern)

    assert math.isnan(number)
    assert returned("bits32", number) % 2**32 == pattern
    assert bits(returned("f32", number)) == bits(number)


@given(st.binary(min_size=16, max_size=16))
def test_v128_goes_as_bytes_or_as_a_number(data: bytes) -> None:
    """Sixteen bytes as they lie in memory, the least significant first."""
    assert returned("v128", data) == data
    assert returned("v128", int.from_bytes(data, "little")) == data
    assert returned("lane", data) == struct.unpack("<4i", data)[3]


@given(
    st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1), st.floats(), st.binary(min_size=16, max_size=16)
)
def test_all_types_at_once(i32: int, i64: int, f64: float, v128: bytes) -> None:
    """Several arguments and results keep their places: none lies on another."""
    vector, double, single, long, short = returned("all", i32, i64, -0.0, f64, v128)

    assert (vector, long, short) == (v128, i64, i32)
    assert (bits(double), bits(single)) == (bits(f64), bits(-0.0))


def test_integers_pass_as_floats_and_not_the_other_way() -> None:
    """A whole number is a float as well; a float is no whole number, even if it has no fraction."""
    assert returned("f64", 3) == 3.0
    assert (
        refusal("i32", 3.0)
        == "i32: (i32) -> (i32): argument 1 is 3.0; i32 takes a whole number from -2**31 to 2**32 - 1"
    )


def test_nothing_is_returned_as_none() -> None:
    """A function without results."""
    assert returned("nothing") is None


# -- what does not fit ------------------------------------------------------------------------------------------------

I32 = "i32 takes a whole number from -2**31 to 2**32 - 1"
I64 = "i64 takes a whole number from -2**63 to 2**64 - 1"
F32 = "f32 takes a number, at most 3.4028235e+38 if it is finite"
F64 = "f64 takes a number, at most 1.7976931348623157e+308 if it is finite"
V128 = "v128 takes a whole number from 0 to 2**128 - 1, or 16 bytes"


@pytest.mark.parametrize(
    ("export", "value", "message"),
    [
        ("i32", -(2**31) - 1, f"is -2147483649; {I32}"),
        ("i32", 2**32, f"is 4294967296; {I32}"),
        ("i32", True, f"is True; {I32}"),
        ("i32", None, f"is None; {I32}"),
        ("i32", [1], f"is of type list; {I32}"),
        ("i64", -(2**63) - 1, f"is -9223372036854775809; {I64}"),
        ("i64", 2**64, f"is 18446744073709551616; {I64}"),
        ("i64", 1.5, f"is 1.5; {I64}"),
        ("f32", 3.4028236e38, f"is 3.4028236e+38; {F32}"),
        ("f32", -3.5e38, f"is -3.5e+38; {F32}"),
        ("f32", False, f"is False; {F32}"),
        ("f64", 2**1024, f"is a whole number of 1,025 bits; {F64}"),
        ("f64", 1j, f"is of type complex; {F64}"),
        ("v128", -1, f"is -1; {V128}"),
        ("v128", 2**128, f"is {2**128}; {V128}"),
        ("v128", bytes(15), f"is 15 bytes; {V128}"),
        ("v128", b"x", f"is 1 byte; {V128}"),
        ("v128", 0.0, f"is 0.0; {V128}"),
        ("v128", "x" * 16, f"is text; {V128}"),
    ],
)
def test_a_value_that_does_not_fit_is_told_with_signature_place_and_range(
    export: str, value: object, message: str
) -> None:
    """Nothing is cut, wrapped or rounded to infinity in silence."""
    assert refusal(export, value) == f"{export}: ({export}) -> ({export}): argument 1 {message}"


@pytest.mark.parametrize("export", TYPES)
def test_numbers_too_long_to_be_written_are_told_by_their_size(export: str) -> None:
    """Python refuses to write integers of more than 4,300 digits: the complaint must not fail over that."""
    assert f"argument 1 is a whole number of 16,610 bits; {export} takes" in refusal(export, 10**5000)


@pytest.mark.parametrize(
    ("export", "value", "expected"),
    [
        ("i32", 2**32 - 1, -1),
        ("i32", -(2**31), -(2**31)),
        ("i64", 2**64 - 1, -1),
        ("f32", 3.4028235e38, struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]),
        ("f32", math.inf, math.inf),
        ("f64", 2**1023, 2.0**1023),
        ("v128", 2**128 - 1, b"\xff" * 16),
        ("v128", 0, bytes(16)),
        ("v128", 1, b"\x01" + bytes(15)),
    ],
)
def test_the_last_value_that_fits(export: str, value: object, expected: object) -> None:
    """The twin of the above."""
    assert returned(export, value) == expected


@pytest.mark.parametrize(
    ("export", "args", "message"),
    [
        ("add", (), "add: (i32, i32) -> (i32) has 2 parameters, and 0 arguments are given"),
        ("add", (5,), "add: (i32, i32) -> (i32) has 2 parameters, and 1 argument is given"),
        ("add", (5, 3, 1), "add: (i32, i32) -> (i32) has 2 parameters, and 3 arguments are given"),
        ("add", (5, "x"), "add: (i32, i32) -> (i32): argument 2 is text, but parameter 2 is i32, which takes"),
        (
            "add",
            ("x", 5),
            (
                "add: (i32, i32) -> (i32): argument 1 is text, but parameter 1 is i32, which takes a whole number from "
                "-2**31 to 2**32 - 1. Text takes the place of two i32 in a row: address and length"
            ),
        ),
        ("add", ("a", b"b"), "add: (i32, i32) -> (i32): argument 1 is text, but parameter 1 is i32, which takes"),
        (
            "add",
            ("x", 5, 6),
            (
                "add: (i32, i32) -> (i32) has 2 parameters, and 3 arguments are given, where each text stands for two "
                "(4 in all). Give a number for each, or a text for two i32 in a row (address and length)"
            ),
        ),
        ("nothing", (1,), "nothing: () -> () has 0 parameters, and 1 argument is given"),
    ],
)
def test_a_wrong_number_of_arguments_shows_the_signature(export: str, args: tuple[Any, ...], message: str) -> None:
    """What the function takes is in the message, and nothing ran."""
    assert refusal(export, *args).startswith(message)


def test_what_to_do_about_a_wrong_number_of_arguments() -> None:
    """The message says what can be passed; of texts only where the function could take one."""
    assert refusal("add", 1).endswith(
        "and 1 argument is given. Give a number for each, or a text for two i32 in a row (address and length)"
    )
    assert refusal("f64").endswith("has 1 parameter, and 0 arguments are given. Give a number for each")


@pytest.mark.parametrize(
    ("export", "args", "what"),
    [
        ("takes-func", (1, None), "takes-func: (i32, funcref) -> (): parameter 2 is of type funcref"),
        ("takes-extern", (None,), "takes-extern: (externref) -> (): parameter 1 is of type externref"),
        ("gives-func", (), "gives-func: () -> (funcref): result 1 is of type funcref"),
        ("gives-extern", (7,), "gives-extern: (i32) -> (i32, externref): result 2 is of type externref"),
    ],
)
def test_references_cannot_cross_the_border(export: str, args: tuple[Any, ...], what: str) -> None:
    """The attack: a guest hands out, or is handed, a pointer of the engine's, forged or stale, in place of a number."""
    rest = "references cannot cross the border. Call a function that takes and returns only i32, i64, f32, f64 and v128"
    assert refusal(export, *args) == f"{what}, and {rest}"
    assert returned("i32", 7) == 7


def test_hostile_signatures_are_shown_short_and_escaped() -> None:
    """The attack: a name with escape sequences and a type of a thousand parameters, to be replayed by our message."""
    module = wat(
        f'(module (func (export "\\1b]0;owned\\07{"x" * 500}") (param {"i64 " * 1000}) (result i32) i32.const 1))'
    )
    name = "\x1b]0;owned\x07" + "x" * 500

    message = refusal(name, module=module)

    assert message.isprintable()
    assert message.startswith("\\x1b]0;owned\\x07xxx")
    assert "i64, … (1,000 in all)) -> (i32) has 1,000 parameters" in message
    assert len(message) < 500
    assert returned(name, *range(1000), module=module) == 1


def test_nothing_runs_where_arguments_do_not_fit() -> None:
    """Neither an initializer nor a start function of the guest has run when the caller is told."""
    module = wat(
        '(module (func $boom unreachable) (start $boom) (func (export "_initialize") unreachable)'
        ' (func (export "f") (param i32)))'
    )

    assert refusal("f", "text", module=module).startswith("f: (i32) -> (): argument 1 is text")
    assert BOX.call(module, "f", 1).outcome == "trap"


# -- every door -------------------------------------------------------------------------------------------------------


def test_vectors_go_through_every_door() -> None:
    """Sessions, coroutines and the one-call form check and convert alike."""
    vector = bytes(range(16))

    with BOX.open(IDENTITIES) as session:
        assert session.call("v128", vector).value == vector
        with pytest.raises(UsageError, match=r"v128: \(v128\) -> \(v128\): argument 1 is -1"):
            session.call("v128", -1)
        assert session.call("v128", 1).value == b"\x01" + bytes(15)
    assert asyncio.run(BOX.call_async(IDENTITIES, "v128", vector)).value == vector
    assert stockade.call(IDENTITIES, "v128", vector) == vector
