"""Tests what is said about the regions of a photo, and which garment counts as worn."""

import numpy as np
import pytest

from fashion_rag.data.window import Box
from fashion_rag.person.labels import CLASSES
from fashion_rag.person.reading import PhotoReading
from fashion_rag.person.regions import Region, regions, worn_category
from fashion_rag.request import Window

SKIRT, PANTS, UPPER, DRESS = (CLASSES.index(name) for name in ("skirt", "pants", "upper_clothes", "dress"))


def reading(window: Window, **areas: Box) -> PhotoReading:
    """Return a reading with a rectangle of each class, in pixels of the 512x384 frame."""
    label_map = np.zeros((512, 384), np.uint8)
    for name, box in areas.items():
        label_map[box.top : box.bottom, box.left : box.right] = CLASSES.index(name)
    return PhotoReading(window, label_map, None, 1)


def test_a_region_is_told_in_pixels_of_the_photo() -> None:
    seen = reading(Window(100, 300, 256, 192), hair=Box(0, 0, 64, 96), dress=Box(128, 0, 256, 384))
    assert regions(seen, (400, 800)) == [
        Region("hair", 32 * 48 / (400 * 800), Box(100, 300, 132, 348)),
        Region("dress", 64 * 192 / (400 * 800), Box(164, 300, 228, 492)),
    ]


def test_what_lies_beyond_the_photo_does_not_count() -> None:
    # The window is four times as large as the photo, and its middle is the photo's.
    window = Window(-50, -50, 200, 200)
    (whole,) = regions(reading(window, dress=Box(0, 0, 512, 384)), (100, 100))
    assert whole == Region("dress", pytest.approx(1.0), Box(0, 0, 100, 100))
    assert regions(reading(window, dress=Box(0, 0, 100, 384)), (100, 100)) == []


def test_a_pixel_that_lies_across_an_edge_counts_in_part() -> None:
    # Each pixel of the frame is ten of the photo's high, and the photo ends in the middle of one.
    (region,) = regions(reading(Window(0, 0, 5120, 3840), skirt=Box(10, 0, 20, 384)), (105, 3840))
    assert region == Region("skirt", pytest.approx(5 / 105), Box(100, 0, 105, 3840))


@pytest.mark.parametrize(
    ("worn", "category"),
    [
        ({"dress": 30, "upper_clothes": 20}, "dresses"),
        ({"dress": 10, "upper_clothes": 20, "head": 400}, "upper_body"),
        ({"skirt": 15, "pants": 15, "upper_clothes": 20}, "lower_body"),
        ({"head": 40, "left_leg": 50}, None),
        ({}, None),
    ],
)
def test_the_largest_garment_is_the_one_worn(worn: dict[str, int], category: str | None) -> None:
    areas, top = {}, 0
    for name, height in worn.items():
        areas[name] = Box(top, 0, top + height, 384)
        top += height
    assert worn_category(reading(Window(0, 0, 512, 384), **areas)) == category
