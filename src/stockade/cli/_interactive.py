"""An interactive interpreter on a terminal: a session, with history."""

from __future__ import annotations

import codeop
import os
import sys
import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from stockade.cli._guest_io import Watcher
from stockade.cli._streams import pass_on
from stockade.errors import StockadeError
from stockade.guests import JavaScript, Python
from stockade.runner import run_blocking
from stockade.system import open_private, state_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stockade.guests import CodeResult, LanguageSession

__all__ = ["interact"]

_MOST_LINES = 1000


def interact(interpreter: Python | JavaScript, environment: dict[str, str], files: dict[str, bytes]) -> int:
    """Asks for code and runs it, piece by piece, until the end of the input.

    Args:
        interpreter: The interpreter.
        environment: The environment of the code.
        files: Files that it finds in its working folder when a session begins.

    Returns:
        The exit status: what the code gave to `sys.exit`, else 0.
    """
    is_python = isinstance(interpreter, Python)
    kind = "python" if is_python else "js"
    is_whole = _is_whole_python if is_python else _is_whole_javascript
    click.echo(f"{interpreter.runtime} in a sandbox, policy {interpreter.policy.name}. Ctrl-D ends it.")
    with (
        _history(f"{kind}_history"),
        interpreter.session(
            env=environment,
            on_stdout=lambda piece: pass_on(sys.stdout, piece),
            on_stderr=lambda piece: pass_on(sys.stderr, piece),
        ) as session,
    ):
        missing = files
        while True:
            code = _ask(is_whole)
            if code is None:
                click.echo()
                return 0
            if not code.strip():
                continue
            result = _turn(session, code, missing)
            if result is None:
                continue
            missing = {}
            error = result.error
            if error is not None and error.type in ("SystemExit", "Exit") and not result.value_is_repr:
                if error.type == "Exit":
                    click.echo(f"stockade: {error.message}", err=True)
                return (result.exit_code or 0) & 0xFF
            if error is not None:
                pass_on(sys.stderr, f"{error}\n".encode())
            if not session.alive:
                click.echo("stockade: the state of the session is gone; a fresh one begins", err=True)
                session.reset()
                missing = files


def _turn(session: LanguageSession, code: str, files: dict[str, bytes]) -> CodeResult | None:
    """Runs a piece of code; Ctrl-C stops it."""
    try:
        with Watcher() as watcher:
            steps, control = session.steps(code, files=files, echo=True)
            watcher.attach(control)
            return run_blocking(steps, control)
    except StockadeError as problem:
        click.echo(f"stockade: {problem}", err=True)
        return None


def _ask(is_whole: Callable[[str], bool]) -> str | None:
    """Asks for lines until they are a piece of code; None at the end of the input."""
    lines: list[str] = []
    while True:
        try:
            lines.append(input("... " if lines else ">>> "))
        except EOFError:
            return None
        except KeyboardInterrupt:
            click.echo("\nKeyboardInterrupt")
            return ""
        text = "\n".join(lines)
        if is_whole(text):
            return text


def _is_whole_python(text: str) -> bool:
    """Whether text is a piece of code, or no beginning of one. It is compiled here, and not run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return codeop.compile_command(text, symbol="single") is not None
        except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError):
            # What is wrong, and what several statements are, the interpreter tells.
            return True


def _is_whole_javascript(text: str) -> bool:
    """Whether no bracket, text or comment is open; a line without anything ends a piece in any case."""
    if text.endswith("\n"):
        return True
    depth, quote, at = 0, "", 0
    while at < len(text):
        here, two = text[at], text[at : at + 2]
        at += 1
        if quote:
            if quote == "*/":
                if two == "*/":
                    quote, at = "", at + 1
            elif here == "\\":
                at += 1
            elif here == quote or (here == "\n" and quote != "`"):
                quote = ""
        elif two == "//":
            at = text.find("\n", at) + 1 or len(text)
        elif two == "/*":
            quote, at = "*/", at + 1
        elif here in "'\"`":
            quote = here
        elif here in "([{":
            depth += 1
        elif here in ")]}":
            depth -= 1
    return depth <= 0 and quote not in ("`", "*/")


@contextmanager
def _history(name: str) -> Iterator[None]:
    """Keeps the lines that are typed for the next time, where readline and a private folder are to be had."""
    try:
        import readline
    except ImportError:
        yield
        return
    folder = state_folder()
    path = None
    if folder is not None:
        with suppress(OSError, StockadeError):
            os.close(open_private(folder))
            path = str(folder / name)
            readline.read_history_file(path)
    readline.set_history_length(_MOST_LINES)
    try:
        yield
    finally:
        if path is not None:
            with suppress(OSError):
                before = os.umask(0o077)
                try:
                    readline.write_history_file(path)
                finally:
                    os.umask(before)
