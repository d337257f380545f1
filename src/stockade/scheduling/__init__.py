"""Many runs at once: so many and no more, in fair turns, with results as they come; and sessions kept ready."""

from stockade.scheduling._handle import TaskHandle
from stockade.scheduling._pool import SessionPool
from stockade.scheduling._scheduler import Scheduler
from stockade.scheduling._task import Quota, Task, TaskResult

__all__ = ["Quota", "Scheduler", "SessionPool", "Task", "TaskHandle", "TaskResult"]
