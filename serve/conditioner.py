"""The deployment that turns garments into pseudo-words, and words and pseudo-words into prompt embeddings."""

import asyncio
import time
from pathlib import Path

import torch
from ray import serve as ray_serve

from fashion_rag import pipeline
from fashion_rag.bundle import Bundle
from fashion_rag.request import EditRequest
from serve.stages import Conditioned, Retrieved


@ray_serve.deployment
class Conditioner:
    """Prompts and garments to prompt embeddings."""

    def __init__(self, bundle: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        opened = Bundle.open(Path(bundle))
        self.prompt_encoder = opened.load_prompt_encoder()
        self.garment_encoder = opened.load_garment_encoder()

    async def ping(self) -> None:
        """Returns when the replica answers."""

    async def condition(self, request: EditRequest, retrieved: Retrieved) -> Conditioned:
        """What the UNet reads of the prompt and the garments. Raises InvalidRequest where they do not fit together."""
        return await asyncio.to_thread(self._condition, request, retrieved)

    def _condition(self, request: EditRequest, retrieved: Retrieved) -> Conditioned:
        started = time.perf_counter()
        conditioning = pipeline.condition(self.prompt_encoder, self.garment_encoder, request, retrieved.pictures)
        timings_s = retrieved.timings_s | {"condition": time.perf_counter() - started}
        return Conditioned(conditioning, retrieved.garments, timings_s)
