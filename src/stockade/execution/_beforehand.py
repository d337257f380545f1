"""What is done with guests before their run, in a process that waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade._later import called_later

if TYPE_CHECKING:
    from stockade.execution._guest import LiveGuest

__all__ = ["hold_still", "make_stack"]

_hold_still, _make_stack = (called_later("stockade.engine", name) for name in ("hold_still", "make_stack"))


def hold_still(guest: LiveGuest) -> None:
    """Sees to it that nothing of a guest ever runs: its calls are over when they begin.

    Args:
        guest: The guest, of which nothing has run.
    """
    instance = guest._instance  # noqa: SLF001 - no other guest needs a way to it
    if instance is not None:
        _hold_still(instance)


def make_stack(guest: LiveGuest) -> None:
    """Has the stack of a guest made now, and not in its first call.

    Args:
        guest: The guest, of which nothing has run.
    """
    instance = guest._instance  # noqa: SLF001 - likewise
    if instance is not None and not guest.ended:
        _make_stack(instance)
