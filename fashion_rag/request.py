"""What an edit asks for and what it returns, for the pipeline and the servers alike."""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fashion_rag.errors import InvalidRequest

CATEGORIES = ("dresses", "lower_body", "upper_body")
MaskType = Literal["bounding_box", "mask"]
MASK_TYPES: tuple[MaskType, ...] = ("bounding_box", "mask")
# The 77 text positions have room for the template and three garments, but not for a fourth.
MAX_GARMENTS = 3
MAX_STEPS = 1000
MAX_GUIDANCE_SCALE = 50
MAX_CACHE_INTERVAL = 10
MAX_PROMPT_CHARS = 2000
MAX_SEED = 2**63 - 1
# Of a key point, in pixels. It is far outside every picture, and no sum or square of such numbers overflows.
MAX_COORDINATE = 10**9


class Template(StrEnum):
    """How the prompt is made of text and pseudo-words (`models/prompt.py` has the wording)."""

    GARMENTS = "garments"
    CAPTION_AND_GARMENTS = "caption_and_garments"
    CAPTION = "caption"


class Solver(StrEnum):
    """How the next latents are computed in each step (`denoising/plan.py` has the maths). The paper uses DDIM."""

    DDIM = "ddim"
    DPMPP_2M = "dpmpp_2m"
    UNIPC = "unipc"


def _require(ok: bool, field_name: str, value: object, rule: str) -> None:
    """Raise InvalidRequest unless `ok`."""
    if not ok:
        raise InvalidRequest(field_name, value, rule)


def _size(picture: NDArray[np.uint8]) -> str:
    """Return the size of a picture as people write it, WIDTHxHEIGHT."""
    return "x".join(str(side) for side in picture.shape[1::-1])


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shows_some(window: Window, height: int, width: int) -> bool:
    """Return whether some of a photo of this size lies in the window."""
    if not all(_is_int(value) for value in window):
        return False
    bottom, right = window.top + window.height, window.left + window.width
    return max(window.top, 0) < min(bottom, height) and max(window.left, 0) < min(right, width)


@dataclass(frozen=True)
class Shortcuts:
    """Ways to compute less. All are off by default.

    solver: solvers of second order need fewer steps for the same quality.
    guidance_start, guidance_end: the part of the steps that is guided, as shares from 0 to 1. In the other steps an
        edit takes one row of the UNet's batch instead of two.
    cache_interval: the whole UNet runs once in so many steps. In the steps between, only its outermost layers run, on
        features kept from the last whole run (DeepCache, arXiv 2312.00858).
    student: the bundle's student takes the steps, which are few, and each of one row. It walks with DDIM, and has the
        guidance of its teacher in it.

    Raises InvalidRequest, naming the field, for anything outside these rules.
    """

    # A config file that names an unknown shortcut is refused.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    solver: Solver = Solver.DDIM
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    cache_interval: int = 1
    student: bool = False

    def __post_init__(self) -> None:
        _require(self.solver in set(Solver), "solver", self.solver, f"must be one of {', '.join(Solver)}")
        start, end = self.guidance_start, self.guidance_end
        _require(0 <= start <= 1, "guidance_start", start, "must be a number from 0 to 1")
        _require(start <= end <= 1, "guidance_end", end, f"must be a number from guidance_start, {start}, to 1")
        _require(
            _is_int(self.cache_interval) and 1 <= self.cache_interval <= MAX_CACHE_INTERVAL,
            "cache_interval",
            self.cache_interval,
            f"must be a whole number from 1 to {MAX_CACHE_INTERVAL}",
        )
        _require(isinstance(self.student, bool), "student", self.student, "must be true or false")
        if self.student:
            _require(self.solver == Solver.DDIM, "solver", self.solver, "must be ddim with the student")


PLAIN = Shortcuts()


