"""One UNet call shared by many edits, each at its own timestep. Called by the engine; keeps nothing between calls.

What comes out for an edit equals `pipeline.denoise` of that edit alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fashion_rag.denoising.sampler import SamplerConfig, ddim_step, guide, predict
from fashion_rag.errors import FashionRAGError
from fashion_rag.models.prompt import MAX_TOKENS
from fashion_rag.models.unet import LATENT_CHANNELS, POSE_CHANNELS, unet_input

UNetCall = Callable[[Tensor, Tensor, Tensor], Tensor]


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

    @property
    def guided(self) -> bool:
        """Whether a step takes a second row: the empty prompt and no pose, but the same mask and photo."""
        return self.guidance_scale > 1

    @property
    def num_rows(self) -> int:
        """How many rows of a UNet call the edit takes."""
        return 2 if self.guided else 1


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
class Runner:
    """The UNet, or a compiled one that is called the same way."""

    unet: UNetCall

    @torch.inference_mode()
    def run(
        self,
        edits: Sequence[Edit],
        inputs: Sequence[Inputs],
        latents: Sequence[Tensor],
        steps: Sequence[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        """Latents after one step of B edits of one size, and what they are heading for (x0), both [B, 4, h, w].

        Row i comes from `latents[i]` [1, 4, h, w]. steps: of each edit, its timestep and where the step leads; see
        `previous_timesteps`. The UNet sees an unconditional row for each guided edit, then B conditional ones.
        """
        guided = [row for row, edit in enumerate(edits) if edit.guided]
        rows = [*guided, *range(len(edits))]
        sample = unet_input(
            torch.cat([latents[row] for row in rows]),
            torch.cat([inputs[row].mask for row in rows]),
            torch.cat([inputs[row].masked_image_latents for row in rows]),
            torch.cat([torch.zeros_like(inputs[row].pose_map) for row in guided] + [each.pose_map for each in inputs]),
        )
        prompts = [inputs[row].negative_prompt_embeds for row in guided] + [each.prompt_embeds for each in inputs]
        t, t_prev = torch.tensor(steps, device=sample.device).T
        uncond, cond = self.unet(sample, t[rows], torch.cat(prompts)).split([len(guided), len(edits)])
        # An edit without guidance is guided from its own prediction, which changes nothing.
        base = cond.clone()
        base[guided] = uncond
        noise_pred = guide(base, cond, torch.tensor([edit.guidance_scale for edit in edits], device=sample.device))
        current = torch.cat(list(latents))
        after, x0 = torch.empty_like(current), torch.empty_like(current)
        for sampler in {edit.sampler for edit in edits}:
            own = [row for row, edit in enumerate(edits) if edit.sampler == sampler]
            after[own] = ddim_step(sampler, noise_pred[own], current[own], t[own], t_prev[own])
            x0[own], _ = predict(sampler, noise_pred[own], current[own], t[own])
        return after, x0
