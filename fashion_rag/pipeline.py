"""The whole method on one page: retrieve, condition, encode, denoise, decode (Fashion-RAG, arXiv 2504.14011).

`Pipeline` runs an edit alone and is the reference for everything faster. The servers' replicas call the same stage
functions, each for its own part. Tensors are float32; run the stages without gradients.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.index import Catalogue, Match
from fashion_rag.catalogue.store import Garment
from fashion_rag.config import Manifest
from fashion_rag.data.image import binarise, paste_outside, to_tensor, to_uint8
from fashion_rag.data.pose import heat_maps, scale_keypoints, to_latent
from fashion_rag.denoising.runner import UNetCall
from fashion_rag.denoising.sampler import SamplerConfig, ddim_step, guide, previous_timesteps, timesteps
from fashion_rag.errors import InvalidRequest
from fashion_rag.models.adapter import GarmentEncoder
from fashion_rag.models.autoencoder import VAE
from fashion_rag.models.prompt import PromptEncoder, prompt_text
from fashion_rag.models.unet import LATENT_CHANNELS, unet_input
from fashion_rag.request import EditRequest, EditResult, Template


class Inputs(NamedTuple):
    """The photo at the model's size: image [1, 3, H, W] in [-1, 1], mask [1, 1, H, W], pose_map [1, 18, H, W]."""

    image: Tensor
    mask: Tensor
    pose_map: Tensor


@dataclass(frozen=True)
class Person:
    """What the UNet sees of the photo: mask [B, 1, h, w], masked_image_latents [B, 4, h, w], pose_map [B, 18, h, w]."""

    mask: Tensor
    masked_image_latents: Tensor
    pose_map: Tensor


@dataclass(frozen=True)
class Conditioning:
    """What the UNet reads: prompt_embeds and negative_prompt_embeds, both [B, 77, D]."""

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor


def retrieve(catalogue: Catalogue | None, request: EditRequest) -> list[Match]:
    """The garments to condition on, best first: those the request names, else the catalogue's nearest to its text."""
    if request.template is Template.CAPTION or not (request.garment_ids or request.num_garments):
        return []
    if catalogue is None:
        raise InvalidRequest("num_garments", request.num_garments, "must be 0 where no catalogue is loaded")
    if request.garment_ids:
        return [Match(catalogue.get(garment_id), None) for garment_id in request.garment_ids]
    return catalogue.search(request.prompt, request.category, request.num_garments)


def condition(
    prompt_encoder: PromptEncoder, garment_encoder: GarmentEncoder, request: EditRequest, pictures: list[Image.Image]
) -> Conditioning:
    """The request's prompt, with the garments' pseudo-words in it, and the empty prompt."""
    pseudo_words, num_pseudo_words = None, 0
    if pictures:
        words = garment_encoder(garment_encoder.pixels(pictures))
        num_pseudo_words = words.shape[1]
        pseudo_words = words.flatten(0, 1)[None]  # garment after garment
    text = prompt_text(request.template, request.category, request.prompt, len(pictures), num_pseudo_words)
    return Conditioning(prompt_encoder([text], pseudo_words), prompt_encoder([""]))


