"""The loss of UNet and inversion adapter together, for any bundle; everything else is frozen.

As in the paper (arXiv 2504.14011), the prompt holds the pseudo-words of one to three garments, text and pose are
dropped together for guidance, and the loss is the squared error of what the UNet predicts. `run` calls this module, and
so does the demo's training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fashion_rag.denoising.noise_schedule import NoiseSchedule, alphas_cumprod
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import Manifest
from fashion_rag.models.adapter import InversionAdapter
from fashion_rag.models.prompt import PromptEncoder, prompt_text
from fashion_rag.models.unet import UNet, unet_input
from fashion_rag.request import MAX_GARMENTS, Template
from fashion_rag.training.fit import Precision, autocast

WORN = 0  # the first of a sample's garments


class RowArray(Protocol):
    """An array that is read by rows. It may be in memory, mapped from a file, or spread over several files."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[Any]:
        """Return a new array of these rows."""


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What a training step needs of N samples and G garments, computed once.

    moments, masked_moments: [N, 8, h, w], mean and log variance of the photo and of the masked photo, before the VAE's
        `scaling_factor`.
    mask: [N, 1, h, w], 1 = repaint. pose: [N, 18, h, w].
    hidden: [G, T, D], the vision tower's last hidden states of each garment.
    garments: [N, K], rows of `hidden`; for each sample the garment that is worn, then the best retrieved ones.
    captions: one or more of each sample; one of them is drawn.
    """

    moments: RowArray
    masked_moments: RowArray
    mask: RowArray
    pose: RowArray
    hidden: RowArray
    garments: NDArray[np.int64]
    categories: Sequence[str]
    captions: Sequence[Sequence[str]]
    scaling_factor: float

    def __len__(self) -> int:
        return len(self.garments)


@dataclass(frozen=True)
class SampleMix:
    """How samples are drawn and errors are weighted. Shares are from 0 to 1.

    garment_shares: the shares of samples with 0, 1, 2 and 3 garments.
    worn_share: how often a single garment is the one that is worn, and not the best retrieved one.
    caption_share: how often the prompt has the caption beside the garments.
    uncond_share: how often text and pose are dropped.
    outside_weight: the weight of errors outside the mask; 1 as in the paper, where all errors count alike.
    max_snr: errors at a higher signal-to-noise ratio than this count less (Min-SNR, arXiv 2303.09556).
    """

    garment_shares: tuple[float, ...] = (0.0, 0.4, 0.3, 0.3)
    worn_share: float = 0.9
    caption_share: float = 0.0
    uncond_share: float = 0.1
    outside_weight: float = 1.0
    max_snr: float | None = None

    def __post_init__(self) -> None:
        for name in ("worn_share", "caption_share", "uncond_share", "outside_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidRequest(name, getattr(self, name), "must be from 0 to 1")
        shares = self.garment_shares
        if len(shares) != MAX_GARMENTS + 1 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise InvalidRequest("garment_shares", shares, f"must be {MAX_GARMENTS + 1} shares that add up to 1")


def networks(unet: UNet, adapter: InversionAdapter) -> nn.ModuleDict:
    """Return both networks in float32 and trainable, under the names that checkpoints use."""
    return nn.ModuleDict({"unet": unet, "adapter": adapter}).float().requires_grad_(True)


def noisy_and_target(sampler: NoiseSchedule, clean: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return `clean` latents with `noise` at timesteps `t`, and what the UNet should predict from them.

    t: [B] int64. All other tensors are [B, 4, h, w].
    """
    alpha = alphas_cumprod(sampler, clean.device)[t][:, None, None, None]
    signal_scale, noise_scale = alpha.sqrt(), (1 - alpha).sqrt()
    noisy = signal_scale * clean + noise_scale * noise
    if sampler.prediction_type == "epsilon":
        return noisy, noise
    return noisy, signal_scale * noise - noise_scale * clean


def snr_weights(sampler: NoiseSchedule, t: Tensor, max_snr: float) -> Tensor:
    """Return the Min-SNR weights [B] of errors at timesteps `t` [B].

    They weight the errors of any kind of prediction like those of x0, times the signal-to-noise ratio up to `max_snr`.
    """
    alpha = alphas_cumprod(sampler, t.device)[t]
    snr = alpha / (1 - alpha)
    return snr.clamp(max=max_snr) / (snr if sampler.prediction_type == "epsilon" else snr + 1)


def masked_mean(errors: Tensor, mask: Tensor, outside_weight: float) -> Tensor:
    """Return the mean of errors [B, C, h, w], in which those outside the mask [B, 1, h, w] have another weight."""
    weights = outside_weight + (1 - outside_weight) * mask
    mean: Tensor = (errors * weights).sum() / (weights.sum() * errors.shape[1])
    return mean


class Batch(NamedTuple):
    """Samples that were drawn: their numbers [B], and their latents, masks and pose maps.

    clean, masked: [B, 4, h, w], of the photo and of the masked photo. mask: [B, 1, h, w]. pose: [B, 18, h, w].
    """

    rows: NDArray[np.int64]
    clean: Tensor
    masked: Tensor
    mask: Tensor
    pose: Tensor


class Painting(NamedTuple):
    """What paints samples: a UNet and an adapter, and the steps that they take."""

    unet: Any
    adapter: Any
    sampler: NoiseSchedule
    num_inference_steps: int
    guidance_scale: float