class Window(NamedTuple):
    """The part of a photo that an edit works on, in pixels of the photo. It may reach beyond the photo."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, eq=False, kw_only=True)
class EditRequest:
    """What is to be edited and how. Pictures may have any size; the pipeline resizes them to the model's.

    A mask, category, key points or window of None is to be found by `person.completion`, which makes a CompleteRequest.

    image: uint8 [H, W, 3] RGB. mask: [H, W], nonzero = repaint. mask_type: which mask is made where none is given.
    icc_profile: the RGB profile of the image's colours, which the edited photo will have, too; None = sRGB.
    prompt: what to wear, in the shopper's words.
    keypoints: float [18, 2] OpenPose (x, y) in pixels of `image`, (0, 0) = absent.
    window: the part of the photo that the model sees, in the shape of the model.
    num_garments: how many to retrieve, 0 to 3. garment_ids: use these catalogue garments instead of searching.
    attributes: search only among garments that have, for each name, one of the values.
    num_chunks: search with so many of the prompt's noun chunks, which are separated by commas; None = the whole prompt.
    deadline_unix_s: the Unix time after which a server need not answer any more; the pipeline ignores it.

    Raises InvalidRequest, naming the field, for anything outside these rules.
    """

    image: NDArray[np.uint8]
    prompt: str
    mask: NDArray[np.uint8] | None = None
    category: str | None = None
    keypoints: NDArray[np.float64] | None = None
    mask_type: MaskType = "bounding_box"
    window: Window | None = None
    num_garments: int = 1
    garment_ids: tuple[str, ...] = ()
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    num_chunks: int | None = None
    template: Template = Template.GARMENTS
    seed: int = 0
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    shortcuts: Shortcuts = PLAIN
    icc_profile: bytes | None = field(default=None, repr=False)
    deadline_unix_s: float = math.inf
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        image, mask = self.image, self.mask
        _require(
            image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8,
            "image",
            f"{image.dtype} {image.shape}",
            "must be uint8 [height, width, 3]",
        )
        if mask is not None:
            _require(
                mask.shape == image.shape[:2],
                "mask",
                _size(mask),
                f"must have the image's size, {_size(image)} (WIDTHxHEIGHT)",
            )
            _require(bool(mask.any()), "mask", "all zero", "must mark at least one pixel to repaint")
        if self.category is not None:
            _require(self.category in CATEGORIES, "category", self.category, f"must be one of {', '.join(CATEGORIES)}")
        _require(self.mask_type in MASK_TYPES, "mask_type", self.mask_type, f"must be one of {', '.join(MASK_TYPES)}")
        _require(bool(self.prompt.strip()), "prompt", self.prompt, "must not be empty")
        _require(
            len(self.prompt) <= MAX_PROMPT_CHARS,
            "prompt",
            f"{len(self.prompt)} characters",
            f"must have at most {MAX_PROMPT_CHARS} characters",
        )
        if self.keypoints is not None:
            _require(self.keypoints.shape == (18, 2), "keypoints", self.keypoints.shape, "must be 18 rows of (x, y)")
            within = bool((np.abs(self.keypoints) <= MAX_COORDINATE).all())
            rule = f"must be finite numbers from -{MAX_COORDINATE} to {MAX_COORDINATE}"
            _require(within, "keypoints", "a number outside the range", rule)
        if self.window is not None:
            _require(
                _shows_some(self.window, image.shape[0], image.shape[1]),
                "window",
                tuple(self.window),
                f"must be four whole numbers, of a part of the photo, which has {_size(image)} (WIDTHxHEIGHT)",
            )
        _require(
            _is_int(self.num_garments) and 0 <= self.num_garments <= MAX_GARMENTS,
            "num_garments",
            self.num_garments,
            f"must be a whole number from 0 to {MAX_GARMENTS}",
        )
        _require(
            len(self.garment_ids) <= MAX_GARMENTS,
            "garment_ids",
            self.garment_ids,
            f"must name at most {MAX_GARMENTS} garments",
        )
        _require(
            self.num_chunks is None or (_is_int(self.num_chunks) and self.num_chunks >= 1),
            "num_chunks",
            self.num_chunks,
            "must be a whole number from 1 on",
        )
        _require(_is_int(self.seed) and 0 <= self.seed <= MAX_SEED, "seed", self.seed, f"must be from 0 to {MAX_SEED}")
        _require(
            _is_int(self.num_inference_steps) and 1 <= self.num_inference_steps <= MAX_STEPS,
            "steps",
            self.num_inference_steps,
            f"must be a whole number from 1 to {MAX_STEPS}",
        )
        _require(
            0 <= self.guidance_scale <= MAX_GUIDANCE_SCALE,
            "guidance_scale",
            self.guidance_scale,
            f"must be a finite number from 0 to {MAX_GUIDANCE_SCALE}",
        )
        if self.shortcuts.student:
            rule = "must be at most 1 with the student, which has guidance in it"
            _require(self.guidance_scale <= 1, "guidance_scale", self.guidance_scale, rule)

    def digest(self) -> str:
        """Return a SHA-256 of everything that the edited photo depends on, which is all but id and deadline."""
        digest = hashlib.sha256()
        for name in (entry.name for entry in fields(self)):
            value = getattr(self, name)
            if name in ("request_id", "deadline_unix_s"):
                continue
            if isinstance(value, np.ndarray):
                digest.update(f"{name} {value.dtype} {value.shape}".encode())
                digest.update(np.ascontiguousarray(value).data)
            else:
                digest.update(f"{name} {value!r}".encode())
        return digest.hexdigest()

    @property
    def search_text(self) -> str:
        """Return the text to search garments with.

        It is the prompt, or its first `num_chunks` noun chunks, joined as in the paper.
        """
        if self.num_chunks is None:
            return self.prompt
        chunks = [chunk.strip() for chunk in self.prompt.split(",")]
        return ", ".join([chunk for chunk in chunks if chunk][: self.num_chunks])


@dataclass(frozen=True, eq=False, kw_only=True)
class CompleteRequest(EditRequest):
    """A request of which nothing is left to be found. If its key points are None, the pose is not known."""

    mask: NDArray[np.uint8]
    category: str
    window: Window


@dataclass(frozen=True, eq=False, kw_only=True)
class EditResult:
    """An edited photo, and what it was made with.

    image: uint8 [H, W, 3], of the photo's size. icc_profile: the profile of its colours, which is the photo's own;
    None = sRGB. mask: uint8 [H, W], nonzero = repainted. window: the part of the photo that the model saw.
    category_confidence: from 0 to 1, where the prompt's words decided on the category; None where it was given.
    garment_ids: the garments that were used, best first. timings_s: seconds in each stage.
    warnings: sentences for the caller, such as that there are two persons in the photo.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    window: Window
    category: str
    category_confidence: float | None
    garment_ids: tuple[str, ...]
    seed: int
    timings_s: dict[str, float]
    warnings: tuple[str, ...] = ()
    icc_profile: bytes | None = field(default=None, repr=False)
