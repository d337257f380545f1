"""P-LANG-1, P-LANG-2, P-LANG-6: npm's quickjs-wasi, given by path.

It is tested where STOCKADE_QUICKJS_WASI names its module, `quickjs.wasm` of release 3.7.0. It has no files, no timers,
no `os`, and of `std` only input and environment: what needs these is left out.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from stockade import JavaScript, Outcome, UsageError
from stockade.guests._quickjs_wasi import _driven, _served
from stockade.guests._tools import Toolbox
from tests.guests._javascript_snippets import JAVASCRIPT
from tests.guests._snippets import Snippet, stopped
from tests.guests.conftest import PATIENT
from tests.guests.test_javascript_attacks import REPLACED
from tests.guests.test_snippets import check

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = os.environ.get("STOCKADE_QUICKJS_WASI", "")

if not PATH:
    pytest.skip("STOCKADE_QUICKJS_WASI names no module", allow_module_level=True)

LACKS = re.compile(
    r"\bos\.|std\.(out|err|exit|loadFile|open|gc)|import\(|set(Timeout|Interval)|clearTimeout|getenviron|queueMicrotask"
)


def applies(snippet: Snippet) -> bool:
    """Whether a piece needs nothing that is not there."""
    # Nobody waits for a promise that nothing settles, and one that failed is told by its error.
    others = ("await new Promise(() => {})", "(async () => { throw 5 })(); 1", "throw new AggregateError")
    return not LACKS.search(snippet.code) and not snippet.code.startswith(others)


@pytest.fixture(scope="module")
def quickjs() -> Iterator[JavaScript]:
    """It, made ready."""
    with JavaScript(PATIENT, runtime=PATH) as language:
        language.prepare()
        yield language


@pytest.mark.parametrize("snippet", [one for one in JAVASCRIPT if applies(one)], ids=lambda one: repr(one.code)[:60])
def test_snippets(quickjs: JavaScript, snippet: Snippet) -> None:
    """Those that need nothing that is not there."""
    result = quickjs.run(
        snippet.code,
        inputs={"number": 42, "text": "käse", "nested": {"list": [1, 2.5, None, True]}},
        args=["one", "two words"],
        env={"GIVEN": "yes"},
        stdin=snippet.stdin,
        policy=PATIENT.replace(**snippet.limits) if snippet.limits else None,
    )
    check(result, snippet)


@pytest.mark.parametrize(
    "snippet",
    [
        Snippet(
            "await 1; print('a'); (async () => { for (let n = 0; n < 2000; n++) await null; print('b') })()",
            stdout="a\nb\n",
        ),
        Snippet(
            "await new Promise(() => {})",
            error="Error",
            message="the code awaits a promise that nothing can settle",
            exit_code=1,
        ),
        Snippet(
            "(async () => { throw new TypeError('lost') })(); 1", error="TypeError", message="lost", line=1, exit_code=1
        ),
        Snippet("Promise.reject(1).catch(() => {}); 5", 5),
        stopped("(async () => { for (;;) await null })(); 5", "timeout", "stopped: time limit reached", wall_time=0.3),
        stopped("for (;;) print('x')", "timeout", "stopped: time limit reached", wall_time=0.3),
    ],
    ids=lambda one: repr(one.code)[:60],
)
def test_what_is_different(quickjs: JavaScript, snippet: Snippet) -> None:
    """Promises that are left behind."""
    result = quickjs.run(snippet.code, policy=PATIENT.replace(**snippet.limits) if snippet.limits else None)
    if "for (;;) print" in snippet.code:
        assert result.stdout.startswith("x\nx\n")
        assert result.report.outcome is Outcome.TIMEOUT
    else:
        check(result, snippet)


@pytest.mark.parametrize("code", [code for code in REPLACED if "std." not in code])
def test_what_it_replaces_is_missed_by_itself(quickjs: JavaScript, code: str) -> None:
    """It takes away whatever the result is made with."""
    plain = quickjs.run(f"{code}; ({{ a: [1, 'x', null, 2.5, true] }})")
    assert (plain.value, plain.error, plain.stdout) == ({"a": [1, "x", None, 2.5, True]}, None, "")
    failed = quickjs.run(f"const E = RangeError; {code};\nthrow new E('no')")
    assert failed.error is not None
    assert (failed.value, failed.error.type, failed.error.message) == (None, "RangeError", "no")
    assert quickjs.run("[typeof left, [1].map(String), typeof host]").value == ["undefined", ["1"], "undefined"]


def test_sessions(quickjs: JavaScript) -> None:
    """They keep state, can be forked, and tell the cell that a function is of."""
    with quickjs.session() as session:
        session.run("let x = 1;\nfunction f() { return null.y }")
        assert session.run("x += 1; [x, _ === undefined]", inputs={"_": None}).ok
        failed = session.run("f()")
        assert failed.error is not None
        assert failed.error.traceback.splitlines()[1:] == ["    at f (<cell 1>:2:1)", "    at <eval> (<cell 3>:1:1)"]
        assert session.run("x", inputs={"x": 7}).value == 7
        with session.fork() as other:
            other.run("x = 8")
            assert (other.run("x").value, session.run("x").value) == (8, 7)
            assert other.run("Math.random()").value != session.run("Math.random()").value


def test_files_are_refused(quickjs: JavaScript) -> None:
    """It has none, and says so before anything runs."""
    message = re.escape("has no files: give the code what it needs as inputs, and take its value")
    for given in ({"files": {"a": "x"}}, {"collect": ["*"]}):
        with pytest.raises(UsageError, match=message):
            quickjs.run("1", **given)  # type: ignore[arg-type]
        with quickjs.session() as session, pytest.raises(UsageError, match=message):
            session.run("1", **given)  # type: ignore[arg-type]


def test_tools() -> None:
    """Plain functions and coroutine functions, without a file or standard input between."""
    with JavaScript(PATIENT, runtime=PATH) as language:

        @language.tool
        def price(item: str) -> float:
            """Looks up a price."""
            return {"apple": 0.5}[item]

        assert language.run("tools.price('apple') + std.in.getline()", stdin="x").value == "0.5x"
        failed = language.run("tools.price('plum')")
        assert failed.error is not None
        assert (failed.error.type, failed.error.message) == ("KeyError", "plum")
        assert [call.ok for call in failed.tool_calls] == [False]

        @language.tool
        async def wait(times: int) -> list[int]:
            await asyncio.sleep(0)
            return [times] * times

        assert language.run("print('before'); [tools.wait(2), tools.price('apple')]").value == [[2, 2], 0.5]
        assert asyncio.run(language.run_async("tools.wait(1)")).value == [1]


def test_a_guest_that_lies_is_told_nothing(quickjs: JavaScript) -> None:
    """An interpreter that was taken over names addresses that are none: it is told nothing.

    Its strings lie beyond its memory, are longer than it, and output is never written.
    """

    class Host:
        """Answers as such a guest does."""

        policy = quickjs.policy

        class memory:  # noqa: N801 - it stands for an attribute
            """Holds nothing."""

            @staticmethod
            def read(address: int, size: int) -> bytes:
                if address > 1 << 16:
                    raise IndexError
                return b"\xff" * size

            @staticmethod
            def write(address: int, data: bytes) -> None:
                """Takes it."""

        def __init__(self, address: int) -> None:
            self.address = address

        def call(self, name: str, *_: int) -> int:
            return self.address if name != "fd_write" else 0

    toolbox = Toolbox({}, lambda _: True, 1 << 20)
    for address in (0, 1, 1 << 20, 0xFFFF_FFFF):
        for name in (b"out", b"err", b"tool", b"evaluate", b"no such"):
            host: Any = Host(address)
            assert _driven(host, toolbox, _served(host, name, 1 << 4)) in (0, address)
            assert _driven(host, toolbox, _served(host, name, 1 << 20)) == 0
    assert quickjs.run("1 + 1").value == 2


def test_a_pool_serves_it() -> None:
    """With preload, and random numbers of each run's own."""
    with JavaScript(PATIENT, runtime=PATH, pool_size=2, preload="globalThis.base = 40") as language:
        language.prepare()
        values = [language.run("[base + 2, Math.random()]").value for _ in range(4)]
        assert [value[0] for value in values] == [42] * 4  # type: ignore[index]
        assert len({value[1] for value in values}) == 4  # type: ignore[index]
    with pytest.raises(UsageError, match="preload fails: TypeError: no"):
        JavaScript(PATIENT, runtime=PATH, preload="throw new TypeError('no')").run("1")
