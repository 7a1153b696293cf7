"""Makes of forms what they ask for: edits, masks and garments, with decoded and checked pictures.

The ingress calls it, and so do the servers that the benchmarks compare with.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from fashion_rag.catalogue.attributes import parse_filter
from fashion_rag.catalogue.garments import stored_jpeg
from fashion_rag.catalogue.table import GarmentRow, checked
from fashion_rag.data.image import MIN_SIDE, OpenedPhoto, open_image, open_mask, open_photo
from fashion_rag.data.pose import parse_keypoints, scale_keypoints
from fashion_rag.data.window import has_shape, scaled
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import Manifest
from fashion_rag.request import EditRequest, Window
from fashion_rag.sampling import NO_PRESET, SAMPLING_OPTIONS, Preset, resolve_sampling
from serve.config import IngressSettings
from serve.http.forms import QUALITY_PRESETS, EditForm, GarmentForm, MaskForm, OutputFormat

MAX_SIDE = 4096
# The largest side of a picture that each file format can hold.
MAX_FILE_SIDES: dict[OutputFormat, int] = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}
SHAPE_TOLERANCE = 0.02
WINDOW = TypeAdapter(Window)
# Of a window, in pixels. No photo is nearly as large.
MAX_WINDOW_SIDE = 1_000_000
# Stands for the words of a request that has none.
NO_WORDS = "a garment"
# Every JSON reader can hold a seed of this range as a whole number.
RANDOM_SEEDS = 2**32


def edit_requests(
    form: EditForm,
    manifest: Manifest,
    settings: IngressSettings,
    request_id: str,
    arrived: float,
    finds_masks: bool = False,
) -> list[EditRequest]:
    """Return the `n` edits that a form asks for, in the size that their pictures are to have.

    The edits share pictures, and their seeds follow each other. With several, request ids end in -0, -1, and so on.
    arrived: when the request came, in Unix time; the deadline counts from then. finds_masks: whether the server finds
    the mask of a photo that comes without. Decodes pictures, so keep it off an
    event loop. Raises InvalidRequest, naming the form's field.
    """
    if form.model not in (None, manifest.name):
        raise InvalidRequest("model", form.model, f"must be {manifest.name!r}, or left out", "model_not_found")
    if form.deadline_s is not None and form.deadline_s > settings.deadline_s:
        raise InvalidRequest("deadline_s", form.deadline_s, f"must be at most {settings.deadline_s}")
    options = {name: getattr(form, name) for name in SAMPLING_OPTIONS}
    sampling = resolve_sampling(options, manifest, _preset(form, _offered(settings.presets, manifest)))
    photo = open_photo(form.image, max_pixels=settings.max_pixels)
    photo_size = (photo.pixels.shape[0], photo.pixels.shape[1])
    size = _asked_size(form, photo_size, settings.max_pixels)
    seed = secrets.randbelow(RANDOM_SEEDS) if form.seed is None else form.seed
    edit = EditRequest(
        image=photo.pixels,
        mask=_mask(form, photo, settings.max_pixels, finds_masks),
        mask_type=form.mask_type,
        prompt=form.prompt,
        category=form.category,
        keypoints=None if form.keypoints is None else parse_keypoints(form.keypoints, photo_size),
        window=None if form.window is None else _window(form.window, manifest.image_size),
        num_garments=form.num_garments,
        garment_ids=tuple(form.garment_ids),
        attributes=parse_filter(form.attributes),
        num_chunks=form.num_chunks,
        template=form.template,
        seed=seed,
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        shortcuts=sampling.shortcuts,
        icc_profile=photo.icc_profile,
        deadline_unix_s=arrived + (form.deadline_s or settings.deadline_s),
        request_id=request_id,
    )
    # The edit is resized last, because mask and photo must have the same size as they were sent.
    edit = _resized(edit, size)
    if form.n == 1:
        return [edit]
    return [replace(edit, seed=seed + number, request_id=f"{request_id}-{number}") for number in range(form.n)]


def garment_picture(form: GarmentForm, max_pixels: int) -> tuple[GarmentRow, bytes]:
    """Return the catalogue's row of the garment in a form, and its picture as it is to be stored.

    Decodes the picture, so keep it off an event loop. Raises InvalidRequest, naming the field.
    """
    jpeg = stored_jpeg(open_image(form.image, max_pixels=max_pixels))
    attributes = {name: tuple(values) for name, values in parse_filter(form.attributes).items()}
    digest = hashlib.sha256(form.image).hexdigest()
    # The retriever replaces "unknown" by the place where it stores the picture.
    row = GarmentRow(form.id, form.category, form.caption, "unknown", digest, attributes=attributes)
    return checked(row), jpeg


def _offered(presets: Mapping[str, Preset], manifest: Manifest) -> dict[str, Preset]:
    """Return the presets without those of the student where there is none."""
    offered = {}
    for name, preset in presets.items():
        if manifest.student is not None or not preset.shortcuts.student:
            offered[name] = preset
    return offered


def _preset(form: EditForm, presets: Mapping[str, Preset]) -> Preset:
    """Return the preset that a form names, as preset or quality. Raises InvalidRequest for an unknown name."""
    names: tuple[str, ...]
    if form.preset is not None:
        field, value, names = "preset", form.preset, (form.preset,)
    elif form.quality in QUALITY_PRESETS:
        field, value, names = "quality", form.quality, QUALITY_PRESETS[form.quality]
    else:
        return NO_PRESET
    for name in names:
        if name in presets:
            return presets[name]
    raise InvalidRequest(field, value, f"needs a preset that this server has: {', '.join(presets) or 'none'}")


def mask_request(form: MaskForm, settings: IngressSettings, request_id: str, arrived: float) -> EditRequest:
    """Return the edit whose mask a form asks for. Its words are of no account where the form has none.

    Arguments and errors are those of `edit_requests`.
    """
    photo = open_photo(form.image, max_pixels=settings.max_pixels)
    size = (photo.pixels.shape[0], photo.pixels.shape[1])
    return EditRequest(
        image=photo.pixels,
        mask=photo.hole,
        prompt=form.prompt or NO_WORDS,
        category=form.category,
        keypoints=None if form.keypoints is None else parse_keypoints(form.keypoints, size),
        mask_type=form.mask_type,
        icc_profile=photo.icc_profile,
        deadline_unix_s=arrived + settings.deadline_s,
        request_id=request_id,
    )


def _mask(form: EditForm, photo: OpenedPhoto, max_pixels: int, finds_masks: bool) -> NDArray[np.uint8] | None:
    """Return the mask in the form, else the transparent part of the photo, else None.

    Raises InvalidRequest instead of returning None where the server finds no masks.
    """
    if form.mask is not None:
        return open_mask(form.mask, max_pixels=max_pixels)
    if photo.hole is None and not finds_masks:
        rule = "must be given, unless the photo is transparent where to repaint: this server's model finds no masks"
        raise InvalidRequest("mask", None, rule, "missing_required_parameter")
    return photo.hole


def _window(text: str, shape: tuple[int, int]) -> Window:
    """Return the window in a form. Raises InvalidRequest for what is no window of the shape of a (height, width)."""
    try:
        window = WINDOW.validate_json(text, strict=True)
    except ValidationError as error:
        rule = 'must be JSON: {"top": .., "left": .., "height": .., "width": ..} of whole pixels of the photo'
        raise InvalidRequest("window", text, rule) from error
    size = (window.height, window.width)
    if not 1 <= min(size) <= max(size) <= MAX_WINDOW_SIDE or not has_shape(size, shape):
        rule = f"must have the model's shape, {shape[1]}x{shape[0]} (WIDTHxHEIGHT), and sides up to {MAX_WINDOW_SIDE}"
        raise InvalidRequest("window", text, rule)
    return window


def _asked_size(form: EditForm, photo_size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """Return the (height, width) that the edited photo is to have. Raises InvalidRequest, naming the field."""
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
    """Return the edit with pictures and key points of this (height, width)."""
    height, width = size
    from_size = (edit.image.shape[0], edit.image.shape[1])
    if size == from_size:
        return edit
    return replace(
        edit,
        image=np.asarray(Image.fromarray(edit.image).resize((width, height), Image.Resampling.LANCZOS)),
        mask=None if edit.mask is None else _resized_mask(edit.mask, size),
        keypoints=None if edit.keypoints is None else scale_keypoints(edit.keypoints, from_size, size),
        window=None if edit.window is None else scaled(edit.window, from_size, size),
    )


def _resized_mask(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = size
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
