"""Pictures made of pictures: the part that is measured, and contact sheets. Called by `metrics`, `run` and the demo."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fashion_rag.evaluation.edits import Outcome

# How much of an in-shop picture the garment fills.
SHOP_FILL = 0.84
CELL = (256, 192)
GAP, TITLE_HEIGHT, CAPTION_HEIGHT = 12, 32, 28
PAPER, INK = (255, 255, 255), (30, 30, 36)


def cut_out(image: NDArray[np.uint8], area: NDArray[np.bool_]) -> Image.Image:
    """Return the area of an RGB picture alone on white, cut to its box, in the shape of an in-shop picture."""
    alone = np.where(area[..., None], image, 255).astype(np.uint8)
    rows, columns = np.nonzero(area)
    box = alone[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = image.shape[:2]
    scale = SHOP_FILL * min(height / box.shape[0], width / box.shape[1])
    small = Image.fromarray(box).resize((max(1, round(box.shape[1] * scale)), max(1, round(box.shape[0] * scale))))
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    canvas.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    return canvas


def contact_sheet(outcomes: Sequence[Outcome]) -> Image.Image:
    """Return the outcomes below each other: photo, mask, garments retrieved, result, the pair's garment; caption below.

    In the paired order the photo shows the truth.
    """
    most = max(len(outcome.garments) for outcome in outcomes)
    titles = ["photo", "mask", *(f"retrieved {number}" for number in range(1, most + 1)), "result", "garment meant"]
    height, width = CELL
    row_height = height + CAPTION_HEIGHT + GAP
    sheet = Image.new("RGB", (GAP + len(titles) * (width + GAP), TITLE_HEIGHT + len(outcomes) * row_height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (width + GAP), GAP), title, INK, font)
    for number, outcome in enumerate(outcomes):
        top = TITLE_HEIGHT + number * row_height
        for column, picture in enumerate(_pictures(outcome, most)):
            cell = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(cell, (GAP + column * (width + GAP), top))
        draw.text((GAP, top + height + 6), outcome.sample.caption, INK, font)
    return sheet


def _pictures(outcome: Outcome, num_garments: int) -> list[Image.Image]:
    sample = outcome.sample
    blank = [Image.new("RGB", (1, 1), PAPER)] * (num_garments - len(outcome.garments))
    mask = Image.fromarray(outcome.mask * np.uint8(255))
    with Image.open(sample.garment_path) as meant:
        return [sample.image, mask, *outcome.garments, *blank, outcome.picture, meant.convert("RGB")]
