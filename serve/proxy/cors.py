"""Lets pages of the origins in the graph's `allow_origins` use the server. Serve's HTTP proxies run `Cors`.

It is the outermost middleware, so that such a page can also read the errors of the proxy itself. The proxy does not
know the settings of the graph, so it reads the origins from a header of `/readyz` when a page sends a request.
"""

import asyncio
import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.proxy.gate import ask_graph
from serve.proxy.traced import TRACE_RESPONSE

ORIGINS_HEADER = "x-allow-origins"
# Origins older than this are read again, because another graph may have been deployed.
FRESH_S = 10.0
# A request waits no longer than this for the origins of a busy graph.
WAIT_S = 2.0
MAX_AGE_S = 600
EXPOSED_HEADERS = ("retry-after", "x-request-id", "www-authenticate", TRACE_RESPONSE)


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Return `app` wrapped so that pages of these origins may use it; `*` means all.

    Cookies are not allowed, because API keys come in a header.
    """
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
    """Runs `inner` in Starlette's CORS middleware, with the origins that the graph behind it allows."""

    def __init__(self, inner: ASGIApp) -> None:
        self.inner = inner
        self.app = inner
        self._last_read = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "origin" in Headers(scope=scope):
            await self._refresh()
        await self.app(scope, receive, send)

    async def _refresh(self) -> None:
        """Read the origins if they are old, and wait for them for at most WAIT_S."""
        if self._reading is None:
            if time.monotonic() - self._last_read < FRESH_S:
                return
            self._reading = asyncio.create_task(self._read_origins())
        await asyncio.wait([self._reading], timeout=WAIT_S)

    async def _read_origins(self) -> None:
        """Wrap `inner` anew with the origins that the graph allows now."""
        try:
            answers = await ask_graph(self.inner)
            headers = [answer.headers[ORIGINS_HEADER] for answer in answers if ORIGINS_HEADER in answer.headers]
            if headers:
                self.app = with_cors(self.inner, " ".join(headers).split())
                self._last_read = time.monotonic()
        finally:
            self._reading = None
