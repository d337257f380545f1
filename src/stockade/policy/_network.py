"""Which hosts and ports a guest may reach, and what counts as one of them."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias, cast

from stockade.errors import PolicyError, UsageError
from stockade.policy._fields import COUNT, Choice, Kind, Part, Plain, Quantity, Text, Texts, each, places
from stockade.policy._http import METHODS, is_ambiguous, is_below, is_path_prefix
from stockade.policy._units import shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    from stockade.policy._changes import NetworkFields

__all__ = [
    "Address",
    "HostRule",
    "Network",
    "PortRange",
    "host_name",
    "inner_address",
    "is_loopback",
    "is_metadata",
    "is_public",
    "may_be_public",
]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_LAST_PORT = 65_535
_LABELS = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.(?!-)[a-z0-9_-]{1,63})*")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?")  # a zone may be any text to ipaddress, line breaks too
_LEGACY_ADDRESS = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+)){0,3}")
"""What C libraries take for an IPv4 address: `2130706433`, `0x7f.1` and `127.1` are all 127.0.0.1."""


@lru_cache(maxsize=1024)
def host_name(host: str) -> str | Address | None:
    """Returns a host in the one form in which hosts are compared.

    Args:
        host: A name, in any case, with or without a dot at its end, in any script; or an address, IPv6 with or
            without brackets.

    Returns:
        The name in small ASCII letters; an address where it is one in any of its forms, an IPv4 address also where it
        comes as IPv6; None where it is neither.
    """
    if len(host) > 255:
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if ":" in host:
        if not _IPV6.fullmatch(host):
            return None
        try:
            address = ipaddress.IPv6Address(host)
        except ValueError:
            return None
        return address.ipv4_mapped or address
    try:
        name = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return None
    name = name.lower().removesuffix(".")
    if _LEGACY_ADDRESS.fullmatch(name):
        return _legacy_address(name)
    return name if _LABELS.fullmatch(name) else None


def _legacy_address(text: str) -> Address | None:
    *first, last = text.split(".")
    try:
        numbers = [_legacy_number(part) for part in first]
        rest = _legacy_number(last)
    except ValueError:
        return None
    room = 256 ** (4 - len(first))
    if rest >= room or any(number > 255 for number in numbers):
        return None
    value = rest + sum(number << (24 - 8 * place) for place, number in enumerate(numbers))
    return ipaddress.IPv4Address(value)


def _legacy_number(text: str) -> int:
    return int(text, 16) if text[:2] == "0x" else int(text, 8 if text[0] == "0" else 10)


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet: not this machine's, a private network's or a link's.

    That leaves out 127.0.0.0/8, 10.0.0.0/8 and their like, and 169.254.169.254, where clouds keep credentials; also
    where they hide in an IPv6 address.
    """
    if is_metadata(address):
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = inner_address(address)
        if inner is not None and not is_public(inner):
            return False
        if inner is not None and (address in _NAT64 or address.sixtofour or address.teredo or address.ipv4_mapped):
            return True
        if address not in _GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast


_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All that is assigned; fec0::/10, ::127.0.0.1, ::ffff:0:127.0.0.1 and local NAT64 (64:ff9b:1::/48) lie outside."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_ENDS_IN_IPV4 = (
    _NAT64,
    ipaddress.IPv6Network("64:ff9b:1::/48"),  # the same within one network
    ipaddress.IPv6Network("::/96"),  # IPv4-compatible, not used any more
    ipaddress.IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated
)

_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