def prepare(request: EditRequest, manifest: Manifest) -> Inputs:
    """The request's photo, mask and pose at the bundle's image size, on the CPU."""
    height, width = manifest.image_size
    mask = Image.fromarray((request.mask != 0).astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    keypoints = np.zeros((18, 2)) if request.keypoints is None else request.keypoints
    keypoints = scale_keypoints(keypoints, request.mask.shape, manifest.image_size)
    return Inputs(
        image=to_tensor(Image.fromarray(request.image), manifest.image_size)[None],
        mask=torch.from_numpy(np.array(mask)).float()[None, None],
        pose_map=heat_maps(keypoints, manifest.image_size, manifest.pose_sigma)[None],
    )


def draw_noise(seed: int, latent_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The initial latents and the VAE posterior's noise, drawn in this order from one CPU generator."""
    generator = torch.Generator("cpu").manual_seed(seed)
    latents = torch.randn(*latent_shape, generator=generator)
    return latents, torch.randn(*latent_shape, generator=generator)


def encode_person(vae: VAE, image: Tensor, mask: Tensor, pose_map: Tensor, vae_noise: Tensor) -> Person:
    """The photo without what is to be repainted, its mask and its pose, at the latents' size."""
    mask = binarise(mask)
    height, width = (side // vae.downsampling for side in image.shape[-2:])
    return Person(
        mask=functional.interpolate(mask, size=(height, width), mode="nearest"),
        # The hole is 0, mid grey.
        masked_image_latents=vae.encode(image * (1 - mask), vae_noise),
        pose_map=to_latent(pose_map, (height, width)),
    )


def encode(
    vae: VAE, request: EditRequest, manifest: Manifest, device: torch.device | str = "cpu"
) -> tuple[Tensor, Person]:
    """The initial latents [1, 4, h, w] and the person of a request, both from its seed."""
    latent_shape = (1, LATENT_CHANNELS, *(side // vae.downsampling for side in manifest.image_size))
    latents, vae_noise = (noise.to(device) for noise in draw_noise(request.seed, latent_shape))
    image, mask, pose_map = (tensor.to(device) for tensor in prepare(request, manifest))
    return latents, encode_person(vae, image, mask, pose_map, vae_noise)


def denoise(
    unet: UNetCall,
    sampler: SamplerConfig,
    latents: Tensor,
    person: Person,
    conditioning: Conditioning,
    num_inference_steps: int,
    guidance_scale: float,
) -> Iterator[Tensor]:
    """Yield the latents [B, 4, h, w] after each step; the caller shows progress, or stops early.

    Guided steps run two halves, unconditional first: the empty prompt and no pose, but the same mask and photo. A
    `guidance_scale` of 1 or less runs the conditional half alone.
    """
    guided = guidance_scale > 1
    mask, masked_image_latents, pose_map = person.mask, person.masked_image_latents, person.pose_map
    prompt_embeds = conditioning.prompt_embeds
    if guided:
        mask, masked_image_latents = torch.cat([mask] * 2), torch.cat([masked_image_latents] * 2)
        pose_map = torch.cat([torch.zeros_like(pose_map), pose_map])
        prompt_embeds = torch.cat([conditioning.negative_prompt_embeds, prompt_embeds])
    steps = torch.stack([timesteps(sampler, num_inference_steps), previous_timesteps(sampler, num_inference_steps)])
    for t, t_prev in steps.to(latents.device).T:
        sample = unet_input(torch.cat([latents] * 2) if guided else latents, mask, masked_image_latents, pose_map)
        noise_pred = unet(sample, t.expand(len(sample)), prompt_embeds)
        if guided:
            uncond, cond = noise_pred.chunk(2)
            noise_pred = guide(uncond, cond, guidance_scale)
        latents = ddim_step(sampler, noise_pred, latents, t.expand(len(latents)), t_prev.expand(len(latents)))
        yield latents


def decode(vae: VAE, latents: Tensor) -> NDArray[np.uint8]:
    """The repainted pictures, uint8 [B, H, W, 3], at the model's size and not yet put back into the photo."""
    return to_uint8(vae.decode(latents))


def finish(request: EditRequest, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The request's own photo, uint8 and at its own size, with `picture` [H, W, 3] where the mask says."""
    # The seam is as soft at every size: 3 pixels at the paper's 512x384.
    return paste_outside(request.image, request.mask, picture, feather_px=min(request.mask.shape) // 128)


@dataclass(frozen=True)
class Pipeline:
    """One edit at a time on one device. A picture depends on its request, seed included, and on nothing else."""

    manifest: Manifest
    sampler: SamplerConfig
    unet: UNetCall
    vae: VAE
    prompt_encoder: PromptEncoder
    garment_encoder: GarmentEncoder
    device: torch.device
    catalogue: Catalogue | None = None

    @classmethod
    def load(
        cls,
        bundle_path: Path,
        catalogue_path: Path | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Pipeline:
        """The pipeline of a model bundle; without a catalogue, edits must bring their garments or use none."""
        bundle = Bundle.open(bundle_path)
        return cls(
            manifest=bundle.manifest,
            sampler=bundle.sampler,
            unet=bundle.load_unet(device, dtype),
            vae=bundle.load_vae(device, dtype),
            prompt_encoder=bundle.load_prompt_encoder(device, dtype),
            garment_encoder=bundle.load_garment_encoder(device, dtype),
            device=torch.device(device),
            catalogue=Catalogue.open(catalogue_path, bundle.load_retrieval_encoder()) if catalogue_path else None,
        )

    @torch.inference_mode()
    def __call__(self, request: EditRequest, garments: Sequence[Garment] | None = None) -> EditResult:
        """The edited photo; `garments` stand in for retrieval. Raises InvalidRequest for what cannot be edited."""
        timings: dict[str, float] = {}
        with self._timed("retrieve", timings):
            if garments is None:
                garments = [match.garment for match in retrieve(self.catalogue, request)]
        with self._timed("condition", timings):
            pictures = [garment.image() for garment in garments]
            conditioning = condition(self.prompt_encoder, self.garment_encoder, request, pictures)
        with self._timed("encode", timings):
            latents, person = encode(self.vae, request, self.manifest, self.device)
        with self._timed("denoise", timings):
            steps, scale = request.num_inference_steps, request.guidance_scale
            *_, latents = denoise(self.unet, self.sampler, latents, person, conditioning, steps, scale)
        with self._timed("decode", timings):
            edited = finish(request, decode(self.vae, latents)[0])
        return EditResult(edited, tuple(garment.id for garment in garments), request.seed, timings)

    @contextmanager
    def _timed(self, stage: str, timings: dict[str, float]) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        timings[stage] = time.perf_counter() - start
