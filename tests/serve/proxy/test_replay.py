"""Tests that a replayed request has its whole body and gets one answer, with stand-ins for Serve's proxy."""

import asyncio
import json
import socket
from collections.abc import Sequence
from typing import Any

import pytest
import uvicorn
from ray.serve._private.http_util import validate_http_proxy_callback_return
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from serve.proxy import middlewares, replay
from serve.proxy.replay import MAX_ATTEMPTS, TAKEN, RecordedBody, Replay, Room

CHUNKS = (b"one ", b"two ", b"three")
BODY = b"".join(CHUNKS)
# What waits longer waits for ever.
PATIENCE_S = 10.0


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "PAUSE_S", 0.01)
    # `middlewares` sets it, for the process of a proxy.
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])


class Client:
    """Sends one request and keeps what comes back. `receive` waits, as a server's does, once all is delivered."""

    def __init__(self, chunks: Sequence[bytes] = CHUNKS, **headers: str) -> None:
        self.to_come: asyncio.Queue[Message] = asyncio.Queue()
        for number, chunk in enumerate(chunks, 1):
            self.to_come.put_nowait({"type": "http.request", "body": chunk, "more_body": number < len(chunks)})
        self.got: list[Message] = []
        pairs = [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
        self.scope: Scope = {"type": "http", "method": "POST", "path": "/edits", "root_path": "", "headers": pairs}

    def leave(self) -> None:
        self.to_come.put_nowait({"type": "http.disconnect"})

    async def send(self, message: Message) -> None:
        self.got.append(message)

    def ask(self, app: ASGIApp) -> None:
        async def ask() -> None:
            async with asyncio.timeout(PATIENCE_S):
                await app(self.scope, self.to_come.get, self.send)

        asyncio.run(ask())

    @property
    def status(self) -> int:
        return int(self.got[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {key.decode(): value.decode() for key, value in self.got[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.got[1:])


class Ingress:
    """Dies in the way of `deaths`, one an attempt, after `num_read` messages; then answers with the body it was sent.

    Like Serve's proxy, it writes into its scope.
    """

    def __init__(self, *deaths: str, num_read: int | None = None) -> None:
        self.deaths = deaths
        self.num_read = num_read
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        death = self.deaths[len(self.scopes)] if len(self.scopes) < len(self.deaths) else None
        scope["root_path"] += "/prefix"
        self.scopes.append(scope)
        self.bodies.append(await read(receive, self.num_read if death else None))
        if death == "in the middle":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise ConnectionResetError
        if death == "with an error":
            raise ConnectionResetError
        if death is None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": self.bodies[-1]})

    @property
    def request_ids(self) -> list[bytes]:
        return [value for scope in self.scopes for key, value in scope["headers"] if key == b"x-request-id"]


async def read(receive: Receive, num_messages: int | None = None) -> bytes:
    """Return the bodies of the next `num_messages` messages, or of all to the last."""
    body, more, num_read = b"", True, 0
    while more and (num_messages is None or num_read < num_messages):
        message = await receive()
        body, more, num_read = body + message["body"], message["more_body"], num_read + 1
    return body


@pytest.mark.parametrize("death", ["in silence", "with an error"])
@pytest.mark.parametrize("num_deaths", range(MAX_ATTEMPTS))
@pytest.mark.parametrize("num_read", [0, 1, len(CHUNKS)])
def test_the_client_gets_its_answer_although_replicas_die(death: str, num_deaths: int, num_read: int) -> None:
    client, ingress = Client(), Ingress(*[death] * num_deaths, num_read=num_read)
    client.ask(Replay(ingress))
    assert (client.status, client.body) == (200, BODY)
    assert len(ingress.scopes) == num_deaths + 1


def test_every_attempt_has_the_same_scope() -> None:
    client, ingress = Client(), Ingress("in silence", "in silence")
    client.ask(Replay(ingress))
    assert [scope["root_path"] for scope in ingress.scopes] == ["/prefix"] * 3
    assert len(ingress.request_ids) == 3
    assert len(set(ingress.request_ids)) == 1


def test_the_callers_request_id_stays() -> None:
    client, ingress = Client(x_request_id="mine"), Ingress("in silence")
    client.ask(Replay(ingress))
    assert ingress.request_ids == [b"mine", b"mine"]


def test_requests_without_an_id_get_different_ones() -> None:
    ingress = Ingress()
    for _ in range(2):
        Client().ask(Replay(ingress))
    assert len(set(ingress.request_ids)) == 2


@pytest.mark.parametrize("death", ["in silence", "with an error"])
def test_where_nothing_answers_the_client_is_told_when_to_come_back(death: str) -> None:
    client, ingress = Client(x_request_id="mine"), Ingress(*[death] * 9)
    client.ask(Replay(ingress))
    assert len(ingress.scopes) == MAX_ATTEMPTS
    assert client.status == 503
    assert int(client.headers["retry-after"]) > 0
    assert client.headers["x-request-id"] == "mine"
    error = json.loads(client.body)["error"]
    assert (error["type"], error["field"], error["code"]) == ("Overloaded", None, "overloaded")


def test_a_response_that_has_begun_is_not_repeated() -> None:
    client, ingress = Client(), Ingress("in the middle")
    with pytest.raises(ConnectionResetError):
        client.ask(Replay(ingress))
    assert len(ingress.scopes) == 1
    assert [message["type"] for message in client.got] == ["http.response.start"]


def test_nothing_is_recorded_once_the_response_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[RecordedBody] = []

    class Watched(RecordedBody):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            bodies.append(self)

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        assert len(bodies[0].recorded) == 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        rest = await read(receive)
        assert bodies[0].recorded == []
        await send({"type": "http.response.body", "body": rest})

    monkeypatch.setattr(replay, "RecordedBody", Watched)
    client = Client()
    client.ask(Replay(echo))
    assert client.body == b"".join(CHUNKS[1:])


@pytest.mark.parametrize(("max_bytes", "num_attempts"), [(len(BODY), 2), (len(BODY) - 1, 1)])
def test_a_body_is_repeated_up_to_its_limit_only(max_bytes: int, num_attempts: int) -> None:
    client, ingress = Client(), Ingress("in silence")
    client.ask(Replay(ingress, max_bytes))
    assert ingress.bodies == [BODY] * num_attempts
    assert client.status == (200 if num_attempts == 2 else 503)


def test_what_is_recorded_of_all_requests_has_a_limit() -> None:
    async def record() -> None:
        room = Room(len(BODY))
        first, second, third = (RecordedBody(Client().to_come.get, 10**6, room) for _ in range(3))
        assert await read(first.from_start()) == BODY
        assert await read(second.from_start()) == BODY
        assert (first.repeatable, second.repeatable) == (True, False)
        first.close()
        second.close()
        assert await read(third.from_start()) == BODY
        assert third.repeatable
        third.close()
        assert room.num_bytes == len(BODY)

    asyncio.run(record())


async def answer(send: Send, *bodies: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for body in bodies:
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def test_a_long_body_goes_in_pieces() -> None:
    body = bytes(range(256)) * (replay.PIECE_BYTES // 256 * 2 + 1)

    async def ingress(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    client = Client()
    client.ask(Replay(ingress))
    assert client.body == body
    assert max(len(message["body"]) for message in client.got[1:]) == replay.PIECE_BYTES
    assert [message.get("more_body", False) for message in client.got[1:]] == [True, True, False]


def test_a_replica_is_told_what_the_client_has_taken() -> None:
    received: list[str] = []

    async def ingress(scope: Scope, receive: Receive, send: Send) -> None:
        assert TAKEN in scope["extensions"]
        await read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for body in (b"one", b"two"):
            await send({"type": "http.response.body", "body": body, "more_body": True})
            received.append((await receive())["type"])
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    client = Client()
    client.ask(Replay(ingress))
    assert received == [TAKEN, TAKEN]
    assert client.body == b"onetwo"


def test_a_client_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "UNREAD_S", 0.05)
    received: list[str] = []

    class Stuck(Client):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

    async def ingress(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        await answer(send, b"one", b"two")
        received.append((await receive())["type"])

    client = Stuck()
    client.ask(Replay(ingress))
    assert received == ["http.disconnect"]
    assert client.body == b"one"


@pytest.mark.parametrize(
    "offer", [b"", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"]
)
def test_an_offer_of_another_protocol_is_ignored(offer: bytes) -> None:
    """The HTTP server, started as Serve does, reads the body of a request that offers HTTP/2, and of the next."""
    middlewares()
    ingress = Ingress()
    request = b"POST / HTTP/1.1\r\nHost: here\r\n" + offer + b"Content-Length: 13\r\n\r\n"

    async def ask() -> bytes:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            server = uvicorn.Server(uvicorn.Config(ingress, lifespan="off", log_config=None))
            serving = asyncio.ensure_future(server.serve(sockets=[listener]))
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            reply = b""
            for _ in range(2):
                writer.write(request)
                await asyncio.sleep(0.01)
                for chunk in CHUNKS:
                    writer.write(chunk)
                while not reply.endswith(b"0\r\n\r\n"):
                    reply += await reader.read(65536)
                reply += b"|"
            writer.close()
            server.should_exit = True
            await serving
            return reply

    async def ask_with_patience() -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await ask()

    assert asyncio.run(ask_with_patience()).count(b"HTTP/1.1 200 OK") == 2
    assert ingress.bodies == [BODY, BODY]


@pytest.mark.parametrize("sees_it", [True, False])
def test_a_client_that_has_gone_is_not_asked_for(sees_it: bool) -> None:
    client, ingress = Client(), Ingress("in silence")
    client.leave()

    async def notices(scope: Scope, receive: Receive, send: Send) -> None:
        await ingress(scope, receive, send)
        if sees_it:
            assert (await receive())["type"] == "http.disconnect"

    client.ask(Replay(notices))
    assert len(ingress.scopes) == 1
    assert client.got == []


@pytest.mark.parametrize("num_turns", range(-1, 6))
def test_a_reader_that_is_cancelled_loses_and_doubles_nothing(num_turns: int) -> None:
    """Return whether it is cancelled before its message comes, with it, or some turns of the event loop after it."""
    client, bodies = Client(chunks=()), []
    client.to_come.put_nowait({"type": "http.request", "body": b"a", "more_body": True})

    async def ingress(scope: Scope, receive: Receive, send: Send) -> None:
        if bodies:
            bodies.append(await read(receive))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            return
        bodies.append(await read(receive, 1))
        reader = asyncio.ensure_future(receive())
        await asyncio.sleep(0.01)
        if num_turns < 0:
            # Its end is not waited for, as in Serve's proxy.
            reader.cancel()
        client.to_come.put_nowait({"type": "http.request", "body": b"b", "more_body": False})
        for _ in range(num_turns):
            await asyncio.sleep(0)
        reader.cancel()

    client.ask(Replay(ingress))
    assert bodies == [b"a", b"ab"]
    assert client.to_come.empty()


def test_no_task_is_left_behind() -> None:
    client = Client()

    async def ingress(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        waits_for_the_end = asyncio.ensure_future(receive())
        await asyncio.sleep(0.01)
        waits_for_the_end.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def num_tasks_left() -> int:
        await Replay(ingress)(client.scope, client.to_come.get, client.send)
        await asyncio.sleep(0.01)
        return len(asyncio.all_tasks()) - 1

    assert asyncio.run(num_tasks_left()) == 0


def test_what_is_not_http_passes_as_it_is() -> None:
    seen: list[Any] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([scope, receive, send])

    client = Client()
    scope, receive = {"type": "websocket"}, client.to_come.get
    asyncio.run(Replay(inner)(scope, receive, client.send))
    assert seen == [scope, receive, client.send]
    assert scope == {"type": "websocket"}


def test_serve_takes_the_middlewares() -> None:
    client, ingress = Client(), Ingress("in silence")

    async def proxy_itself(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in ("/-/routes", "/readyz"):
            await JSONResponse({"/": "graph"})(scope, receive, send)
        else:
            await ingress(scope, receive, send)

    app: ASGIApp = proxy_itself
    for middleware in validate_http_proxy_callback_return(middlewares()):
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    client.ask(app)
    assert client.status == 200
