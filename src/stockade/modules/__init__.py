"""Modules as users hold them: loaded, told, shown with the guard woven in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade._later import called_later, found_later
from stockade.modules._module import Entry, Item, Module, Source, load_module

if TYPE_CHECKING:
    from stockade.modules._inspection import Grant, Inspection
    from stockade.modules._weaving import Weaving, inspect_woven
else:
    inspect_woven = called_later("stockade.modules._weaving", "inspect_woven")
    __getattr__ = found_later(
        __name__,
        {
            "_inspection": ("Grant", "Inspection"),
            "_weaving": ("Weaving",),
        },
    )

__all__ = ["Entry", "Grant", "Inspection", "Item", "Module", "Source", "Weaving", "inspect_woven", "load_module"]
