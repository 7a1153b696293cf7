"""The deployment of the UNet. Between two steps an edit can be cancelled, and other edits take their turn."""

import asyncio
import time
from pathlib import Path

import torch
from ray import serve as ray_serve

from fashion_rag import pipeline
from fashion_rag.bundle import Bundle
from fashion_rag.request import EditRequest
from serve.stages import Conditioned, Denoised, Encoded


@ray_serve.deployment
class Denoiser:
    """Noise to latents."""

    def __init__(self, bundle: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        opened = Bundle.open(Path(bundle))
        self.sampler = opened.sampler
        self.unet = opened.load_unet()
        self.num_running = 0
        self.num_steps_done = 0

    async def ping(self) -> None:
        """Returns when the replica answers."""

    async def progress(self) -> tuple[int, int]:
        """The edits in the loop now, and the steps done since the replica started."""
        return self.num_running, self.num_steps_done

    async def denoise(self, request: EditRequest, conditioned: Conditioned, encoded: Encoded) -> Denoised:
        """The latents after the last step. A cancelled call ends with the step that it is in."""
        started = time.perf_counter()
        latents = encoded.latents
        steps = pipeline.denoise(
            self.unet,
            self.sampler,
            latents,
            encoded.person,
            conditioned.conditioning,
            request.num_inference_steps,
            request.guidance_scale,
        )
        self.num_running += 1
        try:
            # One thread call a step: a cancellation arrives at the await.
            while (stepped := await asyncio.to_thread(next, steps, None)) is not None:
                latents = stepped
                self.num_steps_done += 1
        finally:
            self.num_running -= 1
        timings_s = conditioned.timings_s | encoded.timings_s | {"denoise": time.perf_counter() - started}
        return Denoised(latents, conditioned.garments, timings_s)
