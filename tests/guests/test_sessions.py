"""P-LANG-5, P-LANG-8: sessions. State like a notebook's, a budget for each piece, and an end that is told."""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from stockade import EngineError, JavaScript, Outcome, Python, SnapshotError, UsageError
from stockade.engine import PAGE_BYTES_OF_HOST, touched_pages
from stockade.guests import _idle
from tests.guests.conftest import PATIENT

if TYPE_CHECKING:
    from stockade.guests import LanguageSession


def test_a_session_keeps_its_state(python: Python, javascript: JavaScript) -> None:
    """Variables, functions and files; an error does not end it, and is told with the lines of its own cell."""
    with python.session() as session:
        assert session.run("def f(x):\n  return x / n\nn = 2").value is None
        assert session.run("f(5)").value == 2.5
        assert session.run("_ + 1").value == 3.5
        failed = session.run("n = 0\nf(1)")
        assert failed.error is not None
        assert (failed.error.type, failed.error.line, failed.survived) == ("ZeroDivisionError", 2, True)
        assert [line for line in failed.error.traceback.splitlines() if "File" in line] == [
            '  File "<cell 4>", line 2, in <module>',
            '  File "<cell 1>", line 2, in f',
        ]
        assert session.run("open('a', 'w').write('kept')\nprint('out')").stdout == "out\n"
        last = session.run("open('a').read()", collect=["*"])
        assert (last.value, last.stdout, last.files) == ("kept", "", {"a": b"kept"})
        assert session.run("import sys\nsys.exit(3)").exit_code == 3
        assert session.run("n", inputs={"n": 7}, files={"b": "x"}).value == 7
        assert session.run("input()", stdin="line\n").value == "line"
    with javascript.session() as session:
        assert session.run("let x = 1; function f() { return x }").value is None
        assert session.run("x += 1; f()").value == 2
        assert session.run("missing").survived
        assert session.run("await f()").value == 2
        assert session.run("std.in.getline()", stdin="line\n").value == "line"


def test_code_in_javascript_has_the_environment_of_its_session(javascript: JavaScript) -> None:
    """Though its interpreter is a copy of one that was made under none."""
    with javascript.session(env={"NAME": "value"}) as session:
        assert session.run("std.getenv('NAME')").value == "value"
        assert session.run("[std.getenv('NAME'), String(std.getenv('OTHER'))]").value == ["value", "undefined"]
        with session.fork() as fork:
            assert fork.run("std.getenv('NAME')").value == "value"


def test_a_piece_has_the_policy_of_its_session(python: Python) -> None:
    """It was decided when the session was opened."""
    with python.session() as session, pytest.raises(TypeError) as caught:
        session.run("1", policy="strict")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "session.run() got an unexpected keyword argument 'policy': give it to session(policy=...), for all that runs "
        "in it"
    )


def test_each_piece_has_its_own_budget(python: Python) -> None:
    """Time that passes between two pieces is nobody's; output and counters are of one piece."""
    with python.session(policy=PATIENT.replace(wall_time=30.0)) as session:
        session.run("1")
        # As if an hour had passed.
        session._interpreter.control.deadline = time.monotonic() - 1
        result = session.run("print('x')")
        assert result.ok
        assert result.report.usage.stdout_bytes == 2
        assert session.run("2").report.usage.stdout_bytes == 0


def test_a_piece_that_is_stopped_says_that_the_state_is_gone(python: Python) -> None:
    """The next one is refused until the session is reset."""
    with python.session(policy=PATIENT.replace(wall_time=20.0)) as session:
        session.run("x = 1")
        session._interpreter.guest._limits = PATIENT.replace(wall_time=0.2).limits
        result = session.run("while True: pass")
        assert (result.report.outcome, result.survived) == (Outcome.TIMEOUT, False)
        assert not session.alive
        with pytest.raises(UsageError) as caught:
            session.run("x")
        assert str(caught.value) == "the interpreter has ended, so its state is gone: reset the session"
        session.reset()
        assert session.run("'x' in globals()").value is False


@pytest.mark.parametrize("code", ["import os\nos.read(0, 1)", "import os\nos.close(0)", "import os\nos._exit(0)"])
def test_what_jobs_come_on_is_not_the_codes(python: Python, code: str) -> None:
    """A piece that reads or closes it ends its own session, and takes no job. Nothing is there where jobs are calls."""
    with python.session() as session:
        session.run("x = 1")
        session.run(code)
        for _ in range(2):
            if session.alive:
                assert session.run("x").value in (1, None)
        if session.alive:
            assert python.runtime == "cpython-3.15"
            return
        session.reset()
        assert session.run("1").value == 1


