"""The one path that every run takes: load, plan (inspect, weave, compile), run, report."""

from stockade.execution._features import titles
from stockade.execution._ground import Ground
from stockade.execution._inputs import Inputs, OnOutput, Stdin
from stockade.execution._inspection import Grant, Inspection
from stockade.execution._module import Entry, Item, Module, Source
from stockade.execution._run import Guest, Watch
from stockade.execution._values import fit_numbers
from stockade.execution._weaving import Weaving, inspect_woven

__all__ = [
    "Entry",
    "Grant",
    "Ground",
    "Guest",
    "Inputs",
    "Inspection",
    "Item",
    "Module",
    "OnOutput",
    "Source",
    "Stdin",
    "Watch",
    "Weaving",
    "fit_numbers",
    "inspect_woven",
    "titles",
]
