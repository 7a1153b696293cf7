"""Tests that pages of other origins can do what the graph allows, and read errors and streams."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serve.proxy import cors, gate
from serve.proxy.cors import ORIGINS_HEADER, Cors
from serve.proxy.gate import Gate

SHOP = "https://shop.example"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-request-id",
}


class Graph:
    """Stands for Serve's proxy, with a graph that allows `origins`, or does not answer if they are None."""

    def __init__(self, origins: str | None, ready: bool = True) -> None:
        self.origins = origins
        self.ready = ready
        self.num_asked = 0
        routes = {"/-/routes": self.routes, "/readyz": self.readyz, "/edit": self.edit, "/stream": self.stream}
        self.app = Starlette(routes=[Route(path, answer, methods=["GET", "POST"]) for path, answer in routes.items()])

    async def routes(self, request: Request) -> Response:
        return JSONResponse({"/": "graph"})

    async def readyz(self, request: Request) -> Response:
        self.num_asked += 1
        if self.origins is None:
            return JSONResponse({}, 503)
        return JSONResponse({"stages": {}}, 200 if self.ready else 503, {ORIGINS_HEADER: self.origins})

    async def edit(self, request: Request) -> Response:
        # As the proxy itself, or the graph, refuses.
        return JSONResponse({}, int(request.query_params.get("status", 200)), {"retry-after": "5"})

    async def stream(self, request: Request) -> Response:
        async def events() -> AsyncIterator[bytes]:
            yield b"one"
            yield b"two"

        return StreamingResponse(events())


def through(app: Any, talk: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Cors(app)), base_url="http://server") as client:
            result = await talk(client)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return result

    return asyncio.run(run())


def ask(graph: Graph, method: str, path: str, origin: str = SHOP, **headers: str) -> httpx.Response:
    reply: httpx.Response = through(
        graph.app, lambda client: client.request(method, path, headers={"origin": origin} | headers)
    )
    return reply


@pytest.mark.parametrize("origins", [SHOP, f"https://other.example {SHOP}", "*"])
def test_a_page_of_an_allowed_origin_may_send_its_key(origins: str) -> None:
    reply = ask(Graph(origins), "OPTIONS", "/edit", **PREFLIGHT)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == ("*" if origins == "*" else SHOP)
    assert "authorization" in reply.headers["access-control-allow-headers"]
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in reply.headers


@pytest.mark.parametrize("path", ["/edit", "/edit?status=401", "/edit?status=408", "/edit?status=503", "/stream"])
def test_replies_errors_and_streams_can_be_read(path: str) -> None:
    reply = ask(Graph(SHOP), "POST", path)
    assert reply.headers["access-control-allow-origin"] == SHOP
    assert "retry-after" in reply.headers["access-control-expose-headers"]
    assert "Origin" in reply.headers["vary"]


@pytest.mark.parametrize("origins", ["", "https://other.example"])
def test_other_pages_may_not(origins: str) -> None:
    assert "access-control-allow-origin" not in ask(Graph(origins), "OPTIONS", "/edit", **PREFLIGHT).headers
    assert "access-control-allow-origin" not in ask(Graph(origins), "POST", "/edit").headers


def test_the_answers_of_the_gate_can_be_read_as_soon_as_the_graph_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "FIRST_NEWS_S", 1.0)
    graph = Graph(SHOP, ready=False)
    reply = through(Gate(graph.app), lambda client: client.post("/edit", headers={"origin": SHOP}))
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (503, SHOP)


def test_a_caller_that_is_no_page_asks_nothing() -> None:
    graph = Graph(SHOP)
    assert through(graph.app, lambda client: client.post("/edit")).status_code == 200
    assert graph.num_asked == 0


def test_what_the_graph_allows_is_asked_once_and_again_when_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph("")

    async def talk(client: httpx.AsyncClient) -> list[bool]:
        allowed = []
        for origins, fresh_s in (("", 3600), (SHOP, 3600), (SHOP, 0), (SHOP, 3600)):
            graph.origins = origins
            monkeypatch.setattr(cors, "FRESH_S", fresh_s)
            reply = await client.post("/edit", headers={"origin": SHOP})
            allowed.append("access-control-allow-origin" in reply.headers)
        return allowed

    assert through(graph.app, talk) == [False, False, True, True]
    assert graph.num_asked == 2


def test_where_the_graph_does_not_answer_the_request_is_served_all_the_same() -> None:
    assert ask(Graph(None), "POST", "/edit").status_code == 200
