"""Training cases: what they hold, and that they never show a held-out garment."""

from pathlib import Path

import numpy as np
import pytest

from fashion_rag.demo.model import cases
from fashion_rag.demo.world.attributes import sample_garment
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
