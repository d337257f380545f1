"""Runs blocks of Python as if a reader pasted them, line by line, into the interpreter: `tests/_pages.py` starts it.

Reads blocks as JSON strings, one in a line, and answers each with a line of JSON.
"""

from __future__ import annotations

import ast
import code
import io
import json
import os
import sys
import tokenize
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any


class Console(code.InteractiveConsole):
    """An interpreter that keeps what it would show."""

    def __init__(self) -> None:
        super().__init__({"__name__": "__main__"})
        self.shown: list[tuple[str, str]] = []
        self.problem = ""
        self._lines: list[str] = []

    def showtraceback(self) -> None:
        """Keeps the exception without the frames, which no page shows."""
        self.problem += "".join(traceback.format_exception_only(sys.exc_info()[1]))

    def showsyntaxerror(self, *_: Any, **__: Any) -> None:
        """The same for text that is not Python."""
        self.showtraceback()

    def paste(self, block: str) -> None:
        """Takes a block line by line, and Enter at the end."""
        for line in [*block.splitlines(), ""]:
            if self.problem:
                self.problem += f"before the line: {line}\n" if line else ""
                break
            self._lines.append(line)
            value: list[object] = []
            sys.displayhook = value.append
            if self.push(line):
                continue
            source, self._lines = "\n".join(self._lines), []
            if value and value[-1] is not None and _is_expression(source):
                comment = _last_comment(source)
                if comment:
                    self.shown.append((comment, repr(value[-1])))
        if self._lines:
            self.problem = f"the block ends in the middle of a statement: {self._lines}"


def _is_expression(source: str) -> bool:
    body = ast.parse(source).body
    return len(body) == 1 and isinstance(body[0], ast.Expr)


def _last_comment(source: str) -> str:
    found = ""
    with suppress(tokenize.TokenError):
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                found = token.string.removeprefix("#").strip()
    return found


def main() -> None:
    """Answers blocks until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    console = Console()
    with answers:
        for line in sys.stdin:
            out = io.StringIO()
            console.shown, console.problem = [], ""
            with redirect_stdout(out), redirect_stderr(out):
                console.paste(json.loads(line))
            print(json.dumps([out.getvalue(), console.problem, console.shown]), file=answers, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, "")
    main()
