"""The windows of photos: which part of a photo an edit works on, and the way from the photo to the window and back.

The model wants pictures of one shape. A photo of another shape, or with a small person, is not stretched. The edit works
on a window of the model's shape instead, and its result is put back where the window was. The pipeline, the servers and
`person` call this. Nothing here needs PyTorch. Sizes are (height, width).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fashion_rag.request import Window

# A photo has the model's shape if its width differs from the one of that shape by at most this share.
SHAPE_TOLERANCE = 0.01
# A person, or a mask, whose box is at least this share of the photo's height or width fills the photo.
FILLS = 0.7
# The share of the window's height or width that the person takes.
PERSON_SHARE = 0.9
# The share of the window's height or width that a mask takes where no person is known.
MASK_SHARE = 0.5


class Box(NamedTuple):
    """A rectangle in pixels, from `top` and `left` to before `bottom` and `right`."""

    top: int
    left: int
    bottom: int
    right: int


def whole(photo_size: tuple[int, int]) -> Window:
    """Return the window that is the photo itself."""
    return Window(0, 0, *photo_size)


def box_of(area: NDArray[np.bool_]) -> Box | None:
    """Return the smallest box round what is set in `area` [H, W], or None if nothing is."""
    rows, columns = np.flatnonzero(area.any(axis=1)), np.flatnonzero(area.any(axis=0))
    if not len(rows):
        return None
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def window_round(box: Box | None, photo_size: tuple[int, int], shape: tuple[int, int], share: float) -> Window:
    """Return the window in which the box takes `share` of the height or of the width.

    shape: the (height, width) of the model's pictures. The window has this shape. It lies inside the photo where it can,
    and round the middle of the photo, in a direction in which it is larger than the photo. A photo of this shape that
    the box fills, or without a box, is its own window. Without a box, the window is the smallest round the whole photo.
    """
    raise NotImplementedError


def crop(pixels: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    """Return the part of a photo, uint8 [H, W] or [H, W, 3], in the window; beyond its edges, the photo is continued."""
    raise NotImplementedError


def points_in(window: Window, keypoints: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Return key points [18, 2] of the photo in pixels of the window at `size`; absent points stay (0, 0)."""
    raise NotImplementedError


def points_out(window: Window, keypoints: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Return key points [18, 2] of the window at `size` in pixels of the photo; absent points stay (0, 0)."""
    raise NotImplementedError


def mask_out(window: Window, mask: NDArray[np.uint8], photo_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a mask of the window, of any size, as a mask of the photo, uint8 [H, W], with smooth edges."""
    raise NotImplementedError
