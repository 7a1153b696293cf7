"""The one table of errors: what went wrong, and the HTTP status and words for it. The ingress calls it."""

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

from fashion_rag.errors import ArtifactError, DeadlineExceeded, FashionRAGError, InvalidRequest, Overloaded
from serve.auth import Forbidden, Unauthorized
from serve.calls import unwrapped
from serve.door import RateLimited
from serve.schemas import ErrorDetail, ErrorReply
from serve.uploads import invalid_request

# In no HTTP standard, but what proxies log for a caller who left.
CALLER_LEFT = 499

# The first that fits counts.
STATUS: dict[type[BaseException], int] = {
    InvalidRequest: 400,
    Unauthorized: 401,
    Forbidden: 403,
    RateLimited: 429,
    Overloaded: 503,
    DeadlineExceeded: 504,
    ArtifactError: 500,
    asyncio.CancelledError: CALLER_LEFT,
    ClientDisconnect: CALLER_LEFT,
    # Serve cancels what it has under way for a caller who left.
    TaskCancelledError: CALLER_LEFT,
    GeneratorExit: CALLER_LEFT,
}

logger = logging.getLogger("ray.serve")


def add_handlers(api: FastAPI) -> None:
    """Have `api` answer every error in the form {"error": {"type", "field", "message"}}."""
    for kind in (FashionRAGError, RequestValidationError, HTTPException, RayError, ClientDisconnect, Exception):
        api.add_exception_handler(kind, answer_error)


async def answer_error(request: Request, raised: Exception) -> JSONResponse:
    """The reply to any error: {"error": {"type", "field", "message"}} under its status."""
    error, status = explained(raised)
    headers = dict(getattr(error, "headers", None) or {})
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    reply = error_reply(error, status, request.headers.get("x-request-id"))
    return JSONResponse(reply.model_dump(), status, headers)


def explained(error: BaseException) -> tuple[BaseException, int]:
    """The error in this project's words, if it has some for it, and its HTTP status."""
    error = unwrapped(error)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        error = invalid_request(first, ".".join(map(str, first["loc"][1:])))
    if isinstance(error, HTTPException):
        return error, error.status_code
    return error, next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)


def error_reply(error: BaseException, status: int, request_id: str | None) -> ErrorReply:
    if status == 500:
        # What went wrong inside, paths among it, is for the operator.
        logger.error("edit failed", exc_info=error)
        message = f"the server failed; its log has the cause under request id {request_id}"
    else:
        message = str(getattr(error, "detail", error))
    known = isinstance(error, FashionRAGError) or status == CALLER_LEFT
    name = type(error).__name__ if known else HTTPStatus(status).phrase.replace(" ", "")
    return ErrorReply(error=ErrorDetail(type=name, field=getattr(error, "field", None), message=message))
