"""A code interpreter behind FastAPI: upload files, run Python on them, see its output as it comes, fetch what it drew.

pip install fastapi uvicorn 'stockade[python]'      (or 'stockade[scientific]', for pandas and matplotlib)
uvicorn code_interpreter:app
curl -T table.csv localhost:8000/alice/files/table.csv
curl -N -X POST localhost:8000/alice/run --data-binary @plot.py
curl -O localhost:8000/alice/files/plot.svg
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response, StreamingResponse

import stockade

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

POLICY = stockade.Policy(name="interpreter").replace(wall_time="30s", memory="512MiB", stdout="1MiB")
MOST_UPLOAD_BYTES = 16 << 20

python = stockade.Python(POLICY)
files: defaultdict[str, dict[str, bytes]] = defaultdict(dict)  # of each user; a database in earnest


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Compiles the interpreter before the first request."""
    await asyncio.to_thread(python.prepare)
    with python:
        yield


app = FastAPI(lifespan=lifespan)


@app.put("/{user}/files/{name}")
async def upload(user: str, name: str, request: Request) -> dict[str, int]:
    """Keeps a file for the runs of a user."""
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > MOST_UPLOAD_BYTES:
            raise HTTPException(413, f"a file may have {MOST_UPLOAD_BYTES:,} bytes")
    files[user][name] = data
    return {"bytes": len(data)}


@app.get("/{user}/files/{name}")
async def download(user: str, name: str) -> Response:
    """Returns a file. It is whatever the code wrote, so no browser may take it for a page."""
    if name not in files[user]:
        raise HTTPException(404, "there is no such file")
    return Response(files[user][name], media_type="application/octet-stream")


@app.post("/{user}/run")
async def run(user: str, request: Request) -> StreamingResponse:
    """Runs the body as Python; streams its output, and after it a line of JSON with what came of it."""
    code, pieces = (await request.body()).decode(), asyncio.Queue[bytes | None]()
    task = asyncio.create_task(
        python.run_async(code, files=files[user], collect=["*"], on_stdout=pieces.put, on_stderr=pieces.put)
    )
    task.add_done_callback(lambda _: pieces.put_nowait(None))

    async def output() -> AsyncIterator[bytes]:
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            result = await task
            drawn = {f"figure-{number}.png": figure for number, figure in enumerate(result.figures)}
            files[user].update({**result.files, **drawn})
            told = {
                "value": result.value,
                "error": result.error and str(result.error),
                "files": [*result.files, *drawn],
            }
            yield json.dumps(told).encode() + b"\n"
        finally:
            task.cancel()  # whoever has gone needs no answer

    return StreamingResponse(output(), media_type="text/plain")
