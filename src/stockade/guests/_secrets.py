"""Secrets that code is given: with its job, for its interpreter may have begun before, or as a copy of another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stockade.errors import UsageError
from stockade.secrets import GivenSecrets, Secret

if TYPE_CHECKING:
    from stockade.egress import Credential
    from stockade.guests._task import Task
    from stockade.policy import Policy

__all__ = ["given_under", "values_of", "with_secrets", "with_stdin"]


def given_under(policy: Policy, secrets: Mapping[str, str | bytes | Secret] | None) -> GivenSecrets | None:
    """Returns the secrets that code under a policy is given; None where there are none.

    Args:
        policy: The policy.
        secrets: All secrets, by their names.

    Raises:
        PolicyError: The policy does not have secrets looked for in what leaves.
        UsageError: Two of them are in the same place.
    """
    if not isinstance(secrets, Mapping):
        return None
    given = GivenSecrets({name: each for name, each in secrets.items() if isinstance(each, Secret)}, policy)
    return given or None


def values_of(
    secrets: Mapping[str, str | bytes | Secret] | None, credentials: Mapping[str, Credential] | None
) -> Mapping[str, str | bytes]:
    """Returns what is looked for in what leaves code.

    Args:
        secrets: All secrets, by their names.
        credentials: What the host adds to requests, by names.
    """
    if secrets is not None and not isinstance(secrets, Mapping):
        return secrets
    values: dict[str, str | bytes] = {name: each.secret() for name, each in (credentials or {}).items()}
    return values | {name: each.value() if isinstance(each, Secret) else each for name, each in (secrets or {}).items()}


def with_secrets(task: Task, given: GivenSecrets) -> Task:
    """Returns a piece of code with the secrets that it is given.

    Args:
        task: The piece.
        given: The secrets.

    Raises:
        UsageError: A secret is its standard input, and its run says another one.
    """
    return with_stdin(task, given)._replace(env={**given.variables, **(task.env or {})})


def with_stdin(task: Task, given: GivenSecrets) -> Task:
    """Returns a piece of code with the secret that is its standard input, where one is.

    Args:
        task: The piece.
        given: The secrets.

    Raises:
        UsageError: Its run says another one.
    """
    if given.stdin is None:
        return task
    if task.stdin:
        raise UsageError("the standard input of this code is a secret that its policy names: give it no other one")
    return task._replace(stdin=given.stdin)
