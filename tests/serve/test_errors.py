"""Holds the error table to the replies that it promises; without a cluster."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, Request
from ray.exceptions import ActorDiedError, RayTaskError
from starlette.exceptions import HTTPException

from fashion_rag.errors import ArtifactError, DeadlineExceeded, InvalidRequest, Overloaded
from serve.app import STATUS, BodyLimit, answer_error

REQUEST = Request({"type": "http", "headers": [(b"x-request-id", b"request-7")]})


def in_replica(cause: Exception) -> RayTaskError:
    """The error as the ingress sees it when a replica has raised `cause`."""
    return RayTaskError("denoise", "traceback", cause, "replica", 1, "ip").as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "status", "kind", "field"),
    [
        (InvalidRequest("steps", 0, "must be more"), 400, "InvalidRequest", "steps"),
        (in_replica(InvalidRequest("steps", 0, "must be more")), 400, "InvalidRequest", "steps"),
        (Overloaded("full", 4), 503, "Overloaded", None),
        (ActorDiedError(), 503, "Overloaded", None),
        (in_replica(ActorDiedError()), 503, "Overloaded", None),
        (DeadlineExceeded("too slow"), 504, "DeadlineExceeded", None),
        (HTTPException(404, "no such garment"), 404, "NotFound", None),
        (ArtifactError("/secret: damaged"), 500, "ArtifactError", None),
        (KeyError("/secret"), 500, "InternalServerError", None),
        (in_replica(KeyError("/secret")), 500, "InternalServerError", None),
    ],
)
def test_every_error_has_its_reply(error: Exception, status: int, kind: str, field: str | None) -> None:
    reply = asyncio.run(answer_error(REQUEST, error))
    body = json.loads(bytes(reply.body))["error"]
    assert (reply.status_code, body["type"], body["field"]) == (status, kind, field)
    assert ("retry-after" in reply.headers) == (status == 503)
    assert "secret" not in body["message"]
    assert "traceback" not in body["message"]
    assert ("request-7" in body["message"]) == (status == 500)


def test_a_refusal_says_when_to_come_back() -> None:
    assert asyncio.run(answer_error(REQUEST, Overloaded("full", 4))).headers["retry-after"] == "4"


def test_the_table_holds_every_error_of_ours() -> None:
    assert set(STATUS) == {InvalidRequest, Overloaded, DeadlineExceeded, ArtifactError}


@pytest.mark.parametrize(("num_chunks", "status"), [(2, 200), (3, 413)])
def test_a_body_is_read_up_to_its_limit_only(num_chunks: int, status: int) -> None:
    inner = FastAPI()
    inner.add_middleware(BodyLimit, max_bytes=20)
    num_sent = 0

    @inner.post("/")
    async def length(request: Request) -> int:
        return len(await request.body())

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal num_sent
        for _ in range(num_chunks):
            num_sent += 1
            yield bytes(10)

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(inner), base_url="http://test") as client:
            return await client.post("/", content=chunks())

    assert asyncio.run(post()).status_code == status
    assert num_sent == num_chunks
