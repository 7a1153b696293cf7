"""Keeps a client's request when the replica that was answering it dies. Serve's HTTP proxies call `middlewares`:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.proxy.middlewares     # in the environment of every node

Serve repeats no request that a replica has accepted. Where the ingress replica dies before it has answered, the proxy
ends the request with no response at all, of which the HTTP server makes an empty 500. The proxy outlives the replica
and has seen the body pass, so it can ask again. That is harmless for every route here: a garment stored twice is the
same, and an edit follows from its seed; one that came without a seed is given another, and so may come out as another
picture.

The proxy also paces what goes back. A response is sent in small pieces, each once the client has taken those before,
and the replica is told when the client has taken a message, so that a stream makes no event that nobody fetches.
"""

import asyncio
import logging
import uuid
from collections import deque
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.proxy.gate import unavailable

# A request that itself kills what reads it costs this many replicas.
MAX_ATTEMPTS = 3
# What can be sent again; the ingress refuses larger ones.
MAX_BODY_BYTES = 64 * 1024 * 1024
# Serve itself holds a request until there is a replica for it, so this need not cover a restart.
PAUSE_S = 0.2
RETRY_AFTER_S = 3
# All requests together; a body for which there is no room passes, but only once.
MAX_RECORDED_BYTES = 512 * 1024 * 1024
# About what the HTTP server holds back before it makes the sender wait.
PIECE_BYTES = 64 * 1024
# A client that takes no piece of its response for so long is cut off.
UNREAD_S = 300.0
# The message by which a replica hears, among those that it receives, that the client has taken what it last sent. It is
# also the name of the ASGI extension which says that there are such messages.
TAKEN = "fashion_rag.taken"

# Serve has this one write to the proxy's log file.
logger = logging.getLogger("ray.serve")


class Replay:
    """Runs a request again, from the start of its body, while `inner` ends without having begun a response.

    At most MAX_ATTEMPTS times, and only for a client that still waits. A body of more than `max_bytes` passes, but only
    once; so does one that would bring what is recorded of all requests above `max_recorded_bytes`. Where no attempt
    begins a response, the client gets a 503 in the form of the ingress's errors. A response that has begun is never
    repeated: a stream cut in the middle ends there.
    """

    def __init__(
        self, inner: ASGIApp, max_bytes: int = MAX_BODY_BYTES, max_recorded_bytes: int = MAX_RECORDED_BYTES
    ) -> None:
        self.inner = inner
        self.max_bytes = max_bytes
        self.room = Room(max_recorded_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        scope = {**scope, "extensions": {**scope.get("extensions", {}), TAKEN: {}}}
        body = RecordedBody(receive, self.max_bytes, self.room)
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
            if body.client_left:
                return
            try:
                await send_in_pieces(message, send)
            except TimeoutError:
                logger.warning("request %s is cut off: its client took nothing for %.0f s", request_id, UNREAD_S)
                body.tell({"type": "http.disconnect"})
            if message.get("more_body", False):
                body.tell({"type": TAKEN})

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
        await unavailable(message, request_id, RETRY_AFTER_S)(scope, body.from_start(), send)


async def send_in_pieces(message: Message, send: Send) -> None:
    """Send a message, a long body in pieces. Raises TimeoutError where the client takes no piece for UNREAD_S.

    The server makes the sender wait while more than about a piece has not been taken.
    """
    body, more = message.get("body", b""), message.get("more_body", False)
    pieces = [message]
    if len(body) > PIECE_BYTES:
        starts = range(0, len(body), PIECE_BYTES)
        pieces = [{**message, "body": body[start : start + PIECE_BYTES], "more_body": True} for start in starts]
        pieces[-1]["more_body"] = more
    for piece in pieces:
        async with asyncio.timeout(UNREAD_S):
            await send(piece)


class Room:
    """How many bytes may still be recorded, by all requests together."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes


class RecordedBody:
    """A request's messages, which can be read again from the first while they come to at most `max_bytes`.

    room: from which the recorded bytes are taken, and into which they are given back.
    """

    def __init__(self, receive: Receive, max_bytes: int, room: Room) -> None:
        self.receive = receive
        self.max_bytes = max_bytes
        self.room = room
        self.num_bytes = 0
        self.repeatable = True
        self.client_left = False
        self.recorded: list[Message] = []
        self.coming: asyncio.Future[Message] | None = None
        self.told: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    def from_start(self) -> Receive:
        """Return a `receive` that begins with what has come so far.

        It replaces the one before, which must not be used on.
        """
        again = deque(self.recorded)

        async def receive() -> Message:
            return again.popleft() if again else await self._next()

        return receive

    def tell(self, message: Message) -> None:
        """Have the reader receive a message that does not come from the client. One that still waits stays."""
        if message["type"] == "http.disconnect":
            self.client_left = True
        if not self.told.done():
            self.told.set_result(message)

    async def _next(self) -> Message:
        # A task of its own: a reader that is cancelled while it waits leaves the message to the reader after it.
        if self.coming is None:
            self.coming = asyncio.ensure_future(self.receive())
        await asyncio.wait([self.coming, self.told], return_when=asyncio.FIRST_COMPLETED)
        if self.told.done():
            told, self.told = self.told, asyncio.get_running_loop().create_future()
            return {"type": "http.disconnect"} if self.client_left else told.result()
        coming, self.coming = self.coming, None
        message = coming.result()
        self.client_left = message["type"] == "http.disconnect"
        self._record(message)
        return message

    def _record(self, message: Message) -> None:
        num_new = len(message.get("body", b""))
        self.num_bytes += num_new
        if self.num_bytes > self.max_bytes or num_new > self.room.num_bytes:
            self.forget()
        if self.repeatable:
            self.room.num_bytes -= num_new
            self.recorded.append(message)

    async def client_leaves(self, within_s: float) -> bool:
        """Return whether the client has gone, or goes in the next `within_s` seconds; else returns after them.

        Reads on meanwhile, so a body that is not `repeatable` has then lost what came.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self.client_left:
                    await self._next()
        return self.client_left

    def forget(self) -> None:
        """Free the record; what is still to come can be read once."""
        self.repeatable = False
        self.room.num_bytes += sum(len(message.get("body", b"")) for message in self.recorded)
        self.recorded.clear()

    def close(self) -> None:
        """Free the record, and end the wait for a message that nobody wants any more."""
        self.forget()
        if self.coming is not None:
            self.coming.cancel()
