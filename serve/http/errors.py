"""The table of errors: the HTTP status, code and message for everything that can go wrong. The ingress uses it."""

import asyncio
import logging
import math
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray.exceptions import RayError, TaskCancelledError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fashion_rag.errors import ArtifactError, DeadlineExceeded, FashionRAGError, InvalidRequest, NotFound, Overloaded
from serve.calls import unwrapped
from serve.http.admission import RateLimited
from serve.http.auth import Forbidden, Unauthorized
from serve.http.multipart import invalid_request
from serve.http.replies import ErrorDetail, ErrorReply

# A status of no HTTP standard, which proxies log for a caller who left.
CALLER_LEFT = 499

# The first type that fits an error counts.
STATUS: dict[type[BaseException], int] = {
    InvalidRequest: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    RateLimited: 429,
    Overloaded: 503,
    DeadlineExceeded: 504,
    ArtifactError: 500,
    asyncio.CancelledError: CALLER_LEFT,
    ClientDisconnect: CALLER_LEFT,
    # Serve cancels the tasks of a caller who left.
    TaskCancelledError: CALLER_LEFT,
    GeneratorExit: CALLER_LEFT,
}

# For each status that a caller may get: the `code` of errors that name none of their own, and what it means.
STATUSES = {
    400: ("invalid_value", "A field or parameter is wrong, unknown, missing, or not supported; `param` names it."),
    401: ("invalid_api_key", "The API key is missing or unknown."),
    403: ("forbidden", "This server lets nobody change its catalogue."),
    404: ("not_found", "The address names nothing that this server has."),
    405: ("method_not_allowed", "The address has other methods; `Allow` names them."),
    408: ("request_timeout", "The request came too slowly, or its answer took longer than the server allows."),
    413: ("body_too_large", "The body is larger than the server takes."),
    415: ("unsupported_media_type", "The body is not multipart/form-data."),
    429: ("rate_limit_exceeded", "The API key has too many edits in flight; `Retry-After` says when to come back."),
    500: ("server_error", "The server failed; its log has the cause under the request's id."),
    503: ("overloaded", "There is too much work, or a part restarts; `Retry-After` says when to come back."),
    504: ("deadline_exceeded", "The edit cannot be, or was not, finished before its deadline."),
}

logger = logging.getLogger("ray.serve")


def add_handlers(api: FastAPI) -> None:
    """Have `api` answer every error in the form {"error": {"type", "field", "message", "param", "code"}}."""
    for kind in (FashionRAGError, RequestValidationError, HTTPException, RayError, ClientDisconnect, Exception):
        api.add_exception_handler(kind, answer_error)


async def answer_error(request: Request, raised: Exception) -> JSONResponse:
    """Return the reply to any error, {"error": {"type", "field", "message", "param", "code"}}, with its status."""
    error, status = explained(raised)
    headers = {name.lower(): value for name, value in (getattr(error, "headers", None) or {}).items()}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        # Starlette names the methods of one route only, while several routes may have the address.
        headers["allow"] = request.app.methods_of(request.url.path) or headers["allow"]
    reply = error_reply(error, status, request.headers.get("x-request-id"))
    return JSONResponse(reply.model_dump(), status, headers)


def explained(error: BaseException) -> tuple[BaseException, int]:
    """Return the error that stands for this one, with this project's message where it has one, and its HTTP status."""
    error = unwrapped(error)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        error = invalid_request(first, ".".join(map(str, first["loc"][1:])))
    if isinstance(error, HTTPException):
        return error, error.status_code
    return error, next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)


def error_reply(error: BaseException, status: int, request_id: str | None) -> ErrorReply:
    """Return the reply to an error. What is the server's fault is logged, with its cause."""
    if status == 500:
        # The cause, which may name paths, is for the operator only.
        logger.error("the request failed", exc_info=error)
        message = f"the server failed; its log has the cause under request id {request_id}"
    else:
        message = str(getattr(error, "detail", error))
    known = isinstance(error, FashionRAGError) or status == CALLER_LEFT
    name = type(error).__name__ if known else HTTPStatus(status).phrase.replace(" ", "")
    field = getattr(error, "field", None)
    code = getattr(error, "code", None) or STATUSES.get(status, STATUSES[500])[0]
    return ErrorReply(error=ErrorDetail(type=name, field=field, message=message, param=field, code=code))
