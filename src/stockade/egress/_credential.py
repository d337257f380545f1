"""Secrets that the host adds to requests, and that no guest comes to see."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Final, Self

from stockade._text import printable
from stockade.errors import PolicyError, UsageError
from stockade.gate import SecretFinder
from stockade.policy import HostRule, is_loopback
from stockade.secrets import NeverWritten, read_private, read_variable

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from stockade.egress._url import Target
    from stockade.policy import Policy

__all__ = ["Credential", "Credentials", "credentials_under", "placeholder_of"]

_LEAST: Final = 8
"""What is shorter would be found in answers where it is none."""

_MOST: Final = 16 << 10
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_VALUE: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_WITH_PORT: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:]+):(?P<port>[0-9]{1,5})")
_OURS: Final = frozenset({"host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "expect"})


def _fits(text: object, pattern: re.Pattern[str]) -> bool:
    return isinstance(text, str) and pattern.fullmatch(text) is not None


class Credential(NeverWritten):
    """A secret that the host adds to requests of guests, for the hosts that it is for, and over TLS only.

    Guests know the name under which it is given, and never the value: what they write into the header is replaced, and
    where an answer has the value, they see a placeholder. It is shown by no `repr`, and cannot be pickled.

    >>> import stockade
    >>> stockade.Credential("not-a-real-key", hosts=["api.example.com"], format="Bearer {}")
    Credential(hosts=['api.example.com'], header='Authorization')

    Args:
        value: The secret, of 8 characters at least.
        hosts: For which hosts it is: names, addresses, or `*.` and a domain, as in a policy; with a colon and a port
            for that one, else for all ports that the policy permits.
        header: The header that it stands in.
        format: What stands there, with `{}` for the secret.
        secure: Whether it is sent over TLS only. Without, only to this machine.

    Raises:
        UsageError: An argument does not fit.

    Attributes:
        hosts: The hosts.
        header: The header.
    """

    __slots__ = ("_format", "_rules", "_secure", "_value", "header", "hosts")

    def __init__(
        self,
        value: str,
        *,
        hosts: Sequence[str],
        header: str = "Authorization",
        format: str = "{}",  # noqa: A002 - the usual word
        secure: bool = True,
    ) -> None:
        # No message has the value.
        if not _fits(value, _VALUE) or not _LEAST <= len(value) <= _MOST:
            raise UsageError(
                f"the value of a credential must be text of {_LEAST} to {_MOST:,} ASCII characters, without spaces at "
                "its ends and line breaks"
            )
        if isinstance(hosts, str) or not hosts:
            raise UsageError("a credential needs a list of the hosts that it is for")
        if not _fits(header, _HEADER) or header.lower() in _OURS:
            raise UsageError(f"the header {printable(str(header))!r} is none that a credential can stand in")
        if not _fits(format, _VALUE) or format.count("{}") != 1:
            raise UsageError('the format of a credential must be a text with one {} for the value, such as "Bearer {}"')
        try:
            self._rules = tuple(map(_place, hosts))
        except PolicyError as problem:
            raise UsageError(f"a credential is for hosts: {problem}") from None
        if not secure and not all(is_loopback(rule.name) for rule, _ in self._rules):
            raise UsageError("only what is for this machine is sent without TLS: leave secure=False out")
        self.hosts = tuple(hosts)
        self.header = header
        self._value = value
        self._format = format
        self._secure = bool(secure)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        hosts: Sequence[str],
        header: str = "Authorization",
        format: str = "{}",  # noqa: A002 - the usual word
        secure: bool = True,
    ) -> Self:
        """Reads a credential from a file, which nobody else may read or write. Line breaks at its end are left out.

        Args:
            path: The file: a regular one, of this user's, with mode 0600 or less, and no link.
            hosts: As for a credential; so are the rest.
            header: The header.
            format: What stands in it.
            secure: Whether it is sent over TLS only.

        Raises:
            UsageError: It is none of that, cannot be read, or holds no credential.
        """
        try:
            value = read_private(path, _MOST + 3, "credential").decode("ascii")
        except UnicodeDecodeError:
            value = ""
        return cls(value, hosts=hosts, header=header, format=format, secure=secure)

    @classmethod
    def from_environment(
        cls,
        name: str,
        *,
        hosts: Sequence[str],
        header: str = "Authorization",
        format: str = "{}",  # noqa: A002 - the usual word
        secure: bool = True,
    ) -> Self:
        """Reads a credential from an environment variable of this process.

        Args:
            name: The variable.
            hosts: As for a credential; so are the rest.
            header: The header.
            format: What stands in it.
            secure: Whether it is sent over TLS only.

        Raises:
            UsageError: There is none, or it holds no credential.
        """
        value = read_variable(name, "credential")
        return cls(value, hosts=hosts, header=header, format=format, secure=secure)

    def is_for(self, target: Target) -> bool:
        """Whether it is sent along with a request.

        Args:
            target: What is asked for.
        """
        if self._secure and not target.is_secure:
            return False
        return any(rule.covers(target.host) and port in (None, target.port) for rule, port in self._rules)

    def written(self) -> str:
        """Returns the header's value: for the request alone."""
        return self._format.replace("{}", self._value)

    def secret(self) -> str:
        """Returns the secret: for what looks for it in an answer."""
        return self._value

    def __repr__(self) -> str:
        return f"Credential(hosts={list(self.hosts)!r}, header={self.header!r})"