def inner_address(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to, if it does."""
    inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if inner is not None:
        return inner
    number = int(address)
    if any(address in network for network in _ENDS_IN_IPV4) or number >> 32 & 0xFFFF_FFFF in _ISATAP:
        return ipaddress.IPv4Address(number & 0xFFFF_FFFF)
    return None


_METADATA_NETWORKS = tuple(
    map(
        ipaddress.ip_network,
        (
            "169.254.0.0/16",  # link-local: most clouds, and the credentials of containers
            "fe80::/10",
            "100.100.100.200/32",  # Alibaba
            "192.0.0.192/32",  # Oracle
            "168.63.129.16/32",  # Azure
            "fd00:ec2::/32",  # AWS
            "fd20:ce::/32",  # Google
            "fd00:42::/32",  # Scaleway
            "fd00:c1::a9fe:a9fe/128",  # Oracle
        ),
    )
)

_METADATA_NAMES = re.compile(
    # Short ones are looked for in the domain of the machine, whatever that is.
    r"(metadata|instance-data)"
    r"(|(\.[^.]+)*\.internal|\.goog|\.azure\.com|\.tencentyun\.com|\.oraclecloud\.com|\.aliyuncs\.com|\.packet\.net"
    r"|\.platformequinix\.com|\.local|\.localdomain)"
)


def is_metadata(host: str | Address) -> bool:
    """Whether a host, in the form of `host_name`, is where a cloud tells its machines who they are, with credentials.

    No mode permits such a host: only a rule that names it does.
    """
    if isinstance(host, str):
        return _METADATA_NAMES.fullmatch(host) is not None
    if isinstance(host, ipaddress.IPv6Address):
        inner = inner_address(host)
        if inner is not None and is_metadata(inner):
            return True
    return any(host in network for network in _METADATA_NETWORKS)


def is_loopback(host: str | Address) -> bool:
    """Whether a host, in the form of `host_name`, is this machine by its name or address."""
    if isinstance(host, str):
        return host == "localhost" or host.endswith(".localhost")  # RFC 6761
    return host.is_loopback


_PRIVATE_NAMES = re.compile(
    r"[^.]+|(.*\.)?(localhost|localdomain|local|internal|intranet|private|corp|home|lan|home\.arpa|onion|invalid|test)"
)
"""Names without a dot, which are looked for in the network's own domain, and domains that are not public."""


def may_be_public(host: str | Address) -> bool:
    """Whether a host, in the form of `host_name`, may be one of the public internet, as far as that tells."""
    if isinstance(host, str):
        return not (is_loopback(host) or is_metadata(host) or _PRIVATE_NAMES.fullmatch(host))
    return is_public(host)


class PortRange(Part, frozen=True, forbid_unknown_fields=True):
    """Ports from a first to a last one, both included.

    Attributes:
        first: The first port.
        last: The last port; the same as the first for a single one.
    """

    PATH: ClassVar = "ports"

    first: Annotated[int, Quantity(COUNT, 1, _LAST_PORT)]
    last: Annotated[int, Quantity(COUNT, 1, _LAST_PORT)]

    def __post_init__(self) -> None:
        Part.__post_init__(self)
        if self.first > self.last:
            raise PolicyError(f"ports {self.first}-{self.last} are the wrong way round: write {self.last}-{self.first}")

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


class _Ports(Kind):
    """A port, or a range of them as text."""

    def read(self, path: str, value: object, base: object = None) -> object:  # noqa: ARG002 - for parts
        match = re.fullmatch(r"\s*([0-9]{1,5})\s*(?:-\s*([0-9]{1,5})\s*)?", value) if isinstance(value, str) else None
        if match is not None:
            first, last = int(match[1]), int(match[2] or match[1])
        elif isinstance(value, int) and not isinstance(value, bool):
            first = last = value
        else:
            raise PolicyError(f"{path} is {shown(value)}: it must be {self.allowed()}")
        try:
            return PortRange(first, last)
        except PolicyError as problem:
            raise PolicyError(f"{path} is {shown(value)}: {problem}") from None

    def settle(self, path: str, value: object) -> PortRange:
        if isinstance(value, int) and not isinstance(value, bool):
            value = PortRange(value, value)
        if isinstance(value, str):
            # As documents have it.
            return cast("PortRange", self.read(path, value))
        if not isinstance(value, PortRange):
            raise PolicyError(f"{path} is {shown(value)}: it must be a port or a PortRange")
        return value

    def write(self, value: object) -> Plain:
        assert isinstance(value, PortRange)
        return value.first if value.first == value.last else str(value)

    def schema(self) -> dict[str, Plain]:
        number: dict[str, Plain] = {"type": "integer", "minimum": 1, "maximum": _LAST_PORT}
        return {"anyOf": [number, {"type": "string", "pattern": r"^\s*[0-9]{1,5}\s*(-\s*[0-9]{1,5}\s*)?$"}]}

    def allowed(self) -> str:
        return 'a port or a range of ports, such as 443 or "8000-8010"'


class _PortList(Texts):
    def read(self, path: str, value: object, base: object = None) -> object:  # noqa: ARG002 - for parts
        if isinstance(value, list):
            value = each(self.item.read, places(path, value))
        return self.settle(path, value)


_PORTS = _PortList("ports", _Ports())
_HTTPS = PortRange(443, 443)


def _is_plain_host(text: str) -> bool:
    if text.startswith(_BELOW):
        # All below a top-level domain would be too much to mean.
        name = host_name(text.removeprefix(_BELOW))
        return isinstance(name, str) and "." in name
    name = host_name(text)
    return name is not None and (isinstance(name, str) or text.strip("[]").lower() == str(name))


_BELOW = "*."

_HOST = Text("the name or address of one host, or *. and a domain", check=_is_plain_host, example='"api.example.com"')


class _Methods(Texts):
    def __init__(self) -> None:
        super().__init__("HTTP methods", Choice(METHODS))


class HostRule(Part, frozen=True, forbid_unknown_fields=True):
    """A host that may be reached.

    Attributes:
        host: Its name or address, exactly: a name says nothing of the names below it. `*.example.com` stands for all
            names below `example.com`, and not for that itself, nor for metadata services.
        ports: Its ports.
        secure: Whether only encrypted connections are allowed (HTTPS, TLS).
        methods: The HTTP methods that may be used.
        paths: What the paths of URLs must begin with, segment by segment: `/v1` stands for itself and for all below it.
    """

    PATH: ClassVar = "host"

    if TYPE_CHECKING:

        def __init__(
            self,
            host: str,
            ports: Sequence[int | str | PortRange] = (443,),
            secure: bool = True,
            methods: Sequence[str] = METHODS,
            paths: Sequence[str] = ("/",),
        ) -> None: ...

    host: Annotated[str, _HOST]
    ports: Annotated[tuple[PortRange, ...], _PORTS] = (_HTTPS,)
    secure: bool = True
    methods: Annotated[tuple[str, ...], _Methods()] = METHODS
    paths: Annotated[tuple[str, ...], Texts("paths", Text("a path", check=is_path_prefix, example='"/v1"'))] = ("/",)

    def __post_init__(self) -> None:
        Part.__post_init__(self)
        for what in ("ports", "methods", "paths"):
            if not getattr(self, what):
                raise PolicyError(f"the host {shown(self.host)} has no {what}: name them, or leave the host out")

    @property
    def name(self) -> str | Address:
        """The host in the one form in which hosts are compared, with `*.` before it where it stands for all below."""
        name = host_name(self.host.removeprefix(_BELOW))
        assert name is not None
        return f"{_BELOW}{name}" if self.host.startswith(_BELOW) else name

    def covers(self, name: str | Address) -> bool:
        """Whether a host, in the form of `host_name`, is the one that is named, or one of those."""
        own = self.name
        if isinstance(own, str) and own.startswith(_BELOW):
            return isinstance(name, str) and name.endswith(own[1:]) and not is_metadata(name)
        return own == name

    def permits_path(self, path: str) -> bool:
        """Whether a path, in its normal form, may be asked for."""
        if "/" in self.paths:
            return True
        return not is_ambiguous(path) and any(is_below(path, prefix) for prefix in self.paths)


class Network(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which hosts the guest may reach. None, unless they are named.

    Attributes:
        mode: `none`; `loopback`, this machine only; `hosts`, those in `hosts`; `ports`, any public host on those in
            `ports`; `full`, anything, private networks too. The metadata services of clouds (169.254.169.254,
            metadata.google.internal and their like) are reached only where a rule in `hosts` names them.
        hosts: For `hosts`: tables of `host`, `ports`, `secure`, `methods` and `paths`.
        ports: For `ports`: ports, or ranges of them as text.
    """

    PATH: ClassVar = "network"
    FOLLOW_MODE: ClassVar = ("hosts", "ports")

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[NetworkFields]) -> None: ...

    mode: Literal["none", "loopback", "hosts", "ports", "full"] = "none"
    hosts: tuple[HostRule, ...] = ()
    ports: Annotated[tuple[PortRange, ...], _PORTS] = ()

    def __post_init__(self) -> None:
        Part.__post_init__(self)
        problems = []
        for name in ("hosts", "ports"):
            given = bool(getattr(self, name))
            if given and self.mode != name:
                problems.append(f'network.{name} has no effect where the mode is "{self.mode}": leave it out')
            if not given and self.mode == name:
                problems.append(f'network.{name} is empty: name the {name}, or set the mode to "none"')
        if problems:
            raise PolicyError.several(problems)

    def permits(self, host: str, port: int, *, secure: bool, method: str = "GET", path: str = "/") -> bool:
        """Whether a request may be made, as far as the host's name or address tells.

        What a name stands for is for whoever connects to check, and to keep to: with `is_public`, or with `is_metadata`
        where the mode is `full`.

        Args:
            host: The name or address that the guest asks for.
            port: The port.
            secure: Whether the connection is encrypted.
            method: The HTTP method.
            path: The path of the URL, in its normal form.
        """
        for what, given, kind, wanted in (("host", host, str, "text"), ("port", port, int, "a whole number")):
            if not isinstance(given, kind):
                raise UsageError(f"the {what} is {shown(given)}: give {wanted}")
        name = host_name(host)
        if name is None or not 1 <= port <= _LAST_PORT:
            return False
        match self.mode:
            case "none":
                return False
            case "loopback":
                return is_loopback(name)
            case "hosts":
                return any(
                    rule.covers(name)
                    and any(port in ports for ports in rule.ports)
                    and (secure or not rule.secure)
                    and method in rule.methods
                    and rule.permits_path(path)
                    for rule in self.hosts
                )
            case "ports":
                return may_be_public(name) and any(port in ports for ports in self.ports)
            case "full":
                return not is_metadata(name)
