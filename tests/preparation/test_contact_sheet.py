"""The sheet to look at shows what was prepared."""

from pathlib import Path

import numpy as np
from PIL import Image

from fashion_rag.data.dresscode import DressCode, Sample
from fashion_rag.data.masks import repaint_mask
from fashion_rag.data.pose import KEYPOINT_FRAME
from fashion_rag.data.sheet import CELL, GAP, TITLE_HEIGHT
from fashion_rag.preparation.contact_sheet import CLASS_COLOURS, POINT_COLOUR, TITLES, contact_sheet


def samples_in(root: Path) -> list[Sample]:
    return [*DressCode(root, "train", size=KEYPOINT_FRAME), *DressCode(root, "test", size=KEYPOINT_FRAME)]


def test_a_row_shows_photo_classes_points_mask_and_garment(prepared_data: Path) -> None:
    samples = samples_in(prepared_data)
    names = {sample.person_id: sample.person_id for sample in samples}
    sheet = contact_sheet(prepared_data, names, len(samples))
    row_height = (sheet.height - TITLE_HEIGHT) // len(samples)
    for row in (0, len(samples) - 1):
        sample = samples[row]

        def cell(title: str, top: int = TITLE_HEIGHT + row * row_height) -> np.ndarray:
            left = GAP + TITLES.index(title) * (CELL[1] + GAP)
            return np.asarray(sheet.crop((left, top, left + CELL[1], top + CELL[0])), float)

        def resized(picture: Image.Image) -> np.ndarray:
            return np.asarray(picture.resize((CELL[1], CELL[0]), Image.Resampling.LANCZOS), float)

        photo = resized(sample.image)
        assert np.array_equal(cell("photo"), photo)
        assert np.array_equal(cell("label map"), resized(Image.fromarray(CLASS_COLOURS[sample.label_map])))
        x, y = (sample.keypoints[0] / 2).astype(int)
        assert np.abs(cell("key points")[y, x] - POINT_COLOUR).max() < 40
        mask = repaint_mask(sample.label_map, sample.keypoints, sample.category)
        changed = np.abs(cell("mask") - photo).max(axis=-1) > 20
        # The cell is half as large as the frame; at the edge of the mask the resized pictures blend.
        assert (changed == (mask[::2, ::2] > 0)).mean() > 0.95
        with Image.open(sample.garment_path) as garment:
            assert np.array_equal(cell("garment"), resized(garment))


def test_the_rows_are_spread_over_all_pairs(prepared_data: Path) -> None:
    samples = samples_in(prepared_data)
    names = {sample.person_id: sample.person_id for sample in samples}
    two, all_rows = contact_sheet(prepared_data, names, 2), contact_sheet(prepared_data, names, 100)
    row_height = (two.height - TITLE_HEIGHT) // 2
    assert all_rows.height == TITLE_HEIGHT + len(samples) * row_height
    assert np.array_equal(
        two.crop((0, TITLE_HEIGHT + row_height, two.width, two.height)),
        all_rows.crop((0, all_rows.height - row_height, two.width, all_rows.height)),
    )
