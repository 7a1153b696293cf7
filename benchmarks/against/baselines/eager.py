"""The server that one would write with diffusers: its networks and scheduler, eager, one edit at a time behind FastAPI.

    python -m benchmarks.against.baselines.eager --catalogue out/world/catalogue --port 8001

`batched.py` batches its loop. Weights, catalogue, form and reply are those of our own server; it takes no notice of a
deadline, of a wish for a stream, or of a caller who has left.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import uvicorn
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from torch import Tensor
from torch.nn import functional

from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.catalogue import Catalogue
from fashion_rag.catalogue.retrieve import retrieve_many
from fashion_rag.completer import Completer
from fashion_rag.data.finish import finish
from fashion_rag.data.image import to_uint8
from fashion_rag.data.pose import to_latent
from fashion_rag.data.prepare import prepare
from fashion_rag.manifest import DEMO_BUNDLE, Manifest
from fashion_rag.models.adapter import GarmentEncoder
from fashion_rag.models.pretrained import read_unet, read_vae
from fashion_rag.models.prompt import PromptEncoder
from fashion_rag.pipeline import condition, pseudo_words
from fashion_rag.request import CompleteRequest, EditRequest
from serve.config import IngressSettings
from serve.edits import EditedPhoto
from serve.http.edit_requests import edit_requests
from serve.http.errors import add_handlers
from serve.http.forms import EditForm
from serve.http.multipart import read_form
from serve.http.replies import GarmentUsed, edit_reply
from serve.proxy.replay import MAX_BODY_BYTES

HOST = "127.0.0.1"

BundleOption = Annotated[Path, typer.Option(help="Folder of a model bundle.")]
CatalogueOption = Annotated[str, typer.Option(help="Folder or URL written by `fashion-rag index build`.")]
PortOption = Annotated[int, typer.Option(help="Port to listen on.")]


@dataclass(frozen=True)
class Editor:
    """A stock inpainting loop."""

    manifest: Manifest
    catalogue: Catalogue
    garment_encoder: GarmentEncoder
    prompt_encoder: PromptEncoder
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler

    @classmethod
    def load(cls, bundle_path: Path, catalogue: str) -> Editor:
        """Load the editor of a bundle. Raises ArtifactError for a part that cannot be loaded."""
        bundle = Bundle.open(bundle_path)
        return cls(
            manifest=bundle.manifest,
            catalogue=bundle.open_catalogue(catalogue),
            garment_encoder=bundle.load_garment_encoder(),
            prompt_encoder=bundle.load_prompt_encoder(),
            vae=read_vae(bundle.path / "vae"),
            unet=read_unet(bundle.path / "unet"),
            scheduler=DDIMScheduler.from_pretrained(bundle.path / "scheduler"),
        )

    @torch.inference_mode()
    def __call__(self, requests: Sequence[EditRequest]) -> list[EditedPhoto]:
        """Return the edited photos of requests that all have the first one's steps and guidance scale.

        Raises InvalidRequest if one of them cannot be edited.
        """
        started = time.perf_counter()
        # Without a parser, it takes what the requests give.
        completed = Completer()(self.catalogue, requests, self.manifest.image_size)
        complete = [request for request, _ in completed]
        matches = retrieve_many(self.catalogue, complete)
        words = []
        for of_request in matches:
            words.append(pseudo_words(self.garment_encoder, [match.garment for match in of_request]))
        prompts = condition(self.prompt_encoder, complete, words)
        latents, seen = self._encode(complete)
        uncond = torch.cat([prompt.negative_prompt_embeds for prompt in prompts])
        cond = torch.cat([prompt.prompt_embeds for prompt in prompts])
        latents = self._denoise(
            latents, seen, uncond, cond, requests[0].num_inference_steps, requests[0].guidance_scale
        )
        pictures = to_uint8(self.vae.decode(latents / self.vae.config.scaling_factor).sample)
        timings_s = {"edit": time.perf_counter() - started}
        return [
            EditedPhoto(finish(request, picture), tuple(map(_used, of_request)), found, timings_s, time.time())
            for (request, found), picture, of_request in zip(completed, pictures, matches, strict=True)
        ]

    def _encode(self, requests: Sequence[CompleteRequest]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return the initial latents, and mask, masked-image latents and pose at their size, a row for each request."""
        photos = [prepare(request, self.manifest) for request in requests]
        image, mask, pose_map = (torch.cat(rows) for rows in zip(*photos, strict=True))
        # Each row has a generator of its own, as in diffusers' pipelines, and draws in the order of our pipeline.
        generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        posterior = self.vae.encode(image * (1 - mask)).latent_dist
        latents = randn_tensor(posterior.mean.shape, generator=generators)
        masked_image_latents = posterior.sample(generators) * self.vae.config.scaling_factor
        size = latents.shape[-2:]
        return latents, (functional.interpolate(mask, size=size), masked_image_latents, to_latent(pose_map, size))

    def _denoise(
        self,
        latents: Tensor,
        seen: tuple[Tensor, Tensor, Tensor],
        uncond: Tensor,
        cond: Tensor,
        num_steps: int,
        guidance_scale: float,
    ) -> Tensor:
        mask, masked_image_latents, pose_map = seen
        guided = guidance_scale > 1
        text = cond
        if guided:
            text = torch.cat([uncond, cond])
            mask, masked_image_latents = torch.cat([mask] * 2), torch.cat([masked_image_latents] * 2)
            pose_map = torch.cat([torch.zeros_like(pose_map), pose_map])
        self.scheduler.set_timesteps(num_steps)
        for t in self.scheduler.timesteps:
            rows = self.scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
            sample = torch.cat([rows, mask, masked_image_latents, pose_map], dim=1)
            noise_pred = self.unet(sample, t, encoder_hidden_states=text, return_dict=False)[0]
            if guided:
                noise_uncond, noise_cond = noise_pred.chunk(2)
                noise_pred = noise_uncond + guidance_scale * (noise_cond - noise_uncond)
            latents = self.scheduler.step(noise_pred, t, latents, return_dict=False)[0]
        return latents


