"""Reads the multipart form in the body of an HTTP request, and checks its fields. The ingress calls `read_form`."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from email.message import Message
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from fashion_rag.errors import InvalidRequest
from serve.config import IngressSettings

MULTIPART = "multipart/form-data"
# More than a form has use for, so that one file too many is refused by its name.
MAX_FILES = 16
MAX_FIELDS = 64
# What a body must bring in every `upload_stall_s`, unless it ends. A sender of a byte now and then is no better than
# one of none.
MIN_PROGRESS_BYTES = 64 * 1024
FILE_FIELDS = ("image", "mask")
# Fields that may come as `name[]`: OpenAI's clients send what is in a list so.
BRACKET_FIELDS = ("image", "mask", "garment_ids", "attributes")
LIST_FIELDS = ("garment_ids", "attributes")

Form = TypeVar("Form", bound=BaseModel)

RULES = {
    "missing": "must be given",
    "extra_forbidden": "is not a field of this request",
    "int_parsing_size": "must be a smaller number",
}
CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}


async def read_form(http: Request, max_bytes: int, kind: type[Form], settings: IngressSettings) -> Form:
    """Return the form in the body of a request, with its files in memory.

    settings: for how long the body may take. Raises HTTPException: 415 for another content type, 413 for a body of more
    than `max_bytes`, which is not read to its end, 408 for one that comes too slowly, and 400 for what is no whole
    form; InvalidRequest, naming the field, for what the form may not hold.
    """
    boundary = _boundary(http.headers.get("content-type", ""))
    if int(http.headers.get("content-length", 0)) > max_bytes:
        raise _too_large(max_bytes)
    parser = _Parser(http, boundary, max_bytes, settings)
    async with aclosing(parser.stream):
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise HTTPException(400, f"body: {error.message}") from error
    try:
        items = [(name, await _content(part)) for name, part in form.multi_items()]
    finally:
        await form.close()
    return parse_form(items, kind)


def parse_form(items: Iterable[tuple[str, str | bytes]], kind: type[Form]) -> Form:
    """Return the form of this kind with these fields, which are text or the content of files.

    A field that is empty counts as left out where it is optional. Raises InvalidRequest, naming the field.
    """
    fields: dict[str, Any] = {}
    for sent_name, value in items:
        base = sent_name.removesuffix("[]")
        name = base if base in BRACKET_FIELDS else sent_name
        field = kind.model_fields.get(name)
        if field is not None and not field.is_required() and not value:
            continue
        if field is not None and isinstance(value, bytes) != (name in FILE_FIELDS):
            rule = "must be a file" if name in FILE_FIELDS else "must be text, not a file"
            raise InvalidRequest(name, _shown(value), rule)
        if name in LIST_FIELDS:
            fields.setdefault(name, []).append(value)
        elif name in fields and name in FILE_FIELDS:
            raise InvalidRequest(name, "several files", "must be one picture", "unsupported_value")
        elif name in fields:
            raise InvalidRequest(name, _shown(value), "must be given once")
        else:
            fields[name] = value
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise invalid_request(first, str(first["loc"][0])) from error


def invalid_request(fault: Mapping[str, Any], field: str) -> InvalidRequest:
    """Return one of pydantic's `errors()` in this project's words."""
    kind = fault["type"]
    value = None if kind == "missing" else _shown(fault["input"])
    rule = RULES.get(kind) or re.sub(r"^\w+ should", "must", fault["msg"]).split(", unable")[0]
    return InvalidRequest(field, value, rule, CODES.get(kind, "invalid_value"))


class _Parser(MultiPartParser):
    """Starlette's parser with two rules more.

    A body may have at most `max_bytes` and take the time that `settings` grant; and a form must be whole, while
    Starlette also takes one that is cut off.
    """

    def __init__(self, http: Request, boundary: str, max_bytes: int, settings: IngressSettings) -> None:
        # Without a charset, whatever the caller said: Starlette would decode with any, and RFC 7578 knows none.
        headers = Headers({"content-type": f'{MULTIPART}; boundary="{boundary}"'})
        body = self._body(http, max_bytes, settings)
        super().__init__(headers, body, max_files=MAX_FILES, max_fields=MAX_FIELDS)
        self.ended = False

    def on_end(self) -> None:
        self.ended = True

    async def _body(self, http: Request, max_bytes: int, settings: IngressSettings) -> AsyncGenerator[bytes, None]:
        num_bytes = 0
        async with aclosing(_timely(http.stream(), settings)) as chunks:
            async for chunk in chunks:
                num_bytes += len(chunk)
                if num_bytes > max_bytes:
                    raise _too_large(max_bytes)
                yield chunk
        if not self.ended:
            # Raised while files are still open, which Starlette closes on any error.
            raise MultiPartException("ends before the form does")


async def _timely(chunks: AsyncGenerator[bytes, None], settings: IngressSettings) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of a body. Raises HTTPException, a 408, where they come too slowly."""
    now = asyncio.get_running_loop().time
    end, stalls_at = now() + min(settings.upload_s, settings.deadline_s), now() + settings.upload_stall_s
    num_bytes = num_at_progress = 0
    async with aclosing(chunks):
        while True:
            try:
                async with asyncio.timeout_at(min(end, stalls_at)):
                    chunk = await anext(chunks, None)
            except TimeoutError as error:
                raise _too_slow(num_bytes, settings) from error
            if chunk is None:
                return
            num_bytes += len(chunk)
            if num_bytes - num_at_progress >= MIN_PROGRESS_BYTES:
                num_at_progress, stalls_at = num_bytes, now() + settings.upload_stall_s
            yield chunk


def _boundary(content_type: str) -> str:
    header = Message()
    header["content-type"] = content_type
    if header.get_content_type() != MULTIPART:
        raise HTTPException(415, f"content-type: got {content_type!r}; must be {MULTIPART}")
    boundary = header.get_boundary()
    if not boundary or not boundary.isascii():
        raise HTTPException(400, f"content-type: got {content_type!r}; must name a boundary in ASCII")
    return boundary


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"body: must have at most {max_bytes} bytes")


def _too_slow(num_bytes: int, settings: IngressSettings) -> HTTPException:
    rule = f"must bring {MIN_PROGRESS_BYTES} bytes in {settings.upload_stall_s} s, and its end in {settings.upload_s} s"
    # What is still to come of the body cannot be told from a next request.
    return HTTPException(408, f"body: stopped after {num_bytes} bytes; {rule}", {"connection": "close"})


async def _content(part: str | UploadFile) -> str | bytes:
    return part if isinstance(part, str) else await part.read()


def _shown(value: object) -> object:
    return f"a file of {len(value)} bytes" if isinstance(value, bytes) else value
