"""Where the runs of a policy happen: there, or behind a stronger wall."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

from stockade.errors import IsolationError
from stockade.policy._units import shown

if TYPE_CHECKING:
    from stockade.policy._policy import Policy

__all__ = ["ISOLATIONS", "Isolation", "isolation_of", "stronger"]

Isolation: TypeAlias = Literal["inprocess", "process", "bubblewrap"]
"""Where runs happen: in this process, or each in a jailed one of its own, which may be made in bubblewrap."""

ISOLATIONS: Final[tuple[Isolation, ...]] = ("inprocess", "process", "bubblewrap")
"""All there are, the weakest first."""

_Isolation = TypeVar("_Isolation", bound=Isolation)


def stronger(first: _Isolation, second: _Isolation) -> _Isolation:
    """Returns the stronger of two."""
    return max(first, second, key=ISOLATIONS.index)


def isolation_of(policy: Policy, asked: Isolation | None) -> Isolation:
    """Returns where runs under a policy happen.

    Args:
        policy: The policy.
        asked: Where the caller wants them to; None for where the policy does.

    Raises:
        IsolationError: There is no such isolation, or the policy demands a stronger one.
    """
    if asked is None:
        return policy.isolation
    if asked not in ISOLATIONS:
        raise IsolationError(f'there is no isolation {shown(asked)}: use "inprocess", "process" or "bubblewrap"')
    if stronger(asked, policy.isolation) != asked:
        raise IsolationError(
            f'the policy {shown(policy.name)} demands isolation "{policy.isolation}", and "{asked}" is weaker: '
            f'leave isolation out, or give "{policy.isolation}"'
        )
    return asked