def _used(match: Any) -> GarmentUsed:
    return GarmentUsed(id=match.garment.id, score=match.score, caption=match.garment.caption)


async def read_requests(http: Request, manifest: Manifest) -> tuple[EditForm, list[EditRequest]]:
    """Return the form of an HTTP request, and the edits that it asks for. Raises as `read_form`, `edit_requests`."""
    settings, request_id = IngressSettings(), uuid.uuid4().hex
    form = await read_form(http, MAX_BODY_BYTES, EditForm, settings)
    return form, await asyncio.to_thread(edit_requests, form, manifest, settings, request_id, time.time())


async def reply(form: EditForm, requests: Sequence[EditRequest], edited: Sequence[EditedPhoto]) -> JSONResponse:
    """Return what our own server would answer."""
    pictures = [photo.image for photo in edited]
    seeds = [request.seed for request in requests]
    first, profile = edited[0], requests[0].icc_profile
    body = await asyncio.to_thread(
        edit_reply, form, pictures, seeds, first.garments, first.found, first.timings_s, profile
    )
    return JSONResponse(body.model_dump())


def build(editor: Editor) -> FastAPI:
    """Return the server's application."""
    api = FastAPI()
    add_handlers(api)
    lock = asyncio.Lock()
    # It is always the same thread, because PyTorch keeps a pool of helpers for each thread that calls it.
    thread = ThreadPoolExecutor(1, "edit")

    @api.post("/v1/images/edits")
    async def edit(http: Request) -> JSONResponse:
        form, requests = await read_requests(http, editor.manifest)
        edited = []
        for request in requests:
            async with lock:
                edited += await asyncio.get_running_loop().run_in_executor(thread, editor, [request])
        return await reply(form, requests, edited)

    return api


def main(catalogue: CatalogueOption, bundle: BundleOption = DEMO_BUNDLE, port: PortOption = 8001) -> None:
    """Answer edits one at a time, until Ctrl-C."""
    torch.set_num_threads(os.cpu_count() or 1)
    uvicorn.run(
        build(Editor.load(bundle, catalogue)), host=HOST, port=port, log_level="warning", timeout_graceful_shutdown=1
    )


if __name__ == "__main__":
    typer.run(main)
