"""Drawn photos show what their truth says, wherever the person stands and whatever part of them is seen."""

from dataclasses import replace

import numpy as np
import pytest

from fashion_rag.demo.world import photos
from fashion_rag.demo.world.attributes import DollGarment, DollPerson, sample_garment, sample_person
from fashion_rag.demo.world.backgrounds import draw_background, draw_room
from fashion_rag.demo.world.draw import Placement, pattern_maps, render, render_into
from fashion_rag.demo.world.photos import DollPhoto, mirrored, sample_dressed, sample_photo

SKIRT, TROUSERS = 5, 6
OWN_CLASSES = {"upper_body": {4}, "lower_body": {SKIRT, TROUSERS}, "dresses": {7}}


def person_with(category: str, kind: str) -> DollPerson:
    """Return a person who wears a garment of this kind."""
    for seed in range(1000):
        person = sample_person(np.random.default_rng(seed), category)
        if person.worn(category).kind == kind:
            return person
    raise AssertionError(kind)


def drawn_photos(count: int) -> list[DollPhoto]:
    return [sample_photo(np.random.default_rng([3, index])) for index in range(count)]


@pytest.fixture(scope="module")
def many() -> list[DollPhoto]:
    return drawn_photos(120)


def test_in_the_frame_of_the_drawn_world_a_photo_is_its_picture() -> None:
    size = (192, 144)
    for seed in range(6):
        person = sample_dressed(np.random.default_rng(seed))
        room = draw_room(size, person.background, horizon=80 * 2)
        image, truth = render_into(room, person, Placement(2, 0, 0), has_shadow=True)
        drawn = render(person, size)
        # In the world's own picture, the floor blends into the last row of the wall.
        np.testing.assert_array_equal(np.delete(image, 159, axis=0), np.delete(drawn.image, 159, axis=0))
        np.testing.assert_allclose(truth.keypoints, drawn.keypoints)


def test_pixels_that_show_only_fabric_have_the_class_of_the_garment() -> None:
    size = (192, 144)
    for seed in range(6):
        person = sample_dressed(np.random.default_rng(seed))
        _, truth = render_into(np.zeros((*size, 3), np.uint8), person, Placement(2, 0, 0))
        for garment in person.outfit:
            coverage, _ = pattern_maps(person, garment.category, size)
            assert set(truth.label_map[coverage == 1]) <= OWN_CLASSES[garment.category]


@pytest.mark.parametrize(("kind", "expected"), [("skirt", 5), ("long skirt", 5), ("trousers", 6), ("shorts", 6)])
def test_a_skirt_has_its_own_class(kind: str, expected: int) -> None:
    person = person_with("lower_body", kind)
    _, truth = render_into(np.zeros((96, 72, 3), np.uint8), person, Placement(1, 0, 0))
    assert set(truth.label_map.ravel()) & {SKIRT, TROUSERS} == {expected}
    assert set(render(person).label_map.ravel()) & {SKIRT, TROUSERS} == {TROUSERS}


def test_the_truth_moves_with_the_person_and_grows_with_them() -> None:
    person = sample_dressed(np.random.default_rng(4))
    _, at_home = render_into(np.zeros((288, 216, 3), np.uint8), person, Placement(3, 0, 0))
    _, elsewhere = render_into(np.zeros((330, 400, 3), np.uint8), person, Placement(3, 120, 30))
    np.testing.assert_array_equal(elsewhere.label_map[30:318, 120:336], at_home.label_map)
    np.testing.assert_allclose(elsewhere.keypoints, at_home.keypoints + np.array([120, 30]))
    assert (elsewhere.label_map > 0).sum() == (at_home.label_map > 0).sum()


