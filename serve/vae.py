"""The deployment between pictures and latents: the person's first stage, and the last of all."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray import serve as ray_serve
from torch import Tensor

from export.runtime import Runtime
from fashion_rag import pipeline
from fashion_rag.data.finish import finish
from fashion_rag.pipeline import Person
from fashion_rag.request import EditRequest
from serve import metrics
from serve.batching import checked, each, set_max_batch
from serve.config import BatchSettings
from serve.logs import leave_out_expected_errors
from serve.memory import give_back_large_blocks
from serve.messages import Denoised, Edited, Encoded

Latent = tuple[EditRequest, Tensor]


@ray_serve.deployment
class VAE:
    """Persons to latents, and latents to pictures, several in one call."""

    def __init__(self, runtime: Runtime) -> None:
        leave_out_expected_errors()
        give_back_large_blocks()
        torch.set_num_threads(runtime.num_threads)
        parts = runtime.open()
        self.manifest = parts.bundle.manifest
        self.vae = parts.load_vae()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take on new BatchSettings."""
        set_max_batch(BatchSettings.from_args(user_config).max_batch, self._encode, self._decode)

    async def ping(self) -> None:
        """Return when the replica answers."""

    async def encode(self, request: EditRequest, digested: bool) -> Encoded:
        """Return what the UNet sees of the person, and the noise that it starts from; digested: the request's digest,
        too.
        """
        with metrics.timed("encode") as timings_s:
            latents, person = checked(await self._encode(request))
            digest = await asyncio.to_thread(request.digest) if digested else None
        return Encoded(person, latents, digest, timings_s)

    @ray_serve.batch(batch_wait_timeout_s=0)
    async def _encode(self, requests: list[EditRequest]) -> list[tuple[Tensor, Person] | Exception]:
        return await asyncio.to_thread(each, self._encode_all, requests)

    @torch.inference_mode()
    def _encode_all(self, requests: Sequence[EditRequest]) -> list[tuple[Tensor, Person]]:
        return pipeline.encode(self.vae, requests, self.manifest)

    async def decode(self, request: EditRequest, denoised: Denoised) -> Edited:
        """Return the photo with the repainted part in it."""
        with metrics.timed("decode") as timings_s:
            image = checked(await self._decode((request, torch.tensor(denoised.latents))))
        return Edited(image, denoised.garments, denoised.timings_s | timings_s)

    @ray_serve.batch(batch_wait_timeout_s=0)
    async def _decode(self, items: list[Latent]) -> list[NDArray[np.uint8] | Exception]:
        return await asyncio.to_thread(each, self._decode_all, items)

    @torch.inference_mode()
    def _decode_all(self, items: Sequence[Latent]) -> list[NDArray[np.uint8]]:
        pictures = pipeline.decode(self.vae, torch.cat([latents for _, latents in items]))
        return [finish(request, picture) for (request, _), picture in zip(items, pictures, strict=True)]
