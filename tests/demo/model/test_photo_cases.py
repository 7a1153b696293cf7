"""Photo cases come back from their files as they were drawn, and test photos show held-out garments alone."""

from pathlib import Path

import numpy as np
import pytest

from fashion_rag.demo.model import photo_cases
from fashion_rag.demo.model.cases import held_out
from fashion_rag.demo.model.photo_cases import draw_photo_cases, sample_test_photo


def test_the_files_hold_what_was_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(photo_cases, "CHUNK", 8)
    reported: list[tuple[int, int]] = []
    cases = draw_photo_cases(tmp_path, 10, 5, progress=lambda done, total: reported.append((done, total)))
    assert len(cases) == 16
    assert reported == [(1, 2), (2, 2)]
    for index, case in enumerate(cases):
        photo = photo_cases._sample(5, index, test=False)
        np.testing.assert_array_equal(case.image, photo.image)
        np.testing.assert_array_equal(case.label_map, photo.label_map)
        np.testing.assert_array_equal(case.keypoints, photo.keypoints)
        assert (case.box, case.head_size) == (photo.box, photo.head_size)
        assert not any(held_out(garment) for garment in (photo.person.outfit if photo.person else ()))
    assert len({case.label_map.shape for case in cases}) > 5
    again = draw_photo_cases(tmp_path, 10, 5, progress=lambda done, total: reported.append((done, total)))
    assert len(reported) == 2
    np.testing.assert_array_equal(again[15].image, cases[15].image)


def test_persons_of_test_photos_wear_held_out_garments() -> None:
    photos = [sample_test_photo(1, index) for index in range(12)]
    garments = [garment for photo in photos if photo.person for garment in photo.person.outfit]
    assert garments
    assert all(held_out(garment) for garment in garments)
