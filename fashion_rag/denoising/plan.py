"""What every step of an edit will be, known before the first: a solver's weights, guidance, which part of the UNet.

The pipeline and the engine walk the same plan. All solvers are sums: the next latents are weighted from the latents,
from what the model takes for the finished picture (x0) now and in the two steps before, and from an anchor, the latents
as UniPC has corrected them. So edits of different solvers share a step, each row with its own weights.

Sources: DDIM (arXiv 2010.02502, eq. 12 with eta 0), DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2, data prediction,
midpoint), UniPC-2 with B(h) = e^h - 1 (arXiv 2302.04867, algorithms 5 and 6, data prediction). Numbers equal those of
diffusers' schedulers, first and last steps included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fashion_rag.denoising.sampler import SamplerConfig, alphas_cumprod, previous_timesteps, timesteps
from fashion_rag.denoising.scheduler import Rows
from fashion_rag.errors import InvalidRequest
from fashion_rag.request import Shortcuts, Solver

# Zero terminal SNR would be an infinite distance for a solver of higher order; diffusers has the same bound.
MIN_ALPHA = 2.0**-24


class Weights(NamedTuple):
    """Of a sum: latents, x0 of this step, of the last and of the one before, and the anchor."""

    latents: float = 0.0
    x0: float = 0.0
    last_x0: float = 0.0
    older_x0: float = 0.0
    anchor: float = 0.0


@dataclass(frozen=True)
class Step:
    """One step. t: its timestep. x0: what the finished picture is summed from: latents and prediction.

    onward, anchor: what the next latents and the next anchor are summed from.

    guided: whether a second row, without condition, takes part. deep: whether the whole UNet runs, and not only its
    outermost layers on kept features. keeps: whether the next step is of those, so that features are to be kept.
    """

    t: int
    x0: tuple[float, float]
    onward: Weights
    anchor: Weights
    guided: bool
    deep: bool = True
    keeps: bool = False

    @property
    def rows(self) -> Rows:
        """The rows that it takes of a shared call."""
        num_rows = 2 if self.guided else 1
        return Rows(num_rows) if self.deep else Rows(0, num_rows)


@lru_cache(maxsize=32)
def plan(
    config: SamplerConfig, num_inference_steps: int, guidance_scale: float, shortcuts: Shortcuts
) -> tuple[Step, ...]:
    """The steps of an edit. Raises InvalidRequest for steps that the schedule has not."""
    walk = _walk(config, num_inference_steps, shortcuts.solver)
    # A little room for rounding.
    first, end = (share * num_inference_steps - 1e-6 for share in (shortcuts.guidance_start, shortcuts.guidance_end))
    guided = [guidance_scale > 1 and first <= number < end for number in range(num_inference_steps)]
    deep: list[bool] = []
    last_deep = 0
    for number, now in enumerate(guided):
        # Features of the row without condition are there only if it took part in the last deep step.
        is_deep = number % shortcuts.cache_interval == 0 or (now and not guided[last_deep])
        deep.append(is_deep)
        last_deep = number if is_deep else last_deep
    keeps = [not after for after in deep[1:]] + [False]
    flags = zip(guided, deep, keeps, strict=True)
    return tuple(Step(*found, *flag) for found, flag in zip(walk, flags, strict=True))


def combine(weights: Sequence[Sequence[float]], terms: Sequence[Tensor | None]) -> Tensor:
    """Row by row the sum of `terms`, each [B, 4, h, w], with that row's weights; None for a term that no row needs.

    A row's sum does not depend on the other rows, to the bit.
    """
    some = next(term for term in terms if term is not None)
    table = torch.tensor(weights, dtype=some.dtype).to(some.device)
    total: Tensor | None = None
    for number, (column, term) in enumerate(zip(zip(*weights, strict=True), terms, strict=True)):
        if any(column):
            assert term is not None
            part = table[:, number, None, None, None] * term
            total = part if total is None else total + part
    assert total is not None
    return total


def _walk(
    config: SamplerConfig, num_steps: int, solver: Solver
) -> list[tuple[int, tuple[float, float], Weights, Weights]]:
    """Of every step its timestep, and the weights of x0, of the next latents and of the next anchor."""
    alphas = alphas_cumprod(config, torch.device("cpu")).double()
    if solver == Solver.DDIM:
        visited, led_to = timesteps(config, num_steps), previous_timesteps(config, num_steps)
        points = [_Point.of(alpha) for alpha in alphas[visited].tolist()]
        ends = [_Point.of(alpha) for alpha in alphas[led_to].tolist()]
        return [
            (t, here.x0(config), _ddim(here, there), Weights())
            for t, here, there in zip(visited.tolist(), points, ends, strict=True)
        ]
    visited = _visited(config, num_steps)
    points = [_Point.of(alpha) for alpha in alphas[visited].clamp(min=MIN_ALPHA).tolist()]
    line = [*points, _Point(1.0, 0.0)]
    return [
        (t, here.x0(config), *_onward(line, number, solver))
        for number, (t, here) in enumerate(zip(visited.tolist(), points, strict=True))
    ]


def _visited(config: SamplerConfig, num_steps: int) -> Tensor:
    """The timesteps that diffusers' multistep schedulers visit: not always those of its DDIM.

    Raises InvalidRequest if the schedule has not as many.
    """
    total = config.num_train_timesteps
    if config.timestep_spacing == "trailing":
        return timesteps(config, num_steps)
    stride = total // (num_steps + 1)
    if not (num_steps >= 1 and stride >= 1):
        raise InvalidRequest("steps", num_steps, f"must be from 1 to {total - 1} with this solver")
    visited = np.arange(num_steps + 1)[:0:-1] * stride + config.steps_offset
    if visited[0] >= total:
        raise InvalidRequest("steps", num_steps, f"reaches timestep {visited[0]}; the last is {total - 1}")
    return torch.from_numpy(visited.copy())


@dataclass(frozen=True)
class _Point:
    """A point of the schedule: how much signal and how much noise."""

    signal: float
    noise: float

    @classmethod
    def of(cls, alpha: float) -> _Point:
        """The point with this product of alphas."""
        return cls(math.sqrt(alpha), math.sqrt(1 - alpha))

    def x0(self, config: SamplerConfig) -> tuple[float, float]:
        """Weights of latents and prediction."""
        if config.prediction_type == "epsilon":
            return 1 / self.signal, -self.noise / self.signal
        return self.signal, -self.noise

    @property
    def half_log_snr(self) -> float:
        return math.log(self.signal / self.noise) if self.noise else math.inf


def _ddim(here: _Point, there: _Point) -> Weights:
    carried = there.noise / here.noise
    return Weights(latents=carried, x0=there.signal - carried * here.signal)


def _onward(points: Sequence[_Point], number: int, solver: Solver) -> tuple[Weights, Weights]:
    """The weights of step `number` of a multistep solver, from points[number] to points[number + 1]."""
    if solver == Solver.UNIPC and number:
        corrected = _corrector(points, number)
        # Predicted from the corrected latents, so the weights of these are put in.
        onward = _predictor(points, number)
        scaled = [onward.latents * weight for weight in corrected]
        summed = (one + other for one, other in zip(scaled, onward._replace(latents=0.0), strict=True))
        return Weights(*summed), corrected
    return _predictor(points, number), Weights(latents=1.0) if solver == Solver.UNIPC else Weights()


def _predictor(points: Sequence[_Point], number: int) -> Weights:
    """DPM-Solver++(2M), and UniPC's predictor, which is the same; of first order in the first and the last step."""
    here, there = points[number], points[number + 1]
    h = there.half_log_snr - here.half_log_snr
    gain = -there.signal * math.expm1(-h)
    carried = there.noise / here.noise
    if number in (0, len(points) - 2):
        return Weights(latents=carried, x0=gain)
    ratio = (here.half_log_snr - points[number - 1].half_log_snr) / h
    slope = 0.5 * gain / ratio
    return Weights(latents=carried, x0=gain + slope, last_x0=-slope)


def _corrector(points: Sequence[_Point], number: int) -> Weights:
    """UniPC's corrector: the latents at `number` once more from the anchor there was at `number - 1`."""
    before, here = points[number - 1], points[number]
    h = here.half_log_snr - before.half_log_snr
    gain = -here.signal * math.expm1(-h)
    carried = here.noise / before.noise
    if number == 1:
        return Weights(x0=0.5 * gain, last_x0=0.5 * gain, anchor=carried)
    ratio = (points[number - 2].half_log_snr - before.half_log_snr) / h
    # The two equations of order 2, solved for how much the slope before and the slope now count.
    phi = math.expm1(-h)
    first = phi / -h - 1
    second = first / -h - 0.5
    ahead, behind = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], [first / phi, 2 * second / phi])[::-1]
    return Weights(
        x0=gain * ahead,
        last_x0=gain * (1 - ahead - behind / ratio),
        older_x0=gain * behind / ratio,
        anchor=carried,
    )
