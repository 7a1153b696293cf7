"""The words of the HTTP interface: the form of an edit, replies, stream events, presets. Knows no Ray.

`uploads` fills the form, `ingress` sends the rest. The shapes are those of OpenAI's images API, with fields of our own.
"""

import base64
import dataclasses
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    computed_field,
    field_validator,
    model_validator,
)
from pydantic.json_schema import WithJsonSchema

from fashion_rag.catalogue.table import ATTRIBUTE_NAME, ID, MAX_CAPTION_CHARS, MAX_VALUE_CHARS, RESERVED_ID
from fashion_rag.errors import InvalidRequest
from fashion_rag.request import (
    CATEGORIES,
    MAX_CACHE_INTERVAL,
    MAX_GARMENTS,
    MAX_GUIDANCE_SCALE,
    MAX_PROMPT_CHARS,
    MAX_SEED,
    MAX_STEPS,
    PLAIN,
    Shortcuts,
    Solver,
    Template,
)

MAX_IMAGES = 10
# Of 9: two and a half times as fast as 6, the usual, for a photo that is a sixth larger.
PNG_LEVEL = 1
MAX_CHUNKS = 3
MAX_FILTERS = 32
MAX_FOUND = 100
MAX_PARTIAL_IMAGES = 50
MIN_DEADLINE_S = 0.001
QUALITY_PRESETS = {"low": "fast", "medium": "balanced", "high": "exact"}

# What OpenAI's API knows and this server cannot do, by field and value, with the rule.
UNSUPPORTED = {
    ("response_format", "url"): "must be b64_json: no picture is stored to have a URL",
    ("background", "transparent"): "must be auto or opaque: the photo keeps its background",
    ("output_format", "gif"): "must be png, jpeg or webp",
    ("output_format", "svg"): "must be png, jpeg or webp",
}

ATTRIBUTE = rf"^{ATTRIBUTE_NAME}=[\s\S]{{1,{MAX_VALUE_CHARS}}}$"
OutputFormat = Literal["png", "jpeg", "webp"]
Quality = Literal["auto", "low", "medium", "high"]
Category = Annotated[str, WithJsonSchema({"type": "string", "enum": list(CATEGORIES)})]
Attribute = Annotated[str, WithJsonSchema({"type": "string", "pattern": "^[^=]+=.+$"})]


