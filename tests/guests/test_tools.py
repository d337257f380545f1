"""P-LANG-6: tools. Code calls functions of ours, with JSON between the two, and learns nothing but their answers."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stockade import JavaScript, Python, Sandbox, UsageError
from stockade.guests._python import _CPythonReactor
from stockade.guests._tools import Tool, Toolbox
from tests._examples import part
from tests.guests._snippets import DENIED
from tests.guests.conftest import PATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

PRICES = {"apple": 0.5}


def _stock(language: Python | JavaScript) -> None:
    """Gives a language the tools of the shop."""

    @language.tool
    def price(item: str) -> float:
        """Looks up a price.

        Ask for one item at a time.
        """
        return PRICES[item]

    @language.tool(name="wait")
    async def waiting(times: int = 1) -> list[int]:
        await asyncio.sleep(0)
        return [times] * times

    @language.tool(requires="mail")
    def mail(to: str) -> None:
        raise AssertionError(f"mail to {to}")


@pytest.fixture
def shop(python: Python) -> Iterator[Python]:
    """A language with tools."""
    with Python(PATIENT.replace(custom={"mail": False}), runtime=python.runtime) as language:
        _stock(language)

        @language.tool
        def wrong() -> int:
            return "text"  # type: ignore[return-value]

        yield language


@pytest.mark.parametrize(
    ("code", "value"),
    part(
        [
            ("tools.price('apple')", 0.5),
            ("tools.price(item='apple') * 2", 1.0),
            ("tools.wait(2)", [2, 2]),
            ("tools.wait()", [1]),
            ("from tools import price\n[price('apple') for _ in range(3)]", [0.5, 0.5, 0.5]),
            ("tools.__all__", ["price", "wait", "mail", "wrong"]),
            ("tools.price.__doc__", "price(item: str) -> float\n\nLooks up a price.\n\nAsk for one item at a time."),
            ("input() + str(tools.price('apple'))", "line0.5"),
        ]
    ),
)
def test_code_calls_tools(shop: Python, code: str, value: object) -> None:
    """By place and by name; plain functions and coroutine functions."""
    result = shop.run(code, stdin="line\n")
    assert (result.value, result.error) == (value, None)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    part(
        [
            ("tools.price('plum')", "KeyError", "'plum'"),
            ("tools.price(5)", "TypeError", "item: Expected `str`, got `int`"),
            ("tools.price()", "TypeError", "missing a required argument: 'item'"),
            ("tools.price('a', 'b')", "TypeError", "too many positional arguments"),
            ("tools.wait('x')", "TypeError", "times: Expected `int`, got `str`"),
            ("tools.mail('a')", DENIED, "the policy does not grant mail, which the tool mail needs"),
            ("tools.wrong()", "TypeError", "the tool returned something else than it says: Expected `int`, got `str`"),
            ("tools.price(object())", "TypeError", None),
        ]
    ),
)
def test_what_goes_wrong_is_raised_in_the_code(shop: Python, code: str, error: str, message: str | None) -> None:
    """By its type and text; nothing of the host's traceback is there."""
    result = shop.run(code)
    assert result.error is not None
    assert result.error.type == error
    assert message is None or result.error.message == message
    assert "test_tools" not in result.error.traceback


def test_calls_are_listed(shop: Python) -> None:
    """With how they ended; those of one piece of code alone."""
    code = "tools.price('apple')\nfor call in (lambda: tools.price('x'), lambda: tools.mail('a')):\n  try: call()\n"
    result = shop.run(code + "  except Exception: pass")
    found = [(call.name, call.ok, call.error) for call in result.tool_calls]
    assert found == [("price", True, ""), ("price", False, "KeyError"), ("mail", False, DENIED)]
    assert result.tool_call_count == 3
    assert shop.run("1").tool_calls == ()


def test_sessions_and_awaited_runs_have_them(shop: Python) -> None:
    """The same functions."""
    with shop.session() as session:
        assert session.run("x = tools.price('apple')").ok
        assert session.run("[x, tools.wait(1)]").value == [0.5, [1]]
    assert asyncio.run(shop.run_async("tools.price('apple')")).value == 0.5


def test_awaited_output_is_passed_on_beside_tools(shop: Python) -> None:
    """To plain callbacks and coroutines, in order, though what tools answer comes in where input does."""
    code = (
        "import sys\nprint('a', flush=True)\nprice = tools.price('apple')\n"
        "print('b', file=sys.stderr, flush=True)\nprint('c')\nprice"
    )
    pieces: list[bytes] = []

    async def take(piece: bytes) -> None:
        pieces.append(piece)

    result = asyncio.run(shop.run_async(code, on_stdout=take, on_stderr=pieces.append))

    assert (result.value, result.stdout, result.stderr) == (0.5, "a\nc\n", "b\n")
    assert b"".join(pieces) == b"a\nb\nc\n"

    pieces.clear()
    assert asyncio.run(shop.run_async("print('d')\ninput()", stdin="e", on_stdout=pieces.append)).value == "e"
    assert pieces == [b"d\n"]


