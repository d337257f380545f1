"""Names looked up, by the resolver of the system."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from stockade.policy import Address

__all__ = ["Resolve", "resolve"]

Resolve: TypeAlias = "Callable[[str, int], Awaitable[Sequence[Address]]]"
"""Looks up a name, for a port; raises `OSError` where it stands for no address."""

_THREADS: Final = 4
"""How many names are looked up at a time: the system's resolver blocks."""

_executors: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, ThreadPoolExecutor] = weakref.WeakKeyDictionary()


async def resolve(name: str, port: int) -> Sequence[Address]:
    """Looks up a name, once.

    Args:
        name: The name, in ASCII.
        port: The port.

    Raises:
        OSError: It stands for no address.
    """
    loop = asyncio.get_running_loop()
    executor = _executors.get(loop)
    if executor is None:
        executor = _executors[loop] = ThreadPoolExecutor(_THREADS, "stockade-names")
    ask = partial(socket.getaddrinfo, name, port, type=socket.SOCK_STREAM)
    found = await loop.run_in_executor(executor, ask)
    addresses: list[Address] = []
    for _, _, _, _, place in found:
        # A zone is this machine's own; such addresses are refused anyway.
        addresses.append(ipaddress.ip_address(str(place[0]).partition("%")[0]))
    return list(dict.fromkeys(addresses))
