"""Tests that a starting server answers at once, and that no connection is reset when the proxy takes over."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from serve import startup_listener
from serve.http.replies import ErrorReply
from serve.ports import free_port, listening_socket, local_url
from serve.startup_listener import StartupListener
from tests.waiting import wait_for

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup_listener, "LINGER_S", 0.3)


def sharing_socket(port: int) -> socket.socket:
    """Return a socket as Serve's HTTP proxy binds it."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((HOST, port))
    return listener


@contextmanager
def proxy(port: int) -> Iterator[None]:
    """Run a server during the block that shares the port, as Serve's HTTP proxy does."""

    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("proxy")

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sharing_socket(port)]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    yield
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(("method", "path"), [("GET", "/readyz"), ("POST", "/v1/images/edits"), ("GET", "/nothing")])
def test_every_route_says_what_the_start_waits_for(method: str, path: str) -> None:
    with StartupListener(HOST, port := free_port()) as opened:
        opened.awaited = "the UNet"
        content = bytes(3_000_000) if method == "POST" else None
        reply = httpx.request(method, local_url(HOST, port) + path, content=content)
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) > 0
    assert "the UNet" in ErrorReply.model_validate(reply.json(), extra="forbid").error.message


def test_the_process_is_alive() -> None:
    with StartupListener(HOST, port := free_port()):
        assert httpx.get(f"{local_url(HOST, port)}/healthz").json() == {"status": "alive"}


def test_pages_of_allowed_origins_can_read_it() -> None:
    with StartupListener(HOST, port := free_port()) as opened:
        headers = {"origin": "https://shop.example"}
        assert "access-control-allow-origin" not in httpx.get(local_url(HOST, port), headers=headers).headers
        opened.allow(["https://shop.example"])
        reply = httpx.get(local_url(HOST, port), headers=headers)
        assert reply.headers["access-control-allow-origin"] == "https://shop.example"


@pytest.mark.parametrize("shares", [True, False])
def test_a_port_that_is_taken_is_refused(shares: bool) -> None:
    port = free_port()
    with sharing_socket(port) if shares else socket.create_server((HOST, port)) as taken:
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            StartupListener(HOST, port)
    StartupListener(HOST, port).socket.close()


def test_two_starts_cannot_share_a_port() -> None:
    port = free_port()
    with StartupListener(HOST, port), pytest.raises(OSError, match="in use"):
        listening_socket(HOST, port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(OSError, match="assign"):
        listening_socket("192.0.2.77", free_port())


def test_the_port_is_free_afterwards() -> None:
    port = free_port()
    for _ in range(2):
        with StartupListener(HOST, port):
            assert httpx.get(local_url(HOST, port)).status_code == 503


def test_the_change_to_the_proxy_resets_no_connection() -> None:
    port = free_port()
    url, over, replies, errors = local_url(HOST, port), threading.Event(), [], []

    def ask() -> None:
        while not over.is_set():
            try:
                replies.append(httpx.post(url, content=bytes(10_000)).status_code)
            except httpx.TransportError as error:
                errors.append(error)

    with StartupListener(HOST, port) as opened:
        callers = [threading.Thread(target=ask) for _ in range(4)]
        for caller in callers:
            caller.start()
        wait_for(lambda: len(replies) > 20)
        # Made before the change, and used after it.
        with socket.create_connection((HOST, port)) as early, proxy(port):
            handing_over = threading.Thread(target=opened.hand_over)
            handing_over.start()
            time.sleep(0.1)
            early.sendall(b"GET /readyz HTTP/1.1\r\nhost: here\r\n\r\n")
            early_reply = early.recv(100)
            handing_over.join()
            after = [httpx.get(url).text for _ in range(30)]
            over.set()
            for caller in callers:
                caller.join()
    assert after == ["proxy"] * 30
    assert b"503" in early_reply
    assert errors == []
    assert set(replies) == {503, 200}
