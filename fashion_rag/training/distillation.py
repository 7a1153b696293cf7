"""The loss of a student that paints in a few steps, each of one row, what a UNet paints in many guided steps.

This is consistency distillation of the guided teacher (latent consistency models, arXiv 2310.04378), in phases (phased
consistency models, arXiv 2405.18407). The teacher's steps are cut into as many phases as the student takes steps. From
anywhere in a phase, the student learns to jump to the phase's end in one DDIM step. It learns this from itself: its
jump from one of the teacher's steps must lead to where its jump leads after the teacher has taken that step. With one
phase, this is latent consistency distillation as it was published. The student starts as a copy of the teacher, and
edits need no other sampler than DDIM without guidance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fashion_rag.denoising.noise_schedule import FINAL, NoiseSchedule, alphas_cumprod, guide, timesteps
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import Manifest
from fashion_rag.models.unet import UNet, unet_input
from fashion_rag.training.objective import Batch, EditStage, Painting, masked_mean, noisy_and_target

# Errors far above this count by their size, and smaller ones by their square (pseudo-Huber loss).
HUBER = 1e-3


@dataclass(frozen=True)
class Phases:
    """How the student's steps lie among the teacher's.

    num_steps: how many steps the student takes. teacher_steps: how many guided DDIM steps the teacher takes, a multiple
    of `num_steps`.
    """

    num_steps: int = 4
    teacher_steps: int = 40

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise InvalidRequest("num_steps", self.num_steps, "must be at least 1")
        if self.teacher_steps < self.num_steps or self.teacher_steps % self.num_steps:
            raise InvalidRequest("teacher_steps", self.teacher_steps, f"must be a multiple of {self.num_steps}")

    def visited(self, sampler: NoiseSchedule) -> tuple[Tensor, Tensor]:
        """Return the teacher's timesteps and, for each, the end of its phase; both int64 [teacher_steps + 1].

        The last timestep is FINAL, the end of the last phase. Raises InvalidRequest as `timesteps`.
        """
        line = torch.cat([timesteps(sampler, self.teacher_steps), torch.tensor([FINAL])])
        length = self.teacher_steps // self.num_steps
        phase = torch.arange(self.teacher_steps + 1) // length + 1
        return line, line[(phase * length).clamp(max=self.teacher_steps)]


def jump(sampler: NoiseSchedule, latents: Tensor, prediction: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return latents at timesteps `end`, one DDIM step from `latents` at timesteps `start`.

    latents, prediction: [B, 4, h, w]. start, end: int64 [B]; `end` may be FINAL.
    """
    alphas = alphas_cumprod(sampler, latents.device)
    here, there = (alphas[t][:, None, None, None] for t in (start, end))
    signal, noise = here.sqrt(), (1 - here).sqrt()
    if sampler.prediction_type == "epsilon":
        x0, epsilon = (latents - noise * prediction) / signal, prediction
    else:
        x0, epsilon = signal * latents - noise * prediction, noise * latents + signal * prediction
    return there.sqrt() * x0 + (1 - there).sqrt() * epsilon


class DistillationStage:
    """The student's UNet, as a stage that `fit` trains.

    teacher: holds the teacher's UNet and its adapter, which stay as they are, and draws the samples. guidance_scale: of
    the teacher.
    """

    name = "unet_turbo"

    def __init__(self, student: UNet, teacher: EditStage, phases: Phases, guidance_scale: float) -> None:
        self.network: nn.Module = student.float().requires_grad_(True).to(teacher.device)
        self.teacher, self.phases, self.guidance_scale = teacher, phases, guidance_scale
        teacher.network.requires_grad_(False).eval()
        self.sampler = teacher.sampler.for_student()
        self.visited, self.ends = (line.to(teacher.device) for line in phases.visited(self.sampler))

    def loss(self, rng: np.random.Generator, num_rows: int) -> Tensor:
        """Return the pseudo-Huber loss of the student's jumps from random steps of the teacher."""
        batch = self.teacher.draw(rng, num_rows)
        number = torch.from_numpy(rng.integers(len(self.visited) - 1, size=num_rows)).to(self.teacher.device)
        t, next_t, end = self.visited[number], self.visited[number + 1], self.ends[number]
        noisy, _ = noisy_and_target(self.sampler, batch.clean, torch.randn_like(batch.clean), t)
        with self.teacher.autocast():
            with torch.no_grad():
                embeds = self.teacher.prompt_embeds(rng, batch.rows)
                onward = jump(self.sampler, noisy, self._guided(batch, noisy, t, embeds), t, next_t)
                # A jump that has already ended is not made again; the clamped timestep is then not used.
                again = self._student(batch, onward, next_t.clamp(min=0), embeds)
                landed = jump(self.sampler, onward, again, next_t, end)
                target = torch.where((next_t == end)[:, None, None, None], onward, landed)
            prediction = self._student(batch, noisy, t, embeds)
        errors = jump(self.sampler, noisy, prediction, t, end) - target
        huber = (errors.square() + HUBER**2).sqrt() - HUBER
        return masked_mean(huber, batch.mask, self.teacher.mix.outside_weight)

    def painting(self, average: nn.Module, manifest: Manifest) -> Painting:
        """Return how the averaged weights paint."""
        adapter = self.teacher.network["adapter"]
        return Painting(average, adapter, self.sampler, self.phases.num_steps, guidance_scale=1.0)

    def _student(self, batch: Batch, latents: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
        prediction: Tensor = self.network(unet_input(latents, batch.mask, batch.masked, batch.pose), t, embeds)
        return prediction

    def _guided(self, batch: Batch, latents: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
        """Return the teacher's guided prediction; the row without condition has neither text nor pose."""
        unet = self.teacher.network["unet"]
        parts = (latents, batch.mask, batch.masked)
        sample = torch.cat([unet_input(*parts, torch.zeros_like(batch.pose)), unet_input(*parts, batch.pose)])
        texts = torch.cat([self.teacher.empty_prompt.expand_as(embeds), embeds])
        uncond, cond = unet(sample, torch.cat([t, t]), texts).chunk(2)
        return guide(uncond, cond, self.guidance_scale)
