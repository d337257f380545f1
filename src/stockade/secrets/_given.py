"""Which of the secrets that are there a guest is given: those that its policy names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stockade.errors import PolicyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockade.policy import Policy
    from stockade.secrets._secret import Secret

__all__ = ["CAPABILITY", "GivenSecrets"]

CAPABILITY: Final = "secrets"
"""The custom capability of a policy that names what guests may be given."""


class GivenSecrets:
    """What guests under a policy are given.

    Args:
        secrets: Those that are there, by their names.
        policy: The policy.

    Raises:
        PolicyError: The policy does not have secrets looked for in what leaves.
        UsageError: Two of them are in the same place.

    Attributes:
        variables: Variables of their environment.
        stdin: Their standard input; None where it is none of them.
    """

    def __init__(self, secrets: Mapping[str, Secret], policy: Policy) -> None:
        self.variables: dict[str, str] = {}
        self.stdin: bytes | None = None
        for name, secret in secrets.items():
            if not policy.grants(CAPABILITY, name):
                continue
            if secret.env is not None:
                if secret.env in self.variables:
                    raise UsageError(f"the secret {name} is in the same variable as another one, {secret.env}")
                self.variables[secret.env] = secret.value().decode()
            elif self.stdin is not None:
                raise UsageError(f"the secret {name} is stdin, as another one is")
            else:
                self.stdin = secret.value()
        if self and policy.gate.registered == "allow":
            raise PolicyError(
                'gate.registered is "allow", so that a guest that is given a secret could tell it: have the gate '
                "redact them, or name none in custom.secrets"
            )

    def __bool__(self) -> bool:
        return bool(self.variables) or self.stdin is not None
