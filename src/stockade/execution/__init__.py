"""The one path that every run takes: load, plan (inspect, weave, compile), run, report."""

from stockade.execution._ground import Ground
from stockade.execution._inputs import Inputs, OnOutput, Stdin
from stockade.execution._module import Entry, Item, Module, Source
from stockade.execution._run import Guest, Watch
from stockade.execution._values import fit_numbers

__all__ = [
    "Entry",
    "Ground",
    "Guest",
    "Inputs",
    "Item",
    "Module",
    "OnOutput",
    "Source",
    "Stdin",
    "Watch",
    "fit_numbers",
]
