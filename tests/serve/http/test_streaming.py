"""Tests that streams keep the pace of their readers and lose nothing but old previews, without Ray."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable

import pytest
from ray.exceptions import TaskCancelledError
from starlette.types import Message, Scope

from serve.http.streaming import MAX_WAITING, PacedResponse, newest
from serve.proxy.replay import TAKEN

PATIENCE_S = 10.0
# Long enough for everything that is ready to happen.
A_MOMENT_S = 0.05


def within_patience(awaitable: Awaitable[None]) -> None:
    async def wait() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await awaitable

    asyncio.run(wait())


async def steps(num_steps: int, error: Exception | None = None) -> AsyncGenerator[str, None]:
    yield "prepared"
    for step in range(num_steps):
        yield f"preview {step}"
        await asyncio.sleep(0)
    if error:
        raise error
    yield "edited"


def is_preview(item: str) -> bool:
    return item.startswith("preview")


def test_who_fetches_at_once_gets_everything() -> None:
    async def read() -> None:
        got = [item async for item in newest(steps(20), is_preview)]
        assert got == [item async for item in steps(20)]

    within_patience(read())


def test_who_fetches_late_gets_the_newest_previews_and_the_end() -> None:
    async def read() -> None:
        items = newest(steps(20), is_preview)
        assert await anext(items) == "prepared"
        await asyncio.sleep(A_MOMENT_S)
        newest_ones = [f"preview {step}" for step in range(20 - MAX_WAITING, 20)]
        assert [item async for item in items][-MAX_WAITING - 1 :] == [*newest_ones, "edited"]

    within_patience(read())


def test_an_error_comes_after_the_items_before_it() -> None:
    async def read() -> None:
        items = newest(steps(1, ValueError("broken")), is_preview)
        assert [await anext(items), await anext(items)] == ["prepared", "preview 0"]
        with pytest.raises(ValueError, match="broken"):
            await anext(items)

    within_patience(read())


def test_who_stops_fetching_ends_the_work() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncGenerator[str, None]:
        try:
            while True:
                yield "preview"
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    async def read() -> None:
        items = newest(endless(), is_preview)
        await anext(items)
        await items.aclose()
        await ended.wait()

    within_patience(read())


class Client:
    """A client that takes a message of a response only on demand. The proxy tells the response, if it can."""

    def __init__(self, tells: bool) -> None:
        self.scope: Scope = {"type": "http", "extensions": {TAKEN: {}} if tells else {}}
        self.messages: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self.got: list[bytes] = []
        self.num_made = 0

    async def chunks(self, number: int) -> AsyncGenerator[bytes, None]:
        for chunk in range(number):
            self.num_made += 1
            yield f"{chunk}".encode()

    async def receive(self) -> Message:
        message = await self.messages.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def send(self, message: Message) -> None:
        self.got.append(message.get("body", b"start"))

    def response(self, number: int) -> Awaitable[None]:
        response = PacedResponse(self.chunks(number), "text/event-stream", {})
        return response(self.scope, self.receive, self.send)


def test_a_chunk_is_made_when_the_one_before_has_been_taken() -> None:
    async def respond() -> None:
        client = Client(tells=True)
        task = asyncio.ensure_future(client.response(3))
        for num_taken in range(3):
            await asyncio.sleep(A_MOMENT_S)
            assert client.num_made == num_taken + 1
            client.messages.put_nowait({"type": TAKEN})
        await task
        assert client.got == [b"start", b"0", b"1", b"2", b""]

    within_patience(respond())


def test_where_no_proxy_tells_of_it_chunks_go_as_they_come() -> None:
    async def respond() -> None:
        client = Client(tells=False)
        await client.response(3)
        assert client.got == [b"start", b"0", b"1", b"2", b""]

    within_patience(respond())


@pytest.mark.parametrize("message", [{"type": "http.disconnect"}, TaskCancelledError()])
def test_a_client_that_leaves_ends_the_response_in_silence(message: Message | Exception) -> None:
    async def respond() -> None:
        client = Client(tells=True)
        client.messages.put_nowait({"type": TAKEN})
        client.messages.put_nowait(message)
        await client.response(9)
        assert client.num_made < 9

    within_patience(respond())
