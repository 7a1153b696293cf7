"""Lets pages of other origins use the server, as far as the graph's `allow_origins` says. Serve's HTTP proxies run it.

It stands outside of all other middleware, so that errors of the proxy itself can be read by such a page too. The proxy
knows no settings of the graph, so it reads the origins from a header of `/readyz` when a page asks.
"""

import asyncio
import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.proxy.gate import ask_graph

ORIGINS_HEADER = "x-allow-origins"
# What is older than this is asked for again, so that a graph deployed anew is heard.
FRESH_S = 10.0
# A busy graph does not hold requests up for longer than this.
WAIT_S = 2.0
MAX_AGE_S = 600
EXPOSED_HEADERS = ("retry-after", "x-request-id", "www-authenticate")


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Wrap `app` so that pages of these origins may use it; `*` means all. Keys come in a header, not in cookies."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["*"],
        allow_headers=["*"],
        allow_credentials=False,
        expose_headers=EXPOSED_HEADERS,
        max_age=MAX_AGE_S,
    )


class Cors:
    """Runs `inner` inside of Starlette's CORS middleware, with the origins that the graph behind it allows."""

    def __init__(self, inner: ASGIApp) -> None:
        self.inner = inner
        self.app = inner
        self._asked = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "origin" in Headers(scope=scope):
            await self._refresh()
        await self.app(scope, receive, send)

    async def _refresh(self) -> None:
        if self._asking is None:
            if time.monotonic() - self._asked < FRESH_S:
                return
            self._asking = asyncio.create_task(self._ask())
        await asyncio.wait([self._asking], timeout=WAIT_S)

    async def _ask(self) -> None:
        try:
            answers = await ask_graph(self.inner)
            told = [answer.headers[ORIGINS_HEADER] for answer in answers if ORIGINS_HEADER in answer.headers]
            if told:
                self.app = with_cors(self.inner, " ".join(told).split())
                self._asked = time.monotonic()
        finally:
            self._asking = None
