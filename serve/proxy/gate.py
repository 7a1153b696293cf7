"""The gate is middleware that answers requests with 503 until the graph has been ready once, and then lets all pass.

Serve's HTTP proxies run `Gate`. Without it, a proxy would answer 404 until it knows a route, and then hold requests
until there is a replica. The gate asks the graph's own `/readyz`. Once that has answered 200, the gate stays open for
as long as the proxy lives, so that requests wait for a replica in place of one that dies later. Serve's own paths
(`/-/healthz`, `/-/routes`) always pass.
"""

import asyncio
import json
import logging
import time
import uuid
from contextlib import suppress

import httpx
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

READY_PATH = "/readyz"
ALIVE_PATH = "/healthz"
RETRY_AFTER_S = 5
# How long the first requests wait for the graph's answer, so that a proxy that replaces another refuses none.
FIRST_NEWS_S = 2.0
PAUSE_S = 0.5
# How much of a body is read before the reply, and for how long. A client that is still sending would miss the reply.
MAX_DISCARDED_BYTES = 64 * 1024 * 1024
DISCARD_S = 10.0

# Serve writes the messages of this logger to the proxy's log file.
logger = logging.getLogger("ray.serve")


async def ask_graph(app: ASGIApp) -> list[httpx.Response]:
    """Return what `/readyz` of each application behind a Serve proxy answers; an empty list if there is none.

    This takes as long as the first replica of an ingress takes to start, because Serve's proxy holds the request.
    """
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://graph") as client:
        try:
            routes = await client.get("/-/routes")
            if routes.status_code != 200:
                return []
            paths = [prefix.rstrip("/") + READY_PATH for prefix in routes.json()]
            return await asyncio.gather(*(client.get(path) for path in paths))
        except Exception:
            # The caller has to go on, and will ask again.
            logger.exception("the graph could not be asked whether it is ready")
            return []


def unavailable(message: str, request_id: str, retry_after_s: int) -> JSONResponse:
    """Return a 503 in the form of the ingress's errors, for when there is no ingress to answer."""
    error = {"type": "Overloaded", "field": None, "message": message, "param": None, "code": "overloaded"}
    return JSONResponse({"error": error}, 503, {"retry-after": str(retry_after_s), "x-request-id": request_id})


async def refuse(scope: Scope, receive: Receive, send: Send, awaited: str) -> None:
    """Read the body, then answer 503, saying what the server waits for."""
    await _discard(receive)
    message = f"the server is starting and waits for {awaited}; please send the request again"
    request_id = Headers(scope=scope).get("x-request-id") or str(uuid.uuid4())
    await unavailable(message, request_id, RETRY_AFTER_S)(scope, receive, send)


async def _discard(receive: Receive) -> None:
    """Read a body to its end, or to the limits."""
    num_bytes = 0
    try:
        async with asyncio.timeout(DISCARD_S):
            while (message := await receive())["type"] == "http.request":
                num_bytes += len(message.get("body", b""))
                if not message.get("more_body", False) or num_bytes > MAX_DISCARDED_BYTES:
                    return
    except TimeoutError:
        return


class Gate:
    """Lets requests through to `inner` once the graph behind it has been ready."""

    def __init__(self, inner: ASGIApp) -> None:
        self.inner = inner
        self.opened = False
        self.news: httpx.Response | None = None
        self._heard = asyncio.Event()
        self._news_due = 0.0
        self._watching: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        passes = self.opened or scope["type"] != "http" or scope["path"].startswith("/-/")
        if not passes and scope["path"] == ALIVE_PATH:
            await JSONResponse({"status": "alive"})(scope, receive, send)
        elif passes or await self._opens():
            await self.inner(scope, receive, send)
        elif scope["path"] == READY_PATH and self.news is not None and self.news.content:
            await _copy(self.news)(scope, receive, send)
        else:
            await refuse(scope, receive, send, self.awaited)

    @property
    def awaited(self) -> str:
        """Return what the graph still waits for, as far as it is known."""
        if self.news is None:
            return "the graph to be deployed and its first replicas to start"
        try:
            content = json.loads(self.news.content)
            stages = [stage for stage, answers in content["stages"].items() if not answers]
        except (ValueError, KeyError, TypeError, AttributeError):
            return "the ingress"
        files = f", which may need {', '.join(content['missing'])}" if content.get("missing") else ""
        return f"{', '.join(stages)}{files}"

    async def _opens(self) -> bool:
        """Return whether the gate is open, once the graph has answered. The first request starts the watch."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
            self._news_due = time.monotonic() + FIRST_NEWS_S
        with suppress(TimeoutError):
            async with asyncio.timeout(self._news_due - time.monotonic()):
                await self._heard.wait()
        return self.opened

    async def _watch(self) -> None:
        """Ask the graph until it is ready."""
        while not self.opened:
            answers = await ask_graph(self.inner)
            self.news = next((answer for answer in answers if _is_not_ready(answer)), None)
            self.opened = bool(answers) and self.news is None
            if answers:
                self._heard.set()
            await asyncio.sleep(0 if self.opened else PAUSE_S)


def _is_not_ready(answer: httpx.Response) -> bool:
    """Return whether an application is not ready. An application without a readiness path answers 404 and is ready."""
    return answer.status_code >= 500 or answer.status_code == 408


def _copy(answer: httpx.Response) -> Response:
    """Return an answer of the graph as a response of the proxy."""
    headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
    return Response(answer.content, answer.status_code, headers | {"retry-after": str(RETRY_AFTER_S)})
