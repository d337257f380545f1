"""What is given back when its owner is dropped: it is, and what the handler of a signal raises meanwhile is not lost.

Holds P-RUN-2.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest

from stockade._dropped import OwnedDescriptor, when_dropped
from stockade._locks import new_lock
from stockade.engine._store import Owner
from tests._interrupting import after_a_signal, interrupted, raised_in

if TYPE_CHECKING:
    from pathlib import Path


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_a_descriptor_is_closed_once_when_its_owner_is_dropped_or_closed(tmp_path: Path) -> None:
    owner = OwnedDescriptor(os.open, tmp_path, os.O_RDONLY)
    number = owner.number
    assert _is_open(number)
    owner.close()
    assert not _is_open(number)
    again = OwnedDescriptor.of(os.dup(0))
    assert again.number == number, "the test is of no use where another descriptor was free"
    owner.close()
    del owner
    assert _is_open(number)
    del again
    assert not _is_open(number)


def test_what_cannot_be_opened_has_nothing_to_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lost.append)
    with pytest.raises(FileNotFoundError):
        OwnedDescriptor(os.open, tmp_path / "missing", os.O_RDONLY)
    gc.collect()
    assert not lost


def test_a_signal_while_it_is_dropped_loses_neither_the_descriptor_nor_what_its_handler_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The attack: Ctrl-C, in the middle of what nobody has called."""
    held = [OwnedDescriptor.of(os.dup(0))]
    number = held[0].number
    raised_in(held.clear, monkeypatch)
    assert not _is_open(number)


def test_a_signal_while_it_is_opened_loses_no_descriptor() -> None:
    number = os.dup(0)
    os.close(number)
    with interrupted():
        OwnedDescriptor(after_a_signal(os.dup, 0))
        # Python looks for signals behind a call in C.
        len(())
    assert not _is_open(number)


def test_in_a_circle_of_references_it_is_closed_too() -> None:
    class Circle:
        pass

    circle = Circle()
    circle.itself, circle.owner = circle, OwnedDescriptor.of(os.dup(0))  # type: ignore[attr-defined]
    number = circle.owner.number  # type: ignore[attr-defined]
    del circle
    gc.collect()
    assert not _is_open(number)


def test_calls_are_made_once_in_order() -> None:
    made: list[int] = []
    call = when_dropped(map(made.append, (1, 2, 3)))
    call()
    call()
    assert made == [1, 2, 3]


def test_a_signal_while_a_lock_is_dropped_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [new_lock()]
    raised_in(held.clear, monkeypatch)


def test_what_was_not_made_is_dropped_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that comes while what keeps a store is made: there is nothing to free, and nothing is said of that."""
    told: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda problem: told.append(problem.exc_value))

    Owner.__new__(Owner)

    assert told == []