def test_two_sessions_share_nothing(python: Python) -> None:
    """Neither variables nor files."""
    with python.session() as one, python.session() as other:
        one.run("secret = 1\nopen('f', 'w').write('secret')")
        found = other.run("import os\n['secret' in globals(), os.listdir()]")
        assert found.value == [False, []]


def test_a_session_is_for_one_thread_at_a_time(python: Python) -> None:
    """Whoever comes second is told so; another thread may cancel."""
    with python.session() as session:
        session.run("1")
        results = []
        thread = threading.Thread(
            target=lambda: results.append(session.run("print('on', flush=True)\nwhile True: pass"))
        )
        thread.start()
        while session._occupancy.holder is None:
            time.sleep(0.01)
        with pytest.raises(UsageError, match="the session is in use by another thread"):
            session.run("2")
        with pytest.raises(UsageError, match="the session is in use by another thread"):
            session.close()
        while thread.is_alive():
            session.cancel()
            thread.join(0.1)
        assert results[0].report.outcome is Outcome.CANCELLED
        assert not results[0].survived


def test_pieces_are_awaited(python: Python) -> None:
    """Without blocking the loop; several sessions at a time."""

    async def main() -> None:
        with python.session() as one, python.session() as other:
            await asyncio.gather(one.run_async("x = 1"), other.run_async("x = 2"))
            results = await asyncio.gather(one.run_async("x"), other.run_async("x"))
            assert [result.value for result in results] == [1, 2]

    asyncio.run(main())


def test_a_closed_session_says_so(javascript: JavaScript) -> None:
    """Closing twice is harmless."""
    session = javascript.session()
    session.run("1")
    session.close()
    session.close()
    with pytest.raises(UsageError, match="the session is closed: open a new one"):
        session.run("1")


def test_an_idle_session_is_closed(javascript: JavaScript) -> None:
    """After its time without use, and not before."""
    session = javascript.session(idle=0.05)
    while not session.closed:
        time.sleep(0.01)
    with pytest.raises(UsageError) as caught:
        session.run("1")
    assert str(caught.value) == "the session was closed after 0.05 s without use: open a new one"
    with javascript.session(idle=3600) as other:
        assert other.run("1").value == 1


def test_nobody_looks_after_closed_sessions(javascript: JavaScript) -> None:
    """What is closed by hand leaves no thread behind until its time would have been up."""
    javascript.session(idle=3600).close()
    while any(thread.name == "stockade-idle" for thread in threading.enumerate()):
        time.sleep(0.01)
    with javascript.session(idle=3600):
        assert any(thread.name == "stockade-idle" for thread in threading.enumerate())


