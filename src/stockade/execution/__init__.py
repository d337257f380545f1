"""The one path that every run takes: load, plan (inspect, weave, compile), run, report."""

from stockade.execution._module import Entry, Item, Module
from stockade.execution._mounts import Grants
from stockade.execution._plan import Plan, make_plan
from stockade.execution._run import Guest, Watch
from stockade.execution._streams import Streams

__all__ = ["Entry", "Grants", "Guest", "Item", "Module", "Plan", "Streams", "Watch", "make_plan"]
