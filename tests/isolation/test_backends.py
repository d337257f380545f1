"""Backends: found by name or by strength, which counts walls that were found to stand. Holds P-JAIL-8."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from stockade import IsolationError, Sandbox, UsageError
from stockade.isolation import BACKENDS, _hub, at_least, backend, best, strength
from stockade.isolation import _process as workers
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from stockade.isolation import Backend


def named(name: str) -> Backend:
    """A backend, where the machine has it."""
    found = backend(name)  # type: ignore[arg-type]
    if name == "bubblewrap":
        if reason := found.available():
            pytest.skip(reason)
        try:
            found.check()
        except IsolationError as problem:
            pytest.skip(str(problem))
    return found


@pytest.mark.parametrize("name", BACKENDS)
def test_each_is_in_order(name: str) -> None:
    """It is available, and a command that does nothing comes to its end in it."""
    found = named(name)

    assert found.name == name
    assert found.available() == ""
    assert (found.check() == frozenset()) is (name == "inprocess")


@pytest.mark.parametrize("name", BACKENDS)
def test_closing_is_harmless_in_any_state(name: str) -> None:
    """Before the first run, twice, and before the next one."""
    found = named(name)
    found.close()
    found.close()

    assert Sandbox(isolation=found.name).run(wat(HELLO)).ok
    found.close()
    assert Sandbox(isolation=found.name).run(wat(HELLO)).ok


def test_an_unknown_name_is_refused() -> None:
    """Those that there are are named."""
    with pytest.raises(IsolationError, match='use "inprocess", "process" or "bubblewrap"'):
        backend("none")  # type: ignore[arg-type]


def test_strength_counts_walls_that_stand() -> None:
    """None in this process; at least the filter of system calls around a worker."""
    assert strength(backend("inprocess")) == 0
    assert strength(backend("process")) >= 7


def test_the_weakest_that_is_strong_enough() -> None:
    """Or an error that says what each gives."""
    assert at_least(0).name == "inprocess"
    assert at_least(1).name == "process"
    with pytest.raises(IsolationError, match=r"no isolation of strength 21 is available here \(inprocess: gives 0;"):
        at_least(21)
    with pytest.raises(UsageError) as problem:
        at_least("process")  # type: ignore[arg-type]
    assert str(problem.value) == "least is 'process': it must be a number from 0 to 20, and backend() takes a name"


def test_the_best_is_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there can be no workers, runs share this process; and nothing is told of walls."""
    assert best().name == "process"

    monkeypatch.setattr(workers, "_unavailable", lambda: "no Linux")

    assert best().name == "inprocess"
    with pytest.raises(IsolationError, match='no Linux: use isolation="inprocess"'):
        Sandbox(isolation="process").run(wat(HELLO))


def test_bubblewrap_is_there_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no such command, nothing runs elsewhere instead."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)

    assert backend("bubblewrap").available().startswith("there is no bwrap in /usr/bin, ")
    with pytest.raises(IsolationError, match='install bubblewrap: use isolation="inprocess"'):
        Sandbox(isolation="bubblewrap").run(wat(HELLO))
    with pytest.raises(IsolationError, match=r"bubblewrap: there is no bwrap in .*: install bubblewrap\)"):
        at_least(21)


def test_each_has_workers_of_its_own() -> None:
    """To close one leaves the other's."""
    other = named("bubblewrap")
    box, boxed = Sandbox(isolation="process"), Sandbox(isolation="bubblewrap")
    assert box.run(wat(HELLO)).stdout == boxed.run(wat(HELLO)).stdout == b"hello world\n"
    mine = _hub.hub_of("process")._server
    assert mine is not None
    assert mine is not _hub.hub_of("bubblewrap")._server

    other.close()

    assert _hub.hub_of("process")._server is mine
    assert boxed.run(wat(HELLO)).ok


@pytest.mark.parametrize("name", ["inprocess", "process"])
def test_what_does_not_work_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even a command that does nothing comes to its end, a backend is neither healthy nor chosen."""
    found = named(name)
    monkeypatch.setattr("stockade.isolation._backend._TINY", wat('(module (func (export "_start") unreachable))'))

    with pytest.raises(IsolationError, match=f'^isolation "{name}" does not work here: trapped'):
        found.check()
    with pytest.raises(IsolationError, match=rf'{name}: isolation "{name}" does not work here: trapped'):
        at_least(0)
    assert best().name == "inprocess"

    monkeypatch.undo()
    found.check()
