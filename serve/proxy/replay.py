"""Keeps a client's request when the replica that was answering it dies, and sends responses at the client's pace.

Serve repeats no request that a replica has accepted. If the ingress replica dies before it has answered, the proxy ends
the request with no response at all, which the HTTP server turns into an empty 500. The proxy outlives the replica and
has seen the body, so it can send the request again. That is harmless for every route here: a garment stored twice is
the same, and an edit follows from its seed. An edit without a seed is given another one, and so may become another
picture.

A response is sent in small pieces, each once the client has taken those before. The replica is told when the client has
taken a message, so that a stream makes no event that nobody fetches.
"""

import asyncio
import logging
import uuid
from collections import deque
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.proxy.gate import unavailable

# A request that kills the replica that reads it costs this many replicas.
MAX_ATTEMPTS = 3
# Larger bodies cannot be sent again, and the ingress refuses them.
MAX_BODY_BYTES = 64 * 1024 * 1024
# Serve holds a request until there is a replica for it, so the pause need not cover a restart.
PAUSE_S = 0.2
RETRY_AFTER_S = 3
# The limit for all requests together. A body for which there is no room passes, but cannot be sent again.
MAX_RECORDED_BYTES = 512 * 1024 * 1024
# About as much as the HTTP server buffers before it makes the sender wait.
PIECE_BYTES = 64 * 1024
# A client that takes no piece of its response for this long is cut off.
UNREAD_S = 300.0
# The type of the message that tells a replica that the client has taken what it last sent. It is also the name of the
# ASGI extension that says that there are such messages.
TAKEN = "fashion_rag.taken"

# Serve writes the messages of this logger to the proxy's log file.
logger = logging.getLogger("ray.serve")


class Replay:
    """Runs a request again, from the start of its body, if `inner` ends without having begun a response.

    It is run at most MAX_ATTEMPTS times, and only while the client still waits. A body of more than `max_bytes`, or one
    that would bring the recorded bytes of all requests above `max_recorded_bytes`, passes only once. If no attempt
    begins a response, the client gets a 503 in the form of the ingress's errors. A response that has begun is never
    repeated, so a stream that is cut ends there.
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
                body.insert({"type": "http.disconnect"})
            if message.get("more_body", False):
                body.insert({"type": TAKEN})

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
    """The number of bytes that all requests together may still record."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes


class RecordedBody:
    """The messages of a request, which can be read again from the first while they have at most `max_bytes`.

    room: what recorded bytes are taken from, and given back to.
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
        self.inserted: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    def from_start(self) -> Receive:
        """Return a `receive` that begins with the messages that have come so far.

        The one returned before must not be used any more.
        """
        again = deque(self.recorded)

        async def receive() -> Message:
            return again.popleft() if again else await self._next()

        return receive

    def insert(self, message: Message) -> None:
        """Have the reader receive a message that does not come from the client, unless another such message waits."""
        if message["type"] == "http.disconnect":
            self.client_left = True
        if not self.inserted.done():
            self.inserted.set_result(message)

    async def _next(self) -> Message:
        # It is received in a task of its own, so that a reader that is cancelled leaves the message to the next reader.
        if self.coming is None:
            self.coming = asyncio.ensure_future(self.receive())
        await asyncio.wait([self.coming, self.inserted], return_when=asyncio.FIRST_COMPLETED)
        if self.inserted.done():
            inserted, self.inserted = self.inserted, asyncio.get_running_loop().create_future()
            return {"type": "http.disconnect"} if self.client_left else inserted.result()
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
        """Return whether the client has left, or leaves within `within_s` seconds.

        Messages are read meanwhile, so a body that is not `repeatable` loses what comes.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self.client_left:
                    await self._next()
        return self.client_left

    def forget(self) -> None:
        """Free the record. What is still to come can be read once."""
        self.repeatable = False
        self.room.num_bytes += sum(len(message.get("body", b"")) for message in self.recorded)
        self.recorded.clear()

    def close(self) -> None:
        """Free the record, and stop waiting for a message."""
        self.forget()
        if self.coming is not None:
            self.coming.cancel()
