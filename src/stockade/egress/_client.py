"""What the requests of all guests of a sandbox have in common."""

from __future__ import annotations

import importlib.util
import ssl
from typing import TYPE_CHECKING, Final

from stockade._locks import new_lock
from stockade._text import printable
from stockade.egress._credential import Credentials
from stockade.egress._resolver import configured_resolver
from stockade.errors import PolicyError
from stockade.host import HTTP_MODULE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stockade.egress._resolver import Resolve
    from stockade.policy import Policy

__all__ = ["INSTALL", "Client", "is_installed"]

INSTALL: Final = "pip install 'stockade[network]'"
"""What installs the library that reads and writes HTTP."""


def is_installed() -> bool:
    """Whether there is a library that reads and writes HTTP."""
    return importlib.util.find_spec("h11") is not None


class Client:
    """How names are looked up, and whom TLS trusts. Safe to share between threads.

    Nothing here knows of proxies, whatever the environment says.

    Args:
        resolve: Looks names up; by default, the system's resolver, or the name servers that the environment names.
        credentials: What is added to requests.

    Raises:
        UsageError: What the environment says of name servers cannot be followed.

    Attributes:
        resolve: What looks names up.
        credentials: The same.
    """

    def __init__(self, resolve: Resolve | None = None, credentials: Credentials | None = None) -> None:
        self.credentials = credentials or Credentials(None)
        self.resolve = resolve or configured_resolver()
        self._lock = new_lock()
        self._tls: ssl.SSLContext | None = None

    def check(self, module: str, imports: Iterable[bytes], policy: Policy) -> None:
        """Checks that a module that imports what makes requests can make those that a policy permits.

        Args:
            module: Its name.
            imports: The modules that it imports from.
            policy: The policy.

        Raises:
            PolicyError: It cannot: the library for that is not installed.
        """
        if policy.network.mode != "none" and HTTP_MODULE.encode() in imports and not is_installed():
            raise PolicyError(
                f'{printable(module)} imports {HTTP_MODULE}, and network.mode "{policy.network.mode}" permits '
                f"requests, but what makes them is not installed: {INSTALL}"
            )

    def tls(self) -> ssl.SSLContext:
        """Returns how hosts prove who they are: by a certificate of an authority that this machine trusts.

        `SSL_CERT_FILE` and `SSL_CERT_DIR` name authorities, as for OpenSSL.
        """
        with self._lock:
            if self._tls is None:
                context = ssl.create_default_context()
                context.set_alpn_protocols(["http/1.1"])
                # Nobody is to have the keys of these connections, whatever the environment says.
                context.keylog_filename = None  # type: ignore[assignment]
                self._tls = context
            return self._tls
