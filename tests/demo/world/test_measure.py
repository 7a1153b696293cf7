"""Colours and patterns are read back from the pixels of drawn pictures."""

import numpy as np
import pytest

from fashion_rag.demo.world.attributes import PALETTE, dressed, sample_garment, sample_person
from fashion_rag.demo.world.draw import pattern_maps, render
from fashion_rag.demo.world.measure import main_colour, main_colours, nearest_colour, read_garment
from fashion_rag.request import CATEGORIES

SIZE = (96, 72)


def test_drawn_garments_are_read_as_they_are() -> None:
    rng = np.random.default_rng(3)
    for index in range(90):
        category = CATEGORIES[index % 3]
        person = sample_person(rng, category)
        worn = person.worn(category)
        reading = read_garment(render(person, SIZE).image, *pattern_maps(person, category, SIZE))
        assert (reading.colour, reading.pattern, reading.second_colour) == (
            worn.colour,
            worn.pattern,
            worn.second_colour,
        )


def test_another_garment_is_not_read_as_the_target() -> None:
    rng = np.random.default_rng(4)
    agree = []
    for index in range(90):
        category = CATEGORIES[index % 3]
        person = sample_person(rng, category)
        target = sample_garment(rng, category)
        maps = pattern_maps(dressed(person, target), category, SIZE)
        agree.append(main_colour(render(person, SIZE).image, maps[0]) in main_colours(target, *maps))
    assert np.mean(agree) < 0.3


def test_the_main_colour_of_a_drawn_garment_is_one_of_its_main_colours() -> None:
    rng = np.random.default_rng(6)
    numbers = set()
    for index in range(90):
        category = CATEGORIES[index % 3]
        person = sample_person(rng, category)
        coverage, maps = pattern_maps(person, category, SIZE)
        colours = main_colours(person.worn(category), coverage, maps)
        assert main_colour(render(person, SIZE).image, coverage) in colours
        numbers.add(len(colours))
    assert numbers == {1, 2}


@pytest.mark.parametrize("name", PALETTE)
def test_palette_colours_are_their_own_nearest(name: str) -> None:
    assert nearest_colour(np.array(PALETTE[name], dtype=np.float64)) == name


def test_a_garment_that_does_not_show_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="coverage"):
        read_garment(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4)), {"dots": np.zeros((4, 4))})
