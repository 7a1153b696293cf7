"""Streams at the pace of their readers, so that no memory fills with what nobody fetches. The ingress uses it."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

from ray.exceptions import TaskCancelledError
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve.proxy.replay import TAKEN

# A caller of OpenAI's images API may ask for three previews, and so misses none of them.
MAX_WAITING = 3

T = TypeVar("T")


class PacedResponse(StreamingResponse):
    """A streamed response whose next chunk is made once the client has taken the one before.

    Serve's proxy takes all that a replica sends, whether or not the client reads it. `serve.proxy.replay` therefore
    tells the replica when the client has taken a chunk. Behind a proxy without it, chunks are sent as they are made.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None], media_type: str, headers: dict[str, str]) -> None:
        super().__init__(chunks, media_type=media_type, headers=headers)
        self.chunks = chunks
        self.taken = asyncio.Event()
        self.paced = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paced = TAKEN in scope.get("extensions", {})
        await super().__call__(scope, receive, send)

    async def listen_for_disconnect(self, receive: Receive) -> None:
        """Return when the client has left. Until then, note each chunk that it has taken."""
        try:
            while (message := await receive())["type"] != "http.disconnect":
                if message["type"] == TAKEN:
                    self.taken.set()
        except TaskCancelledError:
            # The client has left, so Serve has cancelled the request and the task that receives its messages.
            pass

    async def stream_response(self, send: Send) -> None:
        """Send the chunks, each once the client has taken the chunk before."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self.chunks) as chunks:
            async for chunk in chunks:
                self.taken.clear()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                if self.paced:
                    await self.taken.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def newest(items: AsyncGenerator[T, None], may_skip: Callable[[T], bool]) -> AsyncGenerator[T, None]:
    """Yield the items. Of items that may be skipped, only the newest MAX_WAITING are kept while nobody takes them.

    The items are read in a task of its own, and so never wait for the reader of this generator. Raises what `items`
    raises, after the items before.
    """
    waiting: deque[T] = deque()
    news = asyncio.Event()

    async def read() -> None:
        async with aclosing(items):
            async for item in items:
                waiting.append(item)
                skippable = [index for index, kept in enumerate(waiting) if may_skip(kept)]
                if len(skippable) > MAX_WAITING:
                    del waiting[skippable[0]]
                news.set()

    def end(reader: asyncio.Task[None]) -> None:
        # If nobody waits for the error any more, asyncio would log it unless it is retrieved here.
        if not reader.cancelled():
            reader.exception()
        news.set()

    reader = asyncio.create_task(read())
    reader.add_done_callback(end)
    try:
        while waiting or not reader.done():
            await news.wait()
            news.clear()
            while waiting:
                yield waiting.popleft()
        await reader
    finally:
        reader.cancel()
