"""What the human parser and the pose estimator see of a photo: letterboxed, in a window, or cut out round a person.

Here, too, photos are worn down as cameras and the web do it. `photo_stages` calls it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers.models.vitpose.image_processing_vitpose import (
    box_to_center_and_scale,
    get_warp_matrix,
    scipy_warp_affine,
)

from fashion_rag.data.window import PERSON_SHARE, Box, visible_part
from fashion_rag.person.parser import letterbox
from fashion_rag.request import Window

Picture = NDArray[np.uint8]  # [H, W, 3]
LabelMap = NDArray[np.uint8]  # [H, W]

# The class of pixels that the loss of the parser leaves out.
IGNORED = 255
# ViTPose measures boxes in this many pixels.
BOX_UNIT = 200.0
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
# How often the parser sees a photo of half its input's resolution, as the demo's are. It is made from a larger photo,
# whose label map has finer edges than the small photo's own would have.
HALVED_SHARE = 0.5


def moved_window(rng: np.random.Generator, box: Box, photo_size: tuple[int, int]) -> Window:
    """Return a 3:4 window round a person that is moved a little and has another size than the pipeline's.

    It lies in the photo as far as it fits. Where it is longer than the photo, it covers the photo, which need not be in
    the middle.
    """
    box_height, box_width = box.size
    height = max(box_height, box_width * 4 / 3) / PERSON_SHARE * rng.uniform(0.88, 1.3)
    centre_y = box.top + box_height / 2 + rng.uniform(-0.06, 0.06) * height
    centre_x = box.left + box_width / 2 + rng.uniform(-0.06, 0.06) * height
    num_rows = max(round(height), 4)
    num_columns = max(round(height * 0.75), 3)
    return Window(
        top=_shifted(round(centre_y - num_rows / 2), num_rows, photo_size[0]),
        left=_shifted(round(centre_x - num_columns / 2), num_columns, photo_size[1]),
        height=num_rows,
        width=num_columns,
    )


def _shifted(start: int, length: int, limit: int) -> int:
    """Return the start of a stretch, shifted so that it lies within `limit`, or covers it if it is longer."""
    low, high = sorted((0, limit - length))
    return min(max(start, low), high)


def crop_labels(label_map: LabelMap, window: Window) -> LabelMap:
    """Return the part of a label map in a window, with IGNORED beyond the photo."""
    seen = visible_part(window, (label_map.shape[0], label_map.shape[1]))
    labels = np.full((window.height, window.width), IGNORED, np.uint8)
    rows = slice(seen.top - window.top, seen.bottom - window.top)
    columns = slice(seen.left - window.left, seen.right - window.left)
    labels[rows, columns] = label_map[seen.top : seen.bottom, seen.left : seen.right]
    return labels


def letterboxed(image: Picture, size: tuple[int, int], rng: np.random.Generator | None) -> NDArray[np.float32]:
    """Return a photo as the parser sees it: in [-1, 1], float32 [h, w, 3], with 0 beyond the photo.

    rng: wears the photo down; None leaves it as it is.
    """
    place = letterbox((image.shape[0], image.shape[1]), size)
    shown = Image.fromarray(image).resize((place.width, place.height), Image.Resampling.BICUBIC)
    pixels = np.zeros((*size, 3), np.float32)
    if rng is not None and rng.random() < HALVED_SHARE:
        half = (max(shown.width // 2, 1), max(shown.height // 2, 1))
        shown = shown.resize(half, Image.Resampling.BOX).resize(shown.size, Image.Resampling.BICUBIC)
    part = np.asarray(shown) if rng is None else worn_down(rng, shown)
    pixels[place.top : place.top + place.height, place.left : place.left + place.width] = part / np.float32(127.5) - 1
    return pixels


def letterboxed_labels(label_map: LabelMap, size: tuple[int, int]) -> LabelMap:
    """Return a label map in the place where `letterboxed` shows the photo, uint8 [h, w], with 0 beyond the photo."""
    place = letterbox((label_map.shape[0], label_map.shape[1]), size)
    labels = np.zeros(size, np.uint8)
    shown = Image.fromarray(label_map).resize((place.width, place.height), Image.Resampling.NEAREST)
    labels[place.top : place.top + place.height, place.left : place.left + place.width] = np.asarray(shown)
    return labels


@dataclass(frozen=True, eq=False)
class PersonCut:
    """A person as ViTPose sees them.

    pixels: float32 [h, w, 3] in [-1, 1]. centre: (x, y) of what is shown in pixels of the photo. scale: its (width,
    height) in BOX_UNIT pixels of the photo.
    """

    pixels: NDArray[np.float32]
    centre: NDArray[np.float32]
    scale: NDArray[np.float32]

    def to_map(self, points: NDArray[np.float64], map_size: tuple[int, int]) -> NDArray[np.float64]:
        """Return points (x, y) in pixels of the photo as points of a heat map of `map_size`, float64 [..., 2]."""
        extent = self.scale * BOX_UNIT
        cells = np.array([map_size[1] - 1, map_size[0] - 1])
        located: NDArray[np.float64] = (points - self.centre + extent / 2) / extent * cells
        return located


def cut_person(image: Picture, box: Box, size: tuple[int, int], rng: np.random.Generator | None) -> PersonCut:
    """Return a person as ViTPose sees them, with black beyond the photo.

    size: (height, width) of the network's input. rng: moves the box a little, changes its size, and wears the picture
    down; None leaves them as they are.
    """
    top, left = float(box.top), float(box.left)
    height, width = (float(side) for side in box.size)
    if rng is not None:
        top, left = top + rng.uniform(-0.06, 0.06) * height, left + rng.uniform(-0.08, 0.08) * width
        height, width = height * rng.uniform(0.92, 1.1), width * rng.uniform(0.9, 1.15)
    centre, scale = box_to_center_and_scale((left, top, width, height), size[1], size[0], BOX_UNIT)
    matrix = get_warp_matrix(0, centre * 2.0, np.array([size[1], size[0]]) - 1.0, scale * BOX_UNIT)
    shown = scipy_warp_affine(image, matrix, size)
    pixels = shown
    if rng is not None:
        is_beyond = ~shown.any(axis=2)
        pixels = worn_down(rng, Image.fromarray(shown))
        pixels[is_beyond] = 0
    return PersonCut(pixels / np.float32(127.5) - 1, centre, scale)


def worn_down(rng: np.random.Generator, image: Image.Image) -> Picture:
    """Return a picture with other brightness and colours, blur, noise and traces of JPEG, or some of them."""
    if rng.random() < 0.25:
        return np.array(image)
    if rng.random() < 0.35:
        shrink = rng.uniform(1.1, 2.3)
        small = (max(round(image.width / shrink), 1), max(round(image.height / shrink), 1))
        filters = [FILTERS[int(turn)] for turn in rng.integers(len(FILTERS), size=2)]
        image = image.resize(small, filters[0]).resize(image.size, filters[1])
    if rng.random() < 0.4:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(50, 96)))
        image = Image.open(buffer)
    pixels = np.asarray(image, np.float32)
    if rng.random() < 0.6:
        gains = (rng.uniform(0.75, 1.2) * rng.uniform(0.94, 1.06, 3)).astype(np.float32)
        pixels = pixels * gains + np.float32(rng.uniform(-12, 12))
    if rng.random() < 0.4:
        pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(1, 8))
    worn: Picture = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
    return worn
