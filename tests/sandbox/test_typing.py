"""What type checkers are told, as users run them: strict, over code of theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests._types import refusals

if TYPE_CHECKING:
    from pathlib import Path

RIGHT = """
import io, queue, sys
from pathlib import Path
from typing import assert_type
import stockade
from stockade import Module, Pipe, Policy, Report, Sandbox, Scheduler, Task
from stockade.typing import Value

module = Module.load("guest.wasm")
assert_type(stockade.call(module, "f", 1), Value)
assert_type(stockade.call(module, "f", 1, returns="text"), str)
assert_type(stockade.call("g.wat", "f", 1, returns="bytes", policy="strict"), bytes)
box = Sandbox(Path("p.toml"))
assert_type(box.run(b"(module)", policy=Path("p.toml")), Report)
assert_type(box.call(module, "f").value, Value)
assert_type(box.call(module, "f", returns="text").check().value, str | None)
with box.open(module) as session:
    assert_type(session.call("f").value, Value)
    assert_type(session.call("f", "x", returns="bytes").value, bytes | None)
    session.write_memory(0, "text")


async def scenario() -> None:
    async with Sandbox() as box, Scheduler(box) as scheduler:
        assert_type((await box.call_async(module, "f", returns="text")).value, str | None)
        assert_type(await scheduler.submit(Task(module="m.wasm", policy=Path("p.toml"))), Report)
        async with await box.open_async(module) as session:
            assert_type((await session.call("f", returns="bytes")).value, bytes | None)


def read(size: int) -> str:
    return ""


for source in ("text", b"bytes", bytearray(), io.StringIO(), io.BytesIO(), sys.stdin, sys.stdin.buffer, Pipe(), read):
    print(source)
box.run(module, stdin="text")
box.run(module, stdin=bytearray())
box.run(module, stdin=io.StringIO())
box.run(module, stdin=sys.stdin)
box.run(module, stdin=sys.stdin.buffer)
box.run(module, stdin=read)
queued: queue.Queue[str | None] = queue.Queue()
box.run(module, stdin=queued)
Pipe().write("text")
print(dict(box.run(module)), box.run(module).to_dict()["outcome"])


def reported(report: Report) -> str:
    return report.summary()


reported(box.call(module, "f", returns="text"))
"""

WRONG = {
    "box.run(module, stdin=5)": "arg-type",
    "box.run(module, policy={})": "arg-type",
    'box.call(module, "f", returns="txt")': "call-overload",
    "Pipe().write(5)": "arg-type",
    "Sandbox(None)": "arg-type",
    "stockade.Sandbag()": "attr-defined",
    'len(stockade.call(module, "f"))': "arg-type",
    'box.run(module, env={"A": None})': "dict-item",
}


@pytest.mark.slow
def test_users_code_is_checked_as_it_should_be(tmp_path: Path) -> None:
    """What is right passes without a cast, and what is wrong does not."""
    for line, kind in zip(refusals(RIGHT, WRONG, tmp_path), WRONG.values(), strict=True):
        assert line.endswith(f"[{kind}]")
