"""Where a run happens: in this process, or in a jailed one of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade._later import called_later
from stockade.isolation._backend import Task

if TYPE_CHECKING:
    from stockade.isolation._process import run_in_worker
else:
    run_in_worker = called_later("stockade.isolation._process", "run_in_worker")

__all__ = ["Task", "run_in_worker"]
