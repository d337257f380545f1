"""Backends: found by name or by strength, which counts walls that were found to stand."""

from __future__ import annotations

import pytest

from stockade import IsolationError, Sandbox
from stockade.isolation import BACKENDS, at_least, backend, best, strength
from stockade.isolation import _process as workers
from tests.conftest import HELLO, wat


@pytest.mark.parametrize("name", BACKENDS)
def test_each_is_in_order(name: str) -> None:
    """It is available, and a command that does nothing comes to its end in it."""
    found = backend(name)  # type: ignore[arg-type]

    assert found.name == name
    assert found.available() == ""
    assert (found.check() == frozenset()) is (name == "inprocess")


@pytest.mark.parametrize("name", BACKENDS)
def test_closing_is_harmless_in_any_state(name: str) -> None:
    """Before the first run, twice, and before the next one."""
    found = backend(name)  # type: ignore[arg-type]
    found.close()
    found.close()

    assert Sandbox(isolation=found.name).run(wat(HELLO)).ok
    found.close()
    assert Sandbox(isolation=found.name).run(wat(HELLO)).ok


def test_an_unknown_name_is_refused() -> None:
    """The two that there are are named."""
    with pytest.raises(IsolationError, match='use "inprocess" or "process"'):
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


def test_the_best_is_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there can be no workers, runs share this process; and nothing is told of walls."""
    assert best().name == "process"

    monkeypatch.setattr(workers, "_unavailable", lambda: "no Linux")

    assert best().name == "inprocess"
    with pytest.raises(IsolationError, match='no Linux: use isolation="inprocess"'):
        Sandbox(isolation="process").run(wat(HELLO))
