"""Edits that come at random, at a rate that may change over a day. `run.py` draws them for `simulation.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks.batching.open_loop import GUIDANCE_SCALE

DAY_S = 86400.0
PEAK_AT = 20 / 24  # when in the day most edits come
NIGHT = 0.25  # the lowest rate of the day, as a share of the highest


class Arrival(NamedTuple):
    """An edit that comes `at_s` seconds after the start."""

    at_s: float
    num_steps: int
    guidance_scale: float

    @property
    def num_rows(self) -> int:
        """Return the rows that the edit takes of a UNet call."""
        return 2 if self.guidance_scale > 1 else 1


@dataclass(frozen=True)
class TrafficMix:
    """The edits that come: their step counts, each equally often, and the share of them that is guided."""

    steps: Sequence[int] = (10, 20, 50)
    guided: float = 1.0

    @property
    def row_steps(self) -> float:
        """Return the rows times steps of an edit, on average."""
        return float(np.mean(self.steps)) * (1 + self.guided)


def poisson(mix: TrafficMix, rate: float, num_edits: int, seed: int) -> list[Arrival]:
    """Return so many edits, at `rate` a second on average. The same seed gives the same edits at every rate."""
    rng = np.random.default_rng(seed)
    at_s = rng.exponential(size=num_edits).cumsum() / rate
    steps = rng.choice(mix.steps, num_edits)
    scales = np.where(rng.random(num_edits) < mix.guided, GUIDANCE_SCALE, 1.0)
    return [Arrival(*fields) for fields in zip(at_s.tolist(), steps.tolist(), scales.tolist(), strict=True)]


def varying(
    mix: TrafficMix, rate: Callable[[float], float], highest: float, duration_s: float, seed: int
) -> Iterator[Arrival]:
    """Yield Poisson arrivals at the rate that `rate` gives for each time, which must not exceed `highest`.

    Arrivals are drawn at the highest rate, and only a share of them is kept.
    """
    rng = np.random.default_rng(seed)
    at_s = 0.0
    while (at_s := at_s + rng.exponential() / highest) < duration_s:
        if rng.random() * highest < rate(at_s):
            scale = GUIDANCE_SCALE if rng.random() < mix.guided else 1.0
            yield Arrival(at_s, int(rng.choice(mix.steps)), scale)


def day_rate(highest: float, at_s: float) -> float:
    """Return the edits a second at a time of the day, which lie on a cosine."""
    share = (1 + math.cos(2 * math.pi * (at_s / DAY_S - PEAK_AT))) / 2
    return highest * (NIGHT + (1 - NIGHT) * share)
