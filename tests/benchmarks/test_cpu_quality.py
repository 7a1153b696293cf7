"""Tests of what the comparison of the CPU's pictures counts."""

from typing import Any

import numpy as np
import pytest

from benchmarks.cpu_quality import Judged, Way, summary, table


def judged(level: int, colour: list[bool]) -> Judged:
    """Return two made-up pictures of 2x2 pixels, the second of which is brighter by `level` in one value."""
    pictures = np.full((2, 2, 2, 3), 100, np.uint8)
    pictures[1, 0, 0, 0] += level
    figures: dict[str, Any] = {
        "colour": colour,
        "pattern": [True, True],
        "clip_i": [0.5, 0.5],
        "patterned": [True, True],
    }
    return Judged(pictures, figures)


def test_pictures_and_agreement_are_compared_with_plain_pytorch() -> None:
    record = summary(Way("openvino", "bfloat16"), judged(24, [True, False]), judged(0, [True, True]))
    assert (record["backend"], record["precision"]) == ("openvino", "bfloat16")
    assert (record["colour"]["mean"], record["colour"]["change"]) == (0.5, -0.5)
    assert record["pattern"]["change"] == 0
    assert record["levels_off"] == {"mean": pytest.approx(1.0), "median_of_largest": 12, "largest": 24}
    assert record["share_off_by_more_than_2"] == 0.5
    assert table([record]).row_count == 1


def test_a_darker_picture_is_off_as_well() -> None:
    record = summary(Way("onnx", "float32"), judged(0, [True, True]), judged(2, [True, True]))
    assert record["levels_off"]["largest"] == 2
    assert record["share_off_by_more_than_2"] == 0
