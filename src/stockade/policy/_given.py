"""A policy as callers give it: itself, the name of a preset, or the path of a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, TypeAlias

from stockade.errors import UsageError
from stockade.policy._policy import Policy
from stockade.policy._units import shown

__all__ = ["PolicyLike", "check_policy", "policy_of"]

PolicyLike: TypeAlias = "Policy | str | os.PathLike[str]"
"""A policy; the name of a preset; or the path of a policy file, which as text ends in .toml, .yaml, .yml or .json, or
has a folder in it."""

_SUFFIXES: Final = (".toml", ".yaml", ".yml", ".json")


def policy_of(given: object, name: str = "policy") -> Policy:
    """Returns the policy that is meant.

    Args:
        given: What somebody gave.
        name: What it is called in messages.

    Raises:
        PolicyError: There is no such preset, or the file is no policy.
        UsageError: It is something else.
    """
    if isinstance(given, Policy):
        return given
    if isinstance(given, os.PathLike):
        return Policy.load(given)
    if isinstance(given, str):
        is_path = given.lower().endswith(_SUFFIXES) or os.sep in given or (os.altsep is not None and os.altsep in given)
        return Policy.load(Path(given)) if is_path else Policy.preset(given)
    hint = "; Policy.loads reads what a document says" if isinstance(given, dict) else ""
    raise UsageError(
        f"{name} is {shown(given)}: give a Policy, the name of a preset, or the path of a policy file{hint}"
    )


def check_policy(given: object, name: str) -> Policy:
    """Returns what was given, if it is a `Policy`.

    Raises:
        UsageError: It is not.
    """
    if not isinstance(given, Policy):
        raise UsageError(f"{name} is {shown(given)}: it must be a Policy, such as Policy.preset or Policy.load returns")
    return given
