"""What of a policy this release cannot enforce. It is refused when the policy is used, never passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.errors import PolicyError
from stockade.policy._fields import fields_of
from stockade.policy._rights import Features
from stockade.policy._units import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stockade.policy._fields import Part
    from stockade.policy._policy import Policy

__all__ = ["check_enforceable", "runnable_features", "unenforceable", "unenforceable_in"]

_NOT_YET = {
    "process.mode": "none",
}
"""Fields that can only be used at one value yet."""


def unenforceable(policy: Policy) -> tuple[str, ...]:
    """Returns the paths of the fields that ask for what cannot be enforced yet.

    Args:
        policy: The policy.
    """
    return tuple(path for path, only in _NOT_YET.items() if _at(policy, path) != only)


def check_enforceable(policy: Policy) -> None:
    """Checks that all of a policy can be enforced.

    Raises:
        PolicyError: Something cannot.
    """
    if unenforceable(policy):
        raise PolicyError.several(tuple(unenforceable_in(policy.to_document())))


def unenforceable_in(document: Mapping[str, object]) -> Iterator[str]:
    """Tells what of a document cannot be enforced yet, a sentence for each; it may have mistakes elsewhere.

    Args:
        document: What a policy document says.
    """
    from stockade.policy._policy import Policy

    for path, only in _NOT_YET.items():
        section, _, name = path.partition(".")
        table = document.get(section)
        if not isinstance(table, dict) or name not in table:
            continue
        part: Part = getattr(Policy(), section)
        kind = fields_of(type(part))[name].kind
        try:
            value = kind.settle(path, table[name])
        except PolicyError:
            continue  # That is told as the mistake that it is.
        if value != only:
            yield (
                f"{path} is {shown(kind.write(value))}, which this release cannot enforce yet: "
                f"set it to {_word(kind.write(only))}"
            )


def runnable_features() -> frozenset[str]:
    """Returns the names of the WebAssembly proposals that a policy can let guests use."""
    return frozenset(name for name in fields_of(Features) if f"features.{name}" not in _NOT_YET)


def _at(policy: Policy, path: str) -> object:
    section, _, name = path.partition(".")
    value: object = getattr(getattr(policy, section), name)
    return value


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
