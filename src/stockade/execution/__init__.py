"""The one path that every run takes: load, plan (inspect, weave, compile), run, report."""

from stockade.execution._module import Entry, Item, Module
from stockade.execution._mounts import check_mounts
from stockade.execution._plan import Plan, make_plan
from stockade.execution._run import Guest, Watch

__all__ = ["Entry", "Guest", "Item", "Module", "Plan", "Watch", "check_mounts", "make_plan"]
