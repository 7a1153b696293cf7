"""Training cases: what they hold, and that they never show a held-out garment."""

from pathlib import Path

import numpy as np
import pytest

from fashion_rag.data.masks import nearest, repaint_mask_for
from fashion_rag.data.pose import KEYPOINT_FRAME, scale_keypoints
from fashion_rag.demo.model import cases
from fashion_rag.demo.world.attributes import sample_garment, sample_person
from fashion_rag.demo.world.draw import render
from fashion_rag.person.worn_mask import worn_mask
from fashion_rag.request import CATEGORIES

SIZE = (96, 72)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "CHUNK", 6)


def test_about_one_combination_in_ten_is_held_out() -> None:
    rng = np.random.default_rng(0)
    out = [cases.held_out(sample_garment(rng, CATEGORIES[i % 3])) for i in range(3000)]
    assert 0.05 < np.mean(out) < 0.15


def test_splits_do_not_share_a_garment() -> None:
    rng = np.random.default_rng(1)
    train = {cases.sample_split(rng, "dresses", test=False) for _ in range(300)}
    test = {cases.sample_split(rng, "dresses", test=True) for _ in range(300)}
    assert not train & test


def test_the_companions_of_a_garment_stay_on_its_side_of_the_split() -> None:
    rng = np.random.default_rng(2)
    for index in range(200):
        garment = cases.sample_split(rng, CATEGORIES[index % 3], test=False)
        assert not cases.held_out(cases._sibling(rng, garment))
        assert not cases.held_out(cases._cousin(rng, garment))


@pytest.mark.usefixtures("few")
def test_cases_are_kept_and_the_same_again(tmp_path: Path) -> None:
    drawn = cases.draw_cases(tmp_path, 12, SIZE, seed=5)
    assert len(drawn) == 12
    assert drawn.images.shape == (12, *SIZE, 3)
    assert drawn.garments.shape == (12, 3, *SIZE, 3)
    assert drawn.masks.any(axis=(1, 2)).all()
    files = sorted(tmp_path.rglob("*.npz"))
    written = [path.stat().st_mtime_ns for path in files]
    again = cases.draw_cases(tmp_path, 12, SIZE, seed=5)
    assert [path.stat().st_mtime_ns for path in files] == written
    np.testing.assert_array_equal(drawn.images, again.images)
    elsewhere = cases.draw_cases(tmp_path / "elsewhere", 6, SIZE, seed=5)
    np.testing.assert_array_equal(drawn.images[:6], elsewhere.images)
    assert elsewhere.texts == drawn.texts[:6]


@pytest.mark.usefixtures("few")
def test_a_sibling_has_the_colours_and_a_cousin_the_kind(tmp_path: Path) -> None:
    attributes = cases.draw_cases(tmp_path, 12, SIZE, seed=6).attributes
    worn, sibling, cousin = attributes[:, 0], attributes[:, 1], attributes[:, 2]
    np.testing.assert_array_equal(sibling[:, 1:], worn[:, 1:])
    np.testing.assert_array_equal(cousin[:, 0], worn[:, 0])
    assert (cousin != worn).any(axis=1).all()


def test_a_window_round_a_person_shows_all_of_them_where_their_points_are() -> None:
    """Test that what a window shows is what it says: labels and key points move and grow with the picture."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        garment = cases.sample_split(rng, "lower_body", test=False)
        person = sample_person(rng, "lower_body", garment)
        own = render(person, SIZE)
        seen = cases._in_window(rng, person, own)
        assert set(np.unique(seen.label_map)) == set(np.unique(own.label_map)), "a skirt is class 6 here, too"
        scale = np.ptp(seen.keypoints[:, 1]) / np.ptp(own.keypoints[:, 1])
        assert (seen.label_map > 0).sum() == pytest.approx(scale**2 * (own.label_map > 0).sum(), rel=0.1)
        rows, columns = seen.keypoints[[8, 11, 9, 12]].astype(int)[:, ::-1].T
        assert (seen.label_map[rows, columns] > 0).all(), "hips and knees are on the person"
        assert not np.array_equal(seen.image, own.image)


def test_masks_follow_the_rule_for_shoppers_about_as_often_as_the_papers() -> None:
    rng = np.random.default_rng(0)
    person = sample_person(rng, "dresses", cases.sample_split(rng, "dresses", test=False))
    drawn = render(person, SIZE)
    frame = scale_keypoints(drawn.keypoints, SIZE, KEYPOINT_FRAME)
    paper = repaint_mask_for(drawn.label_map, frame, "dresses", "mask", SIZE, KEYPOINT_FRAME)
    worn = nearest(worn_mask(nearest(drawn.label_map, KEYPOINT_FRAME), frame, "dresses", "mask"), SIZE)
    assert not np.array_equal(paper, worn)
    masks = [cases._mask_over(rng, drawn, "dresses", "mask") for _ in range(40)]
    num_worn = sum(np.array_equal(mask, worn) for mask in masks)
    assert num_worn + sum(np.array_equal(mask, paper) for mask in masks) == 40
    assert 10 <= num_worn <= 30
