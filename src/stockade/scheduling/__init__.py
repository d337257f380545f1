"""Many runs at once: so many and no more, in fair turns, with results as they come; and sessions kept ready."""

from stockade.scheduling._job import Job
from stockade.scheduling._pool import SessionPool
from stockade.scheduling._scheduler import Scheduler
from stockade.scheduling._task import Quota, Task, TaskResult

__all__ = ["Job", "Quota", "Scheduler", "SessionPool", "Task", "TaskResult"]