@dataclass(frozen=True)
class Preset:
    """How an edit is denoised, under a name. Steps and guidance None = the bundle's own; the rest as of Shortcuts.

    Raises ValueError for what is outside its range.
    """

    steps: int | None = None
    guidance_scale: float | None = None
    solver: Solver = PLAIN.solver
    guidance_start: float = PLAIN.guidance_start
    guidance_end: float = PLAIN.guidance_end
    cache_interval: int = PLAIN.cache_interval

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"steps: got {self.steps}; must be from 1 to {MAX_STEPS}")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale <= MAX_GUIDANCE_SCALE:
            rule = f"must be a finite number from 0 to {MAX_GUIDANCE_SCALE}"
            raise ValueError(f"guidance_scale: got {self.guidance_scale}; {rule}")
        try:
            self.shortcuts()
        except InvalidRequest as error:
            raise ValueError(str(error)) from error

    def shortcuts(self, **changes: Any) -> Shortcuts:
        """Return the shortcuts with `changes`, of which those that are None count for nothing.

        Raises InvalidRequest.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        known = {field.name: getattr(self, field.name) for field in dataclasses.fields(Shortcuts)}
        return Shortcuts(**known | given)


class EditForm(BaseModel):
    """The fields of POST /v1/images/edits, with those that are not OpenAI's below `safety_identifier`.

    Any other field is refused. What depends on the server or the photo is checked by `uploads.edit_requests`. Raises
    InvalidRequest for fields that do not go together, pydantic.ValidationError for what one is by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    image: bytes = Field(repr=False, description="The photo.")
    mask: bytes | None = Field(
        None,
        repr=False,
        description="White where to repaint, or transparent; of the photo's size. Without it, the photo is repainted "
        "where it is transparent.",
    )
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS, description="What to wear.")
    n: int = Field(1, ge=1, le=MAX_IMAGES, description="How many pictures, of seeds that follow each other.")
    size: Annotated[str, WithJsonSchema({"type": "string", "pattern": "^(auto|[0-9]{2,4}x[0-9]{2,4})$"})] = Field(
        "auto", description="WIDTHxHEIGHT, in the shape of the photo, which is brought to it; auto = the photo's own."
    )
    response_format: Literal["b64_json"] = "b64_json"
    output_format: OutputFormat = "png"
    output_compression: int = Field(100, ge=0, le=100, description="Quality of a jpeg or webp.")
    stream: bool = Field(False, description="Send events instead of one reply.")
    partial_images: int = Field(
        0,
        ge=0,
        le=MAX_PARTIAL_IMAGES,
        description="How many previews a stream sends before the finished picture; without effect on a single reply.",
    )
    model: str | None = Field(None, description="The name of the bundle that is served.")
    quality: Quality = Field("auto", description="low, medium and high are the presets fast, balanced and exact.")
    background: Literal["auto", "opaque"] = "auto"
    input_fidelity: Literal["low", "high"] | None = Field(
        None, description="Without effect: outside the mask the photo always comes back as it is."
    )
    moderation: Literal["auto", "low"] | None = Field(None, description="Without effect: nothing is moderated.")
    complexity: Literal["low", "medium", "high"] | None = Field(None, description="Without effect.")
    user: str | None = Field(None, max_length=256, description="A name for the server's log.")
    safety_identifier: str | None = Field(None, max_length=256, description="The same, and comes before `user`.")

    category: Category
    garment_ids: list[Annotated[str, Field(min_length=1)]] = Field(
        [], max_length=MAX_GARMENTS, description="Garments to use instead of searching."
    )
    num_garments: int = Field(1, ge=0, le=MAX_GARMENTS, description="How many garments to search for.")
    attributes: list[Attribute] = Field(
        [], max_length=MAX_FILTERS, description="NAME=VALUE: search among garments with this; of one name, with either."
    )
    num_chunks: int | None = Field(
        None, ge=1, le=MAX_CHUNKS, description="Search with so many of the prompt's parts between commas."
    )
    keypoints: str | None = Field(
        None, description="JSON: 18 OpenPose points [[x, y], ...] in pixels of the photo, [0, 0] = absent."
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="The same seed gives the same picture; drawn if left out."
    )
    preset: str | None = Field(None, description="A name of the server's for steps, guidance scale and shortcuts.")
    steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE_SCALE)
    solver: Annotated[Solver | None, WithJsonSchema({"type": "string", "enum": list(Solver)})] = Field(
        None, description="How latents are led from step to step; those of second order need fewer steps than ddim."
    )
    guidance_start: float | None = Field(
        None, ge=0, le=1, description="From which part of the steps on there is guidance."
    )
    guidance_end: float | None = Field(
        None, ge=0, le=1, description="Up to which part of the steps there is guidance; at least guidance_start."
    )
    cache_interval: int | None = Field(
        None,
        ge=1,
        le=MAX_CACHE_INTERVAL,
        description="Run the whole UNet every so many steps, and in those between its outermost layers alone.",
    )
    deadline_s: float | None = Field(
        None, ge=MIN_DEADLINE_S, description="How many seconds the caller is going to wait."
    )
    template: Annotated[Template, WithJsonSchema({"type": "string", "enum": list(Template)})] = Template.GARMENTS

    @field_validator("response_format", "background", "output_format", mode="before")
    @classmethod
    def _supported(cls, value: object, info: ValidationInfo) -> object:
        for (field, unsupported), rule in UNSUPPORTED.items():
            if (info.field_name, value) == (field, unsupported):
                raise InvalidRequest(field, value, rule, "unsupported_value")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.stream and self.n > 1:
            raise InvalidRequest("n", self.n, "must be 1 with stream=true", "unsupported_value")
        if self.output_format == "png" and self.output_compression < 100:
            raise InvalidRequest("output_compression", self.output_compression, "must be 100 for png, which is exact")
        if self.preset is not None and self.preset != QUALITY_PRESETS.get(self.quality, self.preset):
            rule = f"must be {QUALITY_PRESETS[self.quality]!r}, or left out, with quality={self.quality}"
            raise InvalidRequest("preset", self.preset, rule)
        return self


class GarmentForm(BaseModel):
    """The fields of POST /v1/garments. Any other is refused; the catalogue has more rules."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: bytes = Field(repr=False, description="The in-shop picture.")
    id: Annotated[str, WithJsonSchema({"type": "string", "minLength": 1, "pattern": f"^{ID}$"})] = Field(
        description=f"Of the garment; one that is in the catalogue is replaced. Not {RESERVED_ID!r}."
    )
    category: Category
    caption: str = Field("", max_length=MAX_CAPTION_CHARS, description="For people to read.")
    attributes: list[Annotated[str, WithJsonSchema({"type": "string", "pattern": ATTRIBUTE})]] = Field(
        [], max_length=MAX_FILTERS, description="NAME=VALUE, to filter by; a name may have several values."
    )


class PictureForm(BaseModel):
    """The fields of POST /v1/garments/search. Any other is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: bytes = Field(repr=False, description="A picture of what to look for.")
    category: Category
    limit: int = Field(10, ge=1, le=MAX_FOUND, description="How many garments.")
    attributes: list[Attribute] = Field([], max_length=MAX_FILTERS, description="NAME=VALUE that they must have.")


