"""One UNet call shared by many edits, each at its own timestep. Called by the engine; keeps nothing between calls.

What comes out for an edit equals `pipeline.denoise` of that edit alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fashion_rag.denoising.sampler import SamplerConfig, ddim_step, guide
from fashion_rag.models.unet import unet_input

UNetCall = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Edit:
    """What is to be denoised, and how. Tensors are float32, of one row each, and on the UNet's device.

    latents: [1, 4, h, w], the noise to start from. mask: [1, 1, h, w]. masked_image_latents: [1, 4, h, w].
    pose_map: [1, 18, h, w]. prompt_embeds, negative_prompt_embeds: [1, 77, D], the latter of the empty prompt.
    deadline: in seconds on the engine's clock; none by default.
    """

    id: str
    latents: Tensor
    mask: Tensor
    masked_image_latents: Tensor
    pose_map: Tensor
    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor
    num_inference_steps: int
    guidance_scale: float
    deadline: float = math.inf

    @property
    def guided(self) -> bool:
        """Whether a step takes a second row: the empty prompt and no pose, but the same mask and photo."""
        return self.guidance_scale > 1


@dataclass(frozen=True)
class Runner:
    """The UNet, or a compiled one that is called the same way, and the noise schedule it was trained with."""

    unet: UNetCall
    sampler: SamplerConfig

    @torch.inference_mode()
    def run(self, edits: Sequence[Edit], latents: Sequence[Tensor], steps: Sequence[tuple[int, int]]) -> Tensor:
        """Latents [B, 4, h, w] after one step of B edits of one size, row i from `latents[i]` [1, 4, h, w].

        steps: of each edit, its timestep and where the step leads; see `previous_timesteps`. The UNet sees B
        conditional rows, then an unconditional one for each guided edit.
        """
        num_edits, current = len(edits), torch.cat(list(latents))
        guided = [row for row, edit in enumerate(edits) if edit.guided]
        rows = [*range(num_edits), *guided]
        pose_map = torch.cat([edit.pose_map for edit in edits])
        sample = unet_input(
            current[rows],
            torch.cat([edits[row].mask for row in rows]),
            torch.cat([edits[row].masked_image_latents for row in rows]),
            torch.cat([pose_map, torch.zeros_like(pose_map[guided])]),
        )
        prompts = [edit.prompt_embeds for edit in edits] + [edits[row].negative_prompt_embeds for row in guided]
        t, t_prev = torch.tensor(steps, device=current.device).T
        cond, uncond = self.unet(sample, t[rows], torch.cat(prompts)).split([num_edits, len(guided)])
        # An edit without guidance is guided from its own prediction, which changes nothing.
        base = cond.clone()
        base[guided] = uncond
        guidance_scale = torch.tensor([edit.guidance_scale for edit in edits], device=current.device)
        return ddim_step(self.sampler, guide(base, cond, guidance_scale), current, t, t_prev)
