"""Areas of a picture: lines of some width, half-planes, and areas grown. `worn_mask` and `body` put theirs together.

An area is bool [H, W]. A point is (x, y) in pixels, where (0, 0) is the middle of the first pixel. All areas are the
same from left to right and from right to left: the area of mirrored points is the mirrored area.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Area = NDArray[np.bool_]
Point = NDArray[np.float64]  # [2]


def empty(shape: tuple[int, ...]) -> Area:
    """Return an area without a pixel."""
    return np.zeros(shape, dtype=np.bool_)


def line(
    shape: tuple[int, ...], start: Point, end: Point, radius: float, end_radius: float | None = None, tail: float = 0.0
) -> Area:
    """Return a line that is round at its start and cut off straight, `tail` pixels after its end.

    radius: half the line's width, in pixels, at its start. end_radius: at its end; None for the same.
    """
    last = radius if end_radius is None else end_radius
    area = empty(shape)
    points, reach = np.stack([start, end]), max(radius, last) + tail
    part = _part(shape, points.min(axis=0) - reach, points.max(axis=0) + reach)
    dx, dy = _offsets(part, start)
    (along_x, along_y), length = end - start, float(np.hypot(*(end - start)))
    inside = dx**2 + dy**2 <= radius**2
    if length > 0:
        along = (dx * along_x + dy * along_y) / length
        across = np.abs(dx * along_y - dy * along_x) / length
        inside &= along <= length + tail
        inside |= (along >= 0) & (along <= length + tail) & (across <= radius + (last - radius) * along / length)
    area[part] = inside
    return area


def disc(shape: tuple[int, ...], centre: Point, radius: float) -> Area:
    """Return the disc round a point."""
    return line(shape, centre, centre, radius)


def hull(shape: tuple[int, ...], points: list[Point]) -> Area:
    """Return the smallest convex area that holds all the points, of which there should be few."""
    area = empty(shape)
    # It is made of all the triangles that the points form.
    for corners in combinations(points, 3):
        stacked = np.stack(corners)
        part = _part(shape, stacked.min(axis=0), stacked.max(axis=0))
        left, right = np.True_, np.True_
        for start, end in ((0, 1), (1, 2), (2, 0)):
            dx, dy = _offsets(part, stacked[start])
            along_x, along_y = stacked[end] - stacked[start]
            side = dx * along_y - dy * along_x
            left, right = left & (side >= 0), right & (side <= 0)
        area[part] |= left | right
    return area


def beyond(shape: tuple[int, ...], point: Point, direction: Point, by: float = 0.0) -> Area:
    """Return what lies at least `by` pixels further in a direction, which is a unit vector, than a point."""
    dx, dy = _offsets((slice(0, shape[0]), slice(0, shape[1])), point)
    area: Area = dx * direction[0] + dy * direction[1] >= by
    return area


def grown(area: Area, by: int) -> Area:
    """Return the area grown by so many pixels in every direction, corners included."""
    wide = ndimage.maximum_filter1d(area.view(np.uint8), 2 * by + 1, axis=0, mode="constant")
    result: Area = ndimage.maximum_filter1d(wide, 2 * by + 1, axis=1, mode="constant").view(np.bool_)
    return result


def filled_rows(area: Area) -> Area:
    """Return the area with each row filled from its first pixel to its last."""
    from_left = np.logical_or.accumulate(area, axis=1)
    from_right = np.logical_or.accumulate(area[:, ::-1], axis=1)[:, ::-1]
    filled: Area = from_left & from_right
    return filled


def far_end(area: Area, root: Point, length: float) -> Area:
    """Return the last `length` pixels of a connected area, measured inside the area from where it is nearest to `root`.

    All of the area is returned if it is no longer than this.
    """
    rows, columns = np.nonzero(area)
    if not len(rows):
        return area
    distances = np.hypot(columns - root[0], rows - root[1])
    part = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    inside = area[part]
    reached = empty(area.shape)
    nearest = distances <= distances.min() + 1
    reached[rows[nearest], columns[nearest]] = True
    reached = reached[part]
    steps = np.where(reached, 0, -1)
    step = 0
    while not reached.all():
        step += 1
        # Steps over the sides and steps over the corners in turn come near to true distances.
        following = ndimage.binary_dilation(reached, ndimage.generate_binary_structure(2, 1 + step % 2), mask=inside)
        steps[following & ~reached] = step
        if (following == reached).all():
            break
        reached = following
    end = empty(area.shape)
    end[part] = inside & (steps >= steps.max() - length)
    return end


def _part(shape: tuple[int, ...], first: Point, last: Point) -> tuple[slice, slice]:
    """Return the rows and columns of the picture from the point `first` to the point `last`."""
    left, top = np.clip(np.floor(first), 0, (shape[1], shape[0])).astype(int)
    right, bottom = np.clip(np.ceil(last) + 1, 0, (shape[1], shape[0])).astype(int)
    return slice(top, bottom), slice(left, right)


def _offsets(part: tuple[slice, slice], point: Point) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far the columns, [1, w], and the rows, [h, 1], of a part of the picture are from a point."""
    rows, columns = part
    dx = np.arange(columns.start, columns.stop)[None, :] - point[0]
    dy = np.arange(rows.start, rows.stop)[:, None] - point[1]
    return dx, dy
