"""The one path that every run takes: load, plan (inspect, weave, compile), run, report."""

from stockade.execution._calibrate import Calibration, calibrate
from stockade.execution._crew import NORMAL_PRIORITY, Errand, crew
from stockade.execution._features import titles
from stockade.execution._ground import Ground
from stockade.execution._inputs import AsyncStdin, Inputs, OnOutput, OnOutputAsync, OnProgress, Stdin
from stockade.execution._inspection import Grant, Inspection
from stockade.execution._module import Entry, Item, Module, Source, load_module
from stockade.execution._pipe import Pipe
from stockade.execution._programs import forget_programs
from stockade.execution._run import Guest
from stockade.execution._steps import FOREVER, GO_ON, Steps, Watch, drive
from stockade.execution._texts import Returns
from stockade.execution._values import Argument, Call, fit
from stockade.execution._weaving import Weaving, inspect_woven

__all__ = [
    "FOREVER",
    "GO_ON",
    "NORMAL_PRIORITY",
    "Argument",
    "AsyncStdin",
    "Calibration",
    "Call",
    "Entry",
    "Errand",
    "Grant",
    "Ground",
    "Guest",
    "Inputs",
    "Inspection",
    "Item",
    "Module",
    "OnOutput",
    "OnOutputAsync",
    "OnProgress",
    "Pipe",
    "Returns",
    "Source",
    "Stdin",
    "Steps",
    "Watch",
    "Weaving",
    "calibrate",
    "crew",
    "drive",
    "fit",
    "forget_programs",
    "inspect_woven",
    "load_module",
    "titles",
]
