"""Names that rooms load when they are first asked for: each is there, and is what it says."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import pytest

import stockade
from stockade._later import called_later, found_later

ROOMS = [f"stockade.{module.name}" for module in pkgutil.iter_modules(stockade.__path__) if module.ispkg]


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_of_a_room_is_there(room: str) -> None:
    """Also those that are loaded later, from the module that type checkers find them in."""
    module = importlib.import_module(room)

    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None


def test_what_is_found_later_is_kept() -> None:
    """It is looked for once."""
    module = importlib.import_module("stockade.wasm")
    vars(module).pop("Scan", None)

    assert module.Scan is sys.modules["stockade.wasm._scan"].Scan
    assert vars(module)["Scan"] is module.Scan


def test_a_name_that_is_not_there_is_told() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match=r"module 'stockade\.wasm' has no attribute 'nothing'"):
        found_later("stockade.wasm", {"_scan": ("Scan",)})("nothing")


def test_what_is_called_later_passes_all_on() -> None:
    """Arguments, the result, and errors."""
    later = called_later("json", "dumps")

    assert later.__name__ == "dumps"
    assert later({"b": 1, "a": 2}, sort_keys=True) == '{"a": 2, "b": 1}'
    with pytest.raises(TypeError):
        later(object())
