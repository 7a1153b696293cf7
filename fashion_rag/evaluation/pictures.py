"""Pictures of edited samples: the repainted part alone, and contact sheets. `metrics`, `run` and the demo call it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fashion_rag.evaluation.edits import EditedSample

# The share of an in-shop picture's height or width that the garment fills.
SHOP_FILL = 0.84
CELL = (256, 192)
GAP, TITLE_HEIGHT, CAPTION_HEIGHT = 12, 32, 28
PAPER, INK = (255, 255, 255), (30, 30, 36)


def cut_out(image: NDArray[np.uint8], area: NDArray[np.bool_]) -> Image.Image:
    """Return the part of a picture that lies in an area, in the middle of a white picture as large as the whole.

    image: RGB, uint8 [H, W, 3]. area: bool [H, W]. The part is enlarged until it fills as much as an in-shop garment.
    """
    alone = np.where(area[..., None], image, 255).astype(np.uint8)
    rows, columns = np.nonzero(area)
    part = alone[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = image.shape[:2]
    scale = SHOP_FILL * min(height / part.shape[0], width / part.shape[1])
    scaled_size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
    scaled = Image.fromarray(part).resize(scaled_size)
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    canvas.paste(scaled, ((width - scaled.width) // 2, (height - scaled.height) // 2))
    return canvas


def contact_sheet(edited_samples: Sequence[EditedSample]) -> Image.Image:
    """Return one picture with a row for each sample, and its caption below the row.

    A row shows the photo, the mask, the retrieved garments, the result and the garment of the pair. In the paired order
    the photo already shows the wanted result.
    """
    num_garments = max(len(edited.garments) for edited in edited_samples)
    retrieved = [f"retrieved {number}" for number in range(1, num_garments + 1)]
    titles = ["photo", "mask", *retrieved, "result", "garment meant"]
    height, width = CELL
    row_height = height + CAPTION_HEIGHT + GAP
    sheet_size = GAP + len(titles) * (width + GAP), TITLE_HEIGHT + len(edited_samples) * row_height
    sheet = Image.new("RGB", sheet_size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (width + GAP), GAP), title, INK, font)
    for number, edited in enumerate(edited_samples):
        top = TITLE_HEIGHT + number * row_height
        for column, picture in enumerate(_pictures(edited, num_garments)):
            cell = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(cell, (GAP + column * (width + GAP), top))
        draw.text((GAP, top + height + 6), edited.sample.caption, INK, font)
    return sheet


def _pictures(edited: EditedSample, num_garments: int) -> list[Image.Image]:
    """Return the pictures of a row, with blank ones for garments that the sample lacks."""
    sample = edited.sample
    blank = [Image.new("RGB", (1, 1), PAPER)] * (num_garments - len(edited.garments))
    mask = Image.fromarray(edited.mask * np.uint8(255))
    with Image.open(sample.garment_path) as pair_garment:
        return [sample.image, mask, *edited.garments, *blank, edited.picture, pair_garment.convert("RGB")]
