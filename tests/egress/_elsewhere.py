"""A network of its own, in which every address of the world leads to servers of this process.

To be started by `unshare`, in namespaces of its own. It makes the requests that it is told, each with names that stand
for what it is told, and tells what became of them and who was connected to.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from stockade import Policy
from stockade.egress import Client, GuestNetwork, Request, RequestFailed
from tests._dns_server import DnsServer
from tests._http_server import AUTHORITY, HttpServer
from tests.egress._table import NETWORKS

PLAIN, TLS = (80, 81, 8000, 8080, 8081), (443, 8005, 8010, 8011)


def _lead_here() -> None:
    """Has all addresses be this machine's, and no name known but to the server of names."""
    for order in (
        ("link", "set", "lo", "up"),
        ("route", "add", "local", "0.0.0.0/0", "dev", "lo"),
        ("-6", "route", "add", "local", "::/0", "dev", "lo"),
    ):
        subprocess.run(["ip", *order], check=True)
    libc = ctypes.CDLL(None, use_errno=True)
    for place, text in (("/etc/resolv.conf", "nameserver 127.0.0.1\noptions attempts:1\n"), ("/etc/hosts", "")):
        with tempfile.NamedTemporaryFile("w", delete=False) as file:
            file.write(text)
        # 4096: a bind mount.
        if libc.mount(file.name.encode(), str(Path(place).resolve()).encode(), None, 4096, None) != 0:
            raise OSError(ctypes.get_errno(), place)
        Path(file.name).unlink()


def _connections_begun() -> int:
    """How many connections anybody here has begun, to whatever address, as the kernel counts them."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line[:4] == "Tcp:")
    return int(values[names.index("ActiveOpens")])


async def _ask(mode: str, url: str) -> dict[str, Any]:
    guest = GuestNetwork(Client(), Policy(network=NETWORKS[mode]), lambda: 0.0)
    try:
        _, exchange = guest.begin(Request("GET", url))
        answer = await exchange.answered()
    except RequestFailed as problem:
        return {"code": int(problem.code), "reason": str(problem)}
    finally:
        guest.end()
    return {"code": answer.status, "reason": ""}


def main() -> None:
    _lead_here()
    os.environ["SSL_CERT_FILE"] = str(AUTHORITY)
    told = []
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(DnsServer(port=53))
        servers = [stack.enter_context(HttpServer(host=None, port=port)) for port in PLAIN]
        servers += [stack.enter_context(HttpServer(host=None, port=port, tls=True)) for port in TLS]
        for mode, url, name, answers, by_servers in json.load(sys.stdin):
            os.environ.pop("STOCKADE_NAMESERVERS", None)
            if by_servers:
                os.environ["STOCKADE_NAMESERVERS"] = names.address
            names.names = {name: answers}
            names.asked.clear()
            before = _connections_begun(), sum(server.connections for server in servers)
            for server in servers:
                server.reached.clear()
            became = asyncio.run(_ask(mode, url))
            told.append(
                {
                    **became,
                    "begun": _connections_begun() - before[0],
                    "met": sum(server.connections for server in servers) - before[1],
                    "reached": [address for server in servers for address in server.reached],
                    "asked": sorted({asked for asked, _ in names.asked}),
                }
            )
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
