"""What callers give to be run, looked at before anything runs."""

from __future__ import annotations

import math
from keyword import iskeyword
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from stockade._bytes import bytes_of
from stockade._text import printable
from stockade.errors import UsageError
from stockade.execution import check_arguments, environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stockade._bytes import BytesLike

__all__ = ["MOST_SAFE_INTEGER", "Plain", "Task", "check_variables", "make_task"]

Plain: TypeAlias = "bool | int | float | str | bytes | Sequence[Plain] | Mapping[str, Plain] | None"
"""What can be given as a variable."""

_DEEPEST = 50
MOST_SAFE_INTEGER = 2**53
"""The largest of the integers that JavaScript's numbers all hold."""

_RESERVED = frozenset(
    [
        "await",
        "break",
        "case",
        "catch",
        "class",
        "const",
        "continue",
        "debugger",
        "default",
        "delete",
        "do",
        "else",
        "enum",
        "export",
        "extends",
        "false",
        "finally",
        "for",
        "function",
        "if",
        "import",
        "in",
        "instanceof",
        "let",
        "new",
        "null",
        "return",
        "static",
        "super",
        "switch",
        "this",
        "throw",
        "true",
        "try",
        "typeof",
        "var",
        "void",
        "while",
        "with",
        "yield",
    ]
)
"""Words of JavaScript that name no variable, in strict code neither."""

_MOST = 10**4000
"""Python neither writes nor reads longer numbers."""


class Task(NamedTuple):
    """A piece of code, and what it is given.

    Attributes:
        code: The code.
        name: What it is called in tracebacks.
        inputs: Variables.
        args: Arguments, after its name.
        stdin: What it reads from its standard input; None where that is the guest's own.
        env: Its environment.
        preload: Code that runs before it where there is no state yet.
        most_bytes: How long its value may be.
        paths: More folders of the guest's that modules are looked for in.
        session: Whether more comes after it.
        reseed: Whether random generators are to begin anew.
        is_ahead: Whether what comes before it is done before it comes.
        tools: What it is told of the tools that it may call.
        echo: Whether its value is shown on stdout, as an interactive interpreter does.
        network: Whether it may ask for requests over the network.
    """

    code: str
    name: str = "<code>"
    inputs: Mapping[str, object] = {}
    args: Sequence[str] = ()
    stdin: bytes | None = b""
    env: Mapping[str, str] | None = None
    preload: str = ""
    most_bytes: int = 1 << 20
    paths: Sequence[str] = ()
    session: bool = False
    reseed: bool = False
    echo: bool = False
    is_ahead: bool = False
    network: bool = False
    tools: Sequence[Mapping[str, str]] = ()


def make_task(
    code: object,
    name: str,
    inputs: Mapping[str, Plain] | None,
    args: Sequence[str],
    stdin: BytesLike,
    env: Mapping[str, str] | None,
    *,
    takes_bytes: bool,
) -> Task:
    """Checks what somebody gives.

    Args:
        code: The code.
        name: What it is called.
        inputs: Variables.
        args: Arguments.
        stdin: Standard input.
        env: The environment.
        takes_bytes: Whether the language has bytes and integers of any size among plain data.

    Raises:
        UsageError: Something is unfit.
    """
    texts = tuple(check_arguments(args))
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"an argument is {type(text).__name__}: it must be text")
        bytes_of(text, "an argument")
    if inputs is not None and not hasattr(inputs, "items"):
        raise UsageError(f"inputs is {type(inputs).__name__}: give a dict of names and values")
    found: dict[str, object] = {}
    for key, value in (inputs or {}).items():
        unchecked: object = key
        if not isinstance(unchecked, str) or not _is_identifier(unchecked, takes_bytes=takes_bytes):
            raise UsageError(f"{printable(repr(key))} cannot be the name of a variable")
        language = "Python" if takes_bytes else "JavaScript"
        if iskeyword(unchecked) if takes_bytes else unchecked in _RESERVED:
            raise UsageError(f"{key!r} cannot be the name of a variable: it is a keyword of {language}")
        found[key] = _plain(value, key, takes_bytes=takes_bytes)
    # As editors write it before a text.
    source = _text(code, "code").removeprefix("\ufeff")
    return Task(source, name, found, texts, bytes_of(stdin, "stdin"), check_variables(env))


def check_variables(env: Mapping[str, str] | None) -> dict[str, str] | None:
    """Returns an environment, copied.

    Raises:
        UsageError: It is none, or a variable cannot be passed.
    """
    if env is None:
        return None
    if not hasattr(env, "items"):
        raise UsageError(f"env is {type(env).__name__}: give a dict of names and texts")
    found = {}
    for name, value in environment(env).items():
        try:
            found[name.decode()] = value.decode()
        except UnicodeDecodeError:
            raise UsageError(f"the variable {printable(name)} is not UTF-8: give text") from None
    return found


def _is_identifier(name: str, *, takes_bytes: bool) -> bool:
    return (name if takes_bytes else name.replace("$", "_")).isidentifier()


def _text(given: object, what: str) -> str:
    if isinstance(given, bytes):
        try:
            return given.decode()
        except UnicodeDecodeError as problem:
            raise UsageError(f"{what} is not UTF-8 at byte {problem.start:,}") from None
    if not isinstance(given, str):
        raise UsageError(f"{what} is {type(given).__name__}: it must be text")
    bytes_of(given, what)
    return given


def _plain(value: object, where: str, depth: int = 0, *, takes_bytes: bool) -> object:
    """Returns plain data as dicts, lists and their like, copied."""
    if depth > _DEEPEST:
        raise UsageError(f"the variable {where} is nested deeper than {_DEEPEST} levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not takes_bytes and abs(value) > MOST_SAFE_INTEGER:
            raise UsageError(f"the variable {where} holds {printable(hex(value))}, which no JavaScript number can hold")
        if abs(value) >= _MOST:
            raise UsageError(f"the variable {where} holds a number of {value.bit_length():,} bits: give it as text")
        return int(value)
    if isinstance(value, float):
        if not takes_bytes and not math.isfinite(value):
            raise UsageError(f"the variable {where} holds {value}, which JSON does not know")
        return float(value)
    if isinstance(value, str):
        return _text(str(value), f"the variable {where}")
    if isinstance(value, bytes | bytearray | memoryview) and takes_bytes:
        return bytes(value)
    if isinstance(value, list | tuple):
        return [_plain(item, where, depth + 1, takes_bytes=takes_bytes) for item in value]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise UsageError(f"the variable {where} has a key of type {type(key).__name__}: it must be text")
        return {
            _text(key, f"the variable {where}"): _plain(item, where, depth + 1, takes_bytes=takes_bytes)
            for key, item in value.items()
        }
    raise UsageError(
        f"the variable {where} is or holds {type(value).__name__}: give None, bool, int, float, str, list, dict"
        f"{' and bytes' if takes_bytes else ''}; other data as files"
    )
