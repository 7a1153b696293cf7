"""What `benchmarks.categories` counts: sentences that get the right category, a wrong one, or none."""

from typing import Any

import numpy as np
import pytest

from benchmarks.categories import captions, measure
from fashion_rag.catalogue.category import category_from_words
from fashion_rag.request import CATEGORIES


class Likeness:
    """A stand-in for the chooser, which finds everything most like a dress and questions like nothing."""

    def likeness(self, texts: list[str]) -> np.ndarray:
        return np.array([(0.4, 0.3, 0.3) if "?" in text else (0.8, 0.1, 0.1) for text in texts])


def test_answers_are_counted_with_and_without_words() -> None:
    chooser: Any = Likeness()
    shares = measure(chooser, {"dresses": ["neck", "hem", "?", "a shirt"], "lower_body": ["jeans", "hip"]})
    assert shares["encoder alone"]["dresses"] == {"right": 0.75, "wrong": 0, "refused": 0.25}
    assert shares["words, then encoder"]["dresses"] == {"right": 0.5, "wrong": 0.25, "refused": 0.25}
    assert shares["encoder alone"]["lower_body"] == {"right": 0, "wrong": 1, "refused": 0}
    assert shares["words, then encoder"]["lower_body"] == {"right": 0.5, "wrong": 0.5, "refused": 0}


@pytest.mark.parametrize("held_out", [False, True])
def test_captions_are_of_their_category(held_out: bool) -> None:
    drawn = captions(5, 0, held_out)
    assert tuple(drawn) == CATEGORIES
    for category, texts in drawn.items():
        assert [category_from_words(text) for text in texts] == [category] * 5
    assert drawn != captions(5, 0, not held_out)
