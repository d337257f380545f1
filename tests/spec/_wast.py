"""What is in a script of the specification's tests (`.wast`): modules, and calls of what they export."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from stockade.engine import assemble
from stockade.errors import InvalidModule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Invocation", "SpecModule", "commands", "modules"]

_TOKEN = re.compile(r"""\s+ | ;;[^\n]* | (?P<text> "(?:[^"\\]|\\.)*") | [()] | [^\s"()]+""", re.VERBOSE | re.DOTALL)
_COMMENT = re.compile(r"\(;|;\)")
_ESCAPE = re.compile(rb'\\(?:u\{([0-9a-fA-F_]+)\}|([0-9a-fA-F]{2})|([tnr"\'\\]))')
_LETTERS = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}
_CALLS = frozenset({"invoke", "assert_return", "assert_trap", "assert_exhaustion", "assert_exception"})
_INVALID = frozenset({"assert_invalid", "assert_malformed"})
_AROUND = frozenset({*_INVALID, "assert_unlinkable", "assert_trap", "assert_uninstantiable"})


class SpecModule(NamedTuple):
    """A module of a script.

    Attributes:
        line: Where it begins.
        valid: Whether it is meant to be.
        wasm: Its bytes.
        unread: Why its text could not be translated; empty where it was.
        runs: Whether what follows calls it.
        name: What the script calls it.
    """

    line: int
    valid: bool
    wasm: bytes
    unread: str = ""
    runs: bool = False
    name: str = ""


class Invocation(NamedTuple):
    """A call of a function that a module exports.

    Attributes:
        line: Where it stands.
        module: What the script calls the module; empty for the last one.
        export: The function's name.
        arguments: What it is given; None where one is no number.
    """

    line: int
    module: str
    export: bytes
    arguments: list[int | float] | None


class _Form(NamedTuple):
    """Something in parentheses: its words (parentheses, texts, names) and where it lies."""

    words: list[str]
    start: int
    end: int


def modules(script: str) -> Iterator[SpecModule]:
    """Finds the modules of a script.

    What is only there to show that some text is no text of a module is left out: Stockade reads no text.
    """
    return (command for command in commands(script) if isinstance(command, SpecModule))


def commands(script: str) -> Iterator[SpecModule | Invocation]:
    """Finds the modules of a script, and the calls of what they export, in their order."""
    for form in _forms(script):
        head, words, start = form.words[1], form.words, form.start
        line = script.count("\n", 0, start) + 1
        if head in _CALLS and "invoke" in words[:4]:
            yield _invocation(line, words[words.index("invoke") + 1 :])
            continue
        valid = head not in _INVALID
        if head in _AROUND:
            if words[2:4] != ["(", "module"]:
                continue
            start = script.index("(module", start)
            words = words[2:]
        elif head != "module":
            continue
        line = script.count("\n", 0, start) + 1
        name = next((word for word in words[2:4] if word.startswith("$")), "")
        runs = head == "module" and not {"definition", "instance"}.intersection(words[2:4])
        try:
            wasm = _encoded(script, words, start)
        except InvalidModule as problem:
            if valid:
                yield SpecModule(line, valid, b"", str(problem))
            continue
        if wasm is not None:
            yield SpecModule(line, valid, wasm, runs=runs, name=name)


def _invocation(line: int, words: list[str]) -> Invocation:
    module = words.pop(0) if words[0].startswith("$") else ""
    arguments: list[int | float] | None = []
    for place in range(1, len(words), 4):
        opened, kind, number, closed = [*words, "", "", ""][place : place + 4]
        if opened != "(":
            break
        if kind not in _READ or closed != ")":
            arguments = None
            break
        arguments.append(_READ[kind](number.replace("_", "")))
    return Invocation(line, module, _bytes(words[0]), arguments)


def _integer(bits: int) -> Callable[[str], int]:
    def read(number: str) -> int:
        value = int(number, 0) % (1 << bits)
        return value - (1 << bits) if value >> (bits - 1) else value

    return read


def _float(number: str) -> float:
    if "nan" in number:
        return float("nan")
    return float.fromhex(number) if "0x" in number else float(number)


_READ: Final[dict[str, Callable[[str], int | float]]] = {
    "i32.const": _integer(32),
    "i64.const": _integer(64),
    "f32.const": _float,
    "f64.const": _float,
}


def _forms(script: str) -> Iterator[_Form]:
    depth = start = position = 0
    words: list[str] = []
    while position < len(script):
        if script.startswith("(;", position):
            position = _after_comment(script, position)
            continue
        token = _TOKEN.match(script, position)
        assert token is not None, script[position : position + 40]
        word = token[0]
        if word == "(" and depth == 0:
            start, words = position, []
        position = token.end()
        if word.isspace() or word.startswith(";;"):
            continue
        words.append(word)
        depth += (word == "(") - (word == ")")
        if depth == 0 and word == ")":
            yield _Form(words, start, position)


def _after_comment(script: str, position: int) -> int:
    """Steps over a comment, in which others may be."""
    depth = 0
    while True:
        mark = _COMMENT.search(script, position)
        assert mark is not None, "a comment without an end"
        depth += 1 if mark[0] == "(;" else -1
        position = mark.end()
        if depth == 0:
            return position


def _encoded(script: str, words: list[str], start: int) -> bytes | None:
    """The bytes of a module that begins there; None where it is none."""
    at = 2
    skipped = []
    while words[at] in ("definition", "instance") or words[at].startswith("$"):
        skipped.append(words[at])
        at += 1
    if "instance" in skipped:
        return None
    if words[at] in ("binary", "quote"):
        parts = []
        for word in words[at + 1 :]:
            if not word.startswith('"'):
                break
            parts.append(_bytes(word))
        return b"".join(parts) if words[at] == "binary" else assemble(f"(module {b' '.join(parts).decode()})")
    end = start + _length(script[start:])
    text = script[start:end]
    return assemble(text.replace("definition", "", 1) if "definition" in skipped else text)


def _length(text: str) -> int:
    return next(_forms(text)).end


def _bytes(word: str) -> bytes:
    """The bytes that a text in quotation marks stands for."""

    def one(found: re.Match[bytes]) -> bytes:
        if found[1]:
            return chr(int(found[1], 16)).encode()
        return bytes([int(found[2], 16)]) if found[2] else _LETTERS.get(found[3], found[3])

    return _ESCAPE.sub(one, word[1:-1].encode())
