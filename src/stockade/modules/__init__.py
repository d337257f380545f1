"""Modules as users hold them: loaded, told, shown with the guard woven in."""

from stockade.modules._inspection import Grant, Inspection
from stockade.modules._module import Entry, Item, Module, Source, load_module
from stockade.modules._weaving import Weaving, inspect_woven

__all__ = ["Entry", "Grant", "Inspection", "Item", "Module", "Source", "Weaving", "inspect_woven", "load_module"]
