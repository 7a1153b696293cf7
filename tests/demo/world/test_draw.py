"""Pictures, label maps, key points and pattern maps of the paper-doll world."""

from dataclasses import replace

import numpy as np
import pytest

from fashion_rag.data.masks import repaint_mask
from fashion_rag.demo.world.attributes import (
    PALETTE,
    PATTERNS,
    DollGarment,
    DollPerson,
    lab,
    sample_garment,
    sample_person,
)
from fashion_rag.demo.world.draw import Placement, pattern_maps, render, render_garment, render_into
from fashion_rag.demo.world.figure import shade
from fashion_rag.request import CATEGORIES

NAMES = list(PALETTE)
PALETTE_LAB = np.stack([lab(PALETTE[name]) for name in NAMES])
GARMENT_LABELS = {"dresses": 7, "upper_body": 4, "lower_body": 6}


def people(num: int) -> list[tuple[DollPerson, DollGarment]]:
    pairs = []
    for seed in range(num):
        category = CATEGORIES[seed % 3]
        person = sample_person(np.random.default_rng(seed), category)
        pairs.append((person, person.worn(category)))
    return pairs


def nearest_name(colour: np.ndarray) -> str:
    r, g, b = (round(float(channel)) for channel in colour)
    return NAMES[int(np.argmin(np.linalg.norm(PALETTE_LAB - lab((r, g, b)), axis=1)))]


def read_from_pixels(image: np.ndarray, person: DollPerson, category: str) -> tuple[str, str, str | None]:
    """Return the pattern, the colour and the second colour that fit the pixels best."""
    coverage, maps = pattern_maps(person, category, image.shape[:2])
    inside = coverage > 0.98
    pixels = image[inside].astype(np.float64)
    if pixels.var(axis=0).mean() < 30:
        return "plain", nearest_name(pixels.mean(axis=0)), None
    fits = {}
    for pattern, shares in maps.items():
        basis = np.stack([1 - shares[inside], shares[inside]], axis=1)
        colours = np.linalg.lstsq(basis, pixels, rcond=None)[0]
        fits[pattern] = (((pixels - basis @ colours) ** 2).mean(), colours)
    best = min(fits, key=lambda pattern: fits[pattern][0])
    first, second = np.clip(fits[best][1], 0, 255)
    return best, nearest_name(first), nearest_name(second)


@pytest.mark.parametrize("size", [(96, 72), (128, 96), (512, 384)])
def test_shapes_and_ranges_at_any_size(size: tuple[int, int]) -> None:
    person, garment = people(1)[0]
    rendering = render(person, size)
    shop = render_garment(garment, size)
    assert rendering.image.shape == shop.shape == (*size, 3)
    assert rendering.label_map.shape == size
    assert rendering.image.dtype == shop.dtype == rendering.label_map.dtype == np.uint8
    assert rendering.keypoints.shape == (18, 2)
    assert rendering.image.flags.writeable and rendering.label_map.flags.writeable
    np.testing.assert_allclose(rendering.keypoints, render(person).keypoints * size[0] / 96)


def test_rendering_repeats_exactly() -> None:
    person, garment = people(2)[1]
    np.testing.assert_array_equal(render(person).image, render(replace(person)).image)
    np.testing.assert_array_equal(render_garment(garment), render_garment(replace(garment)))


def test_garment_pixels_have_garment_colours_and_label() -> None:
    for person, garment in people(30):
        rendering = render(person)
        coverage, _ = pattern_maps(person, garment.category)
        inside = coverage == 1
        assert inside.sum() >= 120
        # The label map has no antialiasing, so a border may lie one pixel away.
        assert (rendering.label_map[inside] == GARMENT_LABELS[garment.category]).mean() > 0.97
        first = np.array(PALETTE[garment.colour], dtype=np.float64)
        second = np.array(PALETTE[garment.second_colour or garment.colour], dtype=np.float64)
        # Every pixel lies on the line between the two colours, up to rounding.
        span = second - first
        share = np.clip((rendering.image[inside] - first) @ span / max(span @ span, 1), 0, 1)
        np.testing.assert_allclose(rendering.image[inside], first + share[:, None] * span, atol=1)


def test_label_map_has_the_classes_that_are_worn() -> None:
    for person, _ in people(12):
        labels = set(np.unique(render(person, (192, 144)).label_map))
        worn = [GARMENT_LABELS[garment.category] for garment in person.outfit]
        assert {0, 2, 9, 10, 11, 14, 15} <= labels
        assert labels <= {0, 2, 9, 10, 11, 12, 13, 14, 15, *worn}