def test_what_an_awaited_callback_raises_ends_code_with_tools(shop: Python) -> None:
    """And is raised there; the twin of the above."""

    def refuse(_piece: bytes) -> None:
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        asyncio.run(shop.run_async("tools.price('apple')\nprint('a')", on_stdout=refuse))


@pytest.mark.parametrize(
    "request_",
    ["b'not JSON'", "b'{}'", "b'[' * 100000", 'b\'{"name": "price", "args": [], "named": {}, "more": 1}\'', "b'\\xff'"],
)
def test_a_forged_request_is_refused(shop: Python, request_: str) -> None:
    """It goes past the function that makes requests: each is read strictly, and refused in words."""
    way = (
        "import _host\ncall = _host.call"
        if shop.runtime == "cpython-3.15"
        else "call = tools.price.__globals__['_exchange']"
    )
    result = shop.run(f"{way}\nb'error' in call({request_})")
    assert (result.value, result.error) == (True, None)
    assert [call.ok for call in result.tool_calls] == [False]


def test_tools_are_checked_when_they_are_offered(python: Python) -> None:
    """What cannot be JSON, and what has no annotation, is the embedder's mistake."""
    with Python(PATIENT, runtime=python.runtime) as language:

        def bare(item) -> int:  # type: ignore[no-untyped-def]
            return 1

        def silent(item: str):  # type: ignore[no-untyped-def]
            return 1

        def many(*items: str) -> int:
            return 1

        def odd(item: complex) -> int:
            return 1

        def fine() -> Any:
            return 1

        for function, message in (
            (bare, "the tool bare has no annotation for item: say what it takes"),
            (silent, "the tool silent has no annotation for what it returns"),
            (many, "the tool many takes any number of arguments: name each of them"),
            (odd, "the tool odd: item is of a type that JSON does not know"),
        ):
            with pytest.raises(UsageError, match=re.escape(message)):
                language.tool(function)
        with pytest.raises(UsageError, match="the tool is int: give a function"):
            language.tool(5)  # type: ignore[call-overload]
        language.tool(fine)
        with pytest.raises(UsageError, match="there is a tool fine already: choose another name"):
            language.tool(fine)
        with pytest.raises(UsageError, match="the tool '_x' has no name that code can call: give it one"):
            language.tool(name="_x")(fine)


def test_an_interpreter_without_a_way_says_so() -> None:
    """One of the operator's own that cannot be spoken with."""

    def fine() -> int:
        return 1

    with JavaScript(PATIENT) as language:
        language._load()[1].calls_tools = False
        with pytest.raises(UsageError) as caught:
            language.tool(fine)
    assert str(caught.value) == "quickjs-ng cannot call tools: give the code what it needs as inputs or files"


def test_what_the_reactor_imports_can_be_lent() -> None:
    """Also where it is not installed: annotations are read when it is lent."""
    for tools in ({}, {"wait": Tool(_waits, "wait", None)}):
        with Sandbox() as box:
            _CPythonReactor(Path).lend(box, Toolbox(tools, lambda _: True, 1 << 20))


async def _waits() -> int:
    return 1


# -- JavaScript --------------------------------------------------------------------------------------------------------


