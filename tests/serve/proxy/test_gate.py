"""Tests that the gate answers 503 on every route until the graph has been ready, and then lets all requests pass."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.http.replies import ErrorReply
from serve.proxy import gate
from serve.proxy.gate import Gate

STAGES = ("retriever", "denoiser")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "FIRST_NEWS_S", 0.5)
    monkeypatch.setattr(gate, "PAUSE_S", 0.01)


class Graph:
    """Stands for Serve's proxy, with a graph behind it. routes: None until the proxy knows any."""

    def __init__(self, routes: dict[str, str] | None = None, ready: dict[str, bool] | None = None) -> None:
        self.routes = routes
        self.ready = ready
        self.missing: list[str] = []
        self.num_edits = 0
        paths = {"/-/healthz": self.proxy, "/-/routes": self.proxy, "/readyz": self.readyz, "/edit": self.edit}
        self.app = Starlette(
            routes=[Route(path, answer, methods=["GET", "POST"]) for path, answer in paths.items()],
            exception_handlers={404: lambda request, error: PlainTextResponse("Ray's own", 404)},
        )

    async def proxy(self, request: Request) -> Response:
        return JSONResponse(self.routes, 200) if self.routes is not None else PlainTextResponse("no routes", 503)

    async def readyz(self, request: Request) -> Response:
        if self.ready is None:
            await asyncio.sleep(3600)
        assert self.ready is not None
        status = 200 if all(self.ready.values()) else 503
        return JSONResponse({"stages": self.ready, "missing": self.missing}, status)

    async def edit(self, request: Request) -> Response:
        self.num_edits += 1
        return PlainTextResponse(str(len(await request.body())))


def through(graph: Graph, talk: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    """Return what `talk` makes of a client of the gate before `graph`."""

    async def run() -> Any:
        app: ASGIApp = Gate(graph.app)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gate") as client:
            result = await talk(client)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return result

    return asyncio.run(run())


def refused(reply: httpx.Response) -> str:
    """Return the message of a 503 that says when to come back."""
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) > 0
    assert reply.headers["x-request-id"]
    error = ErrorReply.model_validate(reply.json(), extra="forbid").error
    assert (error.type, error.field) == ("Overloaded", None)
    return error.message


@pytest.mark.parametrize(
    ("graph", "awaited"),
    [
        (Graph(), "the graph to be deployed"),
        (Graph({}), "the graph to be deployed"),
        (Graph({"/": "graph"}), "its first replicas to start"),
        (Graph({"/": "graph"}, {"retriever": True, "denoiser": False}), "denoiser"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/edit", "/no-such-route"])
def test_until_the_graph_is_ready_every_route_says_what_is_awaited(
    graph: Graph, awaited: str, method: str, path: str
) -> None:
    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        content = bytes(1000) if method == "POST" else None
        return await client.request(method, path, content=content, headers={"x-request-id": "mine"})

    reply = through(graph, talk)
    assert awaited in refused(reply)
    assert reply.headers["x-request-id"] == "mine"
    assert graph.num_edits == 0


def test_files_that_are_missing_are_named() -> None:
    graph = Graph({"/": "graph"}, {"denoiser": False})
    graph.missing = ["/models/manifest.json"]
    assert "/models/manifest.json" in refused(through(graph, lambda client: client.get("/edit")))


def test_readiness_is_the_graphs_own_once_it_has_answered() -> None:
    ready = dict.fromkeys(STAGES, False)
    reply = through(Graph({"/": "graph"}, ready), lambda client: client.get("/readyz"))
    assert (reply.status_code, reply.json()) == (503, {"stages": ready, "missing": []})
    refused(through(Graph(), lambda client: client.get("/readyz")))


def test_a_process_that_answers_is_alive() -> None:
    reply = through(Graph(), lambda client: client.get("/healthz"))
    assert (reply.status_code, reply.json()) == (200, {"status": "alive"})


@pytest.mark.parametrize("routes", [None, {"/": "graph"}])
def test_paths_of_serve_itself_pass(routes: dict[str, str] | None) -> None:
    graph = Graph(routes)
    direct = through(graph, lambda client: client.get("/-/healthz"))
    assert (direct.status_code, direct.text) == (
        (503, "no routes") if routes is None else (200, json.dumps(routes, separators=(",", ":")))
    )


def test_the_first_request_of_a_new_proxy_passes_where_the_graph_is_ready() -> None:
    reply = through(
        Graph({"/": "graph"}, dict.fromkeys(STAGES, True)), lambda client: client.post("/edit", content=b"four")
    )
    assert (reply.status_code, reply.text) == (200, "4")


def test_applications_below_a_prefix_or_without_readiness_are_served() -> None:
    graph = Graph({"/": "graph", "/another": "no readiness"}, dict.fromkeys(STAGES, True))
    assert through(graph, lambda client: client.get("/edit")).status_code == 200


def test_a_gate_that_has_opened_never_closes() -> None:
    graph = Graph({"/": "graph"}, dict.fromkeys(STAGES, False))

    async def talk(client: httpx.AsyncClient) -> list[int]:
        statuses = [(await client.get("/edit")).status_code]
        graph.ready = dict.fromkeys(STAGES, True)
        async with asyncio.timeout(10):
            while (await client.get("/edit")).status_code == 503:
                await asyncio.sleep(0.01)
        graph.routes, graph.ready = None, dict.fromkeys(STAGES, False)
        await asyncio.sleep(0.1)
        return [*statuses, (await client.get("/edit")).status_code, (await client.get("/readyz")).status_code]

    assert through(graph, talk) == [503, 200, 503]
    assert graph.num_edits == 2


def test_the_gate_asks_no_more_once_it_is_open() -> None:
    graph = Graph({"/": "graph"}, dict.fromkeys(STAGES, True))

    async def num_tasks(client: httpx.AsyncClient) -> int:
        await client.get("/edit")
        await asyncio.sleep(0.05)
        return len(asyncio.all_tasks())

    assert through(graph, num_tasks) == 1


def test_only_the_first_requests_wait_for_news(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(client: httpx.AsyncClient) -> list[int]:
        statuses = [(await client.get("/edit")).status_code]
        monkeypatch.setattr(gate, "FIRST_NEWS_S", 1e6)
        async with asyncio.timeout(60):
            return [*statuses, (await client.get("/edit")).status_code]

    assert through(Graph(), talk) == [503, 503]


def test_an_answer_that_is_no_readiness_is_waited_for_too() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        routes = scope["path"] == "/-/routes"
        await JSONResponse({"/": "graph"} if routes else "Serve failed", 200 if routes else 500)(scope, receive, send)

    graph = Graph()
    graph.app = app  # type: ignore[assignment]
    assert "the ingress" in refused(through(graph, lambda client: client.get("/edit")))