def test_an_idle_limit_without_threads_is_refused(javascript: JavaScript, monkeypatch: pytest.MonkeyPatch) -> None:
    """And holds again as soon as a thread can be had."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(_idle, "start_thread", refuse)
        with pytest.raises(EngineError) as caught:
            javascript.session(idle=0.05)
    assert str(caught.value) == (
        "no thread can be started to close sessions that nobody uses: the process or the system has as many as it "
        "may (can't start new thread). Open the session without idle=, or raise the limit (ulimit -u)"
    )
    session = javascript.session(idle=0.05)
    while not session.closed:
        time.sleep(0.01)


def test_a_dropped_session_is_told() -> None:
    """And its interpreter is freed."""
    with JavaScript(PATIENT) as language:
        session = language.session()
        with pytest.warns(ResourceWarning, match="unclosed session <LanguageSession>"):
            del session


@pytest.mark.parametrize("forks", [False, True], ids=["as any", "forks=True"])
def test_a_fork_begins_as_its_session_is(python: Python, forks: bool) -> None:
    """With its variables and files; neither sees what the other does then. Where that cannot be, it is refused."""
    with python.session(forks=forks) as session:
        session.run("x = [1]\nopen('f', 'w').write('kept') and None")
        if python.runtime != "cpython-3.15":
            with pytest.raises(UsageError) as caught:
                session.fork()
            assert str(caught.value) == (
                "cpython-3.12 cannot be forked, for it waits in the middle of a call: use one that is called for each "
                "piece of code, such as cpython-3.15"
            )
            return
        with session.fork() as one, session.fork(forks=forks) as other:
            assert one.run("x.append(2)\nopen('g', 'w').write('mine')\nx").value == [1, 2]
            assert other.run("import os\n[x, open('f').read(), sorted(os.listdir())]").value == [[1], "kept", ["f"]]
            assert session.run("import os\n[x, sorted(os.listdir())]").value == [[1], ["f"]]
            assert one.run("import random\nrandom.random()").value != other.run("import random\nrandom.random()").value
        session.run("g = open('f')")
        with pytest.raises(SnapshotError):
            session.fork()


@pytest.mark.parametrize("forks", [False, True], ids=["as any", "forks=True"])
def test_a_fork_of_javascript_begins_as_its_session_is(javascript: JavaScript, forks: bool) -> None:
    """With its variables and files; neither sees what the other does then, and each draws its own random numbers."""
    with javascript.session(forks=forks) as session:
        session.run("let x = [1]; const f = std.open('f', 'w'); f.puts('kept'); f.close()")
        with session.fork() as one, session.fork(forks=forks) as other:
            assert one.run("x.push(2); const g = std.open('g', 'w'); g.puts('mine'); g.close(); x").value == [1, 2]
            assert other.run("[x, std.loadFile('f'), os.readdir('.')[0].sort()]").value == [
                [1],
                "kept",
                [".", "..", "f"],
            ]
            assert session.run("[x, os.readdir('.')[0].sort()]").value == [[1], [".", "..", "f"]]
            drawn = [it.run("[Math.random(), Math.random()]").value for it in (one, other, session)]
            assert len({number for numbers in drawn for number in numbers}) == 6


def test_forks_share_what_was_taken_until_something_runs(javascript: JavaScript) -> None:
    """What a piece has changed, and what one has changed that failed, is in the forks after it."""
    with javascript.session() as session:
        session.run("var x = 1")
        interpreter = session._interpreter
        first = interpreter.take()
        with session.fork() as one, session.fork() as other:
            assert interpreter.take() is first
            assert one.run("x += 1; x").value == 2
            assert other.run("x").value == 1
            assert one._interpreter.take() is not first
        for number, code in enumerate(("x = 5", "x = 6; throw Error()"), 5):
            session.run(code)
            with session.fork() as fork:
                assert fork.run("x").value == number
            assert interpreter.take() is not first
    assert interpreter._taken is None


def test_what_a_piece_has_seeded_stays_seeded(python: Python) -> None:
    """Generators begin anew with the interpreter, and not with each piece."""
    with python.session() as session:
        session.run("import random\nrandom.seed(1)")
        one = session.run("random.random()").value
        session.run("random.seed(1)")
        assert session.run("random.random()").value == one


FEW_FILES = PATIENT.replace(open_files=4)
"""Descriptors are counted as a guest may come to have them."""


@pytest.mark.slow
def test_a_thousand_forks_of_python_share_what_none_has_changed(python: Python) -> None:
    """All alive at once, each changes its copy: none sees another's, nor the session any; their own memory is small."""
    if python.runtime == "cpython-3.12":
        pytest.skip("it waits in the middle of a call, so it cannot be forked")
    with python.session(policy=FEW_FILES) as session:
        session.run("data, mark = [7] * 1000, 'none'")
        thousand_forks(session)


@pytest.mark.slow
def test_a_thousand_forks_of_javascript_share_what_none_has_changed(javascript: JavaScript) -> None:
    """The same."""
    with javascript.session(policy=FEW_FILES) as session:
        session.run("var data = Array(1000).fill(7), mark = 'none'")
        thousand_forks(session)


def thousand_forks(session: LanguageSession) -> None:
    """Forks a session a thousand times, changes `mark` and an item of `data` in each, and looks what each has then."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 20_000:
        pytest.skip("a process may have too few descriptors here")
    with ExitStack() as stack:
        forks = [stack.enter_context(session.fork()) for _ in range(1_000)]
        for number, fork in enumerate(forks):
            assert fork.run(f"mark = 'fork {number}'; data[5] = {number}").ok
        for number, fork in enumerate(forks):
            assert fork.run("[mark, data[5], data[6]]").value == [f"fork {number}", number, 7]
        assert session.run("[mark, data[5]]").value == ["none", 7]
        own = [own_bytes(fork) for fork in forks]
        assert max(own) < 2 << 20
        assert sum(own) < len(own) << 20


def own_bytes(session: LanguageSession) -> int:
    """How much memory a session's guest has that it shares with nobody."""
    interpreter = session._interpreter
    assert interpreter is not None
    guest = interpreter.guest
    assert guest._instance is not None
    touched = touched_pages(guest._instance, guest._plan.program.woven.exposed.memories)
    assert touched is not None
    return len(touched[0]) * PAGE_BYTES_OF_HOST
