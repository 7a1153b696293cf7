"""Contact sheets show each sample in a row."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from fashion_rag.data.sheet import CELL, GAP, PAPER, TITLE_HEIGHT
from fashion_rag.evaluation.edits import EditFolder, EvaluationSettings
from fashion_rag.evaluation.pictures import contact_sheet
from fashion_rag.manifest import Manifest
from tests.evaluation.conftest import Painter


def test_a_row_has_photo_mask_garments_result_and_the_garment_meant(
    tmp_path: Path, settings: EvaluationSettings, manifest: Manifest
) -> None:
    painter = Painter("lime")
    edits = EditFolder(tmp_path, replace(settings, num_retrieved=2), manifest, ["dresses"])
    edits.make(painter, 3, lambda done, total: None)
    edited_samples = [edits.edited_sample(number, painter) for number in edits.made()[:2]]
    edited_samples[1] = replace(edited_samples[1], garments=edited_samples[1].garments[:1])
    sheet = contact_sheet(edited_samples)

    def cell(row: int, column: int) -> np.ndarray:
        top = TITLE_HEIGHT + row * (sheet.height - TITLE_HEIGHT) // 2
        left = GAP + column * (CELL[1] + GAP)
        return np.asarray(sheet.crop((left, top, left + CELL[1], top + CELL[0])))

    def shows(row: int, column: int, picture: Image.Image) -> bool:
        wanted = np.asarray(picture.convert("RGB").resize((CELL[1], CELL[0]), Image.Resampling.LANCZOS))
        return np.array_equal(cell(row, column), wanted)

    first, second = edited_samples
    assert shows(0, 0, first.sample.image) and shows(1, 0, second.sample.image)
    assert shows(0, 1, Image.fromarray(first.mask * np.uint8(255)))
    assert shows(0, 2, first.garments[0]) and shows(0, 3, first.garments[1]) and shows(1, 2, second.garments[0])
    assert (cell(1, 3) == PAPER).all()
    assert shows(0, 4, first.picture) and shows(1, 4, second.picture)
    assert shows(0, 5, Image.open(first.sample.garment_path))
