"""From an HTTP request to edits: the multipart form is read, checked, and its pictures decoded. Called by `ingress`."""

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from email.message import Message
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from fashion_rag.catalogue.attributes import parse_filter
from fashion_rag.catalogue.garments import stored_jpeg
from fashion_rag.catalogue.table import GarmentRow, checked
from fashion_rag.data.image import MIN_SIDE, OpenedPhoto, open_image, open_mask, open_photo
from fashion_rag.data.pose import scale_keypoints
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import Manifest
from fashion_rag.request import EditRequest
from serve.config import IngressSettings
from serve.keypoints import parse_keypoints
from serve.schemas import QUALITY_PRESETS, EditForm, GarmentForm, OutputFormat, Preset

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

MAX_SIDE = 4096
# What the file formats can hold.
MAX_FILE_SIDES: dict[OutputFormat, int] = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}
SHAPE_TOLERANCE = 0.02
# A seed that is drawn here stays a whole number in every JSON reader.
RANDOM_SEEDS = 2**32

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


def edit_requests(
    form: EditForm, manifest: Manifest, settings: IngressSettings, request_id: str, arrived: float
) -> list[EditRequest]:
    """Return the `n` edits that a form asks for, in the size that their pictures are to have.

    Their seeds follow each other, and they share pictures. Steps, guidance and shortcuts are the form's, else the
    preset's, else the bundle's. With several, request ids end in -0, -1, ... arrived: Unix time in seconds, from which
    the caller's patience counts. Decodes pictures, so keep it off an event loop. Raises InvalidRequest, naming the
    form's field.
    """
    if form.model not in (None, manifest.name):
        raise InvalidRequest("model", form.model, f"must be {manifest.name!r}, or left out", "model_not_found")
    if form.deadline_s is not None and form.deadline_s > settings.deadline_s:
        raise InvalidRequest("deadline_s", form.deadline_s, f"must be at most {settings.deadline_s}")
    preset = _preset(form, settings.presets)
    photo = open_photo(form.image, max_pixels=settings.max_pixels)
    photo_size = (photo.pixels.shape[0], photo.pixels.shape[1])
    size = _asked_size(form, photo_size, settings.max_pixels)
    seed = secrets.randbelow(RANDOM_SEEDS) if form.seed is None else form.seed
    edit = EditRequest(
        image=photo.pixels,
        mask=_mask(form, photo, settings.max_pixels),
        prompt=form.prompt,
        category=form.category,
        keypoints=None if form.keypoints is None else parse_keypoints(form.keypoints, photo_size),
        num_garments=form.num_garments,
        garment_ids=tuple(form.garment_ids),
        attributes=parse_filter(form.attributes),
        num_chunks=form.num_chunks,
        template=form.template,
        seed=seed,
        num_inference_steps=form.steps or preset.steps or manifest.num_inference_steps,
        guidance_scale=next(
            scale
            for scale in (form.guidance_scale, preset.guidance_scale, manifest.guidance_scale)
            if scale is not None
        ),
        shortcuts=preset.shortcuts(
            solver=form.solver,
            guidance_start=form.guidance_start,
            guidance_end=form.guidance_end,
            cache_interval=form.cache_interval,
        ),
        icc_profile=photo.icc_profile,
        deadline=arrived + (form.deadline_s or settings.deadline_s),
        request_id=request_id,
    )
    # Here and not before: that mask and photo fit each other shows in the sizes they were sent in.
    edit = _resized(edit, size)
    if form.n == 1:
        return [edit]
    return [replace(edit, seed=seed + number, request_id=f"{request_id}-{number}") for number in range(form.n)]


def garment_picture(form: GarmentForm, max_pixels: int) -> tuple[GarmentRow, bytes]:
    """Return what a form says of a garment, and its picture as it is to be stored. Decodes it, so keep it off an event
    loop.

    Raises InvalidRequest, naming the field.
    """
    jpeg = stored_jpeg(open_image(form.image, max_pixels=max_pixels))
    attributes = {name: tuple(values) for name, values in parse_filter(form.attributes).items()}
    digest = hashlib.sha256(form.image).hexdigest()
    # Where the picture is stored is the catalogue's to say.
    row = GarmentRow(form.id, form.category, form.caption, "unknown", digest, attributes=attributes)
    return checked(row), jpeg


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


def _preset(form: EditForm, presets: Mapping[str, Preset]) -> Preset:
    field, value = ("quality", form.quality) if form.preset is None else ("preset", form.preset)
    name = QUALITY_PRESETS.get(form.quality) if form.preset is None else form.preset
    if name is None:
        return Preset()
    if name not in presets:
        raise InvalidRequest(field, value, f"needs a preset that this server has: {', '.join(presets) or 'none'}")
    return presets[name]


def _mask(form: EditForm, photo: OpenedPhoto, max_pixels: int) -> NDArray[np.uint8]:
    """Return the mask that was sent, else the transparent part of the photo. Raises InvalidRequest for neither."""
    if form.mask is not None:
        return open_mask(form.mask, max_pixels=max_pixels)
    if photo.hole is None:
        raise InvalidRequest("mask", None, "must be given, unless the photo is transparent where to repaint")
    return photo.hole


def _asked_size(form: EditForm, photo_size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """Return the (height, width) that the edited photo is to have."""
    size = photo_size
    if form.size != "auto":
        match = re.fullmatch(r"([0-9]{2,4})x([0-9]{2,4})", form.size)
        width, height = map(int, match.groups()) if match else (0, 0)
        if not MIN_SIDE <= min(width, height) <= max(width, height) <= MAX_SIDE:
            rule = f"must be auto, or WIDTHxHEIGHT with sides from {MIN_SIDE} to {MAX_SIDE}"
            raise InvalidRequest("size", form.size, rule)
        if width * height > max_pixels:
            raise InvalidRequest("size", form.size, f"must have at most {max_pixels} pixels", "unsupported_value")
        if abs(width * photo_size[0] / (height * photo_size[1]) - 1) > SHAPE_TOLERANCE:
            rule = f"must have the photo's shape, {photo_size[1]}x{photo_size[0]}, within {SHAPE_TOLERANCE:.0%}"
            raise InvalidRequest("size", form.size, rule, "unsupported_value")
        size = (height, width)
    if max(size) > MAX_FILE_SIDES[form.output_format]:
        rule = f"holds at most {MAX_FILE_SIDES[form.output_format]} pixels a side; the picture has {max(size)}"
        raise InvalidRequest("output_format", form.output_format, rule)
    return size


def _resized(edit: EditRequest, size: tuple[int, int]) -> EditRequest:
    height, width = size
    from_size = (edit.image.shape[0], edit.image.shape[1])
    if size == from_size:
        return edit
    return replace(
        edit,
        image=np.asarray(Image.fromarray(edit.image).resize((width, height), Image.Resampling.LANCZOS)),
        mask=np.asarray(Image.fromarray(edit.mask).resize((width, height), Image.Resampling.NEAREST)),
        keypoints=None if edit.keypoints is None else scale_keypoints(edit.keypoints, from_size, size),
    )
