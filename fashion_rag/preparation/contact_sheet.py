"""The sheet of some prepared pairs as training and evaluation will see them, for people to look at. `run` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fashion_rag.data.dresscode import DressCode, Phase, Sample
from fashion_rag.data.masks import repaint_mask
from fashion_rag.data.pose import KEYPOINT_FRAME
from fashion_rag.data.sheet import SheetRow, sheet
from fashion_rag.preparation.pairs_file import SPLITS

TITLES = ("photo", "label map", "key points", "mask", "garment")
# The RGB colours of the 18 classes of a label map.
CLASS_COLOURS = np.array(
    [
        (24, 24, 28), (176, 122, 161), (110, 75, 40), (60, 60, 60), (225, 87, 89), (242, 142, 43),
        (78, 121, 167), (89, 161, 79), (156, 117, 95), (140, 140, 140), (170, 170, 170), (255, 218, 185),
        (160, 203, 232), (120, 170, 215), (255, 190, 125), (241, 206, 99), (212, 166, 200), (134, 188, 182),
    ],
    np.uint8,
)  # fmt: skip
POINT_COLOUR, MASK_COLOUR = (255, 0, 90), (255, 0, 90)
POINT_RADIUS = 6


def contact_sheet(root: Path, photo_names: Mapping[str, str], max_rows: int) -> Image.Image:
    """Return a sheet of at most `max_rows` pairs of the data set in `root`, evenly spread over it.

    A row shows the photo, its label map in colours, its key points, the mask of the paper's rule, and the garment.
    photo_names: what the shop calls the photo of each person id.
    Raises what `DressCode` raises.
    """
    data = {phase: DressCode(root, phase, size=KEYPOINT_FRAME) for phase in SPLITS}
    places: list[tuple[Phase, int]] = []
    for phase, samples in data.items():
        places += [(phase, number) for number in range(len(samples))]
    rows = []
    for place in np.linspace(0, len(places) - 1, min(max_rows, len(places)), dtype=int).tolist():
        phase, number = places[place]
        sample = data[phase][number]
        caption = f"{photo_names[sample.person_id]}, {phase}, {sample.category}: {sample.caption}"
        rows.append(SheetRow(_pictures(sample), caption))
    return sheet(TITLES, rows)


def _pictures(sample: Sample) -> list[Image.Image]:
    """Return the pictures of a row, in the order of TITLES."""
    mask = repaint_mask(sample.label_map, sample.keypoints, sample.category)
    with Image.open(sample.garment_path) as garment:
        return [
            sample.image,
            Image.fromarray(CLASS_COLOURS[sample.label_map]),
            _with_points(sample.image, sample.keypoints),
            _with_mask(sample.image, mask),
            garment.convert("RGB"),
        ]


def _with_points(photo: Image.Image, keypoints: NDArray[np.float64]) -> Image.Image:
    """Return a photo in the size of KEYPOINT_FRAME with a dot on each key point that is not absent."""
    dotted = photo.copy()
    draw = ImageDraw.Draw(dotted)
    for x, y in keypoints[keypoints.any(axis=1)].tolist():
        draw.circle((x, y), POINT_RADIUS, fill=POINT_COLOUR)
    return dotted


def _with_mask(photo: Image.Image, mask: NDArray[np.uint8]) -> Image.Image:
    """Return a photo with a tint where the mask [H, W] is set."""
    tinted = Image.blend(photo, Image.new("RGB", photo.size, MASK_COLOUR), 0.5)
    return Image.composite(tinted, photo, Image.fromarray(mask * np.uint8(255)))
