"""Who has a session."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import stockade
from stockade import Sandbox, Session
from stockade.errors import UsageError
from stockade.runner import RunControl
from stockade.sandbox import Occupancy
from tests._signals import Signal
from tests.conftest import wat

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

pytestmark = pytest.mark.usefixtures("everywhere")


_HERE = str(Path(stockade.__file__).parent)
_DEAF = frozenset({"Owner.__del__", "Store.free", "delete_aside"})
"""Functions that begin without looking for signals."""

_GUEST = wat('(module (memory (export "memory") 1) (func (export "f")))')


def test_whoever_comes_second_is_told_so() -> None:
    occupancy, first, second = Occupancy(), object(), object()
    occupancy.take(first)
    with pytest.raises(UsageError, match=r"^the session is in use by another thread: give each thread"):
        occupancy.take(second)
    with pytest.raises(UsageError, match=r"^not now$"):
        occupancy.take(second, otherwise="not now")
    assert occupancy.holder is first
    occupancy.holder = None
    occupancy.take(second)
    assert occupancy.holder is second


def test_a_check_that_raises_leaves_it_free() -> None:
    def check() -> None:
        raise UsageError("closed")

    occupancy = Occupancy()
    with pytest.raises(UsageError, match=r"^closed$"):
        occupancy.take(object(), check)
    assert occupancy.holder is None


def test_a_cancellation_is_for_whoever_has_it() -> None:
    occupancy, control, holder = Occupancy(), RunControl(), object()
    occupancy.cancel(lambda: control)
    assert not control.cancelled
    occupancy.take(holder, begin=lambda: None)
    occupancy.cancel(lambda: control)
    assert control.cancelled


def test_what_is_over_is_told_before_who_has_it() -> None:
    def check() -> None:
        raise UsageError("closed")

    occupancy, begun = Occupancy(), list[str]()
    occupancy.take(object())
    with pytest.raises(UsageError, match=r"^closed$"):
        occupancy.take(object(), check, lambda: begun.append("begun"))
    with pytest.raises(UsageError, match=r"in use by another thread"):
        occupancy.take(object(), lambda: None, lambda: begun.append("begun"))
    assert not begun


def interrupted(do: Callable[[], object], at: int) -> bool:
    """Does something, and raises where the function of that number begins, as a handler may; whether there is one."""
    begun = 0

    def begins(frame: FrameType, event: str, _: object) -> Any:
        nonlocal begun
        code = frame.f_code
        # A tracing function cannot raise where a generator goes on.
        if code.co_filename.startswith(_HERE) and code.co_qualname not in _DEAF and not code.co_flags & 0x20:
            begun += 1
            if begun == at:
                raise Signal

    before = sys.gettrace()
    sys.settrace(begins)
    try:
        do()
    finally:
        sys.settrace(before)
    return begun >= at


def forked(session: Session) -> None:
    session.fork().close()


@pytest.mark.parametrize(
    "do",
    [
        lambda session: session.call("f"),
        Session.snapshot,
        forked,
        lambda session: session.read_memory(0, 1),
        Session.close,
    ],
    ids=["call", "snapshot", "fork", "read_memory", "close"],
)
def test_nobody_has_a_session_wherever_the_handler_of_a_signal_has_raised(
    do: Callable[[Session], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: it comes where the session is about to be left, which then nobody could ever close."""
    # Of a session that is dropped half made.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    box = Sandbox()
    at, there_is_one = 0, True
    while there_is_one:
        at += 1
        session = box.open(_GUEST)
        try:
            there_is_one = interrupted(lambda session=session: do(session), at)  # type: ignore[misc]
        except Signal:
            # While the exception is there, and all frames that it has come through.
            assert session._occupancy.holder is None
        session.close()
    assert at > 3
