"""The deployment between pictures and latents: the person's first stage, and the last of all."""

import asyncio
import time
from pathlib import Path

import torch
from ray import serve as ray_serve

from fashion_rag import pipeline
from fashion_rag.bundle import Bundle
from fashion_rag.request import EditRequest
from serve.stages import Denoised, Edited, Encoded


@ray_serve.deployment
class VAE:
    """Persons to latents, and latents to pictures."""

    def __init__(self, bundle: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        opened = Bundle.open(Path(bundle))
        self.manifest = opened.manifest
        self.vae = opened.load_vae()

    async def ping(self) -> None:
        """Returns when the replica answers."""

    async def encode(self, request: EditRequest) -> Encoded:
        """What the UNet sees of the person, and the noise that it starts from."""
        return await asyncio.to_thread(self._encode, request)

    def _encode(self, request: EditRequest) -> Encoded:
        started = time.perf_counter()
        latents, person = pipeline.encode(self.vae, request, self.manifest)
        return Encoded(person, latents, {"encode": time.perf_counter() - started})

    async def decode(self, request: EditRequest, denoised: Denoised) -> Edited:
        """The photo with the repainted part in it."""
        return await asyncio.to_thread(self._decode, request, denoised)

    def _decode(self, request: EditRequest, denoised: Denoised) -> Edited:
        started = time.perf_counter()
        image = pipeline.finish(request, pipeline.decode(self.vae, denoised.latents)[0])
        return Edited(image, denoised.garments, denoised.timings_s | {"decode": time.perf_counter() - started})
