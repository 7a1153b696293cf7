"""One step of many edits, each at its own timestep.

The step is one UNet call, or two where some of the edits run only the outermost layers. The engine calls `Runner.run`
with one `StepRow` for each edit; nothing is kept between calls. The result of an edit equals that of
`pipeline.denoise` for the edit alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from fashion_rag.denoising.noise_schedule import NoiseSchedule, guide
from fashion_rag.denoising.plan import History, Step, advance
from fashion_rag.errors import FashionRAGError
from fashion_rag.models.prompt import MAX_TOKENS
from fashion_rag.models.unet import LATENT_CHANNELS, POSE_CHANNELS, DeepUNet, unet_input
from fashion_rag.request import PLAIN, Shortcuts, Solver


@dataclass(frozen=True)
class Edit:
    """What is known of an edit when it arrives, before there are tensors.

    size: height and width of the latents. deadline: seconds on the engine's clock; infinite by default. after_s: how
    long the stages after denoising may take. preview_steps: the steps, counted from 1, after which a preview is wanted.
    """

    id: str
    size: tuple[int, int]
    num_inference_steps: int
    guidance_scale: float
    sampler: NoiseSchedule
    deadline: float = math.inf
    after_s: float = 0.0
    preview_steps: frozenset[int] = frozenset()
    shortcuts: Shortcuts = PLAIN


@dataclass(frozen=True, eq=False)
class Inputs:
    """The tensors that an edit is denoised from: float32, one row each, on the UNet's device.

    latents: [1, 4, h, w], the noise to start from. mask: [1, 1, h, w]. masked_image_latents: [1, 4, h, w].
    pose_map: [1, 18, h, w]. prompt_embeds, negative_prompt_embeds: [1, 77, D], the latter of the empty prompt.
    """

    latents: Tensor
    mask: Tensor
    masked_image_latents: Tensor
    pose_map: Tensor
    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor

    @classmethod
    def blank(cls, size: tuple[int, int], text_width: int, device: torch.device | str = "cpu") -> Inputs:
        """Return zeros of the right shapes: a call takes equally long whatever the values are."""
        latents = torch.zeros(1, LATENT_CHANNELS, *size, device=device)
        pose_map = torch.zeros(1, POSE_CHANNELS, *size, device=device)
        text = torch.zeros(1, MAX_TOKENS, text_width, device=device)
        return cls(latents, latents[:, :1], latents, pose_map, text, text)

    def to(self, device: torch.device) -> Inputs:
        """Return the same inputs on `device`."""
        return Inputs(*(getattr(self, field.name).to(device) for field in fields(self)))

    def check(self, size: tuple[int, int], text_shape: Sequence[int]) -> None:
        """Raise FashionRAGError, naming the tensor, if one does not fit `size` (h, w) or `text_shape` [1, 77, D]."""
        channels = {
            "latents": LATENT_CHANNELS,
            "mask": 1,
            "masked_image_latents": LATENT_CHANNELS,
            "pose_map": POSE_CHANNELS,
        }
        shapes = {name: [1, count, *size] for name, count in channels.items()}
        shapes |= {name: list(text_shape) for name in ("prompt_embeds", "negative_prompt_embeds")}
        for name, shape in shapes.items():
            tensor: Tensor = getattr(self, name)
            if list(tensor.shape) != shape or tensor.dtype != torch.float32:
                raise FashionRAGError(f"{name}: got {tensor.dtype} {list(tensor.shape)}; must be torch.float32 {shape}")


@dataclass(frozen=True, eq=False)
class Position:
    """Where an edit stands between two steps.

    latents: [1, 4, h, w]. history: what a solver of second order remembers; None for DDIM, which needs nothing.
    features: [R, C, h, w] from the last step that ran the whole UNet, the row without condition first where there was
    one; None where the next step does not need them.
    """

    latents: Tensor
    history: History | None = None
    features: Tensor | None = None

    @classmethod
    def first(cls, latents: Tensor, solver: Solver) -> Position:
        """Return the position before the first step."""
        return cls(latents, None if solver == Solver.DDIM else History.before_first_step(latents))

    def alone(self) -> Position:
        """Return a copy that shares no memory: a view would keep a whole batch, and be sent with all of it."""
        history = None if self.history is None else History(*(tensor.clone() for tensor in self.history))
        features = None if self.features is None else self.features.clone()
        return Position(self.latents.clone(), history, features)


class StepRow(NamedTuple):
    """The part of one edit in a shared step: the edit, its tensors, where it stands, and the step that it takes."""

    edit: Edit
    inputs: Inputs
    position: Position
    step: Step


class StepResult(NamedTuple):
    """Where an edit stands after its step, and the finished picture that it is heading for, x0 [1, 4, h, w]."""

    position: Position
    x0: Tensor


class _Prediction(NamedTuple):
    """The guided noise of one edit, [1, 4, h, w], and the features [R, C, h, w] that its call gave, if any."""

    noise: Tensor
    features: Tensor | None


@dataclass(frozen=True)
class Runner:
    """Runs the steps of a UNet, or of a compiled one that is called the same way."""

    unet: DeepUNet

    @torch.inference_mode()
    def run(self, rows: Sequence[StepRow]) -> list[StepResult]:
        """Return what one step makes of each of B edits of one size."""
        predictions: list[_Prediction | None] = [None] * len(rows)
        for deep in (True, False):
            places = [place for place, row in enumerate(rows) if row.step.deep is deep]
            if places:
                predict = self._predict_deep if deep else self._predict_shallow
                for place, prediction in zip(places, predict([rows[place] for place in places]), strict=True):
                    predictions[place] = prediction
        return _results(rows, [prediction for prediction in predictions if prediction is not None])

    def _predict_deep(self, rows: Sequence[StepRow]) -> list[_Prediction]:
        """Return the predictions of edits that run the whole UNet; features are asked for only where some are kept."""
        inputs = _unet_inputs(rows)
        if not any(row.step.keeps for row in rows):
            return [_Prediction(noise, None) for noise in _guided(rows, self.unet(*inputs))]
        noise_pred, made = self.unet.deep(*inputs)
        predictions: list[_Prediction] = []
        num_guided = sum(row.step.guided for row in rows)
        uncond = 0
        for cond, (row, noise) in enumerate(zip(rows, _guided(rows, noise_pred), strict=True), start=num_guided):
            own = [cond]
            if row.step.guided:
                own = [uncond, cond]
                uncond += 1
            predictions.append(_Prediction(noise, made[own]))
        return predictions

    def _predict_shallow(self, rows: Sequence[StepRow]) -> list[_Prediction]:
        """Return the predictions of edits that run the outermost layers alone, on the features that they have kept."""
        uncond, cond = [], []
        for row in rows:
            kept = row.position.features
            assert kept is not None
            # The row without condition comes first where there is one; see Position.
            if row.step.guided:
                uncond.append(kept[:1])
            cond.append(kept[-1:])
        noise_pred = self.unet.shallow(*_unet_inputs(rows), torch.cat(uncond + cond))
        noises = _guided(rows, noise_pred)
        return [_Prediction(noise, row.position.features) for row, noise in zip(rows, noises, strict=True)]


def _unet_inputs(rows: Sequence[StepRow]) -> tuple[Tensor, Tensor, Tensor]:
    """Return sample, timesteps and text of a UNet call: an unconditional row for each guided edit, then all edits."""
    guided = [row for row in rows if row.step.guided]
    both = [*guided, *rows]
    no_poses = [torch.zeros_like(row.inputs.pose_map) for row in guided]
    sample = unet_input(
        torch.cat([row.position.latents for row in both]),
        torch.cat([row.inputs.mask for row in both]),
        torch.cat([row.inputs.masked_image_latents for row in both]),
        torch.cat([*no_poses, *(row.inputs.pose_map for row in rows)]),
    )
    t = torch.tensor([row.step.t for row in both], device=sample.device)
    no_texts = [row.inputs.negative_prompt_embeds for row in guided]
    return sample, t, torch.cat([*no_texts, *(row.inputs.prompt_embeds for row in rows)])


def _guided(rows: Sequence[StepRow], noise_pred: Tensor) -> tuple[Tensor, ...]:
    """Return the guided noise [1, 4, h, w] of each edit, from the predictions for the rows of `_unet_inputs`."""
    guided = [place for place, row in enumerate(rows) if row.step.guided]
    uncond, cond = noise_pred.split([len(guided), len(rows)])
    # An edit without guidance is guided from its own prediction, which changes nothing.
    base = cond.clone()
    base[guided] = uncond
    scales = torch.tensor([row.edit.guidance_scale for row in rows], device=noise_pred.device)
    noises: tuple[Tensor, ...] = guide(base, cond, scales).split(1)
    return noises


def _results(rows: Sequence[StepRow], predictions: Sequence[_Prediction]) -> list[StepResult]:
    """Return where the predictions bring the edits."""
    latents = torch.cat([row.position.latents for row in rows])
    noise_pred = torch.cat([prediction.noise for prediction in predictions])
    history = None
    if any(row.position.history for row in rows):
        nothing = History.before_first_step(rows[0].position.latents)
        histories = [row.position.history or nothing for row in rows]
        history = History(*(torch.cat(tensors) for tensors in zip(*histories, strict=True)))
    after = advance([row.step for row in rows], latents, noise_pred, history)
    results = []
    for place, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
        own = slice(place, place + 1)
        own_history = None
        if row.position.history is not None and after.history is not None:
            own_history = History(*(tensor[own] for tensor in after.history))
        features = prediction.features if row.step.keeps else None
        results.append(StepResult(Position(after.latents[own], own_history, features), after.x0[own]))
    return results
