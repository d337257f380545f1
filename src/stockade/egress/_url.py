"""URLs that guests ask for, in the one form in which they are compared and sent."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from stockade.policy import host_name, normal_path, percent_encoded

if TYPE_CHECKING:
    from stockade.policy import Address

__all__ = ["MOST_URL_BYTES", "BadUrl", "Target", "parse_url"]

MOST_URL_BYTES: Final = 64 << 10
"""How long a URL may be."""

_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(//(?P<where>[^/?#]*))?(?P<path>[^?#]*)(?P<query>\?[^#]*)?"
)
_PORTS: Final = {"http": 80, "https": 443}
_FORBIDDEN: Final = re.compile(r"[\x00-\x20\x7f\\]")
_BROKEN: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


class BadUrl(ValueError):  # noqa: N818 - says what is wrong with it
    """A text is no URL that anything can be asked of."""


class Target(NamedTuple):
    """Where a request goes.

    Attributes:
        scheme: `http` or `https`.
        host: The name or address, in the form in which hosts are compared.
        port: The port.
        path: The path in its normal form.
        query: What follows it, with its question mark; "" where nothing does.
    """

    scheme: str
    host: str | Address
    port: int
    path: str
    query: str

    @property
    def is_secure(self) -> bool:
        """Whether it is encrypted."""
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """The host, and the port where it is not the scheme's own: what stands in the header `Host`."""
        host = f"[{self.host}]" if isinstance(self.host, ipaddress.IPv6Address) else str(self.host)
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{self.scheme}://{self.authority}"

    @property
    def url(self) -> str:
        """The whole."""
        return f"{self.origin}{self.path}{self.query}"


def parse_url(text: str, base: Target | None = None) -> Target:
    """Reads a URL.

    Args:
        text: The URL.
        base: What a URL without scheme or host is relative to, as those of redirects may be.

    Raises:
        BadUrl: It is none, or is none of HTTP, or names a user, for a guest has no password to give.
    """
    if len(text) > MOST_URL_BYTES:
        raise BadUrl(f"the URL is longer than {MOST_URL_BYTES:,} characters")
    if _FORBIDDEN.search(text):
        raise BadUrl("the URL has a space, a backslash or a control character")
    if base is not None:
        text = _absolute(text, base)
    match = _URL.fullmatch(text.partition("#")[0])
    if match is None or match["where"] is None:
        raise BadUrl("the URL has no scheme and host: write https://host/path")
    scheme = match["scheme"].lower()
    if scheme not in _PORTS:
        raise BadUrl("the URL is neither of https nor of http")
    host, port = _host(match["where"], scheme)
    path = normal_path(match["path"] or "/")
    if path is None:
        raise BadUrl("the path of the URL has an escape that is broken, or one of a control character")
    query = match["query"] or ""
    if _BROKEN.search(query):
        raise BadUrl("the query of the URL has an escape that is broken")
    return Target(scheme, host, port, path, _escaped(query))


def _absolute(text: str, base: Target) -> str:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text):
        return text
    if text.startswith("//"):
        return f"{base.scheme}:{text}"
    if text.startswith("/"):
        return f"{base.origin}{text}"
    if text.startswith("?"):
        return f"{base.origin}{base.path}{text}"
    if not text or text.startswith("#"):
        return base.url
    return f"{base.origin}{base.path.rpartition('/')[0]}/{text}"


def _host(where: str, scheme: str) -> tuple[str | Address, int]:
    if "@" in where:
        raise BadUrl("the URL names a user: leave it out")
    if "%" in where:
        # A zone of this machine's, or an escape that others may undo.
        raise BadUrl("the host of the URL has an escape")
    match = re.fullmatch(r"(?P<host>\[[^\[\]]*\]|[^\[\]:]*)(:(?P<port>[0-9]{0,5}))?", where)
    host = host_name(match["host"]) if match is not None else None
    if match is None or host is None:
        raise BadUrl("the URL has no host, or one that is neither a name nor an address")
    if match["host"].startswith("[") and ":" not in match["host"]:
        raise BadUrl("the host of the URL stands in brackets, and is no IPv6 address")
    port = int(match["port"] or _PORTS[scheme])
    if not 1 <= port <= 65_535:
        raise BadUrl(f"the port of the URL is {port}: it must be between 1 and 65,535")
    return host, port


def _escaped(query: str) -> str:
    try:
        # Escapes that are there stay as they are.
        return percent_encoded(query, "?%")
    except UnicodeEncodeError:
        raise BadUrl("the query of the URL is no text that UTF-8 can hold") from None
