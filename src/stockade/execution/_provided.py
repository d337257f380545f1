"""What guests are given: by their policy, of the secrets that it names, and by whoever runs them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stockade._later import called_later
from stockade.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockade.execution._inputs import Inputs
    from stockade.policy import Policy
    from stockade.secrets import GivenSecrets, Secret

__all__ = ["Provided"]

# Most sandboxes have no secrets, and load nothing for them.
_given_secrets = called_later("stockade.secrets", "GivenSecrets")


class Provided:
    """What guests under a policy are given.

    Args:
        policy: The policy.
        secrets: The secrets that there are, by their names; None where there are none.

    Raises:
        PolicyError: The policy names secrets, and does not have them looked for in what leaves.
        UsageError: Two secrets are in the same place.

    Attributes:
        secrets: The same.
        has_secrets: Whether guests are given secrets.
        has_variables: Whether they are given variables that their run does not say.
    """

    def __init__(self, policy: Policy, secrets: Mapping[str, Secret] | None) -> None:
        self.secrets = secrets
        self._environment = policy.environment
        self._given: GivenSecrets | None = _given_secrets(secrets, policy) if secrets else None
        self.has_secrets = bool(self._given)
        self.has_variables = self._environment.mode != "none" or bool(self._environment.set) or self.has_secrets

    def variables(self, inputs: Inputs) -> Mapping[str, str]:
        """Returns the whole environment of a guest.

        Args:
            inputs: What its run says.

        Raises:
            UsageError: It is none.
        """
        variables = inputs.variables()
        if not self.has_variables:
            return variables
        secret = {} if self._given is None else self._given.variables
        return {**self._environment.of(os.environ), **secret, **variables}

    def input(self, inputs: Inputs) -> bytes:
        """Returns the standard input of a guest, as far as it is there when it begins.

        Args:
            inputs: What its run says.

        Raises:
            UsageError: A secret is its standard input, and its run says another one.
        """
        secret = None if self._given is None else self._given.stdin
        if secret is None:
            # Most runs are given nothing.
            return inputs.input() if inputs.stdin else b""
        if inputs.stdin or inputs.served:
            raise UsageError("the standard input of this guest is a secret that its policy names: give it no other one")
        return secret
