"""The attributes of the paper-doll world, their sampling, and the captions of garments."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from fashion_rag.demo.world.attributes import (
    BACKGROUNDS,
    HAIR_COLOURS,
    KINDS,
    PALETTE,
    PATTERNS,
    SHOE_COLOURS,
    SKINS,
    chunks,
    dressed,
    kind_caption,
    lab,
    lab_distance,
    num_garments,
    sample_garment,
    sample_person,
)
from fashion_rag.request import CATEGORIES


def test_lab_of_known_colours() -> None:
    np.testing.assert_allclose(lab((255, 255, 255)), [100, 0, 0], atol=0.05)
    np.testing.assert_allclose(lab((0, 0, 0)), [0, 0, 0], atol=0.05)
    np.testing.assert_allclose(lab((255, 0, 0)), [53.24, 80.09, 67.20], atol=0.05)


def test_garment_colours_are_far_apart() -> None:
    assert len(PALETTE) == 11
    assert min(lab_distance(a, b) for a, b in combinations(PALETTE.values(), 2)) >= 28


def test_nothing_else_looks_like_a_garment() -> None:
    others = [*SKINS, *HAIR_COLOURS, *SHOE_COLOURS, *(colour for pair in BACKGROUNDS for colour in pair)]
    assert min(lab_distance(a, b) for a in PALETTE.values() for b in others) >= 12


@pytest.mark.parametrize("category", CATEGORIES)
def test_sampled_garments_keep_the_rules(category: str) -> None:
    rng = np.random.default_rng(0)
    garments = [sample_garment(rng, category) for _ in range(600)]
    for garment in garments:
        kind = KINDS[garment.kind]
        assert garment.category == kind.category == category
        assert garment.sleeve in kind.sleeves and garment.length in kind.lengths and garment.neckline in kind.necklines
        assert (garment.second_colour is None) == (garment.pattern == "plain")
        if garment.second_colour is not None:
            assert lab_distance(PALETTE[garment.colour], PALETTE[garment.second_colour]) >= 45
    assert {g.kind for g in garments} == {name for name, kind in KINDS.items() if kind.category == category}
    assert {g.pattern for g in garments} == set(PATTERNS)
    assert 0.27 < np.mean([g.pattern == "plain" for g in garments]) < 0.40
    assert 400 < len(set(garments)) <= num_garments(category)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_person_is_determined_by_the_seed(category: str) -> None:
    first, again, other = (sample_person(np.random.default_rng(seed), category) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_person_wears_the_given_garment_and_something_below_or_above() -> None:
    rng = np.random.default_rng(1)
    for category in CATEGORIES:
        garment = sample_garment(rng, category)
        person = sample_person(rng, category, garment)
        assert person.worn(category) is garment
        worn = [g.category for g in person.outfit]
        assert worn == (["dresses"] if category == "dresses" else ["lower_body", "upper_body"])


def test_dressed_exchanges_one_garment() -> None:
    rng = np.random.default_rng(2)
    person = sample_person(rng, "upper_body")
    garment = sample_garment(rng, "upper_body")
    changed = dressed(person, garment)
    assert changed.worn("upper_body") == garment
    assert replace(changed, outfit=person.outfit) == person
    assert changed.worn("lower_body") == person.worn("lower_body")
    with pytest.raises(KeyError, match="dresses"):
        dressed(person, sample_garment(rng, "dresses"))


def test_chunks_state_colours_pattern_and_kind() -> None:
    rng = np.random.default_rng(5)
    words_of_pattern = {
        "horizontal_stripes": "stripes",
        "vertical_stripes": "stripes",
        "checks": ("checks", "squares"),
        "dots": ("dots", "spots"),
        "two_tone": ("half", "above"),
        "plain": ("plain", "solid", "all"),
    }
    for _ in range(300):
        garment = sample_garment(rng, CATEGORIES[int(rng.integers(3))])
        colours, cut, kind = chunks(garment)
        assert (colours, cut, kind) == chunks(replace(garment))
        assert f"{colours}{cut}{kind}".islower()
        assert garment.colour in colours and (garment.second_colour or "") in colours
        expected = words_of_pattern[garment.pattern]
        assert any(word in colours for word in ([expected] if isinstance(expected, str) else expected))
        assert any(kind.endswith(noun) for noun in KINDS[garment.kind].nouns)
        assert cut


def test_chunks_tell_the_directions_of_stripes_apart() -> None:
    garment = replace(sample_garment(np.random.default_rng(0), "dresses"), colour="red", second_colour="white")
    across = chunks(replace(garment, pattern="horizontal_stripes"))
    along = chunks(replace(garment, pattern="vertical_stripes"))
    assert any(word in across[0] for word in ("horizontal", "sideways"))
    assert any(word in along[0] for word in ("vertical", "upright"))


def test_chunks_vary_and_do_not_depend_on_the_process() -> None:
    rng = np.random.default_rng(7)
    plain = {
        chunks(replace(sample_garment(rng, "dresses"), pattern="plain", second_colour=None))[0] for _ in range(200)
    }
    assert len({text.split()[0] for text in plain}) == 3
    garment = sample_garment(np.random.default_rng(0), "upper_body")
    assert chunks(garment) == (
        "solid pink fabric",
        "long sleeves and hood and pocket",
        "simple fleece hooded sweatshirt",
    )


def test_kind_captions_name_no_colour() -> None:
    rng = np.random.default_rng(0)
    captions = {kind_caption(sample_garment(rng, category)) for category in CATEGORIES for _ in range(100)}
    assert len(captions) == len(KINDS)
    assert {"a t-shirt", "trousers", "shorts", "a gown"} <= captions
