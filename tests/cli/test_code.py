"""`stockade python` and `stockade js`, as people use them: the real command in a process of its own."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from stockade.cli._interactive import _is_whole_javascript, _is_whole_python
from tests._commands import begun
from tests._commands import ran as done_by
from tests._examples import part
from tests.cli.test_completion import offered
from tests.guests._snippets import DENIED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENT = ("--timeout", "60s")


def ran(*words: str, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What the command does."""
    done = done_by(words, stdin.encode(), cwd)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    """Compiled once, by the command itself."""
    for language in ("python", "js"):
        done = ran(language, "--prepare")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "stdin", "stdout", "stderr", "status"),
    part(
        [
            (["python", *PATIENT, "-c", "print(6 * 7)"], "", "42\n", "", 0),
            (
                ["python", *PATIENT, "-c", "import sys; print(sys.argv[1:])", "a", "-c", "--x"],
                "",
                "['a', '-c', '--x']\n",
                "",
                0,
            ),
            (["python", *PATIENT, "-c", "print(input())"], "line\n", "line\n", "", 0),
            (["python", *PATIENT], "print('from stdin')", "from stdin\n", "", 0),
            (["python", *PATIENT, "-", "a"], "import sys; print(sys.argv)", "['<stdin>', 'a']\n", "", 0),
            (["python", *PATIENT, "-c", "import sys; sys.exit(5)"], "", "", "", 5),
            (["python", *PATIENT, "-c", "import sys; sys.exit('no')"], "", "", "no\n", 1),
            (["python", *PATIENT, "-e", "A=b", "-c", "import os; print(os.environ['A'])"], "", "b\n", "", 0),
            (
                ["python", *PATIENT, "-c", "1 / 0"],
                "",
                "",
                (
                    'Traceback (most recent call last):\n  File "-c", line 1, in <module>\n    1 / 0\n    ~~^~~\n'
                    "ZeroDivisionError: division by zero\n"
                ),
                1,
            ),
            (
                ["python", *PATIENT, "-c", "import os; os._exit(4)"],
                "",
                "",
                "stockade: the code ended the interpreter with exit code 4\n",
                4,
            ),
            (["python", "no.py"], "", "", "stockade: no file at no.py\n", 127),
            (["python", "-f", "no.csv", "-c", "1"], "", "", "stockade: no file at no.csv\n", 127),
            (["js", *PATIENT, "-c", "console.log(6 * 7)"], "", "42\n", "", 0),
            (["js", *PATIENT, "-c", "print(scriptArgs.slice(1))", "a"], "", '["a"]\n', "", 0),
            (
                ["js", *PATIENT, "-c", "missing"],
                "",
                "",
                "ReferenceError: missing is not defined\n    at <eval> (-c:1:1)\n",
                1,
            ),
        ]
    ),
)
def test_code_runs(words: list[str], stdin: str, stdout: str, stderr: str, status: int) -> None:
    """Arguments, stdin, output, errors and exit statuses."""
    done = ran(*words, stdin=stdin)
    assert (done.stdout, done.stderr, done.returncode) == (stdout, stderr, status)


def test_code_runs_in_a_process_of_its_own() -> None:
    """And so does a script, with what it reads and leaves."""
    for words, stdin in (
        (["python", *PATIENT, "--isolation", "process", "-c", "print(int(input()) * 7)"], "6\n"),
        (["js", *PATIENT, "--isolation", "process", "-c", "console.log(6 * 7)"], ""),
    ):
        done = ran(*words, stdin=stdin)
        assert (done.stdout, done.stderr, done.returncode) == ("42\n", "", 0)


def test_files_run_and_are_given(tmp_path: Path) -> None:
    """A script is called by its name; copies of files lie beside it; folders are granted as for `stockade run`."""
    (tmp_path / "script.py").write_text(
        "import helper\nprint(helper.hi(), open('d/t.csv').read())\nopen('/out/o', 'w')\n"
    )
    (tmp_path / "helper.py").write_text("def hi(): return 'hi'\n")
    (tmp_path / "t.csv").write_text("a,b")
    words = ("-f", "helper.py", "--file", "t.csv::d/t.csv", "--dir", ".::/out", *PATIENT, "script.py")
    done = ran("python", *words, cwd=tmp_path)
    assert done.stdout == "hi a,b\n"
    assert done.stderr.splitlines()[1] == '  File "script.py", line 3, in <module>'
    assert DENIED in done.stderr
    assert done.returncode == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["helper.py", "script.py", "t.csv"]