@pytest.fixture
def kiosk(javascript: JavaScript) -> Iterator[JavaScript]:
    """The same shop for JavaScript."""
    with JavaScript(PATIENT.replace(custom={"mail": False}), runtime=javascript.runtime) as language:
        _stock(language)

        @language.tool
        def scaled(item: dict[str, list[int]], *, by: int = 2) -> list[int]:
            return [number * by for number in item["of"]]

        @language.tool
        def large(bits: int) -> dict[str, list[int]]:
            return {"in": [2**bits]}

        yield language


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("tools.price('apple')", 0.5),
        ("await tools.price('apple') * 2", 1),
        ("tools.wait(2)", [2, 2]),
        ("[tools.wait(), tools.wait(undefined)]", [[1], [1]]),
        ("const { price } = tools; [1, 2, 3].map(() => price('apple'))", [0.5, 0.5, 0.5]),
        ("tools.scaled({ of: [1, 2n] })", [2, 4]),
        ("tools.scaled({ of: [1, 2] }, { by: 5 })", [5, 10]),
        ("tools.large(53)", {"in": [2**53]}),
        ("Object.keys(tools)", ["price", "wait", "mail", "scaled", "large"]),
        ("tools.price.description", "price(item: str) -> float\n\nLooks up a price.\n\nAsk for one item at a time."),
        ("std.in.getline() + tools.price('apple') + std.in.readAsString()", "line0.5käse\n"),
        ("try { tools.price('plum') } catch (e) { [e.name, e.message] }", ["KeyError", "plum"]),
        ("try { tools.price('plum') } catch (e) { e instanceof Error }", True),
    ],
)
def test_javascript_calls_tools(kiosk: JavaScript, code: str, value: object) -> None:
    """By place; what is only taken by name, in an object after that. Its own input is there, too."""
    result = kiosk.run(code, stdin="line\nkäse\n")
    assert (result.value, result.error) == (value, None)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("tools.price('plum')", "KeyError", "plum"),
        ("tools.price(5)", "TypeError", "item: Expected `str`, got `int`"),
        ("tools.price()", "TypeError", "missing a required argument: 'item'"),
        ("tools.price('a', 'b')", "TypeError", "too many positional arguments"),
        ("tools.mail('a')", DENIED, "the policy does not grant mail, which the tool mail needs"),
        ("tools.wait(new Map())", "TypeError", "argument 1 of wait is not JSON: Map(0) {}"),
        ("tools.wait(NaN)", "TypeError", "argument 1 of wait is not JSON: NaN"),
        ("tools.price('x'.repeat(2 ** 24))", "TypeError", "what price is given is too long"),
        (
            "tools.large(54)",
            "TypeError",
            "the tool returned 0x40000000000000, which no number of the code's can hold: return it as text",
        ),
        ("tools.missing()", "TypeError", "not a function"),
    ],
)
def test_what_goes_wrong_is_thrown_in_javascript(kiosk: JavaScript, code: str, error: str, message: str) -> None:
    """By its type and text; nothing of the host's traceback is there."""
    result = kiosk.run(code)
    assert result.error is not None
    assert (result.error.type, result.error.message, result.error.line) == (error, message, 1)
    assert "test_tools" not in result.error.traceback


def test_calls_of_javascript_are_listed(kiosk: JavaScript) -> None:
    """With how they ended; in sessions and awaited runs, too."""
    code = "for (const name of ['apple', 'plum']) try { tools.price(name) } catch {}\ntry { tools.mail('a') } catch {}"
    result = kiosk.run(code)
    found = [(call.name, call.ok, call.error) for call in result.tool_calls]
    assert found == [("price", True, ""), ("price", False, "KeyError"), ("mail", False, DENIED)]
    assert result.tool_call_count == 3
    with kiosk.session() as session:
        assert session.run("const x = tools.price('apple')").ok
        assert session.run("[x, tools.wait(1), std.in.getline()]", stdin="line").value == [0.5, [1], "line"]
        assert session.run("1").tool_calls == ()
    assert asyncio.run(kiosk.run_async("tools.wait(1)")).value == [1]


def test_what_is_handed_over_is_bounded() -> None:
    """The attack: pieces of a frame without end. No more is kept than may be read, and a byte."""
    toolbox = Toolbox({}, lambda _: True, 10)
    assert not toolbox.keep(b'{"name": "x"}')
    assert toolbox.take_frame() is None
    assert toolbox.keep(b"\0abc")
    assert toolbox.keep(b"\0")
    assert toolbox.keep(b"\0def")
    assert toolbox.take_frame() == b"abcdef"
    assert toolbox.take_frame() is None
    for _ in range(3):
        assert toolbox.keep(b"\0" + bytes(1 << 20))
    assert toolbox.take_frame() == bytes(11)
    # What one piece of code has handed over is nothing to the next.
    assert toolbox.keep(b"\0abc")
    toolbox.begin()
    assert toolbox.take_frame() is None


def test_a_coroutine_function_is_not_awaited_where_the_loop_waits(shop: Python) -> None:
    """The mistake is that of whoever blocks a loop, so it is not told to the code."""

    async def blocking() -> None:
        shop.run("tools.wait(2)")

    with pytest.raises(UsageError) as caught:
        asyncio.run(blocking())
    message = str(caught.value)
    if shop.runtime == "cpython-3.15":
        # There it is a host function as others are.
        assert message.startswith("the guest calls a coroutine function, and the event loop of this thread waits for")
    else:
        assert message == (
            "the code calls the coroutine function wait, and the event loop of this thread waits for the code: await "
            "run_async, or call what blocks by asyncio.to_thread"
        )
    assert shop.run("tools.wait(2)").value == [2, 2]