class EditStage:
    """The UNet and the adapter on a training set, as a stage that `fit` trains. `network` comes from `networks`."""

    name = "unet"

    def __init__(
        self,
        network: nn.ModuleDict,
        data: TrainingSet,
        prompts: PromptEncoder,
        sampler: NoiseSchedule,
        mix: SampleMix,
        device: torch.device,
        precision: Precision = "bfloat16",
    ) -> None:
        max_drawn = max(count for count, share in enumerate(mix.garment_shares) if share)
        if max_drawn > data.garments.shape[1]:
            rule = f"must ask for no more than the {data.garments.shape[1]} garments that a sample has"
            raise InvalidRequest("garment_shares", mix.garment_shares, rule)
        self.network = network.to(device)
        self.data, self.prompts, self.sampler, self.mix, self.device = data, prompts, sampler, mix, device
        self.autocast = autocast(device, precision)
        with torch.no_grad():
            self.empty_prompt = prompts([""])

    def loss(self, rng: np.random.Generator, num_rows: int) -> Tensor:
        """Return the weighted mean of the squared errors of `num_rows` samples at random timesteps."""
        rows, clean, masked, mask, pose = self.draw(rng, num_rows)
        t = torch.from_numpy(rng.integers(self.sampler.num_train_timesteps, size=num_rows)).to(self.device)
        noisy, target = noisy_and_target(self.sampler, clean, torch.randn_like(clean), t)
        with self.autocast():
            embeds = self.prompt_embeds(rng, rows)
            embeds, pose = self.drop(rng, embeds, pose)
            prediction = self.network["unet"](unet_input(noisy, mask, masked, pose), t, embeds)
        errors = (prediction - target).square()
        if self.mix.max_snr is not None:
            errors = errors * snr_weights(self.sampler, t, self.mix.max_snr)[:, None, None, None]
        return masked_mean(errors, mask, self.mix.outside_weight)

    def draw(self, rng: np.random.Generator, num_rows: int) -> Batch:
        """Return random samples."""
        rows = rng.integers(len(self.data), size=num_rows)
        return Batch(
            rows,
            clean=self._latents(self.data.moments, rows),
            masked=self._latents(self.data.masked_moments, rows),
            mask=self._tensor(self.data.mask, rows),
            pose=self._tensor(self.data.pose, rows),
        )

    def painting(self, average: nn.Module, manifest: Manifest) -> Painting:
        """Return how the averaged weights paint, with the bundle's default steps and guidance."""
        parts: Any = average
        options = (manifest.num_inference_steps, manifest.guidance_scale)
        return Painting(parts["unet"], parts["adapter"], self.sampler, *options)

    def prompt_embeds(self, rng: np.random.Generator, rows: NDArray[np.int64]) -> Tensor:
        """Return the prompt embeddings [B, 77, D] of samples; garments and wording are drawn for each sample."""
        adapter: Any = self.network["adapter"]
        drawn = [self.draw_garments(rng, row) for row in rows]
        texts = []
        for row, garments in zip(rows, drawn, strict=True):
            with_caption = rng.random() < self.mix.caption_share
            template = Template.CAPTION_AND_GARMENTS if with_caption else Template.GARMENTS
            captions, category = self.data.captions[row], self.data.categories[row]
            caption = captions[int(rng.integers(len(captions)))]
            texts.append(prompt_text(template, category, caption, len(garments), adapter.num_pseudo_words))
        flat = np.concatenate(drawn)
        if not len(flat):
            return self.prompts(texts)  # type: ignore[no-any-return]
        words = adapter(self._tensor(self.data.hidden, flat))
        parts = words.split([len(garments) for garments in drawn])
        return self.prompts(texts, [part.flatten(0, 1) for part in parts])  # type: ignore[no-any-return]

    def draw_garments(self, rng: np.random.Generator, row: int) -> NDArray[np.int64]:
        """Return the rows of `hidden` that are the garments of one sample.

        Several garments come in any order and are cut to their number, so the one that is worn may be left out.
        """
        garments: NDArray[np.int64] = self.data.garments[row]
        count = rng.choice(MAX_GARMENTS + 1, p=self.mix.garment_shares)
        if count == 1:
            is_worn = rng.random() < self.mix.worn_share or len(garments) == 1
            return garments[[WORN if is_worn else WORN + 1]]
        return rng.permutation(garments)[:count]

    def drop(self, rng: np.random.Generator, embeds: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Return text and pose, in some rows replaced by the empty prompt and no pose.

        From these rows the UNet learns the unconditional prediction that guidance starts from.
        """
        dropped = torch.from_numpy(rng.random(len(embeds)) < self.mix.uncond_share).to(self.device)
        embeds = torch.where(dropped[:, None, None], self.empty_prompt, embeds)
        return embeds, torch.where(dropped[:, None, None, None], 0.0, pose)

    def _tensor(self, array: RowArray, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array[rows]).to(self.device).float()

    def _latents(self, moments: RowArray, rows: NDArray[np.int64]) -> Tensor:
        """Return the scaled latents [B, 4, h, w], drawn from the VAE's posterior."""
        mean, logvar = self._tensor(moments, rows).chunk(2, dim=1)
        return self.data.scaling_factor * (mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * torch.randn_like(mean))