def test_a_limit_is_told_by_the_exit_status() -> None:
    """As for `stockade run`."""
    done = ran("python", "--timeout", "500ms", "-c", "while True: pass")
    assert done.returncode == 124
    assert done.stderr.splitlines()[-1] == "stockade: the code: stopped: time limit reached"


def test_json_has_everything() -> None:
    """And nothing else is printed."""
    done = ran("js", *PATIENT, "--json", "-c", "print('x'); [1]")
    document = json.loads(done.stdout)
    assert (document["value"], document["stdout"], document["ok"], done.stderr) == ([1], "x\n", True, "")
    failed = json.loads(ran("python", *PATIENT, "--json", "-c", "1 / 0").stdout)
    assert (failed["ok"], failed["error"]["type"], failed["exit_code"]) == (False, "ZeroDivisionError", 1)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_ends_it() -> None:
    """With the status of an interrupted command."""
    process = begun(["python", *PATIENT, "-c", "print('on', flush=True)\nwhile True: pass"])
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, b"stockade: interrupted\n")


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *words: str) -> None:
        ours, theirs = pty.openpty()
        self._descriptor = ours
        environment = {**os.environ, "TERM": "dumb"}
        self.process = begun(words, env=environment, on_its_terminal=True, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)

    def until(self, text: str, seconds: float = 90) -> str:
        """Reads until something is there."""
        found, end = "", time.monotonic() + seconds
        while text not in found:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, end - time.monotonic()))
            assert ready, found
            try:
                found += os.read(self._descriptor, 4096).decode()
            except OSError:
                break
        assert text in found
        return found

    def type(self, text: str) -> None:
        """Types."""
        os.write(self._descriptor, text.encode())

    def close(self) -> None:
        """Ends it, whatever it does."""
        self.process.kill()
        self.process.wait()
        os.close(self._descriptor)


@pytest.fixture
def terminal() -> Iterator[list[Terminal]]:
    """Terminals that are closed."""
    opened: list[Terminal] = []
    yield opened
    for one in opened:
        one.close()


def test_a_terminal_keeps_a_session(terminal: list[Terminal]) -> None:
    """Values are shown, state is kept, errors are told, statements go on over lines, and Ctrl-D ends it."""
    shell = Terminal("python", "--runtime", "cpython-3.12", *PATIENT)
    terminal.append(shell)
    assert "cpython-3.12 in a sandbox, policy default. Ctrl-D ends it." in shell.until(">>> ")
    shell.type("x = (1, 'a')\n")
    shell.until(">>> ")
    shell.type("x\n")
    assert "(1, 'a')" in shell.until(">>> ").replace("\r", "")
    shell.type("def f():\n")
    shell.until("... ")
    shell.type("  return 41 + 1\n")
    shell.until("... ")
    shell.type("\n")
    shell.until(">>> ")
    shell.type("f()\n")
    assert "42" in shell.until(">>> ")
    shell.type("1 / 0\n")
    assert "ZeroDivisionError: division by zero" in shell.until(">>> ")
    shell.type("print('\\x1b[31mred')\n")
    assert "\x1b[31m" not in shell.until(">>> ").partition("\n")[2]
    shell.type("\x04")
    assert shell.process.wait(60) == 0


def test_a_piece_that_ends_the_interpreter_is_told(terminal: list[Terminal]) -> None:
    """Ctrl-C stops what runs; a fresh session begins. `sys.exit` ends the command."""
    shell = Terminal("python", *PATIENT)
    terminal.append(shell)
    shell.until(">>> ")
    shell.type("x = 1\n")
    shell.until(">>> ")
    shell.type("while True: print('on', flush=True)\n")
    shell.until("... ")
    shell.type("\n")
    shell.until("on")
    shell.type("\x03")
    told = shell.until(">>> ").replace("\r", "")
    assert told.endswith("cancelled\nstockade: the state of the session is gone; a fresh one begins\n>>> ")
    shell.type("'x' in globals()\n")
    assert "False" in shell.until(">>> ")
    shell.type("import sys; sys.exit(3)\n")
    assert shell.process.wait(60) == 3


