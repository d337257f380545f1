"""Languages wherever their interpreters live: runs, sessions, tools, files. Holds P-ISO-12."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from stockade import JavaScript, Outcome, Policy, Python, UsageError
from tests._processes import until
from tests.isolation.test_workers import all_gone, none_made_ahead, number_of, started  # noqa: F401 - a fixture, too

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.execution import Isolation

PATIENT = Policy().replace(wall_time=60.0)


@pytest.fixture(scope="module", params=["inprocess", "process"])
def python(request: pytest.FixtureRequest) -> Iterator[Python]:
    """CPython 3.12, with a tool, and an import that has been done."""
    with Python(PATIENT, isolation=request.param, runtime="cpython-3.12", preload="import json") as made:
        made.tool(lent)
        yield made


@pytest.fixture(scope="module", params=["inprocess", "process"])
def javascript(request: pytest.FixtureRequest) -> Iterator[JavaScript]:
    """QuickJS, with a tool, and code that has run before."""
    with JavaScript(PATIENT, isolation=request.param, runtime="quickjs-ng", preload="var six = 6") as made:
        made.tool(lent)
        yield made


def lent(a: int, b: int) -> int:
    """Adds."""
    if not b:
        raise ValueError("nothing to add")
    return a + b


def test_a_run_of_python(python: Python) -> None:
    """Value, output, arguments, variables, standard input, what was preloaded, and an error. P-ISO-12."""
    found = python.run(
        "import sys; print(sys.stdin.read(), sys.argv[1:]); json.dumps([n * 2 for n in given])",
        args=["a"],
        stdin=b"read",
        inputs={"given": [1, 2]},
    )
    assert (found.value, found.stdout) == ("[2, 4]", "read ['a']\n")
    failed = python.run("1 / 0")
    assert failed.error is not None
    assert (failed.error.type, failed.report.outcome) == ("ZeroDivisionError", Outcome.EXIT)


def test_a_run_of_javascript(javascript: JavaScript) -> None:
    """Value, variables, what was preloaded, and an error. P-ISO-12."""
    assert javascript.run("six * given", inputs={"given": 7}).value == 42
    failed = javascript.run("null.nothing")
    assert failed.error is not None
    assert failed.error.type == "TypeError"


@pytest.mark.slow
def test_files_go_in_and_out(python: Python, javascript: JavaScript) -> None:
    """By a folder of the host's, which is emptied before the next run. P-ISO-12."""
    found = python.run(
        "open('made/b.txt', 'w').write(open('a.txt').read() * 2)", files={"a.txt": "ab", "made/c": b""}, collect=["*"]
    )
    assert found.files == {"made/b.txt": b"abab"}
    assert python.run("import os; os.listdir('/workspace')").value == []
    code = "const f = std.open('b.txt', 'w'); f.puts(std.loadFile('a.txt')); f.close()"
    assert javascript.run(code, files={"a.txt": "ab"}, collect=["*"]).files == {"b.txt": b"ab"}


@pytest.mark.slow
def test_tools_are_called_here(python: Python, javascript: JavaScript) -> None:
    """What they raise is raised in the code. P-ISO-12."""
    for made in (python, javascript):
        found = made.run("tools.lent(2, 3)")
        assert (found.value, [call.name for call in found.tool_calls]) == (5, ["lent"])
        failed = made.run("tools.lent(1, 0)")
        assert failed.error is not None
        assert "nothing to add" in failed.error.message


def test_a_session_of_python(python: Python) -> None:
    """It keeps its state; each piece has a report of its own. P-ISO-12."""
    with python.session() as session:
        assert [session.run(code).value for code in ("x = 5", "x + 1", "tools.lent(x, 1)")] == [None, 6, 6]
        assert session.run("open('kept', 'w').write('k')").value == 1
        assert session.run("print(open('kept').read())", collect=["*"]).files == {"kept": b"k"}
        ended = session.run("import sys; sys.exit(3)")
        assert ended.report.exit_code == 3 or ended.error is not None
        session.reset()
        assert session.run("'x' in globals()").value is False


def test_a_session_of_javascript_is_forked(javascript: JavaScript) -> None:
    """Neither sees what the other does from then on. P-ISO-12."""
    with javascript.session() as session:
        session.run("var x = [1]")
        with session.fork() as other:
            assert other.run("x.push(2); x").value == [1, 2]
            assert session.run("x").value == [1]
        assert session.run("tools.lent(x[0], 1)").value == 2


@pytest.mark.parametrize("isolation", ["inprocess", "process"])
def test_output_is_passed_on(isolation: Isolation) -> None:
    """While the code runs, and awaited. P-ISO-12."""
    taken: list[bytes] = []
    with JavaScript(PATIENT, isolation=isolation, runtime="quickjs-ng") as made:
        found = asyncio.run(made.run_async("print('ab'); print('cd')", on_stdout=taken.append))
    assert (b"".join(taken), found.ok) == (b"ab\ncd\n", True)


@pytest.mark.parametrize("isolation", ["inprocess", "process"])
def test_code_that_does_not_end_is_ended(isolation: Isolation) -> None:
    """Its session is over, and says so. P-ISO-12."""
    with (
        JavaScript(Policy().replace(wall_time=0.5), isolation=isolation, runtime="quickjs-ng") as made,
        made.session() as session,
    ):
        found = session.run("while (true) {}")
        assert (found.report.outcome, found.survived) == (Outcome.TIMEOUT, False)
        with pytest.raises(UsageError, match="the interpreter has ended"):
            session.run("1")
        session.reset()
        assert session.run("1 + 1").value == 2


def test_an_interpreter_whose_worker_is_killed() -> None:
    """The next piece of code tells that; after a reset, the session goes on. P-ISO-12."""
    with JavaScript(PATIENT, isolation="process", runtime="quickjs-ng") as made:
        made.prepare()
        assert until(all_gone)
        with made.session() as session:
            assert session.run("1").value == 1
            (worker,) = started(1)
            os.kill(number_of(worker), signal.SIGKILL)
            found = session.run("2")
            assert (found.report.outcome, found.survived) == (Outcome.CRASHED, False)
            session.reset()
            assert session.run("3").value == 3


def test_interpreters_that_wait_do_so_there() -> None:
    """Nothing is begun in this process that was to run in one of its own. P-ISO-12."""
    with JavaScript(PATIENT, isolation="process", runtime="quickjs-ng", pool_size=1) as interpreter:
        assert [interpreter.run("6 * 7").value for _ in range(3)] == [42, 42, 42]
        assert all(place.ahead is None for place in interpreter._places)
