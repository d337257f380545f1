"""The option that names a policy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stockade.cli._complete import offer
from stockade.policy import PRESETS, Policy

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["PolicyName", "is_policy_file", "policy_option"]

_SUFFIXES = (".toml", ".yaml", ".yml", ".json")


class PolicyName(click.ParamType):  # type: ignore[type-arg]
    """A policy file, or the name of a preset."""

    name = "FILE|PRESET"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Policy:  # noqa: ARG002
        """Loads the policy."""
        if isinstance(value, Policy):
            return value
        return Policy.load(value) if is_policy_file(value) else Policy.preset(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Offers presets, and policy files."""
        return offer(incomplete, _SUFFIXES, PRESETS)


def is_policy_file(name: str) -> bool:
    """Whether a name is that of a policy file, and not of a preset."""
    return os.sep in name or name.endswith(_SUFFIXES) or Path(name).is_file()


def _one(ctx: click.Context, param: click.Parameter, found: tuple[Policy, ...]) -> Policy:  # noqa: ARG001
    if len(found) > 1:
        raise click.UsageError("--policy is given more than once: there is one policy for a run")
    return found[0]


policy_option = click.option(
    "--policy",
    "base",
    type=PolicyName(),
    multiple=True,
    default=("default",),
    callback=_one,
    help="The policy: a file, or the name of a preset.  [default: default]",
)
"""An option for one policy, which is given to the command as `base`."""
