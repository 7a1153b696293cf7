"""The drawn shop: plain photos with the truth about them, and the file that says who wears what."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from fashion_rag.demo.world.shop import GARMENT_SIZES, PHOTO_SIZES, draw_shop, write_shop
from fashion_rag.request import CATEGORIES


def test_the_file_names_what_lies_in_the_folders(tmp_path: Path) -> None:
    write_shop(tmp_path, 4, seed=0)
    with (tmp_path / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["category"] for row in rows] == [category for category in CATEGORIES for _ in range(4)]
    assert [row["split"] for row in rows] == ["train", "train", "train", "test"] * 3
    for folder, column in (("photos", "photo"), ("garments", "garment")):
        assert {path.name for path in (tmp_path / folder).iterdir()} == {row[column] for row in rows}
    for row, pair in zip(rows, draw_shop(4, seed=0), strict=True):
        for path, drawn in (("photos/" + row["photo"], pair.photo.image), ("garments/" + row["garment"], pair.in_shop)):
            error = np.asarray(Image.open(tmp_path / path)).astype(float) - drawn
            assert np.sqrt((error**2).mean()) < 4


def test_pictures_have_many_shapes_and_the_truth_lies_where_the_person_is() -> None:
    pairs = list(draw_shop(4, seed=0))
    assert {pair.photo.image.shape[:2] for pair in pairs} == set(PHOTO_SIZES)
    assert {pair.in_shop.shape[:2] for pair in pairs} == set(GARMENT_SIZES)
    for pair in pairs:
        label_map = pair.photo.label_map
        assert label_map.shape == pair.photo.image.shape[:2]
        nose_x, nose_y = pair.photo.keypoints[0].astype(int)
        assert label_map[nose_y, nose_x] == 11