class ImageData(BaseModel):
    """A finished picture, and the seed that gives it again."""

    b64_json: str
    seed: int


class GarmentUsed(BaseModel):
    """A garment in the picture; `score` is the cosine with the prompt, null where the caller named the garment."""

    id: str
    score: float | None
    caption: str


class EditReply(BaseModel):
    """The reply to an edit. `size` is WIDTHxHEIGHT, `seed` that of the first picture."""

    created: int
    data: list[ImageData]
    output_format: OutputFormat
    size: str
    garments: list[GarmentUsed]
    seed: int
    timings_ms: dict[str, float]


class StreamEvent(BaseModel):
    """What every event of a stream tells of its picture."""

    b64_json: str
    created_at: int
    size: str
    quality: Quality
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat


class PartialImage(StreamEvent):
    """A preview after `step` of `num_steps` steps; the first has the index 0."""

    type: Literal["image_edit.partial_image"] = "image_edit.partial_image"
    partial_image_index: int
    step: int
    num_steps: int


class EditCompleted(StreamEvent):
    """The finished picture, which ends a stream."""

    type: Literal["image_edit.completed"] = "image_edit.completed"
    garments: list[GarmentUsed]
    seed: int
    timings_ms: dict[str, float]


class ErrorDetail(BaseModel):
    """An error's type, the field that it is about, if any, and what to do about it.

    `param` is the same as `field`, and `code` says the kind of fault, under the names that OpenAI's clients read.
    """

    type: str
    field: str | None
    message: str
    param: str | None
    code: str


class ErrorReply(BaseModel):
    """The reply to any error; in mid-stream the data of the event `error`."""

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
    """The reply to GET /readyz: which stages answer, and which files are not there that they may be waiting for.

    warnings: what an operator should change although the graph is ready.
    """

    stages: dict[str, bool]
    missing: list[str]
    warnings: list[str]


class GarmentFound(BaseModel):
    """A garment in the catalogue; `score` is the cosine with the words that found it, null where its id did."""

    id: str
    category: str
    caption: str
    attributes: dict[str, list[str]]
    score: float | None

    @computed_field
    def image_url(self) -> str:
        """Return where this server has the garment's picture."""
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
        size=_size(pictures[0]),
        garments=list(garments),
        seed=seeds[0],
        timings_ms=_milliseconds(timings_s),
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
    return PartialImage(**_drawn(form, pixels, icc_profile), partial_image_index=index, step=step, num_steps=num_steps)


def edit_completed(
    form: EditForm,
    pixels: NDArray[np.uint8],
    garments: Sequence[GarmentUsed],
    seed: int,
    timings_s: dict[str, float],
    icc_profile: bytes | None = None,
) -> EditCompleted:
    """Return the event for the finished picture, uint8 [H, W, 3]. Encodes it, so keep it off an event loop."""
    timings_ms = _milliseconds(timings_s)
    return EditCompleted(**_drawn(form, pixels, icc_profile), garments=list(garments), seed=seed, timings_ms=timings_ms)


def sse(event: str, payload: BaseModel) -> bytes:
    """Return one server-sent event of this name."""
    # In ASCII: some clients break lines at U+2028 and its like, which a caption may hold.
    return f"event: {event}\ndata: {payload.model_dump_json(ensure_ascii=True)}\n\n".encode()


def encode_picture(
    pixels: NDArray[np.uint8], output_format: OutputFormat, output_compression: int, icc_profile: bytes | None = None
) -> str:
    """Return the picture, uint8 [H, W, 3], as a file of this format in base64.

    output_compression: 0 to 100 = best. icc_profile: goes into the file; without one the colours are sRGB.
    """
    content = io.BytesIO()
    options: dict[str, Any] = {"quality": output_compression}
    if output_format == "png":
        options = {"compress_level": PNG_LEVEL}
    if icc_profile is not None:
        options["icc_profile"] = icc_profile
    Image.fromarray(pixels).save(content, format=output_format, **options)
    return base64.b64encode(content.getvalue()).decode()


def _drawn(form: EditForm, pixels: NDArray[np.uint8], icc_profile: bytes | None) -> dict[str, Any]:
    return {
        "b64_json": encode_picture(pixels, form.output_format, form.output_compression, icc_profile),
        "created_at": int(time.time()),
        "size": _size(pixels),
        "quality": form.quality,
        "output_format": form.output_format,
    }


def _size(pixels: NDArray[np.uint8]) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _milliseconds(timings_s: dict[str, float]) -> dict[str, float]:
    return {stage: round(seconds * 1000, 1) for stage, seconds in timings_s.items()}
