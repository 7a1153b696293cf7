"""One step of many edits, each at its own timestep: a UNet call, or two where some edits skip the inner layers.

Called by the engine; keeps nothing between calls. What comes out for an edit equals `pipeline.denoise` of it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from fashion_rag.denoising.plan import Step, combine
from fashion_rag.denoising.sampler import SamplerConfig, guide
from fashion_rag.errors import FashionRAGError
from fashion_rag.models.prompt import MAX_TOKENS
from fashion_rag.models.unet import LATENT_CHANNELS, POSE_CHANNELS, DeepUNet, unet_input
from fashion_rag.request import PLAIN, Shortcuts, Solver

# A plain one will do where no edit keeps features.
UNetCall = Callable[[Tensor, Tensor, Tensor], Tensor] | DeepUNet


@dataclass(frozen=True)
class Edit:
    """What is known of an edit at the door, before there are tensors.

    size: the latents' height and width. deadline: in seconds on the engine's clock; none by default. preview_steps:
    the steps, counted from 1, after which a preview is wanted.
    """

    id: str
    size: tuple[int, int]
    num_inference_steps: int
    guidance_scale: float
    sampler: SamplerConfig
    deadline: float = math.inf
    preview_steps: frozenset[int] = frozenset()
    shortcuts: Shortcuts = PLAIN


@dataclass(frozen=True)
class Inputs:
    """What an edit is denoised from. Tensors are float32, of one row each, and on the UNet's device.

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
        """Zeros of the right shapes: a call takes as long whatever the values."""
        latents = torch.zeros(1, LATENT_CHANNELS, *size, device=device)
        pose_map = torch.zeros(1, POSE_CHANNELS, *size, device=device)
        text = torch.zeros(1, MAX_TOKENS, text_width, device=device)
        return cls(latents, latents[:, :1], latents, pose_map, text, text)

    def to(self, device: torch.device) -> Inputs:
        """The same on `device`."""
        return Inputs(*(getattr(self, field.name).to(device) for field in fields(self)))

    def check(self, size: tuple[int, int], text_shape: Sequence[int]) -> None:
        """Raises FashionRAGError, naming the tensor, if one does not fit `size` (h, w) or `text_shape` [1, 77, D]."""
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


@dataclass(frozen=True)
class Position:
    """Where an edit stands between two steps.

    latents: [1, 4, h, w]. earlier: three such for a solver of second order: the x0 of the last step, that of the one
    before, and the anchor. features: [R, C, h, w] from the last deep step, of the row without condition first where
    there was one; None where the next step does not need them.
    """

    latents: Tensor
    earlier: tuple[Tensor, ...] | None = None
    features: Tensor | None = None

    @classmethod
    def first(cls, latents: Tensor, solver: Solver) -> Position:
        """Before the first step."""
        if solver == Solver.DDIM:
            return cls(latents)
        nothing = torch.zeros_like(latents)
        return cls(latents, (nothing, nothing, nothing))

    def alone(self) -> Position:
        """A copy that shares no memory: a view would keep a whole batch, and take it along when it is sent."""
        earlier = self.earlier and tuple(each.clone() for each in self.earlier)
        features = None if self.features is None else self.features.clone()
        return Position(self.latents.clone(), earlier, features)


@dataclass(frozen=True)
class Runner:
    """The UNet, or a compiled one that is called the same way."""

    unet: UNetCall

    @torch.inference_mode()
    def run(
        self, edits: Sequence[Edit], inputs: Sequence[Inputs], positions: Sequence[Position], steps: Sequence[Step]
    ) -> tuple[list[Position], Tensor]:
        """Where B edits of one size stand after one step of each, and what they are heading for (x0), [B, 4, h, w]."""
        scales = torch.tensor([edit.guidance_scale for edit in edits], device=positions[0].latents.device)
        t = torch.tensor([step.t for step in steps], device=scales.device)
        current = torch.cat([position.latents for position in positions])
        noise_pred = torch.empty_like(current)
        features = [position.features for position in positions]
        for deep in (True, False):
            if rows := [row for row, step in enumerate(steps) if step.deep is deep]:
                noise_pred[rows] = self._predict(rows, inputs, positions, steps, t, scales, features)
        x0 = combine([step.x0 for step in steps], [current, noise_pred])
        after = _advanced(current, x0, positions, steps)
        kept = [each if step.keeps else None for each, step in zip(features, steps, strict=True)]
        return [replace(each, features=own) for each, own in zip(after, kept, strict=True)], x0

    def _predict(
        self,
        rows: Sequence[int],
        inputs: Sequence[Inputs],
        positions: Sequence[Position],
        steps: Sequence[Step],
        t: Tensor,
        scales: Tensor,
        features: list[Tensor | None],
    ) -> Tensor:
        """The guided noise of `rows`, whose steps are all deep or all shallow; new features replace those there.

        The UNet sees an unconditional row for each guided edit, then the conditional ones.
        """
        guided = [row for row in rows if steps[row].guided]
        order = [*guided, *rows]
        poses = [torch.zeros_like(inputs[row].pose_map) for row in guided] + [inputs[row].pose_map for row in rows]
        sample = unet_input(
            torch.cat([positions[row].latents for row in order]),
            torch.cat([inputs[row].mask for row in order]),
            torch.cat([inputs[row].masked_image_latents for row in order]),
            torch.cat(poses),
        )
        prompts = torch.cat(
            [inputs[row].negative_prompt_embeds for row in guided] + [inputs[row].prompt_embeds for row in rows]
        )
        if not steps[rows[0]].deep:
            # Without condition first, where there is one; see Position.
            kept = [features[row][:1] for row in guided] + [features[row][-1:] for row in rows]  # type: ignore[index]
            noise_pred = self.unet.shallow(sample, t[order], prompts, torch.cat(kept))  # type: ignore[union-attr]
        elif any(steps[row].keeps for row in rows):
            noise_pred, made = self.unet.deep(sample, t[order], prompts)  # type: ignore[union-attr]
            for place, row in enumerate(rows, start=len(guided)):
                own = [guided.index(row), place] if steps[row].guided else [place]
                features[row] = made[own]
        else:
            noise_pred = self.unet(sample, t[order], prompts)
        uncond, cond = noise_pred.split([len(guided), len(rows)])
        # An edit without guidance is guided from its own prediction, which changes nothing.
        base = cond.clone()
        base[[rows.index(row) for row in guided]] = uncond
        return guide(base, cond, scales[rows])


def _advanced(current: Tensor, x0: Tensor, positions: Sequence[Position], steps: Sequence[Step]) -> list[Position]:
    """Where the edits stand after their solvers' sums, without features."""
    terms: list[Tensor | None] = [current, x0, None, None, None]
    if any(position.earlier for position in positions):
        blank = torch.zeros_like(positions[0].latents)
        for place in range(3):
            own = [position.earlier[place] if position.earlier else blank for position in positions]
            terms[2 + place] = torch.cat(own)
    onward = combine([step.onward for step in steps], terms)
    anchored = [step.anchor for step in steps]
    anchor = combine(anchored, terms) if any(any(weights) for weights in anchored) else current
    return [
        Position(
            onward[row : row + 1],
            position.earlier and (x0[row : row + 1], position.earlier[0], anchor[row : row + 1]),
        )
        for row, position in enumerate(positions)
    ]
