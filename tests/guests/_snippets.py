"""A hundred pieces of Python, with exactly what comes of them on every runtime."""

from __future__ import annotations

import errno
from typing import Any, Final, NamedTuple

__all__ = ["DENIED", "PYTHON", "Snippet", "fails", "stopped"]

DENIED: Final = type(OSError(errno.EACCES, "")).__name__
"""What Python calls the error of a denied access."""


class Snippet(NamedTuple):
    """A piece of code.

    Attributes:
        code: The code.
        value: What its last expression is.
        stdout: What it prints.
        error: The type of its error.
        message: What that says; None where releases differ.
        line: The line that it tells.
        shown: Whether the value is a text in the place of what JSON does not know.
        stderr: What it prints there.
        exit_code: Its exit code.
        stdin: What it is given to read.
        outcome: How the report says it ended; None where that is the runtime's.
        limits: Limits of its policy.
    """

    code: str
    value: Any = None
    stdout: str = ""
    error: str | None = None
    message: str | None = None
    line: int | None = None
    shown: bool = False
    stderr: str = ""
    exit_code: int | None = 0
    stdin: str = ""
    outcome: str | None = None
    limits: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it


def fails(code: str, error: str, message: str | None, line: int | None, **more: Any) -> Snippet:
    """A piece that ends with an exception."""
    return Snippet(code, error=error, message=message, line=line, exit_code=1, **more)


def stopped(code: str, outcome: str, message: str, **limits: Any) -> Snippet:
    """A piece that is stopped."""
    return Snippet(code, error="Stopped", message=message, exit_code=None, outcome=outcome, limits=limits)


