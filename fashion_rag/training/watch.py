"""What is called after each step of training: progress for people, TensorBoard, and pictures of the averaged weights.

`run` makes one callable of them and gives it to `fit`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from fashion_rag.bundle import Bundle
from fashion_rag.data.image import open_image, to_tensor, to_uint8
from fashion_rag.manifest import Manifest
from fashion_rag.models.prompt import PromptEncoder, prompt_text
from fashion_rag.pipeline import Conditioning, Person, decode, denoise
from fashion_rag.request import Template
from fashion_rag.training.data import Source
from fashion_rag.training.fit import TrainingProgress, Watch
from fashion_rag.training.objective import WORN, Painting, TrainingSet
from fashion_rag.training.processes import Report

REPORT_EVERY_S = 1.0
SCALARS_EVERY = 10
SHEET_ROWS = 4


class Paints(Protocol):
    """A stage whose averaged weights can paint."""

    def painting(self, average: nn.Module, manifest: Manifest) -> Painting:
        """Return how they paint."""


# Paints a picture with a network, uint8 [H, W, 3].
Sheet = Callable[[nn.Module], NDArray[np.uint8]]


def all_of(watches: Sequence[Watch]) -> Watch:
    """Return a watch that calls `watches` one after the other."""

    def call_all(progress: TrainingProgress, average: nn.Module) -> None:
        for watch in watches:
            watch(progress, average)

    return call_all


class Reporting:
    """A watch that calls a `Report` about once a second and at the end, with the running mean of the loss."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.loss = float("nan")
        self.reported_s = time.monotonic()

    def __call__(self, progress: TrainingProgress, average: nn.Module) -> None:
        is_first = math.isnan(self.loss)
        self.loss = progress.loss if is_first else 0.98 * self.loss + 0.02 * progress.loss
        if time.monotonic() - self.reported_s > REPORT_EVERY_S or progress.step == progress.num_steps:
            self.reported_s = time.monotonic()
            self.report(progress.stage, progress.step, progress.num_steps, self.loss)


class TensorBoard:
    """A watch that writes event files for TensorBoard.

    They hold loss, learning rate, gradient norm and pace every SCALARS_EVERY steps, and a sheet of samples every
    `sheet_every` steps, unless `sheet` is None. When a run goes on from a checkpoint, what it had logged after the
    checkpoint is dropped.
    """

    def __init__(self, folder: Path, sheet: Sheet | None, sheet_every: int) -> None:
        self.folder, self.sheet, self.sheet_every = folder, sheet, sheet_every
        self.writer: SummaryWriter | None = None

    def __call__(self, progress: TrainingProgress, average: nn.Module) -> None:
        step, last = progress.step, progress.step == progress.num_steps
        if self.writer is None:
            self.writer = SummaryWriter(self.folder, purge_step=step)
        if step % SCALARS_EVERY == 0 or last:
            for name in ("loss", "learning_rate", "gradient_norm", "images_per_s"):
                self.writer.add_scalar(f"{progress.stage}/{name}", getattr(progress, name), step)
        if self.sheet and (step % self.sheet_every == 0 or last):
            self.writer.add_image(f"{progress.stage}/samples", self.sheet(average), step, dataformats="HWC")
        if last:
            self.writer.close()


class SampleSheet:
    """A sheet of a few samples, which shows the photo, the garment, and what the network paints.

    Samples and noise are always the same. The garment in the prompt is the one that is worn. `stage` says how the
    averaged weights paint.
    """

    def __init__(
        self,
        source: Source,
        data: TrainingSet,
        stage: Paints,
        *,
        bundle: Bundle,
        prompts: PromptEncoder,
        device: torch.device,
    ) -> None:
        size = bundle.manifest.image_size
        self.rows = np.linspace(0, len(data) - 1, min(SHEET_ROWS, len(data))).astype(np.int64)
        people = source.open(size)
        samples = [people[row] for row in self.rows]
        garments = [open_image(sample.garment_path, field="garment") for sample in samples]
        self.columns = [_column([sample.image for sample in samples], size), _column(garments, size)]
        self.data, self.stage, self.bundle, self.prompts, self.device = data, stage, bundle, prompts, device
        self.vae = bundle.load_vae(device)

    @torch.inference_mode()
    def __call__(self, average: nn.Module) -> NDArray[np.uint8]:
        """Return the sheet, uint8 [rows * H, 3 * W, 3], painted with the averaged weights."""
        average.eval()
        data, manifest = self.data, self.bundle.manifest
        painting = self.stage.painting(average, manifest)
        words = painting.adapter(self._tensor(data.hidden[data.garments[self.rows, WORN]]))
        texts = []
        for row in self.rows:
            texts.append(prompt_text(Template.GARMENTS, data.categories[row], "", 1, manifest.num_pseudo_words))
        empty = self.prompts([""]).expand(len(texts), -1, -1)
        mean, _ = self._tensor(data.masked_moments[self.rows]).chunk(2, dim=1)
        person = Person(
            mask=self._tensor(data.mask[self.rows]),
            masked_image_latents=data.scaling_factor * mean,
            pose_map=self._tensor(data.pose[self.rows]),
        )
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        *_, latents = denoise(
            painting.unet,
            painting.sampler,
            latents=noise,
            person=person,
            conditioning=Conditioning(self.prompts(texts, words.unbind()), empty),
            num_inference_steps=painting.num_inference_steps,
            guidance_scale=painting.guidance_scale,
        )
        painted = np.concatenate(list(decode(self.vae, latents)))
        return np.concatenate([*self.columns, painted], axis=1)

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device).float()


def _column(pictures: Sequence[Image.Image], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return pictures at `size`, one below the other, uint8 [N * H, W, 3]."""
    return np.concatenate([to_uint8(to_tensor(picture, size)) for picture in pictures])
