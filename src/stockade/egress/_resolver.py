"""Names looked up: by the resolver of the system, or at name servers of the operator's choice."""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import os
import re
import socket
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from stockade._text import printable
from stockade.errors import UsageError
from stockade.policy import is_loopback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from concurrent.futures import Future

    from dns.asyncresolver import Resolver

    from stockade.policy import Address

__all__ = ["NAMESERVERS", "Lookups", "Resolve", "configured_resolver", "resolve"]

_Result = TypeVar("_Result")

Resolve: TypeAlias = "Callable[[str, int, Lookups], Awaitable[Sequence[Address]]]"
"""Looks up a name, for a port and for a guest; raises `OSError` where it stands for no address."""

NAMESERVERS: Final = "STOCKADE_NAMESERVERS"
"""The variable of the environment that names the name servers to ask, instead of those of the system."""

_THREADS: Final = 4
"""How many names are looked up at a time: the system's resolver blocks."""

_THREADS_OF_GUEST: Final = 2
"""How many of them may wait for a guest."""

_TRY_SECONDS: Final = 2.0
_MOST_SECONDS: Final = 10.0
"""How long a name server is waited for, and how long all of them."""

_THIS_MACHINE: Final = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))

_executors: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, ThreadPoolExecutor] = weakref.WeakKeyDictionary()


class Lookups:
    """The names that the system is looking up for a guest.

    Who gives up waiting for a name leaves the thread behind that the system keeps, and nobody can end that: it is
    counted until it is back, so that one guest does not come to have all of them.
    """

    def __init__(self) -> None:
        self._under_way: set[Future[Any]] = set()
        self._waiting: list[asyncio.Future[None]] = []

    async def look_up(self, ask: Callable[[], _Result]) -> _Result:
        """Has a thread ask the system, when it is the guest's turn.

        Args:
            ask: What asks.
        """
        loop = asyncio.get_running_loop()
        while True:
            turn = loop.create_future()
            self._waiting.append(turn)
            try:
                if len(self._under_way) < _THREADS_OF_GUEST:
                    break
                await turn
            finally:
                self._waiting.remove(turn)
        executor = _executors.get(loop)
        if executor is None:
            executor = _executors[loop] = ThreadPoolExecutor(_THREADS, "stockade-names")
        asked = executor.submit(ask)
        self._under_way.add(asked)
        asked.add_done_callback(self._over)
        return await asyncio.wrap_future(asked)

    def _over(self, asked: Future[Any]) -> None:
        """On any thread: the next one may be asked for."""
        self._under_way.discard(asked)
        for turn in tuple(self._waiting):
            with suppress(RuntimeError):
                turn.get_loop().call_soon_threadsafe(_wake, turn)


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


def configured_resolver() -> Resolve:
    """Returns what looks names up: the system, or what asks the name servers that the environment names.

    Raises:
        UsageError: What the environment says cannot be followed.
    """
    servers = os.environ.get(NAMESERVERS)
    if servers is None:
        return resolve
    name_servers(servers)
    if importlib.util.find_spec("dns") is None:
        raise UsageError(f"{NAMESERVERS} is set, which needs an extra: pip install 'stockade[dns]'")

    async def ask(name: str, port: int, lookups: Lookups) -> Sequence[Address]:  # noqa: ARG001 - as the system is
        return await _ask_servers(servers, name)

    return ask


async def resolve(name: str, port: int, lookups: Lookups) -> Sequence[Address]:
    """Looks up a name, once, as the system does for every program.

    Args:
        name: The name, in ASCII.
        port: The port.
        lookups: Those of the guest.

    Raises:
        OSError: It stands for no address.
    """
    found = await lookups.look_up(partial(socket.getaddrinfo, name, port, type=socket.SOCK_STREAM))
    addresses: list[Address] = []
    for _, _, _, _, place in found:
        # A zone is this machine's own; such addresses are refused anyway.
        addresses.append(ipaddress.ip_address(str(place[0]).partition("%")[0]))
    return list(dict.fromkeys(addresses))


@lru_cache(maxsize=16)
def name_servers(text: str) -> tuple[tuple[str, int], ...]:
    """Reads which name servers are asked.

    Args:
        text: Addresses with commas between them, each with a port where that is not 53: `10.0.0.53,[::1]:5353`.

    Raises:
        UsageError: One is no address, or there is none.
    """
    servers = []
    for entry in text.split(","):
        match = re.fullmatch(r"(\[(?P<six>[^\]]+)\]|(?P<four>[0-9.]+))(:(?P<port>[0-9]{1,5}))?", entry.strip())
        try:
            address = ipaddress.ip_address("" if match is None else match["six"] or match["four"])
            port = 53 if match is None else int(match["port"] or 53)
        except ValueError:
            port = 0
        if not 1 <= port <= 65_535:
            raise UsageError(
                f"{NAMESERVERS} has {printable(entry)!r}, which is no address of a name server: write 10.0.0.53, "
                "10.0.0.53:5353 or [::1]:5353, with commas between several"
            )
        servers.append((str(address), port))
    return tuple(servers)


async def _ask_servers(servers: str, name: str) -> Sequence[Address]:
    if is_loopback(name):
        # No name server is asked for these, or could lead them elsewhere (RFC 6761).
        return _THIS_MACHINE
    resolver = _resolver(servers)
    from dns.exception import DNSException
    from dns.name import from_text

    absolute = from_text(name)
    ask = partial(resolver.resolve, absolute, raise_on_no_answer=False, search=False)
    try:
        # Where one of them fails, nobody waits for the other one.
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(kind)) for kind in ("A", "AAAA")]
    except ExceptionGroup as problems:
        known, unknown = problems.split(DNSException)
        if known is None or unknown is not None:
            raise
        told = type(known.exceptions[0]).__name__
        raise OSError(f"no name server tells an address of {printable(name)}: {told}") from None
    return [ipaddress.ip_address(record.address) for answer in asked for record in answer.result().rrset or ()]


@lru_cache(maxsize=16)
def _resolver(servers: str) -> Resolver:
    """Returns what asks name servers. It keeps no answers: each request is decided by what a name stands for now."""
    from dns.asyncresolver import Resolver
    from dns.nameserver import Do53Nameserver

    resolver = Resolver(configure=False)
    resolver.nameservers = [Do53Nameserver(address, port) for address, port in name_servers(servers)]
    resolver.timeout, resolver.lifetime, resolver.cache = _TRY_SECONDS, _MOST_SECONDS, None
    return resolver
