"""The report gives readings that are true full marks, and counts what is wrong in others."""

from dataclasses import replace

import numpy as np
import pytest

from fashion_rag.bundle import Bundle
from fashion_rag.data.window import whole
from fashion_rag.demo.model import photo_evaluate
from fashion_rag.demo.model.evaluate import make_cases
from fashion_rag.demo.model.photo_evaluate import (
    JOINTS,
    TruePhoto,
    case_photos,
    drawn_photos,
    evaluate_reading,
    judge_readings,
    labels_in,
)
from fashion_rag.demo.model.photo_views import IGNORED
from fashion_rag.demo.world.draw import Placement, render_into
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.person.reading import PhotoReading
from fashion_rag.request import Window

SIZE = (96, 72)
FRAME = (512, 384)


@pytest.fixture(scope="module")
def photos() -> list[TruePhoto]:
    return case_photos(make_cases(3, SIZE, seed=1, steps=1, guidance_scale=1.0), SIZE)


def true_reading(photo: TruePhoto) -> PhotoReading:
    height, width = photo.image.shape[:2]
    window = whole((height, width))
    label_map = labels_in(window, photo.label_map, (height, width))
    return PhotoReading(window, label_map, photo.keypoints, photo.num_persons)


def test_the_truth_gets_full_marks(photos: list[TruePhoto]) -> None:
    report = judge_readings([true_reading(photo) for photo in photos], photos)
    assert (report.num_photos, report.num_without_person, report.num_seen_as_nobody) == (3, 0, 0)
    assert report.mean_iou == report.points == report.num_persons == 1
    assert set(report.iou.values()) == {1.0}
    assert {"background", "hair", "skirt", "dress", "left_shoe"} <= report.iou.keys()
    assert report.points_by_joint == dict.fromkeys(set(JOINTS) - {"neck"}, 1.0)


@pytest.mark.parametrize(("error", "share"), [(0.09, 1.0), (0.11, 0.0)])
def test_points_are_right_within_a_tenth_of_the_head(photos: list[TruePhoto], error: float, share: float) -> None:
    readings = []
    for photo in photos:
        moved = photo.keypoints + np.array([0, error * photo.head_size])
        readings.append(replace(true_reading(photo), keypoints=moved))
    assert judge_readings(readings, photos).points == share


def test_a_point_that_was_not_seen_is_wrong_and_one_outside_the_photo_is_not_judged(photos: list[TruePhoto]) -> None:
    (photo,) = photos[:1]
    fewer = photo.keypoints.copy()
    fewer[4] = 0
    report = judge_readings([replace(true_reading(photo), keypoints=fewer)], [photo])
    assert report.points == pytest.approx(16 / 17)
    assert report.points_by_joint["right wrist"] == 0
    report = judge_readings([true_reading(photo)], [replace(photo, keypoints=fewer)])
    assert report.points == 1
    assert "right wrist" not in report.points_by_joint


def test_the_intersection_over_union_is_counted_over_all_photos(photos: list[TruePhoto]) -> None:
    top, bottom = np.zeros(FRAME, np.uint8), np.zeros(FRAME, np.uint8)
    top[:256], bottom[256:] = 4, 4
    truths = [replace(photos[0], label_map=top), replace(photos[1], label_map=bottom)]
    readings = [replace(true_reading(truths[0]), label_map=labels) for labels in (top, top)]
    report = judge_readings(readings, truths)
    assert report.iou == {"background": pytest.approx(1 / 3), "upper_clothes": pytest.approx(1 / 3)}
    assert report.mean_iou == pytest.approx(1 / 3)


def test_the_truth_is_sampled_into_the_window_and_ignored_beyond_the_photo() -> None:
    label_map = np.repeat(np.arange(4, dtype=np.uint8), 10)[None].repeat(20, axis=0)
    # The photo has half the resolution of its label map, and the window reaches five of its pixels beyond its left.
    labels = labels_in(Window(-2, -5, 16, 12), label_map, (10, 20))
    assert labels.shape == FRAME
    np.testing.assert_array_equal(labels[256, [0, 159, 160, 319, 320, 383]], [IGNORED, IGNORED, 0, 0, 1, 1])
    assert (labels[:64] == IGNORED).all()
    assert (labels[64:384, 160:] != IGNORED).all()
    assert (labels[384:] == IGNORED).all()


def test_persons_are_counted() -> None:
    photos = drawn_photos(60, seed=2)
    numbers = [photo.num_persons for photo in photos]
    assert set(numbers) == {0, 1, 2}
    readings = [true_reading(photo) for photo in photos]
    report = judge_readings(readings, photos)
    assert report.num_persons == 1
    assert report.num_without_person == report.num_seen_as_nobody == numbers.count(0)
    report = judge_readings([replace(reading, num_persons=1) for reading in readings], photos)
    assert report.num_persons == pytest.approx(numbers.count(1) / 60)
    assert report.num_seen_as_nobody == 0


def test_the_truth_of_a_case_is_that_of_its_person() -> None:
    cases = make_cases(3, SIZE, seed=1, steps=1, guidance_scale=1.0)
    # The middles of the photo's pixels in the label map.
    rows, columns = (((np.arange(side) + 0.5) * 16 / 3).astype(int) for side in SIZE)
    for case, photo in zip(cases, case_photos(cases, SIZE), strict=True):
        _, drawn = render_into(np.zeros((*SIZE, 3), np.uint8), case.person, Placement(1.0, 0.0, 0.0))
        assert photo.label_map.shape == FRAME
        assert (photo.label_map[np.ix_(rows, columns)] != drawn.label_map).mean() < 0.02
        np.testing.assert_allclose(photo.keypoints, drawn.keypoints)
        np.testing.assert_array_equal(photo.image, case.request.image)


def test_a_larger_photo_of_a_case_shows_the_same(photos: list[TruePhoto]) -> None:
    cases = make_cases(3, SIZE, seed=1, steps=1, guidance_scale=1.0)
    for photo, larger in zip(photos, case_photos(cases, (4 * SIZE[0], 4 * SIZE[1])), strict=True):
        np.testing.assert_array_equal(larger.label_map, photo.label_map)
        np.testing.assert_allclose(larger.keypoints, 4 * photo.keypoints)
        assert larger.head_size == pytest.approx(4 * photo.head_size)
        reduced = larger.image.reshape(SIZE[0], 4, SIZE[1], 4, 3).mean(axis=(1, 3))
        assert np.abs(reduced - photo.image).mean() < 4


def test_the_shipped_networks_read_the_photos(photos: list[TruePhoto], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_evaluate, "BATCH", 2)
    bundle = Bundle.open(DEMO_BUNDLE)
    report = evaluate_reading(bundle.load_parser(), bundle.load_pose_estimator(), photos, SIZE)
    assert report.num_photos == 3
    assert report.num_persons == 1
    assert report.mean_iou > 0.4
    assert report.points > 0.4
