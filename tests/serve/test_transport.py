"""Tests a running graph with clients that send slowly, read nothing, leave early or offer another protocol."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from serve.config import IngressSettings
from tests.serve.client import PATIENCE_S, edit, empty, form, until
from tests.waiting import wait_for

NUM_PREVIEWS = 40
# A preview of this size is larger than what sockets and the proxy hold back.
LARGE = "1440x1920"

pytestmark = pytest.mark.slow


def post(url: str, *headers: str, **changes: Any) -> bytes:
    """Return the bytes of an edit's request, headers and body."""
    request = httpx.Request("POST", f"{url}/v1/images/edits", **form(**changes))
    body = request.read()
    lines = [f"{name}: {request.headers[name]}" for name in ("host", "content-type", "content-length")]
    return "\r\n".join(["POST /v1/images/edits HTTP/1.1", *lines, *headers, "", ""]).encode() + body


@contextmanager
def connected(url: str, receive_bytes: int = 0) -> Iterator[socket.socket]:
    """Connect to the graph. receive_bytes: the size of the client's receive buffer, if it is to be small."""
    host, port = httpx.URL(url).host, httpx.URL(url).port
    with socket.socket() as client:
        client.settimeout(PATIENCE_S)
        if receive_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.connect((host, port))
        yield client


def read_until(client: socket.socket, end: bytes) -> bytes:
    received = bytearray()
    while end not in received[-len(end) - 65536 :]:
        chunk = client.recv(65536)
        assert chunk, f"the connection ended after {bytes(received[-500:])!r}"
        received += chunk
    return bytes(received)


def num_errors() -> int:
    """Return how many errors the ingress has logged."""
    logs = Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs" / "serve"
    lines = [line for path in logs.glob("replica_*Ingress*.log") for line in path.read_text().splitlines()]
    return sum(json.loads(line)["levelname"] == "ERROR" for line in lines)


def test_half_bodies_keep_nobody_out_and_are_ended(url: str) -> None:
    request = post(url)
    with ExitStack() as open_ones:
        clients = [open_ones.enter_context(connected(url)) for _ in range(IngressSettings().max_edits + 1)]
        for client in clients:
            client.sendall(request[: len(request) // 2])
        assert edit(url).status_code == 200
        assert all(b" 408 " in read_until(client, b"\r\n") for client in clients)


def test_an_offer_of_http_2_is_ignored(url: str) -> None:
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
    request = post(url, *offer)
    with connected(url) as client:
        client.sendall(request[:300])
        client.sendall(request[300:])
        assert b" 200 " in read_until(client, b"\r\n")


def test_who_leaves_leaves_no_errors(url: str) -> None:
    before = num_errors()
    upload, stream = post(url), post(url, stream="true", partial_images=9, steps=50)
    for number in range(10):
        with connected(url) as client:
            client.sendall(upload[: len(upload) * number // 10])
        with connected(url) as client:
            client.sendall(stream)
            read_until(client, b"image_edit.partial_image")
    asyncio.run(until(empty))
    assert edit(url).status_code == 200
    assert num_errors() == before


def test_a_stream_that_is_read_late_has_its_end_and_no_old_previews(url: str) -> None:
    request = post(url, stream="true", partial_images=NUM_PREVIEWS, steps=NUM_PREVIEWS * 2, size=LARGE)
    with connected(url, receive_bytes=4096) as client:
        client.sendall(request)
        read_until(client, b"image_edit.partial_image")
        asyncio.run(until(empty))
        rest = read_until(client, b"\r\n0\r\n\r\n")
    assert rest.count(b"event: image_edit.completed") == 1
    assert rest.count(b"event: image_edit.partial_image") < NUM_PREVIEWS // 2


def test_unread_streams_keep_nobody_out(url: str) -> None:
    request = post(url, stream="true", partial_images=9, steps=20, size=LARGE)
    with ExitStack() as open_ones:
        for _ in range(IngressSettings().max_edits):
            client = open_ones.enter_context(connected(url, receive_bytes=4096))
            client.sendall(request)
        wait_for(lambda: edit(url).status_code == 200)
