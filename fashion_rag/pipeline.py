"""The whole method on one page: find, retrieve, invert, condition, encode, denoise, decode (arXiv 2504.14011).

`Pipeline` runs an edit alone and is the reference for everything faster. The servers' replicas call the same functions,
one for each stage, with several requests at a time. What a request gets is what it would get alone, within the rounding
of float32. Tensors are float32; call the functions without gradients. `completer` has the first stage, which finds what
the caller left out, and `catalogue.retrieve` has the second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.catalogue import Catalogue
from fashion_rag.catalogue.garments import Garment
from fashion_rag.catalogue.retrieve import retrieve
from fashion_rag.completer import Completed, Completer
from fashion_rag.data.finish import finish
from fashion_rag.data.image import binarise, to_uint8
from fashion_rag.data.pose import to_latent
from fashion_rag.data.prepare import prepare
from fashion_rag.denoising.noise_schedule import NoiseSchedule, guide
from fashion_rag.denoising.plan import History, advance, plan
from fashion_rag.denoising.runner import Inputs
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import Manifest
from fashion_rag.models.adapter import GarmentEncoder
from fashion_rag.models.autoencoder import VAE
from fashion_rag.models.prompt import PromptEncoder, prompt_text
from fashion_rag.models.unet import LATENT_CHANNELS, DeepUNet, unet_input
from fashion_rag.request import PLAIN, CompleteRequest, EditRequest, EditResult, Shortcuts, Solver


@dataclass(frozen=True, eq=False)
class Person:
    """What the UNet sees of the photo: mask [B, 1, h, w], masked_image_latents [B, 4, h, w], pose_map [B, 18, h, w]."""

    mask: Tensor
    masked_image_latents: Tensor
    pose_map: Tensor


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The text that the UNet attends to: prompt_embeds and negative_prompt_embeds, both [B, 77, D]."""

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor


def invert(garment_encoder: GarmentEncoder, pictures: Sequence[Image.Image]) -> Tensor:
    """Return the pseudo-words [N, P, D] of N >= 1 garment pictures of any size."""
    words: Tensor = garment_encoder(garment_encoder.pixels(pictures))
    return words


def pseudo_words(garment_encoder: GarmentEncoder, garments: Sequence[Garment]) -> Tensor | None:
    """Return the pseudo-words [n, P, D] of n garments, or None for none; those that are not known are computed."""
    if not garments:
        return None
    words: dict[int, Tensor] = {}
    for row, garment in enumerate(garments):
        if garment.pseudo_words is not None:
            words[row] = torch.from_numpy(garment.pseudo_words)
    missing = [row for row in range(len(garments)) if row not in words]
    if missing:
        inverted = invert(garment_encoder, [garments[row].image() for row in missing])
        words |= dict(zip(missing, inverted.unbind(), strict=True))
    return torch.stack([words[row] for row in range(len(garments))])


def condition(
    prompt_encoder: PromptEncoder, requests: Sequence[EditRequest], pseudo_words: Sequence[Tensor | None]
) -> list[Conditioning]:
    """Return each request's prompt, with its garments' pseudo-words in it, and the empty prompt.

    The text encoder is called once for all. requests: their categories must be known, but masks may be missing.
    pseudo_words: for each request [n, P, D] of its n garments in order, or None for no garment. Raises InvalidRequest
    if a prompt has no room for its pseudo-words.
    """
    texts = [""]
    inserted: list[Tensor | None] = [None]
    for request, words in zip(requests, pseudo_words, strict=True):
        assert request.category is not None, "the prompt names the category"
        num_garments, num_words = (0, 0) if words is None else words.shape[:2]
        texts.append(prompt_text(request.template, request.category, request.prompt, num_garments, num_words))
        inserted.append(None if words is None else words.flatten(0, 1))  # garment after garment
    # Cloned, because a view that is sent over the network takes its whole tensor along.
    empty, *rows = (row.clone() for row in prompt_encoder(texts, inserted).split(1))
    return [Conditioning(row, empty) for row in rows]