def _place(host: str) -> tuple[HostRule, int | None]:
    """Returns a host, and the port where there is one.

    Raises:
        PolicyError: It is none.
    """
    match = _WITH_PORT.fullmatch(str(host))
    if match is None:
        return HostRule(host), None
    rule = HostRule(match["host"], [match["port"]])
    return rule, rule.ports[0].first


def placeholder_of(name: str) -> str:
    """Returns what guests see in the place of a credential.

    Args:
        name: The name under which it is given.
    """
    return f"stockade-credential-{name}"


class Credentials:
    """The credentials of a sandbox, by their names.

    Args:
        given: What the caller gives.

    Raises:
        UsageError: They are none, or two are for the same header of a host.
    """

    def __init__(self, given: Mapping[str, Credential] | None) -> None:
        self._all: dict[str, Credential] = {}
        taken: set[tuple[str, str]] = set()
        if given and not isinstance(given, Mapping):
            raise UsageError(
                f"credentials is {type(given).__name__}: it must have each under its name, as in "
                'credentials={"api": credential}'
            )
        for name, credential in (given or {}).items():
            if not _fits(name, _NAME):
                raise UsageError(
                    f"the credential {printable(str(name))!r} has a name that is none: use letters, digits, - and _"
                )
            if not isinstance(credential, Credential):
                raise UsageError(f"the credential {name} is {type(credential).__name__}: give a Credential")
            places = {(host.lower().removesuffix("."), credential.header.lower()) for host in credential.hosts}
            if places & taken:
                raise UsageError(f"the credential {name} stands in the same header of the same host as another one")
            taken |= places
            self._all[name] = credential

    def __bool__(self) -> bool:
        return bool(self._all)

    def of(self, target: Target) -> dict[str, Credential]:
        """Returns those that go along with a request, by their names: the first one given for each header.

        Args:
            target: What is asked for.
        """
        found: dict[str, Credential] = {}
        headers: set[str] = set()
        for name, credential in self._all.items():
            if credential.is_for(target) and credential.header.lower() not in headers:
                headers.add(credential.header.lower())
                found[name] = credential
        return found

    @cached_property
    def finder(self) -> SecretFinder:
        """What looks for all secrets, by what stands in their place. Nothing of one leaves before its end."""
        secrets = {placeholder_of(name): credential.secret().encode() for name, credential in self._all.items()}
        return SecretFinder(secrets, least_held=1)


def credentials_under(policy: Policy, given: Mapping[str, Credential] | None) -> Credentials:
    """Returns the credentials of a sandbox under its policy.

    Args:
        policy: The policy.
        given: What the caller gives.

    Raises:
        UsageError: They are none, or two are for the same header of a host.
        PolicyError: The policy permits no requests, so that none of them could ever be used.
    """
    credentials = Credentials(given)
    if credentials and policy.network.mode == "none":
        raise PolicyError(
            f"there are credentials, and the policy {printable(policy.name)} permits no requests that they could go "
            "along with: name their hosts in network.hosts, or give none"
        )
    return credentials
