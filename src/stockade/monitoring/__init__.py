"""The runs of a process, told to `stockade top` by a socket in the user's state folder."""

from stockade.monitoring._client import Found, look
from stockade.monitoring._server import MonitorServer, serve_monitor
from stockade.monitoring._wire import LiveRun, ProcessRuns

__all__ = ["Found", "LiveRun", "MonitorServer", "ProcessRuns", "look", "serve_monitor"]