def draw_noise(seed: int, latent_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the initial latents and the noise of the VAE's posterior, drawn in this order from one CPU generator."""
    generator = torch.Generator("cpu").manual_seed(seed)
    latents = torch.randn(*latent_shape, generator=generator)
    return latents, torch.randn(*latent_shape, generator=generator)


def encode_person(vae: VAE, image: Tensor, mask: Tensor, pose_map: Tensor, vae_noise: Tensor) -> Person:
    """Return the photo without the part to be repainted, its mask and its pose, at the size of the latents."""
    mask = binarise(mask)
    height, width = (side // vae.downsampling for side in image.shape[-2:])
    return Person(
        mask=functional.interpolate(mask, size=(height, width), mode="nearest"),
        # The part to be repainted becomes 0, which is mid grey.
        masked_image_latents=vae.encode(image * (1 - mask), vae_noise),
        pose_map=to_latent(pose_map, (height, width)),
    )


def encode(
    vae: VAE, requests: Sequence[CompleteRequest], manifest: Manifest, device: torch.device | str = "cpu"
) -> list[tuple[Tensor, Person]]:
    """Return each request's initial latents [1, 4, h, w] and person. Both depend on the request's own seed.

    The VAE is called once for all requests.
    """
    height, width = (side // vae.downsampling for side in manifest.image_size)
    noises = [draw_noise(request.seed, (1, LATENT_CHANNELS, height, width)) for request in requests]
    vae_noise = torch.cat([posterior_noise for _, posterior_noise in noises]).to(device)
    photos = [prepare(request, manifest) for request in requests]
    image, mask, pose_map = (torch.cat(rows).to(device) for rows in zip(*photos, strict=True))
    batch = encode_person(vae, image=image, mask=mask, pose_map=pose_map, vae_noise=vae_noise)
    rows = zip(batch.mask.split(1), batch.masked_image_latents.split(1), batch.pose_map.split(1), strict=True)
    # Cloned, because a view that is sent over the network takes its whole tensor along.
    people = [Person(*map(torch.clone, row)) for row in rows]
    return [(latents.to(device), person) for (latents, _), person in zip(noises, people, strict=True)]


def denoising_inputs(latents: Tensor, person: Person, conditioning: Conditioning) -> Inputs:
    """Return the inputs from which the engine denoises one edit."""
    return Inputs(
        latents,
        person.mask,
        person.masked_image_latents,
        person.pose_map,
        conditioning.prompt_embeds,
        conditioning.negative_prompt_embeds,
    )


def denoise(
    unet: DeepUNet,
    sampler: NoiseSchedule,
    latents: Tensor,
    person: Person,
    conditioning: Conditioning,
    num_inference_steps: int,
    guidance_scale: float,
    shortcuts: Shortcuts = PLAIN,
) -> Iterator[Tensor]:
    """Yield the latents [B, 4, h, w] after each step, so that the caller can show progress or stop early.

    Guided steps run two halves in one call. The unconditional half comes first; it has the empty prompt and no pose,
    but the same mask and photo. With a `guidance_scale` of 1 or less, the conditional half runs alone.
    """
    no_pose = torch.zeros_like(person.pose_map)
    history = None if shortcuts.solver == Solver.DDIM else History.before_first_step(latents)
    features = torch.empty(0)
    for step in plan(sampler, num_inference_steps, guidance_scale, shortcuts):
        sample = unet_input(latents, person.mask, person.masked_image_latents, person.pose_map)
        prompt_embeds = conditioning.prompt_embeds
        if step.guided:
            uncond = unet_input(latents, person.mask, person.masked_image_latents, no_pose)
            sample = torch.cat([uncond, sample])
            prompt_embeds = torch.cat([conditioning.negative_prompt_embeds, prompt_embeds])
        t = torch.full((len(sample),), step.t, device=latents.device)
        if not step.deep:
            noise_pred = unet.shallow(sample, t, prompt_embeds, features[-len(sample) :])
        elif step.keeps:
            noise_pred, features = unet.deep(sample, t, prompt_embeds)
        else:
            noise_pred = unet(sample, t, prompt_embeds)
        if step.guided:
            uncond_pred, cond_pred = noise_pred.chunk(2)
            noise_pred = guide(uncond_pred, cond_pred, guidance_scale)
        latents, _, history = advance([step] * len(latents), latents, noise_pred, history)
        yield latents


def decode(vae: VAE, latents: Tensor) -> NDArray[np.uint8]:
    """Return the repainted pictures, uint8 [B, H, W, 3], at the model's size and not yet put back into the photo."""
    return to_uint8(vae.decode(latents))


@dataclass(frozen=True, eq=False)
class Pipeline:
    """The whole method, for one edit at a time on one device. A picture depends on its request and seed alone."""

    manifest: Manifest
    sampler: NoiseSchedule
    unet: DeepUNet
    vae: VAE
    prompt_encoder: PromptEncoder
    garment_encoder: GarmentEncoder
    device: torch.device
    catalogue: Catalogue | None = None
    completer: Completer = field(default_factory=Completer)
    load_student: Callable[[], DeepUNet] | None = None

    @cached_property
    def student(self) -> DeepUNet:
        """Return the student, which is loaded for the first edit that asks for it. Raises InvalidRequest without."""
        if self.load_student is None:
            raise InvalidRequest("student", True, "needs a bundle that has a student", "unsupported_value")
        return self.load_student()

    def denoiser(self, shortcuts: Shortcuts) -> tuple[DeepUNet, NoiseSchedule]:
        """Return the UNet that takes the steps of an edit, and its noise schedule.

        Raises InvalidRequest as `student`.
        """
        if shortcuts.student:
            return self.student, self.sampler.for_student()
        return self.unet, self.sampler

    @classmethod
    def load(
        cls,
        bundle_path: Path,
        catalogue: str | Path | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Pipeline:
        """Return the pipeline of a model bundle. Without a catalogue, edits must bring their garments or use none."""
        bundle = Bundle.open(bundle_path)
        # Opened first, so that a catalogue that does not fit is refused before large networks are loaded.
        opened = bundle.open_catalogue(catalogue) if catalogue else None
        return cls(
            manifest=bundle.manifest,
            sampler=bundle.sampler,
            unet=bundle.load_unet(device, dtype),
            vae=bundle.load_vae(device, dtype),
            prompt_encoder=bundle.load_prompt_encoder(device, dtype),
            garment_encoder=bundle.load_garment_encoder(device, dtype),
            device=torch.device(device),
            catalogue=opened,
            completer=Completer.load(bundle, opened, device, dtype),
            load_student=partial(bundle.load_student, device, dtype) if bundle.has_student else None,
        )

    @torch.inference_mode()
    def complete(
        self, requests: Sequence[EditRequest], garments: Sequence[Sequence[Garment]] | None = None
    ) -> list[Completed]:
        """Return each request with what it leaves open. Arguments and errors are those of `Completer`."""
        return self.completer(self.catalogue, requests, self.manifest.image_size, garments)

    @torch.inference_mode()
    def __call__(
        self,
        request: EditRequest,
        garments: Sequence[Garment] | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> EditResult:
        """Return the edited photo. Raises InvalidRequest for a request that cannot be edited.

        garments: used instead of those that would be retrieved. progress: called after each denoising step.
        """
        timings: dict[str, float] = {}
        with self._timed("find", timings):
            ((complete, found),) = self.complete([request], None if garments is None else [garments])
        with self._timed("retrieve", timings):
            if garments is None:
                garments = [match.garment for match in retrieve(self.catalogue, complete)]
        with self._timed("condition", timings):
            words = pseudo_words(self.garment_encoder, garments)
            (conditioning,) = condition(self.prompt_encoder, [complete], [words])
        with self._timed("encode", timings):
            ((latents, person),) = encode(self.vae, [complete], self.manifest, self.device)
        with self._timed("denoise", timings):
            steps = denoise(
                *self.denoiser(complete.shortcuts),
                latents=latents,
                person=person,
                conditioning=conditioning,
                num_inference_steps=complete.num_inference_steps,
                guidance_scale=complete.guidance_scale,
                shortcuts=complete.shortcuts,
            )
            for stepped in steps:
                latents = stepped
                progress()
        with self._timed("decode", timings):
            edited = finish(complete, decode(self.vae, latents)[0])
        return EditResult(
            image=edited,
            mask=complete.mask,
            window=complete.window,
            category=complete.category,
            category_confidence=found.choice.confidence,
            garment_ids=tuple(garment.id for garment in garments),
            seed=complete.seed,
            timings_s=timings,
            warnings=found.warnings,
            icc_profile=complete.icc_profile,
        )

    @contextmanager
    def _timed(self, stage: str, timings: dict[str, float]) -> Iterator[None]:
        """Measure how many seconds the block takes, and note them in `timings` under the name of the stage."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        timings[stage] = time.perf_counter() - start
