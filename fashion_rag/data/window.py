"""The windows of photos: which part of a photo an edit works on, and the way from the photo to the window and back.

The model wants pictures of one shape. A photo of another shape, or with a small person, is not stretched. Instead, the
edit works on a window of the model's shape, and its result is put back where the window was. The pipeline, the servers
and `person` call this. Nothing here needs PyTorch. Sizes are (height, width).

A window of a long, narrow photo may have a hundred times as many pixels as the photo. So nothing here makes a picture
of a window at the photo's resolution, except `crop`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.request import Window

# A photo has the model's shape if its width differs from the one of that shape by at most this share.
SHAPE_TOLERANCE = 0.01
# A person, or a mask, whose box is at least this share of the photo's height or width fills the photo.
FILLS = 0.7
# The share of the window's height or width that the person takes.
PERSON_SHARE = 0.9
# The share of the window's height or width that a mask takes where no person is known.
MASK_SHARE = 0.5
# No window has fewer rows, because the latents of the full-size model have so many. In a smaller window, a pixel would
# have to make up more than one latent, and there would be no detail to keep.
MIN_HEIGHT = 64


class Box(NamedTuple):
    """A rectangle in pixels, from `top` and `left` to before `bottom` and `right`."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Return the height and width."""
        return self.bottom - self.top, self.right - self.left


def whole(photo_size: tuple[int, int]) -> Window:
    """Return the window that is the photo itself."""
    return Window(0, 0, *photo_size)


def has_shape(photo_size: tuple[int, int], shape: tuple[int, int]) -> bool:
    """Return whether a photo has the shape of a (height, width), within SHAPE_TOLERANCE."""
    wanted_width = photo_size[0] * shape[1] / shape[0]
    return abs(photo_size[1] - wanted_width) <= SHAPE_TOLERANCE * wanted_width


def box_of(area: NDArray[np.bool_]) -> Box | None:
    """Return the smallest box round what is set in `area` [H, W], or None if nothing is."""
    rows, columns = np.flatnonzero(area.any(axis=1)), np.flatnonzero(area.any(axis=0))
    if not len(rows):
        return None
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def box_round(*boxes: Box | None) -> Box | None:
    """Return the smallest box round all boxes, or None if all are None."""
    known = [box for box in boxes if box is not None]
    if not known:
        return None
    tops, lefts, bottoms, rights = zip(*known, strict=True)
    return Box(min(tops), min(lefts), max(bottoms), max(rights))


def window_round(box: Box | None, photo_size: tuple[int, int], shape: tuple[int, int], share: float) -> Window:
    """Return the window of the shape of a (height, width) round a box in the photo.

    The larger of the box's sides, as the shape measures them, takes `share` of the window's. Where no such window fits
    into the photo, but the box fits into the largest that does, this largest is taken. A window has MIN_HEIGHT rows if
    the photo is large enough. Its middle is that of the box, but it is moved inside the photo where it can be. In a
    direction in which it is larger than the photo, their middles agree. Without a box, the window is the smallest round
    the whole photo.

    A photo of this shape is its own window if the box fills it, if there is no box, or if no smaller window does.
    """
    photo = Box(0, 0, *photo_size)
    inside, around = _largest_within(photo, shape), _smallest_round(photo, shape)
    is_shape = has_shape(photo_size, shape)
    if box is None:
        return whole(photo_size) if is_shape else _placed(around, photo, photo_size)
    height, width = box.size
    if is_shape and (height >= FILLS * photo_size[0] or width >= FILLS * photo_size[1]):
        return whole(photo_size)
    size = _smallest_round(box, shape, share)
    if size[0] < MIN_HEIGHT:
        size = MIN_HEIGHT, max(1, round(MIN_HEIGHT * shape[1] / shape[0]))
    if size[0] >= inside[0] or size[1] >= inside[1]:
        if is_shape:
            return whole(photo_size)
        size = inside if height <= inside[0] and width <= inside[1] else min(size, around)
    return _placed(size, box, photo_size)


