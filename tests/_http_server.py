"""A real HTTP server on this machine, plain and with TLS, that counts who connects. Its paths say what it answers."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["AUTHORITY", "HttpServer", "Seen"]

_HERE = Path(__file__).parent / "egress"
AUTHORITY = _HERE / "authority.pem"
"""Who says that the server is `localhost`, `api.example.com` and some others: an authority whose key is gone."""


class Seen:
    """A request as the server has seen it."""

    def __init__(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.method, self.target, self.headers, self.body = method, target, headers, body

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


class HttpServer:
    """Serves on a thread of its own, until it is left.

    Args:
        tls: Whether it speaks TLS.
        host: The address that it is at; None for all of this machine's.
        port: The port; 0 for any.

    Attributes:
        connections: How many have connected.
        gathered: How many have asked to be answered together.
        open: How many are connected.
        reached: The addresses at which it was connected to.
        seen: The requests.
    """

    def __init__(self, *, tls: bool = False, host: str | None = "127.0.0.1", port: int = 0) -> None:
        self._context: ssl.SSLContext | None = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(_HERE / "server.pem")
        self._host = host
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = self.gathered = 0
        self.open = 0
        self.seen: list[Seen] = []
        self.reached: list[str] = []
        self.port = port

    @property
    def url(self) -> str:
        return f"{'http' if self._context is None else 'https'}://localhost:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        # What connects is counted before anything of TLS: by a server that has none in front of the one that has.
        if self._host is None:
            both = socket.create_server(("", self.port), family=socket.AF_INET6, backlog=1_000, dualstack_ipv6=True)
            self._server = await asyncio.start_server(self._met, sock=both)
        else:
            self._server = await asyncio.start_server(self._met, self._host, self.port, backlog=1_000)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        # Whoever has just been let in is met first.
        for _ in range(5):
            await asyncio.sleep(0)
        for writer in tuple(self._writers):
            writer.transport.abort()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.reached.append(writer.get_extra_info("sockname")[0].removeprefix("::ffff:"))
        self._writers.add(writer)
        try:
            if self._context is not None:
                await writer.start_tls(self._context)
            await self._serve(reader, writer)
        except (OSError, EOFError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:-2])]
        size = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        body = await reader.readexactly(size)
        seen = Seen(method, target, headers, body)
        self.seen.append(seen)
        await self._answer(seen, reader, writer)
        await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        # Until the other side has gone: who answers and goes at once may take the answer along.
        await reader.read()

    async def _answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parts = urlsplit(seen.target)
        asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}

        def say(status: str, body: bytes, *headers: str) -> None:
            lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
            writer.write("\r\n".join(lines).encode("latin-1") + (b"" if seen.method == "HEAD" else body))

        match parts.path:
            case "/echo":
                told = {
                    "method": seen.method,
                    "target": seen.target,
                    "headers": [[name.lower(), value] for name, value in seen.headers],
                    "body": seen.body.decode("latin-1"),
                }
                say("200 OK", json.dumps(told).encode(), "Content-Type: application/json")
            case "/redirect":
                say(f"{asked.get('status', '302')} Moved", b"moved", f"Location: {asked['to']}")
            case "/circle":
                say("302 Found", b"", "Location: /circle")
            case "/wait":
                with suppress(TimeoutError):
                    # Whoever goes meanwhile is gone at once.
                    await asyncio.wait_for(reader.read(), float(asked["seconds"]))
                    return
                say("200 OK", b"waited")
            case "/gather":
                # Nobody is answered before all are here.
                self.gathered += 1
                while self.gathered < int(asked["count"]):
                    await asyncio.sleep(0.02)
                say("200 OK", b"together")
            case "/large":
                size, piece = int(asked["bytes"]), b"x" * 65_536
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
                while size:
                    writer.write(piece[:size])
                    size -= min(size, len(piece))
                    await writer.drain()
            case "/chunked":
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for word in (b"one ", b"two ", b"three"):
                    writer.write(b"%x\r\n%s\r\n" % (len(word), word))
                    await writer.drain()
                writer.write(b"0\r\n\r\n")
            case "/raw":
                writer.write(asked["say"].encode("latin-1"))
            case "/flood":
                # Before it, over and over, until the other side has had enough.
                writer.write(asked["before"].encode("latin-1"))
                piece = (asked["piece"] * (1 + 4096 // len(asked["piece"]))).encode("latin-1")
                for _ in range(500):
                    writer.write(piece)
                    await writer.drain()
            case "/drip":
                # A character each tenth of a second: never silent, and never done.
                for character in asked["say"]:
                    writer.write(character.encode("latin-1"))
                    await writer.drain()
                    await asyncio.sleep(0.1)
                await reader.read()
            case "/gzip":
                packed = gzip.compress(b"\0" * int(asked["bytes"]))
                say("200 OK", packed, "Content-Encoding: gzip")
            case "/half":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it")
                await writer.drain()
                writer.transport.abort()
            case "/error":
                say("500 Internal Server Error", b"it broke")
            case _:
                say("200 OK", f"hello {seen.method} {parts.path}".encode(), "Content-Type: text/plain", "X-One: 1")
