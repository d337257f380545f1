"""Whether a policy lets a request go out, and to which addresses. Nothing here opens a socket or asks for a name."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Literal, NamedTuple

from stockade._text import printable
from stockade.policy import (
    METHODS,
    inner_address,
    is_loopback,
    is_metadata,
    is_public,
    may_be_public,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.egress._url import Target
    from stockade.policy import Address, Network

__all__ = ["Refusal", "RequestPlan", "pin", "refusal_of"]


class Refusal(NamedTuple):
    """Why a request does not go out.

    Attributes:
        reason: In words, for the guest and for the report.
        field: The field of the policy that decides it.
        address: Where its name leads, where that is the reason: for the report, and not for the guest.
        part: What of the request it is about, where it is not the host: for the report.
    """

    reason: str
    field: str
    address: str = ""
    part: Literal["", "method", "path"] = ""


class RequestPlan(NamedTuple):
    """A request that may go out.

    Attributes:
        method: The method.
        target: What it asks for.
        addresses: Where it may be sent, each of them checked; in the order in which they are tried.
    """

    method: str
    target: Target
    addresses: tuple[Address, ...]


def refusal_of(network: Network, method: str, target: Target) -> Refusal | None:
    """Returns why a policy refuses a request, as far as that is known before its name is looked up.

    Args:
        network: The policy's part for the network.
        method: The method.
        target: What it asks for.

    Returns:
        The reason; None where nothing is against it yet.
    """
    host, port = target.host, target.port
    if network.mode == "none":
        return Refusal("the policy permits no network", "network.mode")
    if method not in METHODS:
        return Refusal(f"the method {printable(method)} is none of {', '.join(METHODS)}", "network.mode", part="method")
    if network.permits(str(host), port, secure=target.is_secure, method=method, path=target.path):
        return None
    shown = printable(str(host))
    match network.mode:
        case "loopback":
            return Refusal(f"the policy permits this machine only, and {shown} is none of its names", "network.mode")
        case "ports":
            if may_be_public(host):
                return Refusal(f"the policy does not permit port {port}", "network.ports")
            return Refusal(f"the policy permits public hosts only, and {shown} is none", "network.mode")
        case "full":
            return Refusal(f"{shown} is a metadata service, which only a rule that names it permits", "network.mode")
    rules = [(place, rule) for place, rule in enumerate(network.hosts) if rule.covers(host)]
    if not rules:
        return Refusal(f"the policy does not name {shown}", "network.hosts")
    place = rules[0][0] if len(rules) == 1 else None
    field = "network.hosts" if place is None else f"network.hosts[{place}]"
    fits = [rule for _, rule in rules if any(port in ports for ports in rule.ports)]
    if not fits:
        return Refusal(f"the policy does not permit port {port} of {shown}", field)
    fits = [rule for rule in fits if target.is_secure or not rule.secure]
    if not fits:
        return Refusal(f"the policy permits {shown} by https only", field)
    fits = [rule for rule in fits if method in rule.methods]
    if not fits:
        return Refusal(f"the policy does not permit {method} for {shown}", field, part="method")
    return Refusal(f"the policy does not permit this path of {shown}", field, part="path")


def pin(network: Network, method: str, target: Target, answers: Sequence[Address]) -> RequestPlan | Refusal:
    """Decides about a request whose host has been looked up.

    One address that may not be reached is enough to refuse it: nobody tries those of a name until one fits.

    Args:
        network: The policy's part for the network.
        method: The method.
        target: What it asks for.
        answers: The addresses that the name stands for; not used where the host is an address itself.
    """
    refusal = refusal_of(network, method, target)
    if refusal is not None:
        return refusal
    if not isinstance(target.host, str):
        answers = (target.host,)
    plain = tuple(dict.fromkeys(_plain(answer) for answer in answers))
    for address in plain:
        reason = _unreachable(network, target.host, address)
        if reason is not None:
            # What names of a private network stand for is not for guests to find out.
            return Refusal(f"{printable(str(target.host))} leads to an address {reason}", "network.mode", str(address))
    return RequestPlan(method, target, plain)


def _plain(address: Address) -> Address:
    """Returns an IPv4 address that comes as IPv6 as what it is."""
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address
    return address


def _unreachable(network: Network, host: str | Address, address: Address) -> str | None:
    """Returns why an address may not be connected to, for a host that is permitted; None where it may."""
    if _is_nobody(address):
        return "which is no host's"
    if isinstance(host, str) and network.mode == "hosts":
        if is_metadata(host):
            # Only a rule that names it lets it come so far.
            return None if is_metadata(address) or is_public(address) else "which is of a private network"
        if is_metadata(address):
            return "where clouds keep credentials"
        if is_loopback(host):
            return None if address.is_loopback else "which is not this machine"
        if _is_this_machine(address):
            return "which is this machine"
        return None if is_public(address) or not may_be_public(host) else "which is of a private network"
    if network.mode == "hosts":
        # The rule names this very address.
        return None
    if is_metadata(address):
        return "where clouds keep credentials"
    if network.mode == "loopback":
        return None if address.is_loopback else "which is not this machine"
    if network.mode == "ports":
        if _is_this_machine(address):
            return "which is this machine"
        return None if is_public(address) else "which is of a private network"
    return None


def _is_nobody(address: Address) -> bool:
    inner = inner_address(address) if isinstance(address, ipaddress.IPv6Address) else None
    if inner is not None and _is_nobody(inner) and not address.is_loopback:
        return True
    return address.is_multicast or address.is_unspecified or address == _EVERYBODY


_EVERYBODY = ipaddress.IPv4Address("255.255.255.255")


def _is_this_machine(address: Address) -> bool:
    inner = inner_address(address) if isinstance(address, ipaddress.IPv6Address) else None
    return address.is_loopback or (inner is not None and inner.is_loopback)
