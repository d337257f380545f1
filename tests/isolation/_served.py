"""An application of a web server, which uses runs where it is imported and where it serves: for WSGI and for ASGI."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from stockade import Sandbox
from tests.conftest import HELLO, wat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

HERE, APART = Sandbox(), Sandbox(isolation="process")
MODULE = wat(HELLO)
IMPORTED = os.getpid()
BEFORE = [box.run(MODULE).stdout.decode() for box in (HERE, APART)]
"""With `--preload` that is in the process that the workers are forked from."""


def answer(outputs: list[str]) -> bytes:
    told = {"process": os.getpid(), "imported": IMPORTED, "before": BEFORE, "outputs": outputs}
    return json.dumps(told).encode()


def wsgi(environ: object, start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    body = answer([box.run(MODULE).stdout.decode() for box in (HERE, APART)])
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[object], Any]) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = answer([(await box.run_async(MODULE)).stdout.decode() for box in (HERE, APART)])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
