"""The deployment between pictures and latents. The denoiser has persons encoded, and the ingress latents decoded."""

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
from fashion_rag.person.completion import Found, complete
from fashion_rag.pipeline import Person
from fashion_rag.request import CompleteRequest, EditRequest
from serve import metrics, tracing
from serve.batching import Outcome, in_batch, run_batch, set_max_batch
from serve.config import BatchSettings
from serve.logs import leave_out_expected_errors
from serve.memory import give_back_large_blocks
from serve.messages import Decoded, EncodedPerson
from serve.tracing import Kind


@ray_serve.deployment
class VAE:
    """Makes latents of persons, and pictures of latents, several in one call."""

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

    async def encode(self, request: EditRequest, found: Found) -> EncodedPerson:
        """Return what the UNet sees of the person, and the noise that it starts from.

        found: what completes the request.
        """
        with metrics.timed("encode") as timings_s:
            with tracing.span("complete request", Kind.IMAGE):
                completed = await asyncio.to_thread(complete, request, found)
            latents, person = await in_batch("encode", self._encode, completed)
        return EncodedPerson(person, latents, timings_s)

    @ray_serve.batch(batch_wait_timeout_s=0)
    async def _encode(self, requests: list[CompleteRequest]) -> list[Outcome[tuple[Tensor, Person]]]:
        return await run_batch(self._encode_all, requests)

    @torch.inference_mode()
    def _encode_all(self, requests: Sequence[CompleteRequest]) -> list[tuple[Tensor, Person]]:
        return pipeline.encode(self.vae, requests, self.manifest)

    async def decode(self, latents: NDArray[np.float32]) -> Decoded:
        """Return the picture, in the model's size, that scaled latents [1, 4, h, w] stand for."""
        with metrics.timed("decode") as timings_s:
            picture = await in_batch("decode", self._decode, torch.tensor(latents))
        return Decoded(picture, timings_s)

    @ray_serve.batch(batch_wait_timeout_s=0)
    async def _decode(self, latents: list[Tensor]) -> list[Outcome[NDArray[np.uint8]]]:
        return await run_batch(self._decode_all, latents)

    @torch.inference_mode()
    def _decode_all(self, latents: Sequence[Tensor]) -> list[NDArray[np.uint8]]:
        return list(pipeline.decode(self.vae, torch.cat(list(latents))))
