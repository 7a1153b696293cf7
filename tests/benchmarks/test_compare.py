"""Tests comparisons of made-up results: a change is found, and noise is none."""

from typing import Any

import numpy as np
import pytest

from benchmarks.compare import compare


def result(
    seed: int, factor: float = 1.0, noise: float = 0.05, num_edits: int = 60, refused: int = 0
) -> dict[str, Any]:
    """Return a result with the latencies of the same edits, `factor` times as long, each off by some noise."""
    lengths = np.random.default_rng(0).uniform(0.5, 5.0, num_edits)
    noisy = lengths * factor * np.random.default_rng(seed).lognormal(0.0, noise, num_edits)
    edits = {
        "at_s": list(range(num_edits)),
        "rows": [40] * num_edits,
        "kind": ["refused"] * refused + ["done"] * (num_edits - refused),
        "latency_s": noisy.tolist(),
    }
    return {"runs": [{"rate": 1.0, "edits": edits, "summary": {"throughput_per_s": 1 / factor}}]}


def verdict(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> str:
    (change,) = compare(old, new)
    return change.verdict


def test_noise_is_no_change() -> None:
    assert verdict([result(1)], [result(2)]) == "no change"
    assert verdict([result(1, noise=0.5)], [result(2, noise=0.5)]) == "cannot tell"


@pytest.mark.parametrize(("factor", "word"), [(1.1, "slower"), (0.9, "faster")])
def test_a_tenth_is_found(factor: float, word: str) -> None:
    (change,) = compare([result(1)], [result(2, factor)])
    assert change.verdict == word
    assert change.ratio == pytest.approx(factor, rel=0.03)
    assert change.interval[0] < change.ratio < change.interval[1]
    assert change.throughput_ratio == pytest.approx(1 / factor)


def test_a_slow_result_among_several_counts_less() -> None:
    drifted = [result(1, noise=0.02), result(2, 1.5), result(3, noise=0.02)]
    assert verdict(drifted, [result(seed, noise=0.02) for seed in (4, 5, 6)]) == "no change"
    assert verdict([result(2, 1.5)], [result(4)]) == "faster"


def test_only_edits_that_were_done_on_both_sides_are_pairs() -> None:
    (change,) = compare([result(1, refused=10)], [result(2)])
    assert change.num_pairs == 50
    assert "too few" in verdict([result(1, refused=45)], [result(2)])
    assert "too few" in verdict([result(1, refused=60)], [result(2)])


def test_other_edits_are_refused() -> None:
    with pytest.raises(ValueError, match="not of the same edits"):
        compare([result(1)], [result(2, num_edits=61)])