def test_keypoints_lie_on_the_body() -> None:
    head, right, left = {0, 14, 15, 16, 17}, {3, 4}, {6, 7}
    for person, _ in people(40):
        rendering = render(person, (384, 288))
        for joint, (x, y) in enumerate(rendering.keypoints):
            label = rendering.label_map[int(y), int(x)]
            assert label != 0, joint
            if joint in head:
                assert label in (2, 11), joint
        points = rendering.keypoints
        assert all(points[joint, 0] < points[1, 0] for joint in right | {2, 8, 14, 16})
        assert all(points[joint, 0] > points[1, 0] for joint in left | {5, 11, 15, 17})
        assert points[0, 1] < points[1, 1] < points[8, 1] < points[9, 1] < points[10, 1]


def test_the_repaint_mask_covers_the_garment() -> None:
    kinds = set()
    for person, garment in people(24):
        rendering = render(person, (512, 384))
        coverage, _ = pattern_maps(person, garment.category, (512, 384))
        mask = repaint_mask(rendering.label_map, rendering.keypoints, garment.category, "mask")
        assert (coverage * mask).sum() > 0.99 * coverage.sum(), garment.kind
        assert mask.mean() < 0.6
        kinds.add(garment.kind)
    assert {"skirt", "long skirt", "trousers", "hoodie", "gown"} <= kinds


def test_right_arm_and_leg_are_on_the_viewers_left() -> None:
    person = people(3)[2][0]
    label_map = render(person, (192, 144)).label_map
    for left, right in ((9, 10), (14, 15)):
        assert np.nonzero(label_map == right)[1].mean() < np.nonzero(label_map == left)[1].mean()


def test_pattern_maps_find_the_painted_pattern_and_colours() -> None:
    pairs = people(120)
    found = [
        read_from_pixels(render(person).image, person, garment.category)
        == (garment.pattern, garment.colour, garment.second_colour)
        for person, garment in pairs
    ]
    assert np.mean(found) >= 0.95


def test_pattern_maps_are_shares_of_the_coverage() -> None:
    for person, garment in people(6):
        coverage, maps = pattern_maps(person, garment.category)
        assert set(maps) == set(PATTERNS[1:])
        assert coverage.min() == 0 and coverage.max() == 1
        for shares in maps.values():
            assert np.all(shares <= coverage)
            assert 0.1 < shares.sum() / coverage.sum() < 0.9


def test_pattern_maps_do_not_depend_on_colour_or_pattern() -> None:
    person, garment = people(1)[0]
    other = replace(person, outfit=(replace(garment, colour="teal", pattern="dots", second_colour="red"),))
    coverage, maps = pattern_maps(person, "dresses")
    other_coverage, other_maps = pattern_maps(other, "dresses")
    np.testing.assert_array_equal(coverage, other_coverage)
    for pattern in maps:
        np.testing.assert_array_equal(maps[pattern], other_maps[pattern])


def test_pattern_maps_of_what_is_not_worn() -> None:
    with pytest.raises(KeyError, match="lower_body"):
        pattern_maps(people(1)[0][0], "lower_body")


@pytest.mark.parametrize("category", CATEGORIES)
def test_in_shop_garment_is_large_on_white_and_in_its_colours(category: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(12):
        garment = replace(sample_garment(rng, category), colour="red", pattern="two_tone", second_colour="blue")
        image = render_garment(garment)
        assert (image[0] == 255).all() and (image[:, 0] == 255).all()
        rows, columns = np.nonzero((image != 255).any(axis=2))
        assert max((np.ptp(rows) + 1) / 96, (np.ptp(columns) + 1) / 72) == pytest.approx(0.85, abs=0.04)
        assert (image == PALETTE["red"]).all(axis=2).sum() > 400
        assert (image == PALETTE["blue"]).all(axis=2).sum() > 400


def test_a_white_garment_has_a_visible_outline() -> None:
    garment = replace(sample_garment(np.random.default_rng(0), "dresses"), colour="white", pattern="plain")
    image = render_garment(replace(garment, second_colour=None)).astype(int)
    rows = np.nonzero((image != 255).any(axis=(1, 2)))[0]
    darkest = image[rows].sum(axis=2).min(axis=1) / 3
    assert np.mean(darkest < 225) > 0.95


def test_shades_can_be_seen_on_black_and_white() -> None:
    assert min(shade(PALETTE["black"])) > max(PALETTE["black"]) + 40
    assert max(shade(PALETTE["white"])) < min(PALETTE["white"]) - 60


def test_label_maps_of_small_pictures_make_nothing_larger() -> None:
    """Test with the smallest parts, the shoes, whose area the maps of several persons must have in all sizes."""
    areas = {}
    for height, width in ((192, 144), (768, 576)):
        canvas = np.zeros((height, width, 3), np.uint8)
        counts = []
        for seed in range(12):
            person = sample_person(np.random.default_rng(seed), "upper_body")
            _, truth = render_into(canvas, person, Placement(height / 96, 0.0, 0.0))
            counts.append(np.isin(truth.label_map, (9, 10)).sum())
        areas[height] = sum(counts) / height**2
    assert areas[192] == pytest.approx(areas[768], rel=0.04)
