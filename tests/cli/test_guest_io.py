"""Signals that come as the command begins, or ceases, to look after them itself."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from stockade.cli._guest_io import Watcher
from tests._processes import until

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBERS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals that came to handlers that were there before."""
    found: list[int] = []
    before = {number: signal.signal(number, lambda number, _: found.append(number)) for number in _NUMBERS}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", _NUMBERS)
def test_a_signal_that_comes_with_its_handler_is_not_lost(
    number: signal.Signals, heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes as soon as there is a handler for it, before anything else is there."""
    real = signal.signal

    def installs(which: int, handler: Any) -> Any:
        before = real(which, handler)
        if which == number:
            monkeypatch.setattr(signal, "signal", real)
            signal.raise_signal(which)
        return before

    monkeypatch.setattr(signal, "signal", installs)
    with Watcher() as watcher:
        assert until(lambda: watcher.signal == number)
    assert not heard


@pytest.mark.parametrize("number", _NUMBERS)
def test_a_signal_that_comes_as_its_handler_goes_is_not_lost(
    number: signal.Signals, heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when the descriptor is gone that Python writes signals to."""
    real = signal.set_wakeup_fd

    def sets(descriptor: int, **options: bool) -> int:
        before = real(descriptor, **options)
        if descriptor < 0:
            signal.raise_signal(number)
        return before

    with Watcher() as watcher:
        monkeypatch.setattr(signal, "set_wakeup_fd", sets)
    assert (watcher.signal, heard) == (0, [number])
