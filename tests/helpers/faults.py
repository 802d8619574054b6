"""A proxy before an object store, which records its requests, and fails some on demand."""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from aiohttp import web

SLOW_S = 0.3


class Faults:
    """What the proxy has done, and how it is to misbehave.

    Args:
        failing: share of requests that get 500, 503, or a connection cut before or within the
            answer, in turn by lot.
        slow: share that wait `SLOW_S` first.
    """

    def __init__(self, failing: float = 0.0, slow: float = 0.0, seed: int = 0) -> None:
        self.failing, self.slow = failing, slow
        self.lot = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.puts: list[str] = []

    def next(self) -> str:
        number = self.lot.random()
        if number < self.failing:
            return self.lot.choice(("500", "503", "cut before", "cut within", "lost answer"))
        return "slow" if number < self.failing + self.slow else "pass"


@contextmanager
def proxy(
    endpoint: str, faults: Faults, port: int, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Forward requests to an S3 endpoint; yields the proxy's own, which has TLS if it is given."""
    loop = asyncio.new_event_loop()
    ready, over = threading.Event(), asyncio.Event()

    async def serve() -> None:
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(auto_decompress=False, timeout=timeout) as session:

            async def handle(request: web.Request) -> web.StreamResponse:
                return await _forward(request, session, endpoint, faults)

            app = web.Application(client_max_size=2**30)
            app.router.add_route("*", "/{tail:.*}", handle)
            runner = web.AppRunner(app, access_log=None, auto_decompress=False)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
            ready.set()
            await over.wait()
            await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(30)
        loop.close()


async def _forward(
    request: web.Request, session: aiohttp.ClientSession, endpoint: str, faults: Faults
) -> web.StreamResponse:
    body = await request.read()
    what = faults.next()
    faults.done[what] += 1
    if what in ("500", "503"):
        code = {"500": "InternalError", "503": "SlowDown"}[what]
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>lot</Message></Error>"
        return web.Response(status=int(what), text=text, content_type="application/xml")
    if what == "cut before":
        request.transport.abort()
        return web.Response()
    if what == "slow":
        await asyncio.sleep(SLOW_S)
    headers = {k: v for k, v in request.headers.items() if k.lower() != "transfer-encoding"}
    async with session.request(
        request.method, f"{endpoint}{request.raw_path}", headers=headers, data=body,
        allow_redirects=False,
    ) as answer:  # fmt: skip
        content = await answer.read()
        if request.method == "PUT" and answer.status < 300:
            faults.puts.append(request.path.lstrip("/"))
        if what == "lost answer":  # it was done, and nobody is told
            request.transport.abort()
            return web.Response()
        kept = {k: v for k, v in answer.headers.items() if k.lower() != "transfer-encoding"}
        if what == "cut within" and len(content) > 1 and request.method == "GET":
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            await response.write(content[: len(content) // 2])
            request.transport.abort()
            return response
        return web.Response(status=answer.status, headers=kept, body=content)
