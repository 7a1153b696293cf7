"""The words of the HTTP interface: the form of an edit and its reply. Called by `app`; knows no Ray."""

import base64
import io
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import UploadFile
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from fashion_rag.config import Manifest
from fashion_rag.data.image import open_image, open_mask
from fashion_rag.data.pose import KEYPOINT_FRAME, scale_keypoints
from fashion_rag.errors import InvalidRequest
from fashion_rag.request import EditRequest, Template

# A seed that is drawn here stays a whole number in every JSON reader.
RANDOM_SEEDS = 2**32


class EditForm(BaseModel):
    """The fields of POST /v1/images/edits; any other is refused. EditRequest has their ranges."""

    model_config = ConfigDict(extra="forbid")

    image: UploadFile
    mask: UploadFile
    prompt: str
    category: str
    keypoints: str | None = None
    num_garments: int = 1
    garment_ids: list[str] = []
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    template: Template = Template.GARMENTS


class ImageData(BaseModel):
    b64_json: str


class GarmentUsed(BaseModel):
    """A garment in the picture; `score` is the cosine with the prompt, null where the caller named the garment."""

    id: str
    score: float | None
    caption: str


class EditReply(BaseModel):
    """The reply, in the shape of OpenAI's images API with three fields more. `data` holds one PNG."""

    created: int
    data: list[ImageData]
    garments: list[GarmentUsed]
    seed: int
    timings_ms: dict[str, float]


def edit_request(
    form: EditForm, image: bytes, mask: bytes, manifest: Manifest, max_pixels: int, request_id: str
) -> EditRequest:
    """The request in a form whose two files have been read. Steps and guidance default to the manifest's.

    Decodes pictures, so it does not belong on an event loop. Raises InvalidRequest, naming the form's field.
    """
    pixels = np.asarray(open_image(image, max_pixels=max_pixels))
    return EditRequest(
        image=pixels,
        mask=open_mask(mask, max_pixels=max_pixels),
        prompt=form.prompt,
        category=form.category,
        keypoints=None if form.keypoints is None else parse_keypoints(form.keypoints, pixels.shape[:2]),
        num_garments=form.num_garments,
        garment_ids=tuple(form.garment_ids),
        template=form.template,
        seed=secrets.randbelow(RANDOM_SEEDS) if form.seed is None else form.seed,
        num_inference_steps=manifest.num_inference_steps if form.steps is None else form.steps,
        guidance_scale=manifest.guidance_scale if form.guidance_scale is None else form.guidance_scale,
        request_id=request_id,
    )


def parse_keypoints(text: str, size: tuple[int, ...]) -> NDArray[np.float64]:
    """Key points [18, 2] in pixels of a picture of `size` (height, width), from one of two JSON forms.

    [[x, y], ...]: 18 points in pixels of the picture. {"keypoints": [[x, y, score, index], ...]}: a Dress Code file,
    in that data set's own frame. Raises InvalidRequest for anything else.
    """
    rule = 'must be JSON: [[x, y], ...] with 18 points, or {"keypoints": [[x, y, score, index], ...]}'
    try:
        content: Any = json.loads(text)
        rows = np.asarray(content["keypoints"] if isinstance(content, dict) else content, dtype=np.float64)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidRequest("keypoints", text, rule) from error
    if rows.shape != ((18, 4) if isinstance(content, dict) else (18, 2)):
        raise InvalidRequest("keypoints", text, rule)
    if isinstance(content, dict):
        return scale_keypoints(rows[:, :2], KEYPOINT_FRAME, (size[0], size[1]))
    return rows


def edit_reply(
    image: NDArray[np.uint8], garments: Sequence[GarmentUsed], seed: int, timings_s: dict[str, float]
) -> EditReply:
    """The reply for a finished picture, uint8 [H, W, 3]. Encodes it, so it does not belong on an event loop."""
    png = io.BytesIO()
    Image.fromarray(image).save(png, format="PNG")
    return EditReply(
        created=int(time.time()),
        data=[ImageData(b64_json=base64.b64encode(png.getvalue()).decode())],
        garments=list(garments),
        seed=seed,
        timings_ms={stage: round(seconds * 1000, 1) for stage, seconds in timings_s.items()},
    )
