"""Tests the replies that the error table makes, without a cluster."""

import asyncio
import json

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from ray.exceptions import RayTaskError, TaskCancelledError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fashion_rag.errors import ArtifactError, DeadlineExceeded, FashionRAGError, InvalidRequest, Overloaded
from serve.http.admission import RateLimited
from serve.http.auth import Unauthorized
from serve.http.errors import CALLER_LEFT, STATUS, add_handlers, answer_error, explained

REQUEST = Request({"type": "http", "headers": [(b"x-request-id", b"request-7")]})


def in_replica(cause: Exception) -> RayTaskError:
    """Return the error that the ingress sees when a replica has raised `cause`."""
    return RayTaskError("denoise", "traceback", cause, "replica", 1, "ip").as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "status", "kind", "field"),
    [
        (InvalidRequest("steps", 0, "must be more"), 400, "InvalidRequest", "steps"),
        (in_replica(InvalidRequest("steps", 0, "must be more")), 400, "InvalidRequest", "steps"),
        (Overloaded("full", 4), 503, "Overloaded", None),
        (RateLimited("too many of yours", 4), 429, "RateLimited", None),
        (Unauthorized("no key"), 401, "Unauthorized", None),
        (DeadlineExceeded("too slow"), 504, "DeadlineExceeded", None),
        (HTTPException(404, "no such garment"), 404, "NotFound", None),
        (HTTPException(408, "too slow"), 408, "RequestTimeout", None),
        (ClientDisconnect(), CALLER_LEFT, "ClientDisconnect", None),
        (TaskCancelledError(), CALLER_LEFT, "TaskCancelledError", None),
        (ArtifactError("/secret: damaged"), 500, "ArtifactError", None),
        (KeyError("/secret"), 500, "InternalServerError", None),
        (in_replica(KeyError("/secret")), 500, "InternalServerError", None),
    ],
)
def test_every_error_has_its_reply(error: Exception, status: int, kind: str, field: str | None) -> None:
    reply = asyncio.run(answer_error(REQUEST, error))
    body = json.loads(bytes(reply.body))["error"]
    assert (reply.status_code, body["type"], body["field"]) == (status, kind, field)
    assert ("retry-after" in reply.headers) == (status in (429, 503))
    assert "secret" not in body["message"]
    assert "traceback" not in body["message"]
    assert ("request-7" in body["message"]) == (status == 500)


def test_a_refusal_says_when_to_come_back() -> None:
    # Rounded up: who comes back too early is refused again.
    assert asyncio.run(answer_error(REQUEST, Overloaded("full", 3.2))).headers["retry-after"] == "4"


def test_who_has_no_key_is_told_how_to_show_one() -> None:
    assert asyncio.run(answer_error(REQUEST, Unauthorized("no key"))).headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("error", [ClientDisconnect(), TaskCancelledError()])
def test_who_leaves_is_answered_without_a_traceback(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """An application raises again what only its handler for Exception takes, and Serve logs that with a traceback."""
    api = FastAPI()
    add_handlers(api)

    @api.get("/")
    async def leave() -> None:
        raise error

    # The client raises what the application raises.
    assert TestClient(api).get("/").status_code == CALLER_LEFT
    assert caplog.records == []


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit(), ClientDisconnect(), TaskCancelledError()])
def test_who_leaves_is_no_failure_of_the_server(error: BaseException) -> None:
    assert explained(error)[1] == CALLER_LEFT


def test_every_error_of_ours_has_a_status() -> None:
    children = {kind for kind in FashionRAGError.__subclasses__()} | {RateLimited}
    assert children <= set(STATUS)