def test_points_are_absent_exactly_where_they_lie_outside(many: list[DollPhoto]) -> None:
    num_absent = 0
    for photo in many:
        present = photo.keypoints.any(axis=1)
        num_absent += int((~present).sum())
        height, width = photo.label_map.shape
        assert (photo.keypoints[present] >= 0).all()
        assert (photo.keypoints[present] <= (width, height)).all()
        assert not photo.keypoints[~present].any()
    assert num_absent > 50
    person = sample_dressed(np.random.default_rng(4))
    _, truth = render_into(np.zeros((40, 72, 3), np.uint8), person, Placement(1, 0, 0))
    is_above = truth.keypoints[:, 1] < 40
    photo = photos._photo(np.zeros((40, 72, 3), np.uint8), truth.label_map, truth, person)
    np.testing.assert_array_equal(photo.keypoints.any(axis=1), is_above)


def test_points_of_the_face_lie_on_the_head(many: list[DollPhoto]) -> None:
    for photo in many:
        nose = photo.keypoints[0]
        if nose.any():
            assert photo.person_map[int(nose[1]), int(nose[0])] == 11


def test_of_two_persons_the_larger_has_the_truth(many: list[DollPhoto]) -> None:
    num_pairs = 0
    for photo in many:
        shows_person = photo.person_map > 0
        np.testing.assert_array_equal(photo.label_map[shows_person], photo.person_map[shows_person])
        neighbour = np.where(shows_person, 0, photo.label_map).astype(np.uint8)
        if neighbour.any():
            num_pairs += 1
            assert (neighbour > 0).sum() < shows_person.sum()
    assert num_pairs >= 10


def test_some_photos_show_nobody(many: list[DollPhoto]) -> None:
    empty = [photo for photo in many if photo.person is None]
    assert empty
    for photo in empty:
        assert photo.box is None
        assert not photo.label_map.any()
        assert not photo.keypoints.any()
        assert photo.image.any()


def test_photos_have_many_shapes_and_show_all_categories(many: list[DollPhoto]) -> None:
    ratios = {round(photo.image.shape[0] / photo.image.shape[1], 1) for photo in many}
    assert {1.3, 1.0, 0.8} <= ratios
    assert max(ratios) >= 1.7
    garments = [garment for photo in many if photo.person for garment in photo.person.outfit]
    for category in OWN_CLASSES:
        assert {garment.pattern != "plain" for garment in garments if garment.category == category} == {True, False}


def test_the_mirror_exchanges_left_and_right_and_back() -> None:
    person = sample_dressed(np.random.default_rng(8))
    image, truth = render_into(np.zeros((96, 72, 3), np.uint8), person, Placement(1, 0, 0))
    photo = photos._photo(image, truth.label_map, truth, person)
    seen = mirrored(photo)
    np.testing.assert_array_equal(seen.image, photo.image[:, ::-1])
    # The right shoe stands on the left of the picture, in the mirror as before.
    assert np.nonzero(seen.label_map == 10)[1].mean() < np.nonzero(seen.label_map == 9)[1].mean()
    np.testing.assert_allclose(seen.keypoints[2], np.array([72, 0]) + photo.keypoints[5] * np.array([-1, 1]))
    again = mirrored(seen)
    np.testing.assert_array_equal(again.label_map, photo.label_map)
    np.testing.assert_allclose(again.keypoints, photo.keypoints)


def test_garments_come_from_the_source_that_is_given() -> None:
    def source(rng: np.random.Generator, category: str) -> DollGarment:
        return replace(sample_garment(rng, category), colour="red")

    people = [sample_photo(np.random.default_rng([9, index]), source).person for index in range(5)]
    for person in people:
        assert person is None or {garment.colour for garment in person.outfit} == {"red"}


def test_backgrounds_have_the_size_asked_for() -> None:
    kinds = [draw_background(np.random.default_rng(seed), (31, 47)) for seed in range(20)]
    for image in kinds:
        assert image.shape == (31, 47, 3)
        assert image.dtype == np.uint8
    assert len({image.tobytes() for image in kinds}) == 20