@pytest.mark.parametrize(
    ("typed", "status"),
    [
        ("quit()", 0),
        *(
            pytest.param(typed, status, marks=pytest.mark.slow)
            for typed, status in (("exit()", 0), ("raise SystemExit(0)", 0), ("exit('no')", 1))
        ),
        ("exit(7)", 7),
    ],
)
def test_leaving_ends_a_session_on_a_terminal(terminal: list[Terminal], typed: str, status: int) -> None:
    """As in Python itself, whatever the exit code is."""
    shell = Terminal("python", *PATIENT)
    terminal.append(shell)
    shell.until(">>> ")
    shell.type(f"{typed}\n")
    assert shell.process.wait(60) == status


def test_a_session_on_a_terminal_finds_the_files(terminal: list[Terminal], tmp_path: Path) -> None:
    """They are there from its first piece on, and again in the fresh one after a stop."""
    (tmp_path / "t.csv").write_text("a,b")
    shell = Terminal("js", *PATIENT, "-f", str(tmp_path / "t.csv"))
    terminal.append(shell)
    shell.until(">>> ")
    shell.type("std.loadFile('t.csv') + '!'\n")
    assert "a,b!" in shell.until(">>> ")
    shell.type("print('on'); for (;;) {}\n")
    shell.until("\non")
    shell.type("\x03")
    assert "cancelled\n" in shell.until(">>> ").replace("\r", "")
    shell.type("std.loadFile('t.csv') + '?'\n")
    assert "a,b?" in shell.until(">>> ")


def test_a_session_on_a_terminal_prints_no_json(terminal: list[Terminal]) -> None:
    """An option that has no meaning there is refused, not ignored."""
    shell = Terminal("js", "--json")
    terminal.append(shell)
    shell.until("--json is for code that is given: with -c, as FILE, or on stdin")
    assert shell.process.wait(60) == 125


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-f", "t.csv:x.csv"], "--file t.csv:x.csv: write HOST, or HOST::NAME"),
        (["-f", "t.csv::"], "--file t.csv::: write HOST, or HOST::NAME"),
        (
            ["-f", "t.csv", "-f", "d/t.csv"],
            "--file d/t.csv: t.csv is given twice: write HOST::NAME to name it otherwise",
        ),
    ],
)
def test_files_that_are_given_wrongly(tmp_path: Path, words: list[str], message: str) -> None:
    """A name that docker would understand, and one that would hide another file."""
    (tmp_path / "d").mkdir()
    for path in (tmp_path / "t.csv", tmp_path / "d" / "t.csv"):
        path.write_text("a")
    done = ran("python", *words, "-c", "1", cwd=tmp_path)
    assert (done.stderr.splitlines()[-1], done.returncode) == (f"Error: {message}", 125)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("1 + 1", True),
        ("def f():", False),
        ("def f():\n  1\n", True),
        ("x = (", False),
        ("x )", True),
        ("a = 1\nb = 2", True),
    ],
)
def test_a_piece_of_python_is_whole(text: str, whole: bool) -> None:
    """What is wrong is whole, for the interpreter to tell."""
    assert _is_whole_python(text) is whole


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("1 + 1", True),
        ("function f() {", False),
        ("function f() { return '}' }", True),
        ("`open", False),
        ("'a\\'b'", True),
        ("/* open {", False),
        ("/* { */ 1", True),
        ("1 // (", True),
        ("f(\n", True),
        (")", True),
    ],
)
def test_a_piece_of_javascript_is_whole(text: str, whole: bool) -> None:
    """Brackets, texts and comments are closed, or a line is empty."""
    assert _is_whole_javascript(text) is whole


def test_the_shell_is_offered_code_and_interpreters(tmp_path: Path) -> None:
    """Files of the language, folders, and what is installed."""
    (tmp_path / "a.py").write_text("")
    (tmp_path / "b.js").write_text("")
    assert offered(tmp_path, "stockade python ", 2) == ["plain,a.py"]
    assert offered(tmp_path, "stockade js ", 2) == ["plain,b.js"]
    assert "plain,cpython-3.12" in offered(tmp_path, "stockade python --runtime ", 3)


@pytest.mark.parametrize("isolation", ["inprocess", "process"])
def test_an_interpreter_that_needs_more_memory_than_it_may_have(isolation: str) -> None:
    """The limit is named, wherever it was to live, and not that its worker made no sense."""
    done = ran("js", "--isolation", isolation, "-m", "1m", "-c", "1")

    assert (done.returncode, done.stdout) == (125, "")
    assert "memory limit exceeded: initial memory of 2.1 MiB, limits.memory allows 1.0 MiB\n" in done.stderr
