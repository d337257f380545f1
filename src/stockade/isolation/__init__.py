"""Where a run happens: in this process, or in a jailed one of its own."""

from __future__ import annotations

from stockade.isolation._backend import (
    BACKENDS,
    Backend,
    InProcess,
    Task,
    at_least,
    backend,
    best,
    strength,
    workers_of,
)

__all__ = ["BACKENDS", "Backend", "InProcess", "Task", "at_least", "backend", "best", "strength", "workers_of"]
