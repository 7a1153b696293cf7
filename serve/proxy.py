"""Keeps a client's request when the replica that was answering it dies. Serve's HTTP proxies call `middlewares`:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.proxy.middlewares     # in the environment of every node

Serve repeats no request that a replica has accepted. Where the ingress replica dies before it has answered, the proxy
ends the request with no response at all, of which the HTTP server makes an empty 500. The proxy outlives the replica
and has seen the body pass, so it can ask again. That is harmless for every route here: a garment stored twice is the
same, and an edit follows from its seed; one that came without a seed is given another, and so may come out as another
picture.
"""

import asyncio
import logging
import uuid
from collections import deque
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.cors import Cors
from serve.gate import Gate

# A request that itself kills what reads it costs this many replicas.
MAX_ATTEMPTS = 3
# What can be sent again; the ingress refuses larger ones.
MAX_BODY_BYTES = 64 * 1024 * 1024
# Serve itself holds a request until there is a replica for it, so this need not cover a restart.
PAUSE_S = 0.2
RETRY_AFTER_S = 3

# Serve has this one write to the proxy's log file.
logger = logging.getLogger("ray.serve")


def middlewares() -> list[Middleware]:
    """Return what Serve's HTTP proxy is to wrap around itself, the innermost first."""
    return [Middleware(Replay), Middleware(Gate), Middleware(Cors)]


class Replay:
    """Runs a request again, from the start of its body, while `inner` ends without having begun a response.

    At most MAX_ATTEMPTS times, and only for a client that still waits. A body of more than `max_bytes` passes, but only
    once. Where no attempt begins a response, the client gets a 503 in the form of the ingress's errors. A response that
    has begun is never repeated: a stream cut in the middle ends there.
    """

    def __init__(self, inner: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self.inner = inner
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        body = RecordedBody(receive, self.max_bytes)
        try:
            await self._attempt(scope, body, send)
        finally:
            body.close()

    async def _attempt(self, scope: Scope, body: "RecordedBody", send: Send) -> None:
        request_id = MutableHeaders(scope=scope).setdefault("x-request-id", str(uuid.uuid4()))
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            started = True
            body.forget()
            await send(message)

        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                # The proxy writes the route's prefix into its scope, so each attempt has one of its own.
                await self.inner(dict(scope), body.from_start(), send_on)
            except Exception:
                if started:
                    raise
                logger.exception("request %s failed in the proxy", request_id)
            if started or await body.client_leaves(within_s=PAUSE_S):
                return
            logger.warning("request %s got no response in attempt %d of %d", request_id, attempt, MAX_ATTEMPTS)
            if not body.repeatable:
                break
        message = "the server that had the request went away; please send it again"
        error = {"type": "Overloaded", "field": None, "message": message, "param": None, "code": "overloaded"}
        headers = {"retry-after": str(RETRY_AFTER_S), "x-request-id": request_id}
        await JSONResponse({"error": error}, 503, headers)(scope, body.from_start(), send)


class RecordedBody:
    """A request's messages, which can be read again from the first while they come to at most `max_bytes`."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self.receive = receive
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.repeatable = True
        self.client_left = False
        self.recorded: list[Message] = []
        self.coming: asyncio.Future[Message] | None = None

    def from_start(self) -> Receive:
        """A `receive` that begins with what has come so far. It replaces the one before, which must not be used on."""
        again = deque(self.recorded)

        async def receive() -> Message:
            return again.popleft() if again else await self._next()

        return receive

    async def _next(self) -> Message:
        # A task of its own: a reader that is cancelled while it waits leaves the message to the reader after it.
        if self.coming is None:
            self.coming = asyncio.ensure_future(self.receive())
        await asyncio.wait([self.coming])
        coming, self.coming = self.coming, None
        message = coming.result()
        self.client_left = message["type"] == "http.disconnect"
        self.num_bytes += len(message.get("body", b""))
        if self.num_bytes > self.max_bytes:
            self.forget()
        if self.repeatable:
            self.recorded.append(message)
        return message

    async def client_leaves(self, within_s: float) -> bool:
        """Whether the client has gone, or goes in the next `within_s` seconds; else returns after them.

        Reads on meanwhile, so a body that is not `repeatable` has then lost what came.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self.client_left:
                    await self._next()
        return self.client_left

    def forget(self) -> None:
        """Frees the record; what is still to come can be read once."""
        self.repeatable = False
        self.recorded.clear()

    def close(self) -> None:
        """Ends the wait for a message that nobody wants any more."""
        if self.coming is not None:
            self.coming.cancel()
