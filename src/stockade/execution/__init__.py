"""The one path that every run takes: load, plan (inspect, weave, compile), run, report."""

from stockade.execution._ground import Ground
from stockade.execution._inputs import Inputs, OnOutput, Stdin
from stockade.execution._module import Entry, Item, Module, Source
from stockade.execution._run import Guest, Watch
from stockade.execution._texts import Returns
from stockade.execution._values import Argument, Call, fit

__all__ = [
    "Argument",
    "Call",
    "Entry",
    "Ground",
    "Guest",
    "Inputs",
    "Item",
    "Module",
    "OnOutput",
    "Returns",
    "Source",
    "Stdin",
    "Watch",
    "fit",
]
