"""The reports give the truth full marks, and count what is wrong."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fashion_rag.demo.model import photo_evaluate, recipe
from fashion_rag.demo.model.photo_evaluate import Confusion, parse, parser_report, peaks, pose_report
from fashion_rag.demo.model.photo_evaluate import test_photos as drawn_test_photos
from fashion_rag.demo.model.photo_stages import COCO_POINTS, heat_targets
from fashion_rag.demo.model.photo_views import IGNORED, cut_person, letterboxed_labels


@pytest.fixture(scope="module")
def photos() -> list[Any]:
    return drawn_test_photos(6, seed=2)


class Fixed(torch.nn.Module):
    """A network that always says the same."""

    def __init__(self, **output: torch.Tensor) -> None:
        super().__init__()
        self.output = SimpleNamespace(**output)

    def forward(self, pixels: torch.Tensor) -> SimpleNamespace:
        return self.output


def logits_of(label_map: np.ndarray) -> torch.Tensor:
    """Return what a perfect parser says to a photo with this label map, [1, 18, h, w]."""
    labels = torch.from_numpy(letterboxed_labels(label_map, recipe.PARSER_SIZE)).long()
    return torch.nn.functional.one_hot(labels, 18).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("size", [(96, 72), (192, 144), (120, 160), (200, 90)])
def test_the_label_map_comes_back_to_the_pixels_of_the_photo(size: tuple[int, int]) -> None:
    truth = np.zeros(size, np.uint8)
    truth[20:60, 30:50] = 4
    truth[60:80, 30:50] = 6
    found = parse(Fixed(logits=logits_of(truth)), np.zeros((*size, 3), np.uint8))
    assert found.shape == size
    assert (found != truth).sum() <= 0.1 * (truth > 0).sum()
    rows, columns = np.nonzero(found == 4)
    np.testing.assert_allclose((rows.mean(), columns.mean()), (39.5, 39.5), atol=0.7)


def test_a_perfect_parser_gets_full_marks(photos: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    truths = {}
    for photo in photos:
        truths[photo.image.tobytes()] = photo.label_map

    def perfect(network: Any, image: np.ndarray) -> np.ndarray:
        truth = truths.get(image.tobytes())
        return np.zeros(image.shape[:2], np.uint8) if truth is None else truth

    monkeypatch.setattr(photo_evaluate, "parse", perfect)
    report = parser_report(Fixed(), photos)
    assert set(report["whole"].values()) == {1.0}
    assert report["window"]["mean"] < 0.5


def test_the_intersection_over_union_is_counted_over_all_pictures() -> None:
    confusion = Confusion()
    confusion.add(np.array([[4, 4, 0, 0]], np.uint8), np.array([[4, 0, 0, IGNORED]], np.uint8))
    confusion.add(np.array([[4, 4, 4, 7]], np.uint8), np.array([[4, 4, 4, 4]], np.uint8))
    assert confusion.means() == {"mean": 0.5833, "background": 0.5, "upper-clothes": 0.6667}


@pytest.mark.parametrize(("error", "expected"), [(0.0, 1.0), (0.05, 1.0), (0.2, 0.0)])
def test_points_count_within_a_tenth_of_the_head(photos: list[Any], error: float, expected: float) -> None:
    heat = []
    for photo in photos:
        cut = cut_person(photo.image, photo.box, recipe.POSE_SIZE, None)
        points = photo.keypoints[list(COCO_POINTS)]
        moved = cut.to_map(points + np.array([0, error * photo.head_size]), recipe.POSE_MAP_SIZE)
        heat.append(heat_targets(moved, points.any(axis=1)))
    report = pose_report(Fixed(heatmaps=torch.from_numpy(np.stack(heat))), photos)
    assert report["all"] == expected
    assert report["absent"] == 1.0
    assert report["seen"] > 0.9


def test_a_peak_at_the_edge_stays_inside() -> None:
    heat = torch.zeros(1, 1, *recipe.POSE_MAP_SIZE)
    heat[0, 0, 0, 47] = 1
    points, scores = peaks(heat)
    np.testing.assert_allclose(points[0, 0], (47, 0), atol=0.5)
    assert scores[0, 0] == 1
