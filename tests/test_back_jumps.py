"""What the handler of a signal raises as a loop begins anew reaches the `try` or `with` that the loop stands in.

In Python 3.11 and 3.12 it does not where the loop goes back to the first instruction of the `try`
(python/cpython#108214), in 3.13 not where the jump back is one that cannot raise by itself (python/cpython#130279). So
nothing in that block is put in order: a lock stays taken, steps are never closed. Such a loop is a function of its own,
or not the first in its block.
"""

from __future__ import annotations

import ast
import dis
import sys
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, NamedTuple

import pytest

import stockade

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOURCES = Path(stockade.__file__).parent

_LOSE_NOTHING = {
    "BoundedDict.keep": "one entry more than there should be is let go of with the next",
    "Cache.clear": "the descriptor is closed when it is dropped",
    "ReadyPool.fill": "whoever has the pool closes it",
    "_Turn.perform": "the block is for what the guest's memory raises",
    "_copied": "as above",
    "_folders_around": "the block is for what the system refuses",
    "waited_for": "what waits is told by its own cancellation",
}
"""Functions where it does not matter, and why."""

_ELSEWHERE = (
    "cli/",
    "execution/_host_code.py",
    "guests/_folder.py",
    "guests/_internals.py",
    "guests/_javascript.py",
    "guests/boot/",
    "monitoring/",
    "policy/",
    "scheduling/_pool.py",
    "wasm/",
    "worker/_fork_loop.py",
    "worker/_fork_server.py",
)
"""Where the thread or the process is another one than that of the embedder's handlers, or ends with what they raise;
and where something is read, and nothing held but what is freed when it is dropped."""


class Loop(NamedTuple):
    file: str
    function: str
    line: int


def functions(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from functions(constant)


def loops_in_blocks(tree: ast.AST) -> list[range]:
    """The lines of loops that stand in a `try` or `with` of the same function."""
    found: list[range] = []

    def visit(node: ast.AST, *, inside: bool) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside = False
        if inside and isinstance(node, ast.While | ast.For):
            assert node.end_lineno is not None
            found.append(range(node.lineno, node.end_lineno + 1))
        for name, child in ast.iter_fields(node):
            guarded = inside or (name == "body" and isinstance(node, ast.Try | ast.With | ast.AsyncWith))
            for part in child if isinstance(child, list) else [child]:
                if isinstance(part, ast.AST):
                    visit(part, inside=guarded)

    visit(tree, inside=False)
    return found


def escapes(text: str, name: str) -> Iterator[Loop]:
    """Loops of which what is raised between two rounds passes by the block around them."""
    blocks = loops_in_blocks(ast.parse(text))
    for code in functions(compile(text, name, "exec")):
        table = dis._parse_exception_table(code) if blocks else []  # type: ignore[attr-defined]
        if not table:
            continue
        whole = max(entry.target for entry in table) if code.co_flags & 0x2A0 else -1
        for step in dis.get_instructions(code):
            if "JUMP_BACKWARD" not in step.opname or "NO_INTERRUPT" in step.opname or code.co_name.startswith("<"):
                continue
            line = step.positions.lineno if step.positions is not None else None
            if line is None or not any(line in block for block in blocks):
                continue
            # Where Python looks for the block around: before the target, or at the jump itself.
            at = step.argval - 2 if sys.version_info < (3, 13) else step.offset
            targets = [entry.target for entry in table if entry.start <= at < entry.end]
            # A generator has one around all of it.
            if not targets or targets == [whole]:
                yield Loop(name, code.co_qualname, line)


def test_a_loop_that_passes_by_its_block_is_found() -> None:
    """The positive twin of what follows."""
    first = "def f(s):\n  try:\n    while True:\n      if g(s): continue\n      h(s)\n  finally:\n    s.close()\n"
    condition = "def f(s):\n  with s:\n    while g(s):\n      h(s)\n"
    found = {source: [loop.function for loop in escapes(source, "f")] for source in (first, condition)}
    if sys.version_info < (3, 13):
        assert found == {first: ["f"], condition: []}
    elif sys.version_info < (3, 14):
        assert found == {first: [], condition: ["f"]}


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="what is raised there is where it should be")
def test_no_loop_passes_by_its_block_where_that_matters() -> None:
    passed = [
        loop
        for path in sorted(_SOURCES.rglob("*.py"))
        if not (name := path.relative_to(_SOURCES).as_posix()).startswith(_ELSEWHERE)
        for loop in escapes(path.read_text(encoding="utf-8"), name)
        if loop.function not in _LOSE_NOTHING
    ]
    assert not passed
