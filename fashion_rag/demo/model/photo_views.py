"""What the human parser and the pose estimator see of a photo: letterboxed, in a window, or cut out round a person.

Here, too, photos are worn down as cameras and the web do it. `photo_stages` calls it, and so does the evaluation.
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

Picture = NDArray[np.uint8]  # [H, W, 3]
LabelMap = NDArray[np.uint8]  # [H, W]

# The class of pixels that the loss of the parser leaves out.
IGNORED = 255
# The share of a window's height that a person fills.
WINDOW_FILL = 0.9
# ViTPose measures boxes in this many pixels.
BOX_UNIT = 200.0
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class View:
    """A part of a photo in its pixels, which may reach beyond the photo."""

    top: int
    left: int
    height: int
    width: int


def window_round(box: tuple[int, int, int, int], photo_size: tuple[int, int], rng: np.random.Generator | None) -> View:
    """Return the 3:4 window round a person, shifted into the photo as far as it fits.

    box: (top, left, height, width) of the person in pixels. rng: moves the window a little and changes its size; None
    leaves it as it is.
    """
    top, left, box_height, box_width = box
    height = max(box_height, box_width * 4 / 3) / WINDOW_FILL
    centre_y, centre_x = top + box_height / 2, left + box_width / 2
    if rng is not None:
        height *= rng.uniform(0.88, 1.3)
        centre_y += rng.uniform(-0.06, 0.06) * height
        centre_x += rng.uniform(-0.06, 0.06) * height
    num_rows = max(round(height), 4)
    num_columns = max(round(height * 0.75), 3)
    return View(
        top=_shifted(round(centre_y - num_rows / 2), num_rows, photo_size[0]),
        left=_shifted(round(centre_x - num_columns / 2), num_columns, photo_size[1]),
        height=num_rows,
        width=num_columns,
    )


def _shifted(start: int, length: int, limit: int) -> int:
    """Return the start of a stretch, shifted so that it lies within `limit`, or covers it if it is longer."""
    low, high = sorted((0, limit - length))
    return min(max(start, low), high)


def crop(image: Picture, view: View) -> Picture:
    """Return the part of a picture in a view. Beyond the picture, the pixels at its edge go on."""
    rows = np.clip(np.arange(view.top, view.top + view.height), 0, image.shape[0] - 1)
    columns = np.clip(np.arange(view.left, view.left + view.width), 0, image.shape[1] - 1)
    return image[rows[:, None], columns[None, :]]


def crop_labels(label_map: LabelMap, view: View) -> LabelMap:
    """Return the part of a label map in a view, with IGNORED beyond the photo."""
    labels = np.full((view.height, view.width), IGNORED, np.uint8)
    top, left = max(view.top, 0), max(view.left, 0)
    part = label_map[top : max(view.top + view.height, 0), left : max(view.left + view.width, 0)]
    labels[top - view.top :, left - view.left :][: part.shape[0], : part.shape[1]] = part
    return labels


def letterbox_size(photo_size: tuple[int, int], size: tuple[int, int]) -> View:
    """Return where a photo of `photo_size` lies in the input of `size`: it keeps its shape, in the middle."""
    scale = min(size[0] / photo_size[0], size[1] / photo_size[1])
    height, width = max(round(photo_size[0] * scale), 1), max(round(photo_size[1] * scale), 1)
    return View((size[0] - height) // 2, (size[1] - width) // 2, height, width)


def letterboxed(image: Picture, size: tuple[int, int], rng: np.random.Generator | None) -> NDArray[np.float32]:
    """Return a photo as the parser sees it: in [-1, 1], float32 [h, w, 3], with 0 beyond the photo.

    rng: wears the photo down; None leaves it as it is.
    """
    place = letterbox_size((image.shape[0], image.shape[1]), size)
    shown = Image.fromarray(image).resize((place.width, place.height), Image.Resampling.BICUBIC)
    pixels = np.zeros((*size, 3), np.float32)
    part = np.asarray(shown) if rng is None else worn_down(rng, shown)
    pixels[place.top : place.top + place.height, place.left : place.left + place.width] = part / np.float32(127.5) - 1
    return pixels


def letterboxed_labels(label_map: LabelMap, size: tuple[int, int]) -> LabelMap:
    """Return a label map in the place where `letterboxed` shows the photo, uint8 [h, w], with 0 beyond the photo."""
    place = letterbox_size((label_map.shape[0], label_map.shape[1]), size)
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


def cut_person(
    image: Picture, box: tuple[float, float, float, float], size: tuple[int, int], rng: np.random.Generator | None
) -> PersonCut:
    """Return a person as ViTPose sees them, with black beyond the photo.

    box: (top, left, height, width) in pixels. size: (height, width) of the network's input. rng: moves the box a
    little, changes its size, and wears the picture down; None leaves them as they are.
    """
    top, left, height, width = box
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
