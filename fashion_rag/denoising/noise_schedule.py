"""The noise schedule, and classifier-free guidance. There is no state and no model here.

The pipeline, the denoising engine and training call it; `plan.py` walks along the schedule. Sources: DDIM (arXiv
2010.02502); zero terminal SNR and trailing spacing (arXiv 2305.08891). The numbers equal diffusers' `DDIMScheduler`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fashion_rag.errors import ArtifactError, InvalidRequest

# The `t_prev` of the last step.
FINAL = -1
# Keys of a DDIM configuration that change nothing at this value; any other value or key is refused.
_WITHOUT_EFFECT = {"clip_sample": False, "thresholding": False, "trained_betas": None}
_IGNORED = {"skip_prk_steps", "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value"}


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise schedule and its spacing; names and defaults are those of diffusers' `DDIMScheduler`."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        known = {
            "beta_schedule": ("linear", "scaled_linear"),
            "prediction_type": ("epsilon", "v_prediction"),
            "timestep_spacing": ("leading", "trailing"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ArtifactError(f"scheduler: {name} is {getattr(self, name)!r}; must be one of {', '.join(values)}")
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ArtifactError("scheduler: rescale_betas_zero_snr needs prediction_type 'v_prediction', not 'epsilon'")

    @classmethod
    def from_diffusers(cls, raw: Mapping[str, Any]) -> NoiseSchedule:
        """Return the configuration in a `scheduler_config.json`. Raises ArtifactError for an unsupported option."""
        if raw.get("_class_name") != "DDIMScheduler":
            raise ArtifactError(f"scheduler: _class_name is {raw.get('_class_name')!r}; must be 'DDIMScheduler'")
        # diffusers clips by default, so a configuration that does not mention clipping is refused, too.
        options = {"clip_sample": True} | {k: v for k, v in raw.items() if k[0] != "_" and k not in _IGNORED}
        for name, value in _WITHOUT_EFFECT.items():
            if options.pop(name, value) != value:
                raise ArtifactError(f"scheduler: {name} must be {value!r}; nothing else is supported")
        if unknown := sorted(set(options) - {field.name for field in fields(cls)}):
            raise ArtifactError(f"scheduler: unknown options {unknown}")
        return cls(**options)

    def for_student(self) -> NoiseSchedule:
        """Return the schedule of a student that takes few steps, where this is that of its teacher.

        Few steps must begin at the last timestep, where the latents are noise alone (arXiv 2305.08891).
        """
        return replace(self, timestep_spacing="trailing", steps_offset=0)


@lru_cache
def alphas_cumprod(config: NoiseSchedule, device: torch.device) -> Tensor:
    """Return the products of alphas, float32 [num_train_timesteps + 1]; the entry at index -1 belongs to `FINAL`."""
    # The result is cached, so it must not be an inference tensor: training uses it too.
    with torch.inference_mode(False):
        steps = config.num_train_timesteps
        if config.beta_schedule == "linear":
            betas = torch.linspace(config.beta_start, config.beta_end, steps, dtype=torch.float32)
        else:
            betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, steps, dtype=torch.float32) ** 2
        alphas = torch.cumprod(1.0 - betas, dim=0)
        if config.rescale_betas_zero_snr:
            root = alphas.sqrt()
            alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        final = torch.ones(1) if config.set_alpha_to_one else alphas[:1]
        return torch.cat([alphas, final]).to(device)


def timesteps(config: NoiseSchedule, num_inference_steps: int) -> Tensor:
    """Return the timesteps to visit, int64 [num_inference_steps], in descending order.

    Raises InvalidRequest if the schedule does not have as many.
    """
    total = config.num_train_timesteps
    if not 1 <= num_inference_steps <= total:
        raise InvalidRequest("steps", num_inference_steps, f"must be from 1 to {total}")
    if config.timestep_spacing == "leading":
        visited = np.arange(num_inference_steps)[::-1] * (total // num_inference_steps) + config.steps_offset
    else:
        visited = np.round(np.arange(total, 0, -total / num_inference_steps)) - 1
    if visited[0] >= total:
        raise InvalidRequest("steps", num_inference_steps, f"reaches timestep {visited[0]}; the last is {total - 1}")
    return torch.from_numpy(visited.astype(np.int64))


def previous_timesteps(config: NoiseSchedule, num_inference_steps: int) -> Tensor:
    """Return for each of `timesteps` the timestep that its step leads to, int64 [num_inference_steps].

    It is `FINAL` for the last. As in diffusers, it lies one whole stride back: with trailing spacing and a number of
    steps that does not divide the schedule, it may differ by one from the timestep that is visited next.
    """
    stride = config.num_train_timesteps // num_inference_steps
    return (timesteps(config, num_inference_steps) - stride).clamp(min=FINAL)


def guide(uncond: Tensor, cond: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """Return the guided prediction of [B, 4, h, w]; `guidance_scale` is a number, or one for each row, [B]."""
    if isinstance(guidance_scale, Tensor):
        guidance_scale = guidance_scale[:, None, None, None]
    return uncond + guidance_scale * (cond - uncond)
