"""Where runs happen, as far as this room has to know: what lives elsewhere is not made here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.errors import IsolationError

if TYPE_CHECKING:
    from stockade.policy import Isolation, Policy

__all__ = ["check_lives_here", "compiled_as"]


def check_lives_here(isolation: Isolation) -> None:
    """Checks that guests live in this process.

    Args:
        isolation: Where runs happen.

    Raises:
        IsolationError: They do not.
    """
    if isolation != "inprocess":
        raise IsolationError(
            f'guests with isolation="{isolation}" live in processes of their own, and are not made here'
        )


def compiled_as(policy: Policy, isolation: Isolation) -> Policy:
    """Returns the policy under which modules are made ready: what runs elsewhere is not even compiled here.

    Args:
        policy: The policy under which they run.
        isolation: Where they run.
    """
    return policy if isolation == "inprocess" else policy.replace(compile_process="always")
