"""Text is UTF-8 wherever bytes are taken; what is neither is the caller's mistake, and told by its name."""

from __future__ import annotations

import asyncio
import io
import os
import queue
from typing import TYPE_CHECKING, Any

import pytest

from stockade import Pipe, Policy, Sandbox, UsageError
from tests.conftest import ECHO, wat

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("everywhere")


BOX = Sandbox(Policy().replace(fuel=None, wall_time=20.0))
TEXT = "añ€😀\n"
UTF8 = TEXT.encode()
MEMORY = '(module (memory (export "memory") 1) (func (export "f")))'
NO_BYTES = "give bytes, or text, which is passed on as UTF-8"


def pieces(*given: object) -> Callable[[int], Any]:
    """A function that hands these out, one after another, and then nothing."""
    left = iter(given)
    return lambda _: next(left, b"")


def filled(kind: type, *given: object) -> Any:
    """A queue with these in it, and then the end."""
    found = kind()
    for piece in (*given, None):
        found.put_nowait(piece)
    return found


@pytest.mark.parametrize(
    "source",
    [
        lambda: TEXT,
        lambda: UTF8,
        lambda: bytearray(UTF8),
        lambda: memoryview(b"x" + UTF8)[1:],
        lambda: memoryview(bytearray(UTF8)),
        lambda: io.StringIO(TEXT),
        lambda: io.BytesIO(UTF8),
        lambda: pieces(TEXT),
        lambda: pieces(*TEXT),
        lambda: pieces(bytearray(UTF8)),
        lambda: pieces(None, UTF8[:2], memoryview(UTF8)[2:]),
        lambda: filled(queue.Queue, *TEXT),
        lambda: filled(queue.Queue, UTF8[:2], bytearray(UTF8[2:])),
    ],
)
def test_stdin_is_utf8(source: Callable[[], Any]) -> None:
    """Whatever it comes from: the guest never sees how Python keeps text."""
    assert BOX.run(wat(ECHO), stdin=source()).stdout == UTF8


@pytest.mark.parametrize("source", [io.StringIO, lambda text: pieces(*(text[at : at + 60_000] for at in (0, 60_000)))])
def test_text_longer_in_bytes_than_in_characters_is_passed_whole(source: Callable[[str], Any]) -> None:
    """A function is asked for a number of bytes; so many characters may have four times as many."""
    text = "😀" * 120_000
    assert (
        Sandbox(Policy().replace(fuel=None, stdout=1 << 20)).run(wat(ECHO), stdin=source(text)).stdout == text.encode()
    )


def test_a_text_file_is_decoded_as_it_says(tmp_path: Path) -> None:
    """The guest reads UTF-8, whatever the file is written in; what was read of it before is not given again."""
    path = tmp_path / "text"
    path.write_text("first\nzweite ä\n", encoding="utf-16")
    with path.open(encoding="utf-16") as file:
        assert file.readline() == "first\n"
        assert BOX.run(wat(ECHO), stdin=file).stdout == "zweite ä\n".encode()
    with path.open("rb") as file:
        assert BOX.run(wat(ECHO), stdin=file).stdout == path.read_bytes()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_pipe_opened_as_text_is_decoded_and_does_not_hold_the_run_up(encoding: str) -> None:
    """It is read as far as it is there, also in the middle of a character, and its end is the end."""
    read, write = os.pipe()
    text = "ä€😀".encode(encoding)
    os.write(write, text[:3])

    def more(_: bytes) -> None:
        if rest:
            os.write(write, rest.pop())
            os.close(write)

    rest = [text[3:]]
    with open(read, encoding=encoding) as file:  # noqa: PTH123 - a descriptor
        assert BOX.run(wat(ECHO), stdin=file, on_stdout=more).stdout == "ä€😀".encode()


async def _each(*given: object) -> AsyncIterator[Any]:
    for piece in given:
        yield piece


def _answers(*given: object) -> Any:
    left = iter(given)

    async def answer(_: int) -> object:
        return next(left, "")

    return answer


@pytest.mark.parametrize(
    "source",
    [
        lambda: filled(asyncio.Queue, *TEXT),
        lambda: filled(asyncio.Queue, UTF8[:2], bytearray(UTF8[2:])),
        lambda: _each("", *TEXT, b""),
        lambda: _answers(TEXT[:2], TEXT[2:]),
        lambda: io.StringIO(TEXT),
        lambda: pieces(TEXT),
        lambda: TEXT,
    ],
)
def test_stdin_that_is_awaited_is_utf8(source: Callable[[], Any]) -> None:
    """The same on an event loop."""

    async def run() -> bytes:
        return (await BOX.run_async(wat(ECHO), stdin=source())).stdout

    assert asyncio.run(run()) == UTF8


