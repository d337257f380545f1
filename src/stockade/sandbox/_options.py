"""What a sandbox is given beside its policy, checked and made ready.

Most sandboxes have none of it, and load nothing for it: what makes it ready is imported where it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stockade.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stockade.audit import AuditLog
    from stockade.egress import Client, Credential
    from stockade.execution import Monitoring
    from stockade.gate import SecretFinder
    from stockade.policy import Policy
    from stockade.report import Trace
    from stockade.sandbox._auditing import Auditor
    from stockade.secrets import Secret

__all__ = [
    "auditor_of",
    "checked_monitoring",
    "checked_trace",
    "client_under",
    "finder_of",
    "functions_of_http",
    "secrets_given",
]


def checked_trace(trace: Trace | bool | None) -> Trace | None:
    """Returns what of the calls of guests is traced; None where nothing is."""
    if not trace:
        return None
    from stockade.execution import trace_of

    return trace_of(trace)


def functions_of_http() -> Iterable[tuple[str, Callable[..., object]]]:
    """Returns what guests import to make requests."""
    from stockade.egress import http_functions

    return http_functions()


def client_under(policy: Policy, credentials: Mapping[str, Credential] | None) -> Client | None:
    """Returns what makes requests; None where the policy permits none."""
    if policy.network.mode == "none" and not credentials:
        return None
    from stockade.egress import Client, credentials_under

    return Client(credentials=credentials_under(policy, credentials))


def finder_of(
    credentials: Mapping[str, Credential] | None, secrets: Mapping[str, str | bytes | Secret] | None
) -> SecretFinder | None:
    """Returns what looks for registered secrets, and for the values of credentials; None where there are neither."""
    if not credentials and not secrets:
        return None
    from stockade.gate import SecretFinder, checked_secrets
    from stockade.secrets import Secret

    if secrets and not isinstance(secrets, Mapping):
        raise UsageError(
            f"secrets is {type(secrets).__name__}: it must have each under its name, as in "
            'secrets={"database": secret}'
        )
    values = {name: given.value() if isinstance(given, Secret) else given for name, given in (secrets or {}).items()}
    return SecretFinder(
        {name: credential.secret().encode() for name, credential in (credentials or {}).items()}
        | checked_secrets(values)
    )


def secrets_given(secrets: Mapping[str, str | bytes | Secret] | None) -> Mapping[str, Secret] | None:
    """Returns the secrets that guests may be given; None where there are none."""
    if not secrets:
        return None
    from stockade.secrets import Secret

    return {name: secret for name, secret in secrets.items() if isinstance(secret, Secret)}


def checked_monitoring(monitoring: Monitoring | None) -> Monitoring | None:
    """Returns what is watched of runs; None where nothing is."""
    if monitoring is None:
        return None
    from stockade.execution import check_monitoring

    return check_monitoring(monitoring)


def auditor_of(audit: AuditLog | None, isolation: str) -> Auditor | None:
    """Returns what tells a log of all that happens; None where there is no log."""
    if audit is None:
        return None
    from stockade.sandbox._auditing import Auditor

    return Auditor(audit, isolation)
