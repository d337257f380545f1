"""Where code of a language runs: kept for the next run, with an interpreter ahead where some are to wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from stockade._text import printable
from stockade.report import PolicyInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.execution import ReadyPool
    from stockade.guests._folder import PrivateFolder
    from stockade.guests._tools import Toolbox
    from stockade.policy import Policy
    from stockade.sandbox import Sandbox

__all__ = ["Place", "at_hand", "told_of"]


class Place(NamedTuple):
    """Where a run happens: a sandbox that grants a folder."""

    policy: Policy
    told: PolicyInfo
    box: Sandbox
    folder: PrivateFolder
    toolbox: Toolbox
    folders: tuple[str, ...]
    """What an interpreter knows of the folders that are granted there."""
    ahead: ReadyPool[Any] | None
    """Has another interpreter begun there, ahead of the next run; None where none are."""

    def close(self) -> None:
        self.box.close()
        self.folder.close()


def at_hand(places: Sequence[Place], policy: Policy) -> int | None:
    """Returns which place is best for a run under a policy; None where there is none.

    The one that was used last is still in the processor's caches, but its interpreter may be yet to come. Where those
    of all are, the one that is furthest on is taken.
    """
    found, most = None, -1
    for at in range(len(places) - 1, -1, -1):
        place = places[at]
        if place.policy != policy:
            continue
        if place.ahead is None or place.ahead.ready:
            return at
        if (steps_taken := place.ahead.steps_taken) >= most:
            found, most = at, steps_taken
    return found


def told_of(policy: Policy) -> PolicyInfo:
    """Returns what reports say of a policy: of the caller's, not of the one with our folders."""
    return PolicyInfo(policy.digest, printable(policy.name))
