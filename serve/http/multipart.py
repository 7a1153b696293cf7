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
# More than any form has, so that a file too many is refused by its name.
MAX_FILES = 16
MAX_FIELDS = 64
# What a body must bring in every `upload_stall_s`, unless it ends. To send a byte now and then is not enough.
MIN_PROGRESS_BYTES = 64 * 1024
FILE_FIELDS = ("image", "mask")
# Fields that may come as `name[]`, which is how OpenAI's clients send lists.
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

    settings: say how long the body may take. Raises HTTPException: 415 for another content type, 413 for a body of more
    than `max_bytes`, which is not read to its end, 408 for a body that comes too slowly, and 400 for a form that is not
    whole. Raises InvalidRequest, naming the field, for a field that is wrong.
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

    An optional field that is empty counts as left out. Raises InvalidRequest, naming the field.
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
    """Return the InvalidRequest for one of the `errors()` of pydantic."""
    kind = fault["type"]
    value = None if kind == "missing" else _shown(fault["input"])
    rule = RULES.get(kind) or re.sub(r"^\w+ should", "must", fault["msg"]).split(", unable")[0]
    return InvalidRequest(field, value, rule, CODES.get(kind, "invalid_value"))


class _Parser(MultiPartParser):
    """Starlette's parser, with limits on the size and the time of a body, and only for whole forms.

    Starlette itself also takes a form that is cut off.
    """

    def __init__(self, http: Request, boundary: str, max_bytes: int, settings: IngressSettings) -> None:
        # The charset that a caller may name is dropped: Starlette would decode with it, and RFC 7578 has none.
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
            # Raised here, while Starlette still closes the open files on an error.
            raise MultiPartException("ends before the form does")


async def _timely(chunks: AsyncGenerator[bytes, None], settings: IngressSettings) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of a body. Raises HTTPException with 408 if they come too slowly."""
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
    """Return the boundary that a content type names. Raises HTTPException for another type, and for no boundary."""
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
    # The connection is closed, because the rest of the body could not be told from a next request.
    return HTTPException(408, f"body: stopped after {num_bytes} bytes; {rule}", {"connection": "close"})


async def _content(part: str | UploadFile) -> str | bytes:
    return part if isinstance(part, str) else await part.read()


def _shown(value: object) -> object:
    """Return what an error message shows of a value."""
    return f"a file of {len(value)} bytes" if isinstance(value, bytes) else value
