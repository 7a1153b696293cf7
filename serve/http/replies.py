"""What the server answers: replies, the events of a stream, and the pictures in them. The ingress sends them.

The shapes are those of OpenAI's images API, with fields of our own.
"""

import base64
import io
import time
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, computed_field

from fashion_rag.person.completion import Found
from serve import tracing
from serve.http.forms import EditForm, OutputFormat, Quality
from serve.tracing import Kind

# The levels go to 9. Level 1 is two and a half times as fast as the usual 6, for a photo that is a sixth larger.
PNG_LEVEL = 1


class ImageData(BaseModel):
    """A finished picture, and the seed with which it can be made again."""

    b64_json: str
    seed: int


class GarmentUsed(BaseModel):
    """A garment in the picture. `score` is its cosine with the prompt, or null where the caller named the garment."""

    id: str
    score: float | None
    caption: str


class WhatWasFound(BaseModel):
    """What was found for a request that left it open.

    `category_confidence` is from 0 to 1, or null where the caller or a named garment decided. `warnings` are sentences
    for the caller about the photo.
    """

    category: str
    category_confidence: float | None
    warnings: list[str]


class EditReply(WhatWasFound):
    """The reply to an edit. `size` is WIDTHxHEIGHT, and `seed` is the seed of the first picture."""

    created: int
    data: list[ImageData]
    output_format: OutputFormat
    size: str
    garments: list[GarmentUsed]
    seed: int
    timings_ms: dict[str, float]


class StreamEvent(BaseModel):
    """The fields of every event of a stream."""

    b64_json: str
    created_at: int
    size: str
    quality: Quality
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat


class PartialImage(StreamEvent):
    """A preview after `step` of `num_steps` steps. The index of the first preview is 0."""

    type: Literal["image_edit.partial_image"] = "image_edit.partial_image"
    partial_image_index: int
    step: int
    num_steps: int


class EditCompleted(StreamEvent, WhatWasFound):
    """The finished picture, which ends a stream."""

    type: Literal["image_edit.completed"] = "image_edit.completed"
    garments: list[GarmentUsed]
    seed: int
    timings_ms: dict[str, float]


class ErrorDetail(BaseModel):
    """An error's type, the field that is wrong, if any, and what to do about it.

    OpenAI's clients read `param`, which is the same as `field`, and `code`, which names the kind of error.
    """

    type: str
    field: str | None
    message: str
    param: str | None
    code: str


class ErrorReply(BaseModel):
    """The reply to any error. In a stream, it is the data of the event `error`."""

    error: ErrorDetail


class Model(BaseModel):
    """A bundle that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The reply to GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Readiness(BaseModel):
    """The reply to GET /readyz: which stages answer, and the missing files that the other stages may wait for.

    warnings: what an operator should change although the graph is ready.
    """

    stages: dict[str, bool]
    missing: list[str]
    warnings: list[str]


class GarmentFound(BaseModel):
    """A garment in the catalogue. `score` is its cosine with what was searched for, or null where its id was given."""

    id: str
    category: str
    caption: str
    attributes: dict[str, list[str]]
    score: float | None

    @computed_field
    def image_url(self) -> str:
        """Return the path of the garment's picture on this server."""
        return f"/v1/garments/{quote(self.id, safe='')}/image"


class GarmentList(BaseModel):
    """The reply to a search for garments, best first."""

    object: Literal["list"] = "list"
    data: list[GarmentFound]


def edit_reply(
    form: EditForm,
    pictures: Sequence[NDArray[np.uint8]],
    seeds: Sequence[int],
    garments: Sequence[GarmentUsed],
    found: Found,
    timings_s: dict[str, float],
    icc_profile: bytes | None = None,
) -> EditReply:
    """Return the reply for finished pictures, uint8 [H, W, 3] of one size and with the colours of `icc_profile`.

    Encodes them, so keep it off an event loop.
    """
    encoded = [encode_picture(pixels, form.output_format, form.output_compression, icc_profile) for pixels in pictures]
    return EditReply(
        created=int(time.time()),
        data=[ImageData(b64_json=text, seed=seed) for text, seed in zip(encoded, seeds, strict=True)],
        output_format=form.output_format,
        size=size_text(pictures[0]),
        garments=list(garments),
        seed=seeds[0],
        timings_ms=_milliseconds(timings_s),
        **found_fields(found),
    )


def partial_image(
    form: EditForm,
    pixels: NDArray[np.uint8],
    index: int,
    step: int,
    num_steps: int,
    icc_profile: bytes | None = None,
) -> PartialImage:
    """Return the event for a preview, uint8 [H, W, 3]. Encodes it, so keep it off an event loop."""
    return PartialImage(
        **_event_fields(form, pixels, icc_profile), partial_image_index=index, step=step, num_steps=num_steps
    )


def edit_completed(
    form: EditForm,
    pixels: NDArray[np.uint8],
    garments: Sequence[GarmentUsed],
    found: Found,
    seed: int,
    timings_s: dict[str, float],
    icc_profile: bytes | None = None,
) -> EditCompleted:
    """Return the event for the finished picture, uint8 [H, W, 3]. Encodes it, so keep it off an event loop."""
    return EditCompleted(
        **_event_fields(form, pixels, icc_profile),
        garments=list(garments),
        seed=seed,
        timings_ms=_milliseconds(timings_s),
        **found_fields(found),
    )


def sse(event: str, payload: BaseModel) -> bytes:
    """Return one server-sent event of this name."""
    # The JSON is ASCII, because some clients break lines at U+2028 and similar, which a caption may hold.
    return f"event: {event}\ndata: {payload.model_dump_json(ensure_ascii=True)}\n\n".encode()


def encode_picture(
    pixels: NDArray[np.uint8], output_format: OutputFormat, output_compression: int, icc_profile: bytes | None = None
) -> str:
    """Return the picture, uint8 [H, W, 3] or [H, W], as a file of this format in base64.

    output_compression: 0 to 100, which is the best quality. icc_profile: is put into the file; None = sRGB.
    """
    content = io.BytesIO()
    options: dict[str, Any] = {"quality": output_compression}
    if output_format == "png":
        options = {"compress_level": PNG_LEVEL}
    if icc_profile is not None:
        options["icc_profile"] = icc_profile
    with tracing.span(f"encode {output_format}", Kind.IMAGE, num_pixels=pixels.shape[0] * pixels.shape[1]):
        Image.fromarray(pixels).save(content, format=output_format, **options)
        return base64.b64encode(content.getvalue()).decode()


def _event_fields(form: EditForm, pixels: NDArray[np.uint8], icc_profile: bytes | None) -> dict[str, Any]:
    """Return the fields of a StreamEvent."""
    return {
        "b64_json": encode_picture(pixels, form.output_format, form.output_compression, icc_profile),
        "created_at": int(time.time()),
        "size": size_text(pixels),
        "quality": form.quality,
        "output_format": form.output_format,
    }


def found_fields(found: Found) -> dict[str, Any]:
    """Return the fields of WhatWasFound."""
    choice = found.choice
    confidence = None if choice.confidence is None else round(choice.confidence, 3)
    return {"category": choice.category, "category_confidence": confidence, "warnings": list(found.warnings)}


def size_text(pixels: NDArray[np.uint8]) -> str:
    """Return the size of a picture as WIDTHxHEIGHT."""
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _milliseconds(timings_s: dict[str, float]) -> dict[str, float]:
    return {stage: round(seconds * 1000, 1) for stage, seconds in timings_s.items()}
