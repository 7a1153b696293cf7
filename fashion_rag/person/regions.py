"""What was seen in a photo, for people: its regions, and the category of what is worn. The servers call it.

It needs no PyTorch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fashion_rag.data.window import Box, box_of
from fashion_rag.person.labels import CLASSES
from fashion_rag.person.reading import PhotoReading

# The classes of the garments that are worn, by the category that takes their place.
WORN = {"dresses": ("dress",), "lower_body": ("skirt", "pants"), "upper_body": ("upper_clothes",)}


class Region(NamedTuple):
    """The part of a photo that is of one class.

    name: one of CLASSES. area: its share of the photo, from 0 to 1. box: the smallest round it, in pixels.
    """

    name: str
    area: float
    box: Box


def regions(reading: PhotoReading, photo_size: tuple[int, int]) -> list[Region]:
    """Return the regions of a photo of this (height, width), in the order of CLASSES; only those that it shows.

    What the window has beyond the edges of the photo does not count.
    """
    window, (height, width) = reading.window, photo_size
    row_edges = _edges(window.top, window.height, reading.label_map.shape[0], height)
    column_edges = _edges(window.left, window.width, reading.label_map.shape[1], width)
    # How many of the photo's pixels are in each pixel of the window.
    pixels = np.outer(np.diff(row_edges), np.diff(column_edges))
    seen = []
    for number, name in enumerate(CLASSES[1:], 1):
        region = (reading.label_map == number) & (pixels > 0)
        if (box := box_of(region)) is not None:
            rows, columns = row_edges[[box.top, box.bottom]], column_edges[[box.left, box.right]]
            photo_box = Box(_down(rows[0]), _down(columns[0]), _up(rows[1]), _up(columns[1]))
            seen.append(Region(name, float(pixels[region].sum()) / (height * width), photo_box))
    return seen


def worn_category(reading: PhotoReading) -> str | None:
    """Return the category of the garment that takes the most of the photo, or None if none is to be seen."""
    areas = {}
    for category, names in WORN.items():
        areas[category] = int(np.isin(reading.label_map, [CLASSES.index(name) for name in names]).sum())
    largest = max(areas, key=areas.__getitem__)
    return largest if areas[largest] else None


def _edges(start: int, length: int, num_pixels: int, photo_length: int) -> NDArray[np.float64]:
    """Return where the window's pixels begin and end in the photo, in one direction, within the photo."""
    return np.clip(start + length * np.arange(num_pixels + 1) / num_pixels, 0, photo_length)


def _down(edge: float) -> int:
    return int(np.floor(edge))


def _up(edge: float) -> int:
    return int(np.ceil(edge))
