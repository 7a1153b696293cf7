"""Pictures of edited samples: the repainted part alone, and contact sheets. `metrics`, `run` and the demo call it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.data.sheet import SheetRow, sheet
from fashion_rag.evaluation.edits import EditedSample

# The share of an in-shop picture's height or width that the garment fills.
SHOP_FILL = 0.84


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
    rows = [SheetRow(_pictures(edited, num_garments), edited.sample.caption) for edited in edited_samples]
    return sheet(titles, rows)


def _pictures(edited: EditedSample, num_garments: int) -> list[Image.Image | None]:
    """Return the pictures of a row, with None for garments that the sample lacks."""
    sample = edited.sample
    missing = [None] * (num_garments - len(edited.garments))
    mask = Image.fromarray(edited.mask * np.uint8(255))
    with Image.open(sample.garment_path) as pair_garment:
        return [sample.image, mask, *edited.garments, *missing, edited.picture, pair_garment.convert("RGB")]