NO_SOURCE = (
    "give bytes, text, a function, a stockade.Pipe, a queue.Queue or an open file; "
    "what only an event loop can wait for is for run_async"
)
NO_PIECE = "it must be bytes, text, or None where there are none yet"
NO_TEXT = "UTF-8 cannot encode, half of a surrogate pair: mend the text, or give bytes"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: 5, f"stdin is int: {NO_SOURCE}"),
        (lambda: pieces(5), f"the stdin callback returned int: {NO_PIECE}"),
        (lambda: filled(queue.Queue, 5), f"a piece in the stdin queue is int: {NO_BYTES}"),
        (lambda: "\ud800", f"stdin has a character at 0 that {NO_TEXT}"),
    ],
)
def test_what_is_no_input_is_the_callers_mistake(source: Callable[[], Any], message: str) -> None:
    """It is raised from `run`, and never told as something that the guest did."""
    with pytest.raises(UsageError) as caught:
        BOX.run(wat(ECHO), stdin=source())
    assert str(caught.value) == message


@pytest.mark.parametrize("source", [lambda: filled(asyncio.Queue, 5), lambda: _each([5]), lambda: _answers(5.0)])
def test_what_is_no_input_is_the_callers_mistake_on_a_loop_too(source: Callable[[], Any]) -> None:
    """It ended as "time limit reached", for whoever wrote it to the pipe had nobody to tell."""

    async def run() -> None:
        await BOX.run_async(wat(ECHO), stdin=source())

    with pytest.raises(UsageError, match=rf"^what stdin gave is (int|list|float): {NO_BYTES}$"):
        asyncio.run(run())


def test_a_pipe_takes_text_and_bytes_and_nothing_else() -> None:
    """`bytes(5)` is five zero bytes, which nobody meant."""
    pipe = Pipe()
    for piece in (TEXT, UTF8, bytearray(UTF8), memoryview(UTF8)):
        pipe.write(piece)
    for wrong, name in ((5, "int"), (None, "NoneType"), ([1], "list")):
        with pytest.raises(UsageError) as caught:
            pipe.write(wrong)  # type: ignore[arg-type]
        assert str(caught.value) == f"what is written to the pipe is {name}: {NO_BYTES}"
    pipe.close()
    assert BOX.run(wat(ECHO), stdin=pipe).stdout == 4 * UTF8


def test_the_memory_of_a_session_takes_text_and_bytes_and_nothing_else() -> None:
    """Addresses and sizes are whole numbers."""
    with BOX.open(wat(MEMORY)) as session:
        for piece in (TEXT, UTF8, bytearray(UTF8), memoryview(UTF8)):
            session.write_memory(8, bytes(64))
            session.write_memory(8, piece)
            assert session.read_memory(8, 64).rstrip(b"\0") == UTF8
        for call, message in (
            (lambda: session.write_memory(0, 5), f"data is int: {NO_BYTES}"),
            (lambda: session.write_memory("0", b""), "address is '0': it must be a whole number"),
            (lambda: session.read_memory(0, 1.5), "size is 1.5: it must be a whole number"),
            (lambda: session.read_memory(True, 1), "address is True: it must be a whole number"),
        ):
            with pytest.raises(UsageError) as caught:
                call()
            assert str(caught.value) == message


@pytest.mark.parametrize("text", [TEXT, UTF8, bytearray(UTF8), memoryview(UTF8)])
def test_texts_for_functions_are_utf8(text: Any) -> None:
    """Bytes of any kind take the place of an address and a length; sixteen of them are a v128."""
    module = wat("""
    (module (memory (export "memory") 1) (func (export "malloc") (param i32) (result i32) (i32.const 64))
      (func (export "same") (param i32 i32) (result i32 i32) (local.get 0) (local.get 1))
      (func (export "vector") (param v128) (result v128) (local.get 0)))
    """)
    assert BOX.call(module, "same", text, returns="text").value == TEXT
    assert BOX.call(module, "vector", memoryview(bytes(range(16)))).value == bytes(range(16))


def test_arguments_and_variables_are_utf8() -> None:
    """As everywhere; what came from the system goes back as it was."""
    odd = os.fsdecode(b"\xff")
    for given, name in (({"args": [5]}, "an argument"), ({"env": {"A": None}}, "the variable A")):
        with pytest.raises(UsageError, match=f"^{name} is (int|NoneType): {NO_BYTES}$"):
            BOX.run(wat(ECHO), **given)  # type: ignore[arg-type]
    assert BOX.run(wat(ECHO), args=[odd, b"\xff", bytearray(b"x")], env={"A": odd}).ok  # type: ignore[list-item]
