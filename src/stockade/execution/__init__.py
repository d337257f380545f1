"""The one path that every run takes: load, plan (inspect, weave, compile), run, report."""

from stockade.execution._features import titles
from stockade.execution._ground import Ground
from stockade.execution._inputs import Inputs, OnOutput, Stdin
from stockade.execution._inspection import Grant, Inspection
from stockade.execution._module import Entry, Item, Module, Source
from stockade.execution._programs import forget_programs
from stockade.execution._run import Guest, Watch
from stockade.execution._texts import Returns
from stockade.execution._values import Argument, Call, fit
from stockade.execution._weaving import Weaving, inspect_woven

__all__ = [
    "Argument",
    "Call",
    "Entry",
    "Grant",
    "Ground",
    "Guest",
    "Inputs",
    "Inspection",
    "Item",
    "Module",
    "OnOutput",
    "Returns",
    "Source",
    "Stdin",
    "Watch",
    "Weaving",
    "fit",
    "forget_programs",
    "inspect_woven",
    "titles",
]
