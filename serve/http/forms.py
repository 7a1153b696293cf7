"""The forms that callers send, field by field. Knows neither Ray nor Starlette.

`multipart` fills the forms. Their shapes are those of OpenAI's images API, with fields of our own.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
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
    MaskType,
    Solver,
    Template,
)

MAX_IMAGES = 10
MAX_CHUNKS = 3
MAX_FILTERS = 32
MAX_FOUND = 100
MAX_PARTIAL_IMAGES = 50
MIN_DEADLINE_S = 0.001
# The presets of a quality, of which the first that a server offers is meant.
QUALITY_PRESETS = {"low": ("turbo", "fast"), "medium": ("balanced",), "high": ("exact",)}

# Values of OpenAI's API that this server does not support, by field and value, with the rule for the error.
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


class EditForm(BaseModel):
    """The fields of POST /v1/images/edits. Those below `safety_identifier` are not OpenAI's.

    Any other field is refused. `edit_requests` checks what depends on the server or the photo. Raises InvalidRequest
    for fields that do not go together, and pydantic.ValidationError for a field that is wrong by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    image: bytes = Field(repr=False, description="The photo.")
    mask: bytes | None = Field(
        None,
        repr=False,
        description="White where to repaint, or transparent; of the photo's size. Without it, the photo is repainted "
        "where it is transparent, or else where the garment of the category is found.",
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
    quality: Quality = Field("auto", description="low is the preset turbo, or fast; medium balanced; high exact.")
    background: Literal["auto", "opaque"] = "auto"
    input_fidelity: Literal["low", "high"] | None = Field(
        None, description="Without effect: outside the mask the photo always comes back as it is."
    )
    moderation: Literal["auto", "low"] | None = Field(None, description="Without effect: nothing is moderated.")
    complexity: Literal["low", "medium", "high"] | None = Field(None, description="Without effect.")
    user: str | None = Field(None, max_length=256, description="A name for the server's log.")
    safety_identifier: str | None = Field(None, max_length=256, description="The same, and comes before `user`.")

    category: Category | None = Field(
        None, description="Of the garment; where left out, that of the named garments, or else the one of the prompt."
    )
    mask_type: MaskType = Field(
        "bounding_box", description="Whether a mask that is found fills a box or follows the garment."
    )
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
        None,
        description="JSON: 18 OpenPose points [[x, y], ...] in pixels of the photo, [0, 0] = absent; where left out, "
        "they are found.",
    )
    window: str | None = Field(
        None,
        description='JSON: {"top": .., "left": .., "height": .., "width": ..} in pixels of the photo: the part that '
        "the model sees, in the model's shape; where left out, it is chosen.",
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
    student: bool | None = Field(None, description="Have the bundle's student take the steps, which are few.")
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
        if self.preset is not None and self.preset not in QUALITY_PRESETS.get(self.quality, (self.preset,)):
            rule = f"must be {' or '.join(QUALITY_PRESETS[self.quality])}, or left out, with quality={self.quality}"
            raise InvalidRequest("preset", self.preset, rule)
        return self


class MaskForm(BaseModel):
    """The fields of POST /v1/images/masks. Any other field is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: bytes = Field(repr=False, description="The photo.")
    prompt: str | None = Field(
        None, max_length=MAX_PROMPT_CHARS, description="What to wear, by which the category is chosen."
    )
    category: Category | None = Field(
        None, description="Of the garment to repaint; without prompt too, that of the largest garment that is worn."
    )
    mask_type: MaskType = Field("bounding_box", description="Whether the mask fills a box or follows the garment.")
    keypoints: str | None = Field(
        None, description="JSON: 18 OpenPose points [[x, y], ...] in pixels of the photo, to be used as they are."
    )


class GarmentForm(BaseModel):
    """The fields of POST /v1/garments. Any other field is refused, and the catalogue has more rules."""

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
    """The fields of POST /v1/garments/search. Any other field is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: bytes = Field(repr=False, description="A picture of what to look for.")
    category: Category
    limit: int = Field(10, ge=1, le=MAX_FOUND, description="How many garments.")
    attributes: list[Attribute] = Field([], max_length=MAX_FILTERS, description="NAME=VALUE that they must have.")