def widened(window: Window, box: Box, photo_size: tuple[int, int], shape: tuple[int, int]) -> Window:
    """Return the window if it holds the box, else the smallest that holds the box and what the window shows."""
    visible = visible_part(window, photo_size)
    both = box_round(visible, box)
    if both is None or both == visible:
        return window
    return window_round(both, photo_size, shape, share=1.0)


def scaled(window: Window, from_size: tuple[int, int], to_size: tuple[int, int]) -> Window:
    """Return the window of a photo of `from_size` in the same photo at `to_size`."""
    vertical, horizontal = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return Window(
        top=round(window.top * vertical),
        left=round(window.left * horizontal),
        height=max(1, round(window.height * vertical)),
        width=max(1, round(window.width * horizontal)),
    )


def visible_part(window: Window, photo_size: tuple[int, int]) -> Box:
    """Return the part of the photo that lies in the window, in pixels of the photo. It must not be empty."""
    top, left = max(window.top, 0), max(window.left, 0)
    bottom, right = min(window.top + window.height, photo_size[0]), min(window.left + window.width, photo_size[1])
    assert top < bottom and left < right, "a window shows some of its photo"
    return Box(top, left, bottom, right)


def crop(pixels: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    """Return the part of a photo, uint8 [H, W] or [H, W, 3], in the window; beyond its edges, the photo is continued.

    It has the window's size, which may be many times the photo's; `resized` returns the same at a size of its own. The
    pixels are copied only if the window reaches beyond the photo.
    """
    seen = visible_part(window, (pixels.shape[0], pixels.shape[1]))
    rows = (seen.top - window.top, window.top + window.height - seen.bottom)
    columns = (seen.left - window.left, window.left + window.width - seen.right)
    part = pixels[seen.top : seen.bottom, seen.left : seen.right]
    if rows == columns == (0, 0):
        return part
    return np.pad(part, (rows, columns) + ((0, 0),) * (pixels.ndim - 2), mode="edge")


def resized(
    pixels: NDArray[np.uint8], window: Window, size: tuple[int, int], resampling: Image.Resampling
) -> Image.Image:
    """Return the part of a photo, uint8 [H, W] or [H, W, 3], in the window, at a size; beyond, the photo is continued.

    Of the photo, only the part in the window is copied. With the whole photo for a window, it is the photo resized.
    """
    seen = visible_part(window, (pixels.shape[0], pixels.shape[1]))
    part = Image.fromarray(pixels[seen.top : seen.bottom, seen.left : seen.right])
    if seen.size == (window.height, window.width):
        return part.resize((size[1], size[0]), resampling)
    rows = _covered(seen.top - window.top, seen.bottom - window.top, window.height, size[0])
    columns = _covered(seen.left - window.left, seen.right - window.left, window.width, size[1])
    box = (columns.from_pixel, rows.from_pixel, columns.to_pixel, rows.to_pixel)
    shown = part.resize((columns.stop - columns.start, rows.stop - rows.start), resampling, box)
    before_after = ((rows.start, size[0] - rows.stop), (columns.start, size[1] - columns.stop))
    return Image.fromarray(np.pad(np.asarray(shown), before_after + ((0, 0),) * (pixels.ndim - 2), mode="edge"))


def points_in(window: Window, keypoints: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Return key points [18, 2] of the photo in pixels of the window at `size`.

    Absent points stay (0, 0), and those outside the window become absent.
    """
    scale = (size[1] / window.width, size[0] / window.height)
    points = np.asarray(keypoints, np.float64) - (window.left, window.top)
    inside = (points >= 0).all(axis=1) & (points <= (window.width, window.height)).all(axis=1)
    return np.where((present(keypoints) & inside)[:, None], points * scale, 0.0)


def points_out(window: Window, keypoints: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Return key points [18, 2] of the window at `size` in pixels of the photo; absent points stay (0, 0)."""
    scale = (window.width / size[1], window.height / size[0])
    points = np.asarray(keypoints, np.float64) * scale + (window.left, window.top)
    return np.where(present(keypoints)[:, None], points, 0.0)


def present(keypoints: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of the key points [18, 2] are not absent, by the rule of `pose.heat_maps`."""
    return np.asarray((keypoints > 0).any(axis=1))


def mask_out(window: Window, mask: NDArray[np.uint8], photo_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a mask of the window, of any size, as a mask of the photo, uint8 [H, W], with smooth edges.

    Between the pixels of the mask, which are 0 or not, the edge runs where they would blend half and half.
    """
    seen = visible_part(window, photo_size)
    levels = np.where(mask, 255, 0).astype(np.uint8)
    photo_mask = np.zeros(photo_size, np.uint8)
    photo_mask[seen.top : seen.bottom, seen.left : seen.right] = (
        picture_out(window, levels, photo_size, Image.Resampling.BILINEAR) >= 128
    )
    return photo_mask


def picture_out(
    window: Window, picture: NDArray[np.uint8], photo_size: tuple[int, int], resampling: Image.Resampling
) -> NDArray[np.uint8]:
    """Return the visible part of the window, as `visible_part`, in a picture of the window, which may have any size.

    picture: uint8 [h, w] or [h, w, 3]. What is returned has one pixel for each pixel of the photo.
    """
    seen = visible_part(window, photo_size)
    scale_y, scale_x = picture.shape[0] / window.height, picture.shape[1] / window.width
    box = (
        (seen.left - window.left) * scale_x,
        (seen.top - window.top) * scale_y,
        min((seen.right - window.left) * scale_x, picture.shape[1]),
        min((seen.bottom - window.top) * scale_y, picture.shape[0]),
    )
    height, width = seen.size
    return np.asarray(Image.fromarray(picture).resize((width, height), resampling, box))


def _smallest_round(box: Box, shape: tuple[int, int], share: float = 1.0) -> tuple[int, int]:
    """Return the smallest size of the shape in which the box takes at most `share` of each side."""
    height, width = (side / share for side in box.size)
    if height * shape[1] >= width * shape[0]:
        height = math.ceil(height)
        return height, max(1, round(height * shape[1] / shape[0]))
    width = math.ceil(width)
    return max(1, round(width * shape[0] / shape[1])), width


def _largest_within(box: Box, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the largest size of the shape that fits into the box."""
    height, width = box.size
    if height * shape[1] <= width * shape[0]:
        return height, max(1, round(height * shape[1] / shape[0]))
    return max(1, round(width * shape[0] / shape[1])), width


def _placed(size: tuple[int, int], box: Box, photo_size: tuple[int, int]) -> Window:
    """Return the window of this size round the middle of the box, moved inside the photo where it can be."""
    top = _start((box.top + box.bottom) / 2, size[0], photo_size[0])
    left = _start((box.left + box.right) / 2, size[1], photo_size[1])
    return Window(top, left, *size)


def _start(middle: float, side: int, photo_side: int) -> int:
    """Return where a side of a window starts, so that it lies round `middle`, and inside the photo where it can."""
    if side > photo_side:
        return -((side - photo_side) // 2)
    return min(max(round(middle - side / 2), 0), photo_side - side)


class _Covered(NamedTuple):
    """The pixels from `start` to before `stop` of a resized window, and the range of the photo's pixels they show."""

    start: int
    stop: int
    from_pixel: float
    to_pixel: float


def _covered(begin: int, end: int, window_side: int, side: int) -> _Covered:
    """Return which of `side` pixels lie wholly in the photo's part, which is from `begin` to `end` of the window.

    Where not even one does, it is the pixel in the middle of the part, and shows all of it.
    """
    start, stop = math.ceil(begin * side / window_side), math.floor(end * side / window_side)
    if start >= stop:
        middle = min((begin + end) * side // (2 * window_side), side - 1)
        return _Covered(middle, middle + 1, 0, end - begin)
    scale = window_side / side
    return _Covered(start, stop, max(start * scale - begin, 0), min(stop * scale - begin, end - begin))
