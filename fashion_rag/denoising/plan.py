"""The plan of an edit: for every step the solver's weights, whether it is guided, and which part of the UNet runs.

The pipeline and the engine walk the same plan, which is known before the first step. All solvers are weighted sums: the
next latents are summed from the latents, from what the model takes for the finished picture (x0) in this step and in
the two before, and from an anchor, the latents as UniPC has corrected them. So edits of different solvers can share a
step, each row with its own weights.

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

from fashion_rag.denoising.noise_schedule import NoiseSchedule, alphas_cumprod, previous_timesteps, timesteps
from fashion_rag.denoising.rows import Rows
from fashion_rag.errors import InvalidRequest
from fashion_rag.request import Shortcuts, Solver

# Zero terminal SNR would be an infinite distance for a solver of higher order; diffusers has the same bound.
MIN_ALPHA = 2.0**-24


class Weights(NamedTuple):
    """The weights of a sum: of the latents, of the x0 of this step, and of the three tensors of a `History`."""

    latents: float = 0.0
    x0: float = 0.0
    last_x0: float = 0.0
    older_x0: float = 0.0
    anchor: float = 0.0


class History(NamedTuple):
    """What a solver of second order remembers from step to step; each tensor is [B, 4, h, w].

    last_x0, older_x0: the x0 of the last step and of the one before. anchor: the latents as UniPC has corrected them.
    """

    last_x0: Tensor
    older_x0: Tensor
    anchor: Tensor

    @classmethod
    def before_first_step(cls, latents: Tensor) -> History:
        """Return the history before the first step, which no sum gives any weight."""
        nothing = torch.zeros_like(latents)
        return cls(nothing, nothing, nothing)


@dataclass(frozen=True)
class Step:
    """One step of an edit.

    t: the timestep. x0: the weights of latents and prediction in the sum that is the finished picture so far.
    onward, anchor: the weights of the next latents and of the next anchor. guided: whether a second row, without
    condition, takes part. deep: whether the whole UNet runs, and not only its outermost layers on kept features. keeps:
    whether the next step runs the outermost layers alone, so that the features of this one must be kept.
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
        """Return the rows that the step takes of a shared call."""
        num_rows = 2 if self.guided else 1
        return Rows(num_rows) if self.deep else Rows(0, num_rows)


class Advance(NamedTuple):
    """What a step makes of B rows: the next latents and x0, [B, 4, h, w], and the next history where there is one."""

    latents: Tensor
    x0: Tensor
    history: History | None


@lru_cache(maxsize=32)
def plan(
    config: NoiseSchedule, num_inference_steps: int, guidance_scale: float, shortcuts: Shortcuts
) -> tuple[Step, ...]:
    """Return the steps of an edit. Raises InvalidRequest for a number of steps that the schedule does not have."""
    # A little room for rounding.
    first, end = (share * num_inference_steps - 1e-6 for share in (shortcuts.guidance_start, shortcuts.guidance_end))
    guided = [guidance_scale > 1 and first <= number < end for number in range(num_inference_steps)]
    deep = _deep_steps(guided, shortcuts.cache_interval)
    steps = []
    for number, (t, x0, onward, anchor) in enumerate(_walk(config, num_inference_steps, shortcuts.solver)):
        keeps = number + 1 < len(deep) and not deep[number + 1]
        steps.append(Step(t, x0, onward, anchor, guided[number], deep[number], keeps))
    return tuple(steps)


def _deep_steps(guided: Sequence[bool], cache_interval: int) -> list[bool]:
    """Return for each step whether it runs the whole UNet."""
    deep: list[bool] = []
    last_deep = 0
    for number, is_guided in enumerate(guided):
        # Features of the row without condition are there only if it took part in the last deep step.
        lacks_features = is_guided and not guided[last_deep]
        deep.append(number % cache_interval == 0 or lacks_features)
        if deep[-1]:
            last_deep = number
    return deep


def advance(steps: Sequence[Step], latents: Tensor, noise_pred: Tensor, history: History | None) -> Advance:
    """Return what the solvers' sums make of B rows, each at a step of its own.

    latents: [B, 4, h, w]. noise_pred: the guided prediction [B, 4, h, w]. history: [B, ...]; None where all rows walk
    with DDIM. A row's result does not depend on the other rows, to the bit.
    """
    x0 = combine([step.x0 for step in steps], [latents, noise_pred])
    terms = [latents, x0, *(history or ())]
    onward = combine([step.onward for step in steps], terms)
    if history is None:
        return Advance(onward, x0, None)
    anchor = history.anchor
    if any(any(step.anchor) for step in steps):
        anchor = combine([step.anchor for step in steps], terms)
    return Advance(onward, x0, History(last_x0=x0, older_x0=history.last_x0, anchor=anchor))


def combine(weights: Sequence[Sequence[float]], terms: Sequence[Tensor]) -> Tensor:
    """Return row by row the sum of `terms`, each [B, 4, h, w], with the weights of that row.

    Weights beyond the last term must be zero in all rows. A row's sum does not depend on the other rows, to the bit.
    """
    table = torch.tensor(weights, dtype=terms[0].dtype).to(terms[0].device)
    total: Tensor | None = None
    for number, column in enumerate(zip(*weights, strict=True)):
        if any(column):
            part = table[:, number, None, None, None] * terms[number]
            total = part if total is None else total + part
    assert total is not None
    return total


def _walk(
    config: NoiseSchedule, num_steps: int, solver: Solver
) -> list[tuple[int, tuple[float, float], Weights, Weights]]:
    """Return for every step its timestep, and the weights of x0, of the next latents and of the next anchor."""
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


def _visited(config: NoiseSchedule, num_steps: int) -> Tensor:
    """Return the timesteps that diffusers' multistep schedulers visit, which are not always those of its DDIM.

    Raises InvalidRequest if the schedule does not have as many.
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
    """A point of the schedule: how much signal there is and how much noise."""

    signal: float
    noise: float

    @classmethod
    def of(cls, alpha: float) -> _Point:
        """Return the point with this product of alphas."""
        return cls(math.sqrt(alpha), math.sqrt(1 - alpha))

    def x0(self, config: NoiseSchedule) -> tuple[float, float]:
        """Return the weights of latents and prediction in x0."""
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
    """Return the weights of step `number` of a multistep solver: of the next latents, and of the next anchor."""
    if solver == Solver.UNIPC and number:
        corrected = _corrector(points, number)
        # The predictor starts from the corrected latents, so the weights of these are put in.
        predicted = _predictor(points, number)
        rest = predicted._replace(latents=0.0)
        onward = [predicted.latents * weight + added for weight, added in zip(corrected, rest, strict=True)]
        return Weights(*onward), corrected
    # DPM-Solver++ has no anchor; that of UniPC's first step is the latents as they are.
    anchor = Weights(latents=1.0) if solver == Solver.UNIPC else Weights()
    return _predictor(points, number), anchor


def _predictor(points: Sequence[_Point], number: int) -> Weights:
    """Return the weights of DPM-Solver++(2M), which are those of UniPC's predictor too.

    The first and the last step are of first order.
    """
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
    """Return the weights of UniPC's corrector: the latents at `number`, again from the anchor at `number - 1`."""
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