PYTHON = [
    # values
    Snippet("1 + 1", 2),
    Snippet("", None),
    Snippet("# nothing but a comment", None),
    # the last line, and where the last expression begins
    Snippet("a = 1\na + 1  # two\n\n", 2),
    Snippet("a = (1 +\n2)\na", 3),
    Snippet("max(1,\n2)", 2),
    Snippet("[\n1,\n]", [1]),
    Snippet('a = """\n1\n"""\nlen(a)', 3),
    Snippet('"""\n1 + 1\n"""', "\n1 + 1\n"),
    Snippet("a = \\\n5", None),
    Snippet("a = 1; a", 1),
    Snippet("1,\\\n2", [1, 2]),
    Snippet("if True:\n    a = 3\n(a)", 3),
    Snippet("*[1], 2", [1, 2]),
    Snippet("a = 1 == 2", None),
    Snippet("dict(a=1)['a'] == 1", True),
    Snippet('"a=b"', "a=b"),
    Snippet("(a := 4)", 4),
    Snippet("from __future__ import annotations\ndef f(a: b): pass\nf.__annotations__['a']", "b"),
    fails("a = 1\n\na.b", "AttributeError", "'int' object has no attribute 'b'", 3),
    fails("a = (\na", "SyntaxError", "'(' was never closed", 1),
    fails("@f\n1", "SyntaxError", "invalid syntax", 2),
    Snippet("None", None),
    Snippet("x = 5", None),
    Snippet("x = 5\nx", 5),
    Snippet("\ufeff'after a mark'", "after a mark"),
    Snippet("True, False", [True, False]),
    Snippet("0.1 + 0.2", 0.30000000000000004),
    Snippet("1e300 * 10", 1e301),
    Snippet("-0.0", -0.0),
    Snippet("10 ** 30", 10**30),
    Snippet("-(2 ** 63) - 1", -(2**63) - 1),
    Snippet("'text'", "text"),
    Snippet("'käse 🧀 \\u4e2d'", "käse 🧀 中"),
    Snippet("'\\0\\x1b[31m'", "\0\x1b[31m"),
    Snippet("'a' 'b'", "ab"),
    Snippet("[1, [2, [3]]]", [1, [2, [3]]]),
    Snippet("(1, 'two')", [1, "two"]),
    Snippet("{'a': {'b': None}}", {"a": {"b": None}}),
    Snippet("{1: 'one'}", {"1": "one"}),
    Snippet("[n for n in range(5) if n % 2]", [1, 3]),
    Snippet("{**{'a': 1}, 'b': 2}", {"a": 1, "b": 2}),
    Snippet("float('nan')", "nan", shown=True),
    Snippet("[float('inf')]", "[inf]", shown=True),
    Snippet("{1, 2}", "{1, 2}", shown=True),
    Snippet("b'bytes'", "b'bytes'", shown=True),
    Snippet("1j", "1j", shown=True),
    Snippet("int", "<class 'int'>", shown=True),
    Snippet("range(3)", "range(0, 3)", shown=True),
    Snippet("'\\ud800'", "'\\ud800'", shown=True),
    Snippet("class A:\n  def __repr__(self): return 'an A'\nA()", "an A", shown=True),
    Snippet("class A:\n  def __repr__(self): 1 / 0\nA()", "<A: its repr raised ZeroDivisionError>", shown=True),
    Snippet("a = []\na.append(a)\na", "[[...]]", shown=True),
    Snippet("import decimal\ndecimal.Decimal('1.10')", "Decimal('1.10')", shown=True),
    Snippet("import datetime\ndatetime.date(2026, 11, 30)", "datetime.date(2026, 11, 30)", shown=True),
    Snippet("lambda: 1; 3", 3),
    Snippet("x = 1; x", 1),
    Snippet("if True:\n  7", None),
    Snippet("for n in range(3): n", None),
    Snippet("'''a doc\nstring'''", "a doc\nstring"),
    Snippet("from __future__ import annotations\ndef f(a: missing): pass\nf.__annotations__", {"a": "missing"}),
    # output
    Snippet("print('hello')", None, "hello\n"),
    Snippet("print('no end', end='')", None, "no end"),
    Snippet("print('käse', '🧀')", None, "käse 🧀\n"),
    Snippet("import sys\nprint('bad', file=sys.stderr)", None, stderr="bad\n"),
    Snippet("import sys\nsys.stdout.write('abc')", 3, "abc"),
    Snippet("import os\nos.write(1, b'\\xff\\n')", 2, "\ufffd\n"),
    Snippet("print(*range(3), sep='-')\n'value'", "value", "0-1-2\n"),
    Snippet(
        "import contextlib, io\nb = io.StringIO()\nwith contextlib.redirect_stdout(b): print('x')\nb.getvalue()", "x\n"
    ),
    # input
    Snippet("input()", "line", stdin="line\nmore\n"),
    Snippet("input('name? ')", "you", "name? ", stdin="you\n"),
    Snippet("import sys\nsys.stdin.read()", "all of\nit", stdin="all of\nit"),
    Snippet("import sys\n[line.strip() for line in sys.stdin]", ["a", "b"], stdin="a\nb\n"),
    Snippet("import sys\nsys.stdin.buffer.read()", "b'\\xff'", stdin="\udcff", shown=True),
    fails("input()", "EOFError", "EOF when reading a line", 1),
    # arguments and environment
    Snippet("import sys\nsys.argv", ["<code>", "one", "two words"]),
    Snippet("import os\nos.environ['GIVEN']", "yes"),
    Snippet("import os\nsorted(os.environ)", ["GIVEN", "HOME", "TMPDIR"]),
    Snippet("import os\nos.getcwd()", "/workspace"),
    Snippet("__name__", "__main__"),
    Snippet("import __main__\nx = 3\n__main__.x", 3),
    Snippet("number + 1, text, data", "(43, 'käse', b'\\xff')", shown=True),
    Snippet("nested", {"list": [1, 2.5, None, True]}),
    # errors
    fails("1 / 0", "ZeroDivisionError", "division by zero", 1),
    fails("x = 1\n\nmissing", "NameError", "name 'missing' is not defined", 3),
    fails("def f(n):\n  if n == 0:\n    raise ValueError('deep')\n  f(n - 1)\n\nf(5)", "ValueError", "deep", 3),
    fails("x = (", "SyntaxError", "'(' was never closed", 1),
    fails("a = 1\nb c", "SyntaxError", "invalid syntax", 2),
    fails("if True:\nx", "IndentationError", "expected an indented block after 'if' statement on line 1", 2),
    fails("return 1", "SyntaxError", "'return' outside function", 1),
    fails("x = '\\0'\n\0", "SyntaxError", "source code string cannot contain null bytes", None),
    fails("raise KeyError('a')", "KeyError", "'a'", 1),
    fails("import json\njson.loads('{')", "JSONDecodeError", None, 2),
    fails("class E(Exception): pass\nraise E('mine')", "E", "mine", 2),
    fails("raise BaseException('base')", "BaseException", "base", 1),
    fails("raise KeyboardInterrupt", "KeyboardInterrupt", "", 1),
    fails("class E(Exception):\n  def __str__(self): 1 / 0\nraise E", "E", "(its text cannot be told)", 3),
    fails("try:\n  1 / 0\nexcept ZeroDivisionError as e:\n  raise RuntimeError('no') from e", "RuntimeError", "no", 4),
    fails("raise ExceptionGroup('many', [ValueError('a')])", "ExceptionGroup", "many (1 sub-exception)", 1),
    fails("assert 1 == 2, 'unequal'", "AssertionError", "unequal", 1),
    fails("import missing_module", "ModuleNotFoundError", "No module named 'missing_module'", 1),
    fails("exec('1 / 0')", "ZeroDivisionError", "division by zero", 1),
    fails("int('x')", "ValueError", "invalid literal for int() with base 10: 'x'", 1),
    fails("print('before')\n1 / 0", "ZeroDivisionError", "division by zero", 2, stdout="before\n"),
    # ends
    Snippet("import sys\nsys.exit()"),
    Snippet("raise SystemExit(0)"),
    Snippet("import sys\nsys.exit(3)", error="SystemExit", message="3", exit_code=3),
    Snippet("exit(4)", error="SystemExit", message="4", exit_code=4),
    Snippet("import sys\nsys.exit('words')", error="SystemExit", message="words", exit_code=1, stderr="words\n"),
    Snippet("import atexit\natexit.register(print, 'bye') and None", None, "bye\n", outcome="ok"),
    # limits
    fails("def f(n): return f(n + 1)\nf(0)", "RecursionError", None, 1),
    fails("a = []\nfor _ in range(20_000): a = [a]\nrepr(a)", "RecursionError", None, 3),
    fails("x = bytearray(1 << 30)", "MemoryError", "", 1),
    fails("int('9' * 5000)", "ValueError", None, 1),
    fails("import threading\nthreading.Thread(target=print).start()", "RuntimeError", "can't start new thread", 2),
    fails("import os\nos.fork()", "AttributeError", "module 'os' has no attribute 'fork'", 2),
    fails("import subprocess\nsubprocess.run(['ls'])", "OSError", None, 2),
    stopped("while True: pass", "timeout", "stopped: time limit reached", wall_time=0.3),
    stopped("import time\ntime.sleep(60)", "timeout", "stopped: time limit reached", wall_time=0.3),
    # waiting
    Snippet("import asyncio\nasync def f():\n  await asyncio.sleep(0.01)\n  return 5\nasyncio.run(f())", 5),
    Snippet(
        "import asyncio\nasync def f(n):\n  await asyncio.sleep(0)\n  return n\nawait asyncio.gather(f(1), f(2))",
        [1, 2],
    ),
    Snippet("import asyncio\nx = await asyncio.sleep(0, 'slept')\nx", "slept"),
    Snippet("async def g():\n  yield 1\n  yield 2\n[n async for n in g()]", [1, 2]),
    Snippet("import asyncio\nawait asyncio.sleep(0)\nx = 1", None),
    fails("import asyncio\nasync with asyncio.timeout(0.01):\n  await asyncio.sleep(60)", "TimeoutError", "", 2),
    fails("async def f():\n  raise ValueError('in it')\n\nawait f()", "ValueError", "in it", 2),
    fails("def f():\n  await x", "SyntaxError", "'await' outside async function", 2),
    stopped(
        "import asyncio\nasyncio.run(asyncio.Event().wait())",
        "timeout",
        "stopped: time limit reached",
        wall_time=0.6,
    ),
    # files
    Snippet("open('a.txt', 'w').write('abc')", 3),
    Snippet("from pathlib import Path\nPath('b').mkdir()\nPath('b/c').write_text('x')\nPath('b/c').read_text()", "x"),
    Snippet("open('given.csv').read()", "a,b\n1,2\n"),
    Snippet("import os\nos.remove('given.csv')\nos.listdir()", []),
    Snippet("import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')", None),
    Snippet("import csv\nlist(csv.DictReader(open('given.csv')))", [{"a": "1", "b": "2"}]),
    fails("open('/etc/passwd')", "FileNotFoundError", None, 1),
    fails("open('../outside', 'w')", DENIED, None, 1),
    # libraries
    Snippet("import json\njson.dumps({'a': 1})", '{"a": 1}'),
    Snippet("import re\nre.findall(r'\\d+', 'a1b22')", ["1", "22"]),
    Snippet("import math\nmath.comb(10, 3)", 120),
    Snippet("import collections\ncollections.Counter('aab')", {"a": 2, "b": 1}),
    Snippet("import hashlib\nhashlib.sha256(b'').hexdigest()[:8]", "e3b0c442"),
    Snippet("import statistics\nstatistics.mean([1, 2, 6])", 3),
    Snippet("import dataclasses\n@dataclasses.dataclass\nclass P: x: int\nP(3)", "P(x=3)", shown=True),
    Snippet("import pickle\nclass P: pass\ntype(pickle.loads(pickle.dumps(P()))) is P", True),
]
